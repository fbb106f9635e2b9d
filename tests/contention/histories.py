"""Histories of what processes called and were told, and whether one order explains them.

Every operation has an interval on CLOCK_MONOTONIC, which all processes of a machine share. A
history of one session is linearizable when its operations can be put into one serial order in which
each does what it was told, and none comes before one that had ended when it began.

An append that was accepted says at which version it stands, so the order of appends is the order of
versions; what is to be proved is that real time and the reads agree with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

__all__ = ["Operation", "violations"]


@dataclass(frozen=True)
class Operation:
    """What one call did to one session, and when.

    An "append" was accepted as `event`, and the session had `after` events then. One that is
    "stale" expected `before` events, and was refused. A "read" saw `seen`, in order. "Unknown" is
    an append that was never answered, for its process was killed: `ended` is infinite.
    """

    kind: Literal["append", "stale", "read", "unknown"]
    session: str
    began: float
    ended: float
    event: str = ""
    before: int = 0
    after: int = 0
    seen: tuple[str, ...] = ()


def violations(history: Iterable[Operation], final: dict[str, Sequence[str]]) -> list[str]:
    """What no serial order explains. `final` is what each session holds in the end, in order."""
    by_session: dict[str, list[Operation]] = {name: [] for name in final}
    for operation in history:
        by_session.setdefault(operation.session, []).append(operation)
    return [
        f"{name}: {found}"
        for name, operations in by_session.items()
        for found in _violations(operations, tuple(final.get(name, ())))
    ]


def _violations(operations: Sequence[Operation], final: tuple[str, ...]) -> Iterable[str]:
    places = {event: number for number, event in enumerate(final, 1)}
    if len(places) != len(final):
        yield "an event is there twice"
    tried = {o.event: o for o in operations if o.kind in ("append", "unknown")}
    for event in final:
        if event not in tried:
            yield f"{event} is there, and nobody appended it"
    for operation in operations:
        if operation.kind == "append" and places.get(operation.event) != operation.after:
            yield f"{operation.event} was acknowledged at {operation.after} and is not there"
        if operation.kind == "append" and operation.after != operation.before + 1:
            yield f"{operation.event} was accepted at {operation.after} behind {operation.before}"
        if operation.kind == "read" and operation.seen != final[: len(operation.seen)]:
            yield f"a read saw what was never there: {operation.seen}"
    yield from _out_of_time(operations, final, tried)


def _out_of_time(
    operations: Sequence[Operation], final: tuple[str, ...], tried: dict[str, Operation]
) -> Iterable[str]:
    """Gives each version the interval in which the session came to it, and compares."""
    # The session had n events from some moment in [earliest[n], latest[n]] on. What was told at a
    # moment about n events bounds the moments of all smaller n from above, and of n + 1 from below.
    earliest = [float("-inf")] + [tried[e].began if e in tried else float("-inf") for e in final]
    latest = [float("-inf")] + [tried[e].ended if e in tried else float("inf") for e in final]
    for operation in operations:
        if operation.kind == "read":
            count = len(operation.seen)
            _at_most(latest, count, operation.ended)
            _at_least(earliest, count + 1, operation.began)
        elif operation.kind == "stale":
            _at_most(latest, operation.before + 1, operation.ended)
        elif operation.kind == "append":
            _at_least(earliest, operation.after, operation.began)
    # Versions come one behind the other.
    lows = list(accumulate(earliest, max))
    highs = list(accumulate(reversed(latest), min))[::-1]
    for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if low > high:
            yield f"no moment is left at which it came to {number} events"


def _at_most(latest: list[float], number: int, moment: float) -> None:
    if number < len(latest):
        latest[number] = min(latest[number], moment)
    else:
        latest[-1] = float("-inf")  # it was told of more than there is in the end


def _at_least(earliest: list[float], number: int, moment: float) -> None:
    if number < len(earliest):
        earliest[number] = max(earliest[number], moment)

"""Scavenge: remove the events of deleted sessions without changing any projection row.

Law: scavenge, then rebuild, changes no row. A deleted session's events may be the last writers of
`app:` and `user:` keys, which outlive it. Such a key is carried over first, in the same
transaction: a `state_set` event on its scope's own stream, with the same raw value.
"""

from __future__ import annotations

import time
import uuid
from typing import Final, NamedTuple

import msgspec

from eventstore import (
    EventStore,
    EventType,
    MaintenanceTransaction,
    NewEvent,
    Stream,
)
from eventstore.encoding import PYTHON_JSON, STRICT_JSON, decode_members

__all__ = ["Scavenged", "scavenge"]

_SESSIONS_PER_TRANSACTION: Final = 20
"""So that no writer waits long behind one step."""


class Scavenged(NamedTuple):
    """What was removed, and how many keys were carried over."""

    sessions: int
    events: int
    keys_carried_over: int


def scavenge(store: EventStore) -> Scavenged:
    """Removes the events of every deleted session, some sessions at a time, and logs each step.

    Interrupted, it has done some of the sessions; the next run does the rest. Blocks.

    Raises:
        StorageFailed, StoreBusy: the step at hand was not done.
    """
    total = Scavenged(0, 0, 0)
    while (step := store.transact(_step)).sessions:
        total = Scavenged(*(a + b for a, b in zip(total, step, strict=True)))
    return total


def _step(transaction: MaintenanceTransaction) -> Scavenged:
    streams = transaction.deleted_streams(_SESSIONS_PER_TRANSACTION)
    if not streams:
        return Scavenged(0, 0, 0)
    events = carried = 0
    with transaction.maintenance("vacuum"):
        for stream in streams:
            for owner, keys in _written_last(transaction, stream).items():
                carried += _carry_over(transaction, owner, keys)
            events += transaction.scavenge(stream)
        done = Scavenged(len(streams), events, carried)
        log = {"streams": [stream.id for stream in streams], **done._asdict()}
        transaction.append(
            transaction.ensure_system_stream(),
            _event(EventType.VACUUMED, data=msgspec.json.encode(log)),
        )
    return done


def _written_last(transaction: MaintenanceTransaction, stream: Stream) -> dict[int, dict[str, str]]:
    """The keys outside its own scope that a stream was the last to write, by owner, with values."""
    last: dict[tuple[int, str], int] = {}
    owners = stream.owners
    for event in transaction.read(stream):
        if event.delta is not None:
            for scope, members in decode_members(event.delta, event.encoding).items():
                if scope != "session":
                    last.update(((owners[scope], key), event.position) for key in members)
    values: dict[int, dict[str, str]] = {}
    for (owner, key), position in last.items():
        row = transaction.row("state", (owner, key))
        if row is not None and row[3] == position:
            values.setdefault(owner, {})[key] = str(row[2])
    return values


def _carry_over(transaction: MaintenanceTransaction, owner: int, keys: dict[str, str]) -> int:
    """Gives keys of a scope a writer that stays."""
    scope = transaction.get_stream(owner)
    for encoding in (STRICT_JSON, PYTHON_JSON):
        members = {
            key: msgspec.Raw(value.encode())
            for key, value in keys.items()
            if _encoding(value) == encoding
        }
        if members:
            delta = msgspec.json.encode({scope.key.kind.value: members})
            event = _event(EventType.STATE_SET, delta=delta, encoding=encoding)
            scope = transaction.append(scope, event).stream
    return len(keys)


def _encoding(value: str) -> int:
    """Which encoding a stored value needs, for a value keeps its bytes only in its own."""
    try:
        msgspec.json.decode(value)
    except msgspec.DecodeError:
        return PYTHON_JSON
    return STRICT_JSON


def _event(
    type_: EventType,
    *,
    delta: bytes | None = None,
    data: bytes | None = None,
    encoding: int = STRICT_JSON,
) -> NewEvent:
    return NewEvent(
        event_id=uuid.uuid4().hex,
        type=type_,
        timestamp=time.time(),
        delta=delta,
        data=data,
        encoding=encoding,
    )

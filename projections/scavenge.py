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
from eventstore.encoding import PYTHON_JSON, STRICT_JSON

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
            for owner in (stream.user_stream_id, stream.app_stream_id):
                carried += _carry_over(transaction, stream, owner)
            events += transaction.scavenge(stream)
        done = Scavenged(len(streams), events, carried)
        log = {"streams": [stream.id for stream in streams], **done._asdict()}
        transaction.append(
            transaction.ensure_system_stream(),
            _event(EventType.VACUUMED, data=msgspec.json.encode(log)),
        )
    return done


def _carry_over(transaction: MaintenanceTransaction, stream: Stream, owner: int) -> int:
    """Gives the keys of one scope that `stream` wrote last a writer that stays."""
    if owner == 0:
        return 0
    scope = transaction.get_stream(owner)
    values: dict[int, dict[str, msgspec.Raw]] = {STRICT_JSON: {}, PYTHON_JSON: {}}
    for _, key, value, position in transaction.rows("state", [owner]):
        assert isinstance(key, str)
        assert isinstance(value, str)
        assert isinstance(position, int)
        if transaction.was_written_by(position, stream):
            values[_encoding(value)][key] = msgspec.Raw(value.encode())
    for encoding, members in values.items():
        if members:
            delta = msgspec.json.encode({scope.key.kind.value: members})
            event = _event(EventType.STATE_SET, delta=delta, encoding=encoding)
            scope = transaction.append(scope, event).stream
    return sum(map(len, values.values()))


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

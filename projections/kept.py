"""Keeping the keys of users and apps as they are while a session's old events are written.

What a session set once must not overrule what its user and app have now. It is put back behind
the events, by events of their own, so that the rows stay the fold of the log.
"""

from __future__ import annotations

import time
from collections.abc import Container

from eventstore import EventType, MaintenanceTransaction, NewEvent, Stream
from eventstore.encoding import decode_members, join_members
from projections.state import StateProjection

__all__ = ["KeptKeys", "state_correction"]

_STATE = StateProjection()


class KeptKeys:
    """The `user:` and `app:` keys that are not to change in a transaction."""

    def __init__(self, transaction: MaintenanceTransaction, written: Container[int] = ()) -> None:
        """`written` are streams whose own history is written too: their keys may change."""
        self._transaction = transaction
        self._written = written
        self._before: dict[tuple[int, str], tuple[str, str | None]] = {}

    def expect(self, stream: Stream, delta: bytes | None, encoding: int) -> None:
        """Notes how the keys are that an event is going to set; call it before."""
        if delta is None:
            return
        for scope, members in decode_members(delta, encoding).items():
            owner = stream.owners[scope]
            if owner == stream.id or owner in self._written:
                continue
            for key in members:
                if (owner, key) not in self._before:
                    row = self._transaction.row(_STATE, (owner, key))
                    self._before[owner, key] = scope, None if row is None else str(row[2])

    def restore(self, complete: Container[int] = ()) -> int:
        """Sets those that have changed back; returns how many.

        `complete` are owners that had all their keys before: what they did not have becomes null,
        for there is no way to remove a key.
        """
        changed: dict[int, tuple[str, dict[str, str]]] = {}
        for (owner, key), (scope, before) in self._before.items():
            if before is None and owner not in complete:
                continue
            text = before or "null"
            row = self._transaction.row(_STATE, (owner, key))
            if row is not None and row[2] != text:
                changed.setdefault(owner, (scope, {}))[1][key] = text
        for owner, (scope, members) in changed.items():
            stream = self._transaction.get_stream(owner)
            for delta, encoding in join_members(scope, members):
                event = state_correction(stream, time.time(), delta, encoding)
                stream = self._transaction.append(stream, event).stream
        return sum(len(members) for _, members in changed.values())


def state_correction(stream: Stream, timestamp: float, delta: bytes, encoding: int) -> NewEvent:
    """An event by which an import makes the state what it is to be."""
    return NewEvent(
        event_id=f"import:state:{stream.version + 1}",
        type=EventType.STATE_SET,
        timestamp=timestamp,
        delta=delta,
        encoding=encoding,
    )

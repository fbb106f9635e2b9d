"""Keeping the keys of users and apps as they are while a session's old events are written.

What a session set once must not overrule what its user and app have now. It is put back behind
the events, by events of their own, so that the rows stay the fold of the log.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from typing import Any

from eventstore import EventType, MaintenanceTransaction, NewEvent, Stream
from eventstore.encoding import decode_members, join_members
from projections.state import StateProjection

__all__ = ["KeptKeys", "state_correction"]

_STATE = StateProjection()


class KeptKeys:
    """The `user:` and `app:` keys that are not to change in a transaction."""

    def __init__(
        self, transaction: MaintenanceTransaction, written: Mapping[int, int] | None = None
    ) -> None:
        """`written` are streams whose whole history is written, each with its last version there.

        A key of theirs may change where that history itself has set it last.
        """
        self._transaction = transaction
        self._written = written or {}
        self._before: dict[tuple[int, str], tuple[str, str | None]] = {}

    def expect(self, stream: Stream, delta: bytes | None, encoding: int) -> None:
        """Notes how the keys are that an event is going to set; call it before."""
        if delta is None:
            return
        for scope, members in decode_members(delta, encoding).items():
            if scope == "session":
                continue
            owner = stream.owners[scope]
            for key in members:
                if (owner, key) not in self._before:
                    row = self._transaction.row(_STATE, (owner, key))
                    if row is None or (owner in self._written and self._is_written(row[3])):
                        self._before[owner, key] = scope, None
                    else:
                        self._before[owner, key] = scope, str(row[2])

    def _is_written(self, position: Any) -> bool:
        """Whether the event at a position is one of the history that is written."""
        return any(
            logged.event.version <= self._written.get(logged.event.stream.id, 0)
            for logged in self._transaction.read_logged([position])
        )

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

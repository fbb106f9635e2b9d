"""State: one row per key and scope, the raw JSON value that was written last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from eventstore.changes import Change, DeleteOwner, Put, Table
from eventstore.encoding import decode_members
from eventstore.events import EventType, RecordedEvent

__all__ = ["StateProjection"]

_VIEW: Final = """\
SELECT s.kind AS scope,
       s.app_name,
       CASE WHEN s.kind <> 'app' THEN s.user_id END AS user_id,
       CASE WHEN s.kind = 'session' THEN s.session_id END AS session_id,
       p.state_key,
       p.state_value,
       p.position AS event
FROM state AS p JOIN streams AS s ON s.id = p.owner_id"""


class StateProjection:
    """Applies the delta of every event to the keys it names, and to no others.

    A row belongs to the stream of its scope: the session's, the user's or the app's. Its value is
    the slice of the delta as it is stored; `position` is that of the event that wrote it.
    """

    name: Final = "state"
    version: Final = 1
    table: Final = Table(
        "state",
        key={"owner_id": "integer", "state_key": "text"},
        columns={"state_value": "text", "position": "integer"},
    )
    views: Final = {"sqlite": {"adk_state": _VIEW}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """One Put per key of the delta; everything of a session's own goes with its tombstone."""
        if event.type == EventType.SESSION_DELETED:
            return (DeleteOwner(event.stream.id),)
        return () if event.delta is None else self._puts(event, event.delta)

    @staticmethod
    def _puts(event: RecordedEvent, delta: bytes) -> Iterator[Change]:
        owners = event.stream.owners
        for scope, members in decode_members(delta, event.encoding).items():
            owner = owners[scope]
            for key, value in members.items():
                yield Put((owner, key), (value, event.position))

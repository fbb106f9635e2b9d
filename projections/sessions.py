"""Sessions: one row per live session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from eventstore.changes import Change, DeleteOwner, Put, Table, Update
from eventstore.events import EventType, RecordedEvent, StreamKind

__all__ = ["SessionsProjection"]

_VIEW: Final = """\
SELECT s.app_name,
       s.user_id,
       s.session_id,
       strftime('%Y-%m-%d %H:%M:%S', p.created_at, 'unixepoch') AS created,
       strftime('%Y-%m-%d %H:%M:%S', p.last_update_time, 'unixepoch') AS updated,
       p.last_update_time,
       s.version
FROM sessions AS p JOIN streams AS s ON s.id = p.stream_id"""


class SessionsProjection:
    """When each live session was created and last changed, in seconds since the epoch.

    The times are those of the events' writers, as ADK has it; nothing is ordered by them but
    lists for people.
    """

    name: Final = "sessions"
    version: Final = 1
    table: Final = Table(
        "sessions",
        key={"stream_id": "integer"},
        columns={"created_at": "real", "last_update_time": "real"},
    )
    views: Final = {"sqlite": {"adk_sessions": _VIEW}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """A row is born with its session, moves with every event, and goes with the tombstone."""
        if event.stream.key.kind is not StreamKind.SESSION:
            return ()
        key = (event.stream.id,)
        match event.type:
            case EventType.SESSION_CREATED:
                return (Put(key, (event.timestamp, event.timestamp)),)
            case EventType.SESSION_DELETED:
                return (DeleteOwner(event.stream.id),)
            case _:
                return (Update(key, {"last_update_time": event.timestamp}),)

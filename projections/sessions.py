"""Sessions: one row per live session."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from eventstore.changes import Change, DeleteOwner, Put, Table, Update
from eventstore.events import DeltaEvent, EventType, RecordedEvent, Stream, StreamKind
from eventstore.projection import BulkProjection

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


class SessionsProjection(BulkProjection):
    """When each live session was created and last changed, in seconds since the epoch.

    The times are those of the events' writers, as ADK has it; nothing is ordered by them but
    lists for people.
    """

    name = "sessions"
    version = 1
    table = Table(
        "sessions",
        key={"stream_id": "integer"},
        columns={"created_at": "real", "last_update_time": "real"},
    )
    views: ClassVar = {"sqlite": {"adk_sessions": _VIEW}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """A row is born with its session and moves with every event."""
        if event.stream.key.kind is not StreamKind.SESSION:
            return ()
        key = (event.stream.id,)
        if event.type == EventType.SESSION_CREATED:
            return (Put(key, (event.timestamp, event.timestamp)),)
        return (Update(key, {"last_update_time": event.timestamp}),)

    def apply_page(
        self, events: Sequence[DeltaEvent], streams: Mapping[int, Stream]
    ) -> Iterator[Change]:
        """One change per session: what its first and last events say."""
        created: dict[int, float] = {}
        # A user's or an app's stream has no row, and so an update of it changes nothing.
        updated = {event[1]: event[2] for event in events}
        for _, stream_id, timestamp, _, _, whole in events:
            if whole is None:
                continue
            if whole.type == EventType.SESSION_CREATED:
                created[stream_id] = timestamp
            elif whole.type == EventType.SESSION_DELETED:
                created.pop(stream_id, None)
                del updated[stream_id]
                yield DeleteOwner(stream_id)
        for stream_id, timestamp in updated.items():
            if stream_id in created:
                yield Put((stream_id,), (created[stream_id], timestamp))
            else:
                yield Update((stream_id,), {"last_update_time": timestamp})

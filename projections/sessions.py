"""Sessions: one row per live session, and how sessions are described to people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Final

import msgspec

from eventstore.changes import Change, DeleteOwner, Put, Row, Table, Update, Value
from eventstore.events import Deltas, EventType, RecordedEvent, StreamKind
from eventstore.projection import BulkProjection

__all__ = ["SessionsProjection"]

_VIEW: Final = """\
SELECT s.app_name,
       s.user_id,
       s.session_id,
       strftime('%Y-%m-%d %H:%M:%S', p.created_at, 'unixepoch') AS created,
       strftime('%Y-%m-%d %H:%M:%S', p.last_update_time, 'unixepoch') AS updated,
       p.last_update_time,
       s.version,
       p.title,
       p.labels
FROM sessions AS p JOIN streams AS s ON s.id = p.stream_id"""

_POSTGRESQL_VIEW: Final = """\
SELECT s.app_name,
       s.user_id,
       s.session_id,
       CASE WHEN p.created_at BETWEEN -62135596800 AND 253402300799
            THEN to_char(to_timestamp(p.created_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
       END AS created,
       CASE WHEN p.last_update_time BETWEEN -62135596800 AND 253402300799
            THEN to_char(to_timestamp(p.last_update_time) AT TIME ZONE 'UTC',
                         'YYYY-MM-DD HH24:MI:SS')
       END AS updated,
       p.last_update_time,
       s.version,
       p.title,
       p.labels
FROM sessions AS p JOIN streams AS s ON s.id = p.stream_id"""
_UPGRADE: Final = """\
SELECT p.stream_id, p.created_at, p.last_update_time, s.app_stream_id, s.user_stream_id, '', '{}'
FROM sessions AS p JOIN streams AS s ON s.id = p.stream_id"""
"""From version 1, which knew times only; of titles and labels there are no older events."""


class SessionsProjection(BulkProjection):
    """When each live session was created and last changed, whose it is, its title and its labels.

    The times are those of the events' writers, in seconds since the epoch, as ADK has it; nothing
    is ordered by them but lists for people. `labels` is a JSON object of texts. A title or a label
    changes no time: it is no part of the conversation.
    """

    name = "sessions"
    version = 2
    table = Table(
        "sessions",
        key={"stream_id": "integer"},
        columns={
            "created_at": "real",
            "last_update_time": "real",
            "app_stream_id": "integer",
            "user_stream_id": "integer",
            "title": "text",
            "labels": "text",
        },
        # An append moves a row in the first two; the others are written once.
        indexes={
            "sessions_by_app_and_update": ("app_stream_id", "last_update_time"),
            "sessions_by_user_and_update": ("user_stream_id", "last_update_time"),
            "sessions_by_app_and_creation": ("app_stream_id", "created_at"),
            "sessions_by_user_and_creation": ("user_stream_id", "created_at"),
        },
    )
    views: ClassVar = {
        "sqlite": {"adk_sessions": _VIEW},
        "postgresql": {"adk_sessions": _POSTGRESQL_VIEW},
    }
    upgrades: ClassVar = {"sqlite": {1: _UPGRADE}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """A row is born with its session and moves with every event."""
        if event.stream.key.kind is not StreamKind.SESSION:
            return ()
        key = (event.stream.id,)
        if event.type == EventType.SESSION_CREATED:
            return (
                Put(
                    key,
                    _new(event.stream.app_stream_id, event.stream.user_stream_id, event.timestamp),
                ),
            )
        if event.type == EventType.SESSION_DESCRIBED:
            return (Update(key, _described(event)),)
        return (Update(key, {"last_update_time": event.timestamp}),)

    def apply_page(self, page: Deltas) -> Iterator[Change]:
        """One change per session: what its events say together."""
        created = {
            s.stream_id: _new(s.app_stream_id, s.user_stream_id, s.created)
            for s in page.streams
            if s.created is not None
        }
        updated = {s.stream_id: (s.last, s.timestamp) for s in page.streams}
        described: dict[int, dict[str, Value]] = {}
        for whole in page.wholes:
            stream_id = whole.stream.id
            if whole.type == EventType.SESSION_DELETED:
                for known in (created, updated, described):
                    known.pop(stream_id, None)
                yield DeleteOwner(stream_id)
                continue
            if whole.type == EventType.SESSION_DESCRIBED:
                described.setdefault(stream_id, {}).update(_described(whole))
                continue
            if whole.type == EventType.SESSION_CREATED:
                created[stream_id] = _new(
                    whole.stream.app_stream_id, whole.stream.user_stream_id, whole.timestamp
                )
            if stream_id not in updated or updated[stream_id][0] < whole.position:
                updated[stream_id] = whole.position, whole.timestamp
        # A user's or an app's stream has no row, and so an update of it changes nothing.
        for stream_id, (_, timestamp) in updated.items():
            changes = described.pop(stream_id, {})
            if stream_id in created:
                values = dict(zip(self.table.columns, created[stream_id], strict=True))
                values |= {"last_update_time": timestamp, **changes}
                yield Put((stream_id,), tuple(values.values()))
            else:
                yield Update((stream_id,), {"last_update_time": timestamp, **changes})
        for stream_id, changes in described.items():
            yield Update((stream_id,), changes)


def _new(app_stream_id: int, user_stream_id: int, timestamp: float) -> Row:
    """The columns of a session that nothing was said about yet."""
    return timestamp, timestamp, app_stream_id, user_stream_id, "", "{}"


def _described(event: RecordedEvent) -> dict[str, Value]:
    """The columns that an event says anew: a title, all labels, or both."""
    said = event.payload()
    columns: dict[str, Value] = {}
    if "title" in said:
        columns["title"] = said["title"]
    if "labels" in said:
        columns["labels"] = msgspec.json.encode(said["labels"], order="deterministic").decode()
    return columns

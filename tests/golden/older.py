"""Older versions of this package, as far as tests need them to have been there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final
from unittest.mock import patch

from eventstore import Change, EventType, Put, RecordedEvent, StreamKind, Table, Update
from eventstore.sqlite import database, queries, store
from projections import SessionsProjection

__all__ = ["code_of_schema_1"]

_QUERIES_OF_SCHEMA_1: Final = {
    "registered_projections": "SELECT name, version, name, NULL, NULL, NULL FROM projections",
    "register_projection": (
        "INSERT INTO projections (name, version) SELECT ?1, ?2 WHERE ?3 = ?1 AND ?4 IS NULL"
    ),
}


class _Sessions:
    """Version 1 of the projection."""

    version = 1
    table = Table(
        "sessions",
        key={"stream_id": "integer"},
        columns={"created_at": "real", "last_update_time": "real"},
    )
    views: ClassVar = {
        "sqlite": {
            "adk_sessions": """\
SELECT s.app_name,
       s.user_id,
       s.session_id,
       strftime('%Y-%m-%d %H:%M:%S', p.created_at, 'unixepoch') AS created,
       strftime('%Y-%m-%d %H:%M:%S', p.last_update_time, 'unixepoch') AS updated,
       p.last_update_time,
       s.version
FROM sessions AS p JOIN streams AS s ON s.id = p.stream_id"""
        }
    }

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.stream.key.kind is not StreamKind.SESSION:
            return ()
        key = (event.stream.id,)
        if event.type == EventType.SESSION_CREATED:
            return (Put(key, (event.timestamp, event.timestamp)),)
        return (Update(key, {"last_update_time": event.timestamp}),)


_SESSIONS_1: Final = {
    name: getattr(_Sessions, name) for name in ("version", "table", "views", "apply")
}


@contextmanager
def code_of_schema_1() -> Iterator[None]:
    """While it lasts, this process knows the first schema only: nothing but its one script."""

    def first() -> list[str]:
        return queries.migrations()[:1]

    database._expected_schema.cache_clear()
    with (
        patch.object(database, "migrations", first),
        patch.object(store, "migrations", first),
        patch.dict(queries.QUERIES, _QUERIES_OF_SCHEMA_1),
        patch.multiple(SessionsProjection, **_SESSIONS_1),
    ):
        yield
    database._expected_schema.cache_clear()

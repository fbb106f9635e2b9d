"""The statements of this service's appends, executed again on bare `sqlite3`, one after the other.

What an append takes beyond them is the service's own: encoding, threads, the event loop, locks. The
statements are recorded from the service itself, so they are those of the code that is measured.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from google.adk.events import Event
from google.adk.sessions import Session

from benchmarks.events import event_stream
from benchmarks.prefill import APP
from benchmarks.services import CONTENDERS, OURS, close

CREATE, APPEND = "create_session", "append_event"


class Statement(NamedTuple):
    """What a connection was told to do."""

    connection: int
    method: str
    sql: str
    values: Any


class Call(NamedTuple):
    """What the writing connection was told to do for one call of the service."""

    name: str
    statements: list[Statement]


class BareSqlite:
    """Stands in for a service: each call executes what the service executed for it."""

    def __init__(self, path: Path, calls: list[Call]) -> None:
        """Open a copy of the file that was recorded on, as the service's writer opened it."""
        self._calls = iter(calls)
        self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        self._execute("")

    async def create_session(self, **_: Any) -> Session:
        """Execute what made the next session."""
        self._execute(CREATE)
        return Session(id="bare", app_name=APP, user_id="bare")

    async def append_event(self, session: Session, event: Event) -> Event:
        """Execute the next append; the event itself was made when it was recorded."""
        self._execute(APPEND)
        return event

    async def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _execute(self, name: str) -> None:
        call = next(self._calls)
        assert call.name == name
        for statement in call.statements:
            cursor = getattr(self._connection, statement.method)(statement.sql, statement.values)
            if cursor.description:
                cursor.fetchall()


async def open_bare(path: Path, sessions: int, appends: int) -> BareSqlite:
    """Record sessions of so many appends, and be ready to execute their statements again."""
    return BareSqlite(path, await record(path, sessions, appends))


async def record(path: Path, sessions: int, appends: int) -> list[Call]:
    """What sessions of so many appends execute, on a file as is left at `path`."""
    recorded = path.with_suffix(".recorded.sqlite3")
    service = CONTENDERS[OURS].open(recorded)
    await service.create_session(app_name=APP, user_id="bare")
    await close(service)
    shutil.copy(recorded, path)
    events = event_stream()
    with _recording() as log:
        service = CONTENDERS[OURS].open(recorded)
        for _ in range(sessions):
            log.append(CREATE)
            session = await service.create_session(app_name=APP, user_id="bare")
            for _ in range(appends):
                log.append(APPEND)
                await service.append_event(session, next(events))
        await close(service)
    return _calls(log)


def _calls(log: list[Statement | str]) -> list[Call]:
    """Sorts the writer's statements by calls; what it did before the first has no name."""
    statements = [entry for entry in log if isinstance(entry, Statement)]
    writer = next(s.connection for s in statements if s.sql.startswith("INSERT INTO events"))
    calls = [Call("", [])]
    for entry in log:
        if isinstance(entry, str):
            calls.append(Call(entry, []))
        elif entry.connection == writer:
            calls[-1].statements.append(entry)
    return calls


@contextmanager
def _recording() -> Iterator[list[Statement | str]]:
    """Keeps what connections that are opened meanwhile are told to do, also by their cursors."""
    log: list[Statement | str] = []
    connect = sqlite3.connect

    def note(connection: object, method: str, sql: str, values: Any) -> Any:
        values = list(values) if method == "executemany" else values
        log.append(Statement(id(connection), method, sql, values))
        return values

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
            return super().execute(sql, note(self, "execute", sql, values))

        def executemany(self, sql: str, values: Any, /) -> sqlite3.Cursor:
            return super().executemany(sql, note(self, "executemany", sql, values))

        def cursor(self, factory: Any = None) -> Any:
            return super().cursor(Cursor)

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
            return super().execute(sql, note(self.connection, "execute", sql, values))

        def executemany(self, sql: str, values: Any, /) -> sqlite3.Cursor:
            return super().executemany(sql, note(self.connection, "executemany", sql, values))

    def open_recorded(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{**options, "factory": Connection})

    with mock.patch.object(sqlite3, "connect", open_recorded):
        yield log

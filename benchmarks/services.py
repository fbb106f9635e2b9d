"""The session services that are measured side by side."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from google.adk.sessions import BaseSessionService, InMemorySessionService
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.adk.sessions.sqlite_session_service import SqliteSessionService

import adk_adapter
from benchmarks.peers import fill_peer
from benchmarks.prefill import Load, prefill

OURS = "adk_eventstore"
OURS_FULL = "adk_eventstore_full"
MEMORY = "memory"
SQLITE = "sqlite"
DATABASE = "database"
BARE = "sqlite3"
"""Not a service: the statements of ours on bare sqlite3 (see bare.py)."""


@dataclass(frozen=True)
class Contender:
    """One service to measure: how it is named, opened, and what it promises."""

    title: str
    open: Callable[[Path], BaseSessionService]
    promise: str


CONTENDERS = {
    OURS: Contender(
        "adk_eventstore\nnormal (default)",
        lambda path: adk_adapter.DatabaseSessionService(str(path), durability="normal"),
        "weaker: no commit waits for the disk; a power cut may take the last ones",
    ),
    OURS_FULL: Contender(
        "adk_eventstore\nfull",
        lambda path: adk_adapter.DatabaseSessionService(str(path), durability="full"),
        "every commit waits for the disk",
    ),
    MEMORY: Contender(
        "ADK InMemory-\nSessionService",
        lambda path: InMemorySessionService(),
        "nothing",
    ),
    SQLITE: Contender(
        "ADK Sqlite-\nSessionService",
        lambda path: SqliteSessionService(str(path)),
        "every commit waits for the disk",
    ),
    DATABASE: Contender(
        "ADK Database-\nSessionService",
        lambda path: DatabaseSessionService(f"sqlite+aiosqlite:///{path}"),
        "every commit waits for the disk",
    ),
}


async def open_filled(name: str, path: Path, load: Load) -> BaseSessionService:
    """Open a service on a new database that holds a load."""
    if load.rows and name in (OURS, OURS_FULL):
        prefill(path, **vars(load))
    service = CONTENDERS[name].open(path)
    if load.rows and name not in (OURS, OURS_FULL):
        await fill_peer(service, path, load)
    return service


async def close(service: BaseSessionService) -> None:
    """Close a service, if it can be closed."""
    if (method := getattr(service, "close", None)) is not None:
        await method()


@contextmanager
def recorded_connections() -> Iterator[list[sqlite3.Connection]]:
    """Collect the connections that are opened meanwhile."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def record(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    with mock.patch.object(sqlite3, "connect", record):
        yield opened


def pragmas(path: Path, opened: Sequence[sqlite3.Connection]) -> str:
    """The modes a service writes with, asked of its own connection, not taken from its settings."""
    if not path.exists():
        return "no file"
    connection = sqlite3.connect(path)
    try:
        (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
        # ADK's connections are closed or bound to a thread by now. They change
        # nothing here, so a fresh connection has what they have.
        levels = {level for own in opened if (level := _synchronous(own)) is not None}
        levels = levels or {_synchronous(connection) or 0}
    finally:
        connection.close()
    names = ("OFF", "NORMAL", "FULL", "EXTRA")
    found = "/".join(names[level] for level in sorted(levels))
    return f"journal_mode={journal.upper()}, synchronous={found}"


def _synchronous(connection: sqlite3.Connection) -> int | None:
    """The level of a connection that may write, or None when it cannot be asked."""
    try:
        (read_only,) = connection.execute("PRAGMA query_only").fetchone()
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
    except sqlite3.ProgrammingError:
        return None
    return None if read_only else int(level)

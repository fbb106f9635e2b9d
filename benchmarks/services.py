"""The session services that are measured side by side."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from google.adk.sessions import BaseSessionService, InMemorySessionService
from google.adk.sessions.database_session_service import DatabaseSessionService
from google.adk.sessions.sqlite_session_service import SqliteSessionService

import adk_adapter

OURS = "adk_eventstore"
OURS_FULL = "adk_eventstore_full"


@dataclass(frozen=True)
class Contender:
    """One service to measure: how it is named, opened, and what it promises."""

    title: str
    open: Callable[[Path], BaseSessionService]
    promise: str
    synchronous: str | None = None
    """What the service sets; None when it leaves SQLite's default."""


CONTENDERS = {
    OURS: Contender(
        "adk_eventstore\nnormal (default)",
        lambda path: adk_adapter.DatabaseSessionService(str(path), durability="normal"),
        "the weaker promise: commits do not wait for the disk,\n    "
        "so a power cut may lose the last ones; a crashed process loses none",
        "NORMAL",
    ),
    OURS_FULL: Contender(
        "adk_eventstore\nfull",
        lambda path: adk_adapter.DatabaseSessionService(str(path), durability="full"),
        "every commit waits for the disk",
        "FULL",
    ),
    "memory": Contender(
        "ADK InMemory-\nSessionService",
        lambda path: InMemorySessionService(),
        "nothing survives the process",
    ),
    "sqlite": Contender(
        "ADK Sqlite-\nSessionService",
        lambda path: SqliteSessionService(str(path)),
        "every commit waits for the disk",
    ),
    "database": Contender(
        "ADK Database-\nSessionService",
        lambda path: DatabaseSessionService(f"sqlite+aiosqlite:///{path}"),
        "every commit waits for the disk",
    ),
}


def pragmas(contender: Contender, path: Path) -> str:
    """The journal and synchronous modes a service's database runs with."""
    if not path.exists():
        return "no file"
    connection = sqlite3.connect(path)
    try:
        (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
        (level,) = connection.execute("PRAGMA synchronous").fetchone()
    finally:
        connection.close()
    # Per connection, so this fresh one can only tell SQLite's default.
    default = ["OFF", "NORMAL", "FULL", "EXTRA"][level]
    return f"journal_mode={journal.upper()}, synchronous={contender.synchronous or default}"

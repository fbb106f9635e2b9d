"""SQLite connections that fail, or end the process, at a chosen statement.

Nothing in the shipped code knows of this: `sqlite3.connect` is replaced, and makes connections of a
subclass that counts the statements on the files of one folder. Each has a name, from a table of
patterns, so that a fault is at "insert event" and not at "number 7".
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from unittest.mock import patch

__all__ = ["FAULTS", "Fault", "Plan", "Point", "Step", "connect", "installed", "name_of"]

T = TypeVar("T")

connect: Final = sqlite3.connect
"""The real one, for those who only look."""

NAMES: Final[tuple[tuple[str, str], ...]] = (
    ("begin", r"BEGIN"),
    ("commit", r"COMMIT"),
    ("roll back", r"ROLLBACK"),
    ("insert stream", r"INSERT INTO streams"),
    ("insert event", r"INSERT INTO events"),
    ("move head", r"UPDATE streams SET version"),
    ("close stream", r"UPDATE streams SET live"),
    ("insert codec", r"INSERT INTO codecs \(fingerprint\)"),
    ("open maintenance", r"INSERT INTO maintenance"),
    ("end maintenance", r"DELETE FROM maintenance"),
    ("delete events", r"DELETE FROM events"),
    ("forget stream", r"UPDATE streams SET app_name"),
    ("register projection", r"INSERT INTO projections"),
    ("move checkpoint", r"UPDATE projections SET checkpoint"),
    ("rename live", r"ALTER TABLE (?P<on>\w+) RENAME TO retired_"),
    ("rename shadow", r"ALTER TABLE shadow_(?P<on>\w+) RENAME TO"),
    ("make shadow", r"CREATE TABLE shadow_(?P<on>\w+)"),
    ("fill shadow", r"INSERT INTO shadow_(?P<on>\w+)"),
    ("empty retired", r"DELETE FROM retired_(?P<on>\w+)"),
    ("drop retired", r"DROP TABLE retired_(?P<on>\w+)"),
    ("drop view", r"DROP VIEW IF EXISTS (?P<on>\w+)"),
    ("make view", r"CREATE VIEW (?P<on>\w+)"),
    ("make index", r"CREATE (?:UNIQUE )?INDEX (?P<on>\w+)"),
    ("make trigger", r"CREATE TRIGGER (?P<on>\w+)"),
    ("make table", r"CREATE TABLE (?P<on>\w+)"),
    ("add column", r"ALTER TABLE projections ADD COLUMN (?P<on>\w+)"),
    ("give back pages", r"PRAGMA incremental_vacuum"),
    ("checkpoint", r"PRAGMA wal_checkpoint"),
    ("set version", r"PRAGMA user_version = "),
    ("set application", r"PRAGMA application_id = "),
    ("check file", r"SELECT \* FROM pragma_integrity_check"),
    (
        "project",
        r"(?:INSERT INTO|UPDATE|DELETE FROM) (?P<on>state|sessions|everything|following)\b",
    ),
    ("pragma", r"PRAGMA (?P<on>\w+)"),
    ("read", r"SELECT .*? FROM (?P<on>\w+)"),
)
"""What a statement is called, and how it begins; `on` is what it works on."""
_WRITES_NOTHING: Final = ("read", "pragma", "begin", "check file", "roll back")


def name_of(sql: str) -> str:
    """The name of a statement; its beginning where the table has none."""
    text = " ".join(re.sub(r"--.*", "", sql).split())
    for name, pattern in NAMES:
        if (match := re.match(pattern, text, re.IGNORECASE)) is not None:
            on = match.groupdict().get("on")
            return f"{name}: {on}" if on else name
    return " ".join(text.split()[:4])


class Fault(NamedTuple):
    """What happens at a statement.

    `executed` is whether the statement takes effect before it fails; `rolled_back` whether SQLite
    ends the transaction by itself, as it does on a full disk.
    """

    name: str
    code: int
    text: str
    executed: bool = False
    rolled_back: bool = False

    def error(self) -> sqlite3.Error:
        error = sqlite3.OperationalError(self.text)
        error.sqlite_errorcode = self.code
        error.sqlite_errorname = self.name
        return error


FAULTS: Final = (
    Fault("SQLITE_FULL", sqlite3.SQLITE_FULL, "database or disk is full", rolled_back=True),
    Fault("SQLITE_IOERR_WRITE", sqlite3.SQLITE_IOERR | 3 << 8, "disk I/O error"),
    Fault("SQLITE_BUSY", sqlite3.SQLITE_BUSY, "database is locked"),
    Fault("SQLITE_IOERR_FSYNC", sqlite3.SQLITE_IOERR | 4 << 8, "disk I/O error", executed=True),
)


class Step(NamedTuple):
    """A statement that was executed while a plan was armed."""

    name: str
    thread: str

    @property
    def writes(self) -> bool:
        """Whether a file may be other than before."""
        return not self.name.startswith(_WRITES_NOTHING)


class Point(NamedTuple):
    """Where a fault strikes: the n-th statement of a name, counted from 1."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name} #{self.number}"


class Plan:
    """Counts statements while it is armed, and lets one of them, and maybe later ones, fail.

    `lasts` is "once", "same" (every later statement of that name fails too) or "all" (every later
    statement does). Without a fault the process is killed behind the statement.
    """

    def __init__(
        self,
        at: Point | None = None,
        fault: Fault | None = None,
        lasts: str = "once",
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.steps: list[Step] = []
        self.struck: Step | None = None
        self._at, self._fault, self._lasts = at, fault, lasts
        self._on_commit = on_commit
        self._armed = False
        self._seen = 0
        self._lock = threading.RLock()

    @contextmanager
    def armed(self) -> Iterator[None]:
        """The statements inside count, on whatever thread."""
        self._armed = True
        try:
            yield
        finally:
            self._armed = False

    def run(self, name: str, execute: Callable[[], T], roll_back: Callable[[], None]) -> T:
        """Executes one step, unless its turn has come to fail."""
        if not self._armed:
            return execute()
        with self._lock:
            step = Step(name, threading.current_thread().name)
            self.steps.append(step)
            strikes = self._strikes(step)
        if not strikes:
            result = execute()
            if name == "commit":
                self._on_commit()
            return result
        if self._fault is None:
            try:
                execute()
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        assert self._fault is not None
        if self._fault.executed:
            execute()
        elif self._fault.rolled_back:
            roll_back()
        raise self._fault.error()

    def _strikes(self, step: Step) -> bool:
        if self._at is None:
            return False
        if self.struck is not None:
            return self._lasts == "all" or (self._lasts == "same" and step.name == self._at.name)
        if step.name != self._at.name:
            return False
        self._seen += 1
        if self._seen == self._at.number:
            self.struck = step
        return self.struck is not None


class FaultyConnection(sqlite3.Connection):
    """A connection whose statements go through a plan."""

    plan: Plan | None = None

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if self.plan is None:
            return super().execute(sql, *parameters)
        return self.plan.run(
            name_of(sql), lambda: super(FaultyConnection, self).execute(sql, *parameters), self._end
        )

    def executemany(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if self.plan is None:
            return super().executemany(sql, *parameters)
        return self.plan.run(
            name_of(sql),
            lambda: super(FaultyConnection, self).executemany(sql, *parameters),
            self._end,
        )

    def backup(self, target: sqlite3.Connection, **options: Any) -> None:
        if self.plan is None:
            return super().backup(target, **options)
        plan, told = self.plan, options.pop("progress", None) or (lambda *_: None)

        def progress(*counts: int) -> None:
            plan.run("copy pages", lambda: told(*counts), lambda: None)

        return super().backup(target, progress=progress, **options)

    def _end(self) -> None:
        if self.in_transaction:
            super().execute("ROLLBACK")


@contextmanager
def installed(plan: Plan, folder: Path) -> Iterator[None]:
    """Connections that are opened meanwhile to files in a folder go through the plan.

    So do the last steps of a copy: removing what is beside a file, and putting one in its place.
    """
    replace, rename, unlink = os.replace, os.rename, os.unlink

    def faulty(database: Any, **options: Any) -> sqlite3.Connection:
        if str(folder) not in str(database):
            return connect(database, **options)
        connection = connect(database, factory=FaultyConnection, **options)
        connection.plan = plan
        return connection

    def faulty_replace(source: Any, target: Any) -> None:
        _file_step(plan, f"rename: {_kind(target)}", lambda: replace(source, target))

    def faulty_rename(source: Any, target: Any) -> None:
        _file_step(plan, f"rename: {_kind(target)}", lambda: rename(source, target))

    def faulty_unlink(path: Any, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None:  # a whole folder is removed
            unlink(path, dir_fd=dir_fd)
        else:
            _file_step(plan, f"remove: {_kind(path)}", lambda: unlink(path))

    with (
        patch.object(sqlite3, "connect", faulty),
        patch.object(os, "replace", faulty_replace),
        patch.object(os, "rename", faulty_rename),
        patch.object(os, "unlink", faulty_unlink),
    ):
        yield


def _file_step(plan: Plan, name: str, execute: Callable[[], T]) -> T:
    try:
        return plan.run(name, execute, lambda: None)
    except sqlite3.OperationalError as error:
        raise OSError(5, "Input/output error") from error


def _kind(path: Any) -> str:
    name = os.fspath(path)
    return name.rpartition("-")[2] if name.endswith(("-wal", "-shm")) else "file"

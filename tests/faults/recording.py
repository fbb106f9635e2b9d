"""SQLite connections whose file operations are recorded, by a VFS of their own.

Python's `sqlite3` cannot take a VFS. `apsw` can, and brings a SQLite of its own, so the store is
given connections of apsw's that answer like those of `sqlite3`. Only in a process made for it: two
SQLite libraries in one process that open the same file drop each other's locks.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import apsw

from tests.faults.disk import Operation

__all__ = ["Recording", "recorded"]

_VFS: Final = "recording"
_SYNC_FOLDER_TOO: Final = ("-wal", "-journal")
"""SQLite syncs the folder with the first sync of these, as os_unix.c has it (UNIXFILE_DIRSYNC)."""


class Recording:
    """What was done to the files of one folder, and what was said meanwhile, in one order."""

    def __init__(self) -> None:
        self.steps: list[Operation | str] = []
        self._unsynced: set[str] = set()
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        """Notes a line of a report where it stands among the operations."""
        with self._lock:
            self.steps.append(line)

    def opened(self, file: str) -> None:
        with self._lock:
            if file not in self._known:
                self._known.add(file)
                if file.endswith(_SYNC_FOLDER_TOO):
                    self._unsynced.add(file)
                self.steps.append(Operation("create", file))

    def synced(self, file: str) -> None:
        with self._lock:
            folder_too = file in self._unsynced
            self._unsynced.discard(file)
            self.steps.append(Operation("sync", file, folder_too))

    def deleted(self, file: str, folder_too: bool) -> None:
        with self._lock:
            self._known.discard(file)
            self._unsynced.discard(file)
            self.steps.append(Operation("delete", file, folder_too))

    def did(self, operation: Operation) -> None:
        with self._lock:
            self.steps.append(operation)


class _Vfs(apsw.VFS):
    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        super().__init__(_VFS, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        return _File(self._recording, name, flags)

    def xDelete(self, name: str, folder_too: bool) -> None:  # noqa: N802
        super().xDelete(name, folder_too)
        self._recording.deleted(Path(name).name, folder_too)


class _File(apsw.VFSFile):
    def __init__(self, recording: Recording, name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._recording = recording
        # A file without a name is a temporary one, which nothing is expected of.
        self._file = Path(path).name if path else ""
        super().__init__("", name, flags)
        if self._file:
            recording.opened(self._file)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        if self._file:
            self._recording.did(Operation("write", self._file, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        super().xTruncate(size)
        if self._file:
            self._recording.did(Operation("truncate", self._file, size))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        if self._file:
            self._recording.synced(self._file)


class _Cursor:
    def __init__(self, connection: apsw.Connection, sql: str, parameters: Any, many: bool) -> None:
        before = connection.total_changes()
        self._cursor = connection.cursor()
        with _errors_of_sqlite3():
            (self._cursor.executemany if many else self._cursor.execute)(sql, parameters)
        self.lastrowid = connection.last_insert_rowid()
        self.rowcount = connection.total_changes() - before

    def __iter__(self) -> Iterator[Any]:
        with _errors_of_sqlite3():
            yield from self._cursor

    def fetchone(self) -> Any:
        with _errors_of_sqlite3():
            return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        with _errors_of_sqlite3():
            return self._cursor.fetchall()

    def close(self) -> None:
        self._cursor.close()


class _Connection:
    """As much of sqlite3.Connection in autocommit mode as the store uses."""

    def __init__(self, database: str, timeout: float) -> None:
        self.text_factory: Any = str  # that of a file whose texts are whole
        with _errors_of_sqlite3():
            self._connection = apsw.Connection(
                database,
                flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI,
                vfs=_VFS,
            )
            self._connection.set_busy_timeout(round(timeout * 1000))

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    @property
    def total_changes(self) -> int:
        return self._connection.total_changes()

    def execute(self, sql: str, parameters: Any = ()) -> _Cursor:
        return _Cursor(self._connection, sql, parameters, many=False)

    def executemany(self, sql: str, parameters: Sequence[Any]) -> _Cursor:
        return _Cursor(self._connection, sql, parameters, many=True)

    def setlimit(self, category: int, limit: int) -> None:
        self._connection.limit(category, limit)

    def setconfig(self, option: int, enable: bool) -> None:
        self._connection.config(option, enable)

    def interrupt(self) -> None:
        self._connection.interrupt()

    def close(self) -> None:
        self._connection.close()


@contextmanager
def _errors_of_sqlite3() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        code = getattr(error, "extendedresult", 0)
        kind = (
            sqlite3.IntegrityError
            if isinstance(error, apsw.ConstraintError)
            else sqlite3.OperationalError
        )
        translated = kind(str(error))
        translated.sqlite_errorcode = code
        translated.sqlite_errorname = type(error).__name__
        raise translated from error


@contextmanager
def recorded(folder: Path) -> Iterator[Recording]:
    """Connections that are opened meanwhile to files in a folder are recorded."""
    recording = Recording()
    vfs = _Vfs(recording)
    connect = sqlite3.connect

    def recording_connect(database: Any, *, timeout: float = 5.0, **options: Any) -> Any:
        if str(folder) not in str(database):
            return connect(database, timeout=timeout, **options)
        return _Connection(str(database), timeout)

    with patch.object(sqlite3, "connect", recording_connect):
        yield recording
    vfs.unregister()

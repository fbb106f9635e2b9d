"""Database files as wholes: copying one that nobody may have open, and putting one in place."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from eventstore import _platform
from eventstore.errors import DatabaseInUse, PathUnusable, StoreBusy
from eventstore.location import SQLITE_COMPANIONS
from eventstore.sqlite.database import BUSY_TIMEOUT_S, translate, translate_copy
from eventstore.sqlite.gate import Gate

__all__ = ["MAGIC", "copy_file", "put_in_place"]

_PAGES_PER_STEP: Final = 1_000
_GATE_WAIT_S: Final = 5.0
_LOCK_WAIT_S: Final = 1.0
MAGIC: Final = b"SQLite format 3\0"


def copy_file(source: str, target: str) -> None:
    """Copies a database to a new file, of whichever schema version; leaves the source as it is.

    Raises:
        PathUnusable, NotADatabase, StorageFailed: there is no copy, or a part of one.
    """
    if not Path(source).is_file():
        missing = "is not a regular file" if Path(source).exists() else "does not exist"
        raise PathUnusable(source, missing, "Pass the path of a database.")
    if not _platform.create_private_file(target):
        raise PathUnusable(target, "exists", "Choose another name.")
    # To read through a -wal needs a place for the -shm beside it. Without a -wal nobody writes, and
    # the file may be in a folder that nothing can be made in.
    mode = "mode=ro" if Path(f"{source}-wal").exists() else "mode=ro&immutable=1"
    uri = f"{Path(source).absolute().as_uri()}?{mode}"
    try:
        with (
            closing(
                sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            ) as original,
            closing(sqlite3.connect(target, isolation_level=None)) as copy,
        ):
            original.execute("PRAGMA trusted_schema = OFF")
            original.execute("BEGIN")
            original.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            original.backup(copy, pages=_PAGES_PER_STEP)
    except sqlite3.Error as error:
        raise translate_copy(source, target, error) from None


def put_in_place(copy: str, path: str) -> None:
    """Gives a closed database file a name, and whatever had it before no longer has.

    Raises:
        DatabaseInUse: somebody has the file open that would be replaced.
        PathUnusable: the folder cannot be written.
    """
    with suppress(OSError), Path(copy).open("rb") as file:  # where a file opened so can be synced
        os.fsync(file.fileno())
    try:
        if Path(path).exists():
            with _claimed(path):
                _move(copy, path)
        else:
            _move(copy, path)
    except OSError as error:
        raise PathUnusable(
            path, f"cannot be written: {error.strerror}", "Make its folder writable."
        ) from error


def _move(copy: str, path: str) -> None:
    # SQLite would take them for those of the file that gets the name, and write what they hold.
    for companion in SQLITE_COMPANIONS:
        Path(f"{path}{companion}").unlink(missing_ok=True)
    Path(copy).replace(path)
    with suppress(OSError):  # Windows cannot open a folder
        folder = os.open(Path(path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _claimed(path: str) -> Iterator[None]:
    """Keeps services from a file while it lasts, and makes sure that none has it open.

    Every connection of SQLite, of whichever program, holds a lock while it is open on a file in WAL
    mode; the gate keeps services from opening it meanwhile. What cannot be seen: a connection of a
    program that is between two transactions on a file that is not in WAL mode, and one on a file
    whose header is damaged.
    """
    gate = Gate(path)
    try:
        with gate.held_within(_GATE_WAIT_S):
            if _is_open(path):
                raise DatabaseInUse(
                    path,
                    "is open in another process, or elsewhere in this one",
                    "Stop the services and programs that use it, then try again.",
                )
            yield
    except StoreBusy as error:
        raise DatabaseInUse(
            path,
            f"is being written by {error.holder}",
            "Stop the services and programs that use it, then try again.",
        ) from None
    finally:
        gate.close()


def _is_open(path: str) -> bool:
    try:
        with closing(
            sqlite3.connect(path, timeout=_LOCK_WAIT_S, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            # In this mode the first use locks the whole file, instead of sharing its -wal.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("ROLLBACK")
            # The -wal is removed first and the name given then: who dies in between must leave the
            # old file with all that was written to it.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL):
            raise translate(path, error) from None
        # Anything else: it is no database, or one that nobody can open.
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return False

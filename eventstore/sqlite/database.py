"""Opening a database file: making it, recognising it, checking that it is exactly ours."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from collections.abc import Mapping, Sequence, Set
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Final

from eventstore import _platform
from eventstore.carrying import carry_anew
from eventstore.errors import (
    CorruptEvent,
    CorruptRow,
    DatabaseReplaced,
    ForeignDatabase,
    NotADatabase,
    PathUnusable,
    ProjectionMissing,
    SchemaAltered,
    SchemaTooNew,
    StorageFailed,
    StoreBusy,
    ValueNotStorable,
)
from eventstore.projection import Projection
from eventstore.records import table_before
from eventstore.sqlite import shadow
from eventstore.sqlite.gate import Gate
from eventstore.sqlite.queries import QUERIES, migrations
from eventstore.sqlite.tables import create
from eventstore.sqlite.transaction import Known, ReadTransaction, WriteTransaction

__all__ = [
    "BUSY_TIMEOUT_S",
    "check_identity",
    "check_schema",
    "connect",
    "expected_names",
    "open_database",
    "pending_migrations",
    "prepare_path",
    "recognise",
    "translate",
    "translate_copy",
]

_log = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x41444B45
"""Stored in the file's header: "ADKE"."""
BUSY_TIMEOUT_S: Final = 30.0
"""How long a writer waits for programs and processes that hold the file before it gives up."""
_STATEMENTS_CACHED: Final = 256
_TRIGGER_DEPTH: Final = 1
_OLDEST_SQLITE: Final = (3, 37)  # STRICT tables
_REBUILD: Final = "Run: rebuild-projections --db {path}"

_PRAGMAS: Final[Mapping[str, tuple[str | None, object]]] = {
    "encoding": (None, "UTF-8"),
    "journal_mode": ("WAL", "wal"),
    "foreign_keys": ("ON", 1),
    # A file from a stranger must not run functions from its schema, nor read broken cells.
    "trusted_schema": ("OFF", 0),
    "cell_size_check": ("ON", 1),
    # What is removed is overwritten. Some builds of SQLite do so anyway.
    "secure_delete": ("ON", 1),
    "busy_timeout": (f"{BUSY_TIMEOUT_S * 1000:.0f}", BUSY_TIMEOUT_S * 1000),
    # The writer checkpoints itself, behind the acknowledgement and inside the gate.
    "wal_autocheckpoint": ("0", 0),
    "journal_size_limit": ("67108864", 67108864),
    "temp_store": ("MEMORY", 2),
    # A mapped page of a file that another process truncates is a bus error, not an exception.
    "mmap_size": ("0", 0),
}
_ADK_TABLES: Final = {"app_states", "user_states", "sessions", "events"}


def check_identity(path: str, identity: tuple[int, int] | None) -> None:
    """Asserts that a path still names the file that is open.

    Raises:
        DatabaseReplaced: it names another file, or none.
    """
    if _platform.file_identity(path) != identity:
        raise DatabaseReplaced(
            path,
            "was removed or replaced while it was open",
            "Restart the service to begin on the file that is there now.",
        )


def translate_copy(source: str, target: str, error: sqlite3.Error) -> BaseException:
    """As `translate`, of a copy from one file to another: SQLite does not say which it is about."""
    full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    return translate(target if full else source, error)


def translate(path: str, error: BaseException) -> BaseException:
    """The typed error for one of SQLite's; all others come back as they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    if "Could not decode to UTF-8" in str(error):  # the text goes on with the content
        return CorruptRow(
            "a projection or of the log",
            "holds text that is no UTF-8",
            "Find out which, and what to do: adk-eventstore verify",
        )
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    name = getattr(error, "sqlite_errorname", "")
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(path, BUSY_TIMEOUT_S, "another program")
        case sqlite3.SQLITE_FULL:
            return StorageFailed(path, "the disk is full")
        case sqlite3.SQLITE_IOERR:
            return StorageFailed(path, f"the disk failed ({name})")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return PathUnusable(
                path,
                f"cannot be opened for writing ({name})",
                "Make the file and its folder writable.",
            )
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return NotADatabase(
                path,
                f"is not a SQLite database, or it is damaged ({name})",
                "Choose another path, restore the file from a backup, or save what can be saved of "
                "it: adk-eventstore recover.",
            )
        case sqlite3.SQLITE_TOOBIG:
            return ValueNotStorable("the request", "it is larger than a row of the database")
        case 0:
            return error  # none of SQLite's: a defect
        case _:
            return SchemaAltered(
                path,
                f"does not answer as a database of this package does ({name})",
                "Find out what is wrong: adk-eventstore verify.",
            )


def prepare_path(path: str) -> str:
    """Makes the folders and an empty file where they are missing; returns the real path.

    Raises:
        PathUnusable: no such folder can be made or written, a directory, a network file system,
            or a file with several hard links.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise PathUnusable(
            path,
            f"needs SQLite 3.37 or newer, this Python has {sqlite3.sqlite_version}",
            "Use a newer Python.",
        )
    real = os.path.realpath(path)
    try:
        Path(real).parent.mkdir(parents=True, exist_ok=True)
        if kind := _platform.network_file_system(str(Path(real).parent)):
            raise PathUnusable(
                path,
                f"is on a network file system ({kind}), where SQLite's locks do not work",
                "Choose a path on a local disk.",
            )
        _platform.create_private_file(real)
        status = Path(real).stat()
    except OSError as error:
        blocked = isinstance(error, FileExistsError | NotADirectoryError)
        raise PathUnusable(
            path,
            "cannot be used: "
            + (f"{error.filename} is no folder" if blocked else str(error.strerror)),
            "Choose a path in a folder that exists or can be made, and that you may write to.",
        ) from error
    if not Path(real).is_file():
        raise PathUnusable(path, "is not a regular file", "Choose the path of a file.")
    if status.st_nlink > 1:
        raise PathUnusable(
            path,
            "has several hard links, whose -wal files would differ",
            "Use a file with one name.",
        )
    if not os.access(real, os.R_OK | os.W_OK) or not os.access(Path(real).parent, os.W_OK):
        raise PathUnusable(path, "is not writable", "Make the file and its folder writable.")
    return real


def connect(path: str, *, read_only: bool, new: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode with every pragma set and read back.

    Python's own transaction handling opens a transaction too late to protect a read that a write
    depends on; here every BEGIN is written out.
    """
    connection = sqlite3.connect(
        f"{Path(path).as_uri()}?mode=rw",  # a file that is gone must not be made anew, and empty
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_STATEMENTS_CACHED,
    )
    try:
        if new:
            # Only an empty file can take it. Freed pages are given back while others write.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA encoding = 'UTF-8'")
        for name, (value, read_back) in _PRAGMAS.items():
            if value is not None:
                connection.execute(f"PRAGMA {name} = {value}")
            (actual,) = connection.execute(f"PRAGMA {name}").fetchone()
            if actual != read_back:
                raise PathUnusable(
                    path,
                    f"has PRAGMA {name} = {actual}, not {read_back}",
                    "Choose a path on a local disk.",
                )
        _restrict(connection)
        if read_only:
            connection.execute("PRAGMA query_only = ON")
            # Not where tables are swapped: that writes the schema itself, see shadow.py.
            if sys.version_info >= (3, 12):
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE, True)
    except BaseException:
        connection.close()
        raise
    return connection


def _restrict(connection: sqlite3.Connection) -> None:
    """Takes from a connection what no statement of this package needs, and a file might abuse."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, _TRIGGER_DEPTH)
    connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)


def open_database(
    path: str, gate: Gate, projections: Sequence[Projection], *, for_rebuild: bool
) -> sqlite3.Connection:
    """The writer's connection to a file that is new or ours, migrated and checked.

    With `for_rebuild` projection tables may be missing, changed or of another version.

    Raises:
        StoreUnusable: one of its kinds, see eventstore.errors.
        ProjectionMissing: the active projections are not the given ones.
    """
    try:
        with gate.held_within(BUSY_TIMEOUT_S):
            connection = connect(path, read_only=False, new=recognise(path))
            try:
                _migrate(connection, path, projections)
                check_schema(connection, path, projections, for_rebuild=for_rebuild)
            except BaseException:
                connection.close()
                raise
            return connection
    except sqlite3.Error as error:
        raise translate(path, error) from None


def recognise(path: str) -> bool:
    """Looks at a file before anything is written beside or into it. Returns True for a new one.

    Raises:
        ForeignDatabase, NotADatabase: it is not ours.
    """
    try:
        with closing(
            sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        ) as connection:
            return _is_new(connection, path)
    except sqlite3.Error as error:
        raise translate(path, error) from None


def _is_new(connection: sqlite3.Connection, path: str) -> bool:
    connection.execute("BEGIN")  # both in one snapshot: somebody may be making it just now
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
    connection.execute("COMMIT")
    if application_id == APPLICATION_ID:
        return False
    if application_id == 0 and not names:
        return True
    if names >= _ADK_TABLES:
        raise ForeignDatabase(
            path,
            "was written by one of ADK's own session services",
            "Choose another path for this service; that file is left as it is. To take its "
            f"sessions over: adk-eventstore import {path}",
        )
    raise ForeignDatabase(path, "belongs to another program", "Choose another path.")


def pending_migrations(path: str) -> tuple[int, list[tuple[int, str]]]:
    """A file's schema version, and what opening it would run: each version with its SQL.

    Nothing is written into the file or beside it. In a new file, the tables of the projections are
    made behind what is named here.

    Raises:
        PathUnusable, ForeignDatabase, NotADatabase, SchemaTooNew: see eventstore.errors.
    """
    if not Path(path).is_file():
        missing = "is not a regular file" if Path(path).exists() else "does not exist"
        raise PathUnusable(path, missing, "Pass the path of a database: --db PATH.")
    # Even a connection that only reads makes a -wal; without one, all there is is in the file.
    mode = "mode=ro" if _platform.file_size(f"{path}-wal") else "mode=ro&immutable=1"
    uri = f"{Path(path).as_uri()}?{mode}"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        ) as connection:
            _is_new(connection, path)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise translate(path, error) from None
    scripts = migrations()
    _require_known(path, version, len(scripts))
    return version, [
        (number, f"{scripts[number - 1].rstrip()}\nPRAGMA user_version = {number};\n")
        for number in range(version + 1, len(scripts) + 1)
    ]


def _require_known(path: str, version: int, newest: int) -> None:
    if version > newest:
        raise SchemaTooNew(
            path,
            f"has schema version {version}, this package knows up to {newest}",
            "Upgrade adk-eventstore.",
        )


def _migrate(connection: sqlite3.Connection, path: str, projections: Sequence[Projection]) -> None:
    """Brings the schema to the newest version in one transaction; the caller holds the gate."""
    scripts = migrations()
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        _require_known(path, version, len(scripts))
        for script in scripts[version:]:
            _execute_script(connection, script)
        if version == 0:
            for projection in projections:
                create(connection, projection)
                connection.execute(
                    QUERIES["register_projection"],
                    (projection.name, projection.version, projection.table.name, None),
                )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        else:
            _upgrade(connection, projections)
        if version < len(scripts):
            connection.execute(f"PRAGMA user_version = {len(scripts)}")
    except BaseException:
        if connection.in_transaction:  # a full or failing disk has ended it already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _upgrade(connection: sqlite3.Connection, projections: Sequence[Projection]) -> None:
    """Brings the tables of projections up to date that say how; part of the migration.

    A table that is not as its version made it is left to a rebuild, and so are all where an event
    is damaged that carries rows over.
    """
    registered = ReadTransaction(connection, {}).registered()
    for projection in projections:
        row = registered.get(projection.name)
        if row is None or row.checkpoint is not None or row.version >= projection.version:
            continue
        select = projection.upgrades.get("sqlite", {}).get(row.version)
        if select is None:
            continue
        connection.execute("SAVEPOINT upgrade")
        try:
            table = table_before(projection, registered)
            shadow.replace(connection, projection, table, select)
            transaction = WriteTransaction(connection, {}, Known())
            transaction.register(projection, None)
            carry_anew(transaction, projection, row.version)
        except (sqlite3.OperationalError, sqlite3.IntegrityError, CorruptEvent) as error:
            if isinstance(error, sqlite3.Error) and error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_ERROR,
                sqlite3.SQLITE_CONSTRAINT,
            ):
                raise
            connection.execute("ROLLBACK TO upgrade")
            _log.warning(
                "%s has to be rebuilt: its table cannot be brought up to date (%s)",
                projection.name,
                type(error).__name__,
            )
        connection.execute("RELEASE upgrade")


def _execute_script(connection: sqlite3.Connection, script: str) -> None:
    """Runs a script inside the open transaction, which `executescript` would commit."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    assert not statement.strip(), "a migration script ends inside a statement"


def check_schema(
    connection: sqlite3.Connection,
    path: str,
    projections: Sequence[Projection],
    *,
    for_rebuild: bool = False,
) -> None:
    """Compares the file's schema with what this code would make.

    Other tables, indexes and views are tolerated (a user's index, Litestream's tables); a trigger
    that is not ours never is, for it could drop or change what we write.

    Raises:
        SchemaTooNew: a newer version migrated the file meanwhile.
        SchemaAltered, ProjectionMissing: see there.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = len(migrations())
    if version != newest:
        raise SchemaTooNew(
            path,
            f"has schema version {version}, this process writes {newest}",
            "Upgrade adk-eventstore here too, and start again.",
        )
    actual = _schema(connection)
    log, folds = _expected_schema(tuple(projections))
    for name, definition in log.items():
        if actual.get(name) != definition:
            raise SchemaAltered(path, f"has a changed {name}", "Restore it from a backup.")
    for name, definition in actual.items():
        if definition.startswith("trigger") and name not in log:
            raise SchemaAltered(
                path,
                f"has a trigger that is not ours: {name}",
                f'Remove it: DROP TRIGGER "{name}";',
            )
    _check_indexes(connection, path, {*log, *folds})
    if connection.execute("SELECT 1 FROM maintenance").fetchone() is not None:
        raise SchemaAltered(
            path,
            "was left open for maintenance, so that events can be changed",
            "Verify what was done, then: DELETE FROM maintenance;",
        )
    if not for_rebuild:
        _check_projections(connection, path, projections, actual, folds)


def _check_indexes(connection: sqlite3.Connection, path: str, ours: Set[str]) -> None:
    """No index of a user's may refuse a row that we write."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    for table in {name for (name,) in tables} & ours:
        for _, name, unique, origin, _ in connection.execute(
            "SELECT * FROM pragma_index_list(?)", (table,)
        ).fetchall():
            expression = connection.execute(
                "SELECT 1 FROM pragma_index_info(?) WHERE cid = -2", (name,)
            ).fetchone()
            if origin == "c" and name not in ours and (unique or expression):
                raise SchemaAltered(
                    path,
                    f"has a unique index, or one on an expression, that is not ours: {name}",
                    f'Remove it: DROP INDEX "{name}";',
                )


def _check_projections(
    connection: sqlite3.Connection,
    path: str,
    projections: Sequence[Projection],
    actual: Mapping[str, str],
    folds: Mapping[str, tuple[str, str]],
) -> None:
    rebuild = _REBUILD.format(path=path)
    registered = ReadTransaction(connection, {}).registered()
    active = {name: row.version for name, row in registered.items() if row.checkpoint is None}
    known = {projection.name: projection.version for projection in projections}
    for name in active.keys() - known.keys():
        raise ProjectionMissing(
            name,
            "the database relies on it and this process does not have it",
            "Install the package that provides it.",
        )
    for name, version in known.items():
        if active.get(name) != version:
            reason = f"the database has version {active.get(name)}, this process {version}"
            raise ProjectionMissing(name, reason, rebuild)
    for name, (projection, definition) in folds.items():
        if actual.get(name) != definition:
            raise ProjectionMissing(projection, f"{name} is missing or was changed", rebuild)


def _schema(connection: sqlite3.Connection) -> dict[str, str]:
    """Object name to its type, table and SQL text, as it is before and after a rename."""
    rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()
    return {name: f"{kind} {table} {_plain(name, sql)}" for kind, name, table, sql in rows if sql}


def _plain(name: str, sql: str) -> str:
    # A table that was renamed into its place has its name in quotes.
    return " ".join(sql.replace(f'"{name}"', name, 1).split())


def expected_names(projections: tuple[Projection, ...]) -> Set[str]:
    """The names of everything in the schema of a database of ours."""
    log, folds = _expected_schema(projections)
    return log.keys() | folds.keys()


@lru_cache(maxsize=8)
def _expected_schema(
    projections: tuple[Projection, ...],
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """What the log's objects, and each projection's, must look like."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for script in migrations():
            _execute_script(connection, script)
        log = _schema(connection)
        folds: dict[str, tuple[str, str]] = {}
        for projection in projections:
            before = _schema(connection)
            create(connection, projection)
            after = _schema(connection)
            folds |= {name: (projection.name, after[name]) for name in after.keys() - before.keys()}
    return log, folds

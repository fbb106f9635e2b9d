"""Looking at a file that may be unusable, and at the place it is in, without changing either."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from eventstore import _platform
from eventstore.errors import EventStoreError, ProjectionMissing, SchemaTooNew
from eventstore.location import MEMORY
from eventstore.projection import Projection
from eventstore.sqlite.database import (
    check_schema,
    expected_names,
    pending_migrations,
    translate,
)
from eventstore.sqlite.queries import migrations
from eventstore.store import Finding

__all__ = ["examine"]

_AUTOMATIC_BYTES: Final = 1_000_000_000
_LARGE_WAL_BYTES: Final = 256_000_000
_LITTLE_SPACE: Final = 0.05
_MUCH_UNUSED: Final = 0.25
_FIXED_SQLITE: Final = (3, 51, 3)
_PROBLEMS_NAMED: Final = 10
_WAIT_S: Final = 5.0


def examine(
    path: str,
    projections: Sequence[Projection],
    others: Sequence[Projection],
    *,
    whole: bool | None,
) -> list[Finding]:
    """Looks at a file and its place. See eventstore.store.examine."""
    if path == MEMORY:
        return [Finding("file", "note", "it is a private temporary database, gone at close")]
    findings = [_sqlite(), *_place(path)]
    if any(finding.state == "problem" for finding in findings):
        return findings
    try:
        before, pending = pending_migrations(path)
    except SchemaTooNew as error:
        return [*findings, Finding.of("schema", error)]
    except EventStoreError as error:
        return [*findings, Finding.of("file", error)]
    findings += _wal(path)
    # A connection that reads makes a -wal and a -shm where there are none: not in a look.
    mode = "mode=ro" if _platform.file_size(f"{path}-wal") else "mode=ro&immutable=1"
    uri = f"{Path(path).as_uri()}?{mode}"
    try:
        with closing(
            sqlite3.connect(uri, uri=True, timeout=_WAIT_S, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN")
            findings += _settings(connection)
            if pending:
                findings.append(_pending(before, len(migrations())))
            else:
                findings += _schema(connection, path, projections)
            findings += _strangers(connection, (*projections, *others))
            findings += _integrity(connection, path, whole=whole)
    except sqlite3.Error as error:
        findings.append(Finding.of("file", translate(path, error)))
    return findings


def _sqlite() -> Finding:
    said = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < _FIXED_SQLITE:
        said += (
            "; before 3.51.3 a checkpoint beside a commit could damage a file: "
            "this package keeps the two apart, other programs that write the file do not"
        )
    return Finding("sqlite", "ok", said)


def _place(path: str) -> Iterator[Finding]:
    """The folder, the file, and who may do what with them."""
    real = os.path.realpath(path)
    folder = Path(real).parent
    if not folder.is_dir():
        yield Finding("file", "problem", f"{folder} is no folder", "Choose another path.")
        return
    if kind := _platform.network_file_system(str(folder)):
        yield Finding(
            "file system",
            "problem",
            f"{folder} is on a network file system ({kind}), where SQLite's locks do not work",
            "Move the file to a local disk.",
        )
    else:
        yield Finding("file system", "ok", f"{folder} is on a local disk")
    if not Path(real).is_file():
        missing = "is not a regular file" if Path(real).exists() else "does not exist"
        remedy = "Pass the path of a database with --db, or start the service, which makes it."
        yield Finding("file", "problem", f"{path} {missing}", remedy)
        return
    yield Finding("file", "ok", f"{path}, {_platform.file_size(real):,} bytes")
    yield from _permissions(real)
    usage = shutil.disk_usage(folder)
    if usage.free < max(usage.total * _LITTLE_SPACE, _platform.file_size(real)):
        yield Finding(
            "disk",
            "warning",
            f"{usage.free:,} bytes are free, fewer than the file has or 5 % of the disk",
            "Free some: a rebuild needs room for the tables, `vacuum --rewrite` for the file.",
        )
    else:
        yield Finding("disk", "ok", f"{usage.free:,} bytes are free")


def _permissions(real: str) -> Iterator[Finding]:
    status = Path(real).stat()
    if status.st_nlink > 1:
        yield Finding(
            "permissions",
            "problem",
            "the file has several hard links, whose -wal files would differ",
            "Use a file with one name.",
        )
    writable = [name for name in (real, str(Path(real).parent)) if not os.access(name, os.W_OK)]
    if writable:
        yield Finding(
            "permissions",
            "problem",
            f"cannot be written by this user: {', '.join(writable)}",
            "Make the file and its folder writable, or run as the user the service runs as.",
        )
        return
    open_to = [
        suffix or "the file"
        for suffix in ("", "-wal", "-shm")
        if os.name == "posix"
        and Path(f"{real}{suffix}").exists()
        and stat.S_IMODE(Path(f"{real}{suffix}").stat().st_mode) & 0o077
    ]
    if open_to:
        yield Finding(
            "permissions",
            "warning",
            f"others than the owner may use {', '.join(open_to)}",
            f"chmod 600 {real}*",
        )
    else:
        yield Finding("permissions", "ok", "only the owner may read and write the file")


def _wal(path: str) -> Iterator[Finding]:
    size = _platform.file_size(f"{path}-wal")
    if size > _LARGE_WAL_BYTES:
        yield Finding(
            "checkpoints",
            "warning",
            f"the -wal has {size:,} bytes: somebody has been reading for long, or a service ended "
            "without closing",
            "End programs that keep a transaction open; then: adk-eventstore vacuum",
        )
    else:
        yield Finding("checkpoints", "ok", f"the -wal has {size:,} bytes")


def _pending(before: int, newest: int) -> Finding:
    return Finding(
        "migration",
        "warning",
        f"the file has schema version {before}, this package writes {newest}",
        "A service migrates it when it opens it; or: adk-eventstore migrate",
    )


def _settings(connection: sqlite3.Connection) -> Iterator[Finding]:
    def value(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    pages, page, free = (int(str(value(n))) for n in ("page_count", "page_size", "freelist_count"))
    yield Finding("settings", "ok", f"encoding {value('encoding')}, pages of {page:,} bytes")
    if value("auto_vacuum") != 2:
        yield Finding(
            "settings",
            "warning",
            "the file is not made for giving space back in small steps (auto_vacuum)",
            "adk-eventstore vacuum --rewrite",
        )
    if pages and free / pages > _MUCH_UNUSED:
        yield Finding(
            "unused space",
            "note",
            f"{free * page:,} of {pages * page:,} bytes of the file are unused",
            "Give them back: adk-eventstore vacuum",
        )


def _schema(
    connection: sqlite3.Connection, path: str, projections: Sequence[Projection]
) -> Iterator[Finding]:
    try:
        check_schema(connection, path, projections, for_rebuild=True)
    except EventStoreError as error:
        yield Finding.of("schema", error)
        return
    yield Finding("schema", "ok", f"schema version {len(migrations())}, as it should be")
    try:
        check_schema(connection, path, projections)
    except ProjectionMissing as error:
        found = Finding.of("tables", error)
        yield found._replace(state="warning")


def _strangers(
    connection: sqlite3.Connection, projections: Sequence[Projection]
) -> Iterator[Finding]:
    """Tables, indexes and views that are not ours, which are tolerated."""
    known = expected_names(tuple(projections))
    registered = (
        {row[0] for row in connection.execute("SELECT table_name FROM projections")}
        if (_has_column(connection, "projections", "table_name"))
        else set()
    )
    strangers: dict[str, list[str]] = {}
    leftovers = []
    for kind, name, table in connection.execute(
        "SELECT type, name, tbl_name FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
    ).fetchall():
        if table.startswith(("shadow_", "retired_")):
            leftovers.append(name)
        elif name not in known and table not in registered:
            strangers.setdefault(kind, []).append(name)
    if leftovers:
        yield Finding(
            "tables",
            "note",
            f"left over from a rebuild that was ended: {', '.join(leftovers)}",
            "The next rebuild clears them away: rebuild-projections",
        )
    for kind, names in strangers.items():
        if kind == "trigger":
            continue  # which the schema's check has refused
        yield Finding("foreign objects", "note", f"not ours, and let be: {kind} {', '.join(names)}")


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    rows: list[tuple[str]] = connection.execute(
        "SELECT name FROM pragma_table_info(?)", (table,)
    ).fetchall()
    return (column,) in rows


def _integrity(
    connection: sqlite3.Connection, path: str, *, whole: bool | None
) -> Iterator[Finding]:
    size = _platform.file_size(path)
    if whole is False or (whole is None and size > _AUTOMATIC_BYTES):
        yield Finding(
            "integrity",
            "note",
            f"the {size:,} bytes of the file were not checked",
            "Check them, which reads all of it: adk-eventstore doctor --full",
        )
        return
    rows = connection.execute(f"PRAGMA quick_check({_PROBLEMS_NAMED})").fetchall()
    if rows == [("ok",)]:
        yield Finding("integrity", "ok", "every page of the file is as SQLite makes them")
        return
    for (line,) in rows:
        yield Finding(
            "integrity",
            "problem",
            " ".join(str(line).split()),
            "Restore a backup, or save what can be saved: adk-eventstore recover",
        )

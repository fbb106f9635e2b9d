"""Shadow tables: how a projection's table is made anew beside the one that is in use.

The shadow is filled in small transactions while everybody goes on with the live table. Then, in
one transaction, the live table is renamed to `retired_...` and the shadow to the live name; the
retired table is emptied and dropped in small steps. Statements other connections have prepared
follow by themselves: a change of schema makes SQLite prepare them again.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import sys
from typing import Final

from eventstore.projection import Projection
from eventstore.sqlite.tables import (
    ProjectionTable,
    create_table,
    create_views,
    drop_views,
    indexes,
)

__all__ = ["clear_away", "leftovers", "make", "replace", "retire", "swap", "table"]

_log = logging.getLogger(__name__)

_QUOTED: Final = r"""(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])"""
_TEXT: Final = r"'(?:[^']|'')*'"
_NAME: Final = rf"(?:{_QUOTED}|{_TEXT}|[A-Za-z0-9_$\u0080-\U0010ffff]+)"
_SPACE: Final = r"(?:[ \t\n\f\r]|--[^\n]*\n|/\*.*?\*/)*"
_CREATE_INDEX: Final = re.compile(
    rf"CREATE INDEX {_SPACE}{_NAME}{_SPACE}ON{_SPACE}(?P<table>{_NAME})(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_QUALIFIER: Final = re.compile(
    rf"({_TEXT})|(?:{_QUOTED}|(?<![\w$])[^\W\d][\w$]*){_SPACE}\.{_SPACE}", re.DOTALL
)


def _shadow(table_name: str) -> str:
    return f"shadow_{table_name}"


def _retired(table_name: str) -> str:
    return f"retired_{table_name}"


def table(projection: Projection) -> ProjectionTable:
    """The statements on a projection's shadow."""
    return ProjectionTable(projection, _shadow(projection.table.name))


def make(connection: sqlite3.Connection, projection: Projection) -> None:
    """Makes the empty shadow, with its indexes: the projection's, and copies of each user's.

    They are made now, on the empty table: made at the end they would take long, and writers would
    wait.
    """
    connection.execute(create_table(projection, _shadow(projection.table.name)))
    _copy_indexes(connection, projection)


def swap(connection: sqlite3.Connection, projection: Projection, before: str | None) -> None:
    """Puts the shadow in the live table's place; part of a transaction of the caller's.

    `before` names the table of the version before, where that had another: it is retired.
    """
    live = projection.table.name
    drop_views(connection, projection)
    if before is not None:
        retire(connection, before)
    # For nearly always nothing: a user may have changed some since.
    _copy_indexes(connection, projection)
    wanted = _wanted_indexes(connection, projection)
    for index, sql in _indexes(connection, live):
        if _unqualified(sql) != _parts(sql)["rest"]:
            connection.execute(f"DROP INDEX {_quoted(index)}")  # the rename would fail on it
    others = {name: sql for name, sql in _tables(connection).items() if name != live}
    if _exists(connection, live):
        _rename_table(connection, live, _retired(live))
    _rename_table(connection, _shadow(live), live)
    _restore_references(connection, others)
    if wanted:
        _rename_indexes(connection, wanted)
    create_views(connection, projection)


def replace(
    connection: sqlite3.Connection, projection: Projection, before: str | None, select: str
) -> None:
    """Puts the rows of a statement in the live table's place; part of a transaction. As `swap`."""
    live = projection.table.name
    while clear_away(connection, live, sys.maxsize):
        pass
    make(connection, projection)
    connection.execute(f"INSERT INTO {_shadow(live)}\n{select}")
    swap(connection, projection, before)
    for table_name in (live, before or live):
        while clear_away(connection, table_name, sys.maxsize):
            pass


def retire(connection: sqlite3.Connection, name: str) -> None:
    """Takes a table out of use; part of a transaction of the caller's."""
    if _exists(connection, name):
        _rename_table(connection, name, _retired(name))


def _wanted_indexes(
    connection: sqlite3.Connection, projection: Projection
) -> list[tuple[str, str]]:
    """The indexes that the live table is to have: the projection's, and a user's as they are."""
    users = dict(_indexes(connection, projection.table.name))
    return list({**users, **indexes(projection)}.items())


def _copy_indexes(connection: sqlite3.Connection, projection: Projection) -> None:
    """Gives the shadow the indexes that are wanted, and no others."""
    live = projection.table.name
    shadow = _shadow(live)
    wanted = {
        _copy_name(index): (index, _create_index(_copy_name(index), shadow, _unqualified(sql)))
        for index, sql in _wanted_indexes(connection, projection)
    }
    for copy, sql in _indexes(connection, shadow):
        if copy in wanted and wanted[copy][1] == sql:
            del wanted[copy]
        else:
            connection.execute(f"DROP INDEX {_quoted(copy)}")
    for index, sql in wanted.values():
        try:
            connection.execute(sql)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            # The new version of the table lacks a column of it.
            _log.warning("index %s does not fit the new table %s", index, live)


def _rename_table(connection: sqlite3.Connection, old: str, new: str) -> None:
    # Without it the views of users would be rewritten, to follow the table that goes.
    connection.execute("PRAGMA legacy_alter_table = ON")
    try:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
    finally:
        connection.execute("PRAGMA legacy_alter_table = OFF")


def _tables(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'")
    return dict(rows.fetchall())


def _restore_references(connection: sqlite3.Connection, others: dict[str, str]) -> None:
    """Lets foreign keys of a user's tables refer to the live table, not follow the retired one."""
    changed = [
        (others[name], name)
        for name, sql in _tables(connection).items()
        if sql != others.get(name, sql)
    ]
    if changed:
        connection.execute("PRAGMA writable_schema = ON")
        try:
            connection.executemany(
                "UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = ?", changed
            )
        finally:
            connection.execute("PRAGMA writable_schema = RESET")


def _rename_indexes(connection: sqlite3.Connection, wanted: list[tuple[str, str]]) -> None:
    """Gives the names of indexes to their copies on the new table.

    SQLite has no statement for it, and making an index of a large table takes long. Changing the
    name and text of an index in the schema is what its own RENAME of a table does
    (https://sqlite.org/pragma.html#pragma_writable_schema).
    """
    connection.execute("PRAGMA writable_schema = ON")
    try:
        for name, sql in wanted:
            now = connection.execute(
                "SELECT sql FROM sqlite_schema WHERE type = 'index' AND name = ?", (name,)
            ).fetchone()
            if now is not None:
                retired, parts = f"retired: {name}", _parts(now[0])
                _rename(
                    connection, name, retired, _create_index(retired, parts["table"], parts["rest"])
                )
            _rename(connection, _copy_name(name), name, sql)
    finally:
        connection.execute("PRAGMA writable_schema = RESET")


def _rename(connection: sqlite3.Connection, old: str, new: str, sql: str) -> None:
    connection.execute(
        "UPDATE sqlite_schema SET name = ?, sql = ? WHERE type = 'index' AND name = ?",
        (new, sql, old),
    )


def _parts(sql: str) -> re.Match[str]:
    match = _CREATE_INDEX.fullmatch(sql)
    assert match is not None, "SQLite stores statements that begin so"
    return match


def _copy_name(index: str) -> str:
    return f"shadow: {index}"  # as nobody names an index


def _unqualified(sql: str) -> str:
    """What an index's statement says of its columns, none of them named with the table's name."""
    return _QUALIFIER.sub(lambda match: match[1] or "", _parts(sql)["rest"])


def _create_index(name: str, table_name: str, rest: str) -> str:
    return f"CREATE INDEX {_quoted(name)} ON {table_name}{rest}"


def clear_away(connection: sqlite3.Connection, table_name: str, count: int) -> bool:
    """Removes some rows of what is left of a shadow or retired table, and at last the table."""
    for name in (_shadow(table_name), _retired(table_name)):
        if _exists(connection, name):
            keys = connection.execute(
                "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (name,)
            ).fetchall()
            key = ", ".join(_quoted(column) for (column,) in keys) or "rowid"
            last = connection.execute(
                f"SELECT {key} FROM {name} ORDER BY {key} LIMIT 1 OFFSET ?",  # noqa: S608 - names come from a Table
                (count - 1,),
            ).fetchone()
            if last is None:
                connection.execute(f"DROP TABLE {name}")
            else:
                marks = ", ".join("?" for _ in last)
                connection.execute(f"DELETE FROM {name} WHERE ({key}) <= ({marks})", last)  # noqa: S608
            return True
    return False


def leftovers(connection: sqlite3.Connection) -> list[str]:
    """The names of tables of which a shadow or a retired table is there."""
    found = {name.partition("_")[::2] for name in _tables(connection)}
    return sorted({rest for first, rest in found if first in ("shadow", "retired")})


def _indexes(connection: sqlite3.Connection, name: str) -> list[tuple[str, str]]:
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_schema "
        "WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL",
        (name,),
    )
    return [(index, sql) for index, sql in rows.fetchall()]


def _exists(connection: sqlite3.Connection, name: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (name,)
    ).fetchone()
    return row is not None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

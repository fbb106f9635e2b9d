"""The SQL of projection tables, made from their Table, and the execution of row changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache

from eventstore.changes import Add, Change, Delete, Put, Row, Update
from eventstore.errors import InvalidProjection
from eventstore.projection import Projection

__all__ = [
    "ProjectionTable",
    "any_text",
    "check_definition",
    "create",
    "create_table",
    "create_views",
    "drop_views",
    "indexes",
]

_TYPES = {"integer": "INTEGER", "real": "REAL", "text": "TEXT"}


@contextmanager
def any_text(connection: sqlite3.Connection) -> Iterator[None]:
    """Has text that is no UTF-8 read, while it lasts, with lone surrogates for what is none."""
    before = connection.text_factory
    connection.text_factory = lambda stored: stored.decode(errors="surrogateescape")
    try:
        yield
    finally:
        connection.text_factory = before


def create_table(projection: Projection, name: str | None = None) -> str:
    """The DDL of a projection's table, under another name if one is given."""
    table = projection.table
    columns = [
        f"  {column} {_TYPES[kind]} NOT NULL"
        for column, kind in [*table.key.items(), *table.columns.items()]
    ]
    lines = ",\n".join([*columns, f"  PRIMARY KEY ({', '.join(table.key)})"])
    return f"CREATE TABLE {name or table.name} (\n{lines}\n) STRICT, WITHOUT ROWID"


def indexes(projection: Projection) -> dict[str, str]:
    """The DDL of the indexes that a projection wants on its table, by name."""
    table = projection.table
    return {
        name: f"CREATE INDEX {name} ON {table.name} ({', '.join(columns)})"
        for name, columns in table.indexes.items()
    }


def create(connection: sqlite3.Connection, projection: Projection) -> None:
    """Makes a projection's table, empty, with its indexes and views."""
    connection.execute(create_table(projection))
    for sql in indexes(projection).values():
        connection.execute(sql)
    create_views(connection, projection)


def create_views(connection: sqlite3.Connection, projection: Projection) -> None:
    """Makes the views over a projection's table."""
    for name, select in projection.views.get("sqlite", {}).items():
        connection.execute(f"CREATE VIEW {name} AS\n{select}")


def drop_views(connection: sqlite3.Connection, projection: Projection) -> None:
    """Removes what `create_views` makes, whatever of it is there."""
    for name in projection.views.get("sqlite", {}):
        connection.execute(f"DROP VIEW IF EXISTS {name}")


@lru_cache(maxsize=64)
def check_definition(projection: Projection) -> None:
    """Makes an empty table and its views, in a database of their own.

    Raises:
        InvalidProjection: SQLite cannot: a name is one of its keywords, a view is no SELECT.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        try:
            create(connection, projection)
        except sqlite3.Error as error:
            raise InvalidProjection(
                projection.name, f"has a table or view that SQLite cannot make: {error}"
            ) from None


@lru_cache(maxsize=256)
def _update_statement(table: str, columns: tuple[str, ...], key: tuple[str, ...]) -> str:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    return f"UPDATE {table} SET {assignments} WHERE {' AND '.join(f'{k} = ?' for k in key)}"  # noqa: S608 - names come from a Table


@lru_cache(maxsize=256)
def _add_statement(
    table: str, names: tuple[str, ...], key: tuple[str, ...], add: tuple[str, ...]
) -> str:
    assignments = ", ".join(f"{name} = {name} + excluded.{name}" for name in add)
    return (
        f"INSERT INTO {table} ({', '.join(names)}) "  # noqa: S608 - names come from a Table
        f"VALUES ({', '.join('?' for _ in names)}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {assignments}"
    )


class ProjectionTable:
    """One projection and the statements on its table, or on one of its shape with another name."""

    def __init__(self, projection: Projection, name: str | None = None) -> None:
        table = projection.table._replace(name=name or projection.table.name)
        names = (*table.key, *table.columns)
        self.projection = projection
        self._table = table
        self._names = names
        self._key = tuple(table.key)
        assignments = ", ".join(f"{name} = excluded.{name}" for name in table.columns)
        self._insert = (
            f"INSERT INTO {table.name} ({', '.join(names)}) "  # noqa: S608 - names come from a Table
            f"VALUES ({', '.join('?' for _ in names)})"
        )
        self._put = (
            f"{self._insert} ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {assignments}"
        )
        self._where_key = " AND ".join(f"{name} = ?" for name in self._key)
        self._delete = f"DELETE FROM {table.name} WHERE {self._where_key}"  # noqa: S608
        self._delete_owner = f"DELETE FROM {table.name} WHERE {table.owner} = ?"  # noqa: S608
        self._select_owned: dict[int, str] = {}
        """By the number of owners."""
        self._select = f"SELECT {', '.join(names)} FROM {table.name}"  # noqa: S608 - as above

    def apply(self, connection: sqlite3.Connection, changes: Iterable[Change]) -> None:
        """Executes row changes."""
        for change in changes:
            # On the path of every append, where matching a pattern takes as long as the rest.
            if isinstance(change, Put):
                connection.execute(self._put, (*change.key, *change.values))
            elif isinstance(change, Update):
                sql = _update_statement(self._table.name, tuple(change.columns), self._key)
                connection.execute(sql, (*change.columns.values(), *change.key))
            elif isinstance(change, Add):
                columns = change.columns
                zeros = zip(self._table.columns, self._table.zeros, strict=True)
                row = [*change.key, *(columns.get(name, zero) for name, zero in zeros)]
                sql = _add_statement(self._table.name, self._names, self._key, tuple(columns))
                connection.execute(sql, row)
            elif isinstance(change, Delete):
                connection.execute(self._delete, change.key)
            else:
                connection.execute(self._delete_owner, (change.owner,))

    def rows(self, connection: sqlite3.Connection, owners: Sequence[int]) -> list[Row]:
        """The whole rows that belong to any of the streams, in key order."""
        if (sql := self._select_owned.get(len(owners))) is None:
            marks = ", ".join("?" for _ in owners)
            order = ", ".join(self._key)
            sql = f"{self._select} WHERE {self._table.owner} IN ({marks}) ORDER BY {order}"
            self._select_owned[len(owners)] = sql
        return connection.execute(sql, tuple(owners)).fetchall()

    def row(self, connection: sqlite3.Connection, key: Row) -> Row | None:
        """The whole row with this key."""
        row: Row | None = connection.execute(
            f"{self._select} WHERE {self._where_key}", key
        ).fetchone()
        return row

    def page(self, connection: sqlite3.Connection, after: Row | None, count: int) -> list[Row]:
        """Up to `count` whole rows behind a key, in key order."""
        key, where = ", ".join(self._key), ""
        if after is not None:
            # Also behind a text that is no UTF-8, of which the row was read by `any_text`.
            marks = ["CAST(? AS TEXT)" if isinstance(value, str) else "?" for value in after]
            where = f"WHERE ({key}) > ({', '.join(marks)}) "
        stored = [
            value.encode(errors="surrogateescape") if isinstance(value, str) else value
            for value in after or ()
        ]
        return connection.execute(
            f"{self._select} {where}ORDER BY {key} LIMIT ?", (*stored, count)
        ).fetchall()

    def indexed_page(
        self,
        connection: sqlite3.Connection,
        index: str,
        equal: Row,
        after: Row | None,
        count: int,
        *,
        descending: bool,
    ) -> list[Row]:
        """Up to `count` whole rows behind `after`, in the order of an index."""
        columns = (*self._table.indexes[index], *self._key)
        first, rest = columns[: len(equal)], columns[len(equal) :]
        where = [f"{name} = ?" for name in first]
        if after is not None:
            marks = ", ".join("?" for _ in rest)
            where.append(f"({', '.join(rest)}) {'<' if descending else '>'} ({marks})")
        order = ", ".join(f"{name} {'DESC' if descending else 'ASC'}" for name in rest)
        sql = f"{self._select} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?"
        return connection.execute(sql, (*equal, *(after or ()), count)).fetchall()

    def fill(self, connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
        """Inserts whole rows that are not there yet."""
        connection.executemany(self._insert, rows)

    def count(self, connection: sqlite3.Connection) -> int:
        """How many rows the table has."""
        (count,) = connection.execute(f"SELECT count(*) FROM {self._table.name}").fetchone()  # noqa: S608
        return int(count)

"""The SQL of projection tables, made from their Table, and the execution of row changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache

from eventstore.changes import (
    Change,
    DeleteOwner,
    InlineProjection,
    Put,
    Row,
    Table,
    Update,
)

__all__ = ["ProjectionTable", "create_statements", "drop_statements"]

_TYPES = {"integer": "INTEGER", "real": "REAL", "text": "TEXT"}


def create_statements(projection: InlineProjection) -> list[str]:
    """The DDL of a projection: its table and the views over it."""
    table = projection.table
    columns = [
        f"  {name} {_TYPES[kind]} NOT NULL"
        for name, kind in [*table.key.items(), *table.columns.items()]
    ]
    lines = ",\n".join([*columns, f"  PRIMARY KEY ({', '.join(table.key)})"])
    views = projection.views.get("sqlite", {})
    return [
        f"CREATE TABLE {table.name} (\n{lines}\n) STRICT, WITHOUT ROWID",
        *(f"CREATE VIEW {name} AS\n{select}" for name, select in views.items()),
    ]


def drop_statements(projection: InlineProjection) -> list[str]:
    """Removes what `create_statements` makes, whatever of it is there."""
    views = projection.views.get("sqlite", {})
    return [
        *(f"DROP VIEW IF EXISTS {name}" for name in views),
        f"DROP TABLE IF EXISTS {projection.table.name}",
    ]


@lru_cache(maxsize=256)
def _update_statement(table: str, columns: tuple[str, ...], key: tuple[str, ...]) -> str:
    assignments = ", ".join(f"{name} = ?" for name in columns)
    return f"UPDATE {table} SET {assignments} WHERE {' AND '.join(f'{k} = ?' for k in key)}"  # noqa: S608 - names come from a Table


class ProjectionTable:
    """One projection and the statements on its table."""

    def __init__(self, projection: InlineProjection) -> None:
        table = projection.table
        names = [*table.key, *table.columns]
        self.projection = projection
        self._table = table
        self._key = tuple(table.key)
        assignments = ", ".join(f"{name} = excluded.{name}" for name in table.columns)
        self._put = (
            f"INSERT INTO {table.name} ({', '.join(names)}) "  # noqa: S608 - names come from a Table
            f"VALUES ({', '.join('?' for _ in names)}) "
            f"ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {assignments}"
        )
        self._delete_owner = f"DELETE FROM {table.name} WHERE {table.owner} = ?"  # noqa: S608
        self._select = f"SELECT {', '.join(names)} FROM {table.name}"  # noqa: S608 - as above

    @property
    def table(self) -> Table:
        """The table itself."""
        return self._table

    def apply(self, connection: sqlite3.Connection, changes: Iterable[Change]) -> None:
        """Executes row changes; `apply_in_memory` is their definition."""
        for change in changes:
            match change:
                case Put(row_key, values):
                    connection.execute(self._put, (*row_key, *values))
                case Update(row_key, columns):
                    sql = _update_statement(self._table.name, tuple(columns), self._key)
                    connection.execute(sql, (*columns.values(), *row_key))
                case DeleteOwner(owner):
                    connection.execute(self._delete_owner, (owner,))

    def rows(self, connection: sqlite3.Connection, owners: Sequence[int]) -> list[Row]:
        """The whole rows that belong to any of the streams, in key order."""
        marks = ", ".join("?" for _ in owners)
        order = ", ".join(self._key)
        sql = f"{self._select} WHERE {self._table.owner} IN ({marks}) ORDER BY {order}"
        return connection.execute(sql, tuple(owners)).fetchall()

    def row(self, connection: sqlite3.Connection, key: Row) -> Row | None:
        """The whole row with this key."""
        where = " AND ".join(f"{name} = ?" for name in self._key)
        row: Row | None = connection.execute(f"{self._select} WHERE {where}", key).fetchone()
        return row

    def all_rows(self, connection: sqlite3.Connection) -> list[Row]:
        """Every row of the table."""
        return connection.execute(self._select).fetchall()

    def fill(self, connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
        """Inserts whole rows into an empty table."""
        connection.executemany(self._put, rows)

    def count(self, connection: sqlite3.Connection) -> int:
        """How many rows the table has."""
        (count,) = connection.execute(f"SELECT count(*) FROM {self._table.name}").fetchone()  # noqa: S608
        return int(count)

"""The SQL of projection tables, made from their Table, and the execution of row changes.

Changes are executed as columns: those of one kind go together in one statement, as long as they
touch different rows than changes of another kind that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from eventstore.changes import Add, Change, ColumnType, Delete, DeleteOwner, Put, Row, Update
from eventstore.postgres.arrays import array_of, integers
from eventstore.postgres.connection import Connection
from eventstore.projection import Projection

__all__ = [
    "ProjectionTable",
    "Statement",
    "create_indexes",
    "create_table",
    "create_views",
    "index_copy",
]

_TYPES: Final[Mapping[ColumnType, str]] = {
    "integer": "bigint",
    "real": "double precision",
    "text": 'text COLLATE "C"',
}
_ARRAYS: Final[Mapping[ColumnType, str]] = {
    "integer": "bigint[]",
    "real": "float8[]",
    "text": "text[]",
}


class Statement(NamedTuple):
    """SQL and what goes into it."""

    sql: str
    parameters: tuple[Any, ...]


Execute = Callable[[str, tuple[Any, ...]], object]


def create_table(projection: Projection, schema: str, name: str | None = None) -> str:
    """The DDL of a projection's table, under another name if one is given."""
    table = projection.table
    columns = [
        f'  "{column}" {_TYPES[kind]} NOT NULL'
        for column, kind in [*table.key.items(), *table.columns.items()]
    ]
    lines = ",\n".join([*columns, f"  PRIMARY KEY ({_names(table.key)})"])
    return f'CREATE TABLE {schema}."{name or table.name}" (\n{lines}\n)'


def create_indexes(projection: Projection, schema: str, name: str | None = None) -> list[str]:
    """The DDL of the indexes that a projection wants on its table, under another name if given."""
    table = projection.table
    return [
        f'CREATE INDEX "{index if name is None else index_copy(name, number)}" '
        f'ON {schema}."{name or table.name}" '
        f"({_names((*columns, *(k for k in table.key if k not in columns)))})"
        for number, (index, columns) in enumerate(table.indexes.items())
    ]


def index_copy(name: str, number: int) -> str:
    """The name of an index on a table of another name: both names together could be too long."""
    return f"{name}_i{number}"


def create_views(projection: Projection) -> list[str]:
    """The DDL of the views over a projection's table, whose names the search path resolves."""
    return [
        f"CREATE OR REPLACE VIEW {name} AS\n{select}"
        for name, select in projection.views.get("postgresql", {}).items()
    ]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class ProjectionTable:
    """One projection and the statements on its table, or on one of its shape with another name."""

    def __init__(self, projection: Projection, schema: str, name: str | None = None) -> None:
        table = projection.table
        self.projection = projection
        self.name = f'{schema}."{name or table.name}"'
        self._kinds = {**table.key, **table.columns}
        self._key = tuple(table.key)
        self._columns = tuple(table.columns)
        self._zeros = table.zeros
        self._owner = f'"{table.owner}"'
        # ruff: noqa: S608 - names come from a Table, and are quoted
        self._select = f"SELECT {_names(self._kinds)} FROM {self.name}"
        self._order = f"ORDER BY {_names(self._key)}"
        self.of_owners = f"{self._select} WHERE {self._owner} = ANY ($1::bigint[]) {self._order}"
        self.of_key = (
            f"{self._select} WHERE {self._owner} IN (SELECT unnest(ARRAY[id, user_stream_id, "
            f"app_stream_id]) FROM {schema}.streams WHERE app_name = $1 AND kind = $2 "
            f"AND user_id = $3 AND session_id = $4 AND live) {self._order}"
        )

    def statements(self, changes: Iterable[Change]) -> list[Statement]:
        """What executes row changes, in order.

        Raises:
            TypeError, ValueError, OverflowError, struct.error: a change does not fit the table.
        """
        batch = _Batch(self)
        for change in changes:
            batch.add(change)
        batch.flush()
        return batch.done

    def apply(self, execute: Execute, changes: Iterable[Change]) -> None:
        """Executes row changes. Raises as `statements`, and what the driver raises."""
        for sql, parameters in self.statements(changes):
            execute(sql, parameters)

    def rows(self, connection: Connection, owners: Sequence[int]) -> list[Row]:
        """The whole rows that belong to any of the streams, in key order."""
        return connection.execute(self.of_owners, (integers(owners),), binary=True).fetchall()

    def row(self, connection: Connection, key: Row) -> Row | None:
        """The whole row with this key."""
        where = " AND ".join(f'"{name}" = ${n}' for n, name in enumerate(self._key, 1))
        parameters = self._fitted(self._key, key)
        return connection.execute(
            f"{self._select} WHERE {where}", parameters, binary=True
        ).fetchone()

    def page(self, connection: Connection, after: Row | None, count: int) -> list[Row]:
        """Up to `count` whole rows behind a key, in key order."""
        where, parameters = "", ()
        if after is not None:
            marks = ", ".join(f"${n}" for n in range(2, len(self._key) + 2))
            where = f"WHERE ({_names(self._key)}) > ({marks})"
            parameters = self._fitted(self._key, after)
        sql = f"{self._select} {where} {self._order} LIMIT $1"
        return connection.execute(sql, (count, *parameters), binary=True).fetchall()

    def indexed_page(
        self,
        connection: Connection,
        index: str,
        equal: Row,
        after: Row | None,
        count: int,
        *,
        descending: bool,
    ) -> list[Row]:
        """Up to `count` whole rows behind `after`, in the order of an index."""
        columns = (*self.projection.table.indexes[index], *self._key)
        first, rest = columns[: len(equal)], columns[len(equal) :]
        where = [f'"{name}" = ${n}' for n, name in enumerate(first, 2)]
        parameters = self._fitted(first, equal)
        if after is not None:
            marks = ", ".join(f"${n}" for n in range(len(first) + 2, len(columns) + 2))
            where.append(f"({_names(rest)}) {'<' if descending else '>'} ({marks})")
            parameters += self._fitted(rest, after)
        order = ", ".join(f'"{name}" {"DESC" if descending else "ASC"}' for name in rest)
        sql = f"{self._select} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT $1"
        return connection.execute(sql, (count, *parameters), binary=True).fetchall()

    def fill(self, execute: Execute, rows: Sequence[Row]) -> None:
        """Inserts whole rows that are not there yet."""
        names = tuple(self._kinds)
        execute(_insert(self.name, names, self._arrays(names)), self._pivot(names, rows))

    def _fitted(self, names: Iterable[str], values: Iterable[Any]) -> tuple[Any, ...]:
        """Values as the types of their columns have them: an int may stand for a float."""
        return tuple(
            float(value) if self._kinds[name] == "real" else value
            for name, value in zip(names, values, strict=True)
        )

    def _arrays(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(_ARRAYS[self._kinds[name]] for name in names)

    def _pivot(self, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> tuple[Any, ...]:
        columns = zip(*rows, strict=True)
        return tuple(
            array_of(self._kinds[name], column) for name, column in zip(names, columns, strict=True)
        )

    def put(self, rows: Mapping[Row, Row]) -> Statement:
        """Writes whole rows, by their keys."""
        names = tuple(self._kinds)
        assignments = ", ".join(f'"{name}" = excluded."{name}"' for name in self._columns)
        insert = _insert(self.name, names, self._arrays(names))
        sql = f"{insert} ON CONFLICT ({_names(self._key)}) DO UPDATE SET {assignments}"
        return Statement(sql, self._pivot(names, ((*key, *row) for key, row in rows.items())))

    def update(self, columns: tuple[str, ...], rows: Mapping[Row, Row]) -> Statement:
        """Changes some columns of rows, by their keys."""
        names = (*self._key, *columns)
        sql = _update(self.name, self._key, columns, self._arrays(names))
        return Statement(sql, self._pivot(names, ((*key, *row) for key, row in rows.items())))

    def increase(self, columns: tuple[str, ...], rows: Mapping[Row, Row]) -> Statement:
        """Adds to some columns of rows, by their keys."""
        names = tuple(self._kinds)
        assignments = ", ".join(f'"{name}" = t."{name}" + excluded."{name}"' for name in columns)
        insert = _insert(f"{self.name} AS t", names, self._arrays(names))
        sql = f"{insert} ON CONFLICT ({_names(self._key)}) DO UPDATE SET {assignments}"
        zeros = dict(zip(self._columns, self._zeros, strict=True))
        whole = (
            (*key, *{**zeros, **dict(zip(columns, row, strict=True))}.values())
            for key, row in rows.items()
        )
        return Statement(sql, self._pivot(names, whole))

    def delete(self, keys: Sequence[Row]) -> Statement:
        """Removes rows by their keys."""
        sql = _delete(self.name, self._key, self._arrays(self._key))
        return Statement(sql, self._pivot(self._key, keys))

    def delete_owners(self, owners: Sequence[int]) -> Statement:
        """Removes the rows of some streams."""
        sql = f"DELETE FROM {self.name} WHERE {self._owner} = ANY ($1::bigint[])"
        return Statement(sql, (integers(owners),))


class _Batch:
    """Changes that wait to be executed together."""

    def __init__(self, table: ProjectionTable) -> None:
        self._table = table
        self.done: list[Statement] = []
        self._clear()

    def _clear(self) -> None:
        self._kinds: dict[Row, object] = {}
        """The kind of change that waits for a row: another kind must come behind it."""
        self._puts: dict[Row, Row] = {}
        self._updates: dict[tuple[str, ...], dict[Row, Row]] = {}
        self._adds: dict[tuple[str, ...], dict[Row, Row]] = {}
        self._deletes: dict[Row, None] = {}
        self._owners: dict[int, None] = {}

    def add(self, change: Change) -> None:
        if isinstance(change, DeleteOwner):
            if self._kinds:
                self.flush()
            self._owners[change.owner] = None
            return
        if self._owners:
            self.flush()
        key, kind = change.key, _kind(change)
        if self._kinds.setdefault(key, kind) != kind:
            self.flush()
            self._kinds[key] = kind
        match change:
            case Put(_, values):
                self._puts[key] = values
            case Update(_, columns):
                self._updates.setdefault(tuple(columns), {})[key] = tuple(columns.values())
            case Add(_, columns):
                waiting = self._adds.setdefault(tuple(columns), {})
                before = waiting.get(key, (0,) * len(columns))
                pairs = zip(before, columns.values(), strict=True)
                waiting[key] = tuple(int(a) + b for a, b in pairs)
            case Delete():
                self._deletes[key] = None

    def flush(self) -> None:
        table = self._table
        if self._puts:
            self.done.append(table.put(self._puts))
        self.done += [table.update(columns, rows) for columns, rows in self._updates.items()]
        self.done += [table.increase(columns, rows) for columns, rows in self._adds.items()]
        if self._deletes:
            self.done.append(table.delete(list(self._deletes)))
        if self._owners:
            self.done.append(table.delete_owners(list(self._owners)))
        self._clear()


def _kind(change: Put | Update | Add | Delete) -> object:
    if isinstance(change, Update | Add):
        return type(change), tuple(change.columns)
    return type(change)


@lru_cache(maxsize=256)
def _insert(name: str, columns: tuple[str, ...], arrays: tuple[str, ...]) -> str:
    marks = ", ".join(f"${n}::{array}" for n, array in enumerate(arrays, 1))
    return f"INSERT INTO {name} ({_names(columns)}) SELECT * FROM unnest({marks})"


@lru_cache(maxsize=256)
def _update(
    name: str, key: tuple[str, ...], columns: tuple[str, ...], arrays: tuple[str, ...]
) -> str:
    marks = ", ".join(f"${n}::{array}" for n, array in enumerate(arrays, 1))
    assignments = ", ".join(f'"{column}" = n."{column}"' for column in columns)
    where = " AND ".join(f't."{column}" = n."{column}"' for column in key)
    return (
        f"UPDATE {name} AS t SET {assignments} "
        f"FROM unnest({marks}) AS n ({_names((*key, *columns))}) WHERE {where}"
    )


@lru_cache(maxsize=256)
def _delete(name: str, key: tuple[str, ...], arrays: tuple[str, ...]) -> str:
    marks = ", ".join(f"${n}::{array}" for n, array in enumerate(arrays, 1))
    where = " AND ".join(f't."{column}" = n."{column}"' for column in key)
    return f"DELETE FROM {name} AS t USING unnest({marks}) AS n ({_names(key)}) WHERE {where}"

"""Row changes: how a projection says what an event does to its table.

A projection is a pure function from a recorded event to changes, as data. Each backend turns
them into SQL inside the append's transaction; rebuild and verify interpret the very same changes
in memory. No clock, no randomness, no I/O: the same log always gives the same rows.

`event.position` may be a placeholder that the backend fills in while it writes (PostgreSQL draws
the position inside the statement): copy it into a column, never compute with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol

from eventstore.events import RecordedEvent

__all__ = [
    "Change",
    "ColumnType",
    "DeleteOwner",
    "InlineProjection",
    "Put",
    "Row",
    "Rows",
    "Table",
    "Update",
    "Value",
    "apply_in_memory",
]

ColumnType = Literal["integer", "real", "text"]
Value = int | float | str
Row = tuple[Value, ...]
Rows = dict[int, dict[Row, Row]]
"""A table in memory: owner to key columns to value columns, in the table's order."""


class Table(NamedTuple):
    """The table a projection owns.

    Every row belongs to one stream, named by the first key column: rows are read by owner, and
    dropped together when the owner goes.
    """

    name: str
    key: Mapping[str, ColumnType]
    columns: Mapping[str, ColumnType]

    @property
    def owner(self) -> str:
        """The column that holds the id of the stream a row belongs to."""
        return next(iter(self.key))


class Put(NamedTuple):
    """Writes a whole row, whether one with this key exists or not."""

    key: Row
    values: Row


class Update(NamedTuple):
    """Changes some columns of the row with this key; nothing when there is none."""

    key: Row
    columns: Mapping[str, Value]


class DeleteOwner(NamedTuple):
    """Removes every row that belongs to a stream."""

    owner: int


Change = Put | Update | DeleteOwner


class InlineProjection(Protocol):
    """A fold whose rows are written in the transaction of the append.

    Raise `version` when `apply` or `table` changes: a database whose rows were written by another
    version asks for a rebuild. `views` holds SELECT statements for people who look with a shell,
    by dialect ("sqlite") and then by view name.
    """

    @property
    def name(self) -> str:
        """A stable name, unique in a database."""

    @property
    def version(self) -> int:
        """The version of the fold and its table."""

    @property
    def table(self) -> Table:
        """The one table the fold writes."""

    @property
    def views(self) -> Mapping[str, Mapping[str, str]]:
        """Dialect to view name to SELECT statement."""

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """What `event` changes in the table."""


def apply_in_memory(table: Table, rows: Rows, changes: Iterable[Change]) -> None:
    """Applies changes to a table held in memory, exactly as a backend does in SQL."""
    for change in changes:
        match change:
            case Put(key, values):
                rows.setdefault(int(key[0]), {})[key] = values
            case Update(key, columns):
                owned = rows.get(int(key[0]), {})
                if (row := owned.get(key)) is not None:
                    owned[key] = tuple(
                        columns.get(name, value)
                        for name, value in zip(table.columns, row, strict=True)
                    )
            case DeleteOwner(owner):
                rows.pop(owner, None)

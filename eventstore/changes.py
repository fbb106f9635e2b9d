"""Row changes: how a projection says what an event does to its table, as data.

Each backend turns them into SQL; rebuild and verify interpret the very same changes in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

__all__ = [
    "Add",
    "Change",
    "ColumnType",
    "Delete",
    "DeleteOwner",
    "Put",
    "Row",
    "Table",
    "Update",
    "Value",
]

ColumnType = Literal["integer", "real", "text"]
Value = int | float | str
Row = tuple[Value, ...]

_ZERO: Final[Mapping[ColumnType, Value]] = {"integer": 0, "real": 0.0, "text": ""}


class Table(NamedTuple):
    """The table a projection owns.

    Every row belongs to one stream, named by the first key column, an integer: rows are read by
    owner, and dropped together when the owner goes. No column is ever NULL.

    `indexes` names columns to find rows by, in order; the backend's answer to equal values is the
    key's order. Every row that is written is written into each of them too.
    """

    name: str
    key: Mapping[str, ColumnType]
    columns: Mapping[str, ColumnType]
    indexes: Mapping[str, tuple[str, ...]] = {}

    @property
    def owner(self) -> str:
        """The column that holds the id of the stream a row belongs to."""
        return next(iter(self.key))

    @property
    def zeros(self) -> Row:
        """The values of a row that nothing was added to yet."""
        return tuple(_ZERO[kind] for kind in self.columns.values())


class Put(NamedTuple):
    """Writes a whole row, whether one with this key exists or not."""

    key: Row
    values: Row


class Update(NamedTuple):
    """Changes some columns of the row with this key; nothing when there is none."""

    key: Row
    columns: Mapping[str, Value]


class Add(NamedTuple):
    """Adds to integer columns of the row with this key, which begins with zeros and empty texts.

    Integers only: a sum of floats depends on how its terms are grouped.
    """

    key: Row
    columns: Mapping[str, int]


class Delete(NamedTuple):
    """Removes the row with this key; nothing when there is none."""

    key: Row


class DeleteOwner(NamedTuple):
    """Removes every row that belongs to a stream."""

    owner: int


Change = Put | Update | Add | Delete | DeleteOwner

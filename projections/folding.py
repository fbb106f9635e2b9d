"""Folding the log: pages of events in, tables out, in bounded memory."""

from __future__ import annotations

import sqlite3
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from eventstore import (
    Add,
    BulkProjection,
    Change,
    Delete,
    DeleteOwner,
    DeltaEvent,
    EventStoreError,
    Projection,
    ProjectionFailed,
    Put,
    RecordedEvent,
    Row,
    Snapshot,
    Stream,
    Table,
    Update,
    changes_of,
)
from eventstore.changes import Value

__all__ = ["DeltaPage", "EventPage", "FoldedTable", "Page", "PartialTable", "failed", "read_page"]

PAGE_EVENTS: Final = 10_000
_PAGE_WHOLE_EVENTS: Final = 2_000
_ROWS_IN_MEMORY: Final = 100_000


class Page(Protocol):
    """Events of the log that follow each other."""

    @property
    def count(self) -> int:
        """How many events it has."""

    @property
    def last(self) -> int:
        """The position it reaches."""

    def changes(self, projection: Projection) -> Iterable[Change]:
        """What its events change in a projection's table, in order.

        Raises:
            ProjectionFailed: the projection raised.
        """


class DeltaPage:
    """A page for projections that need the deltas only."""

    def __init__(self, events: Sequence[DeltaEvent], streams: dict[int, Stream], last: int) -> None:
        self.count = len(events)
        self.last = last
        self._events = events
        self._streams = streams

    def changes(self, projection: Projection) -> Iterator[Change]:
        """The net changes of all events."""
        assert isinstance(projection, BulkProjection)
        try:
            yield from projection.apply_page(self._events, self._streams)
        except EventStoreError:
            raise
        except Exception as error:
            first, last = self._events[0][0], self.last
            reason = f"{type(error).__name__}, at this event or one before position {last + 1}"
            raise ProjectionFailed(projection.name, first, reason) from error


class EventPage:
    """A page of whole events."""

    def __init__(self, events: Sequence[RecordedEvent], last: int) -> None:
        self.count = len(events)
        self.last = last
        self._events = events

    def changes(self, projection: Projection) -> Iterator[Change]:
        """The changes of each event."""
        for event in self._events:
            try:
                yield from changes_of(projection, event)
            except EventStoreError:
                raise
            except Exception as error:
                raise failed(projection, event, error) from error


def failed(projection: Projection, event: RecordedEvent, error: Exception) -> ProjectionFailed:
    """Says where a projection raised what: not the error's text, which may hold content."""
    if isinstance(error, ProjectionFailed):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return ProjectionFailed(projection.name, event.position, f"{type(error).__name__}{where}")


def read_page(projections: Sequence[Projection], after: int, upto: int, snapshot: Snapshot) -> Page:
    """The next events of the log behind `after`, not beyond `upto`, as the projections need them.

    A page without events reaches `upto`.
    """
    if all(isinstance(projection, BulkProjection) for projection in projections):
        deltas, streams = snapshot.read_deltas(after, upto, PAGE_EVENTS)
        return DeltaPage(deltas, dict(streams), deltas[-1][0] if deltas else upto)
    events = snapshot.read_all(after, upto, _PAGE_WHOLE_EVENTS)
    return EventPage(events, events[-1].position if events else upto)


class FoldedTable:
    """A projection's table as a fold makes it: in memory, and beyond a bound in a temporary file.

    What does not fit is spilled to a private database of SQLite's, which has no name and goes with
    the object. Rows in memory overrule the spilled ones with the same key.
    """

    def __init__(self, table: Table, *, rows_in_memory: int = _ROWS_IN_MEMORY) -> None:
        self.table = table
        self._columns = {name: place for place, name in enumerate(table.columns)}
        self._zeros = table.zeros
        self._rows: dict[Value, dict[Row, Row]] = {}
        self._count = 0
        self._rows_in_memory = rows_in_memory
        self._spill: _Spill | None = None

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies row changes, exactly as a backend does in SQL."""
        for change in changes:
            if type(change) is Put:
                key, values = change
                self._set(key, values)
            elif type(change) is Update:
                if (row := self._find(change.key)) is not None:
                    self._set(change.key, self._with(row, change.columns))
            elif type(change) is Add:
                row = self._find(change.key) or self._zeros
                sums = {
                    name: _sum(row[self._columns[name]], n) for name, n in change.columns.items()
                }
                self._set(change.key, self._with(row, sums))
            elif type(change) is Delete:
                self._remove(change.key)
            elif type(change) is DeleteOwner:
                self._remove_owner(change.owner)
            else:
                raise TypeError(f"not a row change: {type(change).__name__}")
        if self._count > self._rows_in_memory:
            self._spill_rows()

    def rows(self) -> Iterator[Row]:
        """Every whole row, in key order. Nothing may be applied meanwhile."""
        if self._spill is not None:
            self._spill_rows()
            yield from self._spill.rows()
            return
        for owner in sorted(self._rows):
            for key, values in sorted(self._rows[owner].items()):
                yield key + values

    def owned_rows(self, owner: int) -> list[Row]:
        """The whole rows of one stream, in key order."""
        found = {} if self._spill is None else self._spill.owned(owner)
        found.update(self._rows.get(owner, {}))
        return [key + values for key, values in sorted(found.items())]

    def row_count(self) -> int:
        """How many rows there are."""
        if self._spill is None:
            return self._count
        self._spill_rows()
        return self._spill.count()

    def close(self) -> None:
        """Removes the temporary file. Nothing works after it."""
        if self._spill is not None:
            self._spill.close()

    def _set(self, key: Row, values: Row) -> None:
        owned = self._rows.get(key[0])
        if owned is None:
            owned = self._rows[key[0]] = {}
        before = len(owned)
        owned[key] = values
        self._count += len(owned) - before

    def _remove(self, key: Row) -> None:
        self._count -= self._rows.get(key[0], {}).pop(key, None) is not None
        if self._spill is not None:
            self._spill.delete(key)

    def _remove_owner(self, owner: int) -> None:
        self._count -= len(self._rows.pop(owner, ()))
        if self._spill is not None:
            self._spill.delete_owner(owner)

    def _find(self, key: Row) -> Row | None:
        row = self._rows.get(key[0], {}).get(key)
        if row is None and self._spill is not None:
            return self._spill.find(key)
        return row

    def _with(self, row: Row, columns: Mapping[str, Value]) -> Row:
        values = list(row)
        for name, value in columns.items():
            values[self._columns[name]] = value
        return tuple(values)

    def _spill_rows(self) -> None:
        if self._spill is None:
            self._spill = _Spill(self.table)
        self._spill.put(
            key + values for owned in self._rows.values() for key, values in sorted(owned.items())
        )
        self._rows.clear()
        self._count = 0


class _Unknown(str):
    """Stands for a value that cannot be known."""

    __slots__ = ()


_UNKNOWN: Final = _Unknown()


def _sum(value: Value, n: int) -> Value:
    return value if value is _UNKNOWN else value + n  # type: ignore[operator]


class PartialTable(FoldedTable):
    """What a fold that begins in the middle of the log knows of a table.

    An update of a row that it has not seen makes one of which it knows those columns. It is held in
    memory whole: the end of a log is short.
    """

    def __init__(self, table: Table) -> None:
        super().__init__(table, rows_in_memory=sys.maxsize)
        self._unknown: Row = (_UNKNOWN,) * len(table.columns)
        self.gone: set[Row] = set()
        """Keys whose rows the fold has removed."""
        self.gone_owners: set[int] = set()
        """Streams whose rows the fold has removed."""

    def known(self, row: Row, stored: Row | None) -> Row | None:
        """A row as it must be stored, what is not known taken from what is stored."""
        if stored is None:
            return None if _UNKNOWN in row else row
        pairs = zip(row, stored, strict=True)
        return tuple(was if value is _UNKNOWN else value for value, was in pairs)

    def _set(self, key: Row, values: Row) -> None:
        self.gone.discard(key)
        super()._set(key, values)

    def _find(self, key: Row) -> Row | None:
        row = super()._find(key)
        if row is None and key not in self.gone and key[0] not in self.gone_owners:
            return self._unknown
        return row

    def _remove(self, key: Row) -> None:
        self.gone.add(key)
        super()._remove(key)

    def _remove_owner(self, owner: int) -> None:
        self.gone_owners.add(owner)
        super()._remove_owner(owner)


class _Spill:
    """Rows in a private temporary database."""

    def __init__(self, table: Table) -> None:
        names = [f"c{place}" for place in range(len(table.key) + len(table.columns))]
        self._width = len(table.key)
        key = ", ".join(names[: self._width])
        # An empty name: SQLite makes a file that has no other user and is gone when it is closed.
        self._connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.execute(
            f"CREATE TABLE rows ({', '.join(names)}, PRIMARY KEY ({key})) WITHOUT ROWID"
        )
        # ruff: noqa: S608 - the names above are all that goes into these statements
        where = " AND ".join(f"{name} = ?" for name in names[: self._width])
        self._put = f"INSERT OR REPLACE INTO rows VALUES ({', '.join('?' for _ in names)})"
        self._find = f"SELECT {', '.join(names[self._width :])} FROM rows WHERE {where}"
        self._delete = f"DELETE FROM rows WHERE {where}"
        self._all = f"SELECT * FROM rows ORDER BY {key}"

    def put(self, rows: Iterable[Row]) -> None:
        self._connection.execute("BEGIN")
        self._connection.executemany(self._put, rows)
        self._connection.execute("COMMIT")

    def find(self, key: Row) -> Row | None:
        row: Row | None = self._connection.execute(self._find, key).fetchone()
        return row

    def owned(self, owner: int) -> dict[Row, Row]:
        rows = self._connection.execute("SELECT * FROM rows WHERE c0 = ?", (owner,)).fetchall()
        return {row[: self._width]: row[self._width :] for row in rows}

    def delete(self, key: Row) -> None:
        self._connection.execute(self._delete, key)

    def delete_owner(self, owner: int) -> None:
        self._connection.execute("DELETE FROM rows WHERE c0 = ?", (owner,))

    def rows(self) -> Iterator[Row]:
        yield from self._connection.execute(self._all)

    def count(self) -> int:
        (count,) = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(count)

    def close(self) -> None:
        self._connection.close()

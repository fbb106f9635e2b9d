"""Folding the log: pages of events in, tables out, in bounded memory."""

from __future__ import annotations

import sqlite3
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from eventstore import (
    Add,
    BulkProjection,
    Change,
    Delete,
    DeleteOwner,
    Deltas,
    EventStore,
    EventStoreError,
    Projection,
    ProjectionFailed,
    Put,
    RecordedEvent,
    Row,
    Snapshot,
    Table,
    Update,
    changes_of,
)
from eventstore._collection import collection_paused, keep_memory
from eventstore.changes import Value

__all__ = [
    "DeltaPage",
    "EventPage",
    "FoldedPage",
    "FoldedTable",
    "Page",
    "PartialTable",
    "failed",
    "fold_pages",
    "read_page",
]

PAGE_EVENTS: Final = 10_000
WHOLE_PAGE_EVENTS: Final = 500
_ROWS_IN_MEMORY: Final = 100_000
_TEXTS_BYTES: Final = 24 * 1024 * 1024
"""What the texts of pages that are in the making take, roughly."""


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

    def __init__(self, deltas: Deltas) -> None:
        self.count = deltas.events
        self.last = deltas.upto
        self._deltas = deltas

    def changes(self, projection: Projection) -> Iterator[Change]:
        """The net changes of all events."""
        assert isinstance(projection, BulkProjection)
        try:
            yield from projection.apply_page(self._deltas)
        except EventStoreError:
            raise
        except Exception as error:
            first = self._deltas.after + 1
            reason = f"{type(error).__name__}, at this event or one before position {self.last + 1}"
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
    """The next events of the log behind `after`, not beyond `upto`, as projections need them."""
    if _are_bulk(projections):
        return DeltaPage(snapshot.read_deltas(after, min(upto, after + PAGE_EVENTS)))
    upto = min(upto, after + WHOLE_PAGE_EVENTS)
    return EventPage(snapshot.read_all(after, upto, upto - after), upto)


class FoldedPage(NamedTuple):
    """How many events a page has, the position it reaches, and its changes, by projection."""

    events: int
    last: int
    changes: Sequence[Sequence[Change]]


def fold_pages(
    store: EventStore, projections: Sequence[Projection], after: int, upto: int
) -> Iterator[FoldedPage]:
    """The pages of the log behind `after`, up to `upto`, folded, in order.

    The next ones are read while one is folded: SQLite needs no interpreter for it. A page of deltas
    is folded where it is read, so that the garbage collector is kept out of both; one of whole
    events by the caller, for what somebody's projection does with them may take long, and others
    wait to read.

    Raises: as `Page.changes`.
    """
    if not _are_bulk(projections):
        yield from _fold_whole_pages(store, projections, after, upto)
        return
    bounds = [*range(after, upto, PAGE_EVENTS), upto]
    pages = store.snapshots(partial(_fold, projections, *pair) for pair in pairwise(bounds))
    keep_memory(_TEXTS_BYTES)
    for low, high in pairwise(bounds):
        # Of all pages that are in the making: the collector comes once between two of them.
        with collection_paused():
            page = next(pages)
        yield page
        # Large deltas: no more than the last time are read at once.
        count, reached = page.last - low, page.last
        while reached < high:
            rest = store.snapshot(partial(_fold, projections, reached, min(high, reached + count)))
            yield rest
            reached = rest.last


def _fold_whole_pages(
    store: EventStore, projections: Sequence[Projection], after: int, upto: int
) -> Iterator[FoldedPage]:
    bounds = [*range(after, upto, WHOLE_PAGE_EVENTS), upto]
    pages = store.snapshots(partial(read_page, projections, *pair) for pair in pairwise(bounds))
    for page in pages:
        yield _folded(projections, page)


def _fold(projections: Sequence[Projection], after: int, upto: int, snapshot: Any) -> FoldedPage:
    return _folded(projections, read_page(projections, after, upto, snapshot))


def _folded(projections: Sequence[Projection], page: Page) -> FoldedPage:
    changes = [list(page.changes(projection)) for projection in projections]
    return FoldedPage(page.count, page.last, changes)


def _are_bulk(projections: Sequence[Projection]) -> bool:
    return all(isinstance(projection, BulkProjection) for projection in projections)


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
                row = self._find_or_zeros(change.key)
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

    def _find_or_zeros(self, key: Row) -> Row:
        return self._find(key) or self._zeros

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
        self._updated: set[Row] = set()
        """Keys that were updated and nothing else: whether they have a row is not known."""

    def known(self, row: Row, stored: Row | None) -> Row | None:
        """A row as it must be stored, what is not known taken from what is stored."""
        if stored is None:
            unsure = _UNKNOWN in row or row[: len(self.table.key)] in self._updated
            return None if unsure else row
        pairs = zip(row, stored, strict=True)
        return tuple(was if value is _UNKNOWN else value for value, was in pairs)

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies row changes, as far as it can be known what they make."""
        for change in changes:
            if type(change) is Update:
                if self._find(change.key) is self._unknown:
                    self._updated.add(change.key)
            elif type(change) is Put:
                self._updated.discard(change.key)
            super().apply((change,))

    def _set(self, key: Row, values: Row) -> None:
        self.gone.discard(key)
        super()._set(key, values)

    def _find(self, key: Row) -> Row | None:
        row = super()._find(key)
        if row is None and key not in self.gone and key[0] not in self.gone_owners:
            return self._unknown
        return row

    def _find_or_zeros(self, key: Row) -> Row:
        if key in self._updated:
            # Of what was updated here either that is left, or the zeros of a row that is new.
            self._updated.discard(key)
            return self._unknown
        return super()._find_or_zeros(key)

    def _remove(self, key: Row) -> None:
        self.gone.add(key)
        self._updated.discard(key)
        super()._remove(key)

    def _remove_owner(self, owner: int) -> None:
        self.gone_owners.add(owner)
        self._updated = {key for key in self._updated if key[0] != owner}
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

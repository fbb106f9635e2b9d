"""Rebuild: make projection tables anew from the log while others write.

A shadow of each table is filled from a fold of the log, in small transactions between which
writers go on with the live tables. Then the shadow catches up with what was appended meanwhile,
and one short transaction applies the rest and puts it in the live table's place. A crash at any
point leaves the live tables as they were; the next run clears the shadow away and begins anew.

The rows of one app, user or session are repaired in place instead: folded from the events of that
scope alone, and written stream by stream where they differ, each in a transaction that first
catches up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from typing import Final, NamedTuple, TypeVar

from eventstore import (
    Change,
    Delete,
    EventStore,
    MaintenanceTransaction,
    Projection,
    ProjectionMissing,
    Put,
    RecordedEvent,
    Row,
    Snapshot,
    Stream,
    StreamKey,
    StreamKind,
    StreamNotFound,
)
from eventstore.events import check_identifiers
from eventstore.records import table_before
from projections.folding import WHOLE_PAGE_EVENTS, EventPage, FoldedTable, fold_pages, read_page

__all__ = ["Progress", "Rebuilt", "Scope", "clear_away", "rebuild", "rebuild_scope"]

_ROWS_PER_TRANSACTION: Final = 2_000
_STREAMS_PER_TRANSACTION: Final = 20
"""So that no writer waits long behind one step."""
_EVENTS_PER_CUT_OVER: Final = WHOLE_PAGE_EVENTS
"""How little may be left to apply while all writers wait: in one page, or they would wait again."""

T = TypeVar("T")

Progress = Callable[[int, int, int], None]
"""Called now and then with the events folded so far, the position reached, and the head."""


class Rebuilt(NamedTuple):
    """What a rebuild did to one projection.

    `changed` counts the rows that were added, removed or got other values (or would have been),
    where a rebuild writes only those: None when the whole table was made anew.
    """

    projection: str
    events: int
    rows: int
    changed: int | None = None


def rebuild(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    progress: Progress = lambda *_: None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Rebuilt]:
    """Makes the tables of projections anew from the whole log, while others append.

    `inline` ones are kept up by every append from then on, `asynchronous` ones have a checkpoint
    where their rows stand. Blocks. Ended at any point, by an error or a signal, it has changed none
    of the live tables. Memory is bounded, whatever the size of the log and the tables. Between two
    steps, up to the one that puts the tables in place, `stopping` is asked whether to give it up.

    Raises:
        InterruptedError: `stopping` said so.
        MaintenanceRunning: another rebuild, verification or vacuum is under way.
        CorruptEvent, UnknownEvent: the log cannot be folded.
        ProjectionFailed: a projection raised.
        StorageFailed, StoreBusy: see eventstore.errors.
    """
    projections = (*inline, *asynchronous)
    with store.maintaining("rebuild"), ExitStack() as stack:
        before = store.snapshot(lambda s: s.registered())
        for projection in projections:
            clear_away(store, projection.table.name)
            store.transact(partial(_make_shadow, projection), beside_writers=True)
        folded = [stack.enter_context(closing(FoldedTable(p.table))) for p in projections]
        head = store.snapshot(lambda s: s.head())
        events = 0
        go_on = partial(_go_on, stopping)
        for page in fold_pages(store, projections, 0, head):
            for table, changes in zip(folded, page.changes, strict=True):
                table.apply(changes)
            events += page.events
            go_on()
            progress(events, page.last, head)
        for projection, table in zip(projections, folded, strict=True):
            for rows in _batches(table.rows(), _ROWS_PER_TRANSACTION):
                go_on()
                progress(events, head, head)
                store.transact(partial(_fill_shadow, projection, rows), beside_writers=True)
        counts = [table.row_count() for table in folded]
        events += _catch_up_and_cut_over(store, inline, asynchronous, head, go_on)
        for projection in projections:
            clear_away(store, projection.table.name)
            if (table_name := table_before(projection, before)) is not None:
                clear_away(store, table_name)
    return [
        Rebuilt(projection.name, events, count)
        for projection, count in zip(projections, counts, strict=True)
    ]


def _go_on(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise InterruptedError


def _catch_up_and_cut_over(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    after: int,
    go_on: Callable[[], None],
) -> int:
    """Brings the shadows from `after` to the head and into place; returns how many events it was.

    While writers go on, a page is read and folded without them noticing, and its changes are
    written in steps. Only the last few events are folded while they wait.
    """
    projections = (*inline, *asynchronous)
    events = 0

    def cut_over(transaction: MaintenanceTransaction) -> bool:
        nonlocal events
        head = transaction.head()
        page = read_page(projections, after, min(head, after + _EVENTS_PER_CUT_OVER), transaction)
        if page.last < head:
            return False
        # In the order of the tables that are in use, in which readers lock them.
        tables = {name: row.table for name, row in transaction.registered().items()}
        for projection in sorted(projections, key=lambda p: tables.get(p.name, p.table.name)):
            transaction.apply_to_shadow(projection, page.changes(projection))
            transaction.cut_over(projection, None if projection in inline else head)
        events += page.count
        return True

    while True:
        go_on()
        head = store.snapshot(lambda s: s.head())
        if head - after <= _EVENTS_PER_CUT_OVER and store.transact(cut_over):
            return events
        if head <= after:
            continue  # beside writers a server's head may go back, and comes again
        page = store.snapshot(partial(read_page, projections, after, head))
        for projection in projections:
            for changes in _batches(page.changes(projection), _ROWS_PER_TRANSACTION):
                store.transact(partial(_apply_to_shadow, projection, changes), beside_writers=True)
        events, after = events + page.count, page.last


def clear_away(store: EventStore, table: str) -> None:
    """Removes the shadow and the retired table of a table's name, some rows at a time."""
    step = partial(_clear_away, table)
    while store.transact(step, beside_writers=True):
        pass


class Scope(NamedTuple):
    """An app, or one user of it, or one session of that user."""

    app_name: str
    user_id: str | None = None
    session_id: str | None = None

    def has(self, stream: Stream) -> bool:
        """Whether a stream belongs to it."""
        kind, app_name, user_id, session_id = stream.key
        return (
            app_name == self.app_name
            and (self.user_id is None or (kind != StreamKind.APP and user_id == self.user_id))
            and (
                self.session_id is None
                or (kind == StreamKind.SESSION and session_id == self.session_id)
            )
        )


class _Repair:
    """Projections whose rows stand at the same position, folded from the events of a scope."""

    def __init__(self, projections: Sequence[Projection], *, asynchronous: bool) -> None:
        self.projections = projections
        self.tables = [FoldedTable(projection.table) for projection in projections]
        self.events = 0
        self.rows = [0] * len(projections)
        self.changed = [0] * len(projections)
        self.at = 0
        self._asynchronous = asynchronous

    def target(self, snapshot: Snapshot) -> int:
        """The position the stored rows stand at."""
        if self._asynchronous:
            row = snapshot.registered().get(self.projections[0].name)
            return 0 if row is None else max(row.checkpoint or 0, 0)
        return snapshot.head()

    def fold(self, events: Sequence[RecordedEvent], upto: int) -> None:
        """Folds events behind those of before; the fold then stands at `upto`."""
        page = EventPage(events, upto)
        for projection, table in zip(self.projections, self.tables, strict=True):
            table.apply(page.changes(projection))
        self.events += len(events)
        self.at = upto

    def catch_up(self, scope: Scope, snapshot: Snapshot) -> None:
        """Folds what was appended since."""
        target = self.target(snapshot)
        while self.at < target:
            events = snapshot.read_all(self.at, target, _EVENTS_PER_CUT_OVER)
            reached = events[-1].position if events else target
            self.fold([event for event in events if scope.has(event.stream)], reached)

    def write(
        self, scope: Scope, owners: Sequence[int], transaction: MaintenanceTransaction
    ) -> None:
        """Puts the rows of some streams right."""
        if self._asynchronous:
            # Else who follows the log writes rows between the two looks, at it and at them.
            transaction.lock_checkpoint(self.projections[0])
        for projection, changes in self.compare(scope, owners, transaction):
            transaction.apply(projection, changes)

    def compare(
        self, scope: Scope, owners: Sequence[int], snapshot: Snapshot
    ) -> list[tuple[Projection, list[Change]]]:
        """Catches up with the log, then counts and returns what puts the rows right."""
        self.catch_up(scope, snapshot)
        found = []
        for place, (projection, table) in enumerate(
            zip(self.projections, self.tables, strict=True)
        ):
            width = len(projection.table.key)
            stored = {row[:width]: row for row in snapshot.owned_rows(projection, owners)}
            right = {row[:width]: row for owner in owners for row in table.owned_rows(owner)}
            changes: list[Change] = [Delete(key) for key in stored.keys() - right.keys()]
            changes += [
                Put(key, row[width:]) for key, row in right.items() if stored.get(key) != row
            ]
            self.rows[place] += len(right)
            self.changed[place] += len(changes)
            found.append((projection, changes))
        return found


def rebuild_scope(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    scope: Scope,
    *,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Rebuilt]:
    """Puts right the rows that belong to one app, user or session, while others append.

    Only the events of that scope are read. Rows are written where they differ, those of some
    streams in one transaction: ended at any point, some streams are right and the others as they
    were. A session's rows are its own keys; those of its user belong to the user. With `dry_run`
    nothing is written, only counted. Blocks.

    Raises: as `rebuild`, and
        StreamNotFound: nothing of that name is in the log.
        ProjectionMissing: a projection has no rows that could be put right: not built, by another
            version of its code, or in a table that is missing or was changed.
        InvalidInput: nothing has such a name or id.
    """
    check_identifiers(**scope._asdict())
    with store.maintaining("rebuild"), ExitStack() as stack:
        repairs = [_Repair(inline, asynchronous=False)] if inline else []
        repairs += [_Repair((projection,), asynchronous=True) for projection in asynchronous]
        for table in (table for repair in repairs for table in repair.tables):
            stack.enter_context(closing(table))
        store.snapshot(partial(_require_tables, inline, asynchronous))
        streams, positions, head = store.snapshot(partial(_events_of, scope))
        if not streams:
            raise StreamNotFound(_name(scope), "See which there are: adk-eventstore sessions list")
        for repair in repairs:
            upto = min(head, store.snapshot(repair.target))
            within = positions[: bisect_right(positions, upto)]
            for batch in _batches(within, _EVENTS_PER_CUT_OVER):
                events = store.snapshot(partial(_read_positions, batch))
                repair.fold(events, batch[-1])
                progress(repair.events, batch[-1], head)
            repair.at = upto
            for owners in _batches((stream.id for stream in streams), _STREAMS_PER_TRANSACTION):
                # So that little is left to be folded while writers wait.
                store.snapshot(partial(repair.catch_up, scope))
                if dry_run:
                    store.snapshot(partial(repair.compare, scope, owners), whole=True)
                else:
                    store.transact(partial(repair.write, scope, owners))
    return [
        Rebuilt(projection.name, repair.events, rows, changed)
        for repair in repairs
        for projection, rows, changed in zip(
            repair.projections, repair.rows, repair.changed, strict=True
        )
    ]


def _require_tables(
    inline: Sequence[Projection], asynchronous: Sequence[Projection], snapshot: Snapshot
) -> None:
    registered = snapshot.registered()
    for projection in (*inline, *asynchronous):
        row = registered.get(projection.name)
        if row is None or (row.checkpoint or 0) < 0:
            reason = "it has not been built"
        elif row.version != projection.version:
            reason = f"the database has version {row.version}, this process {projection.version}"
        elif (row.checkpoint is None) != (projection in inline):
            reason = "the database keeps it up the other way: inline or behind the appends"
        elif snapshot.table_page(projection, None, 1) is None:
            reason = "its table is missing, or lacks a column"
        else:
            continue
        remedy = f"Make it anew as a whole: rebuild-projections --projection {projection.name}"
        raise ProjectionMissing(projection.name, reason, remedy)


def _events_of(scope: Scope, snapshot: Snapshot) -> tuple[Sequence[Stream], Sequence[int], int]:
    """The streams of a scope, the positions of their events, and the head."""
    if scope.session_id is not None:
        key = StreamKey(StreamKind.SESSION, scope.app_name, scope.user_id or "", scope.session_id)
        stream = snapshot.find_stream(key)
        streams: Sequence[Stream] = [] if stream is None else [stream]
    else:
        streams = [s for s in snapshot.streams_of_app(scope.app_name) if scope.has(s)]
    return streams, snapshot.positions_of(streams), snapshot.head()


def _read_positions(positions: Sequence[int], snapshot: Snapshot) -> Sequence[RecordedEvent]:
    return snapshot.read_positions(positions)


def _name(scope: Scope) -> str:
    return ", ".join(
        f"{what} {value!r}"
        for what, value in zip(("app", "user", "session"), scope, strict=True)
        if value is not None
    )


def _make_shadow(projection: Projection, transaction: MaintenanceTransaction) -> None:
    transaction.make_shadow(projection)


def _clear_away(table: str, transaction: MaintenanceTransaction) -> bool:
    return transaction.clear_away(table, _ROWS_PER_TRANSACTION)


def _fill_shadow(
    projection: Projection, rows: Sequence[Row], transaction: MaintenanceTransaction
) -> None:
    transaction.fill_shadow(projection, rows)


def _apply_to_shadow(
    projection: Projection, changes: Sequence[Change], transaction: MaintenanceTransaction
) -> None:
    transaction.apply_to_shadow(projection, changes)


def _batches(items: Iterable[T], count: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, count)):
        yield batch

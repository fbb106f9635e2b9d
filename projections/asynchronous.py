"""Asynchronous projections: followed from a checkpoint, behind the appends.

The checkpoint moves in the transaction that writes the rows, from where the run believes it to be:
so every event takes effect once, whoever runs the projection, how often, and from how many
processes. A projection that was never built, or by another version of its code, is built first as a
rebuild builds it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

from eventstore import (
    Change,
    EventStore,
    EventStoreError,
    EventType,
    MaintenanceRunning,
    MaintenanceTransaction,
    Projection,
    ProjectionFailed,
    ProjectionMissing,
    RecordedEvent,
    Registered,
    SchemaAltered,
    Snapshot,
    StoreClosed,
    changes_of,
)
from eventstore.projection import is_table_name
from projections.folding import failed
from projections.rebuild import Progress, clear_away, rebuild

__all__ = [
    "Follower",
    "Status",
    "catch_up",
    "drop",
    "require_running",
    "run",
    "status",
    "status_in",
]

_EVENTS_PER_TRANSACTION: Final = 200
_NEVER_BUILT: Final = -1
"""The checkpoint of a projection that failed before its first rows were there."""
_POLL_S: Final = 0.5

_log = logging.getLogger(__name__)


class Status(NamedTuple):
    """How far a projection has come.

    `lag` is the number of positions between its checkpoint and the head, 0 for an inline one.
    `failed_at` and `failure` name the event that stopped it.
    """

    projection: str
    version: int
    inline: bool
    checkpoint: int
    lag: int
    failed_at: int | None
    failure: str | None


def status(store: EventStore) -> list[Status]:
    """Every projection the database keeps rows of. Blocks for one read."""
    return store.snapshot(status_in)


def status_in(snapshot: Snapshot) -> list[Status]:
    """Every projection the database keeps rows of, as a snapshot has it."""
    head = snapshot.head()
    return [_status(name, row, head) for name, row in snapshot.registered().items()]


def _status(name: str, row: Registered, head: int) -> Status:
    checkpoint = head if row.checkpoint is None else max(row.checkpoint, 0)
    return Status(
        name,
        row.version,
        row.checkpoint is None,
        checkpoint,
        max(head - checkpoint, 0),  # beside writers a server's head may go back
        row.failed_at,
        row.failure,
    )


def run(
    store: EventStore,
    projections: Sequence[Projection],
    *,
    retry: bool = True,
    build: bool = True,
    stopping: Callable[[], bool] = lambda: False,
    progress: Progress = lambda *_: None,
) -> list[Status]:
    """Brings asynchronous projections up to the head, one after the other. Blocks.

    One that failed is stopped at the event that it cannot fold, with the rows from before it, and
    the others go on; `retry` says whether one that was stopped before is tried again, and `build`
    whether one that the database does not have is built. Ended at any point, what was done stays
    done.

    Raises:
        MaintenanceRunning: a projection has to be built, and another rebuild is under way.
        ProjectionMissing: the database keeps one up inline, or has a newer version of one (passed
            over without `retry`).
        CorruptEvent, UnknownEvent: the log is damaged, or was written by a newer version.
        StorageFailed, StoreBusy: see eventstore.errors.
    """
    for projection in projections:
        registered = store.snapshot(lambda s: s.registered()).get(projection.name)
        if registered is None and not build:
            continue
        if registered is not None and registered.version > projection.version:
            if not retry:
                continue
            # Building it would throw away what a newer process serves, and that one build it anew.
            raise ProjectionMissing(
                projection.name,
                f"the database has version {registered.version}, this process {projection.version}",
                "Upgrade the package that provides it, or to go back: "
                f"adk-eventstore projections drop {projection.name}",
            )
        if registered is not None and registered.version == projection.version:
            if registered.failed_at is not None and not retry:
                continue
            if registered.checkpoint is None:
                raise ProjectionMissing(
                    projection.name,
                    "the database keeps it up inline",
                    "Leave it out of those that follow the log.",
                )
        if _built(registered, projection) or _build(store, projection, stopping, progress):
            events = 0
            while not stopping() and (step := _step(store, projection)).more:
                events += step.events
                progress(events, step.checkpoint, step.head)
    return [each for each in status(store) if each.projection in {p.name for p in projections}]


def catch_up(projection: Projection, transaction: MaintenanceTransaction) -> None:
    """Brings a built projection to the head inside a transaction of the caller's.

    Raises:
        ProjectionMissing: it is not built, or stopped.
        ProjectionFailed: it cannot fold an event.
    """
    registered = transaction.registered().get(projection.name)
    if not _built(registered, projection) or (registered and registered.failed_at is not None):
        raise _stopped(projection.name, registered and registered.failed_at)
    while (following := _next_events(projection, transaction))[1]:
        checkpoint, events = following
        changes: list[Change] = []
        for event in events:
            try:
                changes += _changes(projection, event)
            except Exception as error:
                raise failed(projection, event, error) from error
        _write(projection, checkpoint, events[-1].position, changes, None, transaction)


def require_running(found: Iterable[Status]) -> None:
    """Asserts that none of some projections is stopped, before anything is removed.

    Raises:
        ProjectionMissing: one is.
    """
    for each in found:
        if each.failed_at is not None:
            raise _stopped(each.projection, each.failed_at)


def _stopped(name: str, failed_at: int | None) -> ProjectionMissing:
    where = "" if failed_at is None else f" at position {failed_at}"
    return ProjectionMissing(
        name,
        f"it is stopped{where}, and what it has not folded must not be removed",
        f"Mend it, or: adk-eventstore projections drop {name}",
    )


def _changes(projection: Projection, event: RecordedEvent) -> Iterable[Change]:
    # The rows have what an event carries over: it was folded when it happened.
    return () if event.type == EventType.CARRIED_OVER else changes_of(projection, event)


def _built(registered: Registered | None, projection: Projection) -> bool:
    return (
        registered is not None
        and registered.version == projection.version
        and registered.checkpoint != _NEVER_BUILT
    )


def _build(
    store: EventStore, projection: Projection, stopping: Callable[[], bool], progress: Progress
) -> bool:
    """Builds a projection from the whole log; returns False when it cannot fold it, or is to stop.

    Stopped, it has done nothing: the next one begins anew.
    """
    try:
        rebuild(store, (), (projection,), progress=progress, stopping=stopping)
    except InterruptedError:
        return False
    except ProjectionFailed as error:
        store.transact(partial(_stop, projection, error), beside_writers=True)
        return False
    return True


def _stop(
    projection: Projection, error: ProjectionFailed, transaction: MaintenanceTransaction
) -> None:
    transaction.register(projection, _NEVER_BUILT)
    transaction.move_checkpoint(
        projection, _NEVER_BUILT, _NEVER_BUILT, error.position, error.reason
    )


class _Step(NamedTuple):
    """What one step did, and whether there may be more to do."""

    more: bool
    events: int = 0
    checkpoint: int = 0
    head: int = 0


def _step(store: EventStore, projection: Projection) -> _Step:
    """Folds the next events and moves the checkpoint."""
    (checkpoint, events), head = store.snapshot(lambda s: (_next_events(projection, s), s.head()))
    if not events:
        return _Step(more=False)
    changes: list[Change] = []
    after, failure = checkpoint, None
    for event in events:
        try:
            changes += _changes(projection, event)
        except Exception as error:
            failure = failed(projection, event, error)
            break
        after = event.position
    try:
        write = partial(_write, projection, checkpoint, after, changes, failure)
        moved = store.transact(write, beside_writers=True)
        # Where somebody else did these events, what comes behind them is still to be done.
        more = failure is None or not moved
    except (ProjectionFailed, SchemaAltered) as error:
        if store.snapshot(lambda s: s.table_page(projection, None, 1)) is None:
            raise ProjectionMissing(
                projection.name,
                "its table is not as it is defined",
                "Raise its version; or make it anew: rebuild-projections --projection "
                f"{projection.name}",
            ) from None
        if isinstance(error, SchemaAltered):
            raise
        folded = [event for event in events if event.position <= after]
        more = _one_by_one(store, projection, checkpoint, folded)
    return _Step(more, len(events), after, head)


def _one_by_one(
    store: EventStore, projection: Projection, checkpoint: int, events: Sequence[RecordedEvent]
) -> bool:
    """One of the changes cannot be stored: writes those of each event by itself, up to it.

    Returns whether there may be more to do.
    """
    for event in events:
        changes = list(_changes(projection, event))
        try:
            write = partial(_write, projection, checkpoint, event.position, changes, None)
            if not store.transact(write, beside_writers=True):
                return True
        except ProjectionFailed as error:
            failure = ProjectionFailed(projection.name, event.position, error.reason)
            stop = partial(_write, projection, checkpoint, checkpoint, [], failure)
            store.transact(stop, beside_writers=True)
            return False
        checkpoint = event.position
    return True


def _next_events(projection: Projection, snapshot: Snapshot) -> tuple[int, Sequence[RecordedEvent]]:
    registered = snapshot.registered().get(projection.name)
    if not _built(registered, projection):
        return 0, ()  # dropped, or built by another version meanwhile
    assert registered is not None
    assert registered.checkpoint is not None
    checkpoint = registered.checkpoint
    return checkpoint, snapshot.read_all(checkpoint, snapshot.head(), _EVENTS_PER_TRANSACTION)


def _write(
    projection: Projection,
    before: int,
    after: int,
    changes: Sequence[Change],
    failure: ProjectionFailed | None,
    transaction: MaintenanceTransaction,
) -> bool:
    why = (None, None) if failure is None else (failure.position, failure.reason)
    if not transaction.move_checkpoint(projection, before, after, *why):
        return False  # somebody else did these events
    transaction.apply(projection, changes)
    return True


def drop(store: EventStore, name: str, views: Iterable[str] = ()) -> None:
    """Forgets a projection and removes its table, some rows at a time. Blocks.

    `views` are those of its views that are to go with it. Ended at any point, the projection is as
    it was, or forgotten and what is left of its table is out of use.

    Raises:
        ProjectionMissing: the database keeps no rows of it.
        MaintenanceRunning: a rebuild, a verification or a vacuum is under way.
        SchemaAltered: its table is noted as one of the log's, which is not dropped.
    """
    with store.maintaining("drop a projection"):
        registered = store.snapshot(lambda s: s.registered()).get(name)
        if registered is None:
            raise ProjectionMissing(
                name, "the database keeps no rows of it", "See: adk-eventstore projections status"
            )
        if not is_table_name(registered.table):
            raise SchemaAltered(
                store.path,
                f"notes {registered.table!r} as the table of {name}, which is not a projection's",
                "Somebody has changed it: adk-eventstore verify --fix, then try again.",
            )
        clear_away(store, registered.table)
        store.transact(lambda t: t.drop(name, views))
        clear_away(store, registered.table)


class Follower:
    """A background thread that keeps asynchronous projections close behind the head.

    `following` says which, anew in each round. Those that are not `named` are built by somebody
    else, and what is dropped must not be built again.
    """

    def __init__(
        self,
        store: EventStore,
        following: Callable[[], Sequence[Projection]],
        named: Collection[str],
    ) -> None:
        self._store = store
        self._following = following
        self._named = named
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._working = threading.Lock()
        self._pauses: set[object] = set()

    def ensure_running(self) -> None:
        """Starts the thread where it is not running: at first, and in a forked child."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._stopping.clear()
            self._working = threading.Lock()  # a fork may have copied it while it was held
            self._pauses = set()
            self._thread = threading.Thread(
                target=self._follow, name="eventstore-follower", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step it is at; the next run goes on from there.

        A build that it is at is given up, unless its table is in place, and begins anew.
        """
        self._stopping.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the thread from working while it lasts: maintenance must not meet it building.

        Waits for the step that the thread is at.
        """
        if self._thread is None or not self._thread.is_alive():
            yield
            return
        pauses, pause = self._pauses, object()
        pauses.add(pause)
        try:
            with self._working:
                yield
        finally:
            pauses.discard(pause)

    def _is_to_rest(self) -> bool:
        return bool(self._pauses) or self._stopping.is_set()

    def _follow(self) -> None:
        said: dict[str, str] = {}
        while not self._stopping.is_set():
            name = ""
            try:
                for projection in self._following():
                    name = projection.name
                    self._follow_one(projection, said)
            except StoreClosed:
                return
            except EventStoreError as error:
                _say(said, name, error)
            self._stopping.wait(_POLL_S)

    def _follow_one(self, projection: Projection, said: dict[str, str]) -> None:
        try:
            with self._working:
                if not self._is_to_rest():
                    run(
                        self._store,
                        (projection,),
                        retry=False,
                        build=projection.name in self._named,
                        stopping=self._is_to_rest,
                    )
        except MaintenanceRunning:
            pass  # tried again in a moment
        except StoreClosed:
            raise
        except EventStoreError as error:
            _say(said, projection.name, error)


def _say(said: dict[str, str], name: str, error: EventStoreError) -> None:
    """Once, and not again before it is something else."""
    if said.get(name) != str(error):
        _log.warning("projection %s waits: %s", name, error)
    said[name] = str(error)

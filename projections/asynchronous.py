"""Asynchronous projections: followed from a checkpoint, behind the appends.

The checkpoint moves in the transaction that writes the rows, from where the run believes it to be:
so every event takes effect once, whoever runs the projection, how often, and from how many
processes. A projection that was never built, or by another version of its code, is built first as a
rebuild builds it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
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
    Snapshot,
    StoreClosed,
    changes_of,
)
from projections.folding import failed
from projections.rebuild import rebuild

__all__ = ["Follower", "Status", "catch_up", "run", "status"]

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

    def function(snapshot: Snapshot) -> list[Status]:
        head = snapshot.head()
        return [_status(name, row, head) for name, row in snapshot.registered().items()]

    return store.snapshot(function)


def _status(name: str, row: Registered, head: int) -> Status:
    checkpoint = head if row.checkpoint is None else max(row.checkpoint, 0)
    return Status(
        name,
        row.version,
        row.checkpoint is None,
        checkpoint,
        head - checkpoint,
        row.failed_at,
        row.failure,
    )


def run(
    store: EventStore,
    projections: Sequence[Projection],
    *,
    retry: bool = True,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Status]:
    """Brings asynchronous projections up to the head, one after the other. Blocks.

    One that failed is stopped at the event that it cannot fold, with the rows from before it, and
    the others go on; `retry` says whether one that was stopped before is tried again. Ended at any
    point, what was done stays done.

    Raises:
        MaintenanceRunning: a projection has to be built, and another rebuild is under way.
        StorageFailed, StoreBusy: see eventstore.errors.
    """
    for projection in projections:
        registered = store.snapshot(lambda s: s.registered()).get(projection.name)
        if registered is not None and registered.version == projection.version:
            if registered.failed_at is not None and not retry:
                continue
            if registered.checkpoint is None:
                raise ProjectionFailed(projection.name, 0, "the database keeps it up inline")
        if _built(registered, projection) or _build(store, projection):
            while not stopping() and _step(store, projection):
                pass
    return [each for each in status(store) if each.projection in {p.name for p in projections}]


def catch_up(projection: Projection, transaction: MaintenanceTransaction) -> None:
    """Brings a built projection to the head inside a transaction of the caller's.

    Raises:
        ProjectionMissing: it is not built, or stopped.
        ProjectionFailed: it cannot fold an event.
    """
    registered = transaction.registered().get(projection.name)
    if not _built(registered, projection) or (registered and registered.failed_at is not None):
        where = "" if registered is None else f" at position {registered.failed_at}"
        raise ProjectionMissing(
            projection.name,
            f"it is stopped{where}, and what it has not folded must not be removed",
            f"Mend it, or: adk-eventstore projections drop {projection.name}",
        )
    while (following := _next_events(projection, transaction))[1]:
        checkpoint, events = following
        changes: list[Change] = []
        for event in events:
            try:
                changes += _changes(projection, event)
            except Exception as error:
                raise failed(projection, event, error) from error
        _write(projection, checkpoint, events[-1].position, changes, None, transaction)


def _changes(projection: Projection, event: RecordedEvent) -> Iterable[Change]:
    # The rows have what an event carries over: it was folded when it happened.
    return () if event.type == EventType.CARRIED_OVER else changes_of(projection, event)


def _built(registered: Registered | None, projection: Projection) -> bool:
    return (
        registered is not None
        and registered.version == projection.version
        and registered.checkpoint != _NEVER_BUILT
    )


def _build(store: EventStore, projection: Projection) -> bool:
    """Builds a projection from the whole log; returns False when it cannot fold it."""
    try:
        rebuild(store, (), (projection,))
    except ProjectionFailed as error:
        store.transact(partial(_stop, projection, error))
        return False
    return True


def _stop(
    projection: Projection, error: ProjectionFailed, transaction: MaintenanceTransaction
) -> None:
    transaction.register(projection, _NEVER_BUILT)
    transaction.move_checkpoint(
        projection, _NEVER_BUILT, _NEVER_BUILT, error.position, error.reason
    )


def _step(store: EventStore, projection: Projection) -> bool:
    """Folds the next events and moves the checkpoint; returns whether there may be more."""
    checkpoint, events = store.snapshot(partial(_next_events, projection))
    if not events:
        return False
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
        moved = store.transact(partial(_write, projection, checkpoint, after, changes, failure))
    except ProjectionFailed as error:
        if len(events) == 1:
            store.transact(partial(_write, projection, checkpoint, checkpoint, [], error))
            return False
        moved = _one_by_one(store, projection, checkpoint, events)
    return moved and failure is None


def _one_by_one(
    store: EventStore, projection: Projection, checkpoint: int, events: Sequence[RecordedEvent]
) -> bool:
    """One of the changes cannot be stored: writes those of each event by itself, up to it."""
    for event in events:
        changes = list(_changes(projection, event))
        try:
            write = partial(_write, projection, checkpoint, event.position, changes, None)
            if not store.transact(write):
                return False
        except ProjectionFailed as error:
            failure = ProjectionFailed(projection.name, event.position, error.reason)
            store.transact(partial(_write, projection, checkpoint, checkpoint, [], failure))
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


class Follower:
    """A background thread that keeps asynchronous projections close behind the head."""

    def __init__(self, store: EventStore, projections: Sequence[Projection]) -> None:
        self._store = store
        self._projections = tuple(projections)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def ensure_running(self) -> None:
        """Starts the thread where it is not running: at first, and in a forked child."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._stopping.clear()
            self._thread = threading.Thread(
                target=self._follow, name="eventstore-follower", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the step it is at; the next run goes on from there."""
        self._stopping.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                run(self._store, self._projections, retry=False, stopping=self._stopping.is_set)
            except StoreClosed:
                return
            except MaintenanceRunning:
                pass  # tried again in a moment
            except EventStoreError as error:
                _log.warning("projections wait: %s", error)
            self._stopping.wait(_POLL_S)

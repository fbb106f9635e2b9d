"""One run of an import from ADK's tables: finding them, reading them, writing a few at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import tzinfo
from pathlib import Path
from typing import Final, TypeVar

from adk_adapter.imports.found import (
    FoundSession,
    Imported,
    ImportFailed,
    LeftOut,
    OwnerState,
    Source,
)
from adk_adapter.imports.postgres import PostgresRows, without_password
from adk_adapter.imports.sqlite import SqliteRows
from adk_adapter.imports.tables import AdkTables
from adk_adapter.imports.writing import (
    Fate,
    OwnerChange,
    Prepared,
    fate_of,
    owner_change,
    prepare,
    take_owner_state,
    take_session,
)
from eventstore import (
    EventStore,
    InvalidIdentifier,
    MaintenanceTransaction,
    PathUnusable,
    Snapshot,
    StoreUnusable,
    StreamKey,
    pending_migrations,
)
from eventstore.location import resolve
from projections.rebuild import Progress

__all__ = ["import_sessions", "note_fate", "note_owners", "open_sources"]

T = TypeVar("T")

_EVENTS_PER_TRANSACTION: Final = 500
_SESSIONS_PER_TRANSACTION: Final = 50
_OWNERS_PER_TRANSACTION: Final = 200
_POSTGRESQL: Final = ("postgresql", "postgres")
_NOT_TAKEN: Final[dict[Fate, str]] = {
    "taken here": "another session has this id here",
    "gone on here": "it has gone on here, and in the source too",
}


@contextmanager
def open_sources(
    target: str | os.PathLike[str], zone: tzinfo | None = None
) -> Iterator[list[AdkTables]]:
    """What there is to import at a path or URL.

    A path is a database file, or the folder of agents that `adk web` was started on, with a file
    for each agent (`.adk/session.db`). `zone` is the time zone of the process that wrote pickled
    actions, None for the one of this machine.

    Raises:
        ImportFailed: nothing there is one of ADK's databases, or it cannot be read.
    """
    text = os.fspath(target)
    scheme, separator, _ = text.partition("://")
    if separator and scheme.partition("+")[0] in _POSTGRESQL:
        rows = PostgresRows(text)
        with closing(rows):
            yield [AdkTables(rows, zone)]
        return
    if separator and scheme.partition("+")[0] in ("mysql", "mariadb", "spanner"):
        raise ImportFailed(
            without_password(text),
            "names a database that this version cannot read",
            "It reads SQLite files and PostgreSQL servers.",
        )
    paths = _files(Path(resolve(text)))
    opened: list[SqliteRows] = []
    try:
        sources = []
        for path in paths:
            _require_adk(path)
            opened.append(SqliteRows(str(path)))
            sources.append(AdkTables(opened[-1], zone))
        yield sources
    finally:
        for each in opened:
            each.close()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted([*path.glob(".adk/session.db"), *path.glob("*/.adk/session.db")])
        if not found:
            raise ImportFailed(
                str(path),
                "has no agent with a file .adk/session.db",
                "Pass the folder that `adk web` was started on, or a database file.",
            )
        return found
    if not path.is_file():
        raise PathUnusable(str(path), "does not exist", "Pass the path of a database of ADK's.")
    return [path]


def _require_adk(path: Path) -> None:
    """Asserts that a file is no store of this package."""
    try:
        version, _ = pending_migrations(path)
    except StoreUnusable:
        return  # another program's; whoever reads it says what is wrong
    if version:
        raise ImportFailed(
            str(path), "is a database of this package", "Run: adk-eventstore copy SOURCE TARGET"
        )


def import_sessions(
    store: EventStore | None,
    source: Source,
    *,
    dry_run: bool = False,
    progress: Progress = lambda *_: None,
) -> Imported:
    """Takes every session of a source into a store, a few in a transaction. Blocks.

    Interrupted, it has taken some; the next run takes the others. What was taken before is not
    taken again, but for what has come to the source since. A dry run reads and judges everything
    and writes nothing; it needs no store.

    Raises:
        ImportFailed: the source cannot be read any further.
        StorageFailed, StoreBusy, OutcomeUnknown: see eventstore.errors.
    """
    report = Imported(source.name, source.kind, dry_run, orphans=source.count_orphans())
    for owners in _batches(_named(source.owners(), report), _OWNERS_PER_TRANSACTION):
        _take_owners(store, owners, report)
    total, done, read = source.count(), 0, 0
    waiting: list[Prepared] = []
    promised: set[StreamKey] = set()
    try:
        for key in _named(source.session_keys(), report):
            with source.moment():
                found = source.session(key)
                prepared = _prepare(source, found, report) if found else None
            if prepared is not None:
                waiting.append(prepared)
                read += prepared.count
            done += 1
            if (
                len(waiting) >= _SESSIONS_PER_TRANSACTION
                or sum(each.count for each in waiting) >= _EVENTS_PER_TRANSACTION
            ):
                _flush(store, waiting, report, promised)
                progress(read, done, total)
        _flush(store, waiting, report, promised)
        progress(read, done, total)
    finally:
        for each in waiting:
            each.close()
    return report


def _named(found: Iterable[T | LeftOut], report: Imported) -> Iterator[T]:
    """What can be asked for by its ids; of the rest the report is told."""
    for each in found:
        if isinstance(each, LeftOut):
            report.leave_out(each)
        else:
            yield each


def _batches(owners: Iterable[OwnerState], size: int) -> Iterator[list[OwnerState]]:
    batch: list[OwnerState] = []
    for each in owners:
        batch.append(each)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _take_owners(store: EventStore | None, owners: list[OwnerState], report: Imported) -> None:
    """Takes the keys of users and apps in one transaction, or only judges them."""
    if store is None:
        report.keys += sum(len(found.state or {}) for found in owners)
    elif report.dry_run:
        note_owners(report, store.snapshot(lambda s: [owner_change(s, found) for found in owners]))
    else:
        note_owners(
            report, store.transact(lambda t: [take_owner_state(t, found) for found in owners])
        )


def note_owners(report: Imported, changes: Iterable[OwnerChange]) -> None:
    """Counts the keys of users and apps, and names what was left out of them."""
    for change in changes:
        report.keys += len(change.changed)
        for each in change.left_out:
            report.leave_out(each)


def _prepare(source: Source, found: FoundSession, report: Imported) -> Prepared | None:
    try:
        return prepare(found, source.events(found))
    except InvalidIdentifier as error:
        report.leave_out(LeftOut("sessions", *found[:3], None, found.size_bytes, str(error)))
        return None


def _flush(
    store: EventStore | None, waiting: list[Prepared], report: Imported, promised: set[StreamKey]
) -> None:
    """Takes what waits in one transaction, or only judges it.

    `promised` are the sessions that a dry run would have taken by now.
    """

    def take(transaction: MaintenanceTransaction) -> list[tuple[Fate, int]]:
        return [take_session(transaction, each) for each in waiting]

    def judge(snapshot: Snapshot) -> list[Fate]:
        return [fate_of(snapshot, each) for each in waiting]

    if not waiting:
        return
    outcomes: list[tuple[Fate, int]] = []
    if store is not None and not report.dry_run:
        outcomes = store.transact(take)
    else:
        fates: list[Fate] = ["taken"] * len(waiting) if store is None else store.snapshot(judge)
        for prepared, fate in zip(waiting, fates, strict=True):
            if fate == "taken" and prepared.key in promised:
                outcomes.append(("taken here", 0))
            else:
                outcomes.append((fate, prepared.count if fate in ("taken", "grown") else 0))
                promised.add(prepared.key)
    for prepared, (fate, events) in zip(waiting, outcomes, strict=True):
        note_fate(report, prepared, fate, events)
    while waiting:
        waiting.pop().close()


def note_fate(report: Imported, prepared: Prepared, fate: Fate, events: int) -> None:
    """Counts what became of a session, and names what was left out of it."""
    report.events += events
    report.sessions += fate == "taken"
    report.grown += fate == "grown"
    report.there += fate == "there"
    report.deleted += fate == "deleted"
    if (reason := _NOT_TAKEN.get(fate)) is not None:
        prepared.leave_out("sessions", None, prepared.found.size_bytes, reason)
    for each in prepared.left_out:
        report.leave_out(each)

"""The seam between the store and everything above it, and how to open one.

Operations, not statements, are what a backend implements: each is atomic, and each backend may
carry it out in its own way (SQLite in one transaction of its writer thread, PostgreSQL in one
round trip). Projections reach it only as row changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from eventstore import location
from eventstore.changes import Change, Row
from eventstore.cursor import Cursor
from eventstore.errors import PathUnusable
from eventstore.events import DeltaEvent, NewEvent, RecordedEvent, Stream, StreamKey
from eventstore.projection import Projection, check_projection

__all__ = [
    "Appended",
    "Durability",
    "EventStore",
    "Loaded",
    "LoggedEvent",
    "MaintenanceTransaction",
    "Registered",
    "Snapshot",
    "StreamFacts",
    "Window",
    "open_store",
    "pending_migrations",
]

T = TypeVar("T")

Durability = Literal["normal", "full"]
"""What an acknowledgement means. "normal": survives the end of the process, however it ends; a
power cut may take the last commits, never the file. "full": on the disk, survives a power cut."""


class Window(NamedTuple):
    """Which conversation events to load: the `last` so many of those not older than `since`.

    None does not filter. `since` is seconds since the epoch, inclusive.
    """

    last: int | None = None
    since: float | None = None


class Loaded(NamedTuple):
    """A stream as one snapshot shows it.

    `rows` holds, per projection, the whole rows of the stream and of its user's and app's
    streams, in key order. `events` are conversation events, oldest first.
    """

    stream: Stream
    rows: Mapping[str, Sequence[Row]]
    events: Sequence[RecordedEvent]


class Appended(NamedTuple):
    """Where an event is stored, and what its holder is to be told of it.

    `missed` are the conversation events between what the holder had seen and this one, oldest
    first, as they were converted; some only when the append was told to merge. `news` is False
    when the holder has this event already: it was stored by an earlier call, and others since.
    """

    stream_id: int
    version: int
    missed: Sequence[Any] = ()
    news: bool = True


class LoggedEvent(NamedTuple):
    """An event as it stands in the log, unchecked, and what proves it."""

    event: RecordedEvent
    delta_digest: bytes | None
    data_digest: bytes | None
    chain: bytes


class StreamFacts(NamedTuple):
    """A whole row of `streams`. The nonce of a scavenged stream is empty."""

    stream: Stream
    live: bool
    nonce: bytes


class Registered(NamedTuple):
    """A projection that a database keeps rows of.

    `checkpoint` is the position an asynchronous one has come to, None for an inline one.
    `failed_at` and `failure` say which event stopped it, and why.
    """

    version: int
    table: str
    checkpoint: int | None
    failed_at: int | None
    failure: str | None


class Snapshot(Protocol):
    """Reads of one consistent state of the database, whole or in pages."""

    def head(self) -> int:
        """The position of the last event, 0 in an empty log."""

    def read_deltas(
        self, after: int, upto: int, count: int
    ) -> tuple[Sequence[DeltaEvent], Mapping[int, Stream]]:
        """Up to `count` events of the log behind `after`, with the streams they are in."""

    def read_all(self, after: int, upto: int, count: int) -> Sequence[RecordedEvent]:
        """Up to `count` whole events of the log behind `after`, in position order."""

    def read_positions(self, positions: Sequence[int]) -> Sequence[RecordedEvent]:
        """The events at some positions, in position order."""

    def read_log(self, after: int, upto: int, count: int) -> Sequence[LoggedEvent]:
        """As `read_all`, but unchecked, with what proves the events."""

    def read(self, stream: Stream) -> Sequence[RecordedEvent]:
        """Every event of a stream, oldest first."""

    def get_stream(self, stream_id: int) -> Stream:
        """A stream by its id."""

    def find_stream(self, key: StreamKey) -> Stream | None:
        """The live stream with this key, None when there is none."""

    def streams_of_app(self, app_name: str) -> Sequence[Stream]:
        """Every stream of an app whose events are in the log, deleted sessions' included."""

    def positions_of(self, streams: Iterable[Stream]) -> Sequence[int]:
        """The positions of all events of some streams, in order."""

    def get_facts(self, ids: Iterable[int]) -> Mapping[int, StreamFacts]:
        """Rows of `streams` by their ids, as far as they are there."""

    def link_at(self, stream_id: int, version: int) -> bytes | None:
        """The chain link of an event; None when it is not there."""

    def stream_facts(self, after: int, count: int) -> Sequence[StreamFacts]:
        """Up to `count` rows of `streams` behind id `after`."""

    def deleted_streams(self, count: int) -> Sequence[Stream]:
        """Up to `count` deleted streams whose events are still there."""

    def registered(self) -> Mapping[str, Registered]:
        """The projections this database keeps rows of, by name."""

    def owned_rows(self, projection: Projection, owners: Sequence[int]) -> Sequence[Row]:
        """The rows of a projection that belong to any of the streams, in key order."""

    def row(self, projection: Projection, key: Row) -> Row | None:
        """One row of a projection, whole."""

    def table_page(
        self, projection: Projection, after: Row | None, count: int
    ) -> Sequence[Row] | None:
        """Up to `count` rows of a projection behind a key; None when its table is no good."""

    def check_file(self) -> Sequence[str]:
        """What the database's own checks of its files find; empty when all is well."""


class MaintenanceTransaction(Snapshot, Protocol):
    """What maintenance may do, inside one transaction that holds all other writers off."""

    def append(self, stream: Stream, event: NewEvent) -> RecordedEvent:
        """Writes one event behind the stream's head; its `stream` has the new head."""

    def apply(self, projection: Projection, changes: Iterable[Change]) -> None:
        """Executes row changes on a projection's table."""

    def register(self, projection: Projection, checkpoint: int | None) -> None:
        """Notes a projection; one without a checkpoint is inline."""

    def move_checkpoint(
        self,
        projection: Projection,
        before: int,
        after: int,
        failed_at: int | None = None,
        failure: str | None = None,
    ) -> bool:
        """Moves a checkpoint from where it is believed to be; False when it is not there."""

    def drop(self, name: str, views: Iterable[str] = ()) -> str:
        """Forgets a projection, drops views and retires its table, whose name is returned."""

    def make_shadow(self, projection: Projection) -> None:
        """Makes an empty table beside a projection's, to be filled and put in its place."""

    def fill_shadow(self, projection: Projection, rows: Sequence[Row]) -> None:
        """Inserts whole rows into the shadow."""

    def apply_to_shadow(self, projection: Projection, changes: Iterable[Change]) -> None:
        """Executes row changes on the shadow."""

    def cut_over(self, projection: Projection, checkpoint: int | None) -> None:
        """Puts the shadow in the place of the table, which is retired, and notes the projection."""

    def clear_away(self, table: str, count: int) -> bool:
        """Removes some rows of what is left of a shadow or retired table; False when none is."""

    def put_stream(self, facts: StreamFacts) -> None:
        """Writes a row of `streams` anew, as the log has it."""

    def maintenance(self, reason: str) -> AbstractContextManager[None]:
        """Lets events be removed while it lasts; the transaction must log what it did."""

    def scavenge(self, stream: Stream) -> int:
        """Removes a deleted stream's events and blanks its identity; returns how many."""

    def ensure_system_stream(self) -> Stream:
        """The stream that maintenance logs itself on."""


class EventStore(Protocol):
    """A log of events in streams, and the rows of its inline projections.

    Coroutines may be awaited from any event loop of any thread. The other methods block, and may
    be called inside a running loop. After `close` every method raises StoreClosed.
    """

    @property
    def path(self) -> str:
        """The database file."""

    @property
    def projections(self) -> Sequence[Projection]:
        """The folds whose rows are written with every append."""

    def create(self, key: StreamKey, event: NewEvent) -> asyncio.Future[Loaded]:
        """Makes a stream with its first event.

        Raises:
            StreamExists: nothing was stored.
        """

    def append(
        self,
        key: StreamKey,
        event: NewEvent,
        cursor: Cursor,
        *,
        merge: Callable[[RecordedEvent], Any] | None = None,
        on_outcome: Callable[[Appended | None], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> asyncio.Future[Appended]:
        """Appends a conversation event behind the one the cursor stands at, and moves the cursor.

        When others have appended since, it is refused, or, with `merge`, appended behind theirs:
        `merge` converts each event the holder missed, on any thread. A cursor that stands
        on no version, or on a stream that was deleted, is always refused.

        An event that is stored already with equal content changes nothing and is reported where
        it is, before the cursor is even looked at. `on_outcome` is called on any thread,
        in commit order and in any case: with the outcome, None when it failed. It must be quick,
        and must not raise. `on_done` is called behind it on the loop's thread before the future is
        done, also when nobody awaits the future any more.

        Raises:
            StreamNotFound, WrongExpectedVersion, EventIdConflict: nothing was stored.
        """

    def set_state(self, key: StreamKey, event: NewEvent) -> asyncio.Future[Loaded]:
        """Appends an event that is no part of the conversation, whatever the version.

        Raises:
            StreamNotFound: nothing was stored.
        """

    def delete(self, key: StreamKey, event: NewEvent) -> asyncio.Future[bool]:
        """Ends a stream with a tombstone. Returns False when there is no such stream."""

    def load(
        self, key: StreamKey, window: Window, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[T | None]:
        """Reads a stream in one snapshot; None when there is none.

        `convert` is called on one of the store's threads when the conversation is long, so that
        decoding it does not hold up the loop. It may be called twice.
        """

    def read(
        self, key: StreamKey, convert: Callable[[Sequence[RecordedEvent]], T]
    ) -> asyncio.Future[T | None]:
        """Reads every event of a stream, the conversation and all others; None for no stream.

        `convert` is called on one of the store's threads.
        """

    def load_sessions(
        self, app_name: str, user_id: str | None, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[list[T]]:
        """Reads all live sessions of an app, or of one user of it, without events."""

    def load_rows(self, key: StreamKey, table: str) -> asyncio.Future[Sequence[Row]]:
        """The rows of a projection that belong to one stream; none when it does not exist."""

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything handed over before it is."""

    def snapshot(self, function: Callable[[Snapshot], T]) -> T:
        """Runs a function over one snapshot of the database, while others write. Blocks."""

    def transact(self, function: Callable[[MaintenanceTransaction], T]) -> T:
        """Runs maintenance in one transaction of its own, while other writers wait. Blocks."""

    def maintaining(self, operation: str) -> AbstractContextManager[None]:
        """Keeps other maintenance off, in every process, while it lasts; not the writers.

        `operation` is a verb for the error of the one that comes second.

        Raises:
            MaintenanceRunning: somebody else is at it.
        """

    def check(self, projection: Projection) -> None:
        """Finds out whether the backend can make a projection's table and views.

        Raises:
            InvalidProjection: it cannot.
        """

    def copy_to(self, path: str) -> None:
        """Writes one snapshot of the whole store to a new file, while others write. Blocks.

        Raises:
            PathUnusable, StorageFailed: the copy is not whole, and there may be a part of it.
        """

    def shrink(self) -> int:
        """Gives unused space back to the file system; returns how many bytes."""

    def stats(self) -> dict[str, Any]:
        """Facts about the store: counts, sizes, versions, settings."""

    def close(self) -> None:
        """Executes what was handed over and lets go of the file. Safe to call twice."""


def open_store(
    target: str | os.PathLike[str] | None,
    projections: Sequence[Projection],
    *,
    durability: Durability = "normal",
    for_rebuild: bool = False,
    create: bool = True,
) -> EventStore:
    """Opens a store; `target` is as `location.resolve` takes it.

    A missing file is made, unless `create` is False. With `for_rebuild` the projections' tables
    may be missing, changed or of another version.

    Raises:
        StoreUnusable: one of its kinds, see eventstore.errors.
        ProjectionMissing: the database was written with other projections.
        InvalidProjection: one of `projections` cannot be kept in a database.
    """
    from eventstore.sqlite.store import SqliteEventStore

    for projection in projections:
        check_projection(projection)
    path = location.resolve(target)
    if not create and not Path(path).exists():
        raise PathUnusable(path, "does not exist", "Pass the path of a database: --db PATH.")
    return SqliteEventStore(path, projections, durability=durability, for_rebuild=for_rebuild)


def pending_migrations(
    target: str | os.PathLike[str] | None,
) -> tuple[int, list[tuple[int, str]]]:
    """The schema version of a store, and what `open_store` would run: each version with its SQL.

    Changes nothing and makes no file.

    Raises:
        StoreUnusable: one of its kinds, see eventstore.errors.
    """
    from eventstore.sqlite.database import pending_migrations as pending

    return pending(location.resolve(target))

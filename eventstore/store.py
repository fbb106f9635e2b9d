"""The seam between the store and everything above it, and how to open one.

Operations, not statements, are what a backend implements: each is atomic, and each backend may
carry it out in its own way (SQLite in one transaction of its writer thread, PostgreSQL in one
round trip). Projections reach it only as row changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from eventstore import location
from eventstore.changes import InlineProjection, Row
from eventstore.cursor import Cursor
from eventstore.errors import PathUnusable
from eventstore.events import NewEvent, RecordedEvent, Stream, StreamKey

__all__ = [
    "Appended",
    "Durability",
    "EventStore",
    "Loaded",
    "MaintenanceTransaction",
    "Window",
    "open_store",
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


class MaintenanceTransaction(Protocol):
    """What maintenance may do, inside one transaction that holds all other writers off."""

    def read_all(self, after: int = 0) -> Iterator[RecordedEvent]:
        """The whole log in position order, without payloads."""

    def table_rows(self, projection: InlineProjection) -> Sequence[Row] | None:
        """Every row of a projection's table; None when it lacks its columns."""

    def replace_table(self, projection: InlineProjection, rows: Iterable[Row]) -> None:
        """Makes a projection's table and views anew with these rows."""

    def get_stream(self, stream_id: int) -> Stream:
        """A stream by its id."""

    def append(self, stream: Stream, event: NewEvent) -> RecordedEvent:
        """Writes one event behind the stream's head; its `stream` has the new head."""

    def deleted_streams(self, count: int) -> Sequence[Stream]:
        """Up to `count` deleted streams whose events are still there."""

    def read(self, stream: Stream) -> Sequence[RecordedEvent]:
        """Every event of a stream, oldest first."""

    def row(self, table: str, key: Row) -> Row | None:
        """One row of a projection table, whole."""

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
    def projections(self) -> Sequence[InlineProjection]:
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

    def transact(self, function: Callable[[MaintenanceTransaction], T]) -> T:
        """Runs maintenance in one transaction of its own, while other writers wait."""

    def shrink(self) -> int:
        """Gives unused space back to the file system; returns how many bytes."""

    def stats(self) -> dict[str, Any]:
        """Facts about the store: counts, sizes, versions, settings."""

    def close(self) -> None:
        """Executes what was handed over and lets go of the file. Safe to call twice."""


def open_store(
    target: str | os.PathLike[str] | None,
    projections: Sequence[InlineProjection],
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
    """
    from eventstore.sqlite.store import SqliteEventStore

    path = location.resolve(target)
    if not create and not Path(path).exists():
        raise PathUnusable(path, "does not exist", "Pass the path of a database: --db PATH.")
    return SqliteEventStore(path, projections, durability=durability, for_rebuild=for_rebuild)

"""The seam between the store and everything above it, and how to open one.

Operations, not statements, are what a backend implements: each is atomic, and each backend may
carry it out in its own way (SQLite in one transaction of its writer thread, PostgreSQL in one
round trip). Projections reach it only as row changes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

from eventstore import location
from eventstore.changes import Change, Row
from eventstore.cursor import Cursor
from eventstore.errors import CorruptEvent, NotADatabase, PathUnusable
from eventstore.events import Deltas, NewEvent, RecordedEvent, Stream, StreamKey
from eventstore.observer import Observer
from eventstore.projection import Projection, check_projection

__all__ = [
    "AppCounts",
    "Appended",
    "Durability",
    "EventStore",
    "Finding",
    "Loaded",
    "LoggedEvent",
    "MaintenanceTransaction",
    "Registered",
    "Rewritten",
    "Snapshot",
    "Storage",
    "StreamFacts",
    "Window",
    "copy_file",
    "examine",
    "is_database",
    "open_store",
    "pending_migrations",
    "put_in_place",
    "require_own_files",
    "schema_ddl",
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


class AppCounts(NamedTuple):
    """What an app has: live sessions, users, deleted sessions that are still in the log, events."""

    app_name: str
    sessions: int
    users: int
    deleted: int
    events: int


class Storage(NamedTuple):
    """What a store takes on its disk, in bytes.

    `unused` is what `shrink` would give back. `log` is what was written and is not in its place yet
    (SQLite's `-wal`). `tables` holds the size of each table with its indexes, None where it was not
    asked for or the backend cannot tell.
    """

    total: int
    unused: int
    log: int
    tables: Mapping[str, int] | None


class Rewritten(NamedTuple):
    """Whether a store was written anew, and whether no copy of what was removed before is left.

    In a file and beside it, or in the tables on a server, whose WAL and replicas are not looked at.
    Somebody who still reads an older state, or may, keeps a copy from going.
    """

    done: bool
    gone: bool


class Finding(NamedTuple):
    """One thing that was looked at in a store that need not be usable.

    `state` is "ok", "note" (nothing to be done), "warning" or "problem". `remedy` says what to do.
    """

    check: str
    state: Literal["ok", "note", "warning", "problem"]
    message: str
    remedy: str = ""

    @classmethod
    def of(cls, check: str, error: BaseException) -> Finding:
        """The problem that an error says, whose last sentence is the remedy."""
        message, _, remedy = str(error).rstrip(".").rpartition(". ")
        return cls(check, "problem", message or remedy, f"{remedy}." if message else "")


class Snapshot(Protocol):
    """Reads of one consistent state of the database, whole or in pages."""

    def as_it_stands(self) -> AbstractContextManager[None]:
        """While it lasts, `read_log`, facts and tables are read whatever their rows hold.

        For whoever looks for damage: a kind may be none, a value of any type, and text that is no
        UTF-8 has lone surrogates in its place, so that it equals no text that was stored.
        """

    def head(self) -> int:
        """The position of the last event, 0 in an empty log."""

    def read_deltas(self, after: int, upto: int) -> Deltas:
        """The events of the log behind `after`, up to `upto` or as many as memory allows."""

    def read_all(self, after: int, upto: int, count: int) -> Sequence[RecordedEvent]:
        """Up to `count` whole events of the log behind `after`, in position order."""

    def read_positions(self, positions: Sequence[int]) -> Sequence[RecordedEvent]:
        """The events at some positions, in position order."""

    def read_log(self, after: int, upto: int, count: int) -> Sequence[LoggedEvent]:
        """As `read_all`, but unchecked, with what proves the events."""

    def read_logged(self, positions: Sequence[int]) -> Sequence[LoggedEvent]:
        """The events at some positions, in position order, as `read_log` gives them."""

    def read(self, stream: Stream) -> Sequence[RecordedEvent]:
        """Every event of a stream, oldest first."""

    def version_of(self, stream: Stream, event_id: str) -> int | None:
        """The version at which a stream holds an event with this id; None when it does not."""

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

    def event_identity(self, stream: Stream, version: int) -> tuple[str, float]:
        """The id and the time of an event.

        Raises:
            CorruptEvent: it is not there.
        """

    def stream_facts(self, after: int, count: int) -> Sequence[StreamFacts]:
        """Up to `count` rows of `streams` behind id `after`."""

    def deleted_streams(self, count: int) -> Sequence[Stream]:
        """Up to `count` deleted streams whose events are still there, a user's behind sessions."""

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

    def indexed_page(
        self,
        projection: Projection,
        index: str,
        equal: Row,
        *,
        after: Row | None,
        descending: bool,
        count: int,
    ) -> Sequence[Row]:
        """Up to `count` whole rows of a projection in the order of one of its indexes.

        `equal` are the values of the index's first columns. `after` is where to go on: the values
        of its other columns and of the key, which need not be there.
        """

    def apps(self) -> Sequence[Stream]:
        """The streams of all apps, by name."""

    def find_sessions(
        self, session_id: str, app_name: str | None = None, user_id: str | None = None
    ) -> Sequence[Stream]:
        """The live sessions with an id, of any app and user that are not named. Looks at all."""

    def streams_of_user(self, user_id: str, app_name: str | None = None) -> Sequence[StreamFacts]:
        """A user's own streams and the sessions', in one app or all.

        Also the deleted ones whose events are still there. Looks at all streams.
        """

    def read_page(self, stream: Stream, after: int, count: int) -> Sequence[RecordedEvent]:
        """Up to `count` events of a stream behind a version, oldest first."""

    def last_positions(
        self,
        count: int,
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> Sequence[int]:
        """The positions of the last events up to the head, in order: of all, or of some streams.

        Where the ids are those of many streams it goes back through the log until it has enough.
        """

    def count_by_app(self) -> Sequence[AppCounts]:
        """What each app has, by name. Looks at all streams, and at no event."""

    def largest_streams(self, count: int) -> Sequence[Stream]:
        """The live sessions with the most events. Looks at all streams, and at no event."""

    def position_before(self, recorded_at: int) -> int:
        """The last position whose event was recorded before a time (microseconds).

        Found by halving the log, so it is right where the clock of its writers did not go back.
        """

    def positions_carried_over(self) -> Sequence[int]:
        """The positions of all events that carry rows over, in order. Looks at all events."""

    def content_sizes(self, after: int, count: int) -> Sequence[tuple[int, int, int]]:
        """Position, stream id and bytes of content of up to `count` events behind a position."""

    def check_file(self) -> Sequence[str]:
        """What the database's own checks of its files find; empty when all is well."""


class MaintenanceTransaction(Snapshot, Protocol):
    """What maintenance may do, inside one transaction that holds all other writers off."""

    def append(self, stream: Stream, event: NewEvent) -> RecordedEvent:
        """Writes one event behind the stream's head; its `stream` has the new head."""

    def flush(self) -> None:
        """Writes the events that wait, where any do: a backend may write many at once.

        Raises:
            EventIdConflict, ProjectionFailed: what is wrong with one of them. All that is done
                later in the transaction fails too.
        """

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

    def lock_checkpoint(self, projection: Projection) -> None:
        """Keeps others from moving a checkpoint until the transaction ends."""

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

    def leftovers(self) -> Sequence[str]:
        """The names of tables of which a shadow or a retired table is there."""

    def put_stream(self, facts: StreamFacts) -> None:
        """Writes a row of `streams` anew, as the log has it."""

    def end(self, stream: Stream, event: NewEvent) -> Stream:
        """Ends a live stream with a tombstone, whose rows go; returns it with its last head."""

    def open_stream(self, key: StreamKey) -> Stream:
        """Makes a new live stream, and those of its user and app where they are missing.

        Raises:
            StreamExists: a live stream has this key.
        """

    def ensure_stream(self, key: StreamKey) -> Stream:
        """The live stream with this key, made where it is missing."""

    def import_stream(self, facts: StreamFacts) -> Stream:
        """Writes a new row of `streams` just as it is, in place of a live one without events.

        An id of 0 stands for one that was never given out; no id is given out again.

        Raises:
            StreamExists: a live stream with this key has events, or the id is taken.
        """

    def import_event(self, stream: Stream, logged: LoggedEvent, position: int = 0) -> Stream:
        """Writes an event behind a stream's head just as it is, and what it does to the rows.

        Its link is taken as it is given; whoever calls has proved it. A position of 0 stands for
        the next one. Returns the stream with its new head.

        Raises:
            EventIdConflict: the stream holds an event with this id, or the position is taken. It
                may come from a later call, at last from `flush` or the end of the transaction.
        """

    def maintenance(self, reason: str) -> AbstractContextManager[None]:
        """Lets events be removed while it lasts; the transaction must log what it did."""

    def scavenge(self, stream: Stream) -> int:
        """Removes a deleted stream's events and blanks its identity; returns how many.

        What is left in its row is its kind, its last version and its last chain link.
        """

    def ensure_system_stream(self) -> Stream:
        """The stream that maintenance logs itself on."""


class EventStore(Protocol):
    """A log of events in streams, and the rows of its inline projections.

    Coroutines may be awaited from any event loop of any thread. The other methods block, and may
    be called inside a running loop. After `close` every method raises StoreClosed.
    """

    @property
    def path(self) -> str:
        """The database file, or the URL of a server without a password: for people."""

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
            StreamNotFound, EventIdConflict: nothing was stored.
        """

    def delete(self, key: StreamKey, event: NewEvent) -> asyncio.Future[bool]:
        """Ends a stream with a tombstone. Returns False when there is no such stream.

        Raises:
            EventIdConflict: nothing was stored.
        """

    def load(
        self, key: StreamKey, window: Window, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[T | None]:
        """Reads a stream in one snapshot; None when there is none.

        `convert` is called on one of the store's threads when the conversation is long, so that
        decoding it does not hold up the loop. It may be called twice.
        """

    def load_intact(
        self,
        key: StreamKey,
        window: Window,
        convert: Callable[[Loaded, Sequence[CorruptEvent]], T],
    ) -> asyncio.Future[T | None]:
        """As `load`, without the events that are damaged, which `convert` gets beside it.

        Slow: it looks at every event of the stream.
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

    def ping(self) -> asyncio.Future[None]:
        """Done when the database has answered a question."""

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything handed over before it is."""

    def snapshot(self, function: Callable[[Snapshot], T], *, whole: bool = False) -> T:
        """Runs a function over one snapshot of the database, while others write. Blocks.

        Its head is the position up to which the log is final: nothing comes in below it any more.
        With `whole` that is so of everything the snapshot shows, and the tables of inline
        projections stand at its head: for those who compare them with the log.
        """

    def snapshots(self, functions: Iterable[Callable[[Snapshot], T]]) -> Iterator[T]:
        """Runs functions over a snapshot each; returns in order what each returns.

        The next ones may run, on other threads, while the caller works with an outcome.
        """

    def transact(
        self, function: Callable[[MaintenanceTransaction], T], *, beside_writers: bool = False
    ) -> T:
        """Runs maintenance in one transaction of its own, while other writers wait. Blocks.

        With `beside_writers` they need not wait: for what neither looks at the end of the log nor
        touches what appends touch.
        """

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

    def rewrite(self, *, whole: bool = True, at_most_s: float | None = None) -> Rewritten:
        """Sees to it that no copy of what was removed is left: see Rewritten. Blocks.

        Writes the whole file anew, or the tables, while writers wait, unless that takes longer than
        `at_most_s`; without `whole` only folds in what was written beside the file.

        Raises:
            StorageFailed: the disk is full or failing; the store is as it was.
        """

    def storage(self, *, tables: bool) -> Storage:
        """What the store takes on its disk. With `tables` every page of it is read."""

    def stats(self) -> dict[str, Any]:
        """Facts about the store: counts, sizes, versions, settings."""

    def sizes(self) -> Mapping[str, int]:
        """How many bytes each part of the store takes, without reading it: "database", "wal"."""

    def observe(self, observer: Observer) -> None:
        """Tells an observer of commits from now on, in place of the one before."""

    def close(self) -> None:
        """Executes what was handed over and lets go of the file. Safe to call twice."""


def open_store(
    target: str | os.PathLike[str] | None,
    projections: Sequence[Projection],
    *,
    durability: Durability = "normal",
    for_rebuild: bool = False,
    create: bool = True,
    schema: str | None = None,
    create_schema: bool = True,
    partitions: int = 0,
    connect: Callable[[], str | Awaitable[str]] | None = None,
) -> EventStore:
    """Opens a store; `target` is as `location.resolve` takes it.

    A missing or empty file becomes a store, unless `create` is False. With `for_rebuild` the
    projections' tables may be missing, changed or of another version.

    The others are for a server: `schema` is the one to use. It is made where it is missing, unless
    `create` is False, with the events split into so many `partitions`, and brought to the newest
    version; neither when `create_schema` is False. `connect` returns the URL to connect with each
    time a connection is made; a coroutine function may, too.

    Raises:
        StoreUnusable: one of its kinds, see eventstore.errors.
        ProjectionMissing: the database was written with other projections.
        InvalidProjection: one of `projections` cannot be kept in a database.
    """
    for projection in projections:
        check_projection(projection)
    path = location.resolve(_SERVER if target is None and connect is not None else target)
    if location.is_server(path):
        store: EventStore = _postgres().store.PostgresEventStore(
            _postgres().address.parse_url(path, schema),
            projections,
            connect=connect,
            durability=durability,
            for_rebuild=for_rebuild,
            create=create,
            create_schema=create_schema,
            partitions=partitions,
        )
        return store
    if schema is not None or connect is not None or partitions or not create_schema:
        raise TypeError("schema, create_schema, partitions and connect are for a postgresql: URL")
    from eventstore.sqlite.database import recognise
    from eventstore.sqlite.store import SqliteEventStore

    if not create:
        if not Path(path).exists():
            raise PathUnusable(path, "does not exist", "Pass the path of a database: --db PATH.")
        if Path(path).is_file() and recognise(path):
            remedy = "Pass the path of a database."
            raise NotADatabase(path, "holds no database: it is empty", remedy)
    return SqliteEventStore(path, projections, durability=durability, for_rebuild=for_rebuild)


_SERVER: Final = "postgresql://"


def _postgres() -> Any:
    """The PostgreSQL backend, which needs an extra.

    Raises:
        PathUnusable: that is not installed.
    """
    try:
        import psycopg  # noqa: F401 - is it there?
    except ImportError:
        raise PathUnusable(
            "a postgresql: URL",
            "needs the driver psycopg",
            "Install it: pip install 'adk-eventstore[postgres]'",
        ) from None
    import eventstore.postgres.address
    import eventstore.postgres.database
    import eventstore.postgres.store

    return eventstore.postgres


def schema_ddl(
    projections: Sequence[Projection], *, schema: str | None = None, partitions: int = 0
) -> str:
    """The SQL that makes the schema on a server, for a role that may: see `create_schema`.

    Raises:
        PathUnusable: the schema has no usable name.
    """
    address = _postgres().address.parse_url(_SERVER, schema)
    text: str = _postgres().database.ddl(address.schema, projections, partitions=partitions)
    return text


def pending_migrations(
    target: str | os.PathLike[str] | None,
    projections: Sequence[Projection] = (),
) -> tuple[int, list[tuple[int, str]]]:
    """The schema version of a store, and what `open_store` would run: each version with its SQL.

    On a server with the tables of `projections`, all in one transaction. Changes nothing and makes
    no file.

    Raises:
        StoreUnusable: one of its kinds, see eventstore.errors.
    """
    path = location.resolve(target)
    if location.is_server(path):
        return _postgres().store.pending_migrations(  # type: ignore[no-any-return]
            _postgres().address.parse_url(path), projections
        )
    from eventstore.sqlite.database import pending_migrations as pending

    return pending(path)


def examine(
    target: str | os.PathLike[str] | None,
    projections: Sequence[Projection],
    others: Sequence[Projection] = (),
    *,
    whole: bool | None = None,
) -> list[Finding]:
    """Looks at a store that may be unusable, and at the place it is in. Changes nothing.

    `projections` are those it must have, `others` those whose tables may be there. `whole` says
    whether every page of it is checked; when it is None, only if it is not large.
    """
    path = location.resolve(target)
    if location.is_server(path):
        found: list[Finding] = _postgres().store.examine(
            _postgres().address.parse_url(path), projections, others
        )
        return found
    from eventstore.sqlite.examination import examine as examine_file

    return examine_file(path, projections, others, whole=whole)


def is_database(path: str) -> bool:
    """Whether a file is a database of SQLite's, by how it begins."""
    from eventstore.sqlite.registry import is_database as is_one

    return is_one(path)


def require_own_files(path: str) -> None:
    """Asserts that a database may have a real path, for what is kept beside each is another's.

    Raises:
        PathUnusable: the path is that of another database's -wal, -shm, journal or lock file; or
            one of these, where nothing is yet, would be a database that is there.
    """
    from eventstore.sqlite.registry import require_own_files as require

    require(path)


def copy_file(source: str | os.PathLike[str], target: str) -> None:
    """Copies the file of a store that need not be open, of any version, to a new file. Blocks.

    The source stays as it is, and may be in a folder that nothing can be written to.

    Raises:
        PathUnusable, NotADatabase, StorageFailed: there is no copy, or a part of one.
    """
    from eventstore.sqlite.files import copy_file as copy

    copy(location.require_file(source, "copy"), target)


def put_in_place(copy: str, path: str) -> None:
    """Gives the file of a closed store another name, in place of the file that has it.

    Raises:
        DatabaseInUse: somebody has that one open.
        PathUnusable: the folder cannot be written.
    """
    from eventstore.sqlite.files import put_in_place as put

    put(copy, path)

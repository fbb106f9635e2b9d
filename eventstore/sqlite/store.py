"""The SQLite backend: each operation as a function of one transaction."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from eventstore import _platform
from eventstore.changes import Row
from eventstore.cursor import Cursor
from eventstore.errors import (
    CorruptEvent,
    EventIdConflict,
    MaintenanceRunning,
    PathUnusable,
    StoreClosed,
    WrongExpectedVersion,
)
from eventstore.events import NewEvent, RecordedEvent, Stream, StreamKey
from eventstore.location import MEMORY
from eventstore.observer import Observer
from eventstore.projection import Projection
from eventstore.records import conversation, owners_of, unreadable, with_rows
from eventstore.sqlite import registry
from eventstore.sqlite.database import translate_copy
from eventstore.sqlite.engine import READERS, Engine
from eventstore.sqlite.gate import lock_file
from eventstore.sqlite.queries import QUERIES, migrations
from eventstore.sqlite.requests import Read, Write
from eventstore.sqlite.tables import check_definition
from eventstore.sqlite.transaction import ReadTransaction, WriteTransaction
from eventstore.store import Appended, Durability, Loaded, Rewritten, Storage, Window

__all__ = ["SqliteEventStore"]

T = TypeVar("T")

_OWNERS_PER_QUERY: Final = 500
_BRIEF_BYTES: Final = 16_384
"""Content of an event that is written in well under a millisecond."""
_COPY_PAGES: Final = 1_000
_SHRINK_PAGES: Final = 200
"""Pages given back per transaction, so that no writer waits long."""
_READERS_WAIT_S: Final = 5.0
_READERS_POLL_S: Final = 0.1


class SqliteEventStore:
    """An EventStore in one SQLite file. See eventstore.store for what its methods promise."""

    def __init__(
        self,
        path: str,
        projections: Sequence[Projection],
        *,
        durability: Durability = "normal",
        for_rebuild: bool = False,
    ) -> None:
        if durability not in ("normal", "full"):
            raise ValueError(f"durability must be 'normal' or 'full', not {durability!r}")
        self._temporary: str | None = None
        self._observer: Observer | None = None
        if path == MEMORY:
            self._temporary = tempfile.mkdtemp(prefix="eventstore-")
            registry.temporary_folders.add(self._temporary)
            path = str(Path(self._temporary) / "private.sqlite3")
        self._path = path
        self._process = os.getpid()
        self._projections = tuple(projections)
        for projection in self._projections:
            check_definition(projection)
        self._durability = durability
        self._closed = False
        self._engine = registry.acquire(path, self._projections, for_rebuild=for_rebuild)

    @property
    def path(self) -> str:
        """The database file."""
        return self._path

    @property
    def projections(self) -> Sequence[Projection]:
        """The folds whose rows are written with every append."""
        return self._projections

    def create(self, key: StreamKey, event: NewEvent) -> asyncio.Future[Loaded]:
        """Makes a stream with its first event."""
        written: list[Stream] = []

        def function(transaction: WriteTransaction) -> Loaded:
            written[:] = [transaction.append(transaction.open_stream(key), event).stream]
            return _loaded(transaction, written[0])

        return self._running().future(self._write(function, written, event))

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
        """Appends a conversation event behind the one the cursor stands at."""
        written: list[Stream] = []

        def function(transaction: WriteTransaction) -> Appended:
            written.clear()
            stream = transaction.require_stream(key)
            behind = _position(transaction, stream, cursor)
            missed: list[Any] = []
            if behind != stream.conversation_version:
                if (stored := _stored(transaction, stream, event, cursor)) is not None:
                    return stored
                if behind is None or merge is None:
                    raise WrongExpectedVersion(
                        str(key), repr(cursor), f"{stream.id}:{stream.conversation_version}"
                    )
                missed = [merge(e) for e in conversation(transaction.read(stream, behind))]
            try:
                recorded = transaction.append(stream, event)
            except EventIdConflict:
                # With this very event, or else `_stored` raises.
                if (stored := _stored(transaction, stream, event, cursor)) is None:
                    raise
                return stored
            transaction.moved[cursor] = (stream.id, recorded.version)
            written.append(recorded.stream)
            return Appended(stream.id, recorded.version, missed)

        return self._running().future(
            self._write(
                function,
                written,
                event,
                # How much a holder has missed is not known before.
                long=merge is not None,
                on_outcome=on_outcome,
                on_done=on_done,
            )
        )

    def set_state(self, key: StreamKey, event: NewEvent) -> asyncio.Future[Loaded]:
        """Appends an event that is no part of the conversation."""
        written: list[Stream] = []

        def function(transaction: WriteTransaction) -> Loaded:
            written[:] = [transaction.append(transaction.require_stream(key), event).stream]
            return _loaded(transaction, written[0])

        return self._running().future(self._write(function, written, event))

    def delete(self, key: StreamKey, event: NewEvent) -> asyncio.Future[bool]:
        """Ends a stream with a tombstone."""
        written: list[Stream] = []

        def function(transaction: WriteTransaction) -> bool:
            written.clear()
            if (stream := transaction.find_stream(key)) is None:
                return False
            written.append(transaction.end(stream, event))
            return True

        return self._running().future(self._write(function, written, event))

    def load(
        self, key: StreamKey, window: Window, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[T | None]:
        """Reads a stream in one snapshot; None when there is none."""

        def function(transaction: ReadTransaction) -> T | None:
            if (stream := transaction.find_stream(key)) is None:
                return None
            try:
                return convert(_loaded(transaction, stream, _events(transaction, stream, window)))
            except (TypeError, ValueError, IndexError, OverflowError) as error:
                raise unreadable(key, error) from None

        return self._running().future(Read(function, brief=True))

    def load_intact(
        self,
        key: StreamKey,
        window: Window,
        convert: Callable[[Loaded, Sequence[CorruptEvent]], T],
    ) -> asyncio.Future[T | None]:
        """As `load`, without the events that are damaged."""

        def function(transaction: ReadTransaction) -> T | None:
            if (stream := transaction.find_stream(key)) is None:
                return None
            events, damaged = transaction.read_intact(stream)
            chosen = [
                event
                for event in conversation(events)
                if window.since is None or event.timestamp >= window.since
            ]
            if window.last is not None:
                chosen = chosen[-window.last :] if window.last else []
            return convert(_loaded(transaction, stream, chosen), damaged)

        return self._running().future(Read(function))

    def read(
        self, key: StreamKey, convert: Callable[[Sequence[RecordedEvent]], T]
    ) -> asyncio.Future[T | None]:
        """Reads every event of a stream; None for no stream."""

        def function(transaction: ReadTransaction) -> T | None:
            stream = transaction.find_stream(key)
            return None if stream is None else convert(transaction.read(stream))

        return self._running().future(Read(function))

    def load_sessions(
        self, app_name: str, user_id: str | None, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[list[T]]:
        """Reads all live sessions of an app, or of one user of it, without events."""

        def function(transaction: ReadTransaction) -> list[T]:
            streams = transaction.sessions(app_name, user_id)
            found = with_rows(streams, transaction.tables, transaction.rows, _OWNERS_PER_QUERY)
            return [convert(loaded) for loaded in found]

        return self._running().future(Read(function, brief=user_id is not None))

    def load_rows(self, key: StreamKey, table: str) -> asyncio.Future[Sequence[Row]]:
        """The rows of a projection that belong to one stream."""

        def function(transaction: ReadTransaction) -> Sequence[Row]:
            stream = transaction.find_stream(key)
            return () if stream is None else transaction.rows(table, [stream.id])

        return self._running().future(Read(function, brief=True))

    def ping(self) -> asyncio.Future[None]:
        """Done when the database has answered a question."""

        def function(transaction: ReadTransaction) -> None:
            transaction.head()

        return self._running().future(Read(function, brief=True))

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything handed over before it is."""
        return self._running().future(Write(lambda _: None))

    def transact(
        self, function: Callable[[WriteTransaction], T], *, beside_writers: bool = False
    ) -> T:
        """Runs maintenance in one transaction of its own, while other writers wait."""
        return self._running().call(Write(function, full=self._full, alone=True))

    def snapshot(self, function: Callable[[ReadTransaction], T], *, whole: bool = False) -> T:
        """Runs a function over one snapshot of the database, while others write."""
        return self._running().call(Read(function))

    def snapshots(self, functions: Iterable[Callable[[ReadTransaction], T]]) -> Iterator[T]:
        """Runs functions over a snapshot each, some ahead of the caller; returns their outcomes."""
        begun: deque[Read[T]] = deque()
        for function in functions:
            begun.append(self._running().begin(Read(function)))
            if len(begun) > READERS:
                yield begun.popleft().wait()
        while begun:
            yield begun.popleft().wait()

    @contextmanager
    def maintaining(self, operation: str) -> Iterator[None]:
        """Keeps other maintenance off, in every process, while it lasts."""
        lock = lock_file(f"{self._running().path}-maintenance")
        try:
            if not lock.acquire(blocking=False):
                raise MaintenanceRunning(self._path, operation, lock.holder())
            try:
                lock.sign()
                yield
            finally:
                lock.release()  # which closing does not do where a forked child has it open too
        finally:
            lock.close()

    def check(self, projection: Projection) -> None:
        """Finds out whether the backend can make a projection's table and views."""
        check_definition(projection)

    def copy_to(self, path: str) -> None:
        """Writes one snapshot of the whole store to a new file, while others write."""

        given_up = threading.Event()

        def go_on(*_: int) -> None:
            if given_up.is_set():
                raise InterruptedError

        def function(transaction: ReadTransaction) -> None:
            transaction.head()  # begins the snapshot; a copy without one would follow the writers
            try:
                with closing(sqlite3.connect(path, isolation_level=None)) as copy:
                    transaction.connection.backup(copy, pages=_COPY_PAGES, progress=go_on)
            except sqlite3.Error as error:
                raise translate_copy(self._path, path, error) from None

        if not _platform.create_private_file(path):
            raise PathUnusable(path, "exists", "Choose another name.")
        try:
            self.snapshot(function)
        except BaseException:
            given_up.set()  # whoever waited was interrupted: nobody waits for the rest either
            raise

    def shrink(self) -> int:
        """Gives unused space back to the file system; returns how many bytes."""
        before = Path(self._path).stat().st_size
        while self.transact(_free_pages):
            pass
        self._running().checkpoint()
        return max(0, before - Path(self._path).stat().st_size)

    def rewrite(self, *, whole: bool = True, at_most_s: float | None = None) -> Rewritten:
        """Sees to it that no copy of what was removed is left in the file or its WAL."""
        done = False
        if whole:
            self.transact(_forget_samples)
            done = self._running().rewrite(at_most_s)
        # Whoever reads an older state needs the WAL: most are done in a moment.
        until = time.monotonic() + _READERS_WAIT_S
        while not self._running().checkpoint():
            if time.monotonic() > until:
                return Rewritten(done, gone=False)
            time.sleep(_READERS_POLL_S)
        return Rewritten(done, gone=done)

    def storage(self, *, tables: bool) -> Storage:
        """What the file and its WAL take on the disk."""
        free, sizes = self.snapshot(partial(_pages, tables=tables))
        return Storage(
            _platform.file_size(self._path), free, _platform.file_size(f"{self._path}-wal"), sizes
        )

    def stats(self) -> dict[str, Any]:
        """Facts about the store: counts, sizes, versions, settings."""
        counts = self._running().call(Read(lambda transaction: transaction.counts()))
        size = Path(self._path).stat().st_size
        wal_size = _platform.file_size(f"{self._path}-wal")
        return {
            **counts,
            "path": self._path,
            "db_size_mb": round(size / 1e6, 3),
            "wal_size_mb": round(wal_size / 1e6, 3),
            "schema_version": len(migrations()),
            "projections": {p.name: p.version for p in self._projections},
            "durability": self._durability,
            "sqlite_version": sqlite3.sqlite_version,
        }

    def sizes(self) -> Mapping[str, int]:
        """How many bytes each file has."""
        files = {"database": self._path, "wal": f"{self._path}-wal"}
        return {name: _platform.file_size(path) for name, path in files.items()}

    def observe(self, observer: Observer) -> None:
        """Tells an observer of commits from now on, of whichever store on the file."""
        self._observer = observer
        self._engine.observe(observer)

    def close(self) -> None:
        """Executes what was handed over and lets go of the file. Safe to call twice."""
        with registry.lock:
            if self._closed:
                return
            self._closed = True
        engine = self._engine
        if engine.abandoned:
            return
        try:
            if engine.users > 1:
                # The engine goes on for the others: wait for what was handed over here.
                engine.call(Write(lambda _: None))
        finally:
            registry.release(engine)
            if self._temporary is not None and os.getpid() == self._process:
                shutil.rmtree(self._temporary, ignore_errors=True)
                registry.temporary_folders.discard(self._temporary)

    @property
    def _full(self) -> bool:
        return self._durability == "full"

    def _write(
        self,
        function: Callable[[WriteTransaction], T],
        written: Sequence[Stream],
        event: NewEvent,
        *,
        long: bool = False,
        on_outcome: Callable[[T | None], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> Write[T]:
        size = len(event.delta or b"") + len(event.data or b"")
        return Write(
            function,
            find=partial(_is_written, written),
            full=self._full,
            brief=not long and size <= _BRIEF_BYTES,
            on_outcome=on_outcome,
            on_done=on_done,
        )

    def _running(self) -> Engine:
        """The engine, begun anew in a forked child."""
        if self._closed:
            raise StoreClosed(self._path)
        if self._engine.abandoned:
            with registry.lock:
                if self._engine.abandoned:
                    self._engine = registry.acquire(self._path, self._projections)
                    if self._observer is not None:
                        self._engine.observe(self._observer)
        return self._engine


def _loaded(
    transaction: ReadTransaction, stream: Stream, events: Sequence[RecordedEvent] = ()
) -> Loaded:
    owners = owners_of(stream)
    return Loaded(
        stream, {name: transaction.rows(name, owners) for name in transaction.tables}, events
    )


def _events(
    transaction: ReadTransaction, stream: Stream, window: Window
) -> Sequence[RecordedEvent]:
    if window.last == 0:
        return ()
    if window.since is not None or window.last is None:
        transaction.expect(stream.version)
    else:
        transaction.expect(window.last)
    if window.since is not None:
        return transaction.read_conversation_since(stream, window.since, window.last)
    if window.last is not None:
        return transaction.read_conversation_tail(stream, window.last)
    return conversation(transaction.read(stream))


def _is_written(written: Sequence[Stream], transaction: ReadTransaction) -> bool:
    """Whether what a request wrote is in the log.

    `written` is the stream it wrote to, in its last attempt, as it then was. By its link, for the
    very event may be there by another hand, which says nothing of the others of the transaction. A
    request that wrote nothing (its event was there before, there was nothing to delete) proves
    nothing about a commit.
    """
    return any(transaction.link_at(s.id, s.version) == s.chain for s in written)


def _position(transaction: WriteTransaction, stream: Stream, cursor: Cursor) -> int | None:
    """The conversation version the cursor's holder has seen; None when it cannot be told."""
    stream_id, version = transaction.moved.get(cursor, (cursor.stream_id, cursor.version))
    if version is not None:
        return version if stream_id == stream.id else None
    head = stream.conversation_version
    event_id, timestamp = transaction.event_identity(stream, head)
    return head if cursor.has_seen(head, event_id, timestamp) else None


def _stored(
    transaction: WriteTransaction, stream: Stream, event: NewEvent, cursor: Cursor
) -> Appended | None:
    """Where this very event is stored already; the holder that only missed it catches up."""
    if (version := transaction.stored_version(stream, event)) is None:
        return None
    before = transaction.previous_conversation_version(stream, version)
    news = transaction.moved.get(cursor, (cursor.stream_id, cursor.version)) == (stream.id, before)
    if news:
        transaction.moved[cursor] = (stream.id, version)
    return Appended(stream.id, version, news=news)


def _free_pages(transaction: WriteTransaction) -> bool:
    """Gives back some pages; returns whether there are more to give."""
    connection = transaction.connection
    (before,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(before, _SHRINK_PAGES)):
        # It gives back one page per step, and `sqlite3` makes one step, whatever its argument.
        connection.execute("PRAGMA incremental_vacuum(1)")
    (left,) = connection.execute("PRAGMA freelist_count").fetchone()
    # In a file that another program has made over (auto_vacuum = NONE) none are given back.
    return bool(0 < left < before)


def _pages(transaction: ReadTransaction, *, tables: bool) -> tuple[int, Mapping[str, int] | None]:
    """Bytes in free pages, and those of each table with its indexes."""
    connection = transaction.connection
    (page,) = connection.execute("PRAGMA page_size").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    if not tables:
        return free * page, None
    try:
        rows = connection.execute(QUERIES["table_sizes"]).fetchall()
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR:
            raise
        return free * page, None  # this SQLite was made without the table of pages
    return free * page, dict(rows)


def _forget_samples(transaction: ReadTransaction) -> None:
    """Removes the keys that an ANALYZE of somebody's has put aside for the query planner."""
    for table in ("sqlite_stat3", "sqlite_stat4"):
        found = transaction.connection.execute(QUERIES["find_table"], (table,)).fetchone()
        if found is not None:
            transaction.connection.execute(f"DELETE FROM {table}")  # noqa: S608 - one of these two

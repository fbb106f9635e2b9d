"""One engine per database file and process: a writer thread that commits in groups, and readers.

The writer takes all requests that wait, executes them in one transaction and commits once. It
drains the queue only after it holds the gate, so whatever arrived while it waited rides along.
A request that fails before it wrote anything fails alone; when one fails later, or the commit
does, the transaction is rolled back and its requests are executed again one by one.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from eventstore import _platform
from eventstore.changes import InlineProjection
from eventstore.errors import (
    DatabaseReplaced,
    EventStoreError,
    OutcomeUnknown,
    StoreBusy,
    StoreClosed,
)
from eventstore.sqlite.database import (
    BUSY_TIMEOUT_S,
    check_schema,
    connect,
    open_database,
    prepare_path,
    recognise,
    translate,
)
from eventstore.sqlite.gate import Gate
from eventstore.sqlite.requests import Checkpoint, Read, Request, Write, settle
from eventstore.sqlite.tables import ProjectionTable
from eventstore.sqlite.transaction import ReadTransaction, WriteTransaction

__all__ = ["Engine", "acquire", "release"]

_BATCH_REQUESTS_MAX: Final = 256
_READERS: Final = 2
_CHECKPOINT_FRAMES: Final = 1_000
"""Frames of 4 KB written to the WAL before it is copied into the database file."""
_FRAMES_PER_COMMIT: Final = 6
"""Index and table pages that even the smallest commit touches (measured)."""
_CHANGES_PER_FRAME: Final = 4
_CHECKPOINT_WAIT_MS: Final = 100
_IDLE_S: Final = 2.0
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
_WATCH_S: Final = 1.0

T = TypeVar("T")
_Work = Write[Any] | Checkpoint

_log = logging.getLogger(__name__)


class _Spoilt(Exception):
    """A request of a group failed behind its first write: the transaction must go."""


class Engine:
    """The threads and connections on one database file. Use `acquire` and `release`."""

    def __init__(
        self, path: str, projections: Sequence[InlineProjection], *, for_rebuild: bool
    ) -> None:
        self.path = path
        self.projections = tuple(projections)
        self.users = 0
        self.abandoned = False
        """True in a forked child: the parent's connections and threads are not to be touched."""
        self._tables = {p.name: ProjectionTable(p) for p in projections}
        recognise(path)
        self._gate = Gate(path, self._on_wait)
        try:
            self._connection = open_database(
                path, self._gate, self.projections, for_rebuild=for_rebuild
            )
        except BaseException:
            self._gate.close()
            raise
        self._identity = _platform.file_identity(path)
        self._schema_cookie = self._read_cookie()
        self._codecs = {"": 0}
        self._full: bool | None = None  # until the first transaction sets it
        self._frames = 0
        self._failure: EventStoreError | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self._writes: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[Read[Any] | None] = queue.SimpleQueue()
        self._taken: list[_Work] = []
        """What the writer took from the queue and did not begin to execute yet."""
        self._writer: threading.Thread | None = None
        self._readers: list[threading.Thread] = []
        self._reader_connections: list[sqlite3.Connection] = []
        self._watchdog: threading.Thread | None = None

    # What callers do, from any thread.

    def submit(self, request: Request[Any]) -> None:
        """Queues a request; its outcome is delivered as the request was told to.

        Raises:
            StoreClosed: the engine was stopped.
            DatabaseReplaced: the file went away while it was open.
        """
        with self._lock:
            if self._stopping:
                raise StoreClosed(self.path)
            if self._failure is not None:
                raise self._failure
            if isinstance(request, (Write, Checkpoint)):
                if self._writer is None:
                    self._writer = self._start("writer", self._write_loop)
                self._writes.put(request)
            elif isinstance(request, Read):
                if not self._readers:
                    self._readers = [
                        self._start(f"reader-{n}", self._read_loop) for n in range(_READERS)
                    ]
                self._reads.put(request)

    def call(self, request: Request[T]) -> T:
        """Executes a request and blocks until its outcome is there."""
        request.from_thread()
        self.submit(request)
        return request.wait()

    def future(self, request: Request[T]) -> asyncio.Future[T]:
        """Executes a request for the running loop."""
        future = request.from_loop()
        self.submit(request)
        return future

    def checkpoint(self) -> None:
        """Folds the whole WAL into the file and empties it, as far as readers allow."""
        self.call(Checkpoint())

    def stop(self) -> None:
        """Executes what is queued, then ends the threads and closes the file."""
        with self._lock:
            self._stopping = True
        if self._writer is not None:
            self._writes.put(None)
            self._writer.join(BUSY_TIMEOUT_S)
            if self._writer.is_alive():
                raise StoreBusy(self.path, BUSY_TIMEOUT_S, self._gate.holder())
        for _ in self._readers:
            self._reads.put(None)
        for reader in self._readers:
            reader.join()
        for connection in [*self._reader_connections, self._connection]:
            connection.close()
        self._gate.close()

    def abandon(self) -> None:
        """In a forked child: lets go of the locks, and never touches the connections again.

        The child's copies of the lock descriptors would keep the locks held after the parent died.
        """
        self.abandoned = True
        self._gate.close()
        _abandoned.append(self)

    def _start(self, name: str, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"eventstore-{name}", daemon=True)
        thread.start()
        return thread

    # The writer thread.

    def _write_loop(self) -> None:
        running = True
        while running:
            first = self._next_write()
            if first is None:
                return
            self._taken.append(first)
            with self._gate.held():
                with self._lock:
                    batch, self._taken = self._taken, []
                running = self._drain(batch)
                try:
                    self._commit_batch(batch)
                except BaseException as error:
                    # A bug, for every error of a request was caught: no caller may hang on it.
                    for request in batch:
                        request.fail(error)
                    settle(batch)
                    raise
                if self._frames >= _CHECKPOINT_FRAMES:
                    self._checkpoint("PASSIVE")

    def _watch(self) -> None:
        """While the writer waits for the gate: fails what waited past the deadline.

        The writer itself sits in a lock call that nothing can interrupt (the holder may be
        stopped), so somebody else must tell the callers.
        """
        while (since := self._gate.waiting_since) is not None:
            waited = time.monotonic() - since
            if waited < BUSY_TIMEOUT_S:
                time.sleep(min(_WATCH_S, BUSY_TIMEOUT_S - waited))
                continue
            with self._lock:
                late, self._taken = self._taken, []
                stopping = not self._drain(late, limit=None)
            if stopping:
                self._writes.put(None)
            self._fail_all(late, StoreBusy(self.path, waited, self._gate.holder()))
            time.sleep(_WATCH_S)

    def _on_wait(self) -> None:
        if self._watchdog is None or not self._watchdog.is_alive():
            self._watchdog = self._start("watchdog", self._watch)

    def _next_write(self) -> _Work | None:
        if self._frames == 0:
            return self._writes.get()
        try:
            return self._writes.get(timeout=_IDLE_S)
        except queue.Empty:
            # Idle: fold the WAL into the file, and give its space back when it grew large.
            with self._gate.held():
                wal = Path(f"{self.path}-wal")
                large = wal.exists() and wal.stat().st_size > _WAL_BYTES_KEPT
                self._checkpoint("TRUNCATE" if large else "PASSIVE")
            return self._writes.get()

    def _drain(self, batch: list[_Work], limit: int | None = _BATCH_REQUESTS_MAX) -> bool:
        """Moves what waits into the batch. Returns False when the engine is to stop."""
        while limit is None or len(batch) < limit:
            try:
                request = self._writes.get_nowait()
            except queue.Empty:
                return True
            if request is None:
                return False
            batch.append(request)
        return True

    def _commit_batch(self, batch: list[_Work]) -> None:
        group: list[Write[Any]] = []
        for request in batch:
            if isinstance(request, Checkpoint):
                self._commit_group(group)
                group = []
                self._checkpoint("TRUNCATE")
                request.succeed(None)
                settle([request])
            elif request.alone:
                self._commit_group(group)
                group = []
                self._commit_group([request])
            else:
                group.append(request)
        self._commit_group(group)

    def _commit_group(self, group: list[Write[Any]]) -> None:
        """Commits requests together, or, when one spoils the transaction, each by itself."""
        if not group:
            return
        try:
            transaction = self._begin(full=any(request.full for request in group))
        except (EventStoreError, sqlite3.Error) as error:
            self._roll_back()
            self._fail_all(group, error)
            return
        try:
            for request in group:
                self._execute(request, transaction, alone=len(group) == 1)
        except _Spoilt:
            self._roll_back()
            for request in group:
                self._commit_group([request])
            return
        try:
            self._commit(transaction)
        except DatabaseReplaced as error:
            self._failure = error
            self._fail_all(group, error)
        except sqlite3.Error as error:
            self._roll_back()
            self._find_out(group, error)
        else:
            settle(group)

    def _execute(self, request: Write[Any], transaction: WriteTransaction, *, alone: bool) -> None:
        """Runs one request of a group; what it raises before its first write is its own."""
        before = self._connection.total_changes
        try:
            request.succeed(request.function(transaction))
        except Exception as error:
            wrote = self._connection.total_changes != before
            if (wrote or not self._connection.in_transaction) and not alone:
                raise _Spoilt from error
            request.fail(self._translate(error))
            if wrote and self._connection.in_transaction:
                self._roll_back()
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")

    def _find_out(self, group: list[Write[Any]], error: sqlite3.Error) -> None:
        """A commit failed: looks what is stored before anything is said about it."""
        try:
            # After a failed fsync the connection's view of the WAL is not to be trusted.
            self._reopen()
            found = [self._find(request) for request in group]
        except (sqlite3.Error, EventStoreError) as second:
            problem = f"{self._translate(error)} Then: {self._translate(second)}"
            self._fail_all(group, OutcomeUnknown(self.path, problem))
            return
        for request, result in zip(group, found, strict=True):
            if result is not None:
                request.succeed(result)
                settle([request])
            elif len(group) > 1:
                self._commit_group([request])
            else:
                self._fail_all([request], error)

    def _find(self, request: Write[Any]) -> Any:
        if request.find is None:
            return None
        self._connection.execute("BEGIN")
        try:
            return request.find(self._transaction())
        finally:
            self._connection.execute("ROLLBACK")

    def _begin(self, *, full: bool) -> WriteTransaction:
        if full != self._full:
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full
        self._connection.execute("BEGIN IMMEDIATE")
        # Any change of schema moves the cookie: a migration or a projection of a newer process
        # stops this one before it writes rows in the old way.
        if (cookie := self._read_cookie()) != self._schema_cookie:
            check_schema(self._connection, self.path, self.projections)
            self._schema_cookie = cookie
        return self._transaction()

    def _transaction(self) -> WriteTransaction:
        return WriteTransaction(self._connection, self._tables, self._codecs)

    def _commit(self, transaction: WriteTransaction) -> None:
        self._connection.execute("COMMIT")
        # Writes to a file that lost its name reach no one: say so instead of acknowledging them.
        if _platform.file_identity(self.path) != self._identity:
            raise DatabaseReplaced(
                self.path,
                "was removed or replaced while it was open",
                "Restart the service to begin on the file that is there now.",
            )
        for cursor, (stream_id, version) in transaction.moved.items():
            cursor.stream_id, cursor.version = stream_id, version
        self._frames += _FRAMES_PER_COMMIT + transaction.changes() // _CHANGES_PER_FRAME

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._codecs.clear()
        self._codecs[""] = 0

    def _reopen(self) -> None:
        self._connection.close()
        self._connection = connect(self.path, read_only=False)
        self._full = None

    def _fail_all(self, requests: Sequence[_Work], error: Exception) -> None:
        for request in requests:
            request.fail(self._translate(error))
        settle(requests)

    def _checkpoint(self, mode: str) -> None:
        self._frames = 0
        try:
            # Emptying the WAL waits for readers: not for long, writers wait behind it.
            self._connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
            self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        except sqlite3.OperationalError as error:
            # Everything acknowledged stays in the WAL; a later checkpoint copies it.
            _log.warning("checkpoint of %s failed: %s", self.path, error.sqlite_errorname)
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")

    def _read_cookie(self) -> int:
        (cookie,) = self._connection.execute("PRAGMA schema_version").fetchone()
        return int(cookie)

    def _translate(self, error: BaseException) -> BaseException:
        if isinstance(error, sqlite3.Error):
            return translate(self.path, error)
        return error

    # The reader threads.

    def _read_loop(self) -> None:
        connection: sqlite3.Connection | None = None
        while (request := self._reads.get()) is not None:
            try:
                if connection is None:
                    connection = connect(self.path, read_only=True)
                    self._reader_connections.append(connection)
                request.succeed(self._read(connection, request))
            except Exception as error:
                request.fail(self._translate(error))
            settle([request])

    def _read(self, connection: sqlite3.Connection, request: Read[Any]) -> Any:
        connection.execute("BEGIN")
        try:
            return request.function(ReadTransaction(connection, self._tables))
        finally:
            connection.execute("COMMIT")


# One engine per file and process, shared by all stores on it. Keyed by device and inode: two
# paths may name one file.
_engines: dict[tuple[int, int], Engine] = {}
_engines_lock = threading.Lock()
_abandoned: list[Engine] = []
"""Engines of the parent process, kept for ever: collecting them would close its connections."""


def acquire(
    path: str, projections: Sequence[InlineProjection], *, for_rebuild: bool = False
) -> Engine:
    """The engine on a file, made when it is the first use; give it back with `release`.

    Raises:
        StoreUnusable, ProjectionMissing, StoreBusy: see eventstore.errors.
    """
    with _engines_lock:
        real = prepare_path(path)
        identity = _platform.file_identity(real)
        assert identity is not None
        engine = _engines.get(identity)
        if engine is None:
            engine = _engines[identity] = Engine(real, projections, for_rebuild=for_rebuild)
        engine.users += 1
        return engine


def release(engine: Engine) -> None:
    """Gives an engine back; the last user's release stops it. Blocks until it has stopped."""
    with _engines_lock:
        engine.users -= 1
        if engine.users > 0 or engine.abandoned:
            return
        for identity in [i for i, known in _engines.items() if known is engine]:
            del _engines[identity]
    engine.stop()


def _stop_all() -> None:
    """At interpreter exit: what was queued is still committed."""
    with _engines_lock:
        engines = list(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.stop()


def _abandon_all() -> None:
    """In a forked child: begins anew, with none of the parent's engines."""
    global _engines_lock
    _engines_lock = threading.Lock()
    for engine in _engines.values():
        engine.abandon()
    _engines.clear()


atexit.register(_stop_all)
_platform.after_fork_in_child(_abandon_all)

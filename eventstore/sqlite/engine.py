"""The threads on one database file: a writer that commits in groups, readers, and a watchdog.

The writer takes all requests that wait, in the gate, and commits them once. It drains the queue
only after it holds the gate, so whatever arrived while it waited rides along.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final, TypeVar

from eventstore import _platform
from eventstore.errors import EventStoreError, StorageFailed, StoreBusy, StoreClosed
from eventstore.projection import Projection
from eventstore.sqlite.database import (
    BUSY_TIMEOUT_S,
    check_identity,
    check_schema,
    connect,
    open_database,
    recognise,
    translate,
)
from eventstore.sqlite.gate import Gate
from eventstore.sqlite.requests import Checkpoint, Read, Request, Write, settle
from eventstore.sqlite.tables import ProjectionTable
from eventstore.sqlite.transaction import ReadTransaction
from eventstore.sqlite.writer import Writer

__all__ = ["Engine"]

_BATCH_REQUESTS_MAX: Final = 256
_READERS: Final = 2
_CHECKPOINT_FRAMES: Final = 1_000
"""Frames of 4 KB in the WAL before they are copied into the database file."""
_IDLE_S: Final = 2.0
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
_WATCH_S: Final = 1.0

T = TypeVar("T")
_Work = Write[Any] | Checkpoint

_log = logging.getLogger(__name__)


class Engine:
    """The threads and connections on one database file. Made by `registry.acquire`."""

    def __init__(self, path: str, projections: Sequence[Projection], *, for_rebuild: bool) -> None:
        self.path = path
        self.projections = tuple(projections)
        self.users = 0
        self.abandoned = False
        """True in a forked child: the parent's threads are not here, its queues not ours."""
        self._tables = {p.name: ProjectionTable(p) for p in projections}
        recognise(path)
        self._gate = Gate(path)
        try:
            connection = open_database(path, self._gate, projections, for_rebuild=for_rebuild)
        except BaseException:
            self._gate.close()
            raise
        self._identity = _platform.file_identity(path)
        self._write = Writer(path, connection, self.projections, self._tables, self._close_readers)
        self._write.for_rebuild = for_rebuild
        self._read = [_Reader(self) for _ in range(_READERS)]
        # Held while a thread uses SQLite, so that a fork can wait until none does.
        self._using = threading.Lock()
        self._lock = threading.Lock()
        self._stopping = False
        self._broken: BaseException | None = None
        self._writes: deque[_Work] = deque()
        """What waits for the writer, which takes it only once it holds the gate."""
        self._wake = threading.Condition(self._lock)
        self._reads: queue.SimpleQueue[Read[Any] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._readers: list[threading.Thread] = []

    @property
    def broken(self) -> bool:
        """Whether the writer ended by a defect."""
        return self._broken is not None

    def require_projections(self) -> None:
        """From now on the projections' tables must be as they should be, as for any store.

        Raises:
            ProjectionMissing: they are not.
        """
        if self._write.for_rebuild:
            with closing(connect(self.path, read_only=True)) as connection:
                check_schema(connection, self.path, self.projections)
            self._write.for_rebuild = False

    # What callers do, from any thread.

    def future(self, request: Request[T]) -> asyncio.Future[T]:
        """Executes a request for the running loop."""
        future = request.from_loop()
        self._submit(request)
        return future

    def call(self, request: Request[T]) -> T:
        """Executes a request and blocks until its outcome is there."""
        request.from_thread()
        self._submit(request)
        return request.wait()

    def checkpoint(self) -> None:
        """Folds the whole WAL into the file and empties it, as far as readers allow."""
        self.call(Checkpoint())

    def _submit(self, request: Request[Any]) -> None:
        with self._lock:
            if self._stopping:
                raise StoreClosed(self.path)
            if self._broken is not None:
                raise self._defect(self._broken)
            if isinstance(request, Read):
                if not self._readers:
                    self._readers = [
                        _start(f"reader-{n}", reader.run) for n, reader in enumerate(self._read)
                    ]
                self._reads.put(request)
                return
            assert isinstance(request, Write | Checkpoint)
            if self._writer is None:
                self._writer = _start("writer", self._write_loop)
                _start("watchdog", self._watch)
            self._writes.append(request)
            self._wake.notify()

    def stop(self) -> None:
        """Executes what is queued, then ends the threads and closes the file.

        Raises:
            StoreBusy: the writer waits for another process in vain; the threads are left to it.
        """
        with self._lock:
            self._stopping = True
            self._wake.notify()
        if self._writer is not None:
            while self._writer.is_alive():
                self._writer.join(_WATCH_S)
                waited = self._gate.waited_s()
                if waited > BUSY_TIMEOUT_S and self._writer.is_alive():
                    raise StoreBusy(self.path, waited, self._gate.holder())
        for _ in self._readers:
            self._reads.put(None)
        for thread in self._readers:
            thread.join()
        with self._using:
            self._write.close()
        self._close_readers()
        self._gate.close()

    # Forks: SQLite's locks and memory maps must not be inherited. Its per-process tables would
    # tell the child that it holds locks which only the parent has (sqlite.org/howtocorrupt.html).

    def locks(self) -> list[threading.Lock]:
        """What to hold, in this order, so that no thread uses SQLite."""
        return [self._using, *(reader.using for reader in self._read)]

    def close_connections(self) -> None:
        """Closes the connections while the locks are held; the threads open them again."""
        self._write.close()
        for reader in self._read:
            reader.close()

    def after_fork_in_child(self) -> None:
        """Lets go of the lock files, whose copies would keep locks held when the parent is gone."""
        self.abandoned = True
        self._gate.close()

    def _close_readers(self) -> None:
        for reader in self._read:
            with reader.using:
                reader.close()

    # The writer thread.

    def _write_loop(self) -> None:
        batch: list[_Work] = []
        try:
            while self._wait_for_work():
                with self._gate.held():
                    batch = self._take()
                    with self._using:
                        self._commit(batch)
                        if self._write.frames >= _CHECKPOINT_FRAMES:
                            self._write.checkpoint("PASSIVE")
                batch = []  # an idle thread must keep neither requests nor outcomes alive
        except BaseException as error:
            self._break(batch, error)
            raise
        finally:
            self._gate.stop_watching()

    def _wait_for_work(self) -> bool:
        """Blocks until something waits. Returns False when nothing does and the engine stops."""
        while True:
            with self._wake:
                if not self._writes and not self._stopping:
                    self._wake.wait(_IDLE_S if self._write.frames else None)
                if self._writes:
                    return True
                if self._stopping:
                    return False
            if self._write.frames:
                self._fold_wal()

    def _fold_wal(self) -> None:
        """When idle: copies the WAL into the file, and gives its space back when it grew large."""
        wal = _platform.file_size(f"{self.path}-wal")
        with self._gate.held(), self._using:
            self._write.checkpoint("TRUNCATE" if wal > _WAL_BYTES_KEPT else "PASSIVE")

    def _take(self) -> list[_Work]:
        with self._lock:
            count = min(len(self._writes), _BATCH_REQUESTS_MAX)
            return [self._writes.popleft() for _ in range(count)]

    def _commit(self, batch: Sequence[_Work]) -> None:
        group: list[Write[Any]] = []
        for request in batch:
            if isinstance(request, Write) and not request.alone:
                group.append(request)
                continue
            self._write.commit(group)
            group = []
            if isinstance(request, Write):
                self._write.commit([request])
            else:
                self._write.checkpoint("TRUNCATE")
                request.succeed(None)
                settle([request])
        self._write.commit(group)

    def _break(self, batch: Sequence[_Work], error: BaseException) -> None:
        """The writer ends by a defect: nobody may wait for it in vain, now or later."""
        with self._lock:
            self._broken = error
            stranded = [request for request in batch if not request.settled]
            stranded += self._writes
            self._writes.clear()
        for request in stranded:
            request.fail(self._defect(error))
        settle(stranded)

    def _defect(self, error: BaseException) -> EventStoreError:
        return StorageFailed(self.path, f"the writer ended by a defect ({type(error).__name__})")

    # The watchdog thread.

    def _watch(self) -> None:
        """Fails requests that waited past the deadline while another process holds the gate.

        The writer itself sits in a lock call that nothing can interrupt (the holder may be
        stopped), so somebody else must tell the callers.
        """
        while self._gate.wait_until_contended():
            time.sleep(min(_WATCH_S, BUSY_TIMEOUT_S))
            if self._gate.waited_s() < BUSY_TIMEOUT_S:
                continue
            with self._lock:
                now = time.monotonic()
                late = [r for r in self._writes if now - r.submitted_at >= BUSY_TIMEOUT_S]
                in_time = [r for r in self._writes if now - r.submitted_at < BUSY_TIMEOUT_S]
                self._writes.clear()
                self._writes.extend(in_time)
            for request in late:
                waited = now - request.submitted_at
                request.fail(StoreBusy(self.path, waited, self._gate.holder()))
            settle(late)


class _Reader:
    """One reading connection and its thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: sqlite3.Connection | None = None
        self.using = threading.Lock()

    def run(self) -> None:
        """Executes reads until it is told to stop."""
        while (request := self._engine._reads.get()) is not None:  # noqa: SLF001 - one unit
            try:
                with self.using:
                    request.succeed(self._execute(request))
            except BaseException as error:
                request.fail(translate(self._engine.path, error))
            settle([request])
            del request  # as in the writer

    def close(self) -> None:
        """Closes the connection; the next read opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, request: Read[Any]) -> Any:
        engine = self._engine
        check_identity(engine.path, engine._identity)  # noqa: SLF001 - one unit
        if self._connection is None:
            self._connection = connect(engine.path, read_only=True)
        self._connection.execute("BEGIN")
        try:
            return request.function(ReadTransaction(self._connection, engine._tables))  # noqa: SLF001
        finally:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")


def _start(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"eventstore-{name}", daemon=True)
    thread.start()
    return thread

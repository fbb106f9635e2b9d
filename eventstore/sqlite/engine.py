"""The threads on one database file: a writer that commits in groups, readers, and a watchdog.

The writer takes all requests that wait, in the gate, and commits them once. It drains the queue
only after it holds the gate, so whatever arrived while it waited rides along. What is brief and
need not wait for anything is done in the same way on the thread of the loop that awaits it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
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
_STEP_REQUESTS_MAX: Final = 64
_STEP_S: Final = 0.005
"""How long a loop is held up by reads of one step; the writes behind them take about as long."""
_WAITED_S: Final = 0.010
_PATIENCE_S: Final = 0.25
"""How long nothing is executed on a loop after a step that had to wait longer than `_WAITED_S`."""
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
        self._near = _Reader(self, brief=True)
        # Held while a thread uses SQLite, so that a fork can wait until none does.
        self._using = threading.Lock()
        self._lock = threading.Lock()
        self._stopping = False
        self._broken: BaseException | None = None
        self._writes: deque[_Work] = deque()
        """What waits for the gate: whoever holds it takes from here, in order."""
        self._told = False
        """Whether the writer is to take it."""
        self._brief_reads: deque[Read[Any]] = deque()
        self._steps: set[asyncio.AbstractEventLoop] = set()
        """The loops that will call `_step`."""
        self._slow_until = 0.0
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
            here = self._here(request)
            if isinstance(request, Read):
                if not self._readers:
                    self._readers = [
                        _start(f"reader-{n}", reader.run) for n, reader in enumerate(self._read)
                    ]
                if here is None or any(reader.using.locked() for reader in self._read):
                    self._reads.put(request)
                else:
                    self._brief_reads.append(request)
                    self._step_soon(here)
                return
            assert isinstance(request, Write | Checkpoint)
            if self._writer is None:
                self._writer = _start("writer", self._write_loop)
                _start("watchdog", self._watch)
            self._writes.append(request)
            if here is None:
                self._tell()
            else:
                self._step_soon(here)

    def _tell(self) -> None:
        """Lets the writer do what waits; the lock is held."""
        self._told = True
        self._wake.notify()

    def stop(self) -> None:
        """Executes what is queued, then ends the threads and closes the file.

        Raises:
            StoreBusy: the writer waits for another process in vain; the threads are left to it.
        """
        with self._lock:
            self._stopping = True
            self._wake.notify()
            self._hand_over_reads()
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
        return [self._using, *(reader.using for reader in (*self._read, self._near))]

    def close_connections(self) -> None:
        """Closes the connections while the locks are held; the threads open them again."""
        self._write.close()
        for reader in (*self._read, self._near):
            reader.close()

    def after_fork_in_child(self) -> None:
        """Lets go of the lock files, whose copies would keep locks held when the parent is gone."""
        self.abandoned = True
        self._gate.close()

    def _close_readers(self) -> None:
        for reader in (*self._read, self._near):
            with reader.using:
                reader.close()

    # Brief requests, on the thread of the loop that awaits them. Waking another thread and being
    # woken by it takes longer than most of them; and where many tasks of a loop write or read at
    # once, threads that take the interpreter from each other take many times as long. So what a
    # loop hands over in one of its rounds is done together in the next, a few milliseconds at a
    # time, unless anything would have to wait: then it is left to the engine's threads.

    def _here(self, request: Request[Any]) -> asyncio.AbstractEventLoop | None:
        """The loop on whose thread a request may be executed."""
        brief = isinstance(request, Read | Write) and request.brief
        return request.loop if brief and time.monotonic() >= self._slow_until else None

    def _step_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop not in self._steps:
            self._steps.add(loop)
            loop.call_soon(self._step, loop)

    def _step(self, loop: asyncio.AbstractEventLoop) -> None:
        """Executes what waits for as long as a loop may be held up."""
        if self.abandoned:
            return
        began, worked = time.monotonic(), time.thread_time()
        with self._lock:
            self._steps.discard(loop)
        self._read_here(began + _STEP_S)
        self._write_here()
        with self._lock:
            if time.monotonic() - began - (time.thread_time() - worked) > _WAITED_S:
                # The disk is slow, or a busy thread keeps the interpreter.
                self._slow_until = time.monotonic() + _PATIENCE_S
                self._hand_over_reads()
                if self._writes:
                    self._tell()
            elif self._brief_reads or (self._writes and not self._told):
                self._step_soon(loop)

    def _read_here(self, until: float) -> None:
        while time.monotonic() < until:
            try:
                request = self._brief_reads.popleft()
            except IndexError:
                return
            if not self._near.execute_at_once(request):
                self._reads.put(request)

    def _hand_over_reads(self) -> None:
        while self._brief_reads:
            self._reads.put(self._brief_reads.popleft())

    def _write_here(self) -> None:
        if not self._writes:
            return
        idle = not self._write.frames
        done = self._commit_here()
        with self._lock:
            if not done or idle or self._write.frames >= _CHECKPOINT_FRAMES:
                self._tell()

    def _commit_here(self) -> bool:
        """Commits brief requests. Returns False when the writer has to go on with them."""
        if not self._using.acquire(blocking=False):
            return False
        try:
            if not self._gate.enter_if_free():
                # Another process writes: the writer stands in line, which is fair to both.
                self._slow_until = time.monotonic() + _PATIENCE_S
                return False
            try:
                return self._commit_at_once(self._take_brief(_STEP_REQUESTS_MAX))
            finally:
                self._gate.leave()
        finally:
            self._using.release()

    def _commit_at_once(self, batch: list[Write[Any]]) -> bool:
        try:
            done = self._write.commit(batch, wait=False)
        except BaseException as error:
            # In the main thread a Ctrl-C may strike anywhere.
            self._write.leave_in_doubt(batch, error)
            with self._lock:
                self._tell()
            raise
        if not done:
            with self._lock:
                self._writes.extendleft(reversed(batch))
        return done and not self._write.in_doubt

    # The writer thread.

    def _write_loop(self) -> None:
        batch: list[_Work] = []
        try:
            while self._wait_for_work():
                with self._gate.held():
                    batch = self._take(_BATCH_REQUESTS_MAX)
                    with self._using:
                        self._write.resolve()
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
        """Blocks until the writer is told to work. Returns False when the engine stops instead."""
        while True:
            with self._wake:
                woken = self._told or self._stopping
                if not woken:
                    woken = self._wake.wait(_IDLE_S if self._write.frames else None)
                # After so long a wait also what its loop has left, because it has stopped.
                told, self._told = self._told or not woken, False
                if self._write.in_doubt or (self._writes and (told or self._stopping)):
                    return True
                if self._stopping:
                    return False
                idle = time.monotonic() - self._write.committed_at >= _IDLE_S
            if self._write.frames >= (1 if idle else _CHECKPOINT_FRAMES):
                self._fold_wal()

    def _fold_wal(self) -> None:
        """When idle: copies the WAL into the file, and gives its space back when it grew large."""
        wal = _platform.file_size(f"{self.path}-wal")
        with self._gate.held(), self._using:
            self._write.checkpoint("TRUNCATE" if wal > _WAL_BYTES_KEPT else "PASSIVE")

    def _take(self, count: int) -> list[_Work]:
        with self._lock:
            count = min(len(self._writes), count)
            batch = [self._writes.popleft() for _ in range(count)]
            self._told = self._told or bool(self._writes)
            return batch

    def _take_brief(self, count: int) -> list[Write[Any]]:
        batch: list[Write[Any]] = []
        with self._lock:
            while self._writes and len(batch) < count:
                request = self._writes[0]
                if not isinstance(request, Write) or not request.brief:
                    break
                self._writes.popleft()
                batch.append(request)
        return batch

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
    """One reading connection and its thread; the `brief` one has none, for it serves loops."""

    def __init__(self, engine: Engine, *, brief: bool = False) -> None:
        self._engine = engine
        self._brief = brief
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

    def execute_at_once(self, request: Read[Any]) -> bool:
        """Executes a read if it is short. Returns False when it is to be left to a thread."""
        if not self.using.acquire(blocking=False):
            return False
        try:
            request.succeed(self._execute(request))
        except Exception:
            return False  # a thread can wait, and tells what is wrong
        except BaseException as error:
            request.fail(error)
        finally:
            self.using.release()
        settle([request])
        return True

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
            if self._brief:
                self._connection.execute("PRAGMA busy_timeout = 0")
        connection = self._connection
        connection.execute("BEGIN")
        try:
            transaction = ReadTransaction(connection, engine._tables, brief=self._brief)  # noqa: SLF001
            with _collection_paused():
                return request.function(transaction)
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")


_pausing: Final = threading.Lock()


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keeps the garbage collector out while a read makes its objects, all of which stay.

    It would go through them over and over, and count them as a reason to go through all others
    the process has: together that took longer than the reads themselves. Whoever pauses does so
    alone, so that reads that overlap do not keep it out for good.
    """
    if not _pausing.acquire(blocking=False):
        yield
        return
    try:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()
    finally:
        _pausing.release()


def _start(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"eventstore-{name}", daemon=True)
    thread.start()
    return thread

"""The threads on one database file: a writer that commits in groups, readers, and a watchdog.

The writer takes all requests that wait, in the gate, and commits them once. It drains the queue
only after it holds the gate, so whatever arrived while it waited rides along. What is brief and
need not wait for anything is done in the same way on the thread of the loop that awaits it.
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
from functools import partial
from typing import Any, Final, TypeVar

from eventstore import _platform
from eventstore._collection import collection_paused
from eventstore.errors import EventStoreError, StorageFailed, StoreBusy, StoreClosed
from eventstore.observer import Observer
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
from eventstore.sqlite.gate import Gate, release_fully
from eventstore.sqlite.requests import (
    Checkpoint,
    Due,
    Read,
    Request,
    Rewrite,
    Write,
    deliver,
    raise_error,
    settle,
)
from eventstore.sqlite.tables import ProjectionTable
from eventstore.sqlite.transaction import ReadTransaction
from eventstore.sqlite.writer import Writer

__all__ = ["READERS", "Engine"]

_BATCH_REQUESTS_MAX: Final = 256
READERS: Final = 2
_CHECKPOINT_FRAMES: Final = 1_000
"""Frames of 4 KB in the WAL before they are copied into the database file."""
_IDLE_S: Final = 2.0
_STEP_REQUESTS_MAX: Final = 40
"""How many writes of one step are one commit, which takes some 3 ms of a loop's time."""
_STEP_S: Final = 0.0015
"""How long a loop is held up by the reads before them."""
_WAITED_S: Final = 0.010
_PATIENCE_S: Final = 0.25
"""How long nothing is executed on a loop after a step that had to wait longer than `_WAITED_S`."""
_SYNC_S: Final = 0.001
"""For how long a disk may keep a loop waiting in a commit that waits for it."""
_SYNC_PATIENCE_S: Final = 1.0
"""How long no such commit is made on a loop after one that took longer."""
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
_WATCH_S: Final = 1.0

T = TypeVar("T")
R = TypeVar("R", bound=Request[Any])
_Work = Write[Any] | Checkpoint | Rewrite

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
            self._write = Writer(
                path, connection, self.projections, self._tables, self._close_readers
            )
        except BaseException:
            self._gate.close()
            raise
        self._identity = _platform.file_identity(path)
        self._write.for_rebuild = for_rebuild
        self._read = [_Reader(self) for _ in range(READERS)]
        self._near = _Reader(self, brief=True)
        # Held while a thread uses SQLite, so that a fork can wait until none does.
        self._using = threading.RLock()
        # A signal's handler may ask for something in the middle of it.
        self._lock = threading.RLock()
        self._stopping = False
        self._broken: BaseException | None = None
        self._writes: deque[_Work] = deque()
        """What waits for the gate: whoever holds it takes from here, in order."""
        self._told = False
        """Whether the writer is to take it."""
        self._syncer: threading.Thread | None = None
        """Has the disk take the WAL, for the writer to copy it then; None when that is not due."""
        self._synced = False
        """Whether the syncer is done."""
        self._brief_reads: deque[Read[Any]] = deque()
        self._steps: set[asyncio.AbstractEventLoop] = set()
        """The loops that will call `_step`."""
        self._stepping: set[asyncio.AbstractEventLoop] = set()
        """The loops that are at it, and may leave something to the threads."""
        self._taken: list[Write[Any]] = []
        """What a loop is committing, whose thread holds `_using`."""
        self._due: dict[asyncio.AbstractEventLoop, Due] = {}
        """What each loop has committed and is to deliver out of the gate."""
        self._slow_until = 0.0
        self._syncs_slow_until = 0.0
        """Until when nothing that waits for the disk is executed on a loop."""
        self._stepped_early = False
        """Whether the last step was one that no loop called."""
        self._crowded = False
        """Whether more than one request came in the last round of a loop."""
        self._wake = threading.Condition(self._lock)
        self._reads: queue.SimpleQueue[Read[Any] | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._ended = threading.Event()
        """Whether the writer is done, for good."""
        self._watchdog: threading.Thread | None = None
        self._readers: list[threading.Thread] = []

    @property
    def broken(self) -> bool:
        """Whether the writer ended by a defect."""
        return self._broken is not None

    def observe(self, observer: Observer) -> None:
        """Tells an observer of commits and of waiting for them from now on."""
        self._write.observer = self._gate.observer = observer

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
        if self._submit(request):
            loop = future.get_loop()
            try:
                self._step(loop, early=True)
            except BaseException as error:
                # Out of the loop, as from a step that it calls: whoever awaits has done nothing.
                loop.call_soon(raise_error, error)
        return future

    def call(self, request: Request[T]) -> T:
        """Executes a request and blocks until its outcome is there.

        When a signal's handler raises while it waits for its turn, a request that writes is not
        executed any more: it may be allowed by a lock that is somebody else's by then.
        """
        try:
            return self.begin(request).wait()
        except BaseException:
            if isinstance(request, Write | Checkpoint | Rewrite):
                self._withdraw(request)
            raise

    def _withdraw(self, request: _Work) -> None:
        """Takes back what waits. What has been taken is done before anybody else's turn."""
        with self._lock:
            if request in self._writes:
                self._writes.remove(request)
            if isinstance(request, Rewrite):
                request.given_up = True

    def begin(self, request: R) -> R:
        """Hands a request over for a thread that will wait for it later."""
        request.from_thread()
        self._submit(request)
        return request

    def checkpoint(self) -> bool:
        """Folds the whole WAL into the file and empties it; False when readers kept it from it."""
        return self.call(Checkpoint())

    def rewrite(self, at_most_s: float | None) -> bool:
        """Writes the whole file anew, while writers wait.

        After so many seconds it is ended, and False returned; a Ctrl-C ends it too. Then the file
        is as it was.
        """
        return self.call(Rewrite(at_most_s))

    def _submit(self, request: Request[Any]) -> bool:
        """Hands a request over. Returns whether this thread, a loop's, may do it at once."""
        with self._lock:
            if self._stopping:
                raise StoreClosed(self.path)
            if self._broken is not None:
                raise self._defect(self._broken)
            here = self._here(request)
            # One that cannot be started is the next time.
            if self._writer is None and not (here is None and isinstance(request, Read)):
                if self._watchdog is None:
                    self._watchdog = _start("watchdog", self._watch)
                self._writer = _start("writer", self._write_loop)
            if isinstance(request, Read):
                while len(self._readers) < READERS:
                    number = len(self._readers)
                    self._readers.append(_start(f"reader-{number}", self._read[number].run))
                # Beside a thread that reads, a loop is slower at it than another one; where all are
                # at something, which may be long, it is not.
                busy = sum(reader.busy for reader in self._read)
                if here is None or 0 < busy < READERS:
                    self._reads.put(request)
                    return False
                at_once = self._step_soon(here)
                self._brief_reads.append(request)
                return at_once
            assert isinstance(request, Write | Checkpoint | Rewrite)
            # In this order: what is handed over is done, also if a signal's handler raises here.
            if here is None:
                self._tell()
                at_once = False
            else:
                at_once = self._step_soon(here)
            self._writes.append(request)
            return at_once

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
            self._wake.notify_all()
            self._hand_over_reads()
        if self._writer is not None:
            # Not by joining it: Python takes a thread for ended when that is interrupted.
            while not self._ended.wait(_WATCH_S):
                waited = self._gate.waited_s()
                if waited > BUSY_TIMEOUT_S:
                    raise StoreBusy(self.path, waited, self._gate.holder())
        with self._wake:
            self._wake.wait_for(lambda: not self._stepping)
        self._reads.put(None)
        for thread in (*self._readers, *filter(None, [self._syncer])):
            thread.join()
        with self._using:
            self._write.close()
        self._close_readers()
        self._gate.close()

    # Forks: SQLite's locks and memory maps must not be inherited. Its per-process tables would
    # tell the child that it holds locks which only the parent has (sqlite.org/howtocorrupt.html).

    def locks(self) -> tuple[list[threading.RLock], threading.RLock]:
        """What to hold so that no thread uses SQLite: those of the readers, and the writer's."""
        return [reader.using for reader in (*self._read, self._near)], self._using

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
    # time, unless anything would have to wait: then it is left to the engine's threads. Where the
    # requests come one by one, the first of a round is done at once; the others of the same round
    # wait for the next all the same, so that no task keeps a loop to itself.
    #
    # In the main thread a signal's handler may raise anywhere in it: behind any call, at the start
    # of any function, where a loop jumps back. Nothing may be lost then and no lock be kept, so
    # what moves from one place to another does so between two such points (`del` is no call), and
    # the exception goes on its way once the rest is left to the threads.

    def _here(self, request: Request[Any]) -> asyncio.AbstractEventLoop | None:
        """The loop on whose thread a request may be executed."""
        now = time.monotonic()
        return request.loop if now >= self._slow_until and self._is_brief(request, now) else None

    def _is_brief(self, request: Request[Any], now: float) -> bool:
        if isinstance(request, Write):
            return request.brief and not (request.full and now < self._syncs_slow_until)
        return isinstance(request, Read) and request.brief

    def _step_soon(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Has the loop call `_step`. Returns whether the first request need not wait for that."""
        if loop in self._steps:
            return False
        loop.call_soon(self._step, loop)
        self._steps.add(loop)
        return not self._crowded

    def _step(self, loop: asyncio.AbstractEventLoop, *, early: bool = False) -> None:
        """Executes what waits for as long as a loop may be held up.

        An early step is one that the loop did not call: it still will.
        """
        if self.abandoned:
            return
        try:
            if not early:
                self._steps.discard(loop)
                came = self._stepped_early + len(self._brief_reads) + len(self._writes)
                self._crowded = came > 1
            self._stepped_early = early
            if self._brief_reads or self._writes:
                self._execute_here(loop)
        except BaseException:
            _insist(partial(self._leave_to_threads, loop))
            raise

    def _execute_here(self, loop: asyncio.AbstractEventLoop) -> None:
        began, worked = time.monotonic(), time.thread_time()
        with self._lock:
            self._stepping.add(loop)
        if self._brief_reads:
            self._read_here(loop, began + _STEP_S)
        self._write_here(loop)
        if loop in self._due:
            deliver(self._due[loop], loop)
            del self._due[loop]
        took = time.monotonic() - began
        waited = took > _WAITED_S and took - (time.thread_time() - worked) > _WAITED_S
        with self._lock:
            if waited:
                # The disk is slow, or a busy thread keeps the interpreter.
                self._slow_until = time.monotonic() + _PATIENCE_S
                self._hand_over_reads()
                if self._writes:
                    self._tell()
            elif self._brief_reads or (self._writes and not self._told):
                self._step_soon(loop)
            self._end_step(loop)

    def _leave_to_threads(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop in self._due:
            deliver(self._due[loop])
            del self._due[loop]
        with self._lock:
            self._steps.discard(loop)
            self._hand_over_reads()
            self._tell()
            self._end_step(loop)

    def _end_step(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stepping.discard(loop)
        if self._stopping:
            self._wake.notify_all()
        if self._broken is not None:
            self._strand((), self._broken)

    def _read_here(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        request: Read[Any] | None = None
        try:
            while time.monotonic() < until:
                with self._lock:
                    if not self._brief_reads:
                        return
                    request = self._brief_reads[0]
                    del self._brief_reads[0]
                if not self._near.execute_at_once(request, loop):
                    self._reads.put(request)
                request = None
        except BaseException:
            _insist(self._near.leave)
            if request is not None:
                self._reads.put(request)  # no harm if it is done already
            raise

    def _hand_over_reads(self) -> None:
        while self._brief_reads:
            self._reads.put(self._brief_reads[0])
            del self._brief_reads[0]

    def _write_here(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._writes:
            return
        idle = not self._write.frames
        try:
            done = self._commit_here(loop)
        except BaseException as error:
            left = _insist(partial(self._leave_in_doubt, error, loop))
            if left and isinstance(error, SystemExit):
                return  # by a handler or by a projection: the writer will see
            raise
        with self._lock:
            full = self._write.frames >= _CHECKPOINT_FRAMES and self._syncer is None
            if not done or idle or full:
                self._tell()

    def _commit_here(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Commits brief requests. Returns False when the writer has to go on with them."""
        if not self._using.acquire(blocking=False):
            return False
        if not self._gate.enter_if_free():
            if not self._gate.wanted:
                # Another process writes: the writer stands in line, which is fair to both.
                self._slow_until = time.monotonic() + _PATIENCE_S
            self._using.release()
            return False
        self._take_brief(_STEP_REQUESTS_MAX)
        self._due.setdefault(loop, [])
        self._write.due = self._due[loop]
        done = self._write.commit(self._taken, wait=False)
        with self._lock:
            if not done:
                self._writes.extendleft(reversed(self._taken))
            self._taken = []
        done = done and not self._write.in_doubt
        if done and self._write.synced_s > _SYNC_S:  # by this commit
            self._syncs_slow_until = time.monotonic() + _SYNC_PATIENCE_S
        self._gate.leave()
        self._using.release()
        return done

    def _leave_in_doubt(self, error: BaseException, loop: asyncio.AbstractEventLoop) -> bool:
        """After an interruption: what was taken is the writer's, and nothing is held any more.

        Returns False when nothing was taken yet.
        """
        if not self._using.acquire(blocking=False):
            return False  # another thread is at it
        with self._lock:
            left = [request for request in self._taken if not request.settled]
            if left:
                self._writes = deque(r for r in self._writes if r not in left)
                self._write.leave_in_doubt(left, error, loop)
            self._taken = []
            self._tell()
        self._gate.leave_if_inside()
        release_fully(self._using)
        return bool(left)

    # The writer thread.

    def _write_loop(self) -> None:
        batch: list[_Work] = []
        due: Due = []
        try:
            while self._wait_for_work():
                with self._gate.held():
                    batch = self._take(_BATCH_REQUESTS_MAX)
                    with self._using:
                        self._write.due = due
                        self._write.resolve()
                        self._commit(batch)
                deliver(due)
                batch = []  # an idle thread must keep neither requests nor outcomes alive
                if self._synced or self._write.frames >= _CHECKPOINT_FRAMES:
                    self._fold_wal()
        except BaseException as error:
            self._break(batch, error)
            deliver(due)
            raise
        finally:
            self._gate.stop_watching()
            self._ended.set()

    def _wait_for_work(self) -> bool:
        """Blocks until the writer is told to work. Returns False when the engine stops instead."""
        while True:
            with self._wake:
                if self._stopping:
                    self._wake.wait_for(lambda: not self._stepping)
                woken = self._told or self._stopping
                if not woken:
                    woken = self._wake.wait(_IDLE_S)
                # After so long a wait also what a loop has left: it has stopped, or it is held up,
                # or a signal's handler raised just where its step began.
                told, self._told = self._told or not woken, False
                if not woken:
                    self._steps.clear()
                    self._hand_over_reads()
                if self._write.in_doubt or (self._writes and (told or self._stopping)):
                    return True
                if self._stopping:
                    return False
                idle = time.monotonic() - self._write.committed_at >= _IDLE_S
            if self._synced or self._write.frames >= (1 if idle else _CHECKPOINT_FRAMES):
                self._fold_wal()

    def _fold_wal(self) -> None:
        """Copies the WAL into the file, and gives its space back when it grew large.

        Most of the time is the disk's, which is to have the WAL before the file. Another thread
        waits for that first, and has this called once more: until then everybody writes on.
        """
        if self._stopping:
            return  # where the interpreter ends no thread can be started, and closing does it all
        if self._syncer is None:
            try:
                self._syncer = _start("syncer", self._sync_wal)
            except RuntimeError as error:  # there are too many: tried again behind other commits
                _log.warning("%s: no checkpoint: %s", self.path, error)
        elif self._synced:
            # Emptying it waits for readers, and then nobody may wait for that.
            size = _platform.file_size(f"{self.path}-wal")
            empty = not self._writes and size > _WAL_BYTES_KEPT
            with self._gate.held(), self._using:
                self._write.checkpoint("TRUNCATE" if empty else "PASSIVE")
            self._syncer, self._synced = None, False

    def _sync_wal(self) -> None:
        _platform.sync_file(f"{self.path}-wal")
        with self._lock:
            self._synced = True
            self._tell()

    def _take(self, count: int) -> list[_Work]:
        with self._lock:
            count = min(len(self._writes), count)
            batch = [self._writes.popleft() for _ in range(count)]
            self._told = self._told or bool(self._writes)
            return batch

    def _take_brief(self, count: int) -> None:
        now = time.monotonic()
        with self._lock:
            while self._writes and len(self._taken) < count:
                request = self._writes[0]
                if not isinstance(request, Write) or not self._is_brief(request, now):
                    self._tell()
                    break
                self._taken += [request]
                del self._writes[0]

    def _commit(self, batch: Sequence[_Work]) -> None:
        group: list[Write[Any]] = []
        for request in batch:
            if isinstance(request, Write) and not request.alone:
                group.append(request)
                continue
            self._write.commit(group)
            group = []
            deliver(self._write.due)  # what follows takes long
            if isinstance(request, Write):
                self._write.commit([request])
                continue
            if isinstance(request, Checkpoint):
                request.succeed(self._write.checkpoint("TRUNCATE"))
            else:
                try:
                    request.succeed(self._write.rewrite(request))
                except Exception as error:
                    request.fail(translate(self.path, error))
            settle([request])
        self._write.commit(group)

    def _break(self, batch: Sequence[_Work], error: BaseException) -> None:
        """The writer ends by a defect: nobody may wait for it in vain, now or later."""
        with self._lock:
            self._broken = error
            self._strand(batch, error)

    def _strand(self, batch: Sequence[_Work], error: BaseException) -> None:
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
        self.using = threading.RLock()
        self.busy = False

    def run(self) -> None:
        """Executes reads until it is told to stop."""
        while (request := self._engine._reads.get()) is not None:  # noqa: SLF001 - one unit
            self.busy = True
            try:
                with self.using:
                    request.succeed(self._execute(request))
            except BaseException as error:
                request.fail(translate(self._engine.path, error))
            self.busy = False
            settle([request])
            del request  # as in the writer
        self._engine._reads.put(None)  # noqa: SLF001 - for the next one

    def execute_at_once(self, request: Read[Any], here: asyncio.AbstractEventLoop) -> bool:
        """Executes a read, which may be another loop's, on the thread of the loop `here`.

        Returns False when it is not short and is to be left to a thread.
        """
        if not self.using.acquire(blocking=False):
            return False
        try:
            request.succeed(self._execute(request))
        except Exception:
            return False  # a thread can wait, and tells what is wrong
        finally:
            if self._connection is not None and self._connection.in_transaction:
                self.close()  # a signal's handler raised where it was to be ended
            self.using.release()
        due: Due = []
        settle([request], due)
        deliver(due, here)
        return True

    def leave(self) -> None:
        """After an interruption: ends the snapshot, and gives back what this thread holds."""
        if self.using.acquire(blocking=False):
            self.close()
            release_fully(self.using)

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
        try:
            connection.execute("BEGIN")
            transaction = ReadTransaction(connection, engine._tables, brief=self._brief)  # noqa: SLF001
            with collection_paused():
                return request.function(transaction)
        finally:
            if connection.in_transaction:
                self._end(connection)

    def _end(self, connection: sqlite3.Connection) -> None:
        """Ends the snapshot. What was read of it counts, even if this fails."""
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            # No read could begin on it any more.
            _log.warning("opening %s again: %s", self._engine.path, type(error).__name__)
            self.close()


def _insist(function: Callable[[], T]) -> T:
    """Calls a function, which may be called again, until no signal's handler interrupts it."""
    while True:
        try:
            return function()
        except (KeyboardInterrupt, SystemExit):
            continue


def _start(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"eventstore-{name}", daemon=True)
    thread.start()
    return thread

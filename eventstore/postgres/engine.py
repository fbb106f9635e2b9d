"""The threads and connections on one schema: a writer that commits in groups, and readers.

The writer takes all requests that wait and commits them together; what arrives meanwhile is the
next group. Connections for maintenance and snapshots are borrowed by the threads that call for
them.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

from eventstore.errors import (
    MaintenanceRunning,
    OutcomeUnknown,
    ServerUnavailable,
    StorageFailed,
    StoreBusy,
    StoreClosed,
)
from eventstore.observer import Observer
from eventstore.postgres.address import milliseconds
from eventstore.postgres.appending import Writer
from eventstore.postgres.connection import (
    Connection,
    Connector,
    is_broken,
    is_lost,
    leads_to_standby,
    sever,
    translate,
)
from eventstore.postgres.database import (
    active_inline,
    check_definition,
    check_schema,
    hold_writers_off,
    prepare,
    schema_version,
)
from eventstore.postgres.line import Line
from eventstore.postgres.locks import POSITIONS_MAX, Locks
from eventstore.postgres.queries import queries
from eventstore.postgres.requests import Kind, Read, Write
from eventstore.postgres.tables import ProjectionTable
from eventstore.postgres.transaction import MaintenanceTransaction, ReadTransaction
from eventstore.projection import Projection
from eventstore.requests import Request, settle
from eventstore.store import Rewritten

__all__ = ["Engine"]

T = TypeVar("T")

_GROUP_MAX: Final = 256
_GATHERING: Final = 0.2
"""Which part of the time of the last group the next one may wait for those who come to it."""
_GATHERING_MAX_S: Final = 0.005
_READERS: Final = 3
_IDLE_MAX: Final = 4
"""Borrowed connections that are kept for the next who needs one."""
_READ_AGAIN_S: Final = 5.0
"""How long a read that lost its connection is tried again."""
_READ_PAUSE_S: Final = 0.05
_ASIDE_S: Final = 0.1
"""After which those are tried again that could not have their locks."""
_ASIDE_PATIENCE_S: Final = 0.01
"""How long the others wait for the locks of one of these."""
_REWRITE_PAUSE_S: Final = 0.05
_KEEPERS_WAIT_S: Final = 15.0
"""How long a rewrite waits for those who may still read what was removed. A replica says each ten
seconds what is read there."""
_WATCH_S: Final = 1.0
_GRACE_S: Final = 15.0
"""How long after its own timeouts a server that says nothing is given up."""

_SNAPSHOT: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_MAINTENANCE: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_NO_IDLE_TIMEOUT: Final = "SET LOCAL idle_in_transaction_session_timeout = 0"
_TRANSACTION_TIMEOUT: Final = 170_000
"""From which version on a server has one."""

_log = logging.getLogger(__name__)


class Engine:
    """The threads and connections on one schema. Made by `registry.acquire`."""

    def __init__(
        self,
        connector: Connector,
        projections: Sequence[Projection],
        *,
        for_rebuild: bool,
        create: bool,
        create_schema: bool,
        partitions: int,
    ) -> None:
        self.connector = connector
        self.address = connector.address
        self.projections = tuple(projections)
        self.users = 0
        self.abandoned = False
        """True in a forked child: the parent's threads are not here, its connections not ours."""
        self.locks = Locks(self.address.schema)
        self.tables = {p.name: ProjectionTable(p, self.address.schema) for p in projections}
        self._for_rebuild = for_rebuild
        self._checked: set[Projection] = set()
        self._codecs: dict[int, str] = {}
        self._q = queries(self.address.schema)
        self._timeouts = (
            milliseconds(self.address.lock_timeout_s),
            milliseconds(self.address.statement_timeout_s),
        )
        self._read_timeouts = "SET LOCAL statement_timeout = '" + self._timeouts[1] + "'"
        self._inline_tables = ", ".join(sorted(table.name for table in self.tables.values()))
        self._idle: list[Connection] = []
        self._borrowed: set[Connection] = set()
        self._reading: dict[Connection, float] = {}
        """Of the readers' connections in use since when they wait for the server, as far as the
        watchdog knows, on the monotonic clock."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._stopping = False
        self._maintainer = threading.local()
        """Which backend holds the lock of maintenance that this thread is at."""
        self._ended = False
        """Whether all threads have ended but the watchdog, which watches over them until then."""
        self._broken: BaseException | None = None
        self._line = Line()
        self._observer: Observer | None = None
        self._crowd = 0
        """How many requests were under way when the last group was done."""
        self._took_s = 0.0
        self._reads: queue.SimpleQueue[Read[Any] | None] = queue.SimpleQueue()
        self._write = Writer(connector, self.locks, self.tables, self._expected, self._codecs)
        self._writer: threading.Thread | None = None
        self._watchdog: threading.Thread | None = None
        self._readers: list[threading.Thread] = []
        try:
            with self._lent() as connection:
                prepare(
                    connection,
                    self.address,
                    self.locks,
                    self.projections,
                    create=create,
                    create_schema=create_schema,
                    partitions=partitions,
                    for_rebuild=for_rebuild,
                )
            if for_rebuild:
                for projection in projections:
                    self.check(projection)
        except BaseException:
            self.stop()
            raise

    @property
    def broken(self) -> bool:
        """Whether the writer ended by a defect."""
        return self._broken is not None

    def require_projections(self) -> None:
        """From now on the projections' tables must be as they should be, as for any store.

        Raises:
            ProjectionMissing: they are not.
        """
        if self._for_rebuild:
            try:
                with self._answering(lambda c: c.execute("SELECT 1")) as (connection, _):
                    check_schema(connection, self.address, self.projections, for_rebuild=False)
            except psycopg.Error as error:
                raise translate(self.address, error) from error
            self._for_rebuild = False

    def _expected(self) -> tuple[int, str | None]:
        """The schema version that is written, and the inline projections, None for any."""
        active = None if self._for_rebuild else active_inline(self.projections)
        return schema_version(), active

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

    def _submit(self, request: Request[Any]) -> None:
        with self._lock:
            if self._stopping:
                raise StoreClosed(self.address.shown)
            if self._broken is not None:
                raise self._defect(self._broken)
            if self._writer is None:
                self._start_threads()
            if isinstance(request, Read):
                self._reads.put(request)
            else:
                assert isinstance(request, Write)
                self._line.add(request)
                if len(self._line) in (1, self._crowd):
                    self._wake.notify_all()

    def _start_threads(self) -> None:
        """Starts those that are missing, the writer last: what fails is tried next time."""
        while len(self._readers) < _READERS:
            self._readers.append(_start(f"reader-{len(self._readers)}", self._read_loop))
        if self._watchdog is None:
            self._watchdog = _start("watchdog", self._watch)
        self._writer = _start("writer", self._write_loop)

    def stop(self) -> None:
        """Executes what is queued, then ends the threads and closes the connections."""
        with self._lock:
            self._stopping = True
            self._wake.notify_all()
        if self._writer is not None:
            self._writer.join()
        self._reads.put(None)
        for thread in self._readers:
            thread.join()
        self._write.close()
        with self._wake:
            self._ended = True
            self._wake.notify_all()
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def after_fork_in_child(self) -> list[Connection]:
        """Gives up what is the parent's; returns the connections, never to be used or closed."""
        self.abandoned = True
        return [*self._idle, *self._borrowed, *self._write.abandon()]

    # Connections that are lent to whoever calls.

    @contextmanager
    def _lent(self) -> Iterator[Connection]:
        """A connection outside any transaction, for the calling thread."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self.connector.open()
        with self._lock:
            self._borrowed.add(connection)
        try:
            yield connection
        except BaseException as error:
            if is_lost(error, connection):
                connection.close()  # it may work, but lead to a standby
            self._give_back(connection, whole=False)
            raise
        self._give_back(connection, whole=True)

    def _give_back(self, connection: Connection, *, whole: bool) -> None:
        if not whole and not is_broken(connection):
            try:
                connection.execute("ROLLBACK")
                whole = True
            except BaseException as error:
                # Also a Ctrl-C in the middle of an answer.
                _log.info("closing a connection: %s", type(error).__name__)
        with self._lock:
            self._borrowed.discard(connection)
            if (
                whole
                and not connection.closed
                and not self._stopping
                and len(self._idle) < _IDLE_MAX
                # Behind the same address there may be a primary again, and nothing cuts this one.
                and not leads_to_standby(connection)
            ):
                self._idle.append(connection)
                return
        connection.close()

    @contextmanager
    def _answering(self, probe: Callable[[Connection], T]) -> Iterator[tuple[Connection, T]]:
        """As `_lent`, of a connection that has just answered; those that were lost are let go."""
        while True:
            fresh = not self._idle
            with self._lent() as connection:
                try:
                    answer = probe(connection)
                except psycopg.Error as error:
                    if fresh or not is_lost(error, connection):
                        raise
                    connection.close()
                    continue
                yield connection, answer
                return

    def _usable(self) -> None:
        if self._stopping:
            raise StoreClosed(self.address.shown)

    def snapshot(self, function: Callable[[ReadTransaction], T], *, whole: bool = False) -> T:
        """Runs a function over one snapshot, on the calling thread.

        Its head is the position up to which the log is settled. With `whole` everything in the
        snapshot is: writers are kept off for the moment in which it is taken.
        """
        self._usable()
        try:
            while True:
                with self._answering(self._settled) as (connection, (settled, tables)):
                    try:
                        self._begin_snapshot(connection, tables)
                    except psycopg.errors.UndefinedTable:
                        connection.execute("ROLLBACK")  # one was dropped since it was asked for
                        continue
                    _let_last(connection)
                    if whole:
                        # Behind the tables: nobody appends while these are waited for.
                        with self._answering(lambda c: c.execute("SELECT 1")) as (holder, _):
                            self._begin_alone(holder)
                            connection.execute("SELECT 1")
                            holder.execute("COMMIT")
                        settled = 2**63 - 1
                    reading = ReadTransaction(
                        connection, self.address.schema, self._codecs, settled
                    )
                    result = function(reading)
                    reading.finish()
                    return result
        except psycopg.Error as error:
            raise translate(self.address, error) from error

    def _begin_alone(self, connection: Connection) -> None:
        """Begins a transaction beside which nobody appends."""
        connection.execute(_MAINTENANCE)
        hold_writers_off(connection, self.address, self.locks, self._timeouts[1])

    def _begin_snapshot(self, connection: Connection, tables: str) -> None:
        """Begins a snapshot, which the first statement takes that is a query.

        The tables are locked before: one that is put in another's place behind the snapshot would
        be found by its name, and show less than there was.
        """
        connection.execute(_SNAPSHOT)
        connection.execute(self._read_timeouts)
        if tables:
            connection.execute(f"LOCK TABLE {tables} IN ACCESS SHARE MODE")

    def _settled(self, connection: Connection) -> tuple[int, str]:
        """Nothing at or below this position can come any more, and a snapshot now has all of it.

        And the tables that are to be locked before that is taken.
        """
        named = connection.execute(self._q["tables_to_read"]).fetchone()
        drawn = connection.execute(self._q["last_drawn"]).fetchone()
        bounds = (self.locks.bounds, POSITIONS_MAX)
        least = connection.execute(self._q["settled"], bounds).fetchone()
        assert drawn is not None
        assert least is not None
        settled = int(drawn[0]) if least[0] is None else min(int(drawn[0]), int(least[0]))
        return settled, str(named[0] or "") if named else ""

    def transact(
        self,
        function: Callable[[MaintenanceTransaction], T],
        *,
        beside_writers: bool = False,
        full: bool = False,
    ) -> T:
        """Runs maintenance in a transaction of its own, on the calling thread."""
        self._usable()
        committing: Connection | None = None
        try:
            with self._answering(lambda c: c.execute("SELECT 1")) as (connection, _):
                if beside_writers:
                    connection.execute(_MAINTENANCE)
                else:
                    self._begin_alone(connection)
                _let_last(connection)
                connection.execute(self._q["maintenance_settings"], (*self._timeouts, full))
                transaction = MaintenanceTransaction(
                    connection, self.address.schema, self._codecs, self.tables
                )
                result = function(transaction)
                transaction.flush()
                if connection.info.transaction_status == TransactionStatus.INERROR:
                    # To commit it would undo it, and say nothing.
                    raise StorageFailed(
                        self.address.shown, "the function went on behind an error of the server"
                    )
                self._require_lock(connection)
                committing = connection
                connection.execute("COMMIT")
                return result
        except psycopg.Error as error:
            if committing is not None and is_lost(error, committing):
                raise OutcomeUnknown(self.address.shown, "the connection was lost") from error
            raise translate(self.address, error) from error

    @contextmanager
    def maintaining(self, operation: str) -> Iterator[None]:
        """Keeps other maintenance off while it lasts: by a transaction that only holds a lock."""
        self._usable()
        try:
            with self._answering(lambda c: c.execute("SELECT 1")) as (connection, _):
                connection.execute(_MAINTENANCE)
                _let_last(connection)
                taken = connection.execute(
                    self._q["try_lock"], (self.locks.maintaining,)
                ).fetchone()
                if not (taken and taken[0]):
                    raise MaintenanceRunning(
                        self.address.shown, operation, self._holder(connection)
                    )
                own = connection.execute("SELECT pg_backend_pid()").fetchone()
                self._maintainer.pid = own and own[0]
                try:
                    yield
                finally:
                    self._maintainer.pid = None
                connection.execute("COMMIT")
        except psycopg.Error as error:
            raise translate(self.address, error) from error

    def _require_lock(self, connection: Connection) -> None:
        """What this thread does under the lock of maintenance counts only while it has it.

        Raises:
            ServerUnavailable: the connection that holds it was lost; others may be at it by now.
        """
        pid = getattr(self._maintainer, "pid", None)
        if pid is None:
            return
        held = connection.execute(self._q["holds"], (self.locks.maintaining, pid)).fetchone()
        if held is None:
            raise ServerUnavailable(
                self.address.shown,
                "lost the connection that kept other maintenance off",
                "Run it again.",
            )

    def _holder(self, connection: Connection) -> str:
        row = connection.execute(self._q["who_holds"], (self.locks.maintaining,)).fetchone()
        return "another process" if row is None else f"{row[0]} (on {row[1]})"

    def check(self, projection: Projection) -> None:
        """Finds out whether the server can make a projection's table and views. Raises as there."""
        if projection not in self._checked:
            with self._answering(lambda c: c.execute("SELECT 1")) as (connection, _):
                check_definition(connection, self.address, projection)
            self._checked.add(projection)

    def vacuum(self) -> int:
        """Lets the server give space back; returns how many bytes."""
        size = (self.address.schema,)
        try:
            with self._answering(lambda c: c.execute(self._q["size"], size)) as (connection, found):
                before = found.fetchone()
                for table in ("events", "streams", *(p.table.name for p in self.projections)):
                    connection.execute(f'VACUUM {self.address.schema}."{table}"')
                after = connection.execute(self._q["size"], size).fetchone()
        except psycopg.Error as error:
            raise translate(self.address, error) from error
        assert before is not None
        assert after is not None
        return max(0, int(before[0]) - int(after[0]))

    def rewrite(self, at_most_s: float | None) -> Rewritten:
        """Writes the log's tables anew, while nobody uses them; not done when it took too long.

        Raises:
            StoreBusy: somebody reads one of them all the time.
            PathUnusable: it is for a role that owns the tables.
        """
        limited = at_most_s is not None
        patience = self.address.lock_timeout_s if at_most_s is None else at_most_s
        try:
            with (
                self._answering(lambda c: c.execute("SELECT 1")) as (connection, _),
                self._answering(lambda c: c.execute("SELECT 1")) as (holder, _),
            ):
                kept = self._kept_for_others(connection)
                timer = threading.Timer(at_most_s or 0, connection.cancel)
                if limited:
                    timer.start()
                try:
                    deadline = time.monotonic() + patience
                    done = self._rewrite(connection, holder, deadline, limited=limited)
                finally:
                    timer.cancel()
                    if limited:
                        timer.join()  # or its cancel might meet the connection's next statement
                if done:
                    self._draw_samples(connection)
        except psycopg.errors.QueryCanceled as error:
            if not limited:  # by a time limit of the server's or the role's
                raise translate(self.address, error) from error
            return Rewritten(done=False, gone=False)
        except psycopg.Error as error:
            raise translate(self.address, error) from error
        if not done and not limited:
            reader = "a transaction that reads it, a long query or a dump"
            raise StoreBusy(self.address.schema, patience, reader)
        return Rewritten(done, gone=done and not kept)

    def _kept_for_others(self, connection: Connection) -> bool:
        """Whether the server keeps for somebody what was removed: most are done in a moment."""
        row = connection.execute(self._q["next_transaction"]).fetchone()
        assert row is not None
        before = (row[0], getattr(self._maintainer, "pid", None) or 0)
        keepers = set(connection.execute(self._q["keepers"], before).fetchall())
        deadline = time.monotonic() + _KEEPERS_WAIT_S
        while keepers and time.monotonic() < deadline:
            time.sleep(_REWRITE_PAUSE_S)
            keepers &= set(connection.execute(self._q["keepers"], before).fetchall())
        return bool(keepers)

    def _draw_samples(self, connection: Connection) -> None:
        """Has the planner's samples drawn anew, for they are values of rows."""
        tables = ", ".join(table for table, *_ in connection.execute(self._q["files_of_log"]))
        with connection.transaction():
            limits = (milliseconds(self.address.lock_timeout_s), "0")
            connection.execute(self._q["set_timeouts"], limits)
            connection.execute(f"ANALYZE {tables}")

    def _rewrite(
        self, connection: Connection, holder: Connection, deadline: float, *, limited: bool
    ) -> bool:
        """Tries it without waiting for readers: all others would wait behind it."""
        rows = connection.execute(self._q["files_of_log"]).fetchall()
        if not all(may for _, _, may in rows):
            raise psycopg.errors.InsufficientPrivilege("this role does not own the log's tables")
        before = left = {table: file for table, file, _ in rows}
        while left:
            if time.monotonic() > deadline:
                return False
            self._begin_alone(holder)
            _let_last(holder)
            for table in left:
                if limited and time.monotonic() > deadline:
                    break  # writers were waited for, and no cancel has met a statement
                connection.execute(f"VACUUM (FULL, SKIP_LOCKED) {table}")
            holder.execute("COMMIT")
            now = connection.execute(self._q["files_of_log"]).fetchall()
            left = {table: file for table, file, _ in now if file == before.get(table)}
            time.sleep(_REWRITE_PAUSE_S)
        return True

    def observe(self, observer: Observer) -> None:
        """Tells an observer of commits from now on, in place of the one before."""
        self._observer = self._write.observer = observer

    # The writer thread.

    def _write_loop(self) -> None:
        group: list[Write[Any]] = []
        aside: Write[Any] | None = None
        aside_at = 0.0
        try:
            while self._wait_for_work(aside_at):
                with self._lock:
                    group = self._line.take(_GROUP_MAX)
                began = time.monotonic()
                self._commit(group)
                with self._lock:
                    self._crowd = len(group) + len(self._line)
                    self._took_s = time.monotonic() - began
                with self._lock:
                    group = self._line.take_late(time.monotonic() - self.address.lock_timeout_s)
                self._write.refuse(group)
                group = []
                if time.monotonic() >= aside_at:
                    with self._lock:
                        aside = self._line.take_aside()
                    if aside is not None:
                        group = [aside]
                        self._commit(group, _ASIDE_PATIENCE_S)
                    # Whoever is gone who kept this one waiting may have kept others waiting too.
                    aside_at = time.monotonic()
                    if aside is None or not aside.settled:
                        aside_at += _ASIDE_S
                with self._lock:
                    group = self._line.take_barriers()
                for request in group:
                    request.succeed(None)
                settle(group)
                group, aside = [], None  # an idle thread must keep nothing alive
        except BaseException as error:
            with self._lock:
                self._broken = error
                stranded = [r for r in (*group, *self._line.clear()) if not r.settled]
            for request in stranded:
                request.fail(self._defect(error))
            settle(stranded)
            self._write.close()  # with a transaction that is open, others would wait for its locks
            raise

    def _wait_for_work(self, aside_at: float) -> bool:
        """Blocks until there is something to be done. Returns False when the engine stops.

        What stepped aside is to be tried again at `aside_at`.
        """
        with self._wake:
            if self._line.has_aside and not self._line:
                self._wake.wait(max(0.0, aside_at - time.monotonic()))
            self._wake.wait_for(lambda: self._line or self._line.has_aside or self._stopping)
            # Those who were just told go on at once: one group of all of them, or two that take
            # turns, and each waits for both.
            self._wake.wait_for(
                lambda: len(self._line) >= self._crowd or self._stopping,
                timeout=min(self._took_s * _GATHERING, _GATHERING_MAX_S),
            )
            return bool(self._line) or self._line.has_aside

    def _commit(self, group: Sequence[Write[Any]], patience_s: float | None = None) -> None:
        writes = [request for request in group if request.kind is not Kind.BARRIER]
        if writes:
            began = time.monotonic()
            left = self._write.commit(writes, patience_s)
            if left:
                with self._lock:
                    self._line.step_aside(left)
            if self._observer is not None:
                self._observer.committed(len(writes) - len(left), time.monotonic() - began)
        barriers = [request for request in group if request.kind is Kind.BARRIER]
        if barriers:
            with self._lock:
                self._line.keep_barriers(barriers)

    def _defect(self, error: BaseException) -> StorageFailed:
        return StorageFailed(
            self.address.shown, f"the writer ended by a defect ({type(error).__name__})"
        )

    # Reader threads.

    def _read_loop(self) -> None:
        while (request := self._reads.get()) is not None:
            try:
                request.succeed(self._read(request))
            except BaseException as error:
                request.fail(translate(self.address, error))
            settle([request])
            del request  # as in the writer
        self._reads.put(None)  # for the next one

    def _read(self, request: Read[T]) -> T:
        """Reads, and again where the server was lost: not for ever, but past a restart."""
        while True:
            connection: Connection | None = None
            try:
                with self._lent() as connection, self._timed(connection), connection.pipeline():
                    self._begin_snapshot(connection, self._inline_tables)
                    reading = ReadTransaction(connection, self.address.schema, self._codecs)
                    result = request.function(reading)
                    reading.finish()
                return result
            except (psycopg.Error, ServerUnavailable) as error:
                if not is_lost(error, connection):
                    raise
                if self._stopping or time.monotonic() - request.submitted_at > _READ_AGAIN_S:
                    raise
            time.sleep(_READ_PAUSE_S)

    @contextmanager
    def _timed(self, connection: Connection) -> Iterator[None]:
        """Lets the watchdog see that a reader is at it."""
        with self._lock:
            self._reading[connection] = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                del self._reading[connection]

    # The watchdog thread.

    def _watch(self) -> None:
        """Cuts connections on which the server has been silent for longer than it may be."""
        patience = self.address.lock_timeout_s + self.address.statement_timeout_s + _GRACE_S
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._ended, timeout=_WATCH_S)
                if self._ended:
                    return
                now = time.monotonic()
                late = now - patience
                for connection in self._reading:
                    if connection.pgconn.transaction_status != TransactionStatus.ACTIVE:
                        self._reading[connection] = now  # busy with what it has read
                silent = [c for c, since in self._reading.items() if since < late]
            for connection in silent:
                sever(connection)
            since = self._write.busy_since
            if since is not None and since < late:
                self._write.sever()
            if silent or (since is not None and since < late):
                _log.warning(
                    "%s: nothing heard of the server, connecting again", self.address.shown
                )


def _let_last(connection: Connection) -> None:
    """Lets a transaction take its time, whatever the role's settings say."""
    connection.execute(_NO_IDLE_TIMEOUT)
    if connection.info.server_version >= _TRANSACTION_TIMEOUT:
        connection.execute("SET LOCAL transaction_timeout = 0")


def _start(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=f"eventstore-{name}", daemon=True)
    thread.start()
    return thread

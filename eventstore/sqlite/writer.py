"""The one writing connection of an engine: groups of requests in, commits and outcomes out.

A request that fails before it wrote anything fails alone; when one fails later, the transaction is
rolled back and its requests are executed again one by one. When the commit itself fails, the log
is asked for each request before anything is said about it.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from eventstore import _platform
from eventstore.errors import DatabaseReplaced, OutcomeUnknown
from eventstore.projection import Projection
from eventstore.sqlite.database import (
    BUSY_TIMEOUT_S,
    check_identity,
    check_schema,
    connect,
    translate,
)
from eventstore.sqlite.requests import Write, settle
from eventstore.sqlite.tables import ProjectionTable
from eventstore.sqlite.transaction import WriteTransaction

__all__ = ["Writer"]

_PAGE_BYTES: Final = 4096
_FRAMES_PER_COMMIT: Final = 6
"""Index and table pages that even the smallest commit touches (measured)."""
_CHANGES_PER_FRAME: Final = 4
_CHECKPOINT_WAIT_MS: Final = 100

_log = logging.getLogger(__name__)


class _Spoilt(Exception):
    """A request of a group failed behind its first write: the transaction must go."""


class _NotNow(Exception):
    """A transaction would have to wait for something."""


class Writer:
    """Executes requests on a connection of its own. Used by one thread at a time, in the gate."""

    def __init__(
        self,
        path: str,
        connection: sqlite3.Connection,
        projections: Sequence[Projection],
        tables: Mapping[str, ProjectionTable],
        close_readers: Callable[[], None],
    ) -> None:
        self._close_readers = close_readers
        self._path = path
        self._projections = projections
        self._tables = tables
        self._identity = _platform.file_identity(path)
        self._codecs = {"": 0}
        self.frames = 0
        """About how many frames the WAL holds that are not in the database file yet."""
        self.for_rebuild = False
        """Whether the projections' tables may be missing or other than they should be."""
        self.committed_at = 0.0
        """When something was committed last, on the monotonic clock."""
        self._doubt: tuple[Sequence[Write[Any]], BaseException] | None = None
        self._transaction: WriteTransaction | None = None
        self._full: bool | None
        self._waits: bool | None
        self._connection: sqlite3.Connection | None = None
        self._wal: tuple[int, int] | None = None
        self._use(connection)

    def commit(self, group: Sequence[Write[Any]], *, wait: bool = True) -> bool:
        """Commits requests together, or, when one spoils the transaction, each by itself.

        Delivers every outcome, exactly once. Without `wait` it may be called where nothing may
        wait: whatever is not plain is left undone, and False returned for it to be called again
        with `wait`; or it is left in doubt.
        """
        if not group:
            return True
        try:
            transaction = self._begin(full=any(request.full for request in group), wait=wait)
        except Exception as error:
            self._roll_back()
            if wait:
                self._fail(group, error)
            return wait
        try:
            for request in group:
                self._execute(request, transaction, alone=len(group) == 1)
        except _Spoilt:
            self._roll_back()
            if wait:
                for request in group:
                    self.commit([request])
            return wait
        if group[0].failed and len(group) == 1:
            self._roll_back()
            settle(group)
            return True
        try:
            self._commit(transaction)
        except Exception as error:
            self._roll_back()
            self.leave_in_doubt(group, error)
            if wait:
                self.resolve()
            return True
        if group[0].alone:
            # Maintenance frees pages, which no count of changes shows.
            self.frames = _platform.file_size(f"{self._path}-wal") // _PAGE_BYTES
        settle(group)
        return True

    @property
    def in_doubt(self) -> bool:
        """Whether `resolve` is to be called before anything else."""
        return self._doubt is not None

    def leave_in_doubt(self, group: Sequence[Write[Any]], error: BaseException) -> None:
        """Leaves it to `resolve` what became of a group whose `commit` was interrupted."""
        self._doubt = group, error

    def resolve(self) -> None:
        """Finds out what is in doubt, and delivers the outcomes."""
        if self._doubt is not None:
            group, error = self._doubt
            self._doubt = None
            self._find_out([request for request in group if not request.settled], error)

    def checkpoint(self, mode: str) -> None:
        """Copies the WAL into the file; with mode TRUNCATE empties it too, if readers allow."""
        try:
            connection = self._ready()
            # Emptying the WAL waits for readers: not for long, writers wait behind it.
            connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
            try:
                _, frames, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            finally:
                self._waits = None
            self.frames = frames - copied
            self._syncs = True
        except Exception as error:
            # Everything acknowledged stays in the WAL, and a later checkpoint copies it.
            self.frames = 0
            _log.warning("checkpoint of %s failed: %s", self._path, type(error).__name__)

    def suspend(self) -> None:
        """Closes the connection; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._wal = None

    close = suspend

    def _use(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._schema = self._read_schema(connection)
        self._wal = None  # known once the first transaction opened it
        # Until the first transaction sets them:
        self._full = self._waits = None
        # The first commit that writes at the beginning of the WAL again waits for the disk.
        self._syncs = True

    def _ready(self) -> sqlite3.Connection:
        """The connection, opened again where it was given up."""
        check_identity(self._path, self._identity)
        if self._wal is not None and _platform.file_identity(f"{self._path}-wal") != self._wal:
            # Somebody removed it. What this connection still knows of it goes into the file as the
            # last connection closes; to write on would be to write where nobody reads.
            _log.warning("opening %s again: its -wal was removed", self._path)
            self._close_readers()
            self.suspend()
        if self._connection is None:
            connection = connect(self._path, read_only=False)
            try:
                self._use(connection)
                self._check_schema(connection)
            except BaseException:
                self.suspend()
                raise
        assert self._connection is not None
        return self._connection

    def _ready_at_once(self) -> sqlite3.Connection:
        """The connection, when a transaction on it neither opens a file nor waits for the disk."""
        if self._connection is None or self._wal is None or self._syncs or self.in_doubt:
            raise _NotNow
        check_identity(self._path, self._identity)
        check_identity(f"{self._path}-wal", self._wal)
        return self._connection

    def _begin(self, *, full: bool, wait: bool) -> WriteTransaction:
        connection = self._ready() if wait else self._ready_at_once()
        if wait != self._waits:
            timeout_ms = BUSY_TIMEOUT_S * 1000 if wait else 0
            connection.execute(f"PRAGMA busy_timeout = {timeout_ms:.0f}")
            self._waits = wait
        if full != self._full:
            connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full
        connection.execute("BEGIN IMMEDIATE")
        if self._wal is None:
            self._wal = _platform.file_identity(f"{self._path}-wal")
        # Any change of schema moves the cookie: a migration or a projection of a newer process
        # stops this one before it writes rows in the old way.
        if (schema := self._read_schema(connection)) != self._schema:
            self._check_schema(connection)
            self._schema = schema
        self._transaction = WriteTransaction(connection, self._tables, self._codecs)
        return self._transaction

    def _execute(self, request: Write[Any], transaction: WriteTransaction, *, alone: bool) -> None:
        """Runs one request; what it raises before its first write is its own."""
        connection = transaction.connection
        before = connection.total_changes
        try:
            request.succeed(request.function(transaction))
        except BaseException as error:
            if not alone and (connection.total_changes != before or not connection.in_transaction):
                raise _Spoilt from error
            request.fail(self._translated(error))

    def _commit(self, transaction: WriteTransaction) -> None:
        transaction.connection.execute("COMMIT")
        self._syncs = False
        self.committed_at = time.monotonic()
        # Writes to files that lost their names reach no one: say so instead of acknowledging them.
        check_identity(self._path, self._identity)
        check_identity(f"{self._path}-wal", self._wal)
        transaction.move_cursors()
        changes, content_bytes = transaction.written()
        self.frames += (
            _FRAMES_PER_COMMIT + changes // _CHANGES_PER_FRAME + content_bytes // _PAGE_BYTES
        )

    def _find_out(self, group: Sequence[Write[Any]], error: BaseException) -> None:
        """A commit failed: looks what is stored before anything is said about it.

        A group is stored whole or not at all, so one request that is found speaks for the others.
        """
        # After a failed fsync, or with a WAL that lost its name, no connection is to be trusted.
        self._close_readers()
        self.suspend()
        pending = [request for request in group if not request.failed]
        settle([request for request in group if request.failed])
        try:
            stored = any(self._find(request) for request in pending)
        except DatabaseReplaced as replaced:
            self._fail(pending, replaced)
            return
        except Exception as second:
            reason = f"{self._translated(error)} Then: {self._translated(second)}"
            self._fail(pending, OutcomeUnknown(self._path, reason))
            return
        if stored:
            assert self._transaction is not None
            self._transaction.move_cursors()
            settle(pending)
        elif len(group) > 1 or not isinstance(error, Exception):
            for request in pending:
                self.commit([request])
        elif group[0].alone:
            self._fail(group, OutcomeUnknown(self._path, str(self._translated(error))))
        else:
            self._fail(group, error)

    def _find(self, request: Write[Any]) -> bool:
        if request.find is None:
            return False
        connection = self._ready()
        connection.execute("BEGIN")
        try:
            return request.find(WriteTransaction(connection, self._tables, self._codecs))
        finally:
            connection.execute("ROLLBACK")

    def _roll_back(self) -> None:
        self._codecs.clear()
        self._codecs[""] = 0
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                _log.warning("opening %s again: %s", self._path, type(error).__name__)
                self.suspend()

    def _fail(self, requests: Sequence[Write[Any]], error: BaseException) -> None:
        for request in requests:
            request.fail(self._translated(error))
        settle(requests)

    def _translated(self, error: BaseException) -> BaseException:
        return translate(self._path, error)

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        check_schema(connection, self._path, self._projections, for_rebuild=self.for_rebuild)

    @staticmethod
    def _read_schema(connection: sqlite3.Connection) -> tuple[int, int]:
        """The schema cookie, and the version of the last migration."""
        (cookie,) = connection.execute("PRAGMA schema_version").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return cookie, version

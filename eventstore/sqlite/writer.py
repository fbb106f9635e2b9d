"""The one writing connection of an engine: groups of requests in, commits and outcomes out.

A request that fails before it wrote anything fails alone; when one fails later, the transaction is
rolled back and its requests are executed again one by one. When the commit itself fails, the log
is asked for each request before anything is said about it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from eventstore import _platform
from eventstore.errors import DatabaseReplaced, OutcomeUnknown
from eventstore.observer import Observer
from eventstore.projection import Projection
from eventstore.sqlite.database import (
    BUSY_TIMEOUT_S,
    check_identity,
    check_schema,
    connect,
    translate,
)
from eventstore.sqlite.requests import Due, Rewrite, Write, raise_error, settle
from eventstore.sqlite.tables import ProjectionTable
from eventstore.sqlite.transaction import Known, WriteTransaction

__all__ = ["Writer"]

_PAGE_BYTES: Final = 4096
_FRAMES_PER_COMMIT: Final = 6
"""Index and table pages that even the smallest commit touches (measured)."""
_CHANGES_PER_FRAME: Final = 4
_CHANGES_PER_FRAME_IN_BULK: Final = 16
"""Of maintenance, which mostly goes through short rows in order."""
_WAITED_S: Final = 0.001
"""From where on beginning a transaction is waiting for another program."""
_CHECKPOINT_WAIT_MS: Final = 100
_FRAMES_KEPT: Final = 16_384
"""Frames of 4 KB in the WAL from which on a checkpoint waits for readers, to begin it anew."""

_STEPS_PER_LOOK: Final = 10_000
"""Steps of SQLite's machine, a millisecond or so, between two looks whether to go on."""

_log = logging.getLogger(__name__)


class _Spoilt(Exception):
    """A request of a group failed behind its first write: the transaction must go."""


class _NotNow(Exception):
    """A transaction would have to wait for something."""


class _Doubt(NamedTuple):
    """Requests that were interrupted: by what, and on the thread of which loop."""

    group: Sequence[Write[Any]]
    error: BaseException
    loop: asyncio.AbstractEventLoop | None


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
        self._wal_path = f"{path}-wal"
        self._identity = _platform.file_identity(path)
        self._known = Known()
        self.frames = 0
        """About how many frames the WAL holds that are not in the database file yet."""
        self.for_rebuild = False
        """Whether the projections' tables may be missing or other than they should be."""
        self.committed_at = 0.0
        """When something was committed last, on the monotonic clock."""
        self.synced_s = 0.0
        """How long the last commit took if it waited for the disk; 0.0 if it did not."""
        self.observer: Observer | None = None
        self.due: Due = []
        """Where outcomes are noted, for the thread that commits to deliver out of the gate."""
        self._restart_at = _FRAMES_KEPT
        self._doubt: _Doubt | None = None
        self._transaction: WriteTransaction | None = None
        self._full: bool | None
        self._waits: bool | None
        self._connection: sqlite3.Connection | None = None
        self._wal: tuple[int, int] | None = None
        try:
            self._use(connection)
        except sqlite3.Error as error:
            self.close()
            raise translate(path, error) from None

    def commit(self, group: Sequence[Write[Any]], *, wait: bool = True) -> bool:
        """Commits requests together, or, when one spoils the transaction, each by itself.

        Delivers every outcome, exactly once. Without `wait` it may be called where nothing may
        wait: whatever is not plain is left undone, and False returned for it to be called again
        with `wait`; or it is left in doubt.
        """
        if not group:
            return True
        began = time.monotonic()
        size = _platform.file_size(self._wal_path) if group[0].alone else 0
        try:
            transaction = self._begin(group, wait=wait)
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
                self._commit_each(group)
            return wait
        if len(group) == 1 and group[0].failed:
            self._roll_back()
            if wait:
                settle(group)
            return wait  # a refusal must not rest on a file that is no longer there
        try:
            self._commit(transaction)
        except Exception as error:
            self.leave_in_doubt(group, error)
            if wait:
                self.resolve()
            return True
        changes, content_bytes = transaction.written()
        per_frame = _CHANGES_PER_FRAME_IN_BULK if group[0].alone else _CHANGES_PER_FRAME
        frames = _FRAMES_PER_COMMIT + changes // per_frame + content_bytes // _PAGE_BYTES
        if group[0].alone:
            self._look_again()
            # Maintenance frees pages, which no count of changes shows.
            grown = _platform.file_size(self._wal_path) - size
            frames = max(frames, grown // _PAGE_BYTES)
        self.frames += frames
        settle(group, self.due)
        if self.observer is not None:
            self.observer.committed(len(group), self.committed_at - began)
        return True

    def _commit_each(self, group: Sequence[Write[Any]]) -> None:
        _log.info("%s: executing %d requests again, each by itself", self._path, len(group))
        if self.observer is not None:
            self.observer.retried(len(group))
        for request in group:
            self.commit([request])

    @property
    def in_doubt(self) -> bool:
        """Whether `resolve` is to be called before anything else."""
        return self._doubt is not None

    def leave_in_doubt(
        self,
        group: Sequence[Write[Any]],
        error: BaseException,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Leaves it to `resolve` what became of a group whose `commit` was interrupted.

        A SystemExit is raised in the loop when it was not one of the requests that raised it.
        """
        if self._doubt is not None:
            group = group or self._doubt.group
        self._doubt = _Doubt(group, error, loop)
        # Others may be waiting for SQLite's lock in the gate, where `resolve` is to come.
        self._roll_back()

    def resolve(self) -> None:
        """Finds out what is in doubt, and delivers the outcomes."""
        if self._doubt is not None:
            group, error, loop = self._doubt
            self._doubt = None
            self._find_out([request for request in group if not request.settled], error)
            theirs = any(request.failed_by(SystemExit) for request in group)
            if isinstance(error, SystemExit) and loop is not None and not theirs:
                with suppress(RuntimeError):  # where the loop has ended, so has the program
                    loop.call_soon_threadsafe(raise_error, error)

    def checkpoint(self, mode: str) -> bool:
        """Copies the WAL into the file; with mode TRUNCATE empties it too, if readers allow.

        Returns whether it was all done.
        """
        try:
            connection = self._ready()
            # Emptying the WAL waits for readers: not for long, writers wait behind it.
            connection.execute(f"PRAGMA busy_timeout = {_CHECKPOINT_WAIT_MS}")
            try:
                left, frames, copied = connection.execute(
                    f"PRAGMA wal_checkpoint({mode})"
                ).fetchone()
                if frames >= self._restart_at:
                    # Where many read there is always one who reads from the WAL, and then nobody
                    # begins it anew. While the gate is held it is enough to wait for those who
                    # have begun; in vain for a long one, so that is not tried again soon.
                    busy, frames, copied = connection.execute(
                        "PRAGMA wal_checkpoint(RESTART)"
                    ).fetchone()
                    self._restart_at = _FRAMES_KEPT + (frames if busy else 0)
                elif frames < _FRAMES_KEPT:
                    self._restart_at = _FRAMES_KEPT
            finally:
                self._waits = None
            self.frames = frames - copied
            self._syncs = True
        except Exception as error:
            # Everything acknowledged stays in the WAL, and a later checkpoint copies it.
            self.frames = 0
            _log.warning("checkpoint of %s failed: %s", self._path, type(error).__name__)
            return False
        return not left and copied == frames

    def rewrite(self, request: Rewrite) -> bool:
        """Writes the whole file anew, without free pages or copies of what was removed.

        It all goes through the WAL, so a crash leaves the file as it was. So does an end in time,
        or when the request is given up: then it returns False.
        """
        connection = self._ready()
        at_most_s = request.at_most_s
        until = None if at_most_s is None else time.monotonic() + at_most_s

        def is_ended() -> bool:
            return request.given_up or (until is not None and time.monotonic() > until)

        # The new file is made in a temporary one, which is attached.
        connection.execute("PRAGMA temp_store = FILE")
        attached = connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 1)
        try:
            # Of a file that another program has made over.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.set_progress_handler(is_ended, _STEPS_PER_LOOK)
            connection.execute("VACUUM")
        except sqlite3.Error as error:
            self._roll_back()
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                return False
            raise translate(self._path, error) from None
        finally:
            if self._connection is not None:
                connection.set_progress_handler(None, 0)
                connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, attached)
                connection.execute("PRAGMA temp_store = MEMORY")
        self.frames = _platform.file_size(f"{self._path}-wal") // _PAGE_BYTES
        return True

    def close(self) -> None:
        """Closes the connection; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._wal = None

    def _use(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._schema = self._read_schema(connection)
        self._look_again()
        self._wal = _platform.file_identity(self._wal_path)  # which reading has opened
        # Until the first transaction sets them:
        self._full = self._waits = None
        # The first commit that writes at the beginning of the WAL again waits for the disk.
        self._syncs = True

    def _look_again(self) -> None:
        """Takes nothing for granted in the next transaction."""
        self._known.forget()
        self._data_version: int | None = None

    def _ready(self) -> sqlite3.Connection:
        """The connection, opened again where it was given up."""
        check_identity(self._path, self._identity)
        if self._has_lost_wal():
            # What this connection still knows of it goes into the file as the last connection
            # closes; to write on would be to write where nobody reads.
            _log.warning("opening %s again: its -wal was removed", self._path)
            self._close_readers()
            self.close()
        if self._connection is None:
            connection = connect(self._path, read_only=False)
            try:
                self._use(connection)
                self._check_schema(connection)
            except BaseException:
                self.close()
                raise
        assert self._connection is not None
        return self._connection

    def _has_lost_wal(self) -> bool:
        """Whether somebody removed the -wal that is written to."""
        return self._wal is not None and _platform.file_identity(self._wal_path) != self._wal

    def _ready_at_once(self, *, full: bool) -> sqlite3.Connection:
        """The connection, when a transaction on it need not open a file, nor wait for the disk.

        Whether the files are still there is looked at once it is committed, as always.
        """
        if self._connection is None or self._wal is None or self.in_doubt:
            raise _NotNow
        if self._syncs and not full:
            raise _NotNow
        return self._connection

    def _check_files(self) -> None:
        """Asserts that the database and its -wal are the files that are written to."""
        files = _platform.file_identity(self._path), _platform.file_identity(self._wal_path)
        if files != (self._identity, self._wal):
            check_identity(self._path, self._identity)
            check_identity(self._wal_path, self._wal)

    def _begin(self, group: Sequence[Write[Any]], *, wait: bool) -> WriteTransaction:
        full = any([request.full for request in group])  # noqa: C419 - half the time
        connection = self._ready() if wait else self._ready_at_once(full=full)
        if wait != self._waits:
            timeout_ms = BUSY_TIMEOUT_S * 1000 if wait else 0
            connection.execute(f"PRAGMA busy_timeout = {timeout_ms:.0f}")
            self._waits = wait
        if full != self._full:
            connection.execute(f"PRAGMA synchronous = {'FULL' if full else 'NORMAL'}")
            self._full = full
        asked = time.monotonic()
        connection.execute("BEGIN IMMEDIATE")
        waited_s = time.monotonic() - asked
        if waited_s >= _WAITED_S and self.observer is not None:
            self.observer.waited(waited_s)
        if self._wal is None:
            self._wal = _platform.file_identity(self._wal_path)
        # It moves when another connection has committed; its number tells nothing else.
        (data_version,) = connection.execute("PRAGMA data_version").fetchone()
        if data_version != self._data_version:
            self._known.streams.clear()
            # Any change of schema moves the cookie: a migration or a projection of a newer process
            # stops this one before it writes rows in the old way.
            if (schema := self._read_schema(connection)) != self._schema:
                self._check_schema(connection)
                self._schema = schema
            self._data_version = data_version
        known = Known() if group[0].alone else self._known  # what maintenance may change
        self._transaction = WriteTransaction(connection, self._tables, known)
        return self._transaction

    def _execute(self, request: Write[Any], transaction: WriteTransaction, *, alone: bool) -> None:
        """Runs one request; what it raises before its first write is its own."""
        connection = transaction.connection
        before = connection.total_changes
        try:
            request.succeed(request.function(transaction))
        except BaseException as error:
            if not self._waits and not isinstance(error, Exception):
                raise  # on a loop's thread it may come from a signal's handler
            if not alone and (connection.total_changes != before or not connection.in_transaction):
                raise _Spoilt from error
            request.fail(self._translated(error))

    def _commit(self, transaction: WriteTransaction) -> None:
        asked = time.monotonic()
        transaction.connection.execute("COMMIT")
        self._syncs = False
        self.committed_at = time.monotonic()
        self.synced_s = self.committed_at - asked if self._full else 0.0
        # Writes to files that lost their names reach no one: say so instead of acknowledging them.
        self._check_files()
        transaction.move_cursors()

    def _find_out(self, group: Sequence[Write[Any]], error: BaseException) -> None:
        """A commit failed: looks what is stored before anything is said about it.

        A group is stored whole or not at all, so one request that is found speaks for the others,
        also for those that were refused: by what this very group had written, it may be.
        """
        if self._has_lost_wal():
            self._close_readers()
        self.close()  # after a failed fsync it is not to be trusted
        pending = [request for request in group if not request.failed]
        try:
            stored = any(self._find(request) for request in pending)
        except DatabaseReplaced as replaced:
            self._fail(group, replaced)
            return
        except Exception as second:
            reason = f"{self._reason(error)}, then {self._reason(second)}"
            self._fail(group, OutcomeUnknown(self._path, reason))
            return
        if stored:
            assert self._transaction is not None
            self._transaction.move_cursors()
            settle(group)
        elif len(group) > 1 or not isinstance(error, Exception):
            self._commit_each(group)
        elif group[0].alone:
            self._fail(group, OutcomeUnknown(self._path, self._reason(error)))
        else:
            self._fail(group, error)

    def _find(self, request: Write[Any]) -> bool:
        if request.find is None:
            return False
        connection = self._ready()
        connection.execute("BEGIN")
        try:
            return request.find(WriteTransaction(connection, self._tables, Known()))
        finally:
            connection.execute("ROLLBACK")

    def _roll_back(self) -> None:
        self._known.forget()
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                _log.warning("opening %s again: %s", self._path, type(error).__name__)
                self.close()

    def _fail(self, requests: Sequence[Write[Any]], error: BaseException) -> None:
        for request in requests:
            request.fail(self._translated(error))
        settle(requests)

    def _translated(self, error: BaseException) -> BaseException:
        return translate(self._path, error)

    def _reason(self, error: BaseException) -> str:
        """What happened, without what the whole message of an error says of the outcome."""
        translated = self._translated(error)
        return str(getattr(translated, "reason", type(translated).__name__))

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        check_schema(connection, self._path, self._projections, for_rebuild=self.for_rebuild)

    @staticmethod
    def _read_schema(connection: sqlite3.Connection) -> tuple[int, int]:
        """The schema cookie, and the version of the last migration."""
        (cookie,) = connection.execute("PRAGMA schema_version").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return cookie, version

"""The turnstile in front of the write lock, shared by every process on one file.

SQLite's busy handler sleeps and polls, so a writer that commits again at once starves the others:
with 8 processes one waited 4.5 s and then failed with "database is locked". Two file locks make
the order fair. A writer holds the turn lock only while it waits for the write lock: whoever just
released the write lock finds the turn taken and queues behind the writer that waits there.

Lock order: turn, then write; turn is released as soon as write is held. The write lock is held
over the commit and over checkpoints, so commits and checkpoints of different processes never
overlap, which also closes the WAL-reset corruption of SQLite before 3.51.3
(https://sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from eventstore._platform import FileLock
from eventstore.errors import PathUnusable, StoreBusy
from eventstore.observer import Observer

__all__ = ["Gate", "lock_file", "release_fully"]

_POLL_S: Final = 0.005


class Gate:
    """The two locks beside a database file. One thread of a process enters at a time.

    Raises:
        PathUnusable: the lock files cannot be made.
    """

    def __init__(self, database: str) -> None:
        self._path = database
        self._turn = lock_file(f"{database}-turn")
        try:
            self._write = lock_file(f"{database}-gate")
        except BaseException:
            self._turn.close()
            raise
        # The file locks belong to the process: between its threads they decide nothing.
        self._inside = threading.RLock()
        self.wanted = False
        """Whether the thread of this process that may wait is in the gate, or about to be."""
        self.observer: Observer | None = None
        self._since: float | None = None
        self._contended = threading.Event()
        self._watched = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the write lock, waiting for it without a limit."""
        self.wanted = True
        try:
            with self._inside:
                if not self._enter(blocking=False):
                    self._since = since = time.monotonic()
                    self._contended.set()
                    try:
                        self._enter(blocking=True)
                    finally:
                        self._since = None
                        self._contended.clear()
                    if self.observer is not None:
                        self.observer.waited(time.monotonic() - since)
                try:
                    self._write.sign()
                    yield
                finally:
                    self._write.release()
        finally:
            self.wanted = False

    def enter_if_free(self) -> bool:
        """Takes the write lock if nobody holds it or waits for it; then `leave` gives it back."""
        if not self._inside.acquire(blocking=False):
            return False
        if not self._enter(blocking=False):
            self._inside.release()
            return False
        self._write.sign()
        return True

    def leave(self) -> None:
        """Gives back what `enter_if_free` took."""
        self._write.release()
        self._inside.release()

    def leave_if_inside(self) -> None:
        """Gives back whatever an `enter_if_free` of this thread took, which was interrupted."""
        if self._inside.acquire(blocking=False):  # it is this thread's, or nobody's
            for lock in (self._turn, self._write):
                with suppress(OSError):  # where a lock that is not held cannot be given back
                    lock.release()
            release_fully(self._inside)

    @contextmanager
    def held_within(self, seconds: float) -> Iterator[None]:
        """Holds the write lock, or gives up: for opening a file, where nobody watches the wait.

        Raises:
            StoreBusy: another process held it all the time.
        """
        deadline = time.monotonic() + seconds
        while not self._write.acquire(blocking=False):
            if time.monotonic() > deadline:
                raise StoreBusy(self._path, seconds, self.holder())
            time.sleep(_POLL_S)
        try:
            self._write.sign()
            yield
        finally:
            self._write.release()

    def _enter(self, *, blocking: bool) -> bool:
        if not self._turn.acquire(blocking=blocking):
            return False
        try:
            return self._write.acquire(blocking=blocking)
        finally:
            self._turn.release()

    def waited_s(self) -> float:
        """For how many seconds this process has been kept waiting by now; 0.0 when it is not."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def wait_until_contended(self) -> bool:
        """Blocks until this process is kept waiting. Returns False when nobody is to watch."""
        self._contended.wait()
        return self._watched

    def stop_watching(self) -> None:
        """Ends `wait_until_contended` for good."""
        self._watched = False
        self._contended.set()

    def holder(self) -> str:
        """Who holds the write lock, as text for an error message."""
        name = self._write.holder()
        # Whoever was stopped before it could sign has left the name of the one before it.
        return "another process" if name == f"process {os.getpid()}" else name

    def close(self) -> None:
        """Closes both lock files."""
        self._turn.close()
        self._write.close()


def release_fully(lock: threading.RLock) -> None:
    """Gives a lock back as often as this thread holds it: also not at all."""
    with suppress(RuntimeError):
        while True:
            lock.release()


def lock_file(path: str) -> FileLock:
    """A lock on a file beside the database, made where it is missing.

    Raises:
        PathUnusable: it cannot be opened.
    """
    try:
        return FileLock(path)
    except OSError as error:
        raise PathUnusable(
            path,
            f"cannot be used as a lock file: {error.strerror}",
            "Free some space, or remove what is in its place: nothing is kept in it.",
        ) from error

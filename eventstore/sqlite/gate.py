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

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from eventstore._platform import FileLock
from eventstore.errors import StoreBusy

__all__ = ["Gate"]

_POLL_S: Final = 0.005


class Gate:
    """The two locks beside a database file. One thread of a process enters at a time.

    `on_wait` is called each time before this process is kept waiting.
    """

    def __init__(self, database: str, on_wait: Callable[[], None]) -> None:
        self._path = database
        self._on_wait = on_wait
        self._turn = FileLock(f"{database}-turn")
        self._write = FileLock(f"{database}-gate")
        self.waiting_since: float | None = None
        """Monotonic seconds since when this process has been kept waiting, None when it is not."""

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the write lock, waiting for it without a limit."""
        self._take(self._turn)
        try:
            self._take(self._write)
        finally:
            self._turn.release()
        self._write.sign()
        try:
            yield
        finally:
            self._write.release()

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
        self._write.sign()
        try:
            yield
        finally:
            self._write.release()

    def _take(self, lock: FileLock) -> None:
        if lock.acquire(blocking=False):
            return
        self.waiting_since = time.monotonic()
        self._on_wait()
        lock.acquire(blocking=True)
        self.waiting_since = None

    def holder(self) -> str:
        """Who holds the write lock, as text for an error message."""
        return self._write.holder()

    def close(self) -> None:
        """Closes both lock files."""
        self._turn.close()
        self._write.close()

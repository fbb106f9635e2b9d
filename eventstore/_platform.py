"""What differs between operating systems: file locks, fork, file modes, network file systems.

The only module that asks which system it runs on. On Windows there is no `fcntl`, no fork and no
owner-only mode: locks come from `msvcrt`, and the rest has nothing to do. Where neither kind of
lock exists, SQLite's own busy handler is what keeps writers apart (correct, but not fair).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Final

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]
else:
    _WAIT = fcntl.LOCK_EX
    _AT_ONCE = fcntl.LOCK_EX | fcntl.LOCK_NB
try:
    import msvcrt as _msvcrt

    msvcrt: ModuleType | None = _msvcrt
except ImportError:
    msvcrt = None

__all__ = [
    "FileLock",
    "around_fork",
    "create_private_file",
    "file_identity",
    "file_size",
    "in_forked_child",
    "network_file_system",
    "sync_file",
]

_NETWORK_FILE_SYSTEMS: Final = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ncpfs"}
_RETRY_S: Final = 0.001
_PWRITE: Final = getattr(os, "pwrite", None)


class FileLock:
    """An exclusive advisory lock on a file of its own, shared by every process that opens it.

    The file is never removed: removing it would let two processes lock two different files.
    The holder writes its process id into it, for the error of one that waits in vain.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT
        # A link that somebody else put here must not lead this process to write elsewhere.
        for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):
            flags |= getattr(os, name, 0)
        self._fd = os.open(path, flags, 0o600)

    def acquire(self, *, blocking: bool) -> bool:
        """Takes the lock. Returns False when it is held and `blocking` is False."""
        if fcntl is not None:
            try:
                fcntl.flock(self._fd, _WAIT if blocking else _AT_ONCE)
            except BlockingIOError:
                return False
            return True
        if msvcrt is not None:
            return self._acquire_on_windows(blocking=blocking)
        return True

    def _acquire_on_windows(self, *, blocking: bool) -> bool:
        assert msvcrt is not None
        while True:
            # A byte far behind the process id, which stays readable while the lock is held.
            os.lseek(self._fd, 4096, os.SEEK_SET)
            try:
                msvcrt.locking(self._fd, msvcrt.LK_NBLCK, 1)
            except OSError:
                if not blocking:
                    return False
                time.sleep(_RETRY_S)
            else:
                return True

    def release(self) -> None:
        """Gives the lock back."""
        if fcntl is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        elif msvcrt is not None:
            os.lseek(self._fd, 4096, os.SEEK_SET)
            msvcrt.locking(self._fd, msvcrt.LK_UNLCK, 1)

    def sign(self) -> None:
        """Writes this process's id into the file; call it while holding the lock.

        It only serves an error message: a full disk must not keep anybody from the lock.
        """
        name = b"%-20d" % os.getpid()
        try:
            if _PWRITE is not None:
                _PWRITE(self._fd, name, 0)
            else:
                os.lseek(self._fd, 0, os.SEEK_SET)
                os.write(self._fd, name)
        except OSError:
            pass

    def holder(self) -> str:
        """Who signed last, as text for an error message."""
        try:
            text = Path(self.path).read_text(errors="replace").strip()
        except OSError:
            text = ""
        return f"process {text}" if text.isdigit() else "another process"

    def close(self) -> None:
        """Closes the descriptor, which gives up the lock unless a parent process shares it."""
        if (fd := self._fd) >= 0:
            self._fd = -1  # before a fork could find one that is closed
            os.close(fd)


def around_fork(
    before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]
) -> None:
    """Calls back around every fork of this process; nothing where there is no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def in_forked_child(callback: Callable[[], None]) -> None:
    """Calls back in every process forked from this one; nothing where there is no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=callback)


def create_private_file(path: str) -> bool:
    """Makes an empty file only its owner may read. Returns False when it exists already.

    Must run before any SQLite connection of this process has the file open: closing the
    descriptor would drop that connection's POSIX locks (https://sqlite.org/howtocorrupt.html).
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    os.close(fd)
    return True


def file_identity(path: str) -> tuple[int, int] | None:
    """Device and inode of a file, None when there is none. Never opens the file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - on the append path; Path.stat costs twice as much
    except OSError:  # not there, or no longer to be reached
        return None
    return status.st_dev, status.st_ino


def file_size(path: str) -> int:
    """Bytes of a file, 0 when there is none."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def sync_file(path: str) -> None:
    """Has the disk write what it has not of a file, as far as it can.

    Whoever relies on it syncs for themselves, and is told of what failed. Not for a file on which
    SQLite keeps POSIX locks: closing it would drop them (https://sqlite.org/howtocorrupt.html).
    """
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def network_file_system(path: str) -> str | None:
    """The network file system `path` is on, None when it is local or the system does not say.

    WAL needs memory shared by all processes (https://sqlite.org/wal.html#noshm), and file locks
    over a network are not to be trusted.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return None
    best, kind = "", None
    real = os.path.realpath(path)
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind if kind in _NETWORK_FILE_SYSTEMS else None

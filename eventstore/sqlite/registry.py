"""One engine per file and process, shared by all stores on it; forks and the interpreter's end."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from eventstore import _platform
from eventstore.errors import PathUnusable, StoreBusy
from eventstore.location import DATABASE_COMPANIONS
from eventstore.projection import Projection, check_same
from eventstore.sqlite.database import prepare_path
from eventstore.sqlite.engine import Engine
from eventstore.sqlite.files import MAGIC

__all__ = [
    "acquire",
    "is_database",
    "is_open",
    "lock",
    "release",
    "require_own_files",
    "temporary_folders",
]

# Keyed by device and inode: two paths may name one file.
_engines: dict[tuple[int, int], Engine] = {}
_open: dict[Engine, tuple[int, int]] = {}
"""Engines with connections, also those that are just being stopped: what a fork must wait for, and
whose locks would be lost if somebody else closed a descriptor of their files."""
lock = threading.RLock()
"""Held while an engine is taken or given back."""
_ROUNDS: Final = 20
"""How often all are tried to be taken while none is held."""
_WRITERS_S: Final = 0.1
temporary_folders: set[str] = set()
"""Folders of private databases, removed at the interpreter's end if they are still there."""

_log = logging.getLogger(__name__)


def acquire(path: str, projections: Sequence[Projection], *, for_rebuild: bool = False) -> Engine:
    """The engine on a file, made when it is the first use; give it back with `release`.

    Raises:
        StoreUnusable, ProjectionMissing, StoreBusy: see eventstore.errors.
    """
    with lock:
        require_own_files(os.path.realpath(path))
        real = prepare_path(path)
        identity = _platform.file_identity(real)
        assert identity is not None
        engine = _engines.get(identity)
        if engine is None or engine.broken:
            engine = _engines[identity] = Engine(real, projections, for_rebuild=for_rebuild)
            _open[engine] = identity
        check_same(engine.path, engine.projections, projections)
        if not for_rebuild:
            engine.require_projections()
        engine.users += 1
        return engine


def is_open(path: str) -> bool:
    """Whether this process has an engine on a file, or has not let go of it yet."""
    with lock:
        return _platform.file_identity(path) in _open.values()


def is_database(path: str) -> bool:
    """Whether a file is a database, by how it begins."""
    with lock:  # to close a descriptor of one that is open would drop its connections' locks
        if is_open(path):
            return True
        try:
            with Path(path).open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        except OSError:
            return False


def require_own_files(path: str) -> None:
    """Asserts that a database at a real path shares no file with another: see eventstore.store."""
    for ending in DATABASE_COMPANIONS:
        if path.endswith(ending) and is_database(path.removesuffix(ending)):
            raise PathUnusable(path, "belongs to the database beside it", "Name another file.")
        # Beside one that is in use they are its own, and to close them would drop its locks.
        if not _platform.file_size(path) and is_database(f"{path}{ending}"):
            raise PathUnusable(
                path, f"would keep its {ending} in the database of that name", "Name another file."
            )


def release(engine: Engine) -> None:
    """Gives an engine back; the last user's release stops it. Blocks until it has stopped."""
    with lock:
        engine.users -= 1
        if engine.users > 0 or engine.abandoned:
            return
        for identity in [i for i, known in _engines.items() if known is engine]:
            del _engines[identity]
    _stop(engine)


def _stop(engine: Engine) -> None:
    engine.stop()
    with lock:
        _open.pop(engine, None)


def _stop_all() -> None:
    """At the interpreter's end: what was queued is still committed."""
    with lock:
        engines = list(_open)  # also one whose end was interrupted
        _engines.clear()
    for engine in engines:
        try:
            _stop(engine)
        except StoreBusy as error:
            _log.error("left with requests that wait: %s", error)
    for folder in temporary_folders:
        shutil.rmtree(folder, ignore_errors=True)


_held: list[threading.RLock] = []
"""What the fork that is under way holds, to be given back in the parent."""


def _before_fork() -> None:
    interrupted = _take(lock)
    interrupted |= _take_all()
    for engine in _open:
        engine.close_connections()
    if interrupted:
        raise KeyboardInterrupt  # which the interpreter prints, and forks all the same


def _take_all() -> bool:
    """Takes the locks of all engines, as `_take` does one.

    A long read must not keep the writers of this process, which may be in the gate, and so those of
    all others: theirs are waited for last, and not for long. Nor should it keep other reads: it is
    waited for alone, unless so many go on that they never rest together.
    """
    both = [engine.locks() for engine in _open]
    readers, writers = [each for locks, _ in both for each in locks], [lock for _, lock in both]
    interrupted, first = False, 0
    for _ in range(_ROUNDS if readers else 0):
        interrupted |= _take(readers[first])
        _held.append(readers[first])
        busy = [n for n, each in enumerate(readers) if n != first and not _take_within(each, 0)]
        if not busy and all(_take_within(each, 0) for each in writers):
            return interrupted
        _give_back()
        first = busy[0] if busy else first
    while readers:
        for each in readers:
            interrupted |= _take(each)
            _held.append(each)
        if all(_take_within(each, _WRITERS_S) for each in writers):
            break
        _give_back()
    return interrupted


def _take_within(wanted: threading.RLock, seconds: float) -> bool:
    taken = wanted.acquire(timeout=seconds) if seconds else wanted.acquire(blocking=False)
    if taken:
        _held.append(wanted)
    return taken


def _give_back() -> None:
    while _held:
        _held.pop().release()


def _take(wanted: threading.Lock | threading.RLock) -> bool:
    """Takes a lock whatever a signal's handler raises. Returns whether one raised something.

    The interpreter forks also when a callback raises: then without having waited.
    """
    interrupted = False
    while True:
        try:
            wanted.acquire()
        except BaseException:
            interrupted = True
        else:
            return interrupted


def _after_fork_in_parent() -> None:
    _give_back()
    lock.release()


def _after_fork_in_child() -> None:
    """Begins anew, with none of the parent's engines."""
    for engine in _open:
        engine.after_fork_in_child()
    _open.clear()
    _engines.clear()
    _held.clear()
    temporary_folders.clear()
    lock.release()


atexit.register(_stop_all)
_platform.around_fork(_before_fork, _after_fork_in_parent, _after_fork_in_child)

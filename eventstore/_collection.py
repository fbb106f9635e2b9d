"""Keeping the garbage collector, and the system, out while much memory comes and goes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from eventstore import _platform

__all__ = ["collection_paused", "keep_memory"]

_pausing = threading.Lock()
_paused = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keeps the garbage collector out while objects are made, all of which stay.

    It would go through them over and over, and count them as a reason to go through all others
    the process has: together that took longer than making them. Whoever pauses does so
    alone, so that those that overlap do not keep it out for good.
    """
    global _paused
    lock = _pausing
    if not lock.acquire(blocking=False):
        yield
        return
    try:
        enabled = gc.isenabled()
        try:
            _paused = enabled
            gc.disable()
            yield
        finally:
            if enabled:
                gc.enable()
            _paused = False
    finally:
        lock.release()


def keep_memory(size: int) -> None:
    """Has the C library keep about so many bytes that are freed, to give them out again.

    Those of GNU give large blocks back to the system at once, until one as large was freed: after
    that they keep what is smaller, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD). Taking megabytes
    anew for each page takes 7 % of the time of a rebuild. This one is never touched, so it
    takes none.
    """
    bytes(size)


def _begin() -> None:
    """In a forked child, where the thread that paused it is not."""
    global _pausing, _paused
    _pausing = threading.Lock()
    if _paused:
        gc.enable()
        _paused = False


_platform.in_forked_child(_begin)

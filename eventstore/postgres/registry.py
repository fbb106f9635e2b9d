"""One engine per schema and process, shared by all stores on it; forks, the interpreter's end."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import psycopg

from eventstore import _platform
from eventstore.postgres.address import Address
from eventstore.postgres.connection import Connect, Connection, Connector
from eventstore.postgres.engine import Engine
from eventstore.projection import Projection, check_same

__all__ = ["acquire", "lock", "release"]

_engines: dict[tuple[Address, Connect | None], Engine] = {}
_making: dict[tuple[Address, Connect | None], threading.Lock] = {}
"""Held while the engine of a key is being made."""
_inherited: Final[list[Connection]] = []
"""In a forked child: the parent's. Never let go: to close one would end the parent's session."""
lock = threading.RLock()
"""Held while an engine is taken or given back."""


def acquire(
    address: Address,
    connect: Connect | None,
    projections: Sequence[Projection],
    *,
    for_rebuild: bool = False,
    create: bool = True,
    create_schema: bool = True,
    partitions: int = 0,
) -> Engine:
    """The engine on a schema, made when it is the first use; give it back with `release`.

    Raises:
        StoreUnusable, ProjectionMissing: see eventstore.errors.
    """
    key = (address, connect)
    with lock:
        making = _making.setdefault(key, threading.Lock())
    # Connecting may take long, and then nobody may wait who wants another engine, or to fork.
    with making:
        with lock:
            engine = _engines.get(key)
            if engine is None or engine.broken:
                engine = None
            else:
                engine.users += 1
        if engine is None:
            engine = Engine(
                Connector(address, connect),
                projections,
                for_rebuild=for_rebuild,
                create=create,
                create_schema=create_schema,
                partitions=partitions,
            )
            engine.users = 1
            with lock:
                _engines[key] = engine
    try:
        check_same(engine.address.shown, engine.projections, projections)
        if not for_rebuild:
            engine.require_projections()
    except BaseException:
        release(engine)
        raise
    return engine


def release(engine: Engine) -> None:
    """Gives an engine back; the last user's release stops it. Blocks until it has stopped."""
    with lock:
        engine.users -= 1
        if engine.users > 0 or engine.abandoned:
            return
        for key in [key for key, known in _engines.items() if known is engine]:
            del _engines[key]
    engine.stop()


def _stop_all() -> None:
    """At the interpreter's end: what was queued is still committed."""
    with lock:
        engines = list(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.stop()


def _before_fork() -> None:
    lock.acquire()


def _after_fork_in_parent() -> None:
    lock.release()


def _after_fork_in_child() -> None:
    """Begins anew, with none of the parent's engines.

    The copies of its sockets are closed, without a word to the server: else its sessions would
    outlive it, with their locks.
    """
    for engine in _engines.values():
        for connection in engine.after_fork_in_child():
            _inherited.append(connection)
            with suppress(OSError, psycopg.Error):
                os.close(connection.fileno())
    _engines.clear()
    _making.clear()
    lock.release()


atexit.register(_stop_all)
_platform.around_fork(_before_fork, _after_fork_in_parent, _after_fork_in_child)

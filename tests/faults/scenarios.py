"""What the store does, as scenarios that can be made to fail, and what a file then holds."""

from __future__ import annotations

import asyncio
import importlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, cast
from unittest.mock import patch

from eventstore import (
    Cursor,
    EventStore,
    EventType,
    NewEvent,
    StreamExists,
    Window,
    open_store,
)
from projections import erase_user, purge, rebuild, run, scavenge, verify
from projections.backup import backup, restore
from tests.eventstore.events import new_event, session
from tests.faults.faulty import Plan, Point, connect, installed
from tests.golden.make import SCHEMA_1
from tests.projections.logs import DO, FOLLOWING, INLINE, Following

__all__ = [
    "SCENARIOS",
    "Outcomes",
    "Scenario",
    "State",
    "in_pieces",
    "killed",
    "settle",
    "state_of",
    "verify_all",
]

LOOP_THREAD: Final = "MainThread"
_DRIFT: Final = (
    "UPDATE state SET state_value = '\"drifted\"' WHERE state_key = 'n'",
    "DELETE FROM everything",
)
_PIECES: Final = {
    "projections.scavenge": ("SESSIONS_PER_TRANSACTION", 2),
    "projections.retention": ("SESSIONS_PER_TRANSACTION", 2),
    "projections.rebuild": ("_ROWS_PER_TRANSACTION", 4),
    "projections.asynchronous": ("_EVENTS_PER_TRANSACTION", 4),
    "eventstore.sqlite.store": ("_COPY_PAGES", 20),
}
"""So that what is done piece by piece has several in a small file."""

State = dict[str, list[tuple[Any, ...]]]


# The files.


def _delta(number: int) -> dict[str, dict[str, Any]]:
    return {
        "session": {"n": number, DO: ["put", f"row {number}", number]},
        "app": {f"a{number}": number},
        "user": {DO: ["add", "sum", 1]},
    }


def _event(name: str, number: int, type_: EventType = EventType.ADK_EVENT) -> NewEvent:
    delta = None if type_ is EventType.SESSION_DELETED else _delta(number)
    return new_event(type_, delta=delta, event_id=f"{name}/{number}", timestamp=10.0 + number)


async def _fill(store: EventStore) -> None:
    for name in ("s1", "s2", "s3", "d1", "d2", "d3"):
        await store.create(session(name), _event(name, 0, EventType.SESSION_CREATED))
        await _append(store, name, 1)
    for name in ("d1", "d2", "d3"):
        await store.delete(session(name), _event(name, 9, EventType.SESSION_DELETED))


async def _append(store: EventStore, name: str, number: int) -> None:
    """Appends behind the head; with the same number again it changes nothing."""
    stream = await store.load(session(name), Window(last=0), lambda loaded: loaded.stream)
    if stream is None:  # it was purged or erased
        created = await store.create(session(name), _event(name, 0, EventType.SESSION_CREATED))
        stream = created.stream
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(session(name), _event(name, number), cursor)


def make_filled(path: Path) -> None:
    with closing(open_store(path, INLINE)) as store:
        asyncio.run(_fill(store))


def make_followed(path: Path) -> None:
    with closing(open_store(path, INLINE)) as store:
        asyncio.run(_fill(store))
        run(store, FOLLOWING)


def make_deleted(path: Path) -> None:
    """With pages to be given back."""
    make_followed(path)

    async def fill(store: EventStore) -> None:
        large = new_event(EventType.SESSION_CREATED, delta={"session": {"x": "long" * 20_000}})
        await store.create(session("large"), large)
        await store.delete(session("large"), _event("large", 9, EventType.SESSION_DELETED))

    with closing(open_store(path, INLINE)) as store:
        asyncio.run(fill(store))
        run(store, FOLLOWING)


def make_drifted(path: Path) -> None:
    make_followed(path)
    with closing(connect(path, isolation_level=None)) as connection:
        for statement in _DRIFT:
            connection.execute(statement)


def make_behind(path: Path) -> None:
    with closing(open_store(path, INLINE)) as store:
        run(store, FOLLOWING)
        asyncio.run(_fill(store))


def make_old(path: Path) -> None:
    with closing(connect(path, isolation_level=None)) as connection:
        connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))


def make_none(path: Path) -> None:
    """No file at all: the folder is new."""


def make_restored(path: Path) -> None:
    """A backup, and another file in whose place it is to be put, with a WAL left by a kill."""
    source = path.with_name("source.sqlite3")
    with closing(open_store(source, INLINE)) as store:
        asyncio.run(_fill(store))
        asyncio.run(_append(store, "s1", 2))
    other = path.with_name("other.sqlite3")
    with closing(open_store(other, INLINE)) as store:
        asyncio.run(_fill(store))
        store.shrink()
        asyncio.run(_append(store, "s1", 77))
        for end in ("", "-wal"):
            shutil.copyfile(f"{other}{end}", f"{path}{end}")
    for file in path.parent.glob("other*"):
        file.unlink()


# What is stored.


def state_of(path: Path) -> State:
    """What a file holds, without what differs each time: times, random ids, links, positions."""
    if not path.exists() or not path.stat().st_size:
        return {}
    state = {}
    with closing(connect(path, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN")
        schema = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        state["schema"] = [
            (name, " ".join((sql or "").replace('"', "").split()))
            for name, sql in schema
            if not name.startswith(("shadow", "retired", "sqlite_autoindex_", "sqlite_sequence"))
        ]
        state["version"] = connection.execute("PRAGMA user_version").fetchall()
        names = [name for name, sql in schema if (sql or "").startswith("CREATE TABLE")]
        for table in _TABLES.keys() & set(names):
            state[table] = sorted(connection.execute(_TABLES[table]).fetchall(), key=repr)
    return state if state["schema"] else {}


_TABLES: Final = {
    "streams": "SELECT id, kind, app_name, session_id, version, live, nonce = x'' FROM streams",
    "events": "SELECT stream_id, version, type, delta, "
    "CASE WHEN event_id LIKE '%/%' THEN event_id END FROM events",
    "projections": "SELECT * FROM projections",
    "maintenance": "SELECT * FROM maintenance",
    "state": "SELECT owner_id, state_key, state_value FROM state",
    "sessions": "SELECT * FROM sessions",
    "everything": "SELECT * FROM everything",
    "following": "SELECT * FROM following",
}


# What is done.


class Scenario(NamedTuple):
    """Something the store does.

    `act` does it, and returns for each request the id of its event and its error, or nothing for
    what is one call. `thread` is where its statements are executed.
    """

    name: str
    make: Callable[[Path], None]
    act: Callable[[Any], Sequence[tuple[str, BaseException | None]]]
    thread: str | None = None
    full: bool = False
    opens: bool = True
    following: tuple[Following, ...] = ()
    projections: tuple[Any, ...] = INLINE

    @contextmanager
    def opened(self, path: Path) -> Iterator[Any]:
        """What `act` takes: a store that is warm, or the path where opening is what is done."""
        if not self.opens:
            yield path
            return
        durability: Any = "full" if self.full else "normal"
        with closing(open_store(path, self.projections, durability=durability)) as store:
            if self.full:  # as on a disk that takes long: everything is the writer's
                cast("Any", store)._engine._syncs_slow_until = math.inf
            asyncio.run(_append(store, "s2", 2))
            yield store


Outcomes = Sequence[tuple[str, BaseException | None]]


def _gathered(*makers: tuple[str, Callable[[EventStore], Any]]) -> Callable[[EventStore], Outcomes]:
    """Requests that are handed over together."""

    async def work(store: EventStore) -> Outcomes:
        ids = [event_id for event_id, _ in makers]
        outcomes = await asyncio.gather(
            *(maker(store) for _, maker in makers), return_exceptions=True
        )
        return [
            (event_id, None if not isinstance(o, BaseException) or _again(o) else o)
            for event_id, o in zip(ids, outcomes, strict=True)
        ]

    return lambda store: asyncio.run(work(store))


def _again(outcome: BaseException) -> bool:
    return isinstance(outcome, StreamExists)  # done by the first attempt


async def _delete(store: EventStore, name: str) -> None:
    await store.delete(session(name), _event(name, 9, EventType.SESSION_DELETED))


async def _create(store: EventStore, name: str) -> None:
    await store.create(session(name), _event(name, 0, EventType.SESSION_CREATED))


async def _set(store: EventStore, name: str) -> None:
    # Not one to be done twice: asked for only where it is not there.
    event = _event(name, 5, EventType.STATE_SET)
    with closing(connect(store.path)) as connection:
        found = "SELECT 1 FROM events WHERE event_id = ?"
        held = connection.execute(found, (event.event_id,)).fetchone()
    if held is None:
        await store.set_state(session(name), event)


def _called(function: Callable[[Any], object]) -> Callable[[Any], Outcomes]:
    def act(subject: Any) -> Outcomes:
        try:
            function(subject)
        except BaseException as error:
            return [("", error)]
        return [("", None)]

    return act


_APPEND: Final = _gathered(("s1/2", lambda store: _append(store, "s1", 2)))
_GROUP: Final = _gathered(
    ("s1/2", lambda store: _append(store, "s1", 2)),
    ("new/0", lambda store: _create(store, "new")),
    ("s2/5", lambda store: _set(store, "s2")),
    ("s3/9", lambda store: _delete(store, "s3")),
)


def _open_and_close(projections: Sequence[Any]) -> Callable[[Path], None]:
    return lambda path: open_store(path, projections).close()


def _back_up(store: EventStore) -> None:
    backup(store, Path(store.path).with_name("backup.sqlite3"), FOLLOWING, overwrite=True)


def _restore(path: Path) -> None:
    restore(path.with_name("source.sqlite3"), path, INLINE, overwrite=True)


_BUILT_IN: Final = INLINE[:2]

SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario("append", make_filled, _APPEND, LOOP_THREAD),
        Scenario("append-full", make_filled, _APPEND, "eventstore-writer", full=True),
        Scenario("group", make_filled, _GROUP, LOOP_THREAD),
        Scenario("group-full", make_filled, _GROUP, "eventstore-writer", full=True),
        Scenario(
            "rebuild",
            make_drifted,
            _called(lambda store: rebuild(store, INLINE, FOLLOWING)),
            following=FOLLOWING,
        ),
        Scenario("follow", make_behind, _called(lambda s: run(s, FOLLOWING)), following=FOLLOWING),
        Scenario(
            "vacuum",
            make_deleted,
            _called(lambda store: (scavenge(store, INLINE, FOLLOWING), store.shrink())),
            following=FOLLOWING,
        ),
        Scenario(
            "purge",
            make_followed,
            _called(lambda store: purge(store, INLINE, FOLLOWING, older_than=0)),
            following=FOLLOWING,
        ),
        Scenario(
            "erase",
            make_followed,
            _called(
                lambda store: (
                    erase_user(store, INLINE, FOLLOWING, user_id="user"),
                    run(store, FOLLOWING),
                )
            ),
            following=FOLLOWING,
        ),
        Scenario("new-file", make_none, _called(_open_and_close(INLINE)), opens=False),
        Scenario(
            "migration",
            make_old,
            _called(_open_and_close(_BUILT_IN)),
            opens=False,
            projections=_BUILT_IN,
        ),
        Scenario("backup", make_followed, _called(_back_up), following=FOLLOWING),
        Scenario("restore", make_restored, _called(_restore), opens=False),
    )
}


# In other processes.


@contextmanager
def in_pieces() -> Iterator[None]:
    with ExitStack() as stack:
        for module, (name, value) in _PIECES.items():
            stack.enter_context(patch.object(importlib.import_module(module), name, value))
        yield


def settle(scenario: Scenario, store: Any) -> None:
    """Waits until the writer is done with what came before."""
    if scenario.thread is None:
        return
    engine = store._engine
    deadline = time.monotonic() + 10
    while engine._told or time.monotonic() < engine._slow_until or not engine._gate.enter_if_free():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    engine._gate.leave()


def killed(name: str, path: str, at: Point) -> None:
    """The process that is killed."""
    scenario = SCENARIOS[name]
    plan = Plan(at)
    with in_pieces(), installed(plan, Path(path).parent), scenario.opened(Path(path)) as subject:
        settle(scenario, subject)
        with plan.armed():
            scenario.act(subject)


def verify_all(cases: Sequence[tuple[str, str, str]], pipe: Any) -> None:
    found = []
    for name, file, what in cases:
        try:
            found += [f"{what}: {text}" for text in _verify(SCENARIOS[name], Path(file))]
        except BaseException as error:
            found.append(f"{what}: {error!r}")
    pipe.send(found)


def _verify(scenario: Scenario, path: Path) -> list[str]:
    found = []
    with in_pieces(), scenario.opened(path) as subject:
        found += [repr(error) for _, error in scenario.act(subject) if error]
    with closing(open_store(path, scenario.projections)) as store:
        report = verify(store, scenario.projections, scenario.following)
        if not report.clean:
            found.append(f"{report.drifted} {report.differences[:2]}")
    with closing(connect(path)) as connection:
        named = "SELECT name FROM sqlite_schema WHERE name LIKE ? OR name LIKE ?"
        if left := connection.execute(named, ("shadow%", "retired%")).fetchall():
            found.append(f"left: {left}")
    return found

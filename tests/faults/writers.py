"""Programs that write until they are killed, and tell on a pipe what they were told.

What a writer writes follows from its name and a number, so that whoever reads the database later
can tell what must be there: event `n` of a session sets `n`, `k<n % 7>`, `app:<session>` and
`user:<session>` to n. The first event of a session is number 0, its creation.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, Protocol

from google.adk.events import Event, EventActions

from adk_adapter import AlreadyExistsError, DatabaseSessionService
from eventstore import (
    Cursor,
    EventStore,
    EventType,
    MaintenanceRunning,
    Window,
    open_store,
)
from projections import BUILT_IN, UsageProjection, rebuild, run, scavenge
from tests.eventstore.events import new_event, session

APP: Final = "app"
USER: Final = "user"
SHARED: Final = "shared"
"""A session that all services append to, each behind what the others did."""
KEYS: Final = 7
BURST: Final = 3
FOLLOWING: Final = (UsageProjection(),)


class Report:
    """Lines to the oracle: what is about to be tried, and what was acknowledged.

    A line is shorter than a pipe's buffer, so it arrives whole or not at all.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, verb: str, what: str, name: str, number: int) -> None:
        os.write(self._pipe.fileno(), f"{verb} {what} {name} {number}\n".encode())


def delta_of(name: str, number: int) -> dict[str, dict[str, int]]:
    own = {"n": number, f"k{number % KEYS}": number}
    return {"session": own, "app": {name: number}, "user": {name: number}}


def prefixed(name: str, number: int) -> dict[str, int]:
    """The same as ADK writes it."""
    own, app, user = delta_of(name, number).values()
    return {
        **own,
        **{f"app:{key}": value for key, value in app.items()},
        **{f"user:{key}": value for key, value in user.items()},
    }


class Writing(Protocol):
    """One session, and what can be done to it."""

    async def open(self) -> int | None:
        """How many events the session has, None when there is no such session."""

    async def create(self) -> None: ...

    async def append(self, number: int) -> None: ...

    async def set(self, number: int) -> None: ...

    async def create_other(self, name: str, key: str, number: int) -> None: ...

    async def delete_other(self, name: str) -> None: ...


class ThroughService:
    """As an agent writes: through ADK's interface."""

    def __init__(self, service: DatabaseSessionService, name: str) -> None:
        self._service = service
        self._name = name

    async def open(self) -> int | None:
        self._session = await self._service.get_session(APP, USER, self._name)
        return None if self._session is None else len(self._session.events)

    async def create(self) -> None:
        self._session = await self._service.create_session(
            APP, USER, self._name, prefixed(self._name, 0)
        )

    async def append(self, number: int) -> None:
        await self._service.append_event(self._session, adk_event(self._name, number))

    async def set(self, number: int) -> None:
        await self._service.update_keys(APP, USER, self._name, {"set": number})

    async def create_other(self, name: str, key: str, number: int) -> None:
        await self._service.create_session(APP, USER, name, {f"user:{key}": number})

    async def delete_other(self, name: str) -> None:
        await self._service.delete_session(APP, USER, name)


class ThroughStore:
    """The store itself, each commit synced: so the writer thread does all of it."""

    def __init__(self, store: EventStore, name: str) -> None:
        self._store = store
        self._name = name
        self._key = session(name)

    async def open(self) -> int | None:
        stream = await self._store.load(self._key, Window(last=0), lambda loaded: loaded.stream)
        if stream is None:
            return None
        self._cursor = Cursor(stream.id, stream.conversation_version)
        count = await self._store.load(self._key, Window(), lambda loaded: len(loaded.events))
        assert count is not None
        return count

    async def create(self) -> None:
        event = new_event(EventType.SESSION_CREATED, delta=delta_of(self._name, 0))
        self._cursor = Cursor((await self._store.create(self._key, event)).stream.id, 1)

    async def append(self, number: int) -> None:
        event = new_event(
            delta=delta_of(self._name, number),
            event_id=f"{self._name}/{number}",
            timestamp=1000.0 + number,
        )
        await self._store.append(self._key, event, self._cursor)

    async def set(self, number: int) -> None:
        event = new_event(EventType.STATE_SET, delta={"session": {"set": number}})
        await self._store.set_state(self._key, event)

    async def create_other(self, name: str, key: str, number: int) -> None:
        event = new_event(EventType.SESSION_CREATED, delta={"user": {key: number}})
        await self._store.create(session(name), event)

    async def delete_other(self, name: str) -> None:
        await self._store.delete(session(name), new_event(EventType.SESSION_DELETED))


def adk_event(name: str, number: int, delta: dict[str, int] | None = None) -> Event:
    return Event(
        id=f"{name}/{number}",
        timestamp=1000.0 + number,
        author="writer",
        invocation_id=f"i-{number}",
        actions=EventActions(state_delta=prefixed(name, number) if delta is None else delta),
    )


async def write(writing: Writing, name: str, report: Report) -> None:
    """Writes one session without an end, and now and then makes and deletes another."""

    async def told(what: str, of: str, number: int, done: Callable[[], Awaitable[None]]) -> None:
        report("try", what, of, number)
        await done()
        report("ack", what, of, number)

    number = await writing.open()
    if number is None:
        await told("create", name, 0, writing.create)
        number = 0
    elif number:
        # As one does that was killed before it was told: the same event once more.
        await told("append", name, number, lambda: writing.append(number))
    while True:
        burst = range(number + 1, number + 1 + (BURST if number % 5 == 0 else 1))
        await asyncio.gather(
            *(told("append", name, n, lambda n=n: writing.append(n)) for n in burst)
        )
        number = burst[-1]
        if number % 4 == 0:
            await told("set", name, number, lambda: writing.set(number))  # noqa: B023
        if number % 6 == 0:
            other = f"{name}~{number}"
            await told(
                "other",
                name,
                number,
                lambda: writing.create_other(other, f"left-{name}", number),  # noqa: B023
            )
            await told("delete", name, number, lambda: writing.delete_other(other))  # noqa: B023


async def share(service: DatabaseSessionService, name: str, report: Report) -> None:
    """Appends to a session that others append to as well; what it missed is merged."""
    found = await service.get_session(APP, USER, SHARED)
    if found is None:
        try:
            found = await service.create_session(APP, USER, SHARED)
        except AlreadyExistsError:
            found = await service.get_session(APP, USER, SHARED)
    assert found is not None
    mine = [event for event in found.events if event.id.startswith(f"{name}/")]
    number = len(mine)
    while True:
        number += 1
        report("try", "shared", name, number)
        await service.append_event(found, adk_event(name, number, {name: number}))
        report("ack", "shared", name, number)


def use_service(path: Path, name: str, threads: int, pipe: Connection) -> None:
    """A process with a service: loops in several threads, several tasks in each."""
    report = Report(pipe)

    async def tasks(thread: int) -> None:
        own = f"{name}-{thread}"
        writers = [write(ThroughService(service, f"{own}-{n}"), f"{own}-{n}", report) for n in "ab"]
        await asyncio.gather(*writers, share(service, own, report))

    with failures_told(report, name):
        service = DatabaseSessionService(path, on_stale="merge")
        in_threads(threads, tasks, report, name)


def use_store(path: Path, name: str, threads: int, pipe: Connection) -> None:
    """A process with a store whose commits are synced."""
    report = Report(pipe)

    async def tasks(thread: int) -> None:
        names = [f"{name}-{thread}-{n}" for n in "ab"]
        await asyncio.gather(*(write(ThroughStore(store, own), own, report) for own in names))

    with (
        failures_told(report, name),
        closing(open_store(path, BUILT_IN, durability="full")) as store,
    ):
        in_threads(threads, tasks, report, name)


def maintain(path: Path, name: str, _: int, pipe: Connection) -> None:
    """A process that rebuilds, follows and vacuums without an end."""
    report = Report(pipe)
    steps: Iterable[Callable[[EventStore], object]] = (
        lambda store: rebuild(store, BUILT_IN),
        lambda store: run(store, FOLLOWING),
        lambda store: scavenge(store, BUILT_IN, FOLLOWING),
        lambda store: store.shrink(),
        lambda store: rebuild(store, BUILT_IN, FOLLOWING),
    )
    with failures_told(report, name), closing(open_store(path, BUILT_IN)) as store:
        number = 0
        while True:
            for step in steps:
                number += 1
                try:
                    step(store)
                except MaintenanceRunning:
                    continue  # a service is building the asynchronous projection
                report("ack", "maintenance", name, number)


def in_threads(
    count: int, tasks: Callable[[int], Awaitable[None]], report: Report, name: str
) -> None:
    async def work(thread: int) -> None:
        await tasks(thread)

    def told(thread: int) -> None:
        with failures_told(report, name):
            asyncio.run(work(thread))

    others = [threading.Thread(target=told, args=(n,), daemon=True) for n in range(1, count)]
    for other in others:
        other.start()
    told(0)


class failures_told:  # noqa: N801 - used like a function
    """Nothing a writer does may fail: whatever is raised is told to the oracle."""

    def __init__(self, report: Report, name: str) -> None:
        self._report = report
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            text = f"{type(error).__name__}:{error}".replace(" ", "_").replace("\n", "_")
            self._report("fail", text[:900], self._name, 0)

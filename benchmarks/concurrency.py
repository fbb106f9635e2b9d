"""Many sessions at once, in one process and in several, for as long as the clock says.

A round is a new database, some sessions, and a few seconds in which as much is done as the service
can. An error is counted, whatever it says, and the task goes on with its next event: so "database
is locked" costs a peer the time it waited and the event, as it costs its users.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.adk.events import Event
from google.adk.sessions import BaseSessionService, Session

from benchmarks.events import light_events, read_events
from benchmarks.prefill import APP, Load, session_id, user_of
from benchmarks.services import CONTENDERS, close, open_filled

_EVENTS_PER_SECOND_MAX = 15_000
"""So many events are made before the clock starts; a faster service stops early."""
_HEARTBEAT_S = 0.002
_TURN_EVENTS = 200
_TURN_APPENDS = 6
_SESSIONS_PER_USER = 8

Work = Callable[[Any, Iterator[Event], "Clock"], Coroutine[Any, Any, None]]


@dataclass
class Round:
    """What one process did in one round. Times are in seconds."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    loop_blocked: float = 0.0
    """How long the event loop was held up at the longest."""
    collected: float = 0.0
    """How long the longest garbage collection took, which is a part of that."""


def prepare(_: int, barrier: Any, name: str, path: Path, processes: int, tasks: int) -> None:
    """Make the sessions of several processes; some services fail to make tables side by side."""

    async def run() -> None:
        service = CONTENDERS[name].open(path)
        for process in range(processes):
            await _sessions(service, process, tasks)
        await close(service)

    asyncio.run(run())


def append_at_once(
    number: int, barrier: Any, name: str, path: Path, tasks: int, seconds: float, seed: int
) -> Round:
    """Each task appends to a session of its own."""
    return append_on(number, barrier, lambda: CONTENDERS[name].open(path), tasks, seconds, seed)


def append_on(
    number: int,
    barrier: Any,
    open_service: Callable[[], BaseSessionService],
    tasks: int,
    seconds: float,
    seed: int,
) -> Round:
    """The same on a service that is not one of CONTENDERS."""

    async def run() -> Round:
        service = open_service()

        async def append(session: Session, events: Iterator[Event], clock: Clock) -> None:
            while event := await clock.next(events):
                with clock.timed():
                    await service.append_event(session, event)

        try:
            sessions = await _sessions(service, number, tasks)
            return await _together(sessions, append, barrier, seconds, seed + number)
        finally:
            await close(service)

    return asyncio.run(run())


async def _sessions(service: BaseSessionService, process: int, tasks: int) -> list[Session]:
    """The sessions of a process, made where they are missing."""
    keys = [
        {"app_name": APP, "user_id": f"user-{process}", "session_id": f"{process}-{task}"}
        for task in range(tasks)
    ]
    return [await service.get_session(**key) or await service.create_session(**key) for key in keys]


def take_turns(
    number: int,
    barrier: Any,
    name: str,
    path: Path,
    users: int,
    seconds: float,
    seed: int,
    reading: bool,
) -> Round:
    """Each user's agent loads a session of 200 events and appends six, again and again.

    With `reading` it also looks at each event, as ADK's runner does to make a request of them. It
    goes from session to session, so that they stay short, however fast it is.
    """
    count = users * _SESSIONS_PER_USER
    load = Load(count, count * _TURN_EVENTS, seed=seed, spread=0)

    async def turn(service: BaseSessionService, number: int, events: Iterator[Event]) -> None:
        session = await service.get_session(
            app_name=APP, user_id=user_of(number), session_id=session_id(load, number)
        )
        assert session is not None
        if reading:
            assert read_events(session) >= _TURN_EVENTS
        for event in itertools.islice(events, _TURN_APPENDS):
            event.timestamp = time.time()
            await service.append_event(session, event)

    async def run() -> Round:
        service = await open_filled(name, path, load)

        async def take(user: int, events: Iterator[Event], clock: Clock) -> None:
            own = range(user, count, users)
            for number in itertools.cycle(own):
                if (event := await clock.next(events)) is None:
                    break
                with clock.timed():
                    await turn(service, number, itertools.chain([event], events))

        try:
            return await _together(range(users), take, barrier, seconds, seed)
        finally:
            await close(service)

    return asyncio.run(run())


def idle(number: int, barrier: Any, seconds: float) -> Round:
    """Nothing at all, which shows what the machine itself does to an event loop."""

    async def wait(_: int, __: Iterator[Event], ___: Clock) -> None:
        await asyncio.sleep(seconds)

    return asyncio.run(_together([number], wait, barrier, seconds, 0))


async def _together(
    subjects: Sequence[Any], work: Work, barrier: Any, seconds: float, seed: int
) -> Round:
    """Let a task work on each subject until the time is over."""
    processes = barrier.parties if barrier else 1
    supply = round(_EVENTS_PER_SECOND_MAX / processes * seconds)
    events = iter(list(itertools.islice(light_events(seed), supply)))
    gc.collect()
    gc.freeze()
    if barrier:
        barrier.wait()
    clock = Clock(seconds)
    gc.callbacks.append(clock.collecting)
    heart = asyncio.create_task(clock.beat())
    try:
        await asyncio.gather(*(work(subject, events, clock) for subject in subjects))
    finally:
        clock.stop()
        heart.cancel()
        gc.callbacks.remove(clock.collecting)
        gc.unfreeze()
    return clock.round


class Clock:
    """Says when a round is over, and keeps what happened in it."""

    def __init__(self, seconds: float) -> None:
        self.round = Round()
        self._start = time.perf_counter()
        self._end = self._start + seconds
        self._collecting = 0.0

    async def next(self, events: Iterator[Event]) -> Event | None:
        """The next event, which happens now; None when the time is over.

        Lets the other tasks run first, for a service in memory never does.
        """
        await asyncio.sleep(0)
        if time.perf_counter() >= self._end or (event := next(events, None)) is None:
            return None
        event.timestamp = time.time()
        return event

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the time of what is done inside, or count its error and go on."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            self.round.errors[f"{type(error).__name__}: {_reason(error)}"] += 1
        else:
            self.round.latencies.append(time.perf_counter() - start)

    async def beat(self) -> None:
        """Note how late the loop comes back to a task that sleeps."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_HEARTBEAT_S)
            late = time.perf_counter() - before - _HEARTBEAT_S
            self.round.loop_blocked = max(self.round.loop_blocked, late)

    def stop(self) -> None:
        """The last task is done."""
        self.round.seconds = time.perf_counter() - self._start

    def collecting(self, phase: str, _: dict[str, int]) -> None:
        """Called by the garbage collector, before and after."""
        if phase == "start":
            self._collecting = time.perf_counter()
        else:
            took = time.perf_counter() - self._collecting
            self.round.collected = max(self.round.collected, took)


def _reason(error: Exception) -> str:
    """What an error says, without what differs from one to the next."""
    return str(getattr(error, "orig", error)).splitlines()[0][:40]

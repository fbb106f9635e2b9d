"""Measures create, append, get and update_keys for our service and ADK's own.

pytest-benchmark measures one test after the other, so a noisy minute would hit
one service alone. The whole suite therefore runs in several passes, and each
pass starts with another service; the report pools the rounds of all passes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, Session
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.events import AGENT, event_stream
from benchmarks.services import CONTENDERS, Contender, pragmas, recorded_connections

APP, USER = "bench", "user"
APPENDS_PER_SESSION = 100
INITIAL_STATE = {"stage": "new", "user:language": "en", "app:release": "1.4.2", "temp:draft": True}

T = TypeVar("T")
Call = Callable[[], Awaitable[object]]


class Bench:
    """One open service and the sessions it is measured with."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, contender: Contender, database: Path
    ) -> None:
        """Open the service; its tables are made by the first, unmeasured, session."""
        self.loop = loop
        self.contender = contender
        self.database = database
        self.events = event_stream()
        self.counter = 0
        self.seconds_awaited = 0.0
        self._filled: dict[int, str] = {}
        self._growing: dict[str, tuple[Session, int]] = {}
        with recorded_connections() as opened:
            self.service: BaseSessionService = contender.open(database)
            self.run(self.create_session())
        self.pragmas = pragmas(database, opened)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop all services share."""
        return self.loop.run_until_complete(work)

    def create_session(self) -> Coroutine[Any, Any, Session]:
        """Start a session with some state in every scope."""
        return self.service.create_session(app_name=APP, user_id=USER, state=dict(INITIAL_STATE))

    async def filled(self, length: int) -> str:
        """Id of a session with `length` events, appended on first use."""
        if length not in self._filled:
            session = await self.create_session()
            for _ in range(length):
                await self.service.append_event(session, next(self.events))
            self._filled[length] = session.id
        return self._filled[length]

    async def growing(self, purpose: str) -> Session:
        """A session to append to; a new one after every hundred uses."""
        session, uses = self._growing.get(purpose, (None, 0))
        if session is None or uses == APPENDS_PER_SESSION:
            session, uses = await self.create_session(), 0
        self._growing[purpose] = (session, uses + 1)
        return session

    async def timed(self, call: Call) -> object:
        """Await one call and count only the time it took inside the running loop."""
        start = time.perf_counter()
        result = await call()
        self.seconds_awaited += time.perf_counter() - start
        return result

    def close(self) -> None:
        """Close the service, if it can be closed."""
        close = getattr(self.service, "close", None)
        if close is not None:
            self.run(close())


async def prepare_create(bench: Bench, _: int) -> Call:
    return bench.create_session


async def prepare_append(bench: Bench, _: int) -> Call:
    session, event = await bench.growing("append"), next(bench.events)
    return lambda: bench.service.append_event(session, event)


async def prepare_get(bench: Bench, length: int) -> Call:
    session_id = await bench.filled(length)
    return lambda: bench.service.get_session(app_name=APP, user_id=USER, session_id=session_id)


async def prepare_update_keys(bench: Bench, _: int) -> Call:
    session = await bench.growing("update_keys")
    bench.counter += 1
    keys = {"stage": f"step {bench.counter}", "attempts": bench.counter, "user:language": "de"}
    update_keys = getattr(bench.service, "update_keys", None)
    if update_keys is not None:
        return lambda: update_keys(APP, USER, session.id, keys)

    # ADK has no such method; this is what its users write instead.
    def append_delta() -> Awaitable[object]:
        actions = EventActions(state_delta=keys)
        return bench.service.append_event(
            session, Event(author=AGENT, invocation_id="update", actions=actions)
        )

    return append_delta


@dataclass(frozen=True)
class Operation:
    """What is measured, how often in one pass, and on a session of how many events."""

    prepare: Callable[[Bench, int], Coroutine[Any, Any, Call]]
    rounds: int
    length: int = 0
    quick_length: int = 0


OPERATIONS = {
    "create_session": Operation(prepare_create, 10),
    "get_session": Operation(prepare_get, 10, 50, 50),
    "append_event": Operation(prepare_append, 20),
    "update_keys": Operation(prepare_update_keys, 20),
    "get_long_session": Operation(prepare_get, 2, 1000, 100),
}
PASSES = 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Order the cases by pass, then operation, each pass starting with another service."""
    names = list(CONTENDERS)
    cases = [
        (operation, names[(turn + place) % len(names)], turn)
        for turn in range(1 if metafunc.config.getoption("quick") else PASSES)
        for operation in OPERATIONS
        for place in range(len(names))
    ]
    metafunc.parametrize(("operation", "service", "turn"), cases)


class Stopwatch:
    """The timer pytest-benchmark reads: it only runs while a measured call is awaited."""

    bench: Bench | None = None

    @classmethod
    def read(cls) -> float:
        """Seconds spent awaiting calls of the service being measured."""
        return cls.bench.seconds_awaited if cls.bench else 0.0


@pytest.mark.benchmark(timer=Stopwatch.read)
def test_service(
    request: pytest.FixtureRequest,
    benchmark: BenchmarkFixture,
    benches: dict[str, Bench],
    operation: str,
    service: str,
    turn: int,
) -> None:
    bench, measured = benches[service], OPERATIONS[operation]
    quick = request.config.getoption("quick")
    length = measured.quick_length if quick else measured.length
    benchmark.group = operation
    benchmark.extra_info.update(
        operation=operation,
        service=service,
        turn=turn,
        events=length,
        pragmas=bench.pragmas,
        promise=bench.contender.promise,
    )

    def setup() -> tuple[tuple[Call], dict[str, Any]]:
        return (bench.run(measured.prepare(bench, length)),), {}

    def target(call: Call) -> object:
        return bench.run(bench.timed(call))

    Stopwatch.bench = bench
    result = benchmark.pedantic(  # type: ignore[no-untyped-call]
        target, setup=setup, rounds=2 if quick else measured.rounds, warmup_rounds=1
    )
    if length:
        assert len(result.events) == length

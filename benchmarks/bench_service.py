"""Measures single calls of our service and of ADK's own, one after the other.

pytest-benchmark measures one test after the other, so a noisy minute would hit
one service alone. The whole suite therefore runs in several passes, and each
pass starts with another service; the report pools the rounds of all passes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import Session
from google.adk.sessions.base_session_service import GetSessionConfig
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.events import AGENT, event_stream, read_events
from benchmarks.prefill import APP, NAMED_USER, SESSIONS_PER_USER, Load, Shape, user_of
from benchmarks.services import BARE, CONTENDERS, DATABASE, MEMORY, OURS, SQLITE

USER = "user"
APPENDS_PER_SESSION = 100
INITIAL_STATE = {"stage": "new", "user:language": "en", "app:release": "1.4.2", "temp:draft": True}
TAIL = 20
READERS = (OURS, MEMORY, SQLITE, DATABASE)
"""Durability makes no difference to a read."""

T = TypeVar("T")
Call = Callable[[], Awaitable[object]]


class Bench:
    """One open service and the sessions it is measured with."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, service: Any, pragmas: str, load: Load
    ) -> None:
        """Take over a service which holds a load already."""
        self.loop = loop
        self.service = service
        self.pragmas = pragmas
        self.load = load
        self.events = event_stream(load.seed)
        self.counter = 0
        self.seconds_awaited = 0.0
        self._growing: dict[str, tuple[Session, int]] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop all services share."""
        return self.loop.run_until_complete(work)

    def create_session(self) -> Coroutine[Any, Any, Session]:
        """Start a session with some state in every scope."""
        return self.service.create_session(app_name=APP, user_id=USER, state=dict(INITIAL_STATE))

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


async def prepare_create(bench: Bench, _: str) -> Call:
    return bench.create_session


async def prepare_append(bench: Bench, _: str) -> Call:
    session, event = await bench.growing("append"), next(bench.events)
    return lambda: bench.service.append_event(session, event)


async def prepare_get(bench: Bench, name: str) -> Call:
    return lambda: bench.service.get_session(app_name=APP, user_id=NAMED_USER, session_id=name)


async def prepare_get_and_read(bench: Bench, name: str) -> Call:
    async def get_and_read() -> Session:
        session = await bench.service.get_session(app_name=APP, user_id=NAMED_USER, session_id=name)
        read_events(session)
        return session

    return get_and_read


async def prepare_tail(bench: Bench, name: str) -> Call:
    config = GetSessionConfig(num_recent_events=TAIL)
    return lambda: bench.service.get_session(
        app_name=APP, user_id=NAMED_USER, session_id=name, config=config
    )


async def prepare_list(bench: Bench, _: str) -> Call:
    bench.counter += 1
    user = user_of(bench.counter * SESSIONS_PER_USER % bench.load.sessions)
    return lambda: bench.service.list_sessions(app_name=APP, user_id=user)


async def prepare_update_keys(bench: Bench, _: str) -> Call:
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
    """What is measured, how often in one pass, on which session and which services."""

    prepare: Callable[[Bench, str], Coroutine[Any, Any, Call]]
    rounds: int
    session: str = ""
    services: Sequence[str] = tuple(CONTENDERS)


OPERATIONS = {
    "create_session": Operation(prepare_create, 20),
    "append_event": Operation(prepare_append, 40, services=(*CONTENDERS, BARE)),
    "update_keys": Operation(prepare_update_keys, 20),
    "get_empty": Operation(prepare_get, 20, "empty", READERS),
    "get_50": Operation(prepare_get, 10, "short", READERS),
    "get_1000": Operation(prepare_get, 3, "middle", READERS),
    "get_1000_read": Operation(prepare_get_and_read, 3, "middle", READERS),
    # As many rounds each, for they are compared, and the first of a pass finds cold caches.
    "tail_of_100": Operation(prepare_tail, 5, "hundred", READERS),
    "tail_of_5000": Operation(prepare_tail, 5, "long", READERS),
    "tail_of_100000": Operation(prepare_tail, 5, "longest", READERS),
    "list_sessions": Operation(prepare_list, 5, "all", READERS),
}
PASSES = 20
LENGTHS = {
    "empty": 0,
    "short": 50,
    "hundred": 100,
    "middle": 1_000,
    "long": 5_000,
    "longest": 100_000,
}
"""How many events the sessions have that are read."""
SESSIONS = 100_000
QUICK = 50
"""So many times shorter are those beyond a hundred, and so many times fewer, in a quick run."""


def the_load(*, quick: bool, seed: int) -> Load:
    """What the services hold that reads are measured on."""
    lengths = {name: _length(name, quick=quick) for name in LENGTHS}
    named = {name: Shape(length) for name, length in lengths.items()}
    return Load(SESSIONS // QUICK if quick else SESSIONS, events=0, seed=seed, named=named)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Order the cases by pass, then operation, each pass starting with another service."""
    cases = [
        (name, operation.services[(turn + place) % len(operation.services)], turn)
        for turn in range(1 if metafunc.config.getoption("quick") else PASSES)
        for name, operation in OPERATIONS.items()
        for place in range(len(operation.services))
    ]
    metafunc.parametrize(("operation", "service", "turn"), cases)


def _length(name: str, *, quick: bool) -> int:
    length = LENGTHS[name]
    return length // QUICK if quick and length > 100 else length


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
    benches: dict[tuple[str, bool], Bench],
    operation: str,
    service: str,
    turn: int,
) -> None:
    measured = OPERATIONS[operation]
    bench = benches[service, bool(measured.session)]
    quick = request.config.getoption("quick")
    benchmark.group = operation
    benchmark.extra_info.update(
        operation=operation, service=service, turn=turn, pragmas=bench.pragmas
    )

    def setup() -> tuple[tuple[Call], dict[str, Any]]:
        return (bench.run(measured.prepare(bench, measured.session)),), {}

    def target(call: Call) -> object:
        return bench.run(bench.timed(call))

    Stopwatch.bench = bench
    result = benchmark.pedantic(  # type: ignore[no-untyped-call]
        target, setup=setup, rounds=2 if quick else measured.rounds, warmup_rounds=1
    )
    if measured.session in LENGTHS:
        length = _length(measured.session, quick=quick)
        assert len(result.events) == (min(length, TAIL) if operation.startswith("tail") else length)
    elif measured.session:
        assert len(result.sessions) == SESSIONS_PER_USER

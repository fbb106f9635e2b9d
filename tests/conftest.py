"""Fixtures shared by all tests: real database files, one per test."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest

from adk_adapter import DatabaseSessionService
from eventstore import EventStore, open_store
from projections import BUILT_IN
from tests.places import notes_beside, on_server
from tests.postgres.server import execute, running

POSTGRES_URL = "TEST_POSTGRES_URL"
"""A database to use for tests, instead of a server that is started; it is left as it was."""
_numbers = count(1)

# Whatever starts a job in the background may have it ignore Ctrl-C, and a program that is begun so
# ignores it too. Those that the tests start are to hear of it, wherever the tests themselves run.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """How many tests run at once with `-n auto`: four on fewer cores too, for much is waiting.

    And on more: many start several processes of their own.
    """
    return 4


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite3"


@pytest.fixture(params=["sqlite", "postgres"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a test keeps its log, on each of the backends: not made yet."""
    if request.param == "sqlite":
        yield str(request.getfixturevalue("database"))
        return
    place: Place = request.getfixturevalue("postgres")
    yield place.target
    beside = notes_beside(place.target)
    for file in beside.parent.glob(f"{beside.name}.*"):
        file.unlink()


@pytest.fixture
def another(target: str) -> str:
    """The place for a second log on the same backend."""
    if on_server(target):
        return f"{target}_2"
    return str(Path(target).with_name("another.sqlite3"))


@pytest.fixture
def store(target: str) -> Iterator[EventStore]:
    """A new, empty store of every backend."""
    opened = open_store(target, BUILT_IN)
    yield opened
    opened.close()


@pytest.fixture
async def service(target: str) -> AsyncIterator[DatabaseSessionService]:
    async with DatabaseSessionService(target) as opened:
        yield opened


class Place(NamedTuple):
    """Where a test keeps its log on a PostgreSQL server: a schema of its own, not made yet."""

    url: str
    schema: str

    @property
    def target(self) -> str:
        """Both in one, for what takes a database's path or URL."""
        return f"{self.url}{'&' if '?' in self.url else '?'}schema={self.schema}"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server's database: one for the whole run, and for each of xdist's workers.

    Without one, tests fail: they are never left out.
    """
    if url := os.environ.get(POSTGRES_URL):
        yield url
    else:
        with running() as server:
            yield server.url()


@contextmanager
def new_schema(postgres_url: str) -> Iterator[Place]:
    """A schema of its own; what is in it is gone behind it."""
    # Not by the process alone: of one that was killed there may be notes (see `notes_beside`).
    unique = uuid.uuid4().hex[:8]
    place = Place(postgres_url, f"test_{os.getpid()}_{next(_numbers)}_{unique}")
    yield place
    if os.environ.get(POSTGRES_URL):
        execute(place.url, f"DROP SCHEMA IF EXISTS {place.schema} CASCADE")


@pytest.fixture
def postgres(postgres_url: str) -> Iterator[Place]:
    """A schema of one test's own."""
    with new_schema(postgres_url) as place:
        yield place


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database of one test's own, for what schemas share: locks, roles, sizes."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE template0")
    address, _, options = postgres_url.partition("?")
    yield f"{address.rpartition('/')[0]}/{name}" + (f"?{options}" if options else "")
    execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")

"""Fixtures shared by all tests: real database files, one per test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adk_adapter import DatabaseSessionService
from eventstore import EventStore, open_store
from projections import BUILT_IN


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite3"


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, database: Path) -> Iterator[EventStore]:
    """A new, empty store of every backend."""
    opened = open_store(database, BUILT_IN)
    yield opened
    opened.close()


@pytest.fixture
async def service(database: Path) -> AsyncIterator[DatabaseSessionService]:
    async with DatabaseSessionService(database) as opened:
        yield opened

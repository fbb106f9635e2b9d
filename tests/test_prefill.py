"""The bulk loader of the benchmarks writes what the service would have written."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from google.adk.events import Event
from google.adk.sessions.base_session_service import GetSessionConfig

from adk_adapter import DatabaseSessionService
from benchmarks.prefill import (
    APP,
    NAMED_USER,
    Load,
    Shape,
    prefill,
    prefill_server,
    session_id,
    user_of,
)
from eventstore import open_store
from projections import BUILT_IN, verify
from tests.places import on_server

SHAPES = {"long": Shape(300), "wide": Shape(3, keys=50)}


@pytest.fixture
def load(target: str) -> Load:
    fill = prefill_server if on_server(target) else prefill
    return fill(target, sessions=60, events=500, seed=7, named=SHAPES)


async def test_the_service_reads_and_continues_what_was_loaded(target: str, load: Load) -> None:
    async with DatabaseSessionService(target) as service:
        assert service.get_stats()["events"] == load.rows == 60 + 500 + 301 + 4
        sessions = await service.list_sessions(app_name=APP, user_id=user_of(0))
        assert {s.id for s in sessions} == {session_id(load, n) for n in range(50)}

        long = await service.get_session(APP, NAMED_USER, "long")
        assert long is not None
        assert len(long.events) == 300
        assert {k: v for k, v in long.state.items() if not k.startswith("key-")} == {
            "turn": 300,
            "last_author": long.events[-1].author,
            "user:language": "en",
            "user:last_turn": 288,
            "app:release": "1.4.2",
        }
        wide = await service.get_session(APP, NAMED_USER, "wide")
        assert wide is not None
        assert len([key for key in wide.state if key.startswith("key-")]) == 48

        event = Event(author="user", invocation_id="i")
        await service.append_event(long, event)
        recent = GetSessionConfig(num_recent_events=2)
        tail = await service.get_session(APP, NAMED_USER, "long", config=recent)
        assert tail is not None
        assert [e.id for e in tail.events] == [long.events[-2].id, event.id]


def test_verify_finds_nothing(target: str, load: Load) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        found = verify(store, BUILT_IN)
    assert found.clean, found.differences
    assert found.events == load.rows


def test_columns_hold_what_the_service_writes(database: Path) -> None:
    """Of loaded and of appended events, as far as they do not differ from event to event."""
    prefill(database, sessions=2, events=5)

    async def append() -> None:
        async with DatabaseSessionService(database) as service:
            own = await service.create_session(APP, NAMED_USER, state={"n": 1})
            await service.append_event(own, Event(author="user", invocation_id="i"))

    asyncio.run(append())
    with closing(sqlite3.connect(database)) as connection:
        kinds = connection.execute(
            "SELECT type, schema_version, codec > 0, typeof(delta_digest), typeof(data) FROM events"
        ).fetchall()
    assert set(kinds) >= {
        ("session_created", 1, 0, "blob", "text"),
        ("adk_event", 1, 1, "blob", "text"),
        ("adk_event", 1, 1, "null", "text"),
    }
    assert len({kind for kind in kinds if kind[0] == "session_created"}) == 1

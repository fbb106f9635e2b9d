"""Sessions come over from a PostgreSQL database that ADK's own service wrote."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from google.adk.sessions import DatabaseSessionService as AdkDatabase
from google.adk.sessions.schemas import v0
from sqlalchemy.ext.asyncio import create_async_engine

from adk_adapter import DatabaseSessionService, Imported, ImportFailed
from adk_adapter.imports import import_sessions, open_sources
from tests.adk_adapter.test_imports import everything, fill, needs_greenlet, text
from tests.postgres.server import execute, running

pytestmark = needs_greenlet
_numbers = count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as started:
        yield started.url()


@pytest.fixture
def url(server: str) -> Iterator[str]:
    name = f"adk_{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE template0")
    yield f"{server.rpartition('/')[0]}/{name}"
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def new(tmp_path: Path) -> Any:
    async with DatabaseSessionService(tmp_path / "new.db") as service:
        yield service


def asynchronous(url: str) -> str:
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


def take(service: DatabaseSessionService, url: str) -> Imported:
    with open_sources(url, UTC) as (source,):
        return import_sessions(service._store, source)


@pytest.mark.parametrize("layout", ["v1", "v0"])
async def test_both_layouts_on_a_server(layout: str, url: str, new: DatabaseSessionService) -> None:
    if layout == "v0":
        engine = create_async_engine(asynchronous(url))
        async with engine.begin() as connection:
            await connection.run_sync(v0.Base.metadata.create_all)
        await engine.dispose()
    old = AdkDatabase(asynchronous(url))
    await fill(old)
    session = await old.create_session(app_name="app", user_id="u0", session_id="last", state={})
    await old.append_event(session, text("x", 99.5, **{"user:last": [1, {"a": None}], "t": "ü☕"}))
    expected = await everything(old, "app")
    for each in (event for found in expected for event in found["events"]):
        if each.get("long_running_tool_ids") == []:  # v0 does not tell them from none
            del each["long_running_tool_ids"]
    report = take(new, url)
    assert (report.sessions, report.events, report.left_out) == (4, 13, [])
    assert ("pickled" in report.kind) == (layout == "v0")
    assert await everything(new, "app") == expected
    again = take(new, f"{asynchronous(url)}?ssl=disable")  # as asyncpg has it
    assert (again.there, again.events, again.keys) == (4, 0, 0)
    assert (await new.verify()).clean
    # What comes while the source is open.
    await old.append_event(session, text("y", 100.5, t="more"))
    grown = take(new, url)
    assert (grown.grown, grown.events) == (1, 1)
    loaded = await new.get_session("app", "u0", "last")
    assert loaded is not None
    assert ([event.id for event in loaded.events], loaded.state["t"]) == (["x", "y"], "more")
    await old.close()


async def test_rows_that_cannot_be_taken_are_named(url: str, new: DatabaseSessionService) -> None:
    old = AdkDatabase(asynchronous(url))
    await fill(old)
    await old.close()
    execute(url, "UPDATE events SET event_data = '[1]' WHERE id = 'e0-1'")
    execute(url, "UPDATE sessions SET state = '\"secret\"' WHERE id = 's1'")
    report = take(new, url)
    assert {(each.table, each.event_id or each.session_id) for each in report.left_out} == {
        ("events", "e0-1"), ("sessions", "s1"),
    }  # fmt: skip
    assert report.sessions == 3


async def test_a_database_of_somebody_elses(url: str, new: DatabaseSessionService) -> None:
    with pytest.raises(ImportFailed, match="has no table app_states"):
        await new.import_from(url)
    execute(url, "CREATE TABLE app_states (a int)")
    with pytest.raises(ImportFailed, match="has no table events"):
        await new.import_from(url)

"""Rebuild, scavenge, and the command."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from eventstore import Cursor, EventStore, EventType, Window, open_store
from projections import BUILT_IN, rebuild, scavenge, verify
from projections.cli import main
from tests.eventstore.events import SESSION, created, new_event, session


async def fill(store: EventStore) -> None:
    loaded = await store.create(SESSION, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))
    cursor = Cursor(loaded.stream.id, 1)
    for n in range(5):
        await store.append(SESSION, new_event(delta={"session": {"n": n}}, timestamp=n), cursor)


def query(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE state SET state_value = '7' WHERE state_key = 'n'",
        "DELETE FROM state WHERE state_key = 'u'",
        "INSERT INTO state SELECT owner_id, 'made up', '1', 1 FROM state LIMIT 1",
        "DELETE FROM sessions",
        "DROP TABLE state",
        "DROP VIEW adk_state",
        "ALTER TABLE sessions ADD COLUMN extra TEXT",
        "UPDATE projections SET version = 0",
        "CREATE TABLE shadow_state (a); CREATE TABLE retired_state (b)",
    ],
)
def test_whatever_was_done_to_the_tables_is_put_right(database: Path, damage: str) -> None:
    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store))
    store.close()
    tables = "SELECT 'a', * FROM adk_sessions", "SELECT * FROM adk_state ORDER BY state_key"
    before = [query(database, table) for table in tables]
    for statement in damage.split(";"):
        query(database, statement)
    store = open_store(database, BUILT_IN, for_rebuild=True)
    assert [(r.projection, r.rows) for r in rebuild(store, BUILT_IN)] == [
        ("sessions", 1),
        ("state", 4),
    ]
    store.close()
    assert [query(database, table) for table in tables] == before
    open_store(database, BUILT_IN).close()


async def test_a_running_service_goes_on_after_another_process_rebuilt(
    store: EventStore, database: Path
) -> None:
    await fill(store)
    assert CliRunner().invoke(main, ["--db", str(database)]).exit_code == 0
    await store.set_state(SESSION, new_event(EventType.STATE_SET, delta={"session": {"k": 1}}))
    loaded = await store.load(SESSION, Window(), lambda loaded: loaded)
    assert loaded is not None
    assert [row[1] for row in loaded.rows["state"]] == ["a", "u", "k", "n", "s"]


async def test_scavenging_keeps_what_deleted_sessions_said_of_users_and_apps(
    store: EventStore, database: Path
) -> None:
    await fill(store)
    await store.create(
        session("other"), created(app={"b": float("nan"), "a": "é"}, user={"v": "é"})
    )
    for key in (SESSION, session("other")):
        await store.delete(key, new_event(EventType.SESSION_DELETED))
    result = await asyncio.to_thread(scavenge, store, BUILT_IN)
    assert (result.sessions, result.events, result.keys_carried_over) == (2, 9, 4)
    assert sorted(query(database, "SELECT scope, state_key, state_value FROM adk_state")) == [
        ("app", "a", '"\\u00e9"'),  # as it is stored beside a NaN, which strict JSON cannot hold
        ("app", "b", "NaN"),
        ("user", "u", "2"),
        ("user", "v", '"\\u00e9"'),
    ]
    assert query(database, "SELECT DISTINCT session_id FROM streams") == [("",)]
    assert query(database, "SELECT type FROM events") == [
        ("state_set",), ("state_set",), ("state_set",), ("state_set",), ("vacuumed",)
    ]  # fmt: skip
    assert (await asyncio.to_thread(verify, store, BUILT_IN)).clean
    assert (await asyncio.to_thread(scavenge, store, BUILT_IN)).sessions == 0


async def test_shrinking_gives_space_back(store: EventStore, database: Path) -> None:
    loaded = await store.create(SESSION, created())
    cursor = Cursor(loaded.stream.id, 1)
    for _ in range(100):
        await store.append(SESSION, new_event(data="x" * 50_000), cursor)
    await store.delete(SESSION, new_event(EventType.SESSION_DELETED))
    await asyncio.to_thread(store.shrink)
    large = database.stat().st_size
    scavenge(store, BUILT_IN)
    store.shrink()
    assert database.stat().st_size < large / 20


def test_the_command_says_what_it_did(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store))
    store.close()
    query(database, "UPDATE state SET state_value = '7' WHERE state_key = 'n'")
    result = CliRunner().invoke(main, ["--db", f"sqlite:///{database}"])
    assert result.exit_code == 0
    assert "6 events" in result.output
    assert "sessions: 1 rows" in result.output
    assert "state: 4 rows" in result.output


def test_the_command_looks_where_the_service_would(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(database, BUILT_IN).close()
    monkeypatch.setenv("ADK_SESSION_DB", str(database))
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    assert str(database) in result.output


def test_the_command_that_could_not_run_says_why(database: Path) -> None:
    result = CliRunner().invoke(main, ["--db", str(database)])
    assert result.exit_code == 2
    assert "does not exist" in result.output
    assert not database.exists()
    database.write_text("no database" * 1000)
    result = CliRunner().invoke(main, ["--db", str(database)])
    assert result.exit_code == 2
    assert "is not a SQLite database" in result.output


def test_a_damaged_log_is_not_folded(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store))
    store.close()
    query(database, "INSERT INTO maintenance VALUES (1, 'test')")
    query(database, "UPDATE events SET delta = replace(delta, '3', '4')")
    query(database, "DELETE FROM maintenance")
    before = query(database, "SELECT * FROM adk_state")
    result = CliRunner().invoke(main, ["--db", str(database)])
    assert result.exit_code == 2
    assert "position 1" in result.output
    assert query(database, "SELECT * FROM adk_state") == before

"""Sessions come over from ADK's own databases and services as they are, once, or are named."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import (
    BaseSessionService,
    InMemorySessionService,
)
from google.adk.sessions import DatabaseSessionService as AdkDatabase
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types

from adk_adapter import DatabaseSessionService, Imported, ImportFailed
from adk_adapter.imports import import_sessions, open_sources
from adk_adapter.imports.pickled import RefusedPickle, allowed_classes, load_actions

OLD = Path(__file__).parent / "old_files"
OLD_FILES = sorted(OLD.glob("*.db"))
KEY = ("app", "ada", "s")

needs_greenlet = pytest.mark.skipif(
    find_spec("greenlet") is None, reason="SQLAlchemy needs it; the oldest ADK does not bring it"
)

# ADK warns when it makes its own older auth configs.
pytestmark = pytest.mark.filterwarnings("ignore:This method is deprecated:DeprecationWarning")


@pytest.fixture
async def service(database: Path) -> AsyncIterator[DatabaseSessionService]:
    """Into a file: what differs on a server is behind the seam, see tests/postgres."""
    async with DatabaseSessionService(database) as opened:
        yield opened


def take(service: DatabaseSessionService, path: Path, **options: Any) -> Imported:
    with open_sources(path, UTC) as sources:
        (source,) = sources
        return import_sessions(service._store, source, **options)


async def everything(service: BaseSessionService, *apps: str) -> list[dict[str, Any]]:
    found = []
    for app in apps:
        for each in (await service.list_sessions(app_name=app)).sessions:
            session = await service.get_session(
                app_name=app, user_id=each.user_id, session_id=each.id
            )
            assert session is not None
            found.append(json.loads(session.model_dump_json(exclude_none=True)))
    return sorted(found, key=lambda each: (each["app_name"], each["user_id"], each["id"]))


def text(event_id: str, timestamp: float = 1.0, **delta: Any) -> Event:
    return Event(
        id=event_id,
        author="user",
        timestamp=timestamp,
        invocation_id="turn",
        content=types.Content(role="user", parts=[types.Part(text=event_id)]),
        actions=EventActions(state_delta=delta),
    )


async def fill(service: BaseSessionService, sessions: int = 3, events: int = 4) -> None:
    for n in range(sessions):
        session = await service.create_session(
            app_name="app",
            user_id=f"u{n % 2}",
            session_id=f"s{n}",
            state={"given": n, "user:name": f"n{n}", "app:all": n},
        )
        for i in range(events):
            event = text(f"e{n}-{i}", 10.0 * n + i, **{"n": i, "user:last": n, f"app:a{n}": i})
            await service.append_event(session, event)


# Files of every layout, as the versions of ADK that their names say wrote them.


def ours(event: dict[str, Any]) -> dict[str, Any]:
    """What both an old ADK and this one say of an event."""
    skipped = {"node_info", "long_running_tool_ids"}
    kept = {name: value for name, value in event.items() if name not in skipped}
    kept["long_running_tool_ids"] = event.get("long_running_tool_ids") or None
    kept["actions"] = {name: value for name, value in event["actions"].items() if value}
    for config in kept["actions"].get("requested_auth_configs", {}).values():
        config["auth_scheme"].pop("scheme", None)  # ADK read the scheme back as another class
        parts = {name: config.get(name) or {} for name in ("auth_scheme", "raw_auth_credential")}
        config.clear()
        config |= {name: {k: v for k, v in part.items() if v} for name, part in parts.items()}
    return kept


@pytest.mark.parametrize("path", OLD_FILES, ids=lambda path: path.stem)
async def test_an_old_file_is_taken_as_its_own_service_read_it(
    path: Path, service: DatabaseSessionService
) -> None:
    before = path.read_bytes()
    report = take(service, path)
    assert (report.sessions, report.events, report.left_out) == (4, 15, [])
    expected = json.loads(path.with_suffix(".json").read_text())
    found = {
        (s["app_name"], s["user_id"], s["id"]): s
        for s in await everything(service, "shop", "empty")
    }
    for wanted in expected:
        session = found[wanted["app_name"], wanted["user_id"], wanted["id"]]
        assert session["state"] == wanted["state"]
        events, theirs = session["events"], wanted.get("events", [])
        # Two have the same time. ADK says them in the order of their ids, or in no certain one;
        # they come as they were appended.
        assert [event["id"][-1] for event in events] == [str(n) for n in range(len(theirs))]
        for event, same in zip(events, sorted(theirs, key=lambda e: e["id"]), strict=True):
            assert ours(event) == ours(same)
    assert (await service.verify()).clean
    assert path.read_bytes() == before
    assert sorted(OLD.glob(f"{path.name}*")) == [path]


@pytest.mark.parametrize("path", OLD_FILES, ids=lambda path: path.stem)
async def test_a_second_time_adds_nothing(path: Path, service: DatabaseSessionService) -> None:
    take(service, path)
    before = service.get_stats()
    dry = take(service, path, dry_run=True)
    report = take(service, path)
    assert (report.sessions, report.there, report.events, report.keys) == (0, 4, 0, 0)
    assert (dry.sessions, dry.there, dry.events, dry.keys) == (0, 4, 0, 0)
    assert service.get_stats()["events"] == before["events"]


def test_the_times_of_pickled_actions_are_of_the_zone_that_is_named(tmp_path: Path) -> None:
    with open_sources(OLD / "database-1.0.0.db", UTC) as (source,):
        found = source.session(("shop", "ada", "first"))
        assert found is not None
        utc = [each.event.timestamp for each in source.events(found) if each.event]
    from zoneinfo import ZoneInfo

    with open_sources(OLD / "database-1.0.0.db", ZoneInfo("Asia/Tokyo")) as (source,):
        tokyo = [each.event.timestamp for each in source.events(found) if each.event]
    assert utc[0] == 1_700_000_000.25
    assert [a - b for a, b in zip(utc, tokyo, strict=True)] == [9 * 3600] * 5


# Services of the ADK that is installed.


def adk_service(kind: str, path: Path) -> BaseSessionService:
    if kind == "sqlite":
        return SqliteSessionService(str(path))
    return AdkDatabase(f"sqlite+aiosqlite:///{path}")


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("database", marks=needs_greenlet)])
async def test_what_the_installed_adk_wrote_reads_the_same_here(
    kind: str, tmp_path: Path, service: DatabaseSessionService
) -> None:
    old = adk_service(kind, tmp_path / "old.db")
    await fill(old)
    session = await old.create_session(app_name="app", user_id="u0", session_id="last", state={})
    await old.append_event(session, text("x", 99.0, **{"user:last": [1, {"a": None}], "t": "ü☕"}))
    expected = await everything(old, "app")
    if hasattr(old, "close"):
        await old.close()
    report = take(service, tmp_path / "old.db")
    assert (report.sessions, report.left_out) == (4, [])
    assert await everything(service, "app") == expected
    assert (await service.verify()).clean


async def test_a_living_service_in_memory(service: DatabaseSessionService) -> None:
    old = InMemorySessionService()
    await fill(old)
    old.app_state["app"]["alone"] = 1
    old.user_state["app"]["nobody"] = {"k": "v"}
    expected = await everything(old, "app")
    (report,) = await service.import_from(old)
    assert (report.sessions, report.events, report.left_out) == (3, 12, [])
    assert await everything(service, "app") == expected
    assert await service.get_user_state("app", "nobody") == {"k": "v"}
    (again,) = await service.import_from(old)
    assert (again.there, again.events, again.keys) == (3, 0, 0)


async def test_any_living_service_whose_apps_are_named(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    old = SqliteSessionService(str(tmp_path / "old.db"))
    await fill(old)
    with pytest.raises(ValueError, match="app_names"):
        await service.import_from(old)
    (report,) = await service.import_from(old, app_names=["app"])
    assert report.sessions == 3
    assert await everything(service, "app") == await everything(old, "app")


async def test_events_of_one_id_are_all_kept(service: DatabaseSessionService) -> None:
    old = InMemorySessionService()
    session = await old.create_session(app_name="app", user_id="u", session_id="s")
    for timestamp in (1.0, 2.0, 3.0):
        await old.append_event(session, text("same", timestamp))
    await service.import_from(old)
    (report,) = await service.import_from(old)
    assert (report.there, report.left_out) == (1, [])
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert [event.id for event in loaded.events] == ["same", "same~2", "same~3"]


async def test_the_files_of_every_agent_below_a_folder(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    for agent in ("one", "two"):
        (tmp_path / agent / ".adk").mkdir(parents=True)
        old = SqliteSessionService(str(tmp_path / agent / ".adk" / "session.db"))
        await old.create_session(app_name=agent, user_id="u", session_id="s", state={"a": agent})
    reports = await service.import_from(tmp_path)
    assert [report.sessions for report in reports] == [1, 1]
    loaded = await service.get_session("two", "u", "s")
    assert loaded is not None
    assert loaded.state == {"a": "two"}
    with pytest.raises(ImportFailed, match="no agent"):
        await service.import_from(tmp_path / "one" / ".adk")


# What has moved on since.


@pytest.fixture
async def old(tmp_path: Path) -> SqliteSessionService:
    made = SqliteSessionService(str(tmp_path / "old.db"))
    session = await made.create_session(
        app_name="app", user_id="ada", session_id="s", state={"given": 1, "user:u": 1, "app:a": 1}
    )
    await made.append_event(session, text("e0", 1.0, n=0))
    return made


async def go_on(service: BaseSessionService, event: Event) -> None:
    session = await service.get_session(app_name="app", user_id="ada", session_id="s")
    assert session is not None
    await service.append_event(session, event)


async def test_what_has_come_since_is_taken(
    tmp_path: Path, old: SqliteSessionService, service: DatabaseSessionService
) -> None:
    take(service, tmp_path / "old.db")
    await go_on(old, text("e1", 2.0, **{"n": 1, "user:u": 2, "app:new": 3}))
    report = take(service, tmp_path / "old.db")
    assert (report.grown, report.events, report.keys) == (1, 1, 2)
    assert await everything(service, "app") == await everything(old, "app")
    assert (await service.verify()).clean


async def test_a_title_or_a_label_given_here_does_not_keep_what_has_come_since(
    tmp_path: Path, old: SqliteSessionService, service: DatabaseSessionService
) -> None:
    take(service, tmp_path / "old.db")
    await service.set_title(*KEY, "Ours")
    await service.set_labels(*KEY, {"stage": "draft"})
    await go_on(old, text("e1", 2.0, n=1))
    report = take(service, tmp_path / "old.db")
    assert (report.grown, report.events, report.left_out) == (1, 1, [])
    assert await everything(service, "app") == await everything(old, "app")
    (info,) = (await service.list_sessions_page("app")).sessions
    assert (info.title, info.labels) == ("Ours", {"stage": "draft"})
    assert (await service.verify()).clean


async def test_what_has_gone_on_in_both_is_named_and_kept(
    tmp_path: Path, old: SqliteSessionService, service: DatabaseSessionService
) -> None:
    take(service, tmp_path / "old.db")
    await go_on(old, text("theirs", 2.0, **{"n": 1, "user:u": 2}))
    await go_on(service, text("ours", 3.0, **{"n": 5, "user:u": 9}))
    report = take(service, tmp_path / "old.db")
    assert (report.grown, report.events) == (0, 0)
    (left,) = report.left_out
    assert (left.table, left.session_id, left.reason) == (
        "sessions", "s", "it has gone on here, and in the source too",
    )  # fmt: skip
    loaded = await service.get_session(*KEY)
    assert loaded is not None
    assert [event.id for event in loaded.events] == ["e0", "ours"]
    assert loaded.state == {"given": 1, "n": 5, "user:u": 9, "app:a": 1}


async def test_what_was_deleted_here_does_not_come_back(
    tmp_path: Path, old: SqliteSessionService, service: DatabaseSessionService
) -> None:
    take(service, tmp_path / "old.db")
    await service.delete_session(*KEY)
    assert service.vacuum()["sessions"] == 1
    report = take(service, tmp_path / "old.db")
    assert (report.sessions, report.deleted, report.left_out) == (0, 1, [])
    assert await service.get_session(*KEY) is None


async def test_another_session_of_the_same_id_is_left_alone(
    tmp_path: Path, old: SqliteSessionService, service: DatabaseSessionService
) -> None:
    await service.create_session(*KEY, state={"mine": 1, "user:u": "here"})
    report = take(service, tmp_path / "old.db")
    (left,) = report.left_out
    assert left.reason == "another session has this id here"
    loaded = await service.get_session(*KEY)
    assert loaded is not None
    assert loaded.state == {"mine": 1, "user:u": "here", "app:a": 1}


@needs_greenlet
async def test_of_ids_that_differ_in_blanks_only_the_first_is_taken_and_the_others_named(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    old = adk_service("database", path)
    for session_id, events in (("one", 1), ("one ", 0), (" two", 0), ("two", 1), (" three ", 1)):
        session = await old.create_session(
            app_name="app", user_id="ada", session_id=session_id, state={"mine": session_id}
        )
        for n in range(events):
            await old.append_event(session, text(f"e{n}", 1.0, n=n))
    expected = {"one": ("one", 1), "two": (" two", 0), "three": (" three ", 1)}
    for taken in (3, 0):
        dry = take(service, path, dry_run=True)
        report = take(service, path)
        assert (report.sessions, report.there, report.grown) == (taken, 3 - taken, 0)
        assert (dry.sessions, dry.there, dry.left_out) == (taken, 3 - taken, report.left_out)
        assert sorted(each.session_id or "" for each in report.left_out) == ["one ", "two"]
        assert {each.reason for each in report.left_out} == {"another session has this id here"}
        for session_id, (mine, events) in expected.items():
            loaded = await service.get_session("app", "ada", session_id)
            assert loaded is not None
            assert (loaded.state["mine"], len(loaded.events)) == (mine, events)
    await service.delete_session("app", "ada", "one")
    assert take(service, path).left_out_count == 2
    await old.close()


async def test_a_session_that_was_noted_without_its_id_as_the_source_has_it(
    tmp_path: Path, service: DatabaseSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions before this one noted it."""
    from adk_adapter.imports import writing

    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)), sessions=1)
    alter(path, "UPDATE sessions SET id = ' s0'")
    alter(path, "UPDATE events SET session_id = ' s0'")
    with monkeypatch.context() as before:
        note = writing._note

        def older(prepared: Any) -> Any:
            body = {"session_id": prepared.key.session_id, "events": prepared.count}
            return msgspec.structs.replace(note(prepared), data=json.dumps(body).encode())

        before.setattr(writing, "_note", older)
        assert take(service, path).sessions == 1
    report = take(service, path)
    assert (report.there, report.left_out) == (1, [])


async def test_a_session_that_comes_later_does_not_turn_shared_keys_back(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    old = SqliteSessionService(str(tmp_path / "old.db"))
    await fill(old, sessions=1)
    take(service, tmp_path / "old.db")
    await service.update_keys("app", "u0", "s0", {"user:last": "now", "app:a0": "now"})
    session = await old.create_session(app_name="app", user_id="u0", session_id="late", state={})
    await old.append_event(session, text("e", 1.0, **{"user:last": "then", "app:a0": "then"}))
    assert take(service, tmp_path / "old.db").sessions == 1
    loaded = await service.get_session("app", "u0", "late")
    assert loaded is not None
    assert (loaded.state["user:last"], loaded.state["app:a0"]) == ("now", "now")
    # What the session said stays a part of its history.
    assert loaded.events[0].actions.state_delta == {"app:a0": "then", "user:last": "then"}


# The tables win.


def alter(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(sql, values)


async def test_state_that_differs_from_its_events_is_as_the_tables_say(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    old = SqliteSessionService(str(tmp_path / "old.db"))
    await fill(old, sessions=1)
    alter(tmp_path / "old.db", "UPDATE sessions SET state = ?", '{"given": 0, "n": "changed"}')
    alter(tmp_path / "old.db", "UPDATE user_states SET state = ?", '{"name": "only this"}')
    report = take(service, tmp_path / "old.db")
    assert report.left_out == []
    loaded = await service.get_session("app", "u0", "s0")
    assert loaded is not None
    # There is no way to remove a key that an event has set: it is None, as after a rewind.
    assert {k: v for k, v in loaded.state.items() if v is not None} == {
        "given": 0, "n": "changed", "user:name": "only this", "app:all": 0, "app:a0": 3,
    }  # fmt: skip
    assert loaded.last_update_time == 3.0
    assert (await service.verify()).clean


async def test_rewinds_lead_back_to_the_state_given_at_creation(
    tmp_path: Path, old: SqliteSessionService, service: DatabaseSessionService
) -> None:
    take(service, tmp_path / "old.db")
    session = await service.get_session(*KEY)
    assert session is not None
    rewind = text("r", 9.0)
    rewind.actions.rewind_before_invocation_id = "turn"
    await service.append_event(session, rewind)
    loaded = await service.get_session(*KEY)
    assert loaded is not None
    assert (loaded.state["given"], loaded.state["n"]) == (1, None)


# What cannot be taken.


async def test_rows_that_cannot_be_taken_are_named_by_ids_and_sizes(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    old = SqliteSessionService(str(path))
    await fill(old)
    secret = '{"secret": 1'
    alter(path, "UPDATE events SET event_data = ? WHERE id = 'e0-1'", secret)
    alter(path, "UPDATE events SET event_data = '{\"author\": [\"secret\"]}' WHERE id = 'e0-2'")
    alter(path, "UPDATE events SET event_data = CAST(x'80ff' AS TEXT) WHERE id = 'e0-3'")
    alter(path, "UPDATE sessions SET state = ? WHERE id = 's1'", secret)
    alter(path, "UPDATE user_states SET state = '[]' WHERE user_id = 'u1'")
    alter(path, "UPDATE events SET id = 'nul' || char(0) WHERE id = 'e2-1'")
    alter(path, "INSERT INTO sessions VALUES ('app', 'u', 'a' || char(0), '{}', 1, 1)")
    report = take(service, path)
    assert report.sessions == 3
    named = {(each.table, each.session_id, each.event_id) for each in report.left_out}
    assert named == {
        ("events", "s0", "e0-1"),
        ("events", "s0", "e0-2"),
        ("events", "s0", "e0-3"),
        ("sessions", "s1", None),
        ("user_states", None, None),
        ("events", "s2", "nul\0"),
        ("sessions", "a\0", None),
    }
    assert all(each.size_bytes for each in report.left_out)
    assert "secret" not in str([each.reason for each in report.left_out])
    loaded = await service.get_session("app", "u0", "s0")
    assert loaded is not None
    assert [event.id for event in loaded.events] == ["e0-0"]
    assert loaded.state["n"] == 3
    assert (await service.verify()).clean


@pytest.mark.parametrize("odd", ["CAST(x'ff41' AS TEXT)", "CAST(id AS BLOB)"])
async def test_rows_whose_ids_are_no_text_are_named_and_those_behind_them_taken(
    odd: str, tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)), sessions=3)
    alter(path, f"UPDATE sessions SET id = {odd} WHERE id = 's0'")
    alter(path, f"UPDATE user_states SET user_id = {odd.replace('id', 'user_id')}"
          " WHERE user_id = 'u0'")  # fmt: skip
    for dry_run in (True, False):
        report = take(service, path, dry_run=dry_run)
        assert (report.sessions, report.events) == (2, 8)
        assert {each.table for each in report.left_out} == {"sessions", "user_states"}
        assert report.left_out_count == 2
    assert [each.id for each in await service.list_sessions("app")] == ["s1", "s2"]
    again = take(service, path)
    assert (again.there, again.left_out_count) == (2, 2)
    assert (await service.verify()).clean


async def test_pages_of_rows_whose_ids_are_no_text_come_to_an_end(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)), sessions=2)
    alter(
        path,
        "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 599) "
        "INSERT INTO sessions SELECT 'app', 'u0', "
        # Those that are no UTF-8 come before 's0', a BLOB comes behind it.
        "CASE WHEN i < 350 THEN CAST(x'31ff' || i AS TEXT) ELSE CAST(i AS BLOB) END, '{}', 1, 1 "
        "FROM n",
    )
    report = take(service, path)
    assert (report.sessions, report.left_out_count) == (2, 500)
    assert len({each.session_id for each in report.left_out}) == 500


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("depth", [150, 250, 900, 100_000])
async def test_values_that_are_nested_deep_are_taken_or_named(
    depth: int, tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)), sessions=1, events=2)
    state = '{"deep": ' + nested(depth) + ', "flat": 1}'
    alter(path, "UPDATE sessions SET state = ?", state)
    alter(path, "UPDATE user_states SET state = ?", state)
    event = '{"author": "a", "actions": {"state_delta": ' + state + "}}"
    alter(path, "UPDATE events SET event_data = ? WHERE id = 'e0-0'", event)
    report = take(service, path)
    assert report.sessions == 1
    taken = depth < 200
    assert (report.left_out_count == 0) == taken
    assert {each.table for each in report.left_out} == (
        set() if taken else {"sessions", "user_states", "events"}
    )
    assert (await service.verify()).clean


async def test_ids_that_an_import_uses_itself(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)), sessions=1, events=6)
    for n, event_id in enumerate(("", "import:created", "import:state:3", "e", "e~2")):
        alter(path, f"UPDATE events SET id = ? WHERE id = 'e0-{n}'", event_id)
    assert take(service, path).left_out == []
    again = take(service, path)
    assert (again.there, again.events, again.left_out) == (1, 0, [])
    loaded = await service.get_session("app", "u0", "s0")
    assert loaded is not None
    assert len({event.id for event in loaded.events}) == 6


async def test_keys_whose_tables_cannot_be_read_are_as_the_events_say(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)), sessions=1)
    alter(path, "UPDATE user_states SET state = 'no JSON'")
    (left,) = take(service, path).left_out
    assert (left.table, left.user_id) == ("user_states", "u0")
    assert await service.get_user_state("app", "u0") == {"last": 0}


async def test_what_adk_left_of_deleted_sessions_is_counted_and_not_taken(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    await fill(SqliteSessionService(str(path)))
    alter(path, "DELETE FROM sessions WHERE id = 's1'")
    report = take(service, path)
    assert (report.sessions, report.events, report.orphans, report.left_out) == (2, 8, 4, [])


@pytest.mark.parametrize(
    ("kind", "timestamp"), [("memory", math.nan), ("memory", math.inf), ("sqlite", math.inf)]
)
async def test_an_event_of_no_time_is_left_out_and_what_it_set_is_taken(
    kind: str, timestamp: float, tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    old = InMemorySessionService() if kind == "memory" else SqliteSessionService(str(path))
    made = await old.create_session(app_name="app", user_id="u0", session_id="odd")
    await old.append_event(made, text("e0", 1.0, n="first"))
    await old.append_event(made, text("e1", timestamp, n="odd"))
    await old.create_session(app_name="app", user_id="u0", session_id="other")
    (report,) = await service.import_from(old if kind == "memory" else path)
    assert report.sessions == 2
    assert {(each.session_id, each.event_id) for each in report.left_out} == {("odd", "e1")}
    loaded = await service.get_session("app", "u0", "odd")
    assert loaded is not None
    assert loaded.state == {"n": "odd"}
    assert loaded.last_update_time == 1.0
    assert (await service.verify()).clean


async def test_views_and_layouts_of_tomorrow_are_refused(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "old.db"
    shutil.copy(OLD / "database-1.39.1.db", path)
    alter(path, "UPDATE adk_internal_metadata SET value = '2'")
    with pytest.raises(ImportFailed, match="Upgrade"):
        take(service, path)
    shutil.copy(OLD / "database-1.39.1.db", path)
    alter(path, "ALTER TABLE sessions RENAME TO real")
    alter(path, "CREATE VIEW sessions AS WITH RECURSIVE c AS (SELECT 1 UNION ALL SELECT 1 FROM c)"
          " SELECT real.* FROM real, c")  # fmt: skip
    with pytest.raises(ImportFailed, match="has no table sessions"):
        take(service, path)


@pytest.mark.parametrize("content", [b"", b"no database", None])
async def test_what_is_no_database_of_adks_is_refused(
    content: bytes | None, tmp_path: Path, service: DatabaseSessionService
) -> None:
    path = tmp_path / "other"
    if content is None:
        alter(path, "CREATE TABLE sessions (id)")
    else:
        path.write_bytes(content)
    with pytest.raises(ImportFailed):
        await service.import_from(path)
    with pytest.raises(ImportFailed, match="database of this package"):
        await service.import_from(service.get_stats()["path"])
    with pytest.raises(ImportFailed) as failed:
        await service.import_from("mysql://user:hidden@host/db?password=hidden")
    assert "hidden" not in str(failed.value)
    with pytest.raises(ImportFailed) as failed:
        await service.import_from("postgresql://user:hidden@127.0.0.1:1/db?connect_timeout=2")
    assert "hidden" not in str(failed.value)


# Pickles.


def test_actions_survive_their_pickle() -> None:
    actions = EventActions(
        state_delta={
            "when": datetime(2024, 1, 2, tzinfo=UTC),
            "long": timedelta(days=1),
            "set": {1, 2},
            "part": types.Part(text="x"),
        },
        artifact_delta={"f": 1},
        escalate=True,
    )
    for protocol in range(4, pickle.HIGHEST_PROTOCOL + 1):
        assert load_actions(pickle.dumps(actions, protocol)) == actions


class Shell:
    def __init__(self, *command: Any) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return self.command


def hostile(marker: Path) -> Iterator[bytes]:
    touch = f"touch {marker}"
    for command in (
        (os.system, (touch,)),
        (eval, (f"__import__('os').system('{touch}')",)),
        (subprocess.Popen, (touch, -1, None, None, None, None, None, True, True)),
        (getattr, (EventActions, "model_validate")),
        (setattr, (EventActions, "model_fields", {})),
        (Path, (str(marker),)),
        (bytearray, (10**12,)),
        (__import__, ("antigravity",)),
        (EventActions.model_validate, ({},)),
    ):
        yield pickle.dumps(Shell(*command))
        yield pickle.dumps({"state_delta": {"x": Shell(*command)}})
        yield pickle.dumps(EventActions.model_construct(state_delta={"x": Shell(*command)}))
    # Sets an attribute on a class that is allowed, which only a stand-in takes.
    yield b"\x80\x04\x8c\x0cfastapi.openapi.models\x8c\x08APIKeyIn\x93\x4e\x7d\x8c\x01xK\x01s\x86b."
    yield b"\x80\x04cdatetime\ndatetime\n(N}X\x01\x00\x00\x00xK\x01stb."
    yield b"cdatetime\ndatetime\n."
    yield b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR."
    yield b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f."
    yield b"\x80\x04]\x94" + b"]\x94(h\x00" * 300 + b"."
    doubling = b"\x80\x04]\x94" + b"".join(
        b"]q" + bytes([n + 1]) + b"(" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"e"
        for n in range(100)
    )
    yield doubling + b"."
    yield b"\x80\x04\x7d\x94h\x00h\x00s."
    yield b""
    yield b"."


def test_a_hostile_pickle_runs_nothing_and_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    fields = dict(EventActions.model_fields)
    for stored in hostile(marker):
        with pytest.raises(RefusedPickle):
            load_actions(stored)
    assert not marker.exists()
    assert EventActions.model_fields == fields
    assert "antigravity" not in sys.modules


def test_only_classes_that_hold_data_are_allowed() -> None:
    modules = {module.partition(".")[0] for module, _ in allowed_classes()}
    assert modules <= {
        *("google", "fastapi", "pydantic"),
        *("builtins", "collections", "datetime", "decimal", "pathlib", "uuid"),
    }
    assert {name for module, name in allowed_classes() if module == "builtins"} == {
        "set", "frozenset", "list", "dict", "int", "float", "str", "bool",
    }  # fmt: skip


async def test_an_event_with_a_hostile_pickle_is_taken_without_its_actions(
    tmp_path: Path, service: DatabaseSessionService
) -> None:
    path, marker = tmp_path / "old.db", tmp_path / "ran"
    shutil.copy(OLD / "database-1.0.0.db", path)
    stored = pickle.dumps(Shell(os.system, (f"touch {marker}",)))
    alter(path, "UPDATE events SET actions = ? WHERE id = 'first-2'", stored)
    report = take(service, path)
    (left,) = report.left_out
    assert left.event_id == "first-2"
    assert left.reason == (
        "taken without its actions: it names posix.system, which ADK's actions do not need"
    )
    assert not marker.exists()
    loaded = await service.get_session("shop", "ada", "first")
    assert loaded is not None
    assert len(loaded.events) == 5
    assert loaded.state["user:name"] == "Ada of second"  # from the tables


# Interrupted, at once, and large.

_PROGRAM = """
import sys, time
from adk_adapter import DatabaseSessionService
from adk_adapter.imports import import_sessions, open_sources
service = DatabaseSessionService(sys.argv[2])
def progress(*_):
    print("some", flush=True)
    time.sleep(float(sys.argv[3]))
with open_sources(sys.argv[1]) as (source,):
    print("began", flush=True)
    import_sessions(service._store, source, progress=progress)
"""


def importing(source: Path, target: Path, pause: float = 0) -> subprocess.Popen[str]:
    """`pause` is how many seconds it waits whenever it has told of its progress."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(source), str(target), str(pause)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A file with four hundred sessions, made quickly."""
    path = tmp_path / "many.db"
    asyncio.run(fill(SqliteSessionService(str(path)), sessions=1, events=6))
    with closing(sqlite3.connect(path)) as connection:
        sessions = connection.execute("SELECT * FROM sessions").fetchall()
        events = connection.execute("SELECT * FROM events ORDER BY rowid").fetchall()
        for n in range(400):
            for app, user, _, *rest in sessions:
                row = (app, user, f"copy{n}", *rest)
                connection.execute(f"INSERT INTO sessions VALUES ({','.join('?' * 6)})", row)
            for event_id, app, user, _, *rest in events:
                row = (event_id, app, user, f"copy{n}", *rest)
                connection.execute(f"INSERT INTO events VALUES ({','.join('?' * 7)})", row)
        connection.commit()
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_goes_on_where_it_was(
    number: signal.Signals, many: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new.db"
    process = importing(many, target, pause=1)  # to be killed before it is done
    assert process.stdout is not None
    for line in process.stdout:
        if line == "some\n":
            break
    process.send_signal(number)
    process.communicate(timeout=60)

    async def check() -> None:
        async with DatabaseSessionService(target) as service:
            taken = len(await service.list_sessions("app"))
            assert 0 < taken < 401
            report = take(service, many)
            assert (report.there, report.sessions) == (taken, 401 - taken)
            assert (await service.verify()).clean
            for session in await everything(service, "app"):
                assert len(session["events"]) == 6

    asyncio.run(check())


def test_two_imports_at_once_take_each_session_once(many: Path, tmp_path: Path) -> None:
    target = tmp_path / "new.db"
    processes = [importing(many, target) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0]

    async def check() -> None:
        async with DatabaseSessionService(target) as service:
            stats = service.get_stats()
            # Of each session its creation, its events and a note; the keys of the app and the user.
            assert stats["sessions"] == 401
            assert stats["events"] == 401 * 8 + 2
            assert (await service.verify()).clean

    asyncio.run(check())


async def test_adk_may_write_to_the_file_meanwhile(
    many: Path, tmp_path: Path, service: DatabaseSessionService
) -> None:
    with warnings.catch_warnings():
        # ADK's constructor leaves the connection open with which it looks at a file that is there.
        warnings.simplefilter("ignore", ResourceWarning)
        old = SqliteSessionService(str(many))
        gc.collect()
    stop = time.monotonic() + 60
    done = asyncio.create_task(asyncio.to_thread(take, service, many))
    written = 0
    while not done.done() and time.monotonic() < stop:
        await old.create_session(app_name="live", user_id="u", session_id=f"l{written}")
        written += 1
    report = await done
    assert report.left_out == []
    assert written > 1
    again = take(service, many)
    assert again.there + again.sessions == 401 + written


async def test_a_long_session_is_not_held_in_memory(
    tmp_path: Path, service: DatabaseSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adk_adapter.imports import writing

    monkeypatch.setattr(writing, "_IN_MEMORY_BYTES", 1000)
    old = InMemorySessionService()
    await fill(old, sessions=1, events=300)
    (report,) = await service.import_from(old)
    assert report.events == 300
    assert await everything(service, "app") == await everything(old, "app")


async def test_a_key_that_cannot_be_stored_is_left_out_whatever_its_value(
    service: DatabaseSessionService,
) -> None:
    old = InMemorySessionService()
    odd = {"a\0b": datetime.now(UTC), "user:a\0b": datetime.now(UTC), "good": 1}
    await old.create_session(app_name="app", user_id="u", session_id="odd", state=odd)
    await old.create_session(app_name="app", user_id="u", session_id="other", state={})
    (report,) = await service.import_from(old)
    assert report.sessions == 2
    assert {"NUL" in each.reason for each in report.left_out} == {True}
    loaded = await service.get_session("app", "u", "odd")
    assert loaded is not None
    assert loaded.state == {"good": 1}


async def test_one_app_may_be_named_by_itself_and_our_own_service_is_no_source(
    service: DatabaseSessionService, tmp_path: Path
) -> None:
    old = InMemorySessionService()
    await old.create_session(app_name="app", user_id="u", session_id="s")
    (report,) = await service.import_from(old, app_names="app")
    assert report.sessions == 1
    async with DatabaseSessionService(tmp_path / "other.db") as other:
        with pytest.raises(ValueError, match="copy"):
            await service.import_from(other, app_names=["app"])

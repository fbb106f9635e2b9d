"""The swap while users are on: each session moves once, when it is touched, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, InMemorySessionService
from google.adk.sessions import DatabaseSessionService as AdkDatabase
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google.genai import types

from adk_adapter import (
    AlreadyExistsError,
    DatabaseSessionService,
    ListSessionsResponse,
    MigratingSessionService,
    SessionNotFoundError,
)
from tests.adk_adapter.test_imports import needs_greenlet


def text(event_id: str, timestamp: float, **delta: Any) -> Event:
    return Event(
        id=event_id,
        author="user",
        timestamp=timestamp,
        content=types.Content(role="user", parts=[types.Part(text=event_id)]),
        actions=EventActions(state_delta=delta),
    )


@pytest.fixture(params=["memory", "sqlite", pytest.param("database", marks=needs_greenlet)])
async def old(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BaseSessionService]:
    made: dict[str, Any] = {
        "memory": InMemorySessionService,
        "sqlite": lambda: SqliteSessionService(str(tmp_path / "old.db")),
        "database": lambda: AdkDatabase(f"sqlite+aiosqlite:///{tmp_path / 'old.db'}"),
    }
    service: BaseSessionService = made[request.param]()
    for user, session_id in (("ada", "1"), ("ada", "2"), ("bob", "1")):
        session = await service.create_session(
            app_name="app",
            user_id=user,
            session_id=session_id,
            state={"given": session_id, "user:name": user, "app:all": "old"},
        )
        await service.append_event(session, text("e0", 1.0, n=0))
        await service.append_event(session, text("e1", 2.0, n=1, **{"user:last": session_id}))
    yield service
    if hasattr(service, "close"):
        await service.close()


@pytest.fixture
async def service(
    old: BaseSessionService, tmp_path: Path
) -> AsyncIterator[MigratingSessionService]:
    async with MigratingSessionService(tmp_path / "new.db", old=old) as made:
        yield made


async def dump(service: BaseSessionService, user: str, session_id: str) -> Any:
    session = await service.get_session(app_name="app", user_id=user, session_id=session_id)
    return session and json.loads(session.model_dump_json(exclude_none=True))


async def test_an_old_session_is_there_and_goes_on_here_only(
    service: MigratingSessionService, old: BaseSessionService
) -> None:
    before = await dump(old, "ada", "1")
    assert await dump(service, "ada", "1") == before
    session = await service.get_session("app", "ada", "1")
    assert session is not None
    await service.append_event(session, text("new", 3.0, n=2, **{"app:all": "new"}))
    assert [event.id for event in session.events] == ["e0", "e1", "new"]
    assert await dump(old, "ada", "1") == before
    # The other session is taken later, and the keys of user and app stay as they are here.
    other = await service.get_session("app", "ada", "2")
    assert other is not None
    assert other.state == {
        "given": "2", "n": 1, "user:name": "ada", "user:last": "2", "app:all": "new",
    }  # fmt: skip
    assert service.get_stats()["sessions"] == 2
    assert (await service.verify()).clean


@pytest.mark.parametrize("timestamp", [math.nan, math.inf])
async def test_an_event_of_no_time_keeps_no_session_away(timestamp: float, tmp_path: Path) -> None:
    old = InMemorySessionService()
    made = await old.create_session(app_name="app", user_id="ada", session_id="1")
    await old.append_event(made, text("e0", timestamp, n=1))
    async with MigratingSessionService(tmp_path / "new.db", old=old) as service:
        session = await service.get_session("app", "ada", "1")
    assert session is not None
    assert (session.events, session.state) == ([], {"n": 1})
    assert math.isfinite(session.last_update_time)


async def test_the_last_events_of_an_old_session(service: MigratingSessionService) -> None:
    session = await service.get_session("app", "ada", "1", GetSessionConfig(num_recent_events=1))
    assert session is not None
    assert [event.id for event in session.events] == ["e1"]


async def test_an_append_through_a_session_of_the_old_service(
    service: MigratingSessionService, old: BaseSessionService
) -> None:
    session = await old.get_session(app_name="app", user_id="bob", session_id="1")
    assert session is not None
    await service.append_event(session, text("new", 3.0, n=2))
    assert [event["id"] for event in (await dump(service, "bob", "1"))["events"]] == [
        "e0", "e1", "new",
    ]  # fmt: skip
    missing = await old.create_session(app_name="app", user_id="bob", session_id="gone")
    await old.delete_session(app_name="app", user_id="bob", session_id="gone")
    with pytest.raises(SessionNotFoundError):
        await service.append_event(missing, text("x", 1.0))


async def test_an_append_to_a_listed_session_that_is_not_here_yet(
    service: MigratingSessionService, old: BaseSessionService
) -> None:
    session = await old.get_session(app_name="app", user_id="bob", session_id="1")
    assert session is not None
    await old.append_event(session, text("e2", 1700000000.1234567))
    (listed,) = await service.list_sessions("app", "bob")
    await service.append_event(listed, text("new", 1700000001.0))
    assert [event["id"] for event in (await dump(service, "bob", "1"))["events"]] == [
        "e0", "e1", "e2", "new",
    ]  # fmt: skip


async def test_lists_have_the_sessions_of_both(
    service: MigratingSessionService, old: BaseSessionService
) -> None:
    await service.get_session("app", "ada", "1")
    await service.update_keys("app", "ada", "1", {"user:name": "Ada", "app:all": "new"})
    await service.create_session("app", "eve", "mine", {"k": 1})
    listed = await service.list_sessions("app")
    found = {(each.user_id, each.id): each.state for each in listed}
    assert found == {
        ("ada", "1"): {
            "given": "1", "n": 1, "user:name": "Ada", "user:last": "2", "app:all": "new",
        },
        ("ada", "2"): {
            "given": "2", "n": 1, "user:name": "Ada", "user:last": "2", "app:all": "new",
        },
        ("bob", "1"): {
            "given": "1", "n": 1, "user:name": "bob", "user:last": "1", "app:all": "new",
        },
        ("eve", "mine"): {"k": 1, "app:all": "new"},
    }  # fmt: skip
    assert [each.id for each in await service.list_sessions("app", "bob")] == ["1"]
    assert service.get_stats()["sessions"] == 2  # listing took none


async def test_lists_miss_no_session_that_is_taken_over_meanwhile(
    service: MigratingSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_here = DatabaseSessionService.list_sessions

    async def list_while_others_load(*arguments: Any) -> ListSessionsResponse:
        await service.get_session("app", "ada", "1")
        found = await list_here(*arguments)
        await service.get_session("app", "ada", "2")
        return found

    monkeypatch.setattr(DatabaseSessionService, "list_sessions", list_while_others_load)
    listed = await service.list_sessions("app")
    assert sorted((each.user_id, each.id) for each in listed) == [
        ("ada", "1"), ("ada", "2"), ("bob", "1"),
    ]  # fmt: skip
    assert service.get_stats()["sessions"] == 2


async def test_lists_do_without_a_session_that_no_store_can_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = InMemorySessionService()
    for user in ("a\0b", "bob"):
        await old.create_session(
            app_name="app", user_id=user, session_id="1", state={"k": "secret", "app:all": 1}
        )
    async with MigratingSessionService(tmp_path / "new.db", old=old) as service:
        listed = await service.list_sessions("app")
    assert [(each.user_id, each.state["app:all"]) for each in listed] == [("bob", 1)]
    assert "user_id contains NUL" in caplog.text
    assert "secret" not in caplog.text


async def test_what_is_deleted_here_stays_deleted(
    service: MigratingSessionService, old: BaseSessionService
) -> None:
    await service.delete_session("app", "ada", "1")
    assert await service.get_session("app", "ada", "1") is None
    assert service.vacuum()["sessions"] == 1
    assert await service.get_session("app", "ada", "1") is None
    assert {(e.user_id, e.id) for e in await service.list_sessions("app")} == {
        ("ada", "2"), ("bob", "1"),
    }  # fmt: skip
    assert await dump(old, "ada", "1") is not None
    made = await service.create_session("app", "ada", "1", {"again": 1})
    assert made.state == {"again": 1, "user:name": "ada", "user:last": "2", "app:all": "old"}


async def test_an_id_of_the_old_service_is_taken(service: MigratingSessionService) -> None:
    with pytest.raises(AlreadyExistsError):
        await service.create_session("app", "ada", " 1 ", {"user:name": "other"})
    assert await service.get_user_state("app", "ada") == {"name": "ada", "last": "2"}


async def test_new_sessions_have_the_keys_of_their_user_and_app(
    service: MigratingSessionService,
) -> None:
    made = await service.create_session("app", "ada")
    assert made.state == {"user:name": "ada", "user:last": "2", "app:all": "old"}
    made = await service.create_session("app", "new user", state={"user:name": "x"})
    assert made.state == {"user:name": "x", "app:all": "old"}
    assert await service.get_user_state("app", "nobody") == {}
    assert await service.get_session("other", "ada", "1") is None


async def test_keys_may_be_set_in_an_old_session(service: MigratingSessionService) -> None:
    state = await service.update_keys("app", "bob", "1", {"n": 7, "user:name": "Bob"})
    assert (state["n"], state["user:name"], state["given"]) == (7, "Bob", "1")
    with pytest.raises(SessionNotFoundError):
        await service.update_keys("app", "bob", "none", {"n": 1})


async def test_many_tasks_that_touch_a_session_first_take_it_once(
    service: MigratingSessionService,
) -> None:
    found = await asyncio.gather(*(service.get_session("app", "ada", "2") for _ in range(20)))
    assert all(each is not None and len(each.events) == 2 for each in found)
    # The keys of the app and the user; creation, two events and a note.
    assert service.get_stats()["events"] == 6


_PROGRAM = """
import asyncio, sys
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from adk_adapter import MigratingSessionService, StaleSessionError
from google.adk.events import Event

async def main(old, new, name):
    async with MigratingSessionService(new, old=SqliteSessionService(old)) as service:
        for n in range(8):
            while True:
                session = await service.get_session("app", "u", f"s{n}")
                event = Event(id=name, author=name, timestamp=100.0)
                try:
                    await service.append_event(session, event)
                    break
                except StaleSessionError:
                    pass

asyncio.run(main(*sys.argv[1:]))
"""


async def test_two_processes_that_touch_sessions_first_take_each_once(tmp_path: Path) -> None:
    old = SqliteSessionService(str(tmp_path / "old.db"))
    for n in range(8):
        session = await old.create_session(
            app_name="app", user_id="u", session_id=f"s{n}", state={"user:k": n}
        )
        await old.append_event(session, text("e0", 1.0, n=n))
    arguments = [str(tmp_path / "old.db"), str(tmp_path / "new.db")]
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", _PROGRAM, *arguments, name)
        for name in "ab"
    ]
    assert [await asyncio.wait_for(process.wait(), 120) for process in processes] == [0, 0]
    async with DatabaseSessionService(tmp_path / "new.db") as service:
        for n in range(8):
            loaded = await service.get_session("app", "u", f"s{n}")
            assert loaded is not None
            assert loaded.events[0].id == "e0"
            assert sorted(e.id for e in loaded.events[1:]) == ["a", "b"]
            assert loaded.state == {"n": n, "user:k": 7}
        # Each session: its creation, three events and a note; the keys of the app and the user.
        assert service.get_stats()["events"] == 8 * 5 + 2
        assert (await service.verify()).clean


async def test_what_was_never_touched_is_taken_at_the_end(
    service: MigratingSessionService, old: BaseSessionService, tmp_path: Path
) -> None:
    session = await service.get_session("app", "ada", "1")
    assert session is not None
    await service.append_event(session, text("new", 3.0))
    (report,) = await service.import_from(old, app_names=["app"])
    assert (report.sessions, report.there, report.left_out) == (2, 1, [])
    async with DatabaseSessionService(tmp_path / "new.db") as plain:
        assert len(await plain.list_sessions("app")) == 3
        assert len((await dump(plain, "ada", "1"))["events"]) == 3


async def test_whatever_is_done_first_with_an_old_session_finds_it(
    service: MigratingSessionService,
) -> None:
    await service.set_title("app", "ada", "1", "Tea")
    assert await service.set_labels("app", "ada", "2", {"kind": "order"}) == {"kind": "order"}
    page = await service.list_sessions_page("app", "ada")
    assert {(each.session_id, each.title) for each in page.sessions} == {("1", "Tea"), ("2", "")}
    events = [event async for event in service.iter_events("app", "bob", "1")]
    assert [stored.event and stored.event.id for stored in events] == [None, "e0", "e1"]
    for nowhere in (
        service.set_title("app", "ada", "none", "x"),
        service.set_labels("app", "ada", "none", {}),
        service.session_as("app", "ada", "none"),
    ):
        with pytest.raises(SessionNotFoundError):
            await nowhere


async def test_an_old_session_as_a_file(service: MigratingSessionService) -> None:
    assert json.loads(await service.session_as("app", "ada", "1"))["id"] == "1"


async def test_a_user_is_erased_once_the_old_service_has_none(
    service: MigratingSessionService, old: BaseSessionService, tmp_path: Path
) -> None:
    done = await service.export(tmp_path / "x.jsonl", "app", "ada", "1")
    assert done.events == 3
    with pytest.raises(ValueError, match="old service has sessions"):
        await service.erase_user("ada", "app")
    for session_id in ("1", "2"):
        await old.delete_session(app_name="app", user_id="ada", session_id=session_id)
    assert (await service.erase_user("ada", "app")).sessions == 1
    assert await service.get_session("app", "ada", "1") is None


async def test_a_user_is_erased_in_all_apps_once_the_old_service_has_none_in_any(
    service: MigratingSessionService, old: BaseSessionService
) -> None:
    # In an app that nobody has touched here.
    await old.create_session(app_name="other", user_id="eve", session_id="1")
    named = isinstance(old, InMemorySessionService)
    with pytest.raises(ValueError, match="has sessions" if named else "name the app"):
        await service.erase_user("eve")
    await old.delete_session(app_name="other", user_id="eve", session_id="1")
    if named:
        assert (await service.erase_user("eve")).sessions == 0

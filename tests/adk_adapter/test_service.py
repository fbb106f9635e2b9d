"""The service as people use it: the snippets they were promised, scopes, fallbacks, bad input."""

from __future__ import annotations

import asyncio
import copy
import datetime
import gc
import logging
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event, EventActions
from google.adk.events.event_actions import EventCompaction
from google.adk.sessions import BaseSessionService, InMemorySessionService
from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from pydantic import BaseModel

from adk_adapter import DatabaseSessionService
from adk_adapter._adk import StaleSessionError
from eventstore import (
    CorruptRow,
    ForeignDatabase,
    InvalidIdentifier,
    InvalidInput,
    PathUnusable,
    StoreClosed,
    ValueNotStorable,
)
from tests.places import query


def said(text: str, **delta: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, actions=EventActions(state_delta=delta))


async def test_the_snippets_people_were_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADK_SESSION_DB", raising=False)
    service = DatabaseSessionService()
    session = await service.create_session(
        app_name="test_app",
        user_id="test_user",
        session_id="test_session",
        state={"test": "value"},
    )
    print(session.session_id)
    retrieved = await service.get_session(
        app_name="test_app", user_id="test_user", session_id="test_session"
    )
    assert retrieved is not None
    print(retrieved.state)
    print(service.get_stats())

    await service.create_session("data_science_agent", "u", "s")
    old_sessions = await service.list_sessions(app_name="data_science_agent")
    for session in old_sessions:
        await service.delete_session(session["app_name"], session["user_id"], session["session_id"])
    service.vacuum()
    await service.close()

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test_session"
    assert lines[1] == "{'test': 'value'}"
    path = tmp_path / "data_science" / "db" / "adk.sqlite3"
    assert f"'path': '{path}'" in lines[2]
    assert path.exists()


async def test_stats_count_what_is_there(service: DatabaseSessionService, target: str) -> None:
    session = await service.create_session("a", "u", "s", {"k": 1, "user:k": 2, "app:k": 3})
    await service.append_event(session, said("hi", k=4))
    stats = service.get_stats()
    assert (stats["sessions"], stats["events"], stats["state_keys"]) == (1, 2, 3)
    assert stats["schema_version"] >= 1
    assert stats["db_size_mb"] >= 0
    assert stats["path"] == target


async def test_positional_arguments(service: DatabaseSessionService) -> None:
    created = await service.create_session("app", "user", "session", {"k": 1})
    assert await service.get_session("app", "user", "session") == created
    assert await service.update_keys("app", "user", "session", {"k": 2}) == {"k": 2}
    assert len(await service.list_sessions("app", "user")) == 1
    assert await service.get_user_state("app", "user") == {}
    await service.delete_session("app", "user", "session")
    assert await service.get_session("app", "user", "session") is None


async def test_scopes_outlive_the_process(target: str) -> None:
    async with DatabaseSessionService(target) as service:
        session = await service.create_session(
            "app", "u", "1", {"s": 1, "user:u": 2, "app:a": 3, "temp:t": 4}
        )
        assert session.state == {"s": 1, "user:u": 2, "app:a": 3}
        event = said("hi", **{"s2": 5, "user:u2": 6, "app:a2": 7, "temp:t2": 8})
        await service.append_event(session, event)
        assert session.state["temp:t2"] == 8
        assert "temp:t2" not in event.actions.state_delta
    async with DatabaseSessionService(target) as service:
        again = await service.get_session("app", "u", "1")
        assert again is not None
        assert again.state == {
            "s": 1, "s2": 5, "user:u": 2, "user:u2": 6, "app:a": 3, "app:a2": 7
        }  # fmt: skip
        assert again.events == session.events
        for user, expected in (("u", {"user:u": 2, "user:u2": 6}), ("other", {})):
            new = await service.create_session("app", user)
            assert new.state == {"app:a": 3, "app:a2": 7, **expected}
        assert (await service.create_session("elsewhere", "u")).state == {}
    for (text,) in query(target, "SELECT coalesce(delta, '') || data FROM events"):
        assert "temp:" not in text


async def test_update_keys_in_the_middle_of_a_run(service: DatabaseSessionService) -> None:
    session = await service.create_session("app", "u", "s", {"k": 1})
    other = await service.create_session("app", "u", "other")
    state = await service.update_keys("app", "u", "s", {"k": 2, "user:n": None, "app:x": [1]})
    assert state == {"k": 2, "user:n": None, "app:x": [1]}
    assert session.state == {"k": 1}
    await service.append_event(session, said("still not stale", j=3))
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert loaded.state == {**state, "j": 3}
    assert len(loaded.events) == 1
    await service.append_event(loaded, said("nor is one loaded since"))
    await service.append_event(other, said("nor another session"))
    assert await service.update_keys("app", "u", "s", {}) == loaded.state


async def test_update_keys_refuses(service: DatabaseSessionService) -> None:
    await service.create_session("app", "u", "s", {"k": 1})
    with pytest.raises(InvalidInput, match="list"):
        await service.update_keys("app", "u", "s", ["k"])  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="temp:x"):
        await service.update_keys("app", "u", "s", {"k": 2, "temp:x": 1})
    for keys in ({"k": 2}, {}):
        with pytest.raises(SessionNotFoundError):
            await service.update_keys("app", "u", "missing", keys)
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert loaded.state == {"k": 1}


# A session is ADK's own, which also answers by name.


async def test_a_session_is_adks_own(service: DatabaseSessionService) -> None:
    session = await service.create_session("app", "u", "s", {"k": [1]})
    await service.append_event(session, said("hi"))
    plain = AdkSession.model_validate(session.model_dump())
    plain._storage_update_marker = session._storage_update_marker
    assert isinstance(session, AdkSession)
    assert session == plain
    assert plain == session
    plain.state["k"] = 2
    assert session != plain
    assert plain != session
    assert session.model_dump_json(by_alias=True) == AdkSession.model_validate(
        session.model_dump()
    ).model_dump_json(by_alias=True)
    schemas = type(session).model_json_schema(), AdkSession.model_json_schema()
    assert schemas[0]["properties"] == schemas[1]["properties"]
    assert repr(session).startswith("Session(id='s'")
    for duplicate in (
        copy.deepcopy(session),
        copy.copy(session),
        session.model_copy(deep=True),
        pickle.loads(pickle.dumps(session)),
    ):
        assert duplicate == session
        assert duplicate.session_id == "s"
    assert (session["id"], session["user_id"], session["state"]) == ("s", "u", {"k": [1]})
    with pytest.raises(KeyError):
        session["nothing"]
    with pytest.raises(KeyError):
        session["model_fields"]


async def test_a_response_is_adks_own(service: DatabaseSessionService) -> None:
    await service.create_session("app", "u", "s")
    response = await service.list_sessions(app_name="app")
    assert [session.id for session in response] == ["s"]
    assert [session.id for session in response.sessions] == ["s"]
    assert set(response.model_dump()) == {"sessions"}
    assert bool(await service.list_sessions(app_name="nowhere"))


async def test_fastapi_answers_as_it_does_for_adks_session(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("app", "u", "s", {"k": 1})
    await service.append_event(session, said("hi", n=2))
    plain = AdkSession.model_validate(session.model_dump())
    web = FastAPI()

    @web.get("/{kind}/typed", response_model=AdkSession, response_model_exclude_none=True)
    async def typed(kind: str) -> AdkSession:
        return session if kind == "ours" else plain

    @web.get("/{kind}/untyped")
    async def untyped(kind: str) -> Any:
        return {"session": session if kind == "ours" else plain}

    transport = httpx.ASGITransport(web)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in ("typed", "untyped"):
            ours, theirs = await client.get(f"/ours/{path}"), await client.get(f"/theirs/{path}")
            assert ours.status_code == 200
            assert ours.content == theirs.content


async def test_what_is_returned_is_independent_of_what_is_stored(
    service: DatabaseSessionService,
) -> None:
    state = {"list": [1]}
    session = await service.create_session("app", "u", "s", state)
    event = said("hi", delta=[2])
    await service.append_event(session, event)
    state["list"].append(9)
    session.state["list"].append(9)
    session.events.clear()
    event.actions.state_delta["delta"].append(9)
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert loaded.state == {"list": [1], "delta": [2]}
    assert len(loaded.events) == 1


# The live session.


async def test_the_live_session_is_changed_in_place(service: DatabaseSessionService) -> None:
    session = await service.create_session("app", "u", "s")
    events, state = session.events, session.state
    event = said("hi", when=datetime.date(2026, 1, 2))
    assert await service.append_event(session=session, event=event) is event
    assert session.events is events
    assert session.state is state
    assert events[0] is event
    # The live value stays as the agent wrote it; the stored one is what JSON can hold.
    assert state["when"] == datetime.date(2026, 1, 2)
    assert session.last_update_time == event.timestamp
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert loaded.state == {"when": "2026-01-02"}
    assert loaded.events[0].actions.state_delta == {"when": "2026-01-02"}
    assert loaded.last_update_time == event.timestamp
    assert loaded._storage_update_marker == session._storage_update_marker


async def test_a_failed_append_leaves_the_live_session_as_it_was(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("app", "u", "s", {"k": 1})
    before = copy.deepcopy(session)
    recursive: list[Any] = []
    recursive.append(recursive)
    with pytest.raises(ValueNotStorable):
        await service.append_event(session, said("hi", k=2, bad=recursive))
    with pytest.raises(InvalidIdentifier):
        await service.append_event(session, said("hi", **{"k": 2, "\0": 1}))
    assert session == before
    await service.append_event(session, said("goes on", k=3))
    assert session.state == {"k": 3}


@pytest.mark.parametrize("failures", [1, 2])
async def test_a_session_that_does_not_take_what_was_stored_is_caught_up_with_or_stale(
    service: DatabaseSessionService, failures: int
) -> None:
    """Whoever appended is told, and nobody for whom it is not."""

    left = [LookupError] * failures

    class Failing(dict[str, Any]):
        def update(self, *_: Any, **__: Any) -> None:
            if left:
                raise left.pop()

    session = await service.create_session("app", "u", "s")
    vars(session)["state"] = Failing()
    events = said("first"), said("second")
    with pytest.raises(LookupError):
        await service.append_event(session, events[0])
    if failures == 1:
        await service.append_event(session, events[1])
        assert session.events == [*events]
    else:
        with pytest.raises(StaleSessionError):
            await service.append_event(session, events[1])
    loaded = await service.get_session(app_name="app", user_id="u", session_id="s")
    assert loaded is not None
    assert loaded.events == [*events[: 3 - failures]]


async def test_a_cancelled_append_is_caught_up_with(service: DatabaseSessionService) -> None:
    session = await service.create_session("app", "u", "s")
    events = [said(str(n)) for n in range(10)]
    tasks = [asyncio.create_task(service.append_event(session, event)) for event in events]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await service.flush()
    assert session.events == events
    await service.append_event(session, said("not stale"))
    for event in events:  # the natural reaction to a cancelled call
        await service.append_event(session, event)
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert loaded.events == session.events
    assert len(session.events) == 11


async def test_a_retry_by_another_holder_of_the_old_session(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("app", "u", "s")
    copy_of_session = copy.deepcopy(session)
    event = said("hi", k=1, **{"temp:t": 1})
    await service.append_event(session, copy.deepcopy(event))
    await service.append_event(copy_of_session, event)
    assert copy_of_session.events == [event]
    assert copy_of_session.state == {"k": 1, "temp:t": 1}
    await service.append_event(copy_of_session, said("goes on"))
    with pytest.raises(AlreadyExistsError):
        await service.append_event(
            copy_of_session, event.model_copy(update={"author": "somebody else"})
        )


# Where the file is.


@pytest.mark.parametrize("keyword", ["db_url", "db_path", "uri"])
async def test_the_path_by_keyword(tmp_path: Path, keyword: str) -> None:
    path = tmp_path / "a.db"
    given = f"sqlite:///{path}" if keyword != "db_path" else path
    service = DatabaseSessionService(**{keyword: given, "agents_dir": "agents"})  # type: ignore[arg-type]
    assert service.get_stats()["path"] == str(path)
    await service.aclose()


def test_keywords_that_mean_nothing_are_named() -> None:
    with pytest.raises(TypeError, match="db_engine"):
        DatabaseSessionService(db_engine=None)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="not several"):
        DatabaseSessionService("a", db_url="b")


async def test_the_path_is_absolute_from_the_beginning_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "adk_adapter"):
        service = DatabaseSessionService("a.db")
    assert str(tmp_path / "a.db") in caplog.text
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await service.create_session("a", "u", "s")
    await service.aclose()
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("problem", ["directory", "file as folder", "foreign file"])
def test_the_fallback_idiom_works(tmp_path: Path, problem: str) -> None:
    path = tmp_path / "file"
    if problem == "directory":
        path.mkdir()
    else:
        path.write_text("something else" * 500)
    if problem == "file as folder":
        path = path / "a.db"

    def choose() -> BaseSessionService:
        try:
            return DatabaseSessionService(path)
        except Exception:
            return InMemorySessionService()

    assert isinstance(choose(), InMemorySessionService)
    with pytest.raises((PathUnusable, ValueError, Exception), match=str(tmp_path)):
        DatabaseSessionService(path)


async def test_adks_own_files_are_recognised(tmp_path: Path) -> None:
    from google.adk.sessions.sqlite_session_service import SqliteSessionService

    path = tmp_path / "adk.db"
    await SqliteSessionService(str(path)).create_session(app_name="a", user_id="u")
    with pytest.raises(ForeignDatabase, match="ADK's own session services"):
        DatabaseSessionService(path)


async def test_the_shell_gives_readable_answers(target: str) -> None:
    async with DatabaseSessionService(target) as service:
        session = await service.create_session("app", "u", "s", {"k": "ключ", "user:n": 1})
        event = said("hi", **{"app:a": None})
        event.invocation_id, event.timestamp = "i-1", 1767323045.5
        await service.append_event(session, event)
    (row,) = query(target, "SELECT * FROM adk_sessions;")
    assert row[:3] == ("app", "u", "s")
    assert row[4] == "2026-01-02 03:04:05"
    assert query(
        target, "SELECT invocation_id, author, timestamp FROM adk_events ORDER BY id DESC LIMIT 10;"
    )[0] == ("i-1", "user", "2026-01-02 03:04:05.500")
    state = query(target, "SELECT scope, state_key, state_value FROM adk_state;")
    assert sorted(state) == [
        ("app", "a", "null"), ("session", "k", '"ключ"'), ("user", "n", "1")
    ]  # fmt: skip


# Bad input.


@pytest.mark.parametrize("bad", [1, b"x", None, "a\0b", "\ud800"])
async def test_ids_no_database_can_hold(service: DatabaseSessionService, bad: Any) -> None:
    for arguments in ((bad, "u", "s"), ("a", bad, "s")):
        with pytest.raises(InvalidIdentifier) as raised:
            await service.create_session(*arguments)
        assert isinstance(raised.value, ValueError)
        with pytest.raises(InvalidIdentifier):
            await service.get_session(*arguments)
    if bad is not None:
        with pytest.raises(InvalidIdentifier):
            await service.create_session("a", "u", bad)


@pytest.mark.parametrize("blank", [None, "", "  ", "\u2003\n"])
async def test_a_blank_id_means_generate_one(
    service: DatabaseSessionService, blank: str | None
) -> None:
    first = await service.create_session("", "", blank)
    second = await service.create_session("", "", blank)
    assert first.id != second.id
    assert (first.app_name, first.user_id) == ("", "")
    assert await service.get_session("", "", f" {first.id} ") == first


class Opaque:
    def __repr__(self) -> str:
        return "<opaque>"


class Model(BaseModel):
    n: int


async def test_values_no_json_can_hold_become_text_with_a_warning(
    service: DatabaseSessionService, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"f": Opaque(), "b": b"\xff\x00", "ok": Model(n=1), "app:f": [Opaque()], "u": b"text"}
    session = await service.create_session("a", "u", "s", state)
    expected = {"f": "<opaque>", "b": "_wA=", "ok": {"n": 1}, "app:f": ["<opaque>"], "u": "text"}
    assert session.state == expected
    assert {record.args[0] for record in caplog.records} == {"f", "b"}  # type: ignore[index]
    loaded = await service.get_session("a", "u", "s")
    assert loaded is not None
    assert loaded.state == expected


async def test_errors_and_logs_hold_no_content(
    service: DatabaseSessionService, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "s3cr3t"
    session = await service.create_session("a", "u", "s", {"k": secret})
    deep: Any = secret
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ValueNotStorable) as raised:
        await service.append_event(session, said(secret, deep=deep))
    assert secret not in str(raised.value)
    await service.append_event(session, said(secret, other=Opaque()))
    assert secret not in caplog.text


async def test_a_closed_service_says_so(service: DatabaseSessionService) -> None:
    session = await service.create_session("a", "u", "s")
    await service.close()
    await service.aclose()
    with pytest.raises(StoreClosed, match="closed"):
        await service.get_session("a", "u", "s")
    with pytest.raises(StoreClosed):
        await service.append_event(session, said("hi"))
    with pytest.raises(StoreClosed):
        service.get_stats()
    assert session.events == []


async def test_plain_methods_inside_a_running_loop_while_others_write(
    service: DatabaseSessionService,
) -> None:
    sessions = [await service.create_session("a", "u", str(n)) for n in range(5)]
    tasks = [asyncio.create_task(service.append_event(s, said("hi"))) for s in sessions]
    await asyncio.sleep(0)
    assert service.get_stats()["sessions"] == 5
    assert service.vacuum()["sessions"] == 0
    await asyncio.gather(*tasks)


# Stale sessions, and merging.


async def test_only_one_of_two_loaded_sessions_goes_on(service: DatabaseSessionService) -> None:
    first = await service.create_session("a", "u", "s")
    second = await service.get_session("a", "u", "s")
    assert second is not None
    await service.append_event(first, said("first"))
    with pytest.raises(StaleSessionError):
        await service.append_event(second, said("second"))
    assert second.events == []


async def test_merging_brings_the_live_session_up_to_date(target: str) -> None:
    async with DatabaseSessionService(target, on_stale="merge") as service:
        first = await service.create_session("a", "u", "s", {"k": 0})
        second = await service.get_session("a", "u", "s")
        assert second is not None
        theirs = [said(str(n), k=n, **{"user:n": n, f"only{n}": n}) for n in range(3)]
        for event in theirs:
            await service.append_event(first, event)
        unpersisted = said("a workflow keeps such events here")
        second.events.append(unpersisted)
        events, state = second.events, second.state
        ours = [said("ours", k="ours"), said("more")]
        await asyncio.gather(*(service.append_event(second, event) for event in ours))
        assert second.events is events
        assert second.state is state
        assert events == [unpersisted, *theirs, *ours]
        loaded = await service.get_session("a", "u", "s")
        assert loaded is not None
        assert loaded.events == [*theirs, *ours]
        assert loaded.state == state
        assert state == {"k": "ours", "user:n": 2, "only0": 0, "only1": 1, "only2": 2}
        assert loaded._storage_update_marker == second._storage_update_marker


async def test_a_count_that_no_database_holds_is_all(service: DatabaseSessionService) -> None:
    session = await service.create_session("a", "u", "s")
    for n in range(3):
        await service.append_event(session, said(f"{n}"))
    for count in (2**63 - 1, 2**63, 2**64, 10**40):
        for since in (None, 0.5):
            config = GetSessionConfig(num_recent_events=count, after_timestamp=since)
            loaded = await service.get_session("a", "u", "s", config)
            assert loaded is not None
            assert loaded.events == session.events


async def test_merging_into_a_filtered_session_adds_what_came_after_it(target: str) -> None:
    async with DatabaseSessionService(target, on_stale="merge") as service:
        first = await service.create_session("a", "u", "s")
        await service.append_event(first, said("before"))
        filtered = await service.get_session("a", "u", "s", GetSessionConfig(num_recent_events=0))
        assert filtered is not None
        event = said("after")
        await service.append_event(first, event)
        last = await service.append_event(filtered, said("last"))
        assert filtered.events == [event, last]


async def test_merging_still_refuses(target: str) -> None:
    async with DatabaseSessionService(target, on_stale="merge") as service:
        session = await service.create_session("a", "u", "s")
        stale = copy.deepcopy(session)
        await service.append_event(session, said("newer"))
        content = types.Content(role="model", parts=[types.Part(text="summary")])
        compaction = EventCompaction(start_timestamp=1, end_timestamp=2, compacted_content=content)
        for actions in (
            EventActions(compaction=compaction),
            EventActions(rewind_before_invocation_id="i"),
        ):
            with pytest.raises(StaleSessionError):
                await service.append_event(stale, Event(actions=actions))
        restored = AdkSession.model_validate_json(stale.model_dump_json())
        with pytest.raises(StaleSessionError):
            await service.append_event(restored, said("of no revision"))
        await service.delete_session("a", "u", "s")
        with pytest.raises(SessionNotFoundError):
            await service.append_event(session, said("deleted"))
        await service.create_session("a", "u", "s")
        with pytest.raises(StaleSessionError):
            await service.append_event(session, said("of the deleted one"))
    with pytest.raises(ValueError, match="on_stale"):
        DatabaseSessionService(target, on_stale="ignore")  # type: ignore[arg-type]


# Rewind.


async def test_a_rewind_leads_back_to_the_state_before_the_invocation(
    service: DatabaseSessionService,
) -> None:
    given = {"given": 1, "changed": 1, "nothing": None, "user:u": 1}
    session = await service.create_session("a", "u", "s", given)
    await service.update_keys("a", "u", "s", {"set": "early", "changed": 2})
    first = said("first", kept=1)
    first.invocation_id = "i-1"
    await service.append_event(session, first)
    for delta in ({"changed": 3, "later": 1}, {"nothing": 1, "set": "late", "user:u": 2}):
        event = said("second", **delta)
        event.invocation_id = "i-2"
        await service.append_event(session, event)
    await service.update_keys("a", "u", "s", {"much_later": 1})
    rewind = Event(
        actions=EventActions(
            rewind_before_invocation_id="i-2",
            # As ADK computes it, which never saw the initial state.
            state_delta={"given": None, "changed": None, "later": None, "set": None},
        )
    )
    again = copy.deepcopy(rewind)
    await service.append_event(session, rewind)
    expected = {
        "given": 1, "changed": 2, "nothing": None, "set": "early", "kept": 1,
        "later": None, "much_later": None, "user:u": 2,
    }  # fmt: skip
    loaded = await service.get_session("a", "u", "s")
    assert loaded is not None
    assert loaded.state == expected
    assert session.state == {**expected}
    # Handed over again, its delta is computed from another state, and it is the same event still.
    await service.append_event(session, again)
    assert len(session.events) == 4


async def test_a_rewind_to_an_unknown_invocation_keeps_its_delta(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("a", "u", "s", {"k": 1})
    actions = EventActions(rewind_before_invocation_id="unknown", state_delta={"k": 2})
    await service.append_event(session, Event(actions=actions))
    assert session.state == {"k": 2}


# Loops that end, and objects that are broken.


def test_an_append_whose_loop_has_ended_is_caught_up_with(target: str) -> None:
    service = DatabaseSessionService(target)
    session = asyncio.run(service.create_session("a", "u", "s"))
    events = [said(str(n)) for n in range(30)]

    async def hand_over_and_leave(event: Event) -> None:
        task = asyncio.ensure_future(service.append_event(session, event))
        await asyncio.sleep(0)
        task.cancel()

    for event in events:
        asyncio.run(hand_over_and_leave(event))
    last = said("last")
    asyncio.run(service.append_event(session, last))
    assert session.events == [*events, last]
    loaded = asyncio.run(service.get_session("a", "u", "s"))
    assert loaded == session
    assert service._flights._flights == {}
    asyncio.run(service.close())


async def test_a_session_nobody_uses_any_more_is_not_kept(service: DatabaseSessionService) -> None:
    session = await service.create_session("a", "u", "s")
    weak = weakref.ref(session)
    task = asyncio.create_task(service.append_event(session, said("hi")))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    del session, task
    await service.flush()
    gc.collect()
    assert weak() is None
    assert service._flights._flights == {}


async def test_a_broken_session_object_harms_no_other(service: DatabaseSessionService) -> None:
    sessions = [await service.create_session("a", "u", str(n)) for n in range(4)]
    sessions[1].events = None  # type: ignore[assignment]
    outcomes = await asyncio.gather(
        *(service.append_event(session, said("hi")) for session in sessions),
        return_exceptions=True,
    )
    assert [isinstance(outcome, Event) for outcome in outcomes] == [True, False, True, True]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: setattr(event, "content", "secret"),
        lambda event: setattr(event, "branch", ["secret"]),
        lambda event: setattr(event.actions, "escalate", "secret"),
        lambda event: setattr(event, "timestamp", "secret"),
        lambda event: setattr(event, "timestamp", 10**400),
        lambda event: setattr(event, "id", ""),
        lambda event: setattr(event.actions, "state_delta", {3: 4}),
    ],
)
async def test_events_that_could_not_be_loaded_are_not_stored(
    service: DatabaseSessionService, spoil: Callable[[Event], None]
) -> None:
    session = await service.create_session("a", "u", "s")
    event = said("hi")
    spoil(event)
    with pytest.raises(InvalidInput) as raised:
        await service.append_event(session, event)
    assert "secret" not in str(raised.value)
    await service.append_event(session, said("goes on"))
    loaded = await service.get_session("a", "u", "s")
    assert loaded is not None
    assert len(loaded.events) == 1


async def test_harmless_mismatches_are_stored_as_what_they_mean(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("a", "u", "s")
    event = said("hi")
    event.timestamp = 5
    event.actions.state_delta = None  # type: ignore[assignment]
    await service.append_event(session, event)
    loaded = await service.get_session("a", "u", "s")
    assert loaded is not None
    assert loaded.events[0].timestamp == 5.0


async def test_a_corrupt_row_is_named(service: DatabaseSessionService, target: str) -> None:
    await service.create_session("a", "u", "s", {"user:k": "secret"})
    query(target, "UPDATE state SET state_value = '{secret'")
    for load in (
        service.get_session("a", "u", "s"), service.list_sessions("a"),
        service.get_user_state("a", "u"),
    ):  # fmt: skip
        with pytest.raises(CorruptRow, match="'k'") as raised:
            await load
        assert "secret" not in str(raised.value)

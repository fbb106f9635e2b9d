"""What the service offers beside ADK's interface from the second day on."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.adk.events import Event, EventActions
from google.genai import types

from adk_adapter import (
    DatabaseSessionService,
    SessionNotFoundError,
    StaleSessionError,
    StoredEvent,
)
from eventstore import InvalidInput, MaintenanceRunning, open_store
from projections import BUILT_IN, UsageProjection, retention, tail


def said(text: str, **delta: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, actions=EventActions(state_delta=delta))


async def test_a_page_has_no_state_unless_it_is_asked_for(service: DatabaseSessionService) -> None:
    for n in range(5):
        await service.create_session("app", "ada", f"s{n}", {"k": n, "user:u": n, "app:a": n})
    page = await service.list_sessions_page("app", "ada", limit=2, with_state=True)
    assert [info.session_id for info in page.sessions] == ["s4", "s3"]
    assert page.sessions[0].state == {"k": 4, "user:u": 4, "app:a": 4}
    assert page.cursor is not None
    page = await service.list_sessions_page("app", "ada", cursor=page.cursor)
    assert [info.session_id for info in page.sessions] == ["s2", "s1", "s0"]
    assert {info.state for info in page.sessions} == {None}
    now = datetime.now(UTC)
    assert (await service.list_sessions_page(updated_since=now + timedelta(hours=1))).sessions == []
    with pytest.raises(InvalidInput):
        await service.list_sessions_page(cursor="x")


async def test_titles_and_labels_make_no_loaded_session_stale(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("app", "ada", "s")
    before = session.last_update_time
    await service.set_title("app", "ada", "s", "Rom")
    assert await service.set_labels("app", "ada", "s", {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    assert await service.set_labels("app", "ada", "s", {"a": None}) == {"b": "2"}
    loaded = await service.get_session("app", "ada", "s")
    assert loaded is not None
    assert (loaded.last_update_time, loaded.events) == (before, [])
    await service.append_event(session, said("hello"))
    await service.append_event(session, said("again"))
    with pytest.raises(StaleSessionError):
        await service.append_event(loaded, said("late"))
    (info,) = (await service.list_sessions_page(title="rOM", labels={"b": "2"})).sessions
    assert (info.title, info.labels, info.events) == ("Rom", {"b": "2"}, 6)
    assert (await service.verify()).clean
    for call in (service.set_title("app", "ada", "x", ""), service.set_labels("app", "x", "s", {})):
        with pytest.raises(SessionNotFoundError):
            await call


async def test_events_in_pages(
    service: DatabaseSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adk_adapter.service._EVENTS_PER_PAGE", 3)
    session = await service.create_session("app", "ada", "s", {"k": 0, "app:a": 1})
    for n in range(7):
        await service.append_event(session, said(f"{n}", k=n, **{"temp:t": 1}))
    await service.update_keys("app", "ada", "s", {"user:u": 1})
    stored = [each async for each in service.iter_events("app", "ada", "s")]
    assert [each.version for each in stored] == list(range(1, 10))
    assert [each.type for each in stored] == ["session_created", *["adk_event"] * 7, "state_set"]
    assert stored[0].state_delta == {"k": 0, "app:a": 1}
    assert (stored[-1].state_delta, stored[-1].event) == ({"user:u": 1}, None)
    assert [each.event for each in stored[1:-1]] == session.events
    assert isinstance(stored[0], StoredEvent)
    assert abs(stored[1].recorded_at - datetime.now(UTC).timestamp()) < 60

    async def versions(**options: int) -> list[int]:
        return [e.version async for e in service.iter_events("app", "ada", "s", **options)]

    assert await versions(after_version=7) == [8, 9]
    assert await versions(after_version=2, limit=4) == [3, 4, 5, 6]
    assert await versions(limit=0) == await versions(after_version=9) == []
    assert await versions(after_version=99) == []
    assert await versions(after_version=True, limit=True) == [2]
    assert await versions(after_version=2**63 - 1) == []
    assert await versions(after_version=7, limit=2**63 - 1) == [8, 9]
    for number in (-1, 2**63, 2**64):
        for wrong in ({"after_version": number}, {"limit": number}):
            with pytest.raises(InvalidInput):
                await versions(**wrong)
    with pytest.raises(SessionNotFoundError):
        _ = [each async for each in service.iter_events("app", "ada", "none")]


async def test_pages_of_a_session_do_not_go_on_in_another_of_its_name(
    service: DatabaseSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adk_adapter.service._EVENTS_PER_PAGE", 2)

    async def make() -> None:
        session = await service.create_session("app", "ada", "s")
        for n in range(5):
            await service.append_event(session, said(f"{n}"))

    await make()
    events = service.iter_events("app", "ada", "s")
    assert [(await anext(events)).version for _ in range(2)] == [1, 2]
    await service.delete_session("app", "ada", "s")
    await make()
    with pytest.raises(SessionNotFoundError):
        await anext(events)


async def test_a_purge_that_is_cancelled_ends_behind_its_step(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.retention.SESSIONS_PER_TRANSACTION", 1)
    begun, go_on = threading.Event(), threading.Event()
    step = retention._purge_step

    def slow(*arguments: Any) -> Any:
        begun.set()
        go_on.wait(60)
        return step(*arguments)

    async with DatabaseSessionService(database) as service:
        for n in range(5):
            await service.create_session("app", "ada", f"{n}")
        monkeypatch.setattr(retention, "_purge_step", slow)
        task = asyncio.create_task(service.purge(older_than=0))
        await asyncio.to_thread(begun.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while True:  # until the maintenance that nobody waits for is over
            with suppress(MaintenanceRunning):
                assert (await service.verify()).clean
                break
        assert len((await service.list_sessions("app")).sessions) == 4


async def test_the_log_as_it_grows(service: DatabaseSessionService, target: str) -> None:
    await service.create_session("app", "ada", "before")
    seen: list[tuple[str, str]] = []

    async def follow() -> None:
        async for stored in service.tail_events("app", after=0):
            seen.append((stored.session_id, stored.type))
            if len(seen) == 5:
                return

    task = asyncio.create_task(follow())
    async with DatabaseSessionService(target) as other:
        session = await other.create_session("app", "ada", "new")
        await other.create_session("another", "ada", "hidden")
        await other.append_event(session, said("hello"))
        await other.delete_session("app", "ada", "new")
        await service.set_title("app", "ada", "before", "t")
    await asyncio.wait_for(task, 20)
    assert seen == [
        ("before", "session_created"),
        ("new", "session_created"),
        ("new", "adk_event"),
        ("new", "session_deleted"),
        ("before", "session_described"),
    ]
    rest = [s async for s in service.tail_events(session_id="new", after=0, follow=False)]
    assert [each.version for each in rest] == [1, 2, 3]
    rest = [s async for s in service.tail_events("app", after=True, follow=False)]
    assert [each.session_id for each in rest] == ["new", "new", "new", "before"]
    for wrong in (-1, 2**63, 2**64):
        with pytest.raises(InvalidInput):
            await anext(service.tail_events(after=wrong))
    with closing(open_store(target, BUILT_IN)) as store:
        assert len(list(tail(store, last=2**63 - 1))) == 6
        for options in ({"last": 2**63}, {"last": -1}, {"after": 2**63}, {"after": -1}):
            with pytest.raises(InvalidInput):
                next(tail(store, **options))
    task = asyncio.create_task(anext(service.tail_events("app")))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_purge_and_erase_while_the_service_goes_on(database: Path) -> None:
    async with DatabaseSessionService(database, projections=[UsageProjection()]) as service:
        for user in ("ada", "eve"):
            for n in range(3):
                session = await service.create_session("app", user, f"{user}-{n}", {"user:u": user})
                await service.append_event(session, said(f"by {user}", **{"app:last": user}))
        assert (await service.purge(older_than=timedelta(days=1)))[:2] == (0, 0)

        async def go_on() -> int:
            count = 0
            while not done.is_set():
                await service.append_event(mine, said(f"{count}"))
                count += 1
                await asyncio.sleep(0)
            return count

        done = asyncio.Event()
        mine = await service.create_session("app", "mine", "mine")
        writing = asyncio.create_task(go_on())
        erased = await service.erase_user("eve", "app")
        assert (erased.sessions, erased.keys, erased.keys_carried_over) == (3, 1, 1)
        assert (erased.rewritten, erased.gone) == (True, True)
        purged = await service.purge(older_than=0.0, app_name="none")
        done.set()
        count = await writing
        assert purged.sessions == 0
        loaded = await service.get_session("app", "mine", "mine")
        assert loaded is not None
        assert len(loaded.events) == count > 0
        assert loaded.state == {"app:last": "eve"}  # which is the app's
        assert await service.get_user_state("app", "eve") == {}
        assert await service.get_user_state("app", "ada") == {"u": "ada"}
        assert [
            row.user_id for row in await service.usage(by=["user"]) if row.user_id == "eve"
        ] == []
        assert (await service.verify()).clean
        stats = await service.measure()
        assert (stats.sessions, stats.apps[0].users) == (4, 2)
        assert service.vacuum(rewrite=True).keys() == {
            "sessions",
            "events",
            "keys_carried_over",
            "bytes_freed",
        }
        assert (await service.purge(older_than=timedelta(0))).sessions == 4
        assert (await service.list_sessions_page()).sessions == []

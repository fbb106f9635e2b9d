"""The real ADK Runner on the service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from google.adk.events import Event
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, InMemorySessionService

from adk_adapter import DatabaseSessionService
from eventstore.errors import EventStoreError
from tests.adk_adapter.agents import noting_agent, text


def runner(service: BaseSessionService, **options: Any) -> Runner:
    return Runner(app_name="app", agent=noting_agent(), session_service=service, **options)


async def say(service: BaseSessionService, words: str, session_id: str = "s") -> list[Event]:
    return [
        event
        async for event in runner(service).run_async(
            user_id="u", session_id=session_id, new_message=text(words)
        )
    ]


def shape(events: list[Event]) -> list[tuple[Any, ...]]:
    """What must be alike in two runs: all but ids and times."""
    return [
        (
            event.author,
            [sorted(part.model_dump(exclude_none=True)) for part in event.content.parts or []]
            if event.content
            else None,
            event.actions.state_delta,
            event.usage_metadata,
        )
        for event in events
    ]


async def test_a_run_is_stored_as_it_happened(service: DatabaseSessionService) -> None:
    memory = InMemorySessionService()
    for each in (service, memory):
        await each.create_session(app_name="app", user_id="u", session_id="s", state={"k": 1})
        await say(each, "one two three")
        await say(each, "four")
    ours = await service.get_session("app", "u", "s")
    theirs = await memory.get_session(app_name="app", user_id="u", session_id="s")
    assert ours is not None
    assert theirs is not None
    assert shape(ours.events) == shape(theirs.events)
    assert ours.state == theirs.state
    assert ours.state["app:seen"] == 4
    assert len(ours.events) == 8


async def test_a_conversation_goes_on_after_a_restart(database: Path) -> None:
    async with DatabaseSessionService(database) as service:
        await service.create_session("app", "u", "s")
        said = await say(service, "one")
    async with DatabaseSessionService(database) as service:
        loaded = await service.get_session("app", "u", "s")
        assert loaded is not None
        assert loaded.events[1:] == said
        await say(service, "two")
        other = await service.create_session("app", "u", "other")
        assert other.state == {"user:last": "two", "app:seen": 2}


def test_the_synchronous_runner_with_a_loop_of_its_own_per_call(database: Path) -> None:
    service = DatabaseSessionService(database)
    asyncio.run(service.create_session("app", "u", "s"))
    for words in ("one", "two"):
        events = list(runner(service).run(user_id="u", session_id="s", new_message=text(words)))
        assert len(events) == 3
    loaded = asyncio.run(service.get_session("app", "u", "s"))
    assert loaded is not None
    assert len(loaded.events) == 8
    asyncio.run(service.close())


async def test_a_session_can_be_created_by_the_runner(service: DatabaseSessionService) -> None:
    async for _ in runner(service, auto_create_session=True).run_async(
        user_id="u", session_id="new", new_message=text("one")
    ):
        pass
    loaded = await service.get_session("app", "u", "new")
    assert loaded is not None
    assert loaded.state["word:one"] == 3


async def test_many_users_at_once(service: DatabaseSessionService) -> None:
    for n in range(10):
        await service.create_session("app", "u", str(n))
    await asyncio.gather(*(say(service, "one two", str(n)) for n in range(10)))
    for n in range(10):
        loaded = await service.get_session("app", "u", str(n))
        assert loaded is not None
        assert len(loaded.events) == 4


async def test_a_tool_may_update_keys_in_the_middle_of_a_run(
    service: DatabaseSessionService,
) -> None:
    async def remember(word: str) -> dict[str, Any]:
        """Notes a word, past the tool context."""
        return await service.update_keys("app", "u", "s", {"user:remembered": word})

    agent = noting_agent()
    remember.__name__ = "note"
    agent.tools = [remember]
    await service.create_session("app", "u", "s")
    run = Runner(app_name="app", agent=agent, session_service=service).run_async(
        user_id="u", session_id="s", new_message=text("one")
    )
    assert len([event async for event in run]) == 3
    loaded = await service.get_session("app", "u", "s")
    assert loaded is not None
    assert loaded.state == {"user:remembered": "one"}


async def test_a_run_on_a_closed_service_ends_with_the_reason(
    service: DatabaseSessionService,
) -> None:
    await service.create_session("app", "u", "s")
    await service.close()
    with pytest.raises(EventStoreError, match="closed"):
        await say(service, "one")

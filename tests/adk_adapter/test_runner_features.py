"""What ADK's Runner can do, on this service as on ADK's own, also across restarts.

Most tests are a script of turns. It is played on ADK's InMemorySessionService, on this service, and
on this service opened anew before every turn. Nobody may be able to tell the sessions apart.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fastapi.openapi.models import APIKey
from google.adk.agents import (
    BaseAgent,
    Context,
    LiveRequestQueue,
    LlmAgent,
    LoopAgent,
    ParallelAgent,
    SequentialAgent,
)
from google.adk.agents.callback_context import CallbackContext
from google.adk.agents.invocation_context import InvocationContext
from google.adk.agents.live_request_queue import LiveRequest
from google.adk.agents.run_config import RunConfig, StreamingMode, ToolThreadPoolConfig
from google.adk.apps import App, ResumabilityConfig
from google.adk.apps.app import EventsCompactionConfig
from google.adk.apps.base_events_summarizer import BaseEventsSummarizer
from google.adk.artifacts import InMemoryArtifactService
from google.adk.auth import AuthConfig, AuthCredential, AuthCredentialTypes
from google.adk.events import Event, EventActions
from google.adk.events._internal_metadata import mark_restored
from google.adk.events.event_actions import EventCompaction
from google.adk.events.request_input import RequestInput
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.platform.time import reset_time_provider, set_time_provider
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.runners import Runner
from google.adk.sessions import BaseSessionService, InMemorySessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.adk.tools import AgentTool, FunctionTool, LongRunningFunctionTool, exit_loop
from google.adk.tools.tool_context import ToolContext
from google.adk.workflow import START, BaseNode, JoinNode, Workflow, node
from google.genai import types

from adk_adapter import DatabaseSessionService
from adk_adapter._adk import SessionNotFoundError, StaleSessionError
from tests.adk_adapter.agents import (
    Lines,
    Phone,
    answered,
    called,
    note,
    speaker,
    spoken,
    text,
    transcript,
)

SECONDS = 20
"""After which what waits for others gives up."""

Script = Callable[["Stage"], Awaitable[Any]]

IDS_AND_TIMES = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b1\d{9}\.\d+")
MILLISECONDS = re.compile(r"_1\d{12}\b")


class Observed(DatabaseSessionService):
    """Knows the session it gave out last: the one a runner is working with."""

    given: Session | None = None

    async def get_session(self, *args: Any, **kwargs: Any) -> Any:
        self.given = await super().get_session(*args, **kwargs)
        return self.given

    async def create_session(self, *args: Any, **kwargs: Any) -> Any:
        self.given = await super().create_session(*args, **kwargs)
        return self.given


class Stage:
    """A session service and what a script does with it: one user's turns in one session.

    After every turn the session the runner worked with must be the one that is stored.
    """

    def __init__(self, database: Path | None, *, restarting: bool = False, **settings: Any) -> None:
        self._database = database
        self._restarting = restarting
        self._settings = settings
        self.options: dict[str, Any] = {"artifact_service": InMemoryArtifactService()}
        self.service = self._open()

    def _open(self) -> BaseSessionService:
        if self._database is None:
            return InMemorySessionService()
        return Observed(self._database, **self._settings)

    async def create(self, state: dict[str, Any] | None = None) -> None:
        await self.service.create_session(app_name="app", user_id="u", session_id="s", state=state)

    async def load(self) -> Session:
        session = await self.service.get_session(app_name="app", user_id="u", session_id="s")
        assert session is not None
        return session

    async def run(
        self, root: BaseNode | App, message: str | types.Content | None = None, **options: Any
    ) -> list[Event]:
        runner = await self.start(root)
        if isinstance(message, str):
            message = text(message)
        run = runner.run_async(user_id="u", session_id="s", new_message=message, **options)
        yielded = []
        try:
            async for event in run:
                yielded.append(event)  # noqa: PERF401 - what came before an error counts too
        finally:
            await self.check(yielded)
        return yielded

    async def run_live(
        self,
        root: BaseNode | App,
        *requests: LiveRequest,
        turns: int | None = None,
        at_once: bool = False,
        **options: Any,
    ) -> list[Event]:
        """Sends requests, each when the turn before is complete, and hangs up after the last."""
        runner = await self.start(root)
        queue = LiveRequestQueue()
        pending = list(requests)
        for _ in requests if at_once else requests[:1]:
            queue.send(pending.pop(0))
        left = len(requests) if turns is None else turns
        yielded = []
        async with asyncio.timeout(SECONDS):
            async for event in runner.run_live(
                user_id="u", session_id="s", live_request_queue=queue, **options
            ):
                yielded.append(event)
                left -= bool(event.turn_complete)
                if event.turn_complete and pending:
                    queue.send(pending.pop(0))
                elif left == 0:
                    queue.close()
        await self.check()
        return yielded

    async def rewind(self, root: BaseNode | App, invocation_id: str) -> None:
        runner = await self.start(root)
        try:
            await runner.rewind_async(
                user_id="u", session_id="s", rewind_before_invocation_id=invocation_id
            )
        finally:
            await self.check()

    async def start(self, root: BaseNode | App) -> Runner:
        if self._restarting:
            await self.restart()
        return runner(self.service, root, **self.options)

    async def check(self, yielded: Sequence[Event] = ()) -> None:
        """Compares the session that the runner worked with to the stored one."""
        if isinstance(self.service, Observed) and (given := self.service.given):
            # ADK tells events apart by identity: the session must hold those that were yielded.
            held = {id(event) for event in given.events}
            assert all(event.partial or id(event) in held for event in yielded)
            stored = await self.load()
            # A run may have been given the last events only.
            stored.events = stored.events[len(stored.events) - len(given.events) :]
            assert [e.model_dump() for e in given.events] == [e.model_dump() for e in stored.events]
            kept = {k: v for k, v in given.state.items() if not k.startswith("temp:")}
            assert given.model_copy(update={"state": kept}) == stored

    async def restart(self) -> None:
        """Closes the file and opens it anew; what is only in memory goes on."""
        if isinstance(self.service, Observed):
            await self.service.close()
            self.service = self._open()

    async def close(self) -> None:
        if isinstance(self.service, Observed):
            await self.service.close()


def runner(service: BaseSessionService, root: BaseNode | App, **options: Any) -> Runner:
    app = root if isinstance(root, App) else App(name="app", root_agent=root)
    return Runner(app=app, session_service=service, **options)


async def play(script: Script, database: Path) -> tuple[Session, Any]:
    """Plays a script everywhere; returns the session and what the script told, which are alike."""
    expected = None
    for stage in (Stage(None), *stages(database)):
        told = await script(stage)
        await stage.restart()
        session = await stage.load()
        await stage.close()
        expected = expected or shape(session, told)
        assert shape(session, told) == expected
    return session, told


def stages(database: Path) -> tuple[Stage, Stage]:
    return (
        Stage(database.with_name("played.sqlite3")),
        Stage(database.with_name("restarted.sqlite3"), restarting=True),
    )


def shape(session: Session, told: Any = None) -> list[str]:
    """A session and what was told of it as text, with ids and times numbered as they appear."""
    events = [event.model_dump(mode="json", exclude_none=True) for event in session.events]
    whole = [*events, session.state, session.last_update_time, told]
    names: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        return names.setdefault(match[0], f"<{len(names)}>")

    lines = [MILLISECONDS.sub("_<ms>", json.dumps(each, sort_keys=True)) for each in whole]
    return [IDS_AND_TIMES.sub(name, line) for line in lines]


async def say(service: BaseSessionService, root: BaseNode | App, words: str) -> list[Event]:
    run = runner(service, root).run_async(user_id="u", session_id="s", new_message=text(words))
    return [event async for event in run]


def texts(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Who said what."""
    return [
        (event.author, part.text)
        for event in events
        for part in (event.content.parts if event.content else None) or []
        if part.text
    ]


# Runs, their state and their history


async def test_a_run_with_tools_and_state(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create({"tenant": "t1", "user:language": "en", "app:motto": "be brief"})
        root = speaker(
            called("note", word="x"),
            "done",
            "again",
            tools=[note],
            instruction="{tenant} {user:language} {app:motto}",
            output_key="said",
        )
        config = RunConfig(custom_metadata={"trace": 7})
        await stage.run(root, "one", state_delta={"asked": [1, None], "temp:b": 2})
        await stage.run(root, "two", run_config=config)
        return root.model.heard

    session, _ = await play(script, database)
    assert session.state == {
        "tenant": "t1",
        "user:language": "en",
        "app:motto": "be brief",
        "asked": [1, None],
        "word:x": 1,
        "user:last": "x",
        "app:seen": 1,
        "said": "again",
    }
    assert [event.custom_metadata for event in session.events[-2:]] == [{"trace": 7}] * 2


async def test_temporary_keys_last_for_one_run(database: Path) -> None:
    def before(callback_context: CallbackContext) -> None:
        state = callback_context.state
        state["seen"] = [*state.get("seen", []), state.get("temp:given"), state.get("temp:set")]
        state["temp:set"] = "before"

    def after(callback_context: CallbackContext) -> types.Content:
        state = callback_context.state
        state["seen"] = [*state["seen"], state["temp:set"]]
        return text("the last word")

    async def script(stage: Stage) -> None:
        await stage.create({"temp:given": "at creation"})
        root = speaker("hi", "hi", before_agent_callback=before, after_agent_callback=after)
        await stage.run(root, "one", state_delta={"temp:given": "with the message"})
        await stage.run(root, "two")

    session, _ = await play(script, database)
    assert session.state == {"seen": ["with the message", None, "before", None, None, "before"]}


async def test_partial_events_are_yielded_and_not_stored(database: Path) -> None:
    class Streaming(Lines):
        async def generate_content_async(
            self, llm_request: LlmRequest, stream: bool = False
        ) -> AsyncGenerator[LlmResponse, None]:
            for word in ("one ", "two "):
                yield LlmResponse(content=spoken(word), partial=True)
            yield LlmResponse(content=spoken("one two "), partial=False)

    async def script(stage: Stage) -> list[Any]:
        await stage.create()
        root = LlmAgent(name="root", model=Streaming(lines=[]))
        config = RunConfig(streaming_mode=StreamingMode.SSE)
        return [event.partial for event in await stage.run(root, "count", run_config=config)]

    session, partials = await play(script, database)
    assert partials == [True, True, False]
    assert texts(session.events) == [("user", "count"), ("root", "one two ")]


async def test_a_run_that_fails_or_is_left_keeps_what_was_said(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        root = speaker(
            called("note", word="x"),
            OSError("no answer"),
            called("note", word="y"),
            "z",
            tools=[note],
        )
        with pytest.raises(OSError, match="no answer"):
            await stage.run(root, "one")
        left = (await stage.start(root)).run_async(
            user_id="u", session_id="s", new_message=text("two")
        )
        await anext(left)
        await left.aclose()
        await stage.run(root, "three")
        return root.model.heard

    session, _ = await play(script, database)
    assert session.state["word:x"] == 1
    assert texts(session.events)[-1] == ("root", "z")


async def test_an_aborted_run_is_sealed(database: Path) -> None:
    async def script(stage: Stage) -> None:
        await stage.create()
        signal = asyncio.Event()

        async def stop() -> str:
            """Stops."""
            signal.set()
            await asyncio.sleep(0)
            return "too late"

        root = speaker(called("stop"), "hello again", tools=[stop])
        await stage.run(root, "one", abort_signal=signal)
        await stage.run(root, "two")

    session, _ = await play(script, database)
    sealed = session.events[2]
    assert sealed.error_code == "INVOCATION_ABORTED"
    assert sealed.get_function_responses()
    assert texts(session.events) == [("user", "one"), ("user", "two"), ("root", "hello again")]


async def test_a_cancelled_run_can_be_followed_by_another(database: Path) -> None:
    waiting = asyncio.Event()

    async def wait() -> None:
        """Waits for ever."""
        waiting.set()
        await asyncio.Event().wait()

    stage = Stage(database)
    await stage.create()
    root = speaker(called("wait"), "hello again", tools=[wait])
    running = asyncio.create_task(stage.run(root, "one"))
    await asyncio.wait_for(waiting.wait(), SECONDS)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await stage.run(root, "two")
    assert texts((await stage.load()).events)[-1] == ("root", "hello again")
    await stage.close()


async def test_sessions_are_created_by_the_runner(database: Path) -> None:
    async def script(stage: Stage) -> None:
        stage.options["auto_create_session"] = True
        root = speaker("one", "two", output_key="said")
        await stage.run(root, "a")
        await stage.run(root, "b")

    session, _ = await play(script, database)
    assert session.state == {"said": "two"}


async def test_no_session_is_created_unless_asked_for(service: DatabaseSessionService) -> None:
    with pytest.raises(SessionNotFoundError):
        await say(service, speaker(), "hello")
    assert await service.get_session("app", "u", "s") is None


async def test_run_debug_goes_on_with_its_session(database: Path) -> None:
    for answers in (["one", "two"], ["three"]):
        async with DatabaseSessionService(database) as service:
            said = await runner(service, speaker(*answers)).run_debug(
                ["?"] * len(answers), user_id="u", session_id="s", quiet=True
            )
            assert [words for _, words in texts(said)] == answers
            session = await service.get_session("app", "u", "s")
    assert session is not None
    assert len(session.events) == 6


@pytest.mark.parametrize(
    ("config", "heard"),
    [
        (None, ["user 1", "model a", "user 2", "model b", "user 3"]),
        (GetSessionConfig(num_recent_events=2), ["user 2", "model b", "user 3"]),
        (GetSessionConfig(num_recent_events=0), ["user 3"]),
        (GetSessionConfig(after_timestamp=4e9), ["user 3"]),
    ],
    ids=["all", "two", "none", "newer"],
)
async def test_what_a_run_loads_of_the_history(
    database: Path, config: GetSessionConfig | None, heard: list[str]
) -> None:
    """A run that has not loaded everything stores its events after everything."""

    async def script(stage: Stage) -> Any:
        await stage.create({"k": 1})
        root = speaker("a", "b", "c", "d")
        await stage.run(root, "1")
        await stage.run(root, "2")
        await stage.run(root, "3", run_config=RunConfig(get_session_config=config))
        await stage.run(root, "4")
        return root.model.heard

    session, (_, _, third, fourth) = await play(script, database)
    assert third == heard
    assert len(fourth) == 7
    assert [words for _, words in texts(session.events)] == list("1a2b3c4d")


# The order of events


@pytest.mark.parametrize("step", [0, -1], ids=["stands still", "runs backwards"])
async def test_events_come_back_in_append_order(database: Path, step: int) -> None:
    """Whatever the clock says, and whether all of them are loaded or the last few."""

    async def script(stage: Stage) -> Any:
        await stage.create()
        words = [*(called("note", word=word) for word in "abc"), "done"]
        root = speaker(*words, *words, "that is all", tools=[note])
        few = RunConfig(get_session_config=GetSessionConfig(num_recent_events=3))
        await stage.run(root, "one")
        await stage.run(root, "two")
        await stage.run(root, "three", run_config=few)
        return root.model.heard

    clock = itertools.count(1_700_000_000.0, step)
    set_time_provider(lambda: next(clock))
    try:
        session, _ = await play(script, database)
    finally:
        reset_time_provider()
    assert list(session.state) == ["word:a", "word:b", "word:c", "user:last", "app:seen"]
    assert len(session.events) == 18


async def test_an_auth_request_stays_before_the_response_it_was_made_after(database: Path) -> None:
    config = AuthConfig(
        auth_scheme=APIKey.model_validate({"in": "header", "name": "X-Key"}),
        raw_auth_credential=AuthCredential(auth_type=AuthCredentialTypes.API_KEY, api_key="k"),
        credential_key="key",
    )

    def fetch(tool_context: ToolContext) -> Any:
        """Fetches what needs a key."""
        if credential := tool_context.get_auth_response(config):
            return {"fetched with": credential.api_key}
        tool_context.request_credential(config)
        return {"status": "needs a key"}

    async def script(stage: Stage) -> Any:
        await stage.create()
        root = speaker(called("fetch"), "fetched", tools=[fetch])
        events = await stage.run(root, "fetch it")
        (request,) = (c for e in events for c in e.get_function_calls() if "credential" in c.name)
        filled = AuthConfig.model_validate(request.args["authConfig"])
        filled.exchanged_auth_credential = AuthCredential(
            auth_type=AuthCredentialTypes.API_KEY, api_key="secret"
        )
        answer = filled.model_dump(mode="json", by_alias=True, exclude_none=True)
        await stage.run(root, answered(request.name, request.id, **answer))
        return root.model.heard

    session, _ = await play(script, database)
    times = [event.timestamp for event in session.events]
    assert times != sorted(times)
    responses = [r.response for e in session.events for r in e.get_function_responses()]
    assert {"status": "needs a key"} in responses
    assert {"fetched with": "secret"} in responses


async def test_a_tool_runs_once_it_is_confirmed(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        tool = FunctionTool(note, require_confirmation=True)
        root = speaker(called("note", word="x"), "noted", tools=[tool])
        events = await stage.run(root, "note x")
        (request,) = (c for e in events for c in e.get_function_calls() if "confirm" in c.name)
        await stage.run(root, answered(request.name, request.id, confirmed=True))
        return root.model.heard

    session, _ = await play(script, database)
    assert session.state["word:x"] == 1
    assert texts(session.events)[-1] == ("root", "noted")


# Agents of agents


async def test_the_agent_transferred_to_goes_on(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        helper = speaker(
            "hello", "still me", called("transfer_to_agent", agent_name="root"), name="helper"
        )
        root = speaker(
            called("transfer_to_agent", agent_name="helper"), "back again", sub_agents=[helper]
        )
        for words in ("help", "more", "enough"):
            await stage.run(root, words)
        return root.model.heard + helper.model.heard

    session, _ = await play(script, database)
    assert texts(session.events) == [
        ("user", "help"),
        ("helper", "hello"),
        ("user", "more"),
        ("helper", "still me"),
        ("user", "enough"),
        ("root", "back again"),
    ]


@pytest.mark.filterwarnings("ignore:The `plugins` argument is deprecated:DeprecationWarning")
async def test_an_agent_called_as_a_tool_hands_its_state_over(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create({"tenant": "t1", "user:u": 1})
        expert = speaker(
            called("note", word="x"), "42", name="expert", tools=[note], instruction="{tenant}"
        )
        root = speaker(called("expert", request="think"), "it is 42", tools=[AgentTool(expert)])
        await stage.run(root, "ask")
        sessions = (await stage.service.list_sessions(app_name="app")).sessions
        return [session.id for session in sessions], root.model.heard, expert.model.heard

    session, (sessions, *_) = await play(script, database)
    assert sessions == ["s"]
    assert session.state == {
        "tenant": "t1",
        "user:u": 1,
        "word:x": 1,
        "user:last": "x",
        "app:seen": 1,
    }


@pytest.mark.parametrize("mode", ["single_turn", "task"])
async def test_delegation_to_a_sub_agent(database: Path, mode: Any) -> None:
    """Branches and isolation scopes decide who hears which events, also after a restart."""

    async def script(stage: Stage) -> Any:
        await stage.create()
        lines = {
            "single_turn": ["done it"],
            "task": ["which one?", called("finish_task", result="the second")],
        }
        clerk = speaker(*lines[mode], name="clerk", mode=mode)
        root = speaker(called("clerk", request="do it"), "thanks", "bye", sub_agents=[clerk])
        await stage.run(root, "one")
        if mode == "task":
            await stage.run(root, "two")
        await stage.run(root, "three")
        return root.model.heard, clerk.model.heard

    session, _ = await play(script, database)
    assert any(event.isolation_scope for event in session.events) == (mode == "task")
    assert texts(session.events)[-2:] == [("user", "three"), ("root", "bye")]


@pytest.mark.filterwarnings("ignore:(Sequential|Loop)Agent is deprecated:DeprecationWarning")
async def test_agents_in_sequence_and_in_a_loop(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        writer = speaker("draft", name="writer", output_key="draft")
        critic = speaker(
            "worse", called("exit_loop"), name="critic", instruction="{draft}", tools=[exit_loop]
        )
        loop = LoopAgent(name="loop", sub_agents=[critic], max_iterations=5)
        root = SequentialAgent(name="root", sub_agents=[writer, loop])
        await stage.run(root, "write")
        return critic.model.heard

    session, _ = await play(script, database)
    assert session.events[-1].actions.escalate
    assert [words for _, words in texts(session.events)] == ["write", "draft", "worse"]


@pytest.mark.filterwarnings("ignore:ParallelAgent is deprecated:DeprecationWarning")
async def test_agents_in_parallel(database: Path) -> None:
    names = [f"a{n}" for n in range(8)]
    for stage in stages(database):
        await stage.create()
        agents = [
            speaker(called("note", word=name), f"I am {name}", "still me", name=name, tools=[note])
            for name in names
        ]
        root = ParallelAgent(name="root", sub_agents=agents)
        await stage.run(root, "all of you")
        await stage.run(root, "once more")
        session = await stage.load()
        for name in names:
            said = texts([event for event in session.events if event.author == name])
            assert said == [(name, f"I am {name}"), (name, "still me")]
            assert session.state[f"word:{name}"] == 2
        assert {event.branch for event in session.events[1:4]} <= {f"root.{n}" for n in names}
        assert len(session.events) == 2 + 8 * 4
        await stage.close()


# Pausing and going on


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("answer", [{"status": "pending"}, None], ids=["pending", "silent"])
@pytest.mark.filterwarnings(r"ignore:\[EXPERIMENTAL\] ResumabilityConfig:UserWarning")
async def test_a_long_running_tool_is_answered_later(
    database: Path, answer: dict[str, str] | None, resumable: bool
) -> None:
    def order(item: str) -> dict[str, str] | None:
        """Orders an item, which takes days."""
        return answer

    async def script(stage: Stage) -> Any:
        await stage.create()
        buyer = speaker(
            called("order", item="tea"),
            *(["ordered"] if answer else []),
            "arrived",
            name="buyer",
            tools=[LongRunningFunctionTool(order)],
        )
        root = speaker(called("transfer_to_agent", agent_name="buyer"), sub_agents=[buyer])
        app = App(
            name="app",
            root_agent=root,
            resumability_config=ResumabilityConfig(is_resumable=resumable),
        )
        events = await stage.run(app, "tea please")
        (call_id,) = (i for event in events for i in event.long_running_tool_ids or ())
        await stage.run(
            app, answered("order", call_id, status="here"), invocation_id=events[0].invocation_id
        )
        return buyer.model.heard

    session, heard = await play(script, database)
    assert texts(session.events)[-1] == ("buyer", "arrived")
    assert any("'status': 'here'" in line for line in heard[-1])


@pytest.mark.filterwarnings(r"ignore:\[EXPERIMENTAL\] ResumabilityConfig:UserWarning")
@pytest.mark.filterwarnings("ignore:SequentialAgent is deprecated:DeprecationWarning")
async def test_an_invocation_is_resumed_where_it_failed(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        first = speaker("first done", name="first", output_key="first")
        second = speaker(OSError("power cut"), "second done", name="second", instruction="{first}")
        third = speaker("third done", name="third")
        app = App(
            name="app",
            root_agent=SequentialAgent(name="root", sub_agents=[first, second, third]),
            resumability_config=ResumabilityConfig(is_resumable=True),
        )
        with pytest.raises(OSError, match="power cut"):
            await stage.run(app, "go")
        invocation_id = (await stage.load()).events[0].invocation_id
        await stage.run(app, invocation_id=invocation_id, state_delta={"resumed": True})
        return first.model.heard, second.model.heard, third.model.heard

    session, _ = await play(script, database)
    assert [words for _, words in texts(session.events)] == [
        "go",
        "first done",
        "second done",
        "third done",
    ]
    assert {event.invocation_id for event in session.events} == {session.events[0].invocation_id}
    assert any(event.actions.agent_state for event in session.events)
    assert session.events[-1].actions.end_of_agent
    assert session.state == {"first": "first done", "resumed": True}


# Workflows


def shout(node_input: str) -> str:
    return node_input.upper()


async def count(node_input: str, ctx: Context) -> int:
    ctx.state["counted"] = [*ctx.state.get("counted", []), node_input]
    ctx.state["user:counted"] = True
    return len(node_input)


def together(node_input: dict[str, Any]) -> Event:
    return Event(output=sorted(node_input), route="ask" if node_input["count"] > 2 else "no")


def ask(node_input: Any) -> RequestInput:
    return RequestInput(interrupt_id="sure", message=f"{node_input}: sure?")


def sign(ctx: Context) -> None:
    ctx.state["signed"] = True


async def finish(node_input: Any, ctx: Context) -> AsyncGenerator[Any, None]:
    yield Event(content=spoken("almost"))
    nested = await ctx.run_node(shout, "done")
    await ctx.run_node(sign)
    # This context is older than the events in between, and yet has their state.
    yield {"answer": node_input, "nested": nested, "signed": ctx.state.get("signed")}


async def test_a_workflow_waits_for_its_user(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create({"counted": []})
        writer = speaker("a poem", name="writer", mode="single_turn")
        join = JoinNode(name="join")
        root = Workflow(
            name="flow",
            edges=[
                (START, writer, (shout, count), join, together),
                (together, {"ask": ask, "no": shout}),
                (ask, node(finish, rerun_on_resume=True)),
            ],
        )
        events = await stage.run(root, "write")
        (question,) = (i for event in events for i in event.long_running_tool_ids or ())
        assert question == "sure"
        await stage.run(root, answered("adk_request_input", question, result="yes"))
        return writer.model.heard

    session, _ = await play(script, database)
    assert session.state == {"counted": ["a poem"], "user:counted": True, "signed": True}
    assert session.events[-1].output == {"answer": "yes", "nested": "DONE", "signed": True}
    assert any(event.actions.route == "ask" for event in session.events)


@pytest.mark.filterwarnings(r"ignore:\[EXPERIMENTAL\] ResumabilityConfig:UserWarning")
async def test_a_workflow_is_resumed_where_it_failed(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        runs: list[str] = []

        def first(node_input: str) -> str:
            runs.append("first")
            return node_input + "!"

        def second(node_input: str) -> str:
            runs.append("second")
            if len(runs) == 2:
                raise OSError("power cut")
            return node_input + "?"

        await stage.create()
        app = App(
            name="app",
            root_agent=Workflow(name="flow", edges=[(START, first, second)]),
            resumability_config=ResumabilityConfig(is_resumable=True),
        )
        with pytest.raises(OSError, match="power cut"):
            await stage.run(app, "go")
        invocation_id = (await stage.load()).events[0].invocation_id
        await stage.run(app, invocation_id=invocation_id)
        return runs

    session, runs = await play(script, database)
    assert runs == ["first", "second", "second"]
    assert [event.output for event in session.events if event.output][-1] == "go!?"
    assert session.events[-1].actions.end_of_agent


# Plugins


class Meddling(BasePlugin):
    """Does what plugins may do to a run."""

    async def on_user_message_callback(
        self, *, invocation_context: InvocationContext, user_message: types.Content
    ) -> types.Content:
        return text(f"{transcript(user_message)}, please")

    async def before_run_callback(
        self, *, invocation_context: InvocationContext
    ) -> types.Content | None:
        halt = "halt" in transcript(invocation_context.user_content)
        return types.Content(role="model", parts=[types.Part(text="halted")]) if halt else None

    async def on_event_callback(
        self, *, invocation_context: InvocationContext, event: Event
    ) -> Event:
        actions = EventActions(state_delta={**event.actions.state_delta, "temp:x": 1, "meddled": 1})
        return Event(author=event.author, custom_metadata={"by": self.name}, actions=actions)

    async def after_run_callback(self, *, invocation_context: InvocationContext) -> None:
        await invocation_context.session_service.append_event(
            invocation_context.session,
            Event(author=self.name, invocation_id=invocation_context.invocation_id),
        )


async def test_plugins_change_what_is_stored(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        root = speaker(called("note", word="x"), "noted", tools=[note])
        app = App(name="app", root_agent=root, plugins=[Meddling("meddler")])
        await stage.run(app, "hello")
        await stage.run(app, "halt")
        return root.model.heard

    session, _ = await play(script, database)
    assert texts(session.events) == [
        ("user", "user hello, please"),
        ("root", "noted"),
        ("user", "user halt, please"),
        ("model", "halted"),
    ]
    assert session.state == {"word:x": 1, "user:last": "x", "app:seen": 1, "meddled": 1}
    assert [event.author for event in session.events].count("meddler") == 2
    assert session.events[1].custom_metadata == {"by": "meddler"}


# Rewinding


def setting(*deltas: dict[str, Any]) -> LlmAgent:
    """An agent that, turn by turn, sets these keys."""
    pending = list(deltas)

    def change(callback_context: CallbackContext) -> None:
        callback_context.state.update(pending.pop(0))

    return speaker(*["done"] * len(deltas), before_agent_callback=change)


async def test_a_rewind_is_adks_where_events_set_the_state(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        root = setting({"k": 1, "user:u": 1}, {"k": 2, "new": 1, "user:u": 2}, {"k": 3, "new": 3})
        first = await stage.run(root, "one", state_delta={"tenant": "t1"})
        second = await stage.run(root, "two", state_delta={"tenant": "t2"})
        await stage.rewind(root, second[0].invocation_id)
        await stage.run(root, "three")
        told = [(await stage.load()).state]
        await stage.rewind(root, first[0].invocation_id)
        return told, root.model.heard

    session, (told, heard) = await play(script, database)
    assert told == [{"tenant": "t1", "k": 3, "new": 3, "user:u": 2}]
    assert session.state == {"tenant": None, "k": None, "new": None, "user:u": 2}
    assert heard[-1] == ["user one", "model done", "user three"]


INITIAL = {"tenant": "t1", "kept": {"list": [1.5, None]}, "none": None, "user:u": 1, "app:a": 1}


@pytest.mark.parametrize("restarting", [False, True])
async def test_a_rewind_gives_the_state_of_the_creation_back(
    database: Path, restarting: bool
) -> None:
    stage = Stage(database, restarting=restarting)
    await stage.create(INITIAL)
    changes = {"tenant": "t2", "none": 0, "born": 1, "user:u": 2, "user:born": 2, "app:a": 2}
    root = setting(changes)
    events = await stage.run(root, "one")
    await stage.rewind(root, events[0].invocation_id)
    session = await stage.load()
    # Keys that were born later are None, and those of the user and the app stay: as ADK has it.
    assert session.state == {
        "tenant": "t1",
        "kept": {"list": [1.5, None]},
        "none": None,
        "born": None,
        "user:u": 2,
        "user:born": 2,
        "app:a": 2,
    }
    delta = session.events[-1].actions.state_delta
    assert delta["tenant"] == "t1"
    assert delta.get("kept", INITIAL["kept"]) == INITIAL["kept"]
    assert delta["none"] is None
    assert delta["born"] is None
    assert not [key for key in delta if key.startswith(("user:", "app:"))]
    await stage.close()


@pytest.mark.parametrize("restarting", [False, True])
async def test_a_rewind_to_a_later_invocation(database: Path, restarting: bool) -> None:
    stage = Stage(database, restarting=restarting)
    await stage.create({"a": 0, "b": 0, "c": 0})
    root = setting({"a": 1, "x": 1}, {"a": 2, "b": 2, "x": 2, "y": 2}, {"b": 3}, {"c": 4})
    first = await stage.run(root, "one")
    second = await stage.run(root, "two")
    await stage.rewind(root, second[0].invocation_id)
    assert (await stage.load()).state == {"a": 1, "b": 0, "c": 0, "x": 1, "y": None}
    third = await stage.run(root, "three")
    fourth = await stage.run(root, "four")
    await stage.rewind(root, fourth[0].invocation_id)
    assert (await stage.load()).state == {"a": 1, "b": 3, "c": 0, "x": 1, "y": None}
    await stage.rewind(root, third[0].invocation_id)
    assert (await stage.load()).state == {"a": 1, "b": 0, "c": 0, "x": 1, "y": None}
    await stage.rewind(root, first[0].invocation_id)
    assert (await stage.load()).state == {"a": 0, "b": 0, "c": 0, "x": None, "y": None}
    await stage.close()


async def test_a_rewind_tells_apart_what_python_calls_equal(
    service: DatabaseSessionService,
) -> None:
    created = {"flag": False, "number": 1, "list": [0, 1.5]}
    await service.create_session("app", "u", "s", created)
    root = setting({"flag": 0, "number": True, "list": [False, 1.5]})
    events = await say(service, root, "one")
    await runner(service, root).rewind_async(
        user_id="u", session_id="s", rewind_before_invocation_id=events[0].invocation_id
    )
    session = await service.get_session("app", "u", "s")
    assert session is not None
    assert {k: repr(v) for k, v in session.state.items()} == {
        k: repr(v) for k, v in created.items()
    }


async def test_a_rewind_knows_keys_that_were_updated_without_an_event(
    service: DatabaseSessionService,
) -> None:
    await service.create_session("app", "u", "s", {"a": 0})
    root = setting({"a": 1, "b": 1})
    await service.update_keys("app", "u", "s", {"a": "updated", "b": "updated"})
    events = await say(service, root, "one")
    await service.update_keys("app", "u", "s", {"a": "later", "c": "later"})
    await runner(service, root).rewind_async(
        user_id="u", session_id="s", rewind_before_invocation_id=events[0].invocation_id
    )
    session = await service.get_session("app", "u", "s")
    assert session is not None
    assert session.state == {"a": "updated", "b": "updated", "c": None}


async def test_rewinds_of_random_histories(database: Path) -> None:
    """The state is the one before the invocation, but for keys born since, which are None."""
    random = Random(1)
    keys = ["a", "b", "c", "d", "user:a", "app:b"]

    def delta() -> dict[str, Any]:
        return {
            key: random.choice([None, 1, 2]) for key in random.sample(keys, random.randint(0, 4))
        }

    stage = Stage(database)
    service = stage.service
    for number in range(30):
        await service.delete_session(app_name="app", user_id="u", session_id="s")
        await stage.create(delta())
        before: dict[str, dict[str, Any]] = {}
        for turn in range(random.randint(1, 5)):
            session = await stage.load()
            before[f"{number}.{turn}"] = dict(session.state)
            for _ in range(random.randint(1, 3)):
                actions = EventActions(state_delta=delta())
                event = Event(author="user", invocation_id=f"{number}.{turn}", actions=actions)
                await service.append_event(session, event)
        for _ in range(2):
            invocation_id = random.choice(list(before))
            now = (await stage.load()).state
            await stage.rewind(speaker(), invocation_id)
            assert (await stage.load()).state == {
                key: now[key]
                if key.startswith(("user:", "app:"))
                else before[invocation_id].get(key)
                for key in now
            }
    await stage.close()


async def test_a_rewind_of_an_unknown_invocation_changes_nothing(
    service: DatabaseSessionService,
) -> None:
    created = await service.create_session("app", "u", "s", {"k": 1})
    with pytest.raises(ValueError, match="not found"):
        await runner(service, speaker()).rewind_async(
            user_id="u", session_id="s", rewind_before_invocation_id="unheard of"
        )
    assert await service.get_session("app", "u", "s") == created


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("through", ["the same session", "an old one"])
async def test_the_same_rewind_again_changes_nothing(
    service: DatabaseSessionService, through: str, corrected: bool
) -> None:
    """As ADK made it and as it was corrected, where its outcome is known and where it is not."""
    session = await service.create_session("app", "u", "s", {"k": 1})
    change = Event(author="user", invocation_id="1", actions=EventActions(state_delta={"k": 2}))
    await service.append_event(session, change)
    old = await service.get_session("app", "u", "s")
    assert old is not None
    actions = EventActions(rewind_before_invocation_id="1", state_delta={"k": None})
    rewind = Event(author="user", invocation_id="2", actions=actions)
    again = rewind.model_copy(deep=True)
    await service.append_event(session, rewind)
    assert session.state == {"k": 1}
    await service.append_event(
        session if through == "the same session" else old, rewind if corrected else again
    )
    stored = await service.get_session("app", "u", "s")
    assert stored is not None
    assert stored.state == {"k": 1}
    assert len(stored.events) == 2
    assert session == stored
    if through == "an old one":
        assert old == stored


async def test_a_rewind_of_a_deleted_session(service: DatabaseSessionService) -> None:
    session = await service.create_session("app", "u", "s", {"k": 1})
    await service.append_event(session, Event(author="user", invocation_id="1"))
    await service.delete_session("app", "u", "s")
    actions = EventActions(rewind_before_invocation_id="1", state_delta={"k": None})
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, Event(author="user", actions=actions))
    assert session.state == {"k": 1}


@pytest.mark.parametrize("created_with", ["its last state", "nothing"])
async def test_a_saved_session_with_a_rewind_is_restored(
    service: DatabaseSessionService, created_with: str
) -> None:
    """As ADK's command line and server do it: created, then event by event, marked as restored."""
    await service.create_session("app", "u", "s", {"tenant": "t1", "k": 1})
    root = setting({"tenant": "t2", "k": 2, "new": 1}, {"k": 3, "new": 2})
    events = await say(service, root, "one")
    await runner(service, root).rewind_async(
        user_id="u", session_id="s", rewind_before_invocation_id=events[0].invocation_id
    )
    await say(service, root, "two")
    saved = await service.get_session("app", "u", "s")
    assert saved is not None
    assert saved.state == {"tenant": "t1", "k": 3, "new": 2}

    async def restore(target: BaseSessionService) -> Session | None:
        session = await target.create_session(
            app_name="app",
            user_id="u",
            session_id="restored",
            state=dict(saved.state) if created_with == "its last state" else None,
        )
        for event in saved.events:
            await target.append_event(session, mark_restored(event.model_copy(deep=True)))
        return await target.get_session(app_name="app", user_id="u", session_id="restored")

    ours = await restore(service)
    theirs = await restore(InMemorySessionService())
    assert ours is not None
    assert theirs is not None
    assert ours.state == theirs.state == saved.state
    assert ours.events == theirs.events


async def test_a_rewind_restores_artifacts(database: Path) -> None:
    async def script(stage: Stage) -> Any:
        async def save(callback_context: CallbackContext) -> None:
            for name in ("plan", "user:photo"):
                await callback_context.save_artifact(name, types.Part(text=words))

        await stage.create()
        root = speaker("saved", "saved", before_agent_callback=save)
        words = "first"
        await stage.run(root, words)
        words = "second"
        events = await stage.run(root, words)
        await stage.rewind(root, events[0].invocation_id)
        plan = await stage.options["artifact_service"].load_artifact(
            app_name="app", user_id="u", session_id="s", filename="plan"
        )
        return plan.text

    session, plan = await play(script, database)
    assert plan == "first"
    assert session.events[-1].actions.artifact_delta == {"plan": 2}


# Compaction


class Summarizer(BaseEventsSummarizer):
    """Summarizes events in one line, after `meanwhile` is done."""

    def __init__(self, meanwhile: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.meanwhile = meanwhile

    async def maybe_summarize_events(self, *, events: list[Event]) -> Event:
        if self.meanwhile:
            await self.meanwhile()
        words = "+".join(words for _, words in texts(events))
        compaction = EventCompaction(
            start_timestamp=events[0].timestamp,
            end_timestamp=events[-1].timestamp,
            compacted_content=types.Content(role="model", parts=[types.Part(text=words[:20])]),
        )
        return Event(
            author="user",
            invocation_id=Event.new_id(),
            actions=EventActions(compaction=compaction),
        )


compacting = pytest.mark.filterwarnings(
    r"ignore:\[EXPERIMENTAL\] (EventsCompactionConfig|BaseEventsSummarizer):UserWarning"
)


@compacting
@pytest.mark.parametrize(
    "trigger",
    [
        {"compaction_interval": 2, "overlap_size": 1},
        {"token_threshold": 1, "event_retention_size": 1},
    ],
    ids=["window", "tokens"],
)
async def test_summaries_stand_for_the_events_they_cover(
    database: Path, trigger: dict[str, int]
) -> None:
    async def script(stage: Stage) -> Any:
        await stage.create()
        root = speaker(*(f"{n}: {'word ' * 50}" for n in range(6)))
        config = EventsCompactionConfig(summarizer=Summarizer(), **trigger)
        app = App(name="app", root_agent=root, events_compaction_config=config)
        for n in range(6):
            await stage.run(app, str(n))
        return root.model.heard

    session, heard = await play(script, database)
    times = {event.timestamp for event in session.events}
    compactions = [e.actions.compaction for e in session.events if e.actions.compaction]
    assert len(compactions) > 1
    assert {t for c in compactions for t in (c.start_timestamp, c.end_timestamp)} <= times
    assert len(heard[-1]) < 11


@compacting
@pytest.mark.parametrize("on_stale", ["raise", "merge"])
async def test_a_late_summary_is_discarded(database: Path, on_stale: str) -> None:
    """The session moved on while it was made; a later run makes another one."""
    stage = Stage(database, on_stale=on_stale)
    await stage.create()
    root = speaker("a " * 90, "b " * 90, "meanwhile " * 20, "c " * 90)

    async def another_turn() -> None:
        summarizer.meanwhile = None
        await say(stage.service, root, "3")

    summarizer = Summarizer(another_turn)
    config = EventsCompactionConfig(summarizer=summarizer, compaction_interval=2, overlap_size=0)
    app = App(name="app", root_agent=root, events_compaction_config=config)
    await stage.run(app, "1")
    answer = await say(stage.service, app, "2")
    assert texts(answer) == [("root", "b " * 90)]
    session = await stage.load()
    assert [words[:2] for _, words in texts(session.events)] == ["1", "a ", "2", "b ", "3", "me"]
    assert not [event for event in session.events if event.actions.compaction]
    await stage.run(app, "4")
    session = await stage.load()
    assert len(session.events) == 9
    assert session.events[-1].actions.compaction
    await stage.close()


# Live runs


def answer_by_phone(sent: types.Content | types.Blob) -> list[LlmResponse]:
    """Speaks, transcribes, and calls a tool with each word that follows "note"."""
    if isinstance(sent, types.Blob):
        sound = types.Part(inline_data=types.Blob(data=b"\x00\xff", mime_type="audio/pcm"))
        return [
            LlmResponse(input_transcription=types.Transcription(text="he"), partial=True),
            LlmResponse(input_transcription=types.Transcription(text="hello", finished=True)),
            LlmResponse(content=types.Content(role="model", parts=[sound])),
            LlmResponse(output_transcription=types.Transcription(text="hi", finished=True)),
            LlmResponse(turn_complete=True),
        ]
    words = transcript(sent).split()
    if words[1] == "note" and "->" not in words:
        return [LlmResponse(content=spoken([called("note", word=word) for word in words[2:]]))]
    return [LlmResponse(content=spoken("I see")), LlmResponse(turn_complete=True)]


async def test_a_live_run(database: Path) -> None:
    async def script(stage: Stage) -> list[Any]:
        await stage.create({"k": 1})
        root = LlmAgent(name="root", model=Phone(answer=answer_by_phone), tools=[note])
        sound = types.Blob(data=b"\x01", mime_type="audio/pcm")
        events = await stage.run_live(
            root,
            LiveRequest(content=text("note x y"), state_delta={"k": 2, "temp:t": 1}),
            LiveRequest(blob=sound, state_delta={"user:mood": "good"}),
            LiveRequest(content=text("thanks")),
        )
        return [event.model_dump(mode="json", exclude={"timestamp", "id"}) for event in events]

    session, yielded = await play(script, database)
    assert session.state == {
        "k": 2,
        "word:x": 1,
        "word:y": 1,
        "user:last": "y",
        "app:seen": 2,
        "user:mood": "good",
    }
    assert texts(session.events) == [
        ("user", "note x y"),
        ("root", "I see"),
        ("user", "thanks"),
        ("root", "I see"),
    ]
    # Neither sounds nor unfinished transcriptions are kept.
    assert len([event for event in session.events if event.input_transcription]) == 1
    assert "audio/pcm" in str(yielded)
    assert "audio/pcm" not in session.model_dump_json()


async def test_a_live_run_appends_from_both_its_directions(database: Path) -> None:
    """What the user sends while the model still answers is no conflict."""
    stage = Stage(database)
    await stage.create()
    root = LlmAgent(name="root", model=Phone(answer=answer_by_phone))
    requests = [LiveRequest(content=text(f"{n}"), state_delta={f"key {n}": n}) for n in range(20)]
    await stage.run_live(root, *requests, at_once=True)
    session = await stage.load()
    said = texts(session.events)
    assert [words for author, words in said if author == "user"] == [str(n) for n in range(20)]
    assert len([words for author, words in said if author == "root"]) == 20
    assert session.state == {f"key {n}": n for n in range(20)}
    await stage.close()


async def test_a_live_run_that_keeps_its_sounds(database: Path) -> None:
    async def script(stage: Stage) -> None:
        await stage.create()
        root = LlmAgent(name="root", model=Phone(answer=answer_by_phone))
        sound = types.Blob(data=b"\x01", mime_type="audio/pcm")
        config = RunConfig(save_live_blob=True)
        await stage.run_live(root, LiveRequest(blob=sound), run_config=config)

    session, _ = await play(script, database)
    parts = [part for e in session.events if e.content for part in e.content.parts or []]
    assert all(part.file_data for part in parts)
    assert len(parts) == 2


async def test_a_live_run_of_a_workflow(database: Path) -> None:
    def first(ctx: Context) -> str:
        ctx.state["first"] = 1
        return "one"

    def second(node_input: str) -> str:
        return node_input + " two"

    async def script(stage: Stage) -> None:
        await stage.create()
        root = Workflow(name="flow", edges=[(START, first, second)])
        await stage.run_live(root, LiveRequest(close=True))

    session, _ = await play(script, database)
    assert [event.output for event in session.events if event.output] == ["one", "one two"]
    assert session.state == {"first": 1}


async def test_live_tools_in_the_background(database: Path) -> None:
    """Their responses come when they are ready, between everything else."""
    stage = Stage(database)
    await stage.create()

    async def look_up(word: str, tool_context: ToolContext) -> dict[str, str]:
        """Looks a word up."""
        await asyncio.sleep(0.01)
        tool_context.state[f"looked up {word}"] = True
        return {"found": word}

    def answer(sent: types.Content | types.Blob) -> list[LlmResponse]:
        words = transcript(sent).split()
        if "->" in words:
            return [LlmResponse(content=spoken("found")), LlmResponse(turn_complete=True)]
        calls = [called("look_up", word=word) for word in words[1:]]
        return [LlmResponse(content=spoken(calls)), LlmResponse(content=spoken("looking"))]

    tool = FunctionTool(look_up)
    tool.behavior = types.Behavior.NON_BLOCKING
    root = LlmAgent(name="root", model=Phone(answer=answer), tools=[tool])
    await stage.run_live(root, LiveRequest(content=text("a b c d")), turns=4)
    session = await stage.load()
    assert session.state == {f"looked up {word}": True for word in "abcd"}
    assert texts(session.events).count(("root", "found")) == 4
    await stage.close()


# One session in several hands


class Chatty(BaseAgent):
    """Appends events of its own, past the runner, between those it yields."""

    async def _run_async_impl(self, ctx: InvocationContext) -> AsyncGenerator[Event, None]:
        for n in range(5):
            await ctx.session_service.append_event(ctx.session, self._event(ctx, f"own {n}"))
            yield self._event(ctx, f"yielded {n}")

    def _event(self, ctx: InvocationContext, key: str) -> Event:
        return Event(
            author=self.name,
            invocation_id=ctx.invocation_id,
            branch=ctx.branch,
            actions=EventActions(state_delta={f"{self.name} {key}": 1, "app:last": self.name}),
        )


@pytest.mark.filterwarnings("ignore:ParallelAgent is deprecated:DeprecationWarning")
async def test_parallel_agents_that_append_are_never_stale(database: Path) -> None:
    stage = Stage(database)
    await stage.create()
    agents: list[BaseAgent] = [Chatty(name=f"a{n}") for n in range(10)]
    await stage.run(ParallelAgent(name="root", sub_agents=agents), "go")
    session = await stage.load()
    assert len(session.events) == 1 + 10 * 10
    for agent in agents:
        own = [e.actions.state_delta for e in session.events if e.author == agent.name]
        assert [next(iter(delta)) for delta in own] == [
            f"{agent.name} {kind} {n}" for n in range(5) for kind in ("own", "yielded")
        ]
    assert session.state["app:last"] == session.events[-1].author
    await stage.close()


@pytest.mark.parametrize("threads", [False, True])
async def test_parallel_tools_that_append_are_never_stale(database: Path, threads: bool) -> None:
    async def append(word: str, tool_context: ToolContext) -> None:
        context = tool_context._invocation_context
        for n in range(5):
            event = Event(
                author=word,
                invocation_id=tool_context.invocation_id,
                actions=EventActions(state_delta={f"{word} {n}": n}),
            )
            await context.session_service.append_event(tool_context.session, event)

    async def tell(word: str, tool_context: ToolContext) -> str:
        """Tells a word."""
        await append(word, tool_context)
        return word

    def tell_in_thread(word: str, tool_context: ToolContext) -> str:
        """Tells a word."""
        asyncio.run(append(word, tool_context))
        return word

    words = [f"word {n}" for n in range(10)]
    tool = tell_in_thread if threads else tell
    root = speaker([called(tool.__name__, word=word) for word in words], "told", tools=[tool])
    config = RunConfig(tool_thread_pool_config=ToolThreadPoolConfig() if threads else None)
    stage = Stage(database)
    await stage.create()
    await stage.run(root, "go", run_config=config)
    session = await stage.load()
    assert len(session.events) == 4 + 10 * 5
    for word in words:
        own = [e.actions.state_delta for e in session.events if e.author == word]
        assert own == [{f"{word} {n}": n} for n in range(5)]
    assert texts(session.events)[-1] == ("root", "told")
    await stage.close()


class Together(BasePlugin):
    """Lets runs go on together, once each of them has loaded its session."""

    def __init__(self, runs: int) -> None:
        super().__init__("together")
        self.barrier = asyncio.Barrier(runs)

    async def on_user_message_callback(self, **_: Any) -> None:
        await asyncio.wait_for(self.barrier.wait(), SECONDS)


@pytest.mark.parametrize("services", [1, 3])
async def test_one_of_several_runs_of_a_session_wins(database: Path, services: int) -> None:
    opened = [DatabaseSessionService(database) for _ in range(services)]
    for n in range(5):
        await opened[0].create_session("app", "u", f"{n}", {"k": 0})
        plugin = Together(6)

        async def run(who: int, session_id: str = f"{n}", plugin: BasePlugin = plugin) -> Any:
            root = speaker(called("note", word=f"{who}"), f"I am {who}", tools=[note])
            app = App(name="app", root_agent=root, plugins=[plugin])
            events = runner(opened[who % services], app).run_async(
                user_id="u", session_id=session_id, new_message=text(f"{who}")
            )
            return [event async for event in events]

        results = await asyncio.gather(*(run(who) for who in range(6)), return_exceptions=True)
        won = [result for result in results if isinstance(result, list)]
        assert len(won) == 1
        losses = [result for result in results if not isinstance(result, list)]
        assert all(isinstance(loss, StaleSessionError) for loss in losses)
        session = await opened[-1].get_session("app", "u", f"{n}")
        assert session is not None
        assert session.events[1:] == won[0]
    for each in opened:
        await each.close()


async def test_runs_of_a_session_that_are_merged_all_win(database: Path) -> None:
    async with DatabaseSessionService(database, on_stale="merge") as service:
        await service.create_session("app", "u", "s")
        plugin = Together(6)

        async def run(who: int) -> list[Event]:
            root = speaker(called("note", word=f"{who}"), f"I am {who}", tools=[note])
            return await say(service, App(name="app", root_agent=root, plugins=[plugin]), f"{who}")

        results = await asyncio.gather(*(run(who) for who in range(6)))
        session = await service.get_session("app", "u", "s")
        assert session is not None
        assert len(session.events) == 6 * 4
        for said in results:
            own = [e for e in session.events if e.invocation_id == said[0].invocation_id]
            assert own[1:] == said
        assert {f"word:{who}" for who in range(6)} <= set(session.state)


async def test_one_of_two_loaded_sessions_wins_every_time(database: Path) -> None:
    async with DatabaseSessionService(database) as one, DatabaseSessionService(database) as two:
        await one.create_session("app", "u", "s")
        for n in range(20):
            sessions = [await each.get_session("app", "u", "s") for each in (one, two)]
            events = [
                Event(author="user", actions=EventActions(state_delta={"round": n, f"{n}": who}))
                for who in range(2)
            ]
            results = await asyncio.gather(
                one.append_event(sessions[0], events[0]),
                two.append_event(sessions[1], events[1]),
                return_exceptions=True,
            )
            (won,) = (i for i, result in enumerate(results) if result is events[i])
            assert isinstance(results[1 - won], StaleSessionError)
            assert sessions[1 - won].state.get("round", -1) == n - 1
            assert await one.get_session("app", "u", "s") == sessions[won]


async def test_a_run_that_was_overtaken_ends_as_stale(service: DatabaseSessionService) -> None:
    """What it said before stays, what the other one said stays, and a new run sees both."""
    await service.create_session("app", "u", "s")

    async def overtake(callback_context: CallbackContext, llm_request: LlmRequest) -> None:
        await say(service, speaker("quick"), "quickly")

    with pytest.raises(StaleSessionError):
        await say(service, speaker("slow", before_model_callback=overtake), "slowly")
    root = speaker("both")
    await say(service, root, "and?")
    assert root.model.heard == [["user slowly", "user quickly", "model quick", "user and?"]]

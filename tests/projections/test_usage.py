"""Usage: what is counted, that everything is counted once, and how it is asked for."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner
from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.models import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.genai import types
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adk_adapter import DatabaseSessionService
from eventstore import (
    Add,
    Cursor,
    EventStore,
    EventType,
    InvalidInput,
    InvalidProjection,
    MaintenanceRunning,
    Projection,
    ProjectionMissing,
    RecordedEvent,
    Stream,
    StreamKey,
    StreamKind,
    Table,
    Window,
    changes_of,
    open_store,
)
from projections import (
    BUILT_IN,
    UsageProjection,
    asynchronous,
    installed,
    rebuild,
    run,
    scavenge,
    status,
    usage,
    verify,
)
from projections.cli.usage import usage_command
from projections.usage import UsageRow
from tests.adk_adapter.agents import called, note, spoken, text
from tests.eventstore.events import SESSION, created, new_event, session
from tests.places import query

DAY = 86_400.0
SECONDS = 120
"""After which a wait has failed."""


@dataclass
class Reply:
    """What a model says, when, and what it reports of it."""

    content: types.Content | None
    after_s: float = 0.0
    partial: bool | None = None
    usage: dict[str, int] | None = None
    error_code: str | None = None


class Reporting(BaseLlm):
    """Says its replies, one list of them for each call, as the model "reporting-1"."""

    model: str = "reporting"
    calls: list[Any]

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        for reply in self.calls.pop(0):
            await asyncio.sleep(reply.after_s)
            metadata = reply.usage and types.GenerateContentResponseUsageMetadata(**reply.usage)
            yield LlmResponse(
                content=reply.content,
                partial=reply.partial,
                model_version="reporting-1",
                usage_metadata=metadata,
                error_code=reply.error_code,
            )


async def converse(
    service: DatabaseSessionService, calls: Sequence[Any], *, stream: bool = False
) -> None:
    agent = LlmAgent(name="helper", model=Reporting(calls=list(calls)), tools=[note])
    runner = Runner(app_name="app", agent=agent, session_service=service)
    if await service.get_session("app", "ada", "s") is None:
        await service.create_session("app", "ada", "s")
    config = RunConfig(streaming_mode=StreamingMode.SSE if stream else StreamingMode.NONE)
    async for _ in runner.run_async(
        user_id="ada", session_id="s", new_message=text("go"), run_config=config
    ):
        pass


TOKENS = {
    "prompt_token_count": 100,
    "candidates_token_count": 20,
    "cached_content_token_count": 30,
    "thoughts_token_count": 4,
    "tool_use_prompt_token_count": 5,
    "total_token_count": 129,
}


async def test_what_the_real_runner_did(target: str) -> None:
    async with DatabaseSessionService(target, projections=[UsageProjection()]) as service:
        before = datetime.now(UTC).date()
        began = time.monotonic()
        call = Reply(spoken([called("note", word="x"), called("note", word="y")]), 0.05)
        call.usage = TOKENS
        answer = Reply(spoken("done"), 0.15, usage=TOKENS)
        await converse(service, [[call], [answer]])
        await converse(
            service, [[Reply(None, error_code="SAFETY", usage={"total_token_count": 1})]]
        )
        rows = await service.usage(by=("app", "user", "day", "model", "agent"))
        assert [row[:5] for row in rows] == [("app", "ada", rows[0].day, "reporting-1", "helper")]
        assert rows[0].day in {day.isoformat() for day in (before, datetime.now(UTC).date())}
        (total,) = await service.usage(by=())
        assert total[:5] == (None,) * 5
        assert total[5:14] == (3, 2, 1, 200, 40, 60, 8, 10, 259)
        # The calls took 50, 150 and 0 ms.
        assert total.latency_calls == 3
        assert 190_000 <= total.latency_us <= (time.monotonic() - began) * 1e6
        assert total.mean_latency_ms == pytest.approx(total.latency_us / 3000)


async def test_a_stream_is_one_call_whose_latency_nobody_knows(target: str) -> None:
    async with DatabaseSessionService(target, projections=[UsageProjection()]) as service:
        parts = [Reply(spoken("a"), 0.01, partial=True, usage=TOKENS) for _ in range(3)]
        whole = Reply(spoken("aaa"), partial=False, usage=TOKENS)
        await converse(service, [[*parts, whole]], stream=True)
        (total,) = await service.usage(by=())
        assert (total.model_calls, total.total_tokens, total.latency_calls) == (1, 129, 0)
        assert total.mean_latency_ms is None


def adk_event(
    payload: Any, *, timestamp: float = 5 * DAY, author: str = "helper", recorded_at: int = 0
) -> RecordedEvent:
    new = new_event(data=payload)
    stream = Stream(7, StreamKey(StreamKind.SESSION, "app", "u", "s"), 5, 6, 2, 2, b"")
    at = recorded_at or round(timestamp * 1e6) + 1_500_000
    return RecordedEvent(
        *(9, stream, 2, "id", str(EventType.ADK_EVENT), 1, at, timestamp, author, "i"),
        *(new.encoding, None, new.data),
    )


def counted(payload: Any, **facts: Any) -> dict[str, int]:
    changes = list(changes_of(UsageProjection(), adk_event(payload, **facts)))
    return dict(changes[0].columns) if changes else {}  # type: ignore[union-attr]


def test_what_is_no_tool_call() -> None:
    names = ["f", "adk_request_credential", "adk_request_confirmation", "adk_request_input"]
    parts = [{"functionCall": {"name": name}} for name in names]
    parts += [{"functionResponse": {"name": "f"}}, {"text": "f"}]
    assert counted({"content": {"parts": parts}}) == {"tool_calls": 1}


@pytest.mark.parametrize(
    "facts",
    [
        {"payload": {"partial": False}},
        {"payload": {"liveSessionId": "1"}},
        {"author": "user"},
        {"author": ""},
        {"recorded_at": round(5 * DAY * 1e6) - 1},
        {"recorded_at": round((5 * DAY + 3601) * 1e6)},
        {"timestamp": float("inf"), "recorded_at": 1},
        {"timestamp": -1e300, "recorded_at": 1},
    ],
)
def test_latency_that_nobody_can_tell(facts: dict[str, Any]) -> None:
    usual = {"usageMetadata": {"totalTokenCount": 3}}
    assert counted(usual)["latency_us"] == 1_500_000
    payload = {**usual, **facts.pop("payload", {})}
    assert counted(payload, **facts) == {"model_calls": 1, "total_tokens": 3}


def test_the_day_is_that_of_the_event_in_utc() -> None:
    def day(timestamp: float, recorded_at: int = 0) -> object:
        event = adk_event({"errorCode": "x"}, timestamp=timestamp, recorded_at=recorded_at)
        (change,) = UsageProjection().apply(event)
        assert isinstance(change, Add)
        return change.key[1]

    assert day(5 * DAY - 0.001) == "1970-01-05"
    assert day(5 * DAY) == "1970-01-06"
    assert day(-DAY) == "1969-12-31"
    assert day(-6e10) == "0068-09-03"
    assert day(1e300, recorded_at=86_400_000_000) == "1970-01-02"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def member(*shapes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(JSON, *shapes)


CALL = st.fixed_dictionaries({}, optional={"name": member(st.just("f")), "args": JSON})
PART = st.fixed_dictionaries({}, optional={"functionCall": member(CALL), "text": JSON})
USAGE = st.fixed_dictionaries(
    {},
    optional={
        name: member(st.integers(0, 2**32))
        for name in ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")
    },
)
PAYLOADS = member(
    st.fixed_dictionaries(
        {},
        optional={
            "usageMetadata": member(USAGE),
            "content": member(st.fixed_dictionaries({"parts": member(st.lists(PART))})),
            "modelVersion": member(st.text(), st.sampled_from(["\ud800", "\0", "m" * 300])),
            "finishReason": JSON,
            "errorCode": JSON,
            "partial": JSON,
        },
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PAYLOADS, st.floats(), st.text(max_size=5), st.integers(-(2**63), 2**63 - 1))
@example({"usageMetadata": {"totalTokenCount": True}}, float("nan"), "a", 0)
def test_no_payload_stops_it(payload: Any, timestamp: float, author: str, recorded: int) -> None:
    """Whatever is stored, the fold is total and pure, and its changes fit the table."""
    event = adk_event(payload, recorded_at=recorded or 1)._replace(
        timestamp=timestamp, author=author
    )
    changes = list(changes_of(UsageProjection(), event))
    assert changes == list(changes_of(UsageProjection(), event))
    for change in changes:
        assert isinstance(change, Add)
        assert change.key[0] == 5
        assert all(0 < n < 2**33 for n in change.columns.values())


@pytest.mark.parametrize("data", [b"{", b"[" * 100_000, b"\xff", None, b"null", b"[1]"])
def test_what_is_no_json_object_counts_as_nothing(data: bytes | None) -> None:
    assert not list(UsageProjection().apply(adk_event({})._replace(data=data)))


def test_another_projection_may_not_take_its_name() -> None:
    class Mine(Projection):
        name = "mine"
        version = 1
        table = Table("usage", {"stream_id": "integer"}, {"n": "integer"})

        def apply(self, event: RecordedEvent) -> Any:
            return ()

    with pytest.raises(InvalidProjection, match="'usage'"):
        installed.distinct([Mine()])
    assert installed.distinct([UsageProjection()])


# Counted once


def payload_of(n: int) -> dict[str, Any]:
    """An event's payload: the one number says how many tokens it is of, and of which model."""
    return {"usageMetadata": {"totalTokenCount": n}, "modelVersion": f"m{n % 2}"}


async def append(store: EventStore, key: StreamKey, payload: Any, timestamp: float = 1.5) -> None:
    stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
    assert stream is not None
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(key, new_event(data=payload, timestamp=timestamp), cursor)


async def fill(store: EventStore, count: int) -> None:
    await store.create(SESSION, created())
    for n in range(count):
        await append(store, SESSION, payload_of(n), timestamp=n * 3600.0)


def rows_of(store: EventStore) -> list[tuple[Any, ...]]:
    rows = store.snapshot(lambda s: s.table_page(UsageProjection(), None, 10_000))
    assert rows is not None
    return [tuple(row) for row in rows]


def total(rows: Sequence[UsageRow]) -> tuple[int, int]:
    return sum(row.model_calls for row in rows), sum(row.total_tokens for row in rows)


NAMES = st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["u", "v"]), st.just("app"))
STEPS = st.one_of(
    st.tuples(st.just("append"), NAMES, st.integers(0, 99)),
    st.tuples(st.just("delete"), NAMES, st.none()),
    st.tuples(st.just("scavenge"), NAMES, st.none()),
    st.tuples(st.just("run"), NAMES, st.integers(0, 4)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=5, max_size=30))
def test_in_odd_steps_is_what_it_is_anew(steps: list[tuple[str, Any, Any]]) -> None:
    """Incremental runs, a rebuild and the sum of what was said agree, also after a vacuum."""
    projections = (UsageProjection(),)
    expected = calls = 0
    with (
        TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patched,
        closing(open_store(Path(folder) / "a.db", BUILT_IN)) as store,
    ):
        patched.setattr(asynchronous, "_EVENTS_PER_TRANSACTION", 2)
        run(store, projections)
        for kind, name, n in steps:
            key = session(*name)
            live = store.snapshot(lambda s, key=key: s.find_stream(key)) is not None
            if kind == "append":
                if not live:
                    asyncio.run(do(store, "create", key))
                asyncio.run(append(store, key, payload_of(n), timestamp=n * 3600.0))
                calls, expected = calls + 1, expected + n
            elif kind == "delete" and live:
                asyncio.run(do(store, "delete", key))
            elif kind == "scavenge":
                scavenge(store, BUILT_IN, projections)
            elif kind == "run":
                left = iter(range(n))
                run(store, projections, stopping=lambda left=left: next(left, None) is None)
        assert verify(store, BUILT_IN, projections).clean  # as far as it has come
        assert total(usage(store)) == (calls, expected)
        before = rows_of(store)
        rebuild(store, (), projections)
        assert rows_of(store) == before
        assert verify(store, BUILT_IN, projections).clean


async def do(store: EventStore, what: str, key: StreamKey) -> None:
    if what == "create":
        await store.create(key, created())
    else:
        await store.delete(key, new_event(EventType.SESSION_DELETED))


async def test_two_runs_at_once_count_every_event_once(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "_EVENTS_PER_TRANSACTION", 3)
    run(store, (UsageProjection(),))
    await fill(store, 200)
    together = threading.Barrier(3)
    reached: list[int] = []

    def follow() -> None:
        together.wait()
        reached.extend(each.checkpoint for each in run(store, (UsageProjection(),)))

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The one that lost a race goes on: each has come to the head when it returns.
    assert reached == [store.snapshot(lambda s: s.head())] * 3
    assert total(usage(store)) == (200, sum(range(200)))
    assert verify(store, BUILT_IN, (UsageProjection(),)).clean


FOLLOW = """
import sys, time
from eventstore import MaintenanceRunning, open_store
from projections import BUILT_IN, UsageProjection, asynchronous, run
asynchronous._EVENTS_PER_TRANSACTION = 2
store = open_store(sys.argv[1], BUILT_IN)
print("open", flush=True)
sys.stdin.readline()
while True:
    try:
        run(store, (UsageProjection(),))
        break
    except MaintenanceRunning:  # the other one builds it
        time.sleep(0.01)
store.close()
"""


@pytest.fixture
def followers(target: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that begin to follow when a line is written to them."""
    command = [sys.executable, "-c", FOLLOW, str(target)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def begin(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def checkpoint(store: EventStore) -> int:
    return max((each.checkpoint for each in status(store) if not each.inline), default=0)


async def test_two_processes_of_which_one_is_killed(
    store: EventStore, followers: list[subprocess.Popen[str]]
) -> None:
    run(store, (UsageProjection(),))
    await fill(store, 400)
    head = store.snapshot(lambda s: s.head())
    begin(followers)
    deadline = time.monotonic() + SECONDS
    while checkpoint(store) < 20:
        assert time.monotonic() < deadline
    followers[0].send_signal(signal.SIGKILL)
    followers[0].wait()
    assert followers[1].wait(SECONDS) == 0
    assert checkpoint(store) == head
    assert total(usage(store)) == (400, sum(range(400)))
    assert verify(store, BUILT_IN, (UsageProjection(),)).clean


# Asking for it


async def test_it_is_off_until_it_is_enabled(target: str) -> None:
    async with DatabaseSessionService(target) as service:
        await service.create_session("app", "ada", "s")
        with pytest.raises(ProjectionMissing, match="UsageProjection") as raised:
            await service.usage()
        assert "adk-eventstore projections run usage" in str(raised.value)
        assert "usage" not in [each.projection for each in status(service._store)]


async def test_the_argument_enables_it_for_every_process(target: str) -> None:
    reply = Reply(spoken("hi"), usage=TOKENS)
    async with DatabaseSessionService(target) as plain:
        await converse(plain, [[reply]])
        async with DatabaseSessionService(target, projections=[UsageProjection()]) as service:
            assert total(await service.usage()) == (1, 129)
        # This one was open before: it verifies, counts and vacuums it all the same.
        await converse(plain, [[reply]])
        assert total(await plain.usage()) == (2, 258)
        report = await plain.verify()
        assert (report.clean, report.rows["usage"], report.unchecked) == (True, 1, {})
        await plain.delete_session("app", "ada", "s")
        assert plain.vacuum()["sessions"] == 1
        assert total(await plain.usage()) == (2, 258)
        assert (await plain.verify()).clean
    async with DatabaseSessionService(target) as later:
        await converse(later, [[reply]])
        await until(lambda: checkpoint(later._store) == later.get_stats()["head"])
        assert total(usage(later._store)) == (3, 387)


async def until(true: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_it_waits_for_somebody_elses_maintenance(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(fill(store, 3))
    with store.maintaining("test"):
        monkeypatch.setattr(import_module("projections.usage"), "_WAIT_S", 0.1)
        with pytest.raises(MaintenanceRunning):
            usage(store, enable=True)
        monkeypatch.setattr(import_module("projections.usage"), "_WAIT_S", SECONDS)
        result: list[UsageRow] = []
        asking = threading.Thread(target=lambda: result.extend(usage(store, enable=True)))
        asking.start()
        time.sleep(0.1)
    asking.join()
    assert total(result) == (3, 3)


@pytest.fixture
def used(store: EventStore) -> EventStore:
    """Two users of two apps, over three days."""

    async def fill() -> None:
        for app in ("a", "b"):
            for user in ("u", "v"):
                key = session("s", user, app)
                await store.create(key, created())
                for n in range(3):
                    await append(store, key, payload_of(n), timestamp=n * DAY)

    asyncio.run(fill())
    run(store, (UsageProjection(),))
    return store


@pytest.mark.parametrize(
    ("question", "groups"),
    [
        ({}, [("1970-01-01", 4), ("1970-01-02", 4), ("1970-01-03", 4)]),
        ({"by": "model"}, [("m0", 8), ("m1", 4)]),
        ({"by": ["app"], "user_id": "u"}, [("a", 3), ("b", 3)]),
        ({"by": ["app", "user"], "since": date(1970, 1, 3)}, [
            ("a", "u", 1), ("a", "v", 1), ("b", "u", 1), ("b", "v", 1)
        ]),
        ({"by": ["user"], "app_name": "a", "user_id": "v"}, [("v", 3)]),
        ({"by": ["day", "app"], "until": "1970-01-01"}, [
            ("1970-01-01", "a", 2), ("1970-01-01", "b", 2)
        ]),
        ({"by": ["model", "day"], "app_name": "b", "since": "1970-01-02"}, [
            ("m0", "1970-01-03", 2), ("m1", "1970-01-02", 2)
        ]),
        ({"by": [], "app_name": "a", "since": "1970-01-02", "until": "1970-01-02"}, [(2,)]),
        ({"since": datetime(1970, 1, 3, 1, tzinfo=UTC).astimezone()}, [("1970-01-03", 4)]),
        ({"app_name": "a", "user_id": "nobody"}, []),
        ({"app_name": "nothing"}, []),
    ],
)  # fmt: skip
def test_questions(used: EventStore, question: Any, groups: list[Any]) -> None:
    by = question.get("by", ["day"])
    fields = {"app": 0, "user": 1, "day": 2, "model": 3, "agent": 4}
    places = [fields[group] for group in ([by] if isinstance(by, str) else by)]
    rows = usage(used, **question)
    assert [(*(row[place] for place in places), row.model_calls) for row in rows] == groups
    for row in rows:
        assert all(row[place] is None for place in range(5) if place not in places)


@pytest.mark.parametrize(
    "question", [{"by": ["week"]}, {"since": "yesterday"}, {"until": 5}, {"since": "1970-13-01"}]
)
def test_questions_that_make_no_sense(used: EventStore, question: Any) -> None:
    with pytest.raises(InvalidInput):
        usage(used, **question)


def test_the_view(used: EventStore, target: str) -> None:
    sql = "SELECT app_name, user_id, sum(model_calls), sum(total_tokens) FROM adk_usage"
    rows = query(target, f"{sql} GROUP BY 1, 2 ORDER BY 1, 2")
    assert rows == [("a", "u", 3, 3), ("a", "v", 3, 3), ("b", "u", 3, 3), ("b", "v", 3, 3)]
    assert query(target, "SELECT mean_latency_ms FROM adk_usage LIMIT 1") == [(None,)]


def test_the_command(used: EventStore, target: str) -> None:
    asked = CliRunner().invoke(
        usage_command, ["--db", str(target), "--by", "app,day", "--by", "model", "--until",
                        "1970-01-02", "--format", "json"]
    )  # fmt: skip
    assert asked.exit_code == 0, asked.output
    document = json.loads(asked.output)
    assert [list(each.values())[:4] for each in document["rows"]] == [
        ["a", "1970-01-01", "m0", 2],
        ["a", "1970-01-02", "m1", 2],
        ["b", "1970-01-01", "m0", 2],
        ["b", "1970-01-02", "m1", 2],
    ]
    assert document["rows"][0]["mean_latency_ms"] is None
    table = CliRunner().invoke(usage_command, ["--db", str(target), "--user", "u"])
    assert table.exit_code == 0
    first, *lines = table.output.splitlines()
    assert first.startswith("  day         model_calls")
    assert [line.split()[:2] for line in lines] == [
        ["1970-01-01", "2"], ["1970-01-02", "2"], ["1970-01-03", "2"]
    ]  # fmt: skip
    nothing = CliRunner().invoke(usage_command, ["--db", str(target), "--user", "x"])
    assert (nothing.exit_code, nothing.output) == (0, "Nothing was used.\n")


def test_the_command_that_could_not_run_says_why(target: str) -> None:
    for arguments in ([], ["--by", "week"]):
        result = CliRunner().invoke(usage_command, ["--db", str(target), *arguments])
        assert (result.exit_code, Path(target).exists()) == (2, False)
    open_store(target, BUILT_IN).close()
    result = CliRunner().invoke(usage_command, ["--db", str(target)])
    assert result.exit_code == 2
    assert "projections run usage" in result.output
    result = CliRunner().invoke(usage_command, ["--db", str(target), "--since", "monday"])
    assert result.exit_code == 2
    assert "--since" in result.output or "since" in result.output


def test_names_cannot_steer_a_terminal(store: EventStore, target: str) -> None:
    async def fill() -> None:
        key = session("s", "\x1b[2Jeve\nil")
        await store.create(key, created())
        await append(store, key, payload_of(1), timestamp=DAY)

    asyncio.run(fill())
    run(store, (UsageProjection(),))
    result = CliRunner().invoke(usage_command, ["--db", str(target), "--by", "user"])
    assert "\x1b" not in result.output
    assert len(result.output.splitlines()) == 2

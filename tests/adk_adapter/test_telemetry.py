"""What OpenTelemetry and the log get to see, with the real SDK and its exporters in memory.

A process has its providers once: each test is a program of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adk_adapter import DatabaseSessionService
from tests.fresh import run_python

BEGIN = """
import asyncio, json, logging, sqlite3, sys, threading, time
from google.adk.events import Event, EventActions
from google.genai.types import Content, Part
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from adk_adapter import DatabaseSessionService, StaleSessionError
from projections import UsageProjection

spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
configured = TracerProvider()
configured.add_span_processor(SimpleSpanProcessor(spans))

def configure():
    trace.set_tracer_provider(configured)
    metrics.set_meter_provider(MeterProvider([reader]))

def measured():
    data = reader.get_metrics_data()
    # Older ADKs measure themselves, too.
    scopes = [] if data is None else data.resource_metrics[0].scope_metrics
    metrics = [m for scope in scopes if scope.scope.name == "adk_eventstore" for m in scope.metrics]
    return {
        metric.name: [
            {"attributes": dict(point.attributes), "unit": metric.unit,
             "count": getattr(point, "count", None), "sum": getattr(point, "sum", None),
             "value": getattr(point, "value", None)}
            for point in metric.data.data_points
        ]
        for metric in metrics
    }

def tell(**more):
    told = [
        {"name": span.name, "kind": span.kind.name, "status": span.status.status_code.name,
         "description": span.status.description, "attributes": dict(span.attributes),
         "events": len(span.events), "parent": span.parent and span.parent.span_id}
        for span in spans.get_finished_spans()
    ]
    print(json.dumps({"spans": told, "metrics": measured(), **more}))

def event(text="said", **delta):
    content = Content(role="user", parts=[Part(text=text)])
    return Event(author="user", invocation_id="i", content=content,
                 actions=EventActions(state_delta=delta))
"""


def told_by(program: str, folder: Path) -> Any:
    lines = program.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    code = BEGIN + "\n".join(line[indent:] for line in lines)
    done = run_python(code, folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def one(points: list[dict[str, Any]], **attributes: str) -> dict[str, Any]:
    (found,) = [p for p in points if attributes.items() <= p["attributes"].items()]
    return found


def test_a_conversation(tmp_path: Path) -> None:
    told = told_by(
        """
        configure()

        async def main():
            async with DatabaseSessionService("a.db", projections=[UsageProjection()]) as service:
                session = await service.create_session("app", "ada@example.org")
                with trace.get_tracer("mine").start_as_current_span("mine") as mine:
                    await service.append_event(session, event("secret", key="hidden"))
                again = await service.get_session("app", "ada@example.org", session_id=session.id)
                await service.usage()
                with service._follower.paused():
                    await service.append_event(again, event())
                    try:
                        await service.append_event(session, event())
                    except StaleSessionError:
                        pass
                    await service.list_sessions(app_name="app")
                    await service.update_keys(
                        "app", "ada@example.org", session.id, {"k": "hidden"}
                    )
                    tell(
                        id=session.id,
                        event=again.events[0].id,
                        mine=mine.get_span_context().span_id,
                    )

        asyncio.run(main())
        """,
        tmp_path,
    )
    spans = [span for span in told["spans"] if span["name"] != "mine"]
    assert [span["name"] for span in spans] == [
        "create_session a.db",
        "append_event a.db",
        "get_session a.db",
        "usage a.db",
        "append_event a.db",
        "append_event a.db",
        "list_sessions a.db",
        "update_keys a.db",
    ]
    database = {"db.system.name": "sqlite", "db.namespace": str(tmp_path / "a.db")}
    assert {span["kind"] for span in spans} == {"CLIENT"}
    create, append, get, _, _, stale, listed, _ = spans
    assert create["attributes"] == {
        **database,
        "db.operation.name": "create_session",
        "db.response.returned_rows": 0,
        "gen_ai.conversation.id": told["id"],
    }
    assert append["parent"] == told["mine"]
    assert append["attributes"] == {
        **database,
        "db.operation.name": "append_event",
        "adk_eventstore.event.id": told["event"],
        "gen_ai.conversation.id": told["id"],
    }
    assert get["attributes"]["db.response.returned_rows"] == 1
    assert listed["attributes"]["db.response.returned_rows"] == 1
    assert (stale["status"], stale["description"], stale["events"]) == ("ERROR", None, 0)
    assert stale["attributes"]["error.type"] == "StaleSessionError"

    metrics = told["metrics"]
    durations = metrics["db.client.operation.duration"]
    appended = [p for p in durations if p["attributes"]["db.operation.name"] == "append_event"]
    assert {point["attributes"].get("error.type"): point["count"] for point in appended} == {
        None: 2,
        "StaleSessionError": 1,
    }
    assert {point["unit"] for point in durations} == {"s"}
    refused = one(metrics["adk_eventstore.append.conflicts"])
    assert refused["attributes"] == {**database, "adk_eventstore.outcome": "refused"}
    assert refused["value"] == 1
    assert one(metrics["adk_eventstore.commit.size"])["sum"] >= 4
    assert one(metrics["adk_eventstore.commit.duration"])["sum"] > 0
    lag = one(metrics["adk_eventstore.projection.lag"])
    assert lag["attributes"]["adk_eventstore.projection"] == "usage"
    assert lag["value"] == 2  # what was appended behind the last look at it
    sizes = metrics["adk_eventstore.database.size"]
    assert one(sizes, **{"adk_eventstore.file": "database"})["value"] > 0
    assert one(sizes, **{"adk_eventstore.file": "wal"})["value"] > 0
    everything = json.dumps(told)
    for content in ("secret", "hidden", "ada@"):
        assert content not in everything


def test_appends_at_once_are_one_group_and_merged_ones_are_counted(tmp_path: Path) -> None:
    metrics = told_by(
        """
        configure()

        async def main():
            async with DatabaseSessionService("a.db", on_stale="merge") as service:
                session = await service.create_session("app", "user")
                stale = await service.get_session("app", "user", session.id)
                await service.flush()
                await asyncio.gather(*[service.append_event(session, event()) for _ in range(9)])
                await service.append_event(stale, event())
                tell()

        asyncio.run(main())
        """,
        tmp_path,
    )["metrics"]
    size = one(metrics["adk_eventstore.commit.size"])
    assert size["sum"] > size["count"]
    merged = one(metrics["adk_eventstore.append.conflicts"])
    assert (merged["attributes"]["adk_eventstore.outcome"], merged["value"]) == ("merged", 1)


def test_waiting_for_another_program_and_trying_again(tmp_path: Path) -> None:
    metrics = told_by(
        """
        configure()

        async def main():
            async with DatabaseSessionService("a.db") as service:
                session = await service.create_session("app", "user")
                other = sqlite3.connect("a.db", isolation_level=None)
                other.execute("BEGIN IMMEDIATE")
                appending = asyncio.create_task(service.append_event(session, event()))
                await asyncio.sleep(0.3)
                other.execute("ROLLBACK")
                await appending
                # One that fails behind its first write spoils the group it is in.
                other.execute("CREATE TABLE mine (key TEXT UNIQUE)")
                other.close()
                from eventstore.sqlite.requests import Write

                def fails(transaction):
                    transaction.connection.execute("INSERT INTO mine VALUES (1)")
                    raise ValueError

                engine = service._store._engine
                engine._slow_until = time.monotonic() + 60  # all of it is left to the writer
                with engine._gate.held():  # which so takes both at once
                    failing = engine.future(Write(fails))
                    appending = asyncio.create_task(service.append_event(session, event()))
                    await asyncio.sleep(0.1)
                await asyncio.gather(failing, appending, return_exceptions=True)
                tell()

        asyncio.run(main())
        """,
        tmp_path,
    )["metrics"]
    waited = one(metrics["adk_eventstore.commit.wait_time"])
    assert waited["sum"] > 0
    assert one(metrics["adk_eventstore.commit.retries"])["value"] == 2


def test_configured_behind_the_first_calls(tmp_path: Path) -> None:
    told = told_by(
        """
        async def main():
            async with DatabaseSessionService("a.db") as service:
                session = await service.create_session("app", "user")
                configure()
                await service.append_event(session, event())
            tell()

        asyncio.run(main())
        """,
        tmp_path,
    )
    assert [span["name"] for span in told["spans"]] == ["append_event a.db"]
    names = {p["attributes"]["db.operation.name"] for p in told["metrics"][
        "db.client.operation.duration"]}  # fmt: skip
    assert names == {"append_event"}
    # Of a service that is closed nobody asks for the size.
    assert "adk_eventstore.database.size" not in told["metrics"]


def test_not_imported_where_nobody_has_imported_it(tmp_path: Path) -> None:
    code = """
import asyncio, sys
import google.adk.events, google.adk.sessions, google.adk.sessions.session
from google.adk.sessions import BaseSessionService, Session

def imported():
    return [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]

by_adk = imported()  # older ones do
from adk_adapter import DatabaseSessionService

async def main():
    async with DatabaseSessionService(sys.argv[1]) as service:
        await service.create_session("app", "user")

asyncio.run(main())
assert imported() == by_adk
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.db")], check=True)


async def test_the_log_has_a_line_for_each_call(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="adk_adapter")
    async with DatabaseSessionService(database) as service:
        session = await service.create_session("app", "ada@example.org", state={"k": "hidden"})
        with pytest.raises(ValueError, match="temp:"):
            await service.update_keys("app", "u", session.id, {"temp:k": "hidden"})
    said = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert [line.partition(" took ")[0] for line in said] == [
        f"create_session of session {session.id}",
        f"update_keys of session {session.id}",
    ]
    assert said[1].endswith(": InvalidInput")
    assert "hidden" not in caplog.text
    assert "ada@" not in caplog.text

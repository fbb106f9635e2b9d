"""Writes down what this version of the package stores, for every later version to read.

    python -m tests.golden.make v2

makes tests/golden/v2. Run it when something that is stored changes (the schema version of an event
type, an encoding, the hash chain, what the adapter makes of an event), once: a folder that is there
is never written again, for it says what files out there hold.

A folder has the rows of the log as they are stored, one JSON object a line and bytes in hex, what
they fold to, and what is read:

    codecs, streams, events    the log
    state, sessions, talk      the tables they fold to; `talk` is a projection of this module's
    decoded                    ADK's event of each conversation event, by its position
    loaded                     the live sessions, as `get_session` gives them

    python -m tests.golden.make schema1

makes tests/golden/schema1.sqlite3.sql: a database as code wrote it that knew the first schema.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sqlite3
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from unittest.mock import patch

import pydantic
from google.adk.auth.auth_tool import AuthConfig
from google.adk.events import Event, EventActions
from google.adk.events.event_actions import EventCompaction
from google.adk.sessions import InMemorySessionService
from google.adk.tools.tool_confirmation import ToolConfirmation
from google.genai import types

from adk_adapter import DatabaseSessionService, codec
from eventstore import (
    Add,
    Change,
    EventType,
    Projection,
    Put,
    RecordedEvent,
    StreamKey,
    StreamKind,
    Table,
    Update,
    open_store,
)
from projections import BUILT_IN, delete_session, rebuild, verify
from tests.golden.older import code_of_schema_1

__all__ = ["FOLDED", "FOLDER", "LOG", "SCHEMA_1", "Talk", "dump", "make", "rows"]

FOLDER: Final = Path(__file__).parent
SCHEMA_1: Final = FOLDER / "schema1.sqlite3.sql"
LOG: Final = {"codecs": "id", "streams": "id", "events": "position"}
FOLDED: Final = {"state": "owner_id, state_key", "sessions": "stream_id", "talk": "stream_id, what"}
_APP: Final = "golden"
_NOW: Final = 1_700_000_000


class Talk(Projection):
    """Who spoke in an app, and how often: with every kind of change that can be carried over."""

    name = "talk"
    version = 1
    table = Table(
        "talk",
        key={"stream_id": "integer", "what": "text"},
        columns={"n": "integer", "last": "text"},
    )

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.ADK_EVENT:
            app = event.stream.app_stream_id
            yield Add((app, "events"), {"n": 1})
            yield Update((app, "events"), {"last": event.event_id})
            yield Put((app, f"by {event.author}"), (event.position, event.event_id))


def dump(event: Event) -> dict[str, Any]:
    """An event as plain JSON data, as Python's `json` reads and writes it."""
    plain: dict[str, Any] = pydantic.TypeAdapter(Event).dump_python(
        event,
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude={"actions": {"state_delta"}},
        warnings="none",
    )
    plain["actions"]["stateDelta"] = event.actions.state_delta
    return plain


def rows(connection: sqlite3.Connection, table: str, order: str) -> list[dict[str, Any]]:
    """The rows of a table as JSON data."""
    cursor = connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
    names = [column[0] for column in cursor.description]
    return [
        {
            name: {"hex": value.hex()} if isinstance(value, bytes) else value
            for name, value in zip(names, row, strict=True)
        }
        for row in cursor.fetchall()
    ]


def _content(*parts: types.Part, role: str = "model") -> types.Content:
    return types.Content(role=role, parts=list(parts))


def _conversation() -> Iterator[Event]:
    """Events of every kind, the longest first: without ids and timestamps, which `_say` gives."""
    yield Event(
        author="user",
        invocation_id="i-1",
        content=_content(types.Part(text='Grüße, "мир" 🜁\u2028\n'), role="user"),
        actions=EventActions(
            state_delta={
                "k": {"list": [1, 2.5, None, True, "é"]},
                "": "an empty key",
                'quo"ted': -0.0,
                "gone": None,
                "big": 2**70,
                "tiny": 5e-324,
                "user:name": "ünï",
                "app:seen": ["i-1"],
            }
        ),
    )
    yield Event(
        author="agent",
        invocation_id="i-1",
        branch="agent.helper",
        content=_content(
            types.Part(text="thinking", thought=True, thought_signature=bytes(range(256))),
            types.Part(text="said"),
        ),
        usage_metadata=types.GenerateContentResponseUsageMetadata(
            prompt_token_count=10,
            candidates_token_count=20,
            total_token_count=30,
            thoughts_token_count=5,
            prompt_tokens_details=[
                types.ModalityTokenCount(modality=types.MediaModality.TEXT, token_count=10)
            ],
        ),
        finish_reason=types.FinishReason.STOP,
        model_version="model-1",
        avg_logprobs=-0.25,
        turn_complete=True,
        custom_metadata={"nested": {"none": None, "list": [[], {}]}, "é": 1},
        citation_metadata=types.CitationMetadata(
            citations=[types.Citation(uri="https://example.com", start_index=1, end_index=2)]
        ),
        grounding_metadata=types.GroundingMetadata(web_search_queries=["q"]),
    )
    yield Event(
        author="agent",
        invocation_id="i-1",
        content=_content(
            types.Part(
                function_call=types.FunctionCall(id="f-1", name="f", args={"a": [1, None], "b": {}})
            )
        ),
        long_running_tool_ids={"f-1"},
        actions=EventActions(
            requested_tool_confirmations={"f-1": ToolConfirmation(hint="sure?", payload={"n": 1})}
        ),
    )
    yield Event(
        author="agent",
        invocation_id="i-1",
        content=_content(
            types.Part(
                function_response=types.FunctionResponse(
                    id="f-1", name="f", response={"result": {"n": 1, "x": None}}
                )
            ),
            role="user",
        ),
        actions=EventActions(
            skip_summarization=True,
            artifact_delta={"file.png": 3},
            transfer_to_agent="helper",
            escalate=True,
            state_delta={"user:tool": {"f": 1}},
        ),
    )
    yield Event(
        author="user",
        invocation_id="i-2",
        content=_content(
            types.Part.from_bytes(data=bytes(range(256)), mime_type="image/png"),
            types.Part(file_data=types.FileData(file_uri="gs://a/b", mime_type="text/plain")),
            role="user",
        ),
    )
    yield Event(
        author="agent",
        invocation_id="i-2",
        content=_content(
            types.Part(
                executable_code=types.ExecutableCode(
                    code="print(1)", language=types.Language.PYTHON
                )
            ),
            types.Part(
                code_execution_result=types.CodeExecutionResult(
                    outcome=types.Outcome.OUTCOME_OK, output="1\n"
                )
            ),
        ),
    )
    yield Event(
        author="agent",
        invocation_id="i-2",
        error_code="MAX_TOKENS",
        error_message="it was too long",
        interrupted=True,
        input_transcription=types.Transcription(text="heard", finished=True),
        output_transcription=types.Transcription(text="spoken", finished=False),
    )
    yield Event(
        author="agent",
        invocation_id="i-2",
        actions=EventActions(
            requested_auth_configs={
                "f-2": AuthConfig.model_validate(
                    {
                        "authScheme": {"type": "apiKey", "in": "header", "name": "X-Key"},
                        "credentialKey": "key",
                    }
                )
            }
        ),
    )
    # What strict JSON does not hold: encoding 2.
    yield Event(
        author="agent",
        invocation_id="i-2",
        custom_metadata={"é": "è"},
        actions=EventActions(
            state_delta={
                "numbers": [math.nan, -math.inf, 1.0],
                "half": "\ud800",
                "plain": "é",
                "app:nan": math.nan,
            }
        ),
    )
    yield Event(
        author="user",
        invocation_id="i-3",
        actions=EventActions(
            compaction=EventCompaction(
                start_timestamp=_NOW + 1.0,
                end_timestamp=_NOW + 3.5,
                compacted_content=_content(types.Part(text="a summary")),
            )
        ),
    )
    yield Event(
        author="agent", invocation_id="i-4", actions=EventActions(state_delta={"k": 4, "late": 1})
    )
    yield Event(
        author="user",
        invocation_id="i-5",
        actions=EventActions(rewind_before_invocation_id="i-4"),
    )


@contextmanager
def _fixed() -> Iterator[None]:
    """Times and ids come from a counter, and packages that are installed change nothing."""
    counter = itertools.count(1)

    def clock() -> float:
        return _NOW + next(counter) / 8

    def identifier() -> uuid.UUID:
        return uuid.UUID(int=next(counter))

    with (
        patch("projections.installed.asynchronous", tuple),
        patch("adk_adapter.service.get_time", clock),
        patch("adk_adapter.codec.new_uuid", lambda: str(identifier())),
        patch("uuid.uuid4", identifier),
        patch("time.time", clock),
        patch("time.time_ns", lambda: int(clock() * 1e9)),
        patch("os.urandom", lambda n: next(counter).to_bytes(n, "big")),
    ):
        yield


async def _say(service: DatabaseSessionService, session: Any, events: Iterable[Event]) -> None:
    for n, event in enumerate(events, len(session.events) + 1):
        event.id = f"{session.id}-{n}"
        event.timestamp = _NOW + n + 0.123456
        await service.append_event(session, event)


async def _fill(service: DatabaseSessionService) -> None:
    session = await service.create_session(
        _APP, "user", "s-1", {"first": 1, "user:name": "before", "app:a": {"deep": [None]}}
    )
    await _say(service, session, _conversation())
    await service.update_keys(_APP, "user", "s-1", {"set": "é", "user:set": 1, "app:set": math.inf})
    # Only `s-2` ever wrote these; then it is deleted and its events are removed.
    deleted = await service.create_session(
        _APP, "user", "s-2", {"app:left": [1, None], "user:left": "ü"}
    )
    left = {"app:odd": [math.nan, "\ud800"], "user:also": 1, "own": 1}
    await _say(
        service,
        deleted,
        [
            Event(author="once", actions=EventActions(state_delta=left)),
            Event(author="agent", content=_content(types.Part(text="gone"))),
        ],
    )
    await service.delete_session(_APP, "user", "s-2")
    service.vacuum()
    # Deleted and made again, the events of the first life still there.
    for life in (1, 2):
        session = await service.create_session(_APP, "user", "s-3", {"life": life})
        greeting = _content(types.Part(text=f"life {life}"), role="user")
        delta = {"user:life": life, f"app:life-{life}": life, "own": life}
        await _say(
            service,
            session,
            [Event(author="user", content=greeting, actions=EventActions(state_delta=delta))],
        )
        if life == 1:
            await service.delete_session(_APP, "user", "s-3")
    # Taken over from another service.
    old = InMemorySessionService()
    moved = await old.create_session(
        app_name=_APP, user_id="moved", session_id="s-4", state={"given": 1, "user:old": "ö"}
    )
    said = Event(
        id="m-1", author="user", timestamp=_NOW, content=_content(types.Part(text="moved"))
    )
    said.actions.state_delta = {"own": 1, "user:old": "then"}
    await old.append_event(moved, said)
    await service.import_from(old)
    # Names that need care, and a session without any event or key.
    odd = await service.create_session('ключ "1"', "", " 🜁", {"app:x": 1, "user:x": 2, "x": 3})
    await _say(service, odd, [Event(author="")])
    await service.create_session("other", "user", "s-1")


async def _keep(service: DatabaseSessionService) -> None:
    """What came with the second version: titles and labels, and maintenance that notes itself."""
    await service.set_title(_APP, "user", "s-1", "Ein Titel: é")
    await service.set_labels(_APP, "user", "s-1", {"b": "2", "a": ""})
    await service.set_labels(_APP, "user", "s-1", {"b": None})
    for user in ("gone", "old", "out"):
        session = await service.create_session(
            f"{_APP}-{user}", user, "s", {"n": 1, "user:n": 2, f"app:{user}": user}
        )
        await _say(service, session, [Event(author=user)])
    await service.purge(older_than=0, app_name=f"{_APP}-old")
    await service.erase_user("gone", rewrite=True)
    key = StreamKey(StreamKind.SESSION, f"{_APP}-out", "out", "s")
    assert delete_session(service._store, key)


def _write(folder: Path, name: str, lines: Sequence[dict[str, Any]]) -> None:
    with (folder / f"{name}.jsonl").open("x", encoding="ascii") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)


async def _loaded(
    service: DatabaseSessionService, streams: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    loaded = []
    for stream in streams:
        if stream["kind"] == "session" and stream["live"]:
            key = (stream["app_name"], stream["user_id"], stream["session_id"])
            session = await service.get_session(*key)
            assert session is not None
            loaded.append(
                {
                    "key": key,
                    "state": session.state,
                    "events": [event.id for event in session.events],
                    "last_update_time": session.last_update_time,
                }
            )
    return loaded


def make(folder: Path) -> None:
    """Writes the folder of a new version.

    Raises:
        FileExistsError: it is there already.
    """
    folder.mkdir()
    with TemporaryDirectory() as temporary:
        path = Path(temporary) / "sessions.sqlite3"

        async def fill() -> list[dict[str, Any]]:
            async with DatabaseSessionService(path, projections=(Talk(),)) as service:
                await _fill(service)
                await _keep(service)
                with closing(sqlite3.connect(path)) as connection:
                    return await _loaded(service, rows(connection, "streams", "id"))

        with _fixed():
            loaded = asyncio.run(fill())
        with closing(open_store(path, BUILT_IN)) as store:
            events = store.snapshot(lambda s: s.read_all(0, s.head(), 10_000))
            # The projection stands behind what was appended since the vacuum.
            rebuild(store, BUILT_IN, (Talk(),))
            assert verify(store, BUILT_IN, (Talk(),)).clean
        assert {event.type for event in events} == {str(type_) for type_ in EventType}
        with closing(sqlite3.connect(path)) as connection:
            for table, order in {**LOG, **FOLDED}.items():
                _write(folder, table, rows(connection, table, order))
        decoded = [
            {"position": event.position, "event": dump(codec.decode_event(event))}
            for event in events
            if event.type == EventType.ADK_EVENT
        ]
        _write(folder, "decoded", decoded)
        _write(folder, "loaded", loaded)


def make_schema_1() -> None:
    """Writes the database of the first schema."""
    with TemporaryDirectory() as temporary, SCHEMA_1.open("x", encoding="utf-8") as file:
        path = Path(temporary) / "sessions.sqlite3"

        async def fill() -> None:
            async with DatabaseSessionService(path) as service:
                await _fill(service)

        with _fixed(), code_of_schema_1():
            asyncio.run(fill())
        with closing(sqlite3.connect(path)) as connection:
            for pragma in ("auto_vacuum", "application_id", "user_version"):
                (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
                file.write(f"PRAGMA {pragma} = {value};\n")
            file.writelines(f"{statement}\n" for statement in connection.iterdump())


if __name__ == "__main__":
    (wanted,) = sys.argv[1:]
    if wanted == "schema1":
        make_schema_1()
    else:
        make(FOLDER / wanted)

"""What the contracts share: sessions to try things on, events, values, known deviations."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import json
import math
import pathlib
import sys
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

import pydantic
import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from adk_adapter._adk import get_marker

__all__ = [
    "FULL_EVENT",
    "HARD",
    "KEYS",
    "PADDING",
    "PAST",
    "PATIENCE_SECONDS",
    "RICH",
    "Contract",
    "Deviation",
    "Sessions",
    "event_ids",
    "make_content",
    "make_event",
    "restore",
]


PAST: Final = 1_700_000_000.0
PATIENCE_SECONDS: Final = 10  # a service that hangs fails its test
PADDING: Final = " \t\N{EM SPACE}"


class _Colour(enum.Enum):
    RED = "red"


class _Model(pydantic.BaseModel):
    some_field: int = pydantic.Field(default=1, serialization_alias="someField")
    nothing: None = None


def _full_event() -> Event:
    fields = json.loads(_FULL_EVENT)
    known = {field.alias for field in EventActions.model_fields.values()}
    fields["actions"] = {key: v for key, v in fields["actions"].items() if key in known}
    return Event.model_validate(fields)


_FULL_EVENT: Final = """{
    "id": "1", "timestamp": 1700000000.1234567, "invocationId": "i", "author": "agent",
    "branch": "a.b", "isolationScope": "c", "longRunningToolIds": ["c", "d"], "partial": false,
    "content": {"role": "model", "parts": [
        {"text": "thinking", "thought": true, "thoughtSignature": "_-8="},
        {"inlineData": {"data": "AP-A", "mimeType": "image/png"}},
        {"functionCall": {"id": "c", "name": "f", "args": {"a": [1, null, {"b": 2.5}]}}},
        {"functionResponse": {"id": "c", "name": "f", "response": {"r": [null]}}},
        {"executableCode": {"code": "1 + 1", "language": "PYTHON"}},
        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}}]},
    "actions": {
        "stateDelta": {"k": [1, null], "app:a": {"b": null}, "user:u": "\N{SNOWMAN}"},
        "artifactDelta": {"f": 3}, "transferToAgent": "b", "transferReason": "why not",
        "skipSummarization": true, "escalate": false, "endOfAgent": true, "route": ["a", 1, true],
        "requestedToolConfirmations": {"c": {"hint": "sure?", "confirmed": true, "payload": [1]}},
        "compaction": {"startTimestamp": 1700000000.1234567, "endTimestamp": 1700000001.7654321,
            "compactedContent": {"role": "model", "parts": [{"text": "in short"}]}},
        "agentState": {"step": 2, "none": null}, "rewindBeforeInvocationId": "h",
        "renderUiWidgets": [{"id": "w", "provider": "mcp", "payload": {"x": [1]}}],
        "setModelResponse": {"answer": [42, null]}},
    "nodeInfo": {"path": "a@1/b@2", "outputFor": ["a@1"], "messageAsOutput": true},
    "output": {"a": [null, 1]}, "customMetadata": {"a": {"b": [null, 1.5, "x"]}},
    "modelVersion": "m", "turnComplete": true, "interrupted": false, "avgLogprobs": -0.1,
    "turnCompleteReason": "MALFORMED_FUNCTION_CALL", "finishReason": "MAX_TOKENS",
    "errorCode": "E", "errorMessage": "failed", "interactionStatus": "IN_PROGRESS",
    "interactionId": "x", "environmentId": "e", "liveSessionId": "l", "goAway": {"timeLeft": "5s"},
    "groundingMetadata": {"webSearchQueries": ["q"], "retrievalQueries": []},
    "citationMetadata": {"citations": [{"startIndex": 1, "uri": "u"}]},
    "cacheMetadata": {"fingerprint": "f", "contents_count": 2},
    "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 0},
    "logprobsResult": {"chosenCandidates": [{"token": "t", "logProbability": -0.5}]},
    "liveSessionResumptionUpdate": {"newHandle": "h", "resumable": true},
    "voiceActivity": {"voiceActivityType": "ACTIVITY_START"},
    "inputTranscription": {"text": "in"}, "outputTranscription": {"finished": false}
    }"""

FULL_EVENT: Final = _full_event()
"""An event with a value in every field that ADK 2.13 has, but for the auth configs."""

RICH: Final[Mapping[str, tuple[Any, Any]]] = {
    "datetime": (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
    "date": (datetime.date(2026, 1, 2), "2026-01-02"),
    "tuple": ((1, (2, None)), [1, [2, None]]),
    "set": ({1}, [1]),
    "decimal": (decimal.Decimal("1.10"), "1.10"),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "path": (pathlib.PurePosixPath("a/b"), "a/b"),
    "enum": ([_Colour.RED], ["red"]),
    "model": (_Model(), {"someField": 1, "nothing": None}),
    "keys": ({1: {2.5: "x"}}, {"1": {"2.5": "x"}}),
    "bytes": (b"abc", "abc"),
}
"""State values that are no plain JSON data, and what they are loaded as."""

HARD: Final[Mapping[str, Any]] = {
    "nul": "a\0b",
    "unicode": "\N{SNOWMAN}\u2028\N{GRINNING FACE}",
    "large int": 2**70,
    "minus zero": -0.0,
    "largest float": sys.float_info.max,
    "smallest float": 5e-324,
    "long float": 0.1 + 0.2,
    "nan": math.nan,
    "infinity": math.inf,
    "containers": {"": {"a.b": [None, {}, [], ""]}},
}
"""State values that are JSON data, more or less, and easily damaged."""

KEYS: Final = (
    *(("k", "session"), ("app:a", "app"), ("user:u", "user"), ("temp:t", "nobody")),
    *(("app:", "app"), ("user:", "user"), ("temp:", "nobody"), ("", "session")),
    *(("app:app:x", "app"), ("app:temp:x", "app"), ("user:user:x", "user"), ("user:app:x", "user")),
    *(("APP:x", "session"), (" app:x", "session"), ("app", "session"), ("session:x", "session")),
)
"""State keys, and whose they are."""


class Deviation(NamedTuple):
    """What a service does instead of what a test of the contract asks for.

    `raises` is how that test fails: by pytest's own means unless the service raises. `strict` is
    False where more decides than the service itself, such as the version of SQLite.
    """

    what: str
    raises: type[BaseException] | tuple[type[BaseException], ...] = (
        AssertionError,
        pytest.fail.Exception,
    )
    strict: bool = True


class Sessions:
    """A session service with the names filled in."""

    def __init__(self, service: BaseSessionService, app: str = "app", user: str = "user") -> None:
        self.service = service
        self.names = {"app_name": app, "user_id": user}

    def of(self, *, app: str = "app", user: str = "user") -> Sessions:
        """The sessions of another app or user."""
        return Sessions(self.service, app, user)

    async def create(self, session_id: str | None, state: dict[str, Any] | None = None) -> Session:
        """Creates a session."""
        return await self.service.create_session(**self.names, session_id=session_id, state=state)

    async def create_conversation(self) -> Session:
        """Makes the session "s" with the events "1" to "5", a second apart."""
        live = await self.create("s", {"k": "old"})
        for n in range(1, 6):
            await self.append(live, {"k": n}, id=str(n), timestamp=PAST + n)
        return live

    async def get(self, session_id: Any, **filters: Any) -> Session | None:
        """The session, None when there is none."""
        config = GetSessionConfig(**filters) if filters else None
        return await self.service.get_session(**self.names, session_id=session_id, config=config)

    async def load(self, session_id: str = "s", **filters: Any) -> Session:
        """The session, which is there."""
        session = await self.get(session_id, **filters)
        assert session is not None
        return session

    async def listed(self) -> list[Session]:
        """The sessions that are listed of the user."""
        return (await self.service.list_sessions(**self.names)).sessions

    async def listed_for_all(self) -> list[Session]:
        """The sessions that are listed of all users of the app."""
        response = await self.service.list_sessions(app_name=self.names["app_name"], user_id=None)
        return response.sessions

    async def delete(self, session_id: str) -> None:
        """Deletes a session."""
        await self.service.delete_session(**self.names, session_id=session_id)

    async def user_state(self) -> dict[str, Any]:
        """The state of the user."""
        return await self.service.get_user_state(**self.names)

    async def append(
        self, session: Session, delta: Mapping[str, Any] | None = None, **fields: Any
    ) -> Event:
        """Appends a small event."""
        return await self.append_event(session, make_event(delta, **fields))

    async def append_event(self, session: Session, event: Event) -> Event:
        """Appends an event, within a time that a service that works keeps to."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.service.append_event(session, event)


def make_event(delta: Mapping[str, Any] | None = None, **fields: Any) -> Event:
    """A small event with a delta."""
    actions = EventActions(state_delta=dict(delta or {}))
    return Event(**{"author": "user", "invocation_id": "i", "actions": actions, **fields})


def make_content(text: str) -> types.Content:
    """What a user says."""
    return types.Content(role="user", parts=[types.Part(text=text)])


def event_ids(session: Session) -> list[str]:
    """The ids of a session's events, in order."""
    return [event.id for event in session.events]


def restore(session: Session) -> Session:
    """The session as it comes back from its JSON, which does not carry the marker."""
    restored = Session.model_validate_json(session.model_dump_json())
    assert get_marker(restored) is None
    return restored


class Contract:
    """Base of the contracts: a subclass overrides the fixture `service`.

    `deviations` lists known ones by the name of the test, parameters included: these tests must
    fail, and in the way that is given.
    """

    deviations: ClassVar[Mapping[str, Deviation]] = {}

    def __init_subclass__(cls) -> None:
        """Refuses deviations from tests that do not exist."""
        super().__init_subclass__()
        if unknown := {n for n in cls.deviations if not hasattr(cls, n.partition("[")[0])}:
            raise TypeError(f"{cls.__name__} has no tests called {sorted(unknown)}")

    @pytest.fixture
    def service(self) -> BaseSessionService:
        """The service to test, empty. A fixture that yields may close it afterwards."""
        raise NotImplementedError("override the fixture `service`")

    @pytest.fixture
    def sessions(self, service: BaseSessionService) -> Sessions:
        """The service, with the names filled in."""
        return Sessions(service)

    @pytest.fixture(autouse=True)
    def _expect_known_deviation(self, request: pytest.FixtureRequest) -> None:
        if (known := self.deviations.get(request.node.name)) is not None:
            what, raises, strict = known
            request.applymarker(pytest.mark.xfail(reason=what, raises=raises, strict=strict))

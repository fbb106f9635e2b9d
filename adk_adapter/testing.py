"""The contract of ADK's session services, as tests that take any of them.

    from adk_adapter.testing import SessionServiceContract

    class TestMyService(SessionServiceContract):
        @pytest.fixture
        def service(self, tmp_path):
            return MyService(tmp_path / "sessions.db")

Every test names its point, and the part of the contract it belongs to: 1.1 calling, 1.2 creation,
1.3 loading, 1.4 listing, 1.5 deletion, 1.6 user state, 1.7 appending, 1.8 flushing and event
loops, 3 values, 4 order and time, 5 concurrency, 6 the revision a service may leave in
`session._storage_update_marker`.

The tests are coroutines: run them with pytest-asyncio in auto mode, or mark the class. For readable
failures call `pytest.register_assert_rewrite("adk_adapter.testing")` in a conftest.py first.
"""

from __future__ import annotations

import asyncio
import copy
import datetime
import decimal
import enum
import json
import math
import pathlib
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, NamedTuple

import pydantic
import pytest
from fastapi.openapi.models import APIKey
from google.adk.auth import AuthConfig
from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from adk_adapter._adk import AlreadyExistsError, SessionNotFoundError, StaleSessionError, get_marker

__all__ = [
    "FULL_EVENT",
    "AppendContract",
    "ConcurrencyContract",
    "Contract",
    "CreateContract",
    "DeleteContract",
    "Deviation",
    "GetContract",
    "ListContract",
    "LiveSessionContract",
    "OrderContract",
    "RetryContract",
    "SessionServiceContract",
    "StalenessContract",
    "UserStateContract",
    "ValueContract",
]

_PAST: Final = 1_700_000_000.0
_PATIENCE_SECONDS: Final = 10  # a service that hangs fails its test
_PADDING: Final = " \t\N{EM SPACE}"


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

_RICH: Final[Mapping[str, tuple[Any, Any]]] = {
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

_HARD: Final[Mapping[str, Any]] = {
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

_KEYS: Final = (
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


class _Sessions:
    """A session service with the names filled in."""

    def __init__(self, service: BaseSessionService, app: str = "app", user: str = "user") -> None:
        self.service = service
        self.names = {"app_name": app, "user_id": user}

    def of(self, *, app: str = "app", user: str = "user") -> _Sessions:
        return _Sessions(self.service, app, user)

    async def create(self, session_id: str | None, state: dict[str, Any] | None = None) -> Session:
        return await self.service.create_session(**self.names, session_id=session_id, state=state)

    async def create_conversation(self) -> Session:
        """Makes the session "s" with the events "1" to "5", a second apart."""
        live = await self.create("s", {"k": "old"})
        for n in range(1, 6):
            await self.append(live, {"k": n}, id=str(n), timestamp=_PAST + n)
        return live

    async def get(self, session_id: Any, **filters: Any) -> Session | None:
        config = GetSessionConfig(**filters) if filters else None
        return await self.service.get_session(**self.names, session_id=session_id, config=config)

    async def load(self, session_id: str = "s", **filters: Any) -> Session:
        session = await self.get(session_id, **filters)
        assert session is not None
        return session

    async def listed(self) -> list[Session]:
        return (await self.service.list_sessions(**self.names)).sessions

    async def listed_for_all(self) -> list[Session]:
        response = await self.service.list_sessions(app_name=self.names["app_name"], user_id=None)
        return response.sessions

    async def delete(self, session_id: str) -> None:
        await self.service.delete_session(**self.names, session_id=session_id)

    async def user_state(self) -> dict[str, Any]:
        return await self.service.get_user_state(**self.names)

    async def append(
        self, session: Session, delta: Mapping[str, Any] | None = None, **fields: Any
    ) -> Event:
        return await self.append_event(session, _event(delta, **fields))

    async def append_event(self, session: Session, event: Event) -> Event:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await self.service.append_event(session, event)


def _event(delta: Mapping[str, Any] | None = None, **fields: Any) -> Event:
    actions = EventActions(state_delta=dict(delta or {}))
    return Event(**{"author": "user", "invocation_id": "i", "actions": actions, **fields})


def _content(text: str) -> types.Content:
    return types.Content(role="user", parts=[types.Part(text=text)])


def _ids(session: Session) -> list[str]:
    return [event.id for event in session.events]


def _restored(session: Session) -> Session:
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
    def sessions(self, service: BaseSessionService) -> _Sessions:
        """The service, with the names filled in."""
        return _Sessions(service)

    @pytest.fixture(autouse=True)
    def _expect_known_deviation(self, request: pytest.FixtureRequest) -> None:
        if (known := self.deviations.get(request.node.name)) is not None:
            what, raises, strict = known
            request.applymarker(pytest.mark.xfail(reason=what, raises=raises, strict=strict))


class CreateContract(Contract):
    """create_session."""

    async def test_create_returns_the_session(self, sessions: _Sessions) -> None:
        """1.2 create_session returns id, owner and time, and no events."""
        before = time.time()
        session = await sessions.create("s")
        assert (session.id, session.app_name, session.user_id) == ("s", "app", "user")
        assert (session.events, session.state) == ([], {})
        assert before - 1e-3 <= session.last_update_time <= time.time() + 1e-3

    async def test_create_equals_get(self, sessions: _Sessions) -> None:
        """1.2 get_session right after create_session returns an equal session, marker included."""
        session = await sessions.create("s", {"k": [1, {"n": None}], "app:a": 2, "user:u": 3})
        assert await sessions.get("s") == session

    @pytest.mark.parametrize(
        "blank", [None, "", " \t", "\N{EM SPACE}"], ids=["none", "empty", "ascii", "unicode"]
    )
    async def test_create_generates_an_id(self, sessions: _Sessions, blank: str | None) -> None:
        """1.2 create_session without an id, or with a blank one, generates one."""
        first, second = await sessions.create(blank), await sessions.create(blank)
        assert first.id != second.id
        assert first.id.strip() == first.id != ""
        assert await sessions.get(first.id) == first

    async def test_create_strips_the_id(self, sessions: _Sessions) -> None:
        """1.2 create_session strips the id, of Unicode whitespace too."""
        assert (await sessions.create(f"{_PADDING}a b{_PADDING}")).id == "a b"
        assert (await sessions.load("a b")).id == "a b"

    @pytest.mark.parametrize(("app", "user"), [(" app ", " user "), ("", "")])
    async def test_create_takes_names_as_they_are(
        self, sessions: _Sessions, app: str, user: str
    ) -> None:
        """1.2 App names and user ids are not stripped, and may be empty."""
        session = await sessions.of(app=app, user=user).create("s", {"user:k": 1})
        assert (session.app_name, session.user_id) == (app, user)
        assert await sessions.get("s") is await sessions.of(app=app).get("s") is None
        assert await sessions.of(app=app, user=user).get("s") == session

    @pytest.mark.parametrize("again", ["taken", f"{_PADDING}taken "], ids=["same", "padded"])
    async def test_create_refuses_an_existing_id(self, sessions: _Sessions, again: str) -> None:
        """1.2 create_session raises AlreadyExistsError, which names the id."""
        await sessions.create("taken")
        with pytest.raises(AlreadyExistsError, match="taken"):
            await sessions.create(again)

    async def test_a_refused_create_writes_nothing(self, sessions: _Sessions) -> None:
        """1.2 A refused create_session leaves session, app and user state alone."""
        session = await sessions.create("s", {"k": 1, "app:a": 1, "user:u": 1})
        with pytest.raises(AlreadyExistsError):
            await sessions.create("s", {"k": 2, "app:a": 2, "user:u": 2, "app:new": 2})
        assert await sessions.get("s") == session

    async def test_an_id_is_scoped_to_app_and_user(self, sessions: _Sessions) -> None:
        """1.2 The same id under another app or user is another session."""
        names = (("app", "user"), ("app", "x"), ("x", "user"), ("x/y:z", "x"), ("x", "y:z/x"))
        owners = [sessions.of(app=app, user=user) for app, user in names]
        created = [await owner.create("s", {"k": n}) for n, owner in enumerate(owners)]
        assert [await owner.get("s") for owner in owners] == created

    @pytest.mark.parametrize(("key", "owner"), _KEYS)
    async def test_scopes(self, sessions: _Sessions, key: str, owner: str) -> None:
        """1.2 `app:` keys are the app's, `user:` keys the user's in the app, `temp:` nobody's.

        Only the first prefix is cut, and exactly; what is left may be empty, and None is a value.
        """
        state: dict[str, Any] = {key: None}
        own = {} if owner == "nobody" else state
        assert (await sessions.create("s", state)).state == (await sessions.load()).state == own
        assert (await sessions.create("t")).state == (state if owner in ("app", "user") else {})
        assert (await sessions.of(user="x").create("s")).state == (state if owner == "app" else {})
        assert (await sessions.of(app="x").create("s")).state == {}
        users = {key.removeprefix("user:"): None} if owner == "user" else {}
        assert await sessions.user_state() == users

    async def test_create_updates_shared_keys(self, sessions: _Sessions) -> None:
        """1.2 create_session updates shared keys one by one, and returns them all."""
        await sessions.create("s", {"app:a": 1, "app:b": 1, "user:u": 1, "user:v": 1})
        session = await sessions.create("t", {"app:b": 2, "user:v": 2})
        assert session.state == {"app:a": 1, "app:b": 2, "user:u": 1, "user:v": 2}
        assert (await sessions.load("s")).state == session.state

    async def test_create_returns_what_is_stored(self, sessions: _Sessions) -> None:
        """1.2 create_session returns values as they will be loaded: as plain JSON data."""
        session = await sessions.create("s", {key: rich for key, (rich, _) in _RICH.items()})
        assert session.state == {key: plain for key, (_, plain) in _RICH.items()}
        assert (await sessions.load("s")).state == session.state

    async def test_create_copies_what_it_is_given(self, sessions: _Sessions) -> None:
        """1.3 Changing a dict after it was passed to create_session changes nothing stored."""
        given: dict[str, Any] = {"k": [1], "app:a": [1], "user:u": [1]}
        await sessions.create("s", given)
        for value in given.values():
            value.append(2)
        given["new"] = 1
        assert (await sessions.load("s")).state == {"k": [1], "app:a": [1], "user:u": [1]}


class GetContract(Contract):
    """get_session."""

    async def test_get_of_unknown_ids(self, sessions: _Sessions) -> None:
        """1.3 get_session returns None for an unknown app, user or id, '' and None included."""
        await sessions.create("s")
        for unknown in ("t", "S", "", " ", None):
            assert await sessions.get(unknown) is None
        assert await sessions.of(user="x").get("s") is await sessions.of(app="x").get("s") is None

    async def test_get_strips_the_id(self, sessions: _Sessions) -> None:
        """1.3 get_session strips the id."""
        session = await sessions.create("s")
        assert await sessions.get(f"{_PADDING}s{_PADDING}") == session

    async def test_what_is_returned_are_copies(self, sessions: _Sessions) -> None:
        """1.3 Changing what create, get and list returned changes nothing stored."""
        created = await sessions.create("s", {"k": [1], "app:a": [1], "user:u": [1]})
        await sessions.append(await sessions.load(), content=_content("hello"))
        before = await sessions.load()
        for session in (created, await sessions.load(), *await sessions.listed()):
            for value in session.state.values():
                value.append(2)
            session.state["new"] = 1
            for event in session.events:
                event.content = None
            session.events.append(Event())
        assert await sessions.get("s") == before

    @pytest.mark.parametrize(
        ("count", "expected"), [(None, "12345"), (0, ""), (1, "5"), (2, "45"), (9, "12345")]
    )
    async def test_num_recent_events(
        self, sessions: _Sessions, count: int | None, expected: str
    ) -> None:
        """1.3 num_recent_events loads the last events, 0 none, None all of them."""
        await sessions.create_conversation()
        assert _ids(await sessions.load(num_recent_events=count)) == list(expected)

    @pytest.mark.parametrize(
        ("since", "expected"),
        [
            *((None, "12345"), (0.0, "12345"), (-1.0, "12345")),
            *((_PAST + 2.5, "345"), (_PAST + 3, "345"), (_PAST + 6, "")),
        ],
    )
    async def test_after_timestamp(
        self, sessions: _Sessions, since: float | None, expected: str
    ) -> None:
        """1.3 after_timestamp is inclusive; None, 0.0 and negative ones load all events."""
        await sessions.create_conversation()
        assert _ids(await sessions.load(after_timestamp=since)) == list(expected)

    @pytest.mark.parametrize(
        ("count", "since", "expected"), [(2, 2, "45"), (3, 4, "45"), (0, 2, ""), (2, 6, "")]
    )
    async def test_both_filters(
        self, sessions: _Sessions, count: int, since: float, expected: str
    ) -> None:
        """1.3 num_recent_events and after_timestamp both hold when both are given."""
        await sessions.create_conversation()
        session = await sessions.load(num_recent_events=count, after_timestamp=_PAST + since)
        assert _ids(session) == list(expected)

    @pytest.mark.parametrize(
        "config",
        [{"num_recent_events": 0}, {"num_recent_events": 1}, {"after_timestamp": _PAST + 4}],
        ids=["none", "last", "since"],
    )
    async def test_a_filtered_session_is_whole(
        self, sessions: _Sessions, config: dict[str, Any]
    ) -> None:
        """1.3 Filters leave state, time and marker alone: the session can be appended to."""
        whole = await sessions.create_conversation()
        session = await sessions.load(**config)
        assert session.model_copy(update={"events": whole.events}) == whole
        await sessions.append(session, {"k": "new"}, id="6", timestamp=_PAST + 6)
        stored = await sessions.load()
        assert (_ids(stored), stored.state) == (list("123456"), {"k": "new"})


class ListContract(Contract):
    """list_sessions."""

    async def test_list_of_unknown_names(self, sessions: _Sessions) -> None:
        """1.4 list_sessions of an unknown app or user is empty."""
        await sessions.create("s")
        assert (
            await sessions.of(user="x").listed()
            == await sessions.of(app="x").listed_for_all()
            == []
        )

    async def test_list_equals_get(self, sessions: _Sessions) -> None:
        """1.4 Each equals what get_session returns, merged state and marker too, without events."""
        for name, user in (("s", "user"), ("t", "user"), ("s", "x")):
            live = await sessions.of(user=user).create(name, {"k": 1, "app:a": name, "user:u": 3})
            await sessions.append(live, {"n": name})
        for session in await sessions.listed_for_all():
            stored = await sessions.of(user=session.user_id).load(session.id)
            assert len(stored.events) == 1
            assert session == stored.model_copy(update={"events": []})

    async def test_list_by_user(self, sessions: _Sessions) -> None:
        """1.4 user_id=None lists all users of the app, and '' is a user like any other."""
        for user, app in (("user", "app"), ("", "app"), ("user", "x")):
            await sessions.of(user=user, app=app).create("s")
        assert {session.user_id for session in await sessions.listed_for_all()} == {"", "user"}
        for user in ("", "user"):
            assert [s.user_id for s in await sessions.of(user=user).listed()] == [user]
        response = await sessions.service.list_sessions(app_name="app")
        assert response.sessions == await sessions.listed_for_all()

    async def test_list_order(self, sessions: _Sessions) -> None:
        """1.4 Sessions come by last_update_time, user and id, so the last changed is the last."""
        for user, name, seconds in (("b", "s", 2), ("a", "t", 2), ("b", "a", 2), ("z", "z", 1)):
            live = await sessions.of(user=user).create(name)
            await sessions.append(live, timestamp=_PAST + seconds)
        order = [f"{session.user_id}/{session.id}" for session in await sessions.listed_for_all()]
        assert order == ["z/z", "a/t", "b/a", "b/s"]
        assert [session.id for session in await sessions.of(user="b").listed()] == ["a", "s"]

    async def test_a_listed_session_can_be_appended_to(self, sessions: _Sessions) -> None:
        """1.4 append_event accepts a session that list_sessions returned."""
        await sessions.create_conversation()
        (session,) = await sessions.listed()
        await sessions.append(session, id="6", timestamp=_PAST + 6)
        assert _ids(await sessions.load()) == list("123456")


class DeleteContract(Contract):
    """delete_session."""

    @pytest.mark.parametrize("name", ["s", f"{_PADDING}s{_PADDING}"], ids=["same", "padded"])
    async def test_delete_removes_the_session(self, sessions: _Sessions, name: str) -> None:
        """1.5 A deleted session is neither loaded nor listed; the id is stripped."""
        await sessions.create_conversation()
        await sessions.delete(name)
        assert await sessions.get("s") is None
        assert await sessions.listed() == []

    async def test_delete_is_idempotent(self, sessions: _Sessions) -> None:
        """1.5 Deleting what is not there, or twice, does nothing."""
        await sessions.delete("s")
        await sessions.create("s")
        for name in ("s", "s", ""):
            await sessions.delete(name)

    async def test_delete_is_scoped(self, sessions: _Sessions) -> None:
        """1.5 delete_session leaves the same id of other users and apps, and other ids, alone."""
        kept = [await owner.create("s") for owner in (sessions.of(user="x"), sessions.of(app="x"))]
        kept.append(await sessions.create("t"))
        await sessions.create("s")
        await sessions.delete("s")
        for session in kept:
            owner = sessions.of(app=session.app_name, user=session.user_id)
            assert await owner.get(session.id) == session

    async def test_delete_keeps_shared_keys(self, sessions: _Sessions) -> None:
        """1.5 `app:` and `user:` keys outlive the session that set them."""
        live = await sessions.create("s", {"app:a": 1, "user:u": 1})
        await sessions.append(live, {"app:b": 2, "user:v": 2})
        await sessions.delete("s")
        assert await sessions.user_state() == {"u": 1, "v": 2}
        expected = {"app:a": 1, "app:b": 2, "user:u": 1, "user:v": 2}
        assert (await sessions.create("t")).state == expected

    async def test_a_deleted_id_starts_empty(self, sessions: _Sessions) -> None:
        """1.5 A deleted id can be created again, empty, and take events with the old ids."""
        await sessions.create_conversation()
        await sessions.delete("s")
        live = await sessions.create("s")
        assert (live.events, live.state) == ([], {})
        assert await sessions.get("s") == live
        await sessions.append(live, {"n": 1}, id="1", timestamp=_PAST + 9)
        assert await sessions.get("s") == live

    async def test_append_after_delete(self, sessions: _Sessions) -> None:
        """1.5 Appending to a deleted session raises SessionNotFoundError, never resurrects it."""
        live = await sessions.create_conversation()
        await sessions.delete("s")
        with pytest.raises(SessionNotFoundError):
            await sessions.append(live, {"k": 1, "app:a": 1, "user:u": 1})
        assert await sessions.get("s") is None
        assert await sessions.listed() == []
        assert (await sessions.create("s")).state == {}

    @pytest.mark.parametrize("seconds", [1, 0], ids=["later", "same"])
    async def test_an_old_object_cannot_write_into_the_new_session(
        self, sessions: _Sessions, seconds: int
    ) -> None:
        """1.5 A session object from before the deletion is refused, at the same length too."""
        old = await sessions.create("s")
        await sessions.append(old, timestamp=_PAST)
        await sessions.delete("s")
        new = await sessions.create("s")
        await sessions.append(new, timestamp=_PAST + seconds)
        with pytest.raises((StaleSessionError, SessionNotFoundError)):
            await sessions.append(old, {"k": 1}, timestamp=_PAST + 2)
        assert await sessions.get("s") == new


class UserStateContract(Contract):
    """get_user_state."""

    async def test_user_state_is_empty_at_first(self, sessions: _Sessions) -> None:
        """1.6 get_user_state is {} without a session, and without `user:` keys."""
        assert await sessions.user_state() == {}
        await sessions.create("s", {"k": 1, "app:a": 1})
        assert await sessions.user_state() == {}

    async def test_user_state_has_raw_keys(self, sessions: _Sessions) -> None:
        """1.6 get_user_state returns the user's keys without prefix, appended ones too."""
        live = await sessions.create("s", {"user:u": 1, "user:n": None, "k": 1, "app:a": 1})
        await sessions.append(live, {"user:v": 2, "user:": 3, "m": 1})
        assert await sessions.user_state() == {"u": 1, "n": None, "v": 2, "": 3}

    async def test_user_state_is_scoped(self, sessions: _Sessions) -> None:
        """1.6 get_user_state knows one user in one app."""
        owners = [sessions, sessions.of(user="x"), sessions.of(app="x")]
        for n, owner in enumerate(owners):
            await owner.create("s", {"user:u": n})
        assert [await owner.user_state() for owner in owners] == [{"u": 0}, {"u": 1}, {"u": 2}]

    async def test_user_state_is_a_copy(self, sessions: _Sessions) -> None:
        """1.6 Changing what get_user_state returned changes nothing stored."""
        await sessions.create("s", {"user:u": [1]})
        state = await sessions.user_state()
        state["u"].append(2)
        state["new"] = 1
        assert await sessions.user_state() == {"u": [1]}


class AppendContract(Contract):
    """What append_event stores, and what it refuses."""

    async def test_append_stores_event_and_state(self, sessions: _Sessions) -> None:
        """1.7.7 append_event stores the event, its delta by scope, and its time."""
        live = await sessions.create("s", {"k": 0, "old": 0, "app:a": 0, "user:u": 0})
        await sessions.append(live, {"k": 1, "app:a": 1, "user:u": 1}, id="1", timestamp=_PAST)
        stored = await sessions.load()
        assert _ids(stored) == ["1"]
        assert stored.state == {"k": 1, "old": 0, "app:a": 1, "user:u": 1}
        assert (await sessions.create("t")).state == {"app:a": 1, "user:u": 1}

    async def test_append_takes_either_form_of_call(self, sessions: _Sessions) -> None:
        """1.1 append_event may be called by position and by name."""
        live = await sessions.create("s")
        await sessions.service.append_event(live, _event(id="1"))
        await sessions.service.append_event(session=live, event=_event(id="2"))
        assert _ids(await sessions.load()) == ["1", "2"]

    async def test_partial_events_are_not_stored(self, sessions: _Sessions) -> None:
        """1.7.1 A partial event is returned and touches nothing, temp keys and delta included."""
        live = await sessions.create("s")
        before = live.model_copy(deep=True)
        event = _event({"k": 1, "temp:t": 1}, partial=True)
        assert await sessions.append_event(live, event) is event
        assert event.actions.state_delta == {"k": 1, "temp:t": 1}
        assert live == await sessions.get("s") == before

    async def test_partial_events_need_no_session(self, sessions: _Sessions) -> None:
        """1.7.1 A partial event is returned for a session that is gone, too."""
        live = await sessions.create("s")
        await sessions.delete("s")
        await sessions.append(live, partial=True)

    async def test_partial_false_is_stored(self, sessions: _Sessions) -> None:
        """1.7.1 An event with partial=False is stored and loaded as such."""
        live = await sessions.create("s")
        await sessions.append(live, partial=False)
        assert [event.partial for event in (await sessions.load()).events] == [False]

    async def test_temp_keys_are_never_stored(self, sessions: _Sessions) -> None:
        """1.7.2 `temp:` keys reach no storage, not even inside the event, whatever they hold."""
        live = await sessions.create("s")
        await sessions.append(live, {"temp:t": object(), "k": 1})
        await sessions.append(live, {"temp:": [object()]})
        stored = await sessions.load()
        assert stored.state == {"k": 1}
        assert [event.actions.state_delta for event in stored.events] == [{"k": 1}, {}]

    @pytest.mark.parametrize("name", ["id", "user_id", "app_name"])
    async def test_append_to_a_missing_session(self, sessions: _Sessions, name: str) -> None:
        """1.7.3 append_event finds its session by app, user and id, or raises."""
        live = await sessions.create("s")
        stranger = live.model_copy(update={name: "x"})
        with pytest.raises(SessionNotFoundError) as raised:
            await sessions.append(stranger, {"app:a": 1, "k": 1})
        assert isinstance(raised.value, ValueError)
        assert await sessions.listed_for_all() == [live]

    @pytest.mark.parametrize("shared", ["", "app:", "user:"], ids=["session", "app", "user"])
    async def test_a_delta_replaces_values(self, sessions: _Sessions, shared: str) -> None:
        """1.7.8 A delta replaces values, never merges into them; None is a value, no deletion."""
        live = await sessions.create("s", {f"{shared}k": {"a": 1}, f"{shared}n": 1})
        await sessions.append(live, {f"{shared}k": {"b": 2}, f"{shared}n": None})
        assert (await sessions.load()).state == {f"{shared}k": {"b": 2}, f"{shared}n": None}

    async def test_only_the_delta_is_stored(self, sessions: _Sessions) -> None:
        """1.7.13 What was written into session.state directly is not stored."""
        live = await sessions.create("s", {"k": 1})
        live.state.update({"k": 2, "direct": object(), "app:direct": 1, "user:direct": 1})
        await sessions.append(live, {"n": 1})
        assert (await sessions.load()).state == {"k": 1, "n": 1}

    async def test_append_copies_what_it_stores(self, sessions: _Sessions) -> None:
        """1.3 Changing an event or its delta after the append changes nothing stored."""
        live = await sessions.create("s")
        event = await sessions.append(live, {"k": [1], "app:a": [1]})
        before = await sessions.load()
        for value in event.actions.state_delta.values():
            value.append(2)
        event.author = "somebody"
        assert await sessions.get("s") == before

    async def test_update_time_follows_the_event(self, sessions: _Sessions) -> None:
        """1.7.11 last_update_time is the event's timestamp, also when that goes back."""
        live = await sessions.create("s")
        for timestamp in (_PAST + 2, _PAST + 1):
            await sessions.append(live, timestamp=timestamp)
            for session in (live, await sessions.load()):
                assert session.last_update_time == pytest.approx(timestamp, abs=1e-6, rel=0)

    async def test_a_refused_append_changes_nothing(self, sessions: _Sessions) -> None:
        """1.7.7 An event that cannot be stored leaves storage and live session as they were."""
        live = await sessions.create("s", {"k": 0, "app:a": 0})
        before = live.model_copy(deep=True)
        delta = {"k": 1, "app:a": 1, "user:u": 1}
        with pytest.raises(ValueError, match=r"\S"):
            await sessions.append(live, delta, custom_metadata={"m": object()})
        assert live == await sessions.get("s") == before
        await sessions.append(live, {"k": 1})
        assert live == await sessions.get("s")

    async def test_flush(self, sessions: _Sessions) -> None:
        """1.8 flush may be called at any time, and what was appended is there after it."""
        await sessions.service.flush()
        live = await sessions.create_conversation()
        await sessions.service.flush()
        assert await sessions.get("s") == live

    async def test_one_event_loop_after_another(self, sessions: _Sessions) -> None:
        """1.8 A service works in one event loop after another, with one live session."""
        live = await sessions.create("s")
        for n in (1, 2, 3):
            appending = sessions.append(live, timestamp=_PAST + n)
            await asyncio.to_thread(asyncio.run, appending)
        await sessions.append(live, timestamp=_PAST + 4)
        assert len(live.events) == 4
        assert await sessions.get("s") == live


class LiveSessionContract(Contract):
    """What append_event does to the caller's session and event."""

    async def test_append_works_in_place(self, sessions: _Sessions) -> None:
        """1.7.12 The same event is returned and listed; list and state are changed in place."""
        live = await sessions.create("s", {"k": 0})
        events, state = live.events, live.state
        event = _event({"k": 1})
        assert await sessions.append_event(live, event) is event
        assert live.events is events
        assert live.state is state
        assert state == {"k": 1}
        assert len(events) == 1
        assert events[0] is event

    async def test_append_brings_the_session_up_to_date(self, sessions: _Sessions) -> None:
        """6.1 After an append the live session equals the loaded one, marker included."""
        live = await sessions.create("s", {"k": 0, "app:a": 0})
        for n in (1, 2):
            delta = {"k": n, "app:a": n, "user:u": n}
            await sessions.append(live, delta, timestamp=_PAST + n)
            assert await sessions.get("s") == live

    async def test_temp_keys_stay_in_the_live_session(self, sessions: _Sessions) -> None:
        """1.7.2 `temp:` keys go to the live session, for its life."""
        live = await sessions.create("s")
        value = object()
        await sessions.append(live, {"temp:t": value, "k": 1})
        await sessions.append(live, {"k": 2})
        assert live.state == {"temp:t": value, "k": 2}

    async def test_temp_keys_leave_the_event(self, sessions: _Sessions) -> None:
        """1.7.2 `temp:` keys are taken out of the event, also as its copies see it."""
        live = await sessions.create("s")
        event = _event({"temp:t": 1, "k": 1})
        given, shared = event.actions.state_delta, event.model_copy()
        await sessions.append_event(live, event)
        assert event.actions.state_delta == shared.actions.state_delta == {"k": 1}
        assert given == {"temp:t": 1, "k": 1}

    async def test_the_live_session_gets_raw_values(self, sessions: _Sessions) -> None:
        """1.7.9 The live session gets the very values of the delta."""
        live = await sessions.create("s")
        delta = {key: rich for key, (rich, _) in _RICH.items()}
        await sessions.append(live, delta)
        assert all(live.state[key] is value for key, value in delta.items())

    async def test_others_keys_are_not_refreshed(self, sessions: _Sessions) -> None:
        """1.7.10 Shared keys that other sessions write are no conflict and are not refreshed."""
        live, other = await sessions.create("s"), await sessions.create("t")
        await sessions.append(other, {"app:a": 1, "user:u": 1})
        await sessions.append(live, {"user:v": 2})
        assert live.state == {"user:v": 2}
        assert (await sessions.load()).state == {"app:a": 1, "user:u": 1, "user:v": 2}

    async def test_unstored_events_in_the_session(self, sessions: _Sessions) -> None:
        """1.7.14 Events put into or taken out of session.events do not make it stale."""
        live = await sessions.create("s")
        await sessions.append(live, id="1", timestamp=_PAST + 1)
        live.events.append(_event(id="unstored"))
        await sessions.append(live, id="2", timestamp=_PAST + 2)
        assert _ids(live) == ["1", "unstored", "2"]
        live.events.clear()
        await sessions.append(live, id="3", timestamp=_PAST + 3)
        assert _ids(live) == ["3"]
        assert _ids(await sessions.load()) == ["1", "2", "3"]


class RetryContract(Contract):
    """The same event again."""

    async def test_an_event_is_stored_once(self, sessions: _Sessions) -> None:
        """1.7.5 An event that is appended again is returned, and is there once."""
        live = await sessions.create("s")
        event = await sessions.append(live, {"k": 1})
        before = live.model_copy(deep=True)
        assert await sessions.append_event(live, event) is event
        assert live == await sessions.get("s") == before

    async def test_a_delta_is_applied_once(self, sessions: _Sessions) -> None:
        """1.7.5 An event that is appended again does not apply its delta again."""
        live = await sessions.create("s")
        event = await sessions.append(live, {"k": 1, "app:a": 1}, timestamp=_PAST)
        await sessions.append(live, {"k": 2, "app:a": 2}, timestamp=_PAST + 1)
        before = live.model_copy(deep=True)
        await sessions.append_event(live, event.model_copy(deep=True))
        assert live == await sessions.get("s") == before

    async def test_a_retry_through_an_old_session(self, sessions: _Sessions) -> None:
        """1.7.5 A retry is recognised before staleness: it often comes with an old session."""
        live = await sessions.create("s")
        old = live.model_copy(deep=True)
        event = await sessions.append(live, {"k": 1}, timestamp=_PAST)
        await sessions.append(live, {"k": 2}, timestamp=_PAST + 1)
        await sessions.append_event(old, event.model_copy(deep=True))
        assert await sessions.get("s") == live

    async def test_a_retry_with_its_temp_keys(self, sessions: _Sessions) -> None:
        """1.7.5 A retry that still carries its `temp:` keys is the same event."""
        live = await sessions.create("s")
        event = _event({"k": 1, "temp:t": 1}, id="1")
        retry = event.model_copy(deep=True)
        await sessions.append_event(live, event)
        await sessions.append_event(live, retry)
        assert _ids(live) == _ids(await sessions.load()) == ["1"]

    async def test_another_event_with_the_same_id(self, sessions: _Sessions) -> None:
        """1.7.6 Another event with a stored id is stored or refused, never silently dropped."""
        live = await sessions.create("s")
        await sessions.append(live, {"k": 1}, id="1", author="first")
        before = live.model_copy(deep=True)
        try:
            await sessions.append(live, {"k": 2}, id="1", author="second")
        except Exception:
            assert live == await sessions.get("s") == before
            await sessions.append(live, {"k": 2}, author="second")
        stored = await sessions.load()
        assert {event.author for event in stored.events} == {"first", "second"}
        assert stored.state == {"k": 2}


class StalenessContract(Contract):
    """Sessions that somebody else has appended to."""

    @pytest.mark.parametrize("seconds", [1, 0, -1], ids=["later", "same", "earlier"])
    async def test_a_stale_session_is_refused(self, sessions: _Sessions, seconds: int) -> None:
        """1.7.4 A session that was overtaken raises StaleSessionError, whatever the clock said."""
        winner = await sessions.create("s")
        await sessions.append(winner, id="1", timestamp=_PAST)
        loser = await sessions.load()
        before = loser.model_copy(deep=True)
        await sessions.append(winner, {"k": 1}, id="2", timestamp=_PAST + seconds)
        with pytest.raises(StaleSessionError) as raised:
            await sessions.append(loser, {"k": 2, "app:a": 2}, id="3", timestamp=_PAST + 2)
        assert isinstance(raised.value, ValueError)
        assert loser == before
        stored = await sessions.load()
        assert ({*_ids(stored)}, stored.state) == ({"1", "2"}, {"k": 1})
        await sessions.append(stored, {"k": 2}, timestamp=_PAST + 2)

    async def test_a_copy_is_as_good_as_the_session(self, sessions: _Sessions) -> None:
        """6.1 Copies of a session carry its marker."""
        live = await sessions.create("s")
        clones: list[Callable[[Session], Session]] = [copy.copy, copy.deepcopy, Session.model_copy]
        for n, clone in enumerate(clones):
            live = clone(live)
            await sessions.append(live, timestamp=_PAST + n)
        assert len((await sessions.load()).events) == 3

    async def test_the_marker_decides(self, sessions: _Sessions) -> None:
        """6.3 last_update_time of a loaded session does not matter: clocks and floats drift."""
        live = await sessions.create_conversation()
        live.last_update_time -= 1e-4
        await sessions.append(live, timestamp=_PAST + 6)
        assert len((await sessions.load()).events) == 6

    @pytest.mark.parametrize("drift", [0, 1e-4])
    async def test_a_session_restored_from_json(self, sessions: _Sessions, drift: float) -> None:
        """6.2 A session without marker is current when its last event is the last one."""
        restored = _restored(await sessions.create_conversation())
        restored.last_update_time -= drift
        await sessions.append(restored, timestamp=_PAST + 6)
        assert len((await sessions.load()).events) == 6

    async def test_a_new_session_restored_from_json(self, sessions: _Sessions) -> None:
        """6.2 A session without marker and events is current when nothing happened since."""
        restored = _restored(await sessions.create("s"))
        await sessions.append(restored, id="1")
        assert _ids(await sessions.load()) == ["1"]

    async def test_a_session_made_by_hand(self, sessions: _Sessions) -> None:
        """6.2 A session without marker, time and events is current while there are no events."""
        await sessions.create("s")
        await sessions.append(Session(id="s", app_name="app", user_id="user"), id="1")
        assert _ids(await sessions.load()) == ["1"]

    async def test_a_stale_session_restored_from_json(self, sessions: _Sessions) -> None:
        """6.2 A session without marker raises StaleSessionError when it was overtaken."""
        live = await sessions.create_conversation()
        restored = _restored(live)
        await sessions.append(live, timestamp=_PAST + 6)
        with pytest.raises(StaleSessionError):
            await sessions.append(restored, timestamp=_PAST + 7)
        assert await sessions.get("s") == live


class ValueContract(Contract):
    """What values become when they are stored."""

    async def test_every_field_survives(self, sessions: _Sessions) -> None:
        """3 A loaded event equals the one that was appended, in every field."""
        live = await sessions.create("s")
        event = await sessions.append_event(live, FULL_EVENT.model_copy(deep=True))
        loaded = (await sessions.load()).events[0]
        differing = {n for n in Event.model_fields if getattr(loaded, n) != getattr(event, n)}
        assert differing == set()

    async def test_auth_configs_survive(self, sessions: _Sessions) -> None:
        """3 A requested auth config is loaded as what it was."""
        live = await sessions.create("s")
        scheme = APIKey.model_validate({"in": "header", "name": "key"})
        event = _event()
        event.actions.requested_auth_configs = {
            "call": AuthConfig(auth_scheme=scheme, credential_key="key")
        }
        await sessions.append_event(live, event)
        loaded = (await sessions.load()).events[0].actions.requested_auth_configs
        assert type(loaded["call"].auth_scheme) is APIKey
        assert loaded == event.actions.requested_auth_configs

    @pytest.mark.parametrize("route", [True, 1, "1", [False, 0, "0"]], ids=repr)
    async def test_routes_survive(self, sessions: _Sessions, route: Any) -> None:
        """3 A route keeps its type: True, 1 and '1' are three."""
        live = await sessions.create("s")
        event = _event()
        event.actions.route = route
        await sessions.append_event(live, event)
        assert repr((await sessions.load()).events[0].actions.route) == repr(route)

    async def test_subclasses_of_event(self, sessions: _Sessions) -> None:
        """3 An event of a subclass can be loaded; what the subclass adds does no harm."""
        live = await sessions.create("s")
        with warnings.catch_warnings(action="ignore"):
            subclass = pydantic.create_model("Subclass", __base__=Event, message=(str, "m"))
        event = subclass(author="user", content=_content("hi"))
        await sessions.append_event(live, event)
        assert (await sessions.load()).events[0].content == event.content

    async def test_state_is_plain_data(self, sessions: _Sessions) -> None:
        """1.7.9 State values are stored as plain JSON data."""
        live = await sessions.create("s")
        await sessions.append(live, {key: rich for key, (rich, _) in _RICH.items()})
        assert (await sessions.load()).state == {key: plain for key, (_, plain) in _RICH.items()}

    @pytest.mark.parametrize("value", [len, [object()], b"\xff"], ids=["code", "object", "bytes"])
    async def test_state_that_json_cannot_hold(self, sessions: _Sessions, value: Any) -> None:
        """3 A state value that JSON cannot hold is stored as text, the others as they are."""
        live = await sessions.create("s", {"k": value, "n": 1})
        await sessions.append(live, {"m": value, "app:m": value, "n": 2})
        state = (await sessions.load()).state
        assert json.loads(json.dumps(state)) == state
        assert (set(state), state["n"]) == ({"k", "m", "app:m", "n"}, 2)

    @pytest.mark.parametrize("value", _HARD.values(), ids=_HARD)
    async def test_values_outlive_other_changes(self, sessions: _Sessions, value: Any) -> None:
        """3 Values are stored exactly, and stay so when other keys change."""
        live = await sessions.create("s", {"k": value, "app:k": value, "user:k": value})
        await sessions.append(live, {"n": 1, "app:n": 1, "user:n": 1})
        state = (await sessions.load()).state
        assert [repr(state[key]) for key in ("k", "app:k", "user:k")] == [repr(value)] * 3
        assert state["n"] == state["app:n"] == state["user:n"] == 1

    async def test_nan_in_an_event(self, sessions: _Sessions) -> None:
        """3 NaN in a float field of an event does not make the session unreadable."""
        live = await sessions.create("s")
        support = types.GroundingSupport(confidence_scores=[math.nan, 0.5])
        metadata = types.GroundingMetadata(grounding_supports=[support])
        await sessions.append(live, id="1", grounding_metadata=metadata)
        assert _ids(await sessions.load()) == ["1"]

    @pytest.mark.parametrize("depth", [100, 220, 2_000])
    async def test_what_is_stored_can_be_loaded(self, sessions: _Sessions, depth: int) -> None:
        """3 A deeply nested value is stored or refused, and the session can be loaded after it."""
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        live = await sessions.create("s")
        stored = ["1"]
        try:
            await sessions.append(live, {"k": value}, id="1")
        except ValueError:
            stored = []
        assert _ids(await sessions.load()) == _ids(live) == stored

    @pytest.mark.parametrize(
        "timestamp", [1_700_000_000.1234567, 1_700_000_000_123.5, 0.0, -1.5, 1e300], ids=repr
    )
    async def test_timestamps_are_exact(self, sessions: _Sessions, timestamp: float) -> None:
        """4 Any finite float is a timestamp, and is stored exactly."""
        live = await sessions.create("s")
        await sessions.append(live, timestamp=timestamp)
        stored = await sessions.load()
        assert stored.events[0].timestamp == stored.last_update_time == timestamp

    @pytest.mark.parametrize("timestamp", [math.nan, math.inf, -math.inf])
    async def test_timestamps_are_finite(self, sessions: _Sessions, timestamp: float) -> None:
        """4 A timestamp that is no number, or infinite, is refused and does no harm."""
        live = await sessions.create("s")
        with pytest.raises(ValueError, match=r"\S"):
            await sessions.append(live, {"k": 1}, timestamp=timestamp)
        assert await sessions.get("s") == live


class OrderContract(Contract):
    """The order of events."""

    @pytest.mark.parametrize("seconds", [[0, 0, 0, 0], [1, 3, 2, 0]], ids=["tied", "falling"])
    async def test_events_come_in_append_order(
        self, sessions: _Sessions, seconds: list[int]
    ) -> None:
        """4 Events are loaded in the order of the appends, whatever their timestamps and ids."""
        live = await sessions.create("s")
        for name, second in zip("zbya", seconds, strict=True):
            await sessions.append(live, id=name, timestamp=_PAST + second)
        assert _ids(await sessions.load()) == list("zbya")
        assert _ids(await sessions.load(num_recent_events=2)) == list("ya")

    async def test_after_timestamp_looks_at_every_event(self, sessions: _Sessions) -> None:
        """1.3 after_timestamp picks events one by one when timestamps fall."""
        live = await sessions.create("s")
        for second in (1, 4, 2, 5):
            await sessions.append(live, id=str(second), timestamp=_PAST + second)
        assert _ids(await sessions.load(after_timestamp=_PAST + 3)) == ["4", "5"]


class SessionServiceContract(
    CreateContract,
    GetContract,
    ListContract,
    DeleteContract,
    UserStateContract,
    AppendContract,
    LiveSessionContract,
    RetryContract,
    StalenessContract,
    ValueContract,
    OrderContract,
):
    """The whole contract but for concurrency: what is done one call after another."""


class ConcurrencyContract(Contract):
    """Calls at once. A service that keeps the contract passes every time, others by luck."""

    async def test_appends_through_one_session(self, sessions: _Sessions) -> None:
        """1.7.15 Tasks may append through one session at once, with timestamps out of order."""
        live = await sessions.create("s")
        appends = (
            sessions.append(live, {f"n{n}": n, "last": n}, timestamp=_PAST + n * 7 % 20)
            for n in range(20)
        )
        await asyncio.gather(*appends)
        assert len(live.events) == 20
        assert len(live.state) == 21
        assert live.state["last"] == live.events[-1].actions.state_delta["last"]
        assert await sessions.get("s") == live

    async def test_one_of_two_sessions_wins(self, sessions: _Sessions) -> None:
        """1.7.4 Of two sessions loaded separately exactly one may append."""
        await sessions.create("s")
        for n in range(8):
            loaded = [await sessions.load() for _ in range(2)]
            appends = (sessions.append(live, {f"{n}.{i}": 1}) for i, live in enumerate(loaded))
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
            assert sorted(type(o).__name__ for o in outcomes) == ["Event", "StaleSessionError"]
            winner = loaded[[isinstance(o, Event) for o in outcomes].index(True)]
            assert await sessions.get("s") == winner
            assert len(winner.state) == len(winner.events) == n + 1

    async def test_shared_keys_of_appends(self, sessions: _Sessions) -> None:
        """5 `app:` and `user:` keys that many sessions append at once are all kept."""
        lives = [await sessions.create(None) for _ in range(12)]
        deltas = [{f"app:{n}": n, f"user:{n}": n} for n in range(12)]
        await asyncio.gather(*map(sessions.append, lives, deltas))
        expected = {key: value for delta in deltas for key, value in delta.items()}
        assert (await sessions.create("t")).state == expected

    async def test_shared_keys_of_creates(self, sessions: _Sessions) -> None:
        """5 `app:` and `user:` keys given to many create_session calls at once are all kept."""
        states = [{f"app:{n}": n, f"user:{n}": n} for n in range(50)]
        await asyncio.gather(*(sessions.create(None, state) for state in states))
        expected = {key: value for state in states for key, value in state.items()}
        assert (await sessions.create("t")).state == expected

    async def test_one_of_many_creates_wins(self, sessions: _Sessions) -> None:
        """1.2 Of many create_session calls with one id exactly one wins."""
        creates = (sessions.create("s", {f"app:{n}": n, "k": n}) for n in range(10))
        outcomes = await asyncio.gather(*creates, return_exceptions=True)
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Session)]
        assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 9
        assert await sessions.get("s") == winner
        assert set(winner.state) == {"k", f"app:{winner.state['k']}"}

    async def test_one_event_many_times(self, sessions: _Sessions) -> None:
        """1.7.5 An event that is appended many times at once is there once."""
        live = await sessions.create("s")
        event = _event({"k": 1}, id="1")
        await asyncio.gather(*(sessions.append_event(live, event) for _ in range(5)))
        assert _ids(live) == ["1"]
        assert await sessions.get("s") == live

    async def test_loads_are_snapshots(self, sessions: _Sessions) -> None:
        """1.3 A session loaded during appends has the state that its events make."""
        live = await sessions.create("s", {"n": 0, "app:n": 0, "user:n": 0})

        async def read() -> None:
            seen = 0
            while seen < 30:
                session = await sessions.load()
                seen = len(session.events)
                assert {*session.state.values()} == {seen}

        async def write() -> None:
            for n in range(1, 31):
                await sessions.append(live, {"n": n, "app:n": n, "user:n": n})

        await asyncio.gather(write(), read(), read())

    async def test_a_cancelled_append(self, sessions: _Sessions) -> None:
        """1.7.7 A cancelled append is stored whole or not at all, and blocks nothing."""
        live = await sessions.create("s")
        for n in range(10):
            task = asyncio.create_task(sessions.append(live, {f"{n}": n, f"app:{n}": n}))
            for _ in range(n % 4):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await sessions.append(live, {"end": 1})
        deltas = (event.actions.state_delta for event in live.events)
        assert live.state == {key: value for delta in deltas for key, value in delta.items()}
        assert await sessions.get("s") == live

    async def test_a_delete_during_appends(self, sessions: _Sessions) -> None:
        """1.5 Appends that come after a deletion fail, and none resurrects the session."""
        live = await sessions.create("s")
        before, after = ([sessions.append(live) for _ in range(5)] for _ in range(2))
        calls = (*before, sessions.delete("s"), *after)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        expected = (Event, type(None), SessionNotFoundError)
        assert [outcome for outcome in outcomes if not isinstance(outcome, expected)] == []
        assert await sessions.get("s") is None

    async def test_many_event_loops_at_once(self, sessions: _Sessions) -> None:
        """1.8 A service works in several event loops at once."""

        async def converse(name: str) -> None:
            live = await sessions.create(name)
            for n in range(5):
                await sessions.append(live, {f"app:{name}{n}": n})

        threads = (asyncio.to_thread(asyncio.run, converse(name)) for name in "abcd")
        await asyncio.gather(*threads)
        assert len((await sessions.create("s")).state) == 20

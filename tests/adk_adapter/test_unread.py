"""A loaded session whose events nobody has looked at is like one whose events are all there."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import pickle
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adk_adapter import DatabaseSessionService
from adk_adapter.codec import decode_event, encode_event, is_ours
from adk_adapter.session import Session, _attributes, count_events, growing_events, unread
from eventstore import CorruptEvent, RecordedEvent, StreamKey
from eventstore.events import Stream, StreamKind
from tests.adk_adapter.strategies import events

STREAM = Stream(1, StreamKey(StreamKind.SESSION, "a", "u", "s"), 2, 3, 2, 2, b"")


def recorded(event: Event) -> RecordedEvent:
    new = encode_event(event)
    return RecordedEvent(
        1, STREAM, 2, new.event_id, new.type, 1, 0, new.timestamp, new.author,
        new.invocation_id, new.encoding, new.delta, new.data, new.codec,
    )  # fmt: skip


def is_unread(session: Session) -> bool:
    return "events" not in _attributes.__get__(session)


def make(rows: list[RecordedEvent], *, at_once: bool) -> Session:
    assert is_ours(rows)
    session = Session.model_construct(
        id="s", app_name="a", user_id="u", state={"k": [1]}, events=[], last_update_time=2.0
    )
    session._storage_update_marker = "1:2"
    if at_once:
        session.events += [decode_event(row) for row in rows]
        return session
    session = unread(session, len(rows), lambda: [decode_event(row) for row in rows])
    assert is_unread(session)
    assert count_events(session) == len(rows)
    assert is_unread(session)
    return session


def said(text: str, **fields: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author="user", content=content, **fields)


ROWS = [recorded(said("hi", id="1", timestamp=1.0)), recorded(said("you", id="2", timestamp=2.0))]


class Holder(pydantic.BaseModel):
    """What a program may keep a session in."""

    session: AdkSession
    one_of: AdkSession | int


def without_events(session: Session) -> Any:
    del session.events
    return hasattr(session, "events"), list(session.__dict__)


def assigned(session: Session) -> Any:
    session.events = []
    return session.model_dump()


def assigned_beside_pydantic(session: Session) -> Any:
    object.__setattr__(session, "state", {"other": 1})
    return session.model_dump()


def events_assigned_beside_pydantic(session: Session) -> Any:
    event = decode_event(ROWS[0])
    object.__setattr__(session, "events", [event])
    growing_events(session).append(event)
    return session.events, session.model_dump()


def an_unknown_attribute(session: Session) -> Any:
    with pytest.raises(AttributeError) as raised:
        session.nothing  # type: ignore[attr-defined] # noqa: B018
    with pytest.raises(ValueError, match="nothing"):
        session.nothing = 1  # type: ignore[attr-defined]
    return str(raised.value)


WAYS: dict[str, Callable[[Session], Any]] = {
    "attribute": lambda s: s.events,
    "item": lambda s: s["events"],
    "other attributes": lambda s: (s.id, s.app_name, s.user_id, s.state, s.last_update_time),
    "marker": lambda s: s._storage_update_marker,
    "private": lambda s: s.__pydantic_private__,
    "getattr": lambda s: getattr(s, "events", None),
    "hasattr": lambda s: (hasattr(s, "events"), hasattr(s, "nothing")),
    "an unknown attribute": an_unknown_attribute,
    "vars": lambda s: list(vars(s).items()),
    "dir": lambda s: dir(s),
    "iteration": lambda s: list(s),
    "repr": repr,
    "str": str,
    "type": type,
    "isinstance": lambda s: (isinstance(s, AdkSession), s.__class__),
    "hash": lambda s: type(s).__hash__,
    "fields set": lambda s: (s.model_fields_set, s.model_extra),
    "model_dump": lambda s: list(s.model_dump().items()),
    "model_dump, json": lambda s: s.model_dump(mode="json", by_alias=True),
    "model_dump, unset": lambda s: s.model_dump(exclude_unset=True, exclude_none=True),
    "model_dump, defaults": lambda s: s.model_dump(exclude_defaults=True),
    "model_dump, only": lambda s: s.model_dump(include={"events": {0: {"id"}}}),
    "model_dump_json": lambda s: s.model_dump_json(by_alias=True),
    "model_copy": lambda s: s.model_copy(),
    "model_copy, deep": lambda s: s.model_copy(deep=True),
    "model_copy, update": lambda s: s.model_copy(update={"events": []}),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "pickled by its bytes": lambda s: pickle.loads(pickle.dumps(s)).model_dump_json(),
    "validated": lambda s: AdkSession.model_validate(s),
    "validated by attributes": lambda s: AdkSession.model_validate(s, from_attributes=True),
    "held": lambda s: Holder(session=s, one_of=s).model_dump_json(),
    "held as it is": lambda s: Holder.model_construct(session=s, one_of=s).model_dump(),
    "adapter": lambda s: pydantic.TypeAdapter(AdkSession).dump_json(s),
    "list adapter": lambda s: pydantic.TypeAdapter(list[Event]).dump_json(s.events),
    "plain serialiser": lambda s: AdkSession.__pydantic_serializer__.to_json(s),
    "to_jsonable_python": lambda s: pydantic.TypeAdapter(Any).dump_python(s, mode="json"),
    "equal to adk's": lambda s: s == make(ROWS, at_once=True),
    "equal from there": lambda s: AdkSession.model_validate(s.model_dump()) == s,
    "unequal": lambda s: (s == 1, s == make(ROWS[:1], at_once=True)),
    "two of them": lambda s: s == make(ROWS, at_once=False),
    "in a list": lambda s: s in [make(ROWS, at_once=True)],
    "event in": lambda s: s.events[0] in s.events and s.events.index(s.events[-1]),
    "assigned": assigned,
    "assigned beside pydantic": assigned_beside_pydantic,
    "events assigned beside pydantic": events_assigned_beside_pydantic,
    "deleted": without_events,
    "appended to": lambda s: (s.events.append(s.events[0]), s.events),
    "replaced dict": lambda s: (setattr(s, "__dict__", {"id": "1"}), vars(s)),
    "reduced": lambda s: s.__reduce_ex__(2)[2],
    "events added before": lambda s: (growing_events(s).append(s.events[0]), s.model_dump()),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_use_finds_what_is_there(way: str) -> None:
    use = WAYS[way]
    found, expected = use(make(ROWS, at_once=False)), use(make(ROWS, at_once=True))
    assert found == expected
    assert type(found) is type(expected)
    if isinstance(found, AdkSession):
        assert list(vars(found)) == list(vars(expected))
        assert found._storage_update_marker == expected._storage_update_marker


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(events(), max_size=3), st.sampled_from(sorted(WAYS)))
def test_whatever_the_events_are(some: list[Event], way: str) -> None:
    rows = [recorded(event) for event in some]
    lazy, whole = make(rows, at_once=False), make(rows, at_once=True)
    if some or way not in ("event in", "events added before", "appended to"):
        assert repr(WAYS[way](lazy)) == repr(WAYS[way](whole))
    if way not in ("deleted", "replaced dict"):
        assert pickle.dumps(lazy) == pickle.dumps(whole)
        assert not is_unread(lazy)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


async def test_appends_need_no_look_at_what_was_said_before(database: Path) -> None:
    async with DatabaseSessionService(database) as service:
        session = await service.create_session("a", "u", "s")
        before = [await service.append_event(session, said(str(n))) for n in range(3)]
        loaded = await service.get_session("a", "u", "s")
        tail = await service.get_session("a", "u", "s", GetSessionConfig(num_recent_events=1))
        assert loaded is not None
        assert tail is not None
        new = said("new", actions=EventActions(state_delta={"k": 1}))
        await service.append_event(loaded, new)
        assert is_unread(loaded)
        assert loaded.last_update_time == new.timestamp
        assert loaded.state == {"k": 1}
        assert loaded.events == [*before, new]
        assert loaded.events[-1] is new
        again = await service.get_session("a", "u", "s")
        assert again == loaded
        assert [event.id for event in tail.events] == [before[-1].id]


async def test_a_session_is_as_it_was_when_it_was_loaded(database: Path) -> None:
    async with DatabaseSessionService(database) as service:
        session = await service.create_session("a", "u", "s")
        await service.append_event(session, said("first"))
        loaded = await service.get_session("a", "u", "s")
        assert loaded is not None
        await service.append_event(session, said("second"))
        await service.delete_session("a", "u", "s")
    assert [event.content.parts[0].text for event in loaded.events] == ["first"]  # type: ignore[union-attr,index]


def test_threads_that_look_at_the_same_time_find_the_same_list() -> None:
    calls = []

    def made() -> list[Event]:
        calls.append(1)
        return [decode_event(row) for row in ROWS * 50]

    for _ in range(20):
        calls.clear()
        session = unread(make([], at_once=True), 1, made)
        barrier, found = threading.Barrier(4), []

        def look() -> None:
            barrier.wait()  # noqa: B023
            found.append((session.events, session.last_update_time, session.model_dump()))  # noqa: B023

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        growing_events(session).append(last := said("last"))
        for thread in threads:
            thread.join()
        assert len(calls) == 1
        assert len({id(events) for events, _, _ in found}) == 1
        assert session.events[-1] is last
        assert len(session.events) == 101


def test_an_interruption_while_events_are_made_leaves_them_to_be_made() -> None:
    def interrupted() -> list[Event]:
        if not tries.pop():
            raise KeyboardInterrupt
        return [decode_event(row) for row in ROWS]

    tries = [True, False]
    session = unread(make([], at_once=True), 1, interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.events  # noqa: B018
    assert [event.id for event in session.events] == ["1", "2"]


@pytest.mark.parametrize("on_corrupt", ["raise", "skip"])
async def test_a_payload_forged_with_its_digest_is_named(database: Path, on_corrupt: Any) -> None:
    async with DatabaseSessionService(database, on_corrupt=on_corrupt) as service:
        session = await service.create_session("a", "u", "s")
        for text in ("first", "second"):
            await service.append_event(session, said(text, id=text))
        text = json.dumps({"author": 3})
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("INSERT INTO maintenance VALUES (1, 'a forgery')")
        connection.execute(
            "UPDATE events SET data = ?, data_digest = ? WHERE event_id = 'first'",
            (text, hashlib.sha256(text.encode()).digest()),
        )
        connection.execute("DELETE FROM maintenance")
        connection.close()
        loaded = await service.get_session("a", "u", "s")
        assert loaded is not None
        if on_corrupt == "skip":
            assert [event.id for event in loaded.events] == ["second"]
            return
        for _ in range(2):
            with pytest.raises(CorruptEvent, match="position") as raised:
                loaded.events  # noqa: B018
            assert raised.value.version == 2
        # What is appended does not depend on it, as it does not in the log.
        await service.append_event(loaded, said("third", id="third"))


async def test_many_events_are_made_in_the_thread_that_reads_them(database: Path) -> None:
    async with DatabaseSessionService(database) as service:
        session = await service.create_session("a", "u", "s")
        await asyncio.gather(*(service.append_event(session, said("hi")) for _ in range(1_001)))
        loaded = await service.get_session("a", "u", "s")
        assert loaded is not None
        assert not is_unread(loaded)
        assert loaded == session

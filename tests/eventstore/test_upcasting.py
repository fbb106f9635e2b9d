"""Events of older schema versions, as every reader of the log sees them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from adk_adapter import DatabaseSessionService, codec
from eventstore import (
    Add,
    Change,
    CorruptEvent,
    EventStore,
    EventType,
    NewEvent,
    Projection,
    RecordedEvent,
    Stream,
    StreamKey,
    StreamKind,
    Table,
    UnknownEvent,
    open_store,
)
from eventstore.encoding import decode, encode
from eventstore.upcasting import CURRENT, UPCASTERS, Upcaster, upcast
from projections import BUILT_IN, Scope, rebuild, rebuild_scope, run, scavenge, verify
from tests.eventstore.events import new_event

RETIRED: Final = "keys_set"
"""A type that an older version wrote, and none writes any more."""


class Sums(Projection):
    """Adds up what events say of "key", by session and by app: a fold of whole events."""

    name = "sums"
    version = 1
    table = Table("sums", key={"stream_id": "integer"}, columns={"total": "integer"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.ADK_EVENT and event.delta is not None:
            n = decode(event.delta, event.encoding).get("session", {}).get("key", 0)
            for owner in (event.stream.id, event.stream.app_stream_id):
                yield Add((owner,), {"total": n})


ALL: Final = (*BUILT_IN, Sums())


def changing(
    *,
    type_: str | None = None,
    version: int = 0,
    delta: Callable[[dict[str, Any]], dict[str, Any]] = lambda delta: delta,
    data: Callable[[dict[str, Any]], None] = lambda data: None,
) -> Upcaster:
    """An upcaster made of what it does to the delta and to the data."""

    def upcaster(event: RecordedEvent) -> RecordedEvent:
        old = None if event.delta is None else decode(event.delta, event.encoding)
        payload = event.payload()
        if payload is not None:
            data(payload)
        new = None if old is None else {scope: delta(members) for scope, members in old.items()}
        (delta_text, data_text), encoding = encode([new, payload], "a test event")
        return event._replace(
            type=type_ or event.type,
            schema_version=version or event.schema_version + 1,
            delta=delta_text,
            data=data_text,
            encoding=encoding,
        )

    return upcaster


def renaming(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda members: {(new if key == old else key): v for key, v in members.items()}


def saying(word: str) -> Callable[[dict[str, Any]], None]:
    def say(data: dict[str, Any]) -> None:
        data["content"]["parts"][0]["text"] += word

    return say


def doubled(members: dict[str, Any]) -> dict[str, Any]:
    return {**members, **({"key": members["key"] * 2} if "key" in members else {})}


THE_FUTURE: Final[Mapping[tuple[str, int], Upcaster]] = {
    ("adk_event", 1): changing(delta=renaming("k", "key"), data=saying(", two")),
    ("adk_event", 2): changing(delta=doubled, data=saying(", three")),
    ("state_set", 1): changing(delta=renaming("n", "number")),
    (RETIRED, 1): changing(type_="state_set", version=1, delta=renaming("m", "n")),
}


def upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on this is a later version of the package."""
    monkeypatch.setitem(CURRENT, "adk_event", 3)
    monkeypatch.setitem(CURRENT, "state_set", 2)
    for key, upcaster in THE_FUTURE.items():
        monkeypatch.setitem(UPCASTERS, key, upcaster)


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[DatabaseSessionService]:
    async with DatabaseSessionService(path, **options) as service:
        yield service


def say(text: str, invocation_id: str = "", **state: Any) -> Event:
    return Event(
        author="user",
        invocation_id=invocation_id,
        content=types.Content(role="user", parts=[types.Part(text=text)]),
        actions=EventActions(state_delta={k.replace("__", ":"): v for k, v in state.items()}),
    )


def rewinding(invocation_id: str) -> Event:
    return Event(author="user", actions=EventActions(rewind_before_invocation_id=invocation_id))


def texts(session: Any) -> list[str]:
    return [event.content.parts[0].text for event in session.events if event.content]


async def fill(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of two events, as the older version writes it, and one key outside of them."""
    async with opened(path) as service:
        session = await service.create_session("app", "user", "s", {"first": 0})
        await service.append_event(session, say("one", "i-1", k=1, app__k="a"))
        await service.append_event(session, say("again", "i-2", k=2, user__other=1))
        await service.update_keys("app", "user", "s", {"n": 7})
    with monkeypatch.context() as older, closing(open_store(path, BUILT_IN)) as store:
        older.setitem(CURRENT, RETIRED, 1)
        await store.set_state(
            StreamKey(StreamKind.SESSION, "app", "user", "s"),
            NewEvent(
                event_id="retired",
                type=RETIRED,  # type: ignore[arg-type]
                timestamp=5.0,
                delta=b'{"session":{"m":8}}',
            ),
        )


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def rebuilt(path: Path, projections: Iterable[Projection] = BUILT_IN) -> None:
    projections = tuple(projections)
    with closing(open_store(path, projections, for_rebuild=True)) as store:
        rebuild(store, projections)


STATE: Final = "SELECT scope, state_key, state_value FROM adk_state ORDER BY 1, 2"
FOLDED: Final = [
    ("app", "key", '"aa"'),
    ("session", "first", "0"),
    ("session", "key", "4"),
    ("session", "number", "8"),
    ("user", "other", "1"),
]


async def test_a_session_is_loaded_as_this_version_understands_it(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, monkeypatch)
    before = rows(database, "SELECT * FROM events")
    upgrade(monkeypatch)
    rebuilt(database)
    async with opened(database) as service:
        session = await service.get_session("app", "user", "s")
        assert session is not None
        assert texts(session) == ["one, two, three", "again, two, three"]
        assert session.events[0].actions.state_delta == {"key": 2, "app:key": "aa"}
        assert session.state == {
            "first": 0, "key": 4, "number": 8, "user:other": 1, "app:key": "aa"
        }  # fmt: skip
        last = await service.get_session("app", "user", "s", GetSessionConfig(num_recent_events=1))
        since = await service.get_session("app", "user", "s", GetSessionConfig(after_timestamp=1.0))
        assert last is not None
        assert since is not None
        assert last.events == session.events[-1:]
        assert since.events == session.events
    assert rows(database, "SELECT * FROM events") == before


@pytest.mark.parametrize("projections", [BUILT_IN, ALL], ids=["deltas", "whole events"])
async def test_every_fold_sees_what_a_load_sees(
    database: Path, monkeypatch: pytest.MonkeyPatch, projections: tuple[Projection, ...]
) -> None:
    await fill(database, monkeypatch)
    upgrade(monkeypatch)
    with closing(open_store(database, projections, for_rebuild=True)) as store:
        # The rows are those of the older fold until they are made anew: verify says which.
        # The log and its chain are about what is stored, and whole.
        assert verify(store, BUILT_IN).drifted == {"state": 4 + 3}  # old names and new ones
        rebuild(store, projections)
        assert rows(database, STATE) == FOLDED
        assert verify(store, projections).clean
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE state SET state_value = '0'")
        connection.close()
        app, user = Scope("app"), Scope("app", "user")
        assert [done.changed for done in rebuild_scope(store, BUILT_IN, (), user)] == [0, 3]
        assert [done.changed for done in rebuild_scope(store, BUILT_IN, (), app)] == [0, 1]
        assert rows(database, STATE) == FOLDED
        first = rows(database, "SELECT min(position) FROM events WHERE type = 'adk_event'")[0][0]
        assert verify(store, projections, since=first).clean


async def test_an_asynchronous_projection_follows_in_the_new_version(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names(Sums):
        name = "names"
        table = Table("names", key={"stream_id": "integer", "state_key": "text"},
                      columns={"n": "integer"})  # fmt: skip

        def apply(self, event: RecordedEvent) -> Iterable[Change]:
            if event.delta is not None:
                for key in decode(event.delta, event.encoding).get("session", ()):
                    yield Add((event.stream.id, key), {"n": 1})

    with closing(open_store(database, BUILT_IN)) as store:
        run(store, (Names(),))
    await fill(database, monkeypatch)
    upgrade(monkeypatch)
    rebuilt(database)
    with closing(open_store(database, BUILT_IN)) as store:
        run(store, (Names(),))
        names = "SELECT state_key, n FROM names ORDER BY 1"
        assert rows(database, names) == [("first", 1), ("key", 2), ("number", 2)]
        assert verify(store, BUILT_IN, (Names(),)).clean


async def test_what_is_appended_has_the_current_version(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, monkeypatch)
    upgrade(monkeypatch)
    rebuilt(database)
    async with opened(database) as service:
        session = await service.create_session("app", "user", "new", {"user:u": 1})
        await service.append_event(session, say("new", k=1))
        await service.update_keys("app", "user", "new", {"n": 1})
        loaded = await service.get_session("app", "user", "new")
        assert loaded is not None
        # Nothing of it is upcast: it has been written as it is meant today.
        assert texts(loaded) == ["new"]
        assert (loaded.state["k"], loaded.state["n"]) == (1, 1)
        await service.delete_session("app", "user", "new")
        await asyncio.to_thread(service.vacuum)
    stored = "SELECT type, schema_version FROM events WHERE position > 5"
    # The session's own events went, what it said of its user is carried over.
    assert rows(database, stored) == [("state_set", 2), ("vacuumed", 1)]
    with closing(open_store(database, BUILT_IN)) as store:
        assert verify(store, BUILT_IN).clean


async def test_new_events_are_folded_inline_as_a_rebuild_folds_them(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, monkeypatch)
    upgrade(monkeypatch)
    rebuilt(database)
    async with opened(database) as service:
        session = await service.get_session("app", "user", "s")
        assert session is not None
        await service.append_event(session, say("new", k=1, key=1, app__k="b"))
    assert rows(database, "SELECT type, schema_version FROM events WHERE position > 5") == [
        ("adk_event", 3)
    ]
    before = rows(database, STATE)
    with closing(open_store(database, BUILT_IN)) as store:
        assert verify(store, BUILT_IN).clean
    rebuilt(database)
    assert rows(database, STATE) == before


@pytest.mark.parametrize("projections", [BUILT_IN, ALL], ids=["state", "all"])
async def test_a_vacuum_carries_over_what_the_new_version_reads(
    database: Path, monkeypatch: pytest.MonkeyPatch, projections: tuple[Projection, ...]
) -> None:
    await fill(database, monkeypatch)
    async with opened(database) as service:
        await service.delete_session("app", "user", "s")
    upgrade(monkeypatch)
    rebuilt(database, projections)
    shared = [row for row in FOLDED if row[0] != "session"]
    with closing(open_store(database, projections)) as store:
        assert rows(database, STATE) == shared
        sums = "SELECT total FROM sums" if projections is ALL else "SELECT 6"
        assert rows(database, sums) == [(6,)]  # the app's; the session's went with it
        assert scavenge(store, projections).keys_carried_over == 2
        rebuild(store, projections)
        assert rows(database, STATE) == shared
        assert rows(database, sums) == [(6,)]
        assert verify(store, projections).clean


async def test_a_rewind_is_computed_from_what_the_new_version_reads(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, monkeypatch)
    upgrade(monkeypatch)
    rebuilt(database)
    async with opened(database) as service:
        session = await service.get_session("app", "user", "s")
        assert session is not None
        event = await service.append_event(session, rewinding("i-2"))
        assert event.actions.state_delta == {"key": 2, "number": None}
        assert session.state["key"] == 2


async def test_missed_events_are_merged_in_the_new_version(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(database, monkeypatch)
    upgrade(monkeypatch)
    async with opened(database, on_stale="merge") as service:
        config = GetSessionConfig(num_recent_events=0)
        holder = await service.get_session("app", "user", "s", config)
        other = await service.get_session("app", "user", "s")
        assert holder is not None
        assert other is not None
        with monkeypatch.context() as older:
            older.setitem(CURRENT, "adk_event", 1)
            await service.append_event(other, say("missed", k=5))
        await service.append_event(holder, say("new"))
        assert texts(holder) == ["missed, two, three", "new"]
        assert holder.state["key"] == 10


async def test_what_an_upcaster_made_is_validated(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its codec is that of the models that wrote the event before, which vouch for no upcaster."""

    asked: list[str] = []
    validate = codec.validate_event
    monkeypatch.setattr(codec, "validate_event", lambda f: asked.append(f["id"]) or validate(f))
    async with opened(database) as service:
        session = await service.create_session("app", "user", "s")
        await service.append_event(session, say("hi"))
        loaded = await service.get_session("app", "user", "s")
        assert loaded is not None
        assert asked == []
        monkeypatch.setitem(CURRENT, "adk_event", 2)
        monkeypatch.setitem(UPCASTERS, ("adk_event", 1), changing())
        again = await service.get_session("app", "user", "s")
        assert again is not None
        assert asked == [event.id for event in loaded.events]
        assert again.events == loaded.events
        monkeypatch.setitem(
            UPCASTERS, ("adk_event", 1), changing(data=lambda data: data.update(author={"a": 1}))
        )
        with pytest.raises(CorruptEvent, match="author"):
            await service.get_session("app", "user", "s")


# Events of the future.


@pytest.fixture(params=["type", "version"])
def future(
    request: pytest.FixtureRequest, database: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, int]:
    """Type and version of an event at position 3, behind two that are known."""
    kind = ("of_the_future", 1) if request.param == "type" else ("adk_event", 9)

    async def write() -> None:
        async with opened(database) as service:
            session = await service.create_session("app", "user", "s", {"app:a": 1})
            await service.append_event(session, say("hi", "i-1", k=1))
            with monkeypatch.context() as newer:
                newer.setitem(CURRENT, *kind)
                if kind[0] == "adk_event":
                    await service.append_event(session, say("new"))
                else:
                    event = new_event(kind[0])  # type: ignore[arg-type]
                    key = StreamKey(StreamKind.SESSION, "app", "user", "s")
                    await service._store.set_state(key, event)
            other = await service.create_session("app", "user", "other", {"user:u": 1})
            await service.append_event(other, say("fine", k=1))

    asyncio.run(write())
    return kind


def check(error: UnknownEvent, future: tuple[str, int]) -> None:
    assert (error.position, error.type, error.schema_version) == (3, *future)
    assert error.stream == "session 's' (app 'app', user 'user')"
    for part in (error.stream, "position 3", repr(future[0]), f"version {future[1]}", "Upgrade"):
        assert part in str(error)


async def test_an_event_of_the_future_is_named_and_other_sessions_go_on(
    database: Path, future: tuple[str, int]
) -> None:
    async with opened(database, on_stale="merge") as service:
        config = GetSessionConfig(num_recent_events=1)
        for options in (None, config):
            with pytest.raises(UnknownEvent) as raised:
                await service.get_session("app", "user", "s", options)
            check(raised.value, future)
        holder = await service.get_session(
            "app", "user", "s", GetSessionConfig(num_recent_events=0)
        )
        assert holder is not None
        with pytest.raises(UnknownEvent) as raised:
            await service.append_event(holder, rewinding("i-1"))
        check(raised.value, future)
        other = await service.get_session("app", "user", "other")
        assert other is not None
        assert texts(other) == ["fine"]
        await service.append_event(other, say("goes on"))
        assert len((await service.list_sessions(app_name="app")).sessions) == 2
        with pytest.raises(UnknownEvent) as raised:
            await service.verify()
        check(raised.value, future)


async def test_a_part_of_a_conversation_is_not_served_without_the_event(
    database: Path, future: tuple[str, int]
) -> None:
    """Types that are no conversation are not asked for, whoever wrote them."""
    config = GetSessionConfig(after_timestamp=1.0)
    async with opened(database) as service:
        if future[0] == "adk_event":
            with pytest.raises(UnknownEvent) as raised:
                await service.get_session("app", "user", "s", config)
            check(raised.value, future)
        else:
            session = await service.get_session("app", "user", "s", config)
            assert session is not None
            assert texts(session) == ["hi"]


FOLDS: Final[dict[str, Callable[[EventStore], object]]] = {
    "rebuild": lambda store: rebuild(store, BUILT_IN),
    "rebuild of whole events": lambda store: rebuild(store, BUILT_IN, (Sums(),)),
    "rebuild of a scope": lambda store: rebuild_scope(store, BUILT_IN, (), Scope("app")),
    "follow": lambda store: run(store, (Sums(),)),
    "verify": lambda store: verify(store, BUILT_IN),
    "vacuum": lambda store: scavenge(store, BUILT_IN),
}


@pytest.mark.parametrize("fold", FOLDS)
async def test_no_fold_leaves_an_event_of_the_future_out(
    database: Path, future: tuple[str, int], fold: str
) -> None:
    async with opened(database) as service:
        await service.delete_session("app", "user", "s")
    before = rows(database, STATE), rows(database, "SELECT * FROM events")
    with closing(open_store(database, BUILT_IN)) as store:
        with pytest.raises(UnknownEvent) as raised:
            FOLDS[fold](store)
        check(raised.value, future)
    assert (rows(database, STATE), rows(database, "SELECT * FROM events")) == before


# The rules.

STREAM: Final = Stream(1, StreamKey(StreamKind.SESSION, "a", "u", "s"), 2, 3, 9, 9, b"")
OLD: Final = RecordedEvent(
    5, STREAM, 4, "id", RETIRED, 1, 6, 7.0, "author", "i-1", 1, b'{"session":{}}', None, "codec"
)


def test_an_upcaster_changes_what_it_may_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = RecordedEvent(
        0, STREAM._replace(id=0), 0, "", "state_set", 1, 0, 0.0, "", "", 2, None, b"{}", "other"
    )
    monkeypatch.setitem(UPCASTERS, (RETIRED, 1), lambda _: everything)
    assert upcast(OLD) == OLD._replace(
        type="state_set", encoding=2, delta=None, data=b"{}", codec=""
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("state_set", 1), ("state_set", 1)),
        (("state_set", 1), ("state_set", 3)),
        (("adk_event", 1), ("state_set", 3)),
        (("session_deleted", 1), ("state_set", 3)),
        (("session_created", 1), (RETIRED, 1)),
        ((RETIRED, 1), ("adk_event", 3)),
        ((RETIRED, 1), ("session_created", 3)),
        ((RETIRED, 1), ("session_deleted", 3)),
    ],
)
def test_an_upcaster_that_breaks_the_rules(
    monkeypatch: pytest.MonkeyPatch, before: tuple[str, int], after: tuple[str, int]
) -> None:
    for type_ in EventType:
        monkeypatch.setitem(CURRENT, str(type_), 3)
    monkeypatch.setitem(UPCASTERS, before, changing(type_=after[0], version=after[1]))
    old = OLD._replace(type=before[0], schema_version=before[1])
    with pytest.raises(AssertionError):
        upcast(old)


def test_a_gap_between_upcasters_names_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CURRENT, "state_set", 3)
    monkeypatch.setitem(UPCASTERS, (RETIRED, 1), changing(type_="state_set", version=1))
    with pytest.raises(UnknownEvent, match=f"'{RETIRED}' in schema version 1"):
        upcast(OLD)


def test_every_version_that_was_ever_written_can_be_read() -> None:
    assert CURRENT.keys() >= {str(type_) for type_ in EventType}
    written = {(type_, n) for type_, newest in CURRENT.items() for n in range(1, newest)}
    assert UPCASTERS.keys() >= written
    assert not [key for key in UPCASTERS if key[1] >= CURRENT.get(key[0], key[1] + 1)]

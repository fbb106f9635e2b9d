"""What every backend promises: appends, versions, retries, deletion, reads."""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from eventstore import (
    Appended,
    Cursor,
    EventIdConflict,
    EventStore,
    EventType,
    Loaded,
    MaintenanceTransaction,
    RecordedEvent,
    StoreClosed,
    StreamExists,
    StreamKey,
    StreamKind,
    StreamNotFound,
    ValueNotStorable,
    Window,
    WrongExpectedVersion,
)
from tests.eventstore.events import SESSION, created, new_event, session
from tests.places import on_server

EVERYTHING = Window()


async def load(store: EventStore, key: StreamKey = SESSION, window: Window = EVERYTHING) -> Loaded:
    loaded = await store.load(key, window, lambda loaded: loaded)
    assert loaded is not None
    return loaded


def state(loaded: Loaded) -> dict[tuple[str, str], str]:
    names = {owner: scope for scope, owner in loaded.stream.owners.items()}
    return {(names[owner], key): value for owner, key, value, _ in loaded.rows["state"]}


async def opened(store: EventStore, key: StreamKey = SESSION, **scopes: dict[str, Any]) -> Cursor:
    loaded = await store.create(key, created(**scopes))
    return Cursor(loaded.stream.id, loaded.stream.conversation_version)


async def test_versions_are_dense_and_order_is_append_order(store: EventStore) -> None:
    cursor = await opened(store)
    for n in range(5):
        await store.append(SESSION, new_event(data={"n": n}, timestamp=5.0 - n), cursor)
    events = (await load(store)).events
    assert [event.version for event in events] == [2, 3, 4, 5, 6]
    assert [event.data for event in events] == [f'{{"n":{n}}}'.encode() for n in range(5)]


async def test_only_one_of_two_holders_appends(store: EventStore) -> None:
    first = await opened(store)
    second = Cursor(first.stream_id, first.version)
    await store.append(SESSION, new_event(), first)
    with pytest.raises(WrongExpectedVersion) as raised:
        await store.append(SESSION, new_event(), second)
    assert raised.value.stream == str(SESSION)
    assert raised.value.expected == f"{first.stream_id}:1"
    assert raised.value.actual == f"{first.stream_id}:2"
    assert len((await load(store)).events) == 1


async def test_exactly_one_of_many_holders_wins_each_round(store: EventStore) -> None:
    winner = await opened(store)
    for _ in range(10):
        holders = [Cursor(winner.stream_id, winner.version) for _ in range(8)]
        outcomes = await asyncio.gather(
            *(store.append(SESSION, new_event(), holder) for holder in holders),
            return_exceptions=True,
        )
        won = [h for h, o in zip(holders, outcomes, strict=True) if isinstance(o, Appended)]
        assert len(won) == 1
        winner = won[0]
    assert len((await load(store)).events) == 10


async def test_one_holder_may_have_many_appends_under_way(store: EventStore) -> None:
    cursor = await opened(store)
    appended = await asyncio.gather(
        *(store.append(SESSION, new_event(), cursor) for _ in range(50))
    )
    assert [a.version for a in appended] == list(range(2, 52))
    assert cursor.version == 51


async def test_the_same_event_again_changes_nothing(store: EventStore) -> None:
    cursor = await opened(store)
    event = new_event(delta={"session": {"n": 1}})
    first = await store.append(SESSION, event, cursor)
    await store.append(SESSION, new_event(delta={"session": {"n": 2}}), cursor)
    for holder, news in ((cursor, False), (Cursor(cursor.stream_id, 1), True)):
        again = await store.append(SESSION, event, holder)
        assert (again.version, again.news) == (first.version, news)
    loaded = await load(store)
    assert len(loaded.events) == 2
    assert state(loaded) == {("session", "n"): "2"}


async def test_a_holder_that_only_missed_its_own_event_goes_on(store: EventStore) -> None:
    cursor = await opened(store)
    event = new_event()
    await store.append(SESSION, event, Cursor(cursor.stream_id, cursor.version))
    assert (await store.append(SESSION, event, cursor)).news
    await store.append(SESSION, new_event(), cursor)
    assert len((await load(store)).events) == 2


async def test_the_same_id_with_other_content_is_an_error(store: EventStore) -> None:
    cursor = await opened(store)
    await store.append(SESSION, new_event(event_id="e", data={"n": 1}), cursor)
    with pytest.raises(EventIdConflict) as raised:
        await store.append(SESSION, new_event(event_id="e", data={"n": 2}), cursor)
    assert (raised.value.event_id, raised.value.version) == ("e", 2)
    assert len((await load(store)).events) == 1


@pytest.mark.parametrize("taken", ["id of a stored one", "id of one before", "position"])
async def test_an_imported_event_has_no_id_or_position_of_another(
    store: EventStore, taken: str
) -> None:
    cursor = await opened(store)
    await store.append(SESSION, new_event(event_id="e"), cursor)
    logged = store.snapshot(lambda s: s.read_log(0, s.head(), 10))[-1]

    def take(transaction: MaintenanceTransaction) -> None:
        stream = transaction.find_stream(SESSION)
        assert stream is not None
        event_ids = {"id of one before": ["f", "f"], "position": ["f"]}.get(taken, ["f", "e"])
        for version, event_id in enumerate(event_ids, 3):
            event = logged.event._replace(version=version, event_id=event_id)
            position = logged.event.position if taken == "position" else 0
            stream = transaction.import_event(stream, logged._replace(event=event), position)

    with pytest.raises(EventIdConflict, match=r"'[ef]'"):
        store.transact(take)
    await store.append(SESSION, new_event(), cursor)
    assert [event.version for event in (await load(store)).events] == [2, 3]


async def test_a_failing_append_does_not_harm_those_committed_with_it(store: EventStore) -> None:
    keys = [session(str(n)) for n in range(20)]
    cursors = [await opened(store, key) for key in keys]
    stale = Cursor(cursors[3].stream_id, 0)
    cursors[3] = stale
    outcomes = await asyncio.gather(
        *(store.append(k, new_event(), c) for k, c in zip(keys, cursors, strict=True)),
        store.append(session("missing"), new_event(), Cursor(1, 1)),
        return_exceptions=True,
    )
    failed = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    assert failed == [3, 20]
    assert isinstance(outcomes[3], WrongExpectedVersion)
    assert isinstance(outcomes[20], StreamNotFound)
    for n, key in enumerate(keys):
        assert len((await load(store, key)).events) == (0 if n == 3 else 1)


@pytest.mark.parametrize("timestamp", [math.nan, math.inf, -math.inf])
def test_an_event_of_no_time_cannot_be_made(timestamp: float) -> None:
    with pytest.raises(ValueNotStorable, match="timestamp"):
        new_event(timestamp=timestamp)
    with pytest.raises(ValueNotStorable, match="timestamp"):
        msgspec.structs.replace(new_event(), timestamp=timestamp)


async def test_a_stream_can_be_created_once(store: EventStore) -> None:
    outcomes = await asyncio.gather(
        *(store.create(SESSION, created(app={"by": n})) for n in range(8)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Loaded) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, StreamExists) for outcome in outcomes) == 7
    winner = next(n for n, outcome in enumerate(outcomes) if isinstance(outcome, Loaded))
    # Nothing of the refused requests was stored.
    assert state(await load(store)) == {("app", "by"): str(winner)}


async def test_scopes_are_shared_as_their_names_say(store: EventStore) -> None:
    delta = {"session": {"k": "s"}, "user": {"k": "u"}, "app": {"k": "a"}}
    await opened(store, SESSION, **delta)
    await opened(store, session("other"))
    await opened(store, session("x", user_id="other"))
    await opened(store, session("x", app_name="other"))
    assert state(await load(store)) == {(s, "k"): f'"{s[0]}"' for s in delta}
    assert state(await load(store, session("other"))) == {("user", "k"): '"u"', ("app", "k"): '"a"'}
    assert state(await load(store, session("x", user_id="other"))) == {("app", "k"): '"a"'}
    assert state(await load(store, session("x", app_name="other"))) == {}


async def test_concurrent_keys_of_shared_scopes_are_all_kept(store: EventStore) -> None:
    keys = [session(str(n)) for n in range(20)]
    cursors = [await opened(store, key) for key in keys]
    await asyncio.gather(
        *(
            store.append(key, new_event(delta={"user": {f"u{n}": n}, "app": {f"a{n}": n}}), cursor)
            for n, (key, cursor) in enumerate(zip(keys, cursors, strict=True))
        )
    )
    assert len(state(await load(store, keys[0]))) == 40


async def test_state_set_makes_nobody_stale(store: EventStore) -> None:
    cursor = await opened(store)
    await store.set_state(SESSION, new_event(EventType.STATE_SET, delta={"session": {"k": 1}}))
    await store.append(SESSION, new_event(), cursor)
    loaded = await load(store)
    assert [event.version for event in loaded.events] == [3]
    assert state(loaded) == {("session", "k"): "1"}
    with pytest.raises(StreamNotFound):
        await store.set_state(session("missing"), new_event(EventType.STATE_SET))


@pytest.mark.parametrize("again", ["set_state", "delete", "append in a transaction"])
async def test_an_event_of_any_type_has_an_id_of_its_own(store: EventStore, again: str) -> None:
    cursor = await opened(store)
    await store.append(SESSION, new_event(event_id="e"), cursor)
    event = new_event(EventType.STATE_SET, event_id="e", delta={"session": {"k": 1}})

    def write(transaction: MaintenanceTransaction) -> None:
        stream = transaction.find_stream(SESSION)
        assert stream is not None
        transaction.append(stream, event)

    async def repeat() -> None:
        if again == "append in a transaction":
            await asyncio.to_thread(store.transact, write)
        else:
            await getattr(store, again)(SESSION, event)

    with pytest.raises(EventIdConflict) as raised:
        await repeat()
    assert raised.value.event_id == "e"
    loaded = await load(store)
    assert (len(loaded.events), loaded.stream.version, state(loaded)) == (1, 2, {})
    await store.append(SESSION, new_event(), cursor)


async def test_a_deleted_stream_takes_no_more_and_its_key_starts_anew(store: EventStore) -> None:
    cursor = await opened(store, session={"k": 1}, user={"u": 1})
    await store.append(SESSION, new_event(event_id="e"), cursor)
    assert await store.delete(SESSION, new_event(EventType.SESSION_DELETED)) is True
    assert await store.delete(SESSION, new_event(EventType.SESSION_DELETED)) is False
    assert await store.load(SESSION, Window(), lambda loaded: loaded) is None
    with pytest.raises(StreamNotFound):
        await store.append(SESSION, new_event(), cursor)
    again = await opened(store)
    with pytest.raises(WrongExpectedVersion):  # the old holder, although the versions agree
        await store.append(SESSION, new_event(), Cursor(cursor.stream_id, again.version))
    await store.append(SESSION, new_event(event_id="e", data={"other": 1}), again)
    loaded = await load(store)
    assert len(loaded.events) == 1
    assert state(loaded) == {("user", "u"): "1"}


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (Window(), [0, 1, 2, 3, 4, 5]),
        (Window(last=0), []),
        (Window(last=2), [4, 5]),
        (Window(last=99), [0, 1, 2, 3, 4, 5]),
        (Window(since=3.0), [3, 4, 5]),
        (Window(since=3.0, last=2), [4, 5]),
        (Window(since=99.0), []),
    ],
)
async def test_windows(store: EventStore, window: Window, expected: list[int]) -> None:
    cursor = await opened(store)
    for n in range(6):
        await store.append(SESSION, new_event(data={"n": n}, timestamp=float(n)), cursor)
        await store.set_state(SESSION, new_event(EventType.STATE_SET, timestamp=99.0))
    events = (await load(store, window=window)).events
    assert [event.data for event in events] == [f'{{"n":{n}}}'.encode() for n in expected]


async def test_listing_needs_no_user_and_shows_no_events(store: EventStore) -> None:
    for user, name in (("u", "1"), ("u", "2"), ("", "3")):
        cursor = await opened(store, session(name, user), session={"s": name}, user={"u": user})
        await store.append(session(name, user), new_event(), cursor)
    await opened(store, session("4", "u", app_name="elsewhere"))
    listed = await store.load_sessions("app", None, lambda loaded: loaded)
    assert {loaded.stream.key.session_id for loaded in listed} == {"1", "2", "3"}
    assert all(not loaded.events for loaded in listed)
    assert state(next(x for x in listed if x.stream.key.session_id == "3"))["user", "u"] == '""'
    assert len(await store.load_sessions("app", "u", lambda loaded: loaded)) == 2
    assert len(await store.load_sessions("app", "", lambda loaded: loaded)) == 1
    assert await store.load_sessions("nowhere", None, lambda loaded: loaded) == []


async def test_merging_appends_behind_others_and_says_what_was_missed(store: EventStore) -> None:
    first = await opened(store)
    second = Cursor(first.stream_id, first.version)
    theirs = [new_event(data={"n": n}) for n in range(3)]
    for event in theirs:
        await store.append(SESSION, event, first)
        await store.set_state(SESSION, new_event(EventType.STATE_SET))

    def identify(event: RecordedEvent) -> str:
        return event.event_id

    merged = await asyncio.gather(
        *(store.append(SESSION, new_event(), second, merge=identify) for _ in range(2))
    )
    assert [list(a.missed) for a in merged] == [[event.event_id for event in theirs], []]
    assert [a.version for a in merged] == [8, 9]
    for holder in (Cursor(), Cursor(first.stream_id + 1, 9)):  # of no version, of another stream
        with pytest.raises(WrongExpectedVersion):
            await store.append(SESSION, new_event(), holder, merge=identify)


async def test_reading_shows_every_event(store: EventStore) -> None:
    cursor = await opened(store)
    await store.append(SESSION, new_event(), cursor)
    await store.set_state(SESSION, new_event(EventType.STATE_SET))
    types = await store.read(SESSION, lambda events: [event.type for event in events])
    assert types == ["session_created", "adk_event", "state_set"]
    assert await store.read(session("missing"), len) is None


async def test_outcomes_come_in_commit_order_whatever_becomes_of_the_task(
    store: EventStore,
) -> None:
    cursor = await opened(store)
    reported: list[int] = []
    done: list[int] = []
    futures = [
        store.append(
            SESSION,
            new_event(),
            cursor,
            on_outcome=lambda a: reported.append(a.version if a else 0),
            on_done=lambda: done.append(len(reported)),
        )
        for _ in range(10)
    ]
    futures[4].cancel()
    await asyncio.gather(*futures, return_exceptions=True)
    await store.barrier()
    assert reported == list(range(2, 12))
    assert len(done) == 10


async def test_a_callback_that_fails_fails_its_own_append_only(store: EventStore) -> None:
    cursor = await opened(store)

    def fail() -> None:
        raise KeyError("a broken callback")

    futures = [store.append(SESSION, new_event(), cursor, on_done=fail if n == 1 else None)
               for n in range(4)]  # fmt: skip
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(outcome, KeyError) for outcome in outcomes] == [False, True, False, False]


async def test_a_cancelled_append_does_not_make_the_next_one_stale(store: EventStore) -> None:
    cursor = await opened(store)
    store.append(SESSION, new_event(), cursor).cancel()
    await store.append(SESSION, new_event(), cursor)
    assert len((await load(store)).events) == 2


def test_many_event_loops_in_many_threads(store: EventStore) -> None:
    failures: list[BaseException] = []

    async def work(name: str) -> None:
        cursor = await opened(store, session(name))
        await asyncio.gather(*(store.append(session(name), new_event(), cursor) for _ in range(20)))
        loads = await asyncio.gather(*(load(store, session(name)) for _ in range(20)))
        assert [len(each.events) for each in loads] == [20] * 20
        for _ in range(20):
            await load(store, session(name))

    def run(name: str) -> None:
        try:
            for part in range(3):
                asyncio.run(work(f"{name}-{part}"))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_loop_that_is_gone_harms_nobody(store: EventStore) -> None:
    outcomes: list[Appended | None] = []

    async def hand_over_and_leave() -> None:
        cursor = await opened(store)
        for _ in range(50):
            store.append(SESSION, new_event(), cursor, on_outcome=outcomes.append)

    asyncio.run(hand_over_and_leave())
    asyncio.run(_barrier(store))
    assert [appended.version for appended in outcomes if appended] == list(range(2, 52))
    assert len(asyncio.run(load(store)).events) == 50


async def _barrier(store: EventStore) -> None:
    await store.barrier()


async def test_closing_executes_what_was_handed_over(store: EventStore) -> None:
    cursor = await opened(store)
    futures = [store.append(SESSION, new_event(), cursor) for _ in range(100)]
    store.close()
    store.close()
    assert [appended.version for appended in await asyncio.gather(*futures)] == list(range(2, 102))
    with pytest.raises(StoreClosed):
        store.append(SESSION, new_event(), cursor)
    with pytest.raises(StoreClosed):
        store.stats()


@pytest.mark.parametrize("missing", ["writer", "watchdog", "reader-1"])
async def test_a_thread_that_could_not_be_started_is_started_the_next_time(
    store: EventStore, target: str, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    before, failed, start = set(threading.enumerate()), [], threading.Thread.start

    def fail_once(thread: threading.Thread) -> None:
        if thread.name == f"eventstore-{missing}" and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_once)
    with suppress(RuntimeError):
        await store.create(SESSION, created())
    with suppress(RuntimeError):
        await store.load(SESSION, EVERYTHING, lambda loaded: loaded)
    assert failed
    with suppress(StreamExists):
        await store.create(SESSION, created())
    await asyncio.wait_for(load(store), 10)
    readers = [f"eventstore-reader-{n}" for n in range(3 if on_server(target) else 2)]
    running = sorted(thread.name for thread in set(threading.enumerate()) - before)
    assert running == [*readers, "eventstore-watchdog", "eventstore-writer"]


async def test_first_events_carry_what_the_stream_row_says(store: EventStore) -> None:
    await opened(store)
    first = store.snapshot(lambda snapshot: snapshot.read_all(0, 1, 1)[0])
    assert first.version == 1
    assert first.stream.key == SESSION
    assert StreamKind(first.stream.key.kind) is StreamKind.SESSION


async def test_holders_of_no_revision_are_told_apart_by_what_they_hold(store: EventStore) -> None:
    cursor = await opened(store)
    await store.append(SESSION, new_event(), Cursor())  # nothing was said yet
    cursor.version = 2
    for n in range(2):
        await store.append(SESSION, new_event(event_id=f"e{n}", timestamp=7.0), cursor)
    for stale in (Cursor(), Cursor(event_ids=frozenset({"e0"}), last_timestamp=7.0)):
        with pytest.raises(WrongExpectedVersion):
            await store.append(SESSION, new_event(timestamp=8.0), stale)
    fresh = Cursor(event_ids=frozenset({"e0", "e1", "never stored"}))
    await store.append(SESSION, new_event(timestamp=9.0), fresh)
    await store.append(SESSION, new_event(), fresh)
    await store.append(SESSION, new_event(), Cursor(last_timestamp=1.5))  # loaded without events
    # ADK's DatabaseSessionService keeps the microseconds of a time.
    await store.append(SESSION, new_event(timestamp=1700000000.1234567), Cursor(last_timestamp=1.5))
    await store.append(SESSION, new_event(), Cursor(last_timestamp=1700000000.123457))
    # An old event handed over again is no news to a holder that has gone on since.
    again = await store.append(
        SESSION, new_event(event_id="e0", timestamp=7.0), Cursor(event_ids=frozenset({"e0", "e1"}))
    )
    assert not again.news

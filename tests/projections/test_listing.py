"""Lists of sessions in pages, while others write; titles and labels."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from eventstore import Cursor, EventStore, EventType, InvalidInput, StreamNotFound, open_store
from projections import BUILT_IN, list_sessions, rebuild, set_labels, set_title, verify
from tests.eventstore.events import SESSION, created, new_event, session
from tests.projections.logs import query, rows


async def fill(store: EventStore, count: int = 40) -> list[str]:
    """Sessions of two apps and three users; returns their ids, the last updated first."""
    updates = list(range(count))
    random.Random(7).shuffle(updates)
    for n in range(count):
        key = session(f"s{n:02}", f"user-{n % 3}", f"app-{n % 2}")
        event = new_event(EventType.SESSION_CREATED, delta={"session": {"n": n}}, timestamp=n)
        loaded = await store.create(key, event)
        # Some at the same time: these come in the order of their creation.
        later = new_event(timestamp=1000 + updates[n] // 2)
        await store.append(key, later, Cursor(loaded.stream.id, 1))
    order = sorted(range(count), key=lambda n: (updates[n] // 2, n), reverse=True)
    return [f"s{n:02}" for n in order]


def pages(store: EventStore, limit: int, *args: Any, **filters: Any) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = list_sessions(store, *args, limit=limit, cursor=cursor, **filters)
        found += [info.session_id for info in page.sessions]
        assert len(page.sessions) <= limit
        if (cursor := page.cursor) is None:
            return found
        assert len(page.sessions) == limit


@pytest.mark.parametrize("limit", [1, 3, 20, 1000])
async def test_pages_together_are_the_list(store: EventStore, limit: int) -> None:
    order = await fill(store)

    def check() -> None:
        assert pages(store, limit) == order
        assert pages(store, limit, reverse=True) == order[::-1]
        born = sorted(order, reverse=True)
        assert pages(store, limit, order="created") == born
        assert pages(store, limit, order="created", reverse=True) == born[::-1]
        for app in ("app-0", "app-1", "none"):
            mine = [s for s in order if f"app-{int(s[1:]) % 2}" == app]
            assert pages(store, limit, app) == mine
            for user in ("user-0", "user-1", "user-2", "none"):
                his = [s for s in mine if f"user-{int(s[1:]) % 3}" == user]
                assert pages(store, limit, app, user) == his
                assert pages(store, limit, app, user, order="created") == sorted(his)[::-1]
        his = [s for s in order if int(s[1:]) % 3 == 1]
        assert pages(store, limit, None, "user-1") == his

    await asyncio.to_thread(check)


async def test_filters_by_age_title_and_labels(store: EventStore) -> None:
    order = await fill(store)

    def check() -> None:
        times = {i.session_id: i.last_update_time for i in list_sessions(store).sessions}
        for since, before in ((1005.0, None), (None, 1005.0), (1003.0, 1010.0), (2000.0, None)):
            want = [
                s
                for s in order
                if (since is None or times[s] >= since) and (before is None or times[s] < before)
            ]
            bounds = {"updated_since": since, "updated_before": before}
            assert pages(store, 3, **bounds) == want
            assert pages(store, 3, reverse=True, **bounds) == want[::-1]
            assert pages(store, 3, order="created", **bounds) == sorted(want)[::-1]
        # A list of "the last week" is asked for a moment later for each page.
        first = list_sessions(store, limit=3, updated_since=1005.0)
        second = list_sessions(store, limit=3, updated_since=1007.0, cursor=first.cursor)
        both = [*first.sessions, *second.sessions]
        assert [i.session_id for i in both] == pages(store, 6, updated_since=1005.0)[:6]
        at = datetime.fromtimestamp(1005, UTC)
        assert pages(store, 9, updated_since=at) == pages(store, 9, updated_since=1005)
        set_title(store, session("s01", "user-1", "app-1"), "Straße nach Rom")
        set_title(store, session("s04", "user-1", "app-0"), "Rom")
        set_labels(store, session("s04", "user-1", "app-0"), {"team": "a", "x": ""})
        assert set(pages(store, 1, title="ROM")) == {"s01", "s04"}
        assert pages(store, 1, title="STRASSE") == ["s01"]
        assert pages(store, 1, title="ROM", labels={"team": "a"}) == ["s04"]
        assert pages(store, 1, labels={"team": "b"}) == pages(store, 1, labels={"none": ""}) == []

    await asyncio.to_thread(check)


async def test_a_page_says_what_a_session_is(store: EventStore) -> None:
    await store.create(SESSION, created(session={"k": [1]}, user={"u": 2}, app={"a": None}))

    def check() -> None:
        set_title(store, SESSION, "t")
        set_labels(store, SESSION, {"b": "2", "a": "1"})
        (info,) = list_sessions(store, with_state=True).sessions
        assert info[:6] == ("app", "user", "session", "t", {"a": "1", "b": "2"}, 1.5)
        assert (info.last_update_time, info.events) == (1.5, 3)
        assert info.state == {"session": {"k": [1]}, "user": {"u": 2}, "app": {"a": None}}
        assert list_sessions(store).sessions[0].state is None

    await asyncio.to_thread(check)


async def test_what_is_written_while_one_pages(store: EventStore) -> None:
    order = await fill(store)

    def check() -> None:
        first = list_sessions(store, limit=10)
        moved, gone = order[25], order[30]
        n = int(moved[1:])
        key = session(moved, f"user-{n % 3}", f"app-{n % 2}")
        asyncio.run(_touch(store, key, gone))
        rest = []
        cursor = first.cursor
        while cursor is not None:
            page = list_sessions(store, limit=10, cursor=cursor)
            rest += [info.session_id for info in page.sessions]
            cursor = page.cursor
        # The one that was written to is at the top now, and none comes twice.
        assert [i.session_id for i in first.sessions] + rest == [
            s for s in order if s not in (moved, gone)
        ]
        assert pages(store, 10)[0] == moved

    await asyncio.to_thread(check)


async def _touch(store: EventStore, key: Any, gone: str) -> None:
    await store.set_state(key, new_event(EventType.STATE_SET, timestamp=9e9))
    n = int(gone[1:])
    other = session(gone, f"user-{n % 3}", f"app-{n % 2}")
    assert await store.delete(other, new_event(EventType.SESSION_DELETED))


async def test_what_cannot_be_asked(store: EventStore) -> None:
    await fill(store, 6)

    def check() -> None:
        cursor = list_sessions(store, limit=2).cursor
        wrong: list[dict[str, Any]] = [
            {"limit": 0},
            {"limit": 1001},
            {"limit": "5"},
            {"order": "title"},
            {"cursor": "nonsense"},
            {"cursor": ""},
            {"cursor": "bnVsbA=="},
            {"cursor": cursor, "order": "created"},
            {"cursor": cursor, "title": "x"},
            {"cursor": cursor, "updated_since": 1.0},
            {"cursor": "WzFd"},
            {"app_name": "a\0"},
            {"title": "\ud800"},
            {"labels": ["a"]},
            {"labels": {"a": 1}},
            {"updated_since": "yesterday"},
            {"updated_since": float("nan")},
            {"updated_since": datetime(2026, 1, 1)},
        ]
        for arguments in wrong:
            with pytest.raises(InvalidInput):
                list_sessions(store, **arguments)
        # Whatever the limit: it is no part of what is asked for.
        assert len(list_sessions(store, limit=3, cursor=cursor).sessions) == 3

    await asyncio.to_thread(check)


# Titles and labels.


async def test_titles_and_labels_are_events_that_make_nothing_stale(
    store: EventStore, target: str
) -> None:
    loaded = await store.create(SESSION, created())
    cursor = Cursor(loaded.stream.id, 1)

    def describe() -> None:
        set_title(store, SESSION, "one")
        set_title(store, SESSION, "one")  # which changes nothing
        assert set_labels(store, SESSION, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
        assert set_labels(store, SESSION, {"a": None, "c": "3"}) == {"b": "2", "c": "3"}
        assert set_labels(store, SESSION, {}) == {"b": "2", "c": "3"}

    await asyncio.to_thread(describe)
    appended = await store.append(SESSION, new_event(timestamp=7), cursor)
    assert (appended.version, appended.news) == (5, True)

    def check() -> None:
        view = query(target, "SELECT title, labels, last_update_time FROM adk_sessions")
        assert view == [("one", '{"b":"2","c":"3"}', 7.0)]
        set_title(store, SESSION, None)
        (info,) = list_sessions(store).sessions
        assert (info.title, info.last_update_time) == ("", 7.0)
        before = rows(store)
        rebuild(store, BUILT_IN)
        assert rows(store) == before
        assert verify(store, BUILT_IN).clean

    await asyncio.to_thread(check)


async def test_descriptions_that_cannot_be_stored(store: EventStore) -> None:
    await store.create(SESSION, created())

    def check() -> None:
        head = store.snapshot(lambda s: s.head())
        for title in ("x" * 1001, "\0", "\ud800", 7):
            with pytest.raises(InvalidInput):
                set_title(store, SESSION, title)  # type: ignore[arg-type]
        for labels in ({"": "x"}, {"x" * 257: ""}, {"x": "y" * 257}, {"x": 1}, {1: "x"}, "x"):
            with pytest.raises(InvalidInput):
                set_labels(store, SESSION, labels)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="at most 64"):
            set_labels(store, SESSION, {str(n): "" for n in range(65)})
        with pytest.raises(StreamNotFound):
            set_title(store, session("none"), "x")
        assert store.snapshot(lambda s: s.head()) == head

    await asyncio.to_thread(check)


def test_labels_that_are_set_at_once_are_all_kept(database: Path) -> None:
    async def work(store: EventStore) -> None:
        await store.create(SESSION, created())
        await asyncio.gather(
            *(
                asyncio.to_thread(set_labels, store, SESSION, {f"label {n}": str(n)})
                for n in range(30)
            )
        )

    with closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(work(store))
        assert len(list_sessions(store).sessions[0].labels) == 30


def test_a_page_is_found_by_an_index(database: Path) -> None:
    """However many sessions there are: no page sorts, or reads more than it shows."""
    with closing(open_store(database, BUILT_IN)):
        for owner, column in (("app", "last_update_time"), ("user", "created_at")):
            plan = query(
                database,
                f"EXPLAIN QUERY PLAN SELECT * FROM sessions WHERE {owner}_stream_id = 1 "
                f"AND ({column}, stream_id) < (5.0, 7) "
                f"ORDER BY {column} DESC, stream_id DESC LIMIT 50",
            )
            steps = " / ".join(step[3] for step in plan)
            assert "USING INDEX sessions_by" in steps
            assert f"{column}" in steps
            assert "TEMP B-TREE" not in steps

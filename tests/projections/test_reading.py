"""Reading deltas many at a time: the same rows whatever their size, and each damage by name."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventstore import CorruptEvent, Cursor, EventStore, EventType, open_store
from eventstore.sqlite import transaction
from projections import BUILT_IN, folding, rebuild
from projections.folding import fold_pages
from tests.eventstore.events import created, new_event, session
from tests.projections.logs import rows


async def fill(store: EventStore, value: str = "") -> None:
    for n in range(6):
        key = session(str(n), user_id=f"user {n % 3}")
        loaded = await store.create(key, created(session={"s": n}, user={"u": n}, app={"a": n}))
        cursor = Cursor(loaded.stream.id, 1)
        for turn in range(20):
            delta: dict[str, Any] = {"session": {"turn": turn, f"k{turn}": value}}
            if turn % 5 == 0:
                delta["user"] = {"u": turn, "x\n": "\n"}
            if turn % 7 == 0:
                delta["session"]["nan"] = float("nan")
            await store.append(key, new_event(delta=delta if turn % 3 else None), cursor)
        if n % 4 == 0:
            await store.delete(key, new_event(EventType.SESSION_DELETED))


EVENTS = 6 * 21 + 2


def execute(database: Path, statement: str, *parameters: object) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("INSERT INTO maintenance VALUES (1, 'test')")
        connection.execute(statement, parameters)
        connection.execute("DELETE FROM maintenance")


@pytest.fixture
def store(database: Path) -> Any:
    with closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(fill(store))
        yield store


@pytest.mark.parametrize("page_events", [1, 2, 7, 50, 10_000])
def test_pages_of_any_size_come_in_order_and_whole(
    store: EventStore, page_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "PAGE_EVENTS", page_events)
    before = rows(store)
    pages = list(fold_pages(store, BUILT_IN, 0, EVENTS))
    assert [page.last for page in pages] == [*range(page_events, EVENTS, page_events), EVENTS]
    assert sum(page.events for page in pages) == EVENTS
    rebuild(store, BUILT_IN)
    assert rows(store) == before


@pytest.mark.parametrize("size", [10, 100, 1_000])
def test_deltas_that_are_large_are_read_a_few_at_a_time(
    database: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "_DELTAS_BYTES", 2_000)
    with closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(fill(store, "x" * size))
        before = rows(store)
        pages = list(fold_pages(store, BUILT_IN, 0, EVENTS))
        assert len(pages) > EVENTS * size / 2_000 / 2
        assert sum(page.events for page in pages) == EVENTS
        rebuild(store, BUILT_IN)
        assert rows(store) == before


def test_an_event_as_large_as_any_is_folded_too(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(fill(store, "x"))

        async def append() -> None:
            loaded = await store.create(session("large"), created())
            large = {"session": {"large": "y" * (20 * 1024 * 1024)}}
            await store.append(
                session("large"), new_event(delta=large), Cursor(loaded.stream.id, 1)
            )

        asyncio.run(append())
        before = rows(store)
        rebuild(store, BUILT_IN)
        assert rows(store) == before


@pytest.mark.parametrize(
    "damage",
    [
        "delta = replace(delta, 'turn', 'burn')",
        "delta = replace(delta, '1', '2')",
        "delta = replace(delta, ',', ',' || char(10))",
        "delta = delta || char(10) || delta",
        "delta = delta || char(30) || delta",
        "delta = replace(delta, ',', char(30))",
        "delta = '{}'",
        "delta = 'null'",
        "delta = ''",
        "delta = '7'",
        "delta = NULL",
        "delta_digest = NULL",
        "delta_digest = x'00'",
        "delta_digest = (SELECT delta_digest FROM events WHERE position = 14)",
    ],
)
def test_damage_is_named_and_never_becomes_a_row(
    store: EventStore, database: Path, damage: str
) -> None:
    before = rows(store)
    execute(database, f"UPDATE events SET {damage} WHERE position = 12")
    with pytest.raises(CorruptEvent, match="position 12"):
        rebuild(store, BUILT_IN)
    assert rows(store) == before


@pytest.mark.parametrize(
    "time",
    [
        0.0,
        0.1,
        -7.3,
        1e-300,
        1795935502.3812547,
        1795935502381.1252,
        2.0**33,
        2.0**62,
        1e300,
        -1e300,
    ],
)
def test_times_come_back_as_they_were(database: Path, time: float) -> None:
    after = time + abs(time) / 3
    with closing(open_store(database, BUILT_IN)) as store:
        first = msgspec.structs.replace(created(session={"a": 1}), timestamp=time)
        described = new_event(EventType.SESSION_DESCRIBED, data={"title": "t"}, timestamp=7.0)

        async def fill() -> None:
            for name, last in (("one", None), ("two", None), ("three", described)):
                loaded = await store.create(session(name), first)
                cursor = Cursor(loaded.stream.id, 1)
                if name != "one":
                    await store.append(session(name), new_event(timestamp=after), cursor)
                if last is not None:
                    await store.set_state(session(name), last)

        asyncio.run(fill())
        stored = [row[1:3] for row in rows(store)["sessions"]]
        assert stored == [(time, time), (time, after), (time, after)]
        rebuild(store, BUILT_IN)
        assert [row[1:3] for row in rows(store)["sessions"]] == stored


def test_a_delta_that_belongs_to_no_session_is_refused(store: EventStore, database: Path) -> None:
    before = rows(store)
    execute(database, "UPDATE streams SET kind = 'user' WHERE id = 3")
    with pytest.raises(CorruptEvent, match="stream 3"):
        rebuild(store, BUILT_IN)
    assert rows(store) == before


def test_another_way_to_write_a_delta_is_read_as_well(store: EventStore, database: Path) -> None:
    text = '{ "session": {\n"turn": 99,\n"new":\n1 } }'
    digest = sha256(text.encode()).digest()
    with closing(sqlite3.connect(database)) as connection:
        ((position,),) = connection.execute(
            "SELECT max(position) FROM events WHERE stream_id = 5 AND type = 'adk_event'"
        ).fetchall()
    execute(
        database,
        "UPDATE events SET delta = ?, delta_digest = ? WHERE position = ?",
        *(text, digest, position),
    )
    rebuild(store, BUILT_IN)
    state = {row[1]: row[2:] for row in rows(store)["state"] if row[0] == 5}
    assert state["turn"] == ("99", position)
    assert state["new"] == ("1", position)

"""A rebuild with a helper process makes the same rows as one without."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import CorruptEvent, Cursor, EventStore, EventType, StorageFailed, open_store
from projections import BUILT_IN, parallel, rebuild, verify
from tests.eventstore.events import created, new_event, session


class Patient(ProcessPoolExecutor):
    """Waits until the helper has begun, which takes longer than folding these logs here."""

    handed_over = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(function, *args, **kwargs)
        if args:
            Patient.handed_over += 1
        else:
            future.result()
        return future


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Patient)
    monkeypatch.setattr(Patient, "handed_over", 0)
    monkeypatch.setattr(parallel, "PAGE_EVENTS", 7)
    monkeypatch.setattr(parallel, "_WORTH_A_HELPER", 10)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


async def fill(store: EventStore) -> None:
    for n in range(12):
        key = session(str(n), user_id=f"user {n % 3}")
        loaded = await store.create(key, created(session={"s": n}, user={"u": n}, app={"a": n}))
        cursor = Cursor(loaded.stream.id, 1)
        for turn in range(30):
            delta = {"session": {"turn": turn, "nan": float("nan")}, "user": {"u": turn}}
            await store.append(key, new_event(delta=delta if turn % 2 else None), cursor)
        if n % 4 == 0:
            await store.delete(key, new_event(EventType.SESSION_DELETED))


def damage(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("INSERT INTO maintenance VALUES (1, 'test')")
        connection.execute(statement)
        connection.execute("DELETE FROM maintenance")


def test_both_fold_and_the_rows_are_right(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store))
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE state SET state_value = '0'")
    done = rebuild(store, BUILT_IN, helper=True)
    assert [each.events for each in done] == [12 + 12 * 30 + 3] * 2
    assert 0 < Patient.handed_over < 375 / 7
    assert not multiprocessing.active_children()
    assert verify(store, BUILT_IN).clean
    store.close()


def test_a_damaged_event_is_named_whoever_reads_it(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store))
    for position in (100, 107, 114, 121):
        damage(database, f"UPDATE events SET delta = '{{}}' WHERE position = {position}")
    with pytest.raises(CorruptEvent, match="position 1"):
        rebuild(store, BUILT_IN, helper=True)
    assert not multiprocessing.active_children()
    store.close()


def test_a_helper_that_is_killed_ends_the_rebuild_and_harms_nothing(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store))

    def progress(_events: int, _position: int, _head: int) -> None:
        for child in multiprocessing.active_children():
            child.kill()
            child.join()

    with pytest.raises(StorageFailed, match="helped"):
        rebuild(store, BUILT_IN, helper=True, progress=progress)
    assert verify(store, BUILT_IN).clean
    rebuild(store, BUILT_IN)
    store.close()

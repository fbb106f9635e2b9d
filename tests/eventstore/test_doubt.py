"""A commit of which nothing is known: what is said of each of its requests afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventstore import Cursor, EventStore, open_store
from projections import BUILT_IN, verify
from tests.conftest import Place
from tests.eventstore.events import created, new_event, session
from tests.places import query
from tests.postgres.server import execute
from tests.postgres.test_order import somebody_waits, until

ROOT = Path(__file__).parent.parent.parent

ANOTHER = """
import asyncio, sys
from contextlib import closing
from eventstore import Cursor, Window, open_store
from projections import BUILT_IN
from tests.eventstore.events import new_event, session

async def append(store):
    stream = await store.load(session("1"), Window(last=0), lambda loaded: loaded.stream)
    event = new_event(event_id=sys.argv[2], data={"n": 1})
    await store.append(session("1"), event, Cursor(stream.id, stream.conversation_version))

with closing(open_store(sys.argv[1], BUILT_IN)) as store:
    asyncio.run(append(store))
"""
"""The same event by another process, as somebody sends it again who has heard nothing."""


async def cursors(store: EventStore, *names: str) -> list[Cursor]:
    made = [await store.create(session(name), created()) for name in names]
    return [Cursor(loaded.stream.id, 1) for loaded in made]


def append_elsewhere(target: str, event_id: str) -> None:
    subprocess.run([sys.executable, "-c", ANOTHER, target, event_id], check=True, cwd=ROOT)


def assert_are_stored(store: EventStore, target: str) -> None:
    stored = query(target, "SELECT event_id FROM events WHERE event_id IN ('first', 'second')")
    assert {row[0] for row in stored} == {"first", "second"}
    assert verify(store, BUILT_IN).clean


async def test_the_same_event_by_another_process_does_not_speak_for_a_group(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store: Any = open_store(database, BUILT_IN)
    with closing(store):
        one, two, three = await cursors(store, "1", "2", "3")
        writer, gate = store._engine._write, store._engine._gate
        commit, leave = writer._commit, gate.leave
        failed: list[Any] = []

        def fail_once(transaction: Any) -> None:
            if len(transaction.moved) > 1 and not failed:
                failed.append(transaction)
                raise sqlite3.OperationalError("disk I/O error")
            commit(transaction)

        def leave_and_let_another_in() -> None:
            leave()
            if len(failed) == 1:
                failed.append(None)
                append_elsewhere(str(database), "first")

        monkeypatch.setattr(writer, "_commit", fail_once)
        monkeypatch.setattr(gate, "leave", leave_and_let_another_in)
        # The first may be done at once, the others are one group.
        store.append(session("3"), new_event(), three)
        futures = [
            store.append(session("1"), new_event(event_id="first", data={"n": 1}), one),
            store.append(session("2"), new_event(event_id="second"), two),
        ]
        assert [(await each).version for each in futures] == [2, 2]
        assert len(failed) == 2
        stored = query(
            database, "SELECT event_id FROM events WHERE event_id IN ('first', 'second')"
        )
        assert {row[0] for row in stored} == {"first", "second"}
        assert verify(store, BUILT_IN).clean


async def test_nor_does_it_on_a_server(postgres: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = open_store(postgres.target, BUILT_IN)
    with closing(store):
        one, two, three = await cursors(store, "1", "2", "3")
        writer = store._engine._write
        carry_out, look = writer._execute, writer._look
        cut: list[int] = []

        def cut_once(connection: Any, plan: Any, group: Any, **options: Any) -> None:
            if len(group) == 2 and not cut:
                cut.append(connection.info.backend_pid)
                execute(postgres.url, f"SELECT pg_terminate_backend({cut[0]}, 10000)")
            carry_out(connection, plan, group, **options)

        def let_another_in(*arguments: Any, **options: Any) -> bool:
            if len(cut) == 1:
                cut.append(0)
                append_elsewhere(postgres.target, "first")
            return bool(look(*arguments, **options))

        monkeypatch.setattr(writer, "_execute", cut_once)
        monkeypatch.setattr(writer, "_look", let_another_in)
        with psycopg.connect(postgres.url) as holder:
            holder.execute("SELECT pg_advisory_xact_lock(%s)", (store._engine.locks.appending,))
            before = store.append(session("3"), new_event(), three)
            await asyncio.to_thread(until, partial(somebody_waits, postgres))
            futures = [
                store.append(session("1"), new_event(event_id="first", data={"n": 1}), one),
                store.append(session("2"), new_event(event_id="second"), two),
            ]
        await before
        assert [(await each).version for each in futures] == [2, 2]
        assert len(cut) == 2
        assert_are_stored(store, postgres.target)

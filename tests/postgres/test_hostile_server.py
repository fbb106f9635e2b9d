"""Servers, roles and neighbours that are not as one would wish."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from typing import Any

import msgspec
import psycopg
import pytest

from eventstore import (
    Change,
    Cursor,
    EventStore,
    Loaded,
    Projection,
    RecordedEvent,
    ServerUnavailable,
    Snapshot,
    StoreBusy,
    Table,
    Window,
    open_store,
)
from projections import BUILT_IN, rebuild, verify
from tests.conftest import Place
from tests.eventstore.events import created, new_event, session
from tests.places import query
from tests.postgres.network import relay
from tests.postgres.server import BINARIES, execute, in_wheel, running
from tests.postgres.test_operating import Hearing
from tests.postgres.test_order import somebody_waits, until, waiting


async def make(store: EventStore, *names: str) -> list[Cursor]:
    made = [await store.create(session(name), created()) for name in names]
    return [Cursor(loaded.stream.id, 1) for loaded in made]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_whatever_encoding_a_role_or_the_environment_asks_for(
    postgres: Place, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        (cursor,) = await make(store, "ü")
        await store.append(session("ü"), new_event(data={"t": "Grüße ☕"}), cursor)
    monkeypatch.undo()
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        assert verify(store, BUILT_IN).clean
        events = await store.load(session("ü"), Window(), lambda loaded: list(loaded.events))
        assert events is not None
        assert events[-1].payload() == {"t": "Grüße ☕"}


async def test_a_codec_that_a_server_lost_is_written_again(postgres: Place) -> None:
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        (cursor,) = await make(store, "s")
        await store.append(session("s"), new_event(), cursor)
        # As a server that crashed, with commits that did not wait for its disk.
        query(postgres.target, "DELETE FROM codecs WHERE id > 0")
        query(postgres.target, "INSERT INTO codecs (id, fingerprint) VALUES (99, 'test')")
        execute(
            postgres.url,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE application_name LIKE 'adk-eventstore%'",
        )
        await store.append(session("s"), new_event(), cursor)
        assert query(postgres.target, "SELECT codec FROM events ORDER BY position")[-1] == (99,)


async def test_a_role_whose_transactions_read_by_default(postgres: Place) -> None:
    open_store(postgres.target, BUILT_IN).close()
    url = f"{postgres.target}&options=-c%20default_transaction_read_only%3Don"
    with closing(open_store(url, BUILT_IN)) as store:
        (cursor,) = await make(store, "s")
        await asyncio.wait_for(store.append(session("s"), new_event(), cursor), 15)
        rebuild(store, BUILT_IN)
        assert verify(store, BUILT_IN).clean


def test_a_role_whose_transactions_must_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is long beside appends is long whatever a newer server allows its roles."""
    monkeypatch.setenv(BINARIES, str(in_wheel()))

    def take_long(snapshot: Snapshot) -> int:
        execute(server.url(), "SELECT pg_sleep(1.2)")
        return snapshot.head()

    async def ping() -> None:
        await store.ping()

    with running() as server:
        execute(
            server.url(),
            "CREATE ROLE hurried SUPERUSER LOGIN",
            "ALTER ROLE hurried SET transaction_timeout = '1s'",
        )
        with closing(open_store(server.url(user="hurried"), BUILT_IN)) as store:
            assert store.transact(take_long) == 0
            with store.maintaining("test"):
                whole = partial(store.snapshot, take_long, whole=True)
                both = partial(store.snapshot, lambda s: (whole(), s.head()))
                all_ = store.transact(lambda t: (both(), t.head()), beside_writers=True)
                assert all_ == ((0, 0), 0)
            monkeypatch.setattr("eventstore.postgres.engine._READ_AGAIN_S", 0.1)
            with psycopg.connect(server.url()) as holder:
                holder.execute("LOCK TABLE adk_eventstore.state IN ACCESS EXCLUSIVE MODE")
                with pytest.raises(ServerUnavailable, match="transaction timeout"):
                    asyncio.run(ping())


class Leaves(Projection):
    """Raises what no code of a projection should."""

    name = "leaves"
    version = 1
    table = Table("leaves", key={"stream_id": "integer"}, columns={"n": "integer"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.author == "leaves":
            raise asyncio.CancelledError
        return ()


async def test_whatever_a_projection_raises_fails_its_own_request(target: str) -> None:
    with closing(open_store(target, (*BUILT_IN, Leaves()))) as store:
        one, two = await make(store, "1", "2")
        bad = msgspec.structs.replace(new_event(), author="leaves")
        with pytest.raises(BaseException) as raised:  # noqa: PT011 - whatever it is
            await store.append(session("1"), bad, one)
        assert not isinstance(raised.value, AssertionError)
        await asyncio.wait_for(store.append(session("2"), new_event(), two), 30)
        await asyncio.wait_for(store.append(session("1"), new_event(), one), 30)


async def test_a_row_that_somebody_queues_for_keeps_no_other_session_waiting(
    postgres: Place,
) -> None:
    """The second of two that wait for a row waits for something else: for its turn."""
    row = f"SELECT 1 FROM {postgres.schema}.streams WHERE session_id = 'stuck' FOR UPDATE"
    with closing(open_store(f"{postgres.target}&lock_timeout=60", BUILT_IN)) as store:
        stuck, other = await make(store, "stuck", "other")
        with (
            psycopg.connect(postgres.url) as holder,
            psycopg.connect(postgres.url) as second,
        ):
            holder.execute(row.encode())
            queue = threading.Thread(target=second.execute, args=(row.encode(),))
            queue.start()
            await asyncio.to_thread(until, partial(waiting, postgres, "streams"))
            waits = store.append(session("stuck"), new_event(), stuck)
            for _ in range(5):
                await asyncio.wait_for(store.append(session("other"), new_event(), other), 30)
            assert not waits.done()
            holder.rollback()
            await asyncio.to_thread(queue.join)
            second.rollback()
        await asyncio.wait_for(waits, 60)


async def test_what_steps_aside_is_refused_in_time(postgres: Place) -> None:
    row = f"SELECT 1 FROM {postgres.schema}.streams WHERE session_id = 'stuck' FOR UPDATE"
    with closing(open_store(f"{postgres.target}&lock_timeout=2", BUILT_IN)) as store:
        stuck, other = await make(store, "stuck", "other")
        with psycopg.connect(postgres.url) as holder:
            holder.execute(row.encode())
            began = time.monotonic()
            waits = [store.append(session("stuck"), new_event(), stuck) for _ in range(60)]
            for _ in range(20):
                await store.append(session("other"), new_event(), other)
            assert not any(each.done() for each in waits[20:])  # the others did not wait for them
            told = await asyncio.gather(*waits, return_exceptions=True)
            assert {type(error) for error in told} == {StoreBusy}
            # One after the other they would have waited for half a minute.
            assert time.monotonic() - began < 20


OTHER = session("other", app_name="other")


async def append_to_a_stuck_app(
    store: EventStore, place: Place, holder: psycopg.Connection[Any], sessions: int
) -> list[asyncio.Future[Any]]:
    """Locks the row of an app, and lets many sessions of it write a key of the app."""
    cursors = await make(store, *(str(n) for n in range(sessions)))
    holder.execute(
        f"SELECT 1 FROM {place.schema}.streams WHERE kind = 'app' AND app_name = 'app' "
        "FOR UPDATE".encode()
    )
    return [
        store.append(session(str(n)), new_event(delta={"app": {"k": n}}), cursor)
        for n, cursor in enumerate(cursors)
    ]


async def test_many_that_want_one_lock_hardly_keep_the_others_waiting(postgres: Place) -> None:
    heard = Hearing()
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        loaded = await store.create(OTHER, created())
        with psycopg.connect(postgres.url) as holder:
            stuck = await append_to_a_stuck_app(store, postgres, holder, 60)
            store.observe(heard)
            await store.append(OTHER, new_event(), Cursor(loaded.stream.id, 1))
            assert not any(each.done() for each in stuck)
            assert sum(heard.waits) < 3
        await asyncio.wait_for(asyncio.gather(*stuck), 60)


async def test_those_that_wait_for_one_lock_go_on_together_once_it_is_free(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.postgres.engine._ASIDE_S", 5.0)
    with closing(open_store(f"{postgres.target}&lock_timeout=60", BUILT_IN)) as store:
        loaded = await store.create(OTHER, created())
        with psycopg.connect(postgres.url) as holder:
            stuck = await append_to_a_stuck_app(store, postgres, holder, 20)
            # Done behind them, when they have stepped aside.
            await store.append(OTHER, new_event(), Cursor(loaded.stream.id, 1))
        # One by one it would take more than a minute.
        await asyncio.wait_for(asyncio.gather(*stuck), 50)


async def test_what_steps_aside_is_tried_once_more_when_its_time_is_up(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(f"{postgres.target}&lock_timeout=5", BUILT_IN)) as store:
        loaded = await store.create(OTHER, created())
        cursor = Cursor(loaded.stream.id, 1)
        with psycopg.connect(postgres.url) as holder:
            stuck = await append_to_a_stuck_app(store, postgres, holder, 5)
            await store.append(OTHER, new_event(), cursor)
            # As with so many others aside that their turn does not come.
            monkeypatch.setattr("eventstore.postgres.line.Line.take_aside", lambda _: None)
        while not all(each.done() for each in stuck):
            await store.append(OTHER, new_event(), cursor)
        await asyncio.gather(*stuck)


async def test_closing_waits_for_what_came_before_only(postgres: Place) -> None:
    """And not for what another store of the process goes on writing to a row that is stuck."""
    row = f"SELECT 1 FROM {postgres.schema}.streams WHERE session_id = 'stuck' FOR UPDATE"
    target = f"{postgres.target}&lock_timeout=1"
    with closing(open_store(target, BUILT_IN)) as store:
        one = open_store(target, BUILT_IN)
        (stuck,) = await make(store, "stuck")
        writes: list[asyncio.Future[Any]] = []

        async def go_on_writing() -> None:
            while True:
                writes.append(store.append(session("stuck"), new_event(), stuck))
                await asyncio.sleep(0.05)

        with psycopg.connect(postgres.url) as holder:
            holder.execute(row.encode())
            writing = asyncio.create_task(go_on_writing())
            try:
                with pytest.raises(StoreBusy):
                    await store.append(session("stuck"), new_event(), stuck)
                await asyncio.wait_for(asyncio.to_thread(one.close), 20)
            finally:
                writing.cancel()
        await asyncio.gather(*writes, return_exceptions=True)


async def test_what_is_waited_for_includes_those_of_the_same_group(postgres: Place) -> None:
    """Which step aside only when they are tried."""
    rows = f"SELECT 1 FROM {postgres.schema}.streams WHERE session_id = %s FOR UPDATE".encode()
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        first, second = await make(store, "first", "second")
        engine: Any = store._engine  # type: ignore[attr-defined]
        with psycopg.connect(postgres.url) as one, psycopg.connect(postgres.url) as two:
            one.execute(rows, ("first",))
            two.execute(rows, ("second",))
            before = store.append(session("first"), new_event(), first)
            await asyncio.to_thread(until, lambda: session("first") in engine._line._aside)
            behind = store.append(session("second"), new_event(), second)
            flushed = store.barrier()
            await asyncio.to_thread(until, lambda: session("second") in engine._line._aside)
            one.commit()
            await before
            await store.append(session("first"), new_event(), first)
            assert not flushed.done()
            two.commit()
            await flushed
            assert behind.done()


async def test_a_frozen_writer_and_maintenance_do_not_stop_the_others(postgres: Place) -> None:
    with (
        closing(open_store(postgres.target, BUILT_IN)) as store,
        closing(open_store(f"{postgres.target}&application_name=x", BUILT_IN)) as other,
    ):
        (cursor,) = await make(store, "s")
        engine: Any = store._engine  # type: ignore[attr-defined]
        with psycopg.connect(postgres.url) as frozen:
            frozen.execute("SELECT pg_advisory_xact_lock_shared(%s)", (engine.locks.appending,))
            alone = threading.Thread(target=lambda: other.transact(lambda _: None))
            alone.start()
            await asyncio.to_thread(until, partial(somebody_waits, postgres))
            for _ in range(5):
                await asyncio.wait_for(store.append(session("s"), new_event(), cursor), 15)
            assert alone.is_alive()
        await asyncio.to_thread(alone.join)


async def test_closing_beside_a_silent_server_ends(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.postgres.engine._WATCH_S", 0.05)
    monkeypatch.setattr("eventstore.postgres.engine._GRACE_S", 1.0)
    monkeypatch.setattr("eventstore.postgres.engine._READ_AGAIN_S", 0.2)
    monkeypatch.setattr("eventstore.postgres.appending._RECONNECT_S", 0.2)
    with relay(postgres.url) as way:
        options = "&statement_timeout=2&lock_timeout=2&connect_timeout=3"
        store = open_store(way.url(postgres.target) + options, BUILT_IN)
        (cursor,) = await make(store, "s")
        way.silence()
        calls = [
            store.append(session("s"), new_event(), cursor),
            store.load_rows(session("s"), "sessions"),
        ]
        await asyncio.wait_for(asyncio.to_thread(store.close), 60)
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, Exception) for each in told)


async def test_a_reader_that_is_busy_for_long_with_what_it_has_read_is_not_cut_off(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.postgres.engine._WATCH_S", 0.01)
    # One second with the time limits of the URL, which its statements must not meet.
    monkeypatch.setattr("eventstore.postgres.engine._GRACE_S", -19.0)

    def convert(loaded: Loaded) -> str:
        time.sleep(1.5)
        return loaded.stream.key.session_id

    options = "&statement_timeout=10&lock_timeout=10"
    with closing(open_store(postgres.target + options, BUILT_IN)) as store:
        await make(store, "1", "2", "3")
        names = await store.load_sessions("app", None, convert)
        assert sorted(names) == ["1", "2", "3"]


async def test_a_group_that_a_server_does_not_take_is_not_sent_for_ever(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it ends the connection at a second event in a group, as at one that is too large."""
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        one, two, three = await make(store, "1", "2", "3")
        engine: Any = store._engine  # type: ignore[attr-defined]
        carry_out = engine._write._execute

        def refuse(connection: Any, plan: Any, group: Any, **options: Any) -> None:
            if len(plan.events) > 1:
                execute(
                    postgres.url,
                    f"SELECT pg_terminate_backend({connection.info.backend_pid}, 10000)",
                )
            carry_out(connection, plan, group, **options)

        monkeypatch.setattr(engine._write, "_execute", refuse)
        with psycopg.connect(postgres.url) as holder:
            holder.execute("SELECT pg_advisory_xact_lock(%s)", (engine.locks.appending,))
            before = store.append(session("3"), new_event(), three)
            await asyncio.to_thread(until, partial(somebody_waits, postgres))
            futures = [
                store.append(session("1"), new_event(), one),
                store.append(session("2"), new_event(), two),
            ]
        await asyncio.wait_for(asyncio.gather(before, *futures), 60)
        assert verify(store, BUILT_IN).clean


def test_an_opening_that_hangs_keeps_no_other_store_waiting(postgres: Place) -> None:
    healthy = open_store(postgres.target, BUILT_IN)
    with relay(postgres.url) as way:
        way.silence()
        url = f"{way.url(postgres.target)}&connect_timeout=10"
        opening = threading.Thread(target=_fails_to_open, args=(url,))
        opening.start()
        until(lambda: bool(way._pairs))
        healthy.close()
        assert opening.is_alive()
        way.cut(down=True)
        opening.join()


def _fails_to_open(url: str) -> None:
    with pytest.raises(ServerUnavailable):
        open_store(url, BUILT_IN)


def test_maintenance_that_lost_its_lock_changes_nothing_more(postgres: Place) -> None:
    def note() -> None:
        store.transact(lambda t: t.append(t.ensure_system_stream(), new_event()))

    def lose_it_and_go_on() -> None:
        with store.maintaining("test"):
            execute(
                postgres.url,
                "SELECT pg_terminate_backend(l.pid, 10000) "
                "FROM pg_locks AS l JOIN pg_stat_activity USING (pid) "
                "WHERE locktype = 'advisory' AND state = 'idle in transaction'",
            )
            note()

    with closing(open_store(postgres.target, BUILT_IN)) as store:
        asyncio.run(make(store, "1"))
        with pytest.raises(ServerUnavailable, match=r"kept other maintenance off\. Run it again"):
            lose_it_and_go_on()
        assert store.stats()["events"] == 1
        with store.maintaining("test"):
            note()
        assert store.stats()["events"] == 2

"""The order of the log is the order of the effects, and whoever reads the log misses nothing.

One transaction is held open in the middle by a lock of the test's: on a row, or on the events.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from eventstore import (
    Change,
    Cursor,
    EventStore,
    EventType,
    Projection,
    Put,
    RecordedEvent,
    StreamExists,
    StreamNotFound,
    Table,
    Window,
    WrongExpectedVersion,
    open_store,
)
from eventstore.postgres.appending import Writer
from eventstore.postgres.locks import Locks
from eventstore.postgres.transaction import MaintenanceTransaction
from projections import BUILT_IN, Scope, rebuild, rebuild_scope, run, status, verify
from projections.asynchronous import drop
from projections.cli import main
from projections.folding import read_page
from projections.history import Filter, tail
from projections.transfer import export_log, import_log
from tests.conftest import Place
from tests.eventstore.events import created, new_event, session
from tests.places import query
from tests.projections.logs import FOLLOWING, INLINE, perform, rows


@contextmanager
def second_process(place: Place, projections: Any = BUILT_IN) -> Iterator[EventStore]:
    """A store with an engine of its own, as another process has it."""
    other = f"{place.target}&application_name=other"
    with closing(open_store(other, projections)) as store:
        yield store


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waiting(place: Place, what: str) -> int:
    """How many sessions of the server wait for a lock while they execute such a statement."""
    with psycopg.connect(place.url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND query LIKE %s",
            (f"%{place.schema}.{what}%",),
        ).fetchone()
        assert row is not None
        return int(row[0])


def somebody_waits(place: Place) -> bool:
    """Whether somebody waits for one of our locks of all."""
    return bool(
        query(place.target, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    )


class Named(Projection):
    """A row of whichever stream the event names, alive or not."""

    name = "named"
    version = 1
    table = Table("named", {"owner": "integer"}, {"event_id": "text"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.ADK_EVENT:
            yield Put((event.payload()["to"],), (event.event_id,))


@pytest.mark.parametrize("owner", ["deleted", "never there"])
async def test_rows_of_a_stream_that_is_gone_are_written_in_order(
    postgres: Place, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    inline = (*BUILT_IN, Named())
    with (
        closing(open_store(postgres.target, inline)) as store,
        second_process(postgres, inline) as other,
    ):
        gone = (await store.create(session("gone"), created())).stream.id
        await store.delete(session("gone"), new_event(EventType.SESSION_DELETED))
        data = {"to": gone if owner == "deleted" else 1_000}
        cursors = [
            Cursor((await each.create(session(name, name, name), created())).stream.id, 1)
            for each, name in ((store, "first"), (other, "second"))
        ]
        behind: list[asyncio.Future[Any]] = []
        execute = Writer._execute

        def last(self: Writer, connection: Any, plan: Any, *more: Any, **options: Any) -> None:
            if any(each.event.event_id == "first" for each in plan.events):
                begun.set()
                until(lambda: bool(behind) and (behind[0].done() or somebody_waits(postgres)))
            execute(self, connection, plan, *more, **options)

        monkeypatch.setattr(Writer, "_execute", last)
        begun = threading.Event()
        event = new_event(event_id="first", data=data)
        first = store.append(session("first", "first", "first"), event, cursors[0])
        await asyncio.to_thread(begun.wait, 30)
        event = new_event(event_id="second", data=data)
        behind.append(other.append(session("second", "second", "second"), event, cursors[1]))
        await asyncio.gather(first, behind[0])
        assert verify(store, inline).clean


@contextmanager
def events_locked(place: Place) -> Iterator[None]:
    """Nobody inserts an event while it lasts: who wants to has drawn its position already."""
    with psycopg.connect(place.url) as holder:
        holder.execute(f"LOCK TABLE {place.schema}.events IN SHARE MODE".encode())
        yield


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits for a lock as long as the test takes to bring the others into place."""
    monkeypatch.setattr("eventstore.postgres.appending._PATIENCE_S", 30.0)


def in_thread(coroutine: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: asyncio.run(coroutine()))
    thread.start()
    return thread


async def append(store: EventStore, name: str, delta: Any) -> None:
    stream = await store.load(session(name), Window(last=0), lambda loaded: loaded.stream)
    assert stream is not None
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(session(name), new_event(delta=delta), cursor)


Two = tuple[EventStore, EventStore]


@pytest.fixture
def two(postgres: Place) -> Iterator[Two]:
    """What two processes have open: a log with the sessions "a" and "b"."""
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        for name in ("a", "b"):
            asyncio.run(_create(store, name))
        yield store, other


async def _create(store: EventStore, name: str) -> None:
    await store.create(session(name), created())


@pytest.mark.usefixtures("_patient")
def test_an_event_that_draws_first_and_commits_second(postgres: Place, two: Two) -> None:
    """The known bad schedule: A draws its position, B writes the same key and would commit first.

    B waits for A's lock on the app before it draws, so the rows are as a rebuild makes them.
    """
    store, other = two
    with events_locked(postgres):
        first = in_thread(lambda: append(store, "a", {"app": {"k": "a"}}))
        until(lambda: waiting(postgres, "events") == 1)
        second = in_thread(lambda: append(other, "b", {"app": {"k": "b"}}))
        until(lambda: waiting(postgres, "streams") == 1)
    first.join()
    second.join()
    before = rows(store)
    assert [row[1:3] for row in before["state"]] == [("k", '"b"')]
    rebuild(store, BUILT_IN)
    assert rows(store) == before
    assert verify(store, BUILT_IN).clean


@pytest.mark.usefixtures("_patient")
def test_sessions_that_share_no_key_do_not_wait_for_each_other(postgres: Place, two: Two) -> None:
    store, other = two
    with psycopg.connect(postgres.url) as holder:
        lock = f"SELECT 1 FROM {postgres.schema}.streams WHERE session_id = 'a' FOR UPDATE"
        holder.execute(lock.encode())
        first = in_thread(lambda: append(store, "a", {"session": {"k": 1}}))
        until(lambda: waiting(postgres, "streams") == 1)
        asyncio.run(append(other, "b", {"session": {"k": 1}}))
    first.join()


@pytest.mark.usefixtures("_patient")
def test_readers_of_the_log_wait_for_what_is_under_way_below(postgres: Place, two: Two) -> None:
    """A draws its position first and commits last: until then nobody reads what is behind it.

    B has the older transaction id and the later position. So neither an order by transaction ids,
    nor the oldest one under way, would have kept a reader from passing over A.
    """
    store, other = two
    run(store, FOLLOWING)
    with psycopg.connect(postgres.url) as holder:
        row = "FROM {0}.streams AS s JOIN {0}.sessions AS t ON t.stream_id = s.id"
        of_a = f"SELECT 1 {row} WHERE s.session_id = 'a' FOR UPDATE OF t"
        holder.execute(of_a.format(postgres.schema).encode())
        with psycopg.connect(postgres.url) as early:
            of_b = f"SELECT 1 {row} WHERE s.session_id = 'b' FOR UPDATE OF s"
            early.execute(of_b.format(postgres.schema).encode())
            # B locks the app's row, which gives it a transaction id, and waits for its own.
            b = in_thread(lambda: append(other, "b", {"session": {"k": 1}, "app": {"k": 1}}))
            until(lambda: waiting(postgres, "streams") == 1)
            # A draws its position, inserts its event, and waits behind that.
            a = in_thread(lambda: append(store, "a", {"session": {"k": 1}}))
            until(lambda: waiting(postgres, '"sessions"') == 1)
        b.join()  # it is committed
        assert store.snapshot(lambda s: s.head()) == 2
        assert store.snapshot(lambda s: [e.position for e in s.read_all(0, 9, 9)]) == [1, 2, 4]
        run(store, FOLLOWING)
        assert _count(store) == 2
    a.join()
    assert store.snapshot(lambda s: s.head()) == 4
    run(store, FOLLOWING)
    assert _count(store) == 4
    assert verify(store, BUILT_IN, FOLLOWING).clean


def _count(store: EventStore) -> int:
    found = rows(store, FOLLOWING)["following"]
    return sum(int(row[2]) for row in found if row[1] == "events")


@pytest.mark.parametrize("seed", [1, 2])
def test_random_schedules_of_several_writers(postgres: Place, seed: int) -> None:
    """Inline is what a rebuild makes, whatever several processes do at once; so is following."""
    chance = random.Random(seed)
    names = [(name, user, "app") for name in ("1", "2", "3") for user in ("u", "v")]

    async def write(store: EventStore, seed: int) -> None:
        own = random.Random(seed)
        for number in range(40):
            kind = own.choice(["create", "append", "append", "append", "set", "delete"])
            scopes = own.sample(["session", "user", "app"], own.randint(1, 3))
            delta = {scope: {f"k{own.randint(1, 3)}": number} for scope in scopes}
            if own.random() < 0.3:
                what = own.choice(["put", "add", "update", "delete"])
                delta[scopes[0]]["do"] = [what, own.choice("xy"), number]
            try:
                await perform(store, kind, own.choice(names), delta)
            except (StreamExists, StreamNotFound, WrongExpectedVersion):
                continue

    with (
        closing(open_store(postgres.target, INLINE)) as store,
        second_process(postgres, INLINE) as other,
    ):
        run(store, FOLLOWING)
        threads = []
        for each in (store, other, store, other):
            seed_of_one = chance.randrange(10**9)

            def work(each: EventStore = each, seed_of_one: int = seed_of_one) -> None:
                asyncio.run(write(each, seed_of_one))

            threads.append(threading.Thread(target=work))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            run(store, FOLLOWING)
            assert verify(other, INLINE, FOLLOWING).clean
        run(store, FOLLOWING)
        before = rows(store, (*INLINE, *FOLLOWING))
        assert before["everything"] == before["following"]
        rebuild(store, INLINE, FOLLOWING)
        assert rows(store, (*INLINE, *FOLLOWING)) == before
        assert verify(store, INLINE, FOLLOWING).clean


def test_a_snapshot_shows_the_tables_it_began_with(postgres: Place) -> None:
    """A table that takes another's place meanwhile would be found by its name, without the rows
    that are too young for the snapshot."""
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        asyncio.run(_create(store, "a"))
        asyncio.run(append(store, "a", {"session": {"k": 1}}))
        expected = rows(store)
        threads = []

        def read(snapshot: Any) -> Any:
            snapshot.head()
            asyncio.run(append(other, "a", {"session": {"k": 2, "more": 3}}))
            threads.append(threading.Thread(target=lambda: rebuild(other, BUILT_IN)))
            threads[0].start()
            until(lambda: _waits_for_a_table(postgres))
            return {p.name: snapshot.table_page(p, None, 99) for p in BUILT_IN}

        assert store.snapshot(read) == expected
        threads[0].join()
        assert len(rows(store)["state"]) == 2
        assert verify(store, BUILT_IN).clean


@pytest.mark.usefixtures("_patient")
def test_beside_a_writer_the_log_is_exported_whole(
    postgres: Place, two: Two, tmp_path: Path
) -> None:
    """Events are there behind a position that may still come: streams say so, and have them."""
    store, other = two
    with _a_draws_first_and_b_is_there(postgres, store, other):
        assert store.snapshot(lambda s: s.head()) == 2
        done = export_log(store, tmp_path / "log.jsonl")
    assert done.events == 3
    taken = import_log(tmp_path / "log.jsonl", tmp_path / "new.db", BUILT_IN)
    assert taken.root == done.root


@pytest.mark.usefixtures("_patient")
def test_the_end_of_the_log_goes_on_without_saying_a_thing_twice(postgres: Place, two: Two) -> None:
    store, other = two
    with _a_draws_first_and_b_is_there(postgres, store, other):
        events = tail(store, last=2, follow=True)
        seen = [next(events).position, next(events).position]
    seen += [next(events).position, next(events).position]
    assert seen == [1, 2, 3, 4]
    whose = Filter(session_id="b")
    assert [event.position for event in tail(store, whose)] == [2, 4]


@contextmanager
def _a_draws_first_and_b_is_there(
    place: Place, store: EventStore, other: EventStore
) -> Iterator[None]:
    """An append to "a" has drawn its position, and is committed only behind the block.

    One to "b", which drew the next position, is committed.
    """
    with psycopg.connect(place.url) as holder:
        of_a = (
            "SELECT 1 FROM {0}.streams AS s JOIN {0}.sessions AS t ON t.stream_id = s.id "
            "WHERE s.session_id = 'a' FOR UPDATE OF t"
        )
        holder.execute(of_a.format(place.schema).encode())
        late = in_thread(lambda: append(store, "a", {"session": {"k": 1}}))
        until(lambda: waiting(place, '"sessions"') == 1)
        asyncio.run(append(other, "b", {"session": {"k": 1}}))
        yield
    late.join()


def test_a_head_that_goes_back_is_folded_past_once(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer says above which position it will draw, and others have drawn since it looked."""

    async def append_many() -> None:
        stream = await store.load(session("a"), Window(last=0), lambda loaded: loaded.stream)
        assert stream is not None
        cursor = Cursor(stream.id, stream.conversation_version)
        events = (store.append(session("a"), new_event(), cursor) for _ in range(1_100))
        await asyncio.gather(*events)

    def behind_the_fold(*_: int) -> None:
        asyncio.run(append_many())
        _say_drawing_above(postgres, holder, 1)

    def read_once(*arguments: Any) -> Any:
        page = read_page(*arguments)
        holder.rollback()
        return page

    with (
        closing(open_store(postgres.target, INLINE)) as store,
        psycopg.connect(postgres.url) as holder,
    ):
        for name in ("a", "b"):
            asyncio.run(_create(store, name))
        monkeypatch.setattr(sys.modules["projections.rebuild"], "read_page", read_once)
        rebuild(store, INLINE, progress=behind_the_fold)
        assert verify(store, INLINE).clean


def test_nobody_is_ahead_of_a_head_that_goes_back(postgres: Place) -> None:
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        for name in ("a", "b"):
            asyncio.run(_create(store, name))
        run(store, FOLLOWING)
        with psycopg.connect(postgres.url) as holder:
            _say_drawing_above(postgres, holder, 1)
            assert store.snapshot(lambda s: s.head()) == 1
            assert {each.lag for each in status(store)} == {0}
            shown = ["projections", "status", "--db", postgres.target, "--format", "json"]
            rows = json.loads(CliRunner().invoke(main, shown).output)["projections"]
        assert {row["lag"] for row in rows if row["checkpoint"] is not None} == {0}


def _say_drawing_above(place: Place, holder: psycopg.Connection[Any], position: int) -> None:
    """Says so as a writer does, until the end of the holder's transaction."""
    lock = Locks(place.schema).bounds + position
    holder.execute("SELECT pg_advisory_xact_lock_shared(%s)", (lock,))


def test_who_puts_rows_right_keeps_followers_from_the_same_rows(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rows would be newer than the checkpoint they were folded up to."""
    look = MaintenanceTransaction.owned_rows
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        asyncio.run(_create(store, "a"))
        run(store, FOLLOWING)
        for _ in range(3):
            asyncio.run(append(store, "a", {"session": {"k": 1}}))
        followers = [threading.Thread(target=lambda: run(other, FOLLOWING))]

        def look_late(transaction: MaintenanceTransaction, *arguments: Any) -> Any:
            follower = followers[0]
            if follower.ident is None:
                follower.start()
                until(lambda: not follower.is_alive() or waiting(postgres, "projections") == 1)
            return look(transaction, *arguments)

        monkeypatch.setattr(MaintenanceTransaction, "owned_rows", look_late)
        (done,) = rebuild_scope(store, (), FOLLOWING, Scope("app"))
        followers[0].join()
        assert done.changed == 0
        assert _count(store) == 4
        assert verify(store, BUILT_IN, FOLLOWING).clean


def test_who_reads_all_tables_and_who_replaces_them_do_not_wait_in_a_circle(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = MaintenanceTransaction.cut_over
    heads: list[int] = []
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        asyncio.run(_create(store, "a"))
        rebuild(store, BUILT_IN[:1])  # its row comes last now where nobody asks for an order
        reader = threading.Thread(target=lambda: heads.append(other.snapshot(lambda s: s.head())))

        def replace_slowly(*arguments: Any) -> None:
            replace(*arguments)
            if reader.ident is None:
                reader.start()
                until(lambda: _waits_for_a_table(postgres))

        monkeypatch.setattr(MaintenanceTransaction, "cut_over", replace_slowly)
        rebuild(store, BUILT_IN)
        reader.join()
        assert heads == [1]


def test_a_reader_goes_on_when_a_table_is_dropped_that_it_waits_for(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_now = MaintenanceTransaction.drop
    heads: list[int] = []
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        asyncio.run(_create(store, "a"))
        run(store, FOLLOWING)
        reader = threading.Thread(target=lambda: heads.append(other.snapshot(lambda s: s.head())))

        def drop_slowly(*arguments: Any) -> str:
            table = drop_now(*arguments)
            reader.start()
            until(lambda: _waits_for_a_table(postgres))
            return table

        monkeypatch.setattr(MaintenanceTransaction, "drop", drop_slowly)
        drop(store, FOLLOWING[0].name)
        reader.join()
        assert heads == [1]


def test_nobody_waits_for_a_reader_of_all_that_waits_for_a_table(postgres: Place) -> None:
    found: list[int] = []
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        asyncio.run(_create(store, "a"))
        run(store, FOLLOWING)
        look = functools.partial(other.snapshot, lambda s: s.head(), whole=True)
        reader = threading.Thread(target=lambda: found.append(look()))
        with psycopg.connect(postgres.url) as holder:
            table = f"{postgres.schema}.{FOLLOWING[0].table.name}"
            holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            reader.start()
            until(lambda: _waits_for_a_table(postgres))
            asyncio.run(append(store, "a", {"session": {"k": 1}}))
        reader.join()
        assert found == [2]


def test_a_reader_of_all_uses_no_connection_that_was_lost(postgres: Place) -> None:
    with closing(open_store(postgres.target, BUILT_IN)) as store, second_process(postgres) as other:
        asyncio.run(_create(store, "a"))
        # Two connections, of which this one is used only when two are needed again.
        second = other.snapshot(lambda _: other.snapshot(_backend))
        assert query(postgres.target, f"SELECT pg_terminate_backend({second}, 30000)") == [(True,)]
        assert other.snapshot(lambda s: s.head(), whole=True) == 1


def _backend(snapshot: Any) -> int:
    (pid,) = snapshot.connection.execute("SELECT pg_backend_pid()").fetchone()
    return int(pid)


def _waits_for_a_table(place: Place) -> bool:
    with psycopg.connect(place.url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND query LIKE 'LOCK TABLE%'"
        ).fetchone()
    return row is not None and row[0] > 0

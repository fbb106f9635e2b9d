"""Rebuild beside writers, of everything and of one scope, ended at any point; and the command."""

from __future__ import annotations

import asyncio
import importlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import psycopg
import pytest
from click.testing import CliRunner

from eventstore import (
    CorruptEvent,
    Cursor,
    EventStore,
    EventType,
    MaintenanceRunning,
    Projection,
    StreamNotFound,
    Table,
    Window,
    open_store,
)
from projections import BUILT_IN, Scope, rebuild, rebuild_scope, run, scavenge, verify
from projections import folding as foldings
from projections.cli import rebuild_projections as main
from tests.eventstore.events import SESSION, created, new_event, session
from tests.places import index_names, is_whole, leftovers, on_server, query, table_of
from tests.processes import fresh_processes
from tests.projections.logs import (
    DO,
    FOLLOWING,
    INLINE,
    Everything,
    acknowledgements,
    assert_nothing_is_lost,
    attack,
    perform_all,
    rows,
    wait_until_free,
    write,
)

PROCESSES = fresh_processes()


async def fill(store: EventStore) -> None:
    loaded = await store.create(SESSION, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))
    cursor = Cursor(loaded.stream.id, 1)
    for n in range(5):
        await store.append(SESSION, new_event(delta={"session": {"n": n}}, timestamp=n), cursor)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE state SET state_value = '7' WHERE state_key = 'n'",
        "DELETE FROM state WHERE state_key = 'u'",
        "INSERT INTO state SELECT owner_id, 'made up', '1', 1 FROM state LIMIT 1",
        "DELETE FROM sessions",
        "DROP TABLE state",
        "DROP VIEW adk_state",
        "ALTER TABLE sessions ADD COLUMN extra TEXT",
        "UPDATE projections SET version = 0",
        "CREATE TABLE shadow_state (a integer); CREATE TABLE retired_state (b integer)",
    ],
)
def test_whatever_was_done_to_the_tables_is_put_right(target: str, damage: str) -> None:
    store = open_store(target, BUILT_IN)
    asyncio.run(fill(store))
    store.close()
    tables = "SELECT 'a', * FROM adk_sessions", "SELECT * FROM adk_state ORDER BY state_key"
    before = [query(target, table) for table in tables]
    for statement in damage.split(";"):
        cascade = on_server(target) and statement == "DROP TABLE state"
        query(target, f"{statement} CASCADE" if cascade else statement)
    store = open_store(target, BUILT_IN, for_rebuild=True)
    assert [(r.projection, r.rows) for r in rebuild(store, BUILT_IN)] == [
        ("sessions", 1),
        ("state", 4),
    ]
    store.close()
    assert [query(target, table) for table in tables] == before
    open_store(target, BUILT_IN).close()


async def test_a_running_service_goes_on_after_another_process_rebuilt(
    store: EventStore, target: str
) -> None:
    await fill(store)
    assert CliRunner().invoke(main, ["--db", str(target)]).exit_code == 0
    await store.set_state(SESSION, new_event(EventType.STATE_SET, delta={"session": {"k": 1}}))
    loaded = await store.load(SESSION, Window(), lambda loaded: loaded)
    assert loaded is not None
    assert [row[1] for row in loaded.rows["state"]] == ["a", "u", "k", "n", "s"]


# While others write.


@contextmanager
def writing(target: str, count: int) -> Iterator[list[BaseProcess]]:
    """Processes that write until the end; each has been acknowledged something by now."""
    writers = [PROCESSES.Process(target=write, args=(target, f"w{n}")) for n in range(count)]
    for writer in writers:
        writer.start()
    try:
        wait_until(lambda: sum(n > 0 for n in acknowledgements(target).values()) == count)
        yield writers
        assert [writer.exitcode for writer in writers] == [None] * count
    finally:
        for writer in writers:
            writer.kill()
            writer.join()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill_much(store: EventStore, events: int) -> None:
    async def work() -> None:
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        await asyncio.gather(
            *(
                store.append(SESSION, new_event(delta={"session": {f"k{n % 700}": n}}), cursor)
                for n in range(events)
            )
        )

    asyncio.run(work())


def test_nothing_acknowledged_is_missing_from_tables_made_beside_writers(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        fill_much(store, 3000)
        with writing(target, 3):
            for _ in range(2 if on_server(target) else 6):
                before = acknowledgements(target)
                rebuild(store, BUILT_IN)
                # They went on meanwhile, and each finds what it wrote in the new tables.
                wait_until(
                    lambda before=before: all(
                        n > before[name] for name, n in acknowledgements(target).items()
                    )
                )
            scope = Scope("app", "user")
            for _ in range(3):
                assert all(r.changed == 0 for r in rebuild_scope(store, BUILT_IN, (), scope))
            assert verify(store, BUILT_IN).clean
        assert_nothing_is_lost(target, store)
        assert verify(store, BUILT_IN).clean
        before = rows(store)
        rebuild(store, BUILT_IN)
        assert rows(store) == before
        assert leftovers(target) == []


@pytest.mark.parametrize("small", [False, True])
def test_what_is_appended_at_any_step_is_in_the_new_tables(
    target: str, monkeypatch: pytest.MonkeyPatch, *, small: bool
) -> None:
    """One append before each transaction and each snapshot of a rebuild."""
    if small:  # so that it catches up in several pages
        monkeypatch.setattr(foldings, "WHOLE_PAGE_EVENTS", 3)
        module = importlib.import_module("projections.rebuild")
        monkeypatch.setattr(module, "_EVENTS_PER_CUT_OVER", 2)
        monkeypatch.setattr(module, "_ROWS_PER_TRANSACTION", 2)
    with closing(open_store(target, INLINE)) as store:
        asyncio.run(fill(store))

        def append(number: int) -> None:
            async def work() -> None:
                stream = await store.load(SESSION, Window(last=0), lambda loaded: loaded.stream)
                assert stream is not None
                delta = {"session": {DO: ["put", f"row {number}", number]}, "app": {"n": number}}
                cursor = Cursor(stream.id, stream.conversation_version)
                await store.append(SESSION, new_event(delta=delta), cursor)

            asyncio.run(work())

        steps = Steps(store, before=lambda number: append(number) if number <= 60 else None)
        rebuild(steps, INLINE, FOLLOWING)
        assert steps.count > 10
        stored = rows(store, (*INLINE, *FOLLOWING))
        names = [row[1] for row in stored["everything"]]
        assert len([name for name in names if str(name).startswith("row")]) == min(steps.count, 60)
        assert verify(store, INLINE, FOLLOWING).clean
        rebuild(store, INLINE)
        assert rows(store, INLINE) == {p.name: stored[p.name] for p in INLINE}


class Steps:
    """A store that calls back before each transaction and snapshot, or inside one, at its end."""

    def __init__(
        self,
        store: EventStore,
        *,
        before: Callable[[int], None] = lambda _: None,
        inside: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._before = before
        self._inside = inside
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _step(self, run: Callable[..., Any], function: Callable[[Any], Any]) -> Any:
        self.count += 1
        number = self.count
        self._before(number)

        def and_then(transaction: Any) -> Any:
            result = function(transaction)
            self._inside(number)
            return result

        return run(and_then)

    def transact(self, function: Callable[[Any], Any], **options: bool) -> Any:
        return self._step(partial(self._store.transact, **options), function)

    def snapshot(self, function: Callable[[Any], Any], **options: bool) -> Any:
        return self._step(partial(self._store.snapshot, **options), function)


def _follow_for_ever(path: str) -> None:
    with closing(open_store(path, BUILT_IN)) as store:
        while True:
            run(store, FOLLOWING)


def test_a_rebuild_and_a_run_of_the_same_projection_apply_each_event_once(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        fill_much(store, 300)
        rebuild(store, (), FOLLOWING)
        follower = PROCESSES.Process(target=_follow_for_ever, args=(target,))
        with writing(target, 1):
            follower.start()
            try:
                for _ in range(4 if on_server(target) else 12):
                    before = acknowledgements(target)["w0"]
                    rebuild(store, (), FOLLOWING)
                    wait_until(lambda before=before: acknowledgements(target)["w0"] > before)
                    assert verify(store, BUILT_IN, FOLLOWING).clean
                assert follower.exitcode is None
            finally:
                follower.kill()
                follower.join()
        run(store, FOLLOWING)
        # It counts every event once.
        ((count,),) = query(target, "SELECT n FROM following WHERE name = 'events'")
        assert count == store.stats()["events"]
        assert verify(store, BUILT_IN, FOLLOWING).clean


# Ended at any point.


@pytest.mark.parametrize("where", ["before", "inside"])
def test_ended_at_any_step_the_live_tables_are_untouched_and_the_next_run_works(
    target: str, where: str
) -> None:
    with closing(open_store(target, INLINE)) as store:
        asyncio.run(fill(store))
        query(target, "CREATE INDEX mine ON state (state_value)")
        rebuild(store, (), FOLLOWING)
        damaged = "UPDATE state SET state_value = 'damaged' WHERE state_key = 'n'"
        query(target, damaged)
        before = rows(store, (*INLINE, *FOLLOWING))
        for last in range(1, 1000):

            def end(number: int, last: int = last) -> None:
                if number == last:
                    raise KeyboardInterrupt

            steps = Steps(store, **{where: end})
            try:
                rebuild(steps, INLINE, FOLLOWING)
            except KeyboardInterrupt:
                ended_late = rows(store, (*INLINE, *FOLLOWING)) != before
            else:
                break
            query(target, "SELECT * FROM adk_state")
            if ended_late:
                # All was done but for clearing away what is left of the old tables.
                tables = ("_sessions", "_state", "_everything", "_following", ": mine")
                indexes = (f": {index}" for p in BUILT_IN for index in p.table.indexes)
                assert {name for (name,) in leftovers(target)} <= {
                    f"retired{of}" for of in (*tables, *indexes)
                }
                query(target, damaged)
                assert rows(store, (*INLINE, *FOLLOWING)) == before
        assert last > 10
        assert leftovers(target) == []
        assert verify(store, INLINE, FOLLOWING).clean
        assert is_whole(target)


def _rebuild_for_ever(path: str, ready: Any) -> None:
    with closing(open_store(path, BUILT_IN)) as store:
        while True:
            rebuild(store, BUILT_IN)
            ready.set()


def test_killed_at_random_moments_nothing_is_changed(target: str) -> None:
    chance = random.Random(1)
    with closing(open_store(target, BUILT_IN)) as store:
        fill_much(store, 2500)
        query(target, "CREATE INDEX mine ON state (position DESC) WHERE position > 100")
        before = rows(store)
        for _ in range(2 if on_server(target) else 6):
            ready = PROCESSES.Event()
            process = PROCESSES.Process(target=_rebuild_for_ever, args=(target, ready))
            process.start()
            assert ready.wait(60)
            time.sleep(chance.random() / 8)
            process.kill()
            process.join()
            wait_until_free(store)
            assert rows(store) == before
            assert is_whole(target)
        assert verify(store, BUILT_IN).clean
        rebuild(store, BUILT_IN)
        assert leftovers(target) == []
        assert table_of(target, "mine") == "state"


# One at a time.


def _maintain(path: str, held: Any) -> None:
    with closing(open_store(path, BUILT_IN)) as store, store.maintaining("test"):
        held.set()
        time.sleep(600)


def test_maintenance_keeps_other_maintenance_off_and_not_the_writers(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        held = PROCESSES.Event()
        process = PROCESSES.Process(target=_maintain, args=(target, held))
        process.start()
        try:
            assert held.wait(60)
            for verb, run in (
                ("rebuild", lambda: rebuild(store, BUILT_IN)),
                ("rebuild", lambda: rebuild_scope(store, BUILT_IN, (), Scope("app"))),
                ("verify", lambda: verify(store, BUILT_IN)),
                ("vacuum", lambda: scavenge(store, BUILT_IN)),
            ):
                with pytest.raises(MaintenanceRunning, match=f"{verb}.*process {process.pid}"):
                    run()
            asyncio.run(fill(store))
        finally:
            process.kill()
            process.join()
        wait_until_free(store)
        rebuild(store, BUILT_IN)  # who dies gives it up


@pytest.mark.parametrize("outer", [rebuild, verify])
@pytest.mark.parametrize("inner", [rebuild, verify, scavenge])
def test_one_process_does_not_get_in_its_own_way(
    target: str, outer: Callable[..., Any], inner: Callable[..., Any]
) -> None:
    with (
        closing(open_store(target, BUILT_IN)) as store,
        closing(open_store(target, BUILT_IN)) as second,
    ):
        asyncio.run(fill(store))

        def progress(*_: int) -> None:
            inner(second, BUILT_IN)

        with pytest.raises(MaintenanceRunning):
            outer(store, BUILT_IN, progress=progress)
        assert leftovers(target) or outer is verify
        rebuild(second, BUILT_IN)
        assert leftovers(target) == []


# What users put around the tables.

INDEXES = {
    "plain": "CREATE INDEX plain ON state (state_value)",
    "partial": "CREATE INDEX partial ON state(position DESC) WHERE state_value <> 'state.x'",
    "qualified": "CREATE INDEX qualified ON state(position) WHERE main.state . position > 1.5",
    'q"uo te': 'CREATE INDEX "q""uo te" ON "state" ( "state_value" COLLATE NOCASE , position )',
    "it's": "CREATE INDEX 'it''s'ON'state'(position)",
    "[x": "CREATE INDEX [[x] -- a comment ON nothing\n ON/* of mine */[state](position, owner_id)",
    "`y": "CREATE INDEX IF NOT EXISTS main.```y`ON`state`(owner_id)",
    "größe$1": "CREATE INDEX größe$1 ON STATE(state_key, state_value)",
    "😀": "CREATE INDEX 😀 ON state(state_key DESC)",
    "shadow_plain": "CREATE INDEX shadow_plain ON state(state_value, position)",
    "retired_plain": "CREATE INDEX retired_plain ON state(state_value, owner_id)",
}


def indexes(database: Path) -> dict[str, tuple[str, str]]:
    found = query(
        database, "SELECT name, tbl_name, sql FROM sqlite_schema WHERE type = 'index' AND sql > ''"
    )
    ours = {"streams_live", "streams_deleted", *(i for p in BUILT_IN for i in p.table.indexes)}
    return {name: (table, sql) for name, table, sql in found if name not in ours}


def test_indexes_and_views_of_users_follow_the_new_table(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill_much(store, 800)
        query(
            database,
            *INDEXES.values(),
            "CREATE VIEW mine AS SELECT state_key, count(*) FROM state GROUP BY 1",
            "CREATE VIEW more AS SELECT * FROM adk_state JOIN mine USING (state_key)",
            "CREATE VIEW broken AS SELECT * FROM gone",
            "CREATE TABLE notes (state_key TEXT)",
            "CREATE INDEX notes_by_key ON notes (state_key)",
            "ANALYZE",
        )
        before, seen = indexes(database), query(database, "SELECT * FROM more ORDER BY 1, 2, 3")
        assert before.keys() == INDEXES.keys() | {"notes_by_key"}
        for _ in range(2):
            rebuild(store, BUILT_IN)
            assert indexes(database) == before
            assert leftovers(database) == [("shadow_plain",), ("retired_plain",)]
            assert query(database, "PRAGMA integrity_check") == [("ok",)]
            assert query(database, "SELECT * FROM more ORDER BY 1, 2, 3") == seen
        for name in INDEXES:
            quoted = name.replace('"', '""')
            where = {"partial": "position > 3 AND state_value <> 'state.x'"}.get(
                name, "position > 1.5"
            )
            sql = f'SELECT * FROM state INDEXED BY "{quoted}" WHERE {where}'
            assert len(query(database, sql)) == 700
            assert name in str(query(database, f"EXPLAIN QUERY PLAN {sql}"))
        plan = query(database, "EXPLAIN QUERY PLAN SELECT * FROM state WHERE state_value = '5'")
        assert "plain" in str(plan)
        assert verify(store, BUILT_IN).clean


class LongNames(Everything):
    """Names as long as they may be, that begin alike."""

    table = Everything.table._replace(
        name="conversations_of_customers_by_region_and_tier_of",
        indexes={
            "conversations_of_customers_by_region_and_tier_on": ("n",),
            "conversations_of_customers_by_region_and_tier_os": ("said",),
        },
    )


def test_names_as_long_as_they_may_be(target: str) -> None:
    projections = (*BUILT_IN, LongNames())
    with closing(open_store(target, projections)) as store:
        asyncio.run(fill(store))
        before = index_names(target)
        for _ in range(2):
            rebuild(store, projections)
            assert index_names(target) == before
        assert leftovers(target) == []
        assert verify(store, projections).clean


def test_what_a_user_does_to_indexes_during_a_rebuild_stays_done(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(fill(store))
        query(
            database,
            "CREATE INDEX kept ON state (state_value)",
            "CREATE INDEX dropped ON state (state_value)",
            "CREATE INDEX other ON state (state_value)",
        )

        told: list[int] = []

        def change(*reached: int) -> None:
            told.extend(reached)
            if len(told) > len(reached):
                return  # it was done the first time
            query(
                database,
                "DROP INDEX dropped",
                "DROP INDEX other",
                "CREATE INDEX other ON state (position)",
                "CREATE INDEX late ON state (position DESC)",
            )

        rebuild(store, (BUILT_IN[1],), progress=change)
        assert {name: sql for name, (table, sql) in indexes(database).items()} == {
            "kept": "CREATE INDEX kept ON state (state_value)",
            "other": "CREATE INDEX other ON state (position)",
            "late": "CREATE INDEX late ON state (position DESC)",
        }
        assert query(database, "PRAGMA integrity_check") == [("ok",)]
        asyncio.run(store_more(store))
        assert query(database, "PRAGMA integrity_check") == [("ok",)]


def test_foreign_keys_of_users_follow_the_new_table(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill_scopes(store)
        query(
            database,
            'CREATE TABLE notes (s REFERENCES "sessions" (stream_id) ON DELETE CASCADE, note)',
            "INSERT INTO notes SELECT stream_id, 'mine' FROM sessions",
        )
        before = query(database, "SELECT sql FROM sqlite_schema WHERE name = 'notes'")
        for _ in range(2):
            rebuild(store, BUILT_IN)
            assert query(database, "SELECT sql FROM sqlite_schema WHERE name = 'notes'") == before
        assert query(database, "PRAGMA foreign_key_check") == []
        assert query(database, "PRAGMA integrity_check") == [("ok",)]
        assert query(database, "SELECT count(*) FROM notes") == [(7,)]
        perform_all(store, [("delete", ("1", "u", "app"), None)])
        assert query(database, "SELECT count(*) FROM notes") == [(6,)]


async def store_more(store: EventStore) -> None:
    stream = await store.load(SESSION, Window(last=0), lambda loaded: loaded.stream)
    assert stream is not None
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(SESSION, new_event(delta={"session": {"more": 1}}), cursor)


class Second(Everything):
    """Another version, whose table has a column less."""

    version = 2
    table = Table(
        "everything", key={"owner_id": "integer", "name": "text"}, columns={"n": "integer"}
    )

    def apply(self, event: Any) -> Any:
        for change in super().apply(event):
            if hasattr(change, "values"):
                change = change._replace(values=change.values[:1])
            yield change


def test_another_version_of_a_projection_takes_the_place_of_the_one_before(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_store(target, INLINE)) as store:
        asyncio.run(fill(store))
        delta = {"session": {DO: ["put", "row", 5]}}
        perform_all(store, [("set", SESSION[3:0:-1], delta)])
        query(
            target,
            "CREATE INDEX fits ON everything (n DESC)",
            "CREATE INDEX lost ON everything (said)",
        )
    second: tuple[Projection, ...] = (*BUILT_IN, Second())
    with closing(open_store(target, second, for_rebuild=True)) as store:
        rebuild(store, (second[-1],))
        assert "lost does not fit" in caplog.text
        assert index_names(target) == {"fits"}
        assert table_of(target, "fits") == "everything"
        assert leftovers(target) == []
        assert verify(store, second).clean
        assert [row[1:] for row in rows(store, second)["everything"]] == [("events", 7), ("row", 5)]
    open_store(target, second).close()
    assert is_whole(target)


class First(Everything):
    """With an index and a view."""

    name = "moving"
    table = Everything.table._replace(name="moving", indexes={"moving_by_n": ("n",)})
    views: ClassVar = {
        kind: {"adk_moving": "SELECT n FROM moving"} for kind in ("sqlite", "postgresql")
    }


class Moved(First):
    """A version that has its table elsewhere."""

    version = 2
    table = First.table._replace(name="another")
    views: ClassVar = {
        kind: {"adk_moving": "SELECT n FROM another"} for kind in ("sqlite", "postgresql")
    }


class MovedAtOnce(Moved):
    upgrades: ClassVar = {"sqlite": {1: "SELECT * FROM moving"}}


@pytest.mark.parametrize("how", ["inline", "asynchronous", "upgrade"])
def test_a_table_that_has_another_name_now_takes_the_place_of_the_one_before(
    target: str, how: str
) -> None:
    moved = MovedAtOnce() if how == "upgrade" else Moved()
    followed = how == "asynchronous"
    with closing(open_store(target, BUILT_IN if followed else (*BUILT_IN, First()))) as store:
        asyncio.run(fill(store))
        if followed:
            run(store, (First(),))
        query(target, "CREATE INDEX mine ON moving (said)")
        before = query(target, "SELECT * FROM moving ORDER BY 1, 2")
    inline = BUILT_IN if followed else (*BUILT_IN, moved)
    with closing(open_store(target, inline, for_rebuild=True)) as store:
        if followed:
            run(store, (moved,))
        elif how == "inline" or on_server(target):
            rebuild(store, (moved,))
        assert verify(store, inline, (moved,) if followed else ()).clean
    open_store(target, inline).close()
    assert query(target, "SELECT * FROM another ORDER BY 1, 2") == before
    assert query(target, "SELECT n FROM adk_moving") == [(6,)]
    with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedTable)):
        query(target, "SELECT * FROM moving")
    assert leftovers(target) == []
    assert index_names(target) == {"moving_by_n"}
    assert table_of(target, "moving_by_n") == "another"
    assert is_whole(target)


# Of one scope.


def fill_scopes(store: EventStore) -> None:
    async def work() -> None:
        for app in ("app", "other"):
            for user in ("u", "v"):
                for name in ("1", "2"):
                    key = session(name, user, app)
                    delta = {"session": {"s": name}, "user": {"u": user}, "app": {"a": app}}
                    for scope in delta:
                        delta[scope][DO] = ["put", f"of {scope}", len(name)]
                    loaded = await store.create(key, created(**delta))
                    cursor = Cursor(loaded.stream.id, 1)
                    await store.append(key, new_event(delta={"session": {"n": 1}}), cursor)
        await store.delete(session("2", "v"), new_event(EventType.SESSION_DELETED))

    asyncio.run(work())


SCOPES = [
    (Scope("app"), "app_name = 'app'"),
    (Scope("app", "u"), "app_name = 'app' AND user_id = 'u'"),
    (Scope("app", "v"), "app_name = 'app' AND user_id = 'v'"),
    (Scope("app", "u", "1"), "app_name = 'app' AND user_id = 'u' AND session_id = '1'"),
]


@pytest.mark.parametrize(("scope", "where"), SCOPES)
def test_only_the_rows_of_a_scope_are_put_right(target: str, scope: Scope, where: str) -> None:
    everything = (*INLINE, *FOLLOWING)
    with closing(open_store(target, INLINE)) as store:
        fill_scopes(store)
        rebuild(store, (), FOLLOWING)
        asyncio.run(fill(store))  # which the asynchronous one has not folded
        right = rows(store, everything)
        for projection in everything:
            table = projection.table
            query(
                target,
                f"DELETE FROM {table.name} WHERE {table.owner} % 2 = 0",
                f"UPDATE {table.name} SET {next(iter(table.columns))} = 77",
                *(
                    f"INSERT INTO {table.name} SELECT id, 'made up', {values} FROM streams"
                    for values in [{"state": "'1', 1"}.get(table.name, "1, '', 1")]
                    if len(table.key) == 2
                ),
            )
        damaged = rows(store, everything)
        within = {id_ for (id_,) in query(target, f"SELECT id FROM streams WHERE {where}")}
        dry = rebuild_scope(store, INLINE, FOLLOWING, scope, dry_run=True)
        assert rows(store, everything) == damaged
        rebuilt = rebuild_scope(store, INLINE, FOLLOWING, scope)
        assert [r.changed for r in dry] == [r.changed for r in rebuilt]
        for projection, report in zip(everything, rebuilt, strict=True):
            name = projection.name
            expected = [row for row in damaged[name] if row[0] not in within]
            expected += [row for row in right[name] if row[0] in within]
            assert rows(store, everything)[name] == sorted(expected)
            wrong = set(damaged[name]) ^ set(right[name])
            keys = {row[: len(projection.table.key)] for row in wrong if row[0] in within}
            assert report.changed == len(keys) > 0


def test_a_session_is_put_right_without_reading_the_rest_of_the_log(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        fill_scopes(store)
        right = rows(store)
        attack(
            target,
            "UPDATE events SET data = 'damaged', delta = 'damaged' WHERE stream_id <> 3",
            "UPDATE state SET state_value = 7 WHERE owner_id = 3",
        )
        with pytest.raises(CorruptEvent):
            rebuild(store, BUILT_IN)
        with pytest.raises(CorruptEvent):
            rebuild_scope(store, BUILT_IN, (), Scope("app", "u"))
        assert [
            (r.events, r.changed)
            for r in rebuild_scope(store, BUILT_IN, (), Scope("app", "u", "1"))
        ] == [(2, 0), (2, 3)]
        assert rows(store)["state"] == right["state"]


@pytest.mark.parametrize(
    "scope",
    [Scope("nothing"), Scope("app", "nobody"), Scope("app", "u", "3"), Scope("app", "v", "2")],
)
def test_a_scope_that_is_not_there(target: str, scope: Scope) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        fill_scopes(store)
        with pytest.raises(StreamNotFound):
            rebuild_scope(store, BUILT_IN, (), scope)


def test_a_scope_is_put_right_while_others_write_into_it(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        fill_much(store, 1500)
        with writing(target, 2):
            for round_ in range(2 if on_server(target) else 8):
                query(
                    target,
                    "UPDATE state SET state_value = '-1' WHERE owner_id = 3 AND state_key < 'k5'",
                    "DELETE FROM state WHERE owner_id IN (1, 2) AND state_key LIKE '%-3'",
                )
                before = acknowledgements(target)
                rebuild_scope(store, BUILT_IN, (), Scope("app", None if round_ % 2 else "user"))
                if round_ % 2:
                    assert verify(store, BUILT_IN).clean
                wait_until(
                    lambda before=before: all(
                        n > before[name] for name, n in acknowledgements(target).items()
                    )
                )
        rebuild_scope(store, BUILT_IN, (), Scope("app"))
        assert_nothing_is_lost(target, store)
        assert verify(store, BUILT_IN).clean


# The command.


def test_the_command_says_what_it_did(target: str) -> None:
    store = open_store(target, BUILT_IN)
    asyncio.run(fill(store))
    store.close()
    query(target, "UPDATE state SET state_value = '7' WHERE state_key = 'n'")
    result = CliRunner().invoke(
        main, ["--db", target if on_server(target) else f"sqlite:///{target}"]
    )
    assert result.exit_code == 0
    assert "6 events" in result.output
    assert "sessions: 1 rows" in result.output
    assert "state: 4 rows" in result.output


def test_the_command_looks_where_the_service_would(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(target, BUILT_IN).close()
    monkeypatch.setenv("ADK_SESSION_DB", str(target))
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    assert str(target) in result.output


def test_the_command_that_could_not_run_says_why(database: Path) -> None:
    result = CliRunner().invoke(main, ["--db", str(database)])
    assert result.exit_code == 2
    assert "does not exist" in result.output
    assert not database.exists()
    database.write_text("no database" * 1000)
    result = CliRunner().invoke(main, ["--db", str(database)])
    assert result.exit_code == 2
    assert "is not a SQLite database" in result.output


def test_a_damaged_log_is_not_folded(target: str) -> None:
    store = open_store(target, BUILT_IN)
    asyncio.run(fill(store))
    store.close()
    query(target, "INSERT INTO maintenance VALUES (1, 'test')")
    query(target, "UPDATE events SET delta = replace(delta, '3', '4')")
    query(target, "DELETE FROM maintenance")
    before = query(target, "SELECT * FROM adk_state")
    result = CliRunner().invoke(main, ["--db", str(target)])
    assert result.exit_code == 2
    assert "position 1" in result.output
    assert query(target, "SELECT * FROM adk_state") == before

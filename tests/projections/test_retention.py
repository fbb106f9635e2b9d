"""Purging, erasing, vacuuming: what is left, what is gone, what an end in the middle does."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import (
    Change,
    CorruptEvent,
    CorruptRow,
    Cursor,
    EventStore,
    EventType,
    InvalidInput,
    MaintenanceRunning,
    Projection,
    ProjectionMissing,
    RecordedEvent,
    Table,
    Window,
    open_store,
)
from projections import (
    BUILT_IN,
    delete_session,
    erasable,
    erase_user,
    list_sessions,
    purge,
    purgeable,
    rebuild,
    run,
    set_title,
    vacuum,
    verify,
)
from projections import retention as retentions
from tests.eventstore.events import created, new_event, session
from tests.hostile.databases import pages
from tests.projections.logs import (
    DO,
    FOLLOWING,
    INLINE,
    acknowledgements,
    assert_nothing_is_lost,
    attack,
    query,
    rows,
    write,
)

PROCESSES = multiprocessing.get_context("spawn")
EVERYTHING = (*INLINE, *FOLLOWING)
NOW = 1_000_000.0
DAY = 86_400.0


async def converse(
    store: EventStore, key: Any, *, timestamp: float = 1.0, events: int = 3, words: str = "hello"
) -> None:
    """A session that says something in each event, and sets keys of all scopes."""
    delta = {"session": {"s": words}, "user": {"u": words}, "app": {"last": 1}}
    event = new_event(EventType.SESSION_CREATED, delta=delta, timestamp=timestamp)
    cursor = Cursor((await store.create(key, event)).stream.id, 1)
    for n in range(events):
        user = {f"{key.session_id}-{n}": words, DO: ["put", f"{words[:30]} {n}", n]}
        delta = {"session": {f"k{n}": words}, "user": user}
        said = new_event(delta=delta, data={"text": words, "n": n}, timestamp=timestamp)
        await store.append(key, said, cursor)


def fill(store: EventStore, *keys: Any, **options: Any) -> None:
    async def work() -> None:
        for key in keys:
            await converse(store, key, **options)

    asyncio.run(work())


def notes(store: EventStore) -> list[tuple[str, dict[str, Any]]]:
    """What maintenance noted on the system stream."""
    events = store.snapshot(lambda s: s.read_all(0, s.head(), 10_000))
    return [(e.type, e.payload()) for e in events if e.stream.key.kind == "system"]


def names(store: EventStore) -> set[str]:
    return {info.session_id for info in list_sessions(store, limit=1000).sessions}


def assert_law(store: EventStore) -> None:
    """The tables are what the log that is left gives."""
    report = verify(store, INLINE, FOLLOWING)
    assert (report.clean, report.differences) == (True, [])
    run(store, FOLLOWING)
    before = rows(store, EVERYTHING)
    rebuild(store, INLINE, FOLLOWING)
    assert rows(store, EVERYTHING) == before


# Purge.


def test_a_purge_takes_what_is_old_and_leaves_the_keys(database: Path) -> None:
    with closing(open_store(database, INLINE)) as store:
        run(store, FOLLOWING)
        for n in range(50):
            where = session(f"s{n:02}", "ada", f"app-{n % 2}")
            fill(store, where, timestamp=NOW - n * DAY)
        expected = {"older_than": 10 * DAY, "app_name": "app-0", "now": NOW}
        found = purgeable(store, **expected)  # type: ignore[arg-type]
        before = [row for row in query(database, "SELECT * FROM adk_state") if row[0] != "session"]
        told: list[tuple[int, int, int]] = []
        done = purge(store, INLINE, FOLLOWING, progress=lambda *each: told.append(each), **expected)  # type: ignore[arg-type]
        assert (done.sessions, done.events) == (found.sessions, found.events) == (19, 19 * 5)
        assert names(store) == {f"s{n:02}" for n in range(50) if n % 2 or n <= 10}
        assert told[-1] == (95, 19, 19)
        after = [row for row in query(database, "SELECT * FROM adk_state") if row[0] != "session"]
        assert [row[:-1] for row in after] == [row[:-1] for row in before]
        said = [payload for type_, payload in notes(store) if type_ == "purged"]
        assert sum(len(each["streams"]) for each in said) == 19
        assert "ada" not in json.dumps(said)
        assert_law(store)
        again = purge(store, INLINE, FOLLOWING, **expected)  # type: ignore[arg-type]
        assert again[:2] == (0, 0)
        # Of all apps.
        assert purge(store, INLINE, FOLLOWING, older_than=30 * DAY, now=NOW).sessions == 10
        assert_law(store)


def test_what_is_used_at_the_cutoff_stays(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("old"), timestamp=NOW - DAY - 0.001)
        fill(store, session("new"), timestamp=NOW - DAY)
        set_title(store, session("old"), "a title is no use")
        assert purge(store, BUILT_IN, older_than=DAY, now=NOW).sessions == 1
        assert names(store) == {"new"}


@pytest.mark.parametrize(
    "age", [-1, float("nan"), float("inf"), pytest.param(10**400, id="10**400"), "90d"]
)
def test_ages_that_are_none(age: Any, database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store, pytest.raises(InvalidInput):
        purge(store, BUILT_IN, older_than=age)


def test_nothing_is_removed_that_a_projection_has_not_seen(database: Path) -> None:
    with closing(open_store(database, INLINE)) as store:
        fill(store, session("s"))
        run(store, FOLLOWING)
        for remove in (
            lambda: purge(store, INLINE, older_than=0),
            lambda: erase_user(store, INLINE, user_id="user"),
            lambda: vacuum(store, INLINE),
        ):
            with pytest.raises(ProjectionMissing, match="following"):
                remove()
        assert names(store) == {"s"}


# Erase.


SECRET = "Very-Secret-Word"


def raw(path: Path) -> bytes:
    """Every byte of the file and of what stands beside it."""
    return b"".join(each.read_bytes() for each in sorted(path.parent.glob(f"{path.name}*")))


def test_every_byte_of_a_user_goes_and_others_stay(database: Path) -> None:
    """Also what was moved about in pages, deleted before, and is in a title or a label."""
    user = f"user-of-{SECRET}"
    with closing(open_store(database, INLINE)) as store:
        run(store, FOLLOWING)
        for n in range(60):
            mine = session(f"{SECRET}-{n}", user, f"app-{n % 2}")
            other = session(f"other-{n}", f"grace-{n}", f"app-{n % 2}")
            fill(store, mine, words=f"{SECRET} {n} " * 40)
            fill(store, other, words=f"harmless {n} " * 40)
        set_title(store, session(f"{SECRET}-0", user, "app-0"), SECRET)
        delete_session(store, session(f"{SECRET}-1", user, "app-1"))
        delete_session(store, session("other-3", "grace-3", "app-1"))
        vacuum(store, INLINE, FOLLOWING)
        delete_session(store, session(f"{SECRET}-3", user, "app-1"))
        # The app's own, whoever wrote it last: it keeps its value.
        asyncio.run(_set_app_key(store, session(f"{SECRET}-5", user, "app-1")))
        others = _others(database)
        assert SECRET.encode() in raw(database)
        found = erasable(store, user)
        assert (found.apps, found.sessions, found.deleted_sessions) == (2, 58, 1)
        done = erase_user(store, INLINE, FOLLOWING, user_id=user)
        assert (done.sessions, done.events, done.keys) == (59, found.events, found.keys)
        assert (done.gone, done.rewritten) == (True, True)
        assert done.keys > 100
        assert SECRET.encode() not in raw(database)
        assert _others(database) == others
        assert ("app", "app-1", "public", '"yes"') in query(
            database, "SELECT scope, app_name, state_key, state_value FROM adk_state"
        )
        assert_law(store)
        assert SECRET.encode() not in raw(database)
        # What is left says that so many were erased, and nothing else.
        said = [payload for type_, payload in notes(store) if type_ == "erased"]
        assert sum(each.get("sessions", 0) for each in said) == 59
        assert said[-1] == {"streams": [], "rewritten": True}
        erased = ", ".join(str(i) for each in said for i in each["streams"])
        left = "app_name, user_id, session_id, user_stream_id, app_stream_id, live, nonce"
        assert query(database, f"SELECT DISTINCT {left} FROM streams WHERE id IN ({erased})") == [
            ("", "", "", 0, 0, 0, b"")
        ]
        # Nobody is told who it was, and who comes back begins anew.
        assert erase_user(store, INLINE, FOLLOWING, user_id=user)[:3] == (0, 0, 0)
        fill(store, session("new", user, "app-0"))
        assert query(
            database, f"SELECT count(*) FROM adk_state WHERE scope = 'user' AND user_id = '{user}'"
        ) == [(5,)]
        assert_law(store)


async def _set_app_key(store: EventStore, key: Any) -> None:
    await store.set_state(key, new_event(EventType.STATE_SET, delta={"app": {"public": "yes"}}))


def _others(path: Path) -> list[Any]:
    return query(
        path,
        "SELECT app_name, user_id, session_id, version, data FROM adk_events "
        "WHERE user_id LIKE 'grace%' AND type = 'adk_event' ORDER BY id",
    )


def test_one_app_alone(database: Path) -> None:
    with closing(open_store(database, INLINE)) as store:
        run(store, FOLLOWING)
        fill(store, session("a", "ada", "one"), session("b", "ada", "two"), session("c", "eve"))
        done = erase_user(store, INLINE, FOLLOWING, user_id="ada", app_name="one")
        assert (done.sessions, done.gone) == (1, True)
        assert names(store) == {"b", "c"}
        assert {row[0] for row in query(database, "SELECT app_name FROM adk_state")} == {
            "one",  # its own key
            "two",
            "app",
        }
        assert_law(store)


def test_a_user_without_a_name_is_not_everybody(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", ""), session("b", "ada"))
        assert erase_user(store, BUILT_IN, user_id="").sessions == 1
        assert names(store) == {"b"}
        assert verify(store, BUILT_IN).clean
        for wrong in ("\0", None, 7):
            with pytest.raises(InvalidInput):
                erase_user(store, BUILT_IN, user_id=wrong)  # type: ignore[arg-type]


def test_an_anchor_of_before_proves_the_others(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, *(session(f"s{n}", f"user {n % 3}") for n in range(9)))
        anchor = verify(store, BUILT_IN).anchor
        assert anchor is not None
        erase_user(store, BUILT_IN, user_id="user 1")
        purge(store, BUILT_IN, older_than=0)
        report = verify(store, BUILT_IN, against=anchor)
        assert (report.clean, report.differences) == (True, [])
        assert report.scavenged_since_anchor == 9


def test_a_reader_of_an_older_state_keeps_a_copy_and_it_is_said(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.sqlite.store._READERS_WAIT_S", 0.2)
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", SECRET), session("b", "eve"))
        with closing(sqlite3.connect(database, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM events").fetchone() == (8,)
            done = erase_user(store, BUILT_IN, user_id=SECRET)
            assert (done.sessions, done.rewritten, done.gone) == (1, True, False)
            assert names(store) == {"b"}
            assert SECRET.encode() in raw(database)
            reader.execute("COMMIT")
        # It is still due, and the next call does it.
        assert erasable(store, SECRET).rewrite
        again = erase_user(store, BUILT_IN, user_id=SECRET)
        assert (again.sessions, again.gone) == (0, True)
        assert SECRET.encode() not in raw(database)
        assert not erasable(store, SECRET).rewrite


def test_without_rewriting_it_stays_due(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", SECRET), session("b", "eve"))
        done = erase_user(store, BUILT_IN, user_id=SECRET, rewrite=False)
        assert (done.rewritten, done.gone) == (False, False)
        assert erasable(store, "eve").rewrite
        assert vacuum(store, BUILT_IN, rewrite=True).gone
        assert not erasable(store, "eve").rewrite
        assert SECRET.encode() not in raw(database)


def test_a_rewrite_that_takes_too_long_is_given_up(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", SECRET), *(session(f"b{n}", "eve") for n in range(40)))
        with monkeypatch.context() as patched:
            patched.setattr(retentions, "_AUTOMATIC_REWRITE_S", 1e-6)
            patched.setattr("eventstore.sqlite.writer._STEPS_PER_LOOK", 1)
            done = erase_user(store, BUILT_IN, user_id=SECRET)
        assert (done.sessions, done.rewritten, done.gone) == (1, False, False)
        fill(store, session("after", "eve"))
        assert verify(store, BUILT_IN).clean
        assert erase_user(store, BUILT_IN, user_id=SECRET, rewrite=True).gone
        assert SECRET.encode() not in raw(database)


def test_what_others_have_put_aside_goes_too(database: Path) -> None:
    """A rebuild that was ended, a projection that was dropped half, an ANALYZE of somebody's."""
    with closing(open_store(database, INLINE)) as store:
        fill(store, *(session(f"{SECRET} {n}", SECRET) for n in range(50)), session("b", "eve"))
        store.transact(lambda t: [t.make_shadow(BUILT_IN[1])])
        query(
            database,
            "INSERT INTO shadow_state SELECT * FROM state",
            f"CREATE TABLE retired_dropped AS SELECT '{SECRET}' AS x",
        )
        # In a process of its own: it brings a SQLite of its own, which keeps samples of keys.
        program = "import apsw, sys; apsw.Connection(sys.argv[1]).execute('ANALYZE')"
        subprocess.run([sys.executable, "-c", program, str(database)], check=True)
        assert query(database, "SELECT count(*) > 0 FROM sqlite_stat4") == [(1,)]
        assert erase_user(store, INLINE, user_id=SECRET).gone
        assert SECRET.encode() not in raw(database)
        assert query(database, "SELECT name FROM sqlite_schema WHERE name GLOB 're*_*'") == []
        assert verify(store, INLINE).clean


# Vacuum.


def test_a_file_that_another_program_has_made_over_is_made_small_again(database: Path) -> None:
    open_store(database, BUILT_IN).close()
    query(database, "PRAGMA journal_mode = DELETE", "PRAGMA auto_vacuum = NONE", "VACUUM")
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, *(session(f"s{n}") for n in range(20)), words="long " * 1000)
        purge(store, BUILT_IN, older_than=0)
        large = database.stat().st_size
        done = vacuum(store, BUILT_IN, rewrite=True)
        assert (done.rewritten, done.gone) == (True, True)
        assert done.bytes_freed > 500_000
        assert database.stat().st_size <= large - done.bytes_freed
        assert query(database, "PRAGMA auto_vacuum") == [(2,)]
        fill(store, session("after"))
        assert verify(store, BUILT_IN).clean


def test_a_rewrite_keeps_positions_and_lets_others_go_on(database: Path) -> None:
    """Also of a process that has prepared its statements and caches the schema."""
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", "eve"), session("b", "eve"))
        delete_session(store, session("b", "eve"))  # the last position is the note of it
        writer = PROCESSES.Process(target=write, args=(database, "w"))
        writer.start()
        try:
            while not acknowledgements(database).get("w"):
                assert writer.is_alive()
                time.sleep(0.01)
            for _ in range(10):
                assert vacuum(store, BUILT_IN, rewrite=True).rewritten
            said = acknowledgements(database)["w"]
            until = time.monotonic() + 20
            while acknowledgements(database)["w"] < said + 5:
                assert writer.is_alive()
                assert time.monotonic() < until
                time.sleep(0.01)
        finally:
            writer.kill()
            writer.join()
        assert_nothing_is_lost(database, store)
        assert verify(store, BUILT_IN).clean
        head = store.snapshot(lambda s: s.head())
        fill(store, session("c", "eve"), events=0)
        assert store.snapshot(lambda s: s.head()) == head + 1


# Two at once, and ends in the middle.


def test_two_at_once(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store, store.maintaining("test"):
        fill(store, session("a"))
        for remove in (
            lambda: purge(store, BUILT_IN, older_than=0),
            lambda: erase_user(store, BUILT_IN, user_id="user"),
            lambda: vacuum(store, BUILT_IN),
        ):
            with pytest.raises(MaintenanceRunning, match=f"process {os.getpid()}"):
                remove()
        assert names(store) == {"a"}


class _Ended(Exception):
    pass


@pytest.mark.parametrize("what", ["purge", "erase"])
@pytest.mark.parametrize("after", [False, True])
def test_ended_at_any_step_it_is_lawful_and_goes_on(
    what: str, after: bool, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that is killed: before a transaction of it, and behind its commit."""
    monkeypatch.setattr(retentions, "SESSIONS_PER_TRANSACTION", 2)
    monkeypatch.setattr(retentions, "_TOMBSTONES_PER_TRANSACTION", 3)
    with closing(open_store(database, INLINE)) as store:
        run(store, FOLLOWING)
        for n in range(8):
            fill(store, session(f"s{n}", "ada", f"app-{n % 2}"), session(f"t{n}", f"eve {n}"))

        def remove() -> Any:
            if what == "purge":
                return purge(store, INLINE, FOLLOWING, older_than=0)
            return erase_user(store, INLINE, FOLLOWING, user_id="ada")

        transact = store.transact
        steps = 0
        for last in range(100):
            count = 0

            def ending(function: Any, last: int = last, **options: Any) -> Any:
                nonlocal count
                if count == last and not after:
                    raise _Ended
                done = transact(function, **options)
                count += 1
                if count > last and after:
                    raise _Ended
                return done

            with monkeypatch.context() as patched:
                patched.setattr(store, "transact", ending)
                try:
                    remove()
                except _Ended:
                    steps += 1
                else:
                    break
            report = verify(store, INLINE, FOLLOWING)
            assert (report.clean, report.differences) == (True, [])
        assert steps > 3
        assert names(store) == (set() if what == "purge" else {f"t{n}" for n in range(8)})
        if what == "erase":
            for table in ("adk_events", "adk_state", "adk_sessions", "streams"):
                assert ("ada",) not in query(database, f"SELECT user_id FROM {table}")
        assert_law(store)


KILLED = """
import sys, time
from eventstore import open_store
from projections import BUILT_IN, erase_user, purge
from projections import retention
from projections.scavenge import remove

calls = []

def slowly(*arguments, **facts):
    done = remove(*arguments, **facts)
    print("step", flush=True)
    calls.append(done)
    time.sleep(0.05 if len(calls) < 3 else 60)  # inside the transaction; by then it is killed
    return done

retention.remove = slowly
store = open_store(sys.argv[1], BUILT_IN)
if sys.argv[2] == "purge":
    purge(store, BUILT_IN, older_than=0)
else:
    erase_user(store, BUILT_IN, user_id="ada")
print("done", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("what", ["purge", "erase"])
def test_killed_in_the_middle_beside_a_service(what: str, database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, *(session(f"s{n}", "ada") for n in range(60)), events=1)
        fill(store, session("kept", "eve"), timestamp=time.time() + 1e6)
        writer = PROCESSES.Process(target=write, args=(database, "w"))
        writer.start()
        try:
            while not acknowledgements(database).get("w"):
                assert writer.is_alive()
                time.sleep(0.01)
            command = [sys.executable, "-c", KILLED, str(database), what]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "step\n"
                assert process.stdout.readline() == "step\n"
                process.send_signal(signal.SIGKILL)
            if what == "erase":
                assert verify(store, BUILT_IN).clean
                left = erasable(store, "ada")
                assert 0 < left.deleted_sessions < 60
                assert left.sessions == 0
                done = erase_user(store, BUILT_IN, user_id="ada")
                assert (done.sessions, done.gone) == (left.deleted_sessions, True)
                assert not erasable(store, "ada").events
            writer.kill()
            writer.join()
        finally:
            writer.kill()
            writer.join()
        if what == "purge":
            assert 20 <= len(names(store) - {"kept"}) < 60
            assert verify(store, BUILT_IN).clean
            purge(store, BUILT_IN, older_than=0)
            assert names(store) == {"kept"}
        else:
            assert_nothing_is_lost(database, store)
        assert verify(store, BUILT_IN).clean


def test_damage_does_not_keep_a_user_from_being_erased(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", "ada"), session("b", "ada"), session("c", "eve"))
        attack(database, "UPDATE events SET data = '{}' WHERE stream_id = 3 AND version = 3")
        with pytest.raises(CorruptEvent):
            asyncio.run(_load(store, session("a", "ada")))
        before = rows(store)["state"]
        done = erase_user(store, BUILT_IN, user_id="ada")
        assert (done.sessions, done.gone) == (2, True)
        # The app's key, which the damaged session wrote last or not, is as it was.
        app = [row[:3] for row in before if row[0] == 1]
        assert app
        assert [row[:3] for row in rows(store)["state"] if row[0] == 1] == app
        assert verify(store, BUILT_IN).clean
        rebuild(store, BUILT_IN)
        assert [row[:3] for row in rows(store)["state"] if row[0] == 1] == app


def test_what_a_damaged_session_wrote_last_outlives_it(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        fill(store, session("a", "ada"))
        attack(database, "UPDATE events SET data = '{}' WHERE stream_id = 3 AND version = 3")
        expected = [row[:3] for row in rows(store)["state"] if row[0] in (1, 2)]
        delete_session(store, session("a", "ada"))
        assert vacuum(store, BUILT_IN).sessions == 1
        assert [row[:3] for row in rows(store)["state"]] == expected
        assert verify(store, BUILT_IN).clean


async def _load(store: EventStore, key: Any) -> Any:
    return await store.load(key, Window(), lambda loaded: loaded.events)


@pytest.mark.parametrize("how", ["the row", "the index"])
def test_what_no_event_says_was_deleted_is_not_removed(database: Path, how: str) -> None:
    asyncio.run(_two_sessions(database))
    with closing(open_store(database, BUILT_IN)) as store:
        delete_session(store, session("ended"))
    (kept, ended) = (
        query(database, f"SELECT id FROM streams WHERE session_id = '{name}'")[0][0]
        for name in ("kept", "ended")
    )
    if how == "the row":
        query(database, f"UPDATE streams SET live = 0 WHERE id = {kept}")
    else:
        content = bytearray(database.read_bytes())
        page = 4096 * (pages(database)["streams_deleted"][0] - 1)
        cell = page + int.from_bytes(content[page + 8 : page + 10], "big")
        content[cell + bytes(content[cell : cell + 6]).rindex(ended)] = kept
        database.write_bytes(content)
    with closing(open_store(database, BUILT_IN)) as store:
        if how == "the row":
            with pytest.raises(CorruptEvent, match="verify --fix"):
                vacuum(store, BUILT_IN)
            verify(store, BUILT_IN, fix=True)
        else:
            assert vacuum(store, BUILT_IN).sessions == 0
        assert asyncio.run(_count(store, "kept")) == 3


@pytest.mark.parametrize(
    "damage", ["user_id = 'bob'", "kind = 'app'", "user_stream_id = 99", "app_name = 'other'"]
)
def test_nobody_is_erased_by_a_damaged_row(target: str, damage: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        fill(store, session("hers", "ada"), session("his", "bob"))
        before = query(target, "SELECT * FROM events")
        query(target, f"UPDATE streams SET {damage} WHERE session_id = 'hers'")
        if damage == "user_id = 'bob'":
            with pytest.raises(CorruptEvent, match="row of its stream is damaged"):
                erase_user(store, BUILT_IN, user_id="bob")
        # Nor is it said that everything of hers is gone.
        with pytest.raises(CorruptEvent, match="row of its stream is damaged"):
            erase_user(store, BUILT_IN, user_id="ada")
        assert query(target, "SELECT * FROM events") == before


async def _two_sessions(path: Path) -> None:
    with closing(open_store(path, BUILT_IN)) as store:
        for name in ("kept", "ended"):
            stream = (await store.create(session(name), created())).stream
            cursor = Cursor(stream.id, 1)
            for _ in range(3):
                await store.append(session(name), new_event(), cursor)


async def _count(store: EventStore, name: str) -> int | None:
    return await store.load(session(name), Window(), lambda loaded: len(loaded.events))


@pytest.mark.parametrize("stream", ["the session's", "the app's", "none"])
def test_a_damaged_row_of_a_session_purges_nothing(target: str, stream: str) -> None:
    async def fill(store: EventStore) -> tuple[int, int]:
        made = (await store.create(session("s"), created(app={"k": 1}))).stream
        await store.append(session("s"), new_event(timestamp=2e9), Cursor(made.id, 1))
        return made.id, made.app_stream_id

    with closing(open_store(target, BUILT_IN)) as store:
        made, app = asyncio.run(fill(store))
        other = {"the session's": made, "the app's": app, "none": 999}[stream]
        query(target, f"UPDATE sessions SET stream_id = {other}, last_update_time = 1")
        with pytest.raises(CorruptRow, match="rebuild-projections"):
            purge(store, BUILT_IN, older_than=60, now=2e9)
        rebuild(store, BUILT_IN)
        assert purge(store, BUILT_IN, older_than=60, now=2e9).sessions == 0
        assert verify(store, BUILT_IN).clean


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE state SET state_value = '\"other\"' WHERE state_key = 'k'",
        "UPDATE state SET position = 1 WHERE state_key = 'k'",
        "UPDATE state SET position = 999 WHERE state_key = 'k'",
        "UPDATE state SET position = (SELECT max(position) FROM events) WHERE state_key = 'k'",
        "DELETE FROM state WHERE state_key = 'k'",
    ],
)
def test_a_damaged_row_costs_no_key_its_value(target: str, damage: str) -> None:
    async def fill(store: EventStore) -> None:
        await store.create(session("first"), created(app={"k": "old"}))
        made = (await store.create(session("ended"), created(app={"k": "mine"}))).stream
        await store.append(session("ended"), new_event(), Cursor(made.id, 1))

    with closing(open_store(target, BUILT_IN)) as store:
        asyncio.run(fill(store))
        delete_session(store, session("ended"))
        query(target, damage)
        if "state_value" not in damage:
            with pytest.raises(CorruptRow, match="rebuild-projections"):
                vacuum(store, BUILT_IN)
            assert verify(store, BUILT_IN, fix=True).clean
        assert vacuum(store, BUILT_IN).sessions == 1
        assert verify(store, BUILT_IN).clean
        assert query(target, "SELECT state_value FROM state WHERE state_key = 'k'") == [('"mine"',)]


def test_a_damaged_event_that_came_later_keeps_no_other_from_being_removed(target: str) -> None:
    async def fill(store: EventStore) -> None:
        await store.create(session("ended"), created(app={"k": "mine"}))
        await store.create(session("later"), created(app={"k": "theirs"}))

    with closing(open_store(target, BUILT_IN)) as store:
        asyncio.run(fill(store))
        attack(target, "UPDATE events SET delta = '{}' WHERE delta LIKE '%theirs%'")
        delete_session(store, session("ended"))
        assert vacuum(store, BUILT_IN)[:3] == (1, 2, 0)


def test_nobody_is_erased_whom_a_stopped_projection_has_not_folded(target: str) -> None:
    class Stopped(Projection):
        name = "stopped"
        version = 1
        table = Table("stopped", {"stream_id": "integer"}, {"n": "integer"})

        def apply(self, event: RecordedEvent) -> Iterable[Change]:
            if event.type == EventType.ADK_EVENT:
                raise ValueError
            return ()

    async def fill(store: EventStore) -> None:
        made = (await store.create(session("s"), created())).stream
        run(store, (Stopped(),))
        await store.append(session("s"), new_event(), Cursor(made.id, 1))

    with closing(open_store(target, BUILT_IN)) as store:
        asyncio.run(fill(store))
        with pytest.raises(ProjectionMissing, match="it is stopped at position"):
            erase_user(store, BUILT_IN, (Stopped(),), user_id="user")
        assert asyncio.run(_count(store, "s")) == 1

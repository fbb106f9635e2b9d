"""Scavenging: what deleted sessions said of others stays, whatever it was and whoever folds it."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventstore import (
    CorruptEvent,
    Cursor,
    EventStore,
    EventType,
    MaintenanceRunning,
    ProjectionMissing,
    open_store,
)
from projections import BUILT_IN, Scope, rebuild, rebuild_scope, run, scavenge, verify
from tests.eventstore.events import SESSION, created, new_event, session
from tests.faults.faulty import Plan, installed
from tests.places import is_whole, leftovers, on_server, query
from tests.processes import fresh_processes
from tests.projections.logs import (
    DO,
    FOLLOWING,
    INLINE,
    acknowledgements,
    assert_nothing_is_lost,
    attack,
    perform_all,
    rows,
    wait_until_free,
    write,
)
from tests.projections.test_rebuild import Steps, fill

PROCESSES = fresh_processes()
EVERYTHING = (*INLINE, *FOLLOWING)


async def test_scavenging_keeps_what_deleted_sessions_said_of_users_and_apps(
    store: EventStore, target: str
) -> None:
    await fill(store)
    await store.create(
        session("other"), created(app={"b": float("nan"), "a": "é"}, user={"v": "é"})
    )
    for key in (SESSION, session("other")):
        await store.delete(key, new_event(EventType.SESSION_DELETED))
    result = await asyncio.to_thread(scavenge, store, BUILT_IN)
    assert (result.sessions, result.events, result.keys_carried_over) == (2, 9, 4)
    assert sorted(query(target, "SELECT scope, state_key, state_value FROM adk_state")) == [
        ("app", "a", '"\\u00e9"'),  # as it is stored beside a NaN, which strict JSON cannot hold
        ("app", "b", "NaN"),
        ("user", "u", "2"),
        ("user", "v", '"\\u00e9"'),
    ]
    assert query(target, "SELECT DISTINCT session_id FROM streams") == [("",)]
    assert query(target, "SELECT type FROM events ORDER BY position") == [
        ("state_set",), ("state_set",), ("state_set",), ("state_set",), ("vacuumed",)
    ]  # fmt: skip
    assert (await asyncio.to_thread(verify, store, BUILT_IN)).clean
    assert (await asyncio.to_thread(scavenge, store, BUILT_IN)).sessions == 0


async def test_shrinking_gives_space_back(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        await _shrink(store, database)


async def _shrink(store: EventStore, database: Path) -> None:
    loaded = await store.create(SESSION, created())
    cursor = Cursor(loaded.stream.id, 1)
    for _ in range(40):
        await store.append(SESSION, new_event(data="x" * 50_000), cursor)
    await store.delete(SESSION, new_event(EventType.SESSION_DELETED))
    await asyncio.to_thread(store.shrink)
    large = database.stat().st_size
    scavenge(store, BUILT_IN)
    store.shrink()
    assert database.stat().st_size < large / 8


async def test_shrinking_gives_many_pages_back_with_each_commit(
    database: Path,
) -> None:
    store = open_store(database, BUILT_IN)
    loaded = await store.create(SESSION, created())
    cursor = Cursor(loaded.stream.id, 1)
    for _ in range(100):
        await store.append(SESSION, new_event(data="x" * 50_000), cursor)
    await store.delete(SESSION, new_event(EventType.SESSION_DELETED))
    scavenge(store, BUILT_IN)
    store.close()
    assert query(database, "PRAGMA freelist_count") > [(1_000,)]
    plan = Plan()
    with (
        installed(plan, database.parent),
        closing(open_store(database, BUILT_IN)) as again,
        plan.armed(),
    ):
        again.shrink()
    assert query(database, "PRAGMA freelist_count") == [(0,)]
    assert sum(step.name == "commit" for step in plan.steps) < 10


def delete_some(store: EventStore, count: int) -> None:
    """Deleted sessions, each the last to write a key and rows of its user and app."""
    names = [(f"s{n}", "user", "app") for n in range(count)]
    for n, name in enumerate(names):
        delta = {
            "session": {"s": n, DO: ["put", "mine", n]},
            "user": {f"u{n}": n, DO: ["put", f"user row {n}", n]},
            "app": {f"a{n}": n, DO: ["add", f"app row {n % 3}", n]},
        }
        perform_all(store, [("create", name, delta), ("delete", name, None)])
    perform_all(store, [("create", ("stays", "user", "app"), {"app": {"a0": "mine"}})])


def values(store: EventStore) -> dict[str, list[Any]]:
    """All rows but those that count events, and without positions, which carrying over changes."""
    found = rows(store, EVERYTHING)
    for name in ("everything", "following"):
        found[name] = [row for row in found[name] if row[1] != "events"]
    return found | {"state": [row[:3] for row in found["state"]]}


@pytest.mark.parametrize("where", ["before", "inside"])
def test_ended_at_any_step_no_value_is_lost_and_the_next_run_does_the_rest(
    target: str, where: str
) -> None:
    with closing(open_store(target, INLINE)) as store:
        run(store, FOLLOWING)
        delete_some(store, 45)
        run(store, FOLLOWING)
        before = values(store)
        removed, steps = [], 0
        for last in range(1, 100):

            def end(number: int, last: int = last) -> None:
                if number == last:
                    raise KeyboardInterrupt

            try:
                done = scavenge(Steps(store, **{where: end}), INLINE, FOLLOWING)  # type: ignore[arg-type]
            except KeyboardInterrupt:
                steps += 1
            else:
                break
            assert values(store) == before
            removed.append(
                query(target, "SELECT count(*) FROM streams WHERE length(nonce) = 0")[0][0]
            )
            assert verify(store, INLINE, FOLLOWING).clean
        assert steps > 3
        assert {20, 40} & set(removed)  # some at a time
        assert done.sessions == 0
        rebuild(store, INLINE, FOLLOWING)
        assert values(store) == before


def test_what_was_removed_changes_nothing_for_repairs_and_later_runs(target: str) -> None:
    with closing(open_store(target, INLINE)) as store:
        run(store, FOLLOWING)
        delete_some(store, 5)
        scavenge(store, INLINE, FOLLOWING)
        assert query(target, "SELECT count(*) FROM events WHERE type = 'session_deleted'") == [(0,)]
        perform_all(
            store, [("set", ("stays", "user", "app"), {"app": {DO: ["add", "app row 1", 1]}})]
        )
        run(store, FOLLOWING)
        before = rows(store, EVERYTHING)
        assert before["everything"] == before["following"]
        assert {r.changed for r in rebuild_scope(store, INLINE, FOLLOWING, Scope("app"))} == {0}
        assert {
            r.changed for r in rebuild_scope(store, INLINE, FOLLOWING, Scope("app", "user"))
        } == {0}
        rebuild(store, INLINE, FOLLOWING)
        assert rows(store, EVERYTHING) == before


def test_nothing_is_removed_that_somebody_could_never_fold_again(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        run(store, FOLLOWING)
        asyncio.run(fill(store))
        perform_all(store, [("delete", ("session", "user", "app"), None)])
        with pytest.raises(ProjectionMissing, match="following"):
            scavenge(store, BUILT_IN)
        query(
            target,
            "UPDATE projections SET failed_at = 3, checkpoint = 2 WHERE name = 'following'",
        )
        attack(target, "UPDATE events SET delta = 'damaged' WHERE position = 3")
        with pytest.raises((ProjectionMissing, CorruptEvent)):
            scavenge(store, BUILT_IN, FOLLOWING)
        assert store.stats()["events"] == 7


# Killed.


def _maintain_for_ever(path: str, what: str) -> None:
    """One kind of maintenance over and over; what it finds wrong ends it."""
    with closing(open_store(path, BUILT_IN)) as store:
        while True:
            try:
                if what == "rebuild":
                    rebuild(store, BUILT_IN)
                    rebuild_scope(store, BUILT_IN, (), Scope("app", "user"))
                elif what == "vacuum":
                    scavenge(store, BUILT_IN)
                else:
                    report = verify(store, BUILT_IN)
                    assert report.clean, report.differences
            except MaintenanceRunning:
                time.sleep(0.002)


def test_writers_and_maintenance_that_are_killed_lose_nothing(target: str) -> None:
    chance = random.Random(7)
    with closing(open_store(target, BUILT_IN)) as store:
        query(target, "CREATE INDEX mine ON state (state_value, position DESC)")
        for _ in range(2 if on_server(target) else 4):
            before = acknowledgements(target)
            writers = [
                PROCESSES.Process(
                    target=write, args=(target, name), kwargs={"number": before.get(name, 0) + 1}
                )
                for name in ("w0", "w1")
            ]
            maintenance = [
                PROCESSES.Process(target=_maintain_for_ever, args=(target, what))
                for what in ("rebuild", "vacuum", "verify")
            ]
            for process in (*writers, *maintenance):
                process.start()
            deadline = time.monotonic() + 60
            while not all(
                acknowledgements(target).get(w, 0) > before.get(w, 0) + 80 for w in ("w0", "w1")
            ):
                assert time.monotonic() < deadline
                assert not any(process.exitcode for process in (*writers, *maintenance))
                time.sleep(0.01)
            time.sleep(chance.random() / 10)
            for process in chance.sample([*writers, *maintenance], 5):
                assert process.exitcode is None
                process.kill()
                time.sleep(chance.random() / 50)
            for process in (*writers, *maintenance):
                process.join()
            wait_until_free(store)
            assert_nothing_is_lost(target, store)
            assert is_whole(target)
            report = verify(store, BUILT_IN)
            assert (report.clean, report.differences) == (True, [])
        before_rebuild = rows(store)
        scavenge(store, BUILT_IN)
        assert [row[:3] for row in rows(store)["state"]] == [
            row[:3] for row in before_rebuild["state"]
        ]
        rebuild(store, BUILT_IN)
        assert leftovers(target) == []
        assert_nothing_is_lost(target, store)
        assert verify(store, BUILT_IN).clean

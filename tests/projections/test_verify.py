"""Verify: whatever somebody changes who may write the file is found and named."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from eventstore import Cursor, EventStore, EventType, PathUnusable, open_store
from projections import (
    Anchor,
    Difference,
    InvalidAnchor,
    Verified,
    read_anchor,
    rebuild,
    run,
    scavenge,
    verify,
    write_anchor,
)
from tests.eventstore.events import created, new_event, session
from tests.places import query
from tests.processes import fresh_processes
from tests.projections import logs
from tests.projections.logs import (
    DO,
    FOLLOWING,
    INLINE,
    attack,
    perform_all,
    rewrite_history,
    rows,
    write,
)

EVERYTHING = (*INLINE, *FOLLOWING)
APP, USER, ONE, TWO, ENDED, SCAVENGED, SYSTEM = 1, 2, 3, 5, 6, 7, 8
"""Stream ids of the log that is attacked; 4 is the user of TWO."""


async def _make(store: EventStore) -> None:
    gone = session("gone")
    one, two, ended = session("one"), session("two", "other"), session("ended")
    first = await store.create(one, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))
    cursor = Cursor(first.stream.id, 1)
    for n in range(4):
        delta = {"session": {"n": n, f"k{n}": n, DO: ["put", "row", n]}, "user": {"u": n}}
        await store.append(one, new_event(delta=delta, timestamp=n), cursor)
    second = await store.create(two, created(session={"s": 1}, app={"a": 4}))
    await store.append(
        two, new_event(delta={"session": {"x": float("nan")}}), Cursor(second.stream.id, 1)
    )
    await store.create(ended, created(app={"b": 5}))
    await store.delete(ended, new_event(EventType.SESSION_DELETED))
    await store.create(gone, created(app={"c": 6}))
    await store.delete(gone, new_event(EventType.SESSION_DELETED))


async def _end_the_log(store: EventStore) -> None:
    await store.set_state(
        session("one"), new_event(EventType.STATE_SET, delta={"app": {"a": 8}, "session": {"z": 1}})
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Anchor]:
    """A closed database, and an anchor of it."""
    path = tmp_path_factory.mktemp("made") / "sessions.sqlite3"
    with closing(open_store(path, INLINE)) as store:
        asyncio.run(_make(store))
        run(store, FOLLOWING)
        # "gone" is scavenged, and the events of "ended" are still there.
        query(path, "UPDATE streams SET live = 1 WHERE session_id = 'ended'")
        scavenge(store, INLINE, FOLLOWING)
        query(path, "UPDATE streams SET live = 0 WHERE session_id = 'ended'")
        asyncio.run(_end_the_log(store))
        run(store, FOLLOWING)
        report = verify(store, INLINE, FOLLOWING)
        assert (report.clean, report.differences) == (True, [])
        assert report.anchor is not None
        ids = query(path, "SELECT id, session_id, version FROM streams ORDER BY id")
        assert (
            ids
            == [
                (APP, "", 3),
                (USER, "", 0),
                (ONE, "one", 6),
                (4, "", 0),
                (TWO, "two", 2),
                (ENDED, "ended", 2),
                (SCAVENGED, "", 2),
                (SYSTEM, "", 3),
            ]
            or ids == []
        )
    return path, report.anchor


@pytest.fixture
def attacked(made: tuple[Path, Anchor], database: Path) -> Path:
    shutil.copy(made[0], database)
    return database


def check(path: Path, **options: Any) -> Verified:
    with closing(open_store(path, INLINE, for_rebuild=True)) as store:
        return verify(store, INLINE, FOLLOWING, **options)


def found(report: Verified, table: str, key: str = "") -> list[Difference]:
    assert not report.clean
    return [d for d in report.differences if d.table == table and key in d.key]


# The log.

AT = f"WHERE stream_id = {ONE} AND version = 3"
EVENT_EDITS = [
    f"UPDATE events SET version = 30 {AT}",
    f"UPDATE events SET event_id = 'other' {AT}",
    f"UPDATE events SET type = 'state_set' {AT}",
    f"UPDATE events SET type = 'session_deleted' {AT}",
    f"UPDATE events SET type = 'carried_over' {AT}",
    f"UPDATE events SET type = 'vacuumed' {AT}",
    f"UPDATE events SET type = 'unheard_of' {AT}",
    f"UPDATE events SET schema_version = 2 {AT}",
    f"UPDATE events SET recorded_at = recorded_at + 1 {AT}",
    f"UPDATE events SET timestamp = timestamp + 0.5 {AT}",
    f"UPDATE events SET author = 'somebody else' {AT}",
    f"UPDATE events SET invocation_id = '' {AT}",
    f"UPDATE events SET codec = 0 {AT}",
    f"UPDATE events SET codec = 77 {AT}",
    f"UPDATE events SET encoding = 2 {AT}",
    f"UPDATE events SET encoding = 9 {AT}",
    f"UPDATE events SET delta_digest = x'00' {AT}",
    f"UPDATE events SET delta_digest = NULL {AT}",
    f"UPDATE events SET data_digest = x'00' {AT}",
    f"UPDATE events SET data_digest = NULL {AT}",
    f"UPDATE events SET chain = x'00' {AT}",
    f"UPDATE events SET delta = replace(delta, '1', '7') {AT}",
    f"UPDATE events SET delta = '{{\"bogus\":{{}}}}' {AT}",
    f"UPDATE events SET delta = 'no json' {AT}",
    f"UPDATE events SET delta = CAST(x'ff' AS TEXT) {AT}",
    f"UPDATE events SET delta = NULL {AT}",
    f"UPDATE events SET delta = NULL, delta_digest = NULL {AT}",
    f"UPDATE events SET data = replace(data, 'hello', 'hallo') {AT}",
    f"UPDATE events SET data = data || ' ' {AT}",
    f"UPDATE events SET data = NULL {AT}",
    f"UPDATE events SET data = NULL, data_digest = NULL {AT}",
    f"UPDATE events SET stream_id = {TWO} {AT}",
    f"UPDATE events SET position = 1000 {AT}",
    f"UPDATE events SET position = -position {AT}",
]


@pytest.mark.parametrize("edit", EVENT_EDITS)
def test_an_event_that_was_changed_is_named(attacked: Path, edit: str) -> None:
    attack(attacked, edit)
    report = check(attacked)
    assert found(report, "events")
    assert not report.log_is_whole
    if "stream_id =" not in edit.partition("WHERE")[0] and "position" not in edit:
        assert any(
            d.event is not None and d.event.version in (3, 30)
            for d in found(report, "events", "session 'one'")
        )
    before = rows(_opened := open_store(attacked, INLINE, for_rebuild=True), EVERYTHING)
    _opened.close()
    assert not check(attacked, fix=True).clean
    with closing(open_store(attacked, INLINE, for_rebuild=True)) as store:
        assert rows(store, EVERYTHING) == before
    if "position" not in edit:
        since = query(attacked, f"SELECT position FROM events WHERE stream_id = {ONE}")[1][0]
        assert found(check(attacked, since=since), "events")


@pytest.mark.parametrize(
    ("stream", "versions"),
    [
        (ONE, "version = 1"),
        (ONE, "version = 3"),
        (ONE, "version = 6"),
        (ONE, "version > 2"),
        (ONE, "version > 0"),
        (ENDED, "version = 2"),
        (ENDED, "version > 0"),
        (APP, "version > 0"),
        (SYSTEM, "version > 0"),
    ],
)
def test_events_that_were_removed_are_missed(attacked: Path, stream: int, versions: str) -> None:
    attack(attacked, f"DELETE FROM events WHERE stream_id = {stream} AND {versions}")
    report = check(attacked)
    problems = [d.problem for d in found(report, "events", f"stream {stream}")]
    expected = "one is missing" if versions in ("version = 1", "version = 3") else "its last events"
    assert any(expected in problem for problem in problems)
    # It is the log that is wrong, not the rows: nothing is made to fit what is left of it.
    with closing(open_store(attacked, INLINE)) as store:
        before = rows(store, EVERYTHING), query(attacked, "SELECT * FROM streams")
        report = verify(store, INLINE, FOLLOWING, fix=True)
        assert (report.clean, report.fixed) == (False, [])
        assert before == (rows(store, EVERYTHING), query(attacked, "SELECT * FROM streams"))


@pytest.mark.parametrize(
    "first_events",
    [
        "'no json'",
        "'{}'",
        "NULL",
        "json_set(data, '$.stream.app_name', 5)",
        "json_set(data, '$.stream.kind', 'nonsense')",
        "json_set(data, '$.stream.nonce', 'zz')",
        "json_set(data, '$.stream.more', 1)",
        "json_set(data, '$.stream', json('[1]'))",
        "replace(hex(zeroblob(5000)), '00', '[')",
        "replace(data, 'app_name\":\"', 'app_name\":\"\\ud800')",
    ],
)
def test_first_events_and_notes_of_vacuums_that_are_nonsense(
    attacked: Path, first_events: str
) -> None:
    attack(
        attacked,
        f"UPDATE events SET data = {first_events} WHERE version = 1",
        "UPDATE events SET encoding = 2 WHERE position % 2",
    )
    report = check(attacked)
    assert {d.key.rpartition(" ")[2] for d in found(report, "events")} == {
        str(id_) for (id_,) in query(attacked, "SELECT DISTINCT stream_id FROM events")
    }


@pytest.mark.parametrize(
    ("edit", "table"),
    [
        ("UPDATE codecs SET fingerprint = 'other' WHERE fingerprint = 'test'", "events"),
        ("DELETE FROM codecs WHERE fingerprint = 'test'", "events"),
        ("DELETE FROM codecs WHERE id = 0", "file"),
    ],
)
def test_codecs(attacked: Path, edit: str, table: str) -> None:
    attack(attacked, edit)
    assert found(check(attacked), table)


def test_an_event_that_was_moved_is_found_where_it_changes_a_row(attacked: Path) -> None:
    """The position is not in the chain, for it changes when a log is imported elsewhere."""
    last_of_app = f"stream_id = {ONE} AND version = 6"
    before_two = query(attacked, f"SELECT min(position) FROM events WHERE stream_id = {TWO}")[0][0]
    assert before_two == 6
    # Behind the others of its stream, and before another write of the same key.
    attack(
        attacked,
        "UPDATE events SET position = -position WHERE position >= 6",
        f"UPDATE events SET position = 6 WHERE {last_of_app}",
        "UPDATE events SET position = 1 - position WHERE position < 0",
    )
    report = check(attacked)
    (difference,) = found(report, "state", "'a'")
    assert difference.stored is not None
    assert difference.expected is not None
    assert (difference.stored["state_value"], difference.expected["state_value"]) == ("8", "4")


# Rows.

ROW_EDITS = [
    ("state", f"UPDATE state SET state_value = '\"7\"' WHERE owner_id = {ONE} AND state_key = 'n'"),
    ("state", f"UPDATE state SET position = 1 WHERE owner_id = {ONE} AND state_key = 'n'"),
    ("state", f"UPDATE state SET state_key = 'm' WHERE owner_id = {ONE} AND state_key = 'n'"),
    ("state", f"UPDATE state SET owner_id = {TWO} WHERE owner_id = {ONE} AND state_key = 'n'"),
    ("state", f"DELETE FROM state WHERE owner_id = {ONE} AND state_key = 'n'"),
    ("sessions", f"UPDATE sessions SET created_at = 7 WHERE stream_id = {ONE}"),
    ("sessions", f"UPDATE sessions SET last_update_time = 7 WHERE stream_id = {ONE}"),
    ("sessions", f"UPDATE sessions SET stream_id = 99 WHERE stream_id = {ONE}"),
    ("sessions", f"DELETE FROM sessions WHERE stream_id = {ONE}"),
    ("everything", f"UPDATE everything SET weight = weight + 1e-9 WHERE owner_id = {ONE}"),
    ("everything", f"UPDATE everything SET said = said || ' ' WHERE owner_id = {ONE}"),
    ("following", f"UPDATE following SET n = n + 1 WHERE owner_id = {ONE}"),
    ("following", f"DELETE FROM following WHERE owner_id = {ONE}"),
]


@pytest.mark.parametrize(("table", "edit"), ROW_EDITS)
def test_a_row_that_was_changed_is_named_with_both_values_and_its_event(
    attacked: Path, table: str, edit: str
) -> None:
    projection = next(p for p in EVERYTHING if p.table.name == table)
    with closing(open_store(attacked, INLINE)) as store:
        right = {row[: len(projection.table.key)]: row for row in rows(store, EVERYTHING)[table]}
        query(attacked, edit)
        wrong = {row[: len(projection.table.key)]: row for row in rows(store, EVERYTHING)[table]}
        report = verify(store, INLINE, FOLLOWING)
        names = (*projection.table.key, *projection.table.columns)
        changed = {
            key: (wrong.get(key), right.get(key))
            for key in wrong.keys() | right.keys()
            if wrong.get(key) != right.get(key)
        }
        assert report.drifted == {table: len(changed)}
        assert report.log_is_whole
        for difference in report.differences:
            row = difference.stored or difference.expected
            assert row is not None
            key = tuple(row[name] for name in projection.table.key)
            pair = changed.pop(key)
            stored, expected = difference.stored, difference.expected
            for row, seen in zip(pair, (stored, expected), strict=True):
                assert (None if row is None else dict(zip(names, row, strict=True))) == seen
            if pair[1] is None:
                assert difference.event is None
                assert difference.problem == "is in no event of the log"
            else:
                # The last event of the session touched its row, the fifth its other keys.
                assert "session 'one'" in difference.key
                assert difference.event is not None
                last = 6 if table == "sessions" else 5
                assert (difference.event.version, difference.event.author) == (last, "author")
                assert difference.problem in ("differs", "is missing")
        assert not changed
        # The log says it all: put right, it is as it was.
        fixed = verify(store, INLINE, FOLLOWING, fix=True)
        assert (fixed.clean, fixed.fixed) == (True, [table])
        assert {r[: len(projection.table.key)]: r for r in rows(store, EVERYTHING)[table]} == right
        assert verify(store, INLINE, FOLLOWING).differences == []


@pytest.mark.parametrize(
    "insert",
    [
        f"INSERT INTO state VALUES ({ONE}, 'made up', '1', 3)",
        "INSERT INTO state VALUES (99, 'made up', '1', 3)",
        f"INSERT INTO state VALUES ({ENDED}, 'made up', '1', 3)",
        "INSERT INTO state VALUES (-1, '', '', 0)",
        f"INSERT INTO sessions VALUES ({ENDED}, 1, 1, 0, 0, '', '{{}}')",
        "INSERT INTO sessions VALUES (99, 1, 1, 0, 0, '', '{}')",
    ],
)
def test_rows_that_were_made_up(attacked: Path, insert: str) -> None:
    query(attacked, insert)
    report = check(attacked)
    (difference,) = report.differences
    assert difference.problem == "is in no event of the log"
    assert difference.expected is None
    assert check(attacked, fix=True).clean
    assert check(attacked).differences == []


@pytest.mark.parametrize(
    ("edit", "table"),
    [
        ("DROP TABLE state", "state"),
        ("ALTER TABLE sessions DROP COLUMN title", "sessions"),
        ("DROP TABLE following", "following"),
        ("UPDATE projections SET version = 2 WHERE name = 'state'", "state"),
        ("DELETE FROM projections WHERE name = 'sessions'", "sessions"),
        ("UPDATE projections SET checkpoint = 3 WHERE name = 'state'", "state"),
        ("UPDATE projections SET table_name = 'streams' WHERE name = 'state'", "state"),
        ("UPDATE projections SET checkpoint = 1000 WHERE name = 'following'", "following"),
        ("UPDATE projections SET checkpoint = 3 WHERE name = 'following'", "following"),
    ],
)
def test_tables_and_what_is_noted_of_them(attacked: Path, edit: str, table: str) -> None:
    query(attacked, "DROP VIEW adk_sessions", edit)
    report = check(attacked, fix=True)
    assert report.drifted.keys() == {table}
    assert report.fixed == [table]
    assert check(attacked).differences == []


def test_many_differences_are_counted_and_some_described(attacked: Path) -> None:
    query(
        attacked,
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 500) "
        f"INSERT INTO state SELECT {ONE}, 'made up ' || n, '1', 1 FROM n",
    )
    report = check(attacked)
    assert report.drifted == {"state": 500}
    assert len(report.differences) == 10


# Streams.

STREAM_EDITS = [
    (ONE, "kind = 'app'"),
    (ONE, "app_name = 'other'"),
    (ONE, "user_id = 'other'"),
    (ONE, "session_id = 'other'"),
    (ONE, "user_stream_id = 4"),
    (ONE, "user_stream_id = 0"),
    (ONE, "app_stream_id = 2"),
    (ONE, "version = 5"),
    (ONE, "version = 7"),
    (ONE, "version = 0"),
    (ONE, "conversation_version = 6"),
    (ONE, "live = 0"),
    (ONE, "nonce = x'00'"),
    (ONE, "nonce = x''"),
    (ONE, "live = 0, nonce = x''"),
    (ONE, "chain = x'00'"),
    (ONE, "version = 5, chain = (SELECT chain FROM events WHERE stream_id = 3 AND version = 5)"),
    (ONE, "id = 99"),
    (ENDED, "live = 1"),
    (TWO, "user_stream_id = 2"),
    (APP, "app_name = 'other'"),
    (APP, "kind = 'user'"),
    (APP, "nonce = x'00'"),
    (APP, "version = 0"),
    (USER, "user_id = 'somebody'"),
    (USER, "app_name = 'other'"),
    (USER, "nonce = x'00'"),
    (USER, "version = 3"),
    (USER, "conversation_version = 3"),
    (USER, "live = 0"),
    (USER, "chain = x'00'"),
    (USER, "app_stream_id = 0"),
    (USER, "id = 99"),
    (SYSTEM, "app_name = 'other'"),
]
FIXABLE = ("user_stream_id", "app_stream_id", "version", "conversation_version", "live", "chain")


@pytest.mark.parametrize(("stream", "edit"), STREAM_EDITS)
def test_a_row_of_streams_that_was_changed_is_named(attacked: Path, stream: int, edit: str) -> None:
    before = query(attacked, "SELECT * FROM streams")
    attack(attacked, f"UPDATE streams SET {edit} WHERE id = {stream}")
    tampered = query(attacked, "SELECT * FROM streams")
    report = check(attacked)
    assert found(report, "streams")
    if "id = 99" not in edit and (stream, edit) != (USER, "live = 0, nonce = x''"):
        assert any(d.key.endswith(f"stream {stream}") for d in found(report, "streams"))
    fixable = all(part.split(" = ")[0] in FIXABLE for part in edit.split(", ")[:1])
    fixable &= "nonce" not in edit and (stream, edit) != (USER, "chain = x'00'")
    fixed = check(attacked, fix=True)
    assert fixed.clean == fixable
    if fixable:
        assert query(attacked, "SELECT * FROM streams") == before
        assert check(attacked).differences == []
    else:
        assert query(attacked, "SELECT * FROM streams") == tampered
        assert fixed.fixed == []


@pytest.mark.parametrize("stream", [APP, USER, ONE, ENDED, SYSTEM])
def test_a_row_of_streams_that_was_removed(attacked: Path, stream: int) -> None:
    attack(attacked, f"DELETE FROM streams WHERE id = {stream}")
    report = check(attacked)
    assert found(report, "streams")
    if query(attacked, f"SELECT 1 FROM events WHERE stream_id = {stream} LIMIT 1"):
        assert found(report, "streams", f"stream {stream}")
        assert found(check(attacked, since=1), "streams", f"stream {stream}")
    assert not check(attacked, fix=True).clean


def test_a_row_of_streams_that_was_made_up(attacked: Path) -> None:
    attack(
        attacked,
        "INSERT INTO streams SELECT 99, kind, app_name, user_id, 'made up', user_stream_id, "
        f"app_stream_id, 0, 0, 1, nonce, chain FROM streams WHERE id = {ONE}",
    )
    assert found(check(attacked), "streams", "'made up'")


async def _append_to_one(store: EventStore, delta: Any) -> None:
    stream = store.snapshot(lambda s: s.get_stream(ONE))
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(stream.key, new_event(delta=delta), cursor)


def test_putting_streams_right_keeps_what_is_appended_meanwhile(attacked: Path) -> None:
    with closing(open_store(attacked, INLINE)) as store:
        query(attacked, f"UPDATE streams SET conversation_version = 2 WHERE id = {ONE}")
        appended: list[int] = []

        def progress(events: int, position: int, head: int) -> None:
            # Behind the comparison and before anything is put right.
            if not appended:
                appended.append(head)
                asyncio.run(_append_to_one(store, {"user": {"late": 1}}))

        report = verify(store, INLINE, FOLLOWING, fix=True, progress=progress)
        assert appended
        assert report.clean
        # The head is the event that came meanwhile, so the next one fits behind it.
        asyncio.run(_append_to_one(store, {"user": {"later": 1}}))
        assert query(attacked, f"SELECT user_stream_id, version FROM streams WHERE id = {ONE}") == [
            (USER, 8)
        ]
        run(store, FOLLOWING)
        assert verify(store, INLINE, FOLLOWING).differences == []
        late = query(attacked, "SELECT owner_id FROM state WHERE state_key LIKE 'late%'")
        assert late == [(USER,), (USER,)]


# From a position on.


def test_since_finds_what_was_done_behind_a_position_and_not_before(attacked: Path) -> None:
    (k0,), (k3,) = query(
        attacked, "SELECT position FROM state WHERE state_key IN ('k0', 'k3') ORDER BY 1"
    )
    for key, position in (("k0", k0), ("k3", k3)):
        query(attacked, f"UPDATE state SET state_value = '77' WHERE state_key = '{key}'")
        for since in range(1, position):
            assert found(check(attacked, since=since), "state", f"'{key}'")
        assert check(attacked, since=position).differences == []
        assert check(attacked, fix=True).clean
    attack(attacked, f"UPDATE events SET author = 'x' WHERE position = {k0}")
    assert found(check(attacked, since=k0 - 1), "events")
    assert check(attacked, since=k0).differences == []
    (difference,) = check(attacked, since=10**6).differences
    assert difference.table == "events"
    assert difference.problem.endswith("before 1000000")


def test_since_finds_rows_that_the_log_has_removed_since(attacked: Path) -> None:
    with closing(open_store(attacked, INLINE)) as store:
        for kind in ("put", "delete"):
            delta = {"session": {DO: [kind, "brief", 1]}}
            perform_all(store, [("append", ("one", "user", "app"), delta)])
        run(store, FOLLOWING)
        head = store.stats()["head"]
        assert verify(store, INLINE, FOLLOWING, since=head - 2).differences == []
        query(
            attacked,
            f"INSERT INTO everything VALUES ({ONE}, 'brief', 1, '', 1)",
            f"INSERT INTO state VALUES ({ENDED}, 'made up', '1', 3)",
        )
        for since in (1, head - 1):
            (difference,) = found(verify(store, INLINE, since=since), "everything", "'brief'")
            assert difference.problem == "is in no event of the log"
        assert found(verify(store, INLINE, since=1), "state", "'made up'")


def test_an_anchor_needs_the_whole_log(attacked: Path, made: tuple[Path, Anchor]) -> None:
    with pytest.raises(ValueError, match="whole log"):
        check(attacked, since=1, against=made[1])


# While others write, and after all else.


@contextmanager
def writing(database: Path) -> Iterator[None]:
    context = fresh_processes()
    writers: list[BaseProcess] = [
        context.Process(target=write, args=(database, name)) for name in ("w0", "w1")
    ]
    for writer in writers:
        writer.start()
    try:
        wait_for_more(database, {"w0": 0, "w1": 0})
        yield
        assert [writer.exitcode for writer in writers] == [None, None]
    finally:
        for writer in writers:
            writer.kill()
            writer.join()


def wait_for_more(database: Path, than: dict[str, int]) -> None:
    deadline = time.monotonic() + 60
    while not all(logs.acknowledgements(database).get(name, 0) > n for name, n in than.items()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_no_false_alarm_while_others_write(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that the log is read in several snapshots, and its tail in another.
    module = importlib.import_module("projections.verify")
    monkeypatch.setattr(module, "_PAGE_EVENTS", 50)
    monkeypatch.setattr(module, "_TAIL_EVENTS", 50)
    monkeypatch.setattr(module, "_PAGE_ROWS", 7)
    inline = INLINE[:2]
    with closing(open_store(database, inline)) as store, writing(database):
        anchor = None
        for round_ in range(4):
            before = logs.acknowledgements(database)
            run(store, FOLLOWING)
            report = verify(store, inline, FOLLOWING, against=anchor)
            assert (report.clean, report.differences) == (True, [])
            anchor = report.anchor
            since = max(1, report.head - 60)
            assert verify(store, inline, FOLLOWING, since=since).differences == []
            if round_ % 3 == 1:
                scavenge(store, inline, FOLLOWING)
            if round_ % 3 == 2:
                rebuild(store, inline, FOLLOWING)
            wait_for_more(database, before)


# Anchors.


def test_history_that_was_written_anew_is_found_with_an_anchor_only(
    attacked: Path, made: tuple[Path, Anchor]
) -> None:
    rewrite_history(
        attacked,
        ONE,
        f"UPDATE events SET delta = replace(delta, '\"k1\":1', '\"k1\":9') {AT}",
    )
    with closing(open_store(attacked, INLINE)) as store:
        assert verify(store, INLINE, FOLLOWING, fix=True).fixed == ["state"]
        assert verify(store, INLINE, FOLLOWING).differences == []  # a perfect forgery
        (difference,) = found(verify(store, INLINE, FOLLOWING, against=made[1]), "anchor")
        assert "session 'one'" in difference.key
        assert "another history" in difference.problem


def _without_traces(stream: int) -> list[str]:
    of_tables = {p.table.name: p.table.owner for p in EVERYTHING} | {"events": "stream_id"}
    return [f"DELETE FROM {table} WHERE {owner} = {stream}" for table, owner in of_tables.items()]


def _made_to_fit(store: EventStore) -> None:
    """The counts of events, which an attacker would change too."""
    rebuild(store, INLINE, FOLLOWING)
    assert verify(store, INLINE, FOLLOWING).differences == []


@pytest.mark.parametrize("stream", [ONE, TWO, ENDED, SYSTEM])
@pytest.mark.parametrize("row_too", [True, False])
def test_a_stream_that_was_removed_with_all_its_traces(
    attacked: Path, made: tuple[Path, Anchor], stream: int, *, row_too: bool
) -> None:
    blank = "app_name = '', user_id = '', session_id = '', live = 0, nonce = x''"
    row = f"WHERE id = {stream}"
    attack(
        attacked,
        *_without_traces(stream),
        f"DELETE FROM streams {row}" if row_too else f"UPDATE streams SET {blank} {row}",
    )
    with closing(open_store(attacked, INLINE)) as store:
        _made_to_fit(store)
        report = verify(store, INLINE, FOLLOWING, against=made[1])
        assert [d.key.endswith(f"stream {stream}") for d in found(report, "anchor")] == [True]


@pytest.mark.parametrize(
    "note",
    ["NULL", "'no json'", "json_remove(data, '$.streams')", "json_set(data, '$.streams', 5)"],
)
def test_a_note_of_a_vacuum_that_was_written_anew(
    attacked: Path, made: tuple[Path, Anchor], note: str
) -> None:
    change = f"UPDATE events SET data = {note} WHERE stream_id = {SYSTEM} AND type = 'vacuumed'"
    rewrite_history(attacked, SYSTEM, change)
    assert found(check(attacked, against=made[1]), "anchor", f"stream {SYSTEM}")


@pytest.mark.parametrize("stream", [ONE, TWO, APP])
def test_a_stream_that_was_cut_off(attacked: Path, made: tuple[Path, Anchor], stream: int) -> None:
    last = f"(SELECT max(version) FROM events WHERE stream_id = {stream})"
    rewrite_history(
        attacked, stream, f"DELETE FROM events WHERE stream_id = {stream} AND version = {last}"
    )
    with closing(open_store(attacked, INLINE)) as store:
        _made_to_fit(store)
        (difference,) = found(verify(store, INLINE, FOLLOWING, against=made[1]), "anchor")
        assert difference.key.endswith(f"stream {stream}")
        assert "not in the log any more" in difference.problem


def test_what_was_scavenged_since_is_counted_and_not_an_alarm(
    attacked: Path, made: tuple[Path, Anchor]
) -> None:
    with closing(open_store(attacked, INLINE)) as store:
        perform_all(store, [("delete", ("one", "user", "app"), None)])
        scavenge(store, INLINE, FOLLOWING)
        report = verify(store, INLINE, FOLLOWING, against=made[1])
        assert (report.clean, report.scavenged_since_anchor) == (True, 2)
        # Unless what is left of them is not what they were.
        query(attacked, f"UPDATE streams SET chain = x'00' WHERE id = {ENDED}")
        assert found(verify(store, INLINE, FOLLOWING, against=made[1]), "anchor")


def test_anchors_of_every_position_hold_for_what_comes_later(database: Path) -> None:
    with closing(open_store(database, INLINE)) as store:
        anchors = []
        for n in range(6):
            name = (str(n % 3), "user", "app")
            kind = "create" if n < 3 else "delete" if n == 4 else "append"
            perform_all(store, [(kind, name, {"app": {"n": n}})])
            anchors.append(verify(store, INLINE).anchor)
            if n == 4:
                scavenge(store, INLINE)
        for anchor in anchors:
            assert verify(store, INLINE, against=anchor).differences == []
        other = anchors[0]._replace(streams={**anchors[0].streams, 3: (1, b"\0" * 32)})
        assert found(verify(store, INLINE, against=other), "anchor")


def test_an_anchor_file_comes_back_as_it_was_written(
    tmp_path: Path, made: tuple[Path, Anchor]
) -> None:
    path = tmp_path / "anchor"
    write_anchor(path, made[1])
    assert read_anchor(path) == made[1]
    assert list(tmp_path.iterdir()) == [path]
    write_anchor(path, Anchor(0, {}))
    assert read_anchor(path) == Anchor(0, {})


def test_an_anchor_is_written_without_touching_what_is_beside_it(
    tmp_path: Path, made: tuple[Path, Anchor]
) -> None:
    (tmp_path / "anchor.part").write_text("precious")
    write_anchor(tmp_path / "anchor", made[1])
    assert (tmp_path / "anchor.part").read_text() == "precious"
    (tmp_path / "folder").mkdir()
    with pytest.raises(PathUnusable, match="folder cannot be written"):
        write_anchor(tmp_path / "folder", made[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anchor", "anchor.part", "folder"]


@pytest.mark.parametrize("kind", ["bytes", "lines", "facts"])
def test_an_anchor_file_that_was_edited_is_refused(
    tmp_path: Path, made: tuple[Path, Anchor], kind: str
) -> None:
    path = tmp_path / "anchor"
    write_anchor(path, made[1])
    text = path.read_bytes()
    first, *lines = text.splitlines(keepends=True)
    facts = json.loads(first)
    if kind == "bytes":
        edits = [text[:n] + bytes([text[n] ^ 1]) + text[n + 1 :] for n in range(0, len(text), 3)]
    elif kind == "lines":
        edits = [
            b"".join([first, *lines[1:]]),
            b"".join([first, *lines, lines[-1]]),
            b"".join([first, lines[1], lines[0], *lines[2:]]),
            text.replace(b"\n", b"\r\n"),
            text[:-1],
            text + b"\n",
            b"",
            b"[]\n",
            b"\xff" * 100,
        ]
    else:
        changes: list[dict[str, Any]] = [
            {"anchor": 2},
            {"head": facts["head"] + 1},
            {"head": float(facts["head"])},
            {"head": str(facts["head"])},
            {"streams": 0},
            {"root": "00"},
            {"root": None},
            {"more": 1},
        ]
        edits = [
            json.dumps(facts | change, separators=(",", ":")).encode() + b"\n" + b"".join(lines)
            for change in changes
        ]
        edits.append(json.dumps(facts).encode() + b"\n" + b"".join(lines))
    for edited in edits:
        path.write_bytes(edited)
        with pytest.raises(InvalidAnchor, match="anchor"):
            read_anchor(path)

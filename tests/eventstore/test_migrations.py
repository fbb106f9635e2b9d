"""Databases of older schemas, and older code on databases of newer ones: with real files."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService
from eventstore import (
    EventType,
    ProjectionMissing,
    SchemaAltered,
    SchemaTooNew,
    StorageFailed,
    StoreBusy,
    open_store,
)
from eventstore.sqlite import database as databases
from eventstore.sqlite.queries import migrations
from projections import BUILT_IN, rebuild, run, verify
from tests.eventstore.events import SESSION, created, new_event
from tests.golden.make import FOLDER, SCHEMA_1, Talk
from tests.golden.older import code_of_schema_1

ROOT: Final = Path(__file__).parents[2]
NEWEST: Final = len(migrations())
TABLES: Final = {
    "streams": "id, kind, app_name, user_id, session_id, version, conversation_version, live, "
    "nonce, chain",
    "codecs": "*",
    "events": "*",
    "state": "*",
    "sessions": "stream_id, created_at, last_update_time",
}
"""What every version keeps as it is."""
LARGE: Final = """
CREATE TABLE large (x TEXT);
INSERT INTO large
SELECT hex(zeroblob(2000)) FROM (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
WHERE i < 3000) SELECT i FROM n);
"""
"""A migration of 12 MB, more than a connection keeps in memory before it writes."""


@pytest.fixture
def old(database: Path) -> Path:
    """A database as code wrote it that knew the first schema only."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))
    assert version(database) == 1
    return database


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return connection.execute(statement).fetchall()


def version(path: Path) -> int:
    return int(query(path, "PRAGMA user_version")[0][0])


def content(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    return {
        table: query(path, f"SELECT {columns} FROM {table} ORDER BY 1, 2")
        for table, columns in TABLES.items()
    }


def assert_works(path: Path) -> None:
    """Opens a database with this version, which migrates it, and writes to it."""

    async def use() -> None:
        async with DatabaseSessionService(path) as service:
            session = await service.get_session("golden", "user", "s-1")
            assert session is not None
            delta = {"new": 1, "app:new": 2}
            await service.append_event(session, Event(actions=EventActions(state_delta=delta)))
            assert (await service.verify()).clean

    before = content(path)
    open_store(path, BUILT_IN).close()
    assert version(path) == NEWEST
    assert content(path) == before
    asyncio.run(use())


# Forward.


def test_the_file_is_migrated_in_place_and_keeps_everything(old: Path) -> None:
    before, inode = content(old), old.stat().st_ino
    types = {"session_created", "adk_event", "state_set", "session_deleted", "vacuumed"}
    assert {row[4] for row in before["events"]} == types <= {str(type_) for type_ in EventType}
    with closing(open_store(old, BUILT_IN)) as store:
        assert store.stats()["schema_version"] == NEWEST
        assert verify(store, BUILT_IN).clean
    assert (version(old), old.stat().st_ino) == (NEWEST, inode)
    assert content(old) == before
    assert query(old, "SELECT * FROM projections") == [
        (p.name, p.version, p.table.name, None, None, None) for p in BUILT_IN
    ]


def test_a_migrated_schema_is_that_of_a_new_file(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.sqlite3"
    for path in (old, new):
        open_store(path, BUILT_IN).close()
    schemas = [query(path, "SELECT type, name, sql FROM sqlite_schema") for path in (old, new)]
    # SQLite puts the name of a table that was renamed in quotes.
    plain = [sorted(str(row).replace('"sessions"', "sessions") for row in s) for s in schemas]
    assert plain[0] == plain[1]
    for pragma in ("application_id", "user_version", "auto_vacuum", "journal_mode", "encoding"):
        assert query(old, f"PRAGMA {pragma}") == query(new, f"PRAGMA {pragma}")


async def test_the_service_goes_on_with_a_migrated_file(old: Path) -> None:
    async with DatabaseSessionService(old, projections=(Talk(),)) as service:
        for line in (FOLDER / "v1" / "loaded.jsonl").read_text().splitlines():
            expected = json.loads(line)
            session = await service.get_session(*expected["key"])
            assert session is not None
            assert json.dumps(session.state) == json.dumps(expected["state"])
            assert [event.id for event in session.events] == expected["events"]
            await service.append_event(
                session, Event(author="agent", actions=EventActions(state_delta={"k": 1}))
            )
        await service.delete_session("golden", "user", "s-3")
        assert (await asyncio.to_thread(service.vacuum))["sessions"] == 2
        await asyncio.to_thread(run, service._store, (Talk(),))
        report = await service.verify()
        assert (report.clean, report.unchecked) == (True, {})


def test_opening_again_migrates_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(old, BUILT_IN).close()
    monkeypatch.setattr(databases, "_execute_script", None)
    open_store(old, BUILT_IN).close()


# Several processes.


@contextmanager
def python(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that has said "ready" and goes on when it is sent a line."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


OPEN_AT_ONCE: Final = """
    import sys
    from eventstore import open_store
    from eventstore.sqlite import database
    from projections import BUILT_IN

    execute, ran = database._execute_script, []
    def counting(connection, script):
        (file,) = [row[2] for row in connection.execute("PRAGMA database_list")][:1]
        ran.append(bool(file))
        execute(connection, script)
    database._execute_script = counting
    print("ready", flush=True)
    sys.stdin.readline()
    store = open_store(sys.argv[1], BUILT_IN)
    print(sum(ran), store.stats()["events"], flush=True)
    store.close()
"""


def test_processes_that_open_an_old_file_at_once_migrate_it_once(old: Path) -> None:
    events = len(query(old, "SELECT * FROM events"))
    with (
        python(OPEN_AT_ONCE, old) as a,
        python(OPEN_AT_ONCE, old) as b,
        python(OPEN_AT_ONCE, old) as c,
        python(OPEN_AT_ONCE, old) as d,
    ):
        processes = (a, b, c, d)
        for process in processes:
            go_on(process)
        said = sorted(line_of(process) for process in processes)
        assert [process.wait(30) for process in processes] == [0] * 4
    assert said == [f"0 {events}"] * 3 + [f"{NEWEST - 1} {events}"]
    assert_works(old)


OLD_CODE: Final = """
    import asyncio, sys
    from eventstore import Cursor, EventStoreError, EventType, Window, open_store
    from projections import BUILT_IN
    from tests.eventstore.events import SESSION, created, new_event
    from tests.golden.older import code_of_schema_1

    async def main(store):
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        for _ in range(5):
            await store.append(SESSION, new_event(delta={"app": {"acknowledged": 1}}), cursor)
        print("ready", flush=True)
        sys.stdin.readline()
        assert await store.load(SESSION, Window(), lambda loaded: len(loaded.events)) == 5
        for event in (new_event(), new_event()):
            try:
                await store.append(SESSION, event, cursor)
            except EventStoreError as error:
                print(type(error).__name__, error, flush=True)
        assert await store.load(SESSION, Window(), lambda loaded: len(loaded.events)) == 5

    with code_of_schema_1():
        store = open_store(sys.argv[1], BUILT_IN)
        asyncio.run(main(store))
        store.close()
    print("closed", flush=True)
"""


def test_older_code_stops_writing_when_another_process_has_migrated(old: Path) -> None:
    before = len(query(old, "SELECT * FROM events"))
    with python(OLD_CODE, old) as process:
        assert version(old) == 1
        with closing(open_store(old, BUILT_IN)) as store:
            assert version(old) == NEWEST
            asyncio.run(_append(store))
            go_on(process)
            for _ in range(2):
                said = line_of(process)
                assert said.startswith("SchemaTooNew")
                assert f"schema version {NEWEST}, this process writes 1" in said
                assert "Upgrade adk-eventstore" in said
            assert line_of(process) == "closed"
            assert process.wait(30) == 0
            asyncio.run(_append(store))
            assert verify(store, BUILT_IN).clean
    assert len(query(old, "SELECT * FROM events")) == before + 6 + 2
    assert_works(old)


async def _append(store: Any) -> None:
    await store.set_state(SESSION, new_event(EventType.STATE_SET))


# Newer than this code.


def test_older_code_refuses_a_migrated_file_and_leaves_it_alone(old: Path) -> None:
    assert_works(old)
    before = content(old)
    with code_of_schema_1(), pytest.raises(SchemaTooNew) as raised:
        open_store(old, BUILT_IN)
    for part in (str(old), f"version {NEWEST}", "up to 1", "Upgrade adk-eventstore"):
        assert part in str(raised.value)
    assert content(old) == before
    assert_works(old)


def test_a_schema_of_the_future_is_named(old: Path) -> None:
    query(old, "PRAGMA user_version = 99")
    with pytest.raises(SchemaTooNew, match=rf"version 99.* up to {NEWEST}\..*Upgrade adk-ev"):
        open_store(old, BUILT_IN)
    assert version(old) == 99
    assert len(query(old, "PRAGMA table_info(projections)")) == 2


# Migrations that end in the middle.


def more(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """As if the newest version had one more migration."""
    scripts = [*migrations(), script]
    monkeypatch.setattr(databases, "migrations", lambda: scripts)


def unchanged(path: Path, before: dict[str, list[tuple[Any, ...]]]) -> bool:
    columns = len(query(path, "PRAGMA table_info(projections)"))
    return (version(path), columns, content(path)) == (1, 2, before)


def test_a_migration_that_fails_leaves_the_old_version(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    with monkeypatch.context() as patched:
        more(patched, f"{LARGE}DELETE FROM state;\nALTER TABLE nowhere ADD COLUMN x;\n")
        with pytest.raises(SchemaAltered, match="SQLITE_ERROR"):
            open_store(old, BUILT_IN)
    assert unchanged(old, before)
    assert_works(old)


def test_a_disk_that_is_full_leaves_the_old_version(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    (pages,) = query(old, "PRAGMA page_count")[0]
    with monkeypatch.context() as patched:
        more(patched, LARGE)
        room = pages + 500
        patched.setitem(databases._PRAGMAS, "max_page_count", (str(room), room))  # type: ignore[index]
        with pytest.raises(StorageFailed, match="the disk is full"):
            open_store(old, BUILT_IN)
    assert unchanged(old, before)
    assert_works(old)


LIMITED: Final = """
    import resource, sys
    from eventstore import EventStoreError, open_store
    from eventstore.sqlite import database
    from projections import BUILT_IN

    scripts = [*database.migrations(), sys.argv[2]]
    database.migrations = lambda: scripts
    print("ready", flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        open_store(sys.argv[1], BUILT_IN)
    except EventStoreError as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX")
def test_a_disk_that_fails_leaves_the_old_version(old: Path) -> None:
    before = content(old)
    with python(LIMITED, old, LARGE) as process:
        assert line_of(process).startswith("StorageFailed")
        assert process.wait(30) == 0
    assert unchanged(old, before)
    assert_works(old)


KILLED: Final = """
    import sys
    from eventstore import open_store
    from eventstore.sqlite import database
    from projections import BUILT_IN

    execute = database._execute_script
    def slowly(connection, script):
        execute(connection, script)
        execute(connection, sys.argv[2])
        print("ready", flush=True)
        sys.stdin.readline()
    database._execute_script = slowly
    open_store(sys.argv[1], BUILT_IN)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_process_that_is_killed_while_migrating_leaves_the_old_version(old: Path) -> None:
    before = content(old)
    with python(KILLED, old, LARGE) as process:
        # What it has written so far is in the WAL, and nobody sees it.
        assert Path(f"{old}-wal").stat().st_size > 1_000_000
        assert unchanged(old, before)
        process.kill()
        process.wait()
    assert unchanged(old, before)
    assert_works(old)


def test_another_program_that_holds_the_file_is_waited_for_and_named(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(old)
    open_pragmas = {**databases._PRAGMAS, "busy_timeout": ("50", 50)}
    with closing(sqlite3.connect(old, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        with monkeypatch.context() as patched:
            patched.setattr(databases, "_PRAGMAS", open_pragmas)
            with pytest.raises(StoreBusy, match="another program"):
                open_store(old, BUILT_IN)
        other.execute("ROLLBACK")
    assert unchanged(old, before)
    assert_works(old)


def test_every_schema_is_reached_from_an_empty_file(database: Path) -> None:
    with code_of_schema_1(), closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(_create(store))
    assert version(database) == 1
    with closing(open_store(database, BUILT_IN)) as store:
        asyncio.run(_append(store))
        assert verify(store, BUILT_IN).clean
    assert version(database) == NEWEST


async def _create(store: Any) -> None:
    await store.create(SESSION, created(session={"k": 1}))


# Tables of projections.


def test_a_table_is_brought_up_to_date_with_what_a_user_has_put_on_it(old: Path) -> None:
    query(old, "CREATE INDEX mine ON sessions (created_at)")
    query(old, "CREATE VIEW theirs AS SELECT last_update_time FROM sessions")
    query(old, "CREATE TABLE shadow_sessions (left_by_a_rebuild)")
    with closing(open_store(old, BUILT_IN)) as store:
        assert verify(store, BUILT_IN).clean
    names = {name for (name,) in query(old, "SELECT name FROM sqlite_schema")}
    assert names >= {"mine", "theirs", *BUILT_IN[0].table.indexes}
    assert not [name for name in names if name.startswith(("shadow", "retired"))]
    assert query(old, "SELECT count(*) FROM theirs") == query(old, "SELECT count(*) FROM sessions")
    assert_works(old)


def test_a_table_that_is_not_as_it_was_made_is_left_to_a_rebuild(old: Path) -> None:
    query(old, "DROP VIEW adk_sessions")
    query(old, "ALTER TABLE sessions DROP COLUMN created_at")
    with pytest.raises(ProjectionMissing, match="rebuild-projections"):
        open_store(old, BUILT_IN)
    assert version(old) == NEWEST
    with closing(open_store(old, BUILT_IN, for_rebuild=True)) as store:
        rebuild(store, BUILT_IN)
        assert verify(store, BUILT_IN).clean
    assert_works(old)

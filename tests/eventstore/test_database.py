"""Opening files: new ones, ours, other people's, broken ones; and what the file itself refuses."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from eventstore import (
    CorruptEvent,
    CorruptRow,
    Cursor,
    DatabaseReplaced,
    EventStore,
    EventType,
    ForeignDatabase,
    NotADatabase,
    PathUnusable,
    ProjectionMissing,
    SchemaAltered,
    SchemaTooNew,
    StoreUnusable,
    Window,
    location,
    open_store,
)
from projections import BUILT_IN
from tests.eventstore.events import SESSION, created, new_event


@pytest.fixture
def target(database: Path) -> str:
    """Of files only, which these tests are about."""
    return str(database)


def make(path: Path) -> None:
    """A database with one session of two events."""
    store = open_store(path, BUILT_IN)

    async def fill() -> None:
        loaded = await store.create(SESSION, created(session={"k": 1}, app={"a": 2}))
        await store.append(SESSION, new_event(), Cursor(loaded.stream.id, 1))

    asyncio.run(fill())
    store.close()


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def change(path: Path, *statements: str) -> None:
    """Changes the log as somebody determined would, past the triggers."""
    allow, forbid = "INSERT INTO maintenance VALUES (1, 'test')", "DELETE FROM maintenance"
    sql(path, "BEGIN", allow, *statements, forbid, "COMMIT")


def open_and_close(path: Path) -> None:
    open_store(path, BUILT_IN).close()


def test_folders_are_made_and_the_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "a.db"
    open_and_close(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for suffix in ("-gate", "-turn"):
        assert stat.S_IMODE(Path(f"{path}{suffix}").stat().st_mode) == 0o600


def test_removing_the_file_and_starting_again_gives_a_fresh_database(database: Path) -> None:
    make(database)
    database.unlink()
    store = open_store(database, BUILT_IN)
    assert store.stats()["events"] == 0
    store.close()


def test_settings_are_what_the_guarantees_need(database: Path) -> None:
    make(database)
    with closing(sqlite3.connect(database)) as connection:
        for pragma, value in (("journal_mode", "wal"), ("auto_vacuum", 2), ("user_version", 3)):
            assert connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET author = 'x'",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT * FROM events",
        "REPLACE INTO events (position, stream_id, version, event_id, type, schema_version,"
        " recorded_at, timestamp, author, invocation_id, codec, encoding, chain)"
        " SELECT NULL, stream_id, version, 'other', type, schema_version, recorded_at, timestamp,"
        " author, invocation_id, codec, encoding, chain FROM events LIMIT 1",
        "REPLACE INTO events (position, stream_id, version, event_id, type, schema_version,"
        " recorded_at, timestamp, author, invocation_id, codec, encoding, chain)"
        " SELECT NULL, stream_id, 99, event_id, type, schema_version, recorded_at, timestamp,"
        " author, invocation_id, codec, encoding, chain FROM events LIMIT 1",
    ],
)
def test_the_database_itself_refuses_to_change_events(database: Path, statement: str) -> None:
    make(database)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sql(database, statement)


def test_a_position_is_never_given_out_twice(database: Path) -> None:
    make(database)
    change(
        database,
        "DELETE FROM events WHERE version = 2",
        "UPDATE streams SET version = 1, conversation_version = 1 WHERE kind = 'session'",
    )
    store = open_store(database, BUILT_IN)

    async def append() -> None:
        stream = await store.load(SESSION, Window(), lambda loaded: loaded.stream)
        assert stream is not None
        await store.append(SESSION, new_event(), Cursor(stream.id, 1))

    asyncio.run(append())
    assert store.stats()["head"] == 3
    store.close()


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(PathUnusable, match="regular file"):
        open_and_close(tmp_path)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for below in (Path("a.db"), Path("b/a.db")):
        with pytest.raises(PathUnusable, match="is no folder"):
            open_and_close(tmp_path / "file" / below)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_an_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:
        # To root everything is writable: ask as the system would answer anybody else.
        real = os.access
        monkeypatch.setattr(
            os, "access", lambda p, mode: real(p, mode) and not str(p).startswith(str(folder))
        )
    with pytest.raises(PathUnusable, match=r"writ|Permission"):
        open_and_close(folder / "a.db")


def test_hard_links(database: Path, tmp_path: Path) -> None:
    make(database)
    (tmp_path / "second.db").hardlink_to(database)
    with pytest.raises(PathUnusable, match="hard links"):
        open_and_close(database)


@pytest.mark.parametrize("ending", location.DATABASE_COMPANIONS)
def test_what_is_kept_beside_a_database_is_no_path_for_another(
    database: Path, tmp_path: Path, ending: str
) -> None:
    beside = Path(f"{database}{ending}")
    (tmp_path / "link.db").symlink_to(beside)
    with closing(open_store(database, BUILT_IN)):
        for path in (beside, tmp_path / "link.db"):
            with pytest.raises(PathUnusable, match="belongs to the database beside it"):
                open_and_close(path)
    with pytest.raises(PathUnusable, match="belongs to the database beside it"):
        open_and_close(beside)
    assert not beside.exists() or ending in ("-turn", "-gate")


@pytest.mark.parametrize("ending", location.DATABASE_COMPANIONS)
def test_a_new_database_does_not_take_another_for_what_is_kept_beside_it(
    database: Path, ending: str
) -> None:
    other = Path(f"{database}{ending}")
    make(other)
    with pytest.raises(PathUnusable, match="in the database of that name"):
        open_and_close(database)
    assert not database.exists()
    with closing(open_store(other, BUILT_IN)) as store:
        assert store.stats()["events"] == 2


def test_a_symbolic_link_names_the_file_it_points_at(database: Path, tmp_path: Path) -> None:
    make(database)
    (tmp_path / "link.db").symlink_to(database)
    first = open_store(database, BUILT_IN)
    second = open_store(tmp_path / "link.db", BUILT_IN)
    assert second.stats()["events"] == 2
    first.close()
    assert second.stats()["events"] == 2
    second.close()


def test_a_file_that_is_no_database(database: Path) -> None:
    database.write_text("no database" * 1000)
    before = database.read_bytes()
    with pytest.raises(NotADatabase, match="is not a SQLite database"):
        open_and_close(database)
    assert database.read_bytes() == before
    assert sorted(p.name for p in database.parent.iterdir()) == [database.name]


def test_a_database_of_another_program_is_left_alone(database: Path) -> None:
    sql(database, "CREATE TABLE theirs (x)")
    before = database.read_bytes()
    with pytest.raises(ForeignDatabase, match="another program"):
        open_and_close(database)
    assert database.read_bytes() == before
    assert sorted(p.name for p in database.parent.iterdir()) == [database.name]


def test_a_newer_schema(database: Path) -> None:
    make(database)
    sql(database, "PRAGMA user_version = 99")
    with pytest.raises(SchemaTooNew, match="Upgrade"):
        open_and_close(database)


@pytest.mark.parametrize(
    ("statement", "error", "text"),
    [
        ("DROP TRIGGER events_no_update", SchemaAltered, "events_no_update"),
        ("DROP INDEX streams_live", SchemaAltered, "streams_live"),
        ("ALTER TABLE events ADD COLUMN x TEXT", SchemaAltered, "events"),
        (
            "CREATE TRIGGER evil AFTER INSERT ON events BEGIN DELETE FROM state; END",
            SchemaAltered,
            "evil",
        ),
        ("CREATE UNIQUE INDEX once ON state (state_value)", SchemaAltered, "once"),
        ("CREATE INDEX odd ON events (json_extract(data, '$.a'))", SchemaAltered, "odd"),
        ("INSERT INTO maintenance VALUES (1, 'x')", SchemaAltered, "maintenance"),
        ("DROP TABLE state", ProjectionMissing, "rebuild-projections"),
        ("DROP VIEW adk_state", ProjectionMissing, "rebuild-projections"),
        ("DELETE FROM projections", ProjectionMissing, "rebuild-projections"),
        ("UPDATE projections SET version = 0", ProjectionMissing, "rebuild-projections"),
        (
            "INSERT INTO projections (name, version) VALUES ('theirs', 1)",
            ProjectionMissing,
            "theirs",
        ),
    ],
)
def test_a_changed_schema_is_named(
    database: Path, statement: str, error: type[Exception], text: str
) -> None:
    make(database)
    sql(database, statement)
    with pytest.raises(error, match=text):
        open_and_close(database)


def test_other_tables_indexes_and_views_are_tolerated(database: Path) -> None:
    make(database)
    sql(
        database,
        "CREATE TABLE _litestream_seq (id INTEGER PRIMARY KEY)",
        "CREATE INDEX mine ON events (author)",
        "CREATE VIEW my_view AS SELECT author FROM events",
        "ANALYZE",
    )
    open_and_close(database)


async def test_a_writer_notices_that_the_schema_changed_under_it(
    store: EventStore, database: Path
) -> None:
    await store.create(SESSION, created())
    sql(database, "DROP TRIGGER events_no_update")
    with pytest.raises(SchemaAltered, match="events_no_update"):
        await store.set_state(SESSION, new_event(EventType.STATE_SET))


async def test_nothing_is_acknowledged_on_a_file_that_is_gone(
    store: EventStore, database: Path
) -> None:
    await store.create(SESSION, created())
    database.rename(database.with_suffix(".moved"))
    for _ in range(2):
        with pytest.raises(DatabaseReplaced, match="Restart"):
            await store.set_state(SESSION, new_event(EventType.STATE_SET))


async def test_a_row_that_is_no_text_is_named_without_its_content(
    store: EventStore, database: Path
) -> None:
    await store.create(SESSION, created(session={"k": "secret"}))
    sql(database, "UPDATE state SET state_value = CAST(x'22736563726574ff22' AS TEXT)")
    with pytest.raises(CorruptRow, match="adk-eventstore verify") as raised:
        await store.load(SESSION, Window(), bool)
    assert "secret" not in str(raised.value)


def test_errors_can_be_copied_and_pickled() -> None:
    error = pickle.loads(pickle.dumps(CorruptEvent("s", 1, 2, "why")))
    assert (str(error), error.position) == (str(CorruptEvent("s", 1, 2, "why")), 2)


async def test_a_changed_byte_is_never_served(store: EventStore, database: Path) -> None:
    loaded = await store.create(SESSION, created())
    cursor = Cursor(loaded.stream.id, 1)
    for n in range(3):
        await store.append(SESSION, new_event(data={"n": n}, delta={"app": {"n": n}}), cursor)
    for column in ("data", "delta"):
        change(
            database, f"UPDATE events SET {column} = replace({column}, '1', '7') WHERE version = 3"
        )
        with pytest.raises(CorruptEvent, match="digest") as raised:
            await store.load(SESSION, Window(), lambda loaded: loaded)
        assert (raised.value.version, raised.value.position) == (3, 3)
        change(
            database, f"UPDATE events SET {column} = replace({column}, '7', '1') WHERE version = 3"
        )
        # The error still refers to what the reader was doing, and must not hold its snapshot.
        assert await store.load(SESSION, Window(), lambda loaded: len(loaded.events)) == 3


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_a_missing_event_is_noticed(store: EventStore, database: Path, version: int) -> None:
    loaded = await store.create(SESSION, created())
    cursor = Cursor(loaded.stream.id, 1)
    for _ in range(3):
        await store.append(SESSION, new_event(), cursor)
    change(database, f"DELETE FROM events WHERE version = {version}")
    for window in (Window(), Window(last=3)):
        with pytest.raises(CorruptEvent, match="missing"):
            await store.load(SESSION, window, lambda loaded: loaded)


def test_sqlites_own_backup_copies_what_the_wal_holds(
    store: EventStore, database: Path, tmp_path: Path
) -> None:
    async def fill() -> None:
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        for _ in range(20):
            await store.append(SESSION, new_event(), cursor)

    asyncio.run(fill())
    # In a process of its own, as the `sqlite3` shell is.
    program = "import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b)"
    copy = tmp_path / "copy.db"
    subprocess.run([sys.executable, "-c", program, str(database), str(copy)], check=True)
    restored = open_store(copy, BUILT_IN)
    assert restored.stats()["events"] == 21
    restored.close()


def test_a_private_temporary_database_leaves_nothing(tmp_path: Path) -> None:
    first, second = open_store(":memory:", BUILT_IN), open_store(":memory:", BUILT_IN)
    assert first.path != second.path
    folder = Path(first.path).parent
    assert folder.exists()
    first.close()
    second.close()
    assert not folder.exists()


def test_every_open_error_names_the_path_and_has_a_remedy(database: Path) -> None:
    database.write_text("x" * 5000)
    with pytest.raises(StoreUnusable) as raised:
        open_and_close(database)
    assert raised.value.path == str(database)
    assert str(raised.value).endswith(".")

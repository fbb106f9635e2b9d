"""Backup and restore: a copy is whole, verified and private, or it is not there."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from eventstore import Cursor, EventStore, EventType, NotADatabase, PathUnusable, Window, open_store
from projections import BUILT_IN, verify
from projections.backup import CopyDamaged, backup, restore
from tests.eventstore.events import SESSION, created, new_event, session


@pytest.fixture
def target(database: Path) -> str:
    """Of files only, which these tests are about."""
    return str(database)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def versions(path: Path, count: int) -> list[int]:
    """The conversation versions of the sessions "0", "1", ... in a database."""

    async def read(store: EventStore) -> list[int]:
        found = []
        for n in range(count):
            loaded = await store.load(session(str(n)), Window(), lambda loaded: loaded)
            assert loaded is not None
            found.append(loaded.stream.conversation_version)
        return found

    store = open_store(path, BUILT_IN, create=False)
    try:
        return asyncio.run(read(store))
    finally:
        store.close()


def test_a_copy_taken_while_others_write_holds_what_was_acknowledged(
    database: Path, tmp_path: Path
) -> None:
    store = open_store(database, BUILT_IN)
    written, enough, stop = [0, 0, 0], threading.Event(), threading.Event()

    def write(n: int) -> None:
        async def fill() -> None:
            loaded = await store.create(session(str(n)), created(user={"n": n}))
            cursor = Cursor(loaded.stream.id, 1)
            while not stop.is_set():
                await store.append(session(str(n)), new_event(delta={"user": {"k": n}}), cursor)
                written[n] += 1
                if min(written) > 20:
                    enough.set()

        asyncio.run(fill())

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for writer in writers:
        writer.start()
    try:
        assert enough.wait(60)
        before = list(written)
        folder = tmp_path / "backups"
        done = backup(store, folder / "copy.db")
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert done.verified.clean
    assert names(folder) == ["copy.db"]
    assert (folder / "copy.db").stat().st_mode & 0o777 == 0o600
    copied = versions(folder / "copy.db", 3)
    assert all(there > least for there, least in zip(copied, before, strict=True))
    assert verify(store, BUILT_IN).clean
    store.close()


def test_a_plain_copy_of_a_running_service_loses_what_it_acknowledged(
    store: EventStore, database: Path, tmp_path: Path
) -> None:
    async def fill() -> None:
        for n in range(5):
            await store.create(session(str(n)), created(session={"n": n}))

    asyncio.run(fill())
    shutil.copy(database, tmp_path / "plain.db")
    with closing(sqlite3.connect(tmp_path / "plain.db")) as connection:
        count = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        rows = connection.execute("SELECT count(*) FROM events").fetchone() if count[0] else (0,)
    assert rows[0] < 5
    backup(store, tmp_path / "whole.db")
    assert versions(tmp_path / "whole.db", 5) == [1] * 5


def test_the_shells_backup_command_works(store: EventStore, database: Path, tmp_path: Path) -> None:
    async def fill() -> None:
        await store.create(session("0"), created(session={"n": 1}))

    asyncio.run(fill())
    shell = shutil.which("sqlite3")
    target = tmp_path / "shell.db"
    if shell:
        subprocess.run([shell, database, f".backup {target}"], check=True, timeout=60)
    else:  # the same call of SQLite's, where there is no shell
        with (
            closing(sqlite3.connect(database)) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
    assert versions(target, 1) == [1]


def test_nothing_is_overwritten_without_being_told(
    store: EventStore, database: Path, tmp_path: Path
) -> None:
    target = tmp_path / "there.db"
    target.write_text("precious")
    with pytest.raises(PathUnusable, match="exists"):
        backup(store, target)
    with pytest.raises(PathUnusable, match="exists"):
        restore(database, target, BUILT_IN)
    with pytest.raises(PathUnusable, match="directory"):
        backup(store, tmp_path, overwrite=True)
    assert target.read_text() == "precious"
    backup(store, target, overwrite=True)
    open_store(target, BUILT_IN, create=False).close()


def test_a_damaged_copy_is_not_put_in_place(
    store: EventStore, database: Path, tmp_path: Path
) -> None:
    async def fill() -> None:
        await store.create(SESSION, created(session={"n": 1}))

    asyncio.run(fill())
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE state SET state_value = '2'")
    with pytest.raises(CopyDamaged, match="1 in state"):
        backup(store, tmp_path / "copy.db")
    target = tmp_path / "target.db"
    target.write_text("precious")
    with pytest.raises(CopyDamaged):
        restore(database, target, BUILT_IN, overwrite=True)
    assert target.read_text() == "precious"
    assert [name for name in names(tmp_path) if "copy.db" in name] == []


def test_a_backup_takes_the_place_of_a_database_and_of_its_wal(
    database: Path, tmp_path: Path
) -> None:
    async def fill(store: EventStore, *keys: str) -> None:
        for key in keys:
            await store.create(session(key), created(session={"n": 1}))

    store = open_store(database, BUILT_IN)
    asyncio.run(fill(store, "0"))
    backup(store, tmp_path / "backup.db")
    asyncio.run(fill(store, "1", "2"))
    wal = Path(f"{database}-wal").read_bytes()
    store.close()
    # What a crashed process leaves: changes to the old file, which must not be written to the new.
    Path(f"{database}-wal").write_bytes(wal)
    restore(tmp_path / "backup.db", database, BUILT_IN, overwrite=True)
    restored = open_store(database, BUILT_IN, create=False)
    assert restored.stats()["sessions"] == 1
    assert verify(restored, BUILT_IN).clean
    asyncio.run(fill(restored, "3"))
    restored.close()


@pytest.mark.parametrize(
    ("content", "error"),
    [("not a database, but long enough to look at" * 50, NotADatabase), (None, PathUnusable)],
)
def test_what_is_no_backup_is_not_restored(
    content: str | None, error: type[Exception], tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "source.db").write_text(content)
    with pytest.raises(error, match=r"source\.db"):
        restore(tmp_path / "source.db", tmp_path / "target.db", BUILT_IN)
    assert not (tmp_path / "target.db").exists()


def without_tables(path: Path) -> None:
    """An empty database, as another program may leave it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("DROP TABLE theirs")


@pytest.mark.parametrize("make", [Path.touch, without_tables])
def test_what_is_empty_does_not_take_the_place_of_a_database(
    make: Callable[[Path], None], database: Path, tmp_path: Path
) -> None:
    async def fill(store: EventStore) -> None:
        await store.create(session("0"), created())

    with closing(open_store(database, BUILT_IN)) as opened:
        asyncio.run(fill(opened))
    make(tmp_path / "source.db")
    with pytest.raises(NotADatabase, match=r"source\.db holds no database"):
        restore(tmp_path / "source.db", database, BUILT_IN, overwrite=True)
    assert versions(database, 1) == [1]


async def test_events_go_on_being_appended_to_the_original(
    store: EventStore, tmp_path: Path
) -> None:
    loaded = await store.create(SESSION, created(session={"n": 1}))
    await asyncio.to_thread(backup, store, tmp_path / "copy.db")
    await store.append(SESSION, new_event(), Cursor(loaded.stream.id, 1))
    await store.set_state(SESSION, new_event(EventType.STATE_SET, delta={"session": {"k": 1}}))

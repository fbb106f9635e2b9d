"""Recover: all that is left of a damaged file, in a new one that verifies."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adk_adapter import DatabaseSessionService
from eventstore import (
    DatabaseInUse,
    EventStore,
    NotADatabase,
    PathUnusable,
    StreamKey,
    open_store,
)
from projections import (
    BUILT_IN,
    delete_session,
    erase_user,
    list_sessions,
    set_labels,
    set_title,
    verify,
)
from projections.cli import main
from projections.recover import recover
from projections.retention import _end_all
from tests.eventstore.events import created, session
from tests.hostile.databases import DELETED, LIVE, PAGE, SECRET, anchor, log, pages, said, tamper


@pytest.fixture
def bad(filled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bad.db"
    shutil.copy(filled, path)
    return path


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def fill_pages(path: Path, numbers: list[int], content: Callable[[int], bytes] = bytes) -> None:
    with path.open("r+b") as file:
        for number in numbers:
            file.seek((number - 1) * PAGE)
            file.write(content(PAGE))


def recovered(path: Path, truth: Path) -> Any:
    """Recovers, and checks what holds in any case."""
    before = path.read_bytes()
    target = path.with_name("new.db")
    done = recover(path, target, BUILT_IN)
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} <= {path.name, target.name, "bad.db-wal"}
    old, new = log(truth), log(target)
    made = [p for p in new if p not in old or new[p][1] != old[p][1]]
    # Nothing is made up but beginnings and tombstones that were lost.
    assert all(new[p][2] in ("session_created", "session_deleted") for p in made)
    assert done.events == len(new) - len(made)
    with closing(open_store(target, BUILT_IN)) as store:
        assert verify(store, BUILT_IN).clean

    async def deleted() -> None:
        async with DatabaseSessionService(target) as service:
            assert await service.get_session(*DELETED) is None
            for app in ("app0", "app1"):
                for session in await service.list_sessions(app):
                    assert await service.get_session(app, session.user_id, session.id)

    asyncio.run(deleted())
    assert SECRET not in repr(done)
    return done


def test_a_file_without_damage_comes_out_as_it_was(filled: Path, bad: Path) -> None:
    done = recovered(bad, filled)
    assert (done.left_out, done.notes) == ([], [])
    new = bad.with_name("new.db")
    assert log(new) == log(filled)
    old = anchor(filled)
    with closing(open_store(new, BUILT_IN)) as store:
        assert verify(store, BUILT_IN, against=old).clean
    for table in ("streams", "state", "sessions", "events"):
        content = []
        for path in (filled, new):
            with closing(sqlite3.connect(path)) as connection:
                rows = connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                content.append([[v for v in row if not isinstance(v, int)] for row in rows])
        assert content[0] == content[1]


@pytest.mark.parametrize("table", ["streams", "state", "sessions", "codecs", "projections"])
def test_every_page_of_a_table_but_the_log_may_go(filled: Path, bad: Path, table: str) -> None:
    fill_pages(bad, pages(bad)[table], os.urandom)
    done = recovered(bad, filled)
    assert not done.left_out
    kept, whole = log(bad.with_name("new.db")), log(filled)
    if table == "codecs":  # of an unknown codec, so that payloads are validated
        kept = {p: (*row[:8], None, *row[9:]) for p, row in kept.items()}
        whole = {p: (*row[:8], None, *row[9:]) for p, row in whole.items()}
    assert (
        kept.items()
        >= {p: r for p, r in whole.items() if r[2] != "vacuumed" or table != "streams"}.items()
    )


def test_the_schema_the_inner_pages_and_every_index_may_go(filled: Path, bad: Path) -> None:
    found = pages(bad)
    inner = [found["schema"][0], found["events"][0]]
    indexes = [number for name, numbers in found.items() for number in numbers if "auto" in name]
    fill_pages(bad, [*inner, *indexes, *found["streams_live"]], os.urandom)
    done = recovered(bad, filled)
    assert not done.left_out
    assert log(bad.with_name("new.db")) == log(filled)


@pytest.mark.parametrize("seed", range(6))
def test_pages_of_the_log_are_lost_alone(filled: Path, bad: Path, seed: int) -> None:
    lost = random.Random(seed).sample(pages(bad)["events"][1:], 3)
    fill_pages(bad, lost, os.urandom if seed % 2 else bytes)
    done = recovered(bad, filled)
    assert done.left_out
    missing = len(log(filled)) - done.events
    assert missing == sum((e.last_version or 0) - (e.version or 0) + 1 for e in done.left_out)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file(filled: Path, bad: Path, share: float) -> None:
    with bad.open("r+b") as file:
        file.truncate(int(bad.stat().st_size * share))
    recovered(bad, filled)


@pytest.mark.parametrize("seed", range(4))
def test_bits_flipped_anywhere(filled: Path, bad: Path, seed: int) -> None:
    content, random_ = bytearray(bad.read_bytes()), random.Random(seed)
    for _ in range(25):
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    bad.write_bytes(content)
    done = recovered(bad, filled)
    assert done.events > len(log(filled)) / 2


def test_a_damaged_event_is_named_and_the_others_saved(filled: Path, bad: Path) -> None:
    content = bad.read_bytes()
    old, new = (f"{SECRET} {text} ".encode() * 20 for text in ("4 3", "9 9"))
    bad.write_bytes(content.replace(old, new))
    done = recovered(bad, filled)
    (left,) = done.left_out
    assert (left.version, left.position > 0, left.size_bytes > 400) == (5, True, True)
    assert "digest" in left.reason
    assert "'s4'" in left.stream
    assert log(filled).keys() - log(bad.with_name("new.db")).keys() == {left.position}


@pytest.mark.parametrize("column", ["author", "event_id", "timestamp", "codec", "chain"])
def test_a_damaged_field_is_found_by_the_chain(filled: Path, bad: Path, column: str) -> None:
    value = {"timestamp": "5.5", "codec": "0", "chain": "randomblob(32)"}.get(column, "'x'")
    sql(
        bad,
        "INSERT INTO maintenance VALUES (1, 'test')",
        f"UPDATE events SET {column} = {value} WHERE version = 7 AND stream_id = 12",
        "DELETE FROM maintenance",
    )
    done = recovered(bad, filled)
    # A link can be computed again, and a codec tried: the next event proves which is right.
    assert len(done.left_out) == (column not in ("chain", "codec"))
    if not done.left_out:
        assert log(bad.with_name("new.db")) == log(filled)


def number(path: Path, where: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute(f"SELECT id FROM streams WHERE {where}").fetchone()
    return int(found)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions, and no position that is free."""
    path = tmp_path_factory.mktemp("dense") / "sessions.sqlite3"

    async def fill() -> None:
        async with DatabaseSessionService(path) as service:
            for name in ("s4", "s7"):
                session = await service.create_session("app0", f"u of {name}", name, {"k": 1})
                for n in range(9):
                    await service.append_event(session, said(f"{name} {n}"))

    asyncio.run(fill())
    return path


@pytest.mark.parametrize("file", ["filled", "dense"])
@pytest.mark.parametrize(
    ("version", "change"),
    [
        (5, "version = 5 + 64"),
        (5, "version = 5 + (1 << 40)"),
        (5, "stream_id = (SELECT id FROM streams WHERE session_id = 's7')"),
        (1, "stream_id = (SELECT id FROM streams WHERE session_id = 's7')"),
        (1, "stream_id = (SELECT id FROM streams WHERE kind = 'user' LIMIT 1)"),
    ],
)
def test_an_event_in_a_wrong_place_is_left_out_alone(
    request: pytest.FixtureRequest, tmp_path: Path, file: str, version: int, change: str
) -> None:
    truth, bad = request.getfixturevalue(file), tmp_path / "bad.db"
    shutil.copy(truth, bad)
    stream = number(bad, "session_id = 's4'")
    tamper(bad, f"UPDATE events SET {change} WHERE stream_id = {stream} AND version = {version}")
    (place,) = (left.position for left in recovered(bad, truth).left_out if left.position)
    old, new = log(truth), log(bad.with_name("new.db"))
    assert {p for p in old.keys() | new.keys() if old.get(p) != new.get(p)} == {place}
    # Only a beginning that was made may be there.
    assert (place in new) == (version == 1)
    assert version > 1 or new[place][1] != old[place][1]


def test_an_event_whose_beginning_has_no_place_is_left_out(dense: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    shutil.copy(dense, bad)
    tamper(bad, "DELETE FROM events WHERE position = 1")
    tamper(bad, "UPDATE events SET position = 1 WHERE position = 2")
    done = recovered(bad, dense)
    assert [(left.version, left.position) for left in done.left_out] == [(1, None), (2, 1)]


@pytest.mark.parametrize("change", ["id = 1 << 20", "id = {user}", "version = 1 << 40"])
def test_a_row_of_a_stream_may_have_a_damaged_number(filled: Path, bad: Path, change: str) -> None:
    user = number(bad, "kind = 'user' AND user_id = 'u0' AND app_name = 'app0'")
    change = change.format(user=user)
    sql(bad, f"UPDATE OR REPLACE streams SET {change} WHERE session_id = 's4'")
    assert len(recovered(bad, filled).left_out) == change.startswith("version")
    assert log(bad.with_name("new.db")) == log(filled)


@pytest.mark.parametrize("what", ["map", "freelist", "reserved"])
def test_what_the_file_says_of_its_pages_may_be_damaged(filled: Path, bad: Path, what: str) -> None:
    content = bytearray(bad.read_bytes())
    leaf = next(n for n in pages(bad)["events"] if content[(n - 1) * PAGE] == 0x0D)
    if what == "map":
        assert content[PAGE + 5 * (leaf - 3)] == 5
        content[PAGE + 5 * (leaf - 3)] = 4
    elif what == "freelist":
        content[32:36] = leaf.to_bytes(4, "big")
    else:
        content[20] = 16
    bad.write_bytes(content)
    assert not recovered(bad, filled).left_out
    assert log(bad.with_name("new.db")) == log(filled)


@pytest.mark.parametrize("what", ["live = 1", "version = 1", "user_id = 'u1'"])
def test_what_a_row_says_is_not_believed_against_the_events(
    filled: Path, bad: Path, what: str
) -> None:
    sql(bad, f"UPDATE streams SET {what} WHERE session_id = 's2'")
    assert not recovered(bad, filled).left_out
    assert log(bad.with_name("new.db")) == log(filled)


def test_a_session_whose_tombstone_is_lost_stays_deleted(filled: Path, bad: Path) -> None:
    sql(
        bad,
        "INSERT INTO maintenance VALUES (1, 'test')",
        "DELETE FROM events WHERE type = 'session_deleted'",
        "DELETE FROM maintenance",
    )
    done = recovered(bad, filled)
    assert any("tombstone" in note for note in done.notes)


def test_what_was_vacuumed_is_not_brought_back(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def fill() -> None:
        async with DatabaseSessionService(path) as service:
            for name in ("stays", "goes"):
                session = await service.create_session("a", "u", name)
                for n in range(40):
                    await service.append_event(session, said(f"{name} {n} " * 50))
            await service.delete_session("a", "u", "goes")
            service.vacuum()

    asyncio.run(fill())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA auto_vacuum").fetchone()
    recover(path, tmp_path / "b.db", BUILT_IN)
    assert b"goes 3" not in (tmp_path / "b.db").read_bytes()
    assert len(log(tmp_path / "b.db")) == len(log(path))


def test_what_is_in_the_wal_counts(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.db", tmp_path / "bad.db"

    async def fill() -> None:
        async with DatabaseSessionService(path) as service:
            session = await service.create_session("a", "u", "s")
            for n in range(30):
                await service.append_event(session, said(f"{n} " * 300))
            for name in ("", "-wal"):
                shutil.copy(f"{path}{name}", f"{copy}{name}")

    asyncio.run(fill())
    wal = Path(f"{copy}-wal").read_bytes()
    recover(copy, tmp_path / "b.db", BUILT_IN)
    assert log(tmp_path / "b.db") == log(path)
    assert Path(f"{copy}-wal").read_bytes() == wal
    Path(f"{copy}-wal").write_bytes(wal[: len(wal) // 2])
    recover(copy, tmp_path / "c.db", BUILT_IN)
    assert 0 < len(log(tmp_path / "c.db")) < len(log(path))


def test_what_cannot_be_recovered_is_refused(filled: Path, tmp_path: Path) -> None:
    (tmp_path / "there.db").write_text("precious")
    with pytest.raises(PathUnusable, match="exists"):
        recover(filled, tmp_path / "there.db", BUILT_IN)
    with pytest.raises(PathUnusable, match="does not exist"):
        recover(tmp_path / "none.db", tmp_path / "new.db", BUILT_IN)
    for content in (b"", b"garbage" * 5000):
        (tmp_path / "garbage.db").write_bytes(content)
        with pytest.raises(NotADatabase, match="nothing that is left"):
            recover(tmp_path / "garbage.db", tmp_path / "new.db", BUILT_IN)
    store = open_store(tmp_path / "open.db", BUILT_IN)
    with closing(store), pytest.raises(DatabaseInUse, match="in this process"):
        recover(tmp_path / "open.db", tmp_path / "new.db", BUILT_IN)
    assert (tmp_path / "there.db").read_text() == "precious"
    assert not (tmp_path / "new.db").exists()


def test_the_command(bad: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(main, ["recover", str(bad), str(tmp_path / "one.db")])
    assert (done.exit_code, "Nothing was left out" in done.stdout) == (0, True)
    fill_pages(bad, pages(bad)["events"][3:5])
    done = runner.invoke(main, ["recover", str(bad), str(tmp_path / "two.db")])
    assert (done.exit_code, "left out: session" in done.stdout) == (1, True)
    arguments = ["recover", str(bad), str(tmp_path / "three.db"), "--format", "json"]
    done = runner.invoke(main, arguments)
    document = json.loads(done.stdout)
    assert done.exit_code == 1
    assert {"stream", "version", "last_version", "position", "size_bytes", "reason"} == set(
        document["left_out"][0]
    )
    assert SECRET not in done.output
    assert LIVE


def test_what_maintenance_has_left_is_recovered_as_it_is(database: Path, tmp_path: Path) -> None:
    """Erased and purged sessions, titles, an erasure that was ended, whose user came back."""
    target = tmp_path / "recovered.sqlite3"
    with closing(open_store(database, BUILT_IN)) as store:
        keys = [session(f"s{n}", f"user {n % 3}", f"app {n % 2}") for n in range(6)]
        for key in keys:
            asyncio.run(_create(store, key))
        set_title(store, keys[0], "title")
        set_labels(store, keys[0], {"a": "b"})
        erase_user(store, BUILT_IN, user_id="user 1")
        asyncio.run(_create(store, session("back", "user 1", "app 0")))
        delete_session(store, keys[3])
        _end_all(store, "user 2", None)
        asyncio.run(_create(store, session("back", "user 2", "app 0")))
        assert verify(store, BUILT_IN).clean
        before = list_sessions(store).sessions
        anchor = verify(store, BUILT_IN).anchor
    done = recover(database, target, BUILT_IN)
    assert (done.left_out, done.notes) == ([], [])
    with closing(open_store(target, BUILT_IN)) as store:
        assert verify(store, BUILT_IN, against=anchor).clean
        assert list_sessions(store).sessions == before
        assert erase_user(store, BUILT_IN, user_id="user 2").sessions == 3
        assert verify(store, BUILT_IN).clean


async def _create(store: EventStore, key: StreamKey) -> None:
    await store.create(key, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))

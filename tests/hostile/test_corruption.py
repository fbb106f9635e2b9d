"""Damaged files: what is wrong is found and named, never served, and the rest stays readable."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.adk.sessions import Session
from google.adk.sessions.base_session_service import GetSessionConfig

from adk_adapter import DatabaseSessionService
from adk_adapter.cli import main
from eventstore import (
    CorruptEvent,
    DatabaseReplaced,
    EventStoreError,
    ForeignDatabase,
    NotADatabase,
    PathUnusable,
    ProjectionMissing,
    SchemaTooNew,
    StoreUnusable,
    open_store,
)
from projections import BUILT_IN, verify
from projections.cli import rebuild_projections
from tests.hostile.databases import DELETED, LIVE, PAGE, SECRET, pages, said, tamper

ALL = [(f"app{n % 2}", f"u{n % 3}", f"s{n}") for n in range(8)]
FLIPS = 12
"""In each kind of page."""


@pytest.fixture
def target(database: Path) -> str:
    """Of files only, which these tests are about."""
    return str(database)


async def load_all(service: DatabaseSessionService) -> dict[Any, Any]:
    """What the service says of every session, and what it raises."""
    found: dict[Any, Any] = {}
    for name in ALL:
        for count in (None, 3):
            try:
                config = None if count is None else GetSessionConfig(num_recent_events=count)
                found[*name, count] = await service.get_session(*name, config)
            except EventStoreError as error:
                found[*name, count] = error
    for app in ("app0", "app1"):
        try:
            found[app] = [(s.user_id, s.id) for s in await service.list_sessions(app)]
        except EventStoreError as error:
            found[app] = error
    return found


def load(path: Path, **options: Any) -> dict[Any, Any]:
    async def work() -> dict[Any, Any]:
        async with DatabaseSessionService(path, **options) as service:
            return await load_all(service)

    return asyncio.run(work())


@pytest.fixture(scope="module")
def truth(filled: Path) -> dict[Any, Any]:
    return load(filled)


@pytest.fixture
def bad(filled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bad.db"
    shutil.copy(filled, path)
    return path


def flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def is_drift(path: Path) -> bool:
    try:
        with closing(open_store(path, BUILT_IN, for_rebuild=True)) as store:
            return not verify(store, BUILT_IN).clean
    except EventStoreError:
        return True


KINDS = [
    "schema", "streams", "streams_live", "events", "sqlite_autoindex_events_1",
    "sqlite_autoindex_events_2", "codecs", "state", "sessions", "projections", "maintenance",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_or_changes_nothing(
    filled: Path, bad: Path, truth: dict[Any, Any], kind: str
) -> None:
    numbers = pages(filled)[kind]
    random_ = random.Random(kind)
    for trial in range(FLIPS):
        shutil.copy(filled, bad)
        for companion in ("-wal", "-shm"):
            Path(f"{bad}{companion}").unlink(missing_ok=True)
        number = random_.choice(numbers)
        # Half of them where the structure is.
        span = 128 if trial % 2 else PAGE
        at = (number - 1) * PAGE + random_.randrange(span)
        flip(bad, at, random_.randrange(8))
        before = bad.read_bytes()
        try:
            found = load(bad)
        except EventStoreError as error:
            assert str(error).endswith(".")
            assert SECRET not in str(error)
            continue
        bad.write_bytes(before)
        for key, expected in truth.items():
            got = found[key]
            if isinstance(got, EventStoreError):
                assert SECRET not in str(got), (kind, at)
            elif got is None or expected is None or isinstance(expected, list):
                # Nothing is served that is not there; what seems to be missing, verify finds.
                if got != expected:
                    assert expected is not None, (kind, at, key)
                    assert is_drift(bad), (kind, at, key)
            else:
                assert got.events == expected.events, (kind, at, key)
                if got != expected:
                    assert is_drift(bad), (kind, at, key)


def corrupt(path: Path, old: str, new: str) -> None:
    content = path.read_bytes()
    assert content.count(old.encode()) == 1
    path.write_bytes(content.replace(old.encode(), new.encode()))


async def test_sessions_that_are_not_damaged_stay_readable(
    bad: Path, truth: dict[Any, Any]
) -> None:
    corrupt(bad, f"{SECRET} 4 3 " * 20, f"{SECRET} 9 9 " * 20)
    async with DatabaseSessionService(bad) as service:
        found = await load_all(service)
    for key, expected in truth.items():
        if key == ("app0", "u1", "s4", None):
            assert isinstance(found[key], CorruptEvent)
            assert (found[key].version, "recover" in str(found[key])) == (5, True)
        else:
            assert found[key] == expected


@pytest.mark.parametrize("kind", ["events", "sqlite_autoindex_events_1"])
async def test_skip_serves_what_is_left_and_says_what_is_not(
    bad: Path, truth: dict[Any, Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(bad.read_bytes())
    numbers = pages(bad)[kind]
    for number in random.Random(7).sample(numbers[1:], 2) if kind == "events" else numbers:
        content[(number - 1) * PAGE : number * PAGE] = bytes(PAGE)
    bad.write_bytes(content)
    lost = 0
    async with DatabaseSessionService(bad, on_corrupt="skip") as service:
        for key, expected in truth.items():
            if len(key) != 4 or key[3] is not None or expected is None:
                continue
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                session = await service.get_session(*key[:3])
            assert session is not None
            whole = truth[*key[:3], None].events
            damaged = await service.corrupt_events(*key[:3])
            assert [e for e in whole if e in session.events] == session.events
            missing = len(whole) - len(session.events)
            assert missing == len([e for e in damaged if e.version > 1])
            told = [r for r in caplog.records if r.name.startswith("adk_adapter")]
            assert len(told) == len(damaged)
            assert SECRET not in caplog.text
            lost += len(damaged)
    assert bool(lost) == (kind == "events")


async def test_appending_to_a_session_with_a_damaged_event(bad: Path) -> None:
    corrupt(bad, f"{SECRET} 4 3 " * 20, f"{SECRET} 9 9 " * 20)
    async with DatabaseSessionService(bad, on_corrupt="skip") as service:
        session = await service.get_session(*LIVE[0])
        assert session is not None
        assert len(session.events) == 23
        (damaged,) = await service.corrupt_events(*LIVE[0])
        assert (damaged.version, damaged.position > 0) == (5, True)
        await service.append_event(session, said("goes on", k="new"))
        await service.update_keys(*LIVE[0], {"j": 1})
        again = await service.get_session(*LIVE[0])
        assert again is not None
        assert again.events == session.events
        assert again.state["k"] == "new"
        # What is computed from the whole history is refused.
        rewind = said("back")
        rewind.actions.rewind_before_invocation_id = "i"
        with pytest.raises(CorruptEvent):
            await service.append_event(again, rewind)
        few = GetSessionConfig(num_recent_events=2)
        assert len((await service.get_session(*LIVE[0], few)).events) == 2  # type: ignore[union-attr]
        verified = await service.verify()
        assert verified.drifted["events"] == 1
    async with DatabaseSessionService(bad) as strict:
        with pytest.raises(CorruptEvent):
            await strict.get_session(*LIVE[0])


def test_on_corrupt_takes_two_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        DatabaseSessionService(tmp_path / "a.db", on_corrupt="ignore")  # type: ignore[arg-type]


async def test_a_session_reached_by_a_damaged_index_is_not_served_to_another(
    bad: Path,
) -> None:
    """The index says that a user's session is the row of somebody else's."""
    with closing(sqlite3.connect(bad, isolation_level=None)) as connection:
        rows = dict(connection.execute("SELECT session_id, id FROM streams WHERE live = 1"))
    mine, theirs = rows["s4"], rows["s7"]
    (leaf,) = pages(bad)["streams_live"]
    content = bytearray(bad.read_bytes())
    start = (leaf - 1) * PAGE
    at = content.index(b"app0sessionu1s4" + bytes([mine]), start, start + PAGE)
    content[at + len(b"app0sessionu1s4")] = theirs
    bad.write_bytes(content)
    for options in ({}, {"on_corrupt": "skip"}):
        async with DatabaseSessionService(bad, **options) as service:
            for attempt in (
                service.get_session("app0", "u1", "s4"),
                service.update_keys("app0", "u1", "s4", {"k": 1}),
                service.delete_session("app0", "u1", "s4"),
                service.list_sessions("app0", "u1"),
            ):
                with pytest.raises(CorruptEvent, match="row of its stream"):
                    await attempt


async def test_lists_do_not_believe_a_damaged_index(bad: Path) -> None:
    with closing(sqlite3.connect(bad, isolation_level=None)) as connection:
        rows = dict(connection.execute("SELECT session_id, id FROM streams WHERE live = 1"))
        apps = dict(connection.execute("SELECT app_name, id FROM streams WHERE kind = 'app'"))
    mine, theirs = rows["s4"], rows["s7"]
    (leaf,) = pages(bad)["streams_live"]
    content = bytearray(bad.read_bytes())
    start = (leaf - 1) * PAGE
    for name, there, other in (
        (b"app0sessionu1s4", mine, theirs),
        (b"app1app", apps["app1"], apps["app0"]),
    ):
        at = content.index(name + bytes([there]), start, start + PAGE)
        content[at + len(name)] = other
    bad.write_bytes(content)
    with closing(open_store(bad, BUILT_IN)) as store:
        assert [s.id for s in store.snapshot(lambda s: s.find_sessions("s4"))] == [mine]
        largest = store.snapshot(lambda s: s.largest_streams(9))
        assert sorted((s.key.session_id, s.id) for s in largest) == [
            (name, rows[name]) for name in ("s3", "s4", "s5", "s6", "s7")
        ]
        ids = {s.id for s in store.snapshot(lambda s: s.streams_of_app("app0"))}
        assert mine in ids
        assert theirs not in ids
    async with DatabaseSessionService(bad) as service:
        for attempt in (
            service.list_sessions_page(),
            service.purge(older_than=timedelta(days=0)),
        ):
            with pytest.raises(CorruptEvent, match="row of its stream"):
                await attempt
    with closing(sqlite3.connect(bad)) as connection:
        there = connection.execute(
            "SELECT session_id FROM streams NOT INDEXED WHERE live"
        ).fetchall()
    assert {name for (name,) in there} == {"", "s3", "s4", "s5", "s6", "s7"}


@pytest.mark.parametrize("column", ["user_stream_id", "app_stream_id"])
async def test_state_of_somebody_else_is_not_served(bad: Path, column: str) -> None:
    with closing(sqlite3.connect(bad, isolation_level=None)) as connection:
        connection.execute(
            f"UPDATE streams SET {column} = (SELECT {column} FROM streams WHERE session_id = 's7')"
            " WHERE session_id = 's4'"
        )
    async with DatabaseSessionService(bad) as service:
        for attempt in (service.get_session(*LIVE[0]), service.list_sessions("app0")):
            with pytest.raises(CorruptEvent, match="row of its stream"):
                await attempt


# Files as wholes.


def cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file(bad: Path, truth: dict[Any, Any], share: float) -> None:
    cut(bad, int(bad.stat().st_size * share))
    try:
        found = load(bad)
    except StoreUnusable as error:
        assert str(bad) in str(error)
        return
    assert any(isinstance(each, EventStoreError) for each in found.values())
    for key, got in found.items():
        assert isinstance(got, EventStoreError) or got == truth[key] or is_drift(bad)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_wal_ends_the_log_at_a_commit(
    tmp_path: Path, truth: dict[Any, Any], share: float
) -> None:
    async def fill(path: Path) -> bytes:
        async with DatabaseSessionService(path) as service:
            session = await service.create_session("a", "u", "s")
            for n in range(30):
                await service.append_event(session, said(f"{n}", n=n))
            for name in ("", "-wal"):
                shutil.copy(f"{path}{name}", f"{path}.copy{name}")
        return Path(f"{path}.copy-wal").read_bytes()

    path = tmp_path / "a.db"
    wal = asyncio.run(fill(path))
    copy = tmp_path / "a.db.copy"
    Path(f"{copy}-wal").write_bytes(wal[: int(len(wal) * share)])

    async def check() -> None:
        async with DatabaseSessionService(copy) as service:
            session = await service.get_session("a", "u", "s")
            assert (await service.verify()).clean
            if session is not None and session.events:
                assert session.state["n"] == len(session.events) - 1

    asyncio.run(check())


def zero(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


@pytest.mark.parametrize(
    ("damage", "error", "remedy"),
    [
        (foreign, ForeignDatabase, "Choose another path"),
        (newer, SchemaTooNew, "Upgrade"),
        (folder, PathUnusable, "Choose the path"),
        (garbage, NotADatabase, "recover"),
    ],
)
def test_what_is_no_database_of_ours(
    bad: Path, damage: Callable[[Path], None], error: type[StoreUnusable], remedy: str
) -> None:
    damage(bad)
    with pytest.raises(error, match=remedy) as raised:
        DatabaseSessionService(bad)
    assert raised.value.path == str(bad)


def test_an_empty_file_is_a_new_database(bad: Path) -> None:
    zero(bad)
    assert load(bad)["app0"] == []


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
@pytest.mark.parametrize("read_only", ["file", "folder"])
def test_a_read_only_file_or_folder(
    bad: Path, read_only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = bad if read_only == "file" else bad.parent
    if os.geteuid() == 0:  # to whom everything is writable
        real = os.access
        monkeypatch.setattr(os, "access", lambda p, m: real(p, m) and Path(p) != chosen)
    else:
        chosen.chmod(0o500)
    with pytest.raises(PathUnusable, match="Make the file and its folder writable"):
        DatabaseSessionService(bad)
    chosen.chmod(0o700)


@pytest.fixture
async def running(bad: Path) -> Any:
    service = DatabaseSessionService(bad)
    session = await service.get_session(*LIVE[0])
    assert session is not None
    await service.append_event(session, said("before"))
    yield service, session
    await service.aclose()


async def used(service: DatabaseSessionService, session: Session) -> list[BaseException | None]:
    outcomes: list[BaseException | None] = []
    for use in (
        lambda: service.append_event(session, said("after")),
        lambda: service.get_session(*LIVE[0]),
        lambda: service.update_keys(*LIVE[1], {"k": 1}),
        lambda: service.list_sessions("app0"),
    ):
        try:
            await use()
        except EventStoreError as error:
            outcomes.append(error)
        else:
            outcomes.append(None)
    return outcomes


async def test_a_folder_removed_underneath(bad: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    bad.rename(place / "a.db")
    service = DatabaseSessionService(place / "a.db")
    session = await service.get_session(*LIVE[0])
    assert session is not None
    shutil.rmtree(place)
    outcomes = await used(service, session)
    assert all(isinstance(error, DatabaseReplaced) for error in outcomes)
    await service.aclose()


@pytest.mark.parametrize("companions", [["-wal"], ["-shm"], ["-wal", "-shm"]])
async def test_companions_removed_underneath_lose_nothing(
    running: Any, bad: Path, companions: list[str]
) -> None:
    service, session = running
    for companion in companions:
        Path(f"{bad}{companion}").unlink()
    acknowledged = len(session.events)
    for n in range(3):
        try:
            await service.append_event(session, said(f"after {n}"))
        except EventStoreError as error:
            assert str(error).endswith(".")
        else:
            acknowledged += 1
    await service.aclose()
    async with DatabaseSessionService(bad) as again:
        loaded = await again.get_session(*LIVE[0])
        assert loaded is not None
        assert len(loaded.events) >= acknowledged
        assert (await again.verify()).clean


async def test_a_file_overwritten_underneath(running: Any, bad: Path) -> None:
    service, session = running
    with bad.open("r+b") as file:
        file.write(os.urandom(bad.stat().st_size))
    for error in await used(service, session):
        assert error is None or str(error).endswith(".")


def errors(path: Path) -> Iterator[str]:
    with closing(open_store(path, BUILT_IN, for_rebuild=True)) as store:
        yield from (each.problem for each in verify(store, BUILT_IN).differences)


def test_verify_names_a_changed_row_of_a_projection(bad: Path) -> None:
    with closing(sqlite3.connect(bad, isolation_level=None)) as connection:
        connection.execute("UPDATE state SET state_value = '1' WHERE state_key = 'k'")
    assert "differs" in set(errors(bad))


@pytest.mark.parametrize("change", ["author = x'61'", "timestamp = 'x'"])
def test_verify_names_an_event_with_a_column_of_another_type(bad: Path, change: str) -> None:
    tamper(bad, f"UPDATE events SET {change} WHERE position = 100")
    with closing(open_store(bad, BUILT_IN)) as store:
        differences = verify(store, BUILT_IN).differences
    assert differences[0].event is not None
    assert differences[0].event.position == 100
    assert "does not fit the hash chain" in differences[0].problem


NO_UTF8 = "CAST(x'ff41' AS TEXT)"


@pytest.mark.parametrize("value", [NO_UTF8, "'none'", "x'ff'", "NULL", "1.5"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("streams", "kind"),
        ("streams", "user_id"),
        ("streams", "app_stream_id"),
        ("streams", "version"),
        ("streams", "nonce"),
        ("events", "stream_id"),
        ("events", "version"),
        ("events", "type"),
        ("events", "author"),
        ("events", "codec"),
        ("codecs", "fingerprint"),
    ],
)
def test_verify_names_whatever_a_damaged_row_of_the_log_holds(
    bad: Path, table: str, column: str, value: str
) -> None:
    row = {
        "streams": "session_id = 's4'",
        "events": "position = 100",
        "codecs": "fingerprint > ''",
    }[table]
    tamper(bad, f"UPDATE {table} SET {column} = {value} WHERE {row}", table)
    for options in ((), ("--since", "90"), ("--fix", "--yes")):
        done = verified(bad, *options)
        assert done.exit_code == 1, done.output
        found = json.loads(done.stdout)
        assert found["drifted"].keys() & {"streams", "events"}
        assert not found["fixed"]
        shown = verified(bad, *options, form="table")
        assert shown.exit_code == 1
        assert "backup" in shown.stdout.splitlines()[-1]
        assert "adk-eventstore recover" in shown.stdout.splitlines()[-1]


@pytest.mark.parametrize("state", ["state_key", "state_value"])
def test_verify_makes_rows_anew_that_are_no_utf8(bad: Path, state: str) -> None:
    with closing(sqlite3.connect(bad, isolation_level=None)) as connection:
        connection.execute(
            f"UPDATE state SET {state} = {NO_UTF8} WHERE (owner_id, state_key) = "
            "(SELECT owner_id, state_key FROM state ORDER BY 1 DESC, 2 DESC)"
        )
    assert json.loads(verified(bad).stdout)["drifted"].keys() == {"state"}
    assert verified(bad, "--fix", "--yes").exit_code == 0
    assert verified(bad).exit_code == 0


@pytest.mark.parametrize("value", [NO_UTF8, "'none'", "x'ff'", "NULL", "1.5"])
@pytest.mark.parametrize("column", ["version", "table_name", "checkpoint", "failed_at", "failure"])
def test_what_is_noted_of_a_projection_is_made_anew_whatever_it_has_become(
    bad: Path, column: str, value: str
) -> None:
    tamper(bad, f"UPDATE projections SET {column} = {value} WHERE name = 'state'", "projections")
    assert verified(bad).exit_code in (0, 1)
    try:
        open_store(bad, BUILT_IN).close()
    except ProjectionMissing as error:
        assert "rebuild-projections" in str(error)
    rebuilt = CliRunner().invoke(rebuild_projections, ["--db", str(bad)])
    assert rebuilt.exit_code == 0, rebuilt.output
    assert verified(bad).exit_code == 0


def verified(path: Path, *options: str, form: str = "json") -> Result:
    words = ["verify", "--db", str(path), "--format", form, *options]
    return CliRunner().invoke(main, words, catch_exceptions=False)


async def test_a_deleted_session_stays_deleted_whatever_is_damaged(bad: Path) -> None:
    corrupt(bad, f"{SECRET} 2 3 " * 20, f"{SECRET} 9 9 " * 20)
    async with DatabaseSessionService(bad, on_corrupt="skip") as service:
        assert await service.get_session(*DELETED) is None

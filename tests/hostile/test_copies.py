"""Backup, restore and their commands: verified copies, and nothing replaced that is in use."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adk_adapter import DatabaseSessionService
from eventstore import DatabaseInUse, NotOnThisDatabase, PathUnusable, SchemaTooNew, open_store
from projections import BUILT_IN
from projections.backup import CopyDamaged, backup, restore
from projections.cli import main
from tests.hostile.databases import LIVE, said

HOLDER = """
import sqlite3, sys
from eventstore import open_store
from projections import BUILT_IN
if sys.argv[2] == "service":
    store = open_store(sys.argv[1], BUILT_IN)
else:
    shell = sqlite3.connect(sys.argv[1])
    shell.execute("SELECT count(*) FROM events").fetchone()
print("open", flush=True)
sys.stdin.read()
"""


def invoke(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@contextmanager
def held(path: Path, by: str) -> Iterator[None]:
    """Another process has the file open, and does nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, by], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        yield
        process.communicate()


def sessions(path: Path) -> int:
    with closing(open_store(path, BUILT_IN, create=False)) as store:
        return int(store.stats()["sessions"])


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy.db"
    path.write_bytes(filled.read_bytes())
    return path


async def test_the_service_backs_itself_up_while_it_appends(tmp_path: Path) -> None:
    async with DatabaseSessionService(tmp_path / "a.db") as service:
        session = await service.create_session("a", "u", "s")
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                await service.append_event(session, said("x" * 2000))

        writer = asyncio.create_task(write())
        await asyncio.sleep(0.05)
        before = len(session.events)
        done = await service.backup(tmp_path / "b.db")
        assert len(session.events) > before  # the loop went on
        stop.set()
        await writer
        assert done.verified.clean
        assert stat.S_IMODE((tmp_path / "b.db").stat().st_mode) == 0o600
        with pytest.raises(PathUnusable, match="exists"):
            await service.backup(tmp_path / "b.db")
        for itself in (tmp_path / "a.db", f"sqlite:///{tmp_path}/a.db"):
            with pytest.raises(DatabaseInUse):
                await service.backup(itself, overwrite=True)
        await service.append_event(session, said("still there"))
    async with DatabaseSessionService(tmp_path / "b.db") as copied:
        loaded = await copied.get_session("a", "u", "s")
        assert loaded is not None
        assert before <= len(loaded.events) < len(session.events)


@pytest.mark.parametrize("by", ["service", "shell"])
def test_nothing_is_replaced_that_another_process_has_open(
    copy: Path, filled: Path, tmp_path: Path, by: str
) -> None:
    backup_file = tmp_path / "backup.db"
    backup_file.write_bytes(filled.read_bytes())
    with held(copy, by):
        before = copy.read_bytes()
        done = invoke("restore", backup_file, "--db", copy, "--overwrite", "--yes")
        assert (done.exit_code, "is open in another process" in done.stderr) == (2, True)
        done = invoke("backup", copy, "--db", backup_file, "--overwrite")
        assert (done.exit_code, "is open in another process" in done.stderr) == (2, True)
        assert copy.read_bytes() == before
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert invoke("restore", backup_file, "--db", copy, "--overwrite", "--yes").exit_code == 0


def test_restore_refuses_where_this_process_has_it_open(copy: Path, filled: Path) -> None:
    with (
        closing(open_store(copy, BUILT_IN)),
        pytest.raises(DatabaseInUse, match="Stop the services"),
    ):
        restore(filled, copy, BUILT_IN, overwrite=True)


@pytest.mark.parametrize("left", ["-wal", "-journal"])
def test_what_a_crash_left_beside_a_file_is_not_written_into_the_new_one(
    filled: Path, tmp_path: Path, left: str
) -> None:
    target = tmp_path / "target.db"
    store = open_store(tmp_path / "other.db", BUILT_IN)
    for number in range(3):
        store.transact(lambda t, n=number: t.connection.execute(f"CREATE TABLE theirs{n} (x)"))
    content = (tmp_path / "other.db-wal").read_bytes()
    for replace in (backup, restore):
        target.write_bytes((tmp_path / "other.db").read_bytes() if left == "-wal" else b"")
        Path(f"{target}{left}").write_bytes(content)
        if replace is backup:
            with closing(open_store(filled, BUILT_IN)) as original:
                backup(original, target, overwrite=True)
        else:
            restore(filled, target, BUILT_IN, overwrite=True)
        assert not Path(f"{target}{left}").exists()
        assert sessions(target) == sessions(filled)
    store.close()


def test_a_backup_is_left_as_it_is_and_may_be_where_nothing_can_be_written(
    filled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    source = folder / "old.backup"
    source.write_bytes(filled.read_bytes())
    before = source.read_bytes(), source.stat().st_mtime_ns
    restore(source, tmp_path / "new.db", BUILT_IN)
    assert (source.read_bytes(), source.stat().st_mtime_ns) == before
    assert [path.name for path in folder.iterdir()] == ["old.backup"]
    assert sessions(tmp_path / "new.db") == sessions(filled)


def test_restore_follows_a_link_as_the_service_does_and_backup_too(
    copy: Path, filled: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(copy)
    restore(filled, link, BUILT_IN, overwrite=True)
    assert link.is_symlink()
    assert sessions(copy) == sessions(link)


@pytest.mark.parametrize("target", [":memory:", "", "folder", "a\0b", "postgresql://h/d"])
def test_odd_targets_are_refused(filled: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "folder").mkdir()
    path: Any = tmp_path / target if target == "folder" else target
    refused = (PathUnusable, NotOnThisDatabase)
    with closing(open_store(filled, BUILT_IN)) as store, pytest.raises(refused):
        backup(store, path, overwrite=True)
    with pytest.raises(refused):
        restore(filled, path, BUILT_IN, overwrite=True)


def test_a_damaged_backup_is_refused_by_its_name(filled: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "bad.backup", tmp_path / "target.db"
    content = filled.read_bytes()
    source.write_bytes(content.replace(b"s3cr3t-m4rk3r 4", b"s3cr3t-m4rk3r 5"))
    with pytest.raises(CopyDamaged, match="recover") as raised:
        restore(source, target, BUILT_IN)
    assert str(source) in str(raised.value)
    source.write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"bad\.backup") as raised:
        restore(source, target, BUILT_IN)
    assert ".eventstore-" not in str(raised.value)
    with closing(sqlite3.connect(tmp_path / "newer.db")) as newer:
        source.write_bytes(content)
        with closing(sqlite3.connect(source)) as old:
            old.backup(newer)
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(SchemaTooNew, match=r"newer\.db"):
        restore(tmp_path / "newer.db", target, BUILT_IN)
    assert not target.exists()


def test_the_commands(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.db"
    done = invoke("backup", target, "--db", copy, "--format", "json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert (document["target"], document["clean"]) == (str(target), True)
    assert document["size_bytes"] == target.stat().st_size
    assert "exists" in invoke("backup", target, "--db", copy).stderr
    assert invoke("backup", target, "--db", copy, "--overwrite").exit_code == 0
    assert invoke("restore", target, "--db", tmp_path / "new.db").exit_code == 0
    assert "--overwrite" in invoke("restore", target, "--db", copy).stderr
    done = invoke("restore", target, "--db", copy, "--overwrite")
    assert (done.exit_code, "Pass --yes" in done.stderr) == (2, True)
    done = invoke("restore", target, "--db", copy, "--overwrite", "--yes")
    assert (done.exit_code, "Clean." in done.stdout) == (0, True)
    assert sessions(copy) == len(LIVE) + 2


def test_an_interrupted_backup_leaves_nothing(copy: Path, tmp_path: Path) -> None:
    program = """
import os, signal, sys, threading
from eventstore.sqlite import store as module
module._COPY_PAGES = 1
def strike(*_):
    os.kill(os.getpid(), signal.SIGINT)
real = module.SqliteEventStore.copy_to
def copy_to(self, path):
    threading.Timer(0.0, strike).start()
    return real(self, path)
module.SqliteEventStore.copy_to = copy_to
from projections.cli import main
main(["backup", sys.argv[2], "--db", sys.argv[1]])
"""
    target = tmp_path / "b.db"
    done = subprocess.run([sys.executable, "-c", program, copy, target], timeout=60)
    assert done.returncode in (130, 0)
    assert target.exists() == (done.returncode == 0)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".eventstore")]

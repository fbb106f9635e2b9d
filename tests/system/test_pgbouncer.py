"""PostgreSQL behind PgBouncer in transaction mode: each transaction may run on another connection.

Not part of `make test`, as it needs PgBouncer; `make test-system` brings it.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adk_adapter import DatabaseSessionService
from eventstore import open_store
from projections import BUILT_IN, rebuild
from tests.contention.workers import APP, USER, event
from tests.postgres.faults import writing
from tests.postgres.server import Server, execute, free_port, servers, unprivileged
from tests.postgres.workload import Oracle, check

CONNECTIONS = 3
"""Fewer than there are connections to the pooler."""
CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={server}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
admin_users = postgres
pool_mode = transaction
default_pool_size = {connections}
max_client_conn = 100
server_login_retry = 1
"""


class Pooler:
    """A PgBouncer in front of a server."""

    def __init__(self, server: Server) -> None:
        program = shutil.which(
            "pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"
        )
        assert program, "there is no pgbouncer: make test-system installs it"
        self._program = program
        self.port = free_port()
        self._settings = server.folder / "pgbouncer.ini"
        users = server.folder / "users.txt"
        users.write_text('"postgres" ""\n')
        self._settings.write_text(
            CONFIGURATION.format(
                server=server.port, port=self.port, users=users, connections=CONNECTIONS
            )
        )
        self._log = server.folder / "pgbouncer.log"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._settings], stdout=log, stderr=log, **unprivileged()
            )
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except OSError:
                assert self._process.poll() is None, self._log.read_text()
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(30)


@contextmanager
def pooled() -> Iterator[tuple[Server, Pooler]]:
    with servers() as room:
        server = room.add()
        pooler = Pooler(server)
        pooler.start()
        try:
            yield server, pooler
        finally:
            pooler.kill()


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Server, Pooler]]:
    with pooled() as made:
        yield made


def test_processes_write_beside_a_rebuild(both: tuple[Server, Pooler]) -> None:
    _, pooler = both
    target, oracle = f"{pooler.url()}?schema=busy", Oracle()
    asyncio.run(DatabaseSessionService(target).aclose())
    with writing(target, oracle, processes=3, tasks=3, seed=1):
        oracle.wait_for_all(9, time.monotonic())
        store = open_store(target, BUILT_IN)
        rebuild(store, BUILT_IN)
        store.close()
        oracle.wait_for_all(9, time.monotonic())
    assert not asyncio.run(check(target, oracle))
    assert not oracle.count["unknown"]
    assert not oracle.count["refused"]


async def test_nothing_is_left_on_the_servers_connections(both: tuple[Server, Pooler]) -> None:
    server, pooler = both
    # What each of the server's connections is like that had nothing to do yet.
    fresh = _settings(server.url())
    target = f"{pooler.url()}?schema=tidy&statement_timeout=7&lock_timeout=6"
    async with DatabaseSessionService(target) as service:
        sessions = [await service.create_session(APP, USER) for _ in range(4)]
        for number in range(8):
            await asyncio.gather(
                *(service.append_event(s, event(f"{s.id}/{number}", n=number)) for s in sessions)
            )
        await asyncio.gather(*(service.get_session(APP, USER, s.id) for s in sessions))
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):  # at once, so that each connection is asked
            group.create_task(asyncio.to_thread(_looks_as, fresh, pooler.url()))
    locks = execute(server.url(), "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
    assert [tuple(row) for row in locks] == [(0,)]


def _settings(url: str, *before: str) -> list[tuple[str, str]]:
    rows = execute(
        url,
        *before,
        "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name IN "
        "('search_path', 'lock_timeout', 'statement_timeout', 'synchronous_commit', "
        "'idle_in_transaction_session_timeout', 'default_transaction_isolation')",
    )
    return [(name, setting) for name, setting in rows]


def _looks_as(fresh: list[tuple[str, str]], url: str) -> None:
    assert _settings(url, "SELECT pg_sleep(0.2)") == fresh
    left = execute(
        url,
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%stream%'",
    )
    assert [tuple(row) for row in left] == [(0,)]


def test_a_pooler_that_is_killed_is_found_again() -> None:
    with pooled() as (_, pooler):
        target, oracle = f"{pooler.url()}?schema=killed", Oracle()
        asyncio.run(DatabaseSessionService(target).aclose())
        with writing(target, oracle, processes=2, tasks=3, seed=2):
            for _ in range(3):
                oracle.wait_for_all(6, time.monotonic())
                pooler.kill()
                pooler.start()
            oracle.wait_for_all(6, time.monotonic())
        assert not asyncio.run(check(target, oracle))

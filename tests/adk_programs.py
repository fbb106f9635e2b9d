"""ADK's own programs, run as people run them: real processes with the example agents.

They get a copy of the examples and a home of their own, so that nothing of what they leave behind
(logs, artifacts, their settings) ends up in the repository or in anybody's home.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
ADK = Path(sys.executable).with_name("adk")
START_SECONDS = 60
STOP_SECONDS = 30
# What would make ADK or the agent choose another model or session service than the one asked for.
UNWANTED = ("ADK_", "GOOGLE_", "GEMINI_", "K_SERVICE", "KUBERNETES_", "PYTHONWARNINGS")


@dataclass
class Workplace:
    """A folder to run ADK's programs in, with the examples and a database in it."""

    folder: Path

    @property
    def agents(self) -> Path:
        return self.folder / "examples"

    @property
    def agent(self) -> Path:
        return self.agents / "data_science"

    @property
    def database(self) -> Path:
        return self.folder / "sessions.db"

    @property
    def uri(self) -> str:
        """The database, relative to the folder that the programs are run in."""
        return f"eventstore+sqlite:///{self.database.name}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(UNWANTED)}
        home = str(self.folder / "home")
        return {**kept, "HOME": home, "USERPROFILE": home, "TMPDIR": home, "PYTHONUTF8": "1"}

    def adk(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a program to its end, with what somebody types into it."""
        return subprocess.run(
            [ADK, *arguments],
            cwd=self.folder,
            env=self.environment,
            input=typed,
            capture_output=True,
            encoding="utf-8",
            timeout=START_SECONDS,
            check=False,
        )

    @contextmanager
    def serving(self, program: str, port: int) -> Iterator[httpx.Client]:
        """Runs `adk web` or `adk api_server` for as long as the block lasts."""
        log = self.folder / f"{program}.log"
        options = ["--port", str(port), "--session_service_uri", self.uri]
        with (
            log.open("ab") as output,
            subprocess.Popen(
                [ADK, program, *options, self.agents],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            ) as process,
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=START_SECONDS, trust_env=False
            ) as client,
        ):
            try:
                wait_until_it_answers(process, client, log)
                yield client
                assert process.poll() is None, log.read_text()
                process.terminate()
                process.wait(STOP_SECONDS)
            finally:
                process.kill()


def wait_until_it_answers(
    process: subprocess.Popen[bytes], client: httpx.Client, log: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def workplace(folder: Path) -> Workplace:
    shutil.copytree(
        ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", ".adk")
    )
    (folder / "home").mkdir()
    return Workplace(folder)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])

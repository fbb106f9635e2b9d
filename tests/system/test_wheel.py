"""The wheel, installed into an empty environment: what people get who install the package.

Not part of `make test`, as it installs from a package index; `make test-system` runs it with the
oldest and the newest Python at hand, which PYTHONS names.
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHONS = os.environ.get("PYTHONS", sys.executable).split()

NO_TEST_TOOLS = "import importlib.util; assert not importlib.util.find_spec('pytest')"
FIRST = """
import asyncio
from adk_adapter import DatabaseSessionService
from google.adk.events import Event, EventActions

async def main():
    async with DatabaseSessionService("sessions.db") as service:
        session = await service.create_session("app", "user", "s", {"step": 1})
        actions = EventActions(state_delta={"step": 2, "user:name": "Ada"})
        event = Event(author="user", invocation_id="i", actions=actions)
        await service.append_event(session, event)

asyncio.run(main())
"""
AFTER_A_RESTART = """
import asyncio
from adk_adapter import DatabaseSessionService

async def main():
    async with DatabaseSessionService("sessions.db") as service:
        session = await service.get_session("app", "user", "s")
        print(len(session.events), session.state)
        assert (await service.verify()).clean

asyncio.run(main())
"""


def run(command: list[object], folder: Path) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ADK_"))}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=kept, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", ROOT], folder)
    (made,) = folder.glob("*.whl")
    return made


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = [name for name in names if name.endswith("/METADATA")]
        metadata = email.message_from_bytes(archive.read(about))
    packages = {name.partition("/")[0] for name in names}
    assert {p for p in packages if not p.endswith(".dist-info")} == {
        "adk_adapter",
        "eventstore",
        "projections",
    }
    for package in ("adk_adapter", "eventstore", "projections"):
        assert f"{package}/py.typed" in names
    assert "eventstore/sqlite/queries.sql" in names
    assert "testing" in metadata.get_all("Provides-Extra", [])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload()
    assert isinstance(page, str)
    assert page.lstrip().startswith("# adk-eventstore")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_it_works_without_anything_else(wheel: Path, python: str, tmp_path: Path) -> None:
    run([python, "-m", "venv", tmp_path / "env"], tmp_path)
    there = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    run([there / "pip", "install", "--quiet", "--no-compile", wheel], tmp_path)
    run([there / "pip", "check"], tmp_path)
    here = tmp_path / "work"
    here.mkdir()
    run([there / "python", "-c", NO_TEST_TOOLS], here)
    run([there / "python", "-c", FIRST], here)
    said = run([there / "python", "-c", AFTER_A_RESTART], here)
    assert said == "1 {'step': 2, 'user:name': 'Ada'}\n"
    said = run([there / "rebuild-projections", "--db", "sessions.db"], here)
    assert "state" in said
    run([there / "adk-eventstore", "verify", "--db", "sessions.db"], here)
    assert run([there / "python", "-c", AFTER_A_RESTART], here).startswith("1 ")

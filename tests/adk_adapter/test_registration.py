"""ADK's own programs use the service: by its registry, its two kinds of file, and in processes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.adk.cli import service_registry
from google.adk.cli.utils.service_factory import create_session_service_from_options
from google.adk.sessions import BaseSessionService

from adk_adapter import DatabaseSessionService, register
from eventstore.errors import PathUnusable, StoreUnusable
from tests.adk_programs import Workplace, free_port, workplace

SERVICES_PY = "import adk_adapter\n\nadk_adapter.register()\n"
SERVICES_YAML = """\
services:
  - {scheme: eventstore+sqlite, type: session, class: adk_adapter.DatabaseSessionService}
"""
SESSIONS = "/apps/data_science/users/ada/sessions"
WORK = ["Load penguins.csv and summarise it.", "Train a model of the species. Evaluate it."]
LOADED = "penguins.csv has 344 rows and 8 columns; 11 rows have missing values."
LAST = "What was the last thing you did?"


@pytest.fixture(autouse=True)
def adk_as_it_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registry with nothing of ours in it, and an import path that is put back."""
    monkeypatch.setattr(service_registry, "_service_registry_instance", None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "services", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return workplace(tmp_path)


def by_call(folder: Path) -> None:
    register()


def by_yaml(folder: Path) -> None:
    (folder / "services.yaml").write_text(SERVICES_YAML)
    service_registry.load_services_module(str(folder))


def by_python(folder: Path) -> None:
    (folder / "services.py").write_text(SERVICES_PY)
    service_registry.load_services_module(str(folder))


def create(uri: str, folder: Path, **options: Any) -> DatabaseSessionService:
    """Asks ADK for a session service, as its programs do."""
    service: BaseSessionService = create_session_service_from_options(
        base_dir=folder, session_service_uri=uri, session_db_kwargs=options
    )
    assert type(service) is DatabaseSessionService
    return service


@pytest.mark.parametrize("announce", [by_call, by_yaml, by_python])
async def test_adk_makes_the_service_of_a_uri(
    announce: Callable[[Path], None], tmp_path: Path
) -> None:
    announce(tmp_path)
    for uri, path in [
        ("eventstore+sqlite:///relative.db", "relative.db"),
        # Four slashes: the path itself begins with one.
        (f"eventstore+sqlite:///{tmp_path}/absolute.db", "absolute.db"),
        ("eventstore+sqlite:///with%20space/and%3Fmark.db", "with space/and?mark.db"),
    ]:
        async with create(uri, tmp_path) as service:
            await service.create_session(app_name="a", user_id="u")
            assert service.get_stats()["path"] == str(tmp_path / path)
            assert (tmp_path / path).stat().st_size


async def test_the_options_of_the_application_reach_the_service(tmp_path: Path) -> None:
    register()
    uri = "eventstore+sqlite:///sessions.db"
    async with create(uri, tmp_path, durability="full") as service:
        assert service.get_stats()["durability"] == "full"
    with pytest.raises(TypeError, match="pool_size"):
        create(uri, tmp_path, pool_size=5)


async def test_it_takes_the_place_of_the_service_adk_has(tmp_path: Path) -> None:
    register("sqlite", "sqlite+aiosqlite")
    for uri in ("sqlite:///sessions.db", "sqlite+aiosqlite:///sessions.db"):
        async with create(uri, tmp_path) as service:
            assert service.get_stats()["path"] == str(tmp_path / "sessions.db")


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    uri = "eventstore+sqlite:///sessions.db"
    with pytest.raises(ValueError, match="URL"):
        create(uri, tmp_path)  # nobody registered it
    register()
    with pytest.raises(ValueError, match="URL"):
        create("eventstore+papyrus:///sessions.db", tmp_path)
    with pytest.raises(PathUnusable, match="three slashes"):
        create("eventstore+sqlite://sessions.db", tmp_path)
    (tmp_path / "file").write_text("a file where a folder should be")
    with pytest.raises(StoreUnusable):
        create("eventstore+sqlite:///file/sessions.db", tmp_path)
    register("eventstore+papyrus")
    with pytest.raises(PathUnusable, match="scheme"):
        create("eventstore+papyrus:///sessions.db", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_import_leaves_adks_programs_alone() -> None:
    program = "import sys, adk_adapter; assert 'google.adk.cli' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_api_server(place: Workplace) -> None:
    port = free_port()
    session = f"{SESSIONS}/s1"
    with place.serving("api_server", port) as adk:
        state = {"step": 1, "user:name": "Ada"}
        made = adk.post(SESSIONS, json={"sessionId": "s1", "state": state}).raise_for_status()
        assert made.json()["state"] == state
        assert adk.post(SESSIONS, json={"sessionId": "s1"}).status_code == httpx.codes.CONFLICT
        for request in WORK:
            run(adk, request)
        delta = {"step": 2, "app:season": "spring", "temp:scratch": True}
        patched = adk.patch(session, json={"stateDelta": delta}).raise_for_status()
        assert patched.json()["state"].items() >= {**delta, "user:name": "Ada"}.items()
        before = adk.get(session).raise_for_status().json()
        listed = adk.get(SESSIONS).raise_for_status().json()
        assert [found["id"] for found in listed] == ["s1"]

    with place.serving("api_server", port) as adk:
        assert adk.get(session).raise_for_status().json() == before
        assert adk.get(SESSIONS).raise_for_status().json() == listed
        assert len(before["events"]) == 13
        assert before["state"]["step"] == 2
        assert before["state"]["app:season"] == "spring"
        assert before["state"]["user:models_trained"] == 1
        assert not any(key.startswith("temp:") for key in before["state"])
        assert "It is right on" in run(adk, LAST)
        adk.delete(session).raise_for_status()
        assert adk.get(session).status_code == httpx.codes.NOT_FOUND
        assert adk.get(SESSIONS).raise_for_status().json() == []
        assert adk.post("/run", json=message("anything")).status_code == httpx.codes.NOT_FOUND
        again = adk.post(SESSIONS, json={"sessionId": "s1"}).raise_for_status().json()
        assert again["events"] == []
        assert again["state"].items() >= {"user:name": "Ada", "app:season": "spring"}.items()
        assert "step" not in again["state"]


def run(adk: httpx.Client, text: str) -> str:
    """Lets the agent answer; the last thing it said."""
    events = adk.post("/run", json=message(text)).raise_for_status().json()
    return str(events[-1]["content"]["parts"][-1]["text"])


def message(text: str) -> dict[str, Any]:
    content = {"role": "user", "parts": [{"text": text}]}
    return {"appName": "data_science", "userId": "ada", "sessionId": "s1", "newMessage": content}


async def test_adk_run(place: Workplace) -> None:
    arguments = ["run", "--session_service_uri", place.uri]
    typed = place.adk(*arguments, str(place.agent), typed="\n".join([*WORK, "exit", ""]))
    assert typed.returncode == 0, typed.stderr
    assert LOADED in typed.stdout
    async with DatabaseSessionService(place.database) as service:
        (found,) = await service.list_sessions(app_name="data_science")

    # Another process goes on with the session.
    asked = place.adk(*arguments, "--session_id", found.id, str(place.agent), LAST)
    assert asked.returncode == 0, asked.stderr
    assert re.search(r"the last thing I did. It is right on [\d.]+%", asked.stdout)
    async with DatabaseSessionService(place.database) as service:
        (session,) = await service.list_sessions(app_name="data_science")
        assert session.state.keys() >= {"dataset", "model", "user:models_trained"}
        loaded = await service.get_session("data_science", session.user_id, session.id)
    assert loaded is not None
    said = [event.content for event in loaded.events if event.author == "user"]
    assert [c.parts[0].text for c in said if c and c.parts] == [*WORK, LAST]

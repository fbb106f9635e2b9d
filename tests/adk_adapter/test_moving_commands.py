"""`adk-eventstore import` and `export` as people and programs run them."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from google.adk.events import Event
from google.adk.sessions import Session
from google.genai import types

from adk_adapter import DatabaseSessionService, SessionNotFoundError
from adk_adapter.cli import main
from eventstore import ValueNotStorable
from tests.adk_programs import workplace

OLD = Path(__file__).parent / "old_files"
pytestmark = pytest.mark.filterwarnings("ignore:This method is deprecated:DeprecationWarning")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def document(*arguments: object) -> dict[str, Any]:
    done = invoke(*arguments, "--format", "json")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A database with the sessions of an old file."""
    path = tmp_path / "new.db"
    assert invoke("import", OLD / "sqlite-1.39.1.db", "--db", path).exit_code == 0
    return path


def test_an_import_is_a_document_with_the_same_keys_each_time(tmp_path: Path) -> None:
    source, target = OLD / "sqlite-1.39.1.db", tmp_path / "new.db"
    dry = document("import", source, "--db", target, "--dry-run")
    assert not target.exists()
    taken = document("import", source, "--db", target)
    assert {**dry, "dry_run": False} == taken
    assert taken["sources"] == [
        {
            "source": str(source),
            "kind": "ADK's SqliteSessionService",
            "sessions": 4,
            "grown": 0,
            "there": 0,
            "deleted_here": 0,
            "events": 15,
            "keys": 6,
            "orphans": 0,
            "left_out_count": 0,
            "left_out": [],
        }
    ]
    (again,) = document("import", source, "--db", target)["sources"]
    assert (again["sessions"], again["there"], again["events"], again["keys"]) == (0, 4, 0, 0)


def test_what_was_left_out_is_said_and_is_an_exit_code(tmp_path: Path) -> None:
    source = tmp_path / "old.db"
    shutil.copy(OLD / "database-1.0.0.db", source)
    with closing(sqlite3.connect(source, isolation_level=None)) as connection:
        stored = pickle.dumps({"state_delta": {"secret": eval}})
        connection.execute("UPDATE events SET actions = ? WHERE id = 'first-2'", (stored,))
        connection.execute("UPDATE events SET id = 'a' || char(10) || 'b' WHERE id = 'first-0'")
        connection.execute("UPDATE events SET content = '[' WHERE id LIKE 'a%'")
    done = invoke("import", source, "--db", tmp_path / "new.db", "--timezone", "UTC")
    assert done.exit_code == 1
    lines = [line for line in done.stdout.splitlines() if "left out" in line]
    assert len(lines) == 2  # an id is no reason for a line of its own
    assert "event first-2" in done.stdout
    assert "it names builtins.eval" in done.stdout
    assert "secret" not in done.output


def test_the_folder_of_agents(tmp_path: Path) -> None:
    for n, agent in enumerate(("one", "two")):
        (tmp_path / agent / ".adk").mkdir(parents=True)
        old = ("sqlite-1.39.1.db", "sqlite-1.22.1.db")[n]
        shutil.copy(OLD / old, tmp_path / agent / ".adk" / "session.db")
    done = document("import", tmp_path, "--db", tmp_path / "new.db")
    assert [each["sessions"] for each in done["sources"]] == [4, 0]
    assert done["sources"][1]["there"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "none.db"], "does not exist"),
        (["import", "text.txt"], "is not a SQLite database"),
        (["import", "empty"], "has no table"),
        (["import", "folder"], "has no agent"),
        (["import", "new.db"], "is a database of this package"),
        (["import", "mysql://u:hidden@h/d"], "cannot read"),
        (["import", "postgresql://u:hidden@127.0.0.1:1/d?connect_timeout=1"], "cannot be read"),
        (["import", str(OLD / "sqlite-1.39.1.db"), "--timezone", "Nowhere"], "no time zone"),
        (["export", "x", "--session", "s"], "--session needs"),
        (["export", "x", "--user", "u"], "--user needs"),
        (["export", "x", "--as", "session"], "--as session needs"),
        (["export", "x", "--app", "none"], "does not exist"),
        (["export", "text.txt"], "exists"),
        (["copy", "new.db", "new.db"], "has events of its own"),
        (["copy", "new.db", "text.txt"], "is not a SQLite database"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_what_cannot_be_done_is_said_with_a_remedy(
    words: list[str], said: str, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("precious" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    done = invoke(*words, "--db", db)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "hidden" not in done.output
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "text.txt").read_text() == "precious" * 100


def test_the_error_of_the_service_names_the_import_that_works(tmp_path: Path) -> None:
    shutil.copy(OLD / "sqlite-1.39.1.db", tmp_path / "old.db")
    with pytest.raises(Exception, match="adk-eventstore import") as refused:
        DatabaseSessionService(tmp_path / "old.db")
    words = str(refused.value).partition("adk-eventstore ")[2].strip(". \n").split()
    assert invoke(*words, "--db", tmp_path / "new.db").exit_code == 0


def test_an_export_comes_back(db: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "all.jsonl", tmp_path / "other.db"
    done = document("export", out, "--db", db)
    assert (done["events"], done["streams"], done["size_bytes"]) == (27, 9, out.stat().st_size)
    assert invoke("export", out, "--db", db).exit_code == 2
    assert invoke("export", out, "--db", db, "--overwrite").exit_code == 0
    dry = document("import", out, "--db", other, "--dry-run")
    assert not other.exists()
    taken = document("import", out, "--db", other)
    assert dry["events"] == taken["events"] == 27
    assert taken["root"] == done["root"]
    assert invoke("verify", "--db", other).exit_code == 0
    assert document("import", out, "--db", other)["there"] > 0
    copied = document("copy", db, tmp_path / "copy.db")
    assert copied["root"] == done["root"]
    dry = document("copy", db, tmp_path / "none.db", "--dry-run")
    assert (dry["events"], (tmp_path / "none.db").exists()) == (27, False)


def test_a_dry_run_does_not_migrate(db: Path, tmp_path: Path) -> None:
    assert invoke("export", tmp_path / "all.jsonl", "--db", db).exit_code == 0
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 1")
    content = db.read_bytes()
    for words in (
        ["import", OLD / "sqlite-1.39.1.db", "--db", db],
        ["import", tmp_path / "all.jsonl", "--db", db],
        ["export", tmp_path / "x", "--db", db],
        ["copy", db, tmp_path / "x"],
    ):
        done = invoke(*words, "--dry-run")
        assert (done.exit_code, "adk-eventstore migrate" in done.stderr) == (2, True)
    assert db.read_bytes() == content


def test_a_password_in_a_url_is_not_shown(db: Path) -> None:
    """Not even one with characters that should have been written as %XX."""
    for secret, url in ("se@cr/et", "mysql://me@localhost/x"), ("se?cr", "mysql://..."):
        done = invoke("import", f"mysql://me:{secret}@localhost/x", "--db", db)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"adk-eventstore import: {url} names a database")


@pytest.mark.parametrize("form", ["log", "session", "eval-set"])
def test_a_dry_run_of_an_export_changes_nothing(db: Path, tmp_path: Path, form: str) -> None:
    """Nor does it bring projections up to the head, as a service that is opened does."""
    assert invoke("projections", "run", "usage", "--db", db).exit_code == 0
    session = ("--app", "shop", "--user", "ada", "--session", "first")
    assert invoke("sessions", "title", "first", "Tee", "--db", db).exit_code == 0
    before, target = db.read_bytes(), tmp_path / "folder" / "exported"
    words = ("export", target, "--as", form, "--db", db, *session)
    dry = document(*words, "--dry-run")
    assert (db.read_bytes(), target.parent.exists()) == (before, False)
    assert {**dry, "dry_run": False} == document(*words)
    assert target.stat().st_size == dry["size_bytes"]


# What ADK reads.


def test_a_session_file_is_read_by_adk_run(db: Path, tmp_path: Path) -> None:
    place = workplace(tmp_path)
    file = tmp_path / "saved.session.json"
    words = ("--app", "shop", "--user", "ada", "--session", "first", "--db", db)
    assert invoke("export", file, "--as", "session", *words).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    loaded = Session.model_validate_json(file.read_text())

    async def load() -> Session | None:
        async with DatabaseSessionService(db) as service:
            return await service.get_session("shop", "ada", "first")

    session = asyncio.run(load())
    assert session is not None
    assert loaded.model_dump() == session.model_dump()
    resumed = place.adk(
        "run",
        *("--session_service_uri", place.uri, "--resume", str(file), "examples/data_science"),
        typed="exit\n",
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "Tee, bitte" in resumed.stdout


def test_an_eval_set_is_read_by_adks_own_loader(db: Path, tmp_path: Path) -> None:
    from google.adk.evaluation.local_eval_sets_manager import load_eval_set_from_file

    file = tmp_path / "first.evalset.json"
    words = ("--app", "shop", "--user", "ada", "--session", "first", "--db", db)
    assert invoke("export", file, "--as", "eval-set", *words).exit_code == 0
    (case,) = load_eval_set_from_file(str(file), "first").eval_cases
    assert case.session_input is not None
    assert case.session_input.state["theme"] == "dark"
    assert case.conversation is not None
    (invocation,) = case.conversation
    assert invocation.user_content.parts[0].text == "Tee, bitte ☕"
    assert invocation.final_response.parts[0].text == "Packed."
    assert "price" in file.read_text()


async def test_both_are_methods_too(db: Path, tmp_path: Path) -> None:
    async with DatabaseSessionService(db) as service:
        text = await service.session_as("shop", "ada", "first")
        assert Session.model_validate_json(text).id == "first"
        with pytest.raises(SessionNotFoundError):
            await service.session_as("shop", "ada", "none")
        with pytest.raises(ValueError, match="not 'evalset'"):
            await service.session_as("shop", "ada", "first", "evalset")  # type: ignore[arg-type]
        done = await service.export(tmp_path / "app.jsonl", "shop")
        assert done.events == 25
    dry = invoke("import", tmp_path / "app.jsonl", "--db", tmp_path / "other.db", "--dry-run")
    assert dry.exit_code == 0


def test_what_needs_no_adk_imports_none(db: Path, tmp_path: Path) -> None:
    for words in (["export", "x.jsonl"], ["import", "x.jsonl"], ["verify", "--help"]):
        code = (
            "import sys; from adk_adapter.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "except SystemExit as end: assert end.code == 0, end.code\n"
            "assert 'google' not in sys.modules"
        )
        command = [sys.executable, "-c", code, *words, "--db", str(db)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_export_never_replaces_a_database_or_what_is_beside_one(
    db: Path, tmp_path: Path
) -> None:
    before = db.read_bytes()
    words = ("--app", "shop", "--user", "ada", "--session", "first", "--db", db)
    (tmp_path / "precious.txt").write_text("precious")
    for target in (db, f"{db}-wal", f"{db}-gate", f"{db}-maintenance", "/dev/stdout"):
        for more in ([], ["--as", "session", *words[:-2]]):
            done = invoke("export", target, "--db", db, "--overwrite", *more)
            assert (done.exit_code, "Name a" in done.stderr) == (2, True), target
        done = invoke("verify", "--db", db, "--anchor", target)
        assert (done.exit_code, "Name a" in done.stderr) == (2, True), target
    assert invoke("backup", f"{db}-wal", "--db", db, "--overwrite").exit_code == 2
    done = invoke("verify", "--db", db, "--anchor", tmp_path / "precious.txt")
    assert (done.exit_code, "no anchor" in done.stderr) == (2, True)
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert db.read_bytes() == before
    for _ in range(2):  # an old anchor is replaced
        assert invoke("verify", "--db", db, "--anchor", tmp_path / "anchor").exit_code == 0


@pytest.mark.parametrize("form", ["session", "eval-set"])
def test_a_session_as_a_file_is_no_log_to_import(form: str, db: Path, tmp_path: Path) -> None:
    words = ("--app", "shop", "--user", "ada", "--session", "first", "--db", db)
    assert invoke("export", tmp_path / "one.json", "--as", form, *words).exit_code == 0
    done = invoke("import", tmp_path / "one.json", "--db", db)
    assert (done.exit_code, "export it without --as" in done.stderr) == (2, True)


def test_a_session_that_is_not_there_as_a_file(db: Path, tmp_path: Path) -> None:
    words = ("--app", "shop", "--user", "ada", "--session", "none", "--db", db)
    done = invoke("export", tmp_path / "x", "--as", "session", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "'none'" in done.stderr


async def test_a_session_that_adks_json_cannot_hold_as_a_file(tmp_path: Path) -> None:
    async with DatabaseSessionService(tmp_path / "a.db") as service:
        await service.create_session("app", "ada", "odd", {"k": "\ud800"})
        with pytest.raises(ValueError, match="session 'odd'"):
            await service.session_as("app", "ada", "odd")


async def test_a_number_that_adks_json_cannot_hold_as_a_file(tmp_path: Path) -> None:
    scores = [types.GroundingSupport(confidence_scores=[0.5, float("nan")])]
    event = Event(
        author="agent",
        invocation_id="one",
        content=types.Content(role="model", parts=[types.Part(text="Perhaps.")]),
        grounding_metadata=types.GroundingMetadata(grounding_supports=scores),
    )
    async with DatabaseSessionService(tmp_path / "a.db") as service:
        session = await service.create_session(app_name="app", user_id="ada", session_id="odd")
        await service.append_event(session, event)
        with pytest.raises(ValueNotStorable, match="session 'odd'"):
            await service.session_as("app", "ada", "odd")

"""The demo does what it says, and leaves a file that can be read with SQL."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ("load_csv", "summarise", "train_model", "evaluate_model", "predict")


@dataclass
class Told:
    """What the demo printed, and the file it left."""

    output: str
    db: sqlite3.Connection


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    db = tmp_path_factory.mktemp("demo") / "new folder" / "demo.sqlite3"
    done = subprocess.run(
        [sys.executable, "-m", "examples.data_science.demo", "--db", str(db)],
        cwd=ROOT,
        # Wide enough for no claim to be wrapped; no key, with which the model would be Gemini.
        env={k: v for k, v in os.environ.items() if k != "GOOGLE_API_KEY"} | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    with closing(sqlite3.connect(db)) as connection:
        yield Told(done.stdout, connection)


def test_a_process_is_killed_while_it_works(told: Told) -> None:
    assert "was killed, on the spot" in told.output
    assert "its agent had yet to say so" in told.output


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_is_called_and_answers(told: Told, tool: str) -> None:
    assert f"calls {tool}(" in told.output
    assert any(line.split(maxsplit=1)[:1] == [tool] for line in told.output.splitlines())


def test_nothing_is_lost_in_the_kill(told: Told) -> None:
    after_the_kill = told.output.partition("Another process")[2]
    assert "all 15 events are there, whole and in order" in after_the_kill
    assert "all 7 state keys have the value they were given" in after_the_kill
    assert "the trained model's record is the same, to the digit" in after_the_kill
    assert "session, user and app state are there" in after_the_kill


def test_the_conversation_goes_on(told: Told) -> None:
    assert "all 25 events are there, whole and in order" in told.output
    assert "This is the last thing I did. I trained a gaussian naive bayes model" in told.output
    assert "That is most likely a Chinstrap penguin" in told.output


@pytest.mark.parametrize("table", ["adk_sessions", "adk_events", "adk_state"])
def test_a_rebuild_changes_nothing(told: Told, table: str) -> None:
    assert f"{table} is as it was" in told.output


def test_sessions_can_be_read_with_sql(told: Told) -> None:
    assert len(told.db.execute("SELECT * FROM adk_sessions;").fetchall()) == 11


def test_events_can_be_read_with_sql(told: Told) -> None:
    rows = told.db.execute(
        "SELECT invocation_id, author, timestamp FROM adk_events ORDER BY id DESC LIMIT 10;"
    ).fetchall()
    assert len(rows) == 10
    assert {author for _, author, _ in rows} == {"user", "data_scientist"}
    assert all(invocation and timestamp for invocation, _, timestamp in rows)


def test_state_in_all_three_scopes_can_be_read_with_sql(told: Told) -> None:
    rows = told.db.execute("SELECT scope, state_key, state_value FROM adk_state;").fetchall()
    assert {scope for scope, _, _ in rows} == {"session", "user", "app"}
    assert all(value is not None for _, _, value in rows)
    assert not any("training_seconds" in key for _, key, _ in rows)

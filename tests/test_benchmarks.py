import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from benchmarks.appending import measure
from benchmarks.document import PAGE, document
from benchmarks.loading import stages
from benchmarks.prefill import Shape, prefill

ROOT = Path(__file__).parent.parent
READERS = {"adk_eventstore", "memory", "sqlite", "database"}
WRITERS = {*READERS, "adk_eventstore_full"}
MEASURED = {
    **dict.fromkeys(["create_session", "update_keys", "at_once"], WRITERS),
    **dict.fromkeys(["get_50", "get_1000", "get_1000_read", "get_empty"], READERS),
    **dict.fromkeys(["list_sessions", "turns", "turns_read"], READERS),
    **dict.fromkeys(["tail_of_100", "tail_of_5000", "tail_of_100000"], READERS),
    **{row: {"adk_eventstore"} for row in ("load_memory", "idle", "import")},
    "append_event": {*WRITERS, "sqlite3"},
    "processes": WRITERS - {"memory"},
    "idle_loop": {"machine"},
}
CONVERSATION = [
    {"role": "user", "content": "Which two are open?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "1", "function": {"name": "look", "arguments": '{"at": "first"}'}},
            {"id": "2", "function": {"name": "look", "arguments": '{"at": "second"}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "1", "name": "look", "content": '{"open": true}'},
    {"role": "tool", "tool_call_id": "2", "name": "look", "content": "not found"},
    {"role": "assistant", "content": "Only the first."},
]


def test_the_page_shows_the_kept_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert document(page) == page, "run: make bench-page"


def test_measures_every_row_and_judges_every_goal(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    conversations = tmp_path / "conversations.jsonl"
    conversations.write_text(json.dumps({"conversation": "1", "messages": CONVERSATION}) + "\n")
    environment = {
        # In a worker of pytest-xdist no benchmark would be run.
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        "ADK_BENCH_CONVERSATIONS": str(conversations),
        "PYTHONUTF8": "1",
        "FORCE_COLOR": "",
    }

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", str(kept)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    measured = json.loads(kept.read_text())
    assert {row: set(found) for row, found in measured["figures"].items()} == MEASURED
    errors = {
        row: found["adk_eventstore"]["errors"]
        for row, found in measured["figures"].items()
        if row in ("at_once", "processes", "turns")
    }
    assert errors == {"at_once": 0, "processes": 0, "turns": 0}
    assert measured["pragmas"]["adk_eventstore"] == "journal_mode=WAL, synchronous=NORMAL"
    assert "from real conversations" in measured["facts"]["events"]
    assert str(tmp_path) not in kept.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert "of 34 goals are met" in run.stdout
    assert "cannot be judged" not in run.stdout


def test_measures_what_an_append_cannot_do_without(tmp_path: Path) -> None:
    measured = asyncio.run(measure(tmp_path, 40))
    assert len(measured) == 7
    assert all(microseconds > 0 for microseconds in measured.values())


def test_measures_what_loading_is_made_of(tmp_path: Path) -> None:
    prefill(tmp_path / "a.sqlite3", sessions=0, events=0, named={"one": Shape(30)})
    with closing(sqlite3.connect(tmp_path / "a.sqlite3", isolation_level=None)) as connection:
        for what, function in stages(connection).items():
            made = function()
            assert isinstance(made, list), what
            assert len(made) >= 30, what


def test_measures_a_rebuild_alone_and_beside_writers(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    command = "-m benchmarks.rebuild --events 3000 --seconds 0.2"
    run = subprocess.run(
        [sys.executable, *command.split(), "--json", str(kept), "--folder", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    measured = json.loads(kept.read_text())
    assert measured["events"] == 3060
    for figure in ("bare_us", "rebuild_us", "verify_us", "eventsourcing_us", "peak_mb"):
        assert measured[figure] > 0
    assert measured["writers_beside"]["appends"] > 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_measures_on_a_server_beside_adk_and_pgbench(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    sizes = [
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--events",
        "300",
        "--sessions",
        "5",
        "--long",
        "20",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.postgres", *sizes, "--json", str(kept)],
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    measured = json.loads(kept.read_text())
    assert {row: set(found) for row, found in measured["figures"].items()} == {
        "alone": {"adk_eventstore", "database", "pgbench"},
        "at_16": {"adk_eventstore", "database", "pgbench"},
        "get_1000": {"adk_eventstore", "database"},
        "get_1000_read": {"adk_eventstore", "database"},
    }
    assert measured["figures"]["at_16"]["adk_eventstore"]["errors"] == 0
    assert [point["size"] for point in measured["growth"]] == [0, 300]

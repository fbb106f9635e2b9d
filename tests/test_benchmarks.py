import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVICES = {"adk_eventstore", "adk_eventstore_full", "memory", "sqlite", "database"}
OPERATIONS = {"create_session", "get_session", "get_long_session", "append_event", "update_keys"}
TARGETS = {"create_session": 2, "get_session": 5, "append_event": 3, "update_keys": 3}
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


@pytest.mark.parametrize("real", [False, True], ids=["made up", "real conversations"])
def test_compares_every_service_in_every_operation(tmp_path: Path, real: bool) -> None:
    kept = tmp_path / "kept.json"
    environment = {k: v for k, v in os.environ.items() if k != "ADK_BENCH_CONVERSATIONS"}
    environment |= {"PYTHONUTF8": "1", "FORCE_COLOR": ""}
    if real:
        path = tmp_path / "conversations.jsonl"
        path.write_text(json.dumps({"conversation": "1", "messages": CONVERSATION}) + "\n")
        environment["ADK_BENCH_CONVERSATIONS"] = str(path)

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", str(kept)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    measured = [b["extra_info"] for b in json.loads(kept.read_text())["benchmarks"]]
    assert {(m["service"], m["operation"]) for m in measured} == {
        (service, operation) for service in SERVICES for operation in OPERATIONS
    }
    for operation, target in TARGETS.items():
        assert re.search(rf"{operation}\W+{target} ms\W", run.stdout), operation
    assert ("real conversations" in run.stdout) is real
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert {m["pragmas"] for m in measured if m["service"] == "adk_eventstore"} == {
        "journal_mode=WAL, synchronous=NORMAL"
    }

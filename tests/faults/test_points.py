"""One fault at each named statement of each scenario: see `python -m tests.faults.points`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.faults.faulty import FAULTS, Point, Step, name_of
from tests.faults.points import LASTS, Ran, fail_at, kill_at, points, verified
from tests.faults.scenarios import SCENARIOS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL, no forkserver")

NAMED = {
    "append": {"begin", "insert event", "move head", "project: state", "commit"},
    "group": {"insert stream", "insert event", "close stream", "project: sessions", "commit"},
    "rebuild": {
        "make shadow: state",
        "fill shadow: state",
        "rename live: state",
        "rename shadow: state",
        "make view: adk_state",
        "register projection",
        "drop retired: state",
    },
    "follow": {"move checkpoint", "project: following"},
    "vacuum": {
        "open maintenance",
        "delete events",
        "forget stream",
        "end maintenance",
        "give back pages",
        "checkpoint",
    },
    "new-file": {"make table: events", "set application", "set version"},
    "migration": {"add column: checkpoint", "set version"},
    "backup": {"copy pages", "check file", "rename: file"},
    "restore": {"copy pages", "remove: wal", "rename: file"},
}
"""What must be among the points: a pattern that matches nothing any more would test nothing."""


def one_of_each(ran: Ran) -> Iterator[tuple[Point, Step]]:
    """For each name one of its points: the first, the last, in turn."""
    by_name: dict[str, list[tuple[Point, Step]]] = {}
    for at, step in ran.points().items():
        by_name.setdefault(step.name, []).append((at, step))
    for number, found in enumerate(by_name.values()):
        yield found[0 if number % 2 else -1]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_and_a_kill_at_each_statement(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    ran = points(scenario, tmp_path)
    assert {step.name for step in ran.steps} >= NAMED.get(name, set())
    kinds = list(product(LASTS, FAULTS))
    cases = []
    for number, (at, _) in enumerate(one_of_each(ran)):
        lasts, fault = kinds[5 * number % len(kinds)]
        if (left := fail_at(scenario, ran, at, fault, lasts, tmp_path)) is not None:
            cases.append((name, str(left), f"{at} {fault.name} {lasts}"))
    # Where another thread did what this one was to do, there is nothing to see.
    assert len(cases) > number / 2
    writes = [at for at, step in one_of_each(ran) if step.writes]
    left = {at: kill_at(scenario, ran, at, tmp_path) for at in writes}
    killed = [(name, str(path), f"{at} killed") for at, path in left.items() if path is not None]
    assert len(killed) > len(writes) / 2
    assert verified(cases + killed) == []


def test_names_of_statements() -> None:
    assert name_of("INSERT INTO\n  events (stream_id) VALUES (?)") == "insert event"
    assert name_of("ALTER TABLE state RENAME TO retired_state") == "rename live: state"
    assert name_of("-- said\nCREATE VIEW x AS SELECT 1") == "make view: x"
    assert name_of("EXPLAIN QUERY PLAN SELECT 1") == "EXPLAIN QUERY PLAN SELECT"

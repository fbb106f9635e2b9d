"""Faults at every statement of what the store does, in one process and with killed ones.

    python -m tests.faults.points            every point, every fault; prints the points
    python -m tests.faults.points append     those of some scenarios

A scenario runs once without a fault: its statements are the points, and the states of the file
between its transactions are the only ones that may ever be seen. Then, for each point, a fresh copy
of the file, and a fault there:

- a call that fails (the disk is full, it fails before or behind the statement, somebody else has
  the file locked; once, at every statement of that name, or at every statement from there): the
  file is in one of those states; what failed with an error other than OutcomeUnknown is not stored;
  the error is one of eventstore.errors; when the fault is gone the same store does it again;
- a process that is killed behind the statement: the file is in one of those states, and a new
  process opens it, does it again, and verifies.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from eventstore import EventStoreError, OutcomeUnknown
from tests.faults.faulty import FAULTS, Fault, Plan, Point, Step, installed
from tests.faults.scenarios import (
    SCENARIOS,
    Outcomes,
    Scenario,
    State,
    in_pieces,
    killed,
    settle,
    state_of,
    verify_all,
)
from tests.processes import fresh_processes

__all__ = ["LASTS", "fail_at", "kill_at", "points", "verified"]

LASTS: Final = ("once", "same", "all")
_TRIES: Final = 50
_TRIES_TO_STRIKE: Final = 5


# One run of a scenario.


class Ran(NamedTuple):
    """What a scenario without a fault goes through."""

    steps: list[Step]
    between: list[State]
    """The file's states between transactions, the first before and the last behind them."""

    def points(self) -> dict[Point, Step]:
        """Where a fault can strike."""
        seen: Counter[str] = Counter()
        found = {}
        for step in self.steps:
            seen[step.name] += 1
            found[Point(step.name, seen[step.name])] = step
        return found


_files: dict[tuple[str, str], Path] = {}


def copy_of(scenario: Scenario, folder: Path) -> Path:
    """A fresh copy of a scenario's file, in a folder of its own."""
    key = (scenario.make.__name__, str(folder))
    if key not in _files:
        original = folder / f"original-{scenario.make.__name__}"
        original.mkdir(parents=True)
        scenario.make(original / "a.sqlite3")
        _files[key] = original
    return Path(shutil.copytree(_files[key], tempfile.mkdtemp(dir=folder), dirs_exist_ok=True)) / (
        "a.sqlite3"
    )


def points(scenario: Scenario, folder: Path) -> Ran:
    """Runs a scenario without a fault, where it should be executed, until it runs as before.

    A busy machine has threads share their work in another way now and then.
    """
    before: list[Step] = []
    for _ in range(_TRIES):
        path = copy_of(scenario, folder)
        between = []
        plan = Plan(on_commit=lambda path=path, to=between: to.append(state_of(path)))
        with in_pieces(), installed(plan, path.parent), scenario.opened(path) as subject:
            settle(scenario, subject)
            between.append(state_of(path))
            with plan.armed():
                outcomes = scenario.act(subject)
        between.append(state_of(path))
        assert [error for _, error in outcomes if error] == [], outcomes
        shutil.rmtree(path.parent)
        if scenario.thread is None or (
            _is_where_it_should_be(scenario, plan.steps) and plan.steps == before
        ):
            return Ran(plan.steps, between)
        before = plan.steps
        time.sleep(0.02)
    raise AssertionError(f"{scenario.name} is not executed on {scenario.thread}")


def _is_where_it_should_be(scenario: Scenario, steps: Sequence[Step]) -> bool:
    return all(
        step.thread == scenario.thread for step in steps if step.writes and step.name != "commit"
    )


def fail_at(
    scenario: Scenario, ran: Ran, at: Point, fault: Fault, lasts: str, folder: Path
) -> Path | None:
    """Lets the statement fail, checks what is promised, and returns the file for a new process.

    None when the store did not come to that statement, or on another thread, however often.
    """
    tries = (_fail_at(scenario, ran, at, fault, lasts, folder) for _ in range(_tries(scenario)))
    return next(filter(None, tries), None)


def _tries(scenario: Scenario) -> int:
    return 1 if scenario.thread is None else _TRIES_TO_STRIKE


def _fail_at(
    scenario: Scenario, ran: Ran, at: Point, fault: Fault, lasts: str, folder: Path
) -> Path | None:
    path = copy_of(scenario, folder)
    plan = Plan(at, fault, lasts)
    what = f"{scenario.name}, {at}, {fault.name} {lasts}"
    with in_pieces(), installed(plan, path.parent), scenario.opened(path) as subject:
        settle(scenario, subject)
        with plan.armed():
            outcomes = scenario.act(subject)
        elsewhere = scenario.thread and plan.struck and plan.struck != ran.points()[at]
        if plan.struck is None or elsewhere:
            shutil.rmtree(path.parent)
            return None
        _check_outcomes(scenario, ran, path, outcomes, what)
        again = scenario.act(subject)
        assert [error for _, error in again if error] == [], (what, again)
        reached = _comparable(scenario, state_of(path))
        assert reached == _comparable(scenario, ran.between[-1]), what
        _check_backup(scenario, path, must=True)
    return path


def _check_outcomes(
    scenario: Scenario, ran: Ran, path: Path, outcomes: Outcomes, what: str
) -> None:
    state = state_of(path)
    stored = {row[4] for row in state.get("events", ())}
    for event_id, error in outcomes:
        assert error is None or isinstance(error, EventStoreError), (what, repr(error))
        if isinstance(error, OutcomeUnknown):
            assert str(error).count(str(path)) == 1, (what, error)
            assert "Nothing of this request" not in str(error), (what, error)
        if event_id and not isinstance(error, OutcomeUnknown):
            assert (error is None) == (event_id in stored), (what, event_id, repr(error))
    if len(outcomes) == 1:
        assert _comparable(scenario, state) in [_comparable(scenario, s) for s in ran.between], what
    _check_backup(scenario, path, must=outcomes[0][1] is None)


def _comparable(scenario: Scenario, state: State) -> State:
    if not scenario.name.startswith("group"):
        return state
    # In which order the requests of a group come, one that failed again behind the others, is open.
    return {name: rows for name, rows in state.items() if name not in ("sessions",)}


def _check_backup(scenario: Scenario, path: Path, *, must: bool) -> None:
    """A copy has its name only once it is whole."""
    if scenario.name != "backup":
        return
    target = path.with_name("backup.sqlite3")
    assert not must or target.exists()
    if target.exists():
        assert state_of(target) == state_of(path)


def kill_at(scenario: Scenario, ran: Ran, at: Point, folder: Path) -> Path | None:
    """Has a process killed behind the statement; returns the file for a new one. As `fail_at`."""
    tries = (_kill_at(scenario, ran, at, folder) for _ in range(_tries(scenario)))
    return next(filter(None, tries), None)


def _kill_at(scenario: Scenario, ran: Ran, at: Point, folder: Path) -> Path | None:
    path = copy_of(scenario, folder)
    context = fresh_processes()
    process = context.Process(target=killed, args=(scenario.name, str(path), at))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    if code == 0:
        shutil.rmtree(path.parent)
        return None  # it did not come so far
    what = f"{scenario.name}, killed behind {at}"
    assert code == -9, (what, code)
    state = state_of(path)
    if not scenario.name.startswith("group"):
        assert state in ran.between, what
    _check_backup(scenario, path, must=False)
    return path


def verified(cases: Sequence[tuple[str, str, str]]) -> list[str]:
    """In a new process: does each scenario again on what is left of it, and verifies the file."""
    context = fresh_processes()
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=verify_all, args=(cases, there))
    process.start()
    there.close()
    found: list[str] = here.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.points", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each n-th point")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # the store tells of each connection that it gives up
    began = time.monotonic()
    total: Counter[str] = Counter()
    for name in arguments.scenarios:
        scenario = SCENARIOS[name]
        with tempfile.TemporaryDirectory(prefix="points-") as temporary:
            folder = Path(temporary)
            ran = points(scenario, folder)
            counts: Counter[str] = Counter()
            for at, step in list(ran.points().items())[:: arguments.every]:
                cases = []
                for fault in FAULTS:
                    for lasts in LASTS:
                        if (left := fail_at(scenario, ran, at, fault, lasts, folder)) is not None:
                            cases.append((name, str(left), f"{at} {fault.name} {lasts}"))
                            counts["failed"] += 1
                if step.writes and (left := kill_at(scenario, ran, at, folder)) is not None:
                    cases.append((name, str(left), f"{at} killed"))
                    counts["killed"] += 1
                if found := verified(cases):
                    sys.exit(f"BROKEN: {name}, {at}: {found}")
                for _, file, _ in cases:
                    shutil.rmtree(Path(file).parent)
            total.update(counts, points=len(ran.steps))
            print(json.dumps({"scenario": name, "points": len(ran.steps), **counts}), flush=True)
            named = Counter(step.name for step in ran.steps)
            print("  " + ", ".join(f"{n} ({c})" if c > 1 else n for n, c in named.items()))
    print(json.dumps({**total, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()

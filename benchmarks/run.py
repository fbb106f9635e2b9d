"""Measures every row of the table, in one run on one machine."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import pytest

from benchmarks import concurrency
from benchmarks.concurrency import Round
from benchmarks.crew import Crew
from benchmarks.events import CONVERSATIONS_VARIABLE, mean_event_bytes
from benchmarks.resources import idle_mb, import_ms, load_mb
from benchmarks.services import CONTENDERS, MEMORY, OURS, OURS_FULL

HERE = Path(__file__).parent
_SYNCS = 50


class Size(NamedTuple):
    """How much is measured."""

    rounds: int
    append_seconds: float
    """How long a round of appends lasts: longer than the 5 s that ADK's services wait for a lock,
    or none of theirs would ever fail."""
    turn_seconds: float
    tasks: int
    users: int
    processes: int
    tasks_each: int
    load_events: int
    imports: int
    weighed: Sequence[str]


MEASURED = [name for name in CONTENDERS if name != OURS_FULL]
"""Where durability makes no difference."""
WHOLE = Size(3, 6.0, 3.0, 64, 32, 4, 16, 5_000, 5, MEASURED)
QUICK = Size(1, 0.05, 0.05, 4, 2, 2, 2, 200, 1, [OURS])

Found = dict[str, dict[str, dict[str, Any]]]


def measure(folder: Path, *, quick: bool, seed: int) -> dict[str, Any]:
    """Everything that is kept of a run: figures, and the facts they depend on."""
    size = QUICK if quick else WHOLE
    found = facts(folder, seed)
    # First of all, while there is nothing in this process that its forks would inherit.
    with Crew(size.processes) as crew:
        figures = _concurrent(crew, folder, size, seed)
        figures |= _resources(crew, folder, size)
    called, pragmas = _single_calls(folder, quick=quick, seed=seed)
    return {"facts": found, "pragmas": pragmas, "figures": called | figures}


def _concurrent(crew: Crew, folder: Path, size: Size, seed: int) -> Found:
    def at_once(name: str, path: Path) -> list[Round]:
        scenario = concurrency.append_at_once
        return [crew.run_alone(scenario, name, path, size.tasks, size.append_seconds, seed)]

    def processes(name: str, path: Path) -> list[Round]:
        tasks = size.tasks_each
        crew.run_alone(concurrency.prepare, name, path, size.processes, tasks)
        return crew.run(concurrency.append_at_once, name, path, tasks, size.append_seconds, seed)

    def turns(name: str, path: Path, *, reading: bool = False) -> list[Round]:
        arguments = (name, path, size.users, size.turn_seconds, seed, reading)
        return [crew.run_alone(concurrency.take_turns, *arguments)]

    rows: dict[str, tuple[Callable[[str, Path], list[Round]], Sequence[str]]] = {
        "at_once": (at_once, list(CONTENDERS)),
        "processes": (processes, [name for name in CONTENDERS if name != MEMORY]),
        "turns": (turns, MEASURED),
        "turns_read": (partial(turns, reading=True), MEASURED),
    }
    rounds: dict[tuple[str, str], list[list[Round]]] = defaultdict(list)
    for turn in range(size.rounds):
        for row, (scenario, names) in rows.items():
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                path = folder / f"{row}-{name}-{turn}.sqlite3"
                rounds[row, name].append(scenario(name, path))
    found: Found = defaultdict(dict)
    for (row, name), each in rounds.items():
        found[row][name] = pooled(each)
    found["idle_loop"]["machine"] = pooled([[crew.run_alone(concurrency.idle, size.turn_seconds)]])
    return found


def pooled(rounds: Sequence[Sequence[Round]]) -> dict[str, Any]:
    """Medians over the rounds; of errors the sum, of the longest halt of the loop the longest."""
    figures: dict[str, list[float]] = defaultdict(list)
    for processes in rounds:
        latencies = [taken for process in processes for taken in process.latencies]
        figures["per_s"].append(len(latencies) / max(each.seconds for each in processes))
        if len(latencies) > 1:
            figures["p50_ms"].append(median(latencies) * 1e3)
            figures["p99_ms"].append(percentile(latencies, 99) * 1e3)
        if len(processes) > 1 and latencies:
            fair = len(latencies) / len(processes)
            off = max(abs(len(each.latencies) - fair) for each in processes)
            figures["unfair_%"].append(100 * off / fair)
    flat = [process for processes in rounds for process in processes]
    errors = sum((each.errors for each in flat), start=Counter[str]())
    return {
        **{name: median(values) for name, values in figures.items()},
        "errors": errors.total(),
        "error_texts": dict(errors),
        "loop_blocked_ms": max(each.loop_blocked for each in flat) * 1e3,
        "gc_longest_ms": max(each.collected for each in flat) * 1e3,
    }


def _resources(crew: Crew, folder: Path, size: Size) -> Found:
    found: Found = defaultdict(dict)
    for name in size.weighed:
        path = folder / f"memory-{name}.sqlite3"
        peak, kept = crew.run_alone(load_mb, name, path, size.load_events)
        found["load_memory"][name] = {"peak_x": peak / kept, "peak_mb": peak, "kept_mb": kept}
        if (memory := idle_mb(name, folder, size.imports)) is not None:
            found["idle"][name] = {"memory_mb": memory}
        found["import"][name] = {"time_ms": import_ms(name, size.imports)}
    return found


def _single_calls(folder: Path, *, quick: bool, seed: int) -> tuple[Found, dict[str, str]]:
    """What pytest-benchmark measures, its passes together, and the services' pragmas."""
    kept = folder / "calls.json"
    arguments = [
        "--benchmark-only",
        "--benchmark-quiet",
        f"--benchmark-json={kept}",
        f"--databases={folder}",
        f"--seed={seed}",
        f"--config-file={HERE / 'pytest.ini'}",
        str(HERE / "bench_service.py"),
    ]
    status = pytest.main([*arguments, "--quick"] if quick else arguments)
    if status != pytest.ExitCode.OK:
        raise SystemExit(int(status))
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    pragmas = {}
    for benchmark in json.loads(kept.read_text(encoding="utf-8"))["benchmarks"]:
        info = benchmark["extra_info"]
        samples[info["operation"]][info["service"]] += benchmark["stats"]["data"]
        if info["service"] in CONTENDERS:
            pragmas[info["service"]] = info["pragmas"]
    found = {
        row: {
            name: {
                "p50_ms": median(taken) * 1e3,
                "p99_ms": percentile(taken, 99) * 1e3,
                "max_ms": max(taken) * 1e3,
                "calls": len(taken),
            }
            for name, taken in by_service.items()
        }
        for row, by_service in samples.items()
    }
    return found, pragmas


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent are not above."""
    return quantiles(values, n=100, method="inclusive")[percent - 1]


def facts(folder: Path, seed: int) -> dict[str, str | int]:
    """What the figures depend on."""
    source = "real" if os.environ.get(CONVERSATIONS_VARIABLE) else "made up"
    return {
        "git": _git("rev-parse", "--short=12", "HEAD") + (_git("status", "-s") and " with changes"),
        "seed": seed,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "google-adk": version("google-adk"),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": f"{os.getloadavg()[0]:.1f} before the run",
        "disk": f"{_sync_ms(folder):.2f} ms to sync a page",
        "events": f"from {source} conversations, {mean_event_bytes()} bytes of JSON on average",
    }


def _git(*arguments: str) -> str:
    ran = subprocess.run(
        ["git", *arguments], cwd=HERE, capture_output=True, check=False, encoding="utf-8"
    )
    return ran.stdout.strip()


def _sync_ms(folder: Path) -> float:
    """How long the disk takes to have a page, without which no peer's commit is to be judged."""
    taken = []
    with (folder / "page").open("wb") as file:
        for _ in range(_SYNCS):
            start = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - start)
    return median(taken) * 1e3

"""Measures rebuild and verify: alone, against replays elsewhere, in memory, and beside writers."""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import UUID

import msgspec
from google.adk.events import Event, EventActions
from rich.console import Console
from rich.table import Table as PrintedTable

from adk_adapter import DatabaseSessionService
from benchmarks.crew import Crew
from benchmarks.prefill import prefill
from benchmarks.run import facts
from eventstore import open_store
from projections import BUILT_IN, rebuild, verify

_PASSES = 10
_SLOW_PASSES = 2
_REPLAYED = 20_000
_WRITERS = 4

Figures = dict[str, Any]


def measure(folder: Path, *, events: int, keys: int, seconds: float, seed: int) -> Figures:
    """Everything about one database of so many events, whose state has about so many keys."""
    path = folder / "filled.sqlite3"
    sessions = max(events // 50, 1)
    with Crew(_WRITERS) as crew:
        rows = _fill(path, sessions, events, max(keys // sessions, 4), seed)
        found: Figures = {**facts(folder, seed), "events": rows}
        found |= _alone(path, folder, rows)
        found |= _command(path)
        found |= _beside_writers(crew, path, seconds)
    return found


def _fill(path: Path, sessions: int, events: int, keys: int, seed: int) -> int:
    """Fill the database and return how many events it has, in a process of its own.

    What it leaves in memory would make the rebuilds a fifth slower than they are for the command.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        load = pool.submit(
            prefill, path, sessions=sessions, events=events, keys=keys, seed=seed
        ).result()
    return load.rows


def _alone(path: Path, folder: Path, events: int) -> Figures:
    """Microseconds an event: reading the deltas, rebuilding, verifying, and another library.

    Of each the quickest of some passes, for other programs can only make one slower. Of a rebuild,
    which uses two cores, there is also the time of the processor: what it would take on one.
    """
    taken: dict[str, list[float]] = {
        "bare": [], "rebuild": [], "rebuild_processor": [], "verify": [], "eventsourcing": []
    }  # fmt: skip
    replay = _other_library(path, folder)
    with closing(open_store(path, BUILT_IN)) as store:
        for number in range(_PASSES):
            taken["bare"].append(_seconds(lambda: _bare(path)) / events)
            before = time.process_time()
            taken["rebuild"].append(_seconds(lambda: rebuild(store, BUILT_IN)) / events)
            taken["rebuild_processor"].append((time.process_time() - before) / events)
            taken["eventsourcing"].append(replay())
            if number < _SLOW_PASSES:
                taken["verify"].append(_seconds(lambda: _clean(verify(store, BUILT_IN))) / events)
    return {f"{name}_us": min(seconds) * 1e6 for name, seconds in taken.items()}


def _bare(path: Path) -> None:
    """What any rebuild must do at least: read every delta and decode it."""
    decode = msgspec.json.Decoder().decode
    with closing(sqlite3.connect(path)) as connection:
        for (delta,) in connection.execute("SELECT delta FROM events ORDER BY position"):
            if delta is not None:
                decode(delta)


def _clean(verified: Any) -> None:
    if not verified.clean:
        raise AssertionError(verified.differences)


def _other_library(path: Path, folder: Path) -> Callable[[], float]:
    """Replays of the same events by the library `eventsourcing`: seconds for each event."""
    from eventsourcing.application import Application
    from eventsourcing.domain import Aggregate, event

    class Session(Aggregate):
        def __init__(self) -> None:
            self.state: dict[str, object] = {}

        @event("Appended")
        def append(self, delta: dict[str, object], data: str) -> None:
            self.state.update(delta)

    database = folder / "eventsourcing.sqlite3"
    application: Application[UUID] = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(database)}
    )
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT stream_id, delta, data FROM events ORDER BY stream_id, version LIMIT ?",
            (_REPLAYED,),
        ).fetchall()
    sessions: dict[int, Session] = {}
    for stream_id, delta, data in rows:
        session = sessions.setdefault(stream_id, Session())
        session.append(msgspec.json.decode(delta)["session"] if delta else {}, data or "")
    for session in sessions.values():
        application.save(session)
    ids = [session.id for session in sessions.values()]

    def replay() -> float:
        return _seconds(lambda: [application.repository.get(id_) for id_ in ids]) / len(rows)

    return replay


_PEAK = """
import sys
from pathlib import Path
from projections.cli import rebuild_projections

if __name__ == "__main__":
    try:
        rebuild_projections()
    finally:
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(line.split()[1] for line in lines if line.startswith("VmHWM")), file=sys.stderr)
"""
# Not what the parent's rusage says: that counts what a fork shares with this process before it
# becomes another program.


def _command(path: Path) -> Figures:
    """Seconds and the most memory, in MB, that the command takes as a process of its own."""
    program = path.with_name("peak.py")
    program.write_text(_PEAK)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(program), "--db", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {
        "command_s": time.perf_counter() - started,
        "peak_mb": int(done.stderr.splitlines()[-1]) / 1024,
    }


def _rebuild_command(path: Path | str) -> list[str]:
    return [str(Path(sys.executable).parent / "rebuild-projections"), "--db", str(path)]


def _beside_writers(crew: Crew, path: Path, seconds: float) -> Figures:
    """Milliseconds of an append in four processes, alone and while the tables are rebuilt."""
    alone = _latencies(crew.run(_write, str(path), seconds, False))
    beside = _latencies(crew.run(_write, str(path), seconds, True))
    with closing(open_store(path, BUILT_IN)) as store:
        _clean(verify(store, BUILT_IN))
    return {"writers_alone": alone, "writers_beside": beside}


def _write(number: int, barrier: Any, path: str, seconds: float, rebuilding: bool) -> list[float]:
    """Appends one event after the other; the first process rebuilds meanwhile, again and again."""
    return asyncio.run(_append(number, barrier, path, seconds, rebuilding))


async def _append(
    number: int, barrier: Any, path: str, seconds: float, rebuilding: bool
) -> list[float]:
    taken: list[float] = []
    async with DatabaseSessionService(path) as service:
        session = await service.create_session("rebuild", f"writer-{number}")
        barrier.wait()
        rebuild_process = None
        if rebuilding and number == 0:
            rebuild_process = await asyncio.create_subprocess_exec(
                *_rebuild_command(path),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or (
            rebuild_process is not None and rebuild_process.returncode is None
        ):
            event = Event(
                author="agent",
                invocation_id="i",
                actions=EventActions(state_delta={"n": len(taken), "user:n": len(taken)}),
            )
            started = time.perf_counter()
            await service.append_event(session, event)
            taken.append(time.perf_counter() - started)
        if rebuild_process is not None:
            assert await rebuild_process.wait() == 0
    return taken


def _latencies(found: list[list[float]]) -> Figures:
    pooled = sorted(seconds for each in found for seconds in each)
    cuts = quantiles(pooled, n=1000, method="inclusive")
    return {
        "appends": len(pooled),
        "p50_ms": cuts[499] * 1e3,
        "p99_ms": cuts[989] * 1e3,
        "p999_ms": cuts[998] * 1e3,
        "worst_ms": pooled[-1] * 1e3,
    }


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def print_figures(found: Figures) -> None:
    """Print them as two tables."""
    console = Console(highlight=False)
    table = PrintedTable(title=f"{found['events']:,} events", show_lines=True)
    for column in ("", "microseconds an event", "events/s", "bare SELECT and decode is 1"):
        table.add_column(column, justify="right")
    for name in ("bare", "rebuild", "rebuild_processor", "verify", "eventsourcing"):
        us = found[f"{name}_us"]
        table.add_row(name, f"{us:.2f}", f"{1e6 / us:,.0f}", f"{us / found['bare_us']:.1f}x")
    console.print(table)
    console.print(
        f"rebuild-projections: {found['command_s']:.1f} s, at most {found['peak_mb']:.0f} MB"
    )
    for name in ("writers_alone", "writers_beside"):
        figures = {key: round(value, 1) for key, value in found[name].items()}
        console.print(f"{_WRITERS} processes appending, {name}: {figures}")


def main() -> int:
    """Fill, measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebuild", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=0, help="about how many keys the state has")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long writers write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    parser.add_argument("--folder", type=Path, default=Path(".benchmarks"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(
            Path(folder),
            events=options.events,
            keys=options.keys,
            seconds=options.seconds,
            seed=options.seed,
        )
    print_figures(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

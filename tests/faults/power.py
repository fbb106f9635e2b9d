"""Cuts the power at any moment, and looks at what is left.

    python -m tests.faults.power --runs 8 --cuts 100 --seed 1

In each run a process uses a file in the ways of `tests.faults.crash`, in one half of the runs with
rebuilds and vacuums beside it, and every operation of SQLite's on its files is recorded with what
the writers were told. Then, at one operation after another, the power fails: of what was not synced
nothing is left; or the first so many operations; or those on one file; or single sectors of single
writes, in no order. Each time the file is opened again, and:

- `verify` finds nothing, and no event is there without its rows;
- with `durability="full"` every acknowledged write is there;
- with "normal" what is there is the beginning of the log, up to some commit (looked at in the runs
  that remove nothing);
- the file takes appends again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Final

from adk_adapter import DatabaseSessionService
from eventstore import Durability, EventStore, MaintenanceRunning, StoreUnusable, open_store
from projections import BUILT_IN, rebuild, run, scavenge
from tests.faults.crash import Oracle, Violation, check
from tests.faults.disk import LOSSES, Disk, Files, Operation
from tests.faults.writers import FOLLOWING, ThroughService, ThroughStore, share, write
from tests.processes import fresh_processes

__all__ = ["Figures", "power"]

_NAME: Final = "cut.sqlite3"
_DURABILITIES: Final[tuple[Durability, ...]] = ("full", "normal")
_COLUMNS: Final = "SELECT position, stream_id, version, event_id, chain FROM events ORDER BY 1"


@dataclass
class Figures:
    """What a run did. No promise was broken, or it would have ended."""

    runs: int = 0
    operations: int = 0
    acknowledged: int = 0
    cuts: int = 0
    lost_in_normal: int = 0
    """The most acknowledged writes that one cut took, where they were not synced."""
    seconds: float = 0.0


def power(folder: Path, *, runs: int, cuts: int, seed: int, commits: int = 150) -> Figures:
    """Records runs of about so many commits in a folder, and cuts each at so many operations.

    Raises:
        Violation: a promise was broken; the files of that cut are left as they are.
    """
    chance = Random(seed)
    figures = Figures()
    began = time.monotonic()
    for number in range(runs):
        durability = _DURABILITIES[number % 2]
        maintained = number % 4 >= 2
        steps, log = _record(folder / f"run-{number}", durability, maintained, commits)
        figures.runs += 1
        figures.operations += sum(isinstance(step, Operation) for step in steps)
        figures.acknowledged += sum(isinstance(s, str) and s.startswith("ack") for s in steps)
        chosen = {chance.randrange(len(steps)) for _ in range(cuts)}
        disk, oracle = Disk(), Oracle()
        for at, step in enumerate(steps):
            if isinstance(step, Operation):
                disk.do(step)
            else:
                oracle.hear("writer", step)
            if at not in chosen:
                continue
            for loss in LOSSES:
                figures.cuts += 1
                what = f"seed {seed}, run {number} ({durability}), step {at}, {loss}"
                place = folder / f"cut-{number}-{at}-{loss.replace(' ', '-')}"
                files = disk.after(loss, chance)
                try:
                    lost = _check(place, files, oracle, durability, None if maintained else log)
                except (Violation, StoreUnusable) as error:
                    raise Violation(f"{what}, {place}: {error}") from error
                figures.lost_in_normal = max(figures.lost_in_normal, lost)
                shutil.rmtree(place)
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def _check(
    place: Path, files: Files, oracle: Oracle, durability: Durability, log: list[object] | None
) -> int:
    """Compares what is left with what was said. Returns how many acknowledged writes are gone."""
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    path = place / _NAME
    lost = 0
    if durability == "normal":
        stored = _log(path)
        if log is not None and stored != log[: len(stored)]:
            raise Violation(f"the {len(stored)} events are not the beginning of the log")
        told = {
            f"{name}/{number}"
            for what, name in oracle.acknowledged
            if what in ("append", "shared")
            for number in oracle.acknowledged[what, name]
        }
        lost = len(told - {row[3] for row in stored})
        oracle = Oracle(oracle.tried)
    check(path, oracle)
    return lost


def _log(path: Path) -> list[tuple[object, ...]]:
    """The events of a file that nobody has open; none where there is not even a schema yet."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_schema")}
        return connection.execute(_COLUMNS).fetchall() if "events" in tables else []


# What is recorded, in a process of its own.


def _record(
    folder: Path, durability: Durability, maintained: bool, commits: int
) -> tuple[Sequence[Operation | str], list[tuple[object, ...]]]:
    folder.mkdir()
    context = fresh_processes()
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_use, args=(folder / _NAME, durability, maintained, commits, there)
    )
    process.start()
    there.close()
    steps: Sequence[Operation | str] = here.recv()
    process.join()
    assert process.exitcode == 0, process.exitcode
    log = _log(folder / _NAME)
    shutil.rmtree(folder)
    return steps, log


def _use(
    path: Path, durability: Durability, maintained: bool, commits: int, pipe: Connection
) -> None:
    from tests.faults.recording import recorded

    with recorded(path.parent) as recording:
        done = threading.Event()
        left = commits

        def report(verb: str, what: str, name: str, number: int) -> None:
            nonlocal left
            recording.say(f"{verb} {what} {name} {number}")
            left -= verb == "ack"
            if left <= 0:
                done.set()

        async def main() -> None:
            service = DatabaseSessionService(path, durability=durability, on_stale="merge")
            with closing(open_store(path, BUILT_IN, durability=durability)) as store:
                writers = [
                    write(ThroughService(service, "a"), "a", report),
                    write(ThroughStore(store, "b"), "b", report),
                    share(service, "a", report),
                    share(service, "b", report),
                ]
                tasks = [asyncio.create_task(writer) for writer in writers]
                thread = threading.Thread(target=_maintain, args=(store, done))
                if maintained:
                    thread.start()
                await asyncio.to_thread(done.wait)
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
                assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends
                if maintained:
                    await asyncio.to_thread(thread.join)
                # The last commits too: nobody was told of them.
                await store.barrier()
            await service.close()

        asyncio.run(main())
    pipe.send(recording.steps)
    pipe.close()


def _maintain(store: EventStore, done: threading.Event) -> None:
    while not done.wait(0.01):
        with suppress(MaintenanceRunning):  # where the service brings a projection up to date
            rebuild(store, BUILT_IN)
            run(store, FOLLOWING)
            scavenge(store, BUILT_IN, FOLLOWING)
            store.shrink()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.power", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--cuts", type=int, default=100, help="of each run, with each kind of loss")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="power-"))
    try:
        figures = power(folder, runs=arguments.runs, cuts=arguments.cuts, seed=arguments.seed)
    except Violation as error:
        sys.exit(f"BROKEN: {error}")
    shutil.rmtree(folder)
    print(json.dumps({**asdict(figures), "lost_in_full": 0, "half": 0}))


if __name__ == "__main__":
    main()

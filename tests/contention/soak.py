"""A mixed load for a long time: does anything grow, or slow down?

    python -m tests.contention.soak --minutes 10

Two processes with two loops each create, append to, load, list and delete sessions, cancel some
calls, and restart their service now and then; beside them backups and rebuilds. Prints a table, one
line for each tenth of the time, and exits with 1 when memory, file handles, threads, latency or the
WAL at the end are not what they were behind the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from adk_adapter import DatabaseSessionService
from projections import UsageProjection
from tests.contention.load import _at
from tests.contention.workers import (
    APP,
    USER,
    event,
    hold_open,
    in_process,
    maintain,
)
from tests.processes import fresh_processes

_LINES: Final = 10
_PROCESSES: Final = 2
_LOOPS: Final = 2
_TASKS: Final = 4
_EVENTS_PER_SESSION: Final = 60
_THINK_S: Final = 0.004
_RESTART_EVERY_S: Final = 5.0
_READER_S: Final = 2.0
_RSS_GROWTH_MAX: Final = 1.10
_RSS_NOISE_BYTES: Final = 8_000_000
_LATENCY_GROWTH_MAX: Final = 2.0
_LATENCY_NOISE_S: Final = 0.005
_WAL_BYTES_MAX: Final = 256_000_000


class Line(NamedTuple):
    """What was measured in one part of the time, in one process."""

    part: int
    appends: int
    p50_s: float
    p99_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    errors: list[str]


def work(path: Path, name: str, ready: Any, seconds: float, told: Any) -> None:
    """One process of the load."""
    ready.wait()
    began = time.monotonic()
    latencies: list[float] = []
    errors: list[str] = []
    names = itertools.count()

    async def agent(service: DatabaseSessionService, chance: random.Random, until: float) -> None:
        while time.monotonic() < until:
            session_id = f"{name}-{next(names)}"
            session: Any = await service.create_session(APP, USER, session_id, {"user:n": 1})
            for number in range(_EVENTS_PER_SESSION):
                if time.monotonic() >= until:
                    break
                said = event(f"{session_id}/{number}", n=number, text="x" * 500)
                before = time.perf_counter()
                appending = asyncio.ensure_future(service.append_event(session, said))
                if chance.random() < 0.05:
                    await asyncio.sleep(0)
                    appending.cancel()
                    with suppress(asyncio.CancelledError):
                        await appending
                    await service.append_event(session, said)
                else:
                    await appending
                    latencies.append(time.perf_counter() - before)
                await asyncio.sleep(chance.expovariate(1 / _THINK_S))
            loaded = await service.get_session(APP, USER, session_id)
            if loaded is None or loaded.events != session.events:
                errors.append(f"{session_id} is not what was appended")
            await service.update_keys(APP, USER, session_id, {"app:last": session_id})
            # So that the table of sessions does not grow, which the listing goes through.
            await service.delete_session(APP, USER, session_id)
            await service.list_sessions(app_name=APP, user_id=USER)

    async def some(service: DatabaseSessionService, seed: int, until: float) -> None:
        chances = [random.Random(seed * _TASKS + n) for n in range(_TASKS)]
        await asyncio.gather(*(agent(service, chance, until) for chance in chances))

    def loop(service: DatabaseSessionService, seed: int, until: float) -> None:
        try:
            asyncio.run(some(service, seed, until))
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    seeds = itertools.count()
    for part in range(_LINES):
        end = began + seconds * (part + 1) / _LINES
        while time.monotonic() < end:
            service = DatabaseSessionService(path, projections=[UsageProjection()])
            until = min(end, time.monotonic() + _RESTART_EVERY_S)
            threads = [
                threading.Thread(target=loop, args=(service, next(seeds), until))
                for _ in range(_LOOPS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            asyncio.run(service.close())
        ordered = sorted(latencies)
        told.put(
            (
                name,
                Line(
                    part, len(ordered), _at(ordered, 0.5), _at(ordered, 0.99), _rss_bytes(),
                    _descriptors(), threading.active_count(), list(errors),
                ),
            )
        )  # fmt: skip
        latencies.clear()
        errors.clear()


def _rss_bytes() -> int:
    try:
        resident = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    try:
        return len(list(Path("/proc/self/fd").iterdir()))
    except OSError:
        return 0


def soak(folder: Path, minutes: float) -> tuple[dict[str, list[Line]], int, list[str], bool]:
    """Runs the load. Returns each process's lines, the largest WAL, errors, and a verification."""
    path = folder / "soak.sqlite3"
    asyncio.run(DatabaseSessionService(path).close())
    seconds = minutes * 60
    context = fresh_processes()
    told, maintained = context.Queue(), context.Queue()
    ready = context.Barrier(_PROCESSES + 2)
    processes = [
        in_process(context, work, path, f"p{n}", ready, seconds, told) for n in range(_PROCESSES)
    ]
    processes += [
        in_process(context, maintain, path, folder, ready, seconds, maintained),
        in_process(context, hold_open, path, _READER_S, ready, seconds),
    ]
    lines: dict[str, list[Line]] = {f"p{n}": [] for n in range(_PROCESSES)}
    wal_bytes = 0
    wal = Path(f"{path}-wal")
    while any(len(own) < _LINES for own in lines.values()):
        time.sleep(0.1)
        with suppress(OSError):
            wal_bytes = max(wal_bytes, wal.stat().st_size)
        while not told.empty():
            name, line = told.get()
            lines[name].append(line)
            print(_row(name, line), flush=True)
        assert all(p.exitcode in (None, 0) for p in processes), "a process died"
    _, errors = maintained.get(timeout=300)
    for process in processes:
        process.join()

    async def verify() -> bool:
        async with DatabaseSessionService(path) as service:
            service.vacuum()
            return (await service.verify()).clean

    return lines, wal_bytes, errors, asyncio.run(verify())


_HEAD: Final = "process  part  appends     p50      p99      RSS   handles  threads"


def _row(name: str, line: Line) -> str:
    return (
        f"{name:<7}  {line.part + 1:>4}  {line.appends:>7}  {line.p50_s * 1e3:5.2f} ms"
        f"  {line.p99_s * 1e3:5.1f} ms  {line.rss_bytes / 1e6:4.0f} MB  {line.descriptors:>7}"
        f"  {line.threads:>7}"
    )


def broken(lines: Sequence[Line]) -> list[str]:
    """Which bounds one process broke: the last third against the one behind the warm-up."""
    third = _LINES // 3
    early, late = lines[1 : 1 + third], lines[-third:]
    found = [error for line in lines for error in line.errors]

    def median(which: Sequence[Line], field: str) -> float:
        return statistics.median(getattr(line, field) for line in which)

    limits = {
        "rss_bytes": median(early, "rss_bytes") * _RSS_GROWTH_MAX + _RSS_NOISE_BYTES,
        "p50_s": median(early, "p50_s") * _LATENCY_GROWTH_MAX + _LATENCY_NOISE_S,
        "descriptors": median(early, "descriptors") + 1,
        "threads": median(early, "threads") + 1,
    }
    for name, limit in limits.items():
        if (value := median(late, name)) > limit:
            found.append(f"{name} went from {median(early, name):g} to {value:g}")
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.contention.soak")
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    print(_HEAD)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        lines, wal_bytes, errors, clean = soak(Path(folder), given.minutes)
    found = [*errors, *(f"{name}: {what}" for name, own in lines.items() for what in broken(own))]
    if wal_bytes > _WAL_BYTES_MAX:
        found.append("the WAL grew beyond its bound")
    if not clean:
        found.append("the database does not verify")
    print(f"largest WAL: {wal_bytes / 1e6:.0f} MB; verifies afterwards: {'yes' if clean else 'NO'}")
    for line in found[:20]:
        print(f"BROKEN: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Many processes that write one file, beside readers, a backup and a rebuild.

    python -m tests.contention.load --processes 8 --tasks 16 --seconds 60

Prints what was done, how long the slowest waited, and how large the WAL grew. Exits with 1 when an
append failed, an acknowledged event or key is missing, or somebody starved.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from adk_adapter import DatabaseSessionService
from eventstore import _platform
from tests.contention.workers import (
    APP,
    USER,
    hold_open,
    in_process,
    load,
    maintain,
)
from tests.processes import fresh_processes

__all__ = ["Measured", "measure"]

_READER_S: Final = 3.0
_SHARE_MIN: Final = 0.5
_WAL_BYTES_MAX: Final = 512 * 1024 * 1024
_START_S: Final = 120


class Measured(NamedTuple):
    """What a run came to."""

    errors: list[str]
    missing: list[str]
    appends: int
    reads: int
    seconds: float
    share: float
    """What the process that did the least did, as a part of what the one with the most did."""
    p50_s: float
    slowest_p99_s: float
    slowest_s: float
    read_p99_s: float
    wal_bytes: int
    maintenance: dict[str, int]
    clean: bool

    @property
    def broken(self) -> list[str]:
        """Which promises were not kept."""
        found = [*self.errors, *self.missing]
        if not self.clean:
            found.append("the database does not verify")
        if self.share < _SHARE_MIN:
            found.append(f"a process got only {self.share:.0%} of what another one got")
        if self.wal_bytes > _WAL_BYTES_MAX:
            found.append(f"the WAL grew to {self.wal_bytes} bytes")
        return found


def measure(folder: Path, processes: int, tasks: int, seconds: float) -> Measured:
    """Lets processes write for some seconds, and looks at what is there afterwards."""
    path = folder / "load.sqlite3"
    context = fresh_processes()
    told, maintained = context.Queue(), context.Queue()
    asyncio.run(DatabaseSessionService(path).close())
    ready = context.Barrier(processes + 3)
    writers = [
        in_process(context, load, path, f"p{n}", tasks, ready, seconds, told)
        for n in range(processes)
    ]
    others = [
        in_process(context, hold_open, path, _READER_S, ready, seconds),
        in_process(context, maintain, path, folder, ready, seconds, maintained),
    ]
    ready.wait(_START_S)
    began = time.monotonic()
    wal_bytes = 0
    results: list[Any] = []
    while len(results) < processes:
        wal_bytes = max(wal_bytes, _platform.file_size(f"{path}-wal"))
        alive = any(w.is_alive() for w in writers)  # before: what ends now has told all then
        while not told.empty():
            results.append(told.get())
        assert alive or len(results) == processes, "a writer died"
        time.sleep(0.02)
    took = time.monotonic() - began
    maintenance, maintenance_errors = maintained.get(timeout=_START_S)
    for process in (*writers, *others):
        process.join()
    return _judge(path, results, maintenance, maintenance_errors, took, wal_bytes)


def _judge(
    path: Path,
    results: Sequence[Any],
    maintenance: dict[str, int],
    errors: Sequence[str],
    took: float,
    wal_bytes: int,
) -> Measured:
    latencies = {name: sorted(own) for name, own, *_ in results}
    everything = sorted(latency for own in latencies.values() for latency in own)
    reads = sorted(latency for _, _, own, *_ in results for latency in own)
    counts = {session: n for *_, own, _ in results for session, n in own.items()}
    missing, clean = asyncio.run(_missing(path, counts))
    return Measured(
        errors=[*errors, *(error for *_, own in results for error in own)],
        missing=missing,
        appends=len(everything),
        reads=len(reads),
        seconds=took,
        share=min(map(len, latencies.values())) / max(map(len, latencies.values())),
        p50_s=_at(everything, 0.5),
        slowest_p99_s=max(_at(own, 0.99) for own in latencies.values()),
        slowest_s=everything[-1],
        read_p99_s=_at(reads, 0.99),
        wal_bytes=wal_bytes,
        maintenance=maintenance,
        clean=clean,
    )


def _at(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0


async def _missing(path: Path, counts: dict[str, int]) -> tuple[list[str], bool]:
    """Which acknowledged events and keys are not there, and whether the database verifies."""
    found = []
    async with DatabaseSessionService(path) as service:
        for session_id, count in counts.items():
            session = await service.get_session(APP, USER, session_id)
            assert session is not None
            if [e.id for e in session.events] != [f"{session_id}/{n + 1}" for n in range(count)]:
                found.append(f"{session_id} has {len(session.events)} events of {count}")
            keys = ("n", f"app:{session_id}", f"user:{session_id}")
            found += [f"{session_id}: {k}" for k in keys if session.state.get(k) != count]
        verified = await service.verify()
    return found, verified.clean


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.contention.load")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="contention-") as folder:
        measured = measure(Path(folder), given.processes, given.tasks, given.seconds)
    print(f"{given.processes} processes x {given.tasks} sessions, {measured.seconds:.0f} s")
    for name, value in (
        ("appends", f"{measured.appends:,} ({measured.appends / measured.seconds:,.0f}/s)"),
        ("reads", f"{measured.reads:,}"),
        ("errors", len(measured.errors)),
        ("acknowledged and missing", len(measured.missing)),
        ("append p50", f"{measured.p50_s * 1e3:.1f} ms"),
        ("append p99 of the slowest process", f"{measured.slowest_p99_s * 1e3:.0f} ms"),
        ("longest append", f"{measured.slowest_s * 1e3:.0f} ms"),
        ("read p99", f"{measured.read_p99_s * 1e3:.0f} ms"),
        ("least share / largest share", f"{measured.share:.2f}"),
        ("largest WAL", f"{measured.wal_bytes / 1e6:.0f} MB"),
        ("backups, rebuilds meanwhile", "{backups}, {rebuilds}".format(**measured.maintenance)),
        ("verifies afterwards", "yes" if measured.clean else "NO"),
    ):
        print(f"  {name:<36} {value}")
    for line in measured.broken[:20]:
        print(f"BROKEN: {line}")
    return 1 if measured.broken else 0


if __name__ == "__main__":
    sys.exit(main())

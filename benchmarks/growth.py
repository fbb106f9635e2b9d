"""Measures how the time of an append and of a short read grows with what is stored already.

Three things grow: the database, a session's history, a session's state. Each service is filled to
the given sizes, or as far as it gets in the given time, and the calls are measured in passes over
all services and sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from google.adk.sessions import BaseSessionService
from google.adk.sessions.base_session_service import GetSessionConfig
from rich.console import Console
from rich.table import Table

from benchmarks.events import event_stream
from benchmarks.prefill import APP, NAMED_USER, Load, Shape
from benchmarks.report import WIDTH, title
from benchmarks.run import MEASURED, facts, percentile
from benchmarks.services import OURS, close, open_filled

AXES = {
    "events": "events in the database",
    "length": "events in the session",
    "keys": "keys in the session's state",
}
CALLS = {"append": "append_event", "tail": "get_session, the last 20 events"}
PEERS = MEASURED[1:]
RATIO_HEADINGS = ("what grows", "call", "goal: at most 1.3x", "met", *map(title, PEERS))
TIME_HEADINGS = ("what grows", "size", *map(title, MEASURED))
LIMIT = 1.3
"""An append and a short read take at most so many times what they take on an empty database."""

_STEPS = (1000, 100, 10, 1)
"""Sizes are the largest one divided by these."""
_ORDINARY = "ordinary"
_ORDINARY_EVENTS = 100
_PASSES = 10
_APPENDS = 40
_READS = 20
_TAIL = GetSessionConfig(num_recent_events=20)


Points = Sequence[Mapping[str, Any]]
"""Measured points, as they are kept."""


@dataclass
class Point:
    """One service at one size, and what its calls took there."""

    name: str
    axis: str
    size: int
    service: BaseSessionService
    session: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {call: [] for call in CALLS})

    def figures(self) -> dict[str, Any]:
        """What is kept of it."""
        times = {
            f"{call}_{what}_ms": round(value * 1e3, 4)
            for call, taken in self.seconds.items()
            for what, value in [("p50", median(taken)), ("p99", percentile(taken, 99))]
        }
        return {"service": self.name, "axis": self.axis, "size": self.size, **times}


def loads(options: argparse.Namespace) -> list[Load]:
    """An empty database, databases that grow, and in the largest the sessions that grow."""
    ordinary = {_ORDINARY: Shape(_ORDINARY_EVENTS)}
    long = {f"length-{n}": Shape(n) for n in _sizes(options.longest)}
    wide = {f"keys-{n}": Shape(_ORDINARY_EVENTS, n) for n in _sizes(options.keys)}
    found = [Load(0, 0, seed=options.seed, named=ordinary)]
    for step in _STEPS:
        named = {**ordinary, **long, **wide} if step == 1 else ordinary
        sessions, events = options.sessions // step, options.events // step
        found.append(Load(sessions, events, seed=options.seed, named=named))
    return found


def _sizes(largest: int) -> list[int]:
    return [largest // step for step in _STEPS]


async def fill(
    name: str, folder: Path, planned: Sequence[Load], limit: float
) -> tuple[list[Point], dict[str, float]]:
    """Databases of one service, each larger than the one before.

    When the largest would take too long, the sessions that grow get a database of their own.
    Returns the points to measure and how many seconds each database took.
    """
    points: list[Point] = []
    took: dict[str, float] = {}
    seconds_per_row = 0.0
    for load in planned:
        if seconds_per_row * load.rows > limit:
            load = replace(load, sessions=0, events=0)
        start = time.perf_counter()
        service = await open_filled(name, folder / f"{name}-{load.rows}.sqlite3", load)
        seconds = time.perf_counter() - start
        took[f"{load.rows:,}"] = round(seconds, 1)
        seconds_per_row = seconds / load.rows if load.events else 0.0
        for session in load.named:
            axis, _, size = session.partition("-")
            if axis in AXES:
                points.append(Point(name, axis, int(size), service, session))
            elif load.events or load is planned[0]:
                points.append(Point(name, "events", load.events, service, session))
    return points, took


async def measure(points: Sequence[Point], seed: int) -> None:
    """Passes over all points, each pass beginning with another one."""
    events = event_stream(seed)
    gc.collect()
    gc.freeze()
    for turn in range(_PASSES):
        first = turn * len(points) // _PASSES
        for point in [*points[first:], *points[:first]]:
            where = {"app_name": APP, "user_id": NAMED_USER, "session_id": point.session}
            session = await point.service.get_session(**where, config=_TAIL)
            assert session is not None
            for event in [next(events) for _ in range(_APPENDS)]:
                event.timestamp = time.time()
                start = time.perf_counter()
                await point.service.append_event(session, event)
                point.seconds["append"].append(time.perf_counter() - start)
            for _ in range(_READS):
                start = time.perf_counter()
                await point.service.get_session(**where, config=_TAIL)
                point.seconds["tail"].append(time.perf_counter() - start)
    gc.unfreeze()


async def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fill, measure, and return what is kept."""
    points: list[Point] = []
    took: dict[str, dict[str, float]] = {}
    for name in MEASURED:
        limit = float("inf") if name == OURS else options.peer_seconds
        new, took[name] = await fill(name, folder, loads(options), limit)
        points += new
        print(f"{name}: seconds to fill, by rows: {took[name]}", file=sys.stderr)
    await measure(points, options.seed)
    for service in {id(point.service): point.service for point in points}.values():
        await close(service)
    return {"seconds_to_fill": took, "points": [point.figures() for point in points]}


def growth(points: Points, name: str) -> dict[tuple[str, str], tuple[int, float]]:
    """By axis and call: the largest size, and how many times as long as when empty it takes."""
    own = [point for point in points if point["service"] == name]
    empty = next(point for point in own if point["axis"] == "events" and point["size"] == 0)
    found = {}
    for axis in AXES:
        largest = max((p for p in own if p["axis"] == axis), key=lambda point: point["size"])
        for call in CALLS:
            key = f"{call}_p50_ms"
            found[axis, call] = largest["size"], largest[key] / empty[key]
    return found


def ratios(points: Points) -> Iterator[list[str]]:
    """A table: how many times as long the calls take at the largest size."""
    grown = {name: growth(points, name) for name in MEASURED}
    for (axis, call), (size, ratio) in grown[OURS].items():
        yield [
            f"{AXES[axis]}: {size:,}",
            CALLS[call],
            f"{ratio:.2f}x",
            "yes" if ratio <= LIMIT else "no",
            *(f"{r:.2f}x at {reached:,}" for reached, r in (grown[p][axis, call] for p in PEERS)),
        ]


def times(points: Points) -> Iterator[list[str]]:
    """A table: what the calls take at each size."""
    found = {(p["service"], p["axis"], p["size"]): p for p in points}
    for axis, heading in AXES.items():
        for size in sorted({size for _, of, size in found if of == axis}):
            cells = [found.get((name, axis, size)) for name in MEASURED]
            yield [
                heading,
                f"{size:,}",
                *(
                    f"{c['append_p50_ms']:.3f} / {c['tail_p50_ms']:.3f} ms" if c else "-"
                    for c in cells
                ),
            ]


def print_report(points: Points) -> None:
    """Print both tables."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for headings, rows in [(RATIO_HEADINGS, ratios(points)), (TIME_HEADINGS, times(points))]:
        table = Table(*headings)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("Medians: append_event / get_session with the last 20 events")


def plot(points: Points, path: Path) -> None:
    """Draw time against size, one line a service, into an SVG or PNG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "growth"  # the same figures give the same file
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        len(CALLS), len(AXES), figsize=(12, 6.5), sharey="row", layout="constrained"
    )
    for row, (call, description) in zip(grid, CALLS.items(), strict=True):
        for panel, (axis, label) in zip(row, AXES.items(), strict=True):
            for name in MEASURED:
                own = [p for p in points if (p["service"], p["axis"]) == (name, axis)]
                panel.plot(
                    [point["size"] for point in own],
                    [point[f"{call}_p50_ms"] for point in own],
                    marker="o",
                    markersize=3,
                    linewidth=2.2 if name == OURS else 1.2,
                    label=title(name),
                )
            # Logarithmic, but for the empty database, which is at 0.
            smallest = min(p["size"] for p in points if p["axis"] == axis and p["size"])
            panel.set_xscale("symlog", linthresh=smallest)
            panel.set_yscale("log")
            panel.set_xlabel(label)
            panel.grid(visible=True, which="major", linewidth=0.3)
        row[0].set_ylabel(f"{description}, ms")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, dpi=120)


def main() -> int:
    """Fill, measure, keep, print, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    number = {"type": int, "help": "default: %(default)s"}
    parser.add_argument("--events", default=5_000_000, **number)
    parser.add_argument("--sessions", default=100_000, **number)
    parser.add_argument("--longest", default=100_000, **number)
    parser.add_argument("--keys", default=10_000, **number)
    parser.add_argument("--seed", default=0, **number)
    parser.add_argument(
        "--peer-seconds", type=float, default=180, help="time to fill a database of a peer's"
    )
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    parser.add_argument("--plot", type=Path, help="where to draw them: a .svg or .png file")
    parser.add_argument("--show", type=Path, help="measure nothing: show these kept figures")
    options = parser.parse_args()
    if options.show:
        kept = json.loads(options.show.read_text(encoding="utf-8"))
    else:
        kept = _measured(options)
    print_report(kept["points"])
    if options.plot:
        plot(kept["points"], options.plot)
    return 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    path = options.json or Path(".benchmarks") / time.strftime("growth-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {key: getattr(options, key) for key in ("events", "sessions", "longest", "keys")}
    command = " ".join(f"--{key} {value}" for key, value in sizes.items())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="databases-") as folder:
        kept = {
            "command": f"python -m benchmarks.growth {command} --seed {options.seed} "
            f"--peer-seconds {options.peer_seconds:g}",
            "facts": facts(Path(folder), options.seed),
            **asyncio.run(run(options, Path(folder))),
        }
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"Kept in {path}")
    return kept


if __name__ == "__main__":
    sys.exit(main())

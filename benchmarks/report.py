"""Prints what a run measured as one table: what was wanted, what came of it, and ADK's services."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS, ROWS, Figures
from benchmarks.services import CONTENDERS, DATABASE, MEMORY, OURS, OURS_FULL, SQLITE

WIDTH = 150
_PEERS = (MEMORY, SQLITE, DATABASE)
_SAME_FIGURES = {"append_full": "append_event"}


def print_report(run: Mapping[str, Any]) -> None:
    """Print the table of a run as it is kept."""
    # A pipe has no width, and rich would wrap the table at 80 columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(_table(run["figures"]))
    judged = [goal.judge(run["figures"]) for goal in GOALS]
    met = sum(1 for each in judged if each and each[1])
    console.print(f"{met} of {len(GOALS)} goals are met.\n")
    if None in judged:
        console.print(f"{judged.count(None)} cannot be judged: not everything was measured.\n")
    console.print(
        "Where there are two times in a cell, they are the median and the 99th percentile.\n"
        "Blocked: the longest that the event loop was held up.\n"
        "update_keys: ADK's services have no such method; theirs is append_event of an event "
        "without content, with a state_delta.\n"
    )
    for name, value in run["facts"].items():
        console.print(f"{name}: {value}")
    for name, pragmas in run["pragmas"].items():
        title = CONTENDERS[name].title.replace("-\n", "").replace("\n", ", ")
        console.print(f"  {title}: {pragmas}; {CONTENDERS[name].promise}")
    console.print()


def _table(figures: Figures) -> Table:
    table = Table()
    table.add_column("what", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    table.add_column("measured", justify="right")
    table.add_column("met")
    for title in ("adk_eventstore", "InMemory", "Sqlite", "Database"):
        table.add_column(title, justify="right")
    for row, title in ROWS.items():
        goals = [(goal, goal.judge(figures)) for goal in GOALS if goal.row == row]
        ours = OURS_FULL if row == "append_full" else OURS
        columns = [
            title.split("\n"),
            [goal.wanted for goal, _ in goals],
            [judged[0] if judged else "-" for _, judged in goals],
            [_mark(judged) for _, judged in goals],
            *(_cell(figures, row, name) for name in (ours, *_PEERS)),
        ]
        # A line for each, so that a cell that is wrapped keeps its neighbours.
        for cells in itertools.zip_longest(*columns, fillvalue=""):
            table.add_row(*cells)
        table.add_section()
    return table


def _mark(judged: tuple[str, bool] | None) -> str:
    if judged is None:
        return "-"
    return "[green]yes[/green]" if judged[1] else "[red]no[/red]"


def _cell(figures: Figures, row: str, name: str) -> list[str]:
    """The figures of one service in a row, shortly, line by line."""
    found = figures.get(_SAME_FIGURES.get(row, row), {}).get(name)
    if found is None:
        return ["-"]
    lines = []
    if "per_s" in found:
        lines.append(f"{found['per_s']:,.0f}/s")
    if "p50_ms" in found:
        lines.append(f"{_time(found['p50_ms'])}, {_time(found['p99_ms'])}")
    if found.get("errors"):
        lines.append(f"{found['errors']:.0f} errors")
    if "unfair_%" in found:
        lines.append(f"unfair by {found['unfair_%']:.0f} %")
    if "loop_blocked_ms" in found:
        lines.append(f"blocked {found['loop_blocked_ms']:.0f} ms")
    lines += [f"{found[key]:.3g}{unit}" for key, unit in _PLAIN.items() if key in found]
    return lines


_PLAIN = {"peak_x": "x", "memory_mb": " MB", "time_ms": " ms"}


def _time(ms: float) -> str:
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.0f} µs"

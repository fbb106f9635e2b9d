"""Prints what a run measured as one table: what was wanted, what came of it, and ADK's services."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goals import GOALS, ROWS, Figures
from benchmarks.services import CONTENDERS, DATABASE, MEMORY, OURS, OURS_FULL, SQLITE

WIDTH = 150
_PEERS = (MEMORY, SQLITE, DATABASE)
_SAME_FIGURES = {"append_full": "append_event"}
_COLOURED = {"yes": "[green]yes[/green]", "no": "[red]no[/red]", "-": "-"}
HEADINGS = ("what", "goal", "measured", "met", "adk_eventstore", "InMemory", "Sqlite", "Database")


def print_report(run: Mapping[str, Any]) -> None:
    """Print the table of a run as it is kept."""
    # A pipe has no width, and rich would wrap the table at 80 columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    table = Table()
    for number, heading in enumerate(HEADINGS):
        text = number in (0, 1, 3)
        table.add_column(heading, no_wrap=text, justify="left" if text else "right")
    for columns in rows(run["figures"]):
        # A line for each, so that a cell that is wrapped keeps its neighbours.
        for cells in itertools.zip_longest(*columns, fillvalue=""):
            table.add_row(*cells[:3], _COLOURED.get(cells[3], ""), *cells[4:])
        table.add_section()
    console.print(table)
    for line in notes(run):
        console.print(line)


def rows(figures: Figures) -> Iterator[list[list[str]]]:
    """The table row by row: of each column the lines."""
    for row, title in ROWS.items():
        goals = [(goal, goal.judge(figures)) for goal in GOALS if goal.row == row]
        ours = OURS_FULL if row == "append_full" else OURS
        yield [
            title.split("\n"),
            [goal.wanted for goal, _ in goals],
            [judged[0] if judged else "-" for _, judged in goals],
            [("yes" if judged[1] else "no") if judged else "-" for _, judged in goals],
            *(_cell(figures, row, name) for name in (ours, *_PEERS)),
        ]


def notes(run: Mapping[str, Any]) -> Iterator[str]:
    """What belongs below the table: how many goals are met, and what the figures depend on."""
    judged = [goal.judge(run["figures"]) for goal in GOALS]
    yield f"{sum(1 for each in judged if each and each[1])} of {len(GOALS)} goals are met."
    if None in judged:
        yield f"{judged.count(None)} cannot be judged: not everything was measured."
    yield (
        "Times are medians, or the 99th percentile. Blocked: the longest that the event loop was "
        "held up."
    )
    yield (
        "update_keys: ADK's services have no such method; theirs is append_event of an event "
        "without content, with a state_delta."
    )
    yield ", ".join(f"{name}: {value}" for name, value in run["facts"].items())
    for name, pragmas in run["pragmas"].items():
        yield f"{title(name)}: {pragmas}; {CONTENDERS[name].promise}"


def title(name: str) -> str:
    """The name of a service on one line."""
    return CONTENDERS[name].title.replace("-\n", "").replace("\n", ", ")


def _cell(figures: Figures, row: str, name: str) -> list[str]:
    """The figures of one service in a row, shortly, line by line."""
    found = figures.get(_SAME_FIGURES.get(row, row), {}).get(name)
    if found is None:
        return ["-"]
    lines = []
    if "per_s" in found:
        lines.append(f"{found['per_s']:,.0f}/s")
    if "p50_ms" in found:
        lines += [_time(found["p50_ms"]), f"p99 {_time(found['p99_ms'])}"]
    if found.get("errors"):
        lines.append(f"errors: {found['errors']:.0f}")
    if "unfair_%" in found:
        lines.append(f"unfair: {found['unfair_%']:.0f} %")
    if "loop_blocked_ms" in found:
        lines.append(f"blocked: {found['loop_blocked_ms']:.0f} ms")
    lines += [f"{found[key]:.3g}{unit}" for key, unit in _PLAIN.items() if key in found]
    return lines


_PLAIN = {"peak_x": "x", "memory_mb": " MB", "time_ms": " ms"}


def _time(ms: float) -> str:
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.3g} ms" if ms >= 1 else f"{ms * 1000:.0f} µs"

"""Prints what a benchmark run kept as JSON as one comparison."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.services import CONTENDERS, OURS, OURS_FULL

TARGETS_MS = {"create_session": 2, "get_session": 5, "append_event": 3, "update_keys": 3}
WIDTH = 132

Samples = dict[str, dict[str, list[float]]]


def print_report(path: Path) -> None:
    """Print the comparison kept at `path`."""
    run = json.loads(path.read_text(encoding="utf-8"))
    samples: Samples = defaultdict(lambda: defaultdict(list))
    facts: dict[str, dict[str, Any]] = {}
    for benchmark in run["benchmarks"]:
        info = benchmark["extra_info"]
        samples[info["operation"]][info["service"]] += benchmark["stats"]["data"]
        facts[info["operation"]] = facts[info["service"]] = info
    # A pipe has no width, and rich would wrap the table at 80 columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(_table(samples, facts))
    _print_notes(console, run["machine_info"], facts)
    console.print(f"Kept in {path}")


def _table(samples: Samples, facts: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title="Median and 95th percentile of one call, all passes together", show_lines=True
    )
    table.add_column("operation")
    table.add_column("target", justify="right")
    for contender in CONTENDERS.values():
        table.add_column(contender.title, justify="right")
    for operation, by_service in samples.items():
        events = facts[operation]["events"]
        target = TARGETS_MS.get(operation)
        label = f"get_session\n{events:,} events" if events else operation
        cells = [_cell(name, by_service, target) for name in CONTENDERS]
        table.add_row(label, f"{target} ms" if target else "-", *cells)
    return table


def _cell(name: str, by_service: dict[str, list[float]], target: int | None) -> str:
    data = by_service[name]
    middle = median(data)
    high = quantiles(data, n=20, method="inclusive")[-1]
    times = f"[bold]{_time(middle)}[/bold]\n[dim]p95 {_time(high)}[/dim]"
    if name in (OURS, OURS_FULL):
        if target is None:
            return times
        met = middle * 1000 <= target
        return f"{times}\n" + ("[green]meets target[/green]" if met else "[red]over target[/red]")
    ratios = [middle / median(by_service[ours]) for ours in (OURS, OURS_FULL)]
    return f"{times}\n{_ratio(ratios[0])} / {_ratio(ratios[1])}"


def _ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.2f}x" if value >= 0.1 else f"{value:.1g}x"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _print_notes(
    console: Console, machine: dict[str, Any], facts: dict[str, dict[str, Any]]
) -> None:
    console.print(
        "Under ADK's services: how many times as long as adk_eventstore they take, "
        "at normal / at full durability (below 1x they are faster).\n"
        "update_keys: ADK's services have no such method; theirs is append_event of an event "
        "without content, with a state_delta,\nto a session already at hand.\n"
        "Time is taken around the awaited call on a running event loop; appends go to a new "
        "session after every hundred.\n"
    )
    source = "real conversations" if machine["real_conversations"] else "made up conversations"
    console.print(
        f"Python {machine['python_version']}, SQLite {machine['sqlite_version']}, "
        f"google-adk {machine['adk_version']}, {machine['cores']} cores, "
        f"{machine['system']} {machine['machine']}\n"
        f"Events from {source}, {machine['event_bytes']} bytes of JSON each on average"
    )
    for name, contender in CONTENDERS.items():
        title = contender.title.replace("-\n", "").replace("\n", ", ")
        console.print(f"  {title}: {facts[name]['pragmas']}; promise: {facts[name]['promise']}")
    console.print()

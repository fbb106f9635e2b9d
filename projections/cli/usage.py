"""The command `adk-eventstore usage`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from projections.cli.base import Command, Report, Settings
from projections.cli.output import table
from projections.usage import GROUPS, UsageRow, usage

__all__ = ["usage_command"]

_FIELD = {"app": "app_name", "user": "user_id", "day": "day", "model": "model", "agent": "agent"}
_FOR_PROGRAMS = {"latency_us", "latency_calls"}


@click.command(
    "usage",
    cls=Command,
    short_help="Show tokens, calls, errors and latency.",
    example="adk-eventstore usage --app shop --since 2026-01-01 --by day,model",
    exits={0: "shown"},
)
@click.option("--app", metavar="NAME", help="Only this app.")
@click.option("--user", metavar="ID", help="Only this user.")
@click.option("--since", metavar="DAY", help="From this UTC day on, such as 2026-01-31.")
@click.option("--until", metavar="DAY", help="Up to this UTC day, and with it.")
@click.option(
    "--by",
    metavar="GROUPS",
    multiple=True,
    help=f"Any of {','.join(GROUPS)}, with commas between; may be given again. [default: day]",
)
@click.pass_obj
def usage_command(
    settings: Settings,
    app: str | None,
    user: str | None,
    since: str | None,
    until: str | None,
    by: tuple[str, ...],
) -> Report:
    """Shows tokens, calls, errors and latency.

    Counting is off until it is enabled: adk-eventstore projections run usage. What came since it
    was counted last is counted first, while writers go on.
    """
    groups = [group for each in by for group in each.split(",") if group] or ["day"]
    with settings.store(repair=False) as store:
        rows = [
            _object(row, groups)
            for row in usage(store, app, user, since=since, until=until, by=groups)
        ]
    document = {"database": store.path, "by": groups, "rows": rows}
    if not rows:
        return Report(document, ["Nothing was used."])
    names = [name for name in rows[0] if name not in _FOR_PROGRAMS]
    return Report(document, table(names, [[row[name] for name in names] for row in rows]))


def _object(row: UsageRow, groups: Sequence[str]) -> dict[str, Any]:
    """A row by name, with the groups that were asked for first."""
    facts = row._asdict()
    keys = {_FIELD[group]: facts[_FIELD[group]] for group in groups}
    counts = {name: facts[name] for name in UsageRow._fields[len(GROUPS) :]}
    mean = row.mean_latency_ms
    return {**keys, **counts, "mean_latency_ms": None if mean is None else round(mean, 3)}

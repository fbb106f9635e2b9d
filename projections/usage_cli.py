"""The command `adk-eventstore usage`: what was used, for people and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Literal

import click

from eventstore import EventStoreError, open_store
from eventstore.location import DEFAULT_PATH, ENVIRONMENT_VARIABLE
from projections import installed
from projections.usage import GROUPS, UsageRow, usage

__all__ = ["usage_command"]


@click.command(
    "usage",
    epilog="Example: adk-eventstore usage --app shop --since 2026-01-01 --by day,model  "
    "Exit codes: 0 shown, 2 could not run.",
)
@click.option(
    "--db",
    metavar="PATH_OR_URL",
    help=f"The database. [default: ${ENVIRONMENT_VARIABLE}, else {DEFAULT_PATH}]",
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
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or one JSON document.",
)
def usage_command(
    db: str | None,
    app: str | None,
    user: str | None,
    since: str | None,
    until: str | None,
    by: tuple[str, ...],
    form: Literal["table", "json"],
) -> None:
    """Show tokens, calls, errors and latency.

    Counting is off until it is enabled: adk-eventstore projections run usage. What came since it
    was counted last is counted first, while writers go on.
    """
    groups = [group for each in by for group in each.split(",") if group] or ["day"]
    try:
        store = open_store(db, installed.inline(), create=False)
        try:
            rows = usage(store, app, user, since=since, until=until, by=groups)
        finally:
            store.close()
    except EventStoreError as error:
        click.echo(f"adk-eventstore usage: {error}", err=True)
        if form == "json":
            said = {"type": type(error).__name__, "message": str(error)}
            click.echo(json.dumps({"error": said}, indent=2))
        sys.exit(error.exit_code)
    objects = [_object(row, groups) for row in rows]
    if form == "json":
        document = {"database": store.path, "by": groups, "rows": objects}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(_table(objects) if objects else "Nothing was used.")


_FIELD = {"app": "app_name", "user": "user_id", "day": "day", "model": "model", "agent": "agent"}


def _object(row: UsageRow, groups: Sequence[str]) -> dict[str, Any]:
    """A row by name, with the groups that were asked for first."""
    facts = row._asdict()
    keys = {_FIELD[group]: facts[_FIELD[group]] for group in groups}
    counts = {name: facts[name] for name in UsageRow._fields[len(GROUPS) :]}
    mean = row.mean_latency_ms
    return {**keys, **counts, "mean_latency_ms": None if mean is None else round(mean, 3)}


def _table(objects: Sequence[dict[str, Any]]) -> str:
    """Columns of equal width: text to the left, numbers to the right."""
    names = [name for name in objects[0] if name not in ("latency_us", "latency_calls")]
    cells = [[_cell(each[name]) for name in names] for each in objects]
    text = [isinstance(objects[0][name], str) for name in names]
    widths = [max(len(cell) for cell in column) for column in zip(names, *cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_text else cell.rjust(width)
            for cell, width, is_text in zip(line, widths, text, strict=True)
        ).rstrip()
        for line in [names, *cells]
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    # A name may hold anything: on a terminal it must stay one line, and no command to it.
    return "".join(c if c.isprintable() else "\ufffd" for c in str(value))

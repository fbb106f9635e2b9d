"""The commands `adk-eventstore stats` and `doctor`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from projections.cli.base import Command, Report, Settings
from projections.cli.output import counted, printable, size, table
from projections.doctor import examine_database
from projections.stats import Stats, measure

__all__ = ["doctor_command", "stats_command"]

_BYTES_PER_S = 150_000_000


@click.command(
    "stats",
    cls=Command,
    short_help="Counts, sizes, growth, the largest sessions.",
    example="adk-eventstore stats --full --format json",
    exits={0: "shown"},
)
@click.option(
    "--full/--quick",
    "whole",
    default=None,
    help="Measure sizes, which reads all of the file; or do not. [default: up to 256 MB]",
)
@click.option(
    "--days", type=click.IntRange(1, 366), default=14, show_default=True, help="Days of growth."
)
@click.option(
    "--largest", type=click.IntRange(0, 1000), default=10, show_default=True, help="Sessions named."
)
@click.pass_obj
def stats_command(settings: Settings, whole: bool | None, days: int, largest: int) -> Report:
    """Shows what the database holds and what it takes.

    Counts come from the rows of sessions, users and apps, and cost little. Sizes need a look at
    every event and page: a second or two for each 256 MB. Days are UTC.
    """
    with settings.store() as store, settings.progress("measuring") as progress:
        stats = measure(store, whole=whole, days=days, largest=largest, progress=progress)
    return Report(_document(stats), list(_lines(stats)))


def _document(stats: Stats) -> dict[str, object]:
    return {
        "database": stats.path,
        "head": stats.head,
        "sessions": stats.sessions,
        "events": stats.events,
        "whole": stats.whole,
        "size_bytes": stats.storage.total,
        "unused_bytes": stats.storage.unused,
        "wal_bytes": stats.storage.log,
        "tables": None if stats.storage.tables is None else dict(stats.storage.tables),
        "apps": [each._asdict() for each in stats.apps],
        "days": [each._asdict() for each in stats.days],
        "largest": [each._asdict() for each in stats.largest],
    }


def _lines(stats: Stats) -> Iterator[str]:
    storage = stats.storage
    yield stats.path
    yield (
        f"{counted(stats.sessions, 'session')}, {counted(stats.events, 'event')}, "
        f"head {stats.head:,}"
    )
    log = "" if "://" in stats.path else f"; -wal {size(storage.log)}"
    yield f"{size(storage.total)}, of it {size(storage.unused)} unused{log}"
    if not stats.whole:
        seconds = max(1, round(storage.total / _BYTES_PER_S))
        yield f"Sizes were not measured: --full does, in about {seconds} s."
    for title, header, rows in (
        (
            "By app",
            ("APP", "SESSIONS", "USERS", "DELETED", "EVENTS", "CONTENT"),
            [(*app[:5], _size(app.bytes)) for app in stats.apps],
        ),
        (
            "By table, with its indexes",
            ("TABLE", "SIZE"),
            [(name, size(number)) for name, number in (storage.tables or {}).items()],
        ),
        (
            "By day",
            ("DAY", "APPENDED", "CONTENT"),
            [(day.day, day.events, _size(day.bytes)) for day in stats.days],
        ),
        (
            "Largest sessions",
            ("APP", "USER", "SESSION", "EVENTS", "CONTENT"),
            [(*each[:4], _size(each.bytes)) for each in stats.largest],
        ),
    ):
        if rows:
            yield from ("", title, *table(header, rows))


def _size(number: int | None) -> str | None:
    return None if number is None else size(number)


@click.command(
    "doctor",
    cls=Command,
    short_help="Find what is wrong around the database, and the remedy.",
    example="adk-eventstore doctor --db data_science/db/adk.sqlite3",
    exits={
        0: "nothing has to be done",
        1: "something has to be done: a warning or a problem, with its remedy",
    },
)
@click.option(
    "--full/--quick",
    "whole",
    default=None,
    help="Check every page of the file; or do not. [default: up to 1 GB]",
)
@click.pass_obj
def doctor_command(settings: Settings, whole: bool | None) -> Report:
    """Looks at versions, the place, permissions, schema, settings, integrity and projections.

    Changes nothing, and works where the database does not. `adk-eventstore verify` looks deeper, at
    every event and row.
    """
    findings = examine_database(settings.db, whole=whole)
    bad = sum(finding.state in ("warning", "problem") for finding in findings)
    document = {"healthy": not bad, "findings": [finding._asdict() for finding in findings]}
    lines = []
    for finding in findings:
        lines.append(
            f"{finding.state.upper():<8} {finding.check}: {printable(finding.message, whole=True)}"
        )
        if finding.remedy:
            lines.append(f"{'':8} {'':2}{printable(finding.remedy, whole=True)}")
    lines.append(f"{bad} to be done." if bad else "Nothing has to be done.")
    return Report(document, lines, 1 if bad else 0)

"""The command `adk-eventstore import`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from eventstore import EventStore, NotADatabase, StoreUnusable, open_store, pending_migrations
from eventstore.location import resolve
from projections import installed
from projections.cli.base import (
    Command,
    CommandFailed,
    FilePath,
    Report,
    Settings,
    require_migrated,
)
from projections.cli.output import counted, printable
from projections.cli.transfer import moved
from projections.transfer import import_log, is_export, is_there

if TYPE_CHECKING:
    from adk_adapter.imports import Imported, LeftOut

__all__ = ["import_sessions"]

_SHOWN: Final = 50
"""Lines about what was left out that people are shown; the JSON document has all."""


def _zone(ctx: click.Context, param: click.Parameter, value: str | None) -> tzinfo | None:
    try:
        return None if value is None else ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, RecursionError):  # for a long one with slashes
        raise click.BadParameter(
            f"{value!r} is no time zone, such as UTC or Europe/Vienna."
        ) from None


@click.command(
    "import",
    cls=Command,
    short_help="Take sessions in: from ADK's own databases, or from an export.",
    example="adk-eventstore import old.db --db data_science/db/adk.sqlite3",
    exits={
        0: "everything was taken, or was there already",
        1: "something was left out: the report names it",
    },
    interrupted="From a database of ADK's: what was taken is kept, whole sessions; run it again to "
    "go on. From an export: nothing was taken.",
)
@click.argument("source", type=FilePath(path_type=str))
@click.option(
    "--timezone",
    "zone",
    metavar="NAME",
    callback=_zone,
    help="Where the process ran that wrote a database of ADK before 1.22, whose times have no "
    "zone. [default: the zone of this machine]",
)
@click.option("--dry-run", is_flag=True, help="Read and judge everything, and write nothing.")
@click.pass_obj
def import_sessions(settings: Settings, source: str, zone: tzinfo | None, dry_run: bool) -> Report:
    """Takes the sessions of SOURCE into the database, which is made where it is missing.

    SOURCE is a SQLite file that ADK's SqliteSessionService or DatabaseSessionService wrote, in any
    version; the URL of a PostgreSQL database that it wrote; the folder of agents that adk web was
    started on, with its .adk/session.db files; or a file that adk-eventstore export wrote.

    It is only read. What was taken before is not taken again.
    """
    if dry_run and is_there(settings.db):
        require_migrated(settings.db)
    if _is_export(source):
        inline = installed.inline()
        with settings.progress("importing") as progress:
            done = import_log(
                resolve(source), settings.db, inline, dry_run=dry_run, progress=progress
            )
        return moved(done, "import", "Imported", dry_run=dry_run)
    return _from_adk(settings, source, zone, dry_run=dry_run)


def _is_export(source: str) -> bool:
    if "://" in source:
        return False
    path = Path(resolve(source))
    if not path.is_file():
        return False
    try:
        pending_migrations(path)
    except NotADatabase:
        # Only now with `open`: closing a database that way drops the locks this process has on it.
        if is_export(path):
            return True
        if _begins_as_json(path):
            raise CommandFailed(
                f"{source} is JSON, and no log that adk-eventstore export wrote. What it writes "
                "with --as is for ADK to read; to take a session in here, export it without --as."
            ) from None
    except StoreUnusable:
        pass
    return False


def _begins_as_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"{"


def _from_adk(settings: Settings, source: str, zone: tzinfo | None, *, dry_run: bool) -> Report:
    from adk_adapter import imports

    with ExitStack() as stack:
        sources = stack.enter_context(imports.open_sources(source, zone))
        store = _target(settings, dry_run=dry_run)
        if store is not None:
            stack.callback(store.close)
        reports = []
        for each in sources:
            with settings.progress("importing") as progress:
                reports.append(
                    imports.import_sessions(store, each, dry_run=dry_run, progress=progress)
                )
    path = resolve(settings.db) if store is None else store.path
    return _imported(path, reports, dry_run=dry_run)


def _target(settings: Settings, *, dry_run: bool) -> EventStore | None:
    """The store to write to; None for one that a dry run does not make."""
    if dry_run and not is_there(settings.db):
        return None
    return open_store(settings.db, installed.inline(), create=not dry_run)


def _imported(path: str, reports: Sequence[Imported], *, dry_run: bool) -> Report:
    document = {
        "database": path,
        "dry_run": dry_run,
        "sources": [
            {
                "source": report.source,
                "kind": report.kind,
                "sessions": report.sessions,
                "grown": report.grown,
                "there": report.there,
                "deleted_here": report.deleted,
                "events": report.events,
                "keys": report.keys,
                "orphans": report.orphans,
                "left_out_count": report.left_out_count,
                "left_out": [each._asdict() for each in report.left_out],
            }
            for report in reports
        ],
    }
    lines = [path]
    if dry_run:
        lines.append("A dry run: nothing was written, and this would be.")
    for report in reports:
        lines += _lines(report)
    return Report(document, lines, int(any(report.left_out_count for report in reports)))


def _lines(report: Imported) -> Iterator[str]:
    yield f"From {printable(report.source)} ({report.kind}):"
    yield (
        f"  {counted(report.sessions, 'session')} taken, {counted(report.events, 'event')}, "
        f"{counted(report.keys, 'key')} of users and apps"
    )
    for number, what in (
        (report.grown, "had new events there, which were taken"),
        (report.there, "here already"),
        (report.deleted, "deleted here since, and not brought back"),
    ):
        if number:
            yield f"  {counted(number, 'session')} {what}"
    if report.orphans:
        yield f"  {counted(report.orphans, 'event')} of sessions deleted there, not taken"
    for each in report.left_out[:_SHOWN]:
        yield f"  left out: {_left_out(each)}"
    if report.left_out_count > _SHOWN:
        yield f"  and {report.left_out_count - _SHOWN:,} more: see them with --format json"
    if not report.left_out_count:
        yield "  Nothing was left out."


def _left_out(each: LeftOut) -> str:
    ids = [
        f"{name} {printable(value)}"
        for name, value in (
            ("app", each.app_name),
            ("user", each.user_id),
            ("session", each.session_id),
            ("event", each.event_id),
        )
        if value is not None
    ]
    where = f"{each.table}: {', '.join(ids)}, {each.size_bytes:,} bytes"
    return f"{where}: {printable(each.reason)}"

"""The command `adk-eventstore copy`, and how a move of a log is reported."""

from __future__ import annotations

from collections.abc import Iterator

import click

from eventstore import open_store
from projections import installed
from projections.cli.base import Command, FilePath, Report, Settings, require_migrated
from projections.cli.output import counted, printable
from projections.transfer import Taken, copy_log, is_there

__all__ = ["copy_database", "moved"]


@click.command(
    "copy",
    cls=Command,
    short_help="Copy the log to another database, proved on both sides.",
    example="adk-eventstore copy data_science/db/adk.sqlite3 new.sqlite3",
    exits={0: "the copy is whole, verified and in its place; with --dry-run: the source is proved"},
    interrupted="There is no copy; the source is as it was.",
)
@click.argument("source", type=FilePath(path_type=str))
@click.argument("target", type=FilePath(path_type=str))
@click.option("--dry-run", is_flag=True, help="Prove the source and look at TARGET; write nothing.")
@click.pass_obj
def copy_database(settings: Settings, source: str, target: str, dry_run: bool) -> Report:
    """Copies the log of SOURCE to TARGET, event by event, while services write to SOURCE.

    Positions, versions, digests and links stay as they are; the tables are made anew. TARGET is a
    new database, or one without events. --db has no meaning here.
    """
    require_migrated(source)
    if dry_run and is_there(target):
        require_migrated(target)
    inline = installed.inline()
    store = open_store(source, inline, for_rebuild=True, create=False)
    try:
        with settings.progress("copying") as progress:
            done = copy_log(store, target, inline, dry_run=dry_run, progress=progress)
    finally:
        store.close()
    return moved(done, "copy", "Copied", dry_run=dry_run)


def moved(done: Taken, verb: str, past: str, *, dry_run: bool) -> Report:
    """What was exported, imported or copied."""
    document = {
        "source": done.source,
        "target": done.target,
        "dry_run": dry_run,
        "part": done.part._asdict(),
        "streams": done.streams,
        "events": done.events,
        "there": done.there,
        "keys_kept": done.keys_kept,
        "size_bytes": done.size_bytes,
        "root": done.root,
        "notes": list(done.notes),
    }
    return Report(document, list(_lines(done, f"A dry run: it would {verb}" if dry_run else past)))


def _lines(done: Taken, verb: str) -> Iterator[str]:
    named = {name: value for name, value in done.part._asdict().items() if value is not None}
    part = ", ".join(f"{name} {printable(value)}" for name, value in named.items())
    counts = f"{counted(done.streams, 'stream')}, {counted(done.events, 'event')}"
    yield f"{verb} {printable(done.source)} to {printable(done.target)}: {counts}."
    if part:
        yield f"  only {part}"
    if done.there:
        yield f"  {counted(done.there, 'stream')} there already, not taken again"
    if done.keys_kept:
        yield f"  {counted(done.keys_kept, 'key')} of users and apps kept as they are here"
    if done.root is not None:
        yield f"  root {done.root}"
    yield from (f"  {note}" for note in done.notes)

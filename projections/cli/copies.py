"""The commands `adk-eventstore backup`, `restore` and `recover`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from eventstore import PathUnusable
from eventstore.location import resolve
from projections import installed
from projections.backup import BackedUp, backup, restore
from projections.cli.base import Command, FilePath, Report, Settings, confirm
from projections.cli.output import counted, printable
from projections.files import usable_target
from projections.recover import LeftOut, Recovered, recover
from projections.transfer import is_export

__all__ = ["backup_file", "recover_file", "restore_file"]

_SHOWN = 50
"""Lines about what was left out that people are shown; the JSON document has all."""


@click.command(
    "backup",
    cls=Command,
    short_help="Copy the database while services write.",
    example="adk-eventstore backup sessions.backup --db data_science/db/adk.sqlite3",
    exits={0: "the copy is whole, verified and in its place"},
    interrupted="There is no copy; what was there before is.",
)
@click.argument("target", type=FilePath(path_type=str))
@click.option("--overwrite", is_flag=True, help="Replace TARGET if it is there.")
@click.pass_obj
def backup_file(settings: Settings, target: str, overwrite: bool) -> Report:
    """Copies the database to TARGET, one snapshot of it, and verifies the copy.

    Writers go on meanwhile. TARGET has its name only once it is whole. To copy the file of a
    running service in any other way loses what was written last.
    """
    with settings.store(dry_run=True) as store:
        following = installed.following(store)
        with settings.progress("verifying the copy") as progress:
            done = backup(store, target, following, overwrite=overwrite, progress=progress)
        return _copied(store.path, done, "Copied")


@click.command(
    "restore",
    cls=Command,
    short_help="Put a backup in the database's place.",
    example="adk-eventstore restore sessions.backup --overwrite --db data_science/db/adk.sqlite3",
    exits={0: "a verified copy of the backup is the database now"},
    interrupted="The database is as it was, or the copy of the backup.",
)
@click.argument("source", type=FilePath(path_type=str))
@click.option(
    "--overwrite", is_flag=True, help="Replace the database if it is there; asks for confirmation."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def restore_file(settings: Settings, source: str, overwrite: bool, yes: bool) -> Report:
    """Puts a copy of the backup SOURCE where the service looks for its database.

    The copy is verified before anything is replaced; SOURCE stays as it is. Stop the services that
    use the database first: while one has it open nothing is replaced.
    """
    if Path(resolve(source)).is_file() and is_export(source):
        raise PathUnusable(
            source, "is an export, not a backup", f"Take it in: adk-eventstore import {source}"
        )
    path = usable_target(settings.db, overwrite=overwrite)
    if path.exists():
        confirm(f"{path} and all sessions in it will be replaced. Go on?", yes=yes)
    inline = installed.inline()
    with settings.progress("verifying the copy") as progress:
        done = restore(source, settings.db, inline, None, overwrite=overwrite, progress=progress)
    return _copied(resolve(source), done, "Restored")


def _copied(source: str, done: BackedUp, verb: str) -> Report:
    verified = done.verified
    document = {
        "source": source,
        "target": done.path,
        "size_bytes": done.size_bytes,
        "events": verified.events,
        "streams": verified.streams,
        "head": verified.head,
        "clean": verified.clean,
        "unchecked": verified.unchecked,
    }
    size = f"{done.size_bytes:,} bytes, {counted(verified.events, 'event')}"
    counts = f"{size}, {counted(verified.streams, 'stream')}"
    lines = [f"{verb} {printable(source)} to {printable(done.path)}: {counts}. Clean."]
    lines += [f"Not checked: {name}: {reason}" for name, reason in verified.unchecked.items()]
    return Report(document, lines)


@click.command(
    "recover",
    cls=Command,
    short_help="Save what can be saved of a damaged file.",
    example="adk-eventstore recover data_science/db/adk.sqlite3 recovered.sqlite3",
    exits={
        0: "everything was saved",
        1: "what could be saved was, and something was left out: the report names it",
    },
    interrupted="There is no new file; the damaged one is as it was.",
)
@click.argument("source", type=FilePath(path_type=str))
@click.argument("target", type=FilePath(path_type=str))
@click.pass_obj
def recover_file(settings: Settings, source: str, target: str) -> Report:
    """Writes every event that can be saved from the damaged SOURCE into the new file TARGET.

    SOURCE is only read, TARGET must not be there. Stop the services that use SOURCE first. What was
    left out is named by ids, positions, sizes and reasons; content is never shown. --db has no
    meaning here.
    """
    with settings.progress("recovering") as progress:
        done = recover(source, target, installed.inline(), progress=progress)
    return _recovered(done)


def _recovered(done: Recovered) -> Report:
    document = {
        "source": done.source,
        "target": done.path,
        "events": done.events,
        "sessions": done.sessions,
        "left_out": [each._asdict() for each in done.left_out],
        "notes": done.notes,
    }
    return Report(document, list(_recovered_lines(done)), 1 if done.left_out else 0)


def _recovered_lines(done: Recovered) -> Iterator[str]:
    yield (
        f"Saved {counted(done.events, 'event')} of {counted(done.sessions, 'session')} "
        f"to {printable(done.path)}. It verifies."
    )
    for each in done.left_out[:_SHOWN]:
        yield f"  left out: {_left_out(each)}"
    if len(done.left_out) > _SHOWN:
        yield f"  and {len(done.left_out) - _SHOWN:,} more: see them with --format json"
    for note in done.notes:
        yield f"  {printable(note)}"
    if not done.left_out:
        yield "Nothing was left out."


def _left_out(each: LeftOut) -> str:
    where = printable(each.stream)
    if each.version is not None:
        last = each.last_version
        versions = f"version {each.version}" if last == each.version else f"versions {each.version}"
        where += f", {versions}" + ("" if last == each.version else f" to {last}")
    if each.position is not None:
        where += f", position {each.position}"
    if each.size_bytes is not None:
        where += f", {each.size_bytes:,} bytes"
    return f"{where}: {each.reason}"

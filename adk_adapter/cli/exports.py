"""The command `adk-eventstore export`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import click

from eventstore import EventStore
from projections.cli.base import Command, FilePath, Report, Settings
from projections.cli.output import printable
from projections.cli.transfer import moved
from projections.files import usable_file, whole_file
from projections.transfer import Part, export_log

__all__ = ["export_sessions"]


@click.command(
    "export",
    cls=Command,
    short_help="Take sessions out: as JSON Lines, or as JSON that ADK reads.",
    example="adk-eventstore export sessions.jsonl --app shop --db data_science/db/adk.sqlite3",
    exits={0: "the file is whole and in its place; with --dry-run: everything can be exported"},
    interrupted="There is no new file; what was there before is.",
)
@click.argument("target", type=FilePath(path_type=str))
@click.option("--app", metavar="NAME", help="Only this app.")
@click.option("--user", metavar="ID", help="Only this user of --app.")
@click.option("--session", metavar="ID", help="Only this session of --user.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["log", "session", "eval-set"]),
    default="log",
    show_default=True,
    help="The log with everything that proves it; or one session for adk run --resume; or one "
    "session as an eval set for adk eval and adk web.",
)
@click.option("--overwrite", is_flag=True, help="Replace TARGET if it is there.")
@click.option("--dry-run", is_flag=True, help="Read and prove everything, and write nothing.")
@click.pass_obj
def export_sessions(
    settings: Settings,
    target: str,
    app: str | None,
    user: str | None,
    session: str | None,
    form: Literal["log", "session", "eval-set"],
    overwrite: bool,
    dry_run: bool,
) -> Report:
    """Writes sessions to the file TARGET, while services write to the database.

    Without --app it is everything, deleted sessions and the record of maintenance included. Export
    twice, and the bytes are the same. TARGET has its name only once it is whole.
    """
    if session is not None and (app is None or user is None):
        raise click.UsageError("--session needs --app and --user: a session belongs to both.")
    if user is not None and app is None:
        raise click.UsageError("--user needs --app: a user belongs to an app.")
    with settings.store(dry_run=True, repair=form == "log") as store:
        if form != "log":
            if app is None or user is None or session is None:
                raise click.UsageError(f"--as {form} needs --app, --user and --session.")
            path = usable_file(target, overwrite=overwrite)
            content = _for_adk(store, (app, user, session), form)
            if not dry_run:
                with whole_file(path) as file:
                    file.write(content)
            return _written(store.path, path, form, content, dry_run=dry_run)
        with settings.progress("exporting") as progress:
            done = export_log(
                store,
                target,
                Part(app, user, session),
                overwrite=overwrite,
                dry_run=dry_run,
                progress=progress,
            )
    return moved(done, "export", "Exported", dry_run=dry_run)


def _for_adk(
    store: EventStore, key: tuple[str, str, str], form: Literal["session", "eval-set"]
) -> bytes:
    # A service would begin to follow the log with its projections, which changes the database.
    from adk_adapter.service import exported, session_key

    return asyncio.run(exported(store, session_key(*key), form)).encode()


def _written(path: str, target: Path, form: str, content: bytes, *, dry_run: bool) -> Report:
    document = {
        "source": path,
        "target": str(target),
        "dry_run": dry_run,
        "form": form,
        "size_bytes": len(content),
    }
    done = "A dry run: it would export" if dry_run else "Exported"
    line = f"{done} {printable(path)} to {printable(target)}: {len(content):,} bytes."
    return Report(document, [line])

"""The commands `adk-eventstore purge`, `erase-user` and `vacuum`."""

from __future__ import annotations

from typing import NamedTuple

import click

from eventstore import EventStore
from eventstore.location import is_server
from projections import installed
from projections.cli.asked import AGE, app_option, yes_option
from projections.cli.base import Command, Report, Settings, confirm
from projections.cli.output import counted, size
from projections.retention import (
    AUTOMATIC_REWRITE_BYTES,
    Erasable,
    Erased,
    Vacuumed,
    erasable,
    erase_user,
    purge,
    purgeable,
    vacuum,
    vacuumable,
)

__all__ = ["erase_user_command", "purge_command", "vacuum_command"]

_REWRITE_BYTES_PER_S = 50_000_000


class _Words(NamedTuple):
    """What is said of a file, and what of a schema on a server."""

    wait: str
    rewritten: str
    kept: str
    read: str
    gone: str


_LATER = "When writers can wait: adk-eventstore vacuum --rewrite"
_FILE = _Words(
    wait="The file is written anew at last",
    rewritten="The file was written anew.",
    kept="The file was not written anew: unused parts of it may hold copies.",
    read="An older state of the file is still being read, and a copy is kept for that. End the "
    "program that reads, then: adk-eventstore vacuum --rewrite",
    gone="No copy is left in the file. Backups made before still have it.",
)
_TABLES = _Words(
    wait="The tables are written anew at last",
    rewritten="The tables were written anew.",
    kept="The tables were not written anew: unused parts of them may hold copies.",
    read="A transaction that was begun before is still open, and the server may keep copies for "
    "it: see docs/postgresql.md. End it, then: adk-eventstore vacuum --rewrite",
    gone="No copy is left in the tables. Backups made before still have it, and the server's WAL "
    "for a while.",
)


def _words(store: EventStore) -> _Words:
    return _TABLES if is_server(store.path) else _FILE


@click.command(
    "purge",
    cls=Command,
    short_help="Remove sessions that nobody has used for long.",
    example="adk-eventstore purge --older-than 90d --app test_app --dry-run",
    exits={0: "removed; with --dry-run: counted"},
    interrupted="Some sessions were removed whole; run it again for the others.",
)
@click.option(
    "--older-than",
    metavar="AGE",
    type=AGE,
    required=True,
    help="Last updated so long ago or longer: 90d, 12h.",
)
@app_option
@click.option("--dry-run", is_flag=True, help="Count what would be removed; change nothing.")
@yes_option
@click.pass_obj
def purge_command(
    settings: Settings, older_than: float, app: str | None, dry_run: bool, yes: bool
) -> Report:
    """Removes the sessions that were last updated before an age, with their events.

    Keys of their users and apps stay. It goes some sessions at a time, while services write, and
    gives the space back. What is removed cannot be brought back but from a backup.
    """
    with settings.store(dry_run=dry_run, repair=False) as store:
        found = purgeable(store, older_than, app)
        counts = f"{counted(found.sessions, 'session')}, {counted(found.events, 'event')}"
        document = {
            "database": store.path,
            "dry_run": dry_run,
            "app_name": app,
            "older_than_s": older_than,
            **found._asdict(),
            "keys_carried_over": 0,
            "bytes_freed": 0,
        }
        if dry_run:
            return Report(document, [f"A dry run: it would remove {counts}."])
        if not found.sessions:
            return Report(document, ["There is nothing to remove."])
        confirm(f"Remove {counts}, for good?", yes=yes)
        with settings.progress("purging") as progress:
            done = purge(
                store,
                installed.inline(),
                installed.following(store),
                older_than=older_than,
                app_name=app,
                progress=progress,
            )
    line = (
        f"Removed {counted(done.sessions, 'session')}, {counted(done.events, 'event')}; "
        f"gave back {size(done.bytes_freed)}."
    )
    return Report({**document, **done._asdict()}, [line])


@click.command(
    "erase-user",
    cls=Command,
    short_help="Remove everything of a user, from the file too.",
    example="adk-eventstore erase-user test_user --dry-run",
    exits={
        0: "erased, and no copy is left in the file or the tables; with --dry-run: counted",
        1: "erased for every reader; a copy may be left there: the message says what to do",
    },
    interrupted="What was erased is; run it again for the rest.",
)
@click.argument("user_id", metavar="USER")
@click.option("--app", metavar="NAME", help="Only in this app. [default: in all]")
@click.option(
    "--rewrite/--no-rewrite",
    default=None,
    help="Write file or tables anew at last, while writers wait; or not. [default: up to 256 MB]",
)
@click.option("--dry-run", is_flag=True, help="Count what would be erased; change nothing.")
@yes_option
@click.pass_obj
def erase_user_command(
    settings: Settings,
    user_id: str,
    app: str | None,
    rewrite: bool | None,
    dry_run: bool,
    yes: bool,
) -> Report:
    """Removes every session, event and key of USER, in all apps unless one is named.

    What is left says how many sessions were erased, and not whose. Keys of an app keep their value,
    also those that a session of the user wrote last. Backups made before have it all: see the page
    on retention.
    """
    with settings.store(dry_run=dry_run, repair=False) as store:
        found = erasable(store, user_id, app)
        words, total = _words(store), store.storage(tables=False).total
        whole = total <= AUTOMATIC_REWRITE_BYTES if rewrite is None else rewrite
        document = {
            "database": store.path,
            "dry_run": dry_run,
            "apps": found.apps,
            "sessions": found.sessions + found.deleted_sessions,
            "events": found.events,
            "keys": found.keys,
            "keys_carried_over": 0,
            "bytes_freed": 0,
            "rewritten": False,
            "gone": False,
        }
        counts = _erasable(found)
        if dry_run:
            lines = [f"A dry run: it would erase {counts}."]
            if whole:
                lines.append(_wait(words, total))
            return Report(document, lines)
        if not found.events and not found.rewrite:
            return Report({**document, "gone": True}, ["There is nothing of such a user here."])
        confirm(
            f"Erase {counts}, for good?" + (f" {_wait(words, total)}" if whole else ""),
            yes=yes,
        )
        with settings.progress("erasing") as progress:
            done = erase_user(
                store,
                installed.inline(),
                installed.following(store),
                user_id=user_id,
                app_name=app,
                rewrite=rewrite,
                progress=progress,
            )
    return Report({**document, **done._asdict()}, _erased(words, done), 0 if done.gone else 1)


def _erasable(found: Erasable) -> str:
    return (
        f"{counted(found.sessions + found.deleted_sessions, 'session')} "
        f"in {counted(found.apps, 'app')}, {counted(found.events, 'event')}, "
        f"{counted(found.keys, 'key')} of the user"
    )


def _wait(words: _Words, total: int) -> str:
    seconds = max(1, round(total / _REWRITE_BYTES_PER_S))
    return f"{words.wait}: writers wait for about {seconds} s."


def _erased(words: _Words, done: Erased) -> list[str]:
    erased = f"{counted(done.sessions, 'session')}, {counted(done.events, 'event')}"
    keys = f"{counted(done.keys, 'key')} of the user"
    lines = [f"Erased {erased}, {keys}; gave back {size(done.bytes_freed)}."]
    if done.keys_carried_over:
        lines.append(
            f"{counted(done.keys_carried_over, 'key')} of apps, which sessions of the user wrote "
            "last, have their values still."
        )
    if done.gone:
        lines.append(words.gone)
    elif done.rewritten:
        lines.append(words.read)
    else:
        lines.append(f"{words.kept} {_LATER}")
    return lines


@click.command(
    "vacuum",
    cls=Command,
    short_help="Remove deleted sessions' events, and make the file smaller.",
    example="adk-eventstore vacuum --yes",
    exits={
        0: "done; with --dry-run: counted",
        1: "with --rewrite: done, but a copy may be left, which somebody reads",
    },
    interrupted="Some sessions' events were removed; run it again for the others.",
)
@click.option(
    "--rewrite", is_flag=True, help="Write file or tables anew at last, while writers wait."
)
@click.option("--dry-run", is_flag=True, help="Count what would be removed; change nothing.")
@yes_option
@click.pass_obj
def vacuum_command(settings: Settings, rewrite: bool, dry_run: bool, yes: bool) -> Report:
    """Removes the events of sessions that were deleted, and gives unused space back.

    It goes in small steps, while services write. With --rewrite the file, or the tables on a
    server, becomes as small as can be and no copy of what was removed is left in it; that needs as
    much room again, and writers wait.
    """
    with settings.store(dry_run=dry_run, repair=False) as store:
        sessions, events = vacuumable(store)
        words, storage = _words(store), store.storage(tables=False)
        counts = f"{counted(sessions, 'deleted session')}, {counted(events, 'event')}"
        document = {
            "database": store.path,
            "dry_run": dry_run,
            "sessions": sessions,
            "events": events,
            "keys_carried_over": 0,
            "bytes_freed": 0,
            "rewritten": False,
            "gone": False,
        }
        if dry_run:
            lines = [f"A dry run: it would remove {counts}. {size(storage.unused)} are unused."]
            return Report(document, [*lines, *([_wait(words, storage.total)] if rewrite else [])])
        if events or rewrite:
            question = f"Remove {counts}, for good?"
            confirm(f"{question} {_wait(words, storage.total)}" if rewrite else question, yes=yes)
        with settings.progress("vacuuming") as progress:
            done = vacuum(
                store,
                installed.inline(),
                installed.following(store),
                rewrite=rewrite,
                progress=progress,
            )
    left = rewrite and not done.gone
    return Report({**document, **done._asdict()}, _vacuumed(words, done), 1 if left else 0)


def _vacuumed(words: _Words, done: Vacuumed) -> list[str]:
    counts = f"{counted(done.sessions, 'deleted session')}, {counted(done.events, 'event')}"
    lines = [f"Removed {counts}; gave back {size(done.bytes_freed)}."]
    if done.rewritten:
        lines.append(words.rewritten if done.gone else words.read)
    return lines

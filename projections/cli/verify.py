"""The command `adk-eventstore verify`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import click

from projections.anchors import Anchor, InvalidAnchor, read_anchor, write_anchor
from projections.cli.base import (
    COUNT,
    Command,
    CommandFailed,
    FilePath,
    Report,
    Settings,
    confirm,
    known,
    projection_option,
)
from projections.cli.output import counted, printable
from projections.files import usable_file
from projections.verify import Difference, Touched, Verified, verify

__all__ = ["verify_log"]

_REMEDY: Final = (
    "Restore the file from a backup, or save what can be saved of it: adk-eventstore recover."
)
_LOG: Final = {"events", "anchor", "file"}
"""What Difference calls tables, and are none that could be made anew."""


@click.command(
    "verify",
    cls=Command,
    short_help="Check the log, and the tables against it.",
    example="adk-eventstore verify --db data_science/db/adk.sqlite3 --format json",
    exits={
        0: "clean, or everything that differed was put right",
        1: "drift: something differs from what the log says, or the log was damaged",
    },
)
@projection_option
@click.option("--fix", is_flag=True, help="Make tables that differ anew; asks for confirmation.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option(
    "--since",
    metavar="POSITION",
    type=COUNT,
    help="Check only the events behind this position and the rows that they touched.",
)
@click.option(
    "--anchor",
    "anchor_file",
    metavar="FILE",
    type=FilePath(dir_okay=False, path_type=Path),
    help="After a clean check, write an anchor: keep it where this database's owner cannot write.",
)
@click.option(
    "--against",
    "against_file",
    metavar="FILE",
    type=FilePath(dir_okay=False, path_type=Path),
    help="Prove that the log still has the history that an anchor knows.",
)
@click.pass_obj
def verify_log(
    settings: Settings,
    names: tuple[str, ...],
    fix: bool,
    yes: bool,
    since: int | None,
    anchor_file: Path | None,
    against_file: Path | None,
) -> Report:
    """Recomputes digests, hash chains, streams and tables from the log, and names what differs.

    Writers go on meanwhile. Every difference is counted, the first ones of each table are
    described with the event that last touched the row. The report shows stored values.
    """
    if since is not None and (anchor_file or against_file):
        raise click.UsageError("--since cannot go with --anchor or --against: they need it all.")
    if fix and anchor_file is not None:
        raise click.UsageError("--fix cannot go with --anchor: fix first, then write the anchor.")
    here = known()
    here.require(names)
    against = None if against_file is None else _read(against_file)
    if anchor_file is not None:
        _require_writable(anchor_file)
    if fix:
        confirm("Tables that differ from the log will be made anew. Go on?", yes=yes)
    with settings.store() as store:
        inline, asynchronous = here.chosen(store, names)
        with settings.progress("verifying", since or 0) as progress:
            verified = verify(
                store,
                inline,
                asynchronous,
                since=since or 0,
                against=against,
                fix=fix,
                progress=progress,
            )
    if names:  # the others were left out, which is no news
        for name in here.by_name:
            if name not in names:
                verified.unchecked.pop(name, None)
    if anchor_file is not None and verified.anchor is not None:
        write_anchor(anchor_file, verified.anchor)
    return _report(verified, since, fix, anchor_file, against_file, against)


def _read(path: Path) -> Anchor:
    try:
        return read_anchor(path)
    except OSError as error:
        raise CommandFailed(
            f"{path} cannot be read: {error.strerror}. Pass the path of an anchor."
        ) from error


def _require_writable(path: Path) -> None:
    """Before the long work, not behind it. Only an old anchor is replaced."""
    if usable_file(path, overwrite=True).exists():
        try:
            read_anchor(path)
        except (InvalidAnchor, OSError) as error:
            raise CommandFailed(f"{path} is there, and is no anchor. Name another file.") from error
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise CommandFailed(f"{path} cannot be written. Choose a folder that you may write to.")


def _report(
    verified: Verified,
    since: int | None,
    fix: bool,
    anchor_file: Path | None,
    against_file: Path | None,
    against: Anchor | None,
) -> Report:
    lines = list(_lines(verified, since, fix))
    written = proved = None
    if against is not None:
        lines += _proof(verified, against)
        proved = {
            "file": str(against_file),
            "head": against.head,
            "root": against.root,
            "streams": len(against.streams),
            "proved": "anchor" not in verified.drifted,
            "scavenged": verified.scavenged_since_anchor,
        }
    if anchor_file is not None:
        if (anchor := verified.anchor) is None:
            lines.append("No anchor was written: it would vouch for what is wrong.")
        else:
            written = {"file": str(anchor_file), "head": anchor.head, "root": anchor.root}
            lines.append(f"Wrote {anchor_file}: head {anchor.head}, root {anchor.root}")
    document = {
        "database": verified.path,
        "clean": verified.clean,
        "head": verified.head,
        "since": since or 0,
        "events": verified.events,
        "streams": verified.streams,
        "rows": verified.rows,
        "drifted": verified.drifted,
        "differences": [_difference(each) for each in verified.differences],
        "unchecked": verified.unchecked,
        "log_is_whole": verified.log_is_whole,
        "fixed": verified.fixed,
        "anchor": written,
        "against": proved,
    }
    return Report(document, lines, 0 if verified.clean else 1)


def _lines(verified: Verified, since: int | None, fix: bool) -> Iterator[str]:
    yield verified.path
    yield (
        f"Checked {counted(verified.events, 'event')} "
        f"{'' if not since else f'behind position {since} '}up to position {verified.head}, "
        f"{counted(verified.streams, 'stream')}, "
        + ", ".join(f"{counted(rows, 'row')} of {table}" for table, rows in verified.rows.items())
    )
    for name, reason in verified.unchecked.items():
        yield f"Not checked: {name}: {reason}"
    if not verified.drifted:
        yield "Clean."
    for table, count in verified.drifted.items():
        described = [each for each in verified.differences if each.table == table]
        yield ""
        first = "" if count == len(described) else f", the first {len(described)} of them:"
        yield f"{table}: {counted(count, 'difference')}{first}"
        for difference in described:
            yield from _description(difference)
    if verified.drifted:
        yield ""
        yield _verdict(verified, fix)


def _verdict(verified: Verified, fix: bool) -> str:
    fixed = "Nothing was fixed. " if fix and not verified.fixed else ""
    if not verified.log_is_whole:
        damaged = ", ".join(table for table in verified.drifted if table in _LOG)
        return (
            f"The log itself is damaged ({damaged}), and nothing can be made anew from it. "
            f"{fixed}{_REMEDY}"
        )
    if fixed or not verified.fixable:
        return f"Not all that differs can be made anew. {fixed}{_REMEDY}"
    if not verified.fixed:
        return "The log is whole. Make the tables anew: adk-eventstore verify --fix"
    left = [table for table in verified.drifted if table not in verified.fixed]
    text = f"Put right: {', '.join(verified.fixed)}."
    return f"{text} Not put right: {', '.join(left)}." if left else text


def _description(difference: Difference) -> Iterator[str]:
    key = f"{printable(difference.key)}: " if difference.key else ""
    yield f"  {key}{printable(difference.problem)}"
    stored, expected = difference.stored, difference.expected
    if stored is not None and expected is not None:
        for name, value in expected.items():
            if stored.get(name) != value:
                yield f"    {name}: the table has {printable(stored.get(name))}"
                yield f"    {'':{len(name)}}  the log gives {printable(value)}"
    elif (row := expected or stored) is not None:
        yield f"    {'the log gives' if stored is None else 'the table has'} {_row(row)}"
    if difference.event is not None:
        yield f"    {_event(difference.event)}"


def _row(row: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {printable(value)}" for name, value in row.items())


def _event(event: Touched) -> str:
    author = f", author {printable(event.author)}" if event.author else ""
    invocation = f", invocation {printable(event.invocation_id)}" if event.invocation_id else ""
    return (
        f"event at position {event.position}, version {printable(event.version)}, "
        f"{printable(event.type)}"
        f"{author}{invocation}"
    )


def _difference(difference: Difference) -> dict[str, object]:
    event = difference.event
    return {
        **difference._asdict(),
        "event": None if event is None else event._asdict(),
    }


def _proof(verified: Verified, against: Anchor) -> Iterator[str]:
    if (missing := verified.drifted.get("anchor", 0)) != 0:
        yield (
            f"The log is not the one of the anchor (head {against.head}): "
            f"{counted(missing, 'stream')} of {len(against.streams):,} lost or changed history."
        )
        return
    still = len(against.streams) - verified.scavenged_since_anchor
    yield (
        f"Proved: the log still has, unchanged, the history of {counted(still, 'stream')} "
        f"up to position {against.head} (root {against.root})."
    )
    if gone := verified.scavenged_since_anchor:
        yield (
            f"{counted(gone, 'stream')} of deleted sessions had their events removed since: "
            "of these it proves nothing any more."
        )

"""The commands `adk-eventstore projections status`, `run` and `drop`."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import click

from eventstore import (
    EventStore,
    MaintenanceRunning,
    Projection,
    StoreBusy,
)
from projections import installed
from projections.asynchronous import Status, drop, run, status_in
from projections.cli.base import (
    Command,
    CommandFailed,
    Group,
    Known,
    Report,
    Settings,
    confirm,
    known,
)
from projections.cli.output import columns, printable, tell

__all__ = ["projections_group"]

_POLL_S: Final = 0.5
_STOPPED: Final = "a projection is stopped at an event that it cannot fold"


@click.group("projections", cls=Group, short_help="Show, run and drop projections.")
def projections_group() -> None:
    """Shows, runs and drops the tables that are folded from the log."""


@projections_group.command(
    "status",
    cls=Command,
    short_help="Show how far each has come.",
    example="adk-eventstore projections status --db data_science/db/adk.sqlite3",
    exits={0: "shown", 1: _STOPPED},
)
@click.pass_obj
def _status(settings: Settings) -> Report:
    """Shows every projection that the database keeps rows of or that is installed here."""
    here = known()
    with settings.store() as store:
        return _shown(store, here)


@projections_group.command(
    "run",
    cls=Command,
    short_help="Bring asynchronous ones up to the head.",
    example="adk-eventstore projections run --db data_science/db/adk.sqlite3 --follow",
    exits={0: "at the head; with --follow: ended, with nothing stopped", 1: _STOPPED},
    interrupted="What was done is kept: run it again to go on.",
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--follow", is_flag=True, help="Go on with new events until Ctrl-C or SIGTERM.")
@click.pass_obj
def _run(settings: Settings, names: tuple[str, ...], follow: bool) -> Report:
    """Brings asynchronous projections up to the head of the log, while others write.

    One that was never built, or by another version of its code, is built first. One that is
    stopped is tried again. Without a name: all that are installed.
    """
    here = known()
    here.require(names)
    for projection in here.inline:
        if projection.name in names:
            raise CommandFailed(
                f"{projection.name!r} is inline: every append keeps it up. "
                "Name asynchronous ones, or none for all."
            )
    with settings.store() as store:
        projections = here.chosen(store, names)[1]
        if follow and not projections:
            raise CommandFailed(
                "No asynchronous projection is installed or turned on. Name one to turn it on: "
                f"{', '.join(projection.name for projection in here.optional)}."
            )
        if follow:
            _follow(settings, store, projections)
        else:
            with settings.progress("following") as progress:
                run(store, projections, progress=progress)
        return _shown(store, here, [projection.name for projection in projections])


def _follow(settings: Settings, store: EventStore, projections: Sequence[Projection]) -> None:
    names = ", ".join(projection.name for projection in projections)
    tell(f"Following {names}. Ctrl-C ends it.", err=True)
    with _ended_by_a_signal():
        with settings.progress("catching up") as progress:
            _run_when_free(partial(run, store, projections, progress=progress))
        while True:
            _run_when_free(partial(run, store, projections, retry=False))
            time.sleep(_POLL_S)


def _run_when_free(work: Callable[[], object]) -> None:
    """Lets others finish what keeps the projections from running: what lasts must not end here."""
    waiting = False
    while True:
        try:
            work()
        except (MaintenanceRunning, StoreBusy) as error:
            if not waiting:
                tell(f"Waiting: {error}", err=True)
            waiting = True
            time.sleep(_POLL_S)
        else:
            return


@contextmanager
def _ended_by_a_signal() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how work that lasts is ended: no failure."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


@projections_group.command(
    "drop",
    cls=Command,
    short_help="Remove one and its table.",
    example="adk-eventstore projections drop usage --db data_science/db/adk.sqlite3",
    exits={0: "dropped; with --dry-run: it could be"},
    interrupted="See what is there: adk-eventstore projections status",
)
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--dry-run", is_flag=True, help="Say what would be dropped, and change nothing.")
@click.pass_obj
def _drop(settings: Settings, name: str, yes: bool, dry_run: bool) -> Report:
    """Removes a projection and its table from the database; the log stays.

    It can be built again from the log at any time: a service that has it builds it again.
    """
    here = known()
    if name in {projection.name for projection in installed.BUILT_IN}:
        raise CommandFailed(f"{name!r} is built in and cannot be dropped. Sessions are read of it.")
    if name in {projection.name for projection in here.inline}:
        raise CommandFailed(
            f"{name!r} is written with every append of this environment. "
            "Uninstall the package that provides it first."
        )
    with settings.store(dry_run=dry_run) as store:
        registered = store.snapshot(lambda s: s.registered()).get(name)
        if registered is None:
            raise CommandFailed(
                f"The database keeps no rows of a projection {name!r}. "
                "See which it has: adk-eventstore projections status"
            )
        if not dry_run:
            confirm(f"Drop {name} and its table {registered.table}?", yes=yes)
            drop(store, name, _views(here.by_name.get(name)))
    document = {
        "database": store.path,
        "projection": name,
        "table": registered.table,
        "dry_run": dry_run,
    }
    done = "A dry run: it would drop" if dry_run else "Dropped"
    return Report(document, [f"{done} {name} and its table {registered.table}."])


def _views(projection: Projection | None) -> list[str]:
    # Those of code that is not here are not known: they stay, and show nothing.
    views = () if projection is None else projection.views.values()
    return [name for dialect in views for name in dialect]


def _shown(store: EventStore, here: Known, names: Sequence[str] | None = None) -> Report:
    """How the projections stand, all or those with some names."""
    head, found = store.snapshot(lambda s: (s.head(), status_in(s)))
    standing = {each.projection: each for each in found}
    rows = [
        _facts(name, standing.get(name), here)
        for name in sorted({*standing, *here.by_name})
        if names is None or name in names
    ]
    stopped = any(row["state"] == "stopped" for row in rows)
    document = {"database": store.path, "head": head, "projections": rows}
    return Report(document, [f"{store.path}: head {head}", *_table(rows)], 1 if stopped else 0)


def _facts(name: str, stands: Status | None, here: Known) -> dict[str, Any]:
    projection = here.by_name.get(name)
    inline = projection in here.inline if stands is None else stands.inline
    return {
        "name": name,
        "kind": "inline" if inline else "asynchronous",
        "version": None if stands is None else stands.version,
        "version_here": None if projection is None else projection.version,
        "checkpoint": None if stands is None else stands.checkpoint,
        "lag": None if stands is None else stands.lag,
        "state": "off"
        if stands is None and projection in here.optional
        else _state(stands, projection),
        "stopped_at": None if stands is None else stands.failed_at,
        "reason": None if stands is None else stands.failure,
    }


def _state(stands: Status | None, projection: Projection | None) -> str:
    if stands is None:
        return "not built"
    if stands.failed_at is not None:
        return "stopped"
    if projection is None:
        return "not installed here"
    if stands.version != projection.version:
        return "older version" if stands.version < projection.version else "newer version"
    return "behind" if stands.lag else "up to date"


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    header = ("NAME", "KIND", "VERSION", "HERE", "CHECKPOINT", "LAG", "STATE")
    names = ("name", "kind", "version", "version_here", "checkpoint", "lag")
    return columns(
        [
            header,
            *(
                (*("-" if row[name] is None else str(row[name]) for name in names), _said(row))
                for row in rows
            ),
        ],
        indent="  ",
    )


def _said(row: Mapping[str, Any]) -> str:
    if row["state"] == "stopped":
        return f"stopped at position {row['stopped_at']}: {printable(row['reason'])}"
    if row["state"] == "older version":
        remedy = "rebuild-projections" if row["kind"] == "inline" else "projections run"
        return f"older version: {remedy} makes it anew"
    if row["state"] == "newer version":
        return "newer version: upgrade the package that provides it"
    if row["state"] == "off":
        return "off: projections run turns it on"
    return str(row["state"])

"""The command `rebuild-projections`, alone and in the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from eventstore import EventStore, Projection, StreamNotFound
from projections.cli.base import (
    Command,
    CommandFailed,
    Known,
    Report,
    Settings,
    known,
    projection_option,
)
from projections.rebuild import Rebuilt, Scope, rebuild, rebuild_scope
from projections.verify import Verified, verify

__all__ = ["rebuild_projections"]


@click.command(
    "rebuild-projections",
    cls=Command,
    short_help="Make the tables anew from the log.",
    example="rebuild-projections --db data_science/db/adk.sqlite3",
    exits={0: "rebuilt; with --dry-run: compared, whether rows differ or not"},
    interrupted="The tables are whole. Run it again to rebuild them.",
)
@projection_option
@click.option("--app", metavar="NAME", help="Put right only the rows of this app.")
@click.option("--user", metavar="ID", help="Put right only the rows of this user of --app.")
@click.option("--session", metavar="ID", help="Put right only the rows of this session of --user.")
@click.option("--dry-run", is_flag=True, help="Say how many rows differ, and change nothing.")
@click.pass_obj
def rebuild_projections(
    settings: Settings,
    names: tuple[str, ...],
    app: str | None,
    user: str | None,
    session: str | None,
    dry_run: bool,
) -> Report:
    """Makes the tables of projections anew from the event log, while others write.

    Readers see the old rows until the new ones take their place at once. Ended at any point, a
    table has all of its old rows or all of its new ones.

    With --app, --user or --session only the rows of these are put right, in place, from their
    events.
    """
    scope = _scope(app, user, session)
    here = known()
    here.require(names)
    with settings.store(dry_run=dry_run) as store:
        inline, asynchronous = here.chosen(store, names)
        skipped = {} if names else _skipped(store, here)
        if scope is None and dry_run:
            with settings.progress("comparing") as progress:
                verified = verify(store, inline, asynchronous, progress=progress)
            return _compared(verified, (*inline, *asynchronous), skipped)
        if scope is None:
            with settings.progress("rebuilding") as progress:
                rebuilt = rebuild(store, inline, asynchronous, progress=progress)
            return _report(store.path, rebuilt, scope, skipped, dry_run=False)
        if not names:
            asynchronous, unbuilt = _built(store, asynchronous)
            skipped |= unbuilt
        rebuilt = _rebuild_scope(settings, store, inline, asynchronous, scope, dry_run=dry_run)
        return _report(store.path, rebuilt, scope, skipped, dry_run=dry_run)


def _scope(app: str | None, user: str | None, session: str | None) -> Scope | None:
    if session is not None and (app is None or user is None):
        raise click.UsageError("--session needs --app and --user: a session belongs to both.")
    if user is not None and app is None:
        raise click.UsageError("--user needs --app: a user belongs to an app.")
    return None if app is None else Scope(app, user, session)


def _skipped(store: EventStore, here: Known) -> dict[str, str]:
    """The projections the database has rows of and this process no code for."""
    registered = store.snapshot(lambda s: s.registered())
    return dict.fromkeys(registered.keys() - here.by_name.keys(), "not installed here")


def _built(
    store: EventStore, asynchronous: Sequence[Projection]
) -> tuple[tuple[Projection, ...], dict[str, str]]:
    """Those that this version of their code has built, and why each of the others is left out."""
    registered = store.snapshot(lambda s: s.registered())
    unbuilt = {}
    for projection in asynchronous:
        row = registered.get(projection.name)
        if row is None or (row.checkpoint or 0) < 0:
            unbuilt[projection.name] = "not built yet"
        elif row.version != projection.version:
            unbuilt[projection.name] = f"built by version {row.version} of its code"
    return tuple(p for p in asynchronous if p.name not in unbuilt), unbuilt


def _rebuild_scope(
    settings: Settings,
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    scope: Scope,
    *,
    dry_run: bool,
) -> list[Rebuilt]:
    try:
        with settings.progress("comparing" if dry_run else "rebuilding") as progress:
            return rebuild_scope(
                store, inline, asynchronous, scope, dry_run=dry_run, progress=progress
            )
    except StreamNotFound as error:
        raise CommandFailed(f"The log has no event of {error.stream}. Check the names.") from error


def _compared(
    verified: Verified, projections: Sequence[Projection], skipped: Mapping[str, str]
) -> Report:
    """What a rebuild of whole tables would do."""
    if not verified.log_is_whole:
        raise CommandFailed(
            "The log itself is damaged, so that nothing can be rebuilt from it. "
            "See what is wrong: adk-eventstore verify"
        )
    # Differences of a whole table have no key.
    anew = {each.table: each.problem for each in verified.differences if not each.key}
    skipped = dict(skipped)
    rebuilt = []
    for projection in projections:
        table = projection.table.name
        if projection.name in verified.unchecked:
            skipped[projection.name] = f"{verified.unchecked[projection.name]}: it would be now"
        elif table in anew:
            skipped[projection.name] = f"its table {anew[table]}: it would be made anew"
        else:
            rows, changed = verified.rows[table], verified.drifted.get(table, 0)
            rebuilt.append(Rebuilt(projection.name, verified.events, rows, changed))
    return _report(verified.path, rebuilt, None, skipped, dry_run=True)


def _report(
    path: str,
    rebuilt: Sequence[Rebuilt],
    scope: Scope | None,
    notes: Mapping[str, str],
    *,
    dry_run: bool,
) -> Report:
    document = {
        "database": path,
        "dry_run": dry_run,
        "scope": None if scope is None else scope._asdict(),
        "projections": [each._asdict() for each in rebuilt],
        "notes": dict(notes),
    }
    lines = [path, *(f"  {_line(each, dry_run=dry_run)}" for each in rebuilt)]
    lines += [f"  {name}: {note}" for name, note in notes.items()]
    if dry_run:
        lines.append("A dry run: nothing was changed.")
    return Report(document, lines)


def _line(rebuilt: Rebuilt, *, dry_run: bool) -> str:
    text = f"{rebuilt.projection}: {rebuilt.rows:,} rows from {rebuilt.events:,} events"
    if rebuilt.changed is None:
        return text
    if rebuilt.changed == 0:
        return f"{text}, none differs"
    return f"{text}, {rebuilt.changed:,} {'differ' if dry_run else 'put right'}"

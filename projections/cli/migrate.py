"""The command `adk-eventstore migrate`."""

from __future__ import annotations

import click

from eventstore import pending_migrations
from eventstore.location import is_server, resolve, shown
from projections import installed
from projections.cli.base import Command, Report, Settings

__all__ = ["migrate_file"]


@click.command(
    "migrate",
    cls=Command,
    short_help="Bring the schema up to date.",
    example="adk-eventstore migrate --db data_science/db/adk.sqlite3 --dry-run",
    exits={0: "the schema is the newest one; with --dry-run: shown what would be run"},
    interrupted="The schema is as it was, or the newest one.",
)
@click.option("--dry-run", is_flag=True, help="Show the SQL that would be run; change nothing.")
@click.pass_obj
def migrate_file(settings: Settings, dry_run: bool) -> Report:
    """Brings the schema of the database to the version of this package.

    A service does so by itself when it opens the file. A process of an older version that has it
    open cannot write any more afterwards: stop such processes first.
    """
    before, pending = pending_migrations(settings.db, installed.inline())
    after = pending[-1][0] if pending else before
    if not dry_run:
        with settings.store(create=True):
            pass
    target = resolve(settings.db)
    path = shown(target)
    document = {
        "database": path,
        "dry_run": dry_run,
        "from": before,
        "to": after,
        "migrations": [{"version": version, "sql": sql} for version, sql in pending],
    }
    if not pending:
        return Report(document, [f"{path} has schema version {before}, the newest one."])
    if not dry_run:
        return Report(document, [f"{path}: migrated from schema version {before} to {after}."])
    lines = [f"-- {path}: from schema version {before} to {after}, in one transaction"]
    lines += ["", "BEGIN;"] if is_server(target) else []
    for version, sql in pending:
        lines += ["", f"-- to version {version}", sql.rstrip()]
    if is_server(target):
        lines += ["", "COMMIT;"]
    elif before == 0:
        tables = ", ".join(projection.table.name for projection in installed.inline())
        lines += ["", f"-- Then the tables of projections: {tables}"]
    return Report(document, lines)

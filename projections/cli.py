"""The `rebuild-projections` command."""

from __future__ import annotations

import sys

import click

from eventstore import EventStoreError, open_store
from eventstore.location import DEFAULT_PATH, ENVIRONMENT_VARIABLE
from projections import BUILT_IN
from projections.rebuild import rebuild

__all__ = ["main"]


@click.command(
    epilog="Example: rebuild-projections --db data_science/db/adk.sqlite3  "
    "Exit codes: 0 rebuilt, 2 could not run (nothing was changed)."
)
@click.option(
    "--db",
    metavar="PATH_OR_URL",
    help=f"The database. [default: ${ENVIRONMENT_VARIABLE}, else {DEFAULT_PATH}]",
)
def main(db: str | None) -> None:
    """Makes the tables `sessions` and `state` anew from the event log.

    Writers wait while it runs; readers see the tables as they were until it is done. Interrupted
    at any point, nothing has changed.
    """
    try:
        store = open_store(db, BUILT_IN, for_rebuild=True, create=False)
        try:
            report = rebuild(store, BUILT_IN)
        finally:
            store.close()
    except EventStoreError as error:
        click.echo(f"rebuild-projections: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(f"{store.path}: {report[0].events:,} events")
    for rebuilt in report:
        click.echo(f"  {rebuilt.projection}: {rebuilt.rows:,} rows")


if __name__ == "__main__":
    main()

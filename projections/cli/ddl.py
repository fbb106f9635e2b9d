"""The command `adk-eventstore ddl`."""

from __future__ import annotations

import click

from eventstore import schema_ddl
from projections import installed
from projections.cli.base import Command, Report, Settings

__all__ = ["print_ddl"]


@click.command(
    "ddl",
    cls=Command,
    short_help="Print the SQL that makes the schema on PostgreSQL.",
    example="adk-eventstore ddl --schema adk_eventstore > schema.sql",
    exits={0: "printed"},
)
@click.option("--schema", metavar="NAME", help="The schema to make. [default: adk_eventstore]")
@click.option(
    "--partitions",
    metavar="N",
    type=click.IntRange(0, 1024),
    default=0,
    help="Split the events by session into N tables. [default: none]",
)
@click.pass_obj
def print_ddl(settings: Settings, schema: str | None, partitions: int) -> Report:
    """Prints the SQL that makes the tables of this version, and of the projections installed here.

    For services whose role may not make tables: somebody who may runs it, and the services are told
    `create_schema=False`. It is one transaction. Connects to nothing; --db has no meaning here.
    """
    sql = schema_ddl(installed.inline(), schema=schema, partitions=partitions)
    return Report({"schema": schema or "adk_eventstore", "sql": sql}, [sql.rstrip()])

"""Loads queries.sql and the migrations, for one schema."""

from __future__ import annotations

from functools import cache
from typing import Final

from eventstore.scripts import load_migrations, load_queries

__all__ = ["migrations", "queries"]

_PARTITION: Final = (
    "CREATE TABLE {schema}.events_{n} PARTITION OF {schema}.events\n"
    "  FOR VALUES WITH (MODULUS {count}, REMAINDER {n});\n"
)
_TRUNCATE: Final = (
    "CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON {schema}.{table}\n"
    "FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_change();\n"
)


@cache
def queries(schema: str) -> dict[str, str]:
    """Statement name to SQL."""
    return {name: sql.replace("{s}", schema) for name, sql in load_queries(__package__).items()}


def migrations(schema: str, partitions: int = 0) -> list[str]:
    """The numbered migration scripts in order.

    With `partitions` the events are split by their stream into so many tables.
    """
    tables = ["events", *(f"events_{n}" for n in range(partitions))]
    parts = {
        "{partition_by}": " PARTITION BY HASH (stream_id)" if partitions else "",
        "{partitions}": "".join(
            _PARTITION.format(schema=schema, n=n, count=partitions) for n in range(partitions)
        ),
        "{truncate_triggers}": "".join(
            _TRUNCATE.format(schema=schema, table=table) for table in tables
        ),
        "{schema}": schema,
    }
    texts = []
    for text in load_migrations(__package__):
        for mark, value in parts.items():
            text = text.replace(mark, value)
        texts.append(text)
    return texts

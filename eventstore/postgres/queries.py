"""Loads queries.sql and the migrations, for one schema."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

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
    text = files(__package__).joinpath("queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    # Comments between statements would otherwise be sent each time.
    bodies = [re.sub(r"^--.*\n?", "", body, flags=re.MULTILINE) for body in parts[2::2]]
    sql = [body.strip().rstrip(";").replace("{s}", schema) for body in bodies]
    return dict(zip(parts[1::2], sql, strict=True))


def migrations(schema: str, partitions: int = 0) -> list[str]:
    """The numbered migration scripts in order: the first makes schema version 1, and so on.

    With `partitions` the events are split by their stream into so many tables.
    """
    folder = files(__package__).joinpath("migrations")
    scripts = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
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
    for script in scripts:
        text = script.read_text()
        for mark, value in parts.items():
            text = text.replace(mark, value)
        texts.append(text)
    return texts

"""Older versions of this package, as far as tests need them to have been there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from unittest.mock import patch

from eventstore.sqlite import database, queries, store

__all__ = ["code_of_schema_1"]

_QUERIES_OF_SCHEMA_1: Final = {
    "registered_projections": "SELECT name, version, name, NULL, NULL, NULL FROM projections",
    "register_projection": (
        "INSERT INTO projections (name, version) SELECT ?1, ?2 WHERE ?3 = ?1 AND ?4 IS NULL"
    ),
}


@contextmanager
def code_of_schema_1() -> Iterator[None]:
    """While it lasts, this process knows the first schema only: nothing but its one script."""

    def first() -> list[str]:
        return queries.migrations()[:1]

    database._expected_schema.cache_clear()
    with (
        patch.object(database, "migrations", first),
        patch.object(store, "migrations", first),
        patch.dict(queries.QUERIES, _QUERIES_OF_SCHEMA_1),
    ):
        yield
    database._expected_schema.cache_clear()

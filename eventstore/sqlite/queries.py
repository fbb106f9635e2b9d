"""The statements of queries.sql, and the migrations."""

from __future__ import annotations

from typing import Final

from eventstore.scripts import load_migrations, load_queries

__all__ = ["QUERIES", "migrations"]

QUERIES: Final = load_queries(__package__)
"""Statement name to SQL."""


def migrations() -> list[str]:
    """The numbered migration scripts in order."""
    return load_migrations(__package__)

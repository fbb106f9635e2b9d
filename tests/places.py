"""Where tests keep their logs, and how another program looks into them: a file or a schema."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg


def on_server(target: str | os.PathLike[str]) -> bool:
    return str(target).startswith("postgresql:")


def schema_of(target: str) -> str:
    return parse_qs(urlsplit(target).query)["schema"][0]


def notes_beside(target: str | os.PathLike[str]) -> Path:
    """A name that files of a test may begin with."""
    if on_server(target):
        return Path(tempfile.gettempdir()) / schema_of(str(target))
    return Path(target)


def query(target: str | os.PathLike[str], *statements: str) -> list[tuple[Any, ...]]:
    """What the last statement says, as a program sees it that knows nothing of the store."""
    if on_server(target):
        text = str(target)
        url = urlsplit(text)
        options = "&".join(part for part in url.query.split("&") if not part.startswith("schema="))
        plain = url._replace(query=options).geturl()
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(f"SET search_path = {schema_of(text)}")
            found: list[tuple[Any, ...]] = []
            for statement in statements:
                # No parameters: a "%" is nothing special.
                cursor = connection.execute(statement.encode())
                found = cursor.fetchall() if cursor.description else []
            return found
    with closing(sqlite3.connect(target, isolation_level=None, timeout=30)) as connection:
        return [connection.execute(statement).fetchall() for statement in statements][-1]


def leftovers(target: str | os.PathLike[str]) -> list[tuple[Any, ...]]:
    """The shadows and retired tables that are there."""
    if on_server(target):
        return query(
            target,
            "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() "
            "AND (tablename LIKE 'shadow%' OR tablename LIKE 'retired%')",
        )
    return query(
        target,
        "SELECT name FROM sqlite_schema WHERE name LIKE 'shadow%' OR name LIKE 'retired%'",
    )


def is_whole(target: str | os.PathLike[str]) -> bool:
    """Whether the database finds its own files in order."""
    return on_server(target) or query(target, "PRAGMA integrity_check") == [("ok",)]


def table_of(target: str | os.PathLike[str], index: str) -> str:
    """The table that an index is on."""
    if on_server(target):
        sql = "SELECT tablename FROM pg_indexes WHERE schemaname = current_schema()"
        ((table,),) = query(target, f"{sql} AND indexname = '{index}'")
    else:
        ((table,),) = query(target, f"SELECT tbl_name FROM sqlite_schema WHERE name = '{index}'")
    return str(table)


def index_names(target: str | os.PathLike[str]) -> set[str]:
    """The indexes that users have put on tables of projections."""
    if on_server(target):
        sql = "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()"
        sql += " AND tablename NOT IN ('events', 'streams') AND indexname NOT LIKE '%_pkey'"
        sql += " AND indexname NOT LIKE 'codecs%' AND indexname NOT LIKE 'sessions%'"
    else:
        sql = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql > ''"
        sql += " AND tbl_name NOT IN ('events', 'streams') AND name NOT LIKE 'sessions%'"
    return {name for (name,) in query(target, sql)}

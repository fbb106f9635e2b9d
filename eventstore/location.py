"""Where the database is: what people may pass, and what is used when they pass nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from eventstore.errors import PathUnusable

__all__ = ["DEFAULT_PATH", "ENVIRONMENT_VARIABLE", "MEMORY", "resolve"]

ENVIRONMENT_VARIABLE: Final = "ADK_SESSION_DB"
DEFAULT_PATH: Final = "data_science/db/adk.sqlite3"
MEMORY: Final = ":memory:"
"""A private temporary file, gone when the store is closed."""

_SQLITE_SCHEMES: Final = {"sqlite", "sqlite+aiosqlite", "eventstore+sqlite"}
_POSTGRESQL_SCHEMES: Final = {
    "postgresql",
    "postgresql+asyncpg",
    "postgresql+psycopg",
    "postgres",
}

_log = logging.getLogger(__name__)


def resolve(target: str | os.PathLike[str] | None) -> str:
    """Turns a path or URL into an absolute path, or MEMORY.

    None means the environment variable ADK_SESSION_DB, else data_science/db/adk.sqlite3 below the
    working directory. URLs follow SQLAlchemy's rule: three slashes begin a relative path, four an
    absolute one. Relative paths are made absolute here, so a later chdir changes nothing.

    Raises:
        PathUnusable: the URL's scheme is none this version can open.
        TypeError: neither a str nor a path.
    """
    if target is None:
        target = os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_PATH
    text = os.fspath(target)
    if not isinstance(text, str):
        raise TypeError(f"the database path must be a str or a path, not {type(text).__name__}")
    if not text:
        raise PathUnusable("''", "is empty", "Pass a path, a URL, or nothing for the default.")
    scheme, separator, rest = text.partition(":")
    # One letter before the colon is a drive of Windows, not a scheme.
    url = rest.startswith("//") or scheme in (*_SQLITE_SCHEMES, "file")
    if separator and url and len(scheme) > 1:
        text = _path_of_url(scheme, text)
    if text in ("", MEMORY):
        return MEMORY
    if "\0" in text:
        raise PathUnusable(repr(text), "contains NUL", "Pass a path without it.")
    path = Path(text)
    return str((path.expanduser() if text.startswith("~/") else path).absolute())


def _path_of_url(scheme: str, url: str) -> str:
    if scheme in _POSTGRESQL_SCHEMES:
        raise PathUnusable(
            f"{scheme}: URL",
            "names a PostgreSQL server",
            "This version stores sessions in SQLite files only: pass a path or sqlite:///path.",
        )
    if scheme not in _SQLITE_SCHEMES:
        raise PathUnusable(
            f"{scheme}: URL",
            "has a scheme this package does not know",
            "Pass a path, sqlite:///relative/path or sqlite:////absolute/path.",
        )
    # Taken apart by hand: to SQLAlchemy, whose rule this is, "#" and ";" are part of a path.
    rest = url.partition(":")[2]
    host, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", rest)
    if host:
        raise PathUnusable(
            f"{scheme}: URL",
            "has a host where a path belongs",
            "Write three slashes before a relative path and four before an absolute one.",
        )
    path, query, _ = path.partition("?")
    if query:
        _log.warning("ignored the query of the database URL: it has no meaning to this package")
    return unquote(path)

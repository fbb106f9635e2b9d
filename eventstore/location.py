"""Where the database is: what people may pass, and what is used when they pass nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from eventstore.errors import NotOnThisDatabase, PathUnusable

__all__ = [
    "DATABASE_COMPANIONS",
    "DEFAULT_PATH",
    "ENVIRONMENT_VARIABLE",
    "MEMORY",
    "SQLITE_COMPANIONS",
    "is_server",
    "require_file",
    "resolve",
    "server_url",
    "shown",
    "split_server_url",
]

ENVIRONMENT_VARIABLE: Final = "ADK_SESSION_DB"
DEFAULT_PATH: Final = "data_science/db/adk.sqlite3"
SQLITE_COMPANIONS: Final = ("-wal", "-shm", "-journal")
"""How the names of the files end that SQLite keeps beside a database."""
DATABASE_COMPANIONS: Final = (*SQLITE_COMPANIONS, "-turn", "-gate", "-maintenance")
"""And those of our locks."""
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
    """Turns a path or URL into an absolute path, MEMORY, or the `postgresql:` URL of a server.

    None means the environment variable ADK_SESSION_DB, else data_science/db/adk.sqlite3 below the
    working directory. URLs follow SQLAlchemy's rule: three slashes begin a relative path, four an
    absolute one. Relative paths are made absolute here, so a later chdir changes nothing. The URL
    of a server may hold a password: show people what `shown` makes of it.

    Raises:
        PathUnusable: the URL's scheme is none this version can open, or no file can be there: its
            folder may not be searched, or the name is too long.
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
    if scheme in _POSTGRESQL_SCHEMES and rest.startswith("//"):
        return f"postgresql:{rest}"
    # One letter before the colon is a drive of Windows, not a scheme.
    url = rest.startswith("//") or scheme in (*_SQLITE_SCHEMES, *_POSTGRESQL_SCHEMES, "file")
    if separator and url and len(scheme) > 1:
        text = _path_of_url(scheme, text)
    if text in ("", MEMORY):
        return MEMORY
    if "\0" in text:
        raise PathUnusable(repr(text), "contains NUL", "Pass a path without it.")
    path = Path(text)
    try:
        path = (path.expanduser() if text.startswith("~/") else path).absolute()
    except FileNotFoundError:
        raise PathUnusable(
            text, "is relative to a working directory that is gone", "Pass an absolute path."
        ) from None
    _require_reachable(path)
    return str(path)


def _require_reachable(path: Path) -> None:
    """Here once for all, for what asks whether there is such a file would raise an OSError."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # whoever needs it to be there says so
    except OSError as error:
        raise PathUnusable(
            str(path), f"cannot be reached: {error.strerror}", "Pass another path."
        ) from None
    except UnicodeEncodeError:
        raise PathUnusable(repr(str(path)), "is no name of a file", "Pass another path.") from None


def is_server(resolved: str) -> bool:
    """Whether what `resolve` returned is a server's URL, and no file."""
    return resolved.startswith("postgresql://")


def shown(resolved: str) -> str:
    """What `resolve` returned, as it may be printed: a server's URL without any password."""
    if not is_server(resolved):
        return resolved
    try:
        parts = split_server_url(resolved)
    except ValueError:
        return "a postgresql: URL"
    user, at, hosts = parts.netloc.rpartition("@")
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if "password" not in name.lower()
    ]
    return server_url(f"{user.partition(':')[0]}{at}{hosts}", parts.path, query)


def split_server_url(url: str) -> SplitResult:
    """The parts of the URL of a server.

    Raises:
        ValueError: it is none, or a character is in it, of a password most often, that has to be
            written as %XX: nobody can tell where that ends.
    """
    url.encode()
    parts = urlsplit(url)
    query = [each for each in parts.query.split("&") if "=" not in each]
    if parts.fragment or parts.netloc.count("@") > 1 or any("@" in s for s in (parts.path, *query)):
        raise ValueError("a character has to be written as %XX")
    return parts


def server_url(place: str, path: str, query: Sequence[tuple[str, str]]) -> str:
    """The URL of a server from its parts; `place` is the user and the hosts, or nothing."""
    said = urlencode(query, quote_via=quote, safe="/")
    return f"postgresql://{place}{path}{'?' if said else ''}{said}"


def require_file(target: str | os.PathLike[str] | None, operation: str) -> str:
    """As `resolve`, for what is done with files only; `operation` is a verb for the error.

    Raises:
        NotOnThisDatabase: it is a server's URL.
    """
    resolved = resolve(target)
    if is_server(resolved):
        raise NotOnThisDatabase(
            shown(resolved),
            operation,
            "Use PostgreSQL's own programs: pg_dump and pg_restore, or pg_basebackup.",
        )
    return resolved


def _path_of_url(scheme: str, url: str) -> str:
    if scheme in _POSTGRESQL_SCHEMES:
        raise PathUnusable(
            f"{scheme}: URL",
            "names no server",
            "Write it as postgresql://user@host:5432/database.",
        )
    if scheme not in _SQLITE_SCHEMES:
        raise PathUnusable(
            f"{scheme}: URL",
            "has a scheme this package does not know",
            "Pass a path, sqlite:///relative/path, sqlite:////absolute/path or postgresql://...",
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

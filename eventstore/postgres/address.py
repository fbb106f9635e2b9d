"""Where the server is: what a URL says to libpq, and what it says to this package."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from eventstore.errors import PathUnusable
from eventstore.location import server_url, shown, split_server_url

__all__ = ["DEFAULT_SCHEMA", "Address", "milliseconds", "parse_url"]

DEFAULT_SCHEMA: Final = "adk_eventstore"
_SCHEMA: Final = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,47}")
_WORDS: Final = """
all analyse analyze and any array as asc asymmetric authorization binary both case cast check
collate collation column concurrently constraint create cross current_catalog current_date
current_role current_schema current_time current_timestamp current_user default deferrable desc
distinct do else end except false fetch for foreign freeze from full grant group having ilike in
initially inner intersect into is isnull join lateral leading left like limit localtime
localtimestamp natural not notnull null offset on only or order outer overlaps placing primary
references returning right select session_user similar some symmetric system_user table
tablesample then to trailing true union unique user using variadic verbose when where window with
"""
"""Words of SQL that are no names unless they are quoted, of all versions of the server."""
_LOCK_TIMEOUT_S: Final = 30.0
_STATEMENT_TIMEOUT_S: Final = 60.0

_DEFAULTS: Final = {
    "connect_timeout": "10",
    # A peer that is gone without a word is noticed within half a minute, not after two hours.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}
"""What libpq is told unless the URL says otherwise."""


class Address(NamedTuple):
    """A schema in a database of a server, and how long its statements may take.

    `url` is for libpq and may hold a password; `shown` is for people.
    """

    url: str
    shown: str
    schema: str
    lock_timeout_s: float
    statement_timeout_s: float


def milliseconds(seconds: float) -> str:
    """How long, as the server's settings have it."""
    return f"{seconds * 1000:.0f}ms"


def parse_url(url: str, schema: str | None = None) -> Address:
    """Takes apart the URL of a server, as `location.resolve` returns it.

    Of its query `schema`, `lock_timeout` and `statement_timeout` (seconds) are for this package,
    the rest for libpq; `ssl`, as asyncpg has it, is taken for `sslmode`.

    Raises:
        PathUnusable: a part of it makes no sense.
    """
    try:
        parts = split_server_url(url)
        query = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError:
        raise PathUnusable("a postgresql: URL", "cannot be read", _REMEDY) from None
    name = schema or query.pop("schema", DEFAULT_SCHEMA)
    query.pop("schema", None)
    lock_s = _seconds(query.pop("lock_timeout", None), "lock_timeout", _LOCK_TIMEOUT_S)
    statement_s = _seconds(
        query.pop("statement_timeout", None), "statement_timeout", _STATEMENT_TIMEOUT_S
    )
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")

    def with_query(said: dict[str, str]) -> str:
        return server_url(parts.netloc, parts.path, list(said.items()))

    if not _SCHEMA.fullmatch(name):
        raise PathUnusable(
            shown(with_query(query)),
            f"names a schema, {name!r}, that is not of small letters, digits and underscores",
            "Pass another one: schema=...",
        )
    here = {} if name == DEFAULT_SCHEMA else {"schema": name}
    people = shown(with_query({**query, **here}))
    if name in _WORDS.split():
        raise PathUnusable(
            people,
            f"names the schema {name}, which is a word of SQL",
            "Pass another one: schema=...",
        )
    return Address(with_query({**_DEFAULTS, **query}), people, name, lock_s, statement_s)


_REMEDY: Final = "Write it as postgresql://user@host:5432/database, special characters as %XX."


def _seconds(text: str | None, name: str, default: float) -> float:
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 86_400:
        raise PathUnusable(
            "a postgresql: URL", f"has a {name} that is no number of seconds", f"Write {name}=30."
        )
    return seconds

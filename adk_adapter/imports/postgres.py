"""ADK's tables on a PostgreSQL server, read with the driver of the extra `postgres`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from adk_adapter.imports.found import ImportFailed

__all__ = ["PostgresRows", "without_password"]

_PAGE: Final = 500


class PostgresRows:
    """The rows of a database that services may be using. Closed with `close`."""

    # What ADK itself reloads in: a table there has no order of its own.
    append_order = "timestamp, id"

    def __init__(self, url: str) -> None:
        self.name = without_password(url)
        try:
            import psycopg
            from psycopg.rows import dict_row

            from eventstore.postgres.address import parse_url
        except ImportError as error:
            raise ImportFailed(
                self.name,
                "needs the driver of PostgreSQL",
                'Install it: pip install "adk-eventstore[postgres]"',
            ) from error
        self._error = psycopg.Error
        _, separator, rest = url.partition("://")
        with self._errors():
            self._connection = psycopg.connect(
                parse_url(f"postgresql{separator}{rest}").url,
                row_factory=dict_row,
                autocommit=False,
            )
            self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            self._connection.read_only = True

    def columns(self, table: str) -> Mapping[str, str]:
        """The columns of a table with their types in capitals; none when it is not there."""
        rows = self.select(
            "SELECT attname AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute "
            "JOIN pg_class ON pg_class.oid = attrelid AND relkind IN ('r', 'p') "
            "WHERE attrelid = to_regclass(?) AND attnum > 0 AND NOT attisdropped",
            (table,),
        )
        return {row["name"]: row["type"].upper() for row in rows}

    def select(self, sql: str, values: Iterable[object] = ()) -> Iterator[dict[str, Any]]:
        """The rows of a statement, whose values are written as `?`."""
        with self._errors(), self._connection.cursor("import") as cursor:
            cursor.itersize = _PAGE
            cursor.execute(sql.replace("?", "%s"), tuple(values))
            yield from cursor

    @contextmanager
    def moment(self) -> Iterator[None]:
        """What is read inside is of one moment."""
        with self._errors():
            self._connection.rollback()
        try:
            yield
        finally:
            with self._errors():
                self._connection.rollback()

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            code = getattr(error, "sqlstate", None) or type(error).__name__
            raise ImportFailed(
                self.name,
                f"cannot be read ({code})",
                "Check the URL, that the server runs, and that the user may read ADK's tables.",
            ) from None


def without_password(url: str) -> str:
    """A URL as it may be shown: without its password and its query."""
    place, _, query = url.partition("?")
    if "@" in query and "@" not in place:  # the question mark may be one of the password
        return f"{place.partition('://')[0]}://..."
    return re.sub(r"//([^/@:]*)(:.*)?@", r"//\1@", place)

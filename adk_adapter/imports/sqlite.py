"""ADK's tables in a SQLite file, which is only read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from adk_adapter.imports.found import ImportFailed

__all__ = ["SqliteRows"]

_BUSY_TIMEOUT_S: Final = 30.0


class SqliteRows:
    """The rows of a file that other programs may be using. Closed with `close`."""

    # The order of inserts: the order by time that ADK reloads in swaps what came within one tick,
    # and what was made before and appended behind something else.
    append_order = "rowid"

    def __init__(self, path: str) -> None:
        self.name = path
        with self._errors():
            self._connection = sqlite3.connect(
                f"{Path(path).as_uri()}?mode=ro",
                uri=True,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.row_factory = sqlite3.Row
        self._connection.text_factory = _text
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON"):
            self._connection.execute(f"PRAGMA {pragma}")

    def columns(self, table: str) -> Mapping[str, str]:
        """The columns of a table with their types in capitals; none when it is not there."""
        rows = self.select(
            "SELECT t.name AS name, t.type AS type FROM pragma_table_info(?1) AS t "
            # A view could be anything, and without an end.
            "WHERE (SELECT s.type FROM sqlite_schema AS s WHERE s.name = ?1) = 'table'",
            (table,),
        )
        return {row["name"]: row["type"].upper() for row in rows}

    def select(self, sql: str, values: Iterable[object] = ()) -> Iterator[dict[str, Any]]:
        """The rows of a statement, whose values are written as `?`."""
        with self._errors():
            cursor = self._connection.execute(sql, tuple(values))
            try:
                for row in cursor:
                    yield dict(row)
            finally:
                cursor.close()

    @contextmanager
    def moment(self) -> Iterator[None]:
        """What is read inside is of one moment; it is short, for it may keep ADK from writing."""
        with self._errors():
            self._connection.execute("BEGIN")
        try:
            yield
        finally:
            with self._errors():
                self._connection.execute("COMMIT")

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            name = getattr(error, "sqlite_errorname", type(error).__name__)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                reason, remedy = "is being written all the time", "Stop ADK's service, try again."
            elif code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                reason = f"is not a SQLite database, or it is damaged ({name})"
                remedy = "Repair it first: sqlite3 FILE .recover | sqlite3 NEW"
            else:
                reason, remedy = f"cannot be read ({name})", "Check the path and its permissions."
            raise ImportFailed(self.name, reason, remedy) from None


def _text(stored: bytes) -> str | bytes:
    """A text that is no UTF-8 stays bytes: it must cost its row, not the whole page."""
    try:
        return stored.decode()
    except UnicodeDecodeError:
        return stored

"""ADK's own tables: what their rows say, whichever service, version and database wrote them.

Three layouts are known. `SqliteSessionService` keeps events as JSON, times as numbers.
`DatabaseSessionService` keeps events as JSON since ADK 1.22 (its schema v1), and before that in
columns of their own, with pickled actions (v0). Columns came one by one, so each is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, tzinfo
from typing import Any, Final, Protocol

import pydantic
from google.adk.events import Event

from adk_adapter.codec import validate_event
from adk_adapter.imports.found import (
    FoundEvent,
    FoundSession,
    ImportFailed,
    LeftOut,
    OwnerState,
    state_of,
)

__all__ = ["AdkTables", "Rows"]

_PAGE: Final = 200
_TABLES: Final = {"app_states", "user_states", "sessions", "events"}
_KINDS: Final = {
    "sqlite": "ADK's SqliteSessionService",
    "v1": "ADK's DatabaseSessionService",
    "v0": "ADK's DatabaseSessionService with pickled actions (before ADK 1.22)",
}
_SCHEMA_VERSIONS: Final = {"0", "1"}
_PLAIN: Final = ("invocation_id", "author", "branch", "error_code", "error_message")
_FLAGS: Final = ("partial", "turn_complete", "interrupted")
_MODELS: Final = (
    "content",
    "grounding_metadata",
    "custom_metadata",
    "usage_metadata",
    "citation_metadata",
    "input_transcription",
    "output_transcription",
)

_EVENT_COLUMNS: Final = {
    *("id", "timestamp", "event_data", "actions", "long_running_tool_ids_json"),
    *(*_PLAIN, *_FLAGS, *_MODELS),
}
_SESSION_IDS: Final = ("app_name", "user_id", "id")

Row = Mapping[str, Any]


class Rows(Protocol):
    """A database that is read row by row. JSON comes as text or decoded.

    A text that is none (not UTF-8, or a BLOB in its place) comes as bytes.
    """

    name: str
    append_order: str
    """What to order events by, so that they come as they were appended, as far as it is known."""

    def columns(self, table: str) -> Mapping[str, str]:
        """The columns of a table with their types in capitals; none when it is not there."""

    def select(self, sql: str, values: Iterable[object] = ()) -> Iterator[Row]:
        """The rows of a statement, whose values are written as `?`, a page at a time."""

    def moment(self) -> AbstractContextManager[None]:
        """What is read inside is of one moment."""


class AdkTables:
    """A source over ADK's tables. `zone` is that of the times which v0 kept without one."""

    def __init__(self, rows: Rows, zone: tzinfo | None) -> None:
        self._rows = rows
        self._zone = zone
        self.name = rows.name
        columns = {table: rows.columns(table) for table in sorted(_TABLES)}
        if missing := [table for table, found in columns.items() if not found]:
            raise ImportFailed(
                self.name,
                f"has no table {', '.join(missing)}",
                "Pass a database that one of ADK's session services wrote.",
            )
        self._event_columns = _EVENT_COLUMNS & columns["events"].keys()
        if "event_data" in self._event_columns:
            real = columns["sessions"].get("update_time") == "REAL"
            self._layout = "sqlite" if real else "v1"
        elif "actions" in self._event_columns:
            self._layout = "v0"
        else:
            raise ImportFailed(
                self.name,
                "has events in a layout that this version does not know",
                "Upgrade adk-eventstore.",
            )
        self.kind = _KINDS[self._layout]
        if rows.columns("adk_internal_metadata"):
            said = rows.select(
                "SELECT value FROM adk_internal_metadata WHERE key = 'schema_version'"
            )
            if not {_text(row["value"]) for row in said} <= _SCHEMA_VERSIONS:
                raise ImportFailed(
                    self.name,
                    "has a schema version that this version does not know",
                    "Upgrade adk-eventstore.",
                )

    def moment(self) -> AbstractContextManager[None]:
        """What is read inside is of one moment."""
        return self._rows.moment()

    def count(self) -> int:
        """How many sessions there are."""
        (row,) = self._rows.select("SELECT count(*) AS n FROM sessions")
        return int(row["n"])

    def count_orphans(self) -> int:
        """How many events are of sessions that are not there: ADK once left those of deleted ones.

        It does not show them, and they are not taken.
        """
        (row,) = self._rows.select(
            "SELECT count(*) AS n FROM events AS e WHERE NOT EXISTS (SELECT 1 FROM sessions AS s "
            "WHERE s.app_name = e.app_name AND s.user_id = e.user_id AND s.id = e.session_id)"
        )
        return int(row["n"])

    def owners(self) -> Iterator[OwnerState | LeftOut]:
        """The state of every app, and then of every user; a LeftOut where ids are no text."""
        for table, ids in (
            ("app_states", ("app_name",)),
            ("user_states", ("app_name", "user_id")),
        ):
            for row in self._pages(table, (*ids, "state"), ids):
                if isinstance(row, LeftOut):
                    yield row
                else:
                    yield OwnerState(
                        row["app_name"],
                        row.get("user_id"),
                        state_of(row["state"]),
                        _size(row["state"]),
                    )

    def session_keys(self) -> Iterator[tuple[str, str, str] | LeftOut]:
        """App, user and id of every session, by app and user; a LeftOut where they are no text."""
        for row in self._pages("sessions", _SESSION_IDS, _SESSION_IDS):
            if isinstance(row, LeftOut):
                yield row
            else:
                yield row["app_name"], row["user_id"], row["id"]

    def session(self, key: tuple[str, str, str]) -> FoundSession | None:
        """A session without its events; None when it is not there any more."""
        rows = list(
            self._rows.select(
                "SELECT state, create_time, update_time FROM sessions "
                "WHERE app_name = ? AND user_id = ? AND id = ?",
                key,
            )
        )
        if not rows:
            return None
        row = rows[0]
        return FoundSession(
            *key,
            _time_or_none(row["create_time"]),
            _time_or_none(row["update_time"]),
            state_of(row["state"]),
            _size(row["state"]),
        )

    def events(self, session: FoundSession) -> Iterator[FoundEvent]:
        """The events of a session as they were appended."""
        names = ", ".join(sorted(self._event_columns))
        read = self._v0 if self._layout == "v0" else self._json
        for row in self._rows.select(
            f"SELECT {names} FROM events "  # noqa: S608 - known names of columns
            "WHERE app_name = ? AND user_id = ? AND session_id = ? "
            f"ORDER BY {self._rows.append_order}",
            session[:3],
        ):
            size = sum(_size(value) for value in row.values())
            event_id = _text(row["id"])
            event, problem = None, ""
            try:
                event, problem = read(row)
            except pydantic.ValidationError as error:
                problem = f"it is no event: {_fields(error)}"
            except (ValueError, TypeError, OverflowError, RecursionError, KeyError) as error:
                problem = f"it cannot be read ({type(error).__name__})"
            yield FoundEvent(event_id, event, size, problem)

    def _pages(
        self, table: str, columns: tuple[str, ...], ids: tuple[str, ...]
    ) -> Iterator[Row | LeftOut]:
        """The rows of a table in the order of its key, each page read on its own."""
        names, key = ", ".join(columns), ", ".join(ids)
        marks = ", ".join("?" for _ in ids)
        after: tuple[object, ...] = ()
        # What is no text cannot be asked for: such rows are counted from the last one that is.
        behind = 0
        while True:
            where = f"WHERE ({key}) > ({marks}) " if after else ""
            sql = (
                f"SELECT {names} FROM {table} {where}"  # noqa: S608 - known names
                f"ORDER BY {key} LIMIT {_PAGE} OFFSET {behind}"
            )
            page = list(self._rows.select(sql, after))
            for row in page:
                values = tuple(row[name] for name in ids)
                if all(isinstance(value, str) for value in values):
                    after, behind = values, 0
                    yield row
                else:
                    behind += 1
                    shown = {name: _text(row[name]) for name in ids}
                    yield LeftOut(
                        table,
                        shown["app_name"],
                        shown.get("user_id"),
                        shown.get("id"),
                        None,
                        _size(row.get("state")),
                        "its ids are no text",
                    )
            if len(page) < _PAGE:
                return

    def _json(self, row: Row) -> tuple[Event, str]:
        stored = row["event_data"]
        fields = json.loads(stored) if isinstance(stored, bytes | str) else dict(stored or {})
        if not isinstance(fields, dict):
            raise TypeError("it is no object")
        fields["id"], fields["invocation_id"] = _text(row["id"]), _text(row["invocation_id"])
        if fields.get("timestamp") is None:
            fields["timestamp"] = _seconds(row["timestamp"], UTC)
        return validate_event(fields), ""

    def _v0(self, row: Row) -> tuple[Event, str]:
        fields: dict[str, Any] = {
            "id": _text(row["id"]),
            "timestamp": _seconds(row["timestamp"], self._zone),
        }
        for name in _PLAIN:
            if row.get(name) is not None:
                fields[name] = _text(row[name])
        for name in _FLAGS:
            if row.get(name) is not None:
                fields[name] = bool(row[name])
        for name in _MODELS:
            if (stored := row.get(name)) is not None:
                value = json.loads(stored) if isinstance(stored, bytes | str) else stored
                if value is not None:
                    fields[name] = value
        if (ids := row.get("long_running_tool_ids_json")) is not None:
            fields["long_running_tool_ids"] = set(json.loads(ids))
        problem = ""
        if (stored := row.get("actions")) is not None:
            # Not with the service: it brings FastAPI, through ADK's models of credentials.
            from adk_adapter.imports.pickled import RefusedPickle, load_actions

            try:
                fields["actions"] = load_actions(bytes(stored))
            except RefusedPickle as error:
                problem = f"taken without its actions: {error}"
        return validate_event(fields), problem


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")  # what is no UTF-8 no store takes as an id
    return "" if value is None else str(value)


def _size(value: object) -> int:
    if isinstance(value, bytes | bytearray | memoryview):
        return len(value)
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, dict | list):
        return len(json.dumps(value))
    return 0 if value is None else len(str(value))


def _seconds(value: object, zone: tzinfo | None) -> float | None:
    """A time as ADK stored it; without a zone of its own it is of `zone`, None for the local one.

    Raises:
        ValueError: it is none.
    """
    if value is None or isinstance(value, int | float):
        return None if value is None else float(value)
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value))
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def _time_or_none(value: object) -> float | None:
    try:
        return _seconds(value, UTC)
    except (ValueError, OverflowError):
        return None


def _fields(error: pydantic.ValidationError) -> str:
    wrong = error.errors(include_input=False, include_url=False, include_context=False)
    return ", ".join(f"{'.'.join(map(str, each['loc']))} ({each['type']})" for each in wrong[:3])

"""What is found in a source of sessions, what is reported of it, and what every source offers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from google.adk.events import Event

from eventstore import EventStoreError

__all__ = [
    "FoundEvent",
    "FoundSession",
    "ImportFailed",
    "Imported",
    "LeftOut",
    "OwnerState",
    "Source",
    "state_of",
]

_NAMED: Final = 100_000
"""Rows that a report names; all are counted."""


class ImportFailed(EventStoreError):
    """A source that cannot be read as one of ADK's; what was taken before stays."""

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        super().__init__(f"{source} {reason}. {remedy}")
        self.source = source
        self.reason = reason


class FoundSession(NamedTuple):
    """A session in a source. Times are seconds since the epoch, None where nothing says them.

    `state` are the session's own keys, None where they cannot be read.
    """

    app_name: str
    user_id: str
    session_id: str
    created_at: float | None
    updated_at: float | None
    state: Mapping[str, Any] | None
    size_bytes: int = 0


class FoundEvent(NamedTuple):
    """An event in a source; `problem` says why it, or a part of it, cannot be taken."""

    event_id: str
    event: Event | None
    size_bytes: int
    problem: str = ""


class OwnerState(NamedTuple):
    """The keys of a user, or of an app when `user_id` is None; None where they cannot be read."""

    app_name: str
    user_id: str | None
    state: Mapping[str, Any] | None
    size_bytes: int = 0


class LeftOut(NamedTuple):
    """A row of a source that could not be taken, or not whole: what it is, and why."""

    table: str
    app_name: str
    user_id: str | None
    session_id: str | None
    event_id: str | None
    size_bytes: int
    reason: str


@dataclass
class Imported:
    """What an import found, took and left.

    `sessions` were taken whole, `grown` had new events in the source, `there` were as in the
    source already, `deleted` were deleted here after an earlier import. `events` and `keys` (of
    users and apps) are what was written. `orphans` are events of sessions that are not in the
    source any more; nobody has missed them. `left_out` names rows, `left_out_count` counts all.
    """

    source: str
    kind: str
    dry_run: bool = False
    sessions: int = 0
    grown: int = 0
    there: int = 0
    deleted: int = 0
    events: int = 0
    keys: int = 0
    orphans: int = 0
    left_out_count: int = 0
    left_out: list[LeftOut] = field(default_factory=list)

    def leave_out(self, each: LeftOut) -> None:
        """Counts a row, and names it when not too many are named already."""
        self.left_out_count += 1
        if len(self.left_out) < _NAMED:
            self.left_out.append(each)


class Source(Protocol):
    """Where sessions are read from. It is only read, a session and its events at one moment."""

    name: str
    """A path, or a URL without its password."""
    kind: str

    def count(self) -> int:
        """How many sessions there are."""

    def count_orphans(self) -> int:
        """How many events are of sessions that are not there; they are not taken."""

    def owners(self) -> Iterator[OwnerState | LeftOut]:
        """The state of every app and user; a LeftOut where ids are no text."""

    def session_keys(self) -> Iterator[tuple[str, str, str] | LeftOut]:
        """App, user and id of every session, by app and user; a LeftOut where they are no text."""

    def session(self, key: tuple[str, str, str]) -> FoundSession | None:
        """A session without its events; None when it is not there any more."""

    def events(self, session: FoundSession) -> Iterable[FoundEvent]:
        """The events of a session, oldest first."""

    def moment(self) -> AbstractContextManager[None]:
        """What is read inside is of one moment."""


def state_of(stored: object) -> Mapping[str, Any] | None:
    """A state column, as a text or as a driver decoded it; None when it is no JSON object."""
    if isinstance(stored, bytes | str):
        try:
            stored = json.loads(stored)
        except (ValueError, RecursionError):
            return None
    if not isinstance(stored, dict):
        return None
    return {str(key): value for key, value in stored.items()}

"""Appends under way: bringing a live session up to date once they are committed.

Several tasks may append through one Session object at once. While they do, they share one cursor,
so that none makes another stale. The session itself changes only after a commit, on the thread of
the loop that appended, in the order of the log, and also when the task that waited was cancelled:
otherwise a cancelled append that was stored would make the next one stale.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from google.adk.events import Event
from google.adk.sessions import Session

from adk_adapter._adk import get_marker, set_marker
from adk_adapter.codec import decode_event
from eventstore import Appended, Cursor

__all__ = ["Flight", "Flights", "marker"]


def marker(stream_id: int, version: int) -> str:
    """The revision of a session: its stream, and the version of its last conversation event."""
    return f"{stream_id}:{version}"


def _cursor(session: Session) -> Cursor:
    """Where the holder of this session stands."""
    stream_id, _, version = (get_marker(session) or "").partition(":")
    if stream_id.isdecimal() and version.isdecimal():
        return Cursor(int(stream_id), int(version))
    # Made by hand, or restored from JSON, which does not carry the marker.
    last = session.events[-1].id if session.events else None
    return Cursor(last_event_id=last, last_timestamp=session.last_update_time)


class Flight:
    """The appends under way through one Session object, and the cursor they share."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.cursor = _cursor(session)
        self.appends = 0
        self._applied = self.cursor.version
        self._ready: dict[int, tuple[Event, Appended]] = {}

    def apply(self, event: Event, appended: Appended) -> None:
        """Brings the session up to date with a committed event, and with those that waited for it.

        Loops of several threads may report out of order: an event waits for its predecessor.
        """
        if self._applied is None:
            self._applied = appended.behind
        if appended.behind < self._applied:
            return  # stored by an earlier call, and known to this session already
        self._ready[appended.behind] = event, appended
        while (ready := self._ready.pop(self._applied, None)) is not None:
            event, appended = ready
            for missed in appended.missed:
                self._add(decode_event(missed))
            self._add(event)
            self.session.last_update_time = event.timestamp
            set_marker(self.session, marker(appended.stream_id, appended.version))
            self._applied = appended.version

    def _add(self, event: Event) -> None:
        # In place, and the very event object: ADK holds references to all three.
        self.session.state.update(event.actions.state_delta)
        self.session.events.append(event)


class Flights:
    """All appends under way, by Session object. Used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[int, Flight] = {}

    def board(self, session: Session) -> Flight:
        """Joins the appends under way through a session. Every call needs one of the callback."""
        with self._lock:
            # The flight refers to the session, so its id cannot be used again meanwhile.
            flight = self._flights.get(id(session))
            if flight is None:
                flight = self._flights[id(session)] = Flight(session)
            flight.appends += 1
            return flight

    def land(self, flight: Flight, event: Event, appended: Appended | None) -> None:
        """Ends one append: committed as `appended`, or None when it failed."""
        with self._lock:
            try:
                if appended is not None:
                    flight.apply(event, appended)
            finally:
                flight.appends -= 1
                if flight.appends == 0:
                    del self._flights[id(flight.session)]

    def landing(self, flight: Flight, event: Event) -> Callable[[Appended | None], None]:
        """The callback that ends one append."""
        return lambda appended: self.land(flight, event, appended)

"""Appends under way: bringing a live session up to date once they are committed.

Several tasks may append through one Session object at once. While they do, they share one cursor,
so that none makes another stale. The session itself changes only after a commit, in the order of
the log, and also when the task that waited was cancelled: otherwise a cancelled append that was
stored would make the next one stale.

The thread that commits reports every outcome, in order; the loop that appended applies what was
reported. Where that loop has ended meanwhile (ADK's `Runner.run` has one for each call), the next
append through the session does.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

from google.adk.events import Event
from google.adk.sessions import Session

from adk_adapter._adk import get_marker, set_marker
from adk_adapter.session import growing_events, set_last_update_time
from eventstore import Appended, Cursor, _platform

__all__ = ["Flight", "Flights", "Passage", "marker"]


def marker(stream_id: int, version: int) -> str:
    """The revision of a session: its stream, and the version of its last conversation event."""
    return f"{stream_id}:{version}"


def _cursor(session: Session) -> Cursor:
    """Where the holder of this session stands."""
    stream_id, _, version = (get_marker(session) or "").partition(":")
    if stream_id.isdecimal() and version.isdecimal():
        return Cursor(int(stream_id), int(version))
    # Made by hand, or restored from JSON, which does not carry the marker.
    event_ids = frozenset(event.id for event in session.events)
    return Cursor(event_ids=event_ids, last_timestamp=session.last_update_time)


class Passage:
    """One append under way."""

    __slots__ = ("event", "failed", "landed")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.failed = False
        self.landed = False


class Flight:
    """The appends under way through one Session object, and the cursor they share."""

    def __init__(self, session: Session, gone: Callable[[weakref.ref[Session]], None]) -> None:
        # Weak, so that a session nobody uses any more is not kept by an outcome nobody fetched.
        self.session = weakref.ref(session, gone)
        self.key = id(session)
        self.cursor = _cursor(session)
        self.under_way: set[Passage] = set()
        self.outcomes: deque[tuple[Passage, Appended | None]] = deque()

    def apply_outcomes(self) -> None:
        """Brings the session up to date with everything that was reported."""
        while self.outcomes:
            passage, appended = self.outcomes[0]
            try:
                if appended is not None and appended.news and not passage.landed:
                    self._apply(passage, appended)
            except Exception:
                # By a signal's handler perhaps: then it can be done a second time. What fails twice
                # was told to whoever appended it.
                if not passage.failed:
                    passage.failed = True
                    raise
            self._end(passage)

    def _end(self, passage: Passage) -> None:
        self.under_way.discard(passage)
        del self.outcomes[0]

    def _apply(self, passage: Passage, appended: Appended) -> None:
        if (session := self.session()) is None:
            return
        # In place, and the very event object: ADK holds references to all three.
        news = [*appended.missed, passage.event]
        for each in news:
            session.state.update(each.actions.state_delta or {})
        set_last_update_time(session, passage.event.timestamp)
        set_marker(session, marker(appended.stream_id, appended.version))
        events = growing_events(session)
        # A signal's handler may raise behind any call, and then all of this is done once more. Here
        # is none, so the events are added once.
        events += news
        passage.landed = True


class Flights:
    """All appends under way, by Session object. Used from any thread."""

    def __init__(self) -> None:
        self.begin()
        _all.add(self)

    def begin(self) -> None:
        """Starts with nothing under way: at first, and in a forked child."""
        self._lock = threading.RLock()  # a session may be collected while it is held
        self._flights: dict[int, Flight] = {}

    def board(self, session: Session, passage: Passage) -> Flight:
        """Joins the appends under way through a session. The outcome must be reported."""
        with self._lock:
            flight = self._flights.get(id(session))
            if flight is not None:
                flight.apply_outcomes()
            if flight is None or not flight.under_way:
                flight = Flight(session, self._forget(id(session)))
                self._flights[id(session)] = flight
            flight.under_way.add(passage)
            return flight

    def land(self, flight: Flight) -> None:
        """Applies what was reported, and ends the flight when nothing is under way any more."""
        with self._lock:
            try:
                flight.apply_outcomes()
            finally:
                if not flight.under_way and self._flights.get(flight.key) is flight:
                    del self._flights[flight.key]

    def _forget(self, key: int) -> Callable[[weakref.ref[Session]], None]:
        def gone(session: weakref.ref[Session]) -> None:
            with self._lock:
                if (flight := self._flights.get(key)) is not None and flight.session is session:
                    del self._flights[key]

        return gone


_all: weakref.WeakSet[Flights] = weakref.WeakSet()


def _begin_all() -> None:
    """In a forked child: the parent's appends are not under way here, and its locks not ours."""
    for flights in list(_all):
        flights.begin()


_platform.in_forked_child(_begin_all)

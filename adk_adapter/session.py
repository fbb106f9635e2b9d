"""Sessions as this service returns them: ADK's own, which also answer by name.

They are pydantic models of ADK's fields and nothing else, so copying, serialising and FastAPI
responses are as ADK's, and they equal a plain ADK session with the same content.

The events of a loaded session are made when somebody looks at them, all at once: a session that is
only appended to, or whose state is all that was wanted, never pays for them. Until then its
attributes lack `events`. Whatever looks for it comes through `__getattr__` (the attribute itself)
or `__dict__` (pydantic's own code for comparing, copying, serialising, assigning; `vars`), which
put it in its place first. Nobody can tell the difference but by a clock. The events themselves are
ADK's own from the beginning. Objects in their place that fill themselves would not be: what
`type()` says of an object cannot be feigned, and ADK copies and pydantic serialises by it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from google.adk.events import Event
from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import ListSessionsResponse as AdkListSessionsResponse
from pydantic import BaseModel

from adk_adapter._adk import set_marker
from eventstore import _platform
from eventstore._collection import collection_paused

__all__ = [
    "ListSessionsResponse",
    "Session",
    "count_events",
    "growing_events",
    "make_session",
    "set_last_update_time",
    "unread",
]

_attributes: Final = BaseModel.__dict__["__dict__"]
"""The descriptor of the real `__dict__`, which the property below stands in front of."""
_UNREAD: Final = "not made yet"
"""Where the attributes of a session have what its events are to be made of: no attribute's name."""
_making = threading.RLock()


def _begin() -> None:
    global _making
    _making = threading.RLock()


_platform.in_forked_child(_begin)  # where the thread that held it is not


class Session(AdkSession):
    """An ADK session; `session.session_id` and `session["app_name"]` work too."""

    if not TYPE_CHECKING:

        @property
        def __dict__(self) -> dict[str, Any]:
            _make_events(self)
            return _attributes.__get__(self)

        @__dict__.setter
        def __dict__(self, values: dict[str, Any]) -> None:
            _attributes.__set__(self, values)

        def __getattr__(self, name: str) -> Any:
            # Called for what is not there.
            if name == "events" and name in (values := self.__dict__):
                return values[name]
            return super().__getattr__(name)

        def __delattr__(self, name: str) -> None:
            _make_events(self)
            super().__delattr__(name)

    @property
    def session_id(self) -> str:
        """The same as `id`."""
        return self.id

    def __getitem__(self, name: str) -> Any:
        """The field called `name`; "session_id" is the same as "id".

        Raises:
            KeyError: a session has no such field.
        """
        if name == "session_id":
            return self.id
        if name in AdkSession.model_fields:
            return getattr(self, name)
        raise KeyError(name)

    def __eq__(self, other: object) -> bool:
        # pydantic tells classes apart. Python asks the subclass first, whichever side it is on.
        if not isinstance(other, AdkSession):
            return NotImplemented
        return (
            self.__dict__ == other.__dict__
            and self.__pydantic_private__ == other.__pydantic_private__
        )


def make_session(values: dict[str, Any], marker: str) -> Session:
    """A session of valid values, at a revision. `values` become its attributes."""
    if not _CONSTRUCTED:
        session = Session.model_construct(**values)
        set_marker(session, marker)
        return session
    session = _new(Session)
    _attributes.__set__(session, values)
    _set_names(session, set(values))
    _set_extra(session, None)
    _set_private(session, {_MARKER: marker})
    return session


_MARKER: Final = "_storage_update_marker"
_CONSTRUCTED: Final = list(AdkSession.model_fields) == [
    "id",
    "app_name",
    "user_id",
    "state",
    "events",
    "last_update_time",
] and list(AdkSession.__private_attributes__) == [_MARKER]
"""Whether these are all attributes that ADK's sessions have. Then nothing needs to look for
defaults, which takes longer than the rest of making one."""
_new = object.__new__
_set_names = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private = BaseModel.__dict__["__pydantic_private__"].__set__


def unread(session: Session, count: int, make: Callable[[], Sequence[Event]]) -> Session:
    """Lets the events of a session that was just made, and has none, be made at their first use.

    There will be `count` of them.

    `make` is called once, on the thread that looks first. What it raises is raised to whoever looks
    at the session's events, then and whenever somebody does again.
    """
    values = _attributes.__get__(session)
    values[_UNREAD] = make, values.pop("events"), count
    return session


def _make_events(session: Session) -> None:
    """Puts the events in their place, unless they are there."""
    if _UNREAD not in _attributes.__get__(session):
        return
    with _making:
        values = _attributes.__get__(session)
        if _UNREAD not in values:
            return
        make, events, _ = values[_UNREAD]
        with collection_paused():
            made = make()
        if "events" in values:  # assigned by somebody who goes past pydantic
            made, events = [], values["events"]
        # In the order of the fields, as ever, and all at once: another thread may be reading.
        rest = {**values, "events": events}
        del rest[_UNREAD]
        whole = {name: rest.pop(name) for name in Session.model_fields if name in rest} | rest
        # In front of those that were appended meanwhile, in the very list that grows. A signal's
        # handler may raise behind any call, but not between these two.
        events[:0] = made
        _attributes.__set__(session, whole)


def growing_events(session: AdkSession) -> list[Event]:
    """The list to which events that were appended are to be added."""
    if isinstance(session, Session):
        values = _attributes.__get__(session)
        if "events" not in values and (waiting := values.get(_UNREAD)) is not None:
            events: list[Event] = waiting[1]
            return events
    return session.events


def count_events(session: AdkSession) -> int:
    """How many events a session has, without a look at them."""
    if isinstance(session, Session) and (waiting := _attributes.__get__(session).get(_UNREAD)):
        return int(waiting[2]) + len(waiting[1])
    return len(session.events)


def set_last_update_time(session: AdkSession, timestamp: float) -> None:
    """Assigns the time of the last event, without a look at the others."""
    if isinstance(session, Session):
        session.__pydantic_fields_set__.add("last_update_time")
        with _making:
            _attributes.__get__(session)["last_update_time"] = timestamp
    else:
        session.last_update_time = timestamp


class ListSessionsResponse(AdkListSessionsResponse):
    """ADK's response, which can be iterated for its sessions."""

    if TYPE_CHECKING:
        sessions: list[Session]  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Session]:  # type: ignore[override]
        return iter(self.sessions)

    def __len__(self) -> int:
        return len(self.sessions)

    def __bool__(self) -> bool:
        # As ADK's, which has no length: a response is true, with sessions in it or without.
        return True

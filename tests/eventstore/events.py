"""Small makers of streams and events."""

from __future__ import annotations

import uuid
from typing import Any

from eventstore import EventType, NewEvent, StreamKey, StreamKind
from eventstore.encoding import encode

SESSION = StreamKey(StreamKind.SESSION, "app", "user", "session")


def session(session_id: str, user_id: str = "user", app_name: str = "app") -> StreamKey:
    return StreamKey(StreamKind.SESSION, app_name, user_id, session_id)


def new_event(
    type_: EventType = EventType.ADK_EVENT,
    *,
    delta: dict[str, dict[str, Any]] | None = None,
    data: Any = None,
    event_id: str | None = None,
    timestamp: float = 1.5,
) -> NewEvent:
    if data is None and type_ is EventType.ADK_EVENT:
        data = {"text": "hello"}
    (delta_text, data_text), encoding = encode([delta, data], "a test event")
    return NewEvent(
        event_id=event_id or uuid.uuid4().hex,
        type=type_,
        timestamp=timestamp,
        author="author",
        invocation_id="invocation",
        encoding=encoding,
        delta=delta_text,
        data=data_text,
        codec="test",
    )


def created(**scopes: dict[str, Any]) -> NewEvent:
    return new_event(EventType.SESSION_CREATED, delta=scopes or None)

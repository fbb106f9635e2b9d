"""Stored events as programs get them that read the log rather than a session."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.adk.events import Event

from adk_adapter.codec import decode_event, merge_scopes
from eventstore import EventType, RecordedEvent
from eventstore.encoding import decode

__all__ = ["StoredEvent", "stored_event"]


class StoredEvent(NamedTuple):
    """An event of the log.

    `position` is its place in the whole log, `version` its place in its session, from 1 and without
    holes. `type` is "adk_event" for the conversation, whose `event` is ADK's; of all others
    ("session_created", "state_set", "session_described", "session_deleted" and those of
    maintenance) that is None. `state_delta` are the keys it set, with their prefixes.
    `recorded_at` and `timestamp`, the writer's own, are seconds since the epoch. Where an event
    belongs to a user, an app or to none (maintenance), the ids it lacks are empty.
    """

    app_name: str
    user_id: str
    session_id: str
    position: int
    version: int
    type: str
    author: str
    timestamp: float
    recorded_at: float
    state_delta: dict[str, Any]
    event: Event | None


def stored_event(recorded: RecordedEvent) -> StoredEvent:
    """What a program gets of a recorded event.

    Raises:
        CorruptEvent: it is not what was written.
    """
    delta = {} if recorded.delta is None else decode(recorded.delta, recorded.encoding)
    _, app_name, user_id, session_id = recorded.stream.key
    return StoredEvent(
        app_name,
        user_id,
        session_id,
        recorded.position,
        recorded.version,
        recorded.type,
        recorded.author,
        recorded.timestamp,
        recorded.recorded_at / 1e6,
        merge_scopes(delta),
        decode_event(recorded) if recorded.type == EventType.ADK_EVENT else None,
    )

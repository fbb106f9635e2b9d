"""Streams and events: what callers write and what the log holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from eventstore.encoding import decode
from eventstore.errors import InvalidIdentifier, ValueNotStorable
from eventstore.limits import IDENTIFIER_LENGTH

__all__ = [
    "CONVERSATION_TYPES",
    "REMOVAL_TYPES",
    "Deltas",
    "EventType",
    "NewEvent",
    "RecordedEvent",
    "Stream",
    "StreamDeltas",
    "StreamKey",
    "StreamKind",
    "check_identifier",
    "check_identifiers",
]


class StreamKind(StrEnum):
    """What a stream belongs to."""

    SESSION = "session"
    USER = "user"
    APP = "app"
    SYSTEM = "system"


class EventType(StrEnum):
    """The stable names stored in `events.type`. Never rename one.

    SESSION_DELETED is the tombstone of any stream: a user's ends with it too, while it is erased.
    """

    SESSION_CREATED = "session_created"
    ADK_EVENT = "adk_event"
    STATE_SET = "state_set"
    SESSION_DESCRIBED = "session_described"
    SESSION_DELETED = "session_deleted"
    CARRIED_OVER = "carried_over"
    DELETED = "deleted"
    VACUUMED = "vacuumed"
    PURGED = "purged"
    ERASED = "erased"
    IMPORTED = "imported"


CONVERSATION_TYPES: Final = frozenset({EventType.SESSION_CREATED, EventType.ADK_EVENT})
"""Events that make a loaded session stale. Others (keys set from outside, titles) do not."""

REMOVAL_TYPES: Final = frozenset({EventType.VACUUMED, EventType.PURGED, EventType.ERASED})
"""Notes on the system stream that name the streams whose events were removed with them."""


class StreamKey(NamedTuple):
    """Names a stream. Parts that a kind does not have are the empty string."""

    kind: StreamKind
    app_name: str = ""
    user_id: str = ""
    session_id: str = ""

    def __str__(self) -> str:
        parts = [f"app {self.app_name!r}"]
        if self.kind in (StreamKind.SESSION, StreamKind.USER):
            parts.append(f"user {self.user_id!r}")
        name = f"session {self.session_id!r}" if self.kind is StreamKind.SESSION else self.kind
        return f"{name} ({', '.join(parts)})"


class Stream(NamedTuple):
    """One row of `streams`: a stream and where its head is.

    `user_stream_id` and `app_stream_id` are the streams that own the `user:` and `app:` keys its
    events may write (0 where the kind has none). `conversation_version` is the version of the
    last event of a type in CONVERSATION_TYPES, 0 when there is none.
    """

    id: int
    key: StreamKey
    user_stream_id: int
    app_stream_id: int
    version: int
    conversation_version: int
    chain: bytes

    @property
    def owners(self) -> dict[str, int]:
        """Scope name to the id of the stream that owns the scope's keys."""
        kind = self.key.kind
        if kind is StreamKind.SESSION:
            return {"session": self.id, "user": self.user_stream_id, "app": self.app_stream_id}
        if kind is StreamKind.USER:
            return {"user": self.id, "app": self.app_stream_id}
        return {"app": self.id} if kind is StreamKind.APP else {}


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event as its writer hands it over.

    `timestamp` is seconds since the epoch, as the writer's clock had it, and finite; nothing is
    ordered by it. `delta` is the scoped state change and `data` the payload, both JSON text in
    `encoding` (see eventstore.encoding). `codec` names the models that wrote the payload ('' for
    none). It is stored in the schema version of its type that is current (see
    eventstore.upcasting).

    Raises:
        ValueNotStorable: the timestamp is infinite, or NaN.
    """

    event_id: str
    type: EventType
    timestamp: float
    author: str = ""
    invocation_id: str = ""
    encoding: int = 1
    delta: bytes | None = None
    data: bytes | None = None
    codec: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.timestamp):
            raise ValueNotStorable(f"event {self.event_id!r}", f"its timestamp is {self.timestamp}")


class RecordedEvent(NamedTuple):
    """An event in the log.

    `position` is its place in the whole log (increasing, may have holes), `version` its place in
    its stream (1-based, dense), `recorded_at` UTC microseconds since the epoch.
    """

    position: int
    stream: Stream
    version: int
    event_id: str
    type: str
    schema_version: int
    recorded_at: int
    timestamp: float
    author: str
    invocation_id: str
    encoding: int
    delta: bytes | None
    data: bytes | None
    codec: str = ""

    def payload(self) -> Any:
        """The decoded `data`: for an ADK event its JSON object; None when there is none.

        Raises:
            ValueError: it is not JSON.
        """
        return None if self.data is None else decode(self.data, self.encoding)


class StreamDeltas(NamedTuple):
    """What the plain events of one session say in a part of the log.

    *Plain* are by far the most: an ADK event or a session's first, of the current schema version,
    with a delta in strict JSON or none. `last` is the position of the last of them and `timestamp`
    its own; `created` is that of the session's first event, where it is among them. Of those with a
    delta, there are `positions` and `deltas`, in the order of the log.
    """

    stream_id: int
    user_stream_id: int
    app_stream_id: int
    last: int
    timestamp: float
    created: float | None
    positions: Sequence[int]
    deltas: Sequence[bytes]


class Deltas(NamedTuple):
    """What folding the deltas needs of the events behind position `after`, up to `upto`.

    An object for each event would take longer to make than to fold. So of the plain ones there is
    what they say stream by stream; `wholes` are the others, in the order of the log. `events` is
    how many there are of both.
    """

    after: int
    upto: int
    events: int
    streams: Sequence[StreamDeltas]
    wholes: Sequence[RecordedEvent]


def check_identifier(what: str, value: object, longest: int = IDENTIFIER_LENGTH) -> str:
    """Returns `value` when both databases can hold it as an id or a state key.

    Raises:
        InvalidIdentifier: no string, or with NUL (PostgreSQL cannot hold it) or lone surrogates
            (no UTF-8 can), or longer than `longest` characters.
    """
    if not isinstance(value, str):
        raise InvalidIdentifier(what, f"must be a str, not {type(value).__name__}")
    if len(value) > longest:
        raise InvalidIdentifier(what, f"is longer than {longest:,} characters")
    if "\0" in value:
        raise InvalidIdentifier(what, "contains NUL")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidIdentifier(what, "contains a lone surrogate") from None
    return value


def check_identifiers(**given: object) -> None:
    """As `check_identifier`, each by its name, of ids that may be None and then stand for all."""
    for what, value in given.items():
        if value is not None:
            check_identifier(what, value)

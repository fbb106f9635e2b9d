"""Upcasters: how events of older schema versions are read.

Stored events are never rewritten. When the meaning of a type's payload or delta changes, its
version in CURRENT goes up and an upcaster from the version before is added. Every reader of the
log goes through here, so loads, rebuild, verify and scavenge see the same events; digests and the
hash chain are about the stored bytes and are checked before. What is appended has the version in
CURRENT, always.

An upcaster is a pure function from a recorded event to a recorded event, one version further. It
may change `delta`, `data` and `encoding`, either of the first two may be None, and it raises
`schema_version` by one. What it makes was written by no model, so it is read without a codec: the
adapter validates it.

It may also give an event of a type that is no longer written another `type`, in any version of
that. But which stream is live and which events are its conversation is settled when an event is
appended, and asked of the database by the stored type. So `session_created`, `adk_event` and
`session_deleted` keep their names, and no other type becomes one of them. The member `stream` in
the data of a stream's first event is read as it is stored, too, and outlives every version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from eventstore.errors import UnknownEvent
from eventstore.events import CONVERSATION_TYPES, EventType, RecordedEvent

__all__ = ["CURRENT", "UPCASTERS", "Upcaster", "upcast"]

Upcaster = Callable[[RecordedEvent], RecordedEvent]

CURRENT: Final[dict[str, int]] = {str(type_): 1 for type_ in EventType}
"""The schema version that is written and understood, by event type."""

UPCASTERS: Final[dict[tuple[str, int], Upcaster]] = {}
"""By event type and the schema version they read."""

_SETTLED_WHEN_APPENDED: Final = CONVERSATION_TYPES | {EventType.SESSION_DELETED}


def upcast(event: RecordedEvent) -> RecordedEvent:
    """The event as this version of the package understands it.

    Raises:
        UnknownEvent: a type or schema version that this version does not know.
    """
    read = event
    while CURRENT.get(read.type) != read.schema_version:
        upcaster = UPCASTERS.get((read.type, read.schema_version))
        if upcaster is None:
            raise UnknownEvent(
                str(event.stream.key), event.position, event.type, event.schema_version
            )
        read = _next(read, upcaster(read))
    return read


def _next(before: RecordedEvent, after: RecordedEvent) -> RecordedEvent:
    """What an upcaster made, as far as it may make anything."""
    if after.type == before.type:
        assert after.schema_version == before.schema_version + 1, "an upcaster goes one version on"
    else:
        assert not {before.type, after.type} & _SETTLED_WHEN_APPENDED, "this type keeps its name"
    return before._replace(
        type=after.type,
        schema_version=after.schema_version,
        encoding=after.encoding,
        delta=after.delta,
        data=after.data,
        codec="",
    )

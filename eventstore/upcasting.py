"""Upcasters: how events of older schema versions are read.

Stored events are never rewritten. When the meaning of a type's payload or delta changes, its
version in CURRENT goes up and an upcaster from the version before is added. Every reader of the
log goes through here, so live reads, rebuild, verify and export see the same events; digests and
the hash chain are about the stored bytes and are checked before.

An upcaster is a pure function from a recorded event to a recorded event, one version further. It
may change `type`, `delta`, `data` and `encoding`, and must raise `schema_version` by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from eventstore.errors import UnknownEvent
from eventstore.events import EventType, RecordedEvent

__all__ = ["CURRENT", "UPCASTERS", "upcast"]

CURRENT: Final[dict[str, int]] = {str(type_): 1 for type_ in EventType}
"""The schema version that is written and understood, by event type."""

UPCASTERS: Final[dict[tuple[str, int], Callable[[RecordedEvent], RecordedEvent]]] = {}
"""By event type and the schema version they read."""


def upcast(event: RecordedEvent) -> RecordedEvent:
    """The event as this version of the package understands it.

    Raises:
        UnknownEvent: a type or schema version that this version does not know.
    """
    while CURRENT.get(event.type) != event.schema_version:
        upcaster = UPCASTERS.get((event.type, event.schema_version))
        if upcaster is None:
            raise UnknownEvent(
                str(event.stream.key), event.position, event.type, event.schema_version
            )
        event = upcaster(event)
    return event

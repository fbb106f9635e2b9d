"""Where the holder of a loaded stream believes its conversation stands."""

from __future__ import annotations

from typing import Final

__all__ = ["Cursor"]


_ROUNDED_S: Final = 1e-6


class Cursor:
    """The expected version of a sequence of appends by one holder of a stream.

    The writer reads it when it executes an append and moves it when the append is committed, so
    several appends of one holder may wait in the queue at once without making each other stale.
    Compared by identity. Only the writer changes it once it has been handed over.

    `version` is the conversation version the holder has seen. A holder that never learnt it (a
    session restored from JSON) passes None, and the ids of the events it has: it is up to date
    when the stream's last conversation event is among them. Without any it passes the time of the
    last event it knows of, to the microsecond.
    """

    __slots__ = ("event_ids", "last_timestamp", "stream_id", "version")

    def __init__(
        self,
        stream_id: int | None = None,
        version: int | None = None,
        *,
        event_ids: frozenset[str] = frozenset(),
        last_timestamp: float = 0.0,
    ) -> None:
        self.stream_id = stream_id
        self.version = version
        self.event_ids: Final = event_ids
        self.last_timestamp: Final = last_timestamp

    def has_seen(self, head: int, event_id: str, timestamp: float) -> bool:
        """Whether a holder without a version has seen the last conversation event, which is this.

        `head` is the version of the event.
        """
        if self.event_ids:
            return event_id in self.event_ids
        # Nothing was said yet, or it was loaded without what was, perhaps from a database that
        # rounds times.
        return head == 1 or abs(timestamp - self.last_timestamp) < _ROUNDED_S

    def __repr__(self) -> str:
        if self.version is None:
            return f"of a session without a revision, with {len(self.event_ids)} events"
        return f"{self.stream_id}:{self.version}"

"""What callers hand to the engine's threads."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from eventstore.cursor import Cursor
from eventstore.events import NewEvent, RecordedEvent, StreamKey
from eventstore.postgres.transaction import ReadTransaction
from eventstore.requests import Request

__all__ = ["Kind", "Read", "Write"]

T = TypeVar("T")


class Kind(Enum):
    """What a Write does. All but APPEND are alone with their stream in a transaction."""

    CREATE = "create"
    APPEND = "append"
    SET_STATE = "set_state"
    DELETE = "delete"
    BARRIER = "barrier"


class Write(Request[T]):
    """One event to be written, and how. A barrier has none, and is done behind all before it."""

    __slots__ = ("cursor", "event", "full", "key", "kind", "merge")

    def __init__(
        self,
        kind: Kind,
        key: StreamKey | None = None,
        event: NewEvent | None = None,
        cursor: Cursor | None = None,
        *,
        merge: Callable[[RecordedEvent], Any] | None = None,
        full: bool = False,
        on_outcome: Callable[[T | None], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(on_outcome, on_done)
        self.kind = kind
        self.key = key
        self.event = event
        self.cursor = cursor
        self.merge = merge
        self.full = full

    @property
    def size(self) -> int:
        """Bytes of content."""
        event = self.event
        return 0 if event is None else len(event.delta or b"") + len(event.data or b"")


class Read(Request[T]):
    """A function of one snapshot, which may be executed twice."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[ReadTransaction], T]) -> None:
        super().__init__()
        self.function = function

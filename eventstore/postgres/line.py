"""The requests that wait for the writer, and those whose locks somebody else keeps.

A request that cannot have its locks within a moment steps aside, and the others of its stream
behind it, so that no session waits for another one's lock. It is tried again and again until its
time is up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from eventstore.events import StreamKey
from eventstore.postgres.requests import Kind, Write

__all__ = ["Line"]

_BYTES_MAX: Final = 16 * 1024 * 1024
"""How much of content is committed together: a statement of a gigabyte no server takes."""


class Line:
    """Used under a lock of the engine's."""

    def __init__(self) -> None:
        self._waiting: deque[Write[Any]] = deque()
        self._aside: dict[StreamKey, deque[Write[Any]]] = {}
        self._barriers: list[tuple[Write[Any], list[Write[Any]]]] = []
        """Those that wait, each with what had stepped aside before it."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_aside(self) -> bool:
        """Whether any request has stepped aside."""
        return bool(self._aside)

    def add(self, request: Write[Any]) -> None:
        """Puts a request at the end."""
        self._waiting.append(request)

    def take(self, count: int) -> list[Write[Any]]:
        """The next requests that can be done together, and are not to step aside."""
        group: list[Write[Any]] = []
        kinds: dict[StreamKey, Kind] = {}
        size = 0
        while self._waiting and len(group) < count:
            request = self._waiting[0]
            size += request.size
            if group and size > _BYTES_MAX:
                break
            key = request.key
            if key is None:
                if self._aside:
                    self.keep_barriers([self._waiting.popleft()], group)
                    continue
            elif key in self._aside:
                self._aside[key].append(self._waiting.popleft())
                continue
            else:
                # What makes, ends or returns a stream is alone with it.
                before = kinds.get(key)
                if before is not None and (before, request.kind) != (Kind.APPEND, Kind.APPEND):
                    break
                kinds[key] = request.kind
            group.append(self._waiting.popleft())
        return group

    def step_aside(self, requests: list[Write[Any]]) -> None:
        """Puts requests that could not have their locks where they are tried again."""
        for request in reversed(requests):
            assert request.key is not None
            behind = self._aside.pop(request.key, deque())
            behind.appendleft(request)
            self._aside[request.key] = behind

    def take_aside(self) -> Write[Any] | None:
        """The first request of the stream that was not tried for the longest time."""
        for key, requests in self._aside.items():
            request = requests.popleft()
            if not requests:
                del self._aside[key]
            return request
        return None

    def take_late(self, before: float) -> list[Write[Any]]:
        """Those that stepped aside and were submitted before a time of the monotonic clock."""
        late = [r for each in self._aside.values() for r in each if r.submitted_at <= before]
        for key in {request.key for request in late if request.key is not None}:
            left = deque(r for r in self._aside[key] if r.submitted_at > before)
            if left:
                self._aside[key] = left
            else:
                del self._aside[key]
        return late

    def take_barriers(self) -> list[Write[Any]]:
        """The barriers before which nothing is left to be done."""
        kept = [
            (barrier, [r for r in before if not r.settled]) for barrier, before in self._barriers
        ]
        self._barriers = [each for each in kept if each[1]]
        return [barrier for barrier, before in kept if not before]

    def keep_barriers(self, barriers: list[Write[Any]], before: Sequence[Write[Any]] = ()) -> None:
        """Keeps barriers until what is aside now, and `before`, is done: more may come for ever."""
        aside = [request for requests in self._aside.values() for request in requests]
        self._barriers += [(barrier, [*before, *aside]) for barrier in barriers]

    def clear(self) -> list[Write[Any]]:
        """Everything that is left, taken out."""
        aside = [request for requests in self._aside.values() for request in requests]
        left = [*self._waiting, *aside, *(barrier for barrier, _ in self._barriers)]
        self._waiting.clear()
        self._aside.clear()
        self._barriers.clear()
        return left

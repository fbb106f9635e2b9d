"""Reading the log in order: one session's events in pages, and the end of the log as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple

from eventstore import (
    EventStore,
    InvalidInput,
    RecordedEvent,
    Snapshot,
    StreamKey,
    StreamNotFound,
)
from eventstore.events import check_identifiers

__all__ = ["POLL_S", "Filter", "LogPage", "check_count", "page_of_log", "page_of_session", "tail"]

PAGE_EVENTS: Final = 200
POLL_S: Final = 0.2
"""How often the log is looked at for what other processes have appended."""


class Filter(NamedTuple):
    """Whose events; None does not filter."""

    app_name: str | None = None
    user_id: str | None = None
    session_id: str | None = None

    def has(self, event: RecordedEvent) -> bool:
        """Whether an event is of these."""
        _, *names = event.stream.key
        return all(want is None or want == name for want, name in zip(self, names, strict=True))


class LogPage(NamedTuple):
    """Events of the log, and the position up to which it was read."""

    events: Sequence[RecordedEvent]
    reached: int


def check_count(what: str, number: object) -> int:
    """Returns `number` when it is a whole one from 0 on that a database can hold.

    Raises:
        InvalidInput: it is not.
    """
    if not isinstance(number, int) or not 0 <= number < 2**63:
        raise InvalidInput(f"{what} must be a number from 0 to 2**63 - 1.")
    return int(number)  # True is one, and a server would take it for what it is


def page_of_session(
    store: EventStore,
    key: StreamKey,
    after_version: int = 0,
    count: int = PAGE_EVENTS,
    *,
    stream_id: int | None = None,
) -> Sequence[RecordedEvent]:
    """Up to `count` events of a live session behind a version, oldest first. Blocks for one read.

    `stream_id` is that of the events of the page before.

    Raises:
        StreamNotFound: there is no such session, or it is another one by now.
        InvalidInput: (a ValueError) a version or count below zero, or above 2**63 - 1.
        CorruptEvent: an event is not what was written.
    """
    after_version = check_count("after_version", after_version)
    count = check_count("limit", count)

    def function(snapshot: Snapshot) -> Sequence[RecordedEvent]:
        stream = snapshot.find_stream(key)
        if stream is None or stream_id not in (None, stream.id):
            raise StreamNotFound(str(key))
        return snapshot.read_page(stream, after_version, count)

    return store.snapshot(function)


def page_of_log(store: EventStore, after: int, whose: Filter = Filter()) -> LogPage:  # noqa: B008
    """The next events of the log behind a position. Blocks for one read.

    Raises:
        InvalidInput: (a ValueError) a position below zero, or above 2**63 - 1.
        CorruptEvent, UnknownEvent: one cannot be read.
    """
    return store.snapshot(partial(_page, check_count("after", after), whose))


def _page(after: int, whose: Filter, snapshot: Snapshot) -> LogPage:
    head = snapshot.head()
    events = snapshot.read_all(after, head, PAGE_EVENTS)
    reached = events[-1].position if events else max(after, head)
    return LogPage([event for event in events if whose.has(event)], reached)


def tail(
    store: EventStore,
    whose: Filter = Filter(),  # noqa: B008 - it cannot be changed
    *,
    last: int = 10,
    after: int | None = None,
    follow: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[RecordedEvent]:
    """The last events of the log; or those behind a position; and with `follow` what comes.

    Blocks: between two looks at the log it waits for 0.2 s. Events come once each and in the order
    of the log, whichever process appended them. Ended where the caller ends, or `stopping` says so.

    Raises:
        InvalidInput: (a ValueError) a name, an id, a count or a position that cannot be.
        CorruptEvent, UnknownEvent: an event cannot be read.
    """
    last = check_count("last", last)
    check_identifiers(**whose._asdict())
    if after is None:
        positions, after = store.snapshot(lambda s: (s.last_positions(last, *whose), s.head()))
        for start in range(0, len(positions), PAGE_EVENTS):
            chosen = positions[start : start + PAGE_EVENTS]
            yield from store.snapshot(lambda s, chosen=chosen: s.read_positions(chosen))  # type: ignore[misc]
    while not stopping():
        page = page_of_log(store, after, whose)
        yield from page.events
        done = page.reached == after
        after = page.reached
        if done and not follow:
            return
        if done:
            time.sleep(POLL_S)

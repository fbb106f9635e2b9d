"""What a database holds and what it takes: counts, sizes, growth, the largest sessions.

Counts come from the rows of streams, of which there is one for each session, user and app. What
needs a look at every event, the sizes, is left out where the file is large, unless it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, NamedTuple

from eventstore import AppCounts, EventStore, Snapshot, Storage, StreamKey, StreamKind
from projections.rebuild import Progress

__all__ = ["AppStats", "DayStats", "SessionStats", "Stats", "measure"]

AUTOMATIC_BYTES: Final = 256_000_000
"""Up to this size every event is looked at without being asked: a second or two."""
_PAGE_EVENTS: Final = 5_000


class AppStats(NamedTuple):
    """What an app has. `bytes` is the content of its events, None where it was not measured.

    `deleted` are sessions whose events a vacuum would remove.
    """

    app_name: str
    sessions: int
    users: int
    deleted: int
    events: int
    bytes: int | None


class DayStats(NamedTuple):
    """What was appended on a UTC day: events, also those removed since; content that is left."""

    day: str
    events: int
    bytes: int | None


class SessionStats(NamedTuple):
    """A large session."""

    app_name: str
    user_id: str
    session_id: str
    events: int
    bytes: int | None


class Stats(NamedTuple):
    """See the parts. `whole` says whether all events were looked at; without it sizes are None.

    `largest` are the sessions with the most bytes, or where these were not measured, events.
    """

    path: str
    head: int
    sessions: int
    events: int
    storage: Storage
    apps: Sequence[AppStats]
    days: Sequence[DayStats]
    largest: Sequence[SessionStats]
    whole: bool


class _Counted(NamedTuple):
    """What the rows of streams tell, in one snapshot."""

    head: int
    apps: Sequence[AppCounts]
    system_events: int
    bounds: Sequence[int]
    """Per day, the last position before it; then the head."""


def measure(
    store: EventStore,
    *,
    whole: bool | None = None,
    days: int = 14,
    largest: int = 10,
    progress: Progress = lambda *_: None,
) -> Stats:
    """Measures a database, while others write. Blocks.

    `whole` looks at every event and every page of the file, which takes a second or two for each
    256 MB; when it is None, only in a file that is not larger than that.
    """
    total = store.storage(tables=False).total
    whole = total <= AUTOMATIC_BYTES if whole is None else whole
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    starts = [today - timedelta(days=n) for n in reversed(range(days))]
    counted = store.snapshot(partial(_count, starts))
    by_stream: dict[int, int] = {}
    by_day = [0] * len(starts)
    after = events = 0
    while whole:
        page = store.snapshot(lambda s, after=after: s.content_sizes(after, _PAGE_EVENTS))  # type: ignore[misc]
        for position, stream_id, size in page:
            by_stream[stream_id] = by_stream.get(stream_id, 0) + size
            # The bound before a day is the last position that is not of it.
            day = bisect_left(counted.bounds, position) - 1
            if 0 <= day < len(by_day):
                by_day[day] += size
        if not page or page[-1][0] >= counted.head:
            break
        events, after = events + len(page), page[-1][0]
        progress(events, after, counted.head)
    return Stats(
        path=store.path,
        head=counted.head,
        sessions=sum(app.sessions for app in counted.apps),
        events=sum(app.events for app in counted.apps) + counted.system_events,
        storage=store.storage(tables=whole),
        apps=store.snapshot(partial(_app_stats, counted.apps, by_stream if whole else None)),
        days=[
            DayStats(start.date().isoformat(), last - first, by_day[n] if whole else None)
            for n, (start, first, last) in enumerate(
                zip(starts, counted.bounds, counted.bounds[1:], strict=False)
            )
        ],
        largest=store.snapshot(partial(_largest, largest, by_stream if whole else None)),
        whole=whole,
    )


def _count(starts: Sequence[datetime], snapshot: Snapshot) -> _Counted:
    head = snapshot.head()
    system = snapshot.find_stream(StreamKey(StreamKind.SYSTEM))
    bounds = [snapshot.position_before(round(start.timestamp() * 1e6)) for start in starts]
    events = 0 if system is None else system.version
    return _Counted(head, snapshot.count_by_app(), events, [*bounds, head])


def _app_stats(
    apps: Sequence[AppCounts], sizes: dict[int, int] | None, snapshot: Snapshot
) -> list[AppStats]:
    if sizes is None:
        return [AppStats(*app, bytes=None) for app in apps]
    by_app: dict[str, int] = {}
    ids = list(sizes)
    for start in range(0, len(ids), _PAGE_EVENTS):
        for stream_id, facts in snapshot.get_facts(ids[start : start + _PAGE_EVENTS]).items():
            name = facts.stream.key.app_name
            by_app[name] = by_app.get(name, 0) + sizes[stream_id]
    return [AppStats(*app, bytes=by_app.get(app.app_name, 0)) for app in apps]


def _largest(count: int, sizes: dict[int, int] | None, snapshot: Snapshot) -> list[SessionStats]:
    if sizes is None:
        streams = snapshot.largest_streams(count)
    else:
        # The other streams, of users, apps and the system, are few: some more than are wanted.
        by_size = sorted(sizes, key=lambda stream_id: (-sizes[stream_id], stream_id))
        streams = []
        for start in range(0, len(by_size), 100):
            found = snapshot.get_facts(ids := by_size[start : start + 100])
            streams += [
                found[stream_id].stream
                for stream_id in ids
                if stream_id in found
                and found[stream_id].live
                and found[stream_id].stream.key.kind is StreamKind.SESSION
            ]
            if len(streams) >= count:
                break
    return [
        SessionStats(
            stream.key.app_name,
            stream.key.user_id,
            stream.key.session_id,
            stream.version,
            None if sizes is None else sizes.get(stream.id, 0),
        )
        for stream in streams[:count]
    ]

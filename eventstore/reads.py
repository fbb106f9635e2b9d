"""What every backend reads alike: by statements of the same name, with the same columns.

A backend's queries.sql holds the statements; how they are executed is its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from eventstore.errors import CorruptEvent, StreamNotFound
from eventstore.events import RecordedEvent, Stream, StreamKind
from eventstore.records import SYSTEM, facts_of, proved, recorded, stream_of
from eventstore.store import AppCounts, LoggedEvent, Registered, StreamFacts

__all__ = ["Reads"]


class Reads(ABC):
    """Reads of one consistent snapshot. See eventstore.store.Snapshot for what they promise."""

    _as_it_stands = False

    @contextmanager
    def as_it_stands(self) -> Iterator[None]:
        """Lets rows of the log and of tables be read, while it lasts, whatever they hold."""
        before, self._as_it_stands = self._as_it_stands, True
        try:
            yield
        finally:
            self._as_it_stands = before

    @abstractmethod
    def head(self) -> int:
        """The position of the last event, 0 in an empty log."""

    @abstractmethod
    def _all(self, name: str, *parameters: Any) -> list[Any]:
        """The rows of a statement."""

    @abstractmethod
    def _one(self, name: str, *parameters: Any) -> Any:
        """The first row of a statement, None when there is none."""

    @abstractmethod
    def _list(self, numbers: Iterable[int]) -> Any:
        """Any number of integers as one parameter."""

    @abstractmethod
    def _codecs_of(self, ids: Iterable[int]) -> Mapping[int, str]:
        """The fingerprints of some codecs, by id, as far as they are there."""

    def get_stream(self, stream_id: int) -> Stream:
        """A stream by its id, deleted ones included."""
        if (row := self._one("get_stream", stream_id)) is None:
            raise StreamNotFound(f"stream {stream_id}")
        return stream_of(row)

    def get_streams(self, ids: Iterable[int]) -> dict[int, Stream]:
        """Streams by their ids.

        Raises:
            CorruptEvent: events refer to a stream that has no row.
        """
        wanted = set(ids)
        streams = self._find_streams(wanted)
        for stream_id in wanted - streams.keys():
            raise CorruptEvent(f"stream {stream_id}", 0, 0, "the row of its stream is missing")
        return streams

    def _find_streams(self, ids: Iterable[int]) -> dict[int, Stream]:
        rows = self._all("get_streams", self._list(ids))
        return {row[0]: stream_of(row, as_it_stands=self._as_it_stands) for row in rows}

    def get_facts(self, ids: Iterable[int]) -> dict[int, StreamFacts]:
        """Rows of `streams` by their ids, as far as they are there."""
        rows = self._all("get_facts", self._list(ids))
        return {row[0]: facts_of(row, as_it_stands=self._as_it_stands) for row in rows}

    def stream_facts(self, after: int, count: int) -> list[StreamFacts]:
        """Up to `count` rows of `streams` behind id `after`, whole."""
        rows = self._all("streams_from", after, count)
        return [facts_of(row, as_it_stands=self._as_it_stands) for row in rows]

    def streams_of_app(self, app_name: str) -> list[Stream]:
        """Every stream of an app whose events are in the log, deleted sessions' included."""
        return [stream_of(row) for row in self._all("streams_of_app", app_name)]

    def streams_of_user(self, user_id: str, app_name: str | None = None) -> list[StreamFacts]:
        """A user's own streams and the sessions', deleted ones too while they have events."""
        rows = proved(self._all("streams_of_user", user_id, app_name))
        return [facts_of((*row[:10], *row[11:])) for row in rows]

    def deleted_streams(self, count: int) -> list[Stream]:
        """Up to `count` streams that were closed and whose events were not scavenged yet.

        Those of users only when there are no sessions.
        """
        for kind in (StreamKind.SESSION, StreamKind.USER):
            if rows := self._all("deleted_streams", str(kind), count):
                return [stream_of(row) for row in rows]
        return []

    def apps(self) -> list[Stream]:
        """The streams of all apps, by name."""
        return [stream_of(row) for row in self._all("apps")]

    def find_sessions(
        self, session_id: str, app_name: str | None = None, user_id: str | None = None
    ) -> list[Stream]:
        """The live sessions with an id, of any app and user that are not named."""
        return [stream_of(row) for row in self._all("find_sessions", session_id, app_name, user_id)]

    def count_by_app(self) -> list[AppCounts]:
        """What each app has, by name."""
        return [AppCounts(*row) for row in self._all("count_by_app")]

    def largest_streams(self, count: int) -> list[Stream]:
        """The live sessions with the most events."""
        return [stream_of(row) for row in self._all("largest_streams", count)]

    def read_all(self, after: int, upto: int, count: int) -> list[RecordedEvent]:
        """Up to `count` whole events of the log behind `after`, in position order.

        Raises:
            CorruptEvent: content does not match its digest.
            UnknownEvent: see there.
        """
        return self._whole(self._all("read_all", after, upto, count))

    def read_positions(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """The events at some positions, in position order. Raises as `read_all`."""
        if not positions:
            return []
        return self._whole(self._all("read_positions", self._list(positions)))

    def read_log(self, after: int, upto: int, count: int) -> list[LoggedEvent]:
        """As `read_all`, but neither checked nor upcast, with what proves the events."""
        return self._logged(self._all("read_all", after, upto, count))

    def read_logged(self, positions: Sequence[int]) -> list[LoggedEvent]:
        """The events at some positions, in position order, as `read_log` gives them."""
        return self._logged(self._all("read_positions", self._list(positions)))

    def _whole(self, rows: Sequence[Sequence[Any]]) -> list[RecordedEvent]:
        if not rows:
            return []
        codecs = self._codecs_of(row[15] for row in rows)
        streams = self.get_streams(row[0] for row in rows)
        return [recorded(streams[row[0]], row[1:], codecs) for row in rows]

    def _logged(self, rows: Sequence[Sequence[Any]]) -> list[LoggedEvent]:
        if not rows:
            return []
        codecs = self._codecs_of(row[15] for row in rows)
        ids = {row[0] for row in rows}
        streams = self._find_streams(ids)
        for stream_id in ids - streams.keys():
            streams[stream_id] = Stream(stream_id, SYSTEM, 0, 0, 0, 0, b"")  # its row is missing
        return [
            LoggedEvent(
                RecordedEvent._make((row[1], streams[row[0]], *row[2:13], codecs.get(row[15], ""))),
                row[13],
                row[14],
                row[16],
            )
            for row in rows
        ]

    def positions_carried_over(self) -> list[int]:
        """The positions of all events that carry rows over, in order. Looks at all events."""
        return [position for (position,) in self._all("positions_carried_over")]

    def content_sizes(self, after: int, count: int) -> list[tuple[int, int, int]]:
        """Position, stream id and bytes of content of up to `count` events behind a position."""
        return self._all("content_sizes", after, count)

    def position_before(self, recorded_at: int) -> int:
        """The last position whose event was recorded before a time, found by halving the log."""
        # Up to `low` all were recorded before, behind `high` none.
        low, high = 0, self.head()
        while low < high:
            middle = (low + high + 1) // 2
            # Positions may be missing: the next one that is there answers for them.
            row = self._one("next_recorded_at", middle)
            if row is not None and row[0] <= high and row[1] < recorded_at:
                low = row[0]
            else:
                high = middle - 1
        return low

    def link_at(self, stream_id: int, version: int) -> bytes | None:
        """The chain link of an event; None when it is not there."""
        row = self._one("link_at", stream_id, version)
        return None if row is None else bytes(row[0])

    def event_identity(self, stream: Stream, version: int) -> tuple[str, float]:
        """The event id and timestamp at a version of a stream."""
        if (row := self._one("event_identity", stream.id, version)) is None:
            raise CorruptEvent(str(stream.key), version, 0, "it is missing")
        return row[0], row[1]

    def previous_conversation_version(self, stream: Stream, version: int) -> int:
        """The version of the conversation event before the one at `version`, 0 for none."""
        row = self._one("previous_conversation", stream.id, version)
        return 0 if row is None else int(row[0])

    def registered(self) -> dict[str, Registered]:
        """The projections this database keeps rows of, by name."""
        return {row[0]: Registered(*row[1:]) for row in self._all("registered_projections")}

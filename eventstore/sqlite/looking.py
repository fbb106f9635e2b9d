"""Reads that look at many streams, or for some of them: for lists, counts and searches."""

from __future__ import annotations

import sqlite3
from typing import Final

from eventstore.changes import Row
from eventstore.events import Stream
from eventstore.projection import Projection
from eventstore.records import facts_of, stream_of
from eventstore.sqlite.queries import QUERIES
from eventstore.sqlite.tables import ProjectionTable
from eventstore.store import AppCounts, StreamFacts

__all__ = ["Looking"]

_Q: Final = QUERIES
_FEW_STREAMS: Final = 1_000
"""So many are asked one by one for their last events; with more the log is read back."""


class Looking:
    """What a transaction reads of more than one stream. See eventstore.store.Snapshot."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def head(self) -> int:
        """The position of the last event, 0 in an empty log."""
        (position,) = self.connection.execute(_Q["head"]).fetchone()
        return int(position)

    def indexed_page(
        self,
        projection: Projection,
        index: str,
        equal: Row,
        *,
        after: Row | None,
        descending: bool,
        count: int,
    ) -> list[Row]:
        """Up to `count` whole rows of a projection behind `after`, in the order of an index."""
        return ProjectionTable(projection).indexed_page(
            self.connection, index, equal, after, count, descending=descending
        )

    def apps(self) -> list[Stream]:
        """The streams of all apps, by name."""
        return [stream_of(row) for row in self.connection.execute(_Q["apps"]).fetchall()]

    def find_sessions(
        self, session_id: str, app_name: str | None = None, user_id: str | None = None
    ) -> list[Stream]:
        """The live sessions with an id, of any app and user that are not named."""
        parameters = (session_id, app_name, user_id)
        rows = self.connection.execute(_Q["find_sessions"], parameters).fetchall()
        return [stream_of(row) for row in rows]

    def streams_of_user(self, user_id: str, app_name: str | None = None) -> list[StreamFacts]:
        """A user's own streams and the sessions', deleted ones too while they have events."""
        rows = self.connection.execute(_Q["streams_of_user"], (user_id, app_name)).fetchall()
        return [facts_of(row) for row in rows]

    def last_positions(
        self,
        count: int,
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> list[int]:
        """The positions of the last events, in order: of the log, or of streams with these ids."""
        names = (app_name, user_id, session_id)
        execute = self.connection.execute
        if names == (None, None, None):
            rows = execute(_Q["last_positions"], (count,)).fetchall()
            return [position for (position,) in reversed(rows)]
        ids = execute(_Q["streams_named"], (*names, _FEW_STREAMS + 1)).fetchall()
        if len(ids) > _FEW_STREAMS:  # many have written, so some of the last events are theirs
            rows = execute(_Q["last_positions_of"], (count, *names)).fetchall()
        else:
            rows = []
            for (stream_id,) in ids:
                rows += execute(_Q["last_positions_of_stream"], (stream_id, count)).fetchall()
        return sorted(position for (position,) in rows)[-count:] if count else []

    def count_by_app(self) -> list[AppCounts]:
        """What each app has, by name."""
        return [AppCounts(*row) for row in self.connection.execute(_Q["count_by_app"]).fetchall()]

    def largest_streams(self, count: int) -> list[Stream]:
        """The live sessions with the most events."""
        rows = self.connection.execute(_Q["largest_streams"], (count,)).fetchall()
        return [stream_of(row) for row in rows]

    def position_before(self, recorded_at: int) -> int:
        """The last position whose event was recorded before a time, found by halving the log."""
        # Up to `low` all were recorded before, behind `high` none.
        low, high = 0, self.head()
        while low < high:
            middle = (low + high + 1) // 2
            # Positions may be missing: the next one that is there answers for them.
            row = self.connection.execute(_Q["next_recorded_at"], (middle,)).fetchone()
            if row is not None and row[0] <= high and row[1] < recorded_at:
                low = row[0]
            else:
                high = middle - 1
        return low

    def content_sizes(self, after: int, count: int) -> list[tuple[int, int, int]]:
        """Position, stream id and bytes of content of up to `count` events behind a position."""
        return self.connection.execute(_Q["content_sizes"], (after, count)).fetchall()

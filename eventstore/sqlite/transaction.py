"""What can be done inside one transaction: reading the log, and appending to it."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import compress
from operator import not_
from typing import Any, Final

import msgspec

from eventstore.chain import digest, first_link
from eventstore.changes import Change, Row
from eventstore.cursor import Cursor
from eventstore.errors import (
    CorruptEvent,
    EventIdConflict,
    EventStoreError,
    ProjectionFailed,
    StreamExists,
    StreamNotFound,
)
from eventstore.events import (
    CONVERSATION_TYPES,
    Deltas,
    EventType,
    NewEvent,
    RecordedEvent,
    Stream,
    StreamDeltas,
    StreamKey,
    StreamKind,
)
from eventstore.projection import Projection, changes_of
from eventstore.reads import Reads
from eventstore.records import (
    ROW_CHANGED,
    SYSTEM,
    Sealed,
    check_begins,
    check_dense,
    proved,
    recorded,
    seal,
    stream_of,
    table_before,
    with_identity,
)
from eventstore.sqlite import shadow
from eventstore.sqlite.queries import QUERIES
from eventstore.sqlite.tables import ProjectionTable, any_text
from eventstore.store import LoggedEvent, Registered, StreamFacts
from eventstore.upcasting import CURRENT, upcast

__all__ = ["Known", "ReadTransaction", "TooLong", "WriteTransaction"]

_Q: Final = QUERIES
_NO_LIMIT: Final = -1
_STREAMS_KNOWN: Final = 1_024
_FEW_STREAMS: Final = 1_000
"""So many are asked one by one for their last events; with more the log is read back."""
_DELTAS_BYTES: Final = 16 * 1024 * 1024
"""How long a text of many deltas may be: there are a few copies of it for a moment."""
_BRIEF_EVENTS: Final = 250
_BRIEF_S: Final = 0.004
_Fact = tuple[int, int | None, int, int, int, int | str, int | str | None]
"""Of a stream: id, whether a session's, user's and app's stream, position and time of its last
event, time of its first; as `read_deltas` has them."""
_decode_facts: Final = msgspec.json.Decoder(list[_Fact]).decode
_decode_places: Final = msgspec.json.Decoder(list[list[int]]).decode
_UNIT_S: Final = 2.0**-30


def _blamed(projection: Projection, position: int, error: Exception) -> Exception:
    """The error for what a projection raised, or for a change that its table cannot hold."""
    disk = isinstance(error, sqlite3.Error) and not isinstance(
        error,
        sqlite3.IntegrityError
        | sqlite3.DataError
        | sqlite3.ProgrammingError
        | sqlite3.InterfaceError,
    )
    if disk or isinstance(error, EventStoreError):
        return error
    # Not its text, which may hold content of the event.
    return ProjectionFailed(projection.name, position, type(error).__name__)


class TooLong(Exception):
    """A brief transaction was asked for more than fits into a moment."""


class ReadTransaction(Reads):
    """Reads of one consistent snapshot.

    Every statement is fetched whole before its rows are looked at: a cursor that an exception
    keeps alive would hold the snapshot, and the WAL with it.

    A `brief` one raises TooLong instead of reading many events, or large ones.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        tables: Mapping[str, ProjectionTable],
        *,
        brief: bool = False,
    ) -> None:
        self.connection = connection
        self.tables = tables
        self._until = time.monotonic() + _BRIEF_S if brief else None

    def _all(self, name: str, *parameters: Any) -> list[Any]:
        return self.connection.execute(_Q[name], parameters).fetchall()

    def _one(self, name: str, *parameters: Any) -> Any:
        return self.connection.execute(_Q[name], parameters).fetchone()

    def _list(self, numbers: Iterable[int]) -> str:
        # In a damaged page an id may be of any type: there is none of those.
        return json.dumps([number for number in numbers if isinstance(number, int)])

    @contextmanager
    def as_it_stands(self) -> Iterator[None]:
        """Lets rows of the log and of tables be read, while it lasts, whatever they hold."""
        with super().as_it_stands(), any_text(self.connection):
            yield

    def registered(self) -> dict[str, Registered]:
        """The projections this database keeps rows of, by name."""
        with any_text(self.connection):
            return super().registered()

    def _codecs_of(self, ids: Iterable[int]) -> dict[int, str]:
        return dict(self._all("codecs"))

    def head(self) -> int:
        """The position of the last event, 0 in an empty log."""
        return int(self._one("head")[0])

    def expect(self, events: int) -> None:
        """Says how many events are going to be looked at."""
        if self._until is not None and events > _BRIEF_EVENTS:
            raise TooLong

    def _fetch(self, name: str, *parameters: Any) -> list[Any]:
        cursor = self.connection.execute(_Q[name], parameters)
        try:
            if self._until is None:
                return cursor.fetchall()
            rows = []
            for row in cursor:
                rows.append(row)
                if time.monotonic() > self._until:
                    raise TooLong
        finally:
            cursor.close()
        return rows

    def find_stream(self, key: StreamKey) -> Stream | None:
        """The live stream with this key, None when there is none."""
        row = self.connection.execute(
            _Q["find_stream"], (key.app_name, key.kind, key.user_id, key.session_id)
        ).fetchone()
        if row is None:
            return None
        if row[6] != 1:
            raise CorruptEvent(str(key), 0, 0, ROW_CHANGED)
        return Stream(row[0], key, *row[1:6])

    def require_stream(self, key: StreamKey) -> Stream:
        """The live stream with this key.

        Raises:
            StreamNotFound: there is none.
        """
        if (stream := self.find_stream(key)) is None:
            raise StreamNotFound(str(key))
        return stream

    def sessions(self, app_name: str, user_id: str | None) -> list[Stream]:
        """The live session streams of an app, or of one user in it, in no particular order."""
        if user_id is None:
            rows = self._fetch("sessions_of_app", app_name)
        else:
            rows = self._fetch("sessions_of_user", app_name, user_id)
        return [stream_of(row[:10]) for row in proved(rows)]

    def apps(self) -> list[Stream]:
        """The streams of all apps, by name."""
        return [stream_of(row[:10]) for row in proved(self._all("apps"))]

    def rows(self, table: str, owners: Sequence[int]) -> list[Row]:
        """The rows of a projection table that belong to any of the streams, in key order."""
        return self.tables[table].rows(self.connection, owners)

    def read(self, stream: Stream, after: int = 0) -> list[RecordedEvent]:
        """Every event of a stream behind version `after`, oldest first.

        Raises:
            CorruptEvent: a digest does not match, or a version is missing.
        """
        rows = self._fetch("read_stream_forward", stream.id, after)
        events = self._recorded(stream, rows)
        check_dense(stream, events, first=after + 1)
        if events and after == 0:
            check_begins(stream, events[0])
        return events

    def read_intact(self, stream: Stream) -> tuple[list[RecordedEvent], list[CorruptEvent]]:
        """Every event of a stream that can be read and matches its digest, and the others.

        One by one, and where the index that finds them is damaged, by going through the log.
        """
        events: list[RecordedEvent] = []
        damaged: list[CorruptEvent] = []
        missing: list[int] = []
        codecs = self._readable_codecs()
        for version in range(1, stream.version + 1):
            try:
                rows = self._all("event_at", stream.id, version)
            except sqlite3.DatabaseError:
                rows = []
            if rows:
                self._sort_out(stream, rows[0], codecs, events, damaged)
            else:
                missing.append(version)
        if missing:
            found = {row[1]: row for row in self._rows_in_log(stream, 1, self._last_position())}
            for version in missing:
                if version in found:
                    self._sort_out(stream, found[version], codecs, events, damaged)
                else:
                    reason = "it is missing, or its page cannot be read"
                    damaged.append(CorruptEvent(str(stream.key), version, 0, reason))
        events.sort(key=lambda event: event.version)
        damaged.sort(key=lambda error: error.version)
        if events and events[0].version == 1:
            check_begins(stream, events[0])
        return events, damaged

    @staticmethod
    def _sort_out(
        stream: Stream,
        row: Sequence[Any],
        codecs: Mapping[int, str],
        events: list[RecordedEvent],
        damaged: list[CorruptEvent],
    ) -> None:
        try:
            events.append(recorded(stream, row, codecs))
        except CorruptEvent as error:
            damaged.append(error)
        except (EventStoreError, TypeError, ValueError) as error:
            reason = f"it cannot be read ({type(error).__name__})"
            damaged.append(CorruptEvent(str(stream.key), row[1], row[0], reason))

    def _readable_codecs(self) -> dict[int, str]:
        try:
            return dict(self._all("codecs"))
        except sqlite3.DatabaseError:
            return {}  # payloads are validated

    def _last_position(self) -> int:
        try:
            return self.head()
        except sqlite3.DatabaseError:
            return 2**31  # the last page is damaged

    def _rows_in_log(self, stream: Stream, first: int, last: int) -> list[Any]:
        """The rows of a stream at some positions, halving them around pages that cannot be read."""
        try:
            return self._all("event_in_log", first, last, stream.id)
        except sqlite3.DatabaseError:
            if first == last:
                return []
            middle = (first + last) // 2
            return [
                *self._rows_in_log(stream, first, middle),
                *self._rows_in_log(stream, middle + 1, last),
            ]

    def read_conversation_tail(self, stream: Stream, count: int) -> list[RecordedEvent]:
        """The last `count` conversation events of a stream, oldest first, in O(count)."""
        tail: list[RecordedEvent] = []
        missing = min(count, stream.version)
        page = missing
        before = stream.version + 1
        # Events that are no conversation may lie between: read on until there are enough.
        while missing > 0 and before > 1:
            rows = self._fetch("read_stream_backward", stream.id, before, page)
            if not rows:
                raise CorruptEvent(str(stream.key), before - 1, 0, "it is missing")
            events = self._recorded(stream, rows)
            tail.extend(events)
            before = events[-1].version
            missing -= sum(event.type == EventType.ADK_EVENT for event in events)
            page *= 2
        tail.reverse()
        check_dense(stream, tail, first=stream.version - len(tail) + 1)
        return [event for event in tail if event.type == EventType.ADK_EVENT][-count:]

    def read_conversation_since(
        self, stream: Stream, timestamp: float, count: int | None
    ) -> list[RecordedEvent]:
        """The last `count` conversation events not older than `timestamp`, in stream order."""
        limit = _NO_LIMIT if count is None else min(count, stream.version)
        rows = self.connection.execute(
            _Q["read_conversation_since"], (stream.id, timestamp, limit)
        ).fetchall()
        return self._recorded(stream, rows)[::-1]

    def read_deltas(self, after: int, upto: int) -> Deltas:
        """The events of the log behind `after`, up to `upto` or as many as memory allows.

        Raises:
            CorruptEvent: a delta does not match its digest.
            UnknownEvent: see there.
        """
        while upto - after > 1:
            if (found := self._deltas(after, upto)) is not None:
                return found
            upto = (after + upto) // 2
        wholes = self.read_all(after, upto, 1)
        return Deltas(after, upto, len(wholes), (), wholes)

    def _deltas(self, after: int, upto: int) -> Deltas | None:
        """Many events at once; None where they are too large for that, or one is damaged."""
        row = self._fetch_deltas(
            after, upto, CURRENT[EventType.ADK_EVENT], CURRENT[EventType.SESSION_CREATED]
        )
        if row is None:
            return None
        facts, places = _decode_facts(row[0]), _decode_places(row[1])
        texts = [text.split(b"\n") for text in row[2].split(b"\x1e")] if facts else []
        if len(texts) != len(facts):  # one holds what separates them
            return None
        events = 0
        streams: list[StreamDeltas] = []
        others: list[int] = []
        read: list[bytes] = []
        for fact, positions, deltas in zip(facts, places, texts, strict=True):
            # More of them: one holds a line end. In another order: SQLite does not promise any.
            if len(deltas) != len(positions) or positions != sorted(positions):
                return None
            events += len(positions)
            if b"" in deltas:
                others += compress(positions, map(not_, deltas))
                positions = list(compress(positions, deltas))
                deltas = list(filter(None, deltas))
                if not deltas:
                    continue
            last = positions[-1]
            if b"null" in deltas:
                there = [delta != b"null" for delta in deltas]
                positions, deltas = list(compress(positions, there)), list(compress(deltas, there))
            read += deltas
            streams.append(self._said(fact, last, positions, deltas))
        if b"".join([sha256(delta).digest() for delta in read]) != (row[3] or b""):
            return None
        wholes = self.read_positions(others)
        return Deltas(after, upto, events, streams, wholes)

    def _said(
        self, fact: _Fact, last: int, positions: Sequence[int], deltas: Sequence[bytes]
    ) -> StreamDeltas:
        stream_id, is_session, user, app, newest, updated, created = fact
        if not is_session:
            raise CorruptEvent(f"stream {stream_id}", 0, last, ROW_CHANGED)
        if last != newest:
            updated = ""  # is that of an event that is not plain
        return StreamDeltas(
            stream_id,
            user,
            app,
            last,
            self._seconds(updated, "time_of_event", last),
            None if created is None else self._seconds(created, "time_of_first", stream_id),
            positions,
            deltas,
        )

    def _seconds(self, units: int | str, otherwise: str, parameter: int) -> float:
        """When an event was, as `read_deltas` counts it, or if it cannot, by another statement."""
        if isinstance(units, int):
            return units * _UNIT_S
        (timestamp,) = self.connection.execute(_Q[otherwise], (parameter,)).fetchone()
        return float(timestamp)

    def _fetch_deltas(self, *parameters: int) -> Any:
        """The row of `read_deltas`, None if it is too large."""
        limit = self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _DELTAS_BYTES)
        try:
            return self.connection.execute(_Q["read_deltas"], parameters).fetchall()[0]
        except sqlite3.DataError:
            return None
        finally:
            self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)

    def positions_of(self, streams: Iterable[Stream]) -> array[int]:
        """The positions of all events of some streams, in order. Reads an index only."""
        positions = array("q")
        for stream in streams:
            rows = self._all("positions_of_stream", stream.id)
            positions.extend(position for (position,) in rows)
        return array("q", sorted(positions))

    def owned_rows(self, projection: Projection, owners: Sequence[int]) -> list[Row]:
        """The rows of a projection that belong to any of the streams, in key order."""
        return ProjectionTable(projection).rows(self.connection, owners)

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

    def row(self, projection: Projection, key: Row) -> Row | None:
        """One row of a projection, whole; None when there is none."""
        return ProjectionTable(projection).row(self.connection, key)

    def table_page(self, projection: Projection, after: Row | None, count: int) -> list[Row] | None:
        """Up to `count` rows of a projection's table behind a key, in key order.

        None when the table is missing or lacks its columns.
        """
        try:
            return ProjectionTable(projection).page(self.connection, after, count)
        except sqlite3.OperationalError as error:
            # No such table, or column. A text that is no UTF-8 comes without a code.
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
                return None
            raise

    def check_file(self) -> list[str]:
        """What SQLite's own checks of the whole file find; empty when all is well."""
        found = [str(row[0]) for row in self._all("integrity_check")]
        broken = self.connection.execute("PRAGMA foreign_key_check").fetchall()
        found += [f"row {row[1]} of {row[0]} refers to no row of {row[2]}" for row in broken]
        return [line for line in found if line != "ok"]

    def read_page(self, stream: Stream, after: int, count: int) -> list[RecordedEvent]:
        """Up to `count` events of a stream behind a version, oldest first.

        Raises:
            CorruptEvent: a digest does not match, or a version is missing.
        """
        if after >= stream.version:
            return []
        parameters = (stream.id, after, count)
        rows = self.connection.execute(_Q["read_stream_page"], parameters).fetchall()
        events = self._recorded(stream, rows)
        last = min(after + count, stream.version)
        check_dense(stream._replace(version=last), events, first=after + 1)
        return events

    def last_positions(
        self,
        count: int,
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> list[int]:
        """The positions of the last events, in order: of the log, or of streams with these ids."""
        names = (app_name, user_id, session_id)
        if names == (None, None, None):
            return [position for (position,) in reversed(self._all("last_positions", count))]
        ids = self._all("streams_named", *names, _FEW_STREAMS + 1)
        if len(ids) > _FEW_STREAMS:  # many have written, so some of the last events are theirs
            rows = self._all("last_positions_of", count, *names)
        else:
            rows = []
            for (stream_id,) in ids:
                rows += self._all("last_positions_of_stream", stream_id, count)
        return sorted(position for (position,) in rows)[-count:] if count else []

    def counts(self) -> dict[str, int]:
        """Rows per projection table, events, and the head position."""
        events, head = self._one("count_events")
        rows = {name: table.count(self.connection) for name, table in self.tables.items()}
        return {**rows, "events": events, "head": head}

    def version_of(self, stream: Stream, event_id: str) -> int | None:
        """The version at which a stream holds an event with this id; None when it does not."""
        row = self._one("find_event", stream.id, event_id)
        return None if row is None else int(row[0])

    def _recorded(self, stream: Stream, rows: Sequence[Sequence[Any]]) -> list[RecordedEvent]:
        if not rows:
            return []
        codecs = self._codecs_of(row[14] for row in rows)
        return [recorded(stream, row, codecs) for row in rows]


class Known:
    """What a connection that writes need not read again, as long as nobody else writes.

    The ids of codecs, and the rows of live streams it has come across; like the pages that SQLite
    keeps, and by the same sign, the rows are good for nothing once another connection committed.
    """

    __slots__ = ("codecs", "streams")

    def __init__(self) -> None:
        self.codecs: dict[str, int] = {"": 0}
        self.streams: dict[StreamKey, Stream] = {}

    def forget(self) -> None:
        """Reads everything again: a transaction was rolled back."""
        self.codecs = {"": 0}
        self.streams.clear()


class WriteTransaction(ReadTransaction):
    """Reads and writes inside one BEGIN IMMEDIATE, so the head read here is the head."""

    def __init__(
        self, connection: sqlite3.Connection, tables: Mapping[str, ProjectionTable], known: Known
    ) -> None:
        super().__init__(connection, tables)
        self._codecs = known.codecs
        self._nonces: dict[int, bytes] = {}
        """Of streams that this transaction opened."""
        self._streams = known.streams
        self.moved: dict[Cursor, tuple[int, int]] = {}
        """Where cursors stand once this transaction is committed: stream id and version."""
        self._changes_before = connection.total_changes
        self._content_bytes = 0

    def written(self) -> tuple[int, int]:
        """Rows written in this transaction so far, and bytes of content in them."""
        return self.connection.total_changes - self._changes_before, self._content_bytes

    def move_cursors(self) -> None:
        """Lets the cursors stand where this transaction led them; call it once it is committed."""
        for cursor, (stream_id, version) in self.moved.items():
            cursor.stream_id, cursor.version = stream_id, version

    def find_stream(self, key: StreamKey) -> Stream | None:
        """The live stream with this key, None when there is none."""
        if (stream := self._streams.get(key)) is None:
            stream = super().find_stream(key)
            if stream is not None:
                self._know(stream)
        return stream

    def _know(self, stream: Stream) -> None:
        if len(self._streams) >= _STREAMS_KNOWN:
            self._streams.clear()
        self._streams[stream.key] = stream

    def open_stream(self, key: StreamKey) -> Stream:
        """Makes a new live stream, and the streams of its user and app where they are missing.

        Raises:
            StreamExists: a live stream has this key.
        """
        if key in self._streams:
            raise StreamExists(str(key))
        user = app = 0
        if key.kind in (StreamKind.SESSION, StreamKind.USER):
            app = self._ensure_stream(StreamKey(StreamKind.APP, key.app_name))
        if key.kind is StreamKind.SESSION:
            user = self._ensure_stream(StreamKey(StreamKind.USER, key.app_name, key.user_id))
        nonce = os.urandom(16)
        chain = first_link(key, nonce)
        try:
            cursor = self.connection.execute(
                _Q["insert_stream"],
                (key.kind, key.app_name, key.user_id, key.session_id, user, app, nonce, chain),
            )
        except sqlite3.IntegrityError:
            self.find_stream(key)  # or the index that refused it is damaged
            raise StreamExists(str(key)) from None
        assert cursor.lastrowid is not None
        self._nonces[cursor.lastrowid] = nonce
        return Stream(cursor.lastrowid, key, user, app, 0, 0, chain)

    def append(self, stream: Stream, event: NewEvent) -> RecordedEvent:
        """Writes one event behind the head, moves the head and applies the projections.

        Returns the recorded event, whose `stream` has the new head.

        Raises:
            EventIdConflict: the stream holds an event with this id; nothing was written.
        """
        if stream.version == 0:
            event = with_identity(stream.key, self._nonce(stream), event)
        sealed = seal(stream, 0, event)
        placed = sealed.event
        row = self._row_of(sealed)
        try:
            position = self.connection.execute(_Q["insert_event"], (stream.id, *row)).lastrowid
        except sqlite3.IntegrityError as error:
            there = self._one("find_event", stream.id, event.event_id)
            if there is None:
                raise
            raise EventIdConflict(str(stream.key), event.event_id, there[0]) from error
        assert position is not None
        # The delta is written twice: into the log, and key by key into the state.
        self._content_bytes += len(event.data or b"") + 2 * len(event.delta or b"")
        head = placed.stream
        self.connection.execute(
            _Q["move_head"], (head.version, head.conversation_version, head.chain, head.id)
        )
        self._know(head)
        placed = placed._replace(position=position)
        # What an event carries over is in the rows already.
        if event.type != EventType.CARRIED_OVER:
            for table in self.tables.values():
                self._project(table, placed)
        return placed

    def _project(self, table: ProjectionTable, event: RecordedEvent) -> None:
        try:
            table.apply(self.connection, changes_of(table.projection, event))
        except Exception as error:
            raise _blamed(table.projection, event.position, error) from error

    def stored_version(self, stream: Stream, event: NewEvent) -> int | None:
        """The version at which this very event is stored already, None when it is not.

        Raises:
            EventIdConflict: its id is stored with other content.
        """
        row = self._one("find_event", stream.id, event.event_id)
        if row is None:
            return None
        same = (event.type, event.encoding, digest(event.delta), digest(event.data))
        if tuple(row[1:]) != same:
            raise EventIdConflict(str(stream.key), event.event_id, row[0])
        return int(row[0])

    def close_stream(self, stream: Stream) -> None:
        """Ends a stream's life: its key may be used again, by a new stream."""
        self.connection.execute(_Q["close_stream"], (stream.id,))
        self._streams.pop(stream.key, None)

    def end(self, stream: Stream, event: NewEvent) -> Stream:
        """Ends a live stream with a tombstone; returns it with its last head."""
        recorded = self.append(stream, event)
        self.close_stream(stream)
        return recorded.stream

    @contextmanager
    def maintenance(self, reason: str) -> Iterator[None]:
        """Lets events be removed while it lasts; the transaction must log what it did."""
        self.connection.execute(_Q["begin_maintenance"], (reason,))
        yield
        self.connection.execute(_Q["end_maintenance"])

    def scavenge(self, stream: Stream) -> int:
        """Removes the events of a closed stream and blanks its identity; returns how many.

        The row keeps the last version and chain link. Only inside a maintenance transaction.
        """
        removed = self.connection.execute(_Q["delete_events"], (stream.id,)).rowcount
        self.connection.execute(_Q["forget_stream"], (stream.id,))
        return removed

    def ensure_system_stream(self) -> Stream:
        """The stream that maintenance logs itself on."""
        return self.get_stream(self._ensure_stream(SYSTEM))

    def flush(self) -> None:
        """Nothing waits here."""

    def apply(self, projection: Projection, changes: Iterable[Change]) -> None:
        """Executes row changes on a projection's table.

        Raises:
            ProjectionFailed: its table cannot hold one.
        """
        try:
            ProjectionTable(projection).apply(self.connection, changes)
        except Exception as error:
            raise _blamed(projection, 0, error) from error

    def register(self, projection: Projection, checkpoint: int | None) -> None:
        """Notes a projection; one without a checkpoint is inline."""
        self.connection.execute(
            _Q["register_projection"],
            (projection.name, projection.version, projection.table.name, checkpoint),
        )

    def move_checkpoint(
        self,
        projection: Projection,
        before: int,
        after: int,
        failed_at: int | None = None,
        failure: str | None = None,
    ) -> bool:
        """Moves a checkpoint from where it is believed to be; False when it is not there."""
        cursor = self.connection.execute(
            _Q["move_checkpoint"],
            (after, failed_at, failure, projection.name, projection.version, before),
        )
        return cursor.rowcount == 1

    def lock_checkpoint(self, projection: Projection) -> None:
        """Keeps others from moving a checkpoint: it is alone anyway."""

    def drop(self, name: str, views: Iterable[str] = ()) -> str:
        """Forgets a projection, drops views and retires its table, whose name is returned."""
        (table,) = self._one("unregister_projection", name)
        for view in views:
            self.connection.execute(f"DROP VIEW IF EXISTS {view}")
        shadow.retire(self.connection, table)
        return str(table)

    def make_shadow(self, projection: Projection) -> None:
        """Makes an empty table beside a projection's, to be filled and put in its place."""
        shadow.make(self.connection, projection)

    def fill_shadow(self, projection: Projection, rows: Sequence[Row]) -> None:
        """Inserts whole rows into the shadow. Raises as `apply`."""
        try:
            shadow.table(projection).fill(self.connection, rows)
        except Exception as error:
            raise _blamed(projection, 0, error) from error

    def apply_to_shadow(self, projection: Projection, changes: Iterable[Change]) -> None:
        """Executes row changes on the shadow. Raises as `apply`."""
        try:
            shadow.table(projection).apply(self.connection, changes)
        except Exception as error:
            raise _blamed(projection, 0, error) from error

    def cut_over(self, projection: Projection, checkpoint: int | None) -> None:
        """Puts the shadow in the place of the table, which is retired, and notes the projection."""
        shadow.swap(self.connection, projection, table_before(projection, self.registered()))
        self.register(projection, checkpoint)

    def clear_away(self, table: str, count: int) -> bool:
        """Removes some rows of what is left of a shadow or retired table; False when none is.

        A large table that is dropped at once would keep writers waiting.
        """
        return shadow.clear_away(self.connection, table, count)

    def leftovers(self) -> list[str]:
        """The names of tables of which a shadow or a retired table is there."""
        return shadow.leftovers(self.connection)

    def put_stream(self, facts: StreamFacts) -> None:
        """Writes a row of `streams` anew, as the log has it."""
        stream = facts.stream
        self.connection.execute(
            _Q["put_stream"],
            (
                stream.user_stream_id,
                stream.app_stream_id,
                stream.version,
                stream.conversation_version,
                facts.live,
                stream.chain,
                stream.id,
            ),
        )

    def ensure_stream(self, key: StreamKey) -> Stream:
        """The live stream with this key, made where it is missing."""
        return self.find_stream(key) or self.open_stream(key)

    def import_stream(self, facts: StreamFacts) -> Stream:
        """Writes a new row of `streams` just as it is, in place of a live one without events.

        Raises:
            StreamExists: a live stream with this key has events, or the id is taken.
        """
        stream = facts.stream
        row = (
            *stream.key,
            stream.user_stream_id,
            stream.app_stream_id,
            stream.version,
            stream.conversation_version,
            facts.live,
            facts.nonce,
            stream.chain,
        )
        there = self.find_stream(stream.key) if facts.live else None
        if there is not None:
            if there.version or (stream.id and stream.id != there.id):
                raise StreamExists(str(stream.key))
            # What it owns refers to it by its id, which it keeps.
            self.connection.execute(
                _Q["replace_stream"], (*row[4:6], facts.nonce, stream.chain, there.id)
            )
            return stream._replace(id=there.id)
        try:
            cursor = self.connection.execute(_Q["import_stream"], (stream.id or None, *row))
        except sqlite3.IntegrityError as error:
            raise StreamExists(f"stream {stream.id} ({stream.key})") from error
        assert cursor.lastrowid is not None
        return stream._replace(id=cursor.lastrowid)

    def import_event(self, stream: Stream, logged: LoggedEvent, position: int = 0) -> Stream:
        """Writes an event behind a stream's head just as it is, and what it does to the rows.

        Raises:
            EventIdConflict: the stream holds an event with this id, or the position is taken.
        """
        event = logged.event
        assert event.version == stream.version + 1, "what is imported is dense"
        try:
            row = (position or None, stream.id, *self._row_of(logged))
            cursor = self.connection.execute(_Q["import_event"], row)
        except sqlite3.IntegrityError as error:
            raise EventIdConflict(str(stream.key), event.event_id, event.version) from error
        assert cursor.lastrowid is not None
        self._content_bytes += len(event.data or b"") + 2 * len(event.delta or b"")
        version = event.version
        conversation = version if event.type in CONVERSATION_TYPES else stream.conversation_version
        self.connection.execute(_Q["move_head"], (version, conversation, logged.chain, stream.id))
        after = stream._replace(
            version=version, conversation_version=conversation, chain=logged.chain
        )
        placed = upcast(event._replace(position=cursor.lastrowid, stream=after))
        # Also what an event carries over: these rows do not have it.
        for table in self.tables.values():
            self._project(table, placed)
        return after

    def _row_of(self, whole: Sealed | LoggedEvent) -> tuple[object, ...]:
        """The columns of an event from its version on."""
        event = whole.event
        return (
            *event[2:10],
            self._codec(event.codec),
            event.encoding,
            whole.delta_digest,
            whole.data_digest,
            whole.chain,
            None if event.delta is None else event.delta.decode(),
            None if event.data is None else event.data.decode(),
        )

    def _nonce(self, stream: Stream) -> bytes:
        if (nonce := self._nonces.get(stream.id)) is None:
            (nonce,) = self._one("get_nonce", stream.id)
        return nonce

    def _ensure_stream(self, key: StreamKey) -> int:
        stream = self.find_stream(key)
        return (stream or self.open_stream(key)).id

    def _codec(self, fingerprint: str) -> int:
        known = self._codecs.get(fingerprint)
        if known is None:
            row = self._one("find_codec", fingerprint)
            if row is None:
                cursor = self.connection.execute(_Q["insert_codec"], (fingerprint,))
                assert cursor.lastrowid is not None
                row = (cursor.lastrowid,)
            known = self._codecs[fingerprint] = int(row[0])
        return known

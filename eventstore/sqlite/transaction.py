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
from typing import Any, Final

import msgspec

from eventstore.chain import digest, first_link, next_link
from eventstore.changes import Change, Row
from eventstore.cursor import Cursor
from eventstore.encoding import decode, encode
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
    DeltaEvent,
    EventType,
    NewEvent,
    RecordedEvent,
    Stream,
    StreamKey,
    StreamKind,
)
from eventstore.projection import Projection, changes_of
from eventstore.sqlite import shadow
from eventstore.sqlite.queries import QUERIES
from eventstore.sqlite.tables import ProjectionTable
from eventstore.store import LoggedEvent, Registered, StreamFacts
from eventstore.upcasting import CURRENT, upcast

__all__ = ["EventIdTaken", "ReadTransaction", "TooLong", "WriteTransaction"]

_Q: Final = QUERIES
_NO_LIMIT: Final = -1
_CHANGED: Final = "its content does not match its digest"
_BRIEF_EVENTS: Final = 250
_BRIEF_S: Final = 0.004
SYSTEM: Final = StreamKey(StreamKind.SYSTEM)


def _stream(row: Sequence[Any]) -> Stream:
    key = StreamKey(StreamKind(row[1]), row[2], row[3], row[4])
    return Stream(row[0], key, *row[5:])


def _facts(row: Sequence[Any]) -> StreamFacts:
    return StreamFacts(_stream(row[:10]), bool(row[10]), row[11])


def _recorded(stream: Stream, row: Sequence[Any], codecs: Mapping[int, str]) -> RecordedEvent:
    """Makes an event of a row of one of the read_* statements, its digests checked."""
    delta, data = row[10], row[11]
    if (delta is not None and digest(delta) != row[12]) or (
        data is not None and digest(data) != row[13]
    ):
        raise CorruptEvent(str(stream.key), row[1], row[0], _CHANGED)
    event = RecordedEvent._make((row[0], stream, *row[1:12], codecs.get(row[14], "")))
    return event if CURRENT.get(event.type) == event.schema_version else upcast(event)


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


class EventIdTaken(Exception):
    """The insert of an event was refused: its stream holds one with this id."""


class TooLong(Exception):
    """A brief transaction was asked for more than fits into a moment."""


class ReadTransaction:
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

    def expect(self, events: int) -> None:
        """Says how many events are going to be looked at."""
        if self._until is not None and events > _BRIEF_EVENTS:
            raise TooLong

    def _fetch(self, cursor: sqlite3.Cursor) -> list[Any]:
        if self._until is None:
            return cursor.fetchall()
        rows = []
        for row in cursor:
            rows.append(row)
            if time.monotonic() > self._until:
                cursor.close()
                raise TooLong
        return rows

    def find_stream(self, key: StreamKey) -> Stream | None:
        """The live stream with this key, None when there is none."""
        row = self.connection.execute(
            _Q["find_stream"], (key.app_name, key.kind, key.user_id, key.session_id)
        ).fetchone()
        return None if row is None else Stream(row[0], key, *row[1:])

    def require_stream(self, key: StreamKey) -> Stream:
        """The live stream with this key.

        Raises:
            StreamNotFound: there is none.
        """
        if (stream := self.find_stream(key)) is None:
            raise StreamNotFound(str(key))
        return stream

    def get_stream(self, stream_id: int) -> Stream:
        """A stream by its id, deleted ones included."""
        return _stream(self.connection.execute(_Q["get_stream"], (stream_id,)).fetchone())

    def sessions(self, app_name: str, user_id: str | None) -> list[Stream]:
        """The live session streams of an app, or of one user in it, in no particular order."""
        if user_id is None:
            cursor = self.connection.execute(_Q["sessions_of_app"], (app_name,))
        else:
            cursor = self.connection.execute(_Q["sessions_of_user"], (app_name, user_id))
        return [_stream(row) for row in self._fetch(cursor)]

    def rows(self, table: str, owners: Sequence[int]) -> list[Row]:
        """The rows of a projection table that belong to any of the streams, in key order."""
        return self.tables[table].rows(self.connection, owners)

    def read(self, stream: Stream, after: int = 0) -> list[RecordedEvent]:
        """Every event of a stream behind version `after`, oldest first.

        Raises:
            CorruptEvent: a digest does not match, or a version is missing.
        """
        cursor = self.connection.execute(_Q["read_stream_forward"], (stream.id, after))
        rows = self._fetch(cursor)
        events = self._recorded(stream, rows)
        self._check_dense(stream, events, first=after + 1)
        return events

    def read_conversation_tail(self, stream: Stream, count: int) -> list[RecordedEvent]:
        """The last `count` conversation events of a stream, oldest first, in O(count)."""
        tail: list[RecordedEvent] = []
        missing = min(count, stream.version)
        page = missing
        before = stream.version + 1
        # Events that are no conversation may lie between: read on until there are enough.
        while missing > 0 and before > 1:
            cursor = self.connection.execute(_Q["read_stream_backward"], (stream.id, before, page))
            rows = self._fetch(cursor)
            if not rows:
                break
            events = self._recorded(stream, rows)
            tail.extend(events)
            before = events[-1].version
            missing -= sum(event.type == EventType.ADK_EVENT for event in events)
            page *= 2
        tail.reverse()
        self._check_dense(stream, tail, first=stream.version - len(tail) + 1)
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

    def head(self) -> int:
        """The position of the last event, 0 in an empty log."""
        (position,) = self.connection.execute(_Q["head"]).fetchone()
        return int(position)

    def read_deltas(
        self, after: int, upto: int, count: int
    ) -> tuple[list[DeltaEvent], dict[int, Stream]]:
        """Up to `count` events of the log behind `after`, and their streams.

        Raises:
            CorruptEvent: a delta does not match its digest.
            UnknownEvent: see there.
        """
        events: list[DeltaEvent] = self.connection.execute(
            _Q["read_deltas"], (after, upto, count, CURRENT[EventType.ADK_EVENT])
        ).fetchall()
        streams = self.get_streams({event[1] for event in events})
        if changed := [e for e in events if e[3] is not None and sha256(e[3]).digest() != e[4]]:
            position, stream_id, *_ = changed[0]
            raise CorruptEvent(str(streams[stream_id].key), 0, position, _CHANGED)
        unusual = [n for n, event in enumerate(events) if event[5] is not None]
        wholes = self.read_positions([events[n][0] for n in unusual])
        for n, whole in zip(unusual, wholes, strict=True):
            events[n] = (*events[n][:5], whole)
        return events, streams

    def read_all(self, after: int, upto: int, count: int) -> list[RecordedEvent]:
        """Up to `count` whole events of the log behind `after`, in position order.

        Raises:
            CorruptEvent: content does not match its digest.
            UnknownEvent: see there.
        """
        return self._whole(_Q["read_all"], (after, upto, count))

    def read_positions(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """The events at some positions, in position order. Raises as `read_all`."""
        return self._whole(_Q["read_positions"], (json.dumps(list(positions)),))

    def read_log(self, after: int, upto: int, count: int) -> list[LoggedEvent]:
        """As `read_all`, but neither checked nor upcast, with what proves the events."""
        rows, codecs = self._rows_of_log(_Q["read_all"], (after, upto, count))
        streams = self._find_streams({row[0] for row in rows})
        for stream_id in {row[0] for row in rows} - streams.keys():
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

    def _whole(self, statement: str, parameters: tuple[object, ...]) -> list[RecordedEvent]:
        rows, codecs = self._rows_of_log(statement, parameters)
        streams = self.get_streams({row[0] for row in rows})
        return [_recorded(streams[row[0]], row[1:], codecs) for row in rows]

    def _rows_of_log(
        self, statement: str, parameters: tuple[object, ...]
    ) -> tuple[list[Any], dict[int, str]]:
        rows = self.connection.execute(statement, parameters).fetchall()
        return rows, dict(self.connection.execute(_Q["codecs"]).fetchall())

    def get_streams(self, ids: Iterable[int]) -> dict[int, Stream]:
        """Streams by their ids.

        Raises:
            CorruptEvent: events refer to a stream that has no row.
        """
        streams = self._find_streams(ids)
        for stream_id in set(ids) - streams.keys():
            raise CorruptEvent(f"stream {stream_id}", 0, 0, "the row of its stream is missing")
        return streams

    def _find_streams(self, ids: Iterable[int]) -> dict[int, Stream]:
        parameters = (json.dumps(list(ids)),)
        rows = self.connection.execute(_Q["get_streams"], parameters).fetchall()
        return {row[0]: _stream(row) for row in rows}

    def streams_of_app(self, app_name: str) -> list[Stream]:
        """Every stream of an app whose events are in the log, deleted sessions' included."""
        rows = self.connection.execute(_Q["streams_of_app"], (app_name,)).fetchall()
        return [_stream(row) for row in rows]

    def positions_of(self, streams: Iterable[Stream]) -> array[int]:
        """The positions of all events of some streams, in order. Reads an index only."""
        positions = array("q")
        for stream in streams:
            rows = self.connection.execute(_Q["positions_of_stream"], (stream.id,)).fetchall()
            positions.extend(position for (position,) in rows)
        return array("q", sorted(positions))

    def get_facts(self, ids: Iterable[int]) -> dict[int, StreamFacts]:
        """Rows of `streams` by their ids, as far as they are there."""
        parameters = (json.dumps(list(ids)),)
        rows = self.connection.execute(_Q["get_facts"], parameters).fetchall()
        return {row[0]: _facts(row) for row in rows}

    def link_at(self, stream_id: int, version: int) -> bytes | None:
        """The chain link of an event; None when it is not there."""
        row = self.connection.execute(_Q["link_at"], (stream_id, version)).fetchone()
        return None if row is None else bytes(row[0])

    def stream_facts(self, after: int, count: int) -> list[StreamFacts]:
        """Up to `count` rows of `streams` behind id `after`, whole."""
        rows = self.connection.execute(_Q["streams_from"], (after, count)).fetchall()
        return [_facts(row) for row in rows]

    def registered(self) -> dict[str, Registered]:
        """The projections this database keeps rows of, by name."""
        rows = self.connection.execute(_Q["registered_projections"]).fetchall()
        return {row[0]: Registered(*row[1:]) for row in rows}

    def owned_rows(self, projection: Projection, owners: Sequence[int]) -> list[Row]:
        """The rows of a projection that belong to any of the streams, in key order."""
        return ProjectionTable(projection).rows(self.connection, owners)

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
        found = [str(row[0]) for row in self.connection.execute(_Q["integrity_check"]).fetchall()]
        broken = self.connection.execute("PRAGMA foreign_key_check").fetchall()
        found += [f"row {row[1]} of {row[0]} refers to no row of {row[2]}" for row in broken]
        return [line for line in found if line != "ok"]

    def event_identity(self, stream: Stream, version: int) -> tuple[str, float]:
        """The event id and timestamp at a version of a stream."""
        row = self.connection.execute(_Q["event_identity"], (stream.id, version)).fetchone()
        if row is None:
            raise CorruptEvent(str(stream.key), version, 0, "it is missing")
        return row[0], row[1]

    def deleted_streams(self, count: int) -> list[Stream]:
        """Up to `count` streams that were closed and whose events were not scavenged yet."""
        rows = self.connection.execute(_Q["deleted_streams"], (count,)).fetchall()
        return [_stream(row) for row in rows]

    def previous_conversation_version(self, stream: Stream, version: int) -> int:
        """The version of the conversation event before the one at `version`, 0 for none."""
        row = self.connection.execute(_Q["previous_conversation"], (stream.id, version)).fetchone()
        return 0 if row is None else int(row[0])

    def counts(self) -> dict[str, int]:
        """Rows per projection table, events, and the head position."""
        events, head = self.connection.execute(_Q["count_events"]).fetchone()
        rows = {name: table.count(self.connection) for name, table in self.tables.items()}
        return {**rows, "events": events, "head": head}

    def has_event(self, stream: Stream, event: NewEvent) -> bool:
        """Whether the stream holds an event with this one's id."""
        row = self.connection.execute(_Q["find_event"], (stream.id, event.event_id)).fetchone()
        return row is not None

    def _recorded(self, stream: Stream, rows: Sequence[Sequence[Any]]) -> list[RecordedEvent]:
        if not rows:
            return []
        codecs = dict(self.connection.execute(_Q["codecs"]).fetchall())
        return [_recorded(stream, row, codecs) for row in rows]

    @staticmethod
    def _check_dense(stream: Stream, events: Sequence[RecordedEvent], *, first: int) -> None:
        """Versions run from `first` to the head without a hole."""
        for expected, event in enumerate(events, first):
            if event.version != expected:
                raise CorruptEvent(str(stream.key), expected, event.position, "it is missing")
        if first + len(events) != stream.version + 1:
            raise CorruptEvent(str(stream.key), first + len(events), 0, "it is missing")


class WriteTransaction(ReadTransaction):
    """Reads and writes inside one BEGIN IMMEDIATE, so the head read here is the head."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        tables: Mapping[str, ProjectionTable],
        codecs: dict[str, int],
    ) -> None:
        super().__init__(connection, tables)
        self._codecs = codecs
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

    def open_stream(self, key: StreamKey) -> Stream:
        """Makes a new live stream, and the streams of its user and app where they are missing.

        Raises:
            StreamExists: a live stream has this key.
        """
        if self.find_stream(key) is not None:
            raise StreamExists(str(key))
        user = app = 0
        if key.kind in (StreamKind.SESSION, StreamKind.USER):
            app = self._ensure_stream(StreamKey(StreamKind.APP, key.app_name))
        if key.kind is StreamKind.SESSION:
            user = self._ensure_stream(StreamKey(StreamKind.USER, key.app_name, key.user_id))
        nonce = os.urandom(16)
        chain = first_link(key, nonce)
        cursor = self.connection.execute(
            _Q["insert_stream"],
            (key.kind, key.app_name, key.user_id, key.session_id, user, app, nonce, chain),
        )
        assert cursor.lastrowid is not None
        return Stream(cursor.lastrowid, key, user, app, 0, 0, chain)

    def append(self, stream: Stream, event: NewEvent) -> RecordedEvent:
        """Writes one event behind the head, moves the head and applies the projections.

        Returns the recorded event, whose `stream` has the new head.

        Raises:
            EventIdTaken: the stream holds an event with this id; nothing was written.
        """
        if stream.version == 0:
            event = self._with_identity(stream, event)
        version, schema_version = stream.version + 1, CURRENT[event.type]
        recorded_at = time.time_ns() // 1000
        timestamp = event.timestamp + 0.0  # SQLite keeps no sign of a zero, but the chain would
        delta_digest, data_digest = digest(event.delta), digest(event.data)
        chain = next_link(
            stream.chain,
            version=version,
            event_id=event.event_id,
            event_type=event.type,
            schema_version=schema_version,
            encoding=event.encoding,
            recorded_at=recorded_at,
            timestamp=timestamp,
            author=event.author,
            invocation_id=event.invocation_id,
            codec=event.codec,
            delta_digest=delta_digest,
            data_digest=data_digest,
        )
        position = self._insert_event(
            (
                stream.id,
                version,
                event.event_id,
                event.type,
                schema_version,
                recorded_at,
                timestamp,
                event.author,
                event.invocation_id,
                self._codec(event.codec),
                event.encoding,
                delta_digest,
                data_digest,
                chain,
                None if event.delta is None else event.delta.decode(),
                None if event.data is None else event.data.decode(),
            )
        )
        # The delta is written twice: into the log, and key by key into the state.
        self._content_bytes += len(event.data or b"") + 2 * len(event.delta or b"")
        conversation = version if event.type in CONVERSATION_TYPES else stream.conversation_version
        self.connection.execute(_Q["move_head"], (version, conversation, chain, stream.id))
        recorded = RecordedEvent(
            position,
            stream._replace(version=version, conversation_version=conversation, chain=chain),
            version,
            event.event_id,
            event.type,
            schema_version,
            recorded_at,
            timestamp,
            event.author,
            event.invocation_id,
            event.encoding,
            event.delta,
            event.data,
            event.codec,
        )
        # What an event carries over is in the rows already.
        if event.type != EventType.CARRIED_OVER:
            for table in self.tables.values():
                self._project(table, recorded)
        return recorded

    def _project(self, table: ProjectionTable, event: RecordedEvent) -> None:
        try:
            table.apply(self.connection, changes_of(table.projection, event))
        except Exception as error:
            raise _blamed(table.projection, event.position, error) from error

    def _insert_event(self, row: tuple[object, ...]) -> int:
        try:
            cursor = self.connection.execute(_Q["insert_event"], row)
        except sqlite3.IntegrityError as error:
            raise EventIdTaken(str(error)) from error
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def stored_version(self, stream: Stream, event: NewEvent) -> int | None:
        """The version at which this very event is stored already, None when it is not.

        Raises:
            EventIdConflict: its id is stored with other content.
        """
        row = self.connection.execute(_Q["find_event"], (stream.id, event.event_id)).fetchone()
        if row is None:
            return None
        same = (event.type, event.encoding, digest(event.delta), digest(event.data))
        if tuple(row[1:]) != same:
            raise EventIdConflict(str(stream.key), event.event_id, row[0])
        return int(row[0])

    def close_stream(self, stream: Stream) -> None:
        """Ends a stream's life: its key may be used again, by a new stream."""
        self.connection.execute(_Q["close_stream"], (stream.id,))

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

    def drop(self, name: str, views: Iterable[str] = ()) -> str:
        """Forgets a projection, drops views and retires its table, whose name is returned."""
        (table,) = self.connection.execute(_Q["unregister_projection"], (name,)).fetchone()
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
        shadow.swap(self.connection, projection)
        self.register(projection, checkpoint)

    def clear_away(self, table: str, count: int) -> bool:
        """Removes some rows of what is left of a shadow or retired table; False when none is.

        A large table that is dropped at once would keep writers waiting.
        """
        return shadow.clear_away(self.connection, table, count)

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

    def _with_identity(self, stream: Stream, event: NewEvent) -> NewEvent:
        """Puts what the `streams` row says into the first event, so that it can be made again."""
        (nonce,) = self.connection.execute(_Q["get_nonce"], (stream.id,)).fetchone()
        data = {} if event.data is None else decode(event.data, event.encoding)
        data["stream"] = {**stream.key._asdict(), "nonce": nonce.hex()}
        (text,), encoding = encode([data], str(stream.key))
        return msgspec.structs.replace(event, data=text, encoding=max(encoding, event.encoding))

    def _ensure_stream(self, key: StreamKey) -> int:
        stream = self.find_stream(key)
        return (stream or self.open_stream(key)).id

    def _codec(self, fingerprint: str) -> int:
        known = self._codecs.get(fingerprint)
        if known is None:
            row = self.connection.execute(_Q["find_codec"], (fingerprint,)).fetchone()
            if row is None:
                cursor = self.connection.execute(_Q["insert_codec"], (fingerprint,))
                assert cursor.lastrowid is not None
                row = (cursor.lastrowid,)
            known = self._codecs[fingerprint] = int(row[0])
        return known

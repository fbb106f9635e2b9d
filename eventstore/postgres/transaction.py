"""What can be done inside one transaction: reading the log, and maintaining it.

Appends do not come through here, see appending.py.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import psycopg

from eventstore.chain import digest, first_link
from eventstore.changes import Change, Row
from eventstore.errors import (
    CorruptEvent,
    EventIdConflict,
    EventStoreError,
    ProjectionFailed,
    StreamExists,
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
from eventstore.postgres import shadow
from eventstore.postgres.arrays import bools, byte_strings, floats, integers, texts
from eventstore.postgres.connection import Connection, is_lost
from eventstore.postgres.queries import queries
from eventstore.postgres.tables import ProjectionTable
from eventstore.projection import Projection, changes_of
from eventstore.reads import Reads
from eventstore.records import (
    CHANGED,
    ROW_CHANGED,
    SYSTEM,
    Sealed,
    check_begins,
    check_dense,
    conversation,
    recorded,
    seal,
    stream_of,
    table_before,
    with_identity,
)
from eventstore.store import Loaded, LoggedEvent, StreamFacts, Window
from eventstore.upcasting import CURRENT, upcast

__all__ = [
    "MaintenanceTransaction",
    "ReadTransaction",
    "blamed",
    "event_columns",
    "fitting_changes",
]

_END: Final = 2**63 - 1
_DELTAS_BYTES: Final = 16 * 1024 * 1024
"""How much of deltas is read at once: there are a few copies of it for a moment."""
_WAITING_MAX: Final = 500
_WAITING_MAX_BYTES: Final = 4 * 1024 * 1024
"""How many events, and how much of them, maintenance writes at once."""
_KNOWN_TO_FIT: Final = {"sessions", "state"}
"""Projections whose changes every table holds: they are not made into SQL twice."""


def blamed(projection: Projection, position: int, error: Exception) -> Exception:
    """The error for what a projection raised, or for a change that its table cannot hold."""
    if isinstance(error, EventStoreError):
        return error
    refused = psycopg.DataError | psycopg.IntegrityError | psycopg.ProgrammingError
    if projection.name not in _KNOWN_TO_FIT:  # of which a key is too long for an index
        refused |= psycopg.errors.ProgramLimitExceeded
    if isinstance(error, psycopg.Error) and not isinstance(error, refused):
        return error
    # Not its text, which may hold content of the event.
    return ProjectionFailed(projection.name, position, type(error).__name__)


def _conflict(event: RecordedEvent) -> EventIdConflict:
    return EventIdConflict(str(event.stream.key), event.event_id, event.version)


def fitting_changes(table: ProjectionTable, event: RecordedEvent) -> list[Change]:
    """What a projection makes of an event.

    Raises:
        ProjectionFailed: it could not, or its table cannot hold it.
    """
    projection = table.projection
    try:
        made = list(changes_of(projection, event))
        if projection.name not in _KNOWN_TO_FIT:
            table.statements(made)
    except Exception as error:
        raise blamed(projection, event.position, error) from error
    return made


def event_columns(sealed: Sequence[Sealed], codecs: Mapping[str, int]) -> tuple[Any, ...]:
    """What `insert_events` takes."""
    events = [each.event for each in sealed]
    return (
        integers(event.position for event in events),
        integers(event.stream.id for event in events),
        integers(event.version for event in events),
        texts(event.event_id for event in events),
        texts(event.type for event in events),
        integers(event.schema_version for event in events),
        integers(event.recorded_at for event in events),
        floats(event.timestamp for event in events),
        texts(event.author for event in events),
        texts(event.invocation_id for event in events),
        integers(codecs[event.codec] for event in events),
        integers(event.encoding for event in events),
        byte_strings(each.delta_digest for each in sealed),
        byte_strings(each.data_digest for each in sealed),
        byte_strings(each.chain for each in sealed),
        texts(event.delta for event in events),
        texts(event.data for event in events),
    )


class ReadTransaction(Reads):
    """Reads of one consistent snapshot, or of what a transaction sees that holds writers off.

    `settled` is the position up to which nothing can come into the log any more.
    """

    def __init__(
        self,
        connection: Connection,
        schema: str,
        codecs: dict[int, str],
        settled: int = _END,
    ) -> None:
        self._connection = connection
        self.schema = schema
        self._codecs = codecs
        self._settled = settled
        self.ended = False
        self._q = queries(schema)

    @property
    def connection(self) -> Connection:
        """The connection of the transaction."""
        return self._connection

    def _all(self, name: str, *parameters: Any) -> list[Any]:
        return self.connection.execute(self._q[name], parameters, binary=True).fetchall()

    def _one(self, name: str, *parameters: Any) -> Any:
        return self.connection.execute(self._q[name], parameters, binary=True).fetchone()

    def _list(self, numbers: Iterable[int]) -> Any:
        return integers(numbers)

    def _do(self, name: str, *parameters: Any) -> int:
        return self.connection.execute(self._q[name], parameters).rowcount

    def _execute(self, sql: str, parameters: tuple[Any, ...]) -> object:
        return self.connection.execute(sql, parameters)

    def find_stream(self, key: StreamKey) -> Stream | None:
        """The live stream with this key, None when there is none."""
        row = self._one("find_stream", key.app_name, str(key.kind), key.user_id, key.session_id)
        return None if row is None else stream_of(row)

    def finish(self) -> None:
        """Ends the transaction once everything was sent: nothing is asked any more."""
        if not self.ended:
            self.ended = True
            self.connection.execute("COMMIT")

    def load(
        self, key: StreamKey, window: Window, tables: Mapping[str, ProjectionTable]
    ) -> Loaded | None:
        """A stream with its rows and conversation, in one round trip in a pipeline."""
        names = key.app_name, str(key.kind), key.user_id, key.session_id

        def ask(sql: str, *more: Any) -> Any:
            return self.connection.execute(sql, (*names, *more), binary=True)

        last = None if window.last is None else min(window.last, _END)
        found = ask(self._q["find_stream"])
        rows = {name: ask(table.of_key) for name, table in tables.items()}
        events = None
        if window.since is not None:
            events = ask(self._q["load_since"], window.since, last)
        elif last is None:
            events = ask(self._q["load_all"])
        elif last > 0:
            events = ask(self._q["load_tail"], last)
        self.finish()
        if (row := found.fetchone()) is None:
            return None
        stream = stream_of(row)
        owned = {name: cursor.fetchall() for name, cursor in rows.items()}
        spoken = [] if events is None else self._conversation(stream, window, events.fetchall())
        return Loaded(stream, owned, spoken)

    def _conversation(
        self, stream: Stream, window: Window, rows: Sequence[Sequence[Any]]
    ) -> list[RecordedEvent]:
        events = self.recorded(stream, rows)
        if window.since is not None:
            return events[::-1]
        if window.last is None:
            check_dense(stream, events, first=1)
            check_begins(stream, events[0])
            return conversation(events)
        check_dense(stream, events, first=events[0].version if events else stream.version + 1)
        return conversation(events)[-window.last :]

    def sessions(self, app_name: str, user_id: str | None) -> list[Stream]:
        """The live session streams of an app, or of one user in it, in no particular order."""
        if user_id is None:
            return [stream_of(row) for row in self._all("sessions_of_app", app_name)]
        return [stream_of(row) for row in self._all("sessions_of_user", app_name, user_id)]

    def read(self, stream: Stream, after: int = 0) -> list[RecordedEvent]:
        """Every event of a stream behind version `after`, oldest first.

        Raises:
            CorruptEvent: a digest does not match, or a version is missing.
        """
        events = self.recorded(stream, self._all("read_stream", stream.id, after))
        check_dense(stream, events, first=after + 1)
        if events and after == 0:
            check_begins(stream, events[0])
        return events

    def read_intact(self, stream: Stream) -> tuple[list[RecordedEvent], list[CorruptEvent]]:
        """Every event of a stream that can be read and matches its digest, and the others."""
        events: list[RecordedEvent] = []
        damaged: list[CorruptEvent] = []
        found = {row[1]: row for row in self._all("read_stream", stream.id, 0)}
        for version in range(1, stream.version + 1):
            row = found.get(version)
            if row is None:
                damaged.append(CorruptEvent(str(stream.key), version, 0, "it is missing"))
                continue
            try:
                events += self.recorded(stream, [row])
            except CorruptEvent as error:
                damaged.append(error)
            except (EventStoreError, TypeError, ValueError) as error:
                reason = f"it cannot be read ({type(error).__name__})"
                damaged.append(CorruptEvent(str(stream.key), version, row[0], reason))
        if events and events[0].version == 1:
            check_begins(stream, events[0])
        return events, damaged

    def recorded(self, stream: Stream, rows: Sequence[Sequence[Any]]) -> list[RecordedEvent]:
        """Events from the rows of a statement on one stream."""
        codecs = self._codecs_of(row[14] for row in rows)
        return [recorded(stream, row, codecs) for row in rows]

    def _codecs_of(self, ids: Iterable[int]) -> Mapping[int, str]:
        known = dict(self._codecs)  # a connection that is opened anew clears what all share
        if not known.keys() >= set(ids):
            known = dict(self._all("codecs"))
            self._codecs.update(known)
        return known

    def head(self) -> int:
        """The position of the last event behind which nothing is missing, 0 in an empty log."""
        return int(self._one("head", self._settled)[0])

    def read_deltas(self, after: int, upto: int) -> Deltas:
        """The events of the log behind `after`, up to `upto` or as many as memory allows.

        Raises:
            CorruptEvent: a delta does not match its digest.
            UnknownEvent: see there.
        """
        while upto - after > 1 and self._one("delta_bytes", after, upto)[0] > _DELTAS_BYTES:
            upto = (after + upto) // 2
        versions = CURRENT[EventType.ADK_EVENT], CURRENT[EventType.SESSION_CREATED]
        rows = self._all("read_deltas", after, upto, *versions)
        streams = self.get_streams({row[1] for row in rows})
        said: dict[int, StreamDeltas] = {}
        texts_of: dict[int, tuple[list[int], list[bytes]]] = {}
        others: list[int] = []
        for position, stream_id, timestamp, plain, first, delta, proof in rows:
            if not plain:
                others.append(position)
                continue
            stream = streams[stream_id]
            if digest(delta) != proof:
                raise CorruptEvent(str(stream.key), 0, position, CHANGED)
            if stream.key.kind != StreamKind.SESSION:
                raise CorruptEvent(f"stream {stream_id}", 0, position, ROW_CHANGED)
            before = said.get(stream_id)
            positions, deltas = texts_of.setdefault(stream_id, ([], []))
            if delta is not None:
                positions.append(position)
                deltas.append(delta)
            created = timestamp if first else before and before.created
            said[stream_id] = StreamDeltas(
                stream_id,
                stream.user_stream_id,
                stream.app_stream_id,
                position,
                timestamp,
                created,
                positions,
                deltas,
            )
        wholes = self.read_positions(others)
        return Deltas(after, upto, len(rows), list(said.values()), wholes)

    def positions_of(self, streams: Iterable[Stream]) -> array[int]:
        """The positions of all events of some streams, in order. Reads an index only."""
        rows = self._all("positions_of_streams", integers(stream.id for stream in streams))
        return array("q", [position for (position,) in rows])

    def version_of(self, stream: Stream, event_id: str) -> int | None:
        """The version at which a stream holds an event with this id; None when it does not."""
        row = self._one("event_version", stream.id, event_id)
        return None if row is None else int(row[0])

    def read_page(self, stream: Stream, after: int, count: int) -> list[RecordedEvent]:
        """Up to `count` events of a stream behind a version, oldest first. Raises as `read`."""
        if after >= stream.version:
            return []
        sql = f"{self._q['read_stream']} LIMIT $3"
        rows = self.connection.execute(sql, (stream.id, after, count), binary=True).fetchall()
        events = self.recorded(stream, rows)
        last = min(after + count, stream.version)
        check_dense(stream._replace(version=last), events, first=after + 1)
        return events

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
        return self._table(projection).indexed_page(
            self.connection, index, equal, after, count, descending=descending
        )

    def last_positions(
        self,
        count: int,
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
    ) -> list[int]:
        """The positions of the last events up to the head, in order: of all, or of some streams."""
        names = (app_name, user_id, session_id)
        if names == (None, None, None):
            rows = self._all("last_positions", self._settled, count)
        else:
            rows = self._all("last_positions_of", self._settled, count, *names)
        return [position for (position,) in reversed(rows)]

    def _table(self, projection: Projection) -> ProjectionTable:
        return ProjectionTable(projection, self.schema)

    def owned_rows(self, projection: Projection, owners: Sequence[int]) -> list[Row]:
        """The rows of a projection that belong to any of the streams, in key order."""
        return self._table(projection).rows(self.connection, owners)

    def row(self, projection: Projection, key: Row) -> Row | None:
        """One row of a projection, whole; None when there is none."""
        return self._table(projection).row(self.connection, key)

    def table_page(self, projection: Projection, after: Row | None, count: int) -> list[Row] | None:
        """Up to `count` rows of a projection's table behind a key, in key order.

        None when the table is missing or lacks its columns.
        """
        if not shadow.fits(self.connection, self.schema, projection):
            return None
        return self._table(projection).page(self.connection, after, count)

    def check_file(self) -> list[str]:
        """What the server itself knows to be wrong with its files; empty when all is well."""
        return [str(row[0]) for row in self._all("check_files", self.schema)]

    def table_sizes(self) -> dict[str, int]:
        """Bytes of each table with its indexes."""
        return dict(self._all("table_sizes", self.schema))

    def facts(self) -> dict[str, Any]:
        """The size of the schema and the server's version, as `stats` shows them."""
        (size,) = self._one("size", self.schema)
        return {
            "db_size_mb": round(size / 1e6, 3),
            "postgresql_version": self.connection.info.parameter_status("server_version"),
        }

    def counts(self, tables: Mapping[str, ProjectionTable]) -> dict[str, int]:
        """Rows per projection table, events, and the head position."""
        events, head = self._one("count_events")
        found = {}
        for name, table in tables.items():
            row = self.connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608 - as in tables.py
            assert row is not None
            found[name] = int(row[0])
        return {**found, "events": events, "head": head}


class MaintenanceTransaction(ReadTransaction):
    """What maintenance may do. Where it reads the head or the log it holds all writers off.

    Events wait until something is asked of the server, or they are many, and are written together:
    a round trip for each takes longer than all the rest, and a row that one transaction has changed
    a thousand times is looked for among a thousand versions of it.
    """

    def __init__(
        self,
        connection: Connection,
        schema: str,
        codecs: dict[int, str],
        inline: Mapping[str, ProjectionTable],
    ) -> None:
        # Of its own: when it is undone, so are the numbers it has given.
        super().__init__(connection, schema, dict(codecs))
        self._inline = inline
        self._drawn: Iterator[int] = iter(())
        self._written = 0
        self._waiting: dict[tuple[int, str], Sealed] = {}
        """By stream and event id."""
        self._waiting_bytes = 0
        self._placed: dict[int, RecordedEvent] = {}
        """Those that wait and bring their positions along, by these."""
        self._changes: dict[str, list[Change]] = {}
        self._failed: BaseException | None = None

    @property
    def connection(self) -> Connection:
        """The connection of the transaction, behind all that waited."""
        self.flush()
        return self._connection

    def append(self, stream: Stream, event: NewEvent) -> RecordedEvent:
        """Writes one event behind the stream's head; its `stream` has the new head."""
        if stream.version == 0:
            (nonce,) = self._one("get_nonce", stream.id)
            event = with_identity(stream.key, nonce, event)
        sealed = seal(stream, self._draw(), event)
        # What an event carries over is in the rows already.
        self._add(sealed, None if event.type == EventType.CARRIED_OVER else sealed.event)
        return sealed.event

    def _draw(self) -> int:
        """The next position. More are drawn at once the more are needed; the last are not used."""
        if (position := next(self._drawn, None)) is None:
            if self._placed:
                self.flush()  # so that it comes behind theirs
            count = min(self._written + 1, _WAITING_MAX)
            rows = self._connection.execute(self._q["draw_positions"], (count,), binary=True)
            self._drawn = iter([number for (number,) in rows.fetchall()])
            position = next(self._drawn)
        return position

    def _add(self, sealed: Sealed, folded: RecordedEvent | None, placed: int = 0) -> None:
        """Lets an event wait, and what projections make of it."""
        event = sealed.event
        key = event.stream.id, event.event_id
        if key in self._waiting or placed in self._placed:
            raise _conflict(event)
        made: dict[str, list[Change]] = {}
        if folded is not None:
            made = {name: fitting_changes(each, folded) for name, each in self._inline.items()}
        for name, changes in made.items():
            self._changes.setdefault(name, []).extend(changes)
        self._waiting[key] = sealed
        if placed:
            self._placed[placed] = event
            self._drawn = iter(())
        self._written += 1
        self._waiting_bytes += len(event.delta or b"") + len(event.data or b"")
        if len(self._waiting) >= _WAITING_MAX or self._waiting_bytes >= _WAITING_MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the events that wait. When it fails, all that is done later fails too."""
        if self._failed is not None:
            raise self._failed
        if not self._waiting:
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        placed, self._placed = self._placed, {}
        changes, self._changes = self._changes, {}
        try:
            self._write(waiting, placed, changes)
        except BaseException as error:
            self._failed = error
            raise

    def _write(
        self,
        waiting: Mapping[tuple[int, str], Sealed],
        placed: Mapping[int, RecordedEvent],
        changes: Mapping[str, Sequence[Change]],
    ) -> None:
        self._require_new(waiting, placed)
        events = list(waiting.values())
        codecs = {each.event.codec for each in events}
        self._do("insert_events", *event_columns(events, self._codec_ids(codecs)))
        heads = {each.event.stream.id: each.event.stream for each in events}.values()
        self._do(
            "move_on",
            integers(stream.id for stream in heads),
            integers(stream.version for stream in heads),
            integers(stream.conversation_version for stream in heads),
            byte_strings(stream.chain for stream in heads),
        )
        position = events[0].event.position if len(events) == 1 else 0
        for name, made in changes.items():
            self._apply(self._inline[name], made, position)

    def _require_new(
        self, waiting: Mapping[tuple[int, str], Sealed], placed: Mapping[int, RecordedEvent]
    ) -> None:
        """Asserts that no event in the log has the id of one that waits, or its position."""
        ids = integers(stream for stream, _ in waiting), texts(name for _, name in waiting)
        taken = [waiting[tuple(key)].event for key in self._all("events_with_ids", *ids)]
        if placed:
            self._one("skip_positions", max(placed))
            found = self._all("positions_taken", integers(placed))
            taken += [placed[position] for (position,) in found]
        for event in taken:
            raise _conflict(event)

    def _codec_ids(self, fingerprints: set[str]) -> dict[str, int]:
        """The numbers of codecs, those of new ones too."""
        new = fingerprints - set(self._codecs.values())
        for fingerprint in new:
            self._do("insert_codec", fingerprint)
        if new:
            self._codecs.update(self._all("codecs"))
        return {fingerprint: number for number, fingerprint in self._codecs.items()}

    def _apply(self, table: ProjectionTable, changes: Iterable[Change], position: int = 0) -> None:
        self.flush()
        try:
            table.apply(self._execute, changes)
        except Exception as error:
            if is_lost(error, self._connection):
                raise
            raise blamed(table.projection, position, error) from error

    def apply(self, projection: Projection, changes: Iterable[Change]) -> None:
        """Executes row changes on a projection's table.

        Raises:
            ProjectionFailed: its table cannot hold one.
        """
        self._apply(self._table(projection), changes)

    def register(self, projection: Projection, checkpoint: int | None) -> None:
        """Notes a projection; one without a checkpoint is inline."""
        self._do(
            "register_projection",
            projection.name,
            projection.version,
            projection.table.name,
            checkpoint,
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
        moved = self._do(
            "move_checkpoint",
            after,
            failed_at,
            failure,
            projection.name,
            projection.version,
            before,
        )
        return moved == 1

    def lock_checkpoint(self, projection: Projection) -> None:
        """Keeps others from moving a checkpoint until the transaction ends."""
        self._do("lock_checkpoint", projection.name)

    def drop(self, name: str, views: Iterable[str] = ()) -> str:
        """Forgets a projection, drops views and retires its table, whose name is returned."""
        (table,) = self._one("unregister_projection", name)
        for view in views:
            self.connection.execute(f'DROP VIEW IF EXISTS {self.schema}."{view}"')
        shadow.retire(self.connection, self.schema, table)
        return str(table)

    def make_shadow(self, projection: Projection) -> None:
        """Makes an empty table beside a projection's, to be filled and put in its place."""
        shadow.make(self.connection, self.schema, projection)

    def fill_shadow(self, projection: Projection, rows: Sequence[Row]) -> None:
        """Inserts whole rows into the shadow. Raises as `apply`."""
        table = shadow.table(projection, self.schema)
        self.flush()
        try:
            if rows:
                table.fill(self._execute, rows)
        except (psycopg.Error, ValueError, TypeError, OverflowError, struct.error) as error:
            if is_lost(error, self._connection):
                raise
            raise blamed(projection, 0, error) from error

    def apply_to_shadow(self, projection: Projection, changes: Iterable[Change]) -> None:
        """Executes row changes on the shadow. Raises as `apply`."""
        self._apply(shadow.table(projection, self.schema), changes)

    def cut_over(self, projection: Projection, checkpoint: int | None) -> None:
        """Puts the shadow in the place of the table, which is retired, and notes the projection."""
        # In the order of those who follow the log: the checkpoint, then the table.
        self.lock_checkpoint(projection)
        before = table_before(projection, self.registered())
        shadow.swap(self.connection, self.schema, projection, before)
        self.register(projection, checkpoint)

    def clear_away(self, table: str, count: int) -> bool:
        """Removes what is left of a shadow or retired table; False when none is."""
        return shadow.clear_away(self.connection, self.schema, table)

    def put_stream(self, facts: StreamFacts) -> None:
        """Writes a row of `streams` anew, as the log has it."""
        stream = facts.stream
        self._do(
            "put_stream",
            stream.user_stream_id,
            stream.app_stream_id,
            stream.version,
            stream.conversation_version,
            facts.live,
            stream.chain,
            stream.id,
        )

    def leftovers(self) -> list[str]:
        """The names of tables of which a shadow or a retired table is there."""
        return sorted({str(row[0]) for row in self._all("leftovers", self.schema)})

    def end(self, stream: Stream, event: NewEvent) -> Stream:
        """Ends a live stream with a tombstone; returns it with its last head."""
        ended = self.append(stream, event).stream
        self._do(
            "move_heads",
            integers([ended.id]),
            integers([ended.version]),
            integers([ended.conversation_version]),
            byte_strings([ended.chain]),
            bools([False]),
        )
        return ended

    def open_stream(self, key: StreamKey) -> Stream:
        """Makes a new live stream, and those of its user and app where they are missing.

        Raises:
            StreamExists: a live stream has this key.
        """
        if self.find_stream(key) is not None:
            raise StreamExists(str(key))
        user = app = 0
        if key.kind in (StreamKind.SESSION, StreamKind.USER):
            app = self.ensure_stream(StreamKey(StreamKind.APP, key.app_name)).id
        if key.kind is StreamKind.SESSION:
            user = self.ensure_stream(StreamKey(StreamKind.USER, key.app_name, key.user_id)).id
        nonce = os.urandom(16)
        chain = first_link(key, nonce)
        names = (str(key.kind), key.app_name, key.user_id, key.session_id)
        (stream_id,) = self._one("insert_stream", *names, nonce, chain)
        if user or app:
            self._do("replace_stream", user, app, nonce, chain, stream_id)
        return Stream(stream_id, key, user, app, 0, 0, chain)

    def ensure_stream(self, key: StreamKey) -> Stream:
        """The live stream with this key, made where it is missing."""
        return self.find_stream(key) or self.open_stream(key)

    def import_stream(self, facts: StreamFacts) -> Stream:
        """Writes a new row of `streams` just as it is, in place of a live one without events.

        Raises:
            StreamExists: a live stream with this key has events, or the id is taken.
        """
        stream = facts.stream
        there = self.find_stream(stream.key) if facts.live else None
        if there is not None:
            if there.version or (stream.id and stream.id != there.id):
                raise StreamExists(str(stream.key))
            # What it owns refers to it by its id, which it keeps.
            self._do(
                "replace_stream",
                stream.user_stream_id,
                stream.app_stream_id,
                facts.nonce,
                stream.chain,
                there.id,
            )
            return stream._replace(id=there.id)
        stream_id = stream.id or int(self._one("next_stream")[0])
        if self._all("get_streams", integers([stream_id])):
            raise StreamExists(f"stream {stream_id} ({stream.key})")
        self._do(
            "import_stream",
            stream_id,
            str(stream.key.kind),
            *stream.key[1:],
            stream.user_stream_id,
            stream.app_stream_id,
            stream.version,
            stream.conversation_version,
            facts.live,
            facts.nonce,
            stream.chain,
        )
        if stream.id:
            self._one("skip_streams", stream.id)
        return stream._replace(id=stream_id)

    def import_event(self, stream: Stream, logged: LoggedEvent, position: int = 0) -> Stream:
        """Writes an event behind a stream's head just as it is, and what it does to the rows.

        Raises:
            EventIdConflict: the stream holds an event with this id, or the position is taken.
        """
        event = logged.event
        assert event.version == stream.version + 1, "what is imported is dense"
        version = event.version
        spoken = version if event.type in CONVERSATION_TYPES else stream.conversation_version
        after = stream._replace(version=version, conversation_version=spoken, chain=logged.chain)
        placed = event._replace(position=position or self._draw(), stream=after)
        sealed = Sealed(placed, logged.delta_digest, logged.data_digest, logged.chain)
        # Also what an event carries over: these rows do not have it.
        self._add(sealed, upcast(placed), position)
        return after

    @contextmanager
    def maintenance(self, reason: str) -> Iterator[None]:
        """Lets events be removed while it lasts; the transaction must log what it did."""
        self._do("begin_maintenance", reason)
        yield
        self._do("end_maintenance")

    def scavenge(self, stream: Stream) -> int:
        """Removes the events of a closed stream and blanks its identity; returns how many.

        The row keeps the last version and chain link. Only inside a maintenance transaction.
        """
        removed = self._do("delete_events", stream.id)
        self._do("forget_stream", stream.id)
        return removed

    def ensure_system_stream(self) -> Stream:
        """The stream that maintenance logs itself on."""
        return self.ensure_stream(SYSTEM)

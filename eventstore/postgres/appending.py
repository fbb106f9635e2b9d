"""The one writing connection of an engine: groups of requests in, commits and outcomes out.

A group is one transaction of two round trips. The first takes the locks, in one total order, and
then reads what they protect: statements behind the locks, for a statement that waits sees what was
there before it waited. Under the locks it draws the positions, so that their order is that of the
effects in every scope. Here everything is decided; what is refused fails alone and writes nothing.
The second round trip writes and commits. When it is cut off, the log is asked before anything is
said.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import psycopg

from eventstore.chain import digest, first_link
from eventstore.changes import Change, DeleteOwner, Row
from eventstore.cursor import Cursor
from eventstore.encoding import decode_members
from eventstore.errors import (
    CorruptEvent,
    EventIdConflict,
    OutcomeUnknown,
    ProjectionMissing,
    SchemaTooNew,
    ServerUnavailable,
    StoreBusy,
    StreamExists,
    StreamNotFound,
    WrongExpectedVersion,
)
from eventstore.events import (
    CONVERSATION_TYPES,
    NewEvent,
    Stream,
    StreamKey,
    StreamKind,
)
from eventstore.observer import Observer
from eventstore.postgres.address import milliseconds
from eventstore.postgres.arrays import bools, byte_strings, integers, texts
from eventstore.postgres.connection import Connection, Connector, is_lost, sever, translate
from eventstore.postgres.locks import Locks
from eventstore.postgres.queries import queries
from eventstore.postgres.requests import Kind, Write
from eventstore.postgres.tables import ProjectionTable, Statement
from eventstore.postgres.transaction import (
    ReadTransaction,
    blamed,
    event_columns,
    fitting_changes,
)
from eventstore.postgres.trip import Trip
from eventstore.records import (
    ROW_CHANGED,
    Sealed,
    conversation,
    owners_of,
    seal,
    stream_of,
    with_identity,
)
from eventstore.requests import settle
from eventstore.store import Appended, Loaded

__all__ = ["Writer"]

_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_LOCK_TIMEOUT: Final = "55P03"
_PATIENCE_S: Final = 0.5
"""How long a group waits for a lock: whoever keeps one longer must not keep all others waiting."""
_SHORT_PATIENCE_S: Final = 0.1
"""How long each request of such a group waits by itself."""
_SHORT_WAITS: Final = 5
"""How many of them wait so long: many may want one lock, and others come behind them all."""
_HARDLY_S: Final = 0.001
"""How long the others wait, and those whose time is up."""
_RETRIES: Final = 5
_RETRIED_STATES: Final = {"40001", "40P01"}
_RECONNECT_S: Final = 20.0
"""How long it is tried to reach the server again before requests fail: a failover takes seconds."""
_RECONNECT_PAUSE_S: Final = 0.05

_log = logging.getLogger(__name__)


class _Wider(Exception):
    """A projection changes rows of a stream that was not locked: begin anew, with more locks."""


class _Spoilt(Exception):
    """A request failed behind what it had written, which must go."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class _Plan:
    """What a transaction is going to write, and what each request is told of it."""

    def __init__(
        self, asked: set[StreamKey], heads: dict[StreamKey, Stream], positions: Iterator[int]
    ) -> None:
        self.asked = asked
        """The keys of the streams that were to be locked, whether they are there or not."""
        self.heads = heads
        self.locked = {stream.id for stream in heads.values()}
        self.positions = positions
        self.stored: dict[tuple[StreamKey, str], tuple[Any, ...]] = {}
        """Events that are there: key and id to version, type, encoding and digests."""
        self.events: list[Sealed] = []
        self.ended: set[int] = set()
        self.changes: dict[str, list[Change]] = {}
        self.moved: dict[Cursor, tuple[int, int]] = {}
        self.results: dict[Write[Any], Any] = {}

    def of_stream(self, stream_id: int) -> list[Sealed]:
        """The events that are going to be written to a stream."""
        return [each for each in self.events if each.event.stream.id == stream_id]

    def position_of(self, cursor: Cursor) -> tuple[int | None, int | None]:
        """Where a cursor stands: stream and version."""
        return self.moved.get(cursor, (cursor.stream_id, cursor.version))


class Writer:
    """Executes requests on a connection of its own. Used by one thread."""

    def __init__(
        self,
        connector: Connector,
        locks: Locks,
        tables: Mapping[str, ProjectionTable],
        expected: Callable[[], tuple[int, str | None]],
        codecs: dict[int, str],
    ) -> None:
        self._connector = connector
        self._address = connector.address
        self._locks = locks
        self._tables = tables
        self._expected = expected
        self._codecs = codecs
        self._codec_ids: dict[str, int] = {"": 0}
        self._q = queries(self._address.schema)
        self._connection: Connection | None = None
        self._own = 0
        self._prepared: dict[str, bytes] | None = None
        self._committing = False
        self._waited_for_all = False
        """Whether the lock that was waited for in vain is one of all, and not of some requests."""
        self._wide: set[str] = set()
        """Scopes whose rows projections change also when the delta does not name them."""
        self._beside: set[StreamKey] = set()
        """Other streams whose rows the projections of a group change."""
        self._ownerless: set[int] = set()
        """Ids of none or of deleted ones, whose rows they change too."""
        self.busy_since: float | None = None
        """Since when it waits for the server, on the monotonic clock."""
        self.observer: Observer | None = None

    def commit(
        self, group: Sequence[Write[Any]], patience_s: float | None = None
    ) -> list[Write[Any]]:
        """Commits requests together, or, when one spoils the transaction, each by itself.

        Delivers every outcome, exactly once, but for those of the requests that it returns: these
        could not have their locks within a moment, and are to be tried again.
        """
        try:
            with self._waiting():
                patience_s = _PATIENCE_S if patience_s is None else patience_s
                return self._commit(group, min(patience_s, self._address.lock_timeout_s))
        finally:
            self._beside.clear()
            self._ownerless.clear()

    def _commit(
        self, group: Sequence[Write[Any]], patience_s: float, *, pipelined: bool = True
    ) -> list[Write[Any]]:
        tries = losses = 0
        while True:
            plan: _Plan | None = None
            try:
                self._committing = executed = self._waited_for_all = False
                connection = self._ready()
                executed = True
                plan = self._decide(connection, group, patience_s, pipelined=pipelined)
                self._execute(connection, plan, group, pipelined=pipelined)
            except _Wider:
                self._roll_back()
            except _Spoilt as spoilt:
                self._roll_back()
                if len(group) > 1:
                    return self._each(group)
                self._fail(group, spoilt.error)
                return []
            except Exception as error:
                lost = is_lost(error, self._connection)
                state = error.sqlstate if isinstance(error, psycopg.Error) else None
                self._roll_back(lost=lost)
                if lost and self._committing and plan is not None:
                    if self._find_out(plan, group, error):
                        return []
                    losses += 1
                    group = self._fail_late(group, error, _RECONNECT_S)
                    if losses > 1 and len(group) > 1:  # the server may not take it as it is
                        return self._each(group)
                    if not group:
                        return []
                elif lost:
                    group = self._fail_late(group, error, _RECONNECT_S)
                    if not group:
                        return []
                    time.sleep(_RECONNECT_PAUSE_S)
                elif state == _LOCK_TIMEOUT:
                    if self.observer is not None:
                        self.observer.waited(patience_s)
                    group = self._fail_late(group, error, self._address.lock_timeout_s)
                    if not group or not self._waited_for_all:
                        return self._each(group)
                elif state in _RETRIED_STATES and tries < _RETRIES:
                    tries += 1
                elif len(group) > 1:
                    return self._each(group)
                elif pipelined and isinstance(error, psycopg.Error):
                    # So that it is known who is to blame.
                    self._retry(group)
                    return self._commit(group, patience_s, pipelined=False)
                else:
                    self._fail(group, error)
                    return []
            else:
                self._settle(plan, group)
                return []
            if executed:
                self._retry(group)

    def _retry(self, group: Sequence[Write[Any]]) -> None:
        """Says that requests are going to be executed again."""
        if self.observer is not None:
            self.observer.retried(len(group))

    def _each(self, group: Sequence[Write[Any]]) -> list[Write[Any]]:
        """Commits each request by itself, those of a stream in their order."""
        self._retry(group)
        if len(group) == 1:
            return list(group)
        left: list[Write[Any]] = []
        aside: set[StreamKey | None] = set()
        for request in group:
            patience_s = _SHORT_PATIENCE_S if len(aside) < _SHORT_WAITS else _HARDLY_S
            if request.key in aside or self._commit([request], patience_s):
                left.append(request)
                aside.add(request.key)
        return left

    def refuse(self, requests: Sequence[Write[Any]]) -> None:
        """Fails requests that somebody else has kept from their locks for too long.

        Each is tried once more, while that does not keep others waiting for long.
        """
        waited_s = self._address.lock_timeout_s
        until = time.monotonic() + _PATIENCE_S
        for request in requests:
            if time.monotonic() < until:
                self.commit([request], _HARDLY_S)
            else:
                busy = StoreBusy(self._address.shown, waited_s, "another transaction")
                self._fail([request], busy)

    def _fail_late(
        self, group: Sequence[Write[Any]], error: Exception, patience_s: float
    ) -> list[Write[Any]]:
        """Fails the requests that have waited for too long; returns the others."""
        oldest = time.monotonic() - patience_s
        self._fail([request for request in group if request.submitted_at <= oldest], error)
        return [request for request in group if request.submitted_at > oldest]

    def close(self) -> None:
        """Closes the connection; the next use opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def sever(self) -> None:
        """Cuts the connection, from another thread: it has waited too long."""
        connection = self._connection
        if connection is not None:
            sever(connection)

    def abandon(self) -> list[Connection]:
        """In a forked child: gives up what is the parent's."""
        return [] if self._connection is None else [self._connection]

    def _ready(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connector.open()
            # A server that crashed, or another one, need not have them any more.
            self._codec_ids = {"": 0}
            self._codecs.clear()
            self._own = self._locks.random()
            self._prepared = None if self._connection.prepare_threshold is None else {}
        return self._connection

    def _trip(
        self, connection: Connection, *, pipelined: bool
    ) -> AbstractContextManager[Trip | Connection]:
        """What executes statements: together, or each by itself."""
        return Trip(connection, self._prepared) if pipelined else nullcontext(connection)

    def _roll_back(self, *, lost: bool = False) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            if not lost and not connection.closed:
                connection.execute("ROLLBACK")
                return
        except psycopg.Error as error:
            _log.info("connecting to %s again: %s", self._address.shown, type(error).__name__)
        self.close()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Lets the watchdog see since when there was nothing new; may be nested."""
        outer = self.busy_since
        self.busy_since = time.monotonic()
        try:
            yield
        finally:
            self.busy_since = None if outer is None else time.monotonic()

    # The first round trip.

    def _decide(
        self,
        connection: Connection,
        group: Sequence[Write[Any]],
        patience_s: float,
        *,
        pipelined: bool,
    ) -> _Plan:
        writes = [request for request in group if request.kind is not Kind.BARRIER]
        self._know_codecs(connection, writes)
        creates = [request for request in writes if request.kind is Kind.CREATE]
        nonces = {request.key: os.urandom(16) for request in creates}
        keys = self._keys_to_lock(writes)
        timeouts = milliseconds(patience_s), self._statement_timeout
        try:
            with self._waiting(), self._trip(connection, pipelined=pipelined) as trip:

                def run(name: str, *parameters: Any) -> Any:
                    return trip.execute(self._q[name], parameters, binary=True)

                trip.execute(_BEGIN)
                run("set_timeouts", *timeouts)
                run(
                    "begin_write",
                    self._statement_timeout,
                    any(request.full for request in group),
                    self._locks.appending,
                    self._own,
                    self._locks.bounds,
                )
                state = run("schema_state")
                if creates:
                    run("ensure_apps", *_new_apps(creates))
                    run("ensure_users", *_new_users(creates))
                locked = run("lock_streams", *_key_columns(keys))
                opened = run("open_streams", *_new_sessions(creates, nonces)) if creates else None
                found = run("find_events", *_event_ids(writes))
                for owner in sorted(self._ownerless):  # which have no row to be locked
                    run("take_lock", self._locks.of_owner(owner))
                drawn = run("draw_positions", len(writes))
        except psycopg.Error:
            # One that is executed by itself steps aside in any case.
            self._waited_for_all = isinstance(trip, Trip) and trip.failed == self._q["begin_write"]
            raise
        self._check_state(state.fetchone())
        heads = {stream.key: stream for stream in map(stream_of, locked.fetchall())}
        new = {} if opened is None else {s.key: s for s in map(stream_of, opened.fetchall())}
        positions = iter([position for (position,) in drawn.fetchall()])
        plan = _Plan(keys, {**heads, **new}, positions)
        for app_name, user_id, session_id, event_id, *row in found.fetchall():
            key = StreamKey(StreamKind.SESSION, app_name, user_id, session_id)
            plan.stored[key, event_id] = tuple(row)
        for request in group:
            try:
                plan.results[request] = self._plan(connection, plan, request, new, nonces)
            except _Wider:
                raise
            except BaseException as error:  # whatever a projection or a merge raises is its own
                if isinstance(error, psycopg.Error) or is_lost(error, connection):
                    raise
                if request.kind is Kind.CREATE and request.key in new:
                    # Its stream is there by now, and would stay, empty.
                    raise _Spoilt(error) from error
                request.fail(error)
        return plan

    @property
    def _statement_timeout(self) -> str:
        return milliseconds(self._address.statement_timeout_s)

    def _know_codecs(self, connection: Connection, writes: Sequence[Write[Any]]) -> None:
        needed = {request.event.codec for request in writes if request.event is not None}
        if needed <= self._codec_ids.keys():
            return
        connection.execute(_BEGIN)
        timeouts = milliseconds(self._address.lock_timeout_s), self._statement_timeout
        connection.execute(self._q["set_timeouts"], timeouts)
        for fingerprint in sorted(needed - self._codec_ids.keys()):
            connection.execute(self._q["insert_codec"], (fingerprint,))
        known = connection.execute(self._q["codecs"]).fetchall()
        connection.execute("COMMIT")
        for number, fingerprint in known:
            self._codec_ids[fingerprint] = number
            self._codecs[number] = fingerprint

    def _check_state(self, state: Any) -> None:
        """The schema and the inline projections are those that were there when it was opened.

        Raises:
            SchemaTooNew, ProjectionMissing: a newer process has changed them.
        """
        version, active = state
        known_version, known = self._expected()
        if version != known_version:
            raise SchemaTooNew(
                self._address.shown,
                f"has schema version {version}, this process writes {known_version}",
                "Upgrade adk-eventstore here too, and start again.",
            )
        if known in (None, active):
            return
        assert known is not None
        name = sorted({*active.split(",")} ^ {*known.split(",")} - {""})[0].partition(" ")[0]
        raise ProjectionMissing(
            name,
            "the database relies on other projections, or other versions of them, than this "
            "process has",
            f"Install the package that provides it, or run: rebuild-projections --db "
            f"'{self._address.shown}'",
        )

    def _keys_to_lock(self, writes: Iterable[Write[Any]]) -> set[StreamKey]:
        keys = set(self._beside)
        for request in writes:
            key, event = request.key, request.event
            assert key is not None
            assert event is not None
            keys.add(key)
            scopes = set(self._wide)
            if event.delta is not None:
                scopes |= decode_members(event.delta, event.encoding).keys()
            if "app" in scopes:
                keys.add(_app_of(key))
            if "user" in scopes:
                keys.add(_user_of(key))
        return keys

    # What becomes of each request, decided under the locks.

    def _plan(
        self,
        connection: Connection,
        plan: _Plan,
        request: Write[Any],
        new: Mapping[StreamKey, Stream],
        nonces: Mapping[StreamKey | None, bytes],
    ) -> Any:
        key, event = request.key, request.event
        if key is None or event is None:
            return None
        stream = plan.heads.get(key)
        match request.kind:
            case Kind.CREATE:
                if key not in new:
                    raise StreamExists(str(key))
                assert stream is not None
                return self._add(plan, stream, with_identity(key, nonces[key], event))
            case Kind.DELETE:
                if stream is None:
                    return False
                self._require_new(plan, key, event)
                self._add(plan, stream, event)
                plan.ended.add(stream.id)
                return True
        if stream is None:
            raise StreamNotFound(str(key))
        if request.kind is Kind.SET_STATE:
            self._require_new(plan, key, event)
            return self._add(plan, stream, event)
        return self._plan_append(connection, plan, request, stream, event)

    @staticmethod
    def _require_new(plan: _Plan, key: StreamKey, event: NewEvent) -> None:
        """Raises EventIdConflict where the stream holds an event with this id."""
        if (row := plan.stored.get((key, event.event_id))) is not None:
            raise EventIdConflict(str(key), event.event_id, row[0])

    def _plan_append(
        self,
        connection: Connection,
        plan: _Plan,
        request: Write[Any],
        stream: Stream,
        event: NewEvent,
    ) -> Appended:
        cursor = request.cursor
        assert cursor is not None
        reading = ReadTransaction(connection, self._address.schema, self._codecs)
        behind = self._behind(plan, reading, stream, cursor)
        if (stored := self._stored(plan, reading, stream, event, cursor)) is not None:
            return stored
        missed: list[Any] = []
        if behind != stream.conversation_version:
            if behind is None or request.merge is None:
                raise WrongExpectedVersion(
                    str(stream.key), repr(cursor), f"{stream.id}:{stream.conversation_version}"
                )
            planned = [each.event for each in plan.of_stream(stream.id)]
            there = stream._replace(version=stream.version - len(planned))
            events = reading.read(there, behind) if behind < there.version else []
            events += [event for event in planned if event.version > behind]
            missed = [request.merge(each) for each in conversation(events)]
        moved = self._add(plan, stream, event)
        plan.moved[cursor] = (moved.id, moved.version)
        return Appended(moved.id, moved.version, missed)

    def _behind(
        self, plan: _Plan, reading: ReadTransaction, stream: Stream, cursor: Cursor
    ) -> int | None:
        """The conversation version the cursor's holder has seen; None when it cannot be told."""
        stream_id, version = plan.position_of(cursor)
        if version is not None:
            return version if stream_id == stream.id else None
        head = stream.conversation_version
        planned = {e.event.version: e.event for e in plan.of_stream(stream.id)}
        if head in planned:
            event_id, timestamp = planned[head].event_id, planned[head].timestamp
        else:
            event_id, timestamp = reading.event_identity(stream, head)
        return head if cursor.has_seen(head, event_id, timestamp) else None

    @staticmethod
    def _stored(
        plan: _Plan, reading: ReadTransaction, stream: Stream, event: NewEvent, cursor: Cursor
    ) -> Appended | None:
        """Where this very event is stored already; the holder that only missed it catches up.

        Raises:
            EventIdConflict: its id is stored with other content.
        """
        row = plan.stored.get((stream.key, event.event_id))
        if row is None:
            return None
        version, *content = row
        if content != [event.type, event.encoding, digest(event.delta), digest(event.data)]:
            raise EventIdConflict(str(stream.key), event.event_id, version)
        spoken = [
            each.event.version
            for each in plan.of_stream(stream.id)
            if each.event.version < version and each.event.type in CONVERSATION_TYPES
        ]
        before = max(spoken) if spoken else reading.previous_conversation_version(stream, version)
        news = plan.position_of(cursor) == (stream.id, before)
        if news:
            plan.moved[cursor] = (stream.id, version)
        return Appended(stream.id, version, news=news)

    def _add(self, plan: _Plan, stream: Stream, event: NewEvent) -> Stream:
        """Puts an event behind the head of its stream, with what projections make of it."""
        sealed = seal(stream, next(plan.positions), event)
        made = {name: fitting_changes(table, sealed.event) for name, table in self._tables.items()}
        self._require_locks(plan, sealed.event.stream, made)
        for name, changes in made.items():
            plan.changes.setdefault(name, []).extend(changes)
        plan.events.append(sealed)
        moved = sealed.event.stream
        plan.heads[stream.key] = moved
        plan.stored[stream.key, event.event_id] = (
            moved.version,
            event.type,
            event.encoding,
            sealed.delta_digest,
            sealed.data_digest,
        )
        return moved

    def _require_locks(
        self, plan: _Plan, stream: Stream, made: Mapping[str, Sequence[Change]]
    ) -> None:
        """Every row that is changed belongs to a stream that is locked.

        Raises:
            _Wider: one does not; next time it is.
            CorruptEvent: the stream names an app or a user whose stream is another one, or gone.
        """
        unlocked = set()
        for changes in made.values():
            for change in changes:
                owner = change.owner if isinstance(change, DeleteOwner) else change.key[0]
                if owner not in plan.locked:
                    unlocked.add(int(owner))
        if not unlocked:
            return
        for scope, owner, key in (
            ("app", stream.app_stream_id, _app_of(stream.key)),
            ("user", stream.user_stream_id, _user_of(stream.key)),
        ):
            if owner in unlocked:
                if key in plan.asked:
                    raise CorruptEvent(str(stream.key), 0, 0, ROW_CHANGED)
                self._wide.add(scope)
        others = unlocked - {stream.app_stream_id, stream.user_stream_id}
        if others:
            connection = self._connection
            assert connection is not None
            rows = connection.execute(self._q["get_facts"], (integers(others),), binary=True)
            live = {s.id: s.key for s in (stream_of(r[:10]) for r in rows.fetchall() if r[10])}
            ownerless = others - live.keys()
            if not live and ownerless <= self._ownerless and len(unlocked) == len(others):
                plan.locked |= others
                return
            self._beside |= {*live.values()}
            self._ownerless |= ownerless
        raise _Wider

    # The second round trip.

    def _execute(
        self,
        connection: Connection,
        plan: _Plan,
        group: Sequence[Write[Any]],
        *,
        pipelined: bool,
    ) -> None:
        loading = {r: s for r, s in plan.results.items() if isinstance(s, Stream)}
        statements: list[tuple[ProjectionTable | None, Statement]] = []
        if plan.events:
            columns = event_columns(plan.events, self._codec_ids)
            statements.append((None, Statement(self._q["insert_events"], columns)))
            heads = list({each.event.stream.id: each.event.stream for each in plan.events}.values())
            moves = Statement(self._q["move_heads"], _heads(heads, plan.ended))
            statements.append((None, moves))
        for name, changes in plan.changes.items():
            of = self._tables[name]
            statements += [(of, statement) for statement in of.statements(changes)]
        owners = integers({owner for stream in loading.values() for owner in owners_of(stream)})
        rows: dict[str, Any] = {}
        with self._waiting(), self._trip(connection, pipelined=pipelined) as trip:
            for table, (sql, parameters) in statements:
                try:
                    trip.execute(sql, parameters)
                except psycopg.Error as error:
                    if table is None or is_lost(error, connection):
                        raise
                    raise blamed(table.projection, 0, error) from error
            if loading:
                rows = {
                    name: trip.execute(table.of_owners, (owners,), binary=True)
                    for name, table in self._tables.items()
                }
            # From here on it may be stored, whatever is heard of it.
            self._committing = bool(plan.events)
            trip.execute("COMMIT")
        self._committing = False
        if loading:
            by_owner = {name: _by_owner(cursor.fetchall()) for name, cursor in rows.items()}
            for request, stream in loading.items():
                plan.results[request] = _loaded(stream, by_owner)

    def _settle(self, plan: _Plan, group: Sequence[Write[Any]]) -> None:
        for cursor, (stream_id, version) in plan.moved.items():
            cursor.stream_id, cursor.version = stream_id, version
        for request in group:
            if request in plan.results:
                request.succeed(plan.results[request])
        settle(group)

    def _fail(self, requests: Sequence[Write[Any]], error: BaseException) -> None:
        for request in requests:
            request.fail(translate(self._address, error))
        settle(requests)

    # When nothing was heard of a commit.

    def _find_out(self, plan: _Plan, group: Sequence[Write[Any]], error: Exception) -> bool:
        """Looks what is stored before anything is said. Returns False when it was not committed.

        A group is stored whole or not at all, so one event speaks for all. The lost transaction may
        still be under way: its own lock is waited for, and it holds that until it has ended.
        """
        own, sealed = self._own, plan.events[0]
        try:
            full = any(request.full for request in group)
            stored = self._look(own, sealed, full=full)
            if stored:
                self._reload(plan)
        except Exception as second:
            reason = f"{type(error).__name__} at the commit, then {type(second).__name__}"
            for request in group:
                if request in plan.results:
                    request.fail(OutcomeUnknown(self._address.shown, reason))
            settle(group)
            self._roll_back(lost=True)
            return True
        if stored:
            self._settle(plan, group)
        return stored

    def _look(self, own: int, sealed: Sealed, *, full: bool) -> bool:
        deadline = time.monotonic() + _RECONNECT_S
        while True:
            try:
                connection = self._ready()
                with self._waiting():
                    connection.execute(_BEGIN)
                    timeouts = milliseconds(_RECONNECT_S), self._statement_timeout
                    connection.execute(self._q["set_timeouts"], timeouts)
                    connection.execute(self._q["take_lock"], (own,))
                    event = sealed.event
                    found = connection.execute(
                        self._q["has_event"],
                        (event.stream.id, event.event_id, event.position),
                    ).fetchone()
                    # A commit that was cut off while it waited for a replica is there for readers,
                    # and gone behind a failover. This one writes, so it waits for all before it.
                    connection.execute(self._q["confirm"], (full, event.stream.id))
                    connection.execute("COMMIT")
            except (psycopg.Error, ServerUnavailable) as error:
                lost = is_lost(error, self._connection)
                self._roll_back(lost=lost)
                if not lost or time.monotonic() > deadline:
                    raise
                time.sleep(_RECONNECT_PAUSE_S)
            else:
                return found is not None

    def _reload(self, plan: _Plan) -> None:
        """What requests are told beside where they are stored, read again."""
        loading = {r: s for r, s in plan.results.items() if isinstance(s, Stream)}
        for request, stream in loading.items():
            connection = self._connection
            assert connection is not None
            rows = {
                name: table.rows(connection, owners_of(stream))
                for name, table in self._tables.items()
            }
            plan.results[request] = Loaded(stream, rows, ())


def _app_of(key: StreamKey) -> StreamKey:
    return StreamKey(StreamKind.APP, key.app_name)


def _user_of(key: StreamKey) -> StreamKey:
    return StreamKey(StreamKind.USER, key.app_name, key.user_id)


def _new_apps(creates: Iterable[Write[Any]]) -> tuple[Any, ...]:
    names = sorted({request.key.app_name for request in creates if request.key})
    nonces = [os.urandom(16) for _ in names]
    links = [
        first_link(StreamKey(StreamKind.APP, name), nonce)
        for name, nonce in zip(names, nonces, strict=True)
    ]
    return texts(names), byte_strings(nonces), byte_strings(links)


def _new_users(creates: Iterable[Write[Any]]) -> tuple[Any, ...]:
    names = sorted(
        {(request.key.app_name, request.key.user_id) for request in creates if request.key}
    )
    nonces = [os.urandom(16) for _ in names]
    links = [
        first_link(StreamKey(StreamKind.USER, *name), nonce)
        for name, nonce in zip(names, nonces, strict=True)
    ]
    return (
        texts(app for app, _ in names),
        texts(user for _, user in names),
        byte_strings(nonces),
        byte_strings(links),
    )


def _new_sessions(
    creates: Iterable[Write[Any]], nonces: Mapping[StreamKey | None, bytes]
) -> tuple[Any, ...]:
    keys = [request.key for request in creates if request.key is not None]
    return (
        texts(key.app_name for key in keys),
        texts(key.user_id for key in keys),
        texts(key.session_id for key in keys),
        byte_strings(nonces[key] for key in keys),
        byte_strings(first_link(key, nonces[key]) for key in keys),
    )


def _key_columns(keys: Iterable[StreamKey]) -> tuple[Any, ...]:
    listed = list(keys)
    return (
        texts(key.app_name for key in listed),
        texts(key.kind for key in listed),
        texts(key.user_id for key in listed),
        texts(key.session_id for key in listed),
    )


def _event_ids(writes: Iterable[Write[Any]]) -> tuple[Any, ...]:
    wanted = [
        (r.key, r.event.event_id) for r in writes if r.kind is not Kind.CREATE and r.key and r.event
    ]
    return (
        texts(key.app_name for key, _ in wanted),
        texts(key.user_id for key, _ in wanted),
        texts(key.session_id for key, _ in wanted),
        texts(event_id for _, event_id in wanted),
    )


def _heads(streams: Sequence[Stream], ended: set[int]) -> tuple[Any, ...]:
    return (
        integers(stream.id for stream in streams),
        integers(stream.version for stream in streams),
        integers(stream.conversation_version for stream in streams),
        byte_strings(stream.chain for stream in streams),
        bools(stream.id not in ended for stream in streams),
    )


def _by_owner(rows: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(int(row[0]), []).append(row)
    return found


def _loaded(stream: Stream, by_owner: Mapping[str, Mapping[int, list[Row]]]) -> Loaded:
    owners = sorted(set(owners_of(stream)))
    rows = {
        name: [row for owner in owners for row in owned.get(owner, ())]
        for name, owned in by_owner.items()
    }
    return Loaded(stream, rows, ())

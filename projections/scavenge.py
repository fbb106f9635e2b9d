"""Scavenge: remove the events of deleted sessions without changing any projection row.

Law: scavenge, then rebuild, changes no row. A deleted session's events may be the last writers of
rows that outlive it, the `app:` and `user:` keys first of all. What they did is carried over, in
the same transaction: a key as a `state_set` event on its scope's own stream, with the same raw
value; rows of any other projection as a `carried_over` event on the stream that owns them, with the
values that they have.

Asynchronous projections are brought to the head in that transaction, before and after: none may
miss an event that is removed, and none meets an event that carries over what it has folded already.

A user's stream ends, like a session's, with a tombstone that takes the user's rows away, in the
tables and in any fold: then nothing is carried over to it. It is removed behind its sessions, so
that the tombstone stands as long as any event that wrote such a row.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Final, NamedTuple

import msgspec

from eventstore import (
    CorruptEvent,
    CorruptRow,
    Delete,
    DeleteOwner,
    EventStore,
    EventType,
    LoggedEvent,
    MaintenanceTransaction,
    NewEvent,
    Projection,
    ProjectionMissing,
    Put,
    RecordedEvent,
    Row,
    Snapshot,
    Stream,
    StreamKind,
    changes_of,
)
from eventstore.carrying import note_rows, owned_as_they_are, stream_for
from eventstore.chain import digest
from eventstore.encoding import STRICT_JSON, decode_members, join_members
from eventstore.records import ROW_CHANGED
from projections.asynchronous import catch_up, run
from projections.rebuild import Progress
from projections.sessions import SessionsProjection
from projections.state import StateProjection

__all__ = [
    "Scavenged",
    "batch",
    "maintenance_event",
    "remove",
    "require_all",
    "scavenge",
]

_log = logging.getLogger(__name__)

_STATE: Final = StateProjection()
_CARRIED_BY_OTHER_MEANS: Final = {_STATE.name, SessionsProjection.name}
SESSIONS_PER_TRANSACTION: Final = 20
_EVENTS_PER_TRANSACTION: Final = 2_000
"""So that no writer waits long behind one step. A session is removed as a whole, though."""
_ALL: Final = sys.maxsize


class Scavenged(NamedTuple):
    """What was removed, and how many keys of users and apps were carried over."""

    sessions: int = 0
    events: int = 0
    keys_carried_over: int = 0

    def plus(self, other: Scavenged) -> Scavenged:
        """The sums of both."""
        return Scavenged(*(a + b for a, b in zip(self, other, strict=True)))


def scavenge(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    progress: Progress = lambda *_: None,
) -> Scavenged:
    """Removes the events of every deleted session, some sessions at a time, and logs each step.

    Interrupted, it has done some of the sessions; the next run does the rest. Blocks.

    Raises:
        MaintenanceRunning: a rebuild, a verification or another vacuum is under way.
        ProjectionMissing: an asynchronous projection is stopped, or this process does not have its
            code: it could never fold what would be removed.
        CorruptRow: a row of the state would cost a key of a user or app its value.
        StorageFailed, StoreBusy: the step at hand was not done.
    """
    require_all(store, asynchronous)
    run(store, asynchronous)
    total = Scavenged()
    with store.maintaining("vacuum"):
        events = store.snapshot(_events_of_deleted)
        step = partial(_step, inline, asynchronous)
        while (done := store.transact(step)) is not None:
            total = total.plus(done)
            progress(total.events, total.events, events)
    return total


def _events_of_deleted(snapshot: Snapshot) -> int:
    return sum(stream.version for stream in snapshot.deleted_streams(_ALL))


def require_all(store: EventStore, asynchronous: Sequence[Projection]) -> None:
    """Asserts that no projection follows the log whose code is not here.

    Raises:
        ProjectionMissing: one does, and what is removed now it could never fold.
    """
    known = {projection.name for projection in asynchronous}
    for name, row in store.snapshot(lambda s: s.registered()).items():
        if row.checkpoint is not None and name not in known:
            raise ProjectionMissing(
                name,
                "it follows this log and this process does not have it",
                f"Install the package that provides it, or: adk-eventstore projections drop {name}",
            )


def _step(
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    transaction: MaintenanceTransaction,
) -> Scavenged | None:
    streams = batch(transaction.deleted_streams(SESSIONS_PER_TRANSACTION))
    if not streams:
        return None
    return remove(transaction, streams, inline, asynchronous, EventType.VACUUMED)


def batch(streams: Sequence[Stream]) -> Sequence[Stream]:
    """As many of some streams, from the first on, as one transaction should remove."""
    events = 0
    for count, stream in enumerate(streams):
        events += stream.version
        if count and events > _EVENTS_PER_TRANSACTION:
            return streams[:count]
    return streams


def remove(
    transaction: MaintenanceTransaction,
    streams: Sequence[Stream],
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    why: EventType,
    **facts: object,
) -> Scavenged:
    """Removes the events of ended streams, and notes on the system stream which and why.

    A user's stream must come behind the user's sessions. `facts` are noted too.
    """
    others = [p for p in (*inline, *asynchronous) if p.name not in _CARRIED_BY_OTHER_MEANS]
    events = carried = sessions = 0
    with transaction.maintenance(why.value):
        for stream in streams:
            try:
                log: Sequence[RecordedEvent] = transaction.read(stream)
            except CorruptEvent as error:
                if others:  # what it did to their rows only the event itself could say
                    raise
                _log.warning("removing what is damaged: %s", error)
                log, last = (), _last_by_rows(transaction, stream)
            else:
                last = _written_last(transaction, stream, log)
            if log and why is not EventType.ERASED and log[-1].type != EventType.SESSION_DELETED:
                # By its row alone it was deleted: no event says so.
                raise CorruptEvent(str(stream.key), stream.version, 0, ROW_CHANGED)
            for owner, keys in last.items():
                carried += _carry_over(transaction, owner, keys)
            # The rows must stand at the head, where they are noted.
            for projection in asynchronous:
                catch_up(projection, transaction)
            for projection in others:
                _carry_rows_over(transaction, projection, stream, log)
            events += transaction.scavenge(stream)
            sessions += stream.key.kind is StreamKind.SESSION
        for projection in others:
            _carry_ends_over(transaction, projection, streams)
        done = Scavenged(sessions, events, carried)
        note = {"streams": [stream.id for stream in streams], **done._asdict(), **facts}
        transaction.append(transaction.ensure_system_stream(), maintenance_event(why, note))
    for projection in asynchronous:
        catch_up(projection, transaction)
    return done


def maintenance_event(type_: EventType, note: Mapping[str, object]) -> NewEvent:
    """What maintenance notes on the system stream: ids of streams and counts, no names."""
    return _event(type_, data=msgspec.json.encode(note))


def _carry_rows_over(
    transaction: MaintenanceTransaction,
    projection: Projection,
    stream: Stream,
    log: Iterable[RecordedEvent],
) -> None:
    """Notes how those rows of other streams are now that a stream's events have changed.

    Whole, and at the head of the log: so it does not matter what other events made of them, in
    which order, and which of those are removed as well.
    """
    touched: dict[int, dict[Row, None]] = {}
    emptied: set[int] = set()
    for event in log:
        for change in changes_of(projection, event):
            if isinstance(change, DeleteOwner):
                emptied.add(change.owner)
            else:
                touched.setdefault(int(change.key[0]), {})[change.key] = None
    for owner in (touched.keys() | emptied) - {stream.id}:
        if _is_ended_user(transaction, owner) and not transaction.owned_rows(projection, [owner]):
            continue
        if owner in emptied:
            changes = owned_as_they_are(transaction, projection, owner)
        else:
            changes = [_as_it_is(transaction, projection, key) for key in touched[owner]]
        note_rows(transaction, projection, stream_for(transaction, owner), changes)


def _carry_ends_over(
    transaction: MaintenanceTransaction, projection: Projection, streams: Iterable[Stream]
) -> None:
    """Notes that rows of removed streams have ended: the tombstones that said so are removed too.

    Events of others, which stay, may have written them.
    """
    changes = [
        change
        for stream in streams
        for change in owned_as_they_are(transaction, projection, stream.id)
    ]
    note_rows(transaction, projection, transaction.ensure_system_stream(), changes)


def _is_ended_user(transaction: MaintenanceTransaction, owner: int) -> bool:
    """Whether rows of this owner are gone, and a tombstone in the log says so."""
    facts = transaction.get_facts([owner]).get(owner)
    return facts is not None and not facts.live and facts.stream.key.kind is StreamKind.USER


def _as_it_is(
    transaction: MaintenanceTransaction, projection: Projection, key: Row
) -> Put | Delete:
    row = transaction.row(projection, key)
    return Delete(key) if row is None else Put(key, row[len(key) :])


def _written_last(
    transaction: MaintenanceTransaction, stream: Stream, log: Iterable[RecordedEvent]
) -> dict[int, dict[str, str]]:
    """The keys outside its own scope that a stream was the last to write, by owner, with values.

    The values are those of the log. Who wrote last the rows know, and are asked for proof.

    Raises:
        CorruptRow: one says what is not in the log, so that the value would be lost.
    """
    last: dict[tuple[int, str], tuple[int, str]] = {}
    owners = stream.owners
    for event in log:
        if event.delta is not None:
            for scope, members in decode_members(event.delta, event.encoding).items():
                if scope != "session":
                    for key, value in members.items():
                        last[owners[scope], key] = event.position, value
    values: dict[int, dict[str, str]] = {}
    later: dict[Row, int] = {}
    for (owner, key), (position, value) in last.items():
        row = transaction.row(_STATE, (owner, key))
        if row is not None and row[3] == position:
            values.setdefault(owner, {})[key] = value
        elif row is not None and isinstance(row[3], int) and row[3] > position:
            later[owner, key] = row[3]
        elif not _is_ended_user(transaction, owner):
            raise _not_as_in_the_log(key)
    writers = transaction.read_logged(sorted(set(later.values())))
    written = {logged.event.position: _written_by(logged) for logged in writers}
    for row_key, position in later.items():
        keys = written.get(position, frozenset())
        if keys is not None and row_key not in keys:
            raise _not_as_in_the_log(row_key[1])
    return values


def _written_by(logged: LoggedEvent) -> Set[Row] | None:
    """The keys that an event has written; None where it is damaged, and nobody can say."""
    if digest(logged.event.delta) != logged.delta_digest:
        return None
    return {change.key for change in _STATE.apply(logged.event) if isinstance(change, Put)}


def _not_as_in_the_log(key: object) -> CorruptRow:
    return CorruptRow("state", f"was written by another event than it says (key {key!r})")


def _last_by_rows(transaction: MaintenanceTransaction, stream: Stream) -> dict[int, dict[str, str]]:
    """As `_written_last`, of a stream with events that cannot be read: as the rows have it."""
    positions = set(transaction.positions_of([stream]))
    values: dict[int, dict[str, str]] = {}
    for owner, key, value, position in transaction.owned_rows(
        _STATE, [owner for owner in (stream.user_stream_id, stream.app_stream_id) if owner]
    ):
        if position in positions:
            values.setdefault(int(owner), {})[str(key)] = str(value)
    return values


def _carry_over(transaction: MaintenanceTransaction, owner: int, keys: dict[str, str]) -> int:
    """Gives keys of a scope a writer that stays."""
    scope = transaction.get_stream(owner)
    for delta, encoding in join_members(scope.key.kind.value, keys):
        event = _event(EventType.STATE_SET, delta=delta, encoding=encoding)
        scope = transaction.append(scope, event).stream
    return len(keys)


def _event(
    type_: EventType,
    *,
    delta: bytes | None = None,
    data: bytes | None = None,
    encoding: int = STRICT_JSON,
) -> NewEvent:
    return NewEvent(
        event_id=uuid.uuid4().hex,
        type=type_,
        timestamp=time.time(),
        delta=delta,
        data=data,
        encoding=encoding,
    )

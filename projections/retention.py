"""Keeping a database small, and forgetting people: delete, purge, erase, vacuum.

All of it goes in steps, each a transaction that leaves the tables true to the log, so that writers
wait for a moment only and an end at any point leaves nothing half done: the next run goes on. What
was removed is noted on the system stream, by ids of streams and counts; no note holds a name.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from eventstore import (
    CorruptRow,
    EventStore,
    EventType,
    InvalidInput,
    MaintenanceTransaction,
    NewEvent,
    Projection,
    Rewritten,
    Row,
    Snapshot,
    Stream,
    StreamFacts,
    StreamKey,
    StreamKind,
    check_identifier,
)
from eventstore.events import REMOVAL_TYPES, check_identifiers
from projections.asynchronous import require_running, run
from projections.listing import SESSIONS
from projections.rebuild import Progress, clear_away
from projections.scavenge import (
    SESSIONS_PER_TRANSACTION,
    Scavenged,
    batch,
    maintenance_event,
    remove,
    require_all,
    scavenge,
)
from projections.state import StateProjection

__all__ = [
    "AUTOMATIC_REWRITE_BYTES",
    "Erasable",
    "Erased",
    "Purgeable",
    "Purged",
    "Vacuumed",
    "delete_session",
    "erasable",
    "erase_user",
    "purge",
    "purgeable",
    "vacuum",
    "vacuumable",
]

AUTOMATIC_REWRITE_BYTES: Final = 256_000_000
"""Up to this size a file is written anew without asking: writers wait for some seconds."""
_AUTOMATIC_REWRITE_S: Final = 20.0
"""When that is given up: writers who wait for 30 s give up themselves."""
_TOMBSTONES_PER_TRANSACTION: Final = 200
_ROWS_AT_ONCE: Final = 1_000
_NOTES_AT_ONCE: Final = 100
_STATE: Final = StateProjection()
_BY_APP: Final = "sessions_by_app_and_update"


# One session.


def delete_session(store: EventStore, key: StreamKey) -> bool:
    """Deletes a live session and notes that it was; False when there is none. Blocks for a commit.

    Its events stay in the log, for no reader, until a vacuum.
    """

    def function(transaction: MaintenanceTransaction) -> bool:
        if (stream := transaction.find_stream(key)) is None:
            return False
        transaction.end(stream, _tombstone())
        note = {"streams": [stream.id]}
        transaction.append(
            transaction.ensure_system_stream(), maintenance_event(EventType.DELETED, note)
        )
        return True

    return store.transact(function)


def _tombstone() -> NewEvent:
    return NewEvent(
        event_id=uuid.uuid4().hex, type=EventType.SESSION_DELETED, timestamp=time.time()
    )


# Sessions that nobody has used for long.


class Purgeable(NamedTuple):
    """What a purge would remove: sessions, and events with the one that ends each."""

    sessions: int
    events: int


class Purged(NamedTuple):
    """What a purge has removed, and how many bytes were given back to the file system."""

    sessions: int
    events: int
    keys_carried_over: int
    bytes_freed: int


def purgeable(
    store: EventStore, older_than: float, app_name: str | None = None, *, now: float | None = None
) -> Purgeable:
    """What `purge` would remove, with the same arguments. Changes nothing. Blocks.

    Raises:
        InvalidInput: an age that can be none, or no such app can be.
    """
    cutoff = _cutoff(older_than, now)
    sessions = events = 0
    for app in _apps(store, app_name):
        after: Row | None = None
        while True:
            rows, found = store.snapshot(partial(_idle, app, cutoff, after, _ROWS_AT_ONCE))
            sessions += len(rows)
            events += sum(facts.stream.version + 1 for facts in found.values())
            if len(rows) < _ROWS_AT_ONCE:
                break
            after = (rows[-1][2], rows[-1][0])
    return Purgeable(sessions, events)


def purge(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    older_than: float,
    app_name: str | None = None,
    now: float | None = None,
    progress: Progress = lambda *_: None,
) -> Purged:
    """Removes the sessions that were last updated more than `older_than` seconds ago. Blocks.

    Deletes them and removes their events, some sessions at a time, then gives the space back. Keys
    of users and apps stay. A session that is written to meanwhile stays too. Ended at any point it
    has removed some sessions whole; the next run removes the others. `progress` is called with the
    events removed, the sessions done and the sessions there were. `now` is in seconds since the
    epoch, as the clock has it unless it is given.

    Raises:
        InvalidInput: (a ValueError) an age that can be none.
        MaintenanceRunning, ProjectionMissing, CorruptRow: as `scavenge`.
        StorageFailed, StoreBusy: the step at hand was not done.
    """
    cutoff = _cutoff(older_than, now)
    require_all(store, asynchronous)
    run(store, asynchronous)
    total = Scavenged()
    with store.maintaining("purge"):
        there = purgeable(store, older_than, app_name, now=cutoff + older_than).sessions
        for app in _apps(store, app_name):
            step = partial(_purge_step, app, cutoff, inline, asynchronous)
            while (done := store.transact(step)) is not None:
                total = total.plus(done)
                progress(total.events, min(total.sessions, there), max(there, total.sessions))
    return Purged(*total, bytes_freed=store.shrink())


def _cutoff(older_than: float, now: float | None) -> float:
    if not isinstance(older_than, int | float) or not 0 <= older_than <= sys.float_info.max:
        raise InvalidInput("older_than must be seconds, from 0 on and no more than a float holds.")
    return (time.time() if now is None else now) - older_than


def _apps(store: EventStore, app_name: str | None) -> Sequence[Stream]:
    if app_name is None:
        return store.snapshot(lambda s: s.apps())
    key = StreamKey(StreamKind.APP, check_identifier("app_name", app_name))
    stream = store.snapshot(lambda s: s.find_stream(key))
    return [] if stream is None else [stream]


def _idle(
    app: Stream, cutoff: float, after: Row | None, count: int, snapshot: Snapshot
) -> tuple[list[Row], Mapping[int, StreamFacts]]:
    """The sessions of an app that were updated longest ago, if before the cutoff: their rows, and
    what the log has of their streams.
    """
    page = snapshot.indexed_page(
        SESSIONS, _BY_APP, (app.id,), after=after, descending=False, count=count
    )
    rows = [row for row in page if float(row[2]) < cutoff]
    return rows, snapshot.get_facts([int(row[0]) for row in rows])


def _as_the_log_has_it(row: Row, facts: StreamFacts | None, snapshot: Snapshot) -> Stream:
    """The session of a row, whose time is that of the last event that was said, or of a later one.

    Raises:
        CorruptRow: it is not; and by the row the session would be removed for good.
    """
    if facts is not None and facts.live and facts.stream.key.kind is StreamKind.SESSION:
        stream, said = facts.stream, facts.stream.conversation_version
        if snapshot.event_identity(stream, said)[1] == row[2] or any(
            event.timestamp == row[2]
            for event in snapshot.read_page(stream, said, stream.version - said)
        ):
            return stream
    raise CorruptRow("sessions", f"says of stream {row[0]} what is not in the log")


def _purge_step(
    app: Stream,
    cutoff: float,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    transaction: MaintenanceTransaction,
) -> Scavenged | None:
    rows, found = _idle(app, cutoff, None, SESSIONS_PER_TRANSACTION, transaction)
    if not rows:
        return None
    idle = [_as_the_log_has_it(row, found.get(int(row[0])), transaction) for row in rows]
    ended = [transaction.end(stream, _tombstone()) for stream in batch(idle)]
    return remove(transaction, ended, inline, asynchronous, EventType.PURGED, updated_before=cutoff)


# Everything of a user.


class Erasable(NamedTuple):
    """What an erasure would remove: in how many apps, sessions, events, and keys of the user.

    `events` has those that end the sessions and the user too. `rewrite` says whether an earlier one
    was ended before old copies were gone.
    """

    apps: int
    sessions: int
    deleted_sessions: int
    events: int
    keys: int
    rewrite: bool


class Erased(NamedTuple):
    """What was erased, and whether it is gone from the file as well.

    `keys` are those of the user; `keys_carried_over` keys of apps that sessions of the user wrote
    last, which have their value still. `rewritten` says whether the file was written anew, and
    `gone` whether no byte of it is left in the file and beside it. On a server these are the
    tables: its WAL, replicas and backups are not looked at.
    """

    sessions: int
    events: int
    keys: int
    keys_carried_over: int
    bytes_freed: int
    rewritten: bool
    gone: bool


def erasable(store: EventStore, user_id: str, app_name: str | None = None) -> Erasable:
    """What `erase_user` would remove. Changes nothing. Blocks.

    Raises:
        InvalidInput: no user has such an id, or no app such a name.
    """
    check_identifier("user_id", user_id)
    check_identifiers(app_name=app_name)

    def function(snapshot: Snapshot) -> Erasable:
        found = snapshot.streams_of_user(user_id, app_name)
        users = [f.stream for f in found if f.stream.key.kind is StreamKind.USER]
        sessions = [f for f in found if f.stream.key.kind is StreamKind.SESSION]
        live = sum(f.live for f in sessions)
        return Erasable(
            len({f.stream.key.app_name for f in found}),
            live,
            len(sessions) - live,
            sum(f.stream.version + f.live for f in found),
            len(snapshot.owned_rows(_STATE, [stream.id for stream in users])),
            _rewrite_is_due(snapshot),
        )

    return store.snapshot(function)


def erase_user(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    user_id: str,
    app_name: str | None = None,
    rewrite: bool | None = None,
    progress: Progress = lambda *_: None,
) -> Erased:
    """Removes every session, event and key of a user, in one app or in all. Blocks.

    First all sessions are deleted and the user's keys with them, then their events are removed,
    some sessions at a time; what is left is their number. At last the file, or the tables on a
    server, is written anew, so that no copy is left in it: writers wait for that. `rewrite` says
    whether that is done; when it is None, where it is not larger than AUTOMATIC_REWRITE_BYTES, and
    only if it is done before anybody's patience ends. Ended at any point, the next run goes on.

    What is in use otherwise stays: keys of apps, whoever wrote them, and what others said.

    Raises:
        InvalidInput: (a ValueError) no user has such an id.
        MaintenanceRunning, ProjectionMissing: as `scavenge`; nothing was erased.
        CorruptRow: as `scavenge`; the user's sessions are ended.
        StorageFailed, StoreBusy: the step at hand was not done.
    """
    check_identifier("user_id", user_id)
    check_identifiers(app_name=app_name)
    require_all(store, asynchronous)
    require_running(run(store, asynchronous))
    with store.maintaining("erase a user"):
        keys = _end_all(store, user_id, app_name)
        ended = store.snapshot(partial(_ended, user_id, app_name))
        events = sum(stream.version for stream in ended)
        total = Scavenged()
        step = partial(_erase_step, user_id, app_name, inline, asynchronous)
        while (done := store.transact(step)) is not None:
            total = total.plus(done)
            progress(total.events, min(total.events, events), events)
        if not total.events and not store.snapshot(_rewrite_is_due):
            return Erased(0, 0, 0, 0, 0, rewritten=False, gone=True)
        at_most_s = None
        if rewrite is None:
            rewrite = store.storage(tables=False).total <= AUTOMATIC_REWRITE_BYTES
            at_most_s = _AUTOMATIC_REWRITE_S
        freed = 0 if rewrite else store.shrink()
        copies, more = _forget_copies(store, EventType.ERASED, whole=rewrite, at_most_s=at_most_s)
    return Erased(
        total.sessions,
        total.events,
        keys,
        total.keys_carried_over,
        freed + more,
        copies.done,
        copies.gone,
    )


def _end_all(store: EventStore, user_id: str, app_name: str | None) -> int:
    """Ends every live session of a user, and then the user; returns how many keys the user had."""
    keys = 0

    def function(transaction: MaintenanceTransaction) -> bool:
        nonlocal keys
        # Who may not remove what follows is to hear of it before anything is ended.
        with transaction.maintenance(EventType.ERASED.value):
            pass
        live = [f.stream for f in transaction.streams_of_user(user_id, app_name) if f.live]
        sessions = [stream for stream in live if stream.key.kind is StreamKind.SESSION]
        for stream in sessions[:_TOMBSTONES_PER_TRANSACTION]:
            transaction.end(stream, _tombstone())
        if len(sessions) > _TOMBSTONES_PER_TRANSACTION:
            return True
        # No session is left that could write another key of this user.
        users = [stream for stream in live if stream.key.kind is StreamKind.USER]
        keys = len(transaction.owned_rows(_STATE, [stream.id for stream in users]))
        for stream in users:
            transaction.end(stream, _tombstone())
        return False

    while store.transact(function):
        pass
    return keys


def _ended(user_id: str, app_name: str | None, snapshot: Snapshot) -> list[Stream]:
    """What a user has that was ended and not removed yet, the user's own streams last."""
    found = [f.stream for f in snapshot.streams_of_user(user_id, app_name) if not f.live]
    return sorted(found, key=lambda stream: (stream.key.kind is StreamKind.USER, stream.id))


def _erase_step(
    user_id: str,
    app_name: str | None,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
    transaction: MaintenanceTransaction,
) -> Scavenged | None:
    streams = _ended(user_id, app_name, transaction)
    if not streams:
        return None
    chosen = batch(streams[:SESSIONS_PER_TRANSACTION])
    return remove(transaction, chosen, inline, asynchronous, EventType.ERASED)


def _forget_copies(
    store: EventStore, why: EventType, *, whole: bool, at_most_s: float | None = None
) -> tuple[Rewritten, int]:
    """Writes the file anew, or only empties what is beside it; notes that it was.

    Returns what was done, and how many bytes were given back.
    """
    # What a rebuild that was ended has left holds rows of before.
    for table in store.transact(lambda t: t.leftovers()):
        clear_away(store, table)
    before = store.storage(tables=False).total
    copies = store.rewrite(whole=whole, at_most_s=at_most_s)
    if copies.gone:
        note = maintenance_event(why, {"streams": [], "rewritten": True})
        store.transact(lambda t: t.append(t.ensure_system_stream(), note))
    return copies, max(0, before - store.storage(tables=False).total)


def _rewrite_is_due(snapshot: Snapshot) -> bool:
    """Whether something was erased since the file was last written anew."""
    for note in _notes(snapshot):
        if "rewritten" in note:
            return False
        if note.get("why") == EventType.ERASED:
            return True
    return False


def _notes(snapshot: Snapshot) -> Iterator[dict[str, object]]:
    """What maintenance has noted of removals, the newest first."""
    stream = snapshot.find_stream(StreamKey(StreamKind.SYSTEM))
    before = 0 if stream is None else stream.version
    while stream is not None and before > 0:
        after = max(0, before - _NOTES_AT_ONCE)
        for event in reversed(snapshot.read_page(stream, after, before - after)):
            if event.type in REMOVAL_TYPES:
                yield {**event.payload(), "why": event.type}
        before = after


# The file.


class Vacuumed(NamedTuple):
    """What was removed, and how many bytes were given back to the file system.

    `rewritten` says whether the file was written anew, and `gone` whether no copy of what was
    removed is left in it or beside it; on a server the tables, as `Erased` says.
    """

    sessions: int
    events: int
    keys_carried_over: int
    bytes_freed: int
    rewritten: bool
    gone: bool


def vacuumable(store: EventStore) -> tuple[int, int]:
    """How many deleted sessions, and events of them, `vacuum` would remove. Blocks for one read."""

    def function(snapshot: Snapshot) -> tuple[int, int]:
        streams = snapshot.deleted_streams(sys.maxsize)
        return len(streams), sum(stream.version for stream in streams)

    return store.snapshot(function)


def vacuum(
    store: EventStore,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    rewrite: bool = False,
    progress: Progress = lambda *_: None,
) -> Vacuumed:
    """Removes the events of deleted sessions and gives the space back, while others write. Blocks.

    With `rewrite` the file, or the tables on a server, is written anew at last: it becomes as small
    as can be, and no copy of what was removed is left in it. Writers wait for that.

    Raises: as `scavenge`.
    """
    done = scavenge(store, inline, asynchronous, progress=progress)
    if not rewrite:
        return Vacuumed(*done, store.shrink(), rewritten=False, gone=False)
    with store.maintaining("vacuum"):
        copies, freed = _forget_copies(store, EventType.VACUUMED, whole=True)
    return Vacuumed(*done, freed, *copies)

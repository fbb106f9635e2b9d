"""Recover: everything that can be saved from a damaged file, in a new one that verifies.

The damaged file is only read, page by page (see eventstore.sqlite.salvage). What proves itself by
its digests and its place in the chain is written, in position order, into a new store: with its
position, ids, times, author, payload and codec as they were, and with dense versions and a chain of
its own. A stream of which nothing is lost comes out with the very links it had, so that an anchor
of the old file still proves it. Tables of projections are made anew from the log; those of
asynchronous ones when they run next.

The `streams` row says whose a stream is, and so does its first event: either is enough. A session
that was deleted stays deleted, whichever of its row and its tombstone is left.
"""

from __future__ import annotations

import os
import uuid
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import Final, NamedTuple

from eventstore import (
    EventType,
    InvalidIdentifier,
    Projection,
    Stream,
    StreamKey,
    StreamKind,
    UnknownEvent,
    check_identifier,
    put_in_place,
)
from eventstore.chain import digest, first_link
from eventstore.encoding import decode, encode
from eventstore.events import CONVERSATION_TYPES
from eventstore.location import require_file
from eventstore.sqlite.salvage import (
    Damaged,
    FoundEvent,
    FoundStream,
    Salvage,
    as_recorded,
    import_event,
    import_stream,
    keep_numbers,
)
from eventstore.sqlite.store import SqliteEventStore
from eventstore.sqlite.transaction import WriteTransaction
from eventstore.upcasting import CURRENT, upcast
from projections.backup import CopyDamaged
from projections.files import new_file_beside, usable_target
from projections.rebuild import Progress, rebuild
from projections.verify import verify

__all__ = ["LeftOut", "Recovered", "recover"]

_EVENTS_PER_TRANSACTION: Final = 500
_UNREADABLE: Final = "it is nowhere in the file, or its page cannot be read"
_NONCE_BYTES: Final = 16


class LeftOut(NamedTuple):
    """Something that could not be saved: an event, a run of events of one stream, or a stream.

    `stream` names its session, user or app, or its number where nothing says whose it was.
    """

    stream: str
    version: int | None
    last_version: int | None
    position: int | None
    size_bytes: int | None
    reason: str


@dataclass
class Recovered:
    """What was saved, to where, and what was not.

    `notes` say what was made anew or assumed, in words.
    """

    source: str
    path: str
    events: int = 0
    sessions: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def recover(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    inline: Sequence[Projection],
    *,
    progress: Progress = lambda *_: None,
) -> Recovered:
    """Writes everything that can be saved from a damaged file into a new one. Blocks.

    Stop the services that use the source first. It is never written to. The target has its name
    only once it is whole and verified.

    Raises:
        PathUnusable: the target exists, or the source does not.
        DatabaseInUse: the source is being written, or this process has it open.
        NotADatabase: nothing of a store is left in the source.
        StorageFailed: the disk is full or failing.
    """
    path = usable_target(target, overwrite=False)
    old = require_file(source, "recover")
    with new_file_beside(path) as copy:
        salvage = Salvage(old, str(copy.with_name("spool")), progress)
        try:
            store = SqliteEventStore(str(copy), inline)
            try:
                recovery = _Recovery(salvage, Recovered(old, str(path)))
                recovery.run(store, progress)
                rebuild(store, inline)
                verified = verify(store, inline)
            finally:
                store.close()
        finally:
            salvage.close()
        if not verified.clean:
            raise CopyDamaged(str(path), verified)
        put_in_place(str(copy), str(path))
    return recovery.report


@dataclass
class _State:
    """One stream while it is written."""

    found: FoundStream
    row: bool
    """Whether its row was there, and says where the stream ended."""
    stream: Stream | None = None
    links: set[bytes] = field(default_factory=set)
    """What the next event may be linked to; empty when that is not known."""
    seen: int = 0
    """The last version that was met in the old file."""
    lost: list[tuple[int, int]] = field(default_factory=list)
    deleted: bool = False
    timestamp: float = 0.0


class _Recovery:
    """One run."""

    def __init__(self, salvage: Salvage, report: Recovered) -> None:
        self.report = report
        self._salvage = salvage
        self._states: dict[int, _State] = {}
        self._unknown: dict[int, tuple[int, int]] = {}
        """Streams nobody knows the owner of: how many events, and bytes."""
        self._known_damage: defaultdict[int, set[int]] = defaultdict(set)
        """Versions that are named already, by stream."""
        self._used: set[int] = set()
        """Positions of events that were made, so that none is given out twice."""
        self._given_up: set[int] = set()
        """Positions of whole events that were left out."""
        self._live: dict[StreamKey, _State] = {}
        self._unproved = 0

    def run(self, store: SqliteEventStore, progress: Progress) -> None:
        """Writes what was found."""
        self._identify()
        self._name_damaged()
        head = self._salvage.head()
        events = self._salvage.events()
        while page := list(islice(events, _EVENTS_PER_TRANSACTION)):
            store.transact(partial(self._write, page))
            progress(self.report.events, page[-1].position, head)
        store.transact(self._finish)
        self.report.left_out.sort(key=lambda each: (each.stream, each.version or 0))
        if self._unproved:
            self.report.notes.append(
                f"{self._unproved:,} events come behind one that is lost, or their codec is: their "
                "content is proved, their author and time are not"
            )

    # Whose the streams are.

    def _identify(self) -> None:
        rows = self._salvage.streams
        with_events = set(self._salvage.stream_ids())
        begun = {
            identity: first
            for stream_id in with_events - rows.keys()
            for first in self._salvage.events_at(stream_id, 1)
            if (identity := _identity(first)) is not None
        }
        for stream_id in sorted(rows.keys() | with_events):
            row = rows.get(stream_id)
            if row is not None and row.version == 0 and row.live and not _proves_itself(row):
                row = None
            first = None if row is None else begun.get((row.key, row.nonce))
            # The row of a stream that has none, under a damaged number.
            if (
                row is not None
                and first is not None
                and (row.chain == first.chain or self._is_followed(first))
            ):
                row = None
            identity = self._identity_of(stream_id, row)
            if identity is not None:
                key, nonce = identity
                if row is None:
                    row = FoundStream(stream_id, key, 0, 0, 0, 0, live=True, nonce=nonce, chain=b"")
                    self.report.notes.append(
                        f"the row of stream {stream_id} was lost: whether it was deleted is what "
                        "its events say"
                    )
                else:
                    row = row._replace(key=key, nonce=nonce)
            if row is not None and _storable(row.key):
                self._states[stream_id] = _State(row, row=bool(row.chain))
            elif stream_id in with_events:
                self._unknown[stream_id] = (0, 0)
        self._find_owners(with_events)

    def _identity_of(
        self, stream_id: int, row: FoundStream | None
    ) -> tuple[StreamKey, bytes] | None:
        """Whose a stream is by its first event, if its row or its second event vouches for that.

        Without a row, one that nothing vouches for is believed too.
        """
        unproved = None
        for first in self._salvage.events_at(stream_id, 1):
            identity = _identity(first)
            if identity is None:
                continue
            if row is not None and (identity[1] == row.nonce or row.chain == first.chain):
                return identity
            if self._is_followed(first):
                return identity
            unproved = identity
        return unproved if row is None else None

    def _find_owners(self, with_events: set[int]) -> None:
        """Makes sure that the streams of users and apps are there, with the ids they had."""
        owned = [
            (stream_id, state)
            for stream_id, state in sorted(self._states.items())
            if state.found.key.kind is StreamKind.USER
            or (state.found.key.kind is StreamKind.SESSION and stream_id in with_events)
        ]
        ids = {
            state.found.key: stream_id
            for stream_id, state in sorted(self._states.items(), reverse=True)
            if state.found.key.kind is not StreamKind.SESSION
        }
        for stream_id, state in owned:
            key = StreamKey(StreamKind.APP, state.found.key.app_name)
            if key not in ids:
                ids[key] = self._make_owner(key, state.found.app_stream_id, 0, stream_id)
            if not ids[key]:
                self._disown(ids, key, stream_id)
                continue
            state.found = state.found._replace(app_stream_id=ids[key])
        for stream_id, state in owned:
            found = state.found
            if found.key.kind is StreamKind.SESSION and stream_id in self._states:
                key = StreamKey(StreamKind.USER, found.key.app_name, found.key.user_id)
                # A user whose erasure was ended in the middle, and who came back, has two.
                noted = self._states.get(found.user_stream_id)
                if noted is not None and noted.found.key == key:
                    continue
                if key not in ids:
                    app = found.app_stream_id
                    ids[key] = self._make_owner(key, found.user_stream_id, app, stream_id)
                if not ids[key]:
                    self._disown(ids, key, stream_id)
                    continue
                state.found = found._replace(user_stream_id=ids[key])
        self._states = dict(sorted(self._states.items()))

    def _make_owner(self, key: StreamKey, noted: int, app: int, below: int) -> int:
        """A stream without events for one that lost its row: of its old id, if that is known.

        Returns 0 when there was none: then what is said to belong to it does not.
        """
        taken = self._states.keys() | self._unknown.keys()
        # It was made before what it owns, and behind the app that owns it.
        free = [n for n in range(app + 1, below) if n not in taken]
        if noted in free:
            stream_id = noted
        elif free:
            stream_id = free[-1] if app else free[0]
        else:
            return 0
        nonce = os.urandom(_NONCE_BYTES)
        found = FoundStream(stream_id, key, 0, app, 0, 0, live=True, nonce=nonce, chain=b"")
        self._states[stream_id] = _State(found, row=False)
        return stream_id

    def _disown(self, ids: dict[StreamKey, int], key: StreamKey, stream_id: int) -> None:
        del ids[key], self._states[stream_id]
        self._unknown[stream_id] = (0, 0)

    def _name(self, stream_id: int | None) -> str:
        if stream_id is None:
            return "an unknown stream"
        state = self._states.get(stream_id)
        return f"stream {stream_id}" if state is None else str(state.found.key)

    def _name_damaged(self) -> None:
        for each in self._salvage.damaged.values():
            self._leave_out(each)
            if each.stream_id is not None and each.version is not None:
                self._known_damage[each.stream_id].add(each.version)

    def _leave_out(self, each: Damaged) -> None:
        self.report.left_out.append(
            LeftOut(
                self._name(each.stream_id),
                each.version,
                each.version,
                each.position,
                each.size_bytes,
                each.reason,
            )
        )

    # Writing.

    def _write(self, events: Sequence[FoundEvent], transaction: WriteTransaction) -> None:
        for event in events:
            state = self._states.get(event.stream_id)
            if state is None:
                count, size = self._unknown.get(event.stream_id, (0, 0))
                self._unknown[event.stream_id] = count + 1, size + event.size_bytes
                self._given_up.add(event.position)
                continue
            reason, codec = self._judge(state, event)
            if not reason:
                reason = self._append(state, event, codec, transaction)
            if reason:
                self._leave_out(
                    Damaged(
                        event.stream_id, event.version, event.position, event.size_bytes, reason
                    )
                )
                self._known_damage[event.stream_id].add(event.version)
                self._given_up.add(event.position)

    def _judge(self, state: _State, event: FoundEvent) -> tuple[str, str]:
        """Why an event cannot be saved, '' when it can, and the fingerprint of its codec."""
        links: set[bytes] = set()
        if event.version == 1:
            links = {first_link(state.found.key, state.found.nonce)}
        elif event.version == state.seen + 1:
            links = state.links
        codecs = self._salvage.codecs(event.codec) or [""]
        proved = [
            codec for codec in codecs for link in links if event.link(link, codec) == event.chain
        ]
        if event.version <= state.seen or (not proved and self._is_misplaced(state, event)):
            return "it is not where its version belongs", ""
        if event.version > state.seen + 1:
            state.lost.append((state.seen + 1, event.version - 1))
        state.links = links
        state.seen = event.version
        if state.deleted:
            return "it comes behind the end of its stream", ""
        if not _readable(event):
            state.links = {event.chain}
            return "it is of a kind that this version cannot read", ""
        if proved:
            state.links = {event.chain}
            return "", proved[0]
        if not state.links or not self._salvage.knows_codec(event.codec):
            self._unproved += 1
            known = self._salvage.knows_codec(event.codec)
            state.links = {event.chain}
            return "", codecs[0] if known else ""  # without one, its payload is validated
        # Perhaps only the link is damaged: then the next event, or the row, has the right one.
        for codec in codecs:
            for link in state.links:
                right = event.link(link, codec)
                if (state.row and state.found.chain == right) or self._is_followed(event, right):
                    state.links = {right}
                    return "", codec
        state.links = {event.chain}
        return "a field of it is not what its place in the chain proves", ""

    def _is_misplaced(self, state: _State, event: FoundEvent) -> bool:
        """Whether something refutes the stream or version of an event whose link does not fit.

        The row of its stream, and the event behind it, can prove them as well.
        """
        found = state.found
        if state.row and (found.version, found.chain) == (event.version, event.chain):
            return False
        if self._is_followed(event):
            return False
        if event.type in CONVERSATION_TYPES and found.key.kind is not StreamKind.SESSION:
            return True
        if state.row and event.version > found.version:
            return True
        return self._salvage.comes_behind(event, state.seen + 1)

    def _is_followed(self, event: FoundEvent, link: bytes | None = None) -> bool:
        """Whether an event of the next version is linked to it, or to another link for it."""
        return any(
            after.link(link or event.chain, codec) == after.chain
            for after in self._salvage.events_at(event.stream_id, event.version + 1)
            for codec in self._salvage.codecs(after.codec) or [""]
        )

    def _append(
        self,
        state: _State,
        event: FoundEvent,
        codec: str,
        transaction: WriteTransaction,
    ) -> str:
        """Writes an event; returns why not when it cannot be, or ''."""
        if state.stream is None:
            begun = self._begin(state, event, transaction)
            if begun is None:
                return "its beginning is lost, and no position before it is free for another"
            event = begun
        assert state.stream is not None
        state.stream = import_event(transaction, state.stream, event, codec)
        state.timestamp = event.timestamp
        self.report.events += 1
        if event.type == EventType.SESSION_DELETED:
            state.deleted = True
            self._end(state, transaction)
        return ""

    def _begin(
        self, state: _State, event: FoundEvent, transaction: WriteTransaction
    ) -> FoundEvent | None:
        """Makes a stream and those it belongs to; returns its first event as it is to be stored.

        Returns None when the beginning would have to be made, and there is no place for it.
        """
        found = state.found
        position = 0
        if found.key.kind is StreamKind.SESSION and event.version > 1:
            position = self._unused(event.position)
            if not position:
                return None
        for owner in (found.app_stream_id, found.user_stream_id):
            if owner and (above := self._states[owner]).stream is None:
                self._make(above, transaction)
        if (before := self._live.get(found.key)) is not None:
            self._end(before, transaction)
        self._make(state, transaction)
        if found.key.kind is not StreamKind.SESSION:
            return event if event.version == 1 else _with_identity(event, found)
        self.report.sessions += 1
        if event.version == 1:
            return event
        self.report.notes.append(
            f"the beginning of {found.key} is lost, and the state it was created with: it was made "
            "anew"
        )
        beginning = event._replace(
            position=position,
            event_id=uuid.uuid4().hex,
            type=EventType.SESSION_CREATED,
            schema_version=CURRENT[EventType.SESSION_CREATED],
            author="",
            invocation_id="",
            encoding=1,
            delta=None,
            delta_digest=None,
            data=None,
            data_digest=None,
        )
        assert state.stream is not None
        state.stream = import_event(
            transaction,
            state.stream,
            _with_identity(beginning, found),
            "",
        )
        return event

    def _unused(self, before: int) -> int:
        """A position where the event that was lost may have been; 0 when there is none."""
        for position in range(before - 1, 0, -1):
            if position not in self._used and (
                position in self._given_up or self._salvage.is_free(position)
            ):
                self._used.add(position)
                return position
        return 0

    def _make(self, state: _State, transaction: WriteTransaction) -> None:
        state.stream = import_stream(transaction, state.found)
        self._live[state.found.key] = state

    def _end(self, state: _State, transaction: WriteTransaction) -> None:
        assert state.stream is not None
        transaction.close_stream(state.stream)
        del self._live[state.found.key]

    def _finish(self, transaction: WriteTransaction) -> None:
        """What has no events any more, tombstones that were lost, and what is missing."""
        position = max(self._salvage.head(), *self._salvage.damaged, 0)
        for state in self._states.values():
            found = state.found
            if state.row and state.seen < found.version and (found.nonce or found.live):
                state.lost.append((state.seen + 1, found.version))
            if state.stream is None:
                self._finish_empty(state, transaction)
                continue
            was_live = self._live.get(found.key) is state
            if not state.deleted and (not was_live or (state.row and not found.live)):
                position += 1
                self._bury(state, position, transaction)
                if was_live:
                    self._end(state, transaction)
        for stream_id, state in self._states.items():
            self._name_lost(stream_id, state)
        for stream_id, (count, size) in self._unknown.items():
            if count:
                reason = f"nothing says whose its {count:,} events were"
                self.report.left_out.append(
                    LeftOut(f"stream {stream_id}", None, None, None, size, reason)
                )
        # None that was ever given out, as far as known, is given out again.
        highest = max([*self._states, *self._unknown, 0])
        keep_numbers(transaction, position=position, stream_id=highest)

    def _finish_empty(self, state: _State, transaction: WriteTransaction) -> None:
        found = state.found
        if not found.live and not found.nonce:
            import_stream(transaction, found, gone=True)
        elif found.key.kind is not StreamKind.SESSION:
            app = found.app_stream_id
            if app and self._states[app].stream is None:
                self._make(self._states[app], transaction)
            self._make(state, transaction)

    def _bury(self, state: _State, position: int, transaction: WriteTransaction) -> None:
        assert state.stream is not None
        self.report.notes.append(
            f"the tombstone of {state.found.key} (stream {state.found.id}) is lost: it was made "
            "anew, for the session was deleted"
        )
        tombstone = FoundEvent(
            position,
            state.stream.id,
            0,
            uuid.uuid4().hex,
            EventType.SESSION_DELETED,
            CURRENT[EventType.SESSION_DELETED],
            int(state.timestamp * 1e6) if abs(state.timestamp) < 1e12 else 0,
            state.timestamp,
            "",
            "",
            0,
            1,
            None,
            None,
            b"",
            None,
            None,
        )
        state.stream = import_event(transaction, state.stream, tombstone, "")

    def _name_lost(self, stream_id: int, state: _State) -> None:
        named = sorted(self._known_damage[stream_id])
        for first, last in state.lost:
            known = named[bisect_left(named, first) : bisect_right(named, last)]
            for before, after in pairwise([first - 1, *known, last + 1]):
                if after - before > 1:
                    self.report.left_out.append(
                        LeftOut(
                            self._name(stream_id), before + 1, after - 1, None, None, _UNREADABLE
                        )
                    )


def _identity(event: FoundEvent) -> tuple[StreamKey, bytes] | None:
    """Whose stream a first event says it begins."""
    if event.data is None:
        return None
    try:
        said = dict(decode(event.data, event.encoding)["stream"])
        nonce = bytes.fromhex(said.pop("nonce"))
        return StreamKey(**{**said, "kind": StreamKind(said["kind"])}), nonce
    except (ValueError, KeyError, TypeError):
        return None


def _proves_itself(row: FoundStream) -> bool:
    """Whether the row of a stream without events names the stream that it was made for."""
    return row.chain == first_link(row.key, row.nonce)


def _with_identity(event: FoundEvent, found: FoundStream) -> FoundEvent:
    """An event that is to be the first of a stream, saying whose it is."""
    data = {} if event.data is None else decode(event.data, event.encoding)
    data["stream"] = {**found.key._asdict(), "nonce": found.nonce.hex()}
    (text,), encoding = encode([data], f"stream {found.id}")
    return event._replace(
        data=text, data_digest=digest(text), encoding=max(encoding, event.encoding)
    )


def _storable(key: StreamKey) -> bool:
    try:
        for part in key:
            check_identifier("an id", part)
    except InvalidIdentifier:
        return False
    return True


def _readable(event: FoundEvent) -> bool:
    """Whether folds can take it."""
    stream = Stream(event.stream_id, StreamKey(StreamKind.SYSTEM), 0, 0, 0, 0, b"")
    try:
        upcast(as_recorded(event, stream))
        for text in (event.delta, event.data):
            if text is not None:
                decode(text, event.encoding)
    except (UnknownEvent, ValueError, RecursionError):
        return False
    return True

"""From what was found in a source to events in the log.

A session is taken in one transaction, whole or not at all: made with the keys that no event of it
has set, then its events, then what is left of the difference between its state as the source shows
it and the fold of its events. Its events may name `user:` and `app:` keys. These are taken from
the source once, before any session, so a session that comes later changes none of them.

An event of type `imported` on the user's stream notes each session. So nothing is taken twice, by
any number of processes, and what was deleted here does not come back.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Final, Literal, NamedTuple

import msgspec

from adk_adapter.codec import encode_event, encode_scope, merge_scopes, split_scopes
from adk_adapter.imports.found import FoundEvent, FoundSession, LeftOut, OwnerState
from eventstore import (
    EventType,
    InvalidInput,
    MaintenanceTransaction,
    NewEvent,
    RecordedEvent,
    Snapshot,
    Stream,
    StreamKey,
    StreamKind,
    check_identifier,
)
from eventstore.encoding import decode, decode_members, decode_value, join_members
from projections import StateProjection
from projections.kept import KeptKeys, state_correction

__all__ = [
    "Fate",
    "OwnerChange",
    "Prepared",
    "fate_of",
    "has_owner",
    "is_taken",
    "owner_change",
    "prepare",
    "take_owner_state",
    "take_session",
]

_STATE: Final = StateProjection()
_IN_MEMORY_BYTES: Final = 32 * 1024 * 1024
_OURS: Final = "import:"
"""Begins the ids of events that an import made itself."""

_FIRST_STATE: Final = f"{_OURS}state"
"""The id of the event by which the keys of a user or app were taken first."""

Fate = Literal["taken", "grown", "there", "deleted", "taken here", "gone on here"]
"""What becomes of a session: it is taken, or its new events are; it is there as it was found, or
was deleted here since; another one has its id here; it has gone on here and in the source."""


class Prepared:
    """A session as it is to be written, its events in order. Closed with `close`.

    Many events wait in a temporary file, so that the memory needed does not grow with a session.
    """

    def __init__(self, found: FoundSession) -> None:
        self.found = found
        self.key = StreamKey(
            StreamKind.SESSION, found.app_name, found.user_id, found.session_id.strip()
        )
        self.left_out: list[LeftOut] = []
        self.set_by_events: set[str] = set()
        """The session's own keys that an event names."""
        self.last_timestamp: float | None = None
        self.count = 0
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._ids: set[str] = set()

    def add(self, each: FoundEvent) -> None:
        """Takes an event, or notes why it cannot be taken."""
        problem = each.problem
        if each.event is not None:
            try:
                self._write(encode_event(self._with_own_id(each)))
            except InvalidInput as error:
                problem = str(error)
        if problem:
            self.leave_out("events", each.event_id, each.size_bytes, problem)

    def leave_out(self, table: str, event_id: str | None, size_bytes: int, reason: str) -> None:
        """Notes what cannot be taken."""
        found = self.found
        self.left_out.append(
            LeftOut(
                table,
                found.app_name,
                found.user_id,
                found.session_id,
                event_id,
                size_bytes,
                reason,
            )
        )

    def events(self) -> Iterator[NewEvent]:
        """The events, from the first on."""
        self._file.seek(0)
        while length := self._file.read(8):
            yield _decode(self._file.read(int.from_bytes(length, "big")))

    def close(self) -> None:
        """Removes the temporary file."""
        self._file.close()

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _with_own_id(self, each: FoundEvent) -> Any:
        """The event with an id that no other of the session has, the same each time it is read."""
        event, event_id = each.event, each.event_id
        assert event is not None
        number = 1
        while event_id in self._ids or not event_id or event_id.startswith(_OURS):
            number += 1
            event_id = f"{each.event_id.removeprefix(_OURS)}~{number}"
        self._ids.add(event_id)
        if event.id != event_id:
            event = event.model_copy(update={"id": event_id})
        return event

    def _write(self, event: NewEvent) -> None:
        text = _encode(event)
        self._file.write(len(text).to_bytes(8, "big") + text)
        self.count += 1
        self.last_timestamp = event.timestamp
        if event.delta is not None:
            self.set_by_events |= decode(event.delta, event.encoding).get("session", {}).keys()


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(NewEvent).decode


def prepare(found: FoundSession, events: Iterable[FoundEvent]) -> Prepared:
    """Reads a session and its events.

    Raises:
        InvalidIdentifier: an id that no store can hold.
    """
    prepared = Prepared(found)
    try:
        for part in prepared.key[1:]:
            check_identifier("an id", part)
        if found.state is None:
            reason = "its state is no JSON object: it was made from its events"
            prepared.leave_out("sessions", None, found.size_bytes, reason)
        for each in events:
            prepared.add(each)
    except BaseException:
        prepared.close()
        raise
    return prepared


class _Facts(NamedTuple):
    fate: Fate
    stream: Stream | None
    stored: frozenset[str]


def fate_of(snapshot: Snapshot, prepared: Prepared) -> Fate:
    """What is to become of a session, as the log stands."""
    return _facts(snapshot, prepared).fate


def _note_of(snapshot: Snapshot, key: StreamKey) -> tuple[Stream, int] | None:
    """The user's stream and the version at which an import noted a session; None for no note."""
    user = snapshot.find_stream(StreamKey(StreamKind.USER, key.app_name, key.user_id))
    version = None if user is None else snapshot.version_of(user, _note_id(key))
    return None if user is None or version is None else (user, version)


def _noted_id(snapshot: Snapshot, key: StreamKey) -> str | None:
    """The id in its source of the session that was taken by an import before; None for none."""
    if (noted := _note_of(snapshot, key)) is None:
        return None
    user, version = noted
    (note,) = snapshot.read_page(user, version - 1, 1)
    return str((note.payload() or {}).get("session_id", key.session_id))


def _facts(snapshot: Snapshot, prepared: Prepared) -> _Facts:
    noted = _noted_id(snapshot, prepared.key)
    same = noted == prepared.found.session_id
    stream = snapshot.find_stream(prepared.key)
    if stream is None:
        fate: Fate = "taken" if noted is None else "deleted" if same else "taken here"
        return _Facts(fate, None, frozenset())
    log = snapshot.read(stream)
    stored = frozenset(event.event_id for event in log)
    source = {event.event_id for event in prepared.events()}
    # Notes were once without the blanks of an id: then its events say which session it is.
    unsure = source and noted in (None, prepared.key.session_id)
    if source <= stored and (same or unsure):
        return _Facts("there", stream, stored)
    if not same:
        return _Facts("taken here", stream, stored)
    # A title or a label given here is no part of the conversation, which goes on behind it.
    ours = all(
        event.event_id.startswith(_OURS)
        or event.event_id in source
        or event.type == EventType.SESSION_DESCRIBED
        for event in log
    )
    return _Facts("grown" if ours else "gone on here", stream, stored)


def take_session(transaction: MaintenanceTransaction, prepared: Prepared) -> tuple[Fate, int]:
    """Writes what there is to take of a session. Returns its fate and how many events of it."""
    fate, stream, stored = _facts(transaction, prepared)
    if fate == "taken":
        stream = _create(transaction, prepared)
        user = transaction.get_stream(stream.user_stream_id)
        transaction.append(user, _note(prepared))
    if fate not in ("taken", "grown"):
        return fate, 0
    assert stream is not None
    kept = KeptKeys(transaction)
    written = 0
    for event in prepared.events():
        if event.event_id not in stored:
            kept.expect(stream, event.delta, event.encoding)
            stream = transaction.append(stream, event).stream
            written += 1
    owners = (
        (stream.user_stream_id, StreamKey(StreamKind.USER, *prepared.key[1:3])),
        (stream.app_stream_id, StreamKey(StreamKind.APP, prepared.key.app_name)),
    )
    kept.restore([owner for owner, key in owners if has_owner(transaction, key)])
    _correct_state(transaction, prepared, stream)
    return fate, written


def _create(transaction: MaintenanceTransaction, prepared: Prepared) -> Stream:
    """Makes the session with the keys that no event has set: it was created with them."""
    found = prepared.found
    initial = {
        key: value
        for key, value in (found.state or {}).items()
        if key not in prepared.set_by_events
    }
    event = _state_event(EventType.SESSION_CREATED, "session", initial, prepared)
    return transaction.append(
        transaction.open_stream(prepared.key),
        msgspec.structs.replace(
            event,
            event_id=f"{_OURS}created",
            timestamp=_first_time(found.created_at, found.updated_at, prepared.last_timestamp),
        ),
    ).stream


def _first_time(*times: float | None) -> float:
    return next((time for time in times if time is not None and math.isfinite(time)), 0.0)


def _note(prepared: Prepared) -> NewEvent:
    # Some sources tell ids apart that differ in blanks only.
    body = {"session_id": prepared.found.session_id, "events": prepared.count}
    return NewEvent(
        event_id=_note_id(prepared.key),
        type=EventType.IMPORTED,
        timestamp=time.time(),
        data=msgspec.json.encode(body),
    )


def _note_id(key: StreamKey) -> str:
    return f"{_OURS}session:{hashlib.sha256(key.session_id.encode()).hexdigest()}"


def _correct_state(transaction: MaintenanceTransaction, prepared: Prepared, stream: Stream) -> None:
    """Makes the session's own keys what the source shows, where the fold of its events differs."""
    found = prepared.found
    if found.state is None:
        return
    rows = transaction.owned_rows(_STATE, [stream.id])
    now = {str(key): str(value) for _, key, value, _ in rows}
    wanted = _state_event(EventType.STATE_SET, "session", found.state, prepared)
    members = _members(wanted, "session")
    changed = {key: text for key, text in members.items() if not _same(text, now.get(key))}
    changed |= {key: "null" for key, text in now.items() if key not in members and text != "null"}
    # Not the time of the import: it becomes the session's last update.
    timestamp = _first_time(found.updated_at, prepared.last_timestamp, found.created_at)
    for delta, encoding in join_members("session", changed):
        event = state_correction(stream, timestamp, delta, encoding)
        stream = transaction.append(stream, event).stream


def _same(text: str, other: str | None) -> bool:
    """Whether two texts are the same value, whatever the order of its keys."""
    return text == other or (other is not None and _sorted(text) == _sorted(other))


def _sorted(text: str) -> str:
    return json.dumps(decode_value(text), sort_keys=True)


def _members(event: NewEvent, scope: str) -> dict[str, str]:
    if event.delta is None:
        return {}
    return decode_members(event.delta, event.encoding).get(scope, {})


def _state_event(
    type_: EventType, scope: str, state: Mapping[str, Any], prepared: Prepared
) -> NewEvent:
    """An event that sets the keys of a scope, without those that cannot be stored."""
    good: dict[str, Any] = {}
    for key, value in state.items():
        try:
            # A session's own key that looks like another scope's would become one.
            if split_scopes(merge_scopes({scope: {key: value}})).keys() != {scope}:
                raise InvalidInput(f"state key {key!r} cannot be a key of a {scope}.")
            encode_scope(type_, scope, {key: value}, 0.0)
            good[key] = value
        except InvalidInput as error:
            if type_ is EventType.STATE_SET:  # it is asked for once more, to create the session
                prepared.leave_out("sessions", None, _size(value), str(error))
    return encode_scope(type_, scope, good, 0.0)


def _size(value: Any) -> int:
    """About how many bytes a value takes that cannot be stored; 0 where nothing can write it."""
    try:
        return len(json.dumps(value, default=str))
    except Exception:
        return 0


# The keys of users and apps.


def is_taken(snapshot: Snapshot, key: StreamKey) -> bool:
    """Whether there is, or once was, a session with this key here."""
    return snapshot.find_stream(key) is not None or _note_of(snapshot, key) is not None


def has_owner(snapshot: Snapshot, key: StreamKey) -> bool:
    """Whether the keys of a user or app were taken before."""
    stream = snapshot.find_stream(key)
    return stream is not None and snapshot.version_of(stream, _FIRST_STATE) is not None


class OwnerChange(NamedTuple):
    """What there is to take of the keys of a user or app."""

    scope: str
    key: StreamKey
    changed: dict[str, str]
    digests: dict[str, str]
    known: bool
    """Whether the source was just so the last time."""
    left_out: list[LeftOut]


def owner_change(snapshot: Snapshot, found: OwnerState) -> OwnerChange:
    """The first time, the keys that are not here yet; later, those changed there and not here.

    What was set here is kept.
    """
    left_out: list[LeftOut] = []
    try:
        scope, key = _owner(found)
    except InvalidInput as error:
        left_out.append(_left_out(found, found.size_bytes, str(error)))
        return OwnerChange("", StreamKey(StreamKind.SYSTEM), {}, {}, True, left_out)
    good: dict[str, Any] = {}
    for name, value in (found.state or {}).items():
        try:
            encode_scope(EventType.IMPORTED, scope, {name: value}, 0.0)
            good[name] = value
        except InvalidInput as error:
            left_out.append(_left_out(found, _size(value), str(error)))
    if found.state is None:
        left_out.append(_left_out(found, found.size_bytes, "its state is no JSON object"))
    members = _members(encode_scope(EventType.IMPORTED, scope, good, 0.0), scope)
    digests = {name: _digest(text) for name, text in members.items()}
    stream = snapshot.find_stream(key)
    base = _last_import(snapshot.read(stream)) if stream and stream.version else None
    if found.state is None or base == digests:
        return OwnerChange(scope, key, {}, digests, True, left_out)
    rows = snapshot.owned_rows(_STATE, [stream.id]) if stream else ()
    now = {str(name): str(value) for _, name, value, _ in rows}
    changed = {
        name: text
        for name, text in members.items()
        if name not in now
        or (not _same(text, now[name]) and (base or {}).get(name) == _digest(now[name]))
    }
    return OwnerChange(scope, key, changed, digests, False, left_out)


def take_owner_state(transaction: MaintenanceTransaction, found: OwnerState) -> OwnerChange:
    """Takes the keys of a user or app, and notes how they are in the source."""
    change = owner_change(transaction, found)
    if change.known:
        return change
    stream = transaction.ensure_stream(change.key)
    body = msgspec.json.encode({"state": change.digests})
    parts: Sequence[tuple[bytes | None, int]] = join_members(change.scope, change.changed)
    first = not has_owner(transaction, change.key)
    for n, (delta, encoding) in enumerate(parts or [(None, 1)]):
        another = f"{_FIRST_STATE}:{stream.version + 1}"
        stream = transaction.append(
            stream,
            NewEvent(
                event_id=_FIRST_STATE if first and n == 0 else another,
                type=EventType.IMPORTED,
                timestamp=time.time(),
                delta=delta,
                data=body,
                encoding=encoding,
            ),
        ).stream
    return change


def _owner(found: OwnerState) -> tuple[str, StreamKey]:
    check_identifier("app_name", found.app_name)
    if found.user_id is None:
        return "app", StreamKey(StreamKind.APP, found.app_name)
    check_identifier("user_id", found.user_id)
    return "user", StreamKey(StreamKind.USER, found.app_name, found.user_id)


def _left_out(found: OwnerState, size_bytes: int, reason: str) -> LeftOut:
    table = "app_states" if found.user_id is None else "user_states"
    return LeftOut(table, found.app_name, found.user_id, None, None, size_bytes, reason)


def _last_import(log: Sequence[RecordedEvent]) -> dict[str, str] | None:
    """The digests of the values that an owner had when its keys were taken last."""
    for event in reversed(log):
        if event.type == EventType.IMPORTED and event.event_id.startswith(_FIRST_STATE):
            return dict((event.payload() or {}).get("state", {}))
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(_sorted(text).encode()).hexdigest()[:32]

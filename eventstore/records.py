"""Between the rows of a log and what the store hands out, the same on every backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from eventstore.chain import digest, next_link
from eventstore.changes import Row
from eventstore.encoding import decode, encode
from eventstore.errors import CorruptEvent, EventStoreError
from eventstore.events import (
    CONVERSATION_TYPES,
    EventType,
    NewEvent,
    RecordedEvent,
    Stream,
    StreamKey,
    StreamKind,
)
from eventstore.projection import Projection, is_table_name
from eventstore.store import Loaded, LoggedEvent, Registered, StreamFacts
from eventstore.upcasting import CURRENT, upcast

__all__ = [
    "CHANGED",
    "ROW_CHANGED",
    "SYSTEM",
    "Sealed",
    "check_begins",
    "check_dense",
    "conversation",
    "facts_of",
    "link_of",
    "owners_of",
    "proved",
    "recorded",
    "seal",
    "stream_of",
    "table_before",
    "unreadable",
    "with_identity",
    "with_rows",
]

CHANGED: Final = "its content does not match its digest"
ROW_CHANGED: Final = "the row of its stream is damaged, which `verify --fix` may put right"
SYSTEM: Final = StreamKey(StreamKind.SYSTEM)


def stream_of(row: Sequence[Any], *, as_it_stands: bool = False) -> Stream:
    """A stream from its row: id, key, user and app stream, version, conversation version, chain.

    Raises:
        CorruptEvent: its kind is none, and it is not wanted as it stands.
    """
    kind = row[1]
    try:
        kind = StreamKind(kind)
    except ValueError:
        if not as_it_stands:
            raise CorruptEvent(f"stream {row[0]}", 0, 0, ROW_CHANGED) from None
    return Stream(row[0], StreamKey(kind, row[2], row[3], row[4]), *row[5:])


def proved(rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """Rows of streams, of which the column behind the chain says whether they are the right ones.

    Raises:
        CorruptEvent: one is not.
    """
    if damaged := [row[0] for row in rows if row[10] != 1]:
        raise CorruptEvent(f"stream {damaged[0]}", 0, 0, ROW_CHANGED)
    return rows


def facts_of(row: Sequence[Any], *, as_it_stands: bool = False) -> StreamFacts:
    """A stream, whether it is live, and its nonce, from a whole row. Raises as `stream_of`."""
    stream = stream_of(row[:10], as_it_stands=as_it_stands)
    return StreamFacts(stream, bool(row[10]), row[11])


def table_before(projection: Projection, registered: Mapping[str, Registered]) -> str | None:
    """The table of an older version of a projection, where it had another name.

    None where the database notes no such version, or the table as that of another projection too.
    """
    row = registered.get(projection.name)
    if row is None or row.version >= projection.version or row.table == projection.table.name:
        return None
    others = {each.table for name, each in registered.items() if name != projection.name}
    return row.table if is_table_name(row.table) and row.table not in others else None


def recorded(stream: Stream, row: Sequence[Any], codecs: Mapping[int, str]) -> RecordedEvent:
    """An event from its row, its digests checked, as this version understands it.

    The row has the fields of RecordedEvent without the stream, then both digests and the codec.
    """
    if digest(row[10]) != row[12] or digest(row[11]) != row[13]:
        raise CorruptEvent(str(stream.key), row[1], row[0], CHANGED)
    event = RecordedEvent._make((row[0], stream, *row[1:12], codecs.get(row[14], "")))
    return event if CURRENT.get(event.type) == event.schema_version else upcast(event)


def check_dense(stream: Stream, events: Sequence[RecordedEvent], *, first: int) -> None:
    """Versions run from `first` to the head without a hole.

    Raises:
        CorruptEvent: one is missing.
    """
    for expected, event in enumerate(events, first):
        if event.version != expected:
            raise CorruptEvent(str(stream.key), expected, event.position, "it is missing")
    if first + len(events) != stream.version + 1:
        raise CorruptEvent(str(stream.key), first + len(events), 0, "it is missing")


def check_begins(stream: Stream, first: RecordedEvent) -> None:
    """The first event of a stream says that it begins this one.

    Raises:
        CorruptEvent: it says something else.
    """
    try:
        said = (first.payload() or {})["stream"]
        key = StreamKey(
            StreamKind(said["kind"]), said["app_name"], said["user_id"], said["session_id"]
        )
    except (ValueError, KeyError, TypeError):
        raise CorruptEvent(
            str(stream.key), first.version, first.position, "it does not say whose it is"
        ) from None
    if key != stream.key:
        raise CorruptEvent(str(stream.key), 1, first.position, "it begins another stream")


def conversation(events: Sequence[RecordedEvent]) -> list[RecordedEvent]:
    """The events of the conversation among some."""
    return [event for event in events if event.type == EventType.ADK_EVENT]


def owners_of(stream: Stream) -> tuple[int, int, int]:
    """The streams whose rows belong to what is loaded with a stream."""
    return stream.id, stream.user_stream_id, stream.app_stream_id


def with_rows(
    streams: Sequence[Stream],
    tables: Iterable[str],
    read: Callable[[str, Sequence[int]], Sequence[Row]],
    owners_per_query: int,
) -> list[Loaded]:
    """Streams without events, each with its rows; `read` has those of some owners in a table."""
    owners = list({owner for stream in streams for owner in owners_of(stream)})
    found: dict[str, dict[int, list[Row]]] = {table: {} for table in tables}
    for start in range(0, len(owners), owners_per_query):
        for table, owned in found.items():
            for row in read(table, owners[start : start + owners_per_query]):
                owned.setdefault(int(row[0]), []).append(row)

    def rows_of(stream: Stream) -> dict[str, list[Row]]:
        return {
            table: [row for owner in owners_of(stream) for row in owned.get(owner, ())]
            for table, owned in found.items()
        }

    return [Loaded(stream, rows_of(stream), ()) for stream in streams]


def unreadable(key: StreamKey, error: Exception) -> Exception:
    """The error for what a damaged row of a stream led to, where no check has named it."""
    if isinstance(error, EventStoreError):
        return error
    return CorruptEvent(str(key), 0, 0, f"a row of it cannot be read ({type(error).__name__})")


def with_identity(key: StreamKey, nonce: bytes, event: NewEvent) -> NewEvent:
    """Puts what the `streams` row says into the first event, so that it can be made again."""
    data = {} if event.data is None else decode(event.data, event.encoding)
    data["stream"] = {**key._asdict(), "nonce": nonce.hex()}
    (text,), encoding = encode([data], str(key))
    return msgspec.structs.replace(event, data=text, encoding=max(encoding, event.encoding))


def link_of(logged: LoggedEvent, before: bytes) -> bytes:
    """What the link of an event must be, behind the link before it."""
    event = logged.event
    return next_link(
        before,
        version=event.version,
        event_id=event.event_id,
        event_type=event.type,
        schema_version=event.schema_version,
        encoding=event.encoding,
        recorded_at=event.recorded_at,
        timestamp=event.timestamp,
        author=event.author,
        invocation_id=event.invocation_id,
        codec=event.codec,
        delta_digest=logged.delta_digest,
        data_digest=logged.data_digest,
    )


class Sealed(NamedTuple):
    """An event as it goes into the log: with what proves it, and its stream behind it."""

    event: RecordedEvent
    delta_digest: bytes | None
    data_digest: bytes | None
    chain: bytes


def seal(stream: Stream, position: int, event: NewEvent) -> Sealed:
    """Gives an event its place behind the head of a stream, and its link in the chain."""
    version, schema_version = stream.version + 1, CURRENT[event.type]
    recorded_at = time.time_ns() // 1000
    timestamp = event.timestamp + 0.0  # a database keeps no sign of a zero, but the chain would
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
    spoken = version if event.type in CONVERSATION_TYPES else stream.conversation_version
    # Each field by its place: `_replace` takes twice as long, and an append waits for it.
    moved = Stream(
        stream.id,
        stream.key,
        stream.user_stream_id,
        stream.app_stream_id,
        version,
        spoken,
        chain,
    )
    whole = RecordedEvent(
        position,
        moved,
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
    return Sealed(whole, delta_digest, data_digest, chain)

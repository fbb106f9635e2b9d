"""Salvage: reading what is left of a damaged database file, and writing it into a new one.

SQLite reads a table from its root: one bad page above them hides all the pages below. So the file
is read page by page here, by its format (https://sqlite.org/fileformat2.html), whatever its header,
its schema and its inner pages look like; a `-wal` beside it is laid over it. An event proves itself
by its digests and its place in the hash chain, so that nothing has to be believed about where it
was found. Pages that SQLite has noted as free are left alone: they may hold events that were
removed on purpose.

What is found goes to a private database first, the spool, in which it can be put in order.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from eventstore.chain import digest, first_link, next_link
from eventstore.errors import DatabaseInUse, NotADatabase, PathUnusable, StorageFailed
from eventstore.events import CONVERSATION_TYPES, RecordedEvent, Stream, StreamKey, StreamKind
from eventstore.sqlite import registry
from eventstore.sqlite.files import MAGIC
from eventstore.sqlite.queries import QUERIES
from eventstore.sqlite.transaction import WriteTransaction

__all__ = [
    "Damaged",
    "FoundEvent",
    "FoundStream",
    "Salvage",
    "as_recorded",
    "import_event",
    "import_stream",
    "keep_numbers",
]

_USUAL_PAGE_SIZE: Final = 4096
_LEAF: Final = 0x0D
_OTHER_PAGES: Final = {0x02, 0x05, 0x0A}
_FREE, _OVERFLOW, _LATER_OVERFLOW = 2, 3, 4
_TREE: Final = {1, 5}
_PAGES_THAT_TELL: Final = 32
_LOCK_BYTE: Final = 0x40000000
_WAL_MAGIC: Final = {0x377F0682, 0x377F0683}
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_LARGEST_PAYLOAD: Final = 1_000_000_000
_SHA256_BYTES: Final = 32
_KINDS: Final = {kind.value.encode() for kind in StreamKind}

Progress = Callable[[int, int, int], None]


class _Text(bytes):
    """A TEXT value as its bytes; plain bytes are a BLOB."""


class Damaged(NamedTuple):
    """An event, or a run of them in one stream, that cannot be saved, and why."""

    stream_id: int | None
    version: int | None
    position: int | None
    size_bytes: int | None
    reason: str


class FoundEvent(NamedTuple):
    """An event whose content matches its digests."""

    position: int
    stream_id: int
    version: int
    event_id: str
    type: str
    schema_version: int
    recorded_at: int
    timestamp: float
    author: str
    invocation_id: str
    codec: int
    encoding: int
    delta_digest: bytes | None
    data_digest: bytes | None
    chain: bytes
    delta: bytes | None
    data: bytes | None

    def link(self, previous: bytes, codec: str) -> bytes:
        """The chain link it should have behind `previous`."""
        return next_link(
            previous,
            version=self.version,
            event_id=self.event_id,
            event_type=self.type,
            schema_version=self.schema_version,
            encoding=self.encoding,
            recorded_at=self.recorded_at,
            timestamp=self.timestamp,
            author=self.author,
            invocation_id=self.invocation_id,
            codec=codec,
            delta_digest=self.delta_digest,
            data_digest=self.data_digest,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of its content."""
        return len(self.delta or b"") + len(self.data or b"")


class FoundStream(NamedTuple):
    """A row of `streams`."""

    id: int
    key: StreamKey
    user_stream_id: int
    app_stream_id: int
    version: int
    conversation_version: int
    live: bool
    nonce: bytes
    chain: bytes


_KEEP: Final = f"INSERT OR IGNORE INTO found VALUES ({', '.join('?' * len(FoundEvent._fields))})"  # noqa: S608


class _Malformed(Exception):
    """A page, cell or record that is not as the format says."""


class _Pages:
    """The pages of a database file, with those of its -wal in their places."""

    def __init__(self, path: str) -> None:
        self._file: BinaryIO = Path(path).open("rb")  # noqa: SIM115 - closed by `close`
        self._wal: BinaryIO | None = None
        try:
            wal = Path(f"{path}-wal")
            if wal.is_file() and wal.stat().st_size > _WAL_HEADER:
                self._wal = wal.open("rb")
            head = self._file.read(100)
            self.size = self._page_size(head)
            self._frames, pages = self._committed()
            if 1 in self._frames:
                head = self.read(1)[:100]
            length = Path(path).stat().st_size
            self.count = max(-(-length // self.size), pages, *self._frames, 0)
            whole = head[:16] == MAGIC
            self.usable = self.size - (self._reserved(head[20]) if whole else 0)
            # What cannot be read any more was made by this package: with a pointer map.
            self._mapped = not whole or head[52:56] != bytes(4)
            self._free = self._freelist(int.from_bytes(head[32:36], "big")) if whole else set()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._file.close()
        if self._wal is not None:
            self._wal.close()

    def read(self, number: int) -> bytes:
        """A page; what is missing of it is zeros."""
        if (offset := self._frames.get(number)) is not None:
            assert self._wal is not None
            self._wal.seek(offset)
            return self._wal.read(self.size).ljust(self.size, b"\0")
        self._file.seek((number - 1) * self.size)
        return self._file.read(self.size).ljust(self.size, b"\0")

    def may_hold_rows(self, number: int) -> bool:
        """Whether nothing says that a page is free, or is no page of a table."""
        if not self._mapped or number == 1:
            return number not in self._free
        pages_per_map = self.usable // 5 + 1
        map_page = (number - 2) // pages_per_map * pages_per_map + 2
        if map_page == _LOCK_BYTE // self.size + 1:
            map_page += 1
        if number == map_page:
            return False
        at = 5 * (number - map_page - 1)
        kind = self.read(map_page)[at]
        if kind in (_OVERFLOW, _LATER_OVERFLOW):
            # The map may be damaged. An overflow page begins with the number of the next.
            return self.read(number)[0] == _LEAF
        # What the list of free pages says alone is not believed against the map.
        return kind in _TREE or (kind != _FREE and number not in self._free)

    def _reserved(self, said: int) -> int:
        """The bytes at the end of each page that are no part of it; `said` by a header."""
        if not 0 < said <= self.size - 480:
            return 0
        # Some builds of SQLite reserve bytes, and leave them zero: else the header is damaged.
        first = range(1, min(self.count, _PAGES_THAT_TELL) + 1)
        return 0 if any(any(self.read(number)[-said:]) for number in first) else said

    def _page_size(self, head: bytes) -> int:
        sizes = [int.from_bytes(head[16:18], "big")] if head[:16] == MAGIC else []
        if self._wal is not None:
            self._wal.seek(8)
            sizes.append(int.from_bytes(self._wal.read(4), "big"))
        for size in sizes:
            size = 65536 if size == 1 else size
            if 512 <= size <= 65536 and size & (size - 1) == 0:
                return size
        return _USUAL_PAGE_SIZE

    def _committed(self) -> tuple[dict[int, int], int]:
        """Where in the -wal the last committed version of each page is, and the pages of the file.

        What is left of an earlier round of the -wal has other salts.
        """
        frames: dict[int, int] = {}
        if self._wal is None:
            return frames, 0
        self._wal.seek(0)
        header = self._wal.read(_WAL_HEADER)
        first = self._wal.read(_FRAME_HEADER)
        whole = int.from_bytes(header[:4], "big") in _WAL_MAGIC
        salts = header[16:24] if whole else first[8:16]
        offset, pages = _WAL_HEADER, 0
        uncommitted: dict[int, int] = {}
        while True:
            self._wal.seek(offset)
            frame = self._wal.read(_FRAME_HEADER)
            if len(frame) < _FRAME_HEADER:
                return frames, pages
            number, committed = struct.unpack_from(">II", frame)
            if frame[8:16] == salts and 0 < number < 2**31:
                uncommitted[number] = offset + _FRAME_HEADER
                if committed:
                    frames.update(uncommitted)
                    uncommitted.clear()
                    pages = committed
            offset += _FRAME_HEADER + self.size

    def _freelist(self, trunk: int) -> set[int]:
        free: set[int] = set()
        while 0 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            page = self.read(trunk)
            trunk, leaves = struct.unpack_from(">II", page)
            if leaves > self.usable // 4 - 2:
                break
            free.update(struct.unpack_from(f">{leaves}I", page, 8))
        return free

    def rows(self, number: int) -> Iterator[tuple[int, list[Any] | None]]:
        """Rowid and values of each row of a page of a table; None for one that cannot be read."""
        page = self.read(number)
        start = 100 if number == 1 else 0
        if page[start] in _OTHER_PAGES:
            return
        (cells,) = struct.unpack_from(">H", page, start + 3)
        for n in range(min(cells, (self.size - start - 8) // 6)):
            (at,) = struct.unpack_from(">H", page, start + 8 + 2 * n)
            rowid = 0
            try:
                length, at = _varint(page, at)
                rowid, at = _varint(page, at)
                yield rowid, _values(self._payload(page, at, length))
            except (_Malformed, IndexError, struct.error, OverflowError, MemoryError):
                if rowid > 0 and page[start] == _LEAF:
                    yield rowid, None

    def _payload(self, page: bytes, at: int, length: int) -> bytes:
        if not 0 < length <= _LARGEST_PAYLOAD:
            raise _Malformed
        largest = self.usable - 35
        if length <= largest:
            local = length
        else:
            least = (self.usable - 12) * 32 // 255 - 23
            local = least + (length - least) % (self.usable - 4)
            local = local if local <= largest else least
        if at + local > self.usable:
            raise _Malformed
        parts, missing = [page[at : at + local]], length - local
        following = int.from_bytes(page[at + local : at + local + 4], "big") if missing else 0
        while missing > 0:
            if not 0 < following <= self.count:
                raise _Malformed
            overflow = self.read(following)
            parts.append(overflow[4 : 4 + min(missing, self.usable - 4)])
            missing -= self.usable - 4
            following = int.from_bytes(overflow[:4], "big")
        return b"".join(parts)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(8):
        byte = data[at + n]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64) if value >= 1 << 63 else value, at + 9


def _values(payload: bytes) -> list[Any]:
    """The columns of a record."""
    length, at = _varint(payload, 0)
    if not at <= length <= len(payload):
        raise _Malformed
    kinds = []
    while at < length:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    at = length
    for kind in kinds:
        value, size = _value(kind, payload, at)
        at += size
        if at > len(payload):
            raise _Malformed
        values.append(value)
    return values


_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def _value(kind: int, payload: bytes, at: int) -> tuple[Any, int]:
    if kind >= 12:
        size = (kind - 12) // 2
        content = payload[at : at + size]
        return (_Text(content) if kind % 2 else content), size
    if kind in _INTEGERS:
        size = _INTEGERS[kind]
        return int.from_bytes(payload[at : at + size], "big", signed=True), size
    if kind == 7:
        return struct.unpack_from(">d", payload, at)[0], 8
    if kind in (8, 9):
        return kind - 8, 0
    if kind == 0:
        return None, 0
    raise _Malformed


class Salvage:
    """What is left of a database file, in order. Close it when it is no longer needed.

    Never writes to the file or beside it.

    Raises:
        PathUnusable: there is no such file.
        DatabaseInUse: somebody is writing it, or this process has it open.
        NotADatabase: nothing in it is of a store of this package.
        StorageFailed: the disk refused a read.
    """

    def __init__(self, source: str, spool: str, progress: Progress) -> None:
        if not Path(source).is_file():
            missing = "is not a regular file" if Path(source).exists() else "does not exist"
            raise PathUnusable(source, missing, "Pass the path of a database.")
        if registry.is_open(source):
            # To close a descriptor of it would drop the locks of its connections.
            raise DatabaseInUse(
                source, "is open in this process", "Close the service that uses it, then try again."
            )
        self.streams: dict[int, FoundStream] = {}
        self.damaged: dict[int, Damaged] = {}
        """Events that were found and cannot be saved, by position."""
        self._codecs: dict[int, list[str]] = {0: [""]}
        self._spool = sqlite3.connect(spool, isolation_level=None, check_same_thread=False)
        try:
            self._spool.execute("PRAGMA journal_mode = OFF")
            self._spool.execute("PRAGMA synchronous = OFF")
            columns = ", ".join(FoundEvent._fields[1:])
            self._spool.execute(f"CREATE TABLE found (position INTEGER PRIMARY KEY, {columns})")
            self._spool.execute("CREATE INDEX in_stream ON found (stream_id, version)")
            before = _written_at(source)
            self._read(source, progress)
            if _written_at(source) != before:
                raise DatabaseInUse(
                    source,
                    "was written while it was read",
                    "Stop the services that use it, then try again.",
                )
        except OSError as error:
            self.close()
            raise StorageFailed(source, f"it cannot be read: {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        if not self.streams and self.head() == 0:
            self.close()
            raise NotADatabase(
                source, "holds nothing that is left of a store", "Restore it from a backup."
            )

    def close(self) -> None:
        """Lets go of the spool."""
        self._spool.close()

    def _read(self, source: str, progress: Progress) -> None:
        pages = _Pages(source)
        try:
            found = 0
            self._spool.execute("BEGIN")
            for number in range(1, pages.count + 1):
                if pages.may_hold_rows(number):
                    for rowid, values in pages.rows(number):
                        found += self._take(rowid, values)
                if number % 1_000 == 0:
                    progress(found, number, pages.count)
            self._spool.execute("COMMIT")
        finally:
            pages.close()
        for position in self.damaged.keys() & set(self._positions(self.damaged)):
            del self.damaged[position]  # another copy of it is whole

    def _positions(self, wanted: Mapping[int, object]) -> Iterator[int]:
        for position in wanted:
            if self._spool.execute(
                "SELECT 1 FROM found WHERE position = ?", (position,)
            ).fetchone():
                yield position

    def _take(self, rowid: int, values: list[Any] | None) -> bool:
        """Keeps a row when it is one of ours; returns whether it was a whole event."""
        if values is None:
            return False  # of which table cannot be told; what it was is missing in its stream
        shape = len(values)
        if shape == len(FoundEvent._fields) and values[0] is None:
            return self._take_event(rowid, values)
        if shape == 12 and values[0] is None and values[1] in _KINDS:
            self._take_stream(rowid, values)
        elif shape == 2 and values[0] is None and type(values[1]) is _Text:
            try:
                self._codecs.setdefault(rowid, []).append(values[1].decode())
            except UnicodeDecodeError:
                return False
        return False

    def _take_event(self, rowid: int, values: list[Any]) -> bool:
        event = _event(rowid, values)
        whole = event is not None
        if event is not None:
            whole = (digest(event.delta), digest(event.data)) == (
                event.delta_digest,
                event.data_digest,
            )
            if whole:
                self._spool.execute(_KEEP, event)
        if not whole:
            stream, version = values[1], values[2]
            sizes = [len(v) for v in values[-2:] if isinstance(v, bytes)]
            self.damaged[rowid] = Damaged(
                stream if isinstance(stream, int) else None,
                version if isinstance(version, int) else None,
                rowid,
                sum(sizes),
                "a field of it cannot be read"
                if event is None
                else "its content does not match its digest",
            )
        return whole

    def _take_stream(self, rowid: int, values: list[Any]) -> None:
        try:
            kind, app, user, session = (str(part, "utf-8") for part in values[1:5])
        except (TypeError, UnicodeDecodeError):
            return
        numbers, nonce, chain = values[5:10], values[10], values[11]
        if (
            not all(isinstance(n, int) for n in numbers)
            or type(nonce) is not bytes
            or type(chain) is not bytes
            or len(chain) != _SHA256_BYTES
        ):
            return
        user_stream, app_stream, version, conversation, live = numbers
        stream = FoundStream(
            rowid,
            StreamKey(StreamKind(kind), app, user, session),
            user_stream,
            app_stream,
            version,
            conversation,
            bool(live),
            nonce,
            chain,
        )
        other = self.streams.get(rowid)
        if other is None or other.version < version:
            self.streams[rowid] = stream

    def head(self) -> int:
        """The last position of an event that is whole."""
        (head,) = self._spool.execute("SELECT coalesce(max(position), 0) FROM found").fetchone()
        return int(head)

    def events(self) -> Iterator[FoundEvent]:
        """Every event whose content is whole, in position order."""
        after = 0
        while page := self._spool.execute(
            "SELECT * FROM found WHERE position > ? ORDER BY position LIMIT 500", (after,)
        ).fetchall():
            for row in page:
                yield FoundEvent._make(row)
            after = page[-1][0]

    def events_at(self, stream_id: int, version: int) -> list[FoundEvent]:
        """What says that it is at a version of a stream: of several, one is right at most."""
        rows = self._spool.execute(
            "SELECT * FROM found WHERE stream_id = ? AND version = ?", (stream_id, version)
        )
        return [FoundEvent._make(row) for row in rows.fetchall()]

    def comes_behind(self, event: FoundEvent, first: int) -> bool:
        """Whether one from the version `first` up to that of an event has a later position."""
        row = self._spool.execute(
            "SELECT 1 FROM found WHERE stream_id = ? AND version BETWEEN ? AND ? AND position > ?",
            (event.stream_id, first, event.version, event.position),
        ).fetchone()
        return row is not None

    def stream_ids(self) -> list[int]:
        """The streams of whole events."""
        rows = self._spool.execute("SELECT DISTINCT stream_id FROM found ORDER BY stream_id")
        return [row[0] for row in rows.fetchall()]

    def is_free(self, position: int) -> bool:
        """Whether no whole event is at a position."""
        return not any(self._positions({position: None}))

    def knows_codec(self, codec: int) -> bool:
        """Whether a row for a codec's number is left."""
        return codec in self._codecs

    def codecs(self, codec: int) -> list[str]:
        """The fingerprints a codec's number may stand for, the likeliest first."""
        likely = self._codecs.get(codec, [])
        others = [each for texts in self._codecs.values() for each in texts]
        return list(dict.fromkeys([*likely, *others]))


def _event(rowid: int, values: list[Any]) -> FoundEvent | None:
    """The event a row holds; None when a column has not its type."""
    kinds = [type(value) for value in values[1:]]
    wanted: list[tuple[type, ...]] = [
        (int,), (int,), (_Text,), (_Text,), (int,), (int,), (float, int), (_Text,), (_Text,),
        (int,), (int,), (bytes, type(None)), (bytes, type(None)), (bytes,),
        (_Text, type(None)), (_Text, type(None)),
    ]  # fmt: skip
    if not all(kind in allowed for kind, allowed in zip(kinds, wanted, strict=True)):
        return None
    if rowid < 1 or len(values[14]) != _SHA256_BYTES:
        return None
    try:
        texts = {n: values[n].decode() for n in (3, 4, 8, 9)}
        for n in (15, 16):
            if values[n] is not None:
                values[n].decode()
    except UnicodeDecodeError:
        return None
    for n, text in texts.items():
        values[n] = text
    values[7] = float(values[7])  # a whole number is stored as one
    for n in (15, 16):
        values[n] = None if values[n] is None else bytes(values[n])
    return FoundEvent(rowid, *values[1:])


def _written_at(path: str) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for name in (path, f"{path}-wal"):
        try:
            status = Path(name).stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append((status.st_size, status.st_mtime_ns))
    return found


# Writing into a new store, inside a transaction.


def import_stream(
    transaction: WriteTransaction, found: FoundStream, *, gone: bool = False
) -> Stream:
    """Makes a stream with the id, nonce and owners it had; one that is `gone`, as it was left."""
    key = found.key
    chain = found.chain if gone else first_link(key, found.nonce)
    transaction.connection.execute(
        QUERIES["import_stream"],
        (
            found.id,
            *key,
            found.user_stream_id,
            found.app_stream_id,
            found.version if gone else 0,
            found.conversation_version if gone else 0,
            not gone,
            found.nonce,
            chain,
        ),
    )
    return Stream(found.id, key, found.user_stream_id, found.app_stream_id, 0, 0, chain)


def import_event(
    transaction: WriteTransaction, stream: Stream, event: FoundEvent, codec: str
) -> Stream:
    """Writes an event behind a stream's head, as it was but for its version; returns the stream.

    The tables of projections are not touched: they are to be made anew afterwards.
    """
    version = stream.version + 1
    event = event._replace(version=version)
    chain = event.link(stream.chain, codec)
    transaction.connection.execute(
        QUERIES["import_event"],
        event._replace(
            codec=transaction._codec(codec),  # noqa: SLF001 - one backend
            chain=chain,
            delta=_as_text(event.delta),  # type: ignore[arg-type]
            data=_as_text(event.data),  # type: ignore[arg-type]
        ),
    )
    conversation = version if event.type in CONVERSATION_TYPES else stream.conversation_version
    transaction.connection.execute(QUERIES["move_head"], (version, conversation, chain, stream.id))
    return stream._replace(version=version, conversation_version=conversation, chain=chain)


def keep_numbers(transaction: WriteTransaction, *, position: int, stream_id: int) -> None:
    """Sees to it that no position and no stream's id up to these is given out again."""
    for table, number in (("events", position), ("streams", stream_id)):
        transaction.connection.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?", (number, table)
        )


def _as_text(content: bytes | None) -> str | None:
    return None if content is None else content.decode()


def as_recorded(event: FoundEvent, stream: Stream) -> RecordedEvent:
    """The event as readers of the log have it."""
    return RecordedEvent(
        event.position,
        stream,
        event.version,
        event.event_id,
        event.type,
        event.schema_version,
        event.recorded_at,
        event.timestamp,
        event.author,
        event.invocation_id,
        event.encoding,
        event.delta,
        event.data,
        "",
    )

"""An export: JSON Lines, the same bytes for the same log, each line sealed.

The first line says what is in it, then come the streams in the order of their numbers, then the
events in the order of the log; a codec comes before the first event that it wrote. The last line
counts them. Each line ends with a checksum over it and all lines before, so a line that was
changed, moved or lost is found where it is. Texts are held as they are stored, as JSON strings:
their digests are about these bytes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import BinaryIO, Final

import msgspec

from eventstore import (
    EventStoreError,
    InvalidInput,
    LoggedEvent,
    RecordedEvent,
    Stream,
    StreamFacts,
    StreamKey,
    StreamKind,
    check_identifier,
)
from eventstore.limits import TEXT_BYTES
from projections.transfer.scope import Part

__all__ = ["BEGINNING", "ExportDamaged", "Reader", "Writer"]

FORMAT: Final = 1
BEGINNING: Final = b'{"adk-eventstore":'
_LINE_BYTES: Final = 4 * TEXT_BYTES + 1024 * 1024
"""Two texts, each at most doubled by being a JSON string."""
_LARGEST: Final = 2**63 - 1
_SUM_CHARACTERS: Final = 32
_TAIL_BYTES: Final = len(b',"sum":""}') + _SUM_CHARACTERS


class ExportDamaged(EventStoreError):
    """A line of an export is not what was written, or no line of one; nothing of it is kept."""

    def __init__(self, path: str, line: int, reason: str) -> None:
        super().__init__(
            f"{path}, line {line}: {reason}. Nothing of it was kept. Export it again, or get "
            "another copy of the file."
        )
        self.path = path
        self.line = line
        self.reason = reason


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    export: int
    app_name: str | None
    user_id: str | None
    session_id: str | None


class _Stream(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    kind: StreamKind
    app_name: str
    user_id: str
    session_id: str
    user_stream_id: int
    app_stream_id: int
    version: int
    conversation_version: int
    live: bool
    nonce: str
    chain: str


class _Codec(msgspec.Struct, forbid_unknown_fields=True):
    id: int
    fingerprint: str


class _Event(msgspec.Struct, forbid_unknown_fields=True):
    position: int
    stream: int
    version: int
    event_id: str
    type: str
    schema_version: int
    recorded_at: int
    timestamp: float | str
    author: str
    invocation_id: str
    codec: int
    encoding: int
    delta_digest: str | None
    data_digest: str | None
    chain: str
    delta: str | None
    data: str | None


class _End(msgspec.Struct, forbid_unknown_fields=True):
    streams: int
    events: int


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    header: _Header | None = msgspec.field(name="adk-eventstore", default=None)
    stream: _Stream | None = None
    codec: _Codec | None = None
    event: _Event | None = None
    end: _End | None = None


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Line).decode


class _Seal:
    """The checksum of a line and all before it."""

    def __init__(self) -> None:
        self._digest = b""

    def over(self, body: bytes) -> bytes:
        self._digest = hashlib.sha256(self._digest + body).digest()
        return self._digest.hex()[:_SUM_CHARACTERS].encode()


class Writer:
    """Writes an export to a file."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self._file = file
        self._seal = _Seal()
        self._codecs: dict[str, int] = {"": 0}
        self.streams = 0
        self.events = 0
        self.size_bytes = 0
        self._write(_Line(header=_Header(FORMAT, *part)))

    def write_stream(self, facts: StreamFacts) -> None:
        """Writes a stream."""
        stream = facts.stream
        self._write(
            _Line(
                stream=_Stream(
                    stream.id,
                    *stream.key,
                    stream.user_stream_id,
                    stream.app_stream_id,
                    stream.version,
                    stream.conversation_version,
                    facts.live,
                    facts.nonce.hex(),
                    stream.chain.hex(),
                )
            )
        )
        self.streams += 1

    def write_event(self, logged: LoggedEvent) -> None:
        """Writes an event, and its codec before it when it is the first of it."""
        event = logged.event
        codec = self._codecs.get(event.codec)
        if codec is None:
            codec = self._codecs[event.codec] = len(self._codecs)
            self._write(_Line(codec=_Codec(codec, event.codec)))
        finite = math.isfinite(event.timestamp)
        self._write(
            _Line(
                event=_Event(
                    event.position,
                    event.stream.id,
                    event.version,
                    event.event_id,
                    event.type,
                    event.schema_version,
                    event.recorded_at,
                    event.timestamp if finite else str(event.timestamp),
                    event.author,
                    event.invocation_id,
                    codec,
                    event.encoding,
                    _hex(logged.delta_digest),
                    _hex(logged.data_digest),
                    logged.chain.hex(),
                    None if event.delta is None else event.delta.decode(),
                    None if event.data is None else event.data.decode(),
                )
            )
        )
        self.events += 1

    def end(self) -> None:
        """Writes the last line."""
        self._write(_Line(end=_End(self.streams, self.events)))

    def _write(self, line: _Line) -> None:
        body = _encode(line)
        self.size_bytes += self._file.write(
            body[:-1] + b',"sum":"' + self._seal.over(body) + b'"}\n'
        )


class Reader:
    """Reads an export from its beginning: its part, then its streams, then its events."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._seal = _Seal()
        self._codecs: dict[int, str] = {0: ""}
        self.line = 0
        self.streams = 0
        self.events = 0
        header = self._read().header
        if header is None or header.export != FORMAT:
            version = None if header is None else header.export
            raise self.damaged(
                "it is no export of this package"
                if version is None
                else f"it is of version {version} of the format: upgrade adk-eventstore"
            )
        try:
            self.part = Part(header.app_name, header.user_id, header.session_id).checked()
        except InvalidInput as error:
            raise self.damaged(str(error)) from None
        self._next = self._read()

    def read_streams(self) -> Iterator[StreamFacts]:
        """The streams; to be read before the events."""
        while (stream := self._next.stream) is not None:
            yield self._facts(stream)
            self.streams += 1
            self._next = self._read()

    def read_events(self) -> Iterator[LoggedEvent]:
        """The events; behind them, the end is what it is to be."""
        while (line := self._next).end is None:
            if line.codec is not None:
                if line.codec.id != len(self._codecs):
                    raise self.damaged("its codec has another number than it should")
                self._codecs[line.codec.id] = line.codec.fingerprint
            elif line.event is not None:
                yield self._logged(line.event)
                self.events += 1
            else:
                raise self.damaged("it does not belong here")
            self._next = self._read()
        if (line.end.streams, line.end.events) != (self.streams, self.events):
            raise self.damaged("it counts other streams and events than there are")
        if self._file.read(1):
            raise self.damaged("something comes behind the end")

    def damaged(self, reason: str) -> ExportDamaged:
        """The error for the line that was read last."""
        return ExportDamaged(self._path, self.line, reason)

    def _read(self) -> _Line:
        self.line += 1
        text = self._file.readline(_LINE_BYTES)
        if not text:
            raise self.damaged("the file ends before its end: it was cut off")
        if not text.endswith(b"\n"):
            too_long = len(text) == _LINE_BYTES
            raise self.damaged("the line is too long" if too_long else "the line was cut off")
        body, tail = text[: -_TAIL_BYTES - 1] + b"}", text[-_TAIL_BYTES - 1 : -1]
        if tail != b',"sum":"' + self._seal.over(body) + b'"}':
            raise self.damaged("the line does not match its checksum")
        try:
            line = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise self.damaged("it is no line of an export") from None
        if sum(part is not None for part in msgspec.structs.astuple(line)) != 1:
            raise self.damaged("it is no line of an export")
        return line

    def _facts(self, line: _Stream) -> StreamFacts:
        key = StreamKey(line.kind, line.app_name, line.user_id, line.session_id)
        numbers = (line.user_stream_id, line.app_stream_id, line.version, line.conversation_version)
        try:
            for part in key[1:]:
                check_identifier("an id", part)
            if not all(0 <= number <= _LARGEST for number in (*numbers, line.id)) or not line.id:
                raise ValueError("a number is out of range")
            stream = Stream(line.id, key, *numbers, bytes.fromhex(line.chain))
            return StreamFacts(stream, line.live, bytes.fromhex(line.nonce))
        except InvalidInput as error:
            raise self.damaged(str(error)) from None
        except ValueError:
            raise self.damaged("the stream has a field that is no such") from None

    def _logged(self, line: _Event) -> LoggedEvent:
        try:
            for what, text in (
                ("an event id", line.event_id),
                ("an author", line.author),
                ("an invocation id", line.invocation_id),
            ):
                check_identifier(what, text)
            numbers = (line.position, line.version, line.schema_version, line.encoding)
            if not all(0 <= number <= _LARGEST for number in numbers):
                raise ValueError("a number is out of range")
            if not -_LARGEST <= line.recorded_at <= _LARGEST:
                raise ValueError("a number is out of range")
            event = RecordedEvent(
                line.position,
                Stream(line.stream, StreamKey(StreamKind.SYSTEM), 0, 0, 0, 0, b""),
                line.version,
                line.event_id,
                line.type,
                line.schema_version,
                line.recorded_at,
                float(line.timestamp),
                line.author,
                line.invocation_id,
                line.encoding,
                None if line.delta is None else line.delta.encode(),
                None if line.data is None else line.data.encode(),
                self._codecs[line.codec],
            )
            return LoggedEvent(
                event,
                _bytes(line.delta_digest),
                _bytes(line.data_digest),
                bytes.fromhex(line.chain),
            )
        except InvalidInput as error:
            raise self.damaged(str(error)) from None
        except (ValueError, KeyError, OverflowError):
            raise self.damaged("the event has a field that is no such") from None


def _hex(digest: bytes | None) -> str | None:
    return None if digest is None else digest.hex()


def _bytes(digest: str | None) -> bytes | None:
    return None if digest is None else bytes.fromhex(digest)

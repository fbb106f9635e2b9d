"""Anchors: a note of how far a log had come, kept elsewhere, that proves it was not rewritten.

A hash chain in the same file proves nothing against somebody who may write the file: he can make
it anew. An anchor holds the last link of every stream at one position. A log that still has all of
them still has that whole history, unchanged. Its root, one SHA-256 over all it says, can be written
down where a file cannot be kept.

Format: lines of UTF-8 JSON. First `{"anchor": 1, "head": position, "streams": count, "root": hex}`,
then one `[stream id, version, link as hex]` per stream, by id. The root covers these lines' bytes,
newlines included, behind the head position in decimal and a newline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from eventstore import InvalidInput
from projections.files import whole_file

__all__ = ["Anchor", "InvalidAnchor", "read_anchor", "write_anchor"]

_FORMAT: Final = 1


class InvalidAnchor(InvalidInput):
    """A file that is no anchor, or was changed since it was written."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path} {reason}. Use the anchor as it was written.")
        self.path = path
        self.reason = reason


class _FirstLine(msgspec.Struct):
    anchor: int
    head: int
    streams: int
    root: str


class Anchor(NamedTuple):
    """The position a log had come to, and version and chain link of each stream there."""

    head: int
    streams: Mapping[int, tuple[int, bytes]]

    @property
    def root(self) -> str:
        """SHA-256 of everything the anchor says, as hex."""
        return _root(self.head, b"".join(self._lines()))

    def as_lines(self) -> list[bytes]:
        """The lines of its file."""
        lines = self._lines()
        root = _root(self.head, b"".join(lines))
        first = _FirstLine(_FORMAT, self.head, len(self.streams), root)
        return [msgspec.json.encode(first) + b"\n", *lines]

    def _lines(self) -> list[bytes]:
        return [
            msgspec.json.encode((stream_id, version, link.hex())) + b"\n"
            for stream_id, (version, link) in sorted(self.streams.items())
        ]


def _root(head: int, lines: bytes) -> str:
    return hashlib.sha256(b"%d\n%b" % (head, lines)).hexdigest()


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Writes an anchor file, whole or not at all. Its owner alone may read it.

    Raises:
        PathUnusable, StorageFailed: it cannot be written.
    """
    with whole_file(path) as file:
        file.writelines(anchor.as_lines())


def read_anchor(path: Path) -> Anchor:
    """Reads an anchor file.

    Raises:
        InvalidAnchor: it is none, or was changed.
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise InvalidAnchor(str(path), "is no regular file")
    first, _, lines = path.read_bytes().partition(b"\n")
    try:
        facts = msgspec.json.decode(first, type=_FirstLine)
        if facts.anchor != _FORMAT:
            raise InvalidAnchor(str(path), "is no anchor of a format this version knows")
        rows = msgspec.json.Decoder(tuple[int, int, str]).decode_lines(lines)
        streams = {stream_id: (version, bytes.fromhex(link)) for stream_id, version, link in rows}
        anchor = Anchor(facts.head, streams)
        if b"".join(anchor.as_lines()) != b"%b\n%b" % (first, lines):
            raise InvalidAnchor(str(path), "was changed since it was written")
    except InvalidAnchor:
        raise
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidAnchor(str(path), "is no anchor") from error
    return anchor

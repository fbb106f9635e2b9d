"""Digests and the hash chain of a stream.

Hash layout, version 1. Each event's link is the SHA-256 of a tag, the previous link and the
event's fields, every variable-length field preceded by its length. The codec is covered by its
fingerprint, for it decides how a payload is decoded. It covers the digests of the
stored bytes rather than the bytes, so a redacted payload leaves the chain whole. Position and
stream id are left out: both may change when a log is imported elsewhere. The first link binds the
stream's identity with a random nonce, so that erased ids cannot be guessed from what is left.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from eventstore.events import StreamKey

__all__ = ["digest", "first_link", "next_link"]

_TAG: Final = b"adk-eventstore:chain:v1"
_NUMBERS: Final = struct.Struct(">qqqqd")
_LENGTHS: Final = struct.Struct(">IIIIIII")


def digest(stored: bytes | None) -> bytes | None:
    """SHA-256 of the stored bytes; None for an absent column."""
    return None if stored is None else hashlib.sha256(stored).digest()


def first_link(key: StreamKey, nonce: bytes) -> bytes:
    """The link before the first event of a stream."""
    fields = [*[part.encode() for part in key], nonce]
    framed = b"".join([len(field).to_bytes(4, "big") + field for field in fields])
    return hashlib.sha256(_TAG + framed).digest()


def next_link(
    previous: bytes,
    *,
    version: int,
    event_id: str,
    event_type: str,
    schema_version: int,
    encoding: int,
    recorded_at: int,
    timestamp: float,
    author: str,
    invocation_id: str,
    codec: str,
    delta_digest: bytes | None,
    data_digest: bytes | None,
) -> bytes:
    """The link of an event whose predecessor's link is `previous`."""
    texts = (
        event_id.encode(),
        event_type.encode(),
        author.encode(),
        invocation_id.encode(),
        codec.encode(),
        delta_digest or b"",
        data_digest or b"",
    )
    return hashlib.sha256(
        b"".join(
            (
                _TAG,
                previous,
                _NUMBERS.pack(version, schema_version, encoding, recorded_at, timestamp),
                _LENGTHS.pack(*map(len, texts)),
                *texts,
            )
        )
    ).digest()

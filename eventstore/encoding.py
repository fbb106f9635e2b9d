"""The two JSON encodings of `events.encoding`, and how a value finds its own.

1 is strict UTF-8 JSON, written and read by msgspec. 2 is Python's `json`, in ASCII: it holds what
strict JSON cannot (NaN, infinities, lone surrogates), which msgspec refuses and SQLite's JSON
functions choke on. More values are reserved for compression and encryption.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from eventstore.errors import ValueNotStorable

__all__ = [
    "PYTHON_JSON",
    "STRICT_JSON",
    "decode",
    "decode_members",
    "decode_value",
    "encode",
    "slice_members",
    "text_of",
]

STRICT_JSON: Final = 1
PYTHON_JSON: Final = 2

_encode_strict = msgspec.json.Encoder().encode
_decode_strict = msgspec.json.Decoder().decode
_decode_raw_members = msgspec.json.Decoder(dict[str, dict[str, msgspec.Raw]]).decode


def encode(values: Sequence[Any], what: str) -> tuple[list[bytes | None], int]:
    """Encodes plain JSON data (dict, list, str, int, float, bool), all in the same encoding.

    Returns one text per value and the encoding. A value of None stands for an absent text. `what`
    names the whole in an error.

    Raises:
        ValueNotStorable: nested too deep, an int of more than 4,300 digits, or no JSON data.
    """
    try:
        try:
            return [None if v is None else _strict(v) for v in values], STRICT_JSON
        except (UnicodeEncodeError, _NotStrict):
            return [None if v is None else _python(v) for v in values], PYTHON_JSON
    except RecursionError:
        raise ValueNotStorable(what, "it is nested too deep") from None
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ValueNotStorable(what, f"JSON cannot hold it ({type(error).__name__})") from error


def _strict(value: Any) -> bytes:
    text = _encode_strict(value)
    # msgspec writes NaN and the infinities as null without a word. Only a text with a null in it
    # can have lost one, and then what is read back differs from what was written.
    if b"null" in text and _decode_strict(text) != value:
        raise _NotStrict
    return text


def _python(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


class _NotStrict(Exception):
    """Strict JSON would lose something."""


def decode(text: bytes | str, encoding: int) -> Any:
    """Reads what `encode` wrote.

    Raises:
        ValueError: the text is not JSON in this encoding (msgspec.DecodeError is one).
    """
    if encoding == STRICT_JSON:
        return _decode_strict(text)
    if encoding == PYTHON_JSON:
        return json.loads(text)
    raise ValueError(f"unknown encoding {encoding}")


def decode_value(text: str) -> Any:
    """Reads the stored text of one state value, whichever encoding it came in.

    Raises:
        ValueError: the text is JSON in neither.
    """
    try:
        return _decode_strict(text)
    except msgspec.DecodeError:
        return json.loads(text)


slice_members = _decode_raw_members
"""Splits a delta in strict JSON as `decode_members` does, the text of each key not yet made a str:
see `text_of`."""


def text_of(raw: msgspec.Raw) -> str:
    """The JSON text of a slice."""
    return bytes(raw).decode()


def decode_members(delta: bytes, encoding: int) -> dict[str, dict[str, str]]:
    """Splits a scoped delta into the JSON text of each key, the values as they are stored.

    Strict JSON is sliced, never decoded and encoded again. Python's JSON is, which gives the same
    text: its encoder is a function of the value and reads back every value it writes.
    """
    if encoding == STRICT_JSON:
        return {
            scope: {key: bytes(raw).decode() for key, raw in members.items()}
            for scope, members in _decode_raw_members(delta).items()
        }
    return {
        scope: {key: _python(value).decode() for key, value in members.items()}
        for scope, members in decode(delta, encoding).items()
    }

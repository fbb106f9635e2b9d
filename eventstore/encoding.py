"""The two JSON encodings of `events.encoding`, and how a value finds its own.

1 is strict UTF-8 JSON, written and read by msgspec. 2 is Python's `json`, in ASCII: it holds what
strict JSON cannot (NaN, infinities, lone surrogates), which msgspec refuses and SQLite's JSON
functions choke on. More values are reserved for compression and encryption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from eventstore.errors import ValueNotStorable
from eventstore.limits import NESTING_DEPTH, TEXT_BYTES

__all__ = [
    "PYTHON_JSON",
    "STRICT_JSON",
    "Delta",
    "check_text",
    "decode",
    "decode_members",
    "decode_value",
    "decode_values",
    "encode",
    "is_plain",
    "join_members",
    "split_deltas",
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
        ValueNotStorable: nested too deep or too large (see eventstore.limits), an int of more than
            4,300 digits, or no JSON data.
    """
    try:
        try:
            texts, encoding = [None if v is None else _strict(v) for v in values], STRICT_JSON
        except (UnicodeEncodeError, _NotStrict):
            texts, encoding = [None if v is None else _python(v) for v in values], PYTHON_JSON
        for text in texts:
            if text is not None and len(text) > NESTING_DEPTH:
                check_text(text, what)
        return texts, encoding
    except RecursionError:
        raise ValueNotStorable(what, "it is nested too deep") from None
    except ValueNotStorable:
        raise
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ValueNotStorable(what, f"JSON cannot hold it ({type(error).__name__})") from error


def _strict(value: Any) -> bytes:
    text = _encode_strict(value)
    # msgspec writes NaN and the infinities as null without a word. Only a text with a null in it
    # can have lost one, and then what is read back differs from what was written.
    if _may_hold_null(text) and _decode_strict(text) != value:
        raise _NotStrict
    return text


def _may_hold_null(text: bytes) -> bool:
    """Whether a compact text has a null in it, or a string that looks as if it had."""
    return b":null" in text or b",null" in text or b"[null" in text or text == b"null"


def is_plain(text: bytes) -> bool:
    """Whether a compact text of strict JSON may be stored without a closer look.

    It is within the limits, and holds no null, as which encoders write what they have no text for.
    """
    structure = text.count(b"{") + text.count(b"[")
    return structure <= NESTING_DEPTH and len(text) <= TEXT_BYTES and not _may_hold_null(text)


def _python(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def check_text(text: bytes, what: str) -> None:
    """Asserts that a text is not too large, and can be read wherever it is read.

    Raises:
        ValueNotStorable: it is, or cannot. `what` names it.
    """
    if len(text) > TEXT_BYTES:
        raise ValueNotStorable(
            what, f"it has {len(text):,} bytes of JSON, and {TEXT_BYTES:,} are the most"
        )
    if text.count(b"{") + text.count(b"[") <= NESTING_DEPTH:
        return
    # Without strings only structure is left; each round takes away what is innermost.
    left = _STRINGS.sub(b"", text).translate(_ONE_KIND, _NO_STRUCTURE)
    for _ in range(NESTING_DEPTH):
        if not left:
            return
        left = left.replace(b"()", b"")
    if left:
        raise ValueNotStorable(what, f"it is nested too deep, {NESTING_DEPTH} levels are the most")


_STRINGS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_ONE_KIND: Final = bytes.maketrans(b"{}[]", b"()()")
_NO_STRUCTURE: Final = bytes(n for n in range(256) if n not in b"{}[]")


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


def decode_values(texts: Sequence[str]) -> list[Any]:
    """Reads stored texts of state values, all at once where all are strict JSON.

    Raises:
        ValueError: one is no JSON.
    """
    try:
        values: list[Any] = _decode_strict(f"[{','.join(texts)}]")
    except msgspec.DecodeError:
        values = []
    # A text that is no JSON by itself may be part of one, or several.
    return values if len(values) == len(texts) else [decode_value(text) for text in texts]


class Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A scoped delta split as by `decode_members`, the texts not yet made a str: see `text_of`."""

    session: dict[str, msgspec.Raw] | None = None
    user: dict[str, msgspec.Raw] | None = None
    app: dict[str, msgspec.Raw] | None = None


def split_deltas(deltas: Sequence[bytes]) -> list[Delta]:
    """Splits deltas in strict JSON, all at once, which is faster than one by one."""
    return _split_deltas(b"[" + b",".join(deltas) + b"]")


_split_deltas = msgspec.json.Decoder(list[Delta]).decode


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


def join_members(scope: str, members: Mapping[str, str]) -> list[tuple[bytes, int]]:
    """Scoped deltas that set keys to the stored text of values, with their encodings.

    The inverse of `decode_members`. There may be two, for a text keeps its bytes only in its own
    encoding; none for no members.
    """
    strict: dict[str, msgspec.Raw] = {}
    python: list[str] = []
    for key, text in members.items():
        try:
            _decode_strict(text)
        except msgspec.DecodeError:
            python.append(f"{json.dumps(key)}:{text}")
        else:
            strict[key] = msgspec.Raw(text.encode())
    deltas = []
    if strict:
        deltas.append((_encode_strict({scope: strict}), STRICT_JSON))
    if python:
        whole = f"{{{json.dumps(scope)}:{{{','.join(python)}}}}}"
        deltas.append((whole.encode("ascii"), PYTHON_JSON))
    return deltas

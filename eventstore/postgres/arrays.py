"""Columns of a statement as arrays, in PostgreSQL's binary format.

One statement writes a whole group, so its parameters are columns. psycopg makes an array of a list
element by element, which took longer than the server took to write them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

__all__ = ["Array", "array_of", "bools", "byte_strings", "floats", "integers", "register", "texts"]

_INT8: Final = 20
_TEXT: Final = 25
_FLOAT8: Final = 701
_BYTEA: Final = 17
_BOOL: Final = 16
_NULL: Final = b"\xff\xff\xff\xff"


class Array:
    """An array as it is sent. Made by the functions below."""

    __slots__ = ("data",)
    oid: int
    """The server's number of its type."""

    def __init__(self, data: bytes) -> None:
        self.data = data


class _Integers(Array):
    __slots__ = ()
    oid = 1016


class _Floats(Array):
    __slots__ = ()
    oid = 1022


class _Texts(Array):
    __slots__ = ()
    oid = 1009


class _ByteStrings(Array):
    __slots__ = ()
    oid = 1001


class _Bools(Array):
    __slots__ = ()
    oid = 1000


def _head(count: int, element: int, *, nulls: bool = False) -> bytes:
    if count == 0:
        return struct.pack(">iii", 0, 0, element)
    return struct.pack(">iiiii", 1, nulls, element, count, 1)


def integers(values: Iterable[int]) -> Array:
    """bigint[]."""
    items = list(values)
    pairs = [part for value in items for part in (8, value)]
    return _Integers(_head(len(items), _INT8) + struct.pack(f">{'iq' * len(items)}", *pairs))


def floats(values: Iterable[float]) -> Array:
    """double precision[]."""
    items = list(values)
    pairs = [part for value in items for part in (8, value)]
    return _Floats(_head(len(items), _FLOAT8) + struct.pack(f">{'id' * len(items)}", *pairs))


def bools(values: Iterable[bool]) -> Array:
    """boolean[]."""
    items = list(values)
    pairs = [part for value in items for part in (1, value)]
    return _Bools(_head(len(items), _BOOL) + struct.pack(f">{'i?' * len(items)}", *pairs))


def texts(values: Iterable[str | bytes | None]) -> Array:
    """text[], of str or of its UTF-8.

    Raises:
        ValueError: a text holds NUL, or a lone surrogate.
    """
    items = [value.encode() if isinstance(value, str) else value for value in values]
    if any(item is not None and b"\0" in item for item in items):
        raise ValueError("PostgreSQL cannot hold a text with NUL")
    return _Texts(_variable(items, _TEXT))


def byte_strings(values: Iterable[bytes | None]) -> Array:
    """bytea[]."""
    return _ByteStrings(_variable(list(values), _BYTEA))


def _variable(items: Sequence[bytes | None], element: int) -> bytes:
    parts = [_head(len(items), element, nulls=None in items)]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts += (len(item).to_bytes(4, "big"), item)
    return b"".join(parts)


def array_of(kind: str, values: Iterable[Any]) -> Array:
    """An array of a projection's column: "integer", "real" or "text"."""
    if kind == "integer":
        return integers(values)
    return floats(values) if kind == "real" else texts(values)


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> bytes:
        return obj.data


class _IntegersDumper(_ArrayDumper):
    oid = _Integers.oid


class _FloatsDumper(_ArrayDumper):
    oid = _Floats.oid


class _TextsDumper(_ArrayDumper):
    oid = _Texts.oid


class _ByteStringsDumper(_ArrayDumper):
    oid = _ByteStrings.oid


class _BoolsDumper(_ArrayDumper):
    oid = _Bools.oid


def register(context: AdaptContext) -> None:
    """Lets a connection send arrays."""
    for kind, dumper in (
        (_Integers, _IntegersDumper),
        (_Floats, _FloatsDumper),
        (_Texts, _TextsDumper),
        (_ByteStrings, _ByteStringsDumper),
        (_Bools, _BoolsDumper),
    ):
        context.adapters.register_dumper(kind, dumper)

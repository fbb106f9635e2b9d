"""What the commands print: one JSON document for programs, aligned text for people."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import click

from eventstore import EventStoreError

__all__ = [
    "CommandFailed",
    "abandon",
    "as_json",
    "columns",
    "count",
    "counted",
    "moment",
    "printable",
    "printing",
    "size",
    "table",
    "tell",
]

_LONGEST_VALUE = 200


class CommandFailed(EventStoreError):
    """A command cannot do what it was asked to; the message ends with the remedy."""


def tell(text: str, *, err: bool = False) -> None:
    """Prints on stdout, or on stderr.

    Raises: as `printing`.
    """
    stream, what = (sys.stderr, "Progress") if err else (sys.stdout, "What was done")
    with printing(stream, what):
        click.echo(text, err=err)


@contextmanager
def printing(stream: TextIO, what: str) -> Iterator[None]:
    """Around what prints on a stream; `what` that is begins the message of the error.

    Raises:
        BrokenPipeError: nobody reads it any more.
        CommandFailed: it cannot be printed.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon(stream)
        raise CommandFailed(
            f"{what} cannot be printed: {error.strerror}. Print it elsewhere."
        ) from error


def abandon(*streams: TextIO) -> None:
    """Lets go of what could not be printed: Python would try again at the end, and complain."""
    for stream in streams:
        with suppress(AttributeError, OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


def as_json(document: Mapping[str, object], *, indent: int | None = 2) -> str:
    """A document as JSON, in ASCII, so that no terminal or pipe can fail to take it.

    What JSON cannot hold (NaN, infinities, bytes) are texts in it.
    """
    return json.dumps(_plain(document), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def columns(rows: Iterable[Sequence[str]], *, indent: str = "") -> list[str]:
    """Rows of text as lines with aligned columns."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        indent
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table for people: numbers to the right, None as a dash, nothing for no rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        return []
    numbers = [
        all(isinstance(value, int | float | None) for value in column)
        for column in zip(*rows, strict=True)
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in [list(header), *cells]
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return count(value) if isinstance(value, int) else printable(value)


def moment(seconds: float) -> str:
    """Seconds since the epoch as a UTC time; as they are where that is out of range."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return repr(seconds)


def size(number: int) -> str:
    """Bytes as people read them."""
    if number < 1_000_000:
        return f"{number / 1e3:,.1f} kB"
    return f"{number / 1e6:,.1f} MB" if number < 1_000_000_000 else f"{number / 1e9:,.2f} GB"


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def counted(number: int, what: str) -> str:
    """A number of things: "1 row", "2 rows"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def printable(value: object, *, whole: bool = False) -> str:
    """Anything as one line that cannot steer a terminal, cut where it is long unless `whole`."""
    text = str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > _LONGEST_VALUE and not whole:
        return f"{text[:_LONGEST_VALUE]}... ({len(text):,} characters)"
    return text

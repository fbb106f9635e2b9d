"""What the commands print: one JSON document for programs, aligned text for people."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["as_json", "columns", "count", "counted", "plain", "printable"]

_LONGEST_VALUE = 200


def as_json(document: Mapping[str, object]) -> str:
    """A document as JSON, in ASCII, so that no terminal or pipe can fail to take it."""
    return json.dumps(document, indent=2, allow_nan=False)


def plain(values: Mapping[str, object] | None) -> dict[str, object] | None:
    """A row for a JSON document; an infinity, which JSON has not, is a string."""
    if values is None:
        return None
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def columns(rows: Iterable[Sequence[str]], *, indent: str = "") -> list[str]:
    """Rows of text as lines with aligned columns."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        indent
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def counted(number: int, what: str) -> str:
    """A number of things: "1 row", "2 rows"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def printable(value: object) -> str:
    """Anything as one line that cannot steer a terminal, cut where it is long."""
    text = str(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) > _LONGEST_VALUE:
        return f"{text[:_LONGEST_VALUE]}... ({len(text):,} characters)"
    return text

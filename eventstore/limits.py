"""The limits on what a store takes. What exceeds one is refused with a typed error.

They are far from what sessions hold, and far enough below the billion bytes that SQLite allows a
row, so that nothing that was accepted can fail later. Lengths of texts are in characters.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "IDENTIFIER_LENGTH",
    "LABELS",
    "LABEL_LENGTH",
    "NESTING_DEPTH",
    "TEXT_BYTES",
    "TITLE_LENGTH",
]

IDENTIFIER_LENGTH: Final = 65_536
"""Characters of an id of any kind, of an author, and of a state key: InvalidIdentifier."""

TEXT_BYTES: Final = 256 * 1024 * 1024
"""Bytes of JSON in the state change of an event, and in the rest of it: ValueNotStorable.

An event has two such texts, which are one row."""

NESTING_DEPTH: Final = 200
"""Objects and arrays inside each other in either: ValueNotStorable.

What is read must not exceed what is left of the interpreter's stack, wherever it is read."""

TITLE_LENGTH: Final = 1_000
"""Characters of a session's title: InvalidIdentifier."""

LABELS: Final = 64
"""Labels of a session: InvalidInput."""

LABEL_LENGTH: Final = 256
"""Characters of a label's name, and of its value: InvalidIdentifier."""

"""The advisory locks of a store, all of them held by transactions and none by sessions.

A lock is a number of 63 bits that means something in one database only. Those of writers under way
say above which position they draw theirs, so that readers of the whole log know what may still
come: the number is `bounds` and that position. Another program's lock that happens to look like
one only makes readers wait for it.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

__all__ = ["POSITIONS_MAX", "Locks"]

POSITIONS_MAX: Final = 2**43 - 1
_TAG_BITS: Final = 19


class Locks:
    """The numbers for one schema."""

    def __init__(self, schema: str) -> None:
        seed = hashlib.sha256(f"adk-eventstore:{schema}".encode()).digest()
        tag = int.from_bytes(seed[:3], "big") % 2**_TAG_BITS
        self.bounds = tag << 43
        """To which a position is added."""
        self.appending = self._number(seed[3:11])
        """Shared by whoever appends, taken alone by what holds all writers off."""
        self.migrating = self._number(seed[11:19])
        self.maintaining = self._number(seed[19:27])
        self._schema = schema

    def of_owner(self, owner: int) -> int:
        """Of rows whose stream is gone, or never was: it has no row that could be locked."""
        text = f"adk-eventstore:{self._schema}:{owner}"
        return self._number(hashlib.sha256(text.encode()).digest()[:8])

    @staticmethod
    def _number(seed: bytes) -> int:
        # The highest of the bits that are left keeps them apart from the bounds.
        return 2**62 | int.from_bytes(seed, "big") % 2**62

    def random(self) -> int:
        """A number that nobody else has."""
        return 2**62 | secrets.randbits(62)

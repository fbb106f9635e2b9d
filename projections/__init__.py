"""Folds from the log to the rows that reads are served from, and what keeps those rows true."""

from typing import Final

from eventstore import InlineProjection
from projections.rebuild import Rebuilt, rebuild
from projections.scavenge import Scavenged, scavenge
from projections.sessions import SessionsProjection
from projections.state import StateProjection

__all__ = [
    "BUILT_IN",
    "Rebuilt",
    "Scavenged",
    "SessionsProjection",
    "StateProjection",
    "rebuild",
    "scavenge",
]

BUILT_IN: Final[tuple[InlineProjection, ...]] = (SessionsProjection(), StateProjection())
"""The projections every database has."""

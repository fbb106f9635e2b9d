"""Folds from the log to the rows that reads are served from, and what keeps those rows true."""

from projections.anchors import Anchor, InvalidAnchor, read_anchor, write_anchor
from projections.asynchronous import Follower, Status, run, status
from projections.installed import BUILT_IN
from projections.rebuild import Progress, Rebuilt, Scope, rebuild, rebuild_scope
from projections.scavenge import Scavenged, scavenge
from projections.sessions import SessionsProjection
from projections.state import StateProjection
from projections.usage import UsageProjection, UsageRow, usage
from projections.verify import Difference, Touched, Verified, verify

__all__ = [
    "BUILT_IN",
    "Anchor",
    "Difference",
    "Follower",
    "InvalidAnchor",
    "Progress",
    "Rebuilt",
    "Scavenged",
    "Scope",
    "SessionsProjection",
    "StateProjection",
    "Status",
    "Touched",
    "UsageProjection",
    "UsageRow",
    "Verified",
    "read_anchor",
    "rebuild",
    "rebuild_scope",
    "run",
    "scavenge",
    "status",
    "usage",
    "verify",
    "write_anchor",
]

"""Folds from the log to the rows that reads are served from, and what keeps those rows true."""

from projections.anchors import Anchor, InvalidAnchor, read_anchor, write_anchor
from projections.asynchronous import Follower, Status, run, status
from projections.doctor import examine_database
from projections.history import Filter, page_of_log, page_of_session, tail
from projections.installed import BUILT_IN
from projections.listing import SessionInfo, SessionPage, list_sessions, set_labels, set_title
from projections.rebuild import Progress, Rebuilt, Scope, rebuild, rebuild_scope
from projections.retention import (
    Erasable,
    Erased,
    Purgeable,
    Purged,
    Vacuumed,
    delete_session,
    erasable,
    erase_user,
    purge,
    purgeable,
    vacuum,
)
from projections.scavenge import Scavenged, scavenge
from projections.sessions import SessionsProjection
from projections.state import StateProjection
from projections.stats import AppStats, DayStats, SessionStats, Stats, measure
from projections.usage import UsageProjection, UsageRow, usage
from projections.verify import Difference, Touched, Verified, verify

__all__ = [
    "BUILT_IN",
    "Anchor",
    "AppStats",
    "DayStats",
    "Difference",
    "Erasable",
    "Erased",
    "Filter",
    "Follower",
    "InvalidAnchor",
    "Progress",
    "Purgeable",
    "Purged",
    "Rebuilt",
    "Scavenged",
    "Scope",
    "SessionInfo",
    "SessionPage",
    "SessionStats",
    "SessionsProjection",
    "StateProjection",
    "Stats",
    "Status",
    "Touched",
    "UsageProjection",
    "UsageRow",
    "Vacuumed",
    "Verified",
    "delete_session",
    "erasable",
    "erase_user",
    "examine_database",
    "list_sessions",
    "measure",
    "page_of_log",
    "page_of_session",
    "purge",
    "purgeable",
    "read_anchor",
    "rebuild",
    "rebuild_scope",
    "run",
    "scavenge",
    "set_labels",
    "set_title",
    "status",
    "tail",
    "usage",
    "vacuum",
    "verify",
    "write_anchor",
]

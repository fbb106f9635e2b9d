"""Doctor: looks at everything around a database that goes wrong, and says what to do about it."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version

from eventstore import EventStore, EventStoreError, Finding, Projection, Snapshot, examine
from eventstore import open_store as open_any
from projections import installed
from projections.asynchronous import status

__all__ = ["examine_database"]

_PACKAGES = ("adk-eventstore", "google-adk", "msgspec")
_FAR_BEHIND = 10_000


def examine_database(
    target: str | os.PathLike[str] | None = None, *, whole: bool | None = None
) -> list[Finding]:
    """Looks at a database, which may be unusable or not there, and at its place. Blocks.

    Changes nothing, and does not migrate. `whole` checks every page of the file; when it is None,
    only in a file of at most 1 GB. Never raises for what is wrong with the database: that is what
    it tells.
    """
    findings = [_versions()]
    try:
        inline: Sequence[Projection] = installed.inline()
        asynchronous = installed.asynchronous()
        installed.distinct((*inline, *asynchronous))
    except EventStoreError as error:
        findings.append(Finding.of("projections", error))
        inline, asynchronous = installed.BUILT_IN, ()
    findings += examine(target, inline, (*asynchronous, *installed.OPTIONAL), whole=whole)
    if not any(finding.state == "problem" or finding.check == "migration" for finding in findings):
        findings += _projections(target, inline, asynchronous)
    return findings


def _versions() -> Finding:
    said = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            said.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            said.append(f"{package} is not installed")
    return Finding("versions", "ok", ", ".join(said))


def _projections(
    target: str | os.PathLike[str] | None,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection],
) -> list[Finding]:
    """How the projections stand, and what waits for a vacuum."""
    try:
        with closing(open_any(target, inline, for_rebuild=True, create=False)) as store:
            findings = _standing(store, inline, asynchronous)
            deleted = store.snapshot(_deleted)
    except EventStoreError as error:
        return [Finding.of("projections", error)]
    if deleted:
        findings.append(
            Finding(
                "deleted sessions",
                "note",
                f"{deleted:,} deleted sessions are still in the file",
                "Remove their events: adk-eventstore vacuum",
            )
        )
    return findings


def _deleted(snapshot: Snapshot) -> int:
    return sum(app.deleted for app in snapshot.count_by_app())


def _standing(
    store: EventStore, inline: Sequence[Projection], asynchronous: Sequence[Projection]
) -> list[Finding]:
    found = []
    here = {p.name: p for p in (*inline, *asynchronous, *installed.OPTIONAL)}
    standing = {each.projection: each for each in status(store)}
    for name, each in standing.items():
        message = remedy = ""
        if name not in here:
            message = f"{name} follows this log, and its code is not here"
            remedy = f"Install its package, or: adk-eventstore projections drop {name}"
        elif each.failed_at is not None:
            message = f"{name} is stopped at position {each.failed_at}: {each.failure}"
            remedy = f"Mend it, then: adk-eventstore projections run {name}"
        elif each.version < here[name].version:
            message = f"{name} was written by version {each.version}, not {here[name].version}"
            remedy = "A service makes it anew when it opens the file; or: rebuild-projections"
            if not each.inline:
                remedy = f"Make it anew: adk-eventstore projections run {name}"
        elif each.version > here[name].version:
            message = f"{name} was written by version {each.version}, this is {here[name].version}"
            remedy = "Upgrade the package that provides it."
        elif each.lag > _FAR_BEHIND:
            message = f"{name} is {each.lag:,} positions behind"
            remedy = f"Start a service, or: adk-eventstore projections run {name}"
        if message:
            found.append(Finding("projections", "warning", message, remedy))
    for name in sorted({p.name for p in inline} - standing.keys()):
        message = f"{name} was never built"
        found.append(Finding("projections", "warning", message, "Run: rebuild-projections"))
    if not found:
        names = ", ".join(sorted(standing))
        found.append(Finding("projections", "ok", f"{names} are as they should be"))
    return found

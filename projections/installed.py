"""The projections this environment provides: built in, or by packages through entry points.

A package names a projection, an instance or a class of one, in its pyproject.toml:

    [project.entry-points."adk_eventstore.asynchronous"]
    tool_calls = "my_package.projections:ToolCalls"

or under "adk_eventstore.inline" when its rows must be written with every append.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from itertools import product
from typing import Final

from eventstore import (
    EventStore,
    EventStoreError,
    InvalidProjection,
    Projection,
    ProjectionMissing,
)
from eventstore.projection import check_projection
from projections.sessions import SessionsProjection
from projections.state import StateProjection
from projections.usage import UsageProjection

__all__ = [
    "ASYNCHRONOUS_GROUP",
    "BUILT_IN",
    "INLINE_GROUP",
    "OPTIONAL",
    "asynchronous",
    "distinct",
    "following",
    "inline",
]

BUILT_IN: Final[tuple[Projection, ...]] = (SessionsProjection(), StateProjection())
"""The projections every database has."""

OPTIONAL: Final[tuple[Projection, ...]] = (UsageProjection(),)
"""The asynchronous projections that come with this package, off until somebody names them. From
then on the database has them registered, and every process uses them: see `following`."""

INLINE_GROUP: Final = "adk_eventstore.inline"
ASYNCHRONOUS_GROUP: Final = "adk_eventstore.asynchronous"


@cache
def inline() -> tuple[Projection, ...]:
    """The projections whose rows are written with every append: built in, then by name.

    Raises:
        ProjectionMissing: an installed one cannot be loaded.
        InvalidProjection: an installed one cannot be kept in a database.
    """
    return distinct((*BUILT_IN, *_load(INLINE_GROUP)))


@cache
def asynchronous() -> tuple[Projection, ...]:
    """The projections that packages want to be followed behind the appends, by name.

    Raises: as `inline`.
    """
    return distinct((*BUILT_IN, *_load(ASYNCHRONOUS_GROUP)))[len(BUILT_IN) :]


def following(store: EventStore, given: Iterable[Projection] = ()) -> tuple[Projection, ...]:
    """The asynchronous projections to use on a store, also to verify and to vacuum it.

    The installed ones, those the caller gives, and of OPTIONAL what the database has. Blocks for
    one read.

    Raises: as `inline`.
    """
    named = distinct((*asynchronous(), *given))
    for projection in named:
        store.check(projection)
    names = {projection.name for projection in named}
    registered = store.snapshot(lambda s: s.registered())
    for projection, (other, row) in product(named, registered.items()):
        if row.table == projection.table.name and other != projection.name:
            raise InvalidProjection(
                projection.name,
                f"has the table of {other!r}, which the database keeps: give it another, or drop "
                f"that one first (adk-eventstore projections drop {other})",
            )
    enabled = [
        projection
        for projection in OPTIONAL
        if projection.name not in names
        and projection.name in registered
        and registered[projection.name].checkpoint is not None
    ]
    return (*named, *enabled)


def distinct(projections: Iterable[Projection]) -> tuple[Projection, ...]:
    """The projections, checked: each can be kept in a database, and beside the others.

    Raises:
        InvalidProjection: one cannot.
    """
    checked = tuple(check_projection(projection) for projection in projections)
    views = [view for p in checked for view in {name for each in p.views.values() for name in each}]
    for names in ([p.name for p in checked], [p.table.name for p in checked], views):
        for name in names:
            if names.count(name) > 1:
                raise InvalidProjection(name, "has a name, table or view that another one has")
    for projection, ours in product(checked, OPTIONAL):
        taken = projection.name == ours.name or projection.table.name == ours.table.name
        if taken and not isinstance(projection, type(ours)):
            raise InvalidProjection(projection.name, f"has the name or table of {ours.name!r}")
    return checked


def _load(group: str) -> list[Projection]:
    found = []
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            projection = entry.load()
            found.append(projection() if isinstance(projection, type) else projection)
        except EventStoreError:
            raise
        except Exception as error:
            raise ProjectionMissing(
                entry.name,
                f"{entry.value}, which a package installs, cannot be loaded "
                f"({type(error).__name__})",
                "Mend that package or uninstall it.",
            ) from error
    return found

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
from typing import Final

from eventstore import EventStoreError, InvalidProjection, Projection, ProjectionMissing
from eventstore.projection import check_projection
from projections.sessions import SessionsProjection
from projections.state import StateProjection

__all__ = ["ASYNCHRONOUS_GROUP", "BUILT_IN", "INLINE_GROUP", "asynchronous", "distinct", "inline"]

BUILT_IN: Final[tuple[Projection, ...]] = (SessionsProjection(), StateProjection())
"""The projections every database has."""

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


def distinct(projections: Iterable[Projection]) -> tuple[Projection, ...]:
    """The projections, checked: each can be kept in a database, and beside the others.

    Raises:
        InvalidProjection: one cannot.
    """
    checked = tuple(check_projection(projection) for projection in projections)
    for names in ([p.name for p in checked], [p.table.name for p in checked]):
        for name in names:
            if names.count(name) > 1:
                raise InvalidProjection(name, "has a name or table that another one has")
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

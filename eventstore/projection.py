"""Projections: folds from the log to one table each.

A projection is a pure function from a recorded event to row changes, as data. No clock, no
randomness, no I/O: the same log always gives the same rows, whichever way it is folded.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from eventstore.changes import Add, Change, ColumnType, Delete, DeleteOwner, Put, Table, Update
from eventstore.encoding import decode, encode
from eventstore.errors import InvalidProjection, ProjectionFailed, ProjectionMissing
from eventstore.events import Deltas, EventType, NewEvent, RecordedEvent

__all__ = [
    "BulkProjection",
    "Projection",
    "carried_over",
    "carried_owners",
    "changes_of",
    "check_projection",
    "check_same",
    "is_table_name",
]

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,47}")
_TAKEN: Final = re.compile(
    r"(adk|sqlite|pg|shadow|retired)_.*|streams|events|codecs|maintenance|projections|eventstore"
)
_VIEW_NAME: Final = re.compile(r"adk_[a-z0-9_]{1,44}")
_LOG_VIEW: Final = "adk_events"
_TYPES: Final = {"integer", "real", "text"}


class Projection(ABC):
    """A named, versioned fold from the log to one table.

    Inline, its rows are written in the transaction of each append; asynchronous, from a checkpoint
    behind it. Raise `version` when `apply` or `table` changes: rows that another version wrote are
    made anew before they are served. The rows of a session go by themselves when it is deleted.
    """

    name: ClassVar[str]
    """A stable name, unique in a database."""
    version: ClassVar[int]
    """The version of the fold and its table, from 1."""
    table: ClassVar[Table]
    """The one table the fold writes."""
    views: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """SELECT statements for people who look with a shell: dialect ("sqlite", "postgresql") to view
    name to SQL. Tables are named without their schema. A view's name begins with `adk_`."""
    upgrades: ClassVar[Mapping[str, Mapping[int, str]]] = {}
    """SELECT statements that make this version's rows of an older version's table, exactly as a
    rebuild would, each for the owner that it had: dialect to that version to SQL. So a database is
    brought up to date when it is opened, with what was carried over of sessions that are removed.
    An inline projection without one asks for `rebuild-projections`."""

    _fits: ClassVar[bool] = False
    """Whether the changes are known to fit the table."""

    @abstractmethod
    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        """What `event` changes in the table: nothing for most events of most types."""


class BulkProjection(Projection):
    """A projection that needs no more of an event than its delta, and can fold many at once.

    So a rebuild reads less and calls less. `apply` stays the definition.
    """

    _fits: ClassVar[bool] = True

    @abstractmethod
    def apply_page(self, page: Deltas) -> Iterable[Change]:
        """The net changes of a page of events, to the same effect as `apply` on each, in order."""


def changes_of(projection: Projection, event: RecordedEvent) -> Iterable[Change]:
    """What an event changes in a projection's table when the log is folded.

    Every fold comes through here. An append does not apply an event that carries changes over:
    the rows have them already.
    """
    if event.type == EventType.CARRIED_OVER:
        return _carried_changes(projection, event)
    changes = projection.apply(event)
    if not projection._fits:  # noqa: SLF001 - one unit
        changes = _checked(projection, event, changes)
    if event.type == EventType.SESSION_DELETED:
        return (*changes, DeleteOwner(event.stream.id))
    return changes


def _checked(
    projection: Projection, event: RecordedEvent, changes: Iterable[Change]
) -> Iterator[Change]:
    """The changes, as long as a table holds each just as it is, on every backend and in memory.

    Without it a fold in memory and the database would disagree, and where the error is only found
    when rows are written, nobody could say which event it was.

    Raises:
        ProjectionFailed: it does not. Without what the change holds, which may be content.
    """
    table = projection.table
    for change in changes:
        if type(change) is Put:
            right = _fit(change.values, table.columns.values())
        elif type(change) is Update:
            names = change.columns
            right = names.keys() <= table.columns.keys() and _fit(
                names.values(), [table.columns[name] for name in names]
            )
        elif type(change) is Add:
            right = all(
                table.columns.get(name) == "integer" and _fits(n, "integer")
                for name, n in change.columns.items()
            )
        elif type(change) is DeleteOwner:
            right = _fits(change.owner, "integer")
        else:
            right = type(change) is Delete
        if right and not isinstance(change, DeleteOwner):
            right = _fit(change.key, table.key.values())
        if not right:
            kind = type(change).__name__
            raise ProjectionFailed(
                projection.name, event.position, f"a change does not fit its table: {kind}"
            )
        yield change


def _fit(values: Iterable[Any], kinds: Iterable[ColumnType]) -> bool:
    given, wanted = tuple(values), tuple(kinds)
    return len(given) == len(wanted) and all(map(_fits, given, wanted))


def _fits(value: Any, kind: ColumnType) -> bool:
    if kind == "text":
        return isinstance(value, str) and not _NO_TEXT.search(value)
    if isinstance(value, float):
        return kind == "real" and not math.isnan(value)
    whole = _LARGEST_INTEGER if kind == "integer" else _LARGEST_WHOLE_REAL
    return isinstance(value, int) and -whole <= value <= whole


_LARGEST_INTEGER: Final = 2**63 - 1
_LARGEST_WHOLE_REAL: Final = 2**53
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")


def carried_over(
    projection: Projection,
    changes: Sequence[Put | Delete | DeleteOwner],
    timestamp: float,
    event_id: str,
) -> NewEvent:
    """An event that makes rows as they are now, in place of events which are removed."""
    changed = [list(change) for change in changes]
    body = {"projection": projection.name, "version": projection.version, "changes": changed}
    (data,), encoding = encode([body], f"what projection {projection.name!r} carries over")
    return NewEvent(
        event_id=event_id,
        type=EventType.CARRIED_OVER,
        timestamp=timestamp,
        data=data,
        encoding=encoding,
    )


def carried_owners(projection: Projection, version: int, event: RecordedEvent) -> Iterator[int]:
    """Whose rows an event carries over that some version of a projection has written."""
    assert event.data is not None
    body = decode(event.data, event.encoding)
    if (body["projection"], body["version"]) == (projection.name, version):
        for key, *_ in body["changes"]:
            yield key if isinstance(key, int) else key[0]


def _carried_changes(projection: Projection, event: RecordedEvent) -> Iterable[Change]:
    assert event.data is not None
    body = decode(event.data, event.encoding)
    # Another version of the fold would have made other changes; what it would have made of the
    # removed events nobody can know any more.
    if (body["projection"], body["version"]) == (projection.name, projection.version):
        for key, *values in body["changes"]:
            if isinstance(key, int):
                yield DeleteOwner(key)
            else:
                yield Put(tuple(key), tuple(values[0])) if values else Delete(tuple(key))


def check_same(path: str, active: Iterable[Projection], wanted: Iterable[Projection]) -> None:
    """Asserts that a store is opened with the inline projections that others of the process have.

    Raises:
        ProjectionMissing: one is missing, or of another version.
    """
    names = {(projection.name, projection.version) for projection in active}
    for name, version in names ^ {(projection.name, projection.version) for projection in wanted}:
        raise ProjectionMissing(
            name,
            f"another store of this process has {path} open with other projections than version "
            f"{version} of it",
            "Open all stores on a database with the same projections.",
        )


def is_table_name(name: str) -> bool:
    """Whether a projection's table can have this name: none that is the log's own."""
    return _NAME.fullmatch(name) is not None and _TAKEN.fullmatch(name) is None


def check_projection(projection: Any) -> Projection:
    """Returns `projection` when a database can hold it.

    Raises:
        InvalidProjection: a name, version, table or view is not as Projection and Table say.
    """
    if not isinstance(projection, Projection):
        raise InvalidProjection(repr(type(projection)), "is no eventstore.Projection")
    try:
        name, version, table = projection.name, projection.version, Table(*projection.table)
        columns = {**table.key, **table.columns}
        views = [name for views in projection.views.values() for name in views.keys()]  # noqa: SIM118
    except (AttributeError, TypeError) as error:
        raise InvalidProjection(type(projection).__name__, f"lacks a part: {error}") from None
    if not isinstance(version, int) or version < 1:
        raise InvalidProjection(str(name), "must have a version that is a whole number from 1")
    if len(columns) != len(table.key) + len(table.columns) or not table.columns or not table.key:
        raise InvalidProjection(name, "must have key columns and other columns, of distinct names")
    if table.key[table.owner] != "integer" or not set(columns.values()) <= _TYPES:
        raise InvalidProjection(
            name, "must have an integer first, the owning stream, and types integer, real and text"
        )
    if not {column for each in table.indexes.values() for column in each} <= columns.keys():
        raise InvalidProjection(name, "has an index on a column that its table does not have")
    for text in (name, table.name, *columns, *table.indexes):
        if not isinstance(text, str) or not _NAME.fullmatch(text):
            raise InvalidProjection(
                str(name), f"has a name that is not of the form {_NAME.pattern}: {text!r}"
            )
    if not is_table_name(table.name):
        raise InvalidProjection(name, f"has a table name that is taken: {table.name}")
    for view in views:
        if not isinstance(view, str) or not _VIEW_NAME.fullmatch(view):
            raise InvalidProjection(name, f"has a view whose name is not adk_...: {view!r}")
        if view == _LOG_VIEW:
            raise InvalidProjection(name, f"has a view name that is taken: {view}")
    return projection

"""Rebuild: fold the log from position 0 and put the result in place of the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from eventstore import (
    EventStore,
    InlineProjection,
    MaintenanceTransaction,
    Row,
    Rows,
    apply_in_memory,
)

__all__ = ["Rebuilt", "rebuild"]


class Rebuilt(NamedTuple):
    """What a rebuild did to one projection.

    `changed` counts the rows that were added, removed or got other values; None when the table
    was missing or lacked columns, so that there was nothing to compare with.
    """

    projection: str
    events: int
    rows: int
    changed: int | None


def rebuild(store: EventStore, projections: Sequence[InlineProjection]) -> list[Rebuilt]:
    """Folds the whole log and replaces the tables, in one transaction.

    Writers wait meanwhile; readers see the tables as they were until it is done. Interrupted at
    any point, nothing has changed. Blocks. The tables are held in memory while they are made.

    Raises:
        CorruptEvent: the log itself is damaged; nothing was replaced.
        StorageFailed, StoreBusy: nothing was replaced.
    """

    def function(transaction: MaintenanceTransaction) -> list[Rebuilt]:
        folded: dict[str, Rows] = {projection.name: {} for projection in projections}
        events = 0
        for event in transaction.read_all():
            events += 1
            for projection in projections:
                apply_in_memory(projection.table, folded[projection.name], projection.apply(event))
        return [
            _replace(transaction, projection, folded[projection.name], events)
            for projection in projections
        ]

    return store.transact(function)


def _replace(
    transaction: MaintenanceTransaction, projection: InlineProjection, folded: Rows, events: int
) -> Rebuilt:
    rows = sorted(_whole_rows(folded))
    before = transaction.table_rows(projection)
    changed = None if before is None else _difference(set(before), set(rows), projection)
    transaction.replace_table(projection, rows)
    return Rebuilt(projection.name, events, len(rows), changed)


def _whole_rows(folded: Rows) -> Iterator[Row]:
    for owned in folded.values():
        for key, values in owned.items():
            yield key + values


def _difference(before: set[Row], after: set[Row], projection: InlineProjection) -> int:
    """How many keys have other values, or none on one side."""
    width = len(projection.table.key)
    return len({row[:width] for row in before ^ after})

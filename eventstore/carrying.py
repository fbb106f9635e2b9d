"""Rows that are noted in the log as they are, in place of events which are removed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Final

from eventstore.changes import Delete, DeleteOwner, Put
from eventstore.events import Stream
from eventstore.projection import Projection, carried_over, carried_owners
from eventstore.store import MaintenanceTransaction

__all__ = ["carry_anew", "note_rows", "owned_as_they_are", "stream_for"]

_OWNERS_PER_EVENT: Final = 100
_EVENTS_PER_PAGE: Final = 500


def owned_as_they_are(
    transaction: MaintenanceTransaction, projection: Projection, owner: int
) -> list[Put | Delete | DeleteOwner]:
    """The changes that make an owner's rows as they are, whatever there was before."""
    width = len(projection.table.key)
    rows = transaction.owned_rows(projection, [owner])
    return [DeleteOwner(owner), *(Put(row[:width], row[width:]) for row in rows)]


def stream_for(transaction: MaintenanceTransaction, owner: int) -> Stream:
    """The stream to note an owner's rows on: its own, if it has one that stays."""
    facts = transaction.get_facts([owner]).get(owner)
    return facts.stream if facts and facts.live else transaction.ensure_system_stream()


def note_rows(
    transaction: MaintenanceTransaction,
    projection: Projection,
    stream: Stream,
    changes: Iterable[Put | Delete | DeleteOwner],
) -> None:
    """Notes on a stream how some rows of a projection are now."""
    new = carried_over(projection, list(changes), time.time(), uuid.uuid4().hex)
    transaction.append(stream, new)


def carry_anew(transaction: MaintenanceTransaction, projection: Projection, version: int) -> None:
    """Notes the rows of owners that events of an older version carry over, as they are now.

    For a table that was made of the older version's: a fold takes only what its own version has
    carried over, and would come to less than what is in the table.
    """
    owners: dict[int, None] = {}
    positions = transaction.positions_carried_over()
    for start in range(0, len(positions), _EVENTS_PER_PAGE):
        for event in transaction.read_positions(positions[start : start + _EVENTS_PER_PAGE]):
            owners.update(dict.fromkeys(carried_owners(projection, version, event)))
    ended: list[int] = []
    for owner in owners:
        stream = stream_for(transaction, owner)
        if stream.id == owner:
            changes = owned_as_they_are(transaction, projection, owner)
            note_rows(transaction, projection, stream, changes)
        else:
            ended.append(owner)
    for start in range(0, len(ended), _OWNERS_PER_EVENT):
        batch = ended[start : start + _OWNERS_PER_EVENT]
        changes = [c for o in batch for c in owned_as_they_are(transaction, projection, o)]
        note_rows(transaction, projection, transaction.ensure_system_stream(), changes)

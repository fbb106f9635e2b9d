"""Verify on a server: whatever its owner changes is found and named, as it is in a file.

The edits are those of tests/projections/test_verify.py, on one log that is put right after each.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from contextlib import closing

import pytest

from eventstore import (
    Appended,
    Change,
    CorruptEvent,
    EventStore,
    Projection,
    Put,
    RecordedEvent,
    Table,
    Window,
    open_store,
)
from projections import BUILT_IN, run, scavenge, verify
from tests.conftest import Place, new_schema
from tests.eventstore.events import new_event, session
from tests.places import query
from tests.postgres.test_hostile_server import make
from tests.projections.logs import FOLLOWING, INLINE, attack
from tests.projections.test_verify import (
    EVENT_EDITS,
    ROW_EDITS,
    STREAM_EDITS,
    _end_the_log,
    _make,
)

TABLES = ("events", "streams", "codecs", "state", "sessions", "everything", "following")


@pytest.fixture(scope="module")
def made(postgres_url: str) -> Iterator[Place]:
    """A log, and copies of its tables beside it."""
    with new_schema(postgres_url) as place:
        with closing(open_store(place.target, INLINE)) as store:
            asyncio.run(_make(store))
            run(store, FOLLOWING)
            query(place.target, "UPDATE streams SET live = true WHERE session_id = 'ended'")
            scavenge(store, INLINE, FOLLOWING)
            query(place.target, "UPDATE streams SET live = false WHERE session_id = 'ended'")
            asyncio.run(_end_the_log(store))
            run(store, FOLLOWING)
        query(place.target, *(f"CREATE TABLE saved_{t} AS TABLE {t}" for t in TABLES))
        yield place


@pytest.fixture
def log(made: Place) -> Iterator[Place]:
    yield made
    for table in TABLES:
        attack(
            made.target,
            f"DELETE FROM {table}",
            f"INSERT INTO {table} SELECT * FROM saved_{table}",
        )


@pytest.fixture(scope="module")
def store(made: Place) -> Iterator[EventStore]:
    with closing(open_store(made.target, INLINE)) as opened:
        yield opened


class Everywhere(Projection):
    """Keeps a row of each scope that a session belongs to."""

    name = "everywhere"
    version = 1
    table = Table("everywhere", key={"stream_id": "integer"}, columns={"n": "integer"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        return [Put((owner,), (1,)) for owner in event.stream.owners.values()]


def spelled(edit: str) -> str:
    """An edit as PostgreSQL has it."""
    edit = re.sub(r"x'([0-9a-f]*)'", r"'\\x\1'::bytea", edit)
    edit = re.sub(r"zeroblob\((\d+)\)", r"decode(repeat('00', \1), 'hex')", edit)
    return edit.replace("live = 1", "live = true").replace("live = 0", "live = false")


def test_an_untouched_log_is_clean(log: Place, store: EventStore) -> None:
    report = verify(store, INLINE, FOLLOWING)
    assert (report.clean, report.differences) == (True, [])
    assert report.anchor is not None


# A text that is no UTF-8 is none that this database holds.
@pytest.mark.parametrize("edit", [e for e in EVENT_EDITS if "AS TEXT" not in e])
def test_an_event_that_was_changed_is_named(log: Place, store: EventStore, edit: str) -> None:
    attack(log.target, spelled(edit))
    report = verify(store, INLINE, FOLLOWING)
    assert not report.log_is_whole
    assert report.drifted["events"]
    assert not verify(store, INLINE, FOLLOWING, fix=True).clean


@pytest.mark.parametrize(("table", "edit"), ROW_EDITS)
def test_a_row_that_was_changed_is_named(
    log: Place, store: EventStore, table: str, edit: str
) -> None:
    query(log.target, spelled(edit))
    report = verify(store, INLINE, FOLLOWING)
    assert table in report.drifted
    assert report.log_is_whole


@pytest.mark.parametrize(("stream", "edit"), STREAM_EDITS)
def test_a_row_of_streams_that_was_changed_is_named(
    log: Place, store: EventStore, stream: int, edit: str
) -> None:
    query(log.target, spelled(f"UPDATE streams SET {edit} WHERE id = {stream}"))
    assert not verify(store, INLINE, FOLLOWING).clean


async def test_a_changed_event_is_never_served(log: Place, store: EventStore) -> None:
    attack(log.target, "UPDATE events SET data = '{}' WHERE stream_id = 3 AND version = 3")
    with pytest.raises(CorruptEvent, match="version 3"):
        await store.load(session("one"), Window(), len)
    found = await store.load_intact(
        session("one"), Window(), lambda loaded, damaged: (len(loaded.events), len(damaged))
    )
    assert found == (3, 1)
    attack(log.target, "DELETE FROM events WHERE stream_id = 3 AND version = 3")
    for window in (Window(), Window(last=3)):
        with pytest.raises(CorruptEvent, match="missing"):
            await store.load(session("one"), window, len)


@pytest.mark.parametrize("scope", ["app", "user"])
@pytest.mark.parametrize("delta", ["named", "not named"])
async def test_a_row_that_names_a_stream_that_is_none_fails_its_own_appends_only(
    postgres: Place, scope: str, delta: str
) -> None:
    with closing(open_store(postgres.target, (*BUILT_IN, Everywhere()))) as store:
        one, two = await make(store, "1", "2")
        row = "UPDATE streams SET {0}_stream_id = {1} WHERE session_id = '1'"
        query(postgres.target, row.format(scope, 99))
        event = new_event(delta={scope: {"k": 1}} if delta == "named" else None)
        told = await asyncio.wait_for(
            asyncio.gather(
                store.append(session("1"), event, one),
                store.append(session("2"), new_event(), two),
                return_exceptions=True,
            ),
            30,
        )
        assert [type(each) for each in told] == [CorruptEvent, Appended]
        live = f"(SELECT id FROM streams WHERE kind = '{scope}')"
        query(postgres.target, row.format(scope, live))
        await store.append(session("1"), event, one)
        assert verify(store, (*BUILT_IN, Everywhere())).clean

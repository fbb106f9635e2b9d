"""The law of the log: whatever was done, folding it gives the tables, row for row."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore import (
    Cursor,
    EventStore,
    EventType,
    StreamExists,
    StreamNotFound,
    Window,
    WrongExpectedVersion,
    open_store,
)
from projections import BUILT_IN, rebuild, scavenge
from tests.eventstore.events import created, new_event, session

KEYS = st.sampled_from(["a", "b", "", "ключ", 'q"uote'])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["é", "\ud800", "\0"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=3,
)
DELTAS = st.dictionaries(
    st.sampled_from(["session", "user", "app"]),
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=3),
    min_size=1,
)
NAMES = st.tuples(
    st.sampled_from(["1", "2"]), st.sampled_from(["u", ""]), st.sampled_from(["app", "other"])
)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), NAMES, DELTAS),
    st.tuples(st.just("append"), NAMES, DELTAS),
    st.tuples(st.just("set"), NAMES, DELTAS),
    st.tuples(st.just("delete"), NAMES, st.none()),
    st.tuples(st.just("scavenge"), NAMES, st.none()),
    st.tuples(st.just("restart"), NAMES, st.none()),
)


async def perform(store: EventStore, kind: str, name: tuple[str, str, str], delta: Any) -> None:
    key = session(*name)
    if kind == "create":
        await store.create(key, created(**delta))
    elif kind == "append":
        stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
        cursor = Cursor(stream.id, stream.conversation_version) if stream else Cursor(0, 0)
        await store.append(key, new_event(delta=delta), cursor)
    elif kind == "set":
        await store.set_state(key, new_event(EventType.STATE_SET, delta=delta))
    elif kind == "delete":
        await store.delete(key, new_event(EventType.SESSION_DELETED))


def rows(store: EventStore) -> dict[str, set[Any]]:
    return {
        projection.name: set(store.snapshot(lambda s, p=projection: s.table_page(p, None, 10_000)))
        for projection in BUILT_IN
    }


def values(store: EventStore) -> set[tuple[Any, ...]]:
    """The state without the positions, which carrying over changes."""
    return {row[:3] for row in rows(store)["state"]}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, max_size=25))
def test_fold_of_the_log_equals_the_tables(operations: list[tuple[str, Any, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        store = open_store(path, BUILT_IN)
        for kind, name, delta in operations:
            if kind == "scavenge":
                before = values(store)
                scavenge(store, BUILT_IN)
                assert values(store) == before
            elif kind == "restart":
                store.close()
                store = open_store(path, BUILT_IN)
            else:
                try:
                    asyncio.run(perform(store, kind, name, delta))
                except (StreamExists, StreamNotFound, WrongExpectedVersion):
                    continue
        before_rebuild = rows(store)
        rebuild(store, BUILT_IN)
        assert rows(store) == before_rebuild
        store.close()

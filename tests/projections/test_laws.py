"""The law of the log: whatever was done, folding it gives the tables, row for row."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore import EventStore, StreamNotFound, open_store
from projections import (
    BUILT_IN,
    Scope,
    erase_user,
    list_sessions,
    purge,
    rebuild,
    rebuild_scope,
    run,
    scavenge,
    set_labels,
    set_title,
    verify,
)
from projections.retention import _end_all
from tests.conftest import new_schema
from tests.eventstore.events import session
from tests.places import leftovers
from tests.projections.logs import DO, FOLLOWING, INLINE, perform_all, rows

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
DOINGS = st.tuples(
    st.sampled_from(["put", "update", "add", "delete", "empty"]),
    st.sampled_from(["x", "y", "events"]),
    st.integers(-5, 5),
).map(list)
MEMBERS = st.builds(
    lambda members, doing: members | ({} if doing is None else {DO: doing}),
    st.dictionaries(KEYS, VALUES, max_size=2),
    st.none() | DOINGS,
)
DELTAS = st.dictionaries(st.sampled_from(["session", "user", "app"]), MEMBERS, min_size=1)
NAMES = st.sampled_from(
    [("1", "u", "app")] * 3 + [("2", "u", "app")] * 2 + [("1", "", "app"), ("2", "u", "other")]
)
WRITES = st.tuples(st.sampled_from(["create", "append", "append", "set"]), NAMES, DELTAS)
MAINTENANCE = [
    *("scavenge", "restart", "rebuild", "repair", "follow", "anchor"),
    *("purge", "erase", "end", "describe", "rewrite"),
]
OPERATIONS = st.one_of(
    WRITES,
    WRITES,
    st.tuples(st.just("delete"), NAMES, st.none() | DELTAS),
    st.tuples(
        st.sampled_from(MAINTENANCE),
        NAMES,
        st.none(),
    ),
)
EVERYTHING = (*INLINE, *FOLLOWING)


def without_positions(store: EventStore) -> dict[str, list[Any]]:
    """All rows, those of the state without the positions, which carrying over changes."""
    found = rows(store, EVERYTHING)
    return found | {"state": [row[:3] for row in found["state"]]}


def doing(kind: str, name: str, scope: str, what: str, number: int = 1) -> tuple[str, Any, Any]:
    return kind, (name, "u", "app"), {scope: {DO: [what, "x", number]}}


DELETE_1 = ("delete", ("1", "u", "app"), None)
SCAVENGE = ("scavenge", ("1", "u", "app"), None)


# What is removed comes before, between and behind what stays.
EXAMPLES = [
    [  # what is updated has no row
        ("create", ("1", "u", "app"), {}),
        doing("append", "1", "session", "update"),
        doing("append", "1", "session", "add"),
        doing("append", "1", "app", "update"),
    ],
    [
        doing("create", "1", "app", "add", 3),
        doing("create", "2", "app", "put", 5),
        DELETE_1,
        SCAVENGE,
    ],
    [
        doing("create", "1", "user", "put", 3),
        doing("create", "2", "user", "update", 5),
        doing("append", "2", "user", "add", 5),
        DELETE_1,
        SCAVENGE,
    ],
    [
        doing("create", "2", "app", "put", 5),
        doing("create", "1", "app", "delete"),
        DELETE_1,
        SCAVENGE,
    ],
    [
        doing("create", "2", "app", "put", 5),
        doing("create", "1", "app", "empty"),
        doing("append", "2", "app", "add", 7),
        DELETE_1,
        SCAVENGE,
    ],
    [
        doing("create", "1", "user", "put", 3),
        doing("create", "2", "app", "put", 5),
        ("append", ("2", "u", "app"), {"user": {"a": 1}, "app": {"b": 2}}),
        ("end", ("1", "u", "app"), None),
        ("create", ("1", "u", "app"), {"user": {"a": 3}}),
        SCAVENGE,
        ("erase", ("1", "u", "app"), None),
    ],
]


def fold_and_compare(path: str, operations: list[tuple[str, Any, Any]]) -> None:
    store = open_store(path, INLINE)
    try:
        run(store, FOLLOWING)
        anchors = []
        for kind, name, delta in operations:
            if kind == "scavenge":
                run(store, FOLLOWING)
                before = without_positions(store)
                scavenge(store, INLINE, FOLLOWING)
                after = without_positions(store)
                # Only events that somebody counts have come.
                for each in (before, after):
                    for table in ("everything", "following"):
                        each[table] = [row for row in each[table] if row[1] != "events"]
                assert after == before
            elif kind == "purge":
                purge(store, INLINE, FOLLOWING, older_than=0, app_name=name[2])
                assert not list_sessions(store, name[2]).sessions
            elif kind == "erase":
                done = erase_user(
                    store, INLINE, FOLLOWING, user_id=name[1], app_name=name[2], rewrite=False
                )
                assert not done.gone or not done.events
                assert not list_sessions(store, name[2], name[1]).sessions
                assert not store.snapshot(lambda s, n=name: s.streams_of_user(n[1], n[2]))
            elif kind == "end":  # an erasure that was ended in the middle
                _end_all(store, name[1], name[2])
            elif kind == "describe":
                with suppress(StreamNotFound):
                    set_title(store, session(*name), f"title {len(anchors)}")
                    set_labels(store, session(*name), {"a": "b", name[0]: None})
            elif kind == "rewrite":
                assert store.rewrite().gone
            elif kind == "restart":
                store.close()
                store = open_store(path, INLINE)
            elif kind == "rebuild":
                before = rows(store, INLINE)
                rebuild(store, INLINE)
                assert rows(store, INLINE) == before
            elif kind == "repair":
                try:
                    scope = Scope(name[2], *name[1::-1])
                    done = rebuild_scope(store, INLINE, FOLLOWING, scope)
                    done += rebuild_scope(store, INLINE, FOLLOWING, Scope(name[2]))
                except StreamNotFound:
                    continue
                assert {each.changed for each in done} == {0}
            elif kind == "follow":
                run(store, FOLLOWING)
            elif kind == "anchor":
                anchor = verify(store, INLINE, FOLLOWING).anchor
                assert anchor is not None
                anchors.append(anchor)
            else:
                perform_all(store, [(kind, name, delta)])
        assert verify(store, INLINE, FOLLOWING).clean
        run(store, FOLLOWING)
        before = rows(store, EVERYTHING)
        assert before["following"] == before["everything"]
        for since in range(1, store.stats()["head"] + 1, 4):
            report = verify(store, INLINE, FOLLOWING, since=since)
            assert (report.clean, report.differences) == (True, [])
        for anchor in anchors:
            report = verify(store, INLINE, FOLLOWING, against=anchor)
            assert (report.clean, report.differences) == (True, [])
        rebuild(store, INLINE, FOLLOWING)
        assert rows(store, EVERYTHING) == before
        rebuild(store, BUILT_IN)
        assert rows(store, EVERYTHING) == before
        assert leftovers(path) == []
    finally:
        store.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, max_size=25))
def test_fold_of_the_log_equals_the_tables(operations: list[tuple[str, Any, Any]]) -> None:
    with TemporaryDirectory() as folder:
        fold_and_compare(str(Path(folder) / "a.db"), operations)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(operations=st.lists(OPERATIONS, max_size=25))
def test_it_does_on_a_server(postgres_url: str, operations: list[tuple[str, Any, Any]]) -> None:
    with new_schema(postgres_url) as place:
        fold_and_compare(place.target, operations)


@pytest.mark.parametrize("operations", EXAMPLES)
def test_what_was_removed_changes_nothing(
    target: str, operations: list[tuple[str, Any, Any]]
) -> None:
    fold_and_compare(target, operations)

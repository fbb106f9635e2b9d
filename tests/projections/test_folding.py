"""Folding in memory, spilled, by pages and in SQL: all give the same rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventstore import (
    Add,
    BulkProjection,
    Change,
    Delete,
    DeleteOwner,
    Projection,
    ProjectionFailed,
    Put,
    Row,
    Table,
    Update,
    changes_of,
    open_store,
)
from eventstore.sqlite.tables import ProjectionTable, create_table
from projections import BUILT_IN, rebuild
from projections import folding as foldings
from projections.folding import DeltaPage, EventPage, FoldedTable
from tests.projections.logs import INLINE, perform_all, rows
from tests.projections.test_laws import OPERATIONS


class Of(Projection):
    """A projection of a table, of which nobody folds an event."""

    name = "rows"
    version = 1
    table = Table(
        "rows",
        key={"owner_id": "integer", "name": "text", "size": "real"},
        columns={"n": "integer", "m": "integer", "said": "text", "weight": "real"},
    )

    def apply(self, event: object) -> Any:
        raise NotImplementedError


INTEGERS = st.integers(-(2**40), 2**40)
REALS = st.floats(allow_nan=False, width=32)
TEXTS = st.sampled_from(["", "a", "Z", "é", "z\0z", "\U0001f600", "\uffff", "1"])
OWNERS = st.integers(1, 3)
TABLE_KEYS = st.tuples(OWNERS, TEXTS, st.sampled_from([0.0, -0.0, 1.5, -2.0, float("inf"), 1e300]))
UPDATES = st.fixed_dictionaries(
    {}, optional={"n": INTEGERS, "m": INTEGERS, "said": TEXTS, "weight": REALS}
).filter(bool)
ADDS = st.fixed_dictionaries({}, optional={"n": INTEGERS, "m": INTEGERS}).filter(bool)
CHANGES = st.one_of(
    st.builds(Put, TABLE_KEYS, st.tuples(INTEGERS, INTEGERS, TEXTS, REALS)),
    st.builds(Update, TABLE_KEYS, UPDATES),
    st.builds(Add, TABLE_KEYS, ADDS),
    st.builds(Delete, TABLE_KEYS),
    st.builds(DeleteOwner, OWNERS),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(CHANGES, max_size=8), max_size=10), st.integers(0, 6))
def test_sql_and_folds_in_memory_and_spilled_give_the_same_rows(
    batches: list[list[Change]], rows_in_memory: int
) -> None:
    with (
        closing(sqlite3.connect(":memory:", isolation_level=None)) as connection,
        closing(FoldedTable(Of.table)) as whole,
        closing(FoldedTable(Of.table, rows_in_memory=rows_in_memory)) as spilled,
    ):
        connection.execute(create_table(Of()))
        table = ProjectionTable(Of())
        for batch in batches:
            table.apply(connection, batch)
            whole.apply(batch)
            spilled.apply(batch)
            for owner in (1, 2, 3):
                owned = table.rows(connection, [owner])
                assert whole.owned_rows(owner) == spilled.owned_rows(owner) == owned
        stored: list[Row] = table.page(connection, None, 1000)
        assert list(whole.rows()) == list(spilled.rows()) == stored
        assert whole.row_count() == spilled.row_count() == table.count(connection) == len(stored)


def test_what_is_no_change_is_refused() -> None:
    with closing(FoldedTable(Of.table)) as table, pytest.raises(TypeError, match="str"):
        table.apply(["put"])  # type: ignore[list-item]


def test_a_table_beyond_the_bound_leaves_memory() -> None:
    with closing(FoldedTable(Of.table, rows_in_memory=100)) as table:
        for n in range(50):
            table.apply(Put((n, str(m), 0.0), (n, m, "", 0.0)) for m in range(40))
            assert sum(map(len, table._rows.values())) <= 100
        assert table.row_count() == 2000


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        OPERATIONS.filter(lambda o: o[0] in ("create", "append", "set", "delete")), max_size=15
    )
)
def test_folding_by_pages_of_any_size_equals_folding_event_by_event(
    operations: list[tuple[str, Any, Any]],
) -> None:
    with TemporaryDirectory() as folder, closing(open_store(Path(folder) / "a", BUILT_IN)) as store:
        perform_all(store, operations)
        head = store.snapshot(lambda s: s.head())
        events = store.snapshot(lambda s: s.read_all(0, head, head + 1))
        inline = rows(store)
        for projection in BUILT_IN:
            assert isinstance(projection, BulkProjection)
            with closing(FoldedTable(projection.table)) as one_by_one:
                for event in events:
                    one_by_one.apply(changes_of(projection, event))
                assert list(one_by_one.rows()) == inline[projection.name]
            for size in range(1, head + 1):
                with closing(FoldedTable(projection.table, rows_in_memory=2)) as paged:
                    for after in range(0, head, size):
                        upto = min(after + size, head)
                        deltas = store.snapshot(lambda s, a=after, u=upto: s.read_deltas(a, u))
                        paged.apply(DeltaPage(deltas).changes(projection))
                    assert list(paged.rows()) == inline[projection.name]


@pytest.mark.parametrize("projections", [BUILT_IN, INLINE])
def test_a_rebuild_in_small_pages_with_few_rows_in_memory(
    database: Path, projections: tuple[Projection, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foldings, "PAGE_EVENTS", 3)
    monkeypatch.setattr(foldings, "WHOLE_PAGE_EVENTS", 3)
    monkeypatch.setattr(foldings.FoldedTable.__init__, "__kwdefaults__", {"rows_in_memory": 2})
    with closing(open_store(database, projections)) as store:
        names = [(str(n), "user", "app") for n in range(4)]
        deltas = [
            {
                "session": {f"k{n}": n, "do": ["put", f"row{n}", n]},
                "app": {"a": n},
                "user": {"u": n},
            }
            for n in range(12)
        ]
        perform_all(store, [("create", name, {}) for name in names])
        perform_all(store, [("append", names[n % 4], delta) for n, delta in enumerate(deltas)])
        perform_all(store, [("delete", names[0], None)])
        before = rows(store, projections)
        assert len(before["state"]) > 10
        seen: list[int] = []
        rebuild(store, projections, progress=lambda events, *_: seen.append(events))
        assert list(dict.fromkeys(seen)) == [3, 6, 9, 12, 15, 17]
        assert rows(store, projections) == before


class Poisoned(BulkProjection):
    """Raises on the third event."""

    name = "poisoned"
    version = 1
    table = Of.table

    def apply(self, event: Any) -> Any:
        if event.position == 3:
            raise LookupError("content")
        return ()

    def apply_page(self, page: Any) -> Any:
        if any(stream.last == 3 for stream in page.streams):
            raise LookupError("content")
        return ()


def test_who_cannot_fold_an_event_is_named_without_what_it_holds(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        perform_all(store, [("create", (str(n), "user", "app"), {}) for n in range(4)])
        events = store.snapshot(lambda s: s.read_all(0, 4, 10))
        deltas = store.snapshot(lambda s: s.read_deltas(0, 4))
        page = EventPage(events, 4)
        with pytest.raises(ProjectionFailed, match="'poisoned' failed at position 3") as raised:
            list(page.changes(Poisoned()))
        assert "content" not in str(raised.value)
        with pytest.raises(ProjectionFailed, match=r"'poisoned' .* before position 5") as raised:
            list(DeltaPage(deltas).changes(Poisoned()))
        assert "content" not in str(raised.value)
        before = rows(store)
        with pytest.raises(ProjectionFailed):
            rebuild(store, (*BUILT_IN, Poisoned()))
        assert rows(store) == before

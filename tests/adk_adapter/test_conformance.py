"""This service against the whole contract, and ADK's own services as the reference.

Where ADK's deviate they must, and as it is written here: the lists are facts about ADK 2.13, and
fail when it changes. What they lose in races is not listed, as it is not lost every time.
"""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, InMemorySessionService
from google.adk.sessions import DatabaseSessionService as AdkDatabaseSessionService
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from sqlalchemy.exc import IntegrityError

from adk_adapter import DatabaseSessionService
from adk_adapter._adk import AlreadyExistsError, StaleSessionError, adk_version
from adk_adapter.testing import (
    FULL_EVENT,
    AppendContract,
    ConcurrencyContract,
    Deviation,
    RetryContract,
    SessionServiceContract,
    StalenessContract,
)


class TestDatabaseSessionService(SessionServiceContract, ConcurrencyContract):
    @pytest.fixture
    async def service(self, target: str) -> AsyncIterator[DatabaseSessionService]:
        async with DatabaseSessionService(target) as opened:
            yield opened

    @pytest.mark.parametrize("method", sorted(BaseSessionService.__abstractmethods__))
    def test_no_arbitrary_keywords(self, method: str) -> None:
        """1.2 ADK's server passes on what a signature takes, and refuses the rest."""
        parameters = inspect.signature(getattr(DatabaseSessionService, method)).parameters
        assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())


class TestFullDurability(AppendContract, RetryContract, StalenessContract, ConcurrencyContract):
    @pytest.fixture
    async def service(self, target: str) -> AsyncIterator[DatabaseSessionService]:
        async with DatabaseSessionService(target, durability="full") as opened:
            yield opened


REFERENCE = pytest.mark.skipif(
    tuple(map(int, adk_version.split(".")[:2])) < (2, 13), reason="the lists are of ADK 2.13"
)

PYTHON_OBJECTS = Deviation("keeps Python objects, not JSON data")
NOT_COERCED = Deviation("keeps Python objects, not JSON data", TypeError)
SHARED = Deviation("keeps the caller's own objects")
NO_STALENESS = Deviation("does not look for stale sessions")
ANY_TIMESTAMP = Deviation("stores a timestamp that is no finite number")
BY_TIME = Deviation("loads events by timestamp")
AUTH_BY_NAME = Deviation("writes auth schemes by field name: they are loaded as something else")
SUBCLASS_FIELDS = Deviation(
    "stores the fields of a subclass: the session cannot be loaded again", pydantic.ValidationError
)
NOT_UTF8 = Deviation("cannot store bytes that are no UTF-8", UnicodeDecodeError)
SAME_TIME = Deviation("sees no change when the time is the same")
SQLITE_JSON = Deviation(
    "merges state with SQLite's JSON functions", (AssertionError, sqlite3.Error), strict=False
)
STALE_BY_TIME = Deviation("goes by last_update_time alone", StaleSessionError)
REFUSED_RETRY = Deviation("refuses a retry", sqlite3.IntegrityError)
VERBATIM_ID = Deviation("takes ids as they are")
BLANK_ID = Deviation("takes a blank id for an id", AlreadyExistsError)
REFUSED_RETRY_SQL = Deviation("refuses a retry", IntegrityError)
INFINITE = Deviation("raises what is no ValueError", OverflowError)

IN_MEMORY = {
    "test_create_returns_what_is_stored": PYTHON_OBJECTS,
    "test_create_copies_what_it_is_given": SHARED,
    "test_an_old_object_cannot_write_into_the_new_session[later]": NO_STALENESS,
    "test_an_old_object_cannot_write_into_the_new_session[same]": NO_STALENESS,
    "test_append_copies_what_it_stores": SHARED,
    "test_a_refused_append_changes_nothing": Deviation("refuses no event"),
    "test_a_retry_with_its_temp_keys": Deviation("compares it with the trimmed event"),
    "test_a_stale_session_is_refused[later]": NO_STALENESS,
    "test_a_stale_session_is_refused[same]": NO_STALENESS,
    "test_a_stale_session_is_refused[earlier]": NO_STALENESS,
    "test_a_stale_session_restored_from_json": NO_STALENESS,
    "test_state_is_plain_data": PYTHON_OBJECTS,
    "test_state_that_json_cannot_hold[code]": NOT_COERCED,
    "test_state_that_json_cannot_hold[object]": NOT_COERCED,
    "test_state_that_json_cannot_hold[bytes]": NOT_COERCED,
    "test_what_is_stored_can_be_loaded[2000]": Deviation(
        "stores a value that is nested too deep for its copies", RecursionError
    ),
    "test_timestamps_are_finite[nan]": ANY_TIMESTAMP,
    "test_timestamps_are_finite[inf]": ANY_TIMESTAMP,
    "test_timestamps_are_finite[-inf]": ANY_TIMESTAMP,
    "test_after_timestamp_looks_at_every_event": Deviation(
        "stops at the last event that is too old"
    ),
}

SQLITE = {
    "test_an_old_object_cannot_write_into_the_new_session[same]": SAME_TIME,
    "test_an_event_is_stored_once": REFUSED_RETRY,
    "test_a_delta_is_applied_once": REFUSED_RETRY,
    "test_a_retry_through_an_old_session": REFUSED_RETRY,
    "test_a_retry_with_its_temp_keys": REFUSED_RETRY,
    "test_a_stale_session_is_refused[same]": SAME_TIME,
    "test_a_stale_session_is_refused[earlier]": Deviation("sees no change when time goes back"),
    "test_the_marker_decides": STALE_BY_TIME,
    "test_a_session_restored_from_json[0.0001]": STALE_BY_TIME,
    "test_a_session_made_by_hand": STALE_BY_TIME,
    "test_auth_configs_survive": AUTH_BY_NAME,
    "test_subclasses_of_event": SUBCLASS_FIELDS,
    "test_state_that_json_cannot_hold[bytes]": NOT_UTF8,
    "test_values_outlive_other_changes[nul]": SQLITE_JSON,
    "test_values_outlive_other_changes[minus zero]": SQLITE_JSON,
    "test_values_outlive_other_changes[largest float]": SQLITE_JSON,
    "test_values_outlive_other_changes[nan]": SQLITE_JSON,
    "test_values_outlive_other_changes[infinity]": SQLITE_JSON,
    "test_nan_in_an_event": Deviation(
        "writes NaN as null: the session cannot be loaded again", pydantic.ValidationError
    ),
    "test_what_is_stored_can_be_loaded[220]": Deviation(
        "stores what pydantic's parser finds nested too deep", pydantic.ValidationError
    ),
    "test_timestamps_are_finite[nan]": Deviation(
        "leaves it to the database", sqlite3.IntegrityError
    ),
    "test_timestamps_are_finite[inf]": ANY_TIMESTAMP,
    "test_timestamps_are_finite[-inf]": ANY_TIMESTAMP,
    "test_events_come_in_append_order[falling]": BY_TIME,
}

DATABASE = {
    "test_create_generates_an_id[empty]": BLANK_ID,
    "test_create_generates_an_id[ascii]": BLANK_ID,
    "test_create_generates_an_id[unicode]": BLANK_ID,
    "test_create_strips_the_id": VERBATIM_ID,
    "test_create_refuses_an_existing_id[padded]": VERBATIM_ID,
    "test_get_strips_the_id": VERBATIM_ID,
    "test_delete_removes_the_session[padded]": VERBATIM_ID,
    "test_an_old_object_cannot_write_into_the_new_session[same]": SAME_TIME,
    "test_an_event_is_stored_once": REFUSED_RETRY_SQL,
    "test_a_delta_is_applied_once": REFUSED_RETRY_SQL,
    "test_a_retry_through_an_old_session": Deviation("refuses a retry", StaleSessionError),
    "test_a_retry_with_its_temp_keys": REFUSED_RETRY_SQL,
    "test_a_stale_session_is_refused[same]": SAME_TIME,
    "test_auth_configs_survive": AUTH_BY_NAME,
    "test_subclasses_of_event": SUBCLASS_FIELDS,
    "test_state_that_json_cannot_hold[bytes]": NOT_UTF8,
    "test_timestamps_are_exact[1700000000.1234567]": Deviation(
        "rounds last_update_time to microseconds"
    ),
    "test_timestamps_are_exact[1700000000123.5]": Deviation(
        "knows no year after 9999", (ValueError, OverflowError, OSError)
    ),
    "test_timestamps_are_exact[1e+300]": Deviation(
        "knows no year after 9999", (ValueError, OverflowError, OSError)
    ),
    "test_timestamps_are_finite[inf]": INFINITE,
    "test_timestamps_are_finite[-inf]": INFINITE,
    "test_events_come_in_append_order[tied]": BY_TIME,
    "test_events_come_in_append_order[falling]": BY_TIME,
}


@REFERENCE
class TestAdkInMemory(SessionServiceContract):
    deviations = IN_MEMORY

    @pytest.fixture
    def service(self) -> InMemorySessionService:
        return InMemorySessionService()


@REFERENCE
class TestAdkSqlite(SessionServiceContract):
    deviations = SQLITE

    @pytest.fixture
    def service(self, tmp_path: Path) -> SqliteSessionService:
        return SqliteSessionService(str(tmp_path / "sessions.db"))


@REFERENCE
class TestAdkDatabase(SessionServiceContract):
    deviations = DATABASE

    @pytest.fixture
    async def service(self, tmp_path: Path) -> AsyncIterator[AdkDatabaseSessionService]:
        url = f"sqlite+aiosqlite:///{tmp_path / 'sessions.db'}"
        async with AdkDatabaseSessionService(url) as opened:
            yield opened


@REFERENCE
@pytest.mark.parametrize("model", [FULL_EVENT, FULL_EVENT.actions], ids=["event", "actions"])
def test_the_full_event_is_full(model: Event | EventActions) -> None:
    """Fails when ADK adds a field: the contract shall know it."""
    unset = set(type(model).model_fields) - model.model_fields_set
    assert unset == ({"requested_auth_configs"} if isinstance(model, EventActions) else set())


@pytest.mark.parametrize("name", ["test_unknown", "test_unknown[1]"])
def test_deviations_from_tests_that_do_not_exist(name: str) -> None:
    body: dict[str, Any] = {"deviations": {name: Deviation("does something else")}}
    with pytest.raises(TypeError, match=r"has no tests called \['test_unknown"):
        type("Renamed", (SessionServiceContract,), body)

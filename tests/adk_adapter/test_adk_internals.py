"""What adk_adapter/_adk.py takes from ADK is still there and still means the same."""

from __future__ import annotations

import time

import pytest
from google.adk.events import Event
from google.adk.sessions import Session

from adk_adapter import _adk


def test_errors_are_what_adks_callers_catch() -> None:
    assert issubclass(_adk.StaleSessionError, ValueError)
    assert issubclass(_adk.SessionNotFoundError, ValueError)
    assert issubclass(_adk.AlreadyExistsError, Exception)


def test_the_marker_is_private_compared_and_copied() -> None:
    session = Session(id="s", app_name="a", user_id="u")
    assert _adk.get_marker(session) is None
    other = session.model_copy()
    _adk.set_marker(other, "1:2")
    assert _adk.get_marker(other.model_copy()) == "1:2"
    assert other != session
    assert "1:2" not in other.model_dump_json()


def test_restored_events_are_marked() -> None:
    internal = pytest.importorskip("google.adk.events._internal_metadata")
    assert _adk.is_restored(internal.mark_restored(Event()))
    assert not _adk.is_restored(Event())
    assert not _adk.is_restored(Event(custom_metadata={"k": 1}))


def test_clock_and_ids() -> None:
    assert abs(_adk.get_time() - time.time()) < 60
    assert _adk.new_uuid() != _adk.new_uuid()
    assert _adk.adk_version.startswith("2.")

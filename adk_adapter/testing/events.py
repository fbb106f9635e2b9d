"""Appending events: what is stored, what changes in the live session, retries, stale sessions."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable

import pytest
from google.adk.sessions import Session

from adk_adapter._adk import SessionNotFoundError, StaleSessionError
from adk_adapter.testing.support import (
    PAST,
    RICH,
    Contract,
    Sessions,
    event_ids,
    make_event,
    restore,
)

__all__ = ["AppendContract", "LiveSessionContract", "RetryContract", "StalenessContract"]


class AppendContract(Contract):
    """What append_event stores, and what it refuses."""

    async def test_append_stores_event_and_state(self, sessions: Sessions) -> None:
        """1.7.7 append_event stores the event, its delta by scope, and its time."""
        live = await sessions.create("s", {"k": 0, "old": 0, "app:a": 0, "user:u": 0})
        await sessions.append(live, {"k": 1, "app:a": 1, "user:u": 1}, id="1", timestamp=PAST)
        stored = await sessions.load()
        assert event_ids(stored) == ["1"]
        assert stored.state == {"k": 1, "old": 0, "app:a": 1, "user:u": 1}
        assert (await sessions.create("t")).state == {"app:a": 1, "user:u": 1}

    async def test_append_takes_either_form_of_call(self, sessions: Sessions) -> None:
        """1.1 append_event may be called by position and by name."""
        live = await sessions.create("s")
        await sessions.service.append_event(live, make_event(id="1"))
        await sessions.service.append_event(session=live, event=make_event(id="2"))
        assert event_ids(await sessions.load()) == ["1", "2"]

    async def test_partial_events_are_not_stored(self, sessions: Sessions) -> None:
        """1.7.1 A partial event is returned and touches nothing, temp keys and delta included."""
        live = await sessions.create("s")
        before = live.model_copy(deep=True)
        event = make_event({"k": 1, "temp:t": 1}, partial=True)
        assert await sessions.append_event(live, event) is event
        assert event.actions.state_delta == {"k": 1, "temp:t": 1}
        assert live == await sessions.get("s") == before

    async def test_partial_events_need_no_session(self, sessions: Sessions) -> None:
        """1.7.1 A partial event is returned for a session that is gone, too."""
        live = await sessions.create("s")
        await sessions.delete("s")
        await sessions.append(live, partial=True)

    async def test_partial_false_is_stored(self, sessions: Sessions) -> None:
        """1.7.1 An event with partial=False is stored and loaded as such."""
        live = await sessions.create("s")
        await sessions.append(live, partial=False)
        assert [event.partial for event in (await sessions.load()).events] == [False]

    async def test_temp_keys_are_never_stored(self, sessions: Sessions) -> None:
        """1.7.2 `temp:` keys reach no storage, not even inside the event, whatever they hold."""
        live = await sessions.create("s")
        await sessions.append(live, {"temp:t": object(), "k": 1})
        await sessions.append(live, {"temp:": [object()]})
        stored = await sessions.load()
        assert stored.state == {"k": 1}
        assert [event.actions.state_delta for event in stored.events] == [{"k": 1}, {}]

    @pytest.mark.parametrize("name", ["id", "user_id", "app_name"])
    async def test_append_to_a_missing_session(self, sessions: Sessions, name: str) -> None:
        """1.7.3 append_event finds its session by app, user and id, or raises."""
        live = await sessions.create("s")
        stranger = live.model_copy(update={name: "x"})
        with pytest.raises(SessionNotFoundError) as raised:
            await sessions.append(stranger, {"app:a": 1, "k": 1})
        assert isinstance(raised.value, ValueError)
        assert await sessions.listed_for_all() == [live]

    @pytest.mark.parametrize("shared", ["", "app:", "user:"], ids=["session", "app", "user"])
    async def test_a_delta_replaces_values(self, sessions: Sessions, shared: str) -> None:
        """1.7.8 A delta replaces values, never merges into them; None is a value, no deletion."""
        live = await sessions.create("s", {f"{shared}k": {"a": 1}, f"{shared}n": 1})
        await sessions.append(live, {f"{shared}k": {"b": 2}, f"{shared}n": None})
        assert (await sessions.load()).state == {f"{shared}k": {"b": 2}, f"{shared}n": None}

    async def test_only_the_delta_is_stored(self, sessions: Sessions) -> None:
        """1.7.13 What was written into session.state directly is not stored."""
        live = await sessions.create("s", {"k": 1})
        live.state.update({"k": 2, "direct": object(), "app:direct": 1, "user:direct": 1})
        await sessions.append(live, {"n": 1})
        assert (await sessions.load()).state == {"k": 1, "n": 1}

    async def test_append_copies_what_it_stores(self, sessions: Sessions) -> None:
        """1.3 Changing an event or its delta after the append changes nothing stored."""
        live = await sessions.create("s")
        event = await sessions.append(live, {"k": [1], "app:a": [1]})
        before = await sessions.load()
        for value in event.actions.state_delta.values():
            value.append(2)
        event.author = "somebody"
        assert await sessions.get("s") == before

    async def test_update_time_follows_the_event(self, sessions: Sessions) -> None:
        """1.7.11 last_update_time is the event's timestamp, also when that goes back."""
        live = await sessions.create("s")
        for timestamp in (PAST + 2, PAST + 1):
            await sessions.append(live, timestamp=timestamp)
            for session in (live, await sessions.load()):
                assert session.last_update_time == pytest.approx(timestamp, abs=1e-6, rel=0)

    async def test_a_refused_append_changes_nothing(self, sessions: Sessions) -> None:
        """1.7.7 An event that cannot be stored leaves storage and live session as they were."""
        live = await sessions.create("s", {"k": 0, "app:a": 0})
        before = live.model_copy(deep=True)
        delta = {"k": 1, "app:a": 1, "user:u": 1}
        with pytest.raises(ValueError, match=r"\S"):
            await sessions.append(live, delta, custom_metadata={"m": object()})
        assert live == await sessions.get("s") == before
        await sessions.append(live, {"k": 1})
        assert live == await sessions.get("s")

    async def test_flush(self, sessions: Sessions) -> None:
        """1.8 flush may be called at any time, and what was appended is there after it."""
        await sessions.service.flush()
        live = await sessions.create_conversation()
        await sessions.service.flush()
        assert await sessions.get("s") == live

    async def test_one_event_loop_after_another(self, sessions: Sessions) -> None:
        """1.8 A service works in one event loop after another, with one live session."""
        live = await sessions.create("s")
        for n in (1, 2, 3):
            appending = sessions.append(live, timestamp=PAST + n)
            await asyncio.to_thread(asyncio.run, appending)
        await sessions.append(live, timestamp=PAST + 4)
        assert len(live.events) == 4
        assert await sessions.get("s") == live


class LiveSessionContract(Contract):
    """What append_event does to the caller's session and event."""

    async def test_append_works_in_place(self, sessions: Sessions) -> None:
        """1.7.12 The same event is returned and listed; list and state are changed in place."""
        live = await sessions.create("s", {"k": 0})
        events, state = live.events, live.state
        event = make_event({"k": 1})
        assert await sessions.append_event(live, event) is event
        assert live.events is events
        assert live.state is state
        assert state == {"k": 1}
        assert len(events) == 1
        assert events[0] is event

    async def test_append_brings_the_session_up_to_date(self, sessions: Sessions) -> None:
        """6.1 After an append the live session equals the loaded one, marker included."""
        live = await sessions.create("s", {"k": 0, "app:a": 0})
        for n in (1, 2):
            delta = {"k": n, "app:a": n, "user:u": n}
            await sessions.append(live, delta, timestamp=PAST + n)
            assert await sessions.get("s") == live

    async def test_temp_keys_stay_in_the_live_session(self, sessions: Sessions) -> None:
        """1.7.2 `temp:` keys go to the live session, for its life."""
        live = await sessions.create("s")
        value = object()
        await sessions.append(live, {"temp:t": value, "k": 1})
        await sessions.append(live, {"k": 2})
        assert live.state == {"temp:t": value, "k": 2}

    async def test_temp_keys_leave_the_event(self, sessions: Sessions) -> None:
        """1.7.2 `temp:` keys are taken out of the event, also as its copies see it."""
        live = await sessions.create("s")
        event = make_event({"temp:t": 1, "k": 1})
        given, shared = event.actions.state_delta, event.model_copy()
        await sessions.append_event(live, event)
        assert event.actions.state_delta == shared.actions.state_delta == {"k": 1}
        assert given == {"temp:t": 1, "k": 1}

    async def test_the_live_session_gets_raw_values(self, sessions: Sessions) -> None:
        """1.7.9 The live session gets the very values of the delta."""
        live = await sessions.create("s")
        delta = {key: rich for key, (rich, _) in RICH.items()}
        await sessions.append(live, delta)
        assert all(live.state[key] is value for key, value in delta.items())

    async def test_others_keys_are_not_refreshed(self, sessions: Sessions) -> None:
        """1.7.10 Shared keys that other sessions write are no conflict and are not refreshed."""
        live, other = await sessions.create("s"), await sessions.create("t")
        await sessions.append(other, {"app:a": 1, "user:u": 1})
        await sessions.append(live, {"user:v": 2})
        assert live.state == {"user:v": 2}
        assert (await sessions.load()).state == {"app:a": 1, "user:u": 1, "user:v": 2}

    async def test_unstored_events_in_the_session(self, sessions: Sessions) -> None:
        """1.7.14 Events put into or taken out of session.events do not make it stale."""
        live = await sessions.create("s")
        await sessions.append(live, id="1", timestamp=PAST + 1)
        live.events.append(make_event(id="unstored"))
        await sessions.append(live, id="2", timestamp=PAST + 2)
        assert event_ids(live) == ["1", "unstored", "2"]
        live.events.clear()
        await sessions.append(live, id="3", timestamp=PAST + 3)
        assert event_ids(live) == ["3"]
        assert event_ids(await sessions.load()) == ["1", "2", "3"]


class RetryContract(Contract):
    """The same event again."""

    async def test_an_event_is_stored_once(self, sessions: Sessions) -> None:
        """1.7.5 An event that is appended again is returned, and is there once."""
        live = await sessions.create("s")
        event = await sessions.append(live, {"k": 1})
        before = live.model_copy(deep=True)
        assert await sessions.append_event(live, event) is event
        assert live == await sessions.get("s") == before

    async def test_a_delta_is_applied_once(self, sessions: Sessions) -> None:
        """1.7.5 An event that is appended again does not apply its delta again."""
        live = await sessions.create("s")
        event = await sessions.append(live, {"k": 1, "app:a": 1}, timestamp=PAST)
        await sessions.append(live, {"k": 2, "app:a": 2}, timestamp=PAST + 1)
        before = live.model_copy(deep=True)
        await sessions.append_event(live, event.model_copy(deep=True))
        assert live == await sessions.get("s") == before

    async def test_a_retry_through_an_old_session(self, sessions: Sessions) -> None:
        """1.7.5 A retry is recognised before staleness: it often comes with an old session."""
        live = await sessions.create("s")
        old = live.model_copy(deep=True)
        event = await sessions.append(live, {"k": 1}, timestamp=PAST)
        await sessions.append(live, {"k": 2}, timestamp=PAST + 1)
        await sessions.append_event(old, event.model_copy(deep=True))
        assert await sessions.get("s") == live

    async def test_a_retry_with_its_temp_keys(self, sessions: Sessions) -> None:
        """1.7.5 A retry that still carries its `temp:` keys is the same event."""
        live = await sessions.create("s")
        event = make_event({"k": 1, "temp:t": 1}, id="1")
        retry = event.model_copy(deep=True)
        await sessions.append_event(live, event)
        await sessions.append_event(live, retry)
        assert event_ids(live) == event_ids(await sessions.load()) == ["1"]

    async def test_another_event_with_the_same_id(self, sessions: Sessions) -> None:
        """1.7.6 Another event with a stored id is stored or refused, never silently dropped."""
        live = await sessions.create("s")
        await sessions.append(live, {"k": 1}, id="1", author="first")
        before = live.model_copy(deep=True)
        try:
            await sessions.append(live, {"k": 2}, id="1", author="second")
        except Exception:
            assert live == await sessions.get("s") == before
            await sessions.append(live, {"k": 2}, author="second")
        stored = await sessions.load()
        assert {event.author for event in stored.events} == {"first", "second"}
        assert stored.state == {"k": 2}


class StalenessContract(Contract):
    """Sessions that somebody else has appended to."""

    @pytest.mark.parametrize("seconds", [1, 0, -1], ids=["later", "same", "earlier"])
    async def test_a_stale_session_is_refused(self, sessions: Sessions, seconds: int) -> None:
        """1.7.4 A session that was overtaken raises StaleSessionError, whatever the clock said."""
        winner = await sessions.create("s")
        await sessions.append(winner, id="1", timestamp=PAST)
        loser = await sessions.load()
        before = loser.model_copy(deep=True)
        await sessions.append(winner, {"k": 1}, id="2", timestamp=PAST + seconds)
        with pytest.raises(StaleSessionError) as raised:
            await sessions.append(loser, {"k": 2, "app:a": 2}, id="3", timestamp=PAST + 2)
        assert isinstance(raised.value, ValueError)
        assert loser == before
        stored = await sessions.load()
        assert ({*event_ids(stored)}, stored.state) == ({"1", "2"}, {"k": 1})
        await sessions.append(stored, {"k": 2}, timestamp=PAST + 2)

    async def test_a_copy_is_as_good_as_the_session(self, sessions: Sessions) -> None:
        """6.1 Copies of a session carry its marker."""
        live = await sessions.create("s")
        clones: list[Callable[[Session], Session]] = [copy.copy, copy.deepcopy, Session.model_copy]
        for n, clone in enumerate(clones):
            live = clone(live)
            await sessions.append(live, timestamp=PAST + n)
        assert len((await sessions.load()).events) == 3

    async def test_the_marker_decides(self, sessions: Sessions) -> None:
        """6.3 last_update_time of a loaded session does not matter: clocks and floats drift."""
        live = await sessions.create_conversation()
        live.last_update_time -= 1e-4
        await sessions.append(live, timestamp=PAST + 6)
        assert len((await sessions.load()).events) == 6

    @pytest.mark.parametrize("drift", [0, 1e-4])
    async def test_a_session_restored_from_json(self, sessions: Sessions, drift: float) -> None:
        """6.2 A session without marker is current when its last event is the last one."""
        restored = restore(await sessions.create_conversation())
        restored.last_update_time -= drift
        await sessions.append(restored, timestamp=PAST + 6)
        assert len((await sessions.load()).events) == 6

    async def test_a_new_session_restored_from_json(self, sessions: Sessions) -> None:
        """6.2 A session without marker and events is current when nothing happened since."""
        restored = restore(await sessions.create("s"))
        await sessions.append(restored, id="1")
        assert event_ids(await sessions.load()) == ["1"]

    async def test_a_session_made_by_hand(self, sessions: Sessions) -> None:
        """6.2 A session without marker, time and events is current while there are no events."""
        await sessions.create("s")
        await sessions.append(Session(id="s", app_name="app", user_id="user"), id="1")
        assert event_ids(await sessions.load()) == ["1"]

    async def test_a_stale_session_restored_from_json(self, sessions: Sessions) -> None:
        """6.2 A session without marker raises StaleSessionError when it was overtaken."""
        live = await sessions.create_conversation()
        restored = restore(live)
        await sessions.append(live, timestamp=PAST + 6)
        with pytest.raises(StaleSessionError):
            await sessions.append(restored, timestamp=PAST + 7)
        assert await sessions.get("s") == live

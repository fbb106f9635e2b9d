"""What comes back: values of the state, events, times, order."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pydantic
import pytest
from fastapi.openapi.models import APIKey
from google.adk.auth import AuthConfig
from google.adk.events import Event
from google.genai import types

from adk_adapter.testing.support import (
    FULL_EVENT,
    HARD,
    PAST,
    RICH,
    Contract,
    Sessions,
    event_ids,
    make_content,
    make_event,
)

__all__ = ["OrderContract", "ValueContract"]


class ValueContract(Contract):
    """What values become when they are stored."""

    async def test_every_field_survives(self, sessions: Sessions) -> None:
        """3 A loaded event equals the one that was appended, in every field."""
        live = await sessions.create("s")
        event = await sessions.append_event(live, FULL_EVENT.model_copy(deep=True))
        loaded = (await sessions.load()).events[0]
        differing = {n for n in Event.model_fields if getattr(loaded, n) != getattr(event, n)}
        assert differing == set()

    async def test_auth_configs_survive(self, sessions: Sessions) -> None:
        """3 A requested auth config is loaded as what it was."""
        live = await sessions.create("s")
        scheme = APIKey.model_validate({"in": "header", "name": "key"})
        event = make_event()
        event.actions.requested_auth_configs = {
            "call": AuthConfig(auth_scheme=scheme, credential_key="key")
        }
        await sessions.append_event(live, event)
        loaded = (await sessions.load()).events[0].actions.requested_auth_configs
        assert type(loaded["call"].auth_scheme) is APIKey
        assert loaded == event.actions.requested_auth_configs

    @pytest.mark.parametrize("route", [True, 1, "1", [False, 0, "0"]], ids=repr)
    async def test_routes_survive(self, sessions: Sessions, route: Any) -> None:
        """3 A route keeps its type: True, 1 and '1' are three."""
        live = await sessions.create("s")
        event = make_event()
        event.actions.route = route
        await sessions.append_event(live, event)
        assert repr((await sessions.load()).events[0].actions.route) == repr(route)

    async def test_subclasses_of_event(self, sessions: Sessions) -> None:
        """3 An event of a subclass can be loaded; what the subclass adds does no harm."""
        live = await sessions.create("s")
        with warnings.catch_warnings(action="ignore"):
            subclass = pydantic.create_model("Subclass", __base__=Event, message=(str, "m"))
        event = subclass(author="user", content=make_content("hi"))
        await sessions.append_event(live, event)
        assert (await sessions.load()).events[0].content == event.content

    async def test_state_is_plain_data(self, sessions: Sessions) -> None:
        """1.7.9 State values are stored as plain JSON data."""
        live = await sessions.create("s")
        await sessions.append(live, {key: rich for key, (rich, _) in RICH.items()})
        assert (await sessions.load()).state == {key: plain for key, (_, plain) in RICH.items()}

    @pytest.mark.parametrize("value", [len, [object()], b"\xff"], ids=["code", "object", "bytes"])
    async def test_state_that_json_cannot_hold(self, sessions: Sessions, value: Any) -> None:
        """3 A state value that JSON cannot hold is stored as text, the others as they are."""
        live = await sessions.create("s", {"k": value, "n": 1})
        await sessions.append(live, {"m": value, "app:m": value, "n": 2})
        state = (await sessions.load()).state
        assert json.loads(json.dumps(state)) == state
        assert (set(state), state["n"]) == ({"k", "m", "app:m", "n"}, 2)

    @pytest.mark.parametrize("value", HARD.values(), ids=HARD)
    async def test_values_outlive_other_changes(self, sessions: Sessions, value: Any) -> None:
        """3 Values are stored exactly, and stay so when other keys change."""
        live = await sessions.create("s", {"k": value, "app:k": value, "user:k": value})
        await sessions.append(live, {"n": 1, "app:n": 1, "user:n": 1})
        state = (await sessions.load()).state
        assert [repr(state[key]) for key in ("k", "app:k", "user:k")] == [repr(value)] * 3
        assert state["n"] == state["app:n"] == state["user:n"] == 1

    async def test_nan_in_an_event(self, sessions: Sessions) -> None:
        """3 NaN in a float field of an event does not make the session unreadable."""
        live = await sessions.create("s")
        support = types.GroundingSupport(confidence_scores=[math.nan, 0.5])
        metadata = types.GroundingMetadata(grounding_supports=[support])
        await sessions.append(live, id="1", grounding_metadata=metadata)
        assert event_ids(await sessions.load()) == ["1"]

    @pytest.mark.parametrize("depth", [100, 220, 2_000])
    async def test_what_is_stored_can_be_loaded(self, sessions: Sessions, depth: int) -> None:
        """3 A deeply nested value is stored or refused, and the session can be loaded after it."""
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        live = await sessions.create("s")
        stored = ["1"]
        try:
            await sessions.append(live, {"k": value}, id="1")
        except ValueError:
            stored = []
        assert event_ids(await sessions.load()) == event_ids(live) == stored

    @pytest.mark.parametrize(
        "timestamp", [1_700_000_000.1234567, 1_700_000_000_123.5, 0.0, -1.5, 1e300], ids=repr
    )
    async def test_timestamps_are_exact(self, sessions: Sessions, timestamp: float) -> None:
        """4 Any finite float is a timestamp, and is stored exactly."""
        live = await sessions.create("s")
        await sessions.append(live, timestamp=timestamp)
        stored = await sessions.load()
        assert stored.events[0].timestamp == stored.last_update_time == timestamp

    @pytest.mark.parametrize("timestamp", [math.nan, math.inf, -math.inf])
    async def test_timestamps_are_finite(self, sessions: Sessions, timestamp: float) -> None:
        """4 A timestamp that is no number, or infinite, is refused and does no harm."""
        live = await sessions.create("s")
        with pytest.raises(ValueError, match=r"\S"):
            await sessions.append(live, {"k": 1}, timestamp=timestamp)
        assert await sessions.get("s") == live


class OrderContract(Contract):
    """The order of events."""

    @pytest.mark.parametrize("seconds", [[0, 0, 0, 0], [1, 3, 2, 0]], ids=["tied", "falling"])
    async def test_events_come_in_append_order(
        self, sessions: Sessions, seconds: list[int]
    ) -> None:
        """4 Events are loaded in the order of the appends, whatever their timestamps and ids."""
        live = await sessions.create("s")
        for name, second in zip("zbya", seconds, strict=True):
            await sessions.append(live, id=name, timestamp=PAST + second)
        assert event_ids(await sessions.load()) == list("zbya")
        assert event_ids(await sessions.load(num_recent_events=2)) == list("ya")

    async def test_after_timestamp_looks_at_every_event(self, sessions: Sessions) -> None:
        """1.3 after_timestamp picks events one by one when timestamps fall."""
        live = await sessions.create("s")
        for second in (1, 4, 2, 5):
            await sessions.append(live, id=str(second), timestamp=PAST + second)
        assert event_ids(await sessions.load(after_timestamp=PAST + 3)) == ["4", "5"]

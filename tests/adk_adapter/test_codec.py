"""What was appended is what is read, for every field of every model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from google.adk.events import Event, EventActions
from google.genai import types
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel

from adk_adapter import DatabaseSessionService
from adk_adapter.codec import _dump, _text, decode_event, encode_event
from adk_adapter.constructors import Unsure, construct_event
from eventstore import CorruptEvent, InvalidIdentifier, RecordedEvent, StreamKey, ValueNotStorable
from eventstore.encoding import decode, encode
from eventstore.events import Stream, StreamKind
from tests.adk_adapter.strategies import events

STREAM = Stream(1, StreamKey(StreamKind.SESSION, "a", "u", "s"), 2, 3, 2, 2, b"")


def round_trip(event: Event, *, trusted: bool = True) -> Event:
    new = encode_event(event)
    return decode_event(
        RecordedEvent(
            1, STREAM, 2, new.event_id, new.type, 1, 0, new.timestamp, new.author,
            new.invocation_id, new.encoding, new.delta, new.data, new.codec if trusted else "",
        )
    )  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(events())
def test_every_field_of_every_model_comes_back(event: Event) -> None:
    again = round_trip(event)
    assert again == event
    assert again.model_dump(by_alias=True) == event.model_dump(by_alias=True)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(events())
def test_an_event_written_in_one_go_is_what_is_written_in_two(event: Event) -> None:
    if (text := _text(event)) is not None:
        (other,), encoding = encode([_dump(event, "it")], "it")
        assert other is not None
        # Bytes may differ in how a number is spelt.
        assert repr(decode(text, encoding)) == repr(decode(other, encoding))


def assert_identical(a: Any, b: Any) -> None:
    """Alike in everything pydantic has: classes, values, order, what is set, private attributes."""
    assert type(a) is type(b)
    if isinstance(a, BaseModel):
        assert a.model_fields_set == b.model_fields_set
        assert a.__pydantic_private__ == b.__pydantic_private__
        assert a.__pydantic_extra__ == b.__pydantic_extra__
        a, b = a.__dict__, b.__dict__
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_identical(one, other)
    else:
        assert repr(a) == repr(b)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(events())
def test_an_event_made_directly_is_what_validating_makes(event: Event) -> None:
    assert_identical(round_trip(event, trusted=True), round_trip(event, trusted=False))


def test_common_events_are_made_directly() -> None:
    parts = [
        types.Part(text="hi", thought_signature=b"\xff\xfe"),
        types.Part.from_function_call(name="f", args={"a": [1, None]}),
        types.Part.from_bytes(data=bytes(range(256)), mime_type="image/png"),
    ]
    event = Event(
        author="a",
        content=types.Content(role="model", parts=parts),
        actions=EventActions(state_delta={"k": 1}, artifact_delta={"f": 1}),
        usage_metadata=types.GenerateContentResponseUsageMetadata(prompt_token_count=1),
        finish_reason=types.FinishReason.STOP,
        long_running_tool_ids={"x", "y"},
    )
    new = encode_event(event)
    assert new.data is not None
    made = construct_event(json.loads(new.data))
    event.actions.state_delta = {}
    assert made == event


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(unknown=1),
        lambda d: d.update(author=3),
        lambda d: d.pop("id"),
        lambda d: d.update(timestamp=1),
        lambda d: d.update(route=1),
        lambda d: d["actions"].update(requestedAuthConfigs={"f": {}}),
        lambda d: d["actions"].update(route=1),
        lambda d: d.update(finishReason="NEVER_HEARD_OF"),
        lambda d: d.update(longRunningToolIds="x"),
        lambda d: d.update(content=None),
    ],
)
def test_what_a_constructor_was_not_made_for_is_validated(
    change: Callable[[dict[str, Any]], None],
) -> None:
    fields = json.loads(encode_event(Event(author="a")).data or b"")
    construct_event(dict(fields))
    change(fields)
    with pytest.raises(Unsure):
        construct_event(fields)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(events(), events())
def test_what_was_appended_is_what_is_read(first: Event, second: Event) -> None:
    async def run(path: Path) -> None:
        async with DatabaseSessionService(path) as service:
            session = await service.create_session("a", "u", "s")
            for event in (first, second):
                await service.append_event(session, event)
            loaded = await service.get_session("a", "u", "s")
            assert loaded is not None
            assert loaded.events == session.events == [first, second]
            assert loaded.state == session.state
            assert loaded == session

    if first.id != second.id:
        with TemporaryDirectory() as folder:
            asyncio.run(run(Path(folder) / "a.db"))


@pytest.mark.parametrize(
    "value",
    [None, 0.1 + 0.2, 2**70, 1e16, -0.0, "🜁\u2028", "a\0b", {"": {"": []}}, "x" * 5_000_000],
    ids=lambda value: repr(value)[:12],
)
def test_values_strict_json_holds(value: Any) -> None:
    event = Event(actions=EventActions(state_delta={"k": value}), custom_metadata={"k": value})
    again = round_trip(event)
    assert repr(again.actions.state_delta) == repr(event.actions.state_delta)
    assert repr(again.custom_metadata) == repr(event.custom_metadata)
    assert encode_event(event).encoding == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800"])
def test_values_strict_json_does_not_hold(value: Any) -> None:
    event = Event(actions=EventActions(state_delta={"k": [value, "é", None]}))
    again = round_trip(event)
    assert repr(again.actions.state_delta) == repr(event.actions.state_delta)
    assert encode_event(event).encoding == 2


def test_the_stored_text_can_be_read_by_people() -> None:
    content = types.Content(role="user", parts=[types.Part(text="Привет")])
    event = Event(author="user", content=content, actions=EventActions(state_delta={"app:k": 1}))
    new = encode_event(event)
    assert new.data is not None
    assert "Привет" in new.data.decode()
    assert json.loads(new.data)["content"]["parts"][0]["text"] == "Привет"
    assert new.delta == b'{"app":{"k":1}}'
    assert "k" not in json.loads(new.data)["actions"].get("stateDelta", {})


def test_a_subclass_comes_back_as_an_event() -> None:
    with pytest.warns(UserWarning, match="shadows"):

        class Subclass(Event):
            message: str = "its own"  # type: ignore[assignment]
            extra_field: int = 3

    content = types.Content(role="user", parts=[types.Part(text="hi")])
    again = round_trip(Subclass(author="a", content=content))
    assert type(again) is Event
    assert again.content == content


@pytest.mark.parametrize("timestamp", [math.nan, math.inf, -math.inf])
def test_times_that_are_none(timestamp: float) -> None:
    with pytest.raises(ValueNotStorable, match="timestamp"):
        encode_event(Event(timestamp=timestamp))


@pytest.mark.parametrize("field", ["id", "author", "invocation_id"])
@pytest.mark.parametrize("bad", ["a\0", "\udfff"])
def test_ids_no_database_can_hold(field: str, bad: str) -> None:
    with pytest.raises(InvalidIdentifier):
        encode_event(Event(**{field: bad}))


def test_what_no_json_can_hold_outside_the_state_is_refused() -> None:
    with pytest.raises(ValueNotStorable, match="event 'e'"):
        encode_event(Event(id="e", custom_metadata={"f": object()}))


def test_a_payload_that_is_no_event_is_named() -> None:
    new = encode_event(Event())
    for data in (b'{"author": 3}', b"[]", b"{", None):
        recorded = RecordedEvent(
            7, STREAM, 2, "e", new.type, 1, 0, 0.0, "", "", 1, None, data
        )  # fmt: skip
        with pytest.raises(CorruptEvent, match="position 7") as raised:
            decode_event(recorded)
        assert raised.value.stream == str(STREAM.key)


def test_fields_of_a_newer_adk_stay_in_the_log_and_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = types.Content(role="user", parts=[types.Part(text="hi")])
    event = Event(id="e", author="u", content=content, timestamp=1.0)
    new = encode_event(event)
    assert new.data is not None
    fields = json.loads(new.data)
    fields["ofTheFuture"] = 1
    fields["actions"]["alsoNew"] = {"deep": [1]}
    fields["content"]["parts"][0]["newPart"] = 2
    data = json.dumps(fields).encode()
    recorded = RecordedEvent(7, STREAM, 2, "e", new.type, 1, 0, 1.0, "u", "", 1, None, data)
    for _ in range(3):
        assert decode_event(recorded) == event
    warned = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
    assert sorted(warned) == ["actions.alsoNew", "content.parts.newPart", "ofTheFuture"]

"""Between ADK's events and state and what the log stores of them.

An event becomes two texts: the delta, which is what it changes in each state scope, coerced once
the way ADK coerces state, and the data, which is the event without that. A reloaded event shows
the coerced delta.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal

import google.genai.version
import pydantic
import pydantic_core
from google.adk.events import Event, EventActions
from google.adk.sessions import State
from google.genai import types
from pydantic_core import to_jsonable_python

from adk_adapter._adk import adk_version, new_uuid
from adk_adapter.constructors import Unsure, construct_event, layout
from eventstore import (
    CorruptEvent,
    EventType,
    InvalidIdentifier,
    NewEvent,
    RecordedEvent,
    ValueNotStorable,
    check_identifier,
)
from eventstore.encoding import (
    STRICT_JSON,
    decode,
    decode_members,
    decode_value,
    encode,
    is_plain,
)

__all__ = [
    "coerce_state",
    "decode_event",
    "encode_event",
    "encode_scope",
    "encode_state",
    "is_ours",
    "merge_scopes",
    "prepare",
    "rewind_delta",
    "split_scopes",
    "validate_event",
]

FINGERPRINT: Final = (
    f"google-adk {adk_version}, google-genai {google.genai.version.__version__}, "
    f"pydantic {pydantic.VERSION}, fields {layout()}"
)
"""Which models wrote a payload; stored with it, so that the same ones need not validate it."""

_PREFIXES: Final = {"app": State.APP_PREFIX, "user": State.USER_PREFIX}
_EXCLUDE_DELTA: Final = {"actions": {"state_delta"}}
_KNOWN: Final = {field.alias or name for name, field in Event.model_fields.items()} | {
    *Event.model_fields  # ADK's own services store events by these
}
_ABSENT: Final = object()
_warned: Final[set[str]] = set()
"""Unknown fields that were warned about: once each, not for every event."""
_adapter: Final = pydantic.TypeAdapter(Event)
_log = logging.getLogger(__name__)


def split_scopes(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts keys into "session", "user" and "app", prefixes cut once; `temp:` keys are left out.

    Raises:
        InvalidIdentifier: a key that no database can hold.
    """
    scopes: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        check_identifier("a state key", key)
        if key.startswith(State.TEMP_PREFIX):
            continue
        for scope, prefix in _PREFIXES.items():
            if key.startswith(prefix):
                scopes.setdefault(scope, {})[key.removeprefix(prefix)] = value
                break
        else:
            scopes.setdefault("session", {})[key] = value
    return scopes


def merge_scopes(scopes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The inverse of `split_scopes`: one dict, keys with their prefixes."""
    merged: dict[str, Any] = {}
    for scope, members in scopes.items():
        if prefix := _PREFIXES.get(scope):
            merged.update({prefix + key: value for key, value in members.items()})
        else:
            merged.update(members)
    return merged


def coerce_state(state: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """A state change as plain JSON data, by scope, with ADK's rules; None when it is empty.

    Values that JSON cannot hold become text, with a warning, as in ADK's own services.

    Raises:
        InvalidIdentifier, ValueNotStorable: nothing can be stored.
    """
    scopes = split_scopes(state)
    if not scopes:
        return None
    try:
        plain: dict[str, dict[str, Any]] = to_jsonable_python(scopes)
    except Exception:
        return {
            scope: {key: _coerce_value(key, value) for key, value in members.items()}
            for scope, members in scopes.items()
        }
    return plain


def _coerce_value(key: str, value: Any) -> Any:
    try:
        return to_jsonable_python(value)
    except Exception:
        _log.warning(
            "state key %r holds a %s that JSON cannot hold: stored as text",
            key,
            type(value).__name__,
        )
    last: Exception | None = None
    # Bytes that are no UTF-8 fail ADK's rule altogether; base64 keeps them.
    modes: tuple[Literal["utf8", "base64"], ...] = ("utf8", "base64")
    for bytes_mode in modes:
        try:
            return to_jsonable_python(value, serialize_unknown=True, bytes_mode=bytes_mode)
        except Exception as error:
            last = error
    raise ValueNotStorable(
        f"state key {key!r}", f"{type(last).__name__} while reading it"
    ) from last


def encode_event(event: Event) -> NewEvent:
    """What the log stores of an event whose `temp:` keys are trimmed.

    Only the fields of Event are kept: a subclass's own would come back as something else.

    Raises:
        InvalidIdentifier, ValueNotStorable: nothing can be stored.
    """
    what = f"event {event.id!r}"
    changes = coerce_state(event.actions.state_delta or {})
    data = _text(event)
    (delta,), encoding = encode([changes], what)
    if data is None or encoding != STRICT_JSON:
        (delta, data), encoding = encode([changes, _dump(event, what)], what)
    return NewEvent(
        event_id=check_identifier("an event id", event.id),
        type=EventType.ADK_EVENT,
        timestamp=event.timestamp,
        author=check_identifier("an author", event.author),
        invocation_id=check_identifier("an invocation id", event.invocation_id),
        encoding=encoding,
        delta=delta,
        data=data,
        codec=FINGERPRINT,
    )


def _text(event: Event) -> bytes | None:
    """The event as strict JSON, without its state delta, written by pydantic in one go.

    None where that takes a closer look: pydantic too writes NaN as `null`, and knows no limits.
    """
    if not event.id or type(event.timestamp) is not float:
        return None
    try:
        text = _adapter.serializer.to_json(
            event, by_alias=True, exclude_none=True, exclude=_EXCLUDE_DELTA, warnings="error"
        )
    except (pydantic_core.PydanticSerializationError, ValueError, TypeError, RecursionError):
        return None
    return text if is_plain(text) else None


def _dump(event: Event, what: str) -> dict[str, Any]:
    """The event as plain JSON data, without its state delta.

    A field may have been assigned what it cannot hold, which nothing checks: stored as it is, it
    would make the session unreadable. Such an event is stored only when it can be read back.
    """
    if not event.id:
        raise InvalidIdentifier("an event id", "is empty")
    try:
        if not math.isfinite(event.timestamp):
            raise ValueNotStorable(what, f"its timestamp is {event.timestamp}")
        try:
            return _plain(event, warnings="error")
        except pydantic_core.PydanticSerializationError:
            # By the names of the API, which what was assigned need not have.
            return _plain(Event.model_validate(_plain(event, warnings="none")), warnings="none")
    except pydantic.ValidationError as error:
        raise ValueNotStorable(what, f"it is no valid event: {_summary(error)}") from None
    except (pydantic.PydanticUserError, ValueError, TypeError, OverflowError, RecursionError) as e:
        if isinstance(e, ValueNotStorable):
            raise
        raise ValueNotStorable(what, f"JSON cannot hold it ({type(e).__name__})") from None


def _plain(event: Event, warnings: Literal["none", "error"]) -> dict[str, Any]:
    plain: dict[str, Any] = _adapter.dump_python(
        event,
        mode="json",
        by_alias=True,
        exclude_none=True,
        exclude=_EXCLUDE_DELTA,
        warnings=warnings,
    )
    return plain


def _summary(error: pydantic.ValidationError) -> str:
    """Which fields are wrong and how, without what they hold."""
    wrong = error.errors(include_input=False, include_url=False, include_context=False)
    return ", ".join(f"{'.'.join(map(str, each['loc']))} ({each['type']})" for each in wrong[:3])


def encode_state(type_: EventType, state: Mapping[str, Any], timestamp: float) -> NewEvent:
    """What the log stores of a state change that is no ADK event.

    Raises:
        InvalidIdentifier, ValueNotStorable: nothing can be stored.
    """
    (delta,), encoding = encode([coerce_state(state)], "the state")
    return NewEvent(
        event_id=new_uuid(), type=type_, timestamp=timestamp, encoding=encoding, delta=delta
    )


def encode_scope(
    type_: EventType, scope: str, state: Mapping[str, Any], timestamp: float
) -> NewEvent:
    """As `encode_state`, for the keys of one scope, which have no prefixes."""
    return encode_state(type_, merge_scopes({scope: state}), timestamp)


def decode_event(event: RecordedEvent) -> Event:
    """The ADK event that was stored, its delta as it was coerced.

    Raises:
        CorruptEvent: the payload is absent or no event.
    """
    try:
        if event.data is None:
            raise ValueError("it has no payload")
        fields = decode(event.data, event.encoding)
        if not isinstance(fields, dict):
            raise TypeError("it is no object")
        if event.delta is not None:
            delta = merge_scopes(decode(event.delta, event.encoding))
            fields["actions"]["stateDelta"] = delta
        if event.codec == FINGERPRINT and _constructors_agree():
            try:
                return construct_event(fields)
            except Unsure:
                pass
        return validate_event(fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = _summary(error) if isinstance(error, pydantic.ValidationError) else type(error)
        raise CorruptEvent(
            str(event.stream.key), event.version, event.position, f"it cannot be decoded: {reason}"
        ) from None


def prepare() -> None:
    """Does once for the process what would otherwise hold up its first load, for some 30 ms."""
    _constructors_agree()


def is_ours(events: Iterable[RecordedEvent]) -> bool:
    """Whether `decode_event` cannot fail: this very code wrote them, and their digests match."""
    return {event.codec for event in events} <= {FINGERPRINT} and _constructors_agree()


@cache
def _constructors_agree() -> bool:
    """Whether events made directly are what validating makes, tried on one of each common kind."""
    parts = [
        types.Part(text="t", thought=True, thought_signature=b"\xff"),
        types.Part.from_function_call(name="f", args={"k": [1, 0.5, None]}),
        types.Part.from_function_response(name="f", response={"k": {"n": 1}}),
    ]
    sample = Event(
        author="a",
        content=types.Content(role="model", parts=parts),
        actions=EventActions(artifact_delta={"f": 1}, transfer_to_agent="b"),
        usage_metadata=types.GenerateContentResponseUsageMetadata(prompt_token_count=1),
        finish_reason=types.FinishReason.STOP,
        long_running_tool_ids={"x"},
        custom_metadata={"k": None},
    )
    plain = _plain(sample, "none")
    try:
        made, valid = construct_event(plain), Event.model_validate(plain)
    except Unsure:
        agree = False
    else:
        agree = made == valid and pickle.dumps(made) == pickle.dumps(valid)
    if not agree:
        _log.warning("events are validated on loading, for ADK %s is not known", adk_version)
    return agree


def validate_event(fields: dict[str, Any]) -> Event:
    """Makes the event, without the fields that a newer ADK wrote and this one does not know."""
    if unknown := fields.keys() - _KNOWN:
        for name in unknown:
            _warn_unknown(name)
    try:
        return Event.model_validate(fields)
    except pydantic.ValidationError as error:
        paths = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
        if not any([_remove(fields, path) for path in paths]):  # noqa: C419 - each of them
            raise
        for path in paths:
            _warn_unknown(".".join(str(step) for step in path if isinstance(step, str)))
        return Event.model_validate(fields)


def _remove(value: Any, path: tuple[str | int, ...]) -> bool:
    """Takes a field out of nested data. Returns whether it was there."""
    for step in path[:-1]:
        # A step that leads nowhere is a name that pydantic uses for a member of a union.
        inside = range(len(value)) if isinstance(value, list) else value
        if isinstance(value, dict | list) and step in inside:
            value = value[step]  # type: ignore[index]
    return isinstance(value, dict) and value.pop(path[-1], _ABSENT) is not _ABSENT


def _warn_unknown(field: str) -> None:
    if field not in _warned:
        _warned.add(field)
        _log.warning(
            "stored events have a field this ADK (%s) does not know, left out on loading: %s",
            adk_version,
            field,
        )


def rewind_delta(
    events: Sequence[RecordedEvent], *, event_id: str, invocation_id: str
) -> dict[str, Any] | None:
    """The session keys to set for the state to be as before an invocation; None for no such one.

    Keys that came later are set to None, as ADK does; it has no way to remove one. For a rewind
    event that is stored already, these are the keys that it set then.
    """
    before: dict[str, str] | None = None
    state: dict[str, str] = {}  # as stored text: to Python 1 and True are equal, and 0 and False
    for event in events:
        scopes = {} if event.delta is None else decode_members(event.delta, event.encoding)
        delta = scopes.get("session", {})
        if event.event_id == event_id:
            return {key: decode_value(text) for key, text in delta.items()}
        if before is None and event.invocation_id == invocation_id:
            before = dict(state)
        state.update(delta)
    if before is None:
        return None
    later = {key: None for key, text in state.items() if key not in before and text != "null"}
    back = {key: decode_value(text) for key, text in before.items() if state[key] != text}
    return back | later

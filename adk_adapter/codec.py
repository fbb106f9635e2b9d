"""Between ADK's events and state and what the log stores of them.

An event becomes two texts: the delta, which is what it changes in each state scope, coerced once
the way ADK coerces state, and the data, which is the event without that. A reloaded event shows
the coerced delta.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final, Literal, cast

import google.genai.version
import pydantic
from google.adk.events import Event
from google.adk.sessions import State
from pydantic_core import to_jsonable_python

from adk_adapter._adk import adk_version, new_uuid
from eventstore import (
    CorruptEvent,
    EventType,
    NewEvent,
    RecordedEvent,
    ValueNotStorable,
    check_identifier,
)
from eventstore.encoding import decode, encode

__all__ = [
    "coerce_state",
    "decode_event",
    "encode_event",
    "encode_state",
    "merge_scopes",
    "split_scopes",
]

FINGERPRINT: Final = (
    f"google-adk {adk_version}, google-genai {google.genai.version.__version__}, "
    f"pydantic {pydantic.VERSION}"
)
"""Which models wrote a payload; stored with it."""

_SCHEMA_VERSION: Final = 1
_PREFIXES: Final = {"app": State.APP_PREFIX, "user": State.USER_PREFIX}
_EXCLUDE_DELTA: Final = {"actions": {"state_delta"}}
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
        prefix = _PREFIXES.get(scope, "")
        merged.update((prefix + key, value) for key, value in members.items())
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
        return cast("dict[str, dict[str, Any]]", to_jsonable_python(scopes))
    except Exception:
        return {
            scope: {key: _coerce_value(key, value) for key, value in members.items()}
            for scope, members in scopes.items()
        }


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
    if not math.isfinite(event.timestamp):
        raise ValueNotStorable(what, f"its timestamp is {event.timestamp}")
    try:
        plain = _adapter.dump_python(
            event, mode="json", by_alias=True, exclude_none=True, exclude=_EXCLUDE_DELTA
        )
    except (pydantic.PydanticUserError, ValueError, RecursionError) as error:
        raise ValueNotStorable(what, f"JSON cannot hold it ({type(error).__name__})") from error
    (delta, data), encoding = encode([coerce_state(event.actions.state_delta), plain], what)
    return NewEvent(
        event_id=check_identifier("an event id", event.id),
        type=EventType.ADK_EVENT,
        timestamp=event.timestamp,
        author=check_identifier("an author", event.author),
        invocation_id=check_identifier("an invocation id", event.invocation_id),
        schema_version=_SCHEMA_VERSION,
        encoding=encoding,
        delta=delta,
        data=data,
        codec=FINGERPRINT,
    )


def encode_state(type_: EventType, state: Mapping[str, Any], timestamp: float) -> NewEvent:
    """What the log stores of a state change that is no ADK event.

    Raises:
        InvalidIdentifier, ValueNotStorable: nothing can be stored.
    """
    (delta,), encoding = encode([coerce_state(state)], "the state")
    return NewEvent(
        event_id=new_uuid(), type=type_, timestamp=timestamp, encoding=encoding, delta=delta
    )


def decode_event(event: RecordedEvent) -> Event:
    """The ADK event that was stored, its delta as it was coerced.

    Raises:
        CorruptEvent: the payload is absent or no event.
    """
    try:
        if event.data is None:
            raise ValueError("it has no payload")
        fields = decode(event.data, event.encoding)
        if event.delta is not None:
            delta = merge_scopes(decode(event.delta, event.encoding))
            fields["actions"]["stateDelta"] = delta
        return Event.model_validate(fields)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptEvent(
            str(event.stream.key),
            event.version,
            event.position,
            f"it cannot be decoded ({type(error).__name__})",
        ) from error

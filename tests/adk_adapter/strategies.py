"""Events made from the pydantic models themselves: every field, every nested model.

A field that a new ADK adds is generated from the day it is there.
"""

from __future__ import annotations

import datetime
import enum
import types as python_types
import typing
from typing import Any, Final

from google.adk.auth.auth_tool import AuthConfig
from google.adk.events import Event
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["FINITE", "JSON", "TEXT", "events"]

TEXT: Final = st.text(max_size=8)
FINITE: Final = st.floats(allow_nan=False, allow_infinity=False)
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
_DEPTH_MAX: Final = 4
_STATE: Final = st.dictionaries(
    st.builds(str.__add__, st.sampled_from(["", "app:", "user:"]), TEXT.filter("\0".__ne__)),
    JSON,
    max_size=3,
).map(lambda state: {k.replace("\0", ""): v for k, v in state.items()})
# What events are mostly made of; left to chance it would hardly ever be there.
_OFTEN: Final = {"Event": {"actions", "content"}, "Content": {"parts"}}
_SIMPLE: Final[dict[Any, st.SearchStrategy[Any]]] = {
    str: TEXT,
    int: st.integers(-(2**53), 2**53),
    float: FINITE,
    bool: st.booleans(),
    bytes: st.binary(max_size=8),
    Any: JSON,
    object: JSON,
    type(None): st.none(),
    datetime.datetime: st.datetimes(timezones=st.just(datetime.UTC)),
}
_FIELDS: Final[dict[tuple[str, str], st.SearchStrategy[Any]]] = {
    ("Event", "id"): st.uuids().map(str),
    ("Event", "timestamp"): FINITE,
    ("Event", "author"): st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5),
    ("Event", "invocation_id"): st.sampled_from(["", "e-1"]),
    ("Event", "partial"): st.none() | st.just(False),
    ("EventActions", "state_delta"): _STATE.map(
        lambda state: {k: v for k, v in state.items() if not k.startswith("temp:")}
    ),
    ("EventActions", "requested_auth_configs"): st.just({}),
    ("EventActions", "agent_state"): st.none() | st.dictionaries(TEXT, JSON, max_size=2),
    # All of them or none.
    ("CacheMetadata", "cache_name"): st.none(),
    ("CacheMetadata", "expire_time"): st.none(),
    ("CacheMetadata", "invocations_used"): st.none(),
    ("CacheMetadata", "contents_count"): st.integers(0, 99),
    # Validated as JSON schemas, which text made at random is not.
    ("FunctionDeclaration", "parameters"): st.none(),
}


def events() -> st.SearchStrategy[Event]:
    """Events as the validating path makes them: some fields set, the others left out."""
    return _model(Event, 0).map(Event.model_validate)


def _model(model: type[BaseModel], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    optional = {
        name: _field(model, name, field, depth) for name, field in model.model_fields.items()
    }
    required = {name: optional.pop(name) for name in list(optional)
                if model.model_fields[name].is_required()
                or ((model.__name__, name) in _FIELDS and model is Event)}  # fmt: skip
    if depth >= _DEPTH_MAX:
        return st.fixed_dictionaries(required)

    # Few fields at a time: an event with all of them set at once shrinks and reads badly.
    def choose(names: set[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({**required, **{name: optional[name] for name in names}})

    if not optional:
        return st.fixed_dictionaries(required)
    names = st.sets(st.sampled_from(sorted(optional)), min_size=1, max_size=4)
    often = _OFTEN.get(model.__name__, set())
    return st.builds(set.union, names, st.sampled_from([set(), often])).flatmap(choose)


def _field(
    model: type[BaseModel], name: str, field: FieldInfo, depth: int
) -> st.SearchStrategy[Any]:
    special = _FIELDS.get((model.__name__, name))
    return special if special is not None else st.deferred(lambda: _type(field.annotation, depth))


def _type(annotation: Any, depth: int) -> st.SearchStrategy[Any]:
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0], depth)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, python_types.UnionType):
        choices = [_type(argument, depth) for argument in arguments]
        # Leaving a field out is what None looks like; set to None it is only now and then.
        return st.one_of(*choices[:1], *choices)
    if origin is list:
        return st.lists(_type(arguments[0], depth), min_size=depth == 1, max_size=2)
    if origin is set:
        return st.sets(_type(arguments[0], depth), max_size=2)
    if origin is dict:
        return st.dictionaries(TEXT, _type(arguments[1], depth), max_size=2)
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return st.sampled_from(list(annotation))
        if annotation is AuthConfig:
            return st.nothing()
        if issubclass(annotation, BaseModel):
            return _model(annotation, depth + 1)
    raise NotImplementedError(f"no strategy for {annotation!r}: add one")

"""Events made directly from their stored data, without validating again what was valid.

Validating an event takes pydantic more than twice as long as making its objects. A payload that
this package wrote is the dump of an event that could be read back, so it only has to be put
together: for each model the defaults are copied, the fields that are there are converted (base64
to bytes, a value to its enum member, a dict to a nested model), and the object is given its
attributes.

Two things keep it honest. A payload is only trusted when the very same models wrote it: their
fingerprint is stored with it. And a constructor that meets anything it was not made for (a key it
does not know, a value of another type, a field with a validator of its own) says so by raising
Unsure, and the validating path takes over. That both give the same is a property test over every
field of every model.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import types
import typing
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from google.adk.events import Event
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

__all__ = ["Unsure", "construct_event", "layout"]

Convert = Callable[[Any], Any]

_HARMLESS_VALIDATORS: Final = {
    # Both act on what people pass, never on what a dump holds under its own aliases.
    "_check_field_type_mismatches",
    "_accept_convenience_kwargs",
}
_SIMPLE: Final = (str, int, float, bool)

_new = object.__new__
# Found once, not for each object.
_set_values = BaseModel.__dict__["__dict__"].__set__
_set_names = BaseModel.__dict__["__pydantic_fields_set__"].__set__
_set_extra = BaseModel.__dict__["__pydantic_extra__"].__set__
_set_private = BaseModel.__dict__["__pydantic_private__"].__set__


class Unsure(Exception):
    """The data is not what the constructor was made for."""


def construct_event(data: dict[str, Any]) -> Event:
    """Makes the event of a dump by alias without Nones.

    Raises:
        Unsure: it may not be such a dump; validate it.
    """
    try:
        event: Event = _constructor(Event)(data)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unsure from None
    return event


@cache
def layout() -> str:
    """A digest of every field of every model an event can hold: changes when one of them does."""
    lines = [
        f"{model.__module__}.{model.__qualname__}.{name}: {field.annotation!r} {field.alias}"
        for model in _models(Event, set())
        for name, field in model.model_fields.items()
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _models(annotation: Any, seen: set[Any]) -> Iterator[type[BaseModel]]:
    for argument in typing.get_args(annotation):
        yield from _models(argument, seen)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        seen.add(annotation)
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation, seen)


@cache
def _constructor(model: type[BaseModel]) -> Convert:
    """Makes the function that turns a dump of a model into an object of it."""
    if not _validators(model) <= _HARMLESS_VALIDATORS:
        return model.model_validate
    checked = model.__pydantic_decorators__.field_validators.values()
    guarded = {name for decorator in checked for name in decorator.info.fields}
    fields = {
        field.alias or name: (name, *_rule(field, guarded=name in guarded))
        for name, field in model.model_fields.items()
    }
    defaults: dict[str, Any] = {}
    factories: list[tuple[str, Callable[[], Any]]] = []
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    for name, field in model.model_fields.items():
        defaults[name] = None if field.default is PydanticUndefined else field.default
        if field.default_factory is not None:
            factories.append((name, typing.cast("Callable[[], Any]", field.default_factory)))
    if model is Event:
        required = required | {"id", "timestamp"}  # else it would get a new one at each loading
    post_init = model.model_post_init is not BaseModel.model_post_init
    private: dict[str, Any] | None = None
    if (
        model.model_post_init.__name__ == "init_private_attributes"
    ):  # pydantic's, and does only that
        initial = {name: each.default for name, each in model.__private_attributes__.items()}
        if all(value is None or isinstance(value, _SIMPLE) for value in initial.values()):
            private, post_init = initial, False

    def construct(data: dict[str, Any]) -> BaseModel:
        values = defaults.copy()
        names = set()
        for key, value in data.items():
            name, exact, convert = fields[key]
            if exact is None:
                values[name] = convert(value)
            elif type(value) is exact:
                values[name] = value
            else:
                raise Unsure
            names.add(name)
        if not required <= names:
            raise Unsure
        for name, factory in factories:
            if name not in names:
                values[name] = factory()
        made = _new(model)
        _set_values(made, values)
        _set_names(made, names)
        _set_extra(made, None)
        _set_private(made, None if private is None else private.copy())
        if post_init:
            made.model_post_init(None)
        return made

    return construct


def _validators(model: type[BaseModel]) -> set[str]:
    decorators = model.__pydantic_decorators__
    return {*decorators.model_validators, *decorators.root_validators, *decorators.validators}


def _rule(field: FieldInfo, *, guarded: bool) -> tuple[type | None, Convert]:
    """For a field: the one type its value has in a dump and in the object, or how to convert it."""
    if guarded:
        return None, _only_empty
    if field.metadata:
        return None, _never
    return _conversion(field.annotation)


def _conversion(annotation: Any) -> tuple[type | None, Convert]:
    if annotation in _SIMPLE:
        return annotation, _never
    if annotation is Any or annotation is object:
        return None, _as_it_is
    if annotation is bytes:
        return None, base64.urlsafe_b64decode
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        members = [argument for argument in arguments if argument is not type(None)]
        return _conversion(members[0]) if len(members) == 1 else (None, _never)
    if origin is list:
        return None, _each(list, *_conversion(arguments[0]))
    if origin is set:
        return None, _each(set, *_conversion(arguments[0]))
    if origin is dict and arguments[0] is str:
        return (
            (dict, _never) if arguments[1] is Any else (None, _values(*_conversion(arguments[1])))
        )
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return None, annotation._value2member_map_.__getitem__
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None, _constructor(annotation)
    return None, _never


def _each(container: type, exact: type | None, convert: Convert) -> Convert:
    def convert_each(values: Any) -> Any:
        if type(values) is not list:
            raise Unsure
        if exact is None:
            return container([convert(value) for value in values])
        for value in values:
            if type(value) is not exact:
                raise Unsure
        return container(values)

    return convert_each


def _values(exact: type | None, convert: Convert) -> Convert:
    def convert_values(mapping: Any) -> Any:
        if exact is None:
            return {key: convert(value) for key, value in mapping.items()}
        for value in mapping.values():
            if type(value) is not exact:
                raise Unsure
        return mapping

    return convert_values


def _as_it_is(value: Any) -> Any:
    return value


def _only_empty(value: Any) -> Any:
    if value != {}:
        raise Unsure
    return value


def _never(value: Any) -> Any:
    raise Unsure

"""The actions of events that ADK before 1.22 stored as pickles, read without running anything.

A pickle is a program. Here it may build lists, dicts and other plain values, and nothing else: what
it names is looked up in a list of exactly the classes that ADK's actions can hold, and even of
these it gets no class but a blank stand-in, which only notes what it is given. So there is nothing
that it could call, and no class of the process whose attributes it could set. What comes out is
then made into objects through the models' own validation.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Final, get_args
from uuid import UUID

from google.adk.auth.auth_tool import AuthConfig
from google.adk.events import EventActions
from pydantic import BaseModel

__all__ = ["RefusedPickle", "allowed_classes", "load_actions"]

_DEPTH: Final = 200
_PARTS: Final = 1_000_000
"""Values in one pickle. A short one can refer to the same value so often that it never ends."""

_VALUES: Final[Mapping[tuple[str, str], Callable[..., Any]]] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("datetime", "date"): date,
    ("datetime", "datetime"): datetime,
    ("datetime", "time"): time,
    ("datetime", "timedelta"): timedelta,
    ("datetime", "timezone"): timezone,
    ("decimal", "Decimal"): Decimal,
    ("uuid", "UUID"): UUID,
    ("pathlib", "PurePosixPath"): PurePosixPath,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib", "PureWindowsPath"): PureWindowsPath,
    ("pathlib", "WindowsPath"): PureWindowsPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PurePosixPath"): PurePosixPath,
}
"""Plain values of the standard library that a state may hold."""

_MAPPINGS: Final = {("collections", "OrderedDict"), ("collections", "defaultdict")}
_FACTORIES: Final = {("builtins", name) for name in ("list", "dict", "int", "float", "str", "bool")}
"""What a defaultdict names as its default, which is left out."""

_OF_ADK: Final = (
    # Reached only as base classes and members of unions.
    ("fastapi.openapi.models", "OAuthFlow"),
    ("fastapi.openapi.models", "SecurityBase"),
    ("fastapi.openapi.models", "SecurityScheme"),
    ("google.adk.auth.auth_schemes", "ExtendedOAuth2"),
    ("google.adk.auth.auth_schemes", "OAuthGrantType"),
)


class RefusedPickle(ValueError):
    """A pickle that is damaged, or holds what ADK's actions cannot hold."""


class _StandIn:
    """What an allowed class is replaced by while a pickle is read: it notes, and does nothing."""

    origin: tuple[str, str]
    args: tuple[Any, ...]
    state: Any
    items: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **_: Any) -> _StandIn:
        self = object.__new__(cls)
        self.args, self.state, self.items = args, None, []
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, stored: bytes) -> None:
        super().__init__(io.BytesIO(stored))
        self._made: dict[tuple[str, str], type[_StandIn]] = {}

    def find_class(self, module: str, name: str) -> type[_StandIn]:
        named = (module, name)
        if named not in allowed_classes():
            raise RefusedPickle(f"it names {module}.{name}, which ADK's actions do not need")
        # Made anew for each pickle, so that what it sets on one is gone with it.
        return self._made.setdefault(named, type("StandIn", (_StandIn,), {"origin": named}))


@cache
def allowed_classes() -> Mapping[tuple[str, str], Any]:
    """The classes a pickle may name, by module and name: what the fields of ADK's actions hold."""
    allowed: dict[tuple[str, str], Any] = dict(_VALUES)
    allowed |= dict.fromkeys(_MAPPINGS | _FACTORIES, None)
    waiting: list[Any] = [EventActions, AuthConfig]
    seen: set[int] = set()
    while waiting:
        annotation = waiting.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        waiting += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel | Enum):
            allowed[annotation.__module__, annotation.__qualname__] = annotation
            if issubclass(annotation, BaseModel):
                waiting += [field.annotation for field in annotation.model_fields.values()]
    for module, name in _OF_ADK:
        allowed.setdefault((module, name), getattr(__import__(module, fromlist=[name]), name, None))
    return allowed


def load_actions(stored: bytes) -> EventActions:
    """The actions in a pickle.

    Raises:
        RefusedPickle: it is damaged, or holds anything but what ADK's actions can hold.
    """
    try:
        made = _Translation().plain(_Unpickler(stored).load(), 0)
        if isinstance(made, Mapping):  # the first versions of ADK stored a dict
            made = _validated(EventActions, made)
        if not isinstance(made, EventActions):
            raise RefusedPickle("it holds no actions")
        return made
    except RefusedPickle:
        raise
    except Exception as error:  # whatever a damaged or hostile pickle leads to
        raise RefusedPickle(f"it cannot be read ({type(error).__name__})") from None


class _Translation:
    """From what an unpickler made of a pickle to values and models."""

    def __init__(self) -> None:
        self._left = _PARTS

    def plain(self, value: Any, depth: int) -> Any:
        """The value, without stand-ins."""
        self._left -= 1
        if self._left < 0 or depth > _DEPTH:
            raise RefusedPickle("it is nested too deep or too large")
        if isinstance(value, _StandIn):
            return self._made(value, depth + 1)
        if isinstance(value, dict):
            return {
                self.plain(key, depth + 1): self.plain(each, depth + 1)
                for key, each in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            made = [self.plain(each, depth + 1) for each in value]
            return made if isinstance(value, list) else type(value)(made)
        if isinstance(value, type):
            raise RefusedPickle("it holds a class")
        return value

    def _made(self, stand_in: _StandIn, depth: int) -> Any:
        origin = stand_in.origin
        if origin in _MAPPINGS:
            return self.plain(dict(stand_in.items), depth)
        if origin in _FACTORIES:
            raise RefusedPickle(f"it calls {origin[1]}")
        if (make := _VALUES.get(origin)) is not None:
            if make is UUID:
                return UUID(int=stand_in.state["int"])
            return make(*(self.plain(each, depth) for each in stand_in.args))
        model = allowed_classes()[origin]
        if isinstance(model, type) and issubclass(model, Enum):
            return model(*stand_in.args)
        return _validated(model, self.plain(stand_in.state["__dict__"], depth))


def _validated(model: type[BaseModel], fields: Mapping[str, Any]) -> BaseModel:
    """The model with the fields that it still has."""
    known = {
        field.alias or name: fields[name]
        for name, field in model.model_fields.items()
        if name in fields
    }
    return model.model_validate(known)

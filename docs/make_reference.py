"""Writes docs/reference: every public name with its signature and docstring, from the code.

    python docs/make_reference.py

A test compares the pages with the code. Names are public when a package's `__all__` has them.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any, Final, get_origin

PACKAGES: Final = ("adk_adapter", "adk_adapter.testing", "projections", "eventstore")
FOLDER: Final = Path(__file__).parent / "reference"
_BEGINNING: Final = "<!-- Made by `make docs` from the docstrings: change those. -->"


def pages() -> dict[Path, str]:
    """The text of each page, by its path."""
    return {FOLDER / f"{package}.md": _page(package) for package in PACKAGES}


def _page(package: str) -> str:
    module = import_module(package)
    parts = [_BEGINNING, f"# {package}", _text(module.__doc__)]
    for name in sorted(module.__all__, key=_rank(module)):
        parts += _entry(name, getattr(module, name))
    return "\n\n".join(part for part in parts if part) + "\n"


def _rank(module: Any) -> Any:
    """Classes and functions first, then errors, then other values."""

    def rank(name: str) -> tuple[int, str]:
        thing = getattr(module, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            return 1, name
        return (0 if isinstance(thing, type | FunctionType) else 2), name

    return rank


def _entry(name: str, thing: Any) -> Iterator[str]:
    if isinstance(thing, FunctionType):
        yield f"## {name}"
        yield _code(f"{_prefix(thing)}{name}{_signature(thing)}")
        yield _text(thing.__doc__)
    elif isinstance(thing, type):
        yield f"## {name}"
        yield from _class(name, thing)
    else:
        yield f"## {name}"
        shown = isinstance(thing, str | int | tuple) or get_origin(thing) is not None
        yield _code(f"{name} = {_value(thing)}" if shown else f"{name}: {type(thing).__name__}")


def _class(name: str, thing: type) -> Iterator[str]:
    if not _is_ours(thing):
        yield _code(f"class {name}")
        yield f"ADK's own, from `{thing.__module__}`."
        return
    bases = [_base(base) for base in thing.__bases__ if base is not object]
    given = _fields(thing) or (_signature(thing.__init__) if _is_made(thing) else "")
    yield _code(f"class {name}{given.removesuffix(' -> None')}")
    if bases and not hasattr(thing, "_fields"):
        yield f"Bases: {', '.join(bases)}."
    yield _text(thing.__doc__)
    if issubclass(thing, Enum):
        yield "\n".join(f"- `{member.name}` = `{member.value!r}`" for member in thing)
    for method, function in _methods(thing):
        if isinstance(function, property):
            yield f"### {name}.{method}"
            yield _text(function.__doc__)
            continue
        kind = "classmethod " if isinstance(function, classmethod) else ""
        plain = inspect.unwrap(getattr(function, "__func__", function))
        yield f"### {name}.{method}"
        yield _code(f"{kind}{_prefix(plain)}{method}{_signature(plain)}")
        yield _text(plain.__doc__)


def _methods(thing: type) -> Iterator[tuple[str, Any]]:
    """Public methods of ours, in the order they are defined in."""
    seen: dict[str, Any] = {}
    for base in reversed(thing.__mro__):
        if _is_ours(base):
            seen |= vars(base)
    for name, value in seen.items():
        is_method = isinstance(value, FunctionType | property | classmethod | staticmethod)
        if isinstance(value, FunctionType) and not _is_ours(value):
            continue  # what pydantic adds
        if is_method and not name.startswith(("_", "test_")) and _doc_of(value):
            yield name, value


def _base(thing: type) -> str:
    whose = "ADK's " if thing.__module__.startswith("google.adk") else ""
    return f"{whose}`{thing.__name__}`"


def _is_ours(thing: Any) -> bool:
    return thing.__module__.partition(".")[0] in PACKAGES


def _doc_of(value: Any) -> str | None:
    return getattr(getattr(value, "__func__", value), "__doc__", None)


def _is_made(thing: type) -> bool:
    """Whether callers make objects of it, with an `__init__` of its own."""
    return (
        isinstance(vars(thing).get("__init__"), FunctionType)
        and not issubclass(thing, Exception)
        and not getattr(thing, "_is_protocol", False)
    )


def _fields(thing: type) -> str:
    """The fields of a named tuple, as a signature."""
    names = getattr(thing, "_fields", None)
    if names is None:
        return ""
    annotations = thing.__annotations__
    defaults: dict[str, Any] = getattr(thing, "_field_defaults", {})
    fields = [
        f"{name}: {_annotation(annotations[name])}"
        + (f" = {_value(defaults[name])}" if name in defaults else "")
        for name in names
    ]
    return f"({', '.join(fields)})"


def _annotation(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))


def _prefix(function: Any) -> str:
    return "async " if inspect.iscoroutinefunction(function) else ""


def _signature(function: Any) -> str:
    """As it is written: annotations are text already, and stay it."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    text = str(signature.replace(parameters=parameters))
    text = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", text)
    return re.sub(r"<function \S*<lambda> at \w+>", "...", text)


def _value(thing: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing)).replace("typing.", "")


def _code(text: str) -> str:
    """A signature, on several lines where one would be too long."""
    if len(text) > 96 and "(" in text:
        head, _, rest = text.partition("(")
        arguments, _, tail = rest.rpartition(")")
        lines = ",\n".join(f"    {each}" for each in _split(arguments))
        text = f"{head}(\n{lines},\n){tail}"
    return f"```text\n{text}\n```"


def _split(arguments: str) -> Iterator[str]:
    depth, word = 0, ""
    for character in arguments:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            yield word.strip()
            word = ""
        else:
            word += character
    if word.strip():
        yield word.strip()


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: its list of errors as a list, what is indented as code."""
    if not docstring:
        return ""
    paragraphs = []
    for paragraph in inspect.cleandoc(docstring).split("\n\n"):
        if paragraph.startswith("Raises:\n"):
            listed = textwrap.dedent(paragraph.partition("\n")[2])
            items = re.split(r"\n(?! )", listed)
            named = [re.sub(r"^([\w, ]+):", _in_code, re.sub(r"\n\s+", " ", i)) for i in items]
            paragraphs.append("Raises:\n\n" + "\n".join(f"- {item}" for item in named))
        elif paragraph.startswith("    "):
            paragraphs.append(f"```text\n{textwrap.dedent(paragraph)}\n```")
        else:
            paragraphs.append(paragraph)
    # Parts of one indented text that blank lines divide are one block.
    return "\n\n".join(paragraphs).replace("\n```\n\n```text\n", "\n\n")


def _in_code(names: re.Match[str]) -> str:
    return ", ".join(f"`{name.strip()}`" for name in names[1].split(",")) + ":"


def main() -> None:
    """Writes every page."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

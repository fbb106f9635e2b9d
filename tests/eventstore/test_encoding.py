"""The two encodings: what strict JSON holds, what it does not, and what neither does."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore import ValueNotStorable
from eventstore.encoding import (
    PYTHON_JSON,
    STRICT_JSON,
    decode,
    decode_members,
    decode_value,
    encode,
    join_members,
)

TEXT = st.text(st.characters(codec=None, categories=None))  # surrogates and NUL included
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal, of equal types, NaN equal to itself and 0.0 unlike -0.0."""
    return repr(a) == repr(b)


@settings(deadline=None)
@given(VALUES)
def test_what_was_encoded_is_what_is_read(value: Any) -> None:
    (text,), encoding = encode([[value]], "a value")
    assert text is not None
    assert same(decode(text, encoding), [value])


@pytest.mark.parametrize(
    "value", [None, 0.1 + 0.2, 2**70, -0.0, 1e16, 5e-324, "\0", "🜁", "\u2028", {"": [None]}, 1e308]
)
def test_strict_json_holds(value: Any) -> None:
    (text,), encoding = encode([[value]], "a value")
    assert encoding == STRICT_JSON
    assert text is not None
    assert same(decode(text, encoding), [value])
    json.loads(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "\ud800", {"\udfff": 1}])
def test_strict_json_cannot_hold(value: Any) -> None:
    texts, encoding = encode([[value, None], {"é": 1}, None], "a value")
    assert encoding == PYTHON_JSON
    assert texts[2] is None
    assert texts[0] is not None
    assert texts[0].isascii()
    assert texts[1] == b'{"\\u00e9":1}'  # one encoding for all texts of an event
    assert same(decode(texts[0], encoding), [value, None])


@pytest.mark.parametrize(
    "value", [10**5000, object(), 1j], ids=["5,001 digits", "object", "complex"]
)
def test_no_json_holds(value: Any) -> None:
    with pytest.raises(ValueNotStorable, match="the thing"):
        encode([value], "the thing")


def test_nested_too_deep() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueNotStorable, match="nested too deep"):
        encode([value], "the thing")


@settings(deadline=None)
@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_members_are_slices_of_the_stored_text(members: dict[str, Any]) -> None:
    (delta,), encoding = encode([{"session": members}], "a delta")
    assert delta is not None
    split = decode_members(delta, encoding)["session"]
    assert list(split) == list(members)
    for key, text in split.items():
        assert same(decode_value(text), members[key])
        assert text.encode() in delta


@settings(deadline=None)
@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=4))
def test_members_are_joined_as_they_were_split(members: dict[str, Any]) -> None:
    texts = {}
    for key, value in members.items():
        (delta,), encoding = encode([{"session": {key: value}}], "a delta")
        assert delta is not None
        texts |= decode_members(delta, encoding)["session"]
    joined = {}
    for delta, encoding in join_members("session", texts):
        assert encoding == STRICT_JSON or delta.isascii()
        joined |= decode_members(delta, encoding)["session"]
    assert joined == texts

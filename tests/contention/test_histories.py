"""The checker of histories tells good ones from bad ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.contention.histories import Operation, violations


def append(event: str, after: int, began: float, ended: float) -> Operation:
    return Operation("append", "s", began, ended, event, after - 1, after)


def stale(before: int, began: float, ended: float) -> Operation:
    return Operation("stale", "s", began, ended, "refused", before)


def read(seen: str, began: float, ended: float) -> Operation:
    return Operation("read", "s", began, ended, seen=tuple(seen))


def unknown(event: str, began: float) -> Operation:
    return Operation("unknown", "s", began, float("inf"), event)


GOOD = [
    read("", 0, 1),
    append("a", 1, 1, 4),
    read("a", 2, 3),  # while its append is under way
    stale(0, 2, 5),
    unknown("b", 5),
    read("ab", 7, 8),
    append("c", 3, 9, 10),
    stale(1, 6, 8),
]


def test_a_good_history() -> None:
    assert violations(GOOD, {"s": "abc"}) == []
    assert violations(GOOD[:4], {"s": "a"}) == []
    assert violations([*GOOD, unknown("z", 3)], {"s": "abc"}) == []


@pytest.mark.parametrize(
    ("operation", "final", "found"),
    [
        (None, "ab", "acknowledged at 3 and is not there"),
        (None, "acb", "what was never there"),
        (None, "abca", "twice"),
        (None, "abcx", "nobody appended"),
        (append("d", 3, 11, 12), "abc", "acknowledged at 3"),
        (dataclasses.replace(append("d", 4, 11, 12), before=2), "abcd", "behind 2"),
        (read("ab", 3, 4), "abc", "no moment"),  # before anybody began to append b
        (read("a", 8.5, 8.7), "abc", "no moment"),  # after somebody had seen b
        (read("ab", 10.5, 11), "abc", "no moment"),  # after c was acknowledged
        (read("ac", 11, 12), "abc", "never there"),
        (read("abcd", 11, 12), "abc", "never there"),
        (stale(2, 8.2, 8.6), "abc", "no moment"),  # refused, and nobody had appended yet
        (stale(3, 11, 12), "abc", "no moment"),
        (append("d", 4, 7, 8.5), "abcd", "no moment"),  # acknowledged before the one before it
    ],
)
def test_a_bad_history(operation: Any, final: str, found: str) -> None:
    history = GOOD if operation is None else [*GOOD, operation]
    assert any(found in violation for violation in violations(history, {"s": final}))

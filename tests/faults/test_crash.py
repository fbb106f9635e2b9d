"""Killed at random moments: a short run of `python -m tests.faults.crash`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from adk_adapter import DatabaseSessionService
from tests.faults.crash import Oracle, Violation, check, crash
from tests.faults.writers import ThroughService
from tests.places import query

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")


def test_killed_at_random_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    figures = crash(tmp_path, rounds=6, seed=20)
    assert figures.rounds == 6
    assert figures.kills >= 4 * 6
    assert figures.acknowledged > 100


# The oracle finds what it is there to find.


@pytest.fixture
def oracle(database: Path) -> Oracle:
    """One that heard of a session with three events, all of them stored."""

    async def work() -> None:
        async with DatabaseSessionService(database) as service:
            writing = ThroughService(service, "w")
            assert await writing.open() is None
            await writing.create()
            for number in 1, 2, 3:
                await writing.append(number)
            await writing.set(3)
            await writing.create_other("w~1", "left-w", 1)

    asyncio.run(work())
    oracle = Oracle()
    for line in ("create w 0", "append w 1", "append w 2", "append w 3", "set w 3", "other w 1"):
        oracle.hear("p", f"try {line}")
        oracle.hear("p", f"ack {line}")
    return oracle


def test_an_oracle_that_is_right(database: Path, oracle: Oracle) -> None:
    assert check(database, oracle) == 0
    oracle.acknowledged["append", "w"].remove(3)
    assert check(database, oracle) == 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("append w 4", "lost: append w"),
        ("set w 4", "lost: set w"),
        ("delete w 1", "lost: the end of w~1"),
        ("other w 2", "lost: w~2"),
    ],
)
def test_an_oracle_that_was_told_more(
    database: Path, oracle: Oracle, line: str, found: str
) -> None:
    oracle.hear("p", f"try {line}")
    assert check(database, oracle) == 0
    oracle.hear("p", f"ack {line}")
    with pytest.raises(Violation, match=found):
        check(database, oracle)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ("DELETE FROM state WHERE state_key = 'n'", "verify: .*state"),
        ("UPDATE sessions SET last_update_time = 7", "verify: .*sessions"),
        ("UPDATE streams SET version = version + 1", "verify: .*streams"),
    ],
)
def test_rows_that_do_not_fit_their_events(
    database: Path, oracle: Oracle, change: str, found: str
) -> None:
    query(database, change)
    with pytest.raises(Violation, match=found):
        check(database, oracle)


def test_an_event_that_nobody_tried(database: Path, oracle: Oracle) -> None:
    oracle.tried["append", "w"].discard(3)
    oracle.acknowledged["append", "w"].discard(3)
    with pytest.raises(Violation, match="nobody tried"):
        check(database, oracle)

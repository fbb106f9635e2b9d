"""Several processes on one log: nothing is refused, lost or out of order, and nobody starves."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adk_adapter import DatabaseSessionService
from tests.contention.histories import violations
from tests.contention.load import measure
from tests.contention.workers import (
    APP,
    USER,
    in_process,
    parsed,
    race,
    record,
)
from tests.processes import fresh_processes


def test_writers_beside_readers_a_backup_and_a_rebuild(tmp_path: Path) -> None:
    measured = measure(tmp_path, processes=4, tasks=8, seconds=3)
    # Three seconds say nothing of fairness: a process may have been kept from running for one.
    assert measured._replace(share=1.0).broken == []
    assert measured.maintenance["backups"] > 0
    assert measured.maintenance["rebuilds"] > 0


def test_exactly_one_of_four_stale_processes_wins_each_round(target: str) -> None:
    rounds, processes = 50, 4
    asyncio.run(_create(target, ["s"]))
    context = fresh_processes()
    barrier, told = context.Barrier(processes), context.Queue()
    workers = [
        in_process(context, race, target, f"p{n}", rounds, barrier, told) for n in range(processes)
    ]
    won = [number for _ in workers for number in told.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert sorted(won) == list(range(rounds))
    (events,) = asyncio.run(_final(target, ["s"])).values()
    assert [event.partition("/")[2] for event in events] == [str(n) for n in range(rounds)]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_one_serial_order_explains_what_processes_were_told_while_some_are_killed(
    target: str,
) -> None:
    seconds, seed = 3.0, 7
    names = ["s0", "s1", "s2"]
    asyncio.run(_create(target, names))
    context = fresh_processes()
    chance = random.Random(seed)
    told: list[list[str]] = []
    listeners: list[threading.Thread] = []

    def begin() -> Any:
        number = len(told)
        here, there = context.Pipe(duplex=False)
        own = (target, f"p{number}-", len(names), seed + number, there)
        process = in_process(context, record, *own)
        there.close()
        told.append([])
        listeners.append(threading.Thread(target=_listen, args=(here, told[-1])))
        listeners[-1].start()
        _wait_for(lambda: len(told[number]) > 0)
        return process

    running = [begin() for _ in range(4)]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(told) < 6:
        time.sleep(chance.random() / 5)
        victim = chance.randrange(len(running))
        _kill(running[victim])
        running[victim] = begin()
    for process in running:
        _kill(process)
    for listener in listeners:
        listener.join()
    history = [operation for lines in told for operation in parsed(lines)]
    assert violations(history, asyncio.run(_final(target, names))) == []
    assert asyncio.run(_verified(target))
    assert {operation.kind for operation in history} >= {"append", "stale", "read"}
    assert len(told) >= 6


def _kill(process: Any) -> None:
    process.kill()
    process.join()


def _listen(pipe: Any, lines: list[str]) -> None:
    with open(pipe.fileno(), closefd=False) as told:
        for line in told:
            if line.endswith("\n"):
                lines.append(line)  # noqa: PERF401 - others look at it meanwhile
    pipe.close()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def _create(target: str, names: list[str]) -> None:
    async with DatabaseSessionService(target) as service:
        for name in names:
            await service.create_session(APP, USER, name)


async def _final(target: str, names: list[str]) -> dict[str, tuple[str, ...]]:
    async with DatabaseSessionService(target) as service:
        found = {name: await service.get_session(APP, USER, name) for name in names}
    return {name: tuple(e.id for e in s.events) for name, s in found.items() if s is not None}


async def _verified(target: str) -> bool:
    async with DatabaseSessionService(target) as service:
        return (await service.verify()).clean

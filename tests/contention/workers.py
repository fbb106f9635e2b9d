"""What the processes of these tests do, and how they tell of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from google.adk.events import Event, EventActions
from google.adk.sessions.base_session_service import GetSessionConfig

from adk_adapter import DatabaseSessionService, StaleSessionError
from eventstore import MaintenanceRunning, open_store
from projections import BUILT_IN, rebuild
from projections.backup import backup
from tests.contention.histories import Operation

APP: Final = "app"
USER: Final = "user"


def event(name: str, **delta: Any) -> Event:
    return Event(id=name, author="writer", actions=EventActions(state_delta=delta))


# Load.


def load(path: Path, name: str, tasks: int, ready: Any, seconds: float, told: Any) -> None:
    """Appends to one session per task and loads them; tells latencies, counts and errors."""
    latencies: list[float] = []
    reads: list[float] = []
    counts: dict[str, int] = {}
    errors: list[str] = []

    async def agent(service: DatabaseSessionService, session_id: str, until: float) -> None:
        session: Any = await service.create_session(APP, USER, session_id)
        number = 0
        while time.monotonic() < until:
            number += 1
            delta = {"n": number, f"app:{session_id}": number, f"user:{session_id}": number}
            began = time.perf_counter()
            try:
                await service.append_event(session, event(f"{session_id}/{number}", **delta))
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                return
            latencies.append(time.perf_counter() - began)
            counts[session_id] = number
            if number % 8 == 0:
                began = time.perf_counter()
                config = GetSessionConfig(num_recent_events=5)
                found = await service.get_session(APP, USER, session_id, config)
                reads.append(time.perf_counter() - began)
                if found is None or found.events[-1].id != f"{session_id}/{number}":
                    errors.append(f"{session_id}: {number} was not read back")

    async def work() -> None:
        async with DatabaseSessionService(path) as service:
            ready.wait()
            until = time.monotonic() + seconds
            await asyncio.gather(*(agent(service, f"{name}-{n}", until) for n in range(tasks)))

    asyncio.run(work())
    told.put((name, latencies, reads, counts, errors))


def hold_open(path: Path, held_s: float, ready: Any, seconds: float) -> None:
    """A program of somebody else's that keeps reading transactions open for long."""
    ready.wait()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM events").fetchone()
            time.sleep(max(0.0, min(held_s, until - time.monotonic())))
            connection.execute("COMMIT")
        time.sleep(max(0.0, min(held_s / 3, until - time.monotonic())))


def maintain(path: Path, folder: Path, ready: Any, seconds: float, told: Any) -> None:
    """Backs up, rebuilds, and rests for as long, again and again."""
    done = {"backups": 0, "rebuilds": 0}
    errors = []
    with closing(open_store(path, BUILT_IN)) as store:
        ready.wait()
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            try:
                backup(store, folder / "copy.sqlite3", overwrite=True)
                done["backups"] += 1
                rebuild(store, BUILT_IN)
                done["rebuilds"] += 1
            except MaintenanceRunning:
                pass
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
                break
            rest = 2 * time.monotonic() - began
            time.sleep(max(0.0, min(rest, until) - time.monotonic()))
    told.put((done, errors))


# Stale writers.


def race(path: Path | str, name: str, rounds: int, barrier: Any, told: Any) -> None:
    """In each round loads the session, waits for the others, and appends."""

    async def work() -> None:
        won = []
        async with DatabaseSessionService(path) as service:
            for number in range(rounds):
                barrier.wait()
                session: Any = await service.get_session(APP, USER, "s")
                barrier.wait()
                try:
                    await service.append_event(session, event(f"{name}/{number}", winner=name))
                except StaleSessionError:
                    continue
                won.append(number)
        told.put(won)

    asyncio.run(work())


# Histories.


def record(path: Path | str, name: str, sessions: int, seed: int, pipe: Connection) -> None:
    """Appends to and reads shared sessions until it is killed, and tells of each call.

    A line without an end was cut off by the kill.
    """
    chance = random.Random(seed)
    telling = threading.Lock()  # a long line may go into the pipe in two pieces

    def say(**facts: Any) -> None:
        with telling:
            os.write(pipe.fileno(), f"{json.dumps(facts)}\n".encode())

    async def client(service: DatabaseSessionService, who: str) -> None:
        for number in itertools.count():
            session_id = f"s{chance.randrange(sessions)}"
            began = time.monotonic()
            session: Any = await service.get_session(APP, USER, session_id)
            seen = [each.id for each in session.events]
            say(kind="read", session=session_id, began=began, ended=time.monotonic(), seen=seen)
            if chance.random() < 0.3:
                continue
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() / 200)
            mine, before, began = f"{who}.{number}", len(seen), time.monotonic()
            facts = {"session": session_id, "began": began, "event": mine, "before": before}
            say(kind="unknown", **facts)
            try:
                await service.append_event(session, event(mine, last=mine))
            except StaleSessionError:
                say(kind="stale", ended=time.monotonic(), **facts)
            else:
                after = len(session.events)
                say(kind="append", ended=time.monotonic(), after=after, **facts)

    def loop(thread: int) -> None:
        async def clients() -> None:
            await asyncio.gather(*(client(service, f"{name}{thread}{n}") for n in "ab"))

        asyncio.run(clients())

    service = DatabaseSessionService(path)
    threading.Thread(target=loop, args=(1,), daemon=True).start()
    loop(0)


def parsed(lines: list[str]) -> list[Operation]:
    """The operations of what a process told: one that has no answer is unknown."""
    done: list[Operation] = []
    pending: dict[str, Operation] = {}
    for line in lines:
        facts = json.loads(line)
        facts["seen"] = tuple(facts.get("seen", ()))
        operation = Operation(**{"ended": float("inf"), **facts})
        if operation.kind == "unknown":
            pending[operation.event] = operation
        else:
            pending.pop(operation.event, None)
            done.append(operation)
    return [*done, *pending.values()]


def in_process(context: Any, function: Callable[..., None], *arguments: Any) -> Any:
    """Starts a process, which ends with this one."""
    process = context.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process

"""Fails a PostgreSQL server and the way to it while processes write, again and again.

    python -m tests.postgres.faults --rounds 50 --seed 1
    python -m tests.postgres.faults --failover --rounds 5
    python -m tests.postgres.faults --failover --asynchronous --lag 0.5 --rounds 5

In each round something fails, and every session must get on within a minute, by itself: its
service finds back to the server. At the end the oracle compares what is stored with what was told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from adk_adapter import DatabaseSessionService
from eventstore import ServerUnavailable
from tests.contention.workers import in_process
from tests.postgres.network import Relay, relay
from tests.postgres.server import Server, execute, servers
from tests.postgres.workload import Oracle, check, write
from tests.processes import fresh_processes

__all__ = ["FAULTS", "Scene", "failover", "fault", "writing"]

_START_S: Final = 60
REPLICA: Final = "replica"


# The processes that write.


def work(target: str, name: str, tasks: int, seed: int, stopping: Any, pipe: Any) -> None:
    """One process with one service, until it is told to stop."""

    def tell(verb: str, session: str, number: int) -> None:
        os.write(pipe.fileno(), f"{verb} {session} {number}\n".encode())

    async def run() -> None:
        while True:
            try:
                service = DatabaseSessionService(target)
            except ServerUnavailable:
                await asyncio.sleep(0.05)
            else:
                break
        async with service:
            names = [f"{name}-{n}" for n in range(tasks)]
            await asyncio.gather(
                *(
                    write(service, own, seed + n, stopping.is_set, tell)
                    for n, own in enumerate(names)
                )
            )

    try:
        asyncio.run(run())
    except BaseException as error:
        text = f"{type(error).__name__}:{error}"
        tell("fail", "_".join(text.split())[:2000], 0)
        raise


@contextmanager
def writing(
    target: str, oracle: Oracle, *, processes: int, tasks: int, seed: int
) -> Iterator[None]:
    """Lets processes write, and waits for their ends behind the block."""
    context = fresh_processes()
    stopping = context.Event()
    running, listeners = [], []
    for number in range(processes):
        here, there = context.Pipe(duplex=False)
        own = (target, f"p{number}", tasks, seed + 100 * number, stopping, there)
        running.append(in_process(context, work, *own))
        there.close()
        listeners.append(threading.Thread(target=_listen, args=(here, oracle)))
        listeners[-1].start()
    try:
        yield
        stopping.set()
        for process in running:
            process.join(_START_S)
            assert process.exitcode is not None, "a process does not end"
    finally:
        for process in running:
            process.kill()
            process.join()
        for listener in listeners:
            listener.join()


def _listen(pipe: Any, oracle: Oracle) -> None:
    with open(pipe.fileno(), closefd=False, encoding="utf-8") as lines:
        for line in lines:
            verb, name, number = line.split()
            oracle.hear(verb, name, int(number))
    pipe.close()


# What fails.


@dataclass
class Scene:
    """A server, and the way that the services have to it."""

    server: Server
    way: Relay
    chance: random.Random

    def backends(self) -> list[int]:
        """Process ids of the services' connections."""
        rows = execute(
            self.server.url(),
            "SELECT pid FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )
        return [pid for (pid,) in rows]

    def while_away(self) -> None:
        time.sleep(self.chance.uniform(0.05, 0.3))


def _kill(scene: Scene) -> None:
    scene.server.kill()
    scene.while_away()
    scene.server.start()


def _restart(scene: Scene) -> None:
    scene.server.stop()
    scene.server.start()


def _terminate(scene: Scene) -> None:
    for pid in scene.backends():
        execute(scene.server.url(), f"SELECT pg_terminate_backend({pid})")


def _kill_backend(scene: Scene) -> None:
    backends = scene.backends()
    if backends:
        _signal(scene.chance.choice(backends), signal.SIGKILL)


def _cut(scene: Scene) -> None:
    scene.way.cut()


def _down(scene: Scene) -> None:
    scene.way.cut(down=True)
    scene.while_away()
    scene.way.restore()


def _silence(scene: Scene) -> None:
    scene.way.silence()
    scene.while_away()
    scene.way.restore()


def _unanswered(scene: Scene) -> None:
    scene.way.silence(answers_only=True)
    scene.while_away()
    scene.way.restore()


def _freeze(scene: Scene) -> None:
    stopped = [scene.server.pid, *scene.server.children()]
    for pid in stopped:
        _signal(pid, signal.SIGSTOP)
    scene.while_away()
    for pid in stopped:
        _signal(pid, signal.SIGCONT)


def _signal(pid: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # a process of the server that has ended by itself
        os.kill(pid, what)


FAULTS: Final[dict[str, Callable[[Scene], None]]] = {
    "kill": _kill,
    "restart": _restart,
    "terminate": _terminate,
    "kill a backend": _kill_backend,
    "cut": _cut,
    "down": _down,
    "silence": _silence,
    "unanswered": _unanswered,
    "freeze": _freeze,
}


@dataclass
class Figures:
    """What a run did."""

    faults: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    seen: int = 0
    """Of the unknown ones those that were looked for, and stored."""
    lost: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    """How long it took at the longest until all sessions had got on behind a fault."""


def fault(
    server: Server,
    schema: str,
    names: list[str],
    *,
    seed: int,
    processes: int = 2,
    tasks: int = 3,
) -> Figures:
    """Lets one thing after another fail.

    Raises:
        AssertionError: a promise was broken, or a service did not find back.
    """
    oracle, figures, began = Oracle(), Figures(), time.monotonic()
    with relay(server.url()) as way:
        scene = Scene(server, way, random.Random(seed))
        target = f"{way.url(server.url())}?schema={schema}"
        asyncio.run(DatabaseSessionService(target).aclose())
        with writing(target, oracle, processes=processes, tasks=tasks, seed=seed):
            oracle.wait_for_all(processes * tasks, began)
            for name in names:
                time.sleep(scene.chance.uniform(0, 0.1))
                FAULTS[name](scene)
                over = time.monotonic()
                oracle.wait_for_all(processes * tasks, over)
                figures.faults += 1
                figures.slowest_s = max(figures.slowest_s, time.monotonic() - over)
    found = asyncio.run(check(f"{server.url()}?schema={schema}", oracle))
    assert not found, found
    assert not oracle.lost, f"{oracle.lost} acknowledged events are gone"
    return _figures(figures, oracle, began)


def failover(*, synchronous: bool, lag_s: float, seed: int, processes: int = 2) -> Figures:
    """Kills a primary for good, and lets its replica take over.

    For `lag_s` seconds before that nothing of what is written reaches the replica.

    Raises:
        AssertionError: a promise was broken, or a service did not find the new primary.
    """
    oracle, figures, began, tasks = Oracle(), Figures(faults=1), time.monotonic(), 3
    with servers() as room:
        primary = room.add("primary", durable=True)
        with relay(primary.url()) as between:
            replica = room.replicate(primary, REPLICA, between.url(primary.url()))
            if synchronous:
                primary.set("synchronous_standby_names", REPLICA)
            target = both(primary, replica)
            asyncio.run(DatabaseSessionService(target).aclose())
            with writing(target, oracle, processes=processes, tasks=tasks, seed=seed):
                oracle.wait_for_all(processes * tasks, began)
                time.sleep(random.Random(seed).uniform(0, 0.3))
                if lag_s:
                    between.silence()
                    time.sleep(lag_s)
                    if not synchronous:  # else nothing is acknowledged now
                        oracle.wait_for_one()
                primary.kill()
                replica.promote()
                over = time.monotonic()
                oracle.wait_for_all(processes * tasks, over)
                figures.slowest_s = time.monotonic() - over
            found = asyncio.run(check(target, oracle))
    assert not found, found
    assert not (synchronous and oracle.lost), f"{oracle.lost} acknowledged events are gone"
    return _figures(figures, oracle, began)


def both(primary: Server, replica: Server, schema: str = "") -> str:
    """A URL that leads to whichever of two servers takes writes."""
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{replica.port}"
    options = "target_session_attrs=read-write" + (f"&schema={schema}" if schema else "")
    return f"postgresql://postgres@{hosts}/postgres?{options}"


def _figures(figures: Figures, oracle: Oracle, began: float) -> Figures:
    figures.acknowledged = oracle.count["ack"]
    figures.unknown = oracle.count["unknown"]
    figures.refused = oracle.count["refused"]
    figures.seen = oracle.count["seen"]
    figures.lost = oracle.lost
    figures.seconds = round(time.monotonic() - began, 1)
    figures.slowest_s = round(figures.slowest_s, 2)
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres.faults")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--only", choices=FAULTS, help="let nothing else fail")
    parser.add_argument("--failover", action="store_true", help="fail over to a replica")
    parser.add_argument("--asynchronous", action="store_true", help="which nobody waits for")
    parser.add_argument("--lag", type=float, default=0.0, help="seconds that it is behind")
    given = parser.parse_args()
    print(f"seed {given.seed}", file=sys.stderr)
    if given.failover:
        for number in range(given.rounds):
            figures = failover(
                synchronous=not given.asynchronous,
                lag_s=given.lag,
                seed=given.seed + number,
                processes=given.processes,
            )
            print(json.dumps(vars(figures)), flush=True)
        return
    chance = random.Random(given.seed)
    names = [given.only or chance.choice(list(FAULTS)) for _ in range(given.rounds)]
    with servers() as room:
        server = room.add(durable=True)
        figures = fault(server, "faults", names, seed=given.seed, processes=given.processes)
    print(json.dumps(vars(figures)))


if __name__ == "__main__":
    main()

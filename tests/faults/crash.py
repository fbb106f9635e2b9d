"""Kills writers at random moments, and compares what is stored with what they were told.

    python -m tests.faults.crash --rounds 200 --seed 1

In each round four processes use one file: two services with several threads and tasks, a store
whose commits are synced, and one that rebuilds, follows and vacuums. Some are killed while the
others go on, and begin again; then all are killed. The oracle, which is outside of all of them,
reads what each reported on its pipe, opens the file and checks:

- every acknowledged write is there, and nothing that nobody tried;
- each event is there with its rows, or nothing of it: the keys of the session, the user and the app
  have the number of the last event, and so has the row of the session its time;
- `verify` finds nothing, SQLite's own check of the file included;
- the file takes appends again, and the next round goes on with it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from eventstore import Cursor, Window, open_store
from projections import BUILT_IN, installed, verify
from tests.eventstore.events import created, new_event, session
from tests.faults.writers import (
    KEYS,
    SHARED,
    delta_of,
    maintain,
    use_service,
    use_store,
)
from tests.processes import fresh_processes

__all__ = ["Figures", "Violation", "crash"]

_ROUNDS_PER_FILE: Final = 8
_EARLY: Final = 0.2
"""In how many rounds the killing begins before anybody was acknowledged anything."""
_PATIENCE_S: Final = 60
_PROGRAMS: Final[dict[str, tuple[Callable[..., None], int]]] = {
    "agent": (use_service, 2),
    "other": (use_service, 1),
    "store": (use_store, 1),
    "maintainer": (maintain, 1),
}
"""The processes of a round, and how many threads each writes from."""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class Figures:
    """What a run did. Nothing was lost and nothing was half there, or it would have ended."""

    rounds: int = 0
    kills: int = 0
    acknowledged: int = 0
    maintenance: int = 0
    unacknowledged: int = 0
    """Writes that are stored and of which nobody was told: killed in between."""
    seconds: float = 0.0


@dataclass
class Oracle:
    """What the writers of one file said: which numbers were tried, and which acknowledged."""

    tried: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    acknowledged: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    failures: list[str] = field(default_factory=list)
    talking: set[str] = field(default_factory=set)
    """The processes of this round that were acknowledged something."""

    def hear(self, process: str, line: str) -> None:
        verb, what, name, number = line.split(" ")
        if verb == "fail":
            self.failures.append(f"{process}: {what}")
        elif verb == "try":
            self.tried[what, name].add(int(number))
        else:
            self.acknowledged[what, name].add(int(number))
            self.talking.add(process)

    def names(self, what: str) -> list[str]:
        return sorted(name for kind, name in self.tried if kind == what)

    def count(self) -> tuple[int, int]:
        """How many writes were acknowledged, and how many steps of maintenance."""
        steps = sum(len(n) for (what, _), n in self.acknowledged.items() if what == "maintenance")
        return sum(map(len, self.acknowledged.values())) - steps, steps


class _Running:
    """A process that writes, and a thread that listens to it until nothing more can come."""

    def __init__(self, name: str, path: Path, oracle: Oracle) -> None:
        program, threads = _PROGRAMS[name]
        context = fresh_processes()
        self._name, self._oracle = name, oracle
        self._here, there = context.Pipe(duplex=False)
        self.process = context.Process(target=program, args=(path, name, threads, there))
        self.process.start()
        there.close()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        with os.fdopen(os.dup(self._here.fileno()), encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    self._oracle.hear(self._name, line.rstrip("\n"))
        self._here.close()

    def kill(self) -> bool:
        """Kills it, and waits until all it said was heard. False when it had ended by itself."""
        self.process.kill()
        self.process.join()
        self._listener.join()
        code = self.process.exitcode
        self.process.close()
        return code == -9


def crash(
    folder: Path,
    *,
    rounds: int,
    seed: int,
    longest_s: float = 0.4,
    told: Callable[[Figures], None] = lambda _: None,
) -> Figures:
    """Runs rounds of killing in a folder.

    Raises:
        Violation: a promise was broken; the files are left as they are.
    """
    chance = random.Random(seed)
    figures = Figures()
    began = time.monotonic()
    oracle = Oracle()
    counted = stored = 0
    for number in range(rounds):
        if number % _ROUNDS_PER_FILE == 0:
            oracle, counted, stored = Oracle(), 0, 0
            path = folder / f"{number // _ROUNDS_PER_FILE}.sqlite3"
        figures.kills += _round(path, oracle, chance, longest_s)
        figures.rounds += 1
        if oracle.failures:
            raise Violation(f"round {number}, seed {seed}: {oracle.failures}")
        try:
            unacknowledged = check(path, oracle)
        except Violation as error:
            raise Violation(f"round {number}, seed {seed}, {path}: {error}") from error
        acknowledged, steps = oracle.count()
        figures.acknowledged += acknowledged - counted
        figures.unacknowledged += unacknowledged - stored
        counted, stored = acknowledged, unacknowledged
        if (number + 1) % _ROUNDS_PER_FILE == 0 or number + 1 == rounds:
            figures.maintenance += steps
            for file in folder.glob(f"{path.name}*"):
                file.unlink()
        figures.seconds = round(time.monotonic() - began, 1)
        told(figures)
    return figures


def _round(path: Path, oracle: Oracle, chance: random.Random, longest_s: float) -> int:
    oracle.talking.clear()
    running = {name: _Running(name, path, oracle) for name in _PROGRAMS}
    kills = 0
    try:
        if chance.random() >= _EARLY:
            deadline = time.monotonic() + _PATIENCE_S
            while len(oracle.talking) < len(running) and not oracle.failures:
                if time.monotonic() > deadline:
                    raise Violation(f"{running.keys() - oracle.talking} got nothing done")
                time.sleep(0.002)
        for _ in range(chance.randrange(4)):
            time.sleep(chance.uniform(0, longest_s / 2))
            victim = chance.choice(list(running))
            kills += running.pop(victim).kill()
            running[victim] = _Running(victim, path, oracle)
        time.sleep(chance.uniform(0, longest_s))
    finally:
        names = list(running)
        chance.shuffle(names)
        for name in names:
            kills += running[name].kill()
    return kills


# The oracle's questions.


class _Stored(NamedTuple):
    """What the file has of one live session."""

    stream: int
    user: int
    app: int
    events: list[str]
    """The ids of its conversation."""
    sets: list[int]
    last_timestamp: float
    last_update_time: float | None


def check(path: Path, oracle: Oracle) -> int:
    """Compares a file that nobody has open with what the oracle heard.

    Returns how many writes are stored of which nobody was told.
    """
    with closing(open_store(path, BUILT_IN)) as store:
        verified = verify(store, BUILT_IN, installed.following(store))
        _require(verified.clean, f"verify: {verified.drifted} {verified.differences}")
        asyncio.run(_goes_on(store))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return _Check(connection, oracle).run()


async def _goes_on(store: object) -> None:
    """Somebody may write to it again, and read it."""
    key = session("checked")
    stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
    if stream is None:
        stream = (await store.create(key, created())).stream
    cursor = Cursor(stream.id, stream.conversation_version)
    appended = await store.append(key, new_event(), cursor)
    count = await store.load(key, Window(), lambda loaded: len(loaded.events))
    _require(count == appended.version - 1, "the file does not go on")


class _Check:
    def __init__(self, connection: sqlite3.Connection, oracle: Oracle) -> None:
        self._oracle = oracle
        self._unacknowledged = 0
        self._state = {
            (owner, key): json.loads(value)
            for owner, key, value in connection.execute(
                "SELECT owner_id, state_key, state_value FROM state"
            )
        }
        self._live = {stored[0]: _Stored(*stored[1:]) for stored in _sessions(connection)}
        users = connection.execute("SELECT id FROM streams WHERE kind = 'user'").fetchall()
        self._user = users[0][0] if users else 0

    def run(self) -> int:
        known = {SHARED, "checked"}
        for name in self._oracle.names("create"):
            known.add(name)
            self._session(name)
            known |= {f"{name}~{number}" for number in self._others(name)}
        self._shared()
        _require(self._live.keys() <= known, f"nobody made {self._live.keys() - known}")
        return self._unacknowledged

    def _session(self, name: str) -> None:
        stored = self._live.get(name)
        self._compare("create", name, [] if stored is None else [0])
        if stored is None:
            self._compare("append", name, [])
            _require(
                all(key != name for _, key in self._state), f"half: keys of {name}, and no session"
            )
            return
        numbers = self._numbers(stored.events, name)
        self._compare("append", name, numbers)
        self._compare("set", name, stored.sets)
        last = len(numbers)
        rows = {key: value for (owner, key), value in self._state.items() if owner == stored.stream}
        expected: dict[str, int] = {}
        for number in range(max(0, last - KEYS), last + 1):
            expected |= delta_of(name, number)["session"]
        if stored.sets:
            expected["set"] = stored.sets[-1]
        _require(rows == expected, f"half: {name} has {rows}, its events say {expected}")
        for owner in (stored.user, stored.app):
            value = self._state.get((owner, name))
            _require(value == last, f"half: event {last} of {name}, and key {value} of {owner}")
        self._times(name, stored)

    def _shared(self) -> None:
        stored = self._live.get(SHARED)
        for name in self._oracle.names("shared"):
            events = [] if stored is None else stored.events
            numbers = self._numbers([e for e in events if e.startswith(f"{name}/")], name)
            self._compare("shared", name, numbers)
            if stored is not None and numbers:
                value = self._state.get((stored.stream, name))
                _require(value == numbers[-1], f"half: shared event {numbers[-1]}, and key {value}")
        if stored is not None:
            self._times(SHARED, stored)

    def _others(self, name: str) -> Iterator[int]:
        """Sessions that are made and deleted: their key of the user stays, also after a vacuum."""
        oracle = self._oracle
        made, deleted = oracle.tried["other", name], oracle.tried["delete", name]
        left = self._state.get((self._user, f"left-{name}"))
        acknowledged = max(oracle.acknowledged["other", name], default=0)
        _require(
            acknowledged == 0 or (left is not None and left >= acknowledged),
            f"lost: {name}~{acknowledged}, key {left}",
        )
        _require(left is None or left in made, f"{name}: nobody wrote {left}")
        for number in made:
            live = f"{name}~{number}" in self._live
            if number in oracle.acknowledged["delete", name]:
                _require(not live, f"lost: the end of {name}~{number}")
            elif number in oracle.acknowledged["other", name] and number not in deleted:
                _require(live, f"lost: {name}~{number}")
            yield number
        self._unacknowledged += left is not None and left > acknowledged

    def _numbers(self, events: list[str], name: str) -> list[int]:
        numbers = [int(event.removeprefix(f"{name}/")) for event in events]
        _require(
            numbers == list(range(1, len(numbers) + 1)), f"{name}: not one by one: {numbers[-9:]}"
        )
        return numbers

    def _compare(self, what: str, name: str, stored: list[int]) -> None:
        tried, told = self._oracle.tried[what, name], self._oracle.acknowledged[what, name]
        _require(told <= set(stored), f"lost: {what} {name} {sorted(told - set(stored))}")
        _require(set(stored) <= tried, f"nobody tried: {what} {name} {sorted(set(stored) - tried)}")
        self._unacknowledged += len(set(stored) - told)

    @staticmethod
    def _times(name: str, stored: _Stored) -> None:
        _require(
            stored.last_timestamp == stored.last_update_time,
            f"half: {name} was updated at {stored.last_update_time}, not {stored.last_timestamp}",
        )


def _sessions(connection: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    streams = connection.execute(
        "SELECT session_id, id, user_stream_id, app_stream_id FROM streams "
        "WHERE kind = 'session' AND live = 1"
    ).fetchall()
    for name, stream, user, app in streams:
        events = connection.execute(
            "SELECT type, event_id, delta, timestamp FROM events WHERE stream_id = ? "
            "ORDER BY version",
            (stream,),
        ).fetchall()
        row = connection.execute(
            "SELECT last_update_time FROM sessions WHERE stream_id = ?", (stream,)
        ).fetchone()
        yield (
            name,
            stream,
            user,
            app,
            [event_id for kind, event_id, *_ in events if kind == "adk_event"],
            [
                json.loads(delta)["session"]["set"]
                for kind, _, delta, _ in events
                if kind == "state_set"
            ],
            events[-1][3] if events else 0.0,
            None if row is None else row[0],
        )


def _require(condition: object, message: str) -> None:
    if not condition:
        raise Violation(message)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.crash", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the files are made; default: a new one")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="crash-"))
    folder.mkdir(parents=True, exist_ok=True)

    def told(figures: Figures) -> None:
        if figures.rounds % 20 == 0:
            print(f"{figures.rounds} rounds, {figures.kills} kills", file=sys.stderr)

    try:
        figures = crash(folder, rounds=arguments.rounds, seed=arguments.seed, told=told)
    except Violation as error:
        sys.exit(f"BROKEN: {error}\nThe files are in {folder}.")
    shutil.rmtree(folder)
    print(json.dumps({**asdict(figures), "lost": 0, "half": 0}))


if __name__ == "__main__":
    main()

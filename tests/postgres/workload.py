"""What writes while a server fails, and the oracle that compares what is stored with what was told.

Each task has a session of its own and appends event after event, the same one again until it was
told that it is stored. Event `n` sets the keys `n`, `user:<session>` and `app:<session>` to n. What
a task tells is a verb, the session and the number:

- `try`, before it begins, then `ack`, `unknown` (stored or not) or `refused` (not stored);
- `seen`: it looked after a failure, and the event is there; `broken`: so it is after a refusal;
- `lost`: the session stands at this number, and more of it was acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from adk_adapter import AlreadyExistsError, DatabaseSessionService, StaleSessionError
from eventstore import OutcomeUnknown, ServerUnavailable, StorageFailed, StoreBusy, TimedOut
from tests.contention.workers import APP, USER, event

__all__ = ["Oracle", "Report", "check", "write"]

REFUSED: Final = (ServerUnavailable, StorageFailed, StoreBusy, TimedOut)
"""Errors that promise that nothing was stored."""
_LOOK: Final = 0.5
"""How often somebody who was told of a failure looks what is there before trying again."""

Report = Callable[[str, str, int], None]


async def write(
    service: DatabaseSessionService, name: str, seed: int, stop: Callable[[], bool], tell: Report
) -> None:
    """Appends to a session until told to stop; whatever fails is tried again."""
    chance = random.Random(seed)
    session: Any = await _begin(service, name, tell)
    number = 0
    while not stop():
        number += 1
        made = event(
            f"{name}/{number}", n=number, **{f"{s}:{name}": number for s in ("app", "user")}
        )
        tell("try", name, number)
        told = ""
        while told not in ("ack", "seen"):
            try:
                await service.append_event(session, made)
                told = "ack"
            except (OutcomeUnknown, *REFUSED) as error:
                told = "unknown" if isinstance(error, OutcomeUnknown) else "refused"
            except StaleSessionError:
                # Nobody else writes here: what was acknowledged is gone.
                session = await _look(service, name)
                number = len(session.events)
                tell("lost", name, number)
                break
            tell(told, name, number)
            if told == "ack":
                break
            if chance.random() < _LOOK:
                session = await _look(service, name)
                if session.events and session.events[-1].id == made.id:
                    tell("broken" if told == "refused" else "seen", name, number)
                    told = "seen"
            await asyncio.sleep(chance.random() / 100)


async def _begin(service: DatabaseSessionService, name: str, tell: Report) -> Any:
    tell("try", name, 0)
    while True:
        try:
            session = await service.create_session(APP, USER, name)
        except AlreadyExistsError:
            session = await _look(service, name)
        except (OutcomeUnknown, *REFUSED):
            await asyncio.sleep(0.01)
            continue
        tell("ack", name, 0)
        return session


async def _look(service: DatabaseSessionService, name: str) -> Any:
    while True:
        try:
            session = await service.get_session(APP, USER, name)
        except REFUSED:
            await asyncio.sleep(0.01)
        else:
            assert session is not None, f"{name} is gone"
            return session


@dataclass
class Oracle:
    """What the writers said."""

    tried: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Session, and the last number that was tried."""
    told: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Session, and the last number that was acknowledged, or seen."""
    lost: int = 0
    """Events that were acknowledged and are gone, as the writers noticed."""
    count: Counter[str] = field(default_factory=Counter)
    last: dict[str, float] = field(default_factory=dict)
    """Session, and when something of it was acknowledged, by time.monotonic."""
    failures: list[str] = field(default_factory=list)

    def hear(self, verb: str, name: str, number: int) -> None:
        self.count[verb] += 1
        if verb == "try":
            self.tried[name] = number
        elif verb in ("ack", "seen"):
            self.told[name] = number
            self.last[name] = time.monotonic()
        elif verb == "lost":
            self.lost += self.told[name] - number
            self.told[name] = number
        elif verb == "broken":
            self.failures.append(f"{name}/{number} was refused, and is stored")
        elif verb == "fail":
            self.failures.append(name)

    def wait_for_all(self, sessions: int, since: float, patience_s: float = 60) -> None:
        """Waits until something of each session was acknowledged after a moment.

        So a service must have found its way back to the server by itself.
        """
        deadline = time.monotonic() + patience_s
        while not self.failures:
            if sum(last > since for last in self.last.copy().values()) >= sessions:
                return
            late = sorted(name for name, last in self.last.copy().items() if last <= since)
            assert time.monotonic() < deadline, f"nothing more of {late}, {dict(self.count)}"
            time.sleep(0.005)
        raise AssertionError(self.failures)

    def wait_for_one(self, patience_s: float = 60) -> None:
        """Waits until one more append is acknowledged."""
        before, deadline = self.count["ack"], time.monotonic() + patience_s
        while self.count["ack"] == before:
            assert time.monotonic() < deadline, f"nothing more, {dict(self.count)}"
            time.sleep(0.005)


async def check(target: str, oracle: Oracle) -> list[str]:
    """What was acknowledged and is not there, is there twice or in part, or was never tried."""
    found = list(oracle.failures)
    async with DatabaseSessionService(target) as service:
        for name, tried in oracle.tried.items():
            session = await service.get_session(APP, USER, name)
            stored = [] if session is None else [each.id for each in session.events]
            last = len(stored)
            if stored != [f"{name}/{number + 1}" for number in range(last)]:
                found.append(f"{name} is not one by one: {stored[-9:]}")
            if last < oracle.told[name]:
                found.append(f"{name}: {oracle.told[name]} were acknowledged, {last} are there")
            if last > tried:
                found.append(f"{name}: {last} are there, {tried} were tried")
            state = {} if session is None else session.state
            keys = ("n", f"app:{name}", f"user:{name}") if last else ()
            found += [
                f"{name}: {key} is {state.get(key)} behind event {last}"
                for key in keys
                if state.get(key) != last
            ]
        verified = await service.verify()
        if not verified.clean:
            found.append(f"it does not verify: {verified.differences}")
    return found

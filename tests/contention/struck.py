"""A program that a signal's handler strikes at one point after another.

    python -m tests.contention.struck FOLDER [--first N] [--step N]

The handler raises KeyboardInterrupt, SystemExit or an Exception of its own behind a call of this
package's code, while a loop in the main thread appends and loads. The program goes on, as one does
that catches it: whatever was handed over must come to an end, nothing may be told twice or lost, no
lock or snapshot may be left behind, and what was raised must have reached the program. Exits with 1
when something of that is not so. All points: about 40 seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService
from eventstore.sqlite import engine as engines
from tests.contention.striking import struck

_PATIENCE_S: Final = 10.0
_STUCK_S: Final = 60.0
_FORK_EVERY: Final = 10
_ROOM: Final = 500
"""Frames that the writer thread need not fold yet."""


class Late(Exception):
    """Raised by a handler, as that of a timer does. asyncio may keep it from the program."""


class Program:
    """One loop in the main thread, and a live session."""

    def __init__(self, path: Path) -> None:
        self.service = DatabaseSessionService(path)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda *_: None)
        self.number = 0
        self.struck_late: BaseException | None = None

    def begin(self) -> None:
        """Makes a new session, and sees to it that the loop's own thread does what follows."""
        self.session = self.run(lambda: self.service.create_session("app", "user"))
        engine = self.service._store._engine  # type: ignore[attr-defined]
        while True:
            self.run(self.append)
            self.run(self.load)
            engine._slow_until = 0.0
            if not engine._write._syncs and engine._write.frames < _ROOM:
                return

    def run(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Runs a coroutine; a SystemExit that comes only now is noted, and it is run again."""
        try:
            return self.loop.run_until_complete(asyncio.wait_for(make(), _PATIENCE_S))
        except (KeyboardInterrupt, SystemExit, Late) as error:
            assert self.struck_late is None, "raised twice"
            self.struck_late = error
        except RuntimeError as error:
            if "stopped before" not in str(error):  # by what had ended when the SystemExit came
                raise
        return self.run(make)

    async def append(self) -> Event:
        self.number += 1
        actions = EventActions(state_delta={f"k{self.number}": self.number})
        return await self.service.append_event(self.session, Event(author="a", actions=actions))

    async def load(self) -> Any:
        return await self.service.get_session("app", "user", self.session.id)

    def tasks(self) -> list[asyncio.Task[Any]]:
        several = (self.append, self.load, self.append, self.load, self.append)
        return [self.loop.create_task(each()) for each in several]

    def check(
        self,
        tasks: list[asyncio.Task[Any]],
        kind: type[BaseException],
        raised: BaseException | None,
    ) -> None:
        async def end() -> set[asyncio.Task[Any]]:
            return (await asyncio.wait(tasks, timeout=_PATIENCE_S / 2))[1]

        assert not (pending := self.run(end)), f"{len(pending)} never end"
        errors = [task.exception() for task in tasks]
        assert all(error is None or isinstance(error, kind) for error in errors), errors
        engine = self.service._store._engine  # type: ignore[attr-defined]
        assert engine.checkpoint(), "a snapshot was left open"
        self.run(self.append)
        self.run(self.service.flush)
        loaded = self.run(self.load)
        assert loaded == self.session, "the live session is not what is stored"
        acknowledged = {t.result().id for t in tasks if t.exception() is None and _appended(t)}
        assert acknowledged <= {event.id for event in loaded.events}, "lost"
        reached = isinstance(raised, kind) or self.struck_late is not None or any(errors)
        assert reached or kind is Late, "what was raised was swallowed"
        self.struck_late = None


def _appended(task: asyncio.Task[Any]) -> bool:
    return isinstance(task.result(), Event)


def _fork() -> None:
    """A fork waits until no thread uses SQLite: for ever, where a lock was left behind."""
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


def attack(folder: Path, first: int, step: int) -> int:
    """Strikes at every `step`-th point. Returns how many strikes did harm."""
    engines._WAITED_S = engines._STEP_S = _STUCK_S  # type: ignore[misc] - tracing takes long
    harm, point, program = 0, first, Program(folder / "0.sqlite3")
    while True:
        faulthandler.dump_traceback_later(_STUCK_S, exit=True)
        kind = (KeyboardInterrupt, SystemExit, Late)[(point // step + first) % 3]
        program.begin()
        tasks = program.tasks()
        together = asyncio.gather(*tasks, return_exceptions=True)
        run = program.loop.run_until_complete
        where, raised = struck(lambda: run(together), point, kind)  # noqa: B023
        if where is None:
            break
        try:
            program.check(tasks, kind, raised)
            if point // step % _FORK_EVERY == 0:
                _fork()
        except BaseException as failure:
            harm += 1
            print(f"{kind.__name__} at {where} (point {point}): {failure}", flush=True)
            program = Program(folder / f"{point}.sqlite3")
        point += step
    program.run(program.service.close)
    program.loop.close()
    faulthandler.cancel_dump_traceback_later()
    print(f"struck at {(point - first) // step} of {point} points: harm by {harm}")
    return harm


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="python -m tests.contention.struck")
    _parser.add_argument("folder", type=Path)
    _parser.add_argument("--first", type=int, default=0)
    _parser.add_argument("--step", type=int, default=1)
    _given = _parser.parse_args()
    sys.exit(1 if attack(_given.folder, _given.first, _given.step) else 0)

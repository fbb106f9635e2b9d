"""Processes that carry out benchmarks side by side, and stay for the next one.

Each service is measured in a process that has done nothing else, so what the others left in memory
does not slow it down.
"""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

# A fork has ADK imported already. Where there is none, each process imports it anew.
_METHOD = "fork" if sys.platform == "linux" else "spawn"


class Crew:
    """Some processes; `run` lets them all, or one, do the same at once."""

    def __init__(self, size: int) -> None:
        """Start them; make it before anything that has threads or database connections."""
        context = multiprocessing.get_context(_METHOD)
        barrier = context.Barrier(size)
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, number, barrier), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., T], *arguments: Any) -> list[T]:
        """Call it in every process, with its number and a barrier first; return all results."""
        return self._run(self._pipes, function, arguments)

    def run_alone(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call it in one process, the others idle; number 0 and no barrier come first."""
        return self._run(self._pipes[:1], function, arguments)[0]

    @staticmethod
    def _run(
        pipes: Sequence[Connection], function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> list[T]:
        for pipe in pipes:
            pipe.send((function, len(pipes) > 1, arguments))
        results = [pipe.recv() for pipe in pipes]
        for error in results:
            if isinstance(error, _Failed):
                raise RuntimeError(f"in a process of the crew:\n{error}")
        return results

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(5)


class _Failed(str):
    """What a function raised, as text."""


def _serve(pipe: Connection, number: int, barrier: Any) -> None:
    while (task := pipe.recv()) is not None:
        function, together, arguments = task
        try:
            result = function(number, barrier if together else None, *arguments)
        except BaseException:
            result = _Failed(traceback.format_exc())
            if together:
                barrier.abort()
        pipe.send(result)

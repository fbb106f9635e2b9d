"""Processes that begin at once: forked from one that has imported everything, and nothing else."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext
from typing import Final

__all__ = ["fresh_processes"]

_IMPORTED: Final = [
    "pytest",
    "adk_adapter",
    "projections",
    "tests.contention.workers",
    "tests.faults.scenarios",
    "tests.projections.logs",
]


def fresh_processes() -> BaseContext:
    """Where to make processes and pipes. A process shares nothing with this one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context

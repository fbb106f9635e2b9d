"""Options, the measured services, and the facts kept with the numbers."""

import asyncio
import gc
import os
import sqlite3
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_service import Bench
from benchmarks.events import CONVERSATIONS_VARIABLE, mean_event_bytes
from benchmarks.services import CONTENDERS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `python -m benchmarks` passes on."""
    parser.addoption("--quick", action="store_true", help="few rounds, short sessions")
    parser.addoption("--databases", type=Path, help="directory for the measured databases")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add what the numbers depend on to pytest-benchmark's machine facts."""
    machine_info["sqlite_version"] = sqlite3.sqlite_version
    machine_info["adk_version"] = version("google-adk")
    machine_info["cores"] = os.cpu_count()
    machine_info["event_bytes"] = mean_event_bytes()
    machine_info["real_conversations"] = bool(os.environ.get(CONVERSATIONS_VARIABLE))


@pytest.fixture(scope="session")
def benches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Bench]]:
    """Every service, open on its own database, on one event loop kept for the whole run."""
    directory = request.config.getoption("databases") or tmp_path_factory.mktemp("databases")
    loop = asyncio.new_event_loop()
    # All imported modules are kept out of collections, which would otherwise
    # strike single rounds with a pause longer than any of the measured calls.
    gc.collect()
    gc.freeze()
    benches = {
        name: Bench(loop, contender, directory / f"{name}.sqlite3")
        for name, contender in CONTENDERS.items()
    }
    yield benches
    for bench in benches.values():
        bench.close()
    gc.unfreeze()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

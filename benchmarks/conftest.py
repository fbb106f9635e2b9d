"""Options, and the measured services."""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.bare import open_bare
from benchmarks.bench_service import (
    APPENDS_PER_SESSION,
    OPERATIONS,
    PASSES,
    READERS,
    Bench,
    the_load,
)
from benchmarks.prefill import Load
from benchmarks.services import BARE, CONTENDERS, close, open_filled, pragmas, recorded_connections


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options `python -m benchmarks` passes on."""
    parser.addoption("--quick", action="store_true", help="few rounds, short sessions")
    parser.addoption("--databases", type=Path, help="directory for the measured databases")
    parser.addoption("--seed", type=int, default=0, help="of events and ids")


@pytest.fixture(scope="session")
def benches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[tuple[str, bool], Bench]]:
    """Every service on a database to write to and, where it is read, on a filled one.

    All on one event loop, kept for the whole run.
    """
    option = request.config.getoption
    directory = option("databases") or tmp_path_factory.mktemp("databases")
    quick, seed = option("quick"), option("seed")
    loop = asyncio.new_event_loop()
    new, filled = Load(0, 0, seed=seed), the_load(quick=quick, seed=seed)
    benches = {
        (name, load is filled): _open(loop, name, directory, load)
        for load, names in [(new, CONTENDERS), (filled, READERS)]
        for name in names
    }
    bare = loop.run_until_complete(
        open_bare(directory / "bare.sqlite3", 1 if quick else _recorded(), APPENDS_PER_SESSION)
    )
    benches[BARE, False] = Bench(loop, bare, "", new)
    # What is here by now is kept out of collections, which would otherwise strike
    # single rounds with a pause longer than any of the measured calls.
    gc.collect()
    gc.freeze()
    yield benches
    gc.unfreeze()
    for bench in benches.values():
        bench.run(close(bench.service))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _open(loop: asyncio.AbstractEventLoop, name: str, directory: Path, load: Load) -> Bench:
    path = directory / f"{name}-{load.rows}.sqlite3"
    with recorded_connections() as opened:
        service = loop.run_until_complete(open_filled(name, path, load))
        bench = Bench(loop, service, "", load)
        bench.run(bench.create_session())  # makes the tables
    bench.pragmas = pragmas(path, opened)
    return bench


def _recorded() -> int:
    """How many sessions of appends the statements are recorded of."""
    appends = PASSES * (OPERATIONS["append_event"].rounds + 1)
    return -(-appends // APPENDS_PER_SESSION)

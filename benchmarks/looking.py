"""Measures what looks at a database and keeps it small, on a large file.

    python -m benchmarks.looking --sessions 100000 --events 1000000

Fills a file (minutes) and prints the best of some runs of each call, in milliseconds. The file is
removed at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.prefill import APP, prefill
from eventstore import open_store
from projections import (
    BUILT_IN,
    Filter,
    erase_user,
    examine_database,
    list_sessions,
    measure,
    purge,
    purgeable,
    tail,
    vacuum,
)

_PAGES_SKIPPED = 90


def best(what: str, function: Callable[[], Any], *, runs: int = 5) -> Any:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - began)
    print(f"{what:50} {min(times) * 1e3:12,.2f} ms", flush=True)
    return result


def measure_all(path: Path) -> None:
    with closing(open_store(path, BUILT_IN)) as store:
        page = best("a page of an app", lambda: list_sessions(store, APP))
        user = page.sessions[0].user_id
        best("a page of all", lambda: list_sessions(store))
        best("a page of a user", lambda: list_sessions(store, APP, user))
        best("a page of a user in all apps", lambda: list_sessions(store, None, user))
        best("a page in the order of creation", lambda: list_sessions(store, APP, order="created"))
        best("a page with state", lambda: list_sessions(store, APP, with_state=True))
        best("a title that nobody has", lambda: list_sessions(store, APP, title="none"), runs=1)
        cursor = None
        for _ in range(_PAGES_SKIPPED):
            page = list_sessions(store, APP, limit=1000, cursor=cursor)
            cursor = page.cursor or cursor
        best("a page far back", lambda: list_sessions(store, APP, limit=1000, cursor=cursor))
        best("the last ten events", lambda: list(tail(store)))
        best("the last ten of a user", lambda: list(tail(store, Filter(APP, user))))
        best("stats", lambda: measure(store, whole=False))
        best("stats of everything", lambda: measure(store, whole=True), runs=1)
    best("doctor", lambda: examine_database(path, whole=False))
    best("doctor of every page", lambda: examine_database(path, whole=True), runs=1)
    with closing(open_store(path, BUILT_IN)) as store:
        best("erase a user, without rewriting", lambda: _erase(store, user), runs=1)
        oldest = list_sessions(store, APP, limit=1000, reverse=True).sessions[-1]
        age = {"older_than": 0.0, "now": oldest.last_update_time}
        found = best("count what a purge removes", lambda: purgeable(store, **age), runs=1)
        best(f"purge {found.sessions} sessions", lambda: purge(store, BUILT_IN, **age), runs=1)
        best("rewrite", lambda: vacuum(store, BUILT_IN, rewrite=True), runs=1)


def _erase(store: Any, user: str) -> Any:
    return erase_user(store, BUILT_IN, user_id=user, rewrite=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.looking", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="looking-") as folder:
        path = Path(folder) / "sessions.sqlite3"
        prefill(path, sessions=arguments.sessions, events=arguments.events)
        print(f"{arguments.sessions:,} sessions, {path.stat().st_size / 1e6:,.0f} MB")
        measure_all(path)


if __name__ == "__main__":
    main()

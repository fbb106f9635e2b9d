"""What an append cannot do without, beside the whole of it and that of ADK's Sqlite service.

    python -m benchmarks.appending

Microseconds of each append, the median of a thousand; each line is measured by itself.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.adk.events import Event
from pydantic import TypeAdapter

from adk_adapter.codec import encode_event
from benchmarks.bare import BareSqlite, Call, record
from benchmarks.events import event_stream
from benchmarks.prefill import APP
from benchmarks.services import CONTENDERS, OURS, SQLITE, close
from eventstore import StreamKey, StreamKind
from eventstore.events import Stream
from eventstore.records import seal

APPENDS = 1_000
GROUP = 40
"""So many appends are one commit on the loop's thread, where that many wait."""


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        for what, microseconds in asyncio.run(measure(Path(folder), APPENDS)).items():
            print(f"{what:52}{microseconds:8.1f}")


async def measure(folder: Path, appends: int) -> dict[str, float]:
    """Microseconds of each append, by what is done for it."""
    lone, grouped = folder / "lone.sqlite3", folder / "grouped.sqlite3"
    first, create, *calls = await record(lone, 1, appends)
    shutil.copy(lone, grouped)
    groups = in_groups(calls, GROUP)
    events = list(itertools.islice(event_stream(), appends))
    whole = {name: CONTENDERS[name].open(folder / name) for name in (SQLITE, OURS)}
    gc.collect()
    gc.freeze()
    taken = {
        "ADK's SqliteSessionService": await append(whole[SQLITE], events),
        "this service": await append(whole[OURS], events),
        "its statements on bare sqlite3": await append(
            BareSqlite(lone, [first, create, *calls]), events
        ),
        f"the same, {GROUP} appends in a commit": await append(
            BareSqlite(grouped, [first, create, *groups]), events[: len(groups)]
        )
        / GROUP,
        "pydantic writing the event as JSON": median(TypeAdapter(Event).dump_json, events),
        "digests and link": median(sealed, [encode_event(event) for event in events]),
        "a task that waits for a callback of its loop": await waiting(appends),
    }
    gc.unfreeze()
    return taken


def in_groups(calls: Sequence[Call], size: int) -> list[Call]:
    """What so many calls write, in one transaction; what is left over is left out."""
    begin, commit = (s for s in calls[0].statements if s.sql in ("BEGIN IMMEDIATE", "COMMIT"))
    groups = []
    for start in range(0, len(calls) - size + 1, size):
        statements = [s for call in calls[start : start + size] for s in call.statements]
        written = [s for s in statements if s.sql.startswith(("INSERT", "UPDATE"))]
        groups.append(Call(calls[start].name, [begin, *written, commit]))
    return groups


async def append(service: Any, events: Sequence[Event]) -> float:
    """Appends them to a new session, one after the other."""
    session = await service.create_session(app_name=APP, user_id="user")
    taken = []
    for event in events:
        own = event.model_copy(deep=True)
        began = time.perf_counter()
        await service.append_event(session, own)
        taken.append(time.perf_counter() - began)
    await close(service)
    return statistics.median(taken) * 1e6


def median(function: Callable[[Any], object], values: Sequence[Any]) -> float:
    """Calls a function with each value."""
    taken = []
    for value in values:
        began = time.perf_counter()
        function(value)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


_STREAM = Stream(1, StreamKey(StreamKind.SESSION, APP, "user", "session"), 2, 3, 1, 1, bytes(32))


def sealed(event: Any) -> object:
    """What is hashed for an event."""
    return seal(_STREAM, 0, event)


async def waiting(count: int) -> float:
    """A future that is set in the next round of the loop."""
    loop = asyncio.get_running_loop()
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


if __name__ == "__main__":
    main()

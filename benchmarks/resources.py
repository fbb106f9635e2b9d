"""Memory and import time."""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import tracemalloc
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.prefill import APP, NAMED_USER, Load, Shape
from benchmarks.services import DATABASE, MEMORY, OURS, SQLITE, close, open_filled

# What users write to get a service; run in new processes, where nothing is imported yet.
_IMPORTS = {
    OURS: "from adk_adapter import DatabaseSessionService as Service",
    MEMORY: "from google.adk.sessions import InMemorySessionService as Service",
    SQLITE: "from google.adk.sessions.sqlite_session_service "
    "import SqliteSessionService as Service",
    DATABASE: "from google.adk.sessions import DatabaseSessionService as Service",
}
_ARGUMENTS = {OURS: "path", MEMORY: "", SQLITE: "path", DATABASE: "f'sqlite+aiosqlite:///{path}'"}

_TIME_IMPORT = """
import time
import google.adk.sessions
start = time.perf_counter()
{imports}
print((time.perf_counter() - start) * 1000)
"""

_WEIGH = """
import asyncio, gc, os, sys
import google.adk.sessions
from google.adk.events import Event

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

async def main():
    before = resident()
    {imports}
    path = sys.argv[1]
    service = Service({arguments})
    session = await service.create_session(app_name="app", user_id="user")
    await service.append_event(session, Event(author="user", invocation_id="1"))
    await service.get_session(app_name="app", user_id="user", session_id=session.id)
    del session
    print(resident() - before)

asyncio.run(main())
"""


def import_ms(name: str, times: int) -> float:
    """How much the import of a service adds to that of `google.adk.sessions`."""
    program = _TIME_IMPORT.format(imports=_IMPORTS[name])
    _printed(program)
    return median(_printed(program) for _ in range(times))


def idle_mb(name: str, folder: Path, times: int) -> float | None:
    """What a process grows by, over ADK, when it imports a service and has used it once."""
    if sys.platform != "linux":
        return None
    program = _WEIGH.format(imports=_IMPORTS[name], arguments=_ARGUMENTS[name])
    return median(_printed(program, str(folder / f"idle-{name}-{n}")) for n in range(times))


@cache
def _bytecode() -> str:
    folder = tempfile.mkdtemp(prefix="bytecode-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _printed(program: str, *arguments: str) -> float:
    # With bytecode, as installers make it; the first of the programs does.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": _bytecode()}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        capture_output=True,
        check=True,
        encoding="utf-8",
        env=environment,
    )
    return float(ran.stdout)


def load_mb(number: int, barrier: Any, name: str, path: Path, events: int) -> tuple[float, float]:
    """What loading a session takes at its peak, and what of it the loaded session keeps.

    Counts what Python allocates; SQLite's page cache, of fixed size, is not in it.
    """

    async def run() -> tuple[float, float]:
        named = {"first": Shape(10), "measured": Shape(events)}
        service = await open_filled(name, path, Load(0, 0, named=named))
        where = {"app_name": APP, "user_id": NAMED_USER}
        await service.get_session(**where, session_id="first")
        gc.collect()
        tracemalloc.start()
        session = await service.get_session(**where, session_id="measured")
        assert session is not None
        assert len(session.events) == events
        gc.collect()
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        await close(service)
        return peak / 1e6, kept / 1e6

    return asyncio.run(run())

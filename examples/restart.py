"""A process is killed on the spot; another one goes on with everything it was told is stored.

python -m examples.restart
"""

import asyncio
import os
import signal
import subprocess
import sys

from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService

KEY = ("restart", "ada", "long-work")


async def work() -> None:
    """Appends, tells of each event that is stored, and is killed in the middle."""
    service = DatabaseSessionService("restart.sqlite3")
    session = await service.create_session(*KEY)
    for step in range(1, 6):
        actions = EventActions(state_delta={"step": step})
        await service.append_event(session, Event(author="worker", actions=actions))
        print(f"step {step} is stored", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # no goodbye: nothing is flushed, nothing is closed


async def go_on() -> None:
    """What another process finds."""
    async with DatabaseSessionService("restart.sqlite3") as service:
        session = await service.get_session(*KEY)
        assert session is not None
        print(f"found {len(session.events)} events, and the state {session.state}")
        await service.append_event(session, Event(author="worker"))
        print(f"and it goes on: the database is clean: {(await service.verify()).clean}")


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        asyncio.run(work())
    else:
        killed = subprocess.run([sys.executable, "-m", "examples.restart", "work"], check=False)
        print(f"the process ended with {killed.returncode}")
        asyncio.run(go_on())

"""The processes of the demo: one that is killed in the middle of its work, one that takes over.

A process reports what it does as lines of JSON on its standard output.
"""

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from google.adk.events import Event
from google.adk.sessions import Session as AdkSession
from google.genai import types

from adk_adapter import DatabaseSessionService, Session

from .agent import APP_NAME, make_runner

USER = "ada"
OTHER_USER = "grace"
# Windows has no SIGKILL; there, os.kill() ends a process at once with any signal.
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

FIRST_TURNS = [
    "Load penguins.csv and summarise it.",
    "Train a model that tells the species from flipper_length_mm and body_mass_g. Evaluate it.",
]
INTERRUPTED_TURN = "Not good enough. Train it on all four measurements."
LATER_TURNS = [
    "You were cut off. What was the last thing you did?",
    "Evaluate the new model.",
    "Bill 45.2 by 17.8 mm, flippers 198 mm, 3950 g: predict the species.",
]


class ReportingSessionService(DatabaseSessionService):
    """The session service, reporting every operation with the time it took."""

    async def create_session(self, *args: Any, **kwargs: Any) -> Session:
        """Creates a session, and reports it."""
        started = perf_counter()
        session = await super().create_session(*args, **kwargs)
        report("create", started, session=session.id)
        return session

    async def get_session(self, *args: Any, **kwargs: Any) -> Session | None:
        """Gets a session, and reports it."""
        started = perf_counter()
        session = await super().get_session(*args, **kwargs)
        report("get", started)
        return session

    async def append_event(self, session: AdkSession, event: Event) -> Event:
        """Appends an event, and reports it with the state that the session has by then."""
        # Noted first, as the service takes these keys out: they are not to be stored.
        temporary = [key for key in event.actions.state_delta if key.startswith("temp:")]
        started = perf_counter()
        event = await super().append_event(session, event)
        report("append", started, event=dump(event), state=lasting(session), temporary=temporary)
        return event


def report(operation: str, started: float, **facts: Any) -> None:
    """Reports an operation that has just ended."""
    tell(operation=operation, milliseconds=(perf_counter() - started) * 1000, **facts)


def tell(**facts: Any) -> None:
    """Writes one line for the demo; at once, as this process may not live to do it later."""
    print(json.dumps(facts), flush=True)


def dump(event: Event) -> dict[str, Any]:
    """Everything an event says, as JSON."""
    return event.model_dump(mode="json", exclude_none=True)


def lasting(session: AdkSession) -> dict[str, Any]:
    """The state of a session, all scopes, without the keys that last for one turn only."""
    return {key: value for key, value in session.state.items() if not key.startswith("temp:")}


async def talk(service: DatabaseSessionService, session_id: str, turns: Iterable[str]) -> None:
    """Lets the agent answer; in the interrupted turn this process dies before it can."""
    runner = make_runner(service)
    for text in turns:
        message = types.UserContent(parts=[types.Part(text=text)])
        async for event in runner.run_async(
            user_id=USER, session_id=session_id, new_message=message
        ):
            # The tool has done its work, and the agent has yet to say so.
            trained = any(r.name == "train_model" for r in event.get_function_responses())
            if text == INTERRUPTED_TURN and trained:
                os.kill(os.getpid(), KILL)


async def begin(service: DatabaseSessionService) -> None:
    """The first process: a conversation that comes to no end."""
    session = await service.create_session(app_name=APP_NAME, user_id=USER)
    await talk(service, session.id, [*FIRST_TURNS, INTERRUPTED_TURN])


async def resume(service: DatabaseSessionService, session_id: str) -> None:
    """The second process: looks at what is there, and goes on."""
    await look(service, session_id)
    await open_sessions(service)
    await talk(service, session_id, LATER_TURNS)
    await look(service, session_id)
    tell(stats=service.get_stats())


async def open_sessions(service: DatabaseSessionService) -> None:
    """Opens new sessions, and reports the state they start with."""
    start = {}
    # Several, so that the time it takes is not only that of a process's very first operation.
    for user in (USER, OTHER_USER) * 5:
        session = await service.create_session(app_name=APP_NAME, user_id=user)
        start[user] = lasting(session)
    tell(start=start)


async def look(service: DatabaseSessionService, session_id: str) -> None:
    """Reports the session as it is in the file."""
    session = await service.get_session(app_name=APP_NAME, user_id=USER, session_id=session_id)
    if session is None:
        raise LookupError(f"Session {session_id} is not in the file")
    tell(found=[dump(event) for event in session.events], state=session.state)


async def main() -> None:
    """Begins a conversation in a file, or goes on with the one given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--db", required=True)
    parser.add_argument("--session")
    arguments = parser.parse_args()
    service = ReportingSessionService(arguments.db)
    try:
        if arguments.session:
            await resume(service, arguments.session)
        else:
            await begin(service)
    finally:
        await service.close()


if __name__ == "__main__":
    asyncio.run(main())

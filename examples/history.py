"""What happened, when, and who did it: the history that the state was made from.

python -m examples.history
"""

import asyncio
import sqlite3
from contextlib import closing

from google.adk.events import Event, EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai.types import Content, Part

from adk_adapter import DatabaseSessionService


async def talk() -> None:
    async with DatabaseSessionService("history.sqlite3") as service:
        session = await service.create_session("history", "ada", "s", {"price": 100})
        for author, price in ("agent", 90), ("user", 70), ("agent", 80):
            content = Content(role="model", parts=[Part(text=f"What about {price}?")])
            actions = EventActions(state_delta={"price": price})
            event = Event(author=author, invocation_id="deal", content=content, actions=actions)
            await service.append_event(session, event)
        await service.update_keys("history", "ada", "s", {"price": 75})

        last = GetSessionConfig(num_recent_events=2)
        loaded = await service.get_session("history", "ada", "s", config=last)
        assert loaded is not None
        print("the last two events:", [event.author for event in loaded.events])
        print("the state:", loaded.state)


def who_set(key: str) -> None:
    """The file answers SQL: each event that set a key, oldest first."""
    question = """
        SELECT type, author, state_delta ->> '$.session' ->> ? AS value FROM adk_events
        WHERE session_id = 's' AND value IS NOT NULL ORDER BY id
    """
    with closing(sqlite3.connect("file:history.sqlite3?mode=ro", uri=True)) as connection:
        for kind, author, value in connection.execute(question, (key,)):
            print(f"  {key} = {value:<4} {kind:<16} {author}")


if __name__ == "__main__":
    asyncio.run(talk())
    print("who set the price:")
    who_set("price")

"""The same on a PostgreSQL server, whose URL is given; two services stand for two machines.

python -m examples.postgresql postgresql://user@host/database
"""

import asyncio
import sys

from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService


async def main(url: str) -> None:
    async with DatabaseSessionService(url) as here, DatabaseSessionService(url) as there:
        session = await here.create_session("postgresql", "ada", state={"step": 0})
        for step in range(1, 4):
            actions = EventActions(state_delta={"step": step})
            await here.append_event(session, Event(author="here", actions=actions))

        elsewhere = await there.get_session("postgresql", "ada", session.id)
        assert elsewhere is not None
        print(f"the other service sees {len(elsewhere.events)} events and {elsewhere.state}")
        await there.append_event(elsewhere, Event(author="there"))
        print("clean:", (await there.verify()).clean)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))

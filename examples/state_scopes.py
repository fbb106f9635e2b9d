"""Where a key of the state lives: in the session, with the user, in the app, or only for now.

python -m examples.state_scopes
"""

import asyncio

from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService


async def main() -> None:
    async with DatabaseSessionService("scopes.sqlite3") as service:
        session = await service.create_session(
            "scopes", "ada", state={"topic": "penguins", "user:language": "en", "app:release": 1}
        )
        delta = {"topic": "whales", "user:language": "fr", "app:release": 2, "temp:draft": "..."}
        event = Event(author="user", invocation_id="one", actions=EventActions(state_delta=delta))
        await service.append_event(session, event)
        print("in the run:       ", session.state)

        again = await service.get_session("scopes", "ada", session.id)
        assert again is not None
        print("loaded again:     ", again.state)

        hers = await service.create_session("scopes", "ada")
        print("her next session: ", hers.state)

        his = await service.create_session("scopes", "bob")
        print("another user:     ", his.state)

        # Between runs, without an event of the conversation:
        print("set from outside: ", await service.update_keys("scopes", "bob", his.id, {"k": 1}))


if __name__ == "__main__":
    asyncio.run(main())

"""Many users at once, some of them in two places: nobody waits for anybody, nothing gets lost.

python -m examples.several_users
"""

import asyncio

from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService, StaleSessionError

USERS = [f"user-{number}" for number in range(20)]


async def chat(service: DatabaseSessionService, user_id: str) -> None:
    """One user's conversation, beside all others."""
    session = await service.create_session("several", user_id, "chat")
    for number in range(10):
        actions = EventActions(state_delta={"said": number + 1, "user:seen": True})
        await service.append_event(session, Event(author="user", actions=actions))


async def main() -> None:
    async with DatabaseSessionService("several.sqlite3") as service:
        await asyncio.gather(*(chat(service, user_id) for user_id in USERS))
        everybody = await service.list_sessions(app_name="several")
        print(f"{len(everybody.sessions)} sessions, {service.get_stats()['events']} events")

        # The same session in two tabs: the second to write is told, loads again, and writes.
        first = await service.get_session("several", "user-0", "chat")
        second = await service.get_session("several", "user-0", "chat")
        assert first is not None
        assert second is not None
        await service.append_event(first, Event(author="first tab"))
        try:
            await service.append_event(second, Event(author="second tab"))
        except StaleSessionError:
            print("the second tab is behind: it loads the session again")
            second = await service.get_session("several", "user-0", "chat")
            assert second is not None
            await service.append_event(second, Event(author="second tab"))

    # Or the service brings it up to date by itself.
    async with DatabaseSessionService("several.sqlite3", on_stale="merge") as service:
        await service.append_event(first, Event(author="first tab"))
        print("the first tab now has:", [event.author for event in first.events[-3:]])


if __name__ == "__main__":
    asyncio.run(main())

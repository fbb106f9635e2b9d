"""Looking after a database while it is in use: look, verify, back up, make tables anew, shrink.

python -m examples.maintenance
"""

import asyncio
import subprocess

from google.adk.events import Event

from adk_adapter import DatabaseSessionService


async def main() -> None:
    async with DatabaseSessionService("maintenance.sqlite3") as service:
        for number in range(20):
            session = await service.create_session("maintenance", "ada", f"s{number}")
            for _ in range(10):
                await service.append_event(session, Event(author="user"))

        stats = service.get_stats()
        print(f"{stats['sessions']} sessions, {stats['events']} events")

        print("clean:", (await service.verify()).clean)
        copy = await service.backup("maintenance.backup", overwrite=True)
        print("backed up:", copy.verified.events, "events")

        for number in range(15):
            await service.delete_session("maintenance", "ada", f"s{number}")
        removed = await asyncio.to_thread(service.vacuum)
        print(f"removed {removed['sessions']} sessions, {removed['events']} events")

    # The same from the command line, while services write:
    for command in (
        "rebuild-projections --db maintenance.sqlite3",
        "adk-eventstore verify --db maintenance.sqlite3",
    ):
        subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
        print("done:", command)


if __name__ == "__main__":
    asyncio.run(main())

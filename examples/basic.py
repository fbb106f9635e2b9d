"""An agent whose conversation is kept: ADK's Runner, and one line that is not ADK's.

python -m examples.basic
"""

import asyncio
from collections.abc import AsyncGenerator

from google.adk.agents import BaseAgent, InvocationContext
from google.adk.events import Event, EventActions
from google.adk.runners import Runner
from google.genai.types import Content, Part

from adk_adapter import DatabaseSessionService


class Counting(BaseAgent):
    """Answers with how often it was spoken to; yours calls a model instead."""

    async def _run_async_impl(self, context: InvocationContext) -> AsyncGenerator[Event, None]:
        times = context.session.state.get("times", 0) + 1
        yield Event(
            invocation_id=context.invocation_id,
            author=self.name,
            content=Content(role="model", parts=[Part(text=f"You have spoken {times} times.")]),
            actions=EventActions(state_delta={"times": times}),
        )


async def main() -> None:
    async with DatabaseSessionService("basic.sqlite3") as service:
        session = await service.get_session("basic", "ada", "first")
        if session is None:
            session = await service.create_session("basic", "ada", "first")
        runner = Runner(app_name="basic", agent=Counting(name="counting"), session_service=service)
        said = Content(role="user", parts=[Part(text="Hello")])
        async for event in runner.run_async(user_id="ada", session_id=session.id, new_message=said):
            if event.content and event.content.parts:
                print(f"{event.author}: {event.content.parts[0].text}")


if __name__ == "__main__":
    asyncio.run(main())

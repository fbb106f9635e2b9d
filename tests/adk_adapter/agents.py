"""Agents with a scripted model, for the real ADK Runner."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from google.adk.agents import LlmAgent
from google.adk.models import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.tools.tool_context import ToolContext
from google.genai import types


class Scripted(BaseLlm):
    """Calls the tool `note` with each word of the user's text, then repeats the text."""

    model: str = "scripted"

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        last = llm_request.contents[-1].parts[0]  # type: ignore[index]
        usage = types.GenerateContentResponseUsageMetadata(prompt_token_count=3)
        if last.function_response is None and last.text:
            calls = [
                types.Part.from_function_call(name="note", args={"word": word})
                for word in last.text.split()
            ]
            content = types.Content(role="model", parts=calls)
        else:
            content = types.Content(role="model", parts=[types.Part(text="noted")])
        yield LlmResponse(content=content, usage_metadata=usage)


def note(word: str, tool_context: ToolContext) -> dict[str, Any]:
    """Notes a word."""
    state = tool_context.state
    state[f"word:{word}"] = len(word)
    state["user:last"] = word
    state["app:seen"] = state.get("app:seen", 0) + 1
    state["temp:scratch"] = word
    return {"noted": word}


def noting_agent() -> LlmAgent:
    return LlmAgent(name="noter", model=Scripted(), tools=[note])


def text(words: str) -> types.Content:
    return types.Content(role="user", parts=[types.Part(text=words)])

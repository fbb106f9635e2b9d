"""Agents with a scripted model, for the real ADK Runner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pydantic
from google.adk.agents import LlmAgent
from google.adk.models import BaseLlm
from google.adk.models.base_llm_connection import BaseLlmConnection
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.tools.tool_context import ToolContext
from google.genai import types

Line = str | types.Part | list[types.Part] | Exception
"""What a scripted model says at once: a text, parts, or an error it fails with."""


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


class Lines(BaseLlm):
    """Says its lines one after another, and keeps what it heard before each."""

    model: str = "lines"
    lines: list[Any]
    heard: list[list[str]] = pydantic.Field(default_factory=list)

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        self.heard.append([transcript(content) for content in llm_request.contents])
        yield LlmResponse(content=spoken(self.lines.pop(0)))


def spoken(line: Line) -> types.Content:
    if isinstance(line, Exception):
        raise line
    if isinstance(line, list):
        return types.Content(role="model", parts=line)
    part = types.Part(text=line) if isinstance(line, str) else line
    return types.Content(role="model", parts=[part])


def transcript(content: types.Content) -> str:
    """A content as one line: who, and the texts, calls and responses."""
    words = [str(content.role)]
    for part in content.parts or []:
        if part.text:
            words.append(part.text)
        if call := part.function_call:
            words.append(f"{call.name}({call.args})")
        if response := part.function_response:
            words.append(f"{response.name} -> {response.response}")
    return " ".join(words)


class PhoneCall(BaseLlmConnection):
    """Answers what it is sent until it is closed."""

    def __init__(self, answer: Callable[[types.Content | types.Blob], list[LlmResponse]]) -> None:
        self.answer = answer
        self.sent: asyncio.Queue[types.Content | types.Blob | None] = asyncio.Queue()

    async def send_history(self, history: list[types.Content]) -> None:
        pass

    async def send_content(self, content: types.Content) -> None:
        self.sent.put_nowait(content)

    async def send_realtime(self, blob: Any) -> None:
        self.sent.put_nowait(blob)

    async def receive(self) -> AsyncGenerator[LlmResponse, None]:
        # Called again and again: one that yields nothing says that the call is over.
        if (sent := await self.sent.get()) is not None:
            for response in self.answer(sent):
                yield response

    async def close(self) -> None:
        self.sent.put_nowait(None)


class Phone(BaseLlm):
    """A model for live runs: `answer` says what it responds to each content or blob."""

    model: str = "phone"
    answer: Callable[[types.Content | types.Blob], list[LlmResponse]]

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        raise NotImplementedError
        yield

    @asynccontextmanager
    async def connect(self, llm_request: LlmRequest) -> AsyncIterator[BaseLlmConnection]:
        yield PhoneCall(self.answer)


def called(name: str, call_id: str | None = None, **args: Any) -> types.Part:
    """The part with which a model calls a tool."""
    return types.Part(function_call=types.FunctionCall(name=name, id=call_id, args=args))


def answered(name: str, call_id: str | None, **response: Any) -> types.Content:
    """The message with which a user answers a call."""
    answer = types.FunctionResponse(name=name, id=call_id, response=response)
    return types.Content(role="user", parts=[types.Part(function_response=answer)])


def speaker(*lines: Line, name: str = "root", **options: Any) -> LlmAgent:
    """An agent whose model says these lines."""
    return LlmAgent(name=name, model=Lines(lines=list(lines)), **options)

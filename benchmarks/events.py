"""Conversations to measure with: made up ones, or real ones from a file."""

import itertools
import json
import os
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.adk.events import Event, EventActions
from google.adk.events.event import NodeInfo
from google.adk.sessions import Session
from google.genai import types

CONVERSATIONS_VARIABLE = "ADK_BENCH_CONVERSATIONS"
"""Names a JSONL file of real conversations to use instead of the made up ones."""

AGENT = "assistant"
Message = dict[str, Any]

_VOCABULARY = (
    "please revenue table join region quarter the average customers order of for column chart "
    "with null rows compare monthly churn and segment by forecast total"
)


def conversations(seed: int = 0) -> list[list[Message]]:
    """The conversations of the named file, or made up ones when none is named."""
    path = os.environ.get(CONVERSATIONS_VARIABLE)
    if not path:
        return [_made_up_conversation(random.Random(seed + n)) for n in range(20)]
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines if line.strip()]


def event_stream(seed: int = 0) -> Iterator[Event]:
    """Yield events without end, each with its own id, the time now and a small state delta."""
    for event in light_events(seed):
        copied = event.model_copy(deep=True)
        copied.timestamp = time.time()
        yield copied


def light_events(seed: int = 0) -> Iterator[Event]:
    """The same events, made in a few microseconds: their contents are shared and not to be changed.

    Making an event must not be what limits a benchmark of thousands of appends a second.
    """
    rng = random.Random(seed)
    templates = [e for messages in conversations(seed) for e in to_events(messages, rng)]
    for number, template in enumerate(itertools.cycle(templates)):
        delta = {"turn": number, "last_author": template.author}
        own = {
            "id": _uuid(rng),
            "timestamp": time.time(),
            "actions": EventActions(state_delta=delta),
        }
        yield template.model_copy(update=own)


def read_events(session: Session) -> int:
    """Look at what ADK's runner looks at in every event of a session to make the next request."""
    seen = 0
    for event in session.events:
        seen += bool(event.author and event.invocation_id and event.timestamp)
        seen += bool(event.branch or event.partial or event.actions.compaction)
        for part in (event.content and event.content.parts) or ():
            seen += bool(part.text or part.function_call or part.function_response)
    return seen


def mean_event_bytes(count: int = 1000) -> int:
    """Mean size of the stream's first `count` events as JSON."""
    sizes = [
        len(event.model_dump_json(by_alias=True, exclude_none=True).encode())
        for event in itertools.islice(event_stream(), count)
    ]
    return round(sum(sizes) / len(sizes))


def to_events(messages: list[Message], rng: random.Random) -> list[Event]:
    """Turn one conversation into the events ADK's runner would append for it."""
    events: list[Event] = []
    invocation_id = f"e-{_uuid(rng)}"
    # ADK puts the answers to the calls of one turn into one event.
    for is_tool, run in itertools.groupby(messages, key=lambda message: message["role"] == "tool"):
        if is_tool:
            parts = [_function_response(message) for message in run]
            events.append(_agent_event(invocation_id, "user", parts))
            continue
        for message in run:
            if message["role"] == "user":
                invocation_id = f"e-{_uuid(rng)}"
                content = types.Content(role="user", parts=[types.Part(text=message["content"])])
                events.append(Event(author="user", invocation_id=invocation_id, content=content))
            else:
                events.append(_model_event(invocation_id, message, rng))
    return events


def _agent_event(invocation_id: str, role: str, parts: list[types.Part]) -> Event:
    return Event(
        author=AGENT,
        invocation_id=invocation_id,
        content=types.Content(role=role, parts=parts),
        node_info=NodeInfo(path=f"{AGENT}@1"),
    )


def _model_event(invocation_id: str, message: Message, rng: random.Random) -> Event:
    parts = [types.Part(text=message["content"])] if message.get("content") else []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        arguments = json.loads(function["arguments"])
        parts.append(
            types.Part(
                function_call=types.FunctionCall(
                    id=call["id"], name=function["name"], args=arguments
                )
            )
        )
    event = _agent_event(invocation_id, "model", parts)
    event.model_version = "gemini-2.5-flash"
    event.finish_reason = types.FinishReason.STOP
    event.partial = False
    prompt, answer = rng.randint(300, 4000), rng.randint(10, 200)
    event.usage_metadata = types.GenerateContentResponseUsageMetadata(
        prompt_token_count=prompt,
        candidates_token_count=answer,
        total_token_count=prompt + answer,
    )
    if message.get("tool_calls"):
        event.long_running_tool_ids = set()
    return event


def _function_response(message: Message) -> types.Part:
    try:
        answer = json.loads(message["content"])
    except json.JSONDecodeError:
        answer = message["content"]
    response = answer if isinstance(answer, dict) else {"result": answer}
    return types.Part(
        function_response=types.FunctionResponse(
            id=message["tool_call_id"], name=message["name"], response=response
        )
    )


def _made_up_conversation(rng: random.Random) -> list[Message]:
    """Five turns of: a question, a function call, its response, an answer."""
    messages: list[Message] = []
    for _ in range(5):
        call_id = f"adk-{_uuid(rng)}"
        arguments = {"query": _text(rng, 8), "limit": rng.randint(1, 50), "dry_run": False}
        row = {"region": _text(rng, 1), "total": round(rng.uniform(10, 9999), 2), "rows": 12}
        messages += [
            {"role": "user", "content": _text(rng, 26)},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call_id,
                        "function": {"name": "run_query", "arguments": json.dumps(arguments)},
                    }
                ],
            },
            {
                "role": "tool",
                "tool_call_id": call_id,
                "name": "run_query",
                "content": json.dumps({"status": "ok", "data": [row]}),
            },
            {"role": "assistant", "content": _text(rng, 20)},
        ]
    return messages


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_VOCABULARY.split(), k=words))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))

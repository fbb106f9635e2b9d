"""Stored events as people read them. What is shown is content: only for commands that are asked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from eventstore import EventType, RecordedEvent
from eventstore.encoding import decode
from projections.cli.output import moment, printable

__all__ = ["as_object", "as_text", "lines_of"]

_PREFIXES = {"session": "", "user": "user:", "app": "app:"}


def as_object(event: RecordedEvent) -> dict[str, Any]:
    """An event for a JSON document."""
    kind, app_name, user_id, session_id = event.stream.key
    return {
        "position": event.position,
        "stream": kind.value,
        "app_name": app_name,
        "user_id": user_id,
        "session_id": session_id,
        "version": event.version,
        "type": event.type,
        "event_id": event.event_id,
        "author": event.author,
        "invocation_id": event.invocation_id,
        "timestamp": event.timestamp,
        "recorded_at": event.recorded_at / 1e6,
        "state_delta": _delta(event),
        "data": _payload(event),
    }


def lines_of(event: RecordedEvent, *, named: bool = False) -> Iterator[str]:
    """An event as text: who and when, what was said, what was set.

    `named` begins with its position and whose it is, for events of several sessions.
    """
    who = event.author or event.type
    if event.type not in (EventType.ADK_EVENT, EventType.SESSION_CREATED) and event.author:
        who += f" ({event.type})"
    where = f"[{event.version}]"
    if named:
        names = [name for name in event.stream.key[1:] if name]
        where = f"[{event.position}] {' / '.join(map(printable, names)) or event.stream.key.kind}"
    yield f"{where}  {moment(event.timestamp)}  {printable(who)}"
    payload = _payload(event)
    if event.type == EventType.ADK_EVENT:
        yield from _said(payload)
    elif event.type != EventType.SESSION_CREATED and payload:
        known = {k: v for k, v in payload.items() if k != "stream"}
        if known:
            yield f"    {printable(as_text(known))}"
    for key, value in _delta(event).items():
        yield f"    {printable(key)} = {printable(as_text(value))}"


def _said(payload: Any) -> Iterator[str]:
    """The parts of an ADK event. Whatever is not as ADK stores it is shown as it is."""
    if not isinstance(payload, dict):
        yield f"    {printable(payload)}"
        return
    content = payload.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    for part in parts if isinstance(parts, list) else ():
        yield from _part(part) if isinstance(part, dict) else [f"    {printable(part)}"]
    actions = payload.get("actions")
    if isinstance(actions, dict):
        for name, value in actions.items():
            if value and name not in ("artifactDelta", "requestedAuthConfigs"):
                yield f"    {printable(name)}: {printable(as_text(value))}"
    if payload.get("errorCode") or payload.get("errorMessage"):
        error = f"{payload.get('errorCode', '')} {payload.get('errorMessage', '')}"
        yield f"    error: {printable(error.strip())}"


def _part(part: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(text := part.get("text"), str):
        thought = "(thinking) " if part.get("thought") else ""
        for line in f"{thought}{text}".splitlines() or [""]:
            yield f"    {printable(line, whole=True)}"
    for name, sign in (("functionCall", "->"), ("functionResponse", "<-")):
        if isinstance(call := part.get(name), dict):
            values = call.get("args" if name == "functionCall" else "response")
            yield f"    {sign} {printable(call.get('name', ''))} {printable(as_text(values))}"
    for name in ("executableCode", "codeExecutionResult"):
        if isinstance(code := part.get(name), dict):
            for line in str(code.get("code", code.get("output", ""))).splitlines():
                yield f"    | {printable(line, whole=True)}"
    if isinstance(blob := part.get("inlineData"), dict):
        length = len(str(blob.get("data", ""))) * 3 // 4
        yield f"    [{printable(blob.get('mimeType', 'data'))}, about {length:,} bytes]"
    if isinstance(file := part.get("fileData"), dict):
        yield f"    [file {printable(file.get('fileUri', ''))}]"


def _payload(event: RecordedEvent) -> Any:
    return event.payload()


def _delta(event: RecordedEvent) -> dict[str, Any]:
    scopes = {} if event.delta is None else decode(event.delta, event.encoding)
    return {
        f"{_PREFIXES.get(scope, scope)}{key}": value
        for scope, members in scopes.items()
        for key, value in members.items()
    }


def as_text(value: Any) -> str:
    """A value as JSON, in any language."""
    return json.dumps(value, ensure_ascii=False)

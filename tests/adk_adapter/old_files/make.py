"""Writes a small database with one of ADK's own session services, and what that service reads back.

Run it in an environment with the ADK version that is to be tried, in the time zone UTC:

    python3 -m venv adk && adk/bin/pip install google-adk==1.0.0 deprecated aiosqlite greenlet
    TZ=UTC adk/bin/python make.py database database-1.0.0.db

makes database-1.0.0.db, and beside it database-1.0.0.json. The kinds are `database`
(DatabaseSessionService) and `sqlite` (SqliteSessionService). Nothing of this project is needed.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from pathlib import Path

from google.adk.events import Event, EventActions
from google.adk.version import __version__
from google.genai import types

START = 1_700_000_000.25
APP = "shop"


async def done(value):
    """What a method returns, whether it is a coroutine in this version or not."""
    return await value if inspect.isawaitable(value) else value


def service_of(kind, path):
    if kind == "sqlite":
        from google.adk.sessions.sqlite_session_service import SqliteSessionService

        return SqliteSessionService(str(path))
    from google.adk.sessions import DatabaseSessionService

    try:
        return DatabaseSessionService(f"sqlite:///{path}")
    except Exception:  # the versions from 1.19 on want the name of an asynchronous driver
        return DatabaseSessionService(f"sqlite+aiosqlite:///{path}")


def actions(**fields):
    return EventActions(**{k: v for k, v in fields.items() if k in EventActions.model_fields})


def auth_config():
    from fastapi.openapi.models import APIKey, APIKeyIn
    from google.adk.auth.auth_credential import AuthCredential, AuthCredentialTypes
    from google.adk.auth.auth_tool import AuthConfig

    return AuthConfig(
        auth_scheme=APIKey(**{"in": APIKeyIn.header, "name": "X-Key"}),
        raw_auth_credential=AuthCredential(
            auth_type=AuthCredentialTypes.API_KEY, api_key="not a real key"
        ),
    )


def conversation(session_id):
    """Events with fixed ids and times, among them two of one tick and one out of order."""
    call = types.Part(function_call=types.FunctionCall(id="c1", name="price", args={"of": "tea"}))
    answer = types.Part(
        function_response=types.FunctionResponse(id="c1", name="price", response={"price": 4.5})
    )
    # Before 0.3 bytes could not be stored.
    blob = types.Part(text="(picture)")
    if not __version__.startswith("0.1"):
        blob = types.Part(inline_data=types.Blob(mime_type="image/png", data=b"\x89PNG\xff"))
    steps = [
        {
            "author": "user",
            "content": types.Content(role="user", parts=[types.Part(text="Tee, bitte ☕")]),
        },
        {
            "author": "seller",
            "content": types.Content(role="model", parts=[call]),
            "long_running_tool_ids": {"c1"},
            "actions": actions(requested_auth_configs={"c1": auth_config()}),
        },
        {
            "author": "seller",
            "content": types.Content(role="user", parts=[answer]),
            "actions": actions(
                state_delta={"price": 4.5, "user:name": f"Ada of {session_id}", "app:sold": 1},
                artifact_delta={"bill.txt": 0},
            ),
        },
        {
            "author": "seller",
            "branch": "seller.packer",
            "content": types.Content(role="model", parts=[types.Part(text="Here."), blob]),
            "actions": actions(
                state_delta={"when": "2024-01-02T03:04:05", "price": 5},
                transfer_to_agent="packer",
                escalate=True,
            ),
        },
        {
            "author": "packer",
            "content": types.Content(role="model", parts=[types.Part(text="Packed.")]),
            "error_code": "SLOW",
            "error_message": "it took long",
            "turn_complete": True,
        },
    ]
    for n, fields in enumerate(steps):
        known = {k: v for k, v in fields.items() if k in Event.model_fields}
        yield Event(
            id=f"{session_id}-{n}",
            invocation_id=f"{session_id}-turn",
            timestamp=START + (n if n != 4 else 3),
            **known,
        )


async def main(kind, path):
    path = Path(path).resolve()
    service = service_of(kind, path)
    for user, session_id in (("ada", "first"), ("ada", "second"), ("bob", "third")):
        session = await done(
            service.create_session(
                app_name=APP,
                user_id=user,
                session_id=session_id,
                state={"theme": "dark", "user:born": 1815, "app:name": "tea"},
            )
        )
        for event in conversation(session_id):
            await done(service.append_event(session, event))
    await done(
        service.create_session(app_name="empty", user_id="ada", session_id="unused", state={"a": 1})
    )
    found = []
    for app, user, session_id in (
        (APP, "ada", "first"),
        (APP, "ada", "second"),
        (APP, "bob", "third"),
        ("empty", "ada", "unused"),
    ):
        session = await done(service.get_session(app_name=app, user_id=user, session_id=session_id))
        found.append(json.loads(session.model_dump_json(exclude_none=True)))
    if hasattr(service, "close"):
        await done(service.close())
    path.with_suffix(".json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

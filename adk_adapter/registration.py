"""Makes the service known to ADK's own programs: `adk web`, `adk api_server`, `adk run`."""

from __future__ import annotations

from functools import partial
from typing import Any, Final, Literal

from adk_adapter.service import DatabaseSessionService
from eventstore import Durability

__all__ = ["SCHEMES", "register"]

SCHEMES: Final = ("eventstore+sqlite",)
"""The schemes of `--session_service_uri` that are registered when none are named."""


def register(
    *schemes: str,
    durability: Durability = "normal",
    on_stale: Literal["raise", "merge"] = "raise",
) -> None:
    """Registers the service with ADK, for URIs such as eventstore+sqlite:///sessions.db.

    ADK's programs pass the value of `--session_service_uri` on to it from then on. Call it in a
    `services.py`, which they load, or before ADK's `get_fast_api_app`. Schemes that ADK has a
    service for may be named, to take its place: `register("sqlite")`. The options are those of
    DatabaseSessionService.
    """
    # Not at the top: the registry belongs to ADK's programs, and not everybody runs those.
    from google.adk.cli.service_registry import get_service_registry

    registry = get_service_registry()
    for scheme in schemes or SCHEMES:
        make = partial(_make, durability=durability, on_stale=on_stale)
        registry.register_session_service(scheme, make)


def _make(uri: str, **options: Any) -> DatabaseSessionService:
    """Makes a service as ADK asks for it: `agents_dir` is always among the options."""
    return DatabaseSessionService(uri=uri, **options)

"""The session service for Google's Agent Development Kit.

from adk_adapter import DatabaseSessionService

session_service = DatabaseSessionService()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adk_adapter._adk import AlreadyExistsError, SessionNotFoundError, StaleSessionError
    from adk_adapter.history import StoredEvent
    from adk_adapter.imports import Imported, ImportFailed, LeftOut
    from adk_adapter.migrating import MigratingSessionService
    from adk_adapter.registration import register
    from adk_adapter.service import DatabaseSessionService
    from adk_adapter.session import ListSessionsResponse, Session

__all__ = [
    "AlreadyExistsError",
    "DatabaseSessionService",
    "ImportFailed",
    "Imported",
    "LeftOut",
    "ListSessionsResponse",
    "MigratingSessionService",
    "Session",
    "SessionNotFoundError",
    "StaleSessionError",
    "StoredEvent",
    "register",
]

_MODULES = {
    "AlreadyExistsError": "_adk",
    "DatabaseSessionService": "service",
    "ImportFailed": "imports",
    "Imported": "imports",
    "LeftOut": "imports",
    "ListSessionsResponse": "session",
    "MigratingSessionService": "migrating",
    "Session": "session",
    "SessionNotFoundError": "_adk",
    "StaleSessionError": "_adk",
    "StoredEvent": "history",
    "register": "registration",
}


def __getattr__(name: str) -> Any:
    # The commands are a part of this package, and most of them need no ADK, which takes seconds to
    # import.
    if (module := _MODULES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

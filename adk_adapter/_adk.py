"""Everything this package takes from ADK that ADK does not call public, in one place.

tests/adk_adapter/test_adk_internals.py notices when one of them changes.
"""

from __future__ import annotations

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event
from google.adk.platform.time import get_time
from google.adk.platform.uuid import new_uuid
from google.adk.sessions import Session
from google.adk.version import __version__ as adk_version

try:
    from google.adk.errors._stale_session_error import StaleSessionError
except ImportError:  # ADK before 2.7 raises a plain ValueError, and has nothing that catches it

    class StaleSessionError(ValueError):  # type: ignore[no-redef]
        """Somebody else appended to a session since it was loaded."""


__all__ = [
    "AlreadyExistsError",
    "SessionNotFoundError",
    "StaleSessionError",
    "adk_version",
    "get_marker",
    "get_time",
    "is_restored",
    "new_uuid",
    "set_marker",
]


def is_restored(event: Event) -> bool:
    """Whether ADK's programs took the event from a saved session, to append it to a new one."""
    return bool((event.custom_metadata or {}).get("__adk_internal_restored_event"))


def get_marker(session: Session) -> str | None:
    """The revision a persistent service left on a session, None when it has none."""
    # ADK's hook for services, which has no accessor; by name it would be looked for elsewhere first
    private = session.__pydantic_private__
    return None if private is None else private.get("_storage_update_marker")


def set_marker(session: Session, marker: str) -> None:
    """Leaves the revision a session stands at on it."""
    session._storage_update_marker = marker  # noqa: SLF001 - as above

"""Sessions as this service returns them: ADK's own, which also answer by name.

They are pydantic models of ADK's fields and nothing else, so copying, serialising and FastAPI
responses are as ADK's, and they equal a plain ADK session with the same content.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import ListSessionsResponse as AdkListSessionsResponse

__all__ = ["ListSessionsResponse", "Session"]


class Session(AdkSession):
    """An ADK session; `session.session_id` and `session["app_name"]` work too."""

    @property
    def session_id(self) -> str:
        """The same as `id`."""
        return self.id

    def __getitem__(self, name: str) -> Any:
        """The field called `name`; "session_id" is the same as "id".

        Raises:
            KeyError: a session has no such field.
        """
        if name == "session_id":
            return self.id
        if name in AdkSession.model_fields:
            return getattr(self, name)
        raise KeyError(name)

    def __eq__(self, other: object) -> bool:
        # pydantic tells classes apart. Python asks the subclass first, whichever side it is on.
        if not isinstance(other, AdkSession):
            return NotImplemented
        return (
            self.__dict__ == other.__dict__
            and self.__pydantic_private__ == other.__pydantic_private__
        )


class ListSessionsResponse(AdkListSessionsResponse):
    """ADK's response, which can be iterated for its sessions."""

    if TYPE_CHECKING:
        sessions: list[Session]  # type: ignore[assignment]

    def __iter__(self) -> Iterator[Session]:  # type: ignore[override]
        return iter(self.sessions)

    def __len__(self) -> int:
        return len(self.sessions)

    def __bool__(self) -> bool:
        # As ADK's, which has no length: a response is true, with sessions in it or without.
        return True

"""The session service for Google's Agent Development Kit.

from adk_adapter import DatabaseSessionService
session_service = DatabaseSessionService()
"""

from adk_adapter._adk import AlreadyExistsError, SessionNotFoundError, StaleSessionError
from adk_adapter.registration import register
from adk_adapter.service import DatabaseSessionService
from adk_adapter.session import ListSessionsResponse, Session

__all__ = [
    "AlreadyExistsError",
    "DatabaseSessionService",
    "ListSessionsResponse",
    "Session",
    "SessionNotFoundError",
    "StaleSessionError",
    "register",
]

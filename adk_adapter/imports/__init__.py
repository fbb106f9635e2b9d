"""Taking sessions over from ADK's own services: from their databases, and from living services."""

from adk_adapter.imports.found import Imported, ImportFailed, LeftOut
from adk_adapter.imports.running import import_sessions, open_sources
from adk_adapter.imports.services import import_from_service

__all__ = [
    "ImportFailed",
    "Imported",
    "LeftOut",
    "import_from_service",
    "import_sessions",
    "open_sources",
]

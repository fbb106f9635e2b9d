"""`adk-eventstore`: all commands, those that read or write ADK's own formats among them.

ADK is imported inside of the functions that need it: it takes a second or two.
"""

from __future__ import annotations

from typing import Final

import click

from adk_adapter.cli.exports import export_sessions
from adk_adapter.cli.imports import import_sessions
from projections import cli

__all__ = ["COMMANDS", "main"]

COMMANDS: Final[tuple[click.Command, ...]] = (*cli.COMMANDS, import_sessions, export_sessions)
"""What `adk-eventstore` can do. A new command is added here, or in projections.cli."""

main = cli.compose(COMMANDS)

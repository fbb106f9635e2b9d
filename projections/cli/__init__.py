"""The command line: `adk-eventstore`, and `rebuild-projections`, which also stands alone.

A command is a module with one click command in it, listed in COMMANDS. Those made with `Command`
(see base.py) get the options, the help and the exit codes that all have in common.
"""

from __future__ import annotations

from typing import Final

import click

from projections.cli.base import Group
from projections.cli.migrate import migrate_file
from projections.cli.projections import projections_group
from projections.cli.rebuild import rebuild_projections
from projections.cli.verify import verify_log
from projections.usage_cli import usage_command

__all__ = ["COMMANDS", "main", "rebuild_projections"]

COMMANDS: Final[tuple[click.Command, ...]] = (
    rebuild_projections,
    verify_log,
    projections_group,
    migrate_file,
    usage_command,
)
"""What `adk-eventstore` can do. A new command is added here."""


@click.group("adk-eventstore", cls=Group)
def main() -> None:
    """Looks after a database of sessions: checks it, rebuilds its tables, follows its log."""


for _command in COMMANDS:
    main.add_command(_command)

"""The commands that need no ADK, and `rebuild-projections`, which also stands alone.

`adk-eventstore` has these and those of adk_adapter.cli. `python -m projections.cli` has these.

A command is a module with one click command in it, listed in COMMANDS. Those made with `Command`
(see base.py) get the options, the help and the exit codes that all have in common.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click

from projections.cli.base import Group
from projections.cli.copies import backup_file, recover_file, restore_file
from projections.cli.ddl import print_ddl
from projections.cli.events import events_group
from projections.cli.keep import erase_user_command, purge_command, vacuum_command
from projections.cli.look import doctor_command, stats_command
from projections.cli.migrate import migrate_file
from projections.cli.projections import projections_group
from projections.cli.rebuild import rebuild_projections
from projections.cli.sessions import sessions_group
from projections.cli.transfer import copy_database
from projections.cli.usage import usage_command
from projections.cli.verify import verify_log

__all__ = ["COMMANDS", "compose", "main", "rebuild_projections"]

COMMANDS: Final[tuple[click.Command, ...]] = (
    rebuild_projections,
    verify_log,
    projections_group,
    migrate_file,
    print_ddl,
    usage_command,
    backup_file,
    restore_file,
    recover_file,
    sessions_group,
    events_group,
    stats_command,
    doctor_command,
    purge_command,
    erase_user_command,
    vacuum_command,
    copy_database,
)
"""What can be done. A new command is added here."""


def compose(commands: Iterable[click.Command]) -> click.Group:
    """`adk-eventstore` with some commands."""

    @click.group("adk-eventstore", cls=Group)
    @click.version_option(package_name="adk-eventstore")
    def main() -> None:
        """Looks after a database of sessions: checks it, moves it, rebuilds it, follows its log."""

    for command in commands:
        main.add_command(command)
    return main


main = compose(COMMANDS)

"""What several commands are asked in the same words: ages, apps, users, sessions."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from eventstore import EventStore, Stream
from eventstore.events import check_identifiers
from projections.cli.base import CommandFailed
from projections.cli.output import printable

__all__ = ["AGE", "app_option", "before", "find_session", "user_option", "yes_option"]

F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)([smhdw])")
_NAMED: Final = 10


class _Age(click.ParamType):  # type: ignore[type-arg]
    """A number with a unit: seconds, minutes, hours, days or weeks."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The age in seconds."""
        if isinstance(value, float):
            return value
        if (match := _AGE.fullmatch(str(value))) is None:
            self.fail(f"{value!r} is no age. Write a number and s, m, h, d or w: 90d.", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


AGE: Final = _Age()

app_option = click.option("--app", metavar="NAME", help="Only this app.")
user_option = click.option("--user", metavar="ID", help="Only this user.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def before(age: float | None) -> float | None:
    """The moment so many seconds ago."""
    return None if age is None else time.time() - age


def find_session(
    store: EventStore, session_id: str, app_name: str | None, user_id: str | None
) -> Stream:
    """The one live session with an id, in an app and of a user if these are named.

    The id may be surrounded by blanks, as for the service.

    Raises:
        InvalidInput: no session has such an id.
        CommandFailed: there is none, or there are several.
    """
    check_identifiers(app_name=app_name, user_id=user_id, session_id=session_id)
    session_id = session_id.strip()
    found = store.snapshot(lambda s: s.find_sessions(session_id, app_name, user_id))
    if not found:
        raise CommandFailed(
            f"There is no session {session_id!r} here. See which there are: "
            "adk-eventstore sessions list"
        )
    if len(found) > 1:
        named = "; ".join(
            f"--app {printable(s.key.app_name)} --user {printable(s.key.user_id)}"
            for s in found[:_NAMED]
        )
        raise CommandFailed(f"{len(found)} sessions have this id. Say which: {named}")
    return found[0]

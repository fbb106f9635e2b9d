"""The commands `adk-eventstore events`: show one, follow the log."""

from __future__ import annotations

import json

import click

from projections.cli.asked import app_option, user_option
from projections.cli.base import COUNT, Command, CommandFailed, Group, Report, Settings
from projections.cli.conversation import as_object, lines_of
from projections.cli.output import as_json, counted, printable, tell
from projections.history import Filter, tail

__all__ = ["events_group"]


@click.group("events", cls=Group, short_help="Show events of the log, and follow it.")
def events_group() -> None:
    """Shows an event as it is stored, and the end of the log as it grows."""


@events_group.command(
    "show",
    cls=Command,
    short_help="One event, as it is stored.",
    example="adk-eventstore events show 42",
    exits={0: "shown"},
)
@click.argument("position", type=click.IntRange(1, 2**63 - 1))
@click.pass_obj
def _show(settings: Settings, position: int) -> Report:
    """Shows the event at a position of the log, its state change and its content.

    Positions stand in `events tail`, in `sessions show` beside each key, and in `adk_events`.
    """
    with settings.store() as store:
        events = store.snapshot(lambda s: s.read_positions([position]))
        head = store.snapshot(lambda s: s.head())
    if not events:
        raise CommandFailed(
            f"There is no event at position {position}: the last one is at {head}, and those of "
            "deleted sessions are removed by a vacuum."
        )
    shown = as_object(events[0])
    content = {name: shown[name] for name in ("state_delta", "data")}
    lines = [
        f"{name + ':':<14}{printable(value, whole=True)}"
        for name, value in shown.items()
        if name not in content and value != ""
    ]
    for name, value in content.items():
        size = len((events[0].delta if name == "state_delta" else events[0].data) or b"")
        lines += ["", f"{name} ({counted(size, 'byte')}):"]
        text = json.dumps(value, indent=2, ensure_ascii=False)
        lines += [f"  {printable(line, whole=True)}" for line in text.splitlines()]
    return Report({"database": store.path, "event": shown}, lines)


@events_group.command(
    "tail",
    cls=Command,
    short_help="The last events, and with --follow what comes.",
    example="adk-eventstore events tail --app test_app --follow",
    exits={0: "shown; with --follow it ends with Ctrl-C only"},
    interrupted=None,
)
@app_option
@user_option
@click.option("--session", "session_id", metavar="ID", help="Only this session.")
@click.option(
    "--last",
    type=COUNT,
    default=10,
    show_default=True,
    help="How many events there are shown first.",
)
@click.option("--after", metavar="POSITION", type=COUNT, help="Begin behind this position.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what any process appends.")
@click.pass_obj
def _tail(
    settings: Settings,
    app: str | None,
    user: str | None,
    session_id: str | None,
    last: int,
    after: int | None,
    follow: bool,
) -> None:
    """Shows the end of the log, and with --follow whatever is appended, until Ctrl-C.

    With --format json each event is one line of JSON.
    """
    with settings.store() as store:
        events = tail(store, Filter(app, user, session_id), last=last, after=after, follow=follow)
        for event in events:
            if settings.json:
                tell(as_json(as_object(event), indent=None))
            else:
                tell("\n".join(lines_of(event, named=True)))

"""The commands `adk-eventstore sessions`: list, show, delete, title, label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

from eventstore import EventStore, RecordedEvent, Row, Snapshot, Stream
from eventstore.encoding import decode_value
from projections import listing
from projections.cli.asked import AGE, app_option, before, find_session, user_option, yes_option
from projections.cli.base import COUNT, Command, CommandFailed, Group, Report, Settings, confirm
from projections.cli.conversation import as_object, as_text, lines_of
from projections.cli.output import columns, counted, moment, printable, table
from projections.listing import SessionInfo
from projections.retention import delete_session
from projections.state import StateProjection

__all__ = ["sessions_group"]

_STATE = StateProjection()
_SHOWN = 100


@click.group("sessions", cls=Group, short_help="List, show, delete and name sessions.")
def sessions_group() -> None:
    """Lists sessions, shows one as people read it, deletes one, gives it a title or labels."""


@sessions_group.command(
    "list",
    cls=Command,
    short_help="A page of sessions, last updated first.",
    example="adk-eventstore sessions list --app test_app --newer-than 7d --limit 20",
    exits={0: "shown, also when there is none"},
)
@app_option
@user_option
@click.option("--older-than", metavar="AGE", type=AGE, help="Last updated so long ago: 90d, 12h.")
@click.option("--newer-than", metavar="AGE", type=AGE, help="Updated since then: 7d.")
@click.option("--title", metavar="TEXT", help="Whose title has this in it, whatever its case.")
@click.option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    help="With this label; may be given again: each must be there.",
)
@click.option(
    "--order",
    type=click.Choice(["updated", "created"]),
    default="updated",
    show_default=True,
    help="Which time sorts them, the last first.",
)
@click.option("--reverse", is_flag=True, help="The first first.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Sessions shown."
)
@click.option("--cursor", metavar="TEXT", help="Go on where the page before ended.")
@click.option("--state", "with_state", is_flag=True, help="With the state of each.")
@click.pass_obj
def _list(
    settings: Settings,
    app: str | None,
    user: str | None,
    older_than: float | None,
    newer_than: float | None,
    title: str | None,
    labels: tuple[str, ...],
    order: listing.Order,
    reverse: bool,
    limit: int,
    cursor: str | None,
    with_state: bool,
) -> Report:
    """Lists live sessions, of all apps and users unless they are named.

    Without --cursor the list begins anew; with it, what the page before was asked with must be the
    same, and ages count from when the first page was shown.
    """
    with settings.store(repair=False) as store:
        page = listing.list_sessions(
            store,
            app,
            user,
            limit=limit,
            cursor=cursor,
            order=order,
            reverse=reverse,
            updated_before=before(older_than),
            updated_since=before(newer_than),
            title=title,
            labels=_pairs(labels),
            with_state=with_state,
        )
    document = {
        "database": store.path,
        "sessions": [_object(info) for info in page.sessions],
        "cursor": page.cursor,
    }
    lines = _listed(page.sessions) or ["No session."]
    if page.cursor is not None:
        lines.append(f"More: --cursor {page.cursor}")
    return Report(document, lines)


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, sign, _) in zip(texts, pairs, strict=True) if not sign]:
        raise click.UsageError(f"{wrong[0]!r} is no label. Write NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _object(info: SessionInfo) -> dict[str, Any]:
    plain = info._asdict()
    plain["labels"] = dict(info.labels)
    if info.state is None:
        del plain["state"]
    return plain


def _listed(sessions: Sequence[SessionInfo]) -> list[str]:
    lines = table(
        ("APP", "USER", "SESSION", "EVENTS", "CREATED", "UPDATED", "TITLE", "LABELS"),
        [
            (
                info.app_name,
                info.user_id,
                info.session_id,
                info.events,
                moment(info.created_at),
                moment(info.last_update_time),
                info.title,
                _joined(info.labels),
            )
            for info in sessions
        ],
    )
    if lines and sessions[0].state is not None:
        header, *rows = lines
        lines = [header]
        for row, info in zip(rows, sessions, strict=True):
            lines.append(row)
            for scope, keys in (info.state or {}).items():
                lines += [
                    f"      {scope} {printable(k)} = {printable(as_text(v))}"
                    for k, v in keys.items()
                ]
    return lines


class _KeyShown(NamedTuple):
    """A key of a session's state, and the event that set it."""

    scope: str
    key: str
    value: Any
    position: int
    author: str
    time: float | None


@sessions_group.command(
    "show",
    cls=Command,
    short_help="The conversation, the state, and who set it.",
    example="adk-eventstore sessions show my_session --app test_app --last 20",
    exits={0: "shown"},
)
@click.argument("session_id", metavar="SESSION")
@app_option
@user_option
@click.option(
    "--last",
    type=COUNT,
    default=_SHOWN,
    show_default=True,
    help="How many events are shown.",
)
@click.option("--all", "everything", is_flag=True, help="Every event.")
@click.pass_obj
def _show(
    settings: Settings,
    session_id: str,
    app: str | None,
    user: str | None,
    last: int,
    everything: bool,
) -> Report:
    """Shows a session as people read it: its title, what was said, and its state by scope.

    Of each key it is said who set it and when, by the event at a position of the log. App and user
    need not be named where only one session has the id.
    """
    with settings.store(repair=False) as store:
        stream = find_session(store, session_id, app, user)
        count = stream.version if everything else last

        def function(
            snapshot: Snapshot,
        ) -> tuple[Stream, Row | None, Sequence[RecordedEvent], list[_KeyShown]]:
            now = snapshot.get_stream(stream.id)
            row = snapshot.row(listing.SESSIONS, (stream.id,))
            events = snapshot.read_page(now, max(0, now.version - count), count) if count else ()
            return now, row, events, list(_keys(now, snapshot))

        now, row, events, keys = store.snapshot(function)
    if row is None:
        raise CommandFailed(f"{stream.key} was deleted in this moment.")
    return _shown(store, now, row, events, keys)


def _keys(stream: Stream, snapshot: Snapshot) -> Iterator[_KeyShown]:
    scopes = {owner: scope for scope, owner in stream.owners.items()}
    rows = snapshot.owned_rows(_STATE, list(scopes))
    positions = sorted({int(row[3]) for row in rows})
    events = {event.position: event for event in snapshot.read_positions(positions)}
    for scope, owner in stream.owners.items():
        for _, key, value, position in (row for row in rows if row[0] == owner):
            event = events.get(int(position))
            author = "" if event is None else event.author or event.type
            time = None if event is None else event.timestamp
            yield _KeyShown(scope, str(key), decode_value(str(value)), int(position), author, time)


def _shown(
    store: EventStore,
    stream: Stream,
    row: Row,
    events: Sequence[RecordedEvent],
    keys: Sequence[_KeyShown],
) -> Report:
    key = stream.key
    labels = listing.labels_of(row)
    document = {
        "database": store.path,
        "app_name": key.app_name,
        "user_id": key.user_id,
        "session_id": key.session_id,
        "title": row[5],
        "labels": labels,
        "created_at": row[1],
        "last_update_time": row[2],
        "version": stream.version,
        "events": [as_object(event) for event in events],
        "state": [each._asdict() for each in keys],
    }
    whose = f"app {printable(key.app_name)}, user {printable(key.user_id)}"
    times = f"Created {moment(float(row[1]))}, updated {moment(float(row[2]))}"
    lines = [f"{printable(key.session_id)}  ({whose})"]
    if row[5]:
        lines.append(f"Title: {printable(row[5], whole=True)}")
    if labels:
        lines.append(f"Labels: {printable(_joined(labels), whole=True)}")
    lines.append(f"{times}, {counted(stream.version, 'event')}")
    if len(events) < stream.version:
        lines += ["", f"The last {counted(len(events), 'event')}; --all shows every one."]
    for event in events:
        lines += ["", *lines_of(event)]
    lines += ["", "State:" if keys else "No state."]
    lines += (
        columns(
            [
                (
                    each.scope,
                    printable(each.key),
                    printable(as_text(each.value)),
                    f"by {printable(each.author)}",
                    "" if each.time is None else moment(each.time),
                    f"event {each.position}",
                )
                for each in keys
            ],
            indent="  ",
        )
        if keys
        else []
    )
    return Report(document, lines)


@sessions_group.command(
    "delete",
    cls=Command,
    short_help="Delete a session.",
    example="adk-eventstore sessions delete my_session --app test_app --user test_user --yes",
    exits={0: "deleted; with --dry-run: there is such a session"},
    interrupted="The session is there, or deleted.",
)
@click.argument("session_id", metavar="SESSION")
@app_option
@user_option
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; change nothing.")
@yes_option
@click.pass_obj
def _delete(
    settings: Settings, session_id: str, app: str | None, user: str | None, dry_run: bool, yes: bool
) -> Report:
    """Deletes a session for every reader. Keys of its user and app stay.

    Its events are in the file until `adk-eventstore vacuum`.
    """
    with settings.store(dry_run=dry_run, repair=False) as store:
        stream = find_session(store, session_id, app, user)
        if not dry_run:
            confirm(f"Delete {printable(stream.key)}, {counted(stream.version, 'event')}?", yes=yes)
            if not delete_session(store, stream.key):
                raise CommandFailed(f"{stream.key} was deleted by somebody else.")
    document = {**_named(store, stream), "events": stream.version, "dry_run": dry_run}
    done = "A dry run: it would delete" if dry_run else "Deleted"
    return Report(document, [f"{done} {printable(stream.key)}."])


@sessions_group.command(
    "title",
    cls=Command,
    short_help="Give a session a title.",
    example='adk-eventstore sessions title my_session "The trip to Rome"',
    exits={0: "set, or taken away"},
    interrupted="The title is as it was, or set.",
)
@click.argument("session_id", metavar="SESSION")
@click.argument("title", required=False)
@app_option
@user_option
@click.option("--clear", is_flag=True, help="Take the title away.")
@click.pass_obj
def _title(
    settings: Settings,
    session_id: str,
    title: str | None,
    app: str | None,
    user: str | None,
    clear: bool,
) -> Report:
    """Gives a session a title, for people who look for it. No loaded session becomes stale."""
    if clear == (title is not None):
        raise click.UsageError("Pass a TITLE, or --clear.")
    with settings.store(repair=False) as store:
        stream = find_session(store, session_id, app, user)
        listing.set_title(store, stream.key, title)
    document = {**_named(store, stream), "title": title or ""}
    done = f"is now titled {printable(title)}" if title else "has no title now"
    return Report(document, [f"{printable(stream.key)} {done}."])


@sessions_group.command(
    "label",
    cls=Command,
    short_help="Set and remove labels of a session.",
    example="adk-eventstore sessions label my_session team=support --remove draft",
    exits={0: "set and removed"},
    interrupted="The labels are as they were, or set.",
)
@click.argument("session_id", metavar="SESSION")
@click.argument("labels", metavar="NAME=VALUE", nargs=-1)
@app_option
@user_option
@click.option("--remove", metavar="NAME", multiple=True, help="Remove one; may be given again.")
@click.pass_obj
def _label(
    settings: Settings,
    session_id: str,
    labels: tuple[str, ...],
    app: str | None,
    user: str | None,
    remove: tuple[str, ...],
) -> Report:
    """Sets labels of a session and removes others; without any, shows those it has."""
    wanted: dict[str, str | None] = {**_pairs(labels), **dict.fromkeys(remove)}
    with settings.store(repair=False) as store:
        stream = find_session(store, session_id, app, user)
        has = listing.set_labels(store, stream.key, wanted)
    line = f"{printable(stream.key)}: {printable(_joined(has)) or 'no label'}"
    return Report({**_named(store, stream), "labels": has}, [line])


def _joined(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


def _named(store: EventStore, stream: Stream) -> Mapping[str, object]:
    key = stream.key
    return {
        "database": store.path,
        "app_name": key.app_name,
        "user_id": key.user_id,
        "session_id": key.session_id,
    }

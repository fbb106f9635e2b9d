"""Lists of sessions, page by page, with titles and labels; and how these are set.

A page is found by an index and begins behind the last session of the page before, so it costs the
same wherever it is. Nothing is kept between two pages: a cursor is where the list goes on.
"""

from __future__ import annotations

import base64
import heapq
import json
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from eventstore import (
    CorruptRow,
    EventStore,
    EventType,
    InvalidInput,
    MaintenanceTransaction,
    NewEvent,
    Row,
    Snapshot,
    StreamFacts,
    StreamKey,
    StreamKind,
    StreamNotFound,
    check_identifier,
)
from eventstore.encoding import encode
from eventstore.events import check_identifiers
from eventstore.limits import LABEL_LENGTH, LABELS, TITLE_LENGTH
from projections.sessions import SessionsProjection
from projections.state import StateProjection, state_by_owner

__all__ = [
    "SESSIONS",
    "Order",
    "SessionInfo",
    "SessionPage",
    "labels_of",
    "list_sessions",
    "set_labels",
    "set_title",
]

Order = Literal["updated", "created"]

SESSIONS: Final = SessionsProjection()
_STATE: Final = StateProjection()
_ROWS_AT_ONCE: Final = 500
_LARGEST_PAGE: Final = 1_000
_INDEXES: Final = {
    (StreamKind.APP, "updated"): "sessions_by_app_and_update",
    (StreamKind.USER, "updated"): "sessions_by_user_and_update",
    (StreamKind.APP, "created"): "sessions_by_app_and_creation",
    (StreamKind.USER, "created"): "sessions_by_user_and_creation",
}


class SessionInfo(NamedTuple):
    """A session without its events.

    Times are seconds since the epoch. `events` counts all that is stored of it, its creation and
    keys set from outside included. `state` is None where it was not asked for; else its keys by
    scope: "session", "user" and "app".
    """

    app_name: str
    user_id: str
    session_id: str
    title: str
    labels: Mapping[str, str]
    created_at: float
    last_update_time: float
    events: int
    state: Mapping[str, Any] | None = None


class SessionPage(NamedTuple):
    """Some sessions, and where the list goes on: None at its end."""

    sessions: Sequence[SessionInfo]
    cursor: str | None


class _Query(NamedTuple):
    """What is asked for, but for the page."""

    app_name: str | None
    user_id: str | None
    order: Order
    reverse: bool
    updated_since: float | None
    updated_before: float | None
    title: str | None
    labels: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Tells lists apart: a cursor of one means nothing in another.

        Times are in the cursor: who asks for the last week does so a moment later for each page.
        """
        times = (self.updated_since is None, self.updated_before is None)
        asked = self._replace(updated_since=None, updated_before=None)
        return sha256(json.dumps([times, asked], sort_keys=True).encode()).hexdigest()[:16]

    def time(self, row: Row) -> float:
        """The time by which a row is sorted."""
        return float(row[1 if self.order == "created" else 2])

    def has(self, row: Row) -> bool:
        """Whether a row is in the list."""
        updated = float(row[2])
        if self.updated_since is not None and updated < self.updated_since:
            return False
        if self.updated_before is not None and updated >= self.updated_before:
            return False
        if self.title is not None and self.title not in str(row[5]).casefold():
            return False
        return not self.labels or self.labels.items() <= labels_of(row).items()

    @property
    def start(self) -> Row | None:
        """Behind which the list begins, as far as the order can tell."""
        if self.order == "created":
            return None
        bound = self.updated_since if self.reverse else self.updated_before
        return None if bound is None else (bound, 0)

    def is_over(self, row: Row) -> bool:
        """Whether neither this row nor any behind it is in the list, as far as the order tells."""
        if self.order == "created":
            return False
        if self.reverse:
            return self.updated_before is not None and float(row[2]) >= self.updated_before
        return self.updated_since is not None and float(row[2]) < self.updated_since


def list_sessions(
    store: EventStore,
    app_name: str | None = None,
    user_id: str | None = None,
    *,
    limit: int = 50,
    cursor: str | None = None,
    order: Order = "updated",
    reverse: bool = False,
    updated_since: float | datetime | None = None,
    updated_before: float | datetime | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
    with_state: bool = False,
) -> SessionPage:
    """A page of the live sessions, of all apps and users that are not named. Blocks for one read.

    The list begins with what was updated or created last, with `reverse` it ends there. `title` is
    any part of it, whatever its case; `labels` must all be there. `cursor` is that of the page
    before, whose other arguments must be the same; times go on as they were for the first page.

    While others write: in the order "created" each session comes once; in
    the order "updated" one that is written to meanwhile moves to the top, where the list begins.

    Raises:
        InvalidInput: (a ValueError) no such order, limit or cursor, or ids that no session has.
    """
    if order not in ("updated", "created"):
        raise InvalidInput(f"order must be 'updated' or 'created', not {order!r}.")
    if not isinstance(limit, int) or not 1 <= limit <= _LARGEST_PAGE:
        raise InvalidInput(f"limit must be a number from 1 to {_LARGEST_PAGE:,}, not {limit!r}.")
    check_identifiers(app_name=app_name, user_id=user_id, title=title)
    query = _Query(
        app_name,
        user_id,
        order,
        bool(reverse),
        _seconds("updated_since", updated_since),
        _seconds("updated_before", updated_before),
        None if title is None else title.casefold(),
        dict(_checked_labels(labels or {})),
    )
    after = query.start
    if cursor is not None:
        after, query = _read_cursor(cursor, query)
    return store.snapshot(partial(_page, query, after, limit, with_state))


def _seconds(what: str, value: object) -> float | None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidInput(f"{what} has no time zone. Pass one: datetime.now(UTC).")
        return value.timestamp()
    try:
        if value is None or (isinstance(value, int | float) and value == value):
            return None if value is None else float(value)
    except OverflowError:
        pass
    raise InvalidInput(f"{what} must be seconds since the epoch, or a datetime, not {value!r}.")


def _page(
    query: _Query, after: Row | None, limit: int, with_state: bool, snapshot: Snapshot
) -> SessionPage:
    lists = [
        _rows(query, owner, kind, after, limit, snapshot)
        for owner, kind in _owners(query, snapshot)
    ]
    merged = heapq.merge(
        *lists, key=lambda row: (query.time(row), row[0]), reverse=not query.reverse
    )
    rows = list(islice((row for row in merged if query.has(row)), limit + 1))
    cursor = _write_cursor(query, rows[limit - 1]) if len(rows) > limit else None
    return SessionPage(_infos(rows[:limit], snapshot, with_state=with_state), cursor)


def _owners(query: _Query, snapshot: Snapshot) -> Iterable[tuple[int, StreamKind]]:
    """The streams whose sessions are listed."""
    app, user = query.app_name, query.user_id
    if user is None and app is None:
        return [(stream.id, StreamKind.APP) for stream in snapshot.apps()]
    if user is not None and app is None:
        found = [facts for facts in snapshot.streams_of_user(user) if facts.live]
        users = [f.stream.id for f in found if f.stream.key.kind is StreamKind.USER]
        return [(stream_id, StreamKind.USER) for stream_id in users]
    kind = StreamKind.APP if user is None else StreamKind.USER
    stream = snapshot.find_stream(StreamKey(kind, app or "", user or ""))
    return [] if stream is None else [(stream.id, kind)]


def _rows(
    query: _Query,
    owner: int,
    kind: StreamKind,
    after: Row | None,
    limit: int,
    snapshot: Snapshot,
) -> Iterator[Row]:
    """The rows of an app or a user in order, read as far as they are asked for."""
    count = min(limit + 1, _ROWS_AT_ONCE)
    while True:
        rows = snapshot.indexed_page(
            SESSIONS,
            _INDEXES[kind, query.order],
            (owner,),
            after=after,
            descending=not query.reverse,
            count=count,
        )
        for row in rows:
            if query.is_over(row):
                return
            yield row
        if len(rows) < count:
            return
        after, count = (query.time(rows[-1]), rows[-1][0]), _ROWS_AT_ONCE


def _infos(rows: Sequence[Row], snapshot: Snapshot, *, with_state: bool) -> list[SessionInfo]:
    facts = snapshot.get_facts([int(row[0]) for row in rows])
    infos = []
    for row in rows:
        if (found := facts.get(int(row[0]))) is None or not found.live:
            raise CorruptRow("sessions", f"is of no live session (stream {row[0]})")
        info = _info(row, found)
        infos.append(info._replace(state=_state(found, snapshot)) if with_state else info)
    return infos


def _info(row: Row, facts: StreamFacts) -> SessionInfo:
    key = facts.stream.key
    return SessionInfo(
        key.app_name,
        key.user_id,
        key.session_id,
        str(row[5]),
        labels_of(row),
        float(row[1]),
        float(row[2]),
        facts.stream.version,
    )


def _state(facts: StreamFacts, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    owners = facts.stream.owners
    state = state_by_owner(snapshot.owned_rows(_STATE, list(owners.values())))
    return {scope: state.get(owner, {}) for scope, owner in owners.items()}


def labels_of(row: Row) -> dict[str, str]:
    """The labels in a row of the projection.

    Raises:
        CorruptRow: it holds none.
    """
    if row[6] == "{}":
        return {}
    try:
        return dict(json.loads(str(row[6])))
    except (ValueError, TypeError):
        raise CorruptRow("sessions", f"holds labels that are none (stream {row[0]})") from None


def _write_cursor(query: _Query, last: Row) -> str:
    since, before = (
        None if bound is None else bound.hex()
        for bound in (query.updated_since, query.updated_before)
    )
    text = json.dumps([query.fingerprint, query.time(last).hex(), last[0], since, before])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(cursor: str, query: _Query) -> tuple[Row, _Query]:
    """Behind which row to go on, and the query with the times of the list's first page."""
    try:
        fingerprint, at, stream_id, *bounds = json.loads(base64.urlsafe_b64decode(cursor))
        row = (float.fromhex(at), int(stream_id))
        since, before = (None if bound is None else float.fromhex(bound) for bound in bounds)
        if not 0 <= row[1] < 2**63:
            raise ValueError("no stream has such an id")
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidInput("The cursor is none. Pass that of the page before.") from None
    if fingerprint != query.fingerprint:
        raise InvalidInput(
            "The cursor is of another list. Pass the same order and filters as for the page "
            "before, or begin anew without a cursor."
        )
    return row, query._replace(updated_since=since, updated_before=before)


# How sessions are described.


def set_title(store: EventStore, key: StreamKey, title: str | None) -> None:
    """Gives a live session a title, or with None takes it away. Blocks for one commit.

    It is an event of the session's stream, and no part of the conversation: sessions that are
    loaded do not become stale, and `last_update_time` stays.

    Raises:
        StreamNotFound: there is no such session.
        InvalidInput: (a ValueError) a title that cannot be stored.
    """
    title = check_identifier("the title", title or "", TITLE_LENGTH)

    def change(row: Row) -> dict[str, object]:
        return {} if row[5] == title else {"title": title}

    _describe(store, key, change)


def set_labels(
    store: EventStore, key: StreamKey, labels: Mapping[str, str | None]
) -> dict[str, str]:
    """Sets some labels of a live session, removes those whose value is None; returns all it has.

    As `set_title`. Labels that are not named stay.

    Raises:
        StreamNotFound: there is no such session.
        InvalidInput: (a ValueError) labels that cannot be stored, or too many.
    """
    wanted = _checked_labels(labels)
    result: dict[str, str] = {}

    def change(row: Row) -> dict[str, object]:
        nonlocal result
        before = labels_of(row)
        merged = {**before, **wanted}
        result = {name: value for name, value in merged.items() if value is not None}
        if len(result) > LABELS:
            raise InvalidInput(f"A session has at most {LABELS} labels. Remove some first.")
        return {} if result == before else {"labels": result}

    _describe(store, key, change)
    return result


def _checked_labels(labels: Any) -> dict[str, Any]:
    if not isinstance(labels, Mapping):
        raise InvalidInput(f"labels must be a dict, not {type(labels).__name__}.")
    for name, value in labels.items():
        if not check_identifier("a label", name, LABEL_LENGTH):
            raise InvalidInput("A label needs a name.")
        if value is not None:
            check_identifier(f"the value of label {name!r}", value, LABEL_LENGTH)
    return dict(labels)


def _describe(store: EventStore, key: StreamKey, change: Any) -> None:
    def function(transaction: MaintenanceTransaction) -> None:
        if (stream := transaction.find_stream(key)) is None:
            raise StreamNotFound(str(key))
        if (row := transaction.row(SESSIONS, (stream.id,))) is None:
            raise CorruptRow("sessions", f"is missing (stream {stream.id})")
        if said := change(row):
            (data,), encoding = encode([said], "what describes a session")
            transaction.append(
                stream,
                NewEvent(
                    event_id=uuid.uuid4().hex,
                    type=EventType.SESSION_DESCRIBED,
                    timestamp=time.time(),
                    data=data,
                    encoding=encoding,
                ),
            )

    store.transact(function)

"""The session service: ADK's interface over the event store."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, TypeVar, get_args

from google.adk.events import Event
from google.adk.sessions import BaseSessionService, State
from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import GetSessionConfig

from adk_adapter._adk import (
    AlreadyExistsError,
    SessionNotFoundError,
    StaleSessionError,
    get_time,
    is_restored,
    new_uuid,
)
from adk_adapter.codec import (
    decode_event,
    encode_event,
    encode_state,
    is_ours,
    merge_scopes,
    prepare,
    rewind_delta,
    split_scopes,
)
from adk_adapter.exports import Form, as_eval_set, as_session_file, initial_state
from adk_adapter.flights import Flights, Passage, marker
from adk_adapter.history import StoredEvent, stored_event
from adk_adapter.imports import Imported, import_from_service, import_sessions, open_sources
from adk_adapter.session import ListSessionsResponse, Session, make_session, unread
from adk_adapter.telemetry import Telemetry, observed
from eventstore import (
    CorruptEvent,
    CorruptRow,
    Durability,
    EventIdConflict,
    EventStore,
    EventStoreError,
    EventType,
    InvalidInput,
    Loaded,
    NotADatabase,
    Projection,
    ProjectionMissing,
    StreamExists,
    StreamKey,
    StreamKind,
    StreamNotFound,
    UnknownEvent,
    Window,
    WrongExpectedVersion,
    check_identifier,
    open_store,
)
from eventstore.events import check_identifiers
from projections import (
    Anchor,
    Follower,
    UsageProjection,
    UsageRow,
    Verified,
    installed,
    listing,
    retention,
    usage,
    verify,
)
from projections.backup import BackedUp, backup
from projections.history import (
    POLL_S,
    Filter,
    LogPage,
    check_count,
    page_of_log,
    page_of_session,
)
from projections.listing import Order, SessionPage
from projections.rebuild import Progress
from projections.retention import Erased, Purged
from projections.state import state_by_owner
from projections.stats import Stats, measure
from projections.transfer import Part, Taken, export_log

__all__ = ["DatabaseSessionService", "exported", "session_key"]

_EVENTS_PER_PAGE: Final = 200
_UNREAD_MAX: Final = 1_000
"""As many events as are made in about 10 ms."""

_log = logging.getLogger(__name__)

T = TypeVar("T")


class DatabaseSessionService(BaseSessionService):
    """ADK sessions that survive restarts, kept as an append-only log: a SQLite file, or PostgreSQL.

    A drop-in for ADK's InMemorySessionService, SqliteSessionService and DatabaseSessionService.
    With no argument the file is `$ADK_SESSION_DB`, else data_science/db/adk.sqlite3 below the
    working directory; missing folders are made. A path or a `sqlite:` URL may be given first, or
    as `db_url`, `db_path` or `uri`. ":memory:" is a private temporary file, gone at close.
    `agents_dir`, which ADK's service registry passes, is accepted and has no effect.

    A `postgresql:` URL names a server instead, which any number of processes on any number of
    machines may use at once: the extra `adk-eventstore[postgres]`. The log is in a schema of its
    own, `schema` or that of the URL's query (`?schema=...`), else "adk_eventstore". It is made
    where it is missing, unless `create_schema` is False: then by what `adk-eventstore ddl` prints.
    `connect` is called, or awaited, for each new connection and returns the URL to connect with,
    for passwords that expire.

    `durability` says what an acknowledged write survives: "normal" every end of the process, a
    power cut may take the last writes but never the file; "full" the power cut too.

    `on_stale` says what becomes of an event for a session to which somebody else has appended since
    it was loaded. "raise", as in ADK, refuses it. "merge" appends it behind theirs and brings the
    live session up to date with the events it missed, in place: state keys are merged key by key,
    the last writer wins. A compaction or a rewind is refused all the same, for it was computed
    from a history that has moved on, and so is a session that carries no revision (restored from
    JSON) or was deleted meanwhile.

    `on_corrupt` says what becomes of a session with a stored event that is not what was written,
    because the disk or somebody changed it. "raise" refuses to load it. "skip" loads it without the
    events that cannot be read or do not match their digest, and warns of each with its position;
    `corrupt_events` returns them. What is appended then comes behind those that were skipped.

    `projections` are folds of your own, which a background thread keeps close behind the log, as it
    does those that installed packages provide: see eventstore.Projection.

    May be used from any number of tasks, event loops, threads and processes at once.

    Raises:
        StoreUnusable: the path cannot be used; one of the kinds in eventstore.errors, which says
            why and what to do. Raised here, not at the first use.
        ProjectionMissing: the file's tables need `rebuild-projections`.
        InvalidProjection: one of `projections` cannot be kept in a database.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        db_url: str | None = None,
        db_path: str | os.PathLike[str] | None = None,
        uri: str | None = None,
        agents_dir: str | None = None,
        durability: Durability = "normal",
        on_stale: Literal["raise", "merge"] = "raise",
        on_corrupt: Literal["raise", "skip"] = "raise",
        projections: Sequence[Projection] = (),
        schema: str | None = None,
        create_schema: bool = True,
        connect: Callable[[], str | Awaitable[str]] | None = None,
    ) -> None:
        if on_stale not in ("raise", "merge"):
            raise ValueError(f"on_stale must be 'raise' or 'merge', not {on_stale!r}")
        if on_corrupt not in ("raise", "skip"):
            raise ValueError(f"on_corrupt must be 'raise' or 'skip', not {on_corrupt!r}")
        given = [target for target in (path, db_url, db_path, uri) if target is not None]
        if len(given) > 1:
            raise TypeError("pass one of path, db_url, db_path and uri, not several")
        self._inline = installed.inline()
        self._given = tuple(projections)
        installed.distinct((*self._inline, *installed.asynchronous(), *self._given))
        target = given[0] if given else None
        prepare()
        self._store = open_store(
            target,
            self._inline,
            durability=durability,
            schema=schema,
            create_schema=create_schema,
            connect=connect,
        )
        self._follower: Follower | None = None
        try:
            self._telemetry = Telemetry(self._store)
            if self._following():
                named = {p.name for p in (*installed.asynchronous(), *self._given)}
                self._follower = Follower(self._store, self._following, named)
                self._follower.ensure_running()
        except BaseException:
            self._store.close()
            raise
        self._merge = on_stale == "merge"
        self._skip = on_corrupt == "skip"
        self._flights = Flights()
        _log.info("sessions are kept in %s", self._store.path)

    def _following(self) -> tuple[Projection, ...]:
        return installed.following(self._store, self._given)

    def _paused(self) -> AbstractContextManager[None]:
        return nullcontext() if self._follower is None else self._follower.paused()

    @observed
    async def create_session(
        self,
        app_name: str,
        user_id: str,
        session_id: str | None = None,
        state: dict[str, Any] | None = None,
    ) -> Session:
        """Creates a session, with a generated id when none or a blank one is given.

        Raises:
            AlreadyExistsError: the user has a session with this id; nothing was written.
            InvalidInput: (a ValueError) an id, key or value that cannot be stored.
        """
        key = session_key(app_name, user_id, session_id, generate=True)
        event = encode_state(EventType.SESSION_CREATED, state or {}, get_time())
        with _adk_errors(key):
            return _session(await self._store.create(key, event))

    @observed
    async def get_session(
        self,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Loads a session as one snapshot; None when there is none.

        Raises:
            InvalidInput: (a ValueError) no such name or id can be.
            CorruptEvent, CorruptRow, NotADatabase: what is stored is not what was written, or
                cannot be read.
            UnknownEvent: a newer version of this package wrote it.
            ProjectionMissing: the session has no row; its table needs `rebuild-projections`.
        """
        if session_id is None:
            return None
        key = session_key(app_name, user_id, session_id)
        # ADK takes 0.0 and everything before it as no filter.
        since = config.after_timestamp if config else None
        window = Window(config.num_recent_events if config else None, since or None)
        try:
            # Where what is damaged is left out, it must be found now.
            make = _session if self._skip else _unread_session
            return await self._store.load(key, window, make)
        except (CorruptEvent, NotADatabase, UnknownEvent, CorruptRow):
            if not self._skip:
                raise
        return await self._store.load_intact(key, window, self._session_without)

    def _session_without(self, loaded: Loaded, damaged: Sequence[CorruptEvent]) -> Session:
        """Makes the session of what can be read. Called on any thread."""
        corrupt = _corrupt(loaded, damaged)
        for error in corrupt:
            _log.warning("loaded without a damaged event: %s", error)
        positions = {error.position for error in corrupt}
        good = [event for event in loaded.events if event.position not in positions]
        return _session(loaded._replace(events=good))

    @observed
    async def corrupt_events(
        self, app_name: str, user_id: str, session_id: str
    ) -> list[CorruptEvent]:
        """The stored events of a session that are not what was written, in order; none for none.

        Each says its `version` in the session, its `position` in the log (0 where it cannot be
        found any more) and the `reason`. Looks at every event: slow for a long session.
        """
        key = session_key(app_name, user_id, session_id)
        found = await self._store.load_intact(key, Window(), _corrupt)
        return found or []

    @observed
    async def list_sessions(
        self, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of an app, or of one of its users, without events, last changed last.

        Raises:
            InvalidInput: (a ValueError) no such name or id can be.
            CorruptEvent, CorruptRow, NotADatabase: what is stored cannot be read.
        """
        check_identifier("app_name", app_name)
        if user_id is not None:
            check_identifier("user_id", user_id)
        sessions = await self._store.load_sessions(app_name, user_id, _session)
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse.model_construct(sessions=sessions)

    @observed
    async def list_sessions_page(
        self,
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
        """A page of the live sessions, of all apps and users that are not named.

        The session that was updated last (or with `order="created"` created last) comes first,
        with `reverse=True` last. Of all filters each must hold: `updated_since` and
        `updated_before` are seconds since the epoch or datetimes with a time zone, the first
        inclusive; `title` is any part of it, whatever its case; `labels` those it must have.
        `with_state` adds the merged state. `cursor` is that of the page before: pass the other
        arguments as they were (times go on as they were for the first page). It is None behind the
        last page.

        A page costs the same wherever it is in the list. While others write, each session comes
        once in the order "created". In the order "updated" one that is written to moves: to the
        top, where it is seen when the list is begun anew, or with `reverse` to the end, where it
        comes once more.

        Raises:
            InvalidInput: (a ValueError) no such order, limit or cursor.
        """
        page = await asyncio.to_thread(
            listing.list_sessions,
            self._store,
            app_name,
            user_id,
            limit=limit,
            cursor=cursor,
            order=order,
            reverse=reverse,
            updated_since=updated_since,
            updated_before=updated_before,
            title=title,
            labels=labels,
            with_state=with_state,
        )
        sessions = [
            info if info.state is None else info._replace(state=merge_scopes(info.state))
            for info in page.sessions
        ]
        return page._replace(sessions=sessions)

    async def iter_events(
        self,
        app_name: str,
        user_id: str,
        session_id: str,
        *,
        after_version: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[StoredEvent]:
        """The events of a session behind a version, oldest first, read in pages.

        All that is stored of it: the conversation, and what set keys or a title beside it. Ends
        where the session ended when the last page was read; to go on later, pass the last version.

        Raises:
            SessionNotFoundError: there is no such session, or it was deleted meanwhile.
            InvalidInput: (a ValueError) a version or limit below zero, or above 2**63 - 1.
            CorruptEvent: an event is not what was written.
        """
        key = session_key(app_name, user_id, session_id)
        left: int = sys.maxsize if limit is None else check_count("limit", limit)
        stream_id = None
        while left > 0:
            count = min(left, _EVENTS_PER_PAGE)
            with _adk_errors(key):
                events = await asyncio.to_thread(
                    page_of_session, self._store, key, after_version, count, stream_id=stream_id
                )
            for recorded in events:
                yield stored_event(recorded)
                after_version, left = recorded.version, left - 1
                stream_id = recorded.stream.id
            if len(events) < count:
                return

    async def tail_events(
        self,
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        *,
        after: int | None = None,
        follow: bool = True,
    ) -> AsyncIterator[StoredEvent]:
        """The events of the log as they are appended, by any process, in its order.

        Begins behind the position `after`, or when it is None with what comes from now on. Without
        `follow` it ends at the head. Looks at the log five times a second; a consumer that is slow
        misses nothing. Keep `position` to go on later. Events of maintenance are among them where
        no id is given.

        Raises:
            InvalidInput: (a ValueError) a name or an id that cannot be, or a position below zero or
                above 2**63 - 1.
            CorruptEvent: an event is not what was written.
            StoreClosed: the service was closed.
        """
        whose = Filter(app_name, user_id, session_id)
        check_identifiers(**whose._asdict())
        reached: int = 0 if after is None else check_count("after", after)
        if after is None:
            reached = await asyncio.to_thread(self._store.snapshot, lambda s: s.head())
        while True:
            page: LogPage = await asyncio.to_thread(page_of_log, self._store, reached, whose)
            for recorded in page.events:
                yield stored_event(recorded)
            if page.reached > reached:
                reached = page.reached
            elif follow:
                await asyncio.sleep(POLL_S)
            else:
                return

    @observed
    async def set_title(
        self, app_name: str, user_id: str, session_id: str, title: str | None
    ) -> None:
        """Gives a session a title; None or an empty one takes it away.

        Sessions that are loaded do not become stale, and `last_update_time` stays.

        Raises:
            SessionNotFoundError: there is no such session.
            InvalidInput: (a ValueError) no text that can be stored, or over 1,000 characters.
        """
        key = session_key(app_name, user_id, session_id)
        with _adk_errors(key):
            await asyncio.to_thread(listing.set_title, self._store, key, title)

    @observed
    async def set_labels(
        self, app_name: str, user_id: str, session_id: str, labels: Mapping[str, str | None]
    ) -> dict[str, str]:
        """Sets some labels of a session, and removes those whose value is None.

        Labels that are not named stay. Returns all that it has then. As `set_title`.

        Raises:
            SessionNotFoundError: there is no such session.
            InvalidInput: (a ValueError) no texts that can be stored, over 256 characters, or more
                than 64 labels.
        """
        key = session_key(app_name, user_id, session_id)
        with _adk_errors(key):
            return await asyncio.to_thread(listing.set_labels, self._store, key, labels)

    @observed
    async def delete_session(self, app_name: str, user_id: str, session_id: str) -> None:
        """Deletes a session; nothing happens when there is none. Its `app:`/`user:` keys stay.

        Raises:
            InvalidInput: (a ValueError) no such name or id can be.
        """
        key = session_key(app_name, user_id, session_id)
        await self._store.delete(key, encode_state(EventType.SESSION_DELETED, {}, get_time()))

    @observed
    async def get_user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """The keys a user has in an app, without their `user:` prefix.

        Raises:
            InvalidInput: (a ValueError) no such name or id can be.
            CorruptRow: a value is no JSON.
        """
        check_identifier("app_name", app_name)
        check_identifier("user_id", user_id)
        return await self._owned_state(StreamKey(StreamKind.USER, app_name, user_id))

    async def _owned_state(self, key: StreamKey) -> dict[str, Any]:
        """The keys that belong to one stream, without prefixes."""
        rows = await self._store.load_rows(key, "state")
        return next(iter(state_by_owner(rows).values()), {})

    @observed
    async def append_event(self, session: AdkSession, event: Event) -> Event:
        """Appends an event to a session, in the log and then in the object.

        Partial events are not stored. `temp:` keys go to the live session and into no storage.
        The same event again changes nothing. The session changes only once the event is stored;
        after a cancelled call it is brought up to date when the outcome is there.

        The state delta of a rewind event is computed anew from the log: ADK computes it from the
        session's events alone, and so turns the state given to `create_session` into None. One
        that ADK's programs restore from a saved session keeps the delta it was saved with.

        Raises:
            SessionNotFoundError: the session was deleted, or never created.
            StaleSessionError: somebody else appended since this session was loaded.
            AlreadyExistsError: the session holds another event with this id.
            InvalidInput: (a ValueError) an id or value that cannot be stored.
            OutcomeUnknown, StorageFailed, StoreBusy: see eventstore.errors.
        """
        if event.partial:
            return event
        if self._follower is not None:
            self._follower.ensure_running()  # which a forked child has no thread of
        _move_temporary_keys(session, event)
        key = session_key(session.app_name, session.user_id, session.id)
        actions = event.actions
        if actions.rewind_before_invocation_id and not is_restored(event):
            await self._correct_rewind(key, event, actions.rewind_before_invocation_id)
        new_event = encode_event(event)
        # A compaction or a rewind says something about the history it was computed from.
        merge = self._merge and not (actions.compaction or actions.rewind_before_invocation_id)
        passage = Passage(event)
        flight = self._flights.board(session, passage)
        try:
            future = self._store.append(
                key,
                new_event,
                flight.cursor,
                merge=decode_event if merge else None,
                on_outcome=lambda appended: flight.outcomes.append((passage, appended)),
                on_done=lambda: self._flights.land(flight),
            )
        except (EventStoreError, RuntimeError):
            # Refused, or there was no thread to be had. Where a signal's handler raised anything
            # else, it may have been handed over.
            flight.outcomes.append((passage, None))
            self._flights.land(flight)
            raise
        try:
            appended = await future
        except EventStoreError as error:
            _raise_adks(error, key)
        if appended.missed:
            self._telemetry.merged()
        return event

    async def _correct_rewind(self, key: StreamKey, event: Event, invocation_id: str) -> None:
        """Puts the delta that leads back to the state before an invocation into a rewind event."""
        compute = partial(rewind_delta, event_id=event.id, invocation_id=invocation_id)
        delta = await self._store.read(key, compute)
        if delta is not None:
            shared = split_scopes(event.actions.state_delta)
            event.actions.state_delta = merge_scopes({**shared, "session": delta})

    @observed
    async def update_keys(
        self, app_name: str, user_id: str, session_id: str, keys: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Merges keys into a session's state without a conversation event.

        Prefixes mean what they mean in a state delta. Returns the merged state. Sessions that
        others have loaded do not become stale, so a tool may call it in the middle of a run; they
        do not see the new values before they are loaded again.

        Raises:
            SessionNotFoundError: there is no such session.
            InvalidInput: (a ValueError) a `temp:` key, or one or a value that cannot be stored.
        """
        key = session_key(app_name, user_id, session_id)
        if not isinstance(keys, Mapping):
            raise InvalidInput(f"keys must be a dict, not {type(keys).__name__}.")
        for name in keys:
            if check_identifier("a state key", name).startswith(State.TEMP_PREFIX):
                raise InvalidInput(
                    f"state key {name!r} cannot be stored: temp: keys live in a loaded session. "
                    "Set it on session.state."
                )
        with _adk_errors(key):
            if not keys:
                session = await self._store.load(key, Window(last=0), _session)
                if session is None:
                    raise StreamNotFound(str(key))
                return session.state
            event = encode_state(EventType.STATE_SET, keys, get_time())
            return _session(await self._store.set_state(key, event)).state

    async def ping(self) -> None:
        """Returns when the database has answered: for health checks.

        Raises:
            StoreUnusable, StoreBusy, StoreClosed, TimedOut: see eventstore.errors.
        """
        await self._store.ping()

    async def flush(self) -> None:
        """Returns when every append handed over before is committed, cancelled ones included."""
        await self._store.barrier()

    def get_stats(self) -> dict[str, Any]:
        """Facts about the database; blocks for the time of one read.

        Keys: sessions, events, state_keys (counts), head (position of the last event), path,
        db_size_mb, schema_version, projections, durability, and of a file wal_size_mb and
        sqlite_version, of a server postgresql_version. `path` has no password.
        """
        stats = self._store.stats()
        return {"sessions": stats.pop("sessions"), "state_keys": stats.pop("state"), **stats}

    def vacuum(self, *, rewrite: bool = False) -> dict[str, int]:
        """Removes the events of deleted sessions and gives their space back; blocks.

        With `rewrite` the file, or the tables on a server, is written anew at last, as small as can
        be and without any copy of what was removed. Writers wait for that, a minute or less for
        each gigabyte.

        Keys of the result: sessions, events, keys_carried_over, bytes_freed.

        Raises:
            MaintenanceRunning: a rebuild, another vacuum or a verification is under way.
            ProjectionMissing: an asynchronous projection is stopped; nothing was removed.
        """
        with self._telemetry.operation("vacuum"), self._paused():
            done = retention.vacuum(self._store, self._inline, self._following(), rewrite=rewrite)
        keys = ("sessions", "events", "keys_carried_over", "bytes_freed")
        return {key: getattr(done, key) for key in keys}

    @observed
    async def purge(self, *, older_than: timedelta | float, app_name: str | None = None) -> Purged:
        """Removes the sessions that were last updated so long ago, of an app or of all.

        `older_than` is a timedelta, or seconds. Their events are removed and the space is given
        back, while appends go on; keys of users and apps stay. It goes in steps: cancelled or
        killed, it has removed some sessions whole, and the next call removes the others.

        Raises:
            InvalidInput: (a ValueError) an age that can be none.
            MaintenanceRunning: a rebuild, a vacuum or a verification is under way.
            ProjectionMissing: an asynchronous projection is stopped; nothing was removed.
        """
        age = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than

        def function(progress: Progress) -> Purged:
            with self._paused():
                return retention.purge(
                    self._store,
                    self._inline,
                    self._following(),
                    older_than=age,
                    app_name=app_name,
                    progress=progress,
                )

        return await _in_steps(function)

    @observed
    async def erase_user(
        self, user_id: str, app_name: str | None = None, *, rewrite: bool | None = None
    ) -> Erased:
        """Removes every session, event and key of a user, in one app or in all, and from the file.

        What is left says that so many sessions were erased, and not whose. At last the file, or the
        tables on a server, is written anew, so that no copy is left in it: writers wait for that.
        `rewrite` says whether it is; None means where it has up to 256 MB, and if it takes up to
        20 s. `gone` of the result says whether all copies are gone. Backups are not touched, nor a
        server's WAL and replicas. An `app:` key keeps its value, whoever wrote it.

        Raises:
            InvalidInput: (a ValueError) no user has such an id.
            MaintenanceRunning: a rebuild, a vacuum or a verification is under way.
            ProjectionMissing: an asynchronous projection is stopped; nothing was erased.
        """

        def function(progress: Progress) -> Erased:
            with self._paused():
                return retention.erase_user(
                    self._store,
                    self._inline,
                    self._following(),
                    user_id=user_id,
                    app_name=app_name,
                    rewrite=rewrite,
                    progress=progress,
                )

        return await _in_steps(function)

    @observed
    async def measure(self, *, whole: bool | None = None) -> Stats:
        """Counts and sizes by app, growth by day, and the largest sessions: see projections.Stats.

        `whole` looks at every event, a second or two for each 256 MB; None means in a file that is
        not larger. Appends go on meanwhile.
        """
        return await asyncio.to_thread(measure, self._store, whole=whole)

    @observed
    async def verify(self, *, since: int = 0, against: Anchor | None = None) -> Verified:
        """Recomputes the tables from the log, proves the log itself, and says what differs.

        `since` checks only the events behind a position, and the rows they touched; `against` that
        the log still has the history an anchor knows. Appends go on meanwhile.

        Raises:
            MaintenanceRunning: a rebuild, a vacuum or another verification is under way.
            ProjectionFailed, UnknownEvent: the log cannot be folded.
            ValueError: `against` needs the whole log, not what is behind `since`.
        """

        def function() -> Verified:
            following = self._following()
            with self._paused():
                return verify(self._store, self._inline, following, since=since, against=against)

        return await asyncio.to_thread(function)

    @observed
    async def backup(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> BackedUp:
        """Copies the database to a new file while appends go on, and verifies the copy.

        The file has its name only once it is whole. To copy the file itself is no backup: what was
        written last is in the `-wal` beside it.

        Raises:
            PathUnusable: the file exists and `overwrite` was not given, or cannot be written.
            CopyDamaged: the copy does not verify, for this database does not.
            DatabaseInUse: it is the file of a service that is running.
            StorageFailed: the disk is full or failing.
        """

        def function() -> BackedUp:
            return backup(self._store, path, self._following(), overwrite=overwrite)

        return await asyncio.to_thread(function)

    @observed
    async def import_from(
        self,
        source: BaseSessionService | str | os.PathLike[str],
        *,
        app_names: Iterable[str] | None = None,
    ) -> list[Imported]:
        """Takes the sessions of another service, or of a database that one of ADK's wrote.

        A path or URL names what one of ADK's services wrote. Of a service, the apps that are named;
        an InMemorySessionService says itself which it has. Ids, order, timestamps and the state of
        all scopes are kept. Each session is taken whole or not at all, and what was taken before is
        not taken again, so it may be called until nothing is left. One report for each database.

        Raises:
            ImportFailed: the source cannot be read; what was taken before stays.
            InvalidInput: (a ValueError) a service of this package: see `export`.
            ValueError: `app_names` are missing, or given for a database.
        """
        if isinstance(source, DatabaseSessionService):
            raise InvalidInput(
                "A service of this package has more to give than ADK's interface shows: titles, "
                "labels, history. Use its `export`, or adk-eventstore copy."
            )
        if isinstance(source, BaseSessionService):
            return [await import_from_service(self._store, source, app_names)]
        if app_names is not None:
            raise ValueError("app_names are for a service: of a database everything is taken")

        def function() -> list[Imported]:
            with open_sources(source) as sources:
                return [import_sessions(self._store, each) for each in sources]

        return await asyncio.to_thread(function)

    @observed
    async def export(
        self,
        path: str | os.PathLike[str],
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        *,
        overwrite: bool = False,
    ) -> Taken:
        """Writes everything, or an app, a user of it or a session of his, to a file of JSON Lines.

        `adk-eventstore import` takes it into any database. The same log gives the same bytes.

        Raises:
            InvalidInput: (a ValueError) a session without its user, or a user without an app.
            StreamNotFound: there is nothing of this app, user or session.
            PathUnusable: the file exists and `overwrite` was not given, or cannot be written.
            CorruptEvent: the log is damaged.
        """
        part = Part(app_name, user_id, session_id)
        return await asyncio.to_thread(export_log, self._store, path, part, overwrite=overwrite)

    @observed
    async def session_as(
        self, app_name: str, user_id: str, session_id: str, form: Form = "session"
    ) -> str:
        """A session as the JSON that ADK reads from files.

        "session" is for `adk run --resume`; "eval-set" for `adk eval` and `adk web`, an eval set
        with one case, which begins with the state that the session was created with.

        Raises:
            SessionNotFoundError: there is no such session.
            EvaluationMissing: ADK is installed without what an eval set needs.
            ValueNotStorable: ADK's JSON cannot hold a text or a number of it.
            ValueError: there is no such form.
        """
        if form not in get_args(Form):
            raise ValueError(f"form must be 'session' or 'eval-set', not {form!r}")
        key = session_key(app_name, user_id, session_id)
        with _adk_errors(key):
            return await exported(self._store, key, form)

    @observed
    async def usage(
        self,
        app_name: str | None = None,
        user_id: str | None = None,
        *,
        since: date | str | None = None,
        until: date | str | None = None,
        by: Iterable[str] = ("day",),
    ) -> list[UsageRow]:
        """Tokens, calls, errors and latency, one row for each group: see projections.UsageRow.

        `by` names any of "app", "user", "day", "model" and "agent"; `since` and `until` are UTC
        days, both inclusive. Counting is off until it is enabled, by
        `projections=[UsageProjection()]` or by a command. What was appended before this call is in
        the numbers: what the background has not counted yet is counted first, in a thread.

        Raises:
            ProjectionMissing: counting was never enabled for this database.
            MaintenanceRunning: what is there is to be counted for the first time, and for 30 s
                somebody else was at maintenance.
            InvalidInput: (a ValueError) no such day or group.
        """
        wanted = (*installed.asynchronous(), *self._given)
        enable = any(isinstance(projection, UsageProjection) for projection in wanted)
        return await asyncio.to_thread(
            usage, self._store, app_name, user_id, since=since, until=until, by=by, enable=enable
        )

    async def aclose(self) -> None:
        """Commits what was handed over and lets go of the file. Safe to call twice."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._telemetry.close()
        if self._follower is not None:
            self._follower.stop()
        self._store.close()

    close = aclose

    async def __aenter__(self) -> DatabaseSessionService:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def session_key(
    app_name: str, user_id: str, session_id: str | None, *, generate: bool = False
) -> StreamKey:
    """The stream of a session, whose id may be surrounded by blanks, as in ADK.

    Raises:
        InvalidIdentifier: one of the three cannot be an id.
    """
    check_identifier("app_name", app_name)
    check_identifier("user_id", user_id)
    if session_id is not None:
        session_id = check_identifier("session_id", session_id).strip()
    if generate:
        session_id = session_id or new_uuid()
    return StreamKey(StreamKind.SESSION, app_name, user_id, session_id or "")


async def _in_steps(function: Callable[[Progress], T]) -> T:
    """Runs work in a thread that ends behind its next step when nobody waits for it any more."""
    cancelled = threading.Event()

    def progress(*_: int) -> None:
        if cancelled.is_set():
            raise InterruptedError

    try:
        return await asyncio.to_thread(function, progress)
    except asyncio.CancelledError:
        cancelled.set()
        raise


def _move_temporary_keys(session: AdkSession, event: Event) -> None:
    """Takes the `temp:` keys of an event's delta into the live session, and out of the event."""
    delta = event.actions.state_delta or {}
    temporary = [k for k in delta if isinstance(k, str) and k.startswith(State.TEMP_PREFIX)]
    if temporary:
        for key in delta:
            check_identifier("a state key", key)
        session.state.update({key: delta[key] for key in temporary})
        event.actions.state_delta = {k: v for k, v in delta.items() if k not in temporary}


def _corrupt(loaded: Loaded, damaged: Sequence[CorruptEvent]) -> list[CorruptEvent]:
    found = list(damaged)
    for event in loaded.events:
        try:
            decode_event(event)
        except CorruptEvent as error:
            found.append(error)
    return sorted(found, key=lambda error: error.version)


async def exported(store: EventStore, key: StreamKey, form: Form) -> str:
    """A session of a store as the JSON that ADK reads from files.

    Raises:
        StreamNotFound: there is no such session.
        EvaluationMissing, ValueNotStorable: as `DatabaseSessionService.session_as`.
    """
    session = await store.load(key, Window(), _session)
    state = await store.read(key, initial_state)
    if session is None or state is None:
        raise StreamNotFound(str(key), "Name another.")
    return as_session_file(session) if form == "session" else as_eval_set(session, state)


def _session(loaded: Loaded) -> Session:
    """Makes the ADK session of a snapshot. Called on any thread."""
    return _made(loaded, [decode_event(event) for event in loaded.events])


def _unread_session(loaded: Loaded) -> Session:
    """As `_session`; events of which nothing can go wrong are made at their first use.

    Not very many: whoever looks first, on the thread of a loop, makes them all.
    """
    events = loaded.events
    if not events or len(events) > _UNREAD_MAX or not is_ours(events):
        return _session(loaded)
    return unread(_made(loaded, []), len(events), lambda: [decode_event(event) for event in events])


def _made(loaded: Loaded, events: list[Event]) -> Session:
    stream = loaded.stream
    if not (rows := [row for row in loaded.rows["sessions"] if row[0] == stream.id]):
        raise ProjectionMissing(
            "sessions", f"it has no row of {stream.key}", "Run: rebuild-projections"
        )
    state = state_by_owner(loaded.rows["state"])
    scopes = {scope: state.get(owner, {}) for scope, owner in stream.owners.items()}
    # The values come from this package and from ADK's own models: nothing to validate again.
    return make_session(
        {
            "id": stream.key.session_id,
            "app_name": stream.key.app_name,
            "user_id": stream.key.user_id,
            "state": merge_scopes(scopes),
            "events": events,
            "last_update_time": rows[0][2],
        },
        marker(stream.id, stream.conversation_version),
    )


@contextmanager
def _adk_errors(key: StreamKey) -> Iterator[None]:
    """Raises ADK's own errors where ADK has one, as its callers expect."""
    try:
        yield
    except EventStoreError as error:
        _raise_adks(error, key)


def _raise_adks(error: EventStoreError, key: StreamKey) -> NoReturn:
    """Raises ADK's error for one of the store's, or that one where ADK has none."""
    match error:
        case StreamExists():
            raise AlreadyExistsError(f"Session with id {key.session_id} already exists.") from error
        case EventIdConflict():
            raise AlreadyExistsError(str(error)) from error
        case StreamNotFound():
            raise SessionNotFoundError(f"Session {key.session_id} not found.") from error
        case WrongExpectedVersion():
            raise StaleSessionError(str(error)) from error
    raise error

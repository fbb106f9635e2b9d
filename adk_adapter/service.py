"""The session service: ADK's interface over the event store."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date
from functools import partial
from types import TracebackType
from typing import Any, Literal

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
    set_marker,
)
from adk_adapter.codec import (
    decode_event,
    encode_event,
    encode_state,
    merge_scopes,
    rewind_delta,
    split_scopes,
)
from adk_adapter.flights import Flights, marker
from adk_adapter.session import ListSessionsResponse, Session
from eventstore import (
    CorruptRow,
    Durability,
    EventIdConflict,
    EventType,
    InvalidInput,
    Loaded,
    Projection,
    ProjectionMissing,
    Row,
    StreamExists,
    StreamKey,
    StreamKind,
    StreamNotFound,
    Window,
    WrongExpectedVersion,
    check_identifier,
    open_store,
)
from eventstore.encoding import decode_value
from projections import (
    Anchor,
    Follower,
    UsageProjection,
    UsageRow,
    Verified,
    installed,
    scavenge,
    usage,
    verify,
)

__all__ = ["DatabaseSessionService"]

_log = logging.getLogger(__name__)


class DatabaseSessionService(BaseSessionService):
    """ADK sessions that survive restarts, kept as an append-only log in a SQLite file.

    A drop-in for ADK's InMemorySessionService, SqliteSessionService and DatabaseSessionService.
    With no argument the file is `$ADK_SESSION_DB`, else data_science/db/adk.sqlite3 below the
    working directory; missing folders are made. A path or a `sqlite:` URL may be given first, or
    as `db_url`, `db_path` or `uri`. ":memory:" is a private temporary file, gone at close.
    `agents_dir`, which ADK's service registry passes, is accepted and has no effect.

    `durability` says what an acknowledged write survives: "normal" every end of the process, a
    power cut may take the last writes but never the file; "full" the power cut too.

    `on_stale` says what becomes of an event for a session to which somebody else has appended since
    it was loaded. "raise", as in ADK, refuses it. "merge" appends it behind theirs and brings the
    live session up to date with the events it missed, in place: state keys are merged key by key,
    the last writer wins. A compaction or a rewind is refused all the same, for it was computed
    from a history that has moved on, and so is a session that carries no revision (restored from
    JSON) or was deleted meanwhile.

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
        projections: Sequence[Projection] = (),
    ) -> None:
        if on_stale not in ("raise", "merge"):
            raise ValueError(f"on_stale must be 'raise' or 'merge', not {on_stale!r}")
        given = [target for target in (path, db_url, db_path, uri) if target is not None]
        if len(given) > 1:
            raise TypeError("pass one of path, db_url, db_path and uri, not several")
        self._inline = installed.inline()
        self._given = tuple(projections)
        installed.distinct((*self._inline, *installed.asynchronous(), *self._given))
        target = given[0] if given else None
        self._store = open_store(target, self._inline, durability=durability)
        self._follower: Follower | None = None
        try:
            asynchronous = self._following()
        except BaseException:
            self._store.close()
            raise
        if asynchronous:
            self._follower = Follower(self._store, asynchronous)
            self._follower.ensure_running()
        self._merge = on_stale == "merge"
        self._flights = Flights()
        _log.info("sessions are kept in %s", self._store.path)

    def _following(self) -> tuple[Projection, ...]:
        return installed.following(self._store, self._given)

    def _paused(self) -> AbstractContextManager[None]:
        return nullcontext() if self._follower is None else self._follower.paused()

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
        key = _session_key(app_name, user_id, session_id, generate=True)
        event = encode_state(EventType.SESSION_CREATED, state or {}, get_time())
        with _adk_errors(key):
            return _session(await self._store.create(key, event))

    async def get_session(
        self,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Loads a session as one snapshot; None when there is none.

        Raises:
            CorruptEvent: a stored event is not what was written.
        """
        if session_id is None:
            return None
        key = _session_key(app_name, user_id, session_id)
        # ADK takes 0.0 and everything before it as no filter.
        since = config.after_timestamp if config else None
        window = Window(config.num_recent_events if config else None, since or None)
        return await self._store.load(key, window, _session)

    async def list_sessions(
        self, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """All sessions of an app, or of one of its users, without events, last changed last."""
        check_identifier("app_name", app_name)
        if user_id is not None:
            check_identifier("user_id", user_id)
        sessions = await self._store.load_sessions(app_name, user_id, _session)
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse.model_construct(sessions=sessions)

    async def delete_session(self, app_name: str, user_id: str, session_id: str) -> None:
        """Deletes a session; nothing happens when there is none. Its `app:`/`user:` keys stay."""
        key = _session_key(app_name, user_id, session_id)
        await self._store.delete(key, encode_state(EventType.SESSION_DELETED, {}, get_time()))

    async def get_user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """The keys a user has in an app, without their `user:` prefix."""
        check_identifier("app_name", app_name)
        check_identifier("user_id", user_id)
        rows = await self._store.load_rows(StreamKey(StreamKind.USER, app_name, user_id), "state")
        return {str(key): _value(str(key), str(value)) for _, key, value, _ in rows}

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
        key = _session_key(session.app_name, session.user_id, session.id)
        actions = event.actions
        if actions.rewind_before_invocation_id and not is_restored(event):
            await self._correct_rewind(key, event, actions.rewind_before_invocation_id)
        new_event = encode_event(event)
        # A compaction or a rewind says something about the history it was computed from.
        merge = self._merge and not (actions.compaction or actions.rewind_before_invocation_id)
        flight = self._flights.board(session)
        try:
            future = self._store.append(
                key,
                new_event,
                flight.cursor,
                merge=decode_event if merge else None,
                on_outcome=lambda appended: flight.outcomes.append((event, appended)),
                on_done=lambda: self._flights.land(flight),
            )
        except BaseException:
            flight.outcomes.append((event, None))
            self._flights.land(flight)
            raise
        with _adk_errors(key):
            await future
        return event

    async def _correct_rewind(self, key: StreamKey, event: Event, invocation_id: str) -> None:
        """Puts the delta that leads back to the state before an invocation into a rewind event."""
        compute = partial(rewind_delta, event_id=event.id, invocation_id=invocation_id)
        delta = await self._store.read(key, compute)
        if delta is not None:
            shared = split_scopes(event.actions.state_delta)
            event.actions.state_delta = merge_scopes({**shared, "session": delta})

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
        key = _session_key(app_name, user_id, session_id)
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

    async def flush(self) -> None:
        """Returns when every append handed over before is committed, cancelled ones included."""
        await self._store.barrier()

    def get_stats(self) -> dict[str, Any]:
        """Facts about the database; blocks for the time of one read.

        Keys: sessions, events, state_keys (counts), head (position of the last event), path,
        db_size_mb, wal_size_mb, schema_version, projections, durability, sqlite_version.
        """
        stats = self._store.stats()
        return {"sessions": stats.pop("sessions"), "state_keys": stats.pop("state"), **stats}

    def vacuum(self) -> dict[str, int]:
        """Removes the events of deleted sessions and gives their space back; blocks.

        Keys of the result: sessions, events, keys_carried_over, bytes_freed.
        """
        with self._paused():
            scavenged = scavenge(self._store, self._inline, self._following())
        return {**scavenged._asdict(), "bytes_freed": self._store.shrink()}

    async def verify(self, *, since: int = 0, against: Anchor | None = None) -> Verified:
        """Recomputes the tables from the log, proves the log itself, and says what differs.

        `since` checks only the events behind a position, and the rows they touched; `against` that
        the log still has the history an anchor knows. Appends go on meanwhile.

        Raises:
            MaintenanceRunning: a rebuild, a vacuum or another verification is under way.
        """

        def function() -> Verified:
            following = self._following()
            with self._paused():
                return verify(self._store, self._inline, following, since=since, against=against)

        return await asyncio.to_thread(function)

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


def _session_key(
    app_name: str, user_id: str, session_id: str | None, *, generate: bool = False
) -> StreamKey:
    check_identifier("app_name", app_name)
    check_identifier("user_id", user_id)
    if session_id is not None:
        session_id = check_identifier("session_id", session_id).strip()
    if generate:
        session_id = session_id or new_uuid()
    return StreamKey(StreamKind.SESSION, app_name, user_id, session_id or "")


def _move_temporary_keys(session: AdkSession, event: Event) -> None:
    """Takes the `temp:` keys of an event's delta into the live session, and out of the event."""
    delta = event.actions.state_delta or {}
    temporary = {
        k: v
        for k, v in delta.items()
        if check_identifier("a state key", k).startswith(State.TEMP_PREFIX)
    }
    if temporary:
        session.state.update(temporary)
        event.actions.state_delta = {k: v for k, v in delta.items() if k not in temporary}


def _session(loaded: Loaded) -> Session:
    """Makes the ADK session of a snapshot. Called on any thread."""
    stream = loaded.stream
    if not (rows := [row for row in loaded.rows["sessions"] if row[0] == stream.id]):
        raise ProjectionMissing(
            "sessions", f"it has no row of {stream.key}", "Run: rebuild-projections"
        )
    # The values come from this package and from ADK's own models: nothing to validate again.
    session = Session.model_construct(
        id=stream.key.session_id,
        app_name=stream.key.app_name,
        user_id=stream.key.user_id,
        state=_state(stream.owners, loaded.rows["state"]),
        events=[decode_event(event) for event in loaded.events],
        last_update_time=rows[0][2],
    )
    set_marker(session, marker(stream.id, stream.conversation_version))
    return session


def _state(owners: Mapping[str, int], rows: Sequence[Row]) -> dict[str, Any]:
    scopes: dict[int, dict[str, Any]] = {owner: {} for owner in owners.values()}
    for owner, key, value, _ in rows:
        scopes[int(owner)][str(key)] = _value(str(key), str(value))
    return merge_scopes({scope: scopes[owner] for scope, owner in owners.items()})


def _value(key: str, text: str) -> Any:
    try:
        return decode_value(text)
    except ValueError:
        raise CorruptRow("state", f"holds no JSON (key {key!r})") from None


@contextmanager
def _adk_errors(key: StreamKey) -> Iterator[None]:
    """Raises ADK's own errors where ADK has one, as its callers expect."""
    try:
        yield
    except StreamExists as error:
        raise AlreadyExistsError(f"Session with id {key.session_id} already exists.") from error
    except EventIdConflict as error:
        raise AlreadyExistsError(str(error)) from error
    except StreamNotFound as error:
        raise SessionNotFoundError(f"Session {key.session_id} not found.") from error
    except WrongExpectedVersion as error:
        raise StaleSessionError(str(error)) from error

"""From one of ADK's services to this one while users are on: each session moves when it is touched.

Reads look here first and at the old service for what is not here yet; writes go here only. A
session is taken over whole, in one transaction that also notes it, so it happens once, whichever
process touches it first, and what is deleted here does not come back from there. The keys of an app
and of a user are taken before the first of its sessions. The old service is only read.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from google.adk.events import Event
from google.adk.sessions import BaseSessionService
from google.adk.sessions import Session as AdkSession
from google.adk.sessions.base_session_service import GetSessionConfig

from adk_adapter._adk import SessionNotFoundError
from adk_adapter.codec import merge_scopes
from adk_adapter.exports import Form
from adk_adapter.history import StoredEvent
from adk_adapter.imports.found import OwnerState
from adk_adapter.imports.services import apps_of, found_in, owners_of, prepare_from
from adk_adapter.imports.writing import has_owner, is_taken, take_owner_state, take_session
from adk_adapter.service import DatabaseSessionService, session_key
from adk_adapter.session import ListSessionsResponse, Session
from eventstore import InvalidIdentifier, InvalidInput, StreamKey, StreamKind
from projections.retention import Erased
from projections.transfer import Taken

__all__ = ["MigratingSessionService"]

_log = logging.getLogger(__name__)


class MigratingSessionService(DatabaseSessionService):
    """A DatabaseSessionService that takes over the sessions of an old service one by one.

        old = SqliteSessionService("old.db")
        session_service = MigratingSessionService("sessions.db", old=old)

    `old` is any of ADK's services, or one of your own. It is asked for what is not here, and
    never written to. All else is as in DatabaseSessionService, whose arguments it takes. What is
    never touched is taken by `adk-eventstore import`, or by `import_from(old)`; then the plain
    service does.

    Processes that still write to the old service are not seen: once a session was touched here,
    what they append to it is taken by a later import only when nothing was appended here.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        old: BaseSessionService,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self._old: Final = old
        self._owners: set[StreamKey] = set()
        """Apps and users whose keys were taken over, as far as this process has looked."""

    async def create_session(
        self,
        app_name: str,
        user_id: str,
        session_id: str | None = None,
        state: dict[str, Any] | None = None,
    ) -> Session:
        """As in DatabaseSessionService; an id that the old service has is taken, too."""
        if session_id is not None and session_id.strip():
            await self._take_over(app_name, user_id, session_id)
        else:
            await self._take_owners(app_name, user_id)
        return await super().create_session(app_name, user_id, session_id, state)

    async def get_session(
        self,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        session = await super().get_session(app_name, user_id, session_id, config)
        if session is not None or session_id is None:
            return session
        if not await self._take_over(app_name, user_id, session_id):
            return None
        return await super().get_session(app_name, user_id, session_id, config)

    async def list_sessions(
        self, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """The sessions that are here and those that are still in the old service, which stay there.

        Keys of users and apps are as they are here. A session with an id that no store can hold is
        logged and left out.
        """
        listed = await self._old.list_sessions(app_name=app_name, user_id=user_id)
        there: dict[StreamKey, AdkSession] = {}
        for each in listed.sessions:
            try:
                there[session_key(each.app_name, each.user_id, each.id)] = each
            except InvalidIdentifier as error:
                _log.warning("left out session %r of user %r: %s", each.id, each.user_id, error)
        users = {key.user_id for key in there}
        for owner in users if user_id is None else {user_id}:
            await self._take_owners(app_name, owner)
        # In this order: one that is taken over meanwhile is in the second, and not in neither.
        taken = await asyncio.to_thread(
            self._store.snapshot, lambda s: {key for key in there if is_taken(s, key)}
        )
        here = await super().list_sessions(app_name, user_id)
        taken |= {session_key(each.app_name, each.user_id, each.id) for each in here.sessions}
        shared = {owner: await self._shared_state(app_name, owner) for owner in users}
        sessions = list(here.sessions)
        for key, each in there.items():
            if key not in taken:
                state = {**(found_in(each).state or {}), **shared[each.user_id]}
                sessions.append(
                    Session.model_construct(
                        id=key.session_id,
                        app_name=app_name,
                        user_id=each.user_id,
                        state=state,
                        events=[],
                        last_update_time=each.last_update_time,
                    )
                )
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse.model_construct(sessions=sessions)

    async def delete_session(self, app_name: str, user_id: str, session_id: str) -> None:
        """As in DatabaseSessionService; in the old service the session stays, and is not seen."""
        await self._take_over(app_name, user_id, session_id)
        await super().delete_session(app_name, user_id, session_id)

    async def get_user_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """As in DatabaseSessionService."""
        await self._take_owners(app_name, user_id)
        return await super().get_user_state(app_name, user_id)

    async def append_event(self, session: AdkSession, event: Event) -> Event:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        try:
            return await super().append_event(session, event)
        except SessionNotFoundError:
            if not await self._take_over(session.app_name, session.user_id, session.id):
                raise
        return await super().append_event(session, event)

    async def update_keys(
        self, app_name: str, user_id: str, session_id: str, keys: Mapping[str, Any]
    ) -> dict[str, Any]:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        try:
            return await super().update_keys(app_name, user_id, session_id, keys)
        except SessionNotFoundError:
            if not await self._take_over(app_name, user_id, session_id):
                raise
        return await super().update_keys(app_name, user_id, session_id, keys)

    async def set_title(
        self, app_name: str, user_id: str, session_id: str, title: str | None
    ) -> None:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        await self._take_over(app_name, user_id, session_id)
        await super().set_title(app_name, user_id, session_id, title)

    async def set_labels(
        self, app_name: str, user_id: str, session_id: str, labels: Mapping[str, str | None]
    ) -> dict[str, str]:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        await self._take_over(app_name, user_id, session_id)
        return await super().set_labels(app_name, user_id, session_id, labels)

    async def iter_events(
        self,
        app_name: str,
        user_id: str,
        session_id: str,
        *,
        after_version: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[StoredEvent]:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        await self._take_over(app_name, user_id, session_id)
        events = super().iter_events(
            app_name, user_id, session_id, after_version=after_version, limit=limit
        )
        async for event in events:
            yield event

    async def session_as(
        self, app_name: str, user_id: str, session_id: str, form: Form = "session"
    ) -> str:
        """As in DatabaseSessionService; a session that is not here yet is taken over first."""
        await self._take_over(app_name, user_id, session_id)
        return await super().session_as(app_name, user_id, session_id, form)

    async def export(
        self,
        path: str | os.PathLike[str],
        app_name: str | None = None,
        user_id: str | None = None,
        session_id: str | None = None,
        *,
        overwrite: bool = False,
    ) -> Taken:
        """As in DatabaseSessionService; a session that is named is taken over first.

        Of an app, a user or everything there is in it what was taken over before.
        """
        if app_name is not None and user_id is not None and session_id is not None:
            await self._take_over(app_name, user_id, session_id)
        return await super().export(path, app_name, user_id, session_id, overwrite=overwrite)

    async def erase_user(
        self, user_id: str, app_name: str | None = None, *, rewrite: bool | None = None
    ) -> Erased:
        """As in DatabaseSessionService, once the old service has no session of the user.

        In all apps only where the old service can name its own: an InMemorySessionService can.

        Raises:
            InvalidInput: (a ValueError) it has: what is erased here would come over once more; or
                `app_name` is missing, and it cannot name its apps.
        """
        apps = apps_of(self._old) if app_name is None else [app_name]
        if apps is None:
            raise InvalidInput(
                "The old service cannot say in which apps it has sessions of this user: name the "
                "app, and erase the user in one after the other."
            )
        for app in apps:
            listed = await self._old.list_sessions(app_name=app, user_id=user_id)
            if listed.sessions:
                raise InvalidInput(
                    "The old service has sessions of this user, and what is erased here would come "
                    "over once more. Delete them there first."
                )
        return await super().erase_user(user_id, app_name, rewrite=rewrite)

    async def _take_over(self, app_name: str, user_id: str, session_id: str) -> bool:
        """Takes a session over, unless it was before. Returns whether it is here now."""
        key = session_key(app_name, user_id, session_id)
        if await asyncio.to_thread(self._store.snapshot, lambda s: is_taken(s, key)):
            return True
        session = None
        # Not every service strips ids.
        for name in dict.fromkeys((session_id, key.session_id)):
            session = session or await self._old.get_session(
                app_name=app_name, user_id=user_id, session_id=name
            )
        if session is None:
            await self._take_owners(app_name, user_id)
            return False
        await self._write_owners(owners_of(session, set()))
        with await asyncio.to_thread(prepare_from, session) as prepared:
            fate, events = await asyncio.to_thread(
                self._store.transact, lambda transaction: take_session(transaction, prepared)
            )
            for each in prepared.left_out:
                _log.warning("could not take over %s: %s", each.event_id or key, each.reason)
        if fate == "taken":
            _log.info("took over a session of %d events", events)
        return fate != "deleted"

    async def _take_owners(self, app_name: str, user_id: str) -> None:
        """Takes the keys of an app and a user over, unless they were before."""
        app = StreamKey(StreamKind.APP, app_name)
        user = StreamKey(StreamKind.USER, app_name, user_id)
        if {app, user} <= self._owners:
            return
        missing = await asyncio.to_thread(
            self._store.snapshot, lambda s: {key for key in (app, user) if not has_owner(s, key)}
        )
        owners: list[OwnerState] = []
        if missing:
            # No service says an app's keys but in the state of a session.
            listed = await self._old.list_sessions(app_name=app_name, user_id=user_id)
            if not listed.sessions and app in missing:
                listed = await self._old.list_sessions(app_name=app_name)
            for each in listed.sessions[:1]:
                owners = [owner for owner in owners_of(each, set()) if owner.user_id is None]
            for each in (each for each in listed.sessions if each.user_id == user_id):
                owners = owners_of(each, set())
                break
            if not any(owner.user_id == user_id for owner in owners):
                owners.append(
                    OwnerState(app_name, user_id, await self._old_user(app_name, user_id))
                )
            if not any(owner.user_id is None for owner in owners):
                owners.append(OwnerState(app_name, None, {}))
        await self._write_owners(owners)
        self._owners |= {app, user}

    async def _old_user(self, app_name: str, user_id: str) -> dict[str, Any]:
        if not hasattr(self._old, "get_user_state"):  # ADK before 2.3 has none
            return {}
        try:
            return await self._old.get_user_state(app_name=app_name, user_id=user_id)
        except NotImplementedError:
            return {}

    async def _write_owners(self, owners: list[OwnerState]) -> None:
        if owners:
            await asyncio.to_thread(
                self._store.transact,
                lambda transaction: [take_owner_state(transaction, owner) for owner in owners],
            )

    async def _shared_state(self, app_name: str, user_id: str) -> dict[str, Any]:
        """The keys of an app and a user as they are here, with their prefixes."""
        app = await self._owned_state(StreamKey(StreamKind.APP, app_name))
        user = await super().get_user_state(app_name, user_id)
        return merge_scopes({"app": app, "user": user})

"""Taking sessions from a living session service, through what every ADK service offers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.adk.sessions import BaseSessionService, InMemorySessionService, Session, State

from adk_adapter.codec import split_scopes
from adk_adapter.imports.found import FoundEvent, FoundSession, Imported, LeftOut, OwnerState
from adk_adapter.imports.running import note_fate, note_owners
from adk_adapter.imports.writing import Prepared, prepare, take_owner_state, take_session
from eventstore import EventStore, InvalidIdentifier

__all__ = ["apps_of", "found_in", "import_from_service", "owners_of", "prepare_from"]


async def import_from_service(
    store: EventStore, service: BaseSessionService, app_names: Iterable[str] | None = None
) -> Imported:
    """Takes the sessions of some apps of a service into a store, each in a transaction.

    An InMemorySessionService can say itself which apps it has; no other service can.

    Raises:
        ValueError: no apps are named, and the service cannot name them.
    """
    report = Imported(type(service).__name__, f"a living {type(service).__name__}")
    in_memory = service if isinstance(service, InMemorySessionService) else None
    if app_names is None and (app_names := apps_of(service)) is None:
        raise ValueError(f"a {report.source} cannot list its apps: pass app_names=[...]")
    if isinstance(app_names, str):
        app_names = (app_names,)
    for app_name in app_names:
        if in_memory is not None:
            await _take(store, _owners_in_memory(in_memory, app_name), report)
        listed = await service.list_sessions(app_name=app_name)
        known: set[str | None] = set()
        for each in listed.sessions:
            if in_memory is None and not {None, each.user_id} <= known:
                await _take(store, owners_of(each, known), report)
            session = await service.get_session(
                app_name=app_name, user_id=each.user_id, session_id=each.id
            )
            if session is not None:
                await _take_session(store, session, report)
    return report


def apps_of(service: BaseSessionService) -> list[str] | None:
    """The apps of a service, None for one that cannot name them."""
    if not isinstance(service, InMemorySessionService):
        return None
    return sorted({*service.sessions, *service.app_state, *service.user_state})


def _owners_in_memory(service: InMemorySessionService, app_name: str) -> list[OwnerState]:
    users = service.user_state.get(app_name, {})
    return [
        OwnerState(app_name, None, dict(service.app_state.get(app_name, {}))),
        *(OwnerState(app_name, user_id, dict(state)) for user_id, state in users.items()),
    ]


def owners_of(session: Session, known: set[str | None]) -> list[OwnerState]:
    """The keys of the app and the user of a session, unless they are known; then they are."""
    scopes = split_scopes(session.state)
    owners = [
        OwnerState(session.app_name, user_id, scopes.get(scope, {}))
        for scope, user_id in (("app", None), ("user", session.user_id))
        if user_id not in known
    ]
    known |= {None, session.user_id}
    return owners


async def _take(store: EventStore, owners: list[OwnerState], report: Imported) -> None:
    changes = await asyncio.to_thread(
        store.transact, lambda transaction: [take_owner_state(transaction, o) for o in owners]
    )
    note_owners(report, changes)


async def _take_session(store: EventStore, session: Session, report: Imported) -> None:
    try:
        prepared = await asyncio.to_thread(prepare_from, session)
    except InvalidIdentifier as error:
        key = session.app_name, session.user_id, session.id
        report.leave_out(LeftOut("sessions", *key, None, 0, str(error)))
        return
    with prepared:
        fate, events = await asyncio.to_thread(
            store.transact, lambda transaction: take_session(transaction, prepared)
        )
        note_fate(report, prepared, fate, events)


def prepare_from(session: Session) -> Prepared:
    """What is to be written of a session as a service returned it, with all its events.

    Raises:
        InvalidIdentifier: an id that no store can hold.
    """
    return prepare(found_in(session), _events(session))


def found_in(session: Session) -> FoundSession:
    """A session as a service returned it."""
    own: Mapping[str, Any] = {
        key: value
        for key, value in session.state.items()
        if not key.startswith((State.APP_PREFIX, State.USER_PREFIX, State.TEMP_PREFIX))
    }
    created = session.events[0].timestamp if session.events else session.last_update_time
    return FoundSession(
        session.app_name, session.user_id, session.id, created, session.last_update_time, own
    )


def _events(session: Session) -> Iterator[FoundEvent]:
    for event in session.events:
        yield FoundEvent(event.id, event, 0)

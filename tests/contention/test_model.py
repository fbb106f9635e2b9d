"""The service beside a model of it: any sequence of operations leaves both in the same state."""

from __future__ import annotations

import asyncio
import copy
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.adk.events import Event, EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adk_adapter import (
    AlreadyExistsError,
    DatabaseSessionService,
    SessionNotFoundError,
    StaleSessionError,
)
from projections import UsageProjection

APPS = st.sampled_from(["a", "b"])
USERS = st.sampled_from(["u", "v"])
IDS = st.sampled_from(["1", "2"])
KEYS = st.sampled_from(["k", "l", "user:k", "user:l", "app:k", "temp:t"])
VALUES = st.one_of(
    st.none(), st.integers(-9, 9), st.floats(allow_nan=False), st.text(max_size=3),
    st.lists(st.integers(0, 3), max_size=2),
)  # fmt: skip
DELTAS = st.dictionaries(KEYS, VALUES, max_size=3)
Key = tuple[str, str, str]
Scope = dict[str, Any]


@dataclass
class Stored:
    """One session of the model: what a service has to know of it."""

    own: Scope
    events: list[Event] = field(default_factory=list)
    states: list[Scope] = field(default_factory=list)
    """Its own keys before each event."""


@dataclass
class Held:
    """A live session, what it should be, and which of the model's sessions it was loaded from."""

    live: Any
    stored: Stored
    seen: int
    state: Scope
    events: list[Event]


def prefixed(prefix: str, scope: Scope) -> Scope:
    return {prefix + name: value for name, value in scope.items()}


def of(prefix: str, delta: Scope) -> Scope:
    return {k[len(prefix) :]: v for k, v in delta.items() if k.startswith(prefix)}


class ServiceMachine(RuleBasedStateMachine):
    """Two services on one file, one of which merges; restarted now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "model.sqlite3"
        self.loop = asyncio.new_event_loop()
        self.number = 0
        self.sessions: dict[Key, Stored] = {}
        self.users: dict[tuple[str, str], Scope] = {}
        self.apps: dict[str, Scope] = {}
        self.held: list[Held] = []
        self.services: list[DatabaseSessionService] = []

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    @initialize()
    def open(self) -> None:
        self.services = [
            DatabaseSessionService(self.path),
            DatabaseSessionService(self.path, on_stale="merge"),
        ]

    def teardown(self) -> None:
        for service in self.services:
            self.run(service.close())
        self.loop.close()
        self.folder.cleanup()

    # The model.

    def write(self, key: Key, delta: Scope) -> None:
        app, user, _ = key
        own = {k: v for k, v in delta.items() if not k.startswith(("app:", "user:", "temp:"))}
        self.sessions[key].own.update(own)
        self.users.setdefault((app, user), {}).update(of("user:", delta))
        self.apps.setdefault(app, {}).update(of("app:", delta))

    def state(self, key: Key) -> Scope:
        app, user, _ = key
        return {
            **self.sessions[key].own,
            **prefixed("user:", self.users.get((app, user), {})),
            **prefixed("app:", self.apps.get(app, {})),
        }

    # What is done.

    @rule(which=st.integers(0, 1), app=APPS, user=USERS, name=IDS, state=DELTAS)
    def create(self, which: int, app: str, user: str, name: str, state: Scope) -> None:
        key = (app, user, name)
        making = self.services[which].create_session(app, user, f" {name} ", state)
        if key in self.sessions:
            with pytest.raises(AlreadyExistsError):
                self.run(making)
            return
        live = self.run(making)
        self.sessions[key] = Stored({})
        self.write(key, state)
        self.hold(key, live, [])

    def hold(self, key: Key, live: Any, events: list[Event]) -> None:
        assert live.state == self.state(key)
        assert live.events == events
        stored = self.sessions[key]
        held = Held(live, stored, len(stored.events), dict(live.state), list(events))
        self.held = [*self.held[-5:], held]

    @rule(
        which=st.integers(0, 1), app=APPS, user=USERS, name=IDS,
        last=st.none() | st.integers(0, 4), since=st.none() | st.integers(0, 30),
    )  # fmt: skip
    def get(
        self, which: int, app: str, user: str, name: str, last: int | None, since: int | None
    ) -> None:
        key = (app, user, name)
        config = GetSessionConfig(num_recent_events=last, after_timestamp=since)
        live = self.run(self.services[which].get_session(app, user, name, config))
        if key not in self.sessions:
            assert live is None
            return
        events = [e for e in self.sessions[key].events if not since or e.timestamp >= since]
        self.hold(
            key, live, events if last is None else events[len(events) - min(last, len(events)) :]
        )

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 1), index=st.integers(0, 5), delta=DELTAS, other_time=st.booleans(),
        again=st.booleans(),
    )  # fmt: skip
    def append(self, which: int, index: int, delta: Scope, other_time: bool, again: bool) -> None:
        self.number += 1
        timestamp = float(self.number % 7 if other_time else self.number)
        event = Event(
            id=f"e{self.number}", author="a", invocation_id=f"i{self.number}", timestamp=timestamp,
            actions=EventActions(state_delta=dict(delta)),
        )  # fmt: skip
        held = self.held[index % len(self.held)]
        if self.try_append(which, held, event) and again:
            # As one does that was cancelled: the same once more, also from elsewhere.
            self.run(self.services[1 - which].append_event(held.live, event))
            self.compare(held)

    def try_append(self, which: int, held: Held, event: Event) -> bool:
        delta = dict(event.actions.state_delta)
        held.state.update({k: v for k, v in delta.items() if k.startswith("temp:")})
        key = (held.live.app_name, held.live.user_id, held.live.id)
        appending = self.services[which].append_event(held.live, event)
        stored = self.sessions.get(key)
        if stored is None:
            with pytest.raises(SessionNotFoundError):
                self.run(appending)
        elif stored is not held.stored or (which == 0 and held.seen != len(stored.events)):
            with pytest.raises(StaleSessionError):
                self.run(appending)
        else:
            assert self.run(appending) is event
            missed = stored.events[held.seen :]
            stored.states.append(dict(stored.own))
            stored.events.append(event)
            self.write(key, delta)
            for each in (*missed, event):
                held.state.update(each.actions.state_delta)
                held.events.append(each)
            held.seen = len(stored.events)
            assert held.live.last_update_time == event.timestamp
            self.compare(held)
            return True
        self.compare(held)
        return False

    def compare(self, held: Held) -> None:
        assert held.live.state == held.state
        assert held.live.events == held.events

    @precondition(lambda self: any(h.stored.events for h in self.held))
    @rule(index=st.integers(0, 5), back=st.integers(0, 9))
    def rewind(self, index: int, back: int) -> None:
        rewindable = [h for h in self.held if h.stored.events]
        held = rewindable[index % len(rewindable)]
        key = (held.live.app_name, held.live.user_id, held.live.id)
        stored = held.stored
        if self.sessions.get(key) is not stored or held.seen != len(stored.events):
            return
        number = back % len(stored.events)
        if stored.events[number].actions.rewind_before_invocation_id:
            return
        before = stored.states[number]
        changed = {
            k: before.get(k) for k, v in stored.own.items() if k not in before or before[k] != v
        }
        self.number += 1
        actions = EventActions(rewind_before_invocation_id=stored.events[number].invocation_id)
        event = Event(
            id=f"e{self.number}", author="a", invocation_id=f"i{self.number}",
            timestamp=float(self.number), actions=actions,
        )  # fmt: skip
        self.run(self.services[0].append_event(held.live, event))
        stored.states.append(dict(stored.own))
        stored.events.append(event)
        stored.own.update(changed)
        held.state.update(event.actions.state_delta)
        held.events.append(event)
        held.seen += 1
        self.compare(held)

    @rule(
        which=st.integers(0, 1), app=APPS, user=USERS, name=IDS,
        keys=DELTAS.map(lambda d: {k: v for k, v in d.items() if not k.startswith("temp:")}),
    )  # fmt: skip
    def update_keys(self, which: int, app: str, user: str, name: str, keys: Scope) -> None:
        key = (app, user, name)
        updating = self.services[which].update_keys(app, user, name, keys)
        if key not in self.sessions:
            with pytest.raises(SessionNotFoundError):
                self.run(updating)
            return
        returned = self.run(updating)
        self.write(key, keys)
        assert returned == self.state(key)

    @rule(which=st.integers(0, 1), app=APPS, user=USERS, name=IDS)
    def delete(self, which: int, app: str, user: str, name: str) -> None:
        self.run(self.services[which].delete_session(app, user, name))
        self.sessions.pop((app, user, name), None)

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 5))
    def copy(self, index: int) -> None:
        held = self.held[index % len(self.held)]
        live, events = copy.deepcopy(held.live), list(held.events)
        self.held = [*self.held[-5:], Held(live, held.stored, held.seen, dict(held.state), events)]

    @rule(which=st.integers(0, 1))
    def vacuum(self, which: int) -> None:
        self.services[which].vacuum()

    @rule(which=st.integers(0, 1))
    def verify(self, which: int) -> None:
        assert self.run(self.services[which].verify()).clean

    @rule(which=st.integers(0, 1))
    def back_up(self, which: int) -> None:
        target = self.path.with_name("copy.sqlite3")
        self.run(self.services[which].backup(target, overwrite=True))
        copied = DatabaseSessionService(target)
        self.agree(copied)
        self.run(copied.close())

    @rule()
    def restart(self) -> None:
        for service in self.services:
            self.run(service.close())
        self.open()

    @rule()
    def count_usage(self) -> None:
        counting = DatabaseSessionService(self.path, projections=[UsageProjection()])
        self.run(counting.usage())
        self.run(counting.close())

    # What must be so after each step.

    @invariant()
    def same(self) -> None:
        if self.services:
            self.agree(self.services[self.number % 2])

    def agree(self, service: DatabaseSessionService) -> None:
        for app in ("a", "b"):
            listed = self.run(service.list_sessions(app_name=app))
            assert {(s.app_name, s.user_id, s.id): s.state for s in listed} == {
                key: self.state(key) for key in self.sessions if key[0] == app
            }
            for user in ("u", "v"):
                state = self.run(service.get_user_state(app, user))
                assert state == self.users.get((app, user), {})
        for key, stored in self.sessions.items():
            loaded = self.run(service.get_session(*key))
            assert [e.id for e in loaded.events] == [e.id for e in stored.events]
            assert loaded.events == stored.events
            assert loaded.state == self.state(key)


TestServiceMachine = ServiceMachine.TestCase
TestServiceMachine.settings = settings(
    max_examples=16,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

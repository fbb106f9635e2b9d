"""Fills ADK's own services in bulk, with sessions like those that prefill.py writes.

One session is written through the service itself, and its rows are copied by SQL: ADK's tables take
an event again in another session. The service in memory gets the same event objects in each.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from google.adk.sessions import BaseSessionService, InMemorySessionService, Session

from benchmarks.events import event_stream, light_events
from benchmarks.prefill import APP, NAMED_USER, Load, session_id, user_of

_TEMPLATE = "template"
_TEMPLATE_EVENTS = 40
_DISTINCT_EVENTS = 5_000
"""A longer session in memory has the same objects several times."""

_MAKE_TARGETS = "CREATE TEMP TABLE target (user_id TEXT, session_id TEXT, events INTEGER)"
_MAKE_SOURCES = """
    CREATE TEMP TABLE source AS
    SELECT row_number() OVER (ORDER BY rowid) AS number, * FROM events WHERE session_id = ?"""
_COPY_EVENTS = """
    WITH RECURSIVE rounds (round) AS (
      SELECT 0
      UNION ALL
      SELECT round + 1 FROM rounds WHERE round < (SELECT max(events) FROM target) / :length
    )
    INSERT INTO events ({columns})
    SELECT {values}
    FROM target
    JOIN rounds ON round * :length < target.events
    JOIN source ON round * :length + number <= target.events"""
_COPY_SESSIONS = """
    INSERT INTO sessions ({columns})
    SELECT {values} FROM target JOIN sessions AS source ON source.id = ?
    WHERE target.user_id <> source.user_id"""
_COPY_USERS = """
    INSERT INTO user_states ({columns})
    SELECT DISTINCT {values} FROM target JOIN user_states AS source ON source.user_id = ?
    WHERE target.user_id <> source.user_id"""


async def fill_peer(service: BaseSessionService, path: Path, load: Load) -> None:
    """Writes the sessions of a load into one of ADK's services, which have none yet."""
    template = await _create(service, _TEMPLATE, load.keys)
    for event in itertools.islice(light_events(), _TEMPLATE_EVENTS):
        await service.append_event(template, event)
    for name, shape in load.named.items():
        await _create(service, name, shape.keys)
    if isinstance(service, InMemorySessionService):
        _fill_memory(service, template, load)
        return
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -262144")
        connection.execute(_MAKE_TARGETS)
        connection.executemany("INSERT INTO target VALUES (?, ?, ?)", _targets(load))
        connection.execute(_MAKE_SOURCES, (_TEMPLATE,))
        own = {"user_id": "target.user_id", "id": "target.session_id"}
        _copy(connection, _COPY_USERS, "user_states", own, (NAMED_USER,))
        _copy(connection, _COPY_SESSIONS, "sessions", own, (_TEMPLATE,))
        new = {
            "user_id": "target.user_id",
            "session_id": "target.session_id",
            "id": "source.id || '-' || round",
        }
        _copy(connection, _COPY_EVENTS, "events", new, {"length": _TEMPLATE_EVENTS})
        connection.commit()


async def _create(service: BaseSessionService, name: str, keys: int) -> Session:
    state = {f"key-{n:05d}": f"value {n}" for n in range(keys - 2)}
    return await service.create_session(
        app_name=APP,
        user_id=NAMED_USER,
        session_id=name,
        state={**state, "user:language": "en", "app:release": "1.4.2"},
    )


def _targets(load: Load) -> Iterator[tuple[str, str, int]]:
    """User, id and number of events of each session: unnamed ones have the same number."""
    for name, shape in load.named.items():
        yield NAMED_USER, name, shape.events
    for number in range(load.sessions):
        until = load.events * (number + 1) // load.sessions
        length = until - load.events * number // load.sessions
        yield user_of(number), session_id(load, number), length


def _copy(
    connection: sqlite3.Connection,
    statement: str,
    table: str,
    changed: dict[str, str],
    values: tuple[str, ...] | dict[str, int],
) -> None:
    """Copies whole rows, but for the changed columns."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    chosen = [changed.get(column, f"source.{column}") for column in columns]
    sql = statement.format(columns=", ".join(columns), values=", ".join(chosen))
    connection.execute(sql, values)


def _fill_memory(service: InMemorySessionService, template: Session, load: Load) -> None:
    """Stores sessions with events of their own, as far as a copy of the session copies them."""
    users = service.sessions[APP]
    own = {key: value for key, value in template.state.items() if ":" not in key}
    longest = max((length for *_, length in _targets(load)), default=0)
    stock = list(itertools.islice(event_stream(load.seed), min(longest, _DISTINCT_EVENTS)))
    for user, name, length in _targets(load):
        events = list(itertools.islice(itertools.cycle(stock), length))
        if user == NAMED_USER:
            users[user][name].events = events
            continue
        session = {"user_id": user, "id": name, "state": dict(own), "events": events}
        users.setdefault(user, {})[name] = template.model_copy(update=session)

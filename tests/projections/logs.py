"""Logs to test with: a projection that makes every kind of change, writers, and an attacker."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from eventstore import (
    Add,
    Change,
    Cursor,
    Delete,
    DeleteOwner,
    EventStore,
    EventType,
    MaintenanceRunning,
    Projection,
    Put,
    RecordedEvent,
    Row,
    StreamExists,
    StreamNotFound,
    Table,
    Update,
    Window,
    WrongExpectedVersion,
    open_store,
)
from eventstore.chain import digest, first_link, next_link
from eventstore.encoding import decode
from eventstore.events import StreamKey, StreamKind
from projections import BUILT_IN
from tests.eventstore.events import created, new_event, session
from tests.places import notes_beside, query

DO: Final = "do"
"""The key of a delta whose value says what Everything is to do."""


class Everything(Projection):
    """Counts events, and does what they say: [kind of change, name of the row, number]."""

    name = "everything"
    version = 1
    table = Table(
        "everything",
        key={"owner_id": "integer", "name": "text"},
        columns={"n": "integer", "said": "text", "weight": "real"},
    )

    def apply(self, event: RecordedEvent) -> Iterator[Change]:
        owners = event.stream.owners
        if "app" in owners:
            yield Add((owners["app"], "events"), {"n": 1})
        if event.stream.key.kind is not StreamKind.SESSION:
            return  # said by a session that was removed, and done already
        delta = {} if event.delta is None else decode(event.delta, event.encoding)
        for scope, members in delta.items():
            if isinstance(members.get(DO), list) and len(members[DO]) == 3:
                yield self._change(owners[scope], *members[DO])

    @staticmethod
    def _change(owner: int, kind: str, name: str, number: int) -> Change:
        key = (owner, name)
        match kind:
            case "put":
                return Put(key, (number, f"put {number}", number / 4))
            case "update":
                return Update(key, {"said": f"updated {number}", "weight": -number / 4})
            case "add":
                return Add(key, {"n": number})
            case "delete":
                return Delete(key)
            case _:
                return DeleteOwner(owner)


class Following(Everything):
    """The same behind the appends."""

    name = "following"
    table = Everything.table._replace(name="following")


INLINE: Final = (*BUILT_IN, Everything())
FOLLOWING: Final = (Following(),)


async def perform(store: EventStore, kind: str, name: tuple[str, str, str], delta: Any) -> None:
    key = session(*name)
    if kind == "create":
        await store.create(key, created(**delta))
    elif kind == "append":
        stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
        cursor = Cursor(stream.id, stream.conversation_version) if stream else Cursor(0, 0)
        await store.append(key, new_event(delta=delta, timestamp=len(name[0]) + 0.5), cursor)
    elif kind == "set":
        await store.set_state(key, new_event(EventType.STATE_SET, delta=delta))
    elif kind == "delete":
        await store.delete(key, new_event(EventType.SESSION_DELETED, delta=delta))


def perform_all(store: EventStore, operations: Iterable[tuple[str, Any, Any]]) -> None:
    async def work() -> None:
        for operation in operations:
            try:
                await perform(store, *operation)
            except (StreamExists, StreamNotFound, WrongExpectedVersion):
                continue

    asyncio.run(work())


def rows(store: EventStore, projections: Iterable[Projection] = BUILT_IN) -> dict[str, list[Row]]:
    return {
        p.name: store.snapshot(lambda s, p=p: s.table_page(p, None, 10**6)) for p in projections
    }


def attack(path: str | Path, *statements: str) -> None:
    """Changes what must not be changed, as somebody does who may write the file."""
    opened = "INSERT INTO maintenance VALUES (1, 'attack')"
    query(path, opened, *statements, "DELETE FROM maintenance")


def rewrite_history(path: Path, stream_id: int, change: str) -> None:
    """Changes the events of a stream, then makes every digest and link of it fit."""
    attack(path, change)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        kind, *names, nonce = connection.execute(
            "SELECT kind, app_name, user_id, session_id, nonce FROM streams WHERE id = ?",
            (stream_id,),
        ).fetchone()
        link = first_link(StreamKey(StreamKind(kind), *names), nonce)
        events = connection.execute(
            "SELECT position, event_id, type, schema_version, encoding, recorded_at, timestamp, "
            "author, invocation_id, fingerprint, CAST(delta AS BLOB), CAST(data AS BLOB) "
            "FROM events JOIN codecs ON id = codec WHERE stream_id = ? ORDER BY version",
            (stream_id,),
        ).fetchall()
        connection.execute("INSERT INTO maintenance VALUES (1, 'attack')")
        version = 0
        for version, (position, *fields, delta, data) in enumerate(events, 1):
            names = ("event_id", "event_type", "schema_version", "encoding", "recorded_at")
            names += ("timestamp", "author", "invocation_id", "codec")
            digests = digest(delta), digest(data)
            link = next_link(
                link,
                version=version,
                **dict(zip(names, fields, strict=True)),
                delta_digest=digests[0],
                data_digest=digests[1],
            )
            connection.execute(
                "UPDATE events SET version = ?, delta_digest = ?, data_digest = ?, chain = ? "
                "WHERE position = ?",
                (version, *digests, link, position),
            )
        connection.execute(
            "UPDATE streams SET chain = ?, version = ?, conversation_version = "
            "(SELECT coalesce(max(version), 0) FROM events WHERE stream_id = streams.id "
            " AND type IN ('session_created', 'adk_event')) WHERE id = ?",
            (link, version, stream_id),
        )
        connection.execute("DELETE FROM maintenance")


def acknowledgements(target: str | Path) -> dict[str, int]:
    """The last number that each writer was told is stored."""
    path = notes_beside(target)
    found = {}
    for file in path.parent.glob(f"{path.name}.*.acknowledged"):
        lines = file.read_text().splitlines()
        found[file.name.split(".")[-2]] = int(lines[-1]) if lines else 0
    return found


def write(path: str | Path, name: str, *, number: int = 0) -> None:
    """Writes numbers without an end, and notes in a file how far it was acknowledged.

    It keeps a session and a key of the app, makes and deletes other sessions that leave keys of
    the user behind, and looks after each write whether it can read what it wrote.
    """

    async def work(store: EventStore, number: int) -> None:
        key = session(name)
        stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
        if stream is None:
            stream = (await store.create(key, created(app={name: 0}))).stream
        while True:
            number += 1
            stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
            cursor = Cursor(stream.id, stream.conversation_version)
            delta = {"session": {"n": number, f"k{number % 40}": number}, "app": {name: number}}
            await store.append(key, new_event(delta=delta, timestamp=number), cursor)
            if number % 4 == 0:
                other = session(f"{name}-{number}")
                await store.create(other, created(user={f"{name}-{number % 12}": number}))
                await store.delete(other, new_event(EventType.SESSION_DELETED))
            os.write(note, b"%d\n" % number)
            state = await store.load(key, Window(last=0), lambda loaded: loaded.rows["state"])
            values = {(row[0] == stream.id, row[1]): int(row[2]) for row in state}
            assert values[True, "n"] == values[False, name] == number
            await asyncio.sleep(0)

    beside = notes_beside(path)
    file = beside.with_name(f"{beside.name}.{name}.acknowledged")
    note = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with closing(open_store(path, BUILT_IN)) as store:
        asyncio.run(work(store, number))


def wait_until_free(store: EventStore) -> None:
    """Waits until a server has noticed that who maintained it was killed, a moment after."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with store.maintaining("look"):
                return
        except MaintenanceRunning:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def assert_nothing_is_lost(path: str | Path, store: EventStore) -> None:
    """Whatever a writer was told is stored can be read in the tables."""
    numbers = acknowledgements(path)
    app = query(path, "SELECT state_key, state_value FROM adk_state WHERE scope = 'app'")
    stored = {key: int(value) for key, value in app}
    assert numbers
    for name, number in numbers.items():
        # The one behind it may be stored and not yet acknowledged.
        assert number <= stored[name] <= number + 1
        mine = dict(
            query(
                path,
                "SELECT state_key, state_value FROM adk_state "
                f"WHERE scope = 'session' AND session_id = '{name}'",
            )
        )
        assert int(mine.pop("n")) == stored[name]
        for n in range(max(1, stored[name] - 39), stored[name] + 1):
            assert int(mine[f"k{n % 40}"]) == n
        assert len(mine) == min(40, stored[name])

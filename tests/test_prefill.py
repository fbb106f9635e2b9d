"""The bulk loader of the benchmarks writes what the service would have written."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from google.adk.events import Event
from google.adk.sessions.base_session_service import GetSessionConfig

from adk_adapter import DatabaseSessionService
from benchmarks.prefill import APP, NAMED_USER, Load, Shape, prefill, session_id, user_of
from eventstore import StreamKey, StreamKind, open_store
from eventstore.chain import digest, first_link, next_link
from eventstore.encoding import decode
from eventstore.sqlite.transaction import ReadTransaction
from projections import BUILT_IN, rebuild

SHAPES = {"long": Shape(300), "wide": Shape(3, keys=50)}


@pytest.fixture
def load(database: Path) -> Load:
    return prefill(database, sessions=60, events=500, seed=7, named=SHAPES)


async def test_the_service_reads_and_continues_what_was_loaded(database: Path, load: Load) -> None:
    async with DatabaseSessionService(database) as service:
        assert service.get_stats()["events"] == load.rows == 60 + 500 + 301 + 4
        sessions = await service.list_sessions(app_name=APP, user_id=user_of(0))
        assert {s.id for s in sessions} == {session_id(load, n) for n in range(50)}

        long = await service.get_session(APP, NAMED_USER, "long")
        assert long is not None
        assert len(long.events) == 300
        assert {k: v for k, v in long.state.items() if not k.startswith("key-")} == {
            "turn": 300,
            "last_author": long.events[-1].author,
            "user:language": "en",
            "user:last_turn": 288,
            "app:release": "1.4.2",
        }
        wide = await service.get_session(APP, NAMED_USER, "wide")
        assert wide is not None
        assert len([key for key in wide.state if key.startswith("key-")]) == 48

        event = Event(author="user", invocation_id="i")
        await service.append_event(long, event)
        recent = GetSessionConfig(num_recent_events=2)
        tail = await service.get_session(APP, NAMED_USER, "long", config=recent)
        assert tail is not None
        assert [e.id for e in tail.events] == [long.events[-2].id, event.id]


def test_the_tables_are_what_the_log_gives(database: Path, load: Load) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        assert [(each.events, each.changed) for each in rebuild(store, BUILT_IN)] == [
            (load.rows, 0),
            (load.rows, 0),
        ]


async def test_every_row_has_the_form_of_the_services_own(database: Path, load: Load) -> None:
    """Digests, chain and identity of loaded and of appended events, by the same reading."""
    async with DatabaseSessionService(database) as service:
        own = await service.create_session(APP, NAMED_USER, state={"n": 1})
        await service.append_event(own, Event(author="user", invocation_id="i"))

    with closing(open_store(database, BUILT_IN)) as store:

        def check(transaction: ReadTransaction) -> list[tuple[object, ...]]:
            return [_checked(transaction, name) for name in (own.id, "long", "wide")]

        forms = store.transact(check)  # type: ignore[arg-type]
    assert forms[0] == forms[1] == forms[2]


def _checked(transaction: ReadTransaction, name: str) -> tuple[object, ...]:
    """Recomputes the chain of a session. Returns what is alike in all sessions."""
    key = StreamKey(StreamKind.SESSION, APP, NAMED_USER, name)
    stream = transaction.require_stream(key)
    events = transaction.read(stream)
    assert events[0].data is not None
    identity = decode(events[0].data, events[0].encoding)["stream"]
    chain = first_link(key, bytes.fromhex(identity["nonce"]))
    for event in events:
        chain = next_link(
            chain,
            version=event.version,
            event_id=event.event_id,
            event_type=event.type,
            schema_version=event.schema_version,
            encoding=event.encoding,
            recorded_at=event.recorded_at,
            timestamp=event.timestamp,
            author=event.author,
            invocation_id=event.invocation_id,
            delta_digest=digest(event.delta),
            data_digest=digest(event.data),
        )
    assert chain == stream.chain
    assert stream.version == stream.conversation_version == len(events)
    assert {k: v for k, v in identity.items() if k != "nonce"} == key._asdict()
    alike = [(e.type, e.schema_version, e.encoding, e.codec, e.stream[2:4]) for e in events[:2]]
    return (*alike, len(identity["nonce"]), events[0].author, events[0].invocation_id)


def test_rows_made_in_another_process_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(name: str) -> list[list[tuple[object, ...]]]:
        path = tmp_path / name
        prefill(path, sessions=20, events=100)
        with closing(sqlite3.connect(path)) as connection:
            tables = ("streams", "sessions", "state")
            return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables]

    here = written("here.sqlite3")
    monkeypatch.setattr("benchmarks.prefill._WORTH_A_PROCESS", 0)
    assert written("there.sqlite3") == here

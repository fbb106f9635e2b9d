"""Fills a database of this service in bulk, with a log that the service could have written.

The rows are what `append` would have written: dense versions, digests, the chain, first events that
carry their stream's identity, and the projections' tables as a fold of the log gives them. Payloads
are a few hundred events encoded by the adapter's own codec; only their ids, timestamps and deltas
differ. The schema, with its triggers, is the one the service made.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import multiprocessing
import random
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psycopg

from adk_adapter.codec import FINGERPRINT, encode_event, encode_state
from benchmarks.events import event_stream
from eventstore import EventType, NewEvent, StreamKey, StreamKind, open_store
from eventstore.chain import digest, first_link, next_link
from eventstore.encoding import decode_members, encode
from eventstore.location import resolve
from eventstore.postgres.address import parse_url
from projections import BUILT_IN

APP = "bench"
NAMED_USER = "named"
SESSIONS_PER_USER = 50
_TEMPLATES = 400
_OPEN_SESSIONS = 64
"""So many sessions are written to in turn, as by so many users at once."""
_BATCH_ROWS = 1_000
_WORTH_A_PROCESS = 200_000
_FIRST_TIMESTAMP = 1_700_000_000.0
_USER_KEY_EVERY = 16
_EVENTS_PER_TURN = 4

_COLUMNS = {
    "streams": (
        "id, kind, app_name, user_id, session_id, user_stream_id, app_stream_id, "
        "version, conversation_version, live, nonce, chain"
    ),
    "events": (
        "position, stream_id, version, event_id, type, schema_version, recorded_at, timestamp, "
        "author, invocation_id, codec, encoding, delta_digest, data_digest, chain, delta, data"
    ),
    "sessions": (
        "stream_id, created_at, last_update_time, app_stream_id, user_stream_id, title, labels"
    ),
    "state": "owner_id, state_key, state_value, position",
}
"""Tables and their columns, in the order of a row."""

Row = tuple[Any, ...]
Batch = tuple[str, list[Row]]


class Shape(NamedTuple):
    """How many ADK events a session has, and how many keys its state."""

    events: int
    keys: int = 4


@dataclass(frozen=True)
class Load:
    """What to write: `sessions` with `events` in all, and those with a name.

    The number of events of a session is off the mean by up to its `spread`. Sessions belong to
    users of fifty sessions each (see `user_of`), named ones to the user "named", with their name as
    their id.
    """

    sessions: int
    events: int
    keys: int = 4
    seed: int = 0
    spread: float = 1 / 3
    named: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Events in the log: ADK's, and the first one of each session."""
        named = sum(shape.events + 1 for shape in self.named.values())
        return self.sessions + self.events + named


def prefill(
    path: Path | str,
    *,
    sessions: int,
    events: int,
    keys: int = 4,
    seed: int = 0,
    spread: float = 1 / 3,
    named: Mapping[str, Shape] = MappingProxyType({}),
) -> Load:
    """Writes sessions of app "bench" into a database that has none of it yet; makes the file.

    See Load for what the arguments mean.
    Nobody else may have the file open. It is unsafe until it is done: nothing is synced, and a
    crash leaves a damaged file.
    """
    load = Load(sessions, events, keys, seed, spread, dict(named))
    open_store(path, BUILT_IN).close()
    with _no_collections(), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # Without a WAL each page is written once, not twice.
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA cache_size = -262144")
        connection.execute("PRAGMA mmap_size = 68719476736")
        connection.execute("BEGIN IMMEDIATE")
        for table, rows in _rows(load, *_start(connection)):
            marks = ", ".join("?" for _ in rows[0])
            connection.executemany(
                f"INSERT INTO {table} ({_COLUMNS[table]}) VALUES ({marks})", rows
            )
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
    return load


def prefill_server(
    target: str,
    *,
    sessions: int,
    events: int,
    keys: int = 4,
    seed: int = 0,
    spread: float = 1 / 3,
    named: Mapping[str, Shape] = MappingProxyType({}),
) -> Load:
    """The same into a schema of a PostgreSQL server, by COPY; nobody else may write to it."""
    load = Load(sessions, events, keys, seed, spread, dict(named))
    open_store(target, BUILT_IN).close()
    address = parse_url(resolve(target))
    schema = address.schema
    with _no_collections(), psycopg.connect(address.url) as connection:
        cursor = connection.cursor()
        types = {
            f"{table}.{column}": kind
            for table, column, kind in cursor.execute(
                "SELECT table_name, column_name, udt_name FROM information_schema.columns "
                "WHERE table_schema = %s",
                (schema,),
            )
        }
        for table, rows in _rows(load, *_start_on_server(connection, schema)):
            columns = _COLUMNS[table]
            with cursor.copy(
                f"COPY {schema}.{table} ({columns}) FROM STDIN (FORMAT BINARY)".encode()
            ) as copy:
                copy.set_types([types[f"{table}.{column}"] for column in columns.split(", ")])
                for row in rows:
                    copy.write_row(row)
        for sequence, table, column in (
            (f"pg_get_serial_sequence('{schema}.streams', 'id')", "streams", "id"),
            (f"'{schema}.positions'", "events", "position"),
        ):
            cursor.execute(
                f"SELECT setval({sequence}, max({column})) FROM {schema}.{table}".encode()
            )
    with psycopg.connect(address.url, autocommit=True) as connection:
        for table in _COLUMNS:
            connection.execute(f"VACUUM (ANALYZE) {schema}.{table}".encode())
        connection.execute("CHECKPOINT")
    return load


def _start_on_server(connection: psycopg.Connection, schema: str) -> tuple[int, int, int]:
    """As `_start`."""

    def ask(sql: str, *values: str) -> int:
        row = connection.execute(sql.replace("{s}", schema).encode(), values).fetchone()
        assert row is not None
        return int(row[0])

    if ask("SELECT count(*) FROM {s}.streams WHERE app_name = %s", APP):
        raise ValueError(f"the database has sessions of app {APP!r} already")
    insert = "INSERT INTO {s}.codecs (fingerprint) VALUES (%s) ON CONFLICT DO NOTHING"
    connection.execute(insert.replace("{s}", schema).encode(), (FINGERPRINT,))
    return (
        ask("SELECT coalesce(max(id), 0) + 1 FROM {s}.streams"),
        ask("SELECT coalesce(max(position), 0) + 1 FROM {s}.events"),
        ask("SELECT id FROM {s}.codecs WHERE fingerprint = %s", FINGERPRINT),
    )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Millions of tuples come and go, none of them in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def session_id(load: Load, number: int) -> str:
    """The id of an unnamed session."""
    return _uuid(hashlib.md5(b"%d %d" % (load.seed, number)).hexdigest())


def user_of(number: int) -> str:
    """The user of an unnamed session."""
    return f"user-{number // SESSIONS_PER_USER}"


def _start(connection: sqlite3.Connection) -> tuple[int, int, int]:
    """The first stream id and position to give out, and the key of the adapter's codec."""
    if connection.execute("SELECT 1 FROM streams WHERE app_name = ?", (APP,)).fetchone():
        raise ValueError(f"the database has sessions of app {APP!r} already")
    taken = dict(connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    connection.execute("INSERT OR IGNORE INTO codecs (fingerprint) VALUES (?)", (FINGERPRINT,))
    (codec,) = connection.execute(
        "SELECT id FROM codecs WHERE fingerprint = ?", (FINGERPRINT,)
    ).fetchone()
    return taken.get("streams", 0) + 1, taken.get("events", 0) + 1, codec


def _rows(load: Load, *start: int) -> Iterator[Batch]:
    """Every row of a load, by table: large ones are made on another core."""
    if load.rows < _WORTH_A_PROCESS:
        return _batches(load, *start)
    return _batches_of_another_process(load, *start)


def _batches_of_another_process(load: Load, *start: int) -> Iterator[Batch]:
    """The rows, made on one core while SQLite inserts them on another."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    maker = context.Process(target=_send_batches, args=(sending, load, *start), daemon=True)
    maker.start()
    sending.close()
    while (batch := receiving.recv()) is not None:
        yield batch
    maker.join()


def _send_batches(sending: Connection, load: Load, *start: int) -> None:
    with _no_collections():
        for batch in _batches(load, *start):
            sending.send(batch)
    sending.send(None)


def _batches(load: Load, stream_id: int, position: int, codec: int) -> Iterator[Batch]:
    return _Log(load, stream_id, position, codec).batches()


class _Template(NamedTuple):
    """An encoded event: its data around the id and the timestamp."""

    before: str
    between: str
    after: str
    author: str
    author_text: str
    invocation_id: str
    encoding: int


class _Session:
    """One session while its events are written."""

    def __init__(self, stream_id: int, key: StreamKey, user_stream_id: int, shape: Shape) -> None:
        self.id, self.key, self.user_stream_id, self.shape = stream_id, key, user_stream_id, shape
        self.version = 0
        self.created_at = self.updated_at = 0.0
        self.nonce = self.chain = b""
        self.missing = shape.events
        self.template = 0
        self.state: dict[str, tuple[str, int]] = {}
        """Key to text and the position that wrote it, as in the table."""


class _Log:
    """Makes the rows of a load in the order of their positions."""

    def __init__(self, load: Load, stream_id: int, position: int, codec: int) -> None:
        self._load = load
        self._random = random.Random(f"prefill {load.seed}")  # other ids than new events get
        self._stream_ids = itertools.count(stream_id)
        self._first_position = self._position = position
        self._codec = codec
        self._templates = [
            _template(encode_event(event))
            for event in itertools.islice(event_stream(load.seed), _TEMPLATES)
        ]
        self._first_events: dict[int, NewEvent] = {}
        self._user_ids: dict[str, int] = {}
        self._shared: dict[tuple[int, str], tuple[str, int]] = {}
        self._waiting: dict[str, list[Row]] = {table: [] for table in _COLUMNS}
        self._app_id = self._scope(StreamKey(StreamKind.APP, APP), 0)

    def batches(self) -> Iterator[Batch]:
        """Every row, by table, in about thousands."""
        coming = itertools.starmap(self._begin, self._sessions())
        users = deque(itertools.islice(coming, _OPEN_SESSIONS))
        while users:
            session = users.popleft()
            if session.missing:
                self._turn(session)
                users.append(session)
            else:
                self._end(session)
                users.extend(itertools.islice(coming, 1))
            for table, rows in self._waiting.items():
                if len(rows) >= _BATCH_ROWS:
                    yield table, rows
                    self._waiting[table] = []
        shared = sorted(self._shared.items())
        self._waiting["state"] += [(*key, *value) for key, value in shared]
        yield from ((table, rows) for table, rows in self._waiting.items() if rows)

    def _sessions(self) -> Iterator[tuple[StreamKey, Shape]]:
        """Keys and shapes, the named sessions first."""
        for name, shape in self._load.named.items():
            yield StreamKey(StreamKind.SESSION, APP, NAMED_USER, name), shape
        left = self._load.events
        for number in range(self._load.sessions):
            mean = left / (self._load.sessions - number)
            last = number == self._load.sessions - 1
            chance = 1 + self._load.spread * self._random.uniform(-1, 1)
            events = left if last else min(left, round(mean * chance))
            left -= events
            user, name = user_of(number), session_id(self._load, number)
            yield StreamKey(StreamKind.SESSION, APP, user, name), Shape(events, self._load.keys)

    def _scope(self, key: StreamKey, app_id: int) -> int:
        """Writes the stream of a user or an app, which has no events of its own yet."""
        stream_id, nonce = next(self._stream_ids), self._random.randbytes(16)
        row = (stream_id, *key, 0, app_id, 0, 0, True, nonce, first_link(key, nonce))
        self._waiting["streams"].append(row)
        return stream_id

    def _begin(self, key: StreamKey, shape: Shape) -> _Session:
        """Writes the first event of a session."""
        if key.user_id not in self._user_ids:
            user = StreamKey(StreamKind.USER, key.app_name, key.user_id)
            self._user_ids[key.user_id] = self._scope(user, self._app_id)
        session = _Session(next(self._stream_ids), key, self._user_ids[key.user_id], shape)
        session.nonce = self._random.randbytes(16)
        session.chain = first_link(key, session.nonce)
        session.template = self._random.randrange(_TEMPLATES)
        if shape.keys not in self._first_events:
            state = {f"key-{n:05d}": f"value {n}" for n in range(shape.keys - 2)}
            state |= {"user:language": "en", "app:release": "1.4.2"}
            creation = encode_state(EventType.SESSION_CREATED, state, 0.0)
            self._first_events[shape.keys] = creation
        event = self._first_events[shape.keys]
        identity = {"stream": {**key._asdict(), "nonce": session.nonce.hex()}}
        (data,), _ = encode([identity], str(key))
        assert data is not None
        assert event.delta is not None
        session.created_at = self._time()
        for scope, members in decode_members(event.delta, event.encoding).items():
            for name, text in members.items():
                self._set(session, scope, name, text)
        texts = (event.delta.decode(), data.decode())
        self._append(session, self._new_id(), event.type.value, "", "", 0, event.encoding, *texts)
        return session

    def _turn(self, session: _Session) -> None:
        """Writes what an agent appends in one invocation, or what is left of the session."""
        for _ in range(min(session.missing, _EVENTS_PER_TURN)):
            before, between, after, author, author_text, invocation_id, encoding = self._templates[
                session.template
            ]
            session.template = (session.template + 1) % _TEMPLATES
            number = str(session.version)
            delta = f'{{"session":{{"turn":{number},"last_author":{author_text}}}}}'
            session.state["turn"] = (number, self._position)
            session.state["last_author"] = (author_text, self._position)
            if session.version % _USER_KEY_EVERY == 0:
                delta = f'{delta[:-1]},"user":{{"last_turn":{number}}}}}'
                self._set(session, "user", "last_turn", number)
            event_id = self._new_id()
            data = f"{before}{event_id}{between}{self._time()!r}{after}"
            self._append(
                session, event_id, "adk_event", author, invocation_id, self._codec, encoding,
                delta, data,
            )  # fmt: skip
            session.missing -= 1

    def _append(
        self,
        session: _Session,
        event_id: str,
        event_type: str,
        author: str,
        invocation_id: str,
        codec: int,
        encoding: int,
        delta: str,
        data: str,
    ) -> None:
        """Writes an event behind the session's head, and moves the head."""
        session.version += 1
        session.updated_at = timestamp = self._time()
        recorded_at = int(timestamp * 1e6)
        delta_digest, data_digest = digest(delta.encode()), digest(data.encode())
        session.chain = next_link(
            session.chain,
            version=session.version,
            event_id=event_id,
            event_type=event_type,
            schema_version=1,
            encoding=encoding,
            recorded_at=recorded_at,
            timestamp=timestamp,
            author=author,
            invocation_id=invocation_id,
            codec=FINGERPRINT if codec else "",
            delta_digest=delta_digest,
            data_digest=data_digest,
        )
        self._waiting["events"].append((
            self._position, session.id, session.version, event_id, event_type, 1, recorded_at,
            timestamp, author, invocation_id, codec, encoding, delta_digest, data_digest,
            session.chain, delta, data,
        ))  # fmt: skip
        self._position += 1

    def _set(self, session: _Session, scope: str, key: str, text: str) -> None:
        """Notes what the event at this position writes into the state."""
        if scope == "session":
            session.state[key] = (text, self._position)
        else:
            owner = session.user_stream_id if scope == "user" else self._app_id
            self._shared[owner, key] = (text, self._position)

    def _end(self, session: _Session) -> None:
        """Writes the rows that are known with the last event of a session."""
        head = (session.version, session.version, True, session.nonce, session.chain)
        stream = (session.id, *session.key, session.user_stream_id, self._app_id, *head)
        self._waiting["streams"].append(stream)
        times = (session.created_at, session.updated_at)
        owners = (self._app_id, session.user_stream_id)
        self._waiting["sessions"].append((session.id, *times, *owners, "", "{}"))
        state = sorted(session.state.items())
        self._waiting["state"] += [(session.id, key, *value) for key, value in state]

    def _time(self) -> float:
        """A millisecond passes from position to position."""
        return _FIRST_TIMESTAMP + (self._position - self._first_position) / 1000

    def _new_id(self) -> str:
        return _uuid(f"{self._random.getrandbits(128):032x}")


def _template(event: NewEvent) -> _Template:
    assert event.data is not None
    assert event.delta is not None
    text = event.data.decode()
    before, _, rest = text.rpartition(f'"id":"{event.event_id}"')
    between, _, after = rest.rpartition(f'"timestamp":{event.timestamp!r}')
    assert between, "an event whose timestamp does not follow its id"
    author_text = decode_members(event.delta, event.encoding)["session"]["last_author"]
    return _Template(
        f'{before}"id":"',
        f'"{between}"timestamp":',
        after,
        event.author,
        author_text,
        event.invocation_id,
        event.encoding,
    )


def _uuid(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"

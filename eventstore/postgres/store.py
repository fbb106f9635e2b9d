"""The PostgreSQL backend: each operation as a request to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import Any, Final, TypeVar

import psycopg

from eventstore.changes import Row
from eventstore.cursor import Cursor
from eventstore.errors import CorruptEvent, EventStoreError, NotOnThisDatabase, StoreClosed
from eventstore.events import NewEvent, RecordedEvent, StreamKey
from eventstore.observer import Observer
from eventstore.postgres import database, registry
from eventstore.postgres.address import Address
from eventstore.postgres.connection import Connect, Connector, translate
from eventstore.postgres.engine import Engine
from eventstore.postgres.requests import Kind, Read, Write
from eventstore.postgres.transaction import MaintenanceTransaction, ReadTransaction
from eventstore.projection import Projection
from eventstore.records import conversation, owners_of, unreadable, with_rows
from eventstore.store import Appended, Durability, Finding, Loaded, Rewritten, Storage, Window

__all__ = ["PostgresEventStore", "examine", "pending_migrations"]

T = TypeVar("T")

_OWNERS_PER_QUERY: Final = 5_000


class PostgresEventStore:
    """An EventStore in one schema of a server. See eventstore.store for what is promised."""

    def __init__(
        self,
        address: Address,
        projections: Sequence[Projection],
        *,
        connect: Connect | None = None,
        durability: Durability = "normal",
        for_rebuild: bool = False,
        create: bool = True,
        create_schema: bool = True,
        partitions: int = 0,
    ) -> None:
        if durability not in ("normal", "full"):
            raise ValueError(f"durability must be 'normal' or 'full', not {durability!r}")
        self._address = address
        self._projections = tuple(projections)
        self._durability = durability
        self._observer: Observer | None = None
        self._closed = False
        self._acquire = partial(
            registry.acquire,
            address,
            connect,
            self._projections,
            for_rebuild=for_rebuild,
            create=create,
            create_schema=create_schema,
            partitions=partitions,
        )
        self._engine = self._acquire()

    @property
    def path(self) -> str:
        """The URL of the database, without a password."""
        return self._address.shown

    @property
    def projections(self) -> Sequence[Projection]:
        """The folds whose rows are written with every append."""
        return self._projections

    def create(self, key: StreamKey, event: NewEvent) -> asyncio.Future[Loaded]:
        """Makes a stream with its first event."""
        return self._running().future(Write(Kind.CREATE, key, event, full=self._full))

    def append(
        self,
        key: StreamKey,
        event: NewEvent,
        cursor: Cursor,
        *,
        merge: Callable[[RecordedEvent], Any] | None = None,
        on_outcome: Callable[[Appended | None], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> asyncio.Future[Appended]:
        """Appends a conversation event behind the one the cursor stands at."""
        request: Write[Appended] = Write(
            Kind.APPEND,
            key,
            event,
            cursor,
            merge=merge,
            full=self._full,
            on_outcome=on_outcome,
            on_done=on_done,
        )
        return self._running().future(request)

    def set_state(self, key: StreamKey, event: NewEvent) -> asyncio.Future[Loaded]:
        """Appends an event that is no part of the conversation."""
        return self._running().future(Write(Kind.SET_STATE, key, event, full=self._full))

    def delete(self, key: StreamKey, event: NewEvent) -> asyncio.Future[bool]:
        """Ends a stream with a tombstone."""
        return self._running().future(Write(Kind.DELETE, key, event, full=self._full))

    def load(
        self, key: StreamKey, window: Window, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[T | None]:
        """Reads a stream in one snapshot; None when there is none."""
        engine = self._running()

        def function(reading: ReadTransaction) -> T | None:
            loaded = reading.load(key, window, engine.tables)
            try:
                return None if loaded is None else convert(loaded)
            except (TypeError, ValueError, IndexError, OverflowError) as error:
                raise unreadable(key, error) from None

        return engine.future(Read(function))

    def load_intact(
        self,
        key: StreamKey,
        window: Window,
        convert: Callable[[Loaded, Sequence[CorruptEvent]], T],
    ) -> asyncio.Future[T | None]:
        """As `load`, without the events that are damaged."""
        engine = self._running()

        def function(reading: ReadTransaction) -> T | None:
            if (stream := reading.find_stream(key)) is None:
                return None
            events, damaged = reading.read_intact(stream)
            chosen = [
                event
                for event in conversation(events)
                if window.since is None or event.timestamp >= window.since
            ]
            if window.last is not None:
                chosen = chosen[-window.last :] if window.last else []
            rows = {
                name: table.rows(reading.connection, owners_of(stream))
                for name, table in engine.tables.items()
            }
            return convert(Loaded(stream, rows, chosen), damaged)

        return engine.future(Read(function))

    def read(
        self, key: StreamKey, convert: Callable[[Sequence[RecordedEvent]], T]
    ) -> asyncio.Future[T | None]:
        """Reads every event of a stream; None for no stream."""

        def function(reading: ReadTransaction) -> T | None:
            stream = reading.find_stream(key)
            return None if stream is None else convert(reading.read(stream))

        return self._running().future(Read(function))

    def load_sessions(
        self, app_name: str, user_id: str | None, convert: Callable[[Loaded], T]
    ) -> asyncio.Future[list[T]]:
        """Reads all live sessions of an app, or of one user of it, without events."""
        engine = self._running()

        def function(reading: ReadTransaction) -> list[T]:
            def rows(table: str, owners: Sequence[int]) -> Sequence[Row]:
                return engine.tables[table].rows(reading.connection, owners)

            streams = reading.sessions(app_name, user_id)
            found = with_rows(streams, engine.tables, rows, _OWNERS_PER_QUERY)
            return [convert(loaded) for loaded in found]

        return engine.future(Read(function))

    def load_rows(self, key: StreamKey, table: str) -> asyncio.Future[Sequence[Row]]:
        """The rows of a projection that belong to one stream."""
        engine = self._running()

        def function(reading: ReadTransaction) -> Sequence[Row]:
            stream = reading.find_stream(key)
            if stream is None:
                return ()
            return engine.tables[table].rows(reading.connection, [stream.id])

        return engine.future(Read(function))

    def ping(self) -> asyncio.Future[None]:
        """Done when the server has answered a question."""

        def function(reading: ReadTransaction) -> None:
            reading.registered()

        return self._running().future(Read(function))

    def barrier(self) -> asyncio.Future[None]:
        """Done when everything handed over before it is."""
        return self._running().future(Write(Kind.BARRIER))

    def transact(
        self, function: Callable[[MaintenanceTransaction], T], *, beside_writers: bool = False
    ) -> T:
        """Runs maintenance in one transaction of its own, while other writers wait."""
        engine = self._running()
        return engine.transact(function, beside_writers=beside_writers, full=self._full)

    def snapshot(self, function: Callable[[ReadTransaction], T], *, whole: bool = False) -> T:
        """Runs a function over one snapshot of the database, while others write."""
        return self._running().snapshot(function, whole=whole)

    def snapshots(self, functions: Iterable[Callable[[ReadTransaction], T]]) -> Iterator[T]:
        """Runs functions over a snapshot each; returns in order what each returns."""
        return (self.snapshot(function) for function in functions)

    def maintaining(self, operation: str) -> AbstractContextManager[None]:
        """Keeps other maintenance off, in every process, while it lasts."""
        return self._running().maintaining(operation)

    def check(self, projection: Projection) -> None:
        """Finds out whether the backend can make a projection's table and views."""
        self._running().check(projection)

    def copy_to(self, path: str) -> None:
        """Refused: a server's databases are copied with the server's own programs."""
        raise NotOnThisDatabase(
            self.path,
            "copy",
            "Use PostgreSQL's own programs: pg_dump and pg_restore, or pg_basebackup.",
        )

    def shrink(self) -> int:
        """Lets the server give unused space back to the file system; returns how many bytes."""
        return self._running().vacuum()

    def rewrite(self, *, whole: bool = True, at_most_s: float | None = None) -> Rewritten:
        """Sees to it that no copy of what was removed is left in the tables of the log.

        The server's WAL, its replicas and its backups are not looked at.
        """
        if not whole:
            return Rewritten(done=False, gone=False)
        return self._running().rewrite(at_most_s)

    def storage(self, *, tables: bool) -> Storage:
        """What the schema takes on the server's disk."""
        sizes = self._running().snapshot(lambda reading: reading.table_sizes())
        return Storage(sum(sizes.values()), 0, 0, sizes if tables else None)

    def sizes(self) -> Mapping[str, int]:
        """How many bytes the schema takes on the server's disk."""
        return {"database": self.storage(tables=False).total}

    def observe(self, observer: Observer) -> None:
        """Tells an observer of commits from now on, in place of the one before."""
        self._observer = observer
        self._running().observe(observer)

    def stats(self) -> dict[str, Any]:
        """Facts about the store: counts, sizes, versions, settings."""
        engine = self._running()
        return {
            **engine.snapshot(lambda reading: reading.counts(engine.tables)),
            **engine.snapshot(lambda reading: reading.facts()),
            "path": self.path,
            "schema_version": database.schema_version(),
            "projections": {p.name: p.version for p in self._projections},
            "durability": self._durability,
        }

    def close(self) -> None:
        """Executes what was handed over and lets go of the server. Safe to call twice."""
        with registry.lock:
            if self._closed:
                return
            self._closed = True
        engine = self._engine
        if engine.abandoned:
            return
        try:
            if engine.users > 1:
                # The engine goes on for the others: wait for what was handed over here.
                engine.call(Write(Kind.BARRIER))
        finally:
            registry.release(engine)

    @property
    def _full(self) -> bool:
        return self._durability == "full"

    def _running(self) -> Engine:
        """The engine, begun anew in a forked child."""
        if self._closed:
            raise StoreClosed(self.path)
        if self._engine.abandoned:
            engine = self._acquire()
            with registry.lock:
                first = self._engine.abandoned
                if first:
                    self._engine = engine
            if not first:  # another thread was faster
                registry.release(engine)
            elif self._observer is not None:
                engine.observe(self._observer)
        return self._engine


def pending_migrations(
    address: Address, projections: Sequence[Projection]
) -> tuple[int, list[tuple[int, str]]]:
    """The version of a schema, and what opening it would run: each version with its SQL."""
    with closing(Connector(address).open()) as connection:
        return database.pending_migrations(connection, address, projections)


def examine(
    address: Address, projections: Sequence[Projection], others: Sequence[Projection]
) -> list[Finding]:
    """Looks at a schema that may be unusable. Changes nothing. Of `others`, at those it keeps."""
    found: list[Finding] = []
    try:
        with closing(Connector(address).open()) as connection:
            version = str(connection.info.parameter_status("server_version"))
            found.append(Finding("server", "ok", f"PostgreSQL {version} answers"))
            schema, pending = database.pending_migrations(connection, address, projections)
            if pending:
                remedy = "Run: adk-eventstore migrate"
                return [*found, Finding("schema", "warning", f"has version {schema}", remedy)]
            found.append(Finding("schema", "ok", f"{address.schema} has version {schema}"))
            database.check_schema(connection, address, (), for_rebuild=True)
            reading = ReadTransaction(connection, address.schema, {})
            found += [
                Finding("files", "problem", line, "Restore it from a backup.")
                for line in reading.check_file()
            ]
            kept = reading.registered()
            for projection in (*projections, *(p for p in others if p.name in kept)):
                if reading.table_page(projection, None, 1) is None:
                    text = f"{projection.table.name} is missing or lacks a column"
                    found.append(Finding("tables", "problem", text, "Run: rebuild-projections"))
    except (EventStoreError, psycopg.Error) as error:
        return [*found, Finding.of("server", translate(address, error))]
    return found

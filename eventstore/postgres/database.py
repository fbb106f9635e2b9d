"""The schema on the server: making it, recognising it, checking that it is ours."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Final

import psycopg

from eventstore.carrying import carry_anew
from eventstore.errors import (
    CorruptEvent,
    ForeignDatabase,
    InvalidProjection,
    MaintenanceRunning,
    PathUnusable,
    ProjectionMissing,
    SchemaAltered,
    SchemaTooNew,
)
from eventstore.postgres import shadow
from eventstore.postgres.address import Address, milliseconds
from eventstore.postgres.connection import Connection, translate
from eventstore.postgres.locks import Locks
from eventstore.postgres.queries import migrations, queries
from eventstore.postgres.tables import create_indexes, create_table, create_views
from eventstore.postgres.transaction import MaintenanceTransaction
from eventstore.projection import Projection

__all__ = [
    "active_inline",
    "check_definition",
    "check_schema",
    "ddl",
    "hold_writers_off",
    "pending_migrations",
    "prepare",
    "schema_version",
]

_OURS: Final = ("streams", "events", "codecs", "projections", "maintenance", "adk_events")
_ADK: Final = {"sessions", "events", "app_states", "user_states"}
_TRIGGERS: Final = {"events_no_change", "events_no_truncate"}
_ALONE_PATIENCE_S: Final = 0.2
"""How long maintenance asks to be alone at a time, while which appends wait behind it."""
_ALONE_PAUSE_S: Final = 0.05
_REBUILD: Final = "Run: rebuild-projections --db '{path}'"

_log = logging.getLogger(__name__)

# ruff: noqa: S608 - the schema was checked, see address.py


def active_inline(projections: Sequence[Projection]) -> str:
    """The inline projections of a process, as the statement `schema_state` gives the database's."""
    return ",".join(f"{p.name} {p.version}" for p in sorted(projections, key=lambda p: p.name))


@cache
def schema_version() -> int:
    """The schema version that this package writes."""
    return len(migrations("x"))


def prepare(
    connection: Connection,
    address: Address,
    locks: Locks,
    projections: Sequence[Projection],
    *,
    create: bool,
    create_schema: bool,
    partitions: int,
    for_rebuild: bool,
) -> None:
    """Brings the schema to the newest version where that is wanted, and checks it.

    Several processes may do so at once: one migrates and the others wait for it.

    Raises:
        StoreUnusable: one of its kinds, see eventstore.errors.
        ProjectionMissing: the active projections are not the given ones.
    """
    try:
        version = _version(connection, address)
        if version == 0 and not create:
            raise PathUnusable(
                address.shown,
                f"has no schema {address.schema}",
                "Pass another one in the URL, ?schema=..., or make it: adk-eventstore migrate",
            )
        if version < schema_version():
            if not create_schema:
                raise PathUnusable(
                    address.shown,
                    f"has no schema {address.schema} of this version",
                    "Let somebody who may do so run the output of: adk-eventstore ddl",
                )
            _migrate(connection, address, locks, projections, partitions)
        if create_schema and not for_rebuild:
            _upgrade(connection, address, locks, projections)
        check_schema(connection, address, projections, for_rebuild=for_rebuild)
    except psycopg.Error as error:
        raise translate(address, error) from None


def _version(connection: Connection, address: Address) -> int:
    """The version of the schema, 0 where there is none yet.

    Raises:
        ForeignDatabase: the schema is somebody else's.
        SchemaTooNew: see there.
    """
    schema = address.schema
    names = {
        name
        for (name,) in connection.execute(
            "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE n.nspname = $1",
            (schema,),
        ).fetchall()
    }
    if "eventstore" not in names:
        if names >= _ADK:
            raise ForeignDatabase(
                address.shown,
                f"has the tables of ADK's own session service in the schema {schema}",
                "Choose another schema for this service: schema=... Those are left as they are.",
            )
        if taken := sorted(names & {*_OURS, "state", "sessions"}):
            raise ForeignDatabase(
                address.shown,
                f"has a {taken[0]} in the schema {schema} that is not ours",
                "Choose another schema for this service: schema=...",
            )
        return 0
    row = connection.execute(f"SELECT version FROM {schema}.eventstore").fetchone()
    version = 0 if row is None else int(row[0])
    if version > schema_version():
        raise SchemaTooNew(
            address.shown,
            f"has schema version {version}, this package knows up to {schema_version()}",
            "Upgrade adk-eventstore.",
        )
    return version


def _migrate(
    connection: Connection,
    address: Address,
    locks: Locks,
    projections: Sequence[Projection],
    partitions: int,
) -> None:
    schema = address.schema
    with _writing(connection):
        _wait_for_others(connection, address, locks)
        version = _version(connection, address)  # somebody may have done it meanwhile
        if version < schema_version():
            create = _create_schema(connection, schema)
            for _, script in _scripts(schema, version, (), partitions, create):
                _run(connection, script)
            if version == 0:
                for projection in projections:
                    with _blaming(projection):
                        _run(connection, _projection_ddl(schema, projection))


@contextmanager
def _writing(connection: Connection) -> Iterator[None]:
    # Each statement sees what was there when it began, and so behind the locks before it.
    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
    try:
        yield
    except BaseException:
        if not connection.closed:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _wait_for_others(connection: Connection, address: Address, locks: Locks) -> None:
    """Waits until nobody else migrates, for as long as for any lock."""
    q = queries(address.schema)
    connection.execute(q["set_timeouts"], (milliseconds(address.lock_timeout_s), "0"))
    connection.execute(q["take_lock"], (locks.migrating,))


def hold_writers_off(
    connection: Connection, address: Address, locks: Locks, statement_timeout: str
) -> None:
    """Takes the lock beside which nobody appends, inside a transaction.

    Asked for a moment at a time: while it waits for one that writes, which may be frozen, all
    others wait behind it. The time limits are set for the transaction.
    """
    deadline = time.monotonic() + address.lock_timeout_s
    patience = milliseconds(min(_ALONE_PATIENCE_S, address.lock_timeout_s))
    q = queries(address.schema)
    while True:
        try:
            with connection.transaction():
                connection.execute(q["set_timeouts"], (patience, statement_timeout))
                connection.execute(q["take_lock"], (locks.appending,))
            break
        except psycopg.errors.LockNotAvailable:
            if time.monotonic() > deadline:
                raise
        time.sleep(_ALONE_PAUSE_S)
    connection.execute(q["set_timeouts"], (milliseconds(address.lock_timeout_s), statement_timeout))


def _upgrade(
    connection: Connection, address: Address, locks: Locks, projections: Sequence[Projection]
) -> None:
    """Brings the tables of projections up to date that say how.

    A table that is not as its version made it is left to a rebuild, and so are one that this role
    cannot replace, and all where an event is damaged that carries rows over.

    Raises:
        MaintenanceRunning: something is to be done, and a rebuild or vacuum is under way.
    """
    if not _upgrades(connection, address, projections):
        return
    q = queries(address.schema)
    with _writing(connection):
        _wait_for_others(connection, address, locks)
        if not _upgrades(connection, address, projections):
            return  # somebody has done it meanwhile
        (taken,) = connection.execute(q["try_lock"], (locks.maintaining,)).fetchone() or (False,)
        if not taken:
            raise MaintenanceRunning(
                address.shown, "bring its tables up to date", "another process"
            )
        hold_writers_off(connection, address, locks, "0")
        # Asked again: a rebuild may have ended just before the lock was free.
        for projection, version, select in _upgrades(connection, address, projections):
            try:
                with connection.transaction():
                    shadow.replace(connection, address.schema, projection, select)
                    transaction = MaintenanceTransaction(connection, address.schema, {}, {})
                    transaction.register(projection, None)
                    carry_anew(transaction, projection, version)
                    transaction.flush()
            except (
                psycopg.ProgrammingError,
                psycopg.DataError,
                psycopg.IntegrityError,
                psycopg.errors.DependentObjectsStillExist,
                CorruptEvent,
                SchemaAltered,
            ) as error:
                _log.warning(
                    "%s has to be rebuilt: its table cannot be brought up to date (%s)",
                    projection.name,
                    type(error).__name__,
                )


def _upgrades(
    connection: Connection, address: Address, projections: Sequence[Projection]
) -> list[tuple[Projection, int, str]]:
    """The inline projections of older versions: each with that, and what makes its rows.

    Those of which this role can replace the table.
    """
    rows = connection.execute(queries(address.schema)["registered_projections"]).fetchall()
    stored = {name: version for name, version, _, checkpoint, *_ in rows if checkpoint is None}
    found = []
    # In the order of their tables, in which readers lock them.
    for projection in sorted(projections, key=lambda p: p.table.name):
        before = stored.get(projection.name, projection.version)
        select = projection.upgrades.get("postgresql", {}).get(before)
        if before >= projection.version or select is None:
            continue
        if shadow.may_replace(connection, address.schema, projection):
            found.append((projection, before, select))
    return found


def _run(connection: Connection, script: str) -> None:
    # Without parameters a text may hold several statements.
    with psycopg.ClientCursor(connection) as cursor:
        cursor.execute(script.encode())


def _create_schema(connection: Connection, schema: str) -> str:
    """What makes a schema that is missing. With IF NOT EXISTS the right to is always asked for."""
    row = connection.execute("SELECT to_regnamespace($1) IS NULL", (schema,)).fetchone()
    return f"CREATE SCHEMA {schema};\n" if row and row[0] else ""


def _scripts(
    schema: str, version: int, projections: Sequence[Projection], partitions: int, create: str
) -> list[tuple[int, str]]:
    """What brings a schema from a version to the newest: each version with its SQL.

    All for one transaction. `create` makes the schema, where it is missing; the tables of a new
    one's projections come last.
    """
    scripts = migrations(schema, partitions)
    found = []
    for number in range(version + 1, len(scripts) + 1):
        text = f"SET LOCAL search_path = {schema};\n\n{scripts[number - 1].rstrip()}\n\n"
        if number == 1:
            text = f"{create}{text}INSERT INTO {schema}.eventstore (id, version) VALUES (1, 1);\n"
        else:
            text += f"UPDATE {schema}.eventstore SET version = {number};\n"
        if version == 0 and number == len(scripts):
            text += "".join(f"\n{_projection_ddl(schema, p)}" for p in projections)
        found.append((number, text))
    return found


def _projection_ddl(schema: str, projection: Projection) -> str:
    lines = [f"{create_table(projection, schema)};"]
    lines += [f"{index};" for index in create_indexes(projection, schema)]
    lines += [f"{view};" for view in create_views(projection)]
    lines.append(
        f"INSERT INTO {schema}.projections (name, version, table_name) "
        f"VALUES ('{projection.name}', {projection.version}, '{projection.table.name}');"
    )
    return "\n".join(lines) + "\n"


def ddl(schema: str, projections: Sequence[Projection], *, partitions: int = 0) -> str:
    """What somebody runs who may make a schema, for a service that may not; one transaction."""
    create = f"CREATE SCHEMA IF NOT EXISTS {schema};\n"
    scripts = "\n".join(text for _, text in _scripts(schema, 0, projections, partitions, create))
    return f"BEGIN;\n\n{scripts}\nCOMMIT;\n"


def pending_migrations(
    connection: Connection, address: Address, projections: Sequence[Projection]
) -> tuple[int, list[tuple[int, str]]]:
    """The version of the schema, and what opening it would run: each version with its SQL."""
    try:
        version = _version(connection, address)
        create = _create_schema(connection, address.schema)
    except psycopg.Error as error:
        raise translate(address, error) from None
    return version, _scripts(address.schema, version, projections, 0, create)


def check_schema(
    connection: Connection,
    address: Address,
    projections: Sequence[Projection],
    *,
    for_rebuild: bool,
) -> None:
    """Compares what is in the schema with what this code relies on.

    Raises:
        SchemaAltered, ProjectionMissing: see there.
    """
    schema, shown = address.schema, address.shown
    triggers = connection.execute(
        "SELECT c.relname, t.tgname, t.tgenabled::text FROM pg_trigger AS t "
        "JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace "
        "WHERE n.nspname = $1 AND NOT t.tgisinternal AND t.tgparentid = 0",
        (schema,),
    ).fetchall()
    ours = {name for table, name, enabled in triggers if table == "events" and enabled in "OA"}
    if missing := sorted(_TRIGGERS - ours):
        raise SchemaAltered(
            shown,
            f"lacks the trigger {missing[0]} on {schema}.events, which keeps events as they are",
            "Make it anew as adk-eventstore ddl shows, and verify.",
        )
    tables = {*_OURS, *(projection.table.name for projection in projections)}
    for table, name, _ in triggers:
        if table in tables and name not in _TRIGGERS:
            raise SchemaAltered(
                shown,
                f"has a trigger that is not ours: {name}",
                f'Remove it: DROP TRIGGER "{name}" ON {schema}."{table}";',
            )
    if connection.execute(f"SELECT 1 FROM {schema}.maintenance").fetchone() is not None:
        raise SchemaAltered(
            shown,
            "was left open for maintenance, so that events can be changed",
            f"Verify what was done, then: DELETE FROM {schema}.maintenance;",
        )
    if not for_rebuild:
        _check_projections(connection, address, projections)


def _check_projections(
    connection: Connection, address: Address, projections: Sequence[Projection]
) -> None:
    rebuild = _REBUILD.format(path=address.shown)
    rows = connection.execute(queries(address.schema)["registered_projections"]).fetchall()
    active: Mapping[str, int] = {
        name: version for name, version, _, checkpoint, *_ in rows if checkpoint is None
    }
    known = {projection.name: projection.version for projection in projections}
    for name in active.keys() - known.keys():
        raise ProjectionMissing(
            name,
            "the database relies on it and this process does not have it",
            "Install the package that provides it.",
        )
    for name, version in known.items():
        if active.get(name) != version:
            reason = f"the database has version {active.get(name)}, this process {version}"
            raise ProjectionMissing(name, reason, rebuild)
    for projection in projections:
        if not shadow.fits(connection, address.schema, projection):
            reason = f"{projection.table.name} is missing or was changed"
            raise ProjectionMissing(projection.name, reason, rebuild)


def check_definition(connection: Connection, address: Address, projection: Projection) -> None:
    """Makes an empty table and its views, and takes them back.

    Raises:
        InvalidProjection: PostgreSQL cannot: a view is no SELECT.
    """
    with (
        suppress(psycopg.errors.InsufficientPrivilege),  # whoever makes the real one will see
        _blaming(projection),
        connection.transaction(force_rollback=True),
    ):
        connection.execute(create_table(projection, "pg_temp"))
        connection.execute(f"SET LOCAL search_path = pg_temp, {address.schema}")
        for view in create_views(projection):
            connection.execute(view.replace("CREATE OR REPLACE VIEW", "CREATE TEMP VIEW", 1))


@contextmanager
def _blaming(projection: Projection) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.InsufficientPrivilege:
        raise
    except psycopg.errors.ProgrammingError as error:
        raise InvalidProjection(
            projection.name,
            f"has a table or view that PostgreSQL cannot make: {error.diag.message_primary}",
        ) from None

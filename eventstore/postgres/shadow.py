"""Shadow tables: how a projection's table is made anew beside the one that is in use.

The shadow is filled in small transactions while everybody goes on with the live table. Then, in
one transaction that holds all writers off, the live table is renamed to `retired_...` and the
shadow to the live name. What others have attached to the live table goes with the name: indexes
(copies of which were made on the empty shadow), privileges, and views, which PostgreSQL would leave
with the retired table.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import Final

import psycopg

from eventstore.errors import SchemaAltered, StoreBusy
from eventstore.postgres.connection import Connection
from eventstore.postgres.tables import (
    ProjectionTable,
    create_indexes,
    create_table,
    create_views,
    index_copy,
)
from eventstore.projection import Projection

__all__ = [
    "clear_away",
    "fits",
    "make",
    "may_replace",
    "replace",
    "retire",
    "swap",
    "table",
]

_log = logging.getLogger(__name__)

_ALONE_S: Final = 2.0
_INDEX: Final = re.compile(
    r"CREATE (UNIQUE )?INDEX (?:\"(?:[^\"]|\"\")*\"|\S+) ON (?:ONLY )?\S+ (.*)", re.DOTALL
)


def _shadow(name: str) -> str:
    return f"shadow_{name}"


def _retired(name: str) -> str:
    return f"retired_{name}"


def table(projection: Projection, schema: str) -> ProjectionTable:
    """The statements on a projection's shadow."""
    return ProjectionTable(projection, schema, _shadow(projection.table.name))


def fits(connection: Connection, schema: str, projection: Projection) -> bool:
    """Whether a projection's table is there, with the columns and types it needs."""
    columns = connection.execute(
        "SELECT a.attname, a.atttypid::bigint FROM pg_attribute AS a "
        "WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
        (f'{schema}."{projection.table.name}"',),
    ).fetchall()
    types = {"integer": 20, "real": 701, "text": 25}  # bigint, double precision, text
    wanted = {**projection.table.key, **projection.table.columns}
    return {name: types[kind] for name, kind in wanted.items()}.items() <= dict(columns).items()


def make(connection: Connection, schema: str, projection: Projection) -> None:
    """Makes the empty shadow, with a copy of each index that a user put on the live table.

    Raises:
        SchemaAltered: the live table has what a new one would not have.
    """
    live = projection.table.name
    if _is_row_secured(connection, schema, live):
        raise SchemaAltered(
            f"{schema}.{live}",
            "has row level security, which the table would lose",
            f'ALTER TABLE {schema}."{live}" DISABLE ROW LEVEL SECURITY, try again, then make its '
            "policies anew.",
        )
    connection.execute(create_table(projection, schema, _shadow(live)))
    for sql in create_indexes(projection, schema, _shadow(live)):
        connection.execute(sql)
    indexes = _user_indexes(connection, schema, live)
    for name in projection.table.indexes:
        indexes.pop(name, None)
    for number, (index, (unique, rest)) in enumerate(indexes.items()):
        try:
            with connection.transaction():
                connection.execute(
                    f'CREATE {unique}INDEX "{_copy_name(live, number)}" '
                    f'ON {schema}."{_shadow(live)}" {rest}'
                )
        except psycopg.ProgrammingError:
            # The new version of the table lacks a column of it.
            _log.warning("index %s does not fit the new table %s", index, live)


def swap(
    connection: Connection, schema: str, projection: Projection, before: str | None = None
) -> None:
    """Puts the shadow in the live table's place; part of a transaction of the caller's.

    `before` names the table of the version before, where that had another: it is dropped.

    Raises:
        SchemaAltered: something of a user's depends on that.
    """
    live = projection.table.name
    _lock_alone(connection, schema, live)
    own = list(projection.views.get("postgresql", {}))
    owner = _owner(connection, schema, live)
    view_grants = [grant for view in own for grant in _grants(connection, schema, view)]
    for view in own:
        connection.execute(f'DROP VIEW IF EXISTS {schema}."{view}"')
    if before is not None:
        _lock_alone(connection, schema, before)
        _drop(connection, schema, before)
    if _exists(connection, schema, live):
        grants = _grants(connection, schema, live)
        views = _dependent_views(connection, schema, live)
        indexes = _user_indexes(connection, schema, live)
        copies = _user_indexes(connection, schema, _shadow(live))
        for number, name in enumerate(projection.table.indexes):
            if indexes.pop(name, None) is not None:
                retired = f"{_retired(name)}"
                connection.execute(f'ALTER INDEX {schema}."{name}" RENAME TO "{retired}"')
            copies.pop(index_copy(_shadow(live), number), None)
        constraint = _primary_key(connection, schema, live)
        retire(connection, schema, live)
        if constraint:
            connection.execute(
                f'ALTER TABLE {schema}."{_retired(live)}" RENAME CONSTRAINT "{constraint}" '
                f'TO "{_retired(live)}_pkey"'
            )
        _rename(connection, schema, _shadow(live), live)
        by_rest = {rest: name for name, (_, rest) in copies.items()}
        for number, (name, (_, rest)) in enumerate(indexes.items()):
            if (copy := by_rest.get(rest)) is not None:
                connection.execute(
                    f'ALTER INDEX {schema}."{name}" RENAME TO "{_retired(live)}_{number}"'
                )
                connection.execute(f'ALTER INDEX {schema}."{copy}" RENAME TO "{name}"')
        _grant(connection, grants)
        _follow(connection, schema, live, views)
    else:
        _rename(connection, schema, _shadow(live), live)
    for number, name in enumerate(projection.table.indexes):
        copy = index_copy(_shadow(live), number)
        connection.execute(f'ALTER INDEX {schema}."{copy}" RENAME TO "{name}"')
    constraint = _primary_key(connection, schema, live)
    if constraint and constraint != f"{live}_pkey":
        connection.execute(
            f'ALTER TABLE {schema}."{live}" RENAME CONSTRAINT "{constraint}" TO "{live}_pkey"'
        )
    _create_views(connection, schema, projection)
    _give_back(connection, schema, [live, *own], owner, view_grants)


def may_replace(connection: Connection, schema: str, projection: Projection) -> bool:
    """Whether this role can put another table in the place of a projection's."""
    row = connection.execute(
        "SELECT has_schema_privilege($1, 'CREATE') AND pg_has_role(relowner, 'USAGE') "
        "FROM pg_class WHERE oid = to_regclass($2)",
        (schema, f'{schema}."{projection.table.name}"'),
    ).fetchone()
    return row is not None and bool(row[0])


def replace(connection: Connection, schema: str, projection: Projection, select: str) -> None:
    """Puts the rows of a statement in the live table's place; part of a transaction."""
    live = projection.table.name
    _lock_alone(connection, schema, live)  # before the work is done that would be for nothing
    while clear_away(connection, schema, live):
        pass
    make(connection, schema, projection)
    connection.execute(f"SET LOCAL search_path = {schema}")
    connection.execute(f'INSERT INTO {schema}."{_shadow(live)}"\n{select}')
    swap(connection, schema, projection)
    while clear_away(connection, schema, live):
        pass


def _give_back(
    connection: Connection, schema: str, names: list[str], owner: str | None, grants: list[str]
) -> None:
    """Lets a table and its views belong to whom they belonged, and others do what they could."""
    if owner is not None:
        for name in names:
            # Also of a view: PostgreSQL has one statement for both.
            connection.execute(f'ALTER TABLE {schema}."{name}" OWNER TO {owner}')
    _grant(connection, grants)


def _grant(connection: Connection, grants: list[str]) -> None:
    for grant in grants:
        # The new version of the table may lack a column.
        with suppress(psycopg.errors.UndefinedColumn), connection.transaction():
            connection.execute(grant)


def _lock_alone(connection: Connection, schema: str, name: str) -> None:
    """Waits for those who read a table, though not for long: all writers are waiting."""
    if _exists(connection, schema, name):
        connection.execute("SELECT set_config('lock_timeout', $1, true)", (f"{_ALONE_S:.0f}s",))
        try:
            connection.execute(f'LOCK TABLE {schema}."{name}" IN ACCESS EXCLUSIVE MODE')
        except psycopg.errors.LockNotAvailable:
            holder = "a transaction that reads it, a long query or a dump"
            raise StoreBusy(f"{schema}.{name}", _ALONE_S, holder) from None


def retire(connection: Connection, schema: str, name: str) -> None:
    """Takes a table out of use; part of a transaction of the caller's."""
    if _exists(connection, schema, name):
        _lock_alone(connection, schema, name)
        _rename(connection, schema, name, _retired(name))


def clear_away(connection: Connection, schema: str, name: str) -> bool:
    """Drops what is left of a shadow or retired table: here that takes no time, whatever its size.

    Raises:
        SchemaAltered: something of a user's depends on it.
    """
    for left in (_shadow(name), _retired(name)):
        if _exists(connection, schema, left):
            _drop(connection, schema, left)
            return True
    return False


def _drop(connection: Connection, schema: str, name: str) -> None:
    try:
        connection.execute(f'DROP TABLE IF EXISTS {schema}."{name}"')
    except psycopg.errors.DependentObjectsStillExist:
        raise SchemaAltered(
            f"{schema}.{name}",
            "is of no use any more, and something that is not ours depends on it",
            "Drop that, or make it anew on the table in use.",
        ) from None


def _create_views(connection: Connection, schema: str, projection: Projection) -> None:
    views = create_views(projection)
    if views:
        connection.execute(f"SET LOCAL search_path = {schema}")
        for view in views:
            connection.execute(view)


def _rename(connection: Connection, schema: str, old: str, new: str) -> None:
    connection.execute(f'ALTER TABLE {schema}."{old}" RENAME TO "{new}"')


def _exists(connection: Connection, schema: str, name: str) -> bool:
    row = connection.execute("SELECT to_regclass($1) IS NOT NULL", (f'{schema}."{name}"',))
    found = row.fetchone()
    return found is not None and bool(found[0])


def _is_row_secured(connection: Connection, schema: str, name: str) -> bool:
    row = connection.execute(
        "SELECT 1 FROM pg_class WHERE oid = to_regclass($1) AND relrowsecurity",
        (f'{schema}."{name}"',),
    )
    return row.fetchone() is not None


def _copy_name(live: str, number: int) -> str:
    return f"{_shadow(live)}_{number}"


def _primary_key(connection: Connection, schema: str, name: str) -> str | None:
    row = connection.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = to_regclass($1) AND contype = 'p'",
        (f'{schema}."{name}"',),
    ).fetchone()
    return None if row is None else str(row[0])


def _user_indexes(connection: Connection, schema: str, name: str) -> dict[str, tuple[str, str]]:
    """Indexes that are no constraint's: name to "UNIQUE ", and what follows the table."""
    rows = connection.execute(
        "SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index AS i "
        "JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass($1) "
        "AND NOT EXISTS (SELECT 1 FROM pg_constraint AS k WHERE k.conindid = i.indexrelid) "
        "ORDER BY c.relname",
        (f'{schema}."{name}"',),
    ).fetchall()
    found = {}
    for index, sql in rows:
        match = _INDEX.fullmatch(sql)
        assert match is not None, "PostgreSQL writes statements that begin so"
        found[str(index)] = (match[1] or "", match[2])
    return found


def _owner(connection: Connection, schema: str, name: str) -> str | None:
    """The role that owns a table; None where that is this one, or there is no table."""
    row = connection.execute(
        "SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class "
        "WHERE oid = to_regclass($1) AND pg_get_userbyid(relowner) <> current_user",
        (f'{schema}."{name}"',),
    ).fetchone()
    return None if row is None else str(row[0])


def _grants(connection: Connection, schema: str, name: str) -> list[str]:
    """The statements that give others the privileges which they have on a table or columns."""
    rows = connection.execute(
        "SELECT a.privilege_type, CASE WHEN a.grantee = 0 THEN 'PUBLIC' "
        "ELSE quote_ident(pg_get_userbyid(a.grantee)) END, a.is_grantable "
        "FROM pg_class AS c, aclexplode(c.relacl) AS a "
        "WHERE c.oid = to_regclass($1) AND a.grantee <> c.relowner "
        "UNION ALL "
        "SELECT format('%s (%I)', a.privilege_type, k.attname), CASE WHEN a.grantee = 0 "
        "THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END, a.is_grantable "
        "FROM pg_class AS c JOIN pg_attribute AS k ON k.attrelid = c.oid, "
        "aclexplode(k.attacl) AS a WHERE c.oid = to_regclass($1) AND a.grantee <> c.relowner",
        (f'{schema}."{name}"',),
    ).fetchall()
    return [
        f'GRANT {privilege} ON {schema}."{name}" TO {grantee}'
        + (" WITH GRANT OPTION" if grantable else "")
        for privilege, grantee, grantable in rows
    ]


def _dependent_views(connection: Connection, schema: str, name: str) -> list[tuple[str, str]]:
    """Views of others over a table: their names with their options, and what they select."""
    connection.execute("SET LOCAL search_path = pg_catalog")  # so that names come out qualified
    return connection.execute(
        "SELECT DISTINCT format('%I.%I', n.nspname, v.relname) "
        "|| coalesce(' WITH (' || array_to_string(v.reloptions, ', ') || ')', ''), "
        "pg_get_viewdef(v.oid) "
        "FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid "
        "JOIN pg_class AS v ON v.oid = r.ev_class JOIN pg_namespace AS n ON n.oid = v.relnamespace "
        "WHERE d.refobjid = to_regclass($1) AND d.classid = 'pg_rewrite'::regclass "
        "AND d.refclassid = 'pg_class'::regclass AND v.relkind = 'v'",
        (f'{schema}."{name}"',),
    ).fetchall()


def _follow(connection: Connection, schema: str, name: str, views: list[tuple[str, str]]) -> None:
    """Lets views of others show the table that has the name now."""
    for view, select in views:
        try:
            connection.execute(f"CREATE OR REPLACE VIEW {view} AS {select}")
        except psycopg.ProgrammingError:
            raise SchemaAltered(
                f"{schema}.{name}",
                f"is used by a view that does not fit its new version: {view}",
                "Drop that view, then try again.",
            ) from None

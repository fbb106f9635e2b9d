"""What maintenance writes is whole or not there, and what it removes is gone.

Tables of before are brought up to date.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import ClassVar

import msgspec
import psycopg
import pytest
from click.testing import CliRunner

from eventstore import (
    EventIdConflict,
    EventStore,
    MaintenanceRunning,
    MaintenanceTransaction,
    ProjectionMissing,
    SchemaAltered,
    StorageFailed,
    StoreBusy,
    Stream,
    open_store,
)
from eventstore.postgres.locks import Locks
from projections import (
    BUILT_IN,
    StateProjection,
    UsageProjection,
    erase_user,
    rebuild,
    run,
    verify,
)
from projections.cli import main
from tests.conftest import Place
from tests.eventstore.events import SESSION, new_event, session
from tests.places import leftovers, query
from tests.postgres.server import execute, servers
from tests.postgres.test_order import somebody_waits, until
from tests.processes import fresh_processes
from tests.projections.test_own_projections import Told, ToldWho, say
from tests.projections.test_retention import fill

PROCESSES = fresh_processes()
OTHER = session("other")


@pytest.fixture
def store(postgres: Place) -> Iterator[EventStore]:
    with closing(open_store(postgres.target, BUILT_IN)) as opened:
        for key in (SESSION, OTHER):
            asyncio.run(say(opened, key=key))
        yield opened


def live(transaction: MaintenanceTransaction, key: object = SESSION) -> Stream:
    stream = transaction.find_stream(key)  # type: ignore[arg-type]
    assert stream is not None
    return stream


def positions(postgres: Place) -> list[int]:
    return [n for (n,) in query(postgres.target, "SELECT position FROM events ORDER BY 1")]


# Events that wait.


def test_reads_find_what_waits(store: EventStore, postgres: Place) -> None:
    def write(transaction: MaintenanceTransaction) -> None:
        stream = live(transaction)
        for n in range(3):
            stream = transaction.append(stream, new_event(delta={"session": {"n": n}})).stream
            assert live(transaction).version == n + 3
            row = transaction.row(StateProjection(), (stream.id, "n"))
            assert row is not None
            assert row[2] == str(n)
        assert [event.version for event in transaction.read(stream)] == [1, 2, 3, 4, 5]

    store.transact(write)
    assert verify(store, BUILT_IN).clean


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_position_that_is_drawn_comes_behind_one_that_was_given(
    store: EventStore, postgres: Place, count: int
) -> None:
    logged = store.snapshot(lambda s: s.read_log(0, s.head(), 10))[-1]

    def write(transaction: MaintenanceTransaction) -> None:
        stream = live(transaction)
        for _ in range(count):
            stream = transaction.append(stream, new_event()).stream
        given = transaction.head() + 1
        event = logged.event._replace(version=3, event_id="given")
        transaction.import_event(live(transaction, OTHER), logged._replace(event=event), given)
        assert transaction.append(stream, new_event()).position == given + 1

    store.transact(write)
    assert len(set(positions(postgres))) == len(positions(postgres))


def test_a_function_that_goes_on_behind_a_conflict_has_done_nothing(
    store: EventStore, postgres: Place
) -> None:
    def write(transaction: MaintenanceTransaction) -> None:
        stream = live(transaction, OTHER)
        for n in range(5):
            stream = transaction.append(stream, new_event(event_id=f"e{n}")).stream
        transaction.flush()
        stream = transaction.append(stream, new_event(event_id="late")).stream
        with suppress(EventIdConflict):
            transaction.append(stream, new_event(event_id="e4"))
            transaction.flush()

    before = positions(postgres)
    with pytest.raises(EventIdConflict, match="'e4'"):
        store.transact(write)
    assert positions(postgres) == before


def test_nor_one_that_goes_on_behind_an_error_of_the_server(
    store: EventStore, postgres: Place
) -> None:
    def write(transaction: MaintenanceTransaction) -> None:
        transaction.append(live(transaction), new_event())
        transaction.flush()
        with suppress(psycopg.Error):
            transaction.connection.execute("SELECT 1 / 0")  # type: ignore[attr-defined]

    before = positions(postgres)
    with pytest.raises(StorageFailed, match="went on behind an error"):
        store.transact(write)
    assert positions(postgres) == before


def test_a_codec_that_was_undone_is_noted_again(store: EventStore, postgres: Place) -> None:
    def write(transaction: MaintenanceTransaction) -> None:
        event = msgspec.structs.replace(new_event(), codec="new")
        stream = transaction.append(live(transaction), event).stream
        transaction.read(stream)  # with the names of codecs

    def fail(transaction: MaintenanceTransaction) -> None:
        write(transaction)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.transact(fail)
    store.transact(write)
    store.close()
    assert len(query(postgres.target, "SELECT 1 FROM codecs WHERE fingerprint = 'new'")) == 1
    with closing(open_store(postgres.target, BUILT_IN)) as again:
        assert verify(again, BUILT_IN).clean


# Copies of what was removed.

SECRET = "Very-Secret-Word"


def erase(target: str, user: str = SECRET) -> tuple[int, str]:
    """How the command ends, and what it says."""
    done = CliRunner().invoke(main, ["erase-user", user, "--yes", "--db", target])
    return done.exit_code, done.output


def raw(place: Place) -> bytes:
    """Every byte of the files of a schema's tables, indexes and long values."""
    files = (
        "SELECT pg_read_binary_file(pg_relation_filepath(c.oid)) FROM pg_class AS c "
        "LEFT JOIN pg_index AS i ON i.indexrelid = c.oid "
        "LEFT JOIN pg_class AS t ON t.reltoastrelid IN (c.oid, i.indrelid) "
        f"WHERE '{place.schema}'::regnamespace IN (c.relnamespace, t.relnamespace) "
        "AND c.relkind IN ('r', 'i', 't')"
    )
    return b"".join(content for (content,) in execute(place.url, "CHECKPOINT", files))


def files(place: Place) -> list[tuple[str, int]]:
    named = f"relnamespace = '{place.schema}'::regnamespace ORDER BY relname"
    return execute(place.url, f"SELECT relname, relfilenode FROM pg_class WHERE {named}")


@pytest.mark.parametrize("partitions", [0, 2])
def test_an_erased_user_is_in_no_table_and_tables_are_written_anew_once(
    postgres: Place, partitions: int
) -> None:
    with closing(open_store(postgres.target, BUILT_IN, partitions=partitions)) as store:
        for n in range(20):
            # Long values are kept beside the table, where they can be made no shorter.
            words = f"{SECRET} {random.Random(n).randbytes(4_000).hex()}"
            fill(store, session(f"{SECRET}-{n}", SECRET), words=words)
            fill(store, session(f"other-{n}", "grace"))
        run(store, [UsageProjection()])
        # Samples of values are what the planner works with.
        query(postgres.target, "ANALYZE")
        sampled = f"SELECT 1 FROM pg_stats WHERE most_common_vals::text LIKE '%{SECRET}%'"
        assert query(postgres.target, sampled)
        assert SECRET.encode() in raw(postgres)
        code, said = erase(postgres.target)
        assert (code, "No copy is left in the tables" in said) == (0, True), said
        assert SECRET.encode() not in raw(postgres)
        assert not query(postgres.target, sampled)
        assert verify(store, BUILT_IN, [UsageProjection()]).clean
    before = files(postgres)
    assert erase(postgres.target) == (0, "There is nothing of such a user here.\n")
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        assert erase_user(store, BUILT_IN, [UsageProjection()], user_id=SECRET).gone
    assert files(postgres) == before


def test_a_transaction_of_before_may_keep_a_copy_and_it_is_said(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.postgres.engine._KEEPERS_WAIT_S", 0.2)
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        fill(store, session("a", SECRET), session("b", "eve"))
    with psycopg.connect(postgres.url) as reader:
        # It has nothing to do with the log, and could still look into it.
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT 1")
        code, said = erase(postgres.target)
        assert (code, "still open" in said) == (1, True), said
        assert SECRET.encode() in raw(postgres)
        vacuumed = CliRunner().invoke(
            main, ["vacuum", "--rewrite", "--yes", "--db", postgres.target]
        )
        assert (vacuumed.exit_code, "still open" in vacuumed.output) == (1, True)
    # It is still due, and the next one does it.
    code, said = erase(postgres.target)
    assert (code, "No copy is left in the tables" in said) == (0, True), said
    assert SECRET.encode() not in raw(postgres)


@pytest.mark.parametrize("slot", [False, True])
def test_so_may_one_that_is_prepared_and_one_on_a_replica(
    monkeypatch: pytest.MonkeyPatch, slot: bool
) -> None:
    def erase_within(seconds: float, user: str) -> int:
        monkeypatch.setattr("eventstore.postgres.engine._KEEPERS_WAIT_S", seconds)
        return erase(place.target, user)[0]

    with servers() as room:
        primary = room.add("primary", durable=True)
        execute(primary.url(), "ALTER SYSTEM SET max_prepared_transactions = 2")
        primary.stop()
        primary.start()
        replica = room.replicate(primary, "replica")
        replica.set("wal_receiver_status_interval", "1s")
        replica.set("hot_standby_feedback", "on")
        if slot:
            execute(primary.url(), "SELECT pg_create_physical_replication_slot('replica')")
            replica.set("primary_slot_name", "replica")
        place = Place(primary.url(), "s")
        with closing(open_store(place.target, BUILT_IN)) as store:
            fill(store, session("a", "ada"), session("b", SECRET), session("c", "eve"))

        execute(primary.url(), "BEGIN", "CREATE TABLE t ()", "PREPARE TRANSACTION 'forgotten'")
        assert erase_within(0.2, "ada") == 1
        execute(primary.url(), "ROLLBACK PREPARED 'forgotten'")
        assert erase_within(30, "ada") == 0

        kept = (
            "SELECT 1 FROM (SELECT backend_xmin AS x FROM pg_stat_replication UNION ALL "
            "SELECT xmin FROM pg_replication_slots) AS told WHERE x::text = "
        )
        with psycopg.connect(replica.url()) as reader:
            reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            oldest = reader.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text")
            kept += "'{}'".format(*oldest.fetchall()[0])
            until(lambda: bool(execute(primary.url(), kept)))
            assert erase_within(0.2, SECRET) == 1
            assert SECRET.encode() in raw(place)
        assert erase_within(30, SECRET) == 0
        assert SECRET.encode() not in raw(place)


# Tables of an older version.


class Shown(Told):
    views: ClassVar = {"postgresql": {"adk_told": "SELECT at FROM told"}}


class ShownWho(ToldWho):
    views: ClassVar = {"postgresql": {"adk_told": "SELECT at, who FROM told"}}


def say_once(target: str, projection: Told) -> None:
    with closing(open_store(target, [*BUILT_IN, projection])) as store:
        asyncio.run(say(store))


def start(target: str, projection: Told) -> None:
    open_store(target, [*BUILT_IN, projection]).close()


def test_processes_that_start_at_once_bring_a_table_up_to_date_once(postgres: Place) -> None:
    say_once(postgres.target, Told())
    processes = [
        PROCESSES.Process(target=start, args=(postgres.target, ToldWho()))  # type: ignore[attr-defined]
        for _ in range(3)
    ]
    locks = Locks(postgres.schema)

    def all_wait() -> bool:
        waiting = (
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
            f"AND (classid::bigint << 32 | objid::bigint) IN ({locks.migrating}, {locks.appending})"
        )
        return execute(postgres.url, waiting) == [(len(processes),)] or any(
            process.exitcode for process in processes
        )

    with psycopg.connect(postgres.url) as writer:
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s)", (locks.appending,))
        for process in processes:
            process.start()
        until(all_wait)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with closing(open_store(postgres.target, [*BUILT_IN, ToldWho()])) as store:
        assert verify(store, [*BUILT_IN, ToldWho()]).clean


def test_not_beside_a_rebuild(postgres: Place) -> None:
    say_once(postgres.target, Told())
    with psycopg.connect(postgres.url) as connection:
        lock = Locks(postgres.schema).maintaining
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
        with pytest.raises(MaintenanceRunning):
            open_store(postgres.target, [*BUILT_IN, ToldWho()])
    say_once(postgres.target, ToldWho())


def test_nor_does_it_keep_others_waiting_beside_a_frozen_writer(postgres: Place) -> None:
    say_once(postgres.target, Told())
    with closing(open_store(postgres.target, [*BUILT_IN, Told()])) as store:
        other = f"{postgres.target}&application_name=other"
        starting = threading.Thread(target=start, args=(other, ToldWho()))
        with psycopg.connect(postgres.url) as frozen:
            lock = Locks(postgres.schema).appending
            frozen.execute("SELECT pg_advisory_xact_lock_shared(%s)", (lock,))
            starting.start()
            until(lambda: somebody_waits(postgres))
            for _ in range(5):
                asyncio.run(say(store))
            assert starting.is_alive()
        starting.join()
    with closing(open_store(postgres.target, [*BUILT_IN, ToldWho()])) as store:
        assert verify(store, [*BUILT_IN, ToldWho()]).clean


def start_beside_another(target: str) -> None:
    with pytest.raises(StoreBusy):
        open_store(f"{target}&lock_timeout=0.1", [*BUILT_IN, ToldWho()])


@pytest.mark.parametrize("there", [False, True])
def test_another_that_migrates_is_waited_for_as_long_as_for_any_lock(
    postgres: Place, there: bool
) -> None:
    if there:
        say_once(postgres.target, Told())
    starting = threading.Thread(target=start_beside_another, args=(postgres.target,))
    with psycopg.connect(postgres.url) as other:
        lock = Locks(postgres.schema).migrating
        other.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
        starting.start()
        until(lambda: not starting.is_alive())


def test_a_role_that_cannot_replace_a_table_keeps_nobody_off(postgres_database: str) -> None:
    target = f"{postgres_database}?schema=s"
    say_once(target, Told())
    role = "only_reads"
    query(
        target,
        f"DROP ROLE IF EXISTS {role}",
        f"CREATE ROLE {role} LOGIN",
        f"GRANT USAGE ON SCHEMA s TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA s TO {role}",
    )
    with psycopg.connect(postgres_database) as writer:
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s)", (Locks("s").appending,))
        with pytest.raises(ProjectionMissing, match="rebuild-projections"):
            open_store(target.replace("//postgres@", f"//{role}@"), [*BUILT_IN, ToldWho()])
    execute(postgres_database, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@pytest.mark.parametrize("how", ["upgrade", "rebuild"])
def test_owners_and_rights_stay(postgres_database: str, how: str) -> None:
    owner, reader = f"{how}_owner", f"{how}_reader"
    execute(
        postgres_database,
        *(f"DROP ROLE IF EXISTS {role}" for role in (owner, reader)),
        f"CREATE ROLE {owner} LOGIN",
        f"CREATE ROLE {reader}",
        f"GRANT CREATE ON DATABASE {postgres_database.rpartition('/')[2]} TO {owner}",
    )
    target = f"{postgres_database}?schema=s"
    of_owner = target.replace("//postgres@", f"//{owner}@")
    say_once(of_owner, Shown())
    query(target, f"GRANT SELECT ON told, adk_told TO {reader}")
    with closing(
        open_store(target, [*BUILT_IN, ShownWho()], for_rebuild=how == "rebuild")
    ) as store:
        if how == "rebuild":
            rebuild(store, [*BUILT_IN, ShownWho()])
    owners = query(target, "SELECT tableowner FROM pg_tables WHERE tablename = 'told'")
    owners += query(target, "SELECT viewowner FROM pg_views WHERE viewname = 'adk_told'")
    assert owners == [(owner,), (owner,)]
    granted = query(
        target,
        "SELECT table_name FROM information_schema.role_table_grants "
        f"WHERE grantee = '{reader}' ORDER BY 1",
    )
    assert granted == [("adk_told",), ("told",)]
    say_once(of_owner, ShownWho())
    execute(postgres_database, "DROP SCHEMA s CASCADE", f"DROP OWNED BY {owner}, {reader}",
            f"DROP ROLE {owner}, {reader}")  # fmt: skip


@pytest.mark.parametrize("how", ["upgrade", "rebuild"])
def test_what_was_said_of_views_and_columns_stays(postgres: Place, how: str) -> None:
    reader = f"reader_{postgres.schema}"
    say_once(postgres.target, Told())
    query(
        postgres.target,
        f"CREATE ROLE {reader}",
        f"GRANT SELECT (at) ON told TO {reader}",
        'CREATE VIEW "Mine" WITH (security_barrier) AS SELECT * FROM told WHERE at > 1 '
        "WITH LOCAL CHECK OPTION",
        "CREATE VIEW plain AS SELECT at FROM told",
    )
    said = (
        "SELECT relname, reloptions FROM pg_class WHERE relkind = 'v' "
        f"AND relnamespace = '{postgres.schema}'::regnamespace ORDER BY relname"
    )
    before = query(postgres.target, said)
    assert ("Mine", ["security_barrier=true", "check_option=local"]) in before
    which: Told = ToldWho() if how == "upgrade" else Told()
    with closing(open_store(postgres.target, [*BUILT_IN, which])) as store:
        rebuild(store, [which])
        assert query(postgres.target, said) == before
        assert query(postgres.target, 'SELECT at > 1 FROM "Mine"') == [(True,)]
        may = f"SELECT has_column_privilege('{reader}', 'told', 'at', 'SELECT')"
        assert query(postgres.target, may) == [(True,)]
        may = f"SELECT has_table_privilege('{reader}', 'told', 'SELECT')"
        assert query(postgres.target, may) == [(False,)]
    query(postgres.target, f"DROP OWNED BY {reader}", f"DROP ROLE {reader}")


def test_a_table_with_row_level_security_is_not_replaced_by_one_without(postgres: Place) -> None:
    say_once(postgres.target, Told())
    query(postgres.target, "ALTER TABLE told ENABLE ROW LEVEL SECURITY")
    with pytest.raises(ProjectionMissing, match="rebuild-projections"):
        open_store(postgres.target, [*BUILT_IN, ToldWho()])
    with closing(open_store(postgres.target, [*BUILT_IN, Told()])) as store:
        with pytest.raises(SchemaAltered, match="row level security"):
            rebuild(store, [*BUILT_IN, Told()])
        query(postgres.target, "ALTER TABLE told DISABLE ROW LEVEL SECURITY")
        rebuild(store, [*BUILT_IN, Told()])
        assert leftovers(postgres.target) == []


def test_what_others_built_on_a_view_is_left_to_them(postgres: Place) -> None:
    say_once(postgres.target, Shown())
    query(postgres.target, "CREATE VIEW theirs AS SELECT at FROM adk_told")
    with pytest.raises(ProjectionMissing, match="rebuild-projections"):
        open_store(postgres.target, [*BUILT_IN, ShownWho()])
    query(postgres.target, "DROP VIEW theirs")
    say_once(postgres.target, ShownWho())

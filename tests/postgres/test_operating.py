"""What operators see: schemas, roles, time limits, passwords, forks, several starting at once."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner

from adk_adapter import DatabaseSessionService
from adk_adapter.cli import main
from eventstore import (
    Cursor,
    DeleteOwner,
    EventStore,
    ForeignDatabase,
    NotOnThisDatabase,
    PathUnusable,
    ProjectionMissing,
    Put,
    SchemaAltered,
    SchemaTooNew,
    ServerUnavailable,
    StoreBusy,
    TimedOut,
    Window,
    open_store,
    schema_ddl,
)
from eventstore.postgres.locks import Locks
from eventstore.postgres.queries import queries
from eventstore.postgres.tables import ProjectionTable
from eventstore.store import Durability
from projections import (
    BUILT_IN,
    UsageProjection,
    examine_database,
    list_sessions,
    rebuild,
    run,
    scavenge,
    vacuum,
    verify,
)
from tests.conftest import Place
from tests.eventstore.events import SESSION, created, new_event, session
from tests.places import query
from tests.postgres.server import execute
from tests.postgres.test_order import in_thread, until, waiting
from tests.processes import fresh_processes

PROCESSES = fresh_processes()


async def fill(store: EventStore, key: Any = SESSION, events: int = 3) -> None:
    loaded = await store.create(key, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))
    cursor = Cursor(loaded.stream.id, 1)
    for n in range(events):
        await store.append(key, new_event(delta={"session": {"n": n}}), cursor)


@pytest.fixture
def role(postgres: Place) -> Iterator[str]:
    """Somebody who may do everything, for a role's own settings."""
    name = f"role_{postgres.schema}"
    execute(postgres.url, f"CREATE ROLE {name} SUPERUSER LOGIN")
    yield name
    execute(postgres.url, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


def with_user(place: Place, user: str, password: str = "") -> str:
    return place.target.replace("//postgres@", f"//{user}:{password}@")


# The schema.


def test_without_the_right_to_make_it_the_schema_is_made_by_somebody_else(postgres: Place) -> None:
    with pytest.raises(PathUnusable, match="adk-eventstore ddl"):
        open_store(postgres.target, BUILT_IN, create_schema=False)
    printed = CliRunner().invoke(main, ["ddl", "--schema", postgres.schema]).output
    assert printed.rstrip() == schema_ddl(BUILT_IN, schema=postgres.schema).rstrip()
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(printed.encode())
    with closing(open_store(postgres.target, BUILT_IN, create_schema=False)) as store:
        asyncio.run(fill(store))
        assert verify(store, BUILT_IN).clean


def test_a_dry_run_of_migrate_shows_what_would_be_run(postgres: Place) -> None:
    result = CliRunner().invoke(main, ["migrate", "--dry-run", "--db", postgres.target])
    assert result.exit_code == 0
    with pytest.raises(PathUnusable, match="no schema"):
        open_store(postgres.target, BUILT_IN, create=False)
    # It is all that is needed, and what is run.
    relations = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(result.output.encode())
    with closing(open_store(postgres.target, BUILT_IN, create_schema=False)) as store:
        asyncio.run(fill(store))
        assert verify(store, BUILT_IN).clean
    by_hand = set(query(postgres.target, relations))
    query(postgres.target, f"DROP SCHEMA {postgres.schema} CASCADE")
    assert CliRunner().invoke(main, ["migrate", "--db", postgres.target]).exit_code == 0
    assert set(query(postgres.target, relations)) == by_hand


def test_nor_does_it_show_what_a_schema_that_is_there_does_not_need(postgres: Place) -> None:
    role = f"role_{postgres.schema}"
    execute(postgres.url, f"CREATE ROLE {role} LOGIN")
    execute(postgres.url, f"CREATE SCHEMA {postgres.schema} AUTHORIZATION {role}")
    # It may make no schema.
    theirs = with_user(postgres, role).replace(":@", "@")
    result = CliRunner().invoke(main, ["migrate", "--dry-run", "--db", theirs])
    query(theirs, result.output)
    with closing(open_store(theirs, BUILT_IN)) as store:
        asyncio.run(fill(store))
    execute(postgres.url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_whose_schema_it_is_is_looked_at_first(postgres: Place) -> None:
    query(postgres.target.replace(postgres.schema, "public"), f"CREATE SCHEMA {postgres.schema}")
    query(postgres.target, "CREATE TABLE events (id integer)")
    with pytest.raises(ForeignDatabase, match="not ours"):
        open_store(postgres.target, BUILT_IN)
    for name in ("sessions", "app_states", "user_states"):
        query(postgres.target, f"CREATE TABLE {name} (id integer)")
    with pytest.raises(ForeignDatabase, match="ADK's own"):
        open_store(postgres.target, BUILT_IN)


def test_a_newer_schema_is_refused_also_by_a_process_that_runs(postgres: Place) -> None:
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        asyncio.run(fill(store))
        query(postgres.target, "UPDATE eventstore SET version = 99")
        with pytest.raises(SchemaTooNew):
            asyncio.run(fill(store, session("other")))
        with pytest.raises(SchemaTooNew):
            open_store(f"{postgres.target}&application_name=x", BUILT_IN)
        query(postgres.target, "UPDATE eventstore SET version = 1")
        query(postgres.target, "INSERT INTO projections VALUES ('more', 1, 'more')")
        with pytest.raises(ProjectionMissing, match="more"):
            asyncio.run(fill(store, session("other")))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET author = 'x'",
        "DELETE FROM events",
        "TRUNCATE events",
        "INSERT INTO events SELECT * FROM events",
        "INSERT INTO events SELECT * FROM events ON CONFLICT (stream_id, version) "
        "DO UPDATE SET author = 'x'",
    ],
)
@pytest.mark.parametrize("partitions", [0, 4])
def test_events_are_never_changed(postgres: Place, statement: str, partitions: int) -> None:
    with closing(open_store(postgres.target, BUILT_IN, partitions=partitions)) as store:
        asyncio.run(fill(store))
        statements = [statement]
        if partitions:
            statements += [statement.replace(" events", f" events_{n}") for n in range(4)]
        refused = 0
        for each in statements:
            try:
                query(postgres.target, each)
            except (psycopg.errors.RestrictViolation, psycopg.errors.UniqueViolation):
                refused += 1
        assert refused == 1 if not partitions else refused >= 2
        assert store.stats()["events"] == 4
        assert verify(store, BUILT_IN).clean


def test_a_lost_trigger_is_noticed(postgres: Place) -> None:
    open_store(postgres.target, BUILT_IN).close()
    query(postgres.target, "ALTER TABLE events DISABLE TRIGGER events_no_change")
    with pytest.raises(SchemaAltered, match="events_no_change"):
        open_store(postgres.target, BUILT_IN)


def test_partitioned_it_does_all_the_same(postgres: Place) -> None:
    with closing(open_store(postgres.target, BUILT_IN, partitions=3)) as store:
        for n in range(9):
            asyncio.run(fill(store, session(str(n))))
        counts = [
            query(postgres.target, f"SELECT count(*) FROM events_{n}")[0][0] for n in range(3)
        ]
        assert sum(counts) == 36
        assert sum(count > 0 for count in counts) > 1
        asyncio.run(_delete(store, "4"))
        assert scavenge(store, BUILT_IN).sessions == 1
        rebuild(store, BUILT_IN)
        assert verify(store, BUILT_IN).clean


async def _delete(store: EventStore, name: str) -> None:
    from eventstore import EventType

    await store.delete(session(name), new_event(EventType.SESSION_DELETED))


# Roles.


@pytest.fixture
def adding(postgres: Place) -> Iterator[str]:
    """A new schema as a role has it that got the rights of docs/postgresql.md."""
    role = f"role_{postgres.schema}"
    open_store(postgres.target, BUILT_IN).close()
    grants = _documented_grants().replace("adk_eventstore", postgres.schema)
    grants = grants.replace("adk_service", role)
    query(postgres.target, f"CREATE ROLE {role} LOGIN", *filter(str.strip, grants.split(";")))
    yield with_user(postgres, role).replace(":@", "@")
    query(postgres.target, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def test_a_role_that_may_only_add(postgres: Place, adding: str) -> None:
    """The rights that docs/postgresql.md gives a service are enough for one, and no more."""
    with closing(open_store(adding, BUILT_IN)) as store:
        asyncio.run(fill(store))
        asyncio.run(_delete(store, "session"))
        asyncio.run(fill(store))
        assert verify(store, BUILT_IN).clean
        with pytest.raises(PathUnusable, match="lets this role do less"):
            scavenge(store, BUILT_IN)
        with pytest.raises(PathUnusable, match="lets this role do less"):
            store.rewrite()
    for statement in (
        "DELETE FROM events",
        "UPDATE events SET author = 'x'",
        "TRUNCATE events",
        "INSERT INTO maintenance VALUES (1, 'x')",
        "DROP TRIGGER events_no_change ON events",
        "CREATE TABLE mine (n integer)",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            query(adding, statement)
    # A rebuild by somebody who may keeps the rights on the new tables.
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        rebuild(store, BUILT_IN)
        assert scavenge(store, BUILT_IN).sessions == 1
    with closing(open_store(adding, BUILT_IN)) as store:
        asyncio.run(fill(store, session("after")))
        # Somebody else's projection is not read, so it need not be granted.
        with closing(open_store(postgres.target, BUILT_IN)) as owned:
            run(owned, [UsageProjection()])
        assert list_sessions(store, "app").sessions


def ends(target: str, *arguments: str) -> tuple[int, bool]:
    """How a command ends, and whether it says that it is for the owner."""
    result = CliRunner().invoke(main, [*arguments, "--db", target])
    return result.exit_code, "for the role that owns the schema" in result.output


def test_which_commands_that_role_may_run(postgres: Place, adding: str, tmp_path: Path) -> None:
    """As docs/postgresql.md says; and of what it may not run no half is done either."""
    with closing(open_store(adding, BUILT_IN)) as store:
        for name in ("session", "deleted", "kept"):
            asyncio.run(fill(store, session(name)))
        before = query(postgres.target, "SELECT count(*) FROM events")
        for refused in (
            ["rebuild-projections"],
            ["projections", "run", "usage"],
            ["purge", "--older-than", "1d", "--yes"],
            ["erase-user", "user", "--yes"],
            ["vacuum", "--rewrite", "--yes"],
        ):
            assert ends(adding, *refused) == (2, True), refused
        assert query(postgres.target, "SELECT count(*) FROM events") == before
        role = f"role_{postgres.schema}"
        assert ends(postgres.target, "projections", "run", "usage")[0] == 0
        query(postgres.target, f"GRANT SELECT, INSERT, UPDATE, DELETE ON usage TO {role}")
        query(postgres.target, "UPDATE state SET state_value = '7' WHERE state_key = 'n'")
        for done in (
            ["rebuild-projections", "--dry-run"],
            ["rebuild-projections", "--app", "app"],
            ["verify"],
            ["sessions", "title", "session", "a title"],
            ["sessions", "delete", "deleted", "--yes"],
            ["events", "tail"],
            ["stats"],
            ["doctor"],
            ["projections", "run", "usage"],
            ["usage"],
            ["purge", "--older-than", "1d", "--dry-run"],
            ["erase-user", "user", "--dry-run"],
            ["vacuum", "--dry-run"],
            ["export", str(tmp_path / "log.jsonl")],
        ):
            assert ends(adding, *done)[0] == 0, done
        for refused in (["projections", "drop", "usage", "--yes"], ["vacuum", "--yes"]):
            assert ends(adding, *refused) == (2, True), refused


def test_that_role_takes_in_sessions_and_no_whole_log(adding: str, tmp_path: Path) -> None:
    file = tmp_path / "sessions.sqlite3"
    with closing(open_store(file, BUILT_IN)) as store:
        asyncio.run(fill(store))
    whole, part = str(tmp_path / "whole.jsonl"), str(tmp_path / "part.jsonl")
    assert ends(str(file), "export", whole)[0] == 0
    assert ends(str(file), "export", part, "--app", "app")[0] == 0
    assert ends(adding, "import", whole) == (2, True)
    assert CliRunner().invoke(main, ["copy", str(file), adding]).exit_code == 2
    assert ends(adding, "import", part)[0] == 0
    with closing(open_store(adding, BUILT_IN)) as store:
        assert store.stats()["sessions"] == 1
        assert verify(store, BUILT_IN).clean


def _documented_grants() -> str:
    page = (Path(__file__).parents[2] / "docs" / "postgresql.md").read_text()
    (block,) = [b for b in page.split("```")[1::2] if "GRANT" in b]
    return "\n".join(
        line for line in block.removeprefix("sql\n").splitlines() if not line.startswith("CREATE")
    )


@pytest.mark.parametrize(("durability", "waits"), [("normal", "off"), ("full", "on")])
def test_durability_decides_what_a_commit_of_maintenance_waits_for(
    postgres: Place, role: str, durability: Durability, waits: str
) -> None:
    execute(postgres.url, f"ALTER ROLE {role} SET synchronous_commit = off")
    target = with_user(postgres, role)
    with closing(open_store(target, BUILT_IN, durability=durability)) as store:
        for beside_writers in False, True:
            assert store.transact(_waits_for, beside_writers=beside_writers) == waits


def _waits_for(transaction: Any) -> str:
    return str(transaction.connection.execute("SHOW synchronous_commit").fetchone()[0])


# Time limits.


@pytest.mark.parametrize("what", ["an append", "maintenance"])
def test_a_role_with_a_time_limit_of_its_own_waits_for_others_as_the_url_allows(
    postgres: Place, role: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.postgres.appending._PATIENCE_S", 30.0)
    monkeypatch.setattr("eventstore.postgres.database._ALONE_PATIENCE_S", 30.0)
    execute(postgres.url, f"ALTER ROLE {role} SET statement_timeout = '1s'")
    longer = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        f"AND usename = '{role}' AND clock_timestamp() - query_start > interval '1.2 s'"
    )
    with closing(open_store(with_user(postgres, role), BUILT_IN)) as store:
        asyncio.run(fill(store))

        def work() -> None:
            if what == "an append":
                asyncio.run(_append(store, SESSION))
            else:
                store.transact(lambda _: None)

        with ThreadPoolExecutor() as pool:
            with psycopg.connect(postgres.url) as holder:
                lock = Locks(postgres.schema).appending
                holder.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
                done = pool.submit(work)
                until(lambda: done.done() or bool(execute(postgres.url, longer)))
            done.result()


async def _append(store: EventStore, key: Any, delta: Any = None) -> None:
    stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
    assert stream is not None
    await store.append(key, new_event(delta=delta), Cursor(stream.id, stream.conversation_version))


class Hearing:
    """An Observer."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.again = 0

    def committed(self, requests: int, seconds: float) -> None:
        pass

    def retried(self, requests: int) -> None:
        self.again += requests

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)


def test_one_stuck_session_does_not_keep_the_others_waiting(postgres: Place) -> None:
    heard = Hearing()
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        store.observe(heard)
        for name in ("stuck", "b"):
            asyncio.run(fill(store, session(name)))
        with psycopg.connect(postgres.url) as holder:
            lock = f"SELECT 1 FROM {postgres.schema}.streams WHERE session_id = 'stuck' FOR UPDATE"
            holder.execute(lock.encode())
            stuck = in_thread(lambda: _append_many(store, "stuck"))
            until(lambda: waiting(postgres, "streams") == 1)
            for _ in range(5):
                asyncio.run(_append(store, session("b")))
            assert stuck.is_alive()
            assert heard.waits
            assert heard.again
        stuck.join()
        versions = asyncio.run(_numbers(store, "stuck"))
        assert versions[-10:] == list(range(10))
        assert verify(store, BUILT_IN).clean


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that does not wait first for those who may read what was removed."""
    monkeypatch.setattr("eventstore.postgres.engine._KEEPERS_WAIT_S", 0.0)


@pytest.mark.usefixtures("_at_once")
def test_beside_a_long_reader_a_rewrite_keeps_nobody_waiting(postgres: Place) -> None:
    done = []
    with (
        closing(open_store(postgres.target, BUILT_IN, partitions=2)) as store,
        psycopg.connect(postgres.url) as reader,
    ):
        asyncio.run(fill(store))
        reader.execute(f"SELECT count(*) FROM {postgres.schema}.events".encode())
        thread = threading.Thread(target=lambda: done.append(vacuum(store, BUILT_IN, rewrite=True)))
        thread.start()
        asked = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'VACUUM%FULL%' AND pid <> "
        until(lambda: bool(query(postgres.target, f"{asked} pg_backend_pid()")))
        asyncio.run(_append(store, SESSION, {"session": {"n": 7}}))
        assert asyncio.run(_numbers(store, "session")) == [None] * 4
        reader.rollback()
        thread.join()
        assert [each.rewritten for each in done] == [True]
        assert verify(store, BUILT_IN).clean


@pytest.mark.usefixtures("_at_once")
def test_a_rewrite_that_never_finds_the_log_unused_is_given_up(postgres: Place) -> None:
    with (
        closing(open_store(f"{postgres.target}&lock_timeout=0.5", BUILT_IN)) as store,
        psycopg.connect(postgres.url) as reader,
    ):
        asyncio.run(fill(store))
        reader.execute(f"SELECT count(*) FROM {postgres.schema}.events".encode())
        with pytest.raises(StoreBusy, match="a dump"):
            vacuum(store, BUILT_IN, rewrite=True)
        assert not store.rewrite(at_most_s=0.1).done
        assert verify(store, BUILT_IN).clean


@pytest.mark.usefixtures("_at_once")
def test_a_rewrite_is_over_in_time_also_when_it_waited_for_a_writer(postgres: Place) -> None:
    file = f"SELECT relfilenode FROM pg_class WHERE oid = '{postgres.schema}.events'::regclass"
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        asyncio.run(fill(store))
        before = query(postgres.target, file)
        with psycopg.connect(postgres.url) as writer:
            locks = store._engine.locks  # type: ignore[attr-defined]
            writer.execute("SELECT pg_advisory_xact_lock_shared(%s)", (locks.appending,))
            done: list[bool] = []
            rewriting = threading.Thread(
                target=lambda: done.append(store.rewrite(at_most_s=0.2).done)
            )
            rewriting.start()
            time.sleep(0.5)  # its time is over by then
        rewriting.join()
        assert (done, query(postgres.target, file)) == ([False], before)


@pytest.mark.usefixtures("_at_once")
def test_a_rewrite_that_the_server_ends_is_not_said_to_be_left_out(postgres: Place) -> None:
    role = f"role_{postgres.schema}"
    query(
        postgres.target,
        f"CREATE ROLE {role} SUPERUSER LOGIN",
        f"ALTER ROLE {role} SET statement_timeout = '1s'",
    )
    open_store(postgres.target, BUILT_IN).close()
    with (
        closing(open_store(with_user(postgres, role).replace(":@", "@"), BUILT_IN)) as store,
        psycopg.connect(postgres.url) as holder,
    ):
        # One of the things that a table cannot be written anew beside: it waits for the index.
        change = f"ALTER INDEX {postgres.schema}.events_pkey SET (fillfactor = 80)"
        holder.execute(change.encode())
        with pytest.raises(TimedOut):
            store.rewrite()
    query(postgres.target, f"DROP ROLE {role}")


async def _append_many(store: EventStore, name: str) -> None:
    stream = await store.load(session(name), Window(last=0), lambda loaded: loaded.stream)
    assert stream is not None
    cursor = Cursor(stream.id, stream.conversation_version)
    events = [new_event(data={"n": n}) for n in range(10)]
    await asyncio.gather(*(store.append(session(name), event, cursor) for event in events))
    await store.barrier()


async def _numbers(store: EventStore, name: str) -> list[int]:
    found = await store.load(
        session(name), Window(), lambda loaded: [e.payload().get("n") for e in loaded.events]
    )
    assert found is not None
    return found


# Passwords.

PASSWORD = "s3cret%2Fword"


@pytest.mark.parametrize("query_password", [False, True])
def test_a_password_is_in_no_error_and_no_log(
    postgres: Place, caplog: pytest.LogCaptureFixture, query_password: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    target = with_user(postgres, "nobody", PASSWORD)
    if query_password:
        target = f"{with_user(postgres, 'nobody').replace(':@', '@')}&password={PASSWORD}"
    for wrong in (target, f"{target}&unheard_of=1", f"{target}&port=1"):
        with pytest.raises((ServerUnavailable, PathUnusable)) as raised:
            open_store(wrong, BUILT_IN)
        assert raised.value.__cause__ is None
        said = f"{raised.value} {vars(raised.value)}"
        assert "nobody" in said
        result = CliRunner().invoke(main, ["verify", "--db", wrong])
        assert result.exit_code == 2
        for text in (said, result.output, caplog.text):
            assert "s3cret" not in text


async def test_nor_in_what_a_service_says_of_itself(
    postgres: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # The server trusts everybody here, and so takes any password.
    async with DatabaseSessionService(with_user(postgres, "postgres", PASSWORD)) as service:
        await service.ping()
        assert "s3cret" not in str(service.get_stats())
    assert "s3cret" not in caplog.text
    assert postgres.schema in caplog.text


async def test_a_function_says_how_to_connect(postgres: Place) -> None:
    calls = []

    async def connect() -> str:
        await asyncio.sleep(0)
        calls.append(1)
        return postgres.url

    async with DatabaseSessionService(connect=connect, schema=postgres.schema) as service:
        await service.create_session("app", "u", "s", {"k": 1})
        found = await service.get_session("app", "u", "s")
        assert found is not None
        assert found.state == {"k": 1}
        assert (await service.verify()).clean
    assert len(calls) > 1
    with closing(open_store(None, BUILT_IN, connect=lambda: postgres.url, schema=postgres.schema)):
        pass


# Forks, loops.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_parent_and_child_go_on_after_a_fork(postgres: Place) -> None:
    code = """
import asyncio, os, sys
from contextlib import closing
from eventstore import open_store, Cursor, Window
from projections import BUILT_IN, verify
from tests.eventstore.events import created, new_event, session

async def work(name):
    loaded = await store.create(session(name), created(app={name: 1}))
    cursor = Cursor(loaded.stream.id, 1)
    for n in range(20):
        await store.append(session(name), new_event(), cursor)
    assert len(await store.load(session(name), Window(), lambda loaded: loaded.events)) == 20

class Heard:
    commits = 0

    def committed(self, requests, seconds):
        Heard.commits += 1

    def waited(self, seconds):
        pass

store = open_store(sys.argv[1], BUILT_IN)
store.observe(Heard())
asyncio.run(work("before"))
child = os.fork()
Heard.commits = 0
asyncio.run(work("child" if child == 0 else "parent"))
assert Heard.commits > 0
if child == 0:
    store.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(work("after"))
assert verify(store, BUILT_IN).clean
print(store.stats()["sessions"])
store.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, postgres.target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_copies_are_the_servers_own_business(postgres: Place, tmp_path: Any) -> None:
    with (
        closing(open_store(postgres.target, BUILT_IN)) as store,
        pytest.raises(NotOnThisDatabase, match="pg_dump"),
    ):
        store.copy_to(str(tmp_path / "copy"))
    for arguments in (
        ["backup", str(tmp_path / "copy"), "--db", postgres.target],
        ["restore", str(tmp_path / "copy"), "--db", postgres.target],
        ["recover", postgres.target, str(tmp_path / "copy")],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, result.output
        assert "pg_dump" in result.output


def test_what_cannot_be_with_a_file(tmp_path: Any) -> None:
    for option in ({"schema": "x"}, {"connect": lambda: ""}, {"create_schema": False}):
        with pytest.raises(TypeError, match="postgresql"):
            open_store(tmp_path / "a.db", BUILT_IN, **option)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://h/d?schema=Bad", "schema"),
        ("postgresql://h/d?schema=pg_x", "schema"),
        ("postgresql://h/d?lock_timeout=soon", "lock_timeout"),
        ("postgresql:d", "no server"),
        *((f"postgresql://u:pw{each}pw@h/d", "^a postgresql: URL cannot be") for each in "@/?#"),
    ],
)
def test_urls_that_make_no_sense(url: str, reason: str) -> None:
    with pytest.raises(PathUnusable, match=reason) as raised:
        open_store(url, BUILT_IN)
    assert "pw" not in str(raised.value)


def test_words_of_sql_are_no_names_of_schemas(postgres: Place) -> None:
    words = query(postgres.url + "?schema=s", "SELECT word, catcode FROM pg_get_keywords()")
    assert len(words) > 400
    for word, kind in words:
        if kind in "RT":
            with pytest.raises(PathUnusable, match=f"the schema {word}, which is a word of SQL"):
                open_store(f"postgresql://h/d?schema={word}", BUILT_IN)
        else:
            schema_ddl(BUILT_IN, schema=word)


# What every command does with a URL.


def test_every_command_takes_a_url(postgres: Place) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, [*arguments, "--db", postgres.target])
        assert result.exit_code == code, result.output
        return result.output

    with closing(open_store(postgres.target, BUILT_IN)) as store:
        asyncio.run(fill(store))
        query(postgres.target, "UPDATE state SET state_value = '7' WHERE state_key = 'n'")
        assert "verify --fix" in run("verify", code=1)
        assert "1 differ" in run("rebuild-projections", "--dry-run")
        assert "1 put right" in run("rebuild-projections", "--app", "app")
        run("verify", "--fix", "--yes")
        run("rebuild-projections")
        run("projections", "run", "usage")
        assert "usage" in run("projections", "status")
        run("usage", "--by", "app")
        run("projections", "drop", "usage", "--yes")
        assert "newest" in run("migrate")
        assert "clean" in run("verify").lower()
        asyncio.run(_append(store, SESSION))
        assert verify(store, BUILT_IN).clean


def test_what_agents_wait_for_is_found_by_an_index(postgres: Place) -> None:
    open_store(postgres.target, BUILT_IN).close()
    statements = {
        name: sql
        for name, sql in queries(postgres.schema).items()
        if name.startswith(("lock_streams", "find_", "load_", "move_heads", "read_", "open_streams",
                            "ensure_", "get_", "has_event", "sessions_of", "link_at", "head",
                            "previous", "event_identity", "positions_of", "deleted"))
    }  # fmt: skip
    for projection in BUILT_IN:
        table = ProjectionTable(projection, postgres.schema)
        statements[f"key {projection.name}"] = table.of_key
        statements[f"owners {projection.name}"] = table.of_owners
        key = (1, "k")[: len(projection.table.key)]
        changes = [Put(key, projection.table.zeros), DeleteOwner(1)]
        for n, (sql, _) in enumerate(table.statements(changes)):
            statements[f"change {n} {projection.name}"] = sql
    with psycopg.connect(postgres.url, cursor_factory=psycopg.ClientCursor) as connection:
        connection.execute("SET plan_cache_mode = force_generic_plan")
        connection.execute("SET enable_seqscan = off")
        for number, (name, sql) in enumerate(statements.items()):
            connection.execute(f"PREPARE s{number} AS {sql}".encode())
            marks = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", sql))))
            plan = connection.execute(f"EXPLAIN EXECUTE s{number}({marks})".encode()).fetchall()
            assert "Seq Scan" not in str(plan), (name, plan)


def test_appends_do_not_read_a_young_table_whole(postgres: Place) -> None:
    """Plans are made when the tables are empty, and kept while they grow."""
    keys = [session(str(number)) for number in range(4)]
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        for key in keys:
            asyncio.run(fill(store, key, events=30))
    appended = len(keys) * 30

    def scanned(columns: str) -> dict[str, int]:
        counted = "relname IN ('events', 'streams', 'sessions', 'state')"
        from_ = f"FROM pg_stat_user_tables WHERE schemaname = '{postgres.schema}' AND {counted}"
        return dict(query(postgres.target, f"SELECT relname, {columns} {from_}"))

    # What a connection counts is shown when it has ended.
    until(lambda: scanned("idx_scan")["events"] >= appended)
    until(lambda: scanned("idx_scan")["streams"] >= appended)
    assert max(scanned("seq_tup_read").values()) < appended, scanned("seq_tup_read")


def test_a_doctor_finds_nothing_wrong_with_a_new_schema(postgres: Place) -> None:
    open_store(postgres.target, BUILT_IN).close()
    found = examine_database(postgres.target)
    assert {finding.state for finding in found} <= {"ok", "note"}, found
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {postgres.schema}.state CASCADE".encode())
    assert "state is missing" in str(examine_database(postgres.target))
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {postgres.schema}.maintenance CASCADE".encode())
    found = examine_database(postgres.target)
    assert {finding.state for finding in found} == {"ok", "problem"}

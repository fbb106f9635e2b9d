"""Hostile input: ids, values, files and schemas from people who mean no good."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import stat
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from google.adk.sessions import Session as AdkSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adk_adapter import AlreadyExistsError, DatabaseSessionService
from adk_adapter.cli import main
from eventstore import (
    EventStoreError,
    InvalidIdentifier,
    InvalidInput,
    SchemaAltered,
    ValueNotStorable,
    open_store,
)
from eventstore import encoding as encodings
from eventstore.limits import IDENTIFIER_LENGTH, NESTING_DEPTH
from eventstore.sqlite.database import connect
from projections import BUILT_IN, write_anchor
from tests.hostile.databases import SECRET, anchor, said

SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
ODD = [
    "'; DROP TABLE events; --", '" OR 1=1 --', "a/../../etc/passwd", "..", "a:b", "app:x", "user:",
    "line\nbreak", "\t", "%", "_", "\u202e", "e\u0301", "\U0001f600", "null", "0", "*", "a\\", "ü",
]  # fmt: skip
REFUSED = ["nul\0", "\ud800", "x" * (IDENTIFIER_LENGTH + 1), "x" * 1_000_000]
IDS = st.one_of(st.sampled_from(ODD), st.sampled_from(REFUSED), st.text(max_size=8))


def chained(error: BaseException | None) -> str:
    """All that can be shown of an error."""
    if error is None:
        return ""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


async def attempt(awaitable: Any) -> Any:
    """The result, or the typed error: anything else fails the test."""
    try:
        return await awaitable
    except (EventStoreError, ValueError, AlreadyExistsError) as error:  # or ADK's own
        assert type(error) is not ValueError
        return error


@pytest.mark.parametrize("bad", REFUSED)
async def test_ids_that_no_database_can_hold(service: DatabaseSessionService, bad: str) -> None:
    session = await service.create_session("a", "u", "s")
    event = said("x")
    event.author = bad
    for awaitable in (
        service.create_session(bad, "u", "s"),
        service.create_session("a", bad, "s"),
        service.create_session("a", "u", bad),
        service.create_session("a", "u", "t", {bad: 1}),
        service.get_session("a", bad, "s"),
        service.list_sessions(bad),
        service.list_sessions("a", bad),
        service.delete_session("a", "u", bad),
        service.get_user_state("a", bad),
        service.update_keys("a", "u", "s", {bad: 1}),
        service.append_event(session, event),
        service.append_event(session, said("x", **{bad: 1})),
    ):
        with pytest.raises(InvalidIdentifier) as raised:
            await awaitable
        assert isinstance(raised.value, ValueError)
        assert len(str(raised.value)) < 300
    assert service.get_stats()["events"] == 1


@SLOW
@given(st.lists(st.tuples(IDS, IDS, IDS), min_size=2, max_size=3, unique=True), IDS, IDS)
def test_nobody_reaches_what_is_somebody_elses(
    names: list[tuple[str, str, str]], key: str, value: str
) -> None:
    async def work() -> None:
        async with DatabaseSessionService(":memory:") as service:
            made: dict[tuple[str, str, str], Any] = {}
            for n, name in enumerate(names):
                state = {f"k{key}": n, f"user:{key}": n, f"app:{key}": n}
                session = await attempt(service.create_session(*name, state))
                if not isinstance(session, AdkSession):
                    continue
                made[session.app_name, session.user_id, session.id] = session
                event = await attempt(service.append_event(session, said(value, n=n)))
                assert isinstance(event, Exception) or event in session.events
            for (app, user, id_), session in made.items():
                loaded = await service.get_session(app, user, id_)
                assert loaded is not None
                assert loaded.events == session.events
                assert loaded.state[f"k{key}"] == session.state[f"k{key}"]
                mine = {n: n for n in (loaded.state.get(f"user:{key}"),)}
                assert set((await service.get_user_state(app, user)).values()) == set(mine)
                listed = await service.list_sessions(app, user)
                assert {(s.app_name, s.user_id) for s in listed} == {(app, user)}
            for name in names:  # any name leads to its own session or to none
                for other in names:
                    mixed = (name[0], other[1], name[2])
                    got = await attempt(service.get_session(*mixed))
                    if isinstance(got, AdkSession):
                        assert (got.app_name, got.user_id, got.id) in made
                        assert (got.app_name, got.user_id) == mixed[:2]
            if made:
                (app, user, id_), *others = made
                await attempt(service.update_keys(app, user, id_, {"changed": 1}))
                await service.delete_session(app, user, id_)
                for other in others:
                    assert await service.get_session(*other) is not None
            assert (await service.verify()).clean

    asyncio.run(work())


@pytest.mark.parametrize("text", ODD)
async def test_sql_and_paths_are_only_text(service: DatabaseSessionService, text: str) -> None:
    state = {text: text, "user:" + text: [text], "app:" + text: {text: text}}
    session = await service.create_session(text, text, text, state)
    event = said(text, **{text: text})
    event.author, event.invocation_id, event.id = text, text, text
    await service.append_event(session, event)
    loaded = await service.get_session(text, text, text)
    assert loaded == session or not text.strip()
    if loaded is not None:
        assert loaded.events == [event]
    assert (await service.verify()).clean
    assert service.get_stats()["events"] == 2


def nested(depth: int) -> Any:
    value: Any = SECRET
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [NESTING_DEPTH + 1, 1_000, 50_000])
async def test_nesting_has_a_limit(service: DatabaseSessionService, depth: int) -> None:
    with pytest.raises(ValueNotStorable):
        await service.create_session("a", "u", "s", {"k": nested(depth)})
    assert service.get_stats()["events"] == 0


async def test_what_is_nested_less_can_be_read_with_little_stack_left(
    service: DatabaseSessionService,
) -> None:
    await service.create_session("a", "u", "s", {"k": nested(NESTING_DEPTH - 3)})

    async def deep(frames: int) -> Any:
        return await (deep(frames - 1) if frames else service.get_session("a", "u", "s"))

    loaded = await deep(300)
    assert loaded.state["k"] == nested(NESTING_DEPTH - 3)


def test_brackets_in_strings_are_no_nesting() -> None:
    text = '[{"' * 2000 + "\\"
    assert encodings.encode([{"k": [text] * 300}], "x")[1] == 1
    with pytest.raises(ValueNotStorable):
        encodings.encode([{"k": [["]" * 500, nested(NESTING_DEPTH)]]}], "x")


async def test_large_state(service: DatabaseSessionService) -> None:
    value = "x" * 50_000_000
    session = await service.create_session("a", "u", "s", {"k": value})
    assert session.state["k"] == value
    loaded = await service.get_session("a", "u", "s")
    assert loaded is not None
    assert loaded.state["k"] == value


async def test_an_event_that_is_too_large(
    service: DatabaseSessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "TEXT_BYTES", 1_000_000)
    session = await service.create_session("a", "u", "s")
    for event in (said("x" * 1_000_001), said("x", k="x" * 1_000_001)):
        with pytest.raises(ValueNotStorable, match="1,000,000 are the most"):
            await service.append_event(session, event)
    await service.append_event(session, said("x" * 900_000))


@pytest.mark.parametrize(
    "value",
    [10**5000, float("nan"), float("inf"), "\ud800", b"\xff", {1: 2}, {"a": {3: 4}}, 1 << 64, -0.0],
    ids=lambda value: str(type(value)),
)
async def test_odd_values_are_stored_or_refused(
    service: DatabaseSessionService, value: Any
) -> None:
    outcome = await attempt(service.create_session("a", "u", "s", {"k": value}))
    assert isinstance(outcome, AdkSession | InvalidInput)
    assert isinstance(await attempt(service.get_session("a", "u", "s")), AdkSession | None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(IDS, inner, max_size=3),
    max_leaves=8,
)


@SLOW
@given(IDS, st.dictionaries(IDS, JSON, max_size=4), JSON)
def test_no_input_ends_in_anything_but_a_typed_error(
    name: str, state: dict[str, Any], value: Any
) -> None:
    async def work() -> None:
        async with DatabaseSessionService(":memory:") as service:
            session = await service.create_session("a", "u", "s")
            made = await attempt(service.create_session(name, name, name, state))
            await attempt(service.update_keys("a", "u", "s", state))
            event = said(str(name.encode("utf-8", "replace")), k=value)
            event.custom_metadata = {"v": value}
            await attempt(service.append_event(session, event))
            await attempt(service.get_user_state(name, name))
            await attempt(service.list_sessions(name, name))
            assert await service.get_session("a", "u", "s") is not None
            if isinstance(made, AdkSession):
                got = await service.get_session(made.app_name, made.user_id, made.id)
                assert got is not None
            await attempt(service.delete_session(name, name, name))
            assert (await service.verify()).clean

    logging.disable(logging.WARNING)
    try:
        asyncio.run(work())
    finally:
        logging.disable(logging.NOTSET)


COMMANDS = [
    "verify", "rebuild-projections", "migrate", "usage", "backup", "restore", "recover",
    "projections status", "projections run", "projections drop", "import", "export", "copy",
]  # fmt: skip


@settings(SLOW, max_examples=40)
@given(st.sampled_from(COMMANDS), st.lists(st.sampled_from(ODD) | st.text(max_size=6), max_size=3))
def test_commands_never_end_in_a_defect(
    tmp_path_factory: pytest.TempPathFactory, command: str, words: list[str]
) -> None:
    place = tmp_path_factory.mktemp("commands")
    before = Path.cwd()
    os.chdir(place)
    try:
        arguments = [*command.split(), *words, "--db", "none.db"]
        done = CliRunner().invoke(main, [word.replace("/", "") for word in arguments])
    finally:
        os.chdir(before)
    assert done.exit_code in (0, 1, 2), done.output
    assert "ended by a defect" not in done.output, (arguments, done.output)


# Files from strangers.


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TRIGGER t AFTER INSERT ON streams BEGIN DELETE FROM state; END"],
        ["CREATE TRIGGER t BEFORE INSERT ON events BEGIN SELECT RAISE(IGNORE); END"],
        ["CREATE TRIGGER t INSTEAD OF INSERT ON adk_events BEGIN SELECT 1; END"],
        ["ALTER TABLE events RENAME TO real", "CREATE VIEW events AS SELECT * FROM real"],
        ["DROP VIEW adk_events", "CREATE VIEW adk_events AS WITH RECURSIVE c(x) AS"
         " (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"],
        ["ALTER TABLE codecs RENAME TO c", "CREATE VIEW codecs AS WITH RECURSIVE c(x) AS"
         " (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x AS id, 'f' AS fingerprint FROM c"],
        ["CREATE INDEX i ON events (abs(position))"],
    ],
)  # fmt: skip
def test_a_malicious_schema_is_refused_at_open(
    filled: Path, tmp_path: Path, statements: list[str]
) -> None:
    path = tmp_path / "theirs.db"
    path.write_bytes(filled.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        for statement in statements:
            connection.execute(statement)
    with pytest.raises(SchemaAltered) as raised:
        open_store(path, BUILT_IN)
    assert str(raised.value).endswith((".", ";"))


async def test_an_index_that_fails_for_every_row_is_a_typed_error(
    filled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.db"
    path.write_bytes(filled.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE INDEX i ON streams (kind) WHERE kind = 'x' AND abs(id - 1) = 1")
    async with DatabaseSessionService(path) as service:
        await attempt(service.create_session("a", "u", "s"))


def test_connections_are_restricted(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(filled.read_bytes())
    for read_only in (True, False):
        with closing(connect(str(path), read_only=read_only)) as connection:
            assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
            with pytest.raises(sqlite3.OperationalError, match="attached databases"):
                connection.execute("ATTACH ? AS other", (str(tmp_path / "other.db"),))
            with pytest.raises(sqlite3.OperationalError, match="not authorized"):
                connection.execute("SELECT load_extension('x')")
            if read_only:
                with pytest.raises(sqlite3.OperationalError):
                    connection.execute("DELETE FROM state")
                if sys.version_info >= (3, 12):
                    assert connection.getconfig(sqlite3.SQLITE_DBCONFIG_DEFENSIVE)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
async def test_every_file_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "new" / "a.db"
        async with DatabaseSessionService(path) as service:
            session = await service.create_session("a", "u", "s")
            await service.append_event(session, said("x"))
            assert service.vacuum()
            await service.backup(path.with_name("b.db"))
            files = list(path.parent.iterdir())
            assert len(files) >= 6
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        write_anchor(path.with_name("anchor"), anchor(path))
        assert stat.S_IMODE(path.with_name("anchor").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_lock_files_and_anchors_are_never_written_through_a_link(
    filled: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for suffix in ("-gate", "-turn"):
        path = tmp_path / f"a{suffix}.db"
        link = Path(f"{path}{suffix}")
        link.symlink_to(precious)
        with pytest.raises(EventStoreError, match="lock file"):
            open_store(path, BUILT_IN)
        link.unlink()
    (tmp_path / "anchor.part").symlink_to(precious)
    write_anchor(tmp_path / "anchor", anchor(filled))
    assert precious.read_text() == "precious"


# Nothing that is said shows content.


def provoke(service: DatabaseSessionService) -> list[Callable[[], Any]]:
    class Strange:
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    looped: list[Any] = [SECRET]
    looped.append(looped)
    values = [
        looped, nested(300), nested(5000), 10**5000, SECRET.encode() + b"\xff", {SECRET: Strange()},
        SECRET + "\ud800", {SECRET: object()}, float("nan"), {(SECRET, 1): SECRET},
    ]  # fmt: skip
    found: list[Callable[[], Any]] = []
    for value in values:
        found.append(lambda v=value: service.update_keys("a", "u", "s", {"k": v}))
        found.append(lambda v=value: service.create_session("a", "u", None, {"k": v}))
        found.append(lambda v=value: _append(service, v, state=True))
        found.append(lambda v=value: _append(service, v, state=False))
    found.append(lambda: service.update_keys("a", "u", "gone", {"k": SECRET}))
    found.append(lambda: service.create_session("a", "u", "s", {"k": SECRET}))
    found.append(lambda: service.update_keys("a", "u", "s", [SECRET]))  # type: ignore[arg-type]
    return found


async def _append(service: DatabaseSessionService, value: Any, *, state: bool) -> None:
    session = await service.get_session("a", "u", "s")
    assert session is not None
    event = said(SECRET, **({"k": value} if state else {}))
    if not state:
        event.custom_metadata = {"k": value}
    await service.append_event(session, event)


async def test_no_error_or_log_shows_content(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "a.db"
    told = []
    async with DatabaseSessionService(path) as service:
        session = await service.create_session("a", "u", "s", {"k": SECRET, "user:k": SECRET})
        stale = session.model_copy(deep=True)
        await service.append_event(session, said(SECRET, k=SECRET))
        for call in provoke(service):
            with contextlib.suppress(AssertionError):
                told.append(await attempt(call()))
        told.append(await attempt(service.append_event(stale, said(SECRET))))
        twice = said(SECRET)
        twice.id = session.events[0].id
        told.append(await attempt(service.append_event(session, twice)))
    changes = [
        f"UPDATE state SET state_value = '{SECRET}'",
        f"UPDATE state SET state_value = CAST(x'{SECRET.encode().hex()}ff' AS TEXT)",
        f"UPDATE events SET data = '{SECRET}' WHERE version = 2",
        f"UPDATE events SET data = CAST(x'{SECRET.encode().hex()}ff' AS TEXT) WHERE version = 2",
        f"UPDATE events SET delta = '{SECRET}'",
        "UPDATE events SET type = 'unheard_of' WHERE version = 2",
    ]
    whole = path.read_bytes()
    for change in changes:
        path.write_bytes(whole)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("INSERT INTO maintenance VALUES (1, 'test')")
            connection.execute(change)
            connection.execute("DELETE FROM maintenance")
        for skip in ("raise", "skip"):
            async with DatabaseSessionService(path, on_corrupt=skip) as service:  # type: ignore[arg-type]
                told.append(await attempt(service.get_session("a", "u", "s")))
                told.append(await attempt(service.list_sessions("a")))
                told.append(await attempt(service.corrupt_events("a", "u", "s")))
                told.append(await attempt(service.backup(tmp_path / "b.db", overwrite=True)))
    errors = [each for each in told if isinstance(each, BaseException)]
    assert len(errors) > 30
    for error in errors:
        assert SECRET not in chained(error), error
    assert SECRET not in caplog.text

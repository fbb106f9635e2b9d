"""Projections that people write themselves: installed or given, followed, failing, mended."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adk_adapter import DatabaseSessionService
from benchmarks.events import event_stream
from eventstore import (
    Add,
    Change,
    Cursor,
    Delete,
    DeleteOwner,
    EventStore,
    EventType,
    InvalidProjection,
    Projection,
    ProjectionFailed,
    ProjectionMissing,
    Put,
    RecordedEvent,
    SchemaAltered,
    StorageFailed,
    Stream,
    StreamKey,
    StreamKind,
    Table,
    Update,
    Window,
    open_store,
)
from projections import (
    BUILT_IN,
    Follower,
    Status,
    UsageProjection,
    asynchronous,
    delete_session,
    erase_user,
    rebuild,
    rebuild_scope,
    run,
    scavenge,
    status,
    vacuum,
    verify,
)
from projections.asynchronous import drop
from projections.installed import following
from projections.rebuild import Scope
from tests.conftest import Place
from tests.eventstore.events import SESSION, created, new_event, session
from tests.fresh import run_python
from tests.places import leftovers, query
from tests.projections.logs import attack

ROOT = Path(__file__).parents[2]
SECONDS = 120
"""After which a wait has failed."""
SECRET = "their secret"

PACKAGE = '''
from eventstore import Add, EventType, Projection, Table


class Said(Projection):
    """How often each author has said something in a session."""

    name = "said"
    version = 1
    table = Table("said", {"session_id": "integer", "author": "text"}, {"times": "integer"})
    view = "SELECT author, sum(times) AS times FROM said GROUP BY author"
    views = {"sqlite": {"adk_said": view}, "postgresql": {"adk_said": view}}

    def apply(self, event):
        if event.type == EventType.ADK_EVENT:
            yield Add((event.stream.id, event.author), {"times": 1})
'''


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with an installed package that provides an inline projection."""
    folder = tmp_path / "site"
    facts = folder / "said_package-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / "said_package.py").write_text(PACKAGE)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: said-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[adk_eventstore.inline]\nsaid = said_package:Said\n")
    return folder


SAY = """
import asyncio, sys
from google.adk.events import Event
from adk_adapter import DatabaseSessionService

async def main():
    async with DatabaseSessionService(sys.argv[1]) as service:
        session = await service.get_session("app", "u", "s")
        session = session or await service.create_session("app", "u", "s")
        await service.append_event(session, Event(author="ada"))
        print(service.get_stats()["projections"], service.vacuum()["sessions"])
        print((await service.verify()).clean)

asyncio.run(main())
"""


def python(code: str, *arguments: object, site: Path | None = None) -> tuple[str, str]:
    """What a program with a package, or without, says and how its error ends."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYTHONPATH"] = f"{site or ''}{os.pathsep}{ROOT}"
    done = run_python(code, Path.cwd(), *arguments, environment=environment)
    return done.stdout, done.stderr.strip().rpartition("\n")[2]


REBUILD = """
import sys
from eventstore import open_store
from projections import installed, rebuild
store = open_store(sys.argv[1], installed.inline(), for_rebuild=True)
print([each.projection for each in rebuild(store, installed.inline())])
store.close()
"""


def test_an_installed_inline_projection_is_active(target: str, site: Path) -> None:
    said, error = python(SAY, target, site=site)
    assert (said, error) == ("{'sessions': 2, 'state': 1, 'said': 1} 0\nTrue\n", "")
    assert query(target, "SELECT * FROM adk_said") == [("ada", 1)]
    before = query(target, "SELECT count(*) FROM events")
    said, error = python(SAY, target)
    assert said == ""
    assert "ProjectionMissing" in error
    assert "'said'" in error
    assert "Install the package" in error
    assert query(target, "SELECT count(*) FROM events") == before


def test_an_open_process_that_lacks_a_new_inline_projection_stops_writing(
    store: EventStore, target: str, site: Path
) -> None:
    asyncio.run(fill(store, 1))
    assert python(REBUILD, target, site=site)[0] == "['sessions', 'state', 'said']\n"
    with pytest.raises(ProjectionMissing, match="'said'"):
        asyncio.run(say(store))
    assert query(target, "SELECT count(*) FROM events") == [(2,)]


def test_an_inline_projection_that_is_new_to_a_database(target: str, site: Path) -> None:
    assert python(SAY, target)[1] == ""
    said, error = python(SAY, target, site=site)
    assert said == ""
    assert "ProjectionMissing" in error
    assert "rebuild-projections" in error
    assert python(REBUILD, target, site=site) == ("['sessions', 'state', 'said']\n", "")
    assert python(SAY, target, site=site)[1] == ""
    assert query(target, "SELECT * FROM adk_said") == [("ada", 2)]


class Told(Projection):
    """When somebody was last told something, in the first version of it."""

    name = "told"
    version = 1
    table: ClassVar[Table] = Table("told", {"stream_id": "integer"}, {"at": "real"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.ADK_EVENT:
            yield Put((event.stream.id,), self.values(event))

    def values(self, event: RecordedEvent) -> tuple[Any, ...]:
        return (event.timestamp,)


class ToldWho(Told):
    """With the session's name, which an upgrade finds in the log."""

    version = 2
    table: ClassVar = Table("told", {"stream_id": "integer"}, {"at": "real", "who": "text"})
    select = "SELECT stream_id, at, session_id FROM told JOIN streams ON streams.id = stream_id"
    upgrades: ClassVar = {"sqlite": {1: select}, "postgresql": {1: select}}

    def values(self, event: RecordedEvent) -> tuple[Any, ...]:
        return event.timestamp, event.stream.key.session_id


class ToldWrongly(ToldWho):
    upgrades: ClassVar = {"sqlite": {1: "SELECT nothing"}, "postgresql": {1: "SELECT nothing"}}


def test_a_table_of_an_older_version_is_brought_up_to_date(target: str) -> None:
    with closing(open_store(target, [*BUILT_IN, Told()])) as store:
        asyncio.run(say(store))
    query(target, "CREATE INDEX of_mine ON told (at)")
    with pytest.raises(ProjectionMissing, match="rebuild-projections"):
        open_store(target, [*BUILT_IN, ToldWrongly()])
    with closing(open_store(target, [*BUILT_IN, ToldWho()])) as store:
        ((_, at, who),) = query(target, "SELECT * FROM told")
        assert (at > 0, who) == (True, SESSION.session_id)
        assert verify(store, [*BUILT_IN, ToldWho()]).clean
        query(target, "DROP INDEX of_mine")
    with pytest.raises(ProjectionMissing, match="version 2, this process 1"):
        open_store(target, [*BUILT_IN, Told()])
    with closing(open_store(target, [*BUILT_IN, ToldWho()])) as store:
        assert verify(store, [*BUILT_IN, ToldWho()]).clean


def test_a_package_that_cannot_be_loaded_is_named(target: str, site: Path) -> None:
    (site / "said_package.py").write_text(f"raise RuntimeError({SECRET!r})")
    error = python(SAY, target, site=site)[1]
    assert "ProjectionMissing: Projection 'said'" in error
    assert "RuntimeError" in error
    (site / "said_package.py").write_text("class Said: pass")
    assert "InvalidProjection" in python(SAY, target, site=site)[1]


# Followed


def test_a_table_of_the_log_is_not_dropped_whatever_is_noted(target: str) -> None:
    words = Words()
    with closing(open_store(target, BUILT_IN)) as store:
        asyncio.run(say(store, "a b"))
        run(store, [words])
        for table in ("streams", "events", "no such", "shadow_state"):
            query(target, f"UPDATE projections SET table_name = '{table}' WHERE name = 'words'")
            with pytest.raises(SchemaAltered, match="verify --fix"):
                asynchronous.drop(store, "words")
        assert verify(store, BUILT_IN, [words], fix=True).clean
        asynchronous.drop(store, "words")
        assert verify(store, BUILT_IN).clean


class Words(Projection):
    """How often each word was said in an app by a user: rows of the user."""

    name = "words"
    version = 1
    table = Table("words", {"user_id": "integer", "word": "text"}, {"times": "integer"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.ADK_EVENT:
            for word in event.payload()["text"].split():
                yield Add((event.stream.user_stream_id, word), {"times": 1})


class WordsTwice(Words):
    """With another column, which the older version's rows give."""

    version = 2
    table = Words.table._replace(columns={"times": "integer", "twice": "integer"})
    select = "SELECT user_id, word, times, 2 * times FROM words"
    upgrades: ClassVar = {"sqlite": {1: select}, "postgresql": {1: select}}

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        for change in super().apply(event):
            assert isinstance(change, Add)
            yield change._replace(columns={"times": 1, "twice": 2})


def test_what_was_carried_over_is_brought_up_to_date_too(target: str) -> None:
    mine, gone = session("mine"), session("gone")
    now = [*BUILT_IN, WordsTwice()]
    with closing(open_store(target, [*BUILT_IN, Words()])) as store:
        asyncio.run(say(store, "a b", gone))
        asyncio.run(say(store, "a", mine))
        delete_session(store, gone)
        assert vacuum(store, [*BUILT_IN, Words()]).sessions == 1
        asyncio.run(say(store, "a", mine))
    with closing(open_store(target, now)) as store:
        upgraded = rows_of(store, WordsTwice())
        assert [row[1:] for row in upgraded] == [("a", 3, 6), ("b", 1, 2)]
        assert verify(store, now).clean
        asyncio.run(say(store, "a", mine))
        rebuild(store, now)
        assert [row[1:] for row in rows_of(store, WordsTwice())] == [("a", 4, 8), ("b", 1, 2)]
        # Again removed, and by the events of the version now.
        delete_session(store, mine)
        vacuum(store, now)
        assert verify(store, now).clean
        erase_user(store, now, user_id=mine.user_id)
        assert rows_of(store, WordsTwice()) == []
        assert verify(store, now).clean


def test_a_damaged_event_that_carries_rows_over_is_left_to_a_rebuild(target: str) -> None:
    with closing(open_store(target, [*BUILT_IN, Words()])) as store:
        asyncio.run(say(store, "a b"))
        delete_session(store, SESSION)
        vacuum(store, [*BUILT_IN, Words()])
    attack(target, "UPDATE events SET data = '{}' WHERE type = 'carried_over'")
    with pytest.raises(ProjectionMissing, match="rebuild-projections"):
        open_store(target, [*BUILT_IN, WordsTwice()])
    with closing(open_store(target, [*BUILT_IN, Words()])) as store:
        assert times(store, Words()) == {"a": 1, "b": 1}


class Renamed(Words):
    """The same table under another name."""

    name = "renamed"


class Wider(Words):
    """Another table, and no other version."""

    table = Words.table._replace(columns={"times": "integer", "last": "integer"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        yield Put((event.stream.user_stream_id, "w"), (1, event.position))


class Poisoned(Words):
    """Raises at some word, as long as it is not mended."""

    name = "poisoned"
    table = Words.table._replace(name="poisoned")
    mended = False

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        for change in super().apply(event):
            assert isinstance(change, Add)
            if change.key[1] == "poison" and not self.mended:
                raise ValueError(f"cannot stand {event.payload()}")
            yield change


class Unfit(Words):
    """Makes of some word a change that no table can hold."""

    name = "unfit"
    table = Words.table._replace(name="unfit")

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        for change in super().apply(event):
            assert isinstance(change, Add)
            yield change if change.key[1] != "poison" else self.unfit(change)

    def unfit(self, change: Add) -> Any:
        return Add(change.key, {"times": SECRET})  # type: ignore[dict-item]


async def say(store: EventStore, text: str = "", key: StreamKey = SESSION) -> None:
    stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
    if stream is None:
        stream = (await store.create(key, created())).stream
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(key, new_event(data={"text": text}), cursor)


async def fill(store: EventStore, count: int) -> None:
    for n in range(count):
        await say(store, f"a b{n % 3}")


def rows_of(store: EventStore, projection: Projection) -> list[tuple[Any, ...]]:
    rows = store.snapshot(lambda s: s.table_page(projection, None, 10_000))
    return [tuple(row) for row in rows or ()]


def times(store: EventStore, projection: Projection) -> dict[str, int]:
    return {word: n for _, word, n in rows_of(store, projection)}


def of(store: EventStore, projection: Projection) -> Status:
    (found,) = [each for each in status(store) if each.projection == projection.name]
    return found


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_one_that_is_given_follows_in_the_background(target: str) -> None:
    async with DatabaseSessionService(target, projections=[Words()]) as service:
        store = service._store
        await fill(store, 5)
        await asyncio.to_thread(until, lambda: times(store, Words()).get("a") == 5)
        await fill(store, 5)
        await asyncio.to_thread(until, lambda: times(store, Words()).get("a") == 10)
        await asyncio.to_thread(until, lambda: of(store, Words()).lag == 0)
        assert (await service.verify()).clean


async def test_the_lag_is_what_was_appended_since(store: EventStore) -> None:
    await fill(store, 3)
    assert [each.projection for each in status(store)] == ["sessions", "state"]
    run(store, (Words(),))
    head = store.snapshot(lambda s: s.head())
    assert of(store, Words()) == Status("words", 1, False, head, 0, None, None)
    await fill(store, 4)
    assert of(store, Words()).lag == 4
    assert [each.lag for each in status(store) if each.inline] == [0, 0]
    run(store, (Words(),), stopping=lambda: True)
    assert of(store, Words()).lag == 4
    run(store, (Words(),))
    assert of(store, Words()).lag == 0
    assert times(store, Words()) == {"a": 7, "b0": 3, "b1": 2, "b2": 2}


FOLLOW = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from eventstore import open_store
from projections import BUILT_IN, asynchronous, run
from tests.projections.test_own_projections import Words
asynchronous._EVENTS_PER_TRANSACTION = 1
store = open_store(sys.argv[1], BUILT_IN)
run(store, (Words(),), progress=lambda *_: time.sleep(0.02))  # to be killed before it is done
"""


def start_following(target: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", FOLLOW, str(target)])


async def test_exactly_once_in_effect_whenever_it_is_killed(store: EventStore, target: str) -> None:
    run(store, (Words(),))
    await fill(store, 300)
    for reached in (20, 120):
        process = start_following(target)
        await asyncio.to_thread(until, lambda least=reached: of(store, Words()).checkpoint > least)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stopped = of(store, Words())
        assert times(store, Words())["a"] == stopped.checkpoint - 1
        assert stopped.lag > 0
    run(store, (Words(),))
    assert times(store, Words())["a"] == 300
    assert verify(store, BUILT_IN, (Words(),)).clean


# Failing


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("poisoned", [Poisoned, Unfit])
async def test_a_poison_event_stops_its_projection_and_no_other(
    store: EventStore, built: bool, alone: bool, poisoned: type[Projection]
) -> None:
    projections = (poisoned(), Words())
    if built:
        run(store, projections)
    if not alone:
        await fill(store, 3)
    await say(store, f"poison {SECRET}")
    at = store.snapshot(lambda s: s.head())
    if not alone:
        await fill(store, 3)
    run(store, projections)
    stopped, other = (of(store, each) for each in projections)
    assert (other.lag, other.failed_at) == (0, None)
    assert stopped.failed_at == at
    assert stopped.failure
    assert SECRET not in stopped.failure
    assert "poison" not in stopped.failure
    # The rows are those of before it; when it could not even be built there are none.
    assert stopped.checkpoint == (at - 1 if built else 0)
    assert times(store, projections[0]).get("a", 0) == (3 if built and not alone else 0)
    # It is left alone in the background, and tried again when somebody asks for it.
    assert [each.failed_at for each in run(store, projections, retry=False)] == [at, None]
    assert [each.failed_at for each in run(store, projections)] == [at, None]


async def test_a_mended_projection_goes_on(store: EventStore) -> None:
    poisoned = Poisoned()
    run(store, (poisoned,))
    for text in ("a", "poison", "a"):
        await say(store, text)
    (stopped,) = run(store, (poisoned,))
    assert re.fullmatch(r"ValueError \(test_own_projections\.py:\d+\)", stopped.failure or "")
    poisoned.mended = True
    (mended,) = run(store, (poisoned,))
    assert (mended.lag, mended.failed_at, mended.failure) == (0, None, None)
    assert times(store, poisoned) == {"a": 2, "poison": 1}
    assert verify(store, BUILT_IN, (poisoned,)).clean


def unfit_changes() -> Iterator[Any]:
    yield Put((1, "w"), ("1",))
    yield Put((1, "w"), (1.0,))
    yield Put((1, "w"), (2**63,))
    yield Put((1, "w"), (None,))
    yield Put((1, "w"), (1, 2))
    yield Put((1, "\ud800"), (1,))
    yield Put((1,), (1,))
    yield Put(("1", "w"), (1,))
    yield Update((1, "w"), {"other": 1})
    yield Add((1, "w"), {"other": 1})
    yield Add((1, "w"), {"times": 0.5})
    yield Delete((1,))
    yield DeleteOwner("1")  # type: ignore[arg-type]
    yield ("put", (1, "w"), (1,))
    yield None


@pytest.mark.parametrize("change", list(unfit_changes()), ids=repr)
async def test_a_change_that_does_not_fit_is_found_at_its_event(
    target: str, another: str, change: Any
) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        await _refuse(store, another, change)


async def _refuse(store: EventStore, another: str, change: Any) -> None:
    unfit = Unfit()
    unfit.unfit = lambda _: change  # type: ignore[method-assign]
    await say(store, "poison")
    (stopped,) = run(store, (unfit,))
    assert stopped.failed_at == 2
    # Inline it refuses the append, and the log does not have it.
    inline = (*BUILT_IN, unfit)
    with closing(open_store(another, inline)) as other:
        with pytest.raises(ProjectionFailed) as raised:
            await say(other, f"poison {SECRET}")
        assert raised.value.projection == "unfit"
        assert SECRET not in str(raised.value)
        await say(other, "fine")
        assert verify(other, inline).clean


def test_the_background_says_once_why_it_waits(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = []

    def fail(_: EventStore, projections: Any, **__: Any) -> None:
        rounds.append(projections)
        raise StorageFailed("path", "the disk is full")

    monkeypatch.setattr(asynchronous, "run", fail)
    monkeypatch.setattr(asynchronous, "_POLL_S", 0.01)
    follower = Follower(store, lambda: (Words(), Poisoned()), {Words.name, Poisoned.name})
    follower.ensure_running()
    until(lambda: len(rounds) > 5)
    follower.stop()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "projection words waits", "projection poisoned waits"
    ]  # fmt: skip


async def test_maintenance_never_meets_the_services_own_background(target: str) -> None:
    async with DatabaseSessionService(target) as service:
        await fill(service._store, 300)
    for n in range(4):
        fresh = type("Fresh", (Words,), {"version": n + 1})
        async with DatabaseSessionService(target, projections=[fresh()]) as service:
            if n % 2:
                await asyncio.to_thread(until, lambda n=n: of(service._store, Words()).version > n)
            assert (await service.verify()).clean
            service.vacuum()
            assert times(service._store, Words())["a"] == 300


async def test_what_a_newer_version_wrote_is_left_alone(target: str) -> None:
    class Newer(Words):
        version = 2

    class Second(Words):
        name = "second"
        table = Words.table._replace(name="second")

    async with DatabaseSessionService(target) as service:
        run(service._store, (Newer(),))
        await fill(service._store, 2)
        run(service._store, (Newer(),))
    async with DatabaseSessionService(target, projections=[Words(), Second()]) as service:
        await asyncio.to_thread(until, lambda: times(service._store, Second()).get("a") == 2)
        # The rows of a newer version are left to those who have it.
        assert of(service._store, Words()).version == 2
        with pytest.raises(ProjectionMissing, match="version 2, this process 1"):
            run(service._store, (Words(),))
        with pytest.raises(ProjectionMissing):
            service.vacuum()


async def test_a_new_version_is_built_anew(store: EventStore, target: str) -> None:
    class Louder(Words):
        version = 2
        table = Table("words", {"user_id": "integer", "word": "text", "loud": "integer"},
                      {"times": "integer"})  # fmt: skip

        def apply(self, event: RecordedEvent) -> Iterable[Change]:
            for change in super().apply(event):
                assert isinstance(change, Add)
                yield Add((*change.key, 1), change.columns)

    await fill(store, 4)
    run(store, (Words(),))
    assert verify(store, BUILT_IN, (Louder(),)).unchecked == {"words": "it has not been built"}
    run(store, (Louder(),))
    assert of(store, Louder()).version == 2
    assert {row[1:] for row in rows_of(store, Louder())} == {
        ("a", 1, 4), ("b0", 1, 2), ("b1", 1, 1), ("b2", 1, 1)
    }  # fmt: skip
    assert verify(store, BUILT_IN, (Louder(),)).clean
    assert leftovers(target) == []


# Definitions


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"name": "Words"}, "'Words'"),
        ({"name": ""}, "''"),
        ({"name": 5}, "5"),
        ({"version": 0}, "version"),
        ({"version": "1"}, "version"),
        ({"version": None}, "version"),
        ({"table": None}, "part"),
        ({"table": Table("words", {}, {"n": "integer"})}, "columns"),
        ({"table": Table("words", {"k": "integer"}, {})}, "columns"),
        ({"table": Table("words", {"k": "integer"}, {"k": "text"})}, "distinct"),
        ({"table": Table("words", {"k": "text"}, {"n": "integer"})}, "integer first"),
        ({"table": Table("words", {"k": "integer"}, {"n": "blob"})}, "types"),  # type: ignore[dict-item]
        ({"table": Table("words", {"k": "integer"}, {"n; DROP": "text"})}, "DROP"),
        ({"table": Table("events", {"k": "integer"}, {"n": "text"})}, "events"),
        ({"table": Table("adk_words", {"k": "integer"}, {"n": "text"})}, "adk_words"),
        ({"table": Table("select", {"k": "integer"}, {"n": "text"})}, "select"),
        ({"table": Table("words", {"k": "integer"}, {"order": "text"})}, "order"),
        ({"views": {"sqlite": {"words_view": "SELECT 1"}}}, "words_view"),
        ({"views": {"sqlite": {"adk_x": "SELEKT 1"}}}, "SELEKT"),
        ({"views": {"sqlite": {"adk_events": "SELECT 1"}}}, "taken"),
        ({"views": ["adk_x"]}, "part"),
    ],
)
def test_an_invalid_definition_says_what_is_wrong(
    database: Path, parts: dict[str, Any], reason: str
) -> None:
    invalid = type("Invalid", (Words,), parts)()
    with pytest.raises(InvalidProjection, match=re.escape(reason)):
        DatabaseSessionService(database, projections=[invalid])
    with pytest.raises(InvalidProjection, match=re.escape(reason)):
        open_store(database, (*BUILT_IN, invalid))


def test_a_view_that_the_server_cannot_make_is_refused(postgres: Place) -> None:
    view = {"postgresql": {"adk_x": "SELEKT 1"}}
    invalid = type("Invalid", (Words,), {"views": view})()
    for open_it in (
        lambda: open_store(postgres.target, (*BUILT_IN, invalid)),
        lambda: DatabaseSessionService(postgres.target, projections=[invalid]),
        lambda: open_store(postgres.target, (*BUILT_IN, invalid), for_rebuild=True),
    ):
        with pytest.raises(InvalidProjection, match="SELEKT"):
            open_it()


@pytest.mark.parametrize("what", [Words, "words", None, object()])
def test_only_projections_can_be_given(target: str, what: Any) -> None:
    with pytest.raises(InvalidProjection, match=r"is no eventstore\.Projection"):
        DatabaseSessionService(target, projections=[what])


def test_names_and_tables_are_distinct(target: str) -> None:
    same = type("Same", (Words,), {"name": "other"})()
    view = {"sqlite": {"adk_state": "SELECT 1"}}
    with pytest.raises(InvalidProjection, match="another one has"):
        DatabaseSessionService(target, projections=[type("View", (Words,), {"views": view})()])
    for given_too in (Words(), same):
        with pytest.raises(InvalidProjection, match="another one has"):
            DatabaseSessionService(target, projections=[Words(), given_too])
    state = type("State", (Words,), {"table": Words.table._replace(name="state")})()
    with pytest.raises(InvalidProjection, match="another one has"):
        DatabaseSessionService(target, projections=[state])


# The law


class Anything(Projection):
    """Does to rows of its session, its user and its app whatever an event says."""

    name = "anything"
    version = 1
    table = Table("anything", {"owner": "integer", "k": "text"}, {"n": "integer", "t": "text"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.STATE_SET:
            yield Add((event.stream.owners["app"], "sets"), {"n": 1})
        if event.type != EventType.ADK_EVENT:
            return
        for scope, kind, k, n in event.payload()["do"]:
            owner = event.stream.owners.get(scope, 0)
            key = (owner, k)
            if kind == "put":
                yield Put(key, (n, f"put {n}"))
            elif kind == "update":
                yield Update(key, {"t": f"updated {n}"})
            elif kind == "add":
                yield Add(key, {"n": n})
            elif kind == "delete":
                yield Delete(key)
            else:
                yield DeleteOwner(owner)


class AnythingInline(Anything):
    name = "inline"
    table = Anything.table._replace(name="anything_inline")


DOINGS = st.lists(
    st.tuples(
        st.sampled_from(["session", "user", "app", "nobody"]),
        st.sampled_from(["put", "update", "add", "delete", "empty"]),
        st.sampled_from(["k", "l"]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=3,
)
NAMES = st.tuples(st.sampled_from(["1", "2"]), st.sampled_from(["u", "v"]), st.just("app"))
STEPS = st.one_of(
    st.tuples(st.just("do"), NAMES, DOINGS),
    st.tuples(st.just("do"), NAMES, DOINGS),
    st.tuples(st.just("delete"), NAMES, st.none()),
    st.tuples(st.just("scavenge"), NAMES, st.none()),
    st.tuples(st.just("run"), NAMES, st.integers(0, 3)),
)


def after(*doings: tuple[str, str]) -> list[tuple[str, Any, Any]]:
    """Sessions do things to the same row of their user; then the first of them is removed."""
    done = [("do", (n, "u", "app"), [("user", kind, "k", 2)]) for n, kind in doings]
    return [*done, ("delete", ("1", "u", "app"), None), ("scavenge", ("1", "u", "app"), None)]


@example(after(("1", "put"), ("2", "add")))
@example(after(("1", "add"), ("2", "put")))
@example(after(("1", "put"), ("2", "update")))
@example(after(("1", "put"), ("1", "add")))
@example(after(("1", "update"), ("2", "put"), ("1", "add")))
@example(after(("2", "put"), ("1", "delete")))
@example(after(("2", "put"), ("1", "empty")))
@example(after(("2", "put"), ("1", "delete"), ("2", "put")))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=5, max_size=25))
def test_however_it_is_folded_the_rows_are_the_same(steps: list[tuple[str, Any, Any]]) -> None:
    """Any mixture of changes, from any streams, of which some are deleted and removed."""
    inline, following = (*BUILT_IN, AnythingInline()), (Anything(),)
    with (
        TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patched,
        closing(open_store(Path(folder) / "a.db", inline)) as store,
    ):
        patched.setattr(asynchronous, "_EVENTS_PER_TRANSACTION", 2)
        run(store, following)
        for kind, name, what in steps:
            if kind == "run":
                left = iter(range(what))
                run(store, following, stopping=lambda left=left: next(left, None) is None)
            elif kind == "scavenge":
                before = rows_of(store, AnythingInline())
                scavenge(store, inline, following)
                sets = [row for row in rows_of(store, AnythingInline()) if row[1] != "sets"]
                assert sets == [row for row in before if row[1] != "sets"]
            else:
                asyncio.run(perform(store, kind, session(*name), what))
        run(store, following)
        for projection in (inline[-1], following[0]):
            kept = rows_of(store, projection)
            assert kept == rows_of(store, Anything())
            assert verify(store, inline, following).clean
            for user in ("u", "v"):
                scope = Scope("app", user)
                if store.snapshot(lambda s, u=user: s.find_stream(user_key(u))) is not None:
                    repaired = rebuild_scope(store, inline[-1:], following, scope)
                    assert [each.changed for each in repaired] == [0, 0]
            rebuild(store, inline, following)
            assert rows_of(store, projection) == kept


def user_key(user_id: str) -> StreamKey:
    return StreamKey(StreamKind.USER, "app", user_id)


async def perform(store: EventStore, kind: str, key: StreamKey, what: Any) -> None:
    if kind == "delete":
        await store.delete(key, new_event(EventType.SESSION_DELETED))
        return
    stream = await store.load(key, Window(last=0), lambda loaded: loaded.stream)
    if stream is None:
        stream = (await store.create(key, created(user={"k": 1}, app={"k": 1}))).stream
    cursor = Cursor(stream.id, stream.conversation_version)
    await store.append(key, new_event(data={"do": [list(each) for each in what]}), cursor)


# The page


def code_of(language: str, beginning: str) -> str:
    page = (ROOT / "docs" / "projections.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(beginning)]
    return str(block)


def test_the_package_on_the_page(tmp_path: Path, database: Path) -> None:
    """Its modules, its entry points as an installer would write them, and its tests."""
    site = tmp_path / "site"
    facts = site / "my_projections-1.0.dist-info"
    facts.mkdir(parents=True)
    project = tomllib.loads(code_of("toml", "[project]"))["project"]
    name, version = project["name"], project["version"]
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(groups))
    (site / "my_projections.py").write_text(code_of("python", '"""What our agents'))
    test = tmp_path / "test_my_projections.py"
    test.write_text(code_of("py", "import asyncio\nimport sqlite3"))
    run_tests = (
        f"import pytest, sys; sys.exit(pytest.main(['-q', '-c', '/dev/null', {str(test)!r}]))"
    )
    said, error = python(run_tests, site=site)
    assert "1 passed" in said, said + error


def test_the_first_one_on_the_page(tmp_path: Path) -> None:
    """It counts what benchmarks and real runs store."""
    code = code_of("python", "from datetime").replace(
        "DatabaseSessionService(projections",
        f"DatabaseSessionService({str(tmp_path / 'a')!r}, projections",
    )
    names: dict[str, Any] = {"__name__": "page"}
    exec(code, names)
    service, tool_calls = names["service"], names["ToolCalls"]()

    async def converse() -> None:
        session = await service.create_session("app", "ada")
        for event in itertools.islice(event_stream(), 40):
            await service.append_event(session, event)
        await asyncio.to_thread(run, service._store, (tool_calls,))
        assert [row[2:] for row in rows_of(service._store, tool_calls)] == [("run_query", 10)]
        await service.close()

    asyncio.run(converse())


async def test_a_table_belongs_to_one_projection(target: str) -> None:
    async with DatabaseSessionService(target, projections=[Words()]) as service:
        await service.create_session("app", "ada", "s")
    with closing(open_store(target, BUILT_IN)) as store:
        run(store, (Words(),))
        with pytest.raises(InvalidProjection, match=r"has the table of 'words'.*drop words"):
            following(store, (Renamed(),))
    with pytest.raises(InvalidProjection, match="table of 'words'"):
        DatabaseSessionService(target, projections=[Renamed()])


class Inbox(Projection):
    """What was said to somebody: rows of any stream, which the event names."""

    name = "inbox"
    version = 1
    table = Table("inbox", {"to_stream": "integer", "sender": "integer"}, {"said": "text"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.type == EventType.ADK_EVENT:
            to, said = event.payload()["text"].split()
            yield Put((int(to), event.stream.id), (said,))


class LateInbox(Inbox):
    name = "late_inbox"
    table = Inbox.table._replace(name="late_inbox")


@pytest.mark.parametrize("how", ["vacuum", "erase", "erase, then write"])
def test_rows_that_went_with_their_stream_do_not_come_back(target: str, how: str) -> None:
    """Also where the event that wrote one is another's, and stays."""
    inline, followed = (*BUILT_IN, Inbox()), (LateInbox(),)
    with closing(open_store(target, inline)) as store:
        theirs = session("b", "bob")
        bob = asyncio.run(_made(store, theirs))
        run(store, followed)
        for owner in (bob.id, bob.user_stream_id):
            asyncio.run(say(store, f"{owner} hello", session(f"to {owner}", "ada")))
        run(store, followed)
        if how == "vacuum":
            asyncio.run(_end(store, theirs))
            scavenge(store, inline, followed)
        else:
            erase_user(store, inline, followed, user_id="bob", rewrite=False)
        left = {bob.user_stream_id} if how == "vacuum" else set()
        if how == "erase, then write":
            late = session("late", "ada")
            asyncio.run(say(store, f"{bob.user_stream_id} late", late))
            asyncio.run(_end(store, late))
            scavenge(store, inline, followed)
            left = {bob.user_stream_id}
        for _ in range(2):
            run(store, followed)
            for projection in (Inbox(), LateInbox()):
                assert {row[0] for row in rows_of(store, projection)} == left
            assert verify(store, inline, followed).clean
            rebuild(store, inline, followed)


async def _made(store: EventStore, key: StreamKey) -> Stream:
    return (await store.create(key, created())).stream


async def _end(store: EventStore, key: StreamKey) -> None:
    await store.delete(key, new_event(EventType.SESSION_DELETED))


def test_a_row_that_the_database_does_not_take_stops_its_projection(postgres: Place) -> None:
    """A key may be too long for an index of the server's."""
    long = "".join(map(chr, range(0x4E00, 0x4E00 + 5_000)))
    with closing(open_store(postgres.target, BUILT_IN)) as store:
        run(store, (Words(),))
        for text in ("hello", long, "after"):
            asyncio.run(say(store, text))
        run(store, (Words(),))
        stopped = of(store, Words())
        assert (stopped.failed_at, stopped.failure) == (3, "ProgramLimitExceeded")


@pytest.mark.parametrize("raised", [RuntimeError, SystemExit])
async def test_a_session_that_an_inline_projection_does_not_take_can_be_made_again(
    target: str, raised: type[BaseException]
) -> None:
    poisoned: set[str] = {"b"}

    class Picky(Words):
        def apply(self, event: RecordedEvent) -> Iterable[Change]:
            if event.stream.key.session_id in poisoned:
                raise raised
            return ()

    with closing(open_store(target, (*BUILT_IN, Picky()))) as store:
        for names in (("b",), ("a", "b", "c", "d")):
            made = [store.create(session(name), created()) for name in names]
            await asyncio.wait(made)
            assert [each.exception() is None for each in made] == [name != "b" for name in names]
        assert await store.load(session("b"), Window(), bool) is None
        poisoned.clear()
        assert (await store.create(session("b"), created())).stream.version == 1
        assert verify(store, store.projections).clean


def test_a_table_that_was_changed_without_its_version_is_named(target: str) -> None:
    with closing(open_store(target, BUILT_IN)) as store:
        run(store, (Words(),))

        async def write() -> None:
            await store.create(session("s"), created())

        asyncio.run(write())
        with pytest.raises(ProjectionMissing, match="Raise its version"):
            run(store, (Wider(),))


def test_what_was_dropped_just_before_a_round_is_not_built(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "_POLL_S", 0.01)
    rounds: list[None] = []

    def as_it_was() -> tuple[Projection, ...]:
        rounds.append(None)
        return (UsageProjection(), Words())

    follower = Follower(store, as_it_was, {"words"})
    follower.ensure_running()
    until(lambda: len(rounds) > 3)
    follower.stop()
    assert {each.projection for each in status(store) if not each.inline} == {"words"}


async def test_a_build_that_takes_long_keeps_neither_loads_nor_an_end_waiting(target: str) -> None:
    async with DatabaseSessionService(target) as service:
        await fill(service._store, 2_000)
        (listed,) = (await service.list_sessions(app_name="app")).sessions
    begun, go_on, folded = threading.Event(), threading.Event(), []

    class Slow(Words):
        def apply(self, event: RecordedEvent) -> Iterable[Change]:
            folded.append(event.position)
            if len(folded) == 600:
                begun.set()
                go_on.wait(SECONDS)
            return ()

    service = DatabaseSessionService(target, projections=[Slow()])
    await asyncio.to_thread(begun.wait, SECONDS)
    loaded = service.get_session(app_name="app", user_id=listed.user_id, session_id=listed.id)
    assert await asyncio.wait_for(loaded, SECONDS) is not None
    ending = asyncio.create_task(asyncio.to_thread(service._close))
    assert service._follower is not None
    await asyncio.to_thread(until, service._follower._stopping.is_set)
    go_on.set()
    await ending
    assert len(folded) < 2_000


def test_a_build_stops_wherever_it_is(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilding = sys.modules[rebuild.__module__]
    monkeypatch.setattr(rebuilding, "_ROWS_PER_TRANSACTION", 1)
    asyncio.run(fill(store, 3))
    filled: list[object] = []
    monkeypatch.setattr(rebuilding, "_fill_shadow", lambda *given: filled.append(given))
    assert Words.name not in {
        each.projection for each in run(store, (Words(),), stopping=lambda: bool(filled))
    }
    assert len(filled) == 1


def test_a_build_stops_while_it_catches_up(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rebuilding = sys.modules[rebuild.__module__]
    monkeypatch.setattr(rebuilding, "_EVENTS_PER_CUT_OVER", 0)
    asyncio.run(fill(store, 3))
    applied: list[object] = []
    monkeypatch.setattr(rebuilding, "_apply_to_shadow", lambda *given: applied.append(given))

    def append(*_: int) -> None:
        # Once, while the log is folded: what it does then is caught up with.
        if store.stats()["events"] < 10:
            asyncio.run(fill(store, 10))

    given = {"stopping": lambda: bool(applied), "progress": append}
    assert Words.name not in {each.projection for each in run(store, (Words(),), **given)}
    assert len(applied) == 1
    monkeypatch.undo()
    run(store, (Words(),))
    assert times(store, Words())["a"] == 13


async def test_what_was_dropped_beside_a_service_stays_away(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asynchronous, "_POLL_S", 0.01)
    with closing(open_store(target, BUILT_IN)) as store:
        run(store, (UsageProjection(),))
        async with DatabaseSessionService(target, projections=[Words()]) as service:
            await service.create_session("app", "ada", "s")
            until(lambda: {each.lag for each in status(store)} == {0})
            drop(store, "usage", {name for each in UsageProjection.views.values() for name in each})
            await service.create_session("app", "ada", "t")
            until(lambda: {each.lag for each in status(store)} == {0})
            assert "usage" not in {each.projection for each in status(store)}

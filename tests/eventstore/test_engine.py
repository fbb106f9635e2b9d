"""The SQLite engine: groups, faults, threads, processes, forks, exits."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from eventstore import (
    Appended,
    Change,
    Cursor,
    DatabaseInUse,
    DatabaseReplaced,
    EventStore,
    EventType,
    PathUnusable,
    Projection,
    ProjectionFailed,
    ProjectionMissing,
    Put,
    RecordedEvent,
    SchemaAltered,
    Snapshot,
    StorageFailed,
    StoreBusy,
    StoreClosed,
    StreamNotFound,
    Table,
    Window,
    open_store,
)
from eventstore.sqlite import engine as engines
from eventstore.sqlite import gate as gates
from eventstore.sqlite import registry
from eventstore.sqlite.requests import Read
from eventstore.sqlite.transaction import WriteTransaction
from projections import BUILT_IN, verify
from projections.recover import recover
from tests.eventstore.events import SESSION, created, new_event, session
from tests.processes import fresh_processes

ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def target(database: Path) -> str:
    """Of files only, which these tests are about."""
    return str(database)


class Fussy(Projection):
    """A projection that breaks on events whose author is "poison", behind other writes."""

    name = "fussy"
    version = 1
    table = Table("fussy", key={"stream_id": "integer"}, columns={"author": "text"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        if event.delta is not None and b"poison" in event.delta:
            raise RuntimeError("cannot fold this")
        return (Put((event.stream.id,), (event.author,)),)


async def test_a_failing_projection_fails_its_own_append_only(database: Path) -> None:
    store = open_store(database, (*BUILT_IN, Fussy()))
    keys = [session(str(n)) for n in range(10)]
    cursors = [Cursor((await store.create(k, created())).stream.id, 1) for k in keys]
    events = [new_event(delta={"session": {"poison" if n == 4 else "fine": n}}) for n in range(10)]
    outcomes = await asyncio.gather(
        *(store.append(*args) for args in zip(keys, events, cursors, strict=True)),
        return_exceptions=True,
    )
    assert [n for n, o in enumerate(outcomes) if not isinstance(o, Appended)] == [4]
    with pytest.raises(ProjectionFailed, match=r"'fussy' .* RuntimeError") as raised:
        await store.append(keys[4], events[4], cursors[4])
    assert str(raised.value.__cause__) == "cannot fold this"
    # Nothing of it was stored: the holder is not stale, and no projection saw it.
    await store.append(keys[4], new_event(delta={"session": {"fine": 4}}), cursors[4])
    assert (await asyncio.to_thread(verify, store, store.projections)).clean
    store.close()


class Broken(Fussy):
    """A projection that breaks in ways that are nobody's business to expect."""

    name = "broken"
    table = Table("broken", key={"stream_id": "integer"}, columns={"author": "text"})

    def apply(self, event: RecordedEvent) -> Iterable[Change]:
        match event.delta and event.delta.decode():
            case '{"session":{"k":"constraint"}}':
                return (Put((event.stream.id,), (None,)),)  # type: ignore[arg-type]
            case '{"session":{"k":"exit"}}':
                raise SystemExit
            case '{"session":{"k":"stop"}}':
                raise StopIteration
        return ()


@pytest.mark.parametrize("poison", ["constraint", "exit", "stop"])
async def test_whatever_a_projection_raises_only_its_append_fails(
    database: Path, poison: str
) -> None:
    store = open_store(database, (*BUILT_IN, Broken()))
    keys = [session(str(n)) for n in range(3)]
    cursors = [Cursor((await store.create(k, created())).stream.id, 1) for k in keys]
    for _ in range(2):
        events = [
            new_event(delta={"session": {"k": poison if n == 1 else "fine"}}) for n in range(3)
        ]
        futures = [store.append(*args) for args in zip(keys, events, cursors, strict=True)]
        await asyncio.wait(futures)
        assert [f.exception() is None for f in futures] == [True, False, True]
    assert verify(store, store.projections).clean
    store.close()


def test_a_process_that_lacks_a_projection_refuses_to_write(database: Path) -> None:
    open_store(database, (*BUILT_IN, Fussy())).close()
    with pytest.raises(Exception, match="fussy"):
        open_store(database, BUILT_IN)


def test_stores_on_one_file_share_one_engine(database: Path) -> None:
    for thread in threading.enumerate():
        if thread.name == "eventstore-watchdog":
            thread.join(5)  # of a store that was closed before
    threads = threading.active_count()
    stores = [open_store(database, BUILT_IN) for _ in range(5)]

    async def use() -> None:
        for n, store in enumerate(stores):
            await store.create(session(str(n)), created())
            assert await store.load(session(str(n)), Window(), bool)

    asyncio.run(use())
    assert threading.active_count() == threads + 4  # a writer, its watchdog and two readers
    for store in stores:
        store.close()
    for thread in threading.enumerate():
        if thread.name == "eventstore-watchdog":
            thread.join(5)
    assert threading.active_count() == threads


def test_opening_and_closing_leaks_no_descriptors(database: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")

    def use() -> int:
        store = open_store(database, BUILT_IN)
        store.stats()
        store.transact(lambda _: None)
        store.close()
        return len(list(Path("/proc/self/fd").iterdir()))

    assert use() == use() == use()


def test_durability_decides_what_a_commit_waits_for(database: Path) -> None:
    with open_log(database, "normal") as normal:
        assert normal.transact(_synchronous) == 1
        with open_log(database, "full") as full:
            assert full.transact(_synchronous) == 2
            assert normal.transact(_synchronous) == 1
            assert full.transact(_synchronous) == 2
    with open_log(database, "full") as full:
        assert full.transact(_synchronous) == 2


def open_log(path: Path, durability: str = "normal") -> closing[EventStore]:
    return closing(open_store(path, BUILT_IN, durability=durability))  # type: ignore[arg-type]


def _synchronous(transaction: object) -> int:
    connection = transaction.connection  # type: ignore[attr-defined]
    return int(connection.execute("PRAGMA synchronous").fetchone()[0])


def test_an_unknown_durability(database: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        open_log(database, "maybe")


def test_the_log_is_folded_into_the_file_again_and_again(database: Path) -> None:
    wal = Path(f"{database}-wal")

    async def work(store: EventStore) -> None:
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        for _ in range(20):
            await asyncio.gather(
                *(store.append(SESSION, new_event(data="x" * 2000), cursor) for _ in range(100))
            )

    with open_log(database) as store:
        asyncio.run(work(store))
        assert wal.stat().st_size < 12_000_000
        store.shrink()
        assert wal.stat().st_size == 0
    assert not wal.exists()


# Several processes.


def _append_many(path: Path, name: str, events: int) -> None:
    async def work(store: EventStore) -> None:
        key = session(name)
        cursor = Cursor((await store.create(key, created())).stream.id, 1)
        await asyncio.gather(
            *(
                store.append(key, new_event(delta={"app": {f"{name}-{n}": n}}), cursor)
                for n in range(events)
            )
        )

    with open_log(path) as store:
        asyncio.run(work(store))


def test_processes_that_make_and_fill_one_file_together(database: Path) -> None:
    context = fresh_processes()
    workers = [context.Process(target=_append_many, args=(database, f"p{n}", 50)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    with open_log(database) as store:
        stats = store.stats()
        assert (stats["sessions"], stats["state"], stats["events"]) == (4, 200, 204)
        assert verify(store, BUILT_IN).clean


def _try_rounds(path: Path, rounds: int, barrier: object, won: object) -> None:
    async def work(store: EventStore) -> None:
        for number in range(rounds):
            barrier.wait()  # type: ignore[attr-defined]
            stream = await store.load(SESSION, Window(last=0), lambda loaded: loaded.stream)
            assert stream is not None
            cursor = Cursor(stream.id, stream.conversation_version)
            barrier.wait()  # type: ignore[attr-defined]
            outcome = (
                await asyncio.gather(
                    store.append(SESSION, new_event(), cursor), return_exceptions=True
                )
            )[0]
            if isinstance(outcome, Appended):
                won.put(number)  # type: ignore[attr-defined]

    with open_log(path) as store:
        asyncio.run(work(store))


def test_exactly_one_stale_process_wins_each_round(database: Path) -> None:
    rounds = 15
    context = fresh_processes()
    barrier, won = context.Barrier(3), context.Queue()
    with open_log(database) as store:
        asyncio.run(_create(store))
        workers = [
            context.Process(target=_try_rounds, args=(database, rounds, barrier, won))
            for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        winners = sorted(won.get(timeout=30) for _ in range(rounds))
        for worker in workers:
            worker.join()
        assert winners == list(range(rounds))
        assert won.empty()
        assert store.stats()["events"] == rounds + 1


async def _create(store: EventStore) -> None:
    await store.create(SESSION, created())


_HOLDER: Final = """
    import sys, time
    from eventstore.sqlite.gate import Gate
    with Gate(sys.argv[1]).held():
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def holder(database: Path) -> Iterable[subprocess.Popen[str]]:
    """Another process that holds the write lock and does nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_HOLDER), str(database)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


async def test_waiting_for_a_stuck_process_ends_with_its_name(
    store: EventStore, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0.3)
    with pytest.raises(StoreBusy, match=f"process {holder.pid}"):
        await store.create(SESSION, created())
    # Readers never wait, and writers go on when it is gone.
    assert await store.load(SESSION, Window(), bool) is None
    monkeypatch.undo()
    holder.kill()
    await store.create(SESSION, created())


def test_opening_a_file_that_is_held_ends_with_its_name(database: Path) -> None:
    database.touch()
    with gates_closed(database) as first, gates_closed(database) as second:
        with first.held(), pytest.raises(StoreBusy, match="process"), second.held_within(0.1):
            raise AssertionError("two holders at once")
        with second.held_within(0.1):
            pass


def gates_closed(database: Path) -> closing[gates.Gate]:
    return closing(gates.Gate(str(database)))


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )


_PRELUDE: Final = """
    import asyncio, os, sys
    from eventstore import Cursor, Window, open_store
    from projections import BUILT_IN
    from tests.eventstore.events import SESSION, created, new_event, session
    store = open_store(sys.argv[1], BUILT_IN)
"""


def test_leaving_without_close_commits_what_was_handed_over(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    async def main():
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        for _ in range(500):
            store.append(SESSION, new_event(), cursor)
    asyncio.run(main())
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stderr) == (0, "")
    with open_log(database) as store:
        assert store.stats()["events"] == 501


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_begins_anew_and_its_parent_goes_on(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    async def use(name):
        cursor = Cursor((await store.create(session(name), created())).stream.id, 1)
        for _ in range(20):
            await store.append(session(name), new_event(), cursor)
        assert await store.load(session(name), Window(), lambda l: len(l.events)) == 20
    asyncio.run(use("before"))
    children = []
    for n in range(3):
        if (pid := os.fork()) == 0:
            asyncio.run(use(f"child-{n}"))
            store.close()
            os._exit(0)
        children.append(pid)
    asyncio.run(use("parent"))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    asyncio.run(use("after"))
    assert store.stats()["sessions"] == 6
    store.close()
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_in_the_middle_nothing_acknowledged_is_lost(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    async def main():
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        async def writer():
            while True:
                event = new_event(delta={"session": {"last": 1}, "app": {"last": 1}})
                await store.append(SESSION, event, cursor)
                print(event.event_id, flush=True)
        await asyncio.gather(*(writer() for _ in range(4)))
    asyncio.run(main())
    """
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(database)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [line.strip() for line in process.stdout if line.endswith("\n")]
        process.wait()
        process.stdout.close()
        with open_log(database) as store:
            loaded = asyncio.run(_load(store))
            assert set(acknowledged) <= {event.event_id for event in loaded.events}
            assert verify(store, BUILT_IN).clean
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for file in database.parent.glob(f"{database.name}*"):
            file.unlink()


async def _load(store: EventStore) -> object:
    return await store.load(SESSION, Window(), lambda loaded: loaded)


def test_ctrl_c_in_a_blocking_call_leaves_a_store_that_works(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    import signal, time
    try:
        store.transact(lambda _: (os.kill(os.getpid(), signal.SIGINT), time.sleep(1)))
    except KeyboardInterrupt:
        print("interrupted")
    print(store.stats()["events"])
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n0\n", "")


@pytest.mark.parametrize("locks", ["none", "msvcrt"])
def test_without_fcntl_and_fork_as_on_windows(database: Path, locks: str) -> None:
    program = """
    import os, sys, types
    import google.adk.sessions  # which itself needs a system that can fork, or one that is Windows
    sys.modules["fcntl"] = None
    del os.register_at_fork
    if sys.argv[2] == "msvcrt":
        held = set()
        def locking(fd, mode, size):
            key = os.fstat(fd).st_ino
            if mode == 1:
                if key in held: raise OSError("locked")
                held.add(key)
            else:
                held.remove(key)
        sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=1, LK_UNLCK=0, locking=locking)
    import asyncio
    from adk_adapter import DatabaseSessionService
    from google.adk.events import Event, EventActions
    async def main():
        async with DatabaseSessionService(sys.argv[1]) as service:
            s = await service.create_session("a", "u", "s")
            actions = EventActions(state_delta={"k": 1})
            events = [Event(actions=actions) for _ in range(9)]
            await asyncio.gather(*(service.append_event(s, event) for event in events))
            assert len((await service.get_session("a", "u", "s")).events) == 9
            print(service.vacuum()["sessions"])
    asyncio.run(main())
    """
    done = run_python(program.replace("-W error", ""), database, locks)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_a_reader_never_waits_for_a_writer(store: EventStore) -> None:
    asyncio.run(_create(store))
    inside, leave = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        inside.set()
        assert leave.wait(20)

    writer = threading.Thread(target=store.transact, args=(hold,))
    writer.start()
    assert inside.wait(20)
    began = time.monotonic()
    assert asyncio.run(_load(store)) is not None
    assert time.monotonic() - began < 20  # it came back while the writer still holds the lock
    leave.set()
    writer.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_goes_on_after_its_parent_closed(database: Path) -> None:
    """SQLite's locks of the parent, inherited, once made the child write into a deleted WAL."""
    program = (
        _PRELUDE
        + """
    async def use(name):
        cursor = Cursor((await store.create(session(name), created())).stream.id, 1)
        for _ in range(10):
            await store.append(session(name), new_event(), cursor)
    asyncio.run(use("parent"))
    here, there = os.pipe()
    if (pid := os.fork()) == 0:
        asyncio.run(use("child-before"))
        os.read(here, 1)
        asyncio.run(use("child-after"))
        os._exit(0)
    asyncio.run(use("parent-again"))
    store.close()
    os.write(there, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stderr) == (0, "")
    with open_log(database) as store:
        stats = store.stats()
        assert (stats["sessions"], stats["events"]) == (4, 44)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forks_while_others_write(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    import threading
    async def use(name, count):
        cursor = Cursor((await store.create(session(name), created())).stream.id, 1)
        for _ in range(count):
            await store.append(session(name), new_event(), cursor)
            await store.load(session(name), Window(last=1), bool)
    writers = [threading.Thread(target=asyncio.run, args=(use(f"w{n}", 150),)) for n in range(3)]
    for writer in writers: writer.start()
    children = []
    for n in range(5):
        if (pid := os.fork()) == 0:
            asyncio.run(use(f"c{n}", 10))
            os._exit(0)
        children.append(pid)
    for writer in writers: writer.join()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 5
    print(store.stats()["events"])
    store.close()
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stdout) == (0, f"{3 * 151 + 5 * 11}\n"), done.stderr


async def test_nothing_is_acknowledged_into_a_wal_that_is_gone(
    store: EventStore, database: Path
) -> None:
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    await store.append(SESSION, new_event(), cursor)
    assert await store.load(SESSION, Window(), bool)  # a reader holds it open too
    Path(f"{database}-wal").unlink()
    for _ in range(3):
        await store.append(SESSION, new_event(), cursor)
    program = "import sqlite3, sys; a = sqlite3.connect(sys.argv[1]); print(a.execute(sys.argv[2])"
    counted = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program + ".fetchall())", database, "SELECT count(*) FROM events"],
        capture_output=True,
        text=True,
    )
    assert counted.stdout == "[(5,)]\n"
    assert await store.load(SESSION, Window(), lambda loaded: len(loaded.events)) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_nor_into_one_that_went_before_the_first_of_them(database: Path) -> None:
    with open_log(database) as store:
        asyncio.run(_create(store))
    done = run_python(
        _PRELUDE
        + """
    os.unlink(sys.argv[1] + "-wal")
    async def fill():
        cursor = Cursor((await store.create(session("other"), created())).stream.id, 1)
        for _ in range(3):
            await store.append(session("other"), new_event(), cursor)
    asyncio.run(fill())
    os._exit(0)  # as one that is killed
    """,
        database,
    )
    assert done.returncode == 0, done.stderr
    with open_log(database) as store:

        async def count() -> int | None:
            return await store.load(session("other"), Window(), lambda each: len(each.events))

        assert asyncio.run(count()) == 3


async def test_a_folder_that_became_something_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    store = open_store(folder / "a.db", BUILT_IN)
    await store.create(SESSION, created())
    folder.rename(tmp_path / "moved")
    folder.write_text("a file")
    for _ in range(2):
        with pytest.raises(DatabaseReplaced):
            await store.create(session("other"), created())
        with pytest.raises(DatabaseReplaced):
            await store.load(SESSION, Window(), bool)
    store.close()


async def test_readers_make_no_file_where_one_was_removed(
    store: EventStore, database: Path
) -> None:
    await store.create(SESSION, created())
    for path in database.parent.glob(f"{database.name}*"):
        path.unlink()
    with pytest.raises(DatabaseReplaced):
        await store.load(SESSION, Window(), bool)
    assert list(database.parent.iterdir()) == []


async def test_a_loop_is_woken_for_what_another_one_has_done(store: EventStore) -> None:
    engine, loop = store._engine, asyncio.get_running_loop()  # type: ignore[attr-defined]
    await store.create(SESSION, created())
    request = Read(lambda transaction: transaction.require_stream(SESSION).version, brief=True)
    waiting = asyncio.gather(request.from_loop())
    engine._brief_reads.append(request)  # handed over, and this loop is not there yet

    async def step() -> None:
        engine._step(asyncio.get_running_loop())

    loop.set_debug(True)  # or it would not say that it was called from another thread
    await asyncio.to_thread(asyncio.run, step())
    assert await waiting == [1]


async def test_errors_do_not_gather_what_raised_them(store: EventStore, database: Path) -> None:
    await store.create(SESSION, created())
    database.unlink()
    lengths = set()
    for _ in range(5):
        with pytest.raises(DatabaseReplaced) as raised:
            await store.create(SESSION, created())
        lengths.add(len(raised.traceback))
    assert len(lengths) == 1


async def test_closing_one_of_two_waits_for_its_own_appends(database: Path) -> None:
    first, second = open_store(database, BUILT_IN), open_store(database, BUILT_IN)
    cursor = Cursor((await first.create(SESSION, created())).stream.id, 1)
    outcomes: list[Appended | None] = []
    futures = [
        first.append(SESSION, new_event(), cursor, on_outcome=outcomes.append) for _ in range(300)
    ]
    first.close()
    assert len([appended for appended in outcomes if appended]) == 300
    await asyncio.gather(*futures)
    assert second.stats()["events"] == 301
    second.close()


def test_maintenance_that_fails_changes_nothing(database: Path) -> None:
    def drop(transaction: object) -> None:
        transaction.connection.execute("DROP VIEW adk_state")  # type: ignore[attr-defined]
        raise RuntimeError("on second thoughts")

    with open_log(database) as store, pytest.raises(RuntimeError, match="second thoughts"):
        store.transact(drop)
    open_log(database).thing.close()


def test_shrinking_a_file_that_cannot_shrink(database: Path) -> None:
    open_store(database, BUILT_IN).close()
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
        connection.execute("CREATE TABLE waste AS SELECT zeroblob(200000) AS z")
        connection.execute("DROP TABLE waste")
    with open_log(database) as store:
        assert store.shrink() == 0


def test_stores_on_one_file_want_the_same_projections(database: Path) -> None:
    with open_log(database), pytest.raises(ProjectionMissing, match="fussy"):
        open_store(database, (*BUILT_IN, Fussy()))


async def test_large_appends_are_folded_into_the_file_too(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    for _ in range(40):
        await store.append(SESSION, new_event(data="x" * 1_000_000), cursor)
    await store.barrier()
    assert Path(f"{database}-wal").stat().st_size < 20_000_000
    store.close()


async def test_appends_go_on_while_the_disk_takes_the_wal(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, done = threading.Event(), threading.Event()

    def sync(_: str) -> None:
        asked.set()
        done.wait(60)

    monkeypatch.setattr(engines._platform, "sync_file", sync)
    monkeypatch.setattr(engines, "_CHECKPOINT_FRAMES", 1)
    store = open_store(database, BUILT_IN)
    try:
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        assert await asyncio.to_thread(asked.wait, 60)
        for n in range(20):
            # The long ones are the writer's, the others the loop's.
            event = new_event(data="x" * (n % 2 * 20_000))
            await asyncio.wait_for(store.append(SESSION, event, cursor), 30)
        assert not done.is_set()
    finally:
        done.set()
        store.close()


async def test_an_append_behind_a_wait_of_the_idle_writer_is_done(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog once moved such an append to where the writer did not look."""
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 3)
    monkeypatch.setattr(engines, "_WATCH_S", 0.1)
    monkeypatch.setattr(engines, "_IDLE_S", 0.05)
    store = open_store(database, BUILT_IN)
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    with gates_closed(database) as gate, gate.held_within(1):
        await asyncio.sleep(3.2)  # the writer waits to fold the WAL, past the deadline
        future = store.append(SESSION, new_event(), cursor)
        await asyncio.sleep(0.15)
    await asyncio.wait_for(future, 10)
    store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_closes(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    import threading, time
    async def use(which, name):
        cursor = Cursor((await which.create(session(name), created())).stream.id, 1)
        for _ in range(10):
            await which.append(session(name), new_event(), cursor)
    asyncio.run(use(store, "parent"))
    begun = threading.Event()
    held = threading.Thread(target=store.transact, args=(lambda _: (begun.set(), time.sleep(0.5)),))
    held.start()
    begun.wait()
    closing = threading.Thread(target=store.close)
    closing.start()
    time.sleep(0.1)
    if (pid := os.fork()) == 0:
        again = open_store(sys.argv[1], BUILT_IN)
        asyncio.run(use(again, "child"))
        again.close()
        os._exit(0)
    held.join()
    closing.join()
    assert os.waitpid(pid, 0)[1] == 0
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stderr) == (0, "")
    with open_log(database) as store:
        assert store.stats()["events"] == 22


async def test_a_schema_changed_while_idle_harms_only_appends_until_it_is_mended(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_IDLE_S", 0.05)
    store = open_store(database, BUILT_IN)
    await store.create(SESSION, created())
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("CREATE TRIGGER alien AFTER INSERT ON events BEGIN SELECT 1; END")
        store._engine._write.close()  # type: ignore[attr-defined] - as a fork does
        await asyncio.sleep(0.3)
        with pytest.raises(SchemaAltered, match="alien"):
            await store.create(session("other"), created())
        connection.execute("DROP TRIGGER alien")
    await store.create(session("other"), created())
    store.close()


@pytest.mark.parametrize("failing", ["delete", "create", "append", "set"])
async def test_a_commit_that_failed_although_it_was_stored(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The log is asked, and answers for the whole group."""
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    writer = store._engine._write  # type: ignore[attr-defined]
    real = writer._commit

    def fail(transaction: object) -> None:
        real(transaction)
        monkeypatch.undo()
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(writer, "_commit", fail)
    first = {
        "delete": lambda: store.delete(SESSION, new_event(EventType.SESSION_DELETED)),
        "create": lambda: store.create(session("new"), created()),
        "append": lambda: store.append(SESSION, new_event(), cursor),
        "set": lambda: store.set_state(SESSION, new_event(EventType.STATE_SET)),
    }[failing]()
    key = SESSION if failing == "delete" else session("second")
    second = store.create(key, created())  # the same id, where it was deleted just before
    refused = store.append(session("missing"), new_event(), Cursor())
    await asyncio.gather(first, second)
    with pytest.raises(StreamNotFound):  # by its own error, not by that of the commit
        await refused
    assert await store.load(key, Window(), bool)
    if failing == "append":
        await store.append(SESSION, new_event(), cursor)
    assert verify(store, BUILT_IN).clean


def test_a_child_leaves_its_parents_private_database_alone(tmp_path: Path) -> None:
    store = open_store(":memory:", BUILT_IN)
    asyncio.run(_create(store))
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    store._process += 1  # type: ignore[attr-defined] - as the child of another process sees it
    folder = Path(store.path).parent
    store.close()
    assert folder.exists()
    shutil.rmtree(folder)


async def test_a_commit_that_failed_and_stored_nothing(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before, or had nothing to write, does not speak for the group."""
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    known = new_event()
    await store.append(SESSION, known, cursor)
    other = Cursor((await store.create(session("other"), created())).stream.id, 1)

    def fail(transaction: object) -> None:
        monkeypatch.undo()
        raise sqlite3.OperationalError("disk I/O error")

    # Together also where what came before has waited, behind which the writer takes one by one.
    store._engine._slow_until = 0.0  # type: ignore[attr-defined]
    monkeypatch.setattr(store._engine._write, "_commit", fail)  # type: ignore[attr-defined]
    event = new_event()
    await asyncio.gather(
        store.delete(session("missing"), new_event(EventType.SESSION_DELETED)),
        store.append(SESSION, known, cursor),
        store.append(session("other"), event, other),
    )
    stored = await store.load(
        session("other"), Window(), lambda loaded: [e.event_id for e in loaded.events]
    )
    assert stored == [event.event_id]


async def test_nobody_is_refused_by_what_was_never_stored(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = (await store.create(SESSION, created())).stream

    def fail(transaction: WriteTransaction) -> None:
        if transaction.written()[0]:
            raise _disk_error()

    store._engine._slow_until = time.monotonic() + 60  # type: ignore[attr-defined] - together
    monkeypatch.setattr(store._engine._write, "_commit", fail)  # type: ignore[attr-defined]
    with store._engine._gate.held():  # type: ignore[attr-defined]
        calls: list[asyncio.Future[Any]] = [
            store.create(session("new"), created()),
            store.create(session("new"), created()),
            store.append(SESSION, new_event(), Cursor(stream.id, 1)),
            store.append(SESSION, new_event(), Cursor(stream.id, 1)),
            store.delete(SESSION, new_event(EventType.SESSION_DELETED)),
            store.append(SESSION, new_event(), Cursor(stream.id, 1)),
        ]
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in told} == {StorageFailed}
    assert await store.load(session("new"), Window(), bool) is None
    assert await store.load(SESSION, Window(), lambda loaded: loaded.stream.version) == 1


async def test_a_commit_that_fails_beside_a_long_read_keeps_nobody_waiting(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)

    def fail(transaction: object) -> None:
        monkeypatch.undo()
        raise _disk_error()

    with _long_read(store):
        monkeypatch.setattr(store._engine._write, "_commit", fail)  # type: ignore[attr-defined]
        with pytest.raises(StorageFailed):
            await asyncio.wait_for(store.append(SESSION, new_event(), cursor), 20)
        await asyncio.wait_for(store.append(SESSION, new_event(), cursor), 20)


def _disk_error() -> sqlite3.Error:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


@contextmanager
def _long_read(store: EventStore) -> Iterator[None]:
    """A snapshot that another thread has open meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def read(snapshot: Snapshot) -> None:
        snapshot.head()
        begun.set()
        go_on.wait(60)

    thread = threading.Thread(target=store.snapshot, args=(read,))
    thread.start()
    begun.wait(60)
    try:
        yield
    finally:
        go_on.set()
        thread.join()


# What is executed on the thread of a loop.


async def test_a_program_that_holds_the_file_does_not_hold_up_the_loop(
    store: EventStore, database: Path
) -> None:
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    await store.append(SESSION, new_event(), cursor)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        futures = [store.append(SESSION, new_event(), cursor) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0.005)
            assert await store.load(SESSION, Window(), lambda loaded: len(loaded.events)) == 1
        assert not any(future.done() for future in futures)
        connection.execute("ROLLBACK")
    assert [appended.version for appended in await asyncio.gather(*futures)] == [3, 4, 5]


async def test_a_disk_that_takes_long_holds_up_the_loop_once(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_SYNC_S", 0.0)
    monkeypatch.setattr(engines, "_SYNC_PATIENCE_S", 1e9)
    threads = []
    with closing(open_store(database, BUILT_IN, durability="full")) as store:
        writer = store._engine._write  # type: ignore[attr-defined]
        real = writer._commit

        def commit(transaction: object) -> None:
            threads.append(threading.current_thread())
            real(transaction)

        def look(count: int) -> None:
            nonlocal looks
            looks += 1
            take(count)

        take = store._engine._take_brief  # type: ignore[attr-defined]
        looks = 0
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        monkeypatch.setattr(writer, "_commit", commit)
        monkeypatch.setattr(store._engine, "_take_brief", look)  # type: ignore[attr-defined]
        for _ in range(5):  # reads are still done on the loop, in steps that could write too
            reads = [store.load(SESSION, Window(), lambda loaded: loaded) for _ in range(10)]
            appends = [store.append(SESSION, new_event(), cursor) for _ in range(40)]
            await asyncio.gather(*reads, *appends)
    assert threads.count(threading.main_thread()) <= 1
    assert len(threads) > 1
    assert looks < 200  # nor does it go round and round for what the writer was not told of


@pytest.mark.parametrize("count", [1, 2])  # one is done at once, several in the next round
@pytest.mark.parametrize("stored", [True, False])
def test_ctrl_c_while_a_loop_commits(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, stored: bool, count: int
) -> None:
    """It reaches the program, and the appends are done once all the same."""
    writer = store._engine._write  # type: ignore[attr-defined]
    real = writer._commit
    monkeypatch.setattr(engines, "_WAITED_S", 60)  # however busy this machine is

    def interrupt(transaction: object) -> None:
        here = threading.current_thread() is threading.main_thread()
        if stored or not here:
            real(transaction)
        if here:
            monkeypatch.undo()
            raise KeyboardInterrupt

    with closing(asyncio.new_event_loop()) as loop:
        cursor = Cursor(loop.run_until_complete(_created(store)), 1)
        monkeypatch.setattr(writer, "_commit", interrupt)
        interrupted = False
        while not interrupted:  # the first commits are the writer's
            before = cursor.version
            assert before is not None
            tasks = [loop.create_task(_append(store, cursor)) for _ in range(count)]
            try:
                loop.run_until_complete(asyncio.wait(tasks))
            except KeyboardInterrupt:
                interrupted = True
            done = loop.run_until_complete(asyncio.gather(*tasks))
            assert [each.version - before for each in done] == [*range(1, count + 1)]
        assert loop.run_until_complete(_append(store, cursor)).version == before + count + 1


async def _created(store: EventStore) -> int:
    return (await store.create(SESSION, created())).stream.id


async def _append(store: EventStore, cursor: Cursor) -> Appended:
    return await store.append(SESSION, new_event(), cursor)


def test_what_a_loop_that_stopped_handed_over_is_committed_at_close(database: Path) -> None:
    store = open_store(database, BUILT_IN)
    with closing(asyncio.new_event_loop()) as loop:
        cursor = Cursor(loop.run_until_complete(_created(store)), 1)

        def hand_over() -> None:
            loop.stop()
            store.append(SESSION, new_event(), cursor)

        loop.call_soon(hand_over)
        loop.run_forever()
        store.close()
    with open_log(database) as again:
        assert again.stats()["events"] == 2


async def test_sessions_of_any_length_are_loaded_whole(store: EventStore) -> None:
    cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
    for count, size in [(1, 10), (200, 10), (100, 10), (50, 200_000)]:
        await asyncio.gather(
            *(store.append(SESSION, new_event(data="x" * size), cursor) for _ in range(count))
        )
        versions = await store.load(
            SESSION, Window(), lambda loaded: [event.version for event in loaded.events]
        )
        assert versions == list(range(2, cursor.version + 1))  # type: ignore[operator]


@pytest.mark.parametrize("enabled", [True, False])
async def test_reads_leave_the_garbage_collector_as_it_was(
    store: EventStore, enabled: bool
) -> None:
    await store.create(SESSION, created())

    def fail(_: object) -> None:
        raise RuntimeError("not decodable")

    (gc.enable if enabled else gc.disable)()
    try:
        for _ in range(3):
            await store.load(SESSION, Window(), bool)
            with pytest.raises(RuntimeError, match="not decodable"):
                await store.load(SESSION, Window(), fail)
            assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_a_maintenance_lock_that_cannot_be_opened(store: EventStore, database: Path) -> None:
    place = Path(f"{database}-maintenance")
    place.mkdir()
    with pytest.raises(PathUnusable, match="lock file"), store.maintaining("test"):
        raise AssertionError("not locked")
    place.rmdir()
    with store.maintaining("test"):
        pass
    store.close()
    with pytest.raises(StoreClosed), store.maintaining("test"):
        raise AssertionError("closed")


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_file_is_open_until_it_was_let_go(database: Path, tmp_path: Path) -> None:
    """For to read it through another descriptor would end the locks of its connections."""
    store = open_store(database, BUILT_IN)
    asyncio.run(_create(store))
    with gates_closed(database) as other, other.held_within(5):
        request = threading.Thread(target=lambda: store.transact(lambda transaction: None))
        request.start()
        engine = store._engine  # type: ignore[attr-defined]
        _wait_until(lambda: engine._gate.waited_s() > 0)
        closing_it = threading.Thread(target=store.close)
        closing_it.start()
        _wait_until(lambda: engine not in registry._engines.values())
        with pytest.raises(DatabaseInUse, match="in this process"):
            recover(database, tmp_path / "saved.db", BUILT_IN)
    request.join()
    closing_it.join()
    recover(database, tmp_path / "saved.db", BUILT_IN)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_does_not_keep_the_lock_of_maintenance(database: Path) -> None:
    code = """
import os, sys, threading
from eventstore import MaintenanceRunning, open_store
from projections import BUILT_IN
store = open_store(sys.argv[1], BUILT_IN)
reading, writing = os.pipe()
with store.maintaining("one"):
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent has ended
        os._exit(0)
with store.maintaining("two"):
    print("taken")
os.close(writing)
os.waitpid(child, 0)
store.close()
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(database)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("taken\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_waits_for_a_long_read_alone(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    import threading
    begun, go_on, forking = threading.Event(), threading.Event(), threading.Event()
    def read(snapshot):
        snapshot.head()
        begun.set()
        go_on.wait(60)
    def fork():
        if os.fork() == 0:
            os._exit(0)
    async def append():
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        reading = threading.Thread(target=store.snapshot, args=(read,))
        reading.start()
        begun.wait(60)
        os.register_at_fork(before=forking.set)  # the last to be registered is called first
        forks = threading.Thread(target=fork)
        forks.start()
        forking.wait(60)
        for _ in range(100):
            await asyncio.wait_for(store.append(SESSION, new_event(), cursor), 20)
        store.transact(lambda _: None)
        assert forks.is_alive()
        go_on.set()
        forks.join()
        reading.join()
    asyncio.run(append())
    os.wait()
    store.close()
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stderr) == (0, "")


_STRIKING: Final = """
    import signal, threading, time
    struck = []
    def strike(*_):
        if not struck:
            struck.append(1)
            raise KeyboardInterrupt
    signal.signal(signal.SIGINT, strike)
    def send():
        # Again and again: one that comes just before the main thread waits does not wake it.
        while not struck:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_comes_also_where_somebody_always_reads(database: Path) -> None:
    program = (
        _PRELUDE
        + """
    import threading, time
    forked = threading.Event()
    def read():
        while not forked.is_set():
            store.snapshot(lambda _: time.sleep(0.02))
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads: thread.start()
    for _ in range(3):
        if os.fork() == 0:
            os._exit(0)
        os.wait()
    forked.set()
    for thread in threads: thread.join()
    store.close()
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_interrupted_while_it_waits_is_not_done_later(database: Path) -> None:
    """Not even when the lock that allowed it is somebody else's by then."""
    program = (
        _PRELUDE
        + _STRIKING
        + """
    from eventstore.sqlite.gate import Gate
    done = []
    def send_soon():
        while not store._engine._writes:
            time.sleep(0.01)
        send()
    other = Gate(sys.argv[1])
    with other.held_within(5):
        for call in (lambda: store.transact(lambda _: done.append("transaction")), store.rewrite):
            struck.clear()
            thread = threading.Thread(target=send_soon)
            thread.start()
            try:
                call()
            except KeyboardInterrupt:
                thread.join()
                print("interrupted", list(store._engine._writes))
    other.close()
    print(store.transact(lambda _: "the next"), done)
    store.close()
    """
    )
    done = run_python(program, database)
    told = "interrupted []\ninterrupted []\nthe next []\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, told, "")


def test_what_waits_when_a_close_is_interrupted_is_done_at_the_end(database: Path) -> None:
    program = (
        _PRELUDE
        + _STRIKING
        + """
    import atexit
    from eventstore.sqlite.gate import Gate
    other = Gate(sys.argv[1])
    held = other.held_within(5)
    held.__enter__()
    atexit.register(held.__exit__, None, None, None)  # only as the interpreter ends
    async def hand_over():
        return store.create(SESSION, created(session={"text": "x" * 20_000}))  # for the writer
    asyncio.run(hand_over())
    def send_soon():
        while not store._engine._stopping:
            time.sleep(0.01)
        send()
    thread = threading.Thread(target=send_soon)
    thread.start()
    try:
        store.close()
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
    with open_log(database) as store:
        assert store.stats()["events"] == 1


def test_a_rewrite_that_is_interrupted_ends(database: Path) -> None:
    program = (
        _PRELUDE
        + _STRIKING
        + """
    from eventstore.sqlite import writer
    from eventstore.sqlite.writer import Writer
    writer._STEPS_PER_LOOK = 10
    told = []
    rewrite = Writer.rewrite
    def begin(self, request):
        send()
        while not request.given_up:
            time.sleep(0.01)
        told.append(rewrite(self, request))
        return False
    Writer.rewrite = begin
    async def fill():
        for n in range(200):
            await store.create(session(str(n)), created(session={"text": "x" * 10_000}))
    asyncio.run(fill())
    try:
        store.rewrite()
    except KeyboardInterrupt:
        told.append("interrupted")
    store.close()
    print(sorted(told, key=str))
    """
    )
    done = run_python(program, database)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[False, 'interrupted']\n", "")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_a_handler_may_ask_whatever_it_interrupts(database: Path) -> None:
    done = run_python(
        _PRELUDE
        + """
    import signal
    asked = []
    def ask(*_):
        asked.append(store.stats()["events"])
        signal.setitimer(signal.ITIMER_REAL, 0.001)
    async def append():
        cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
        signal.signal(signal.SIGALRM, ask)
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        while len(asked) < 500:
            await store.append(SESSION, new_event(), cursor)
        signal.setitimer(signal.ITIMER_REAL, 0)
    asyncio.run(append())
    store.close()
    """,
        database,
    )
    assert (done.returncode, done.stderr) == (0, "")


async def test_snapshots_that_take_long_do_not_keep_loads_waiting(database: Path) -> None:
    with closing(open_store(database, BUILT_IN)) as store:
        await _create(store)
        begun, go_on = threading.Barrier(3), threading.Event()

        def long(_: object) -> None:
            begun.wait(60)
            go_on.wait(60)

        threads = [threading.Thread(target=store.snapshot, args=(long,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(begun.wait, 60)
        try:
            loaded = store.load_rows(SESSION, "sessions")
            assert len(await asyncio.wait_for(loaded, 30)) == 1
        finally:
            go_on.set()
            for thread in threads:
                thread.join()

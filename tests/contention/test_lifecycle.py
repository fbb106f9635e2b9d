"""Signals, forks, loops, exits and closing, while appends are under way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from google.adk.events import Event, EventActions

from adk_adapter import DatabaseSessionService
from eventstore import StoreBusy, StoreClosed
from eventstore.sqlite import engine as engines
from projections import UsageProjection

ROOT: Final = Path(__file__).parents[2]

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

_PRELUDE: Final = """
    import asyncio, logging, os, signal, sys, threading, time, warnings
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a busy machine makes callbacks slow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of ADK's dependencies
        from google.adk.events import Event, EventActions
        from adk_adapter import DatabaseSessionService
    from eventstore import StoreClosed
    from projections import UsageProjection
    service = DatabaseSessionService(sys.argv[1], projections=[UsageProjection()])
    def event(name):
        return Event(id=name, author="a", actions=EventActions(state_delta={"last": name}))
    told = threading.Event()
    async def tell(session, name):
        await service.append_event(session, event(name))
        os.write(1, f"{session.id} {name}\\n".encode())  # acknowledged
        told.set()
    async def writing(name):
        session = await service.create_session("app", "user", name)
        number = 0
        while True:
            number += 1
            await tell(session, f"{name}/{number}")
"""


def begin(program: str, database: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c",
         textwrap.dedent(_PRELUDE) + textwrap.dedent(program), str(database)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], database: Path, *, told: str = "") -> str:
    """Waits for the end of a program, and looks for everything that it said was stored.

    Returns what it wrote to stderr.
    """
    rest, errors = process.communicate(timeout=60)
    stored = asyncio.run(_stored(database))
    acknowledged = [line.split() for line in (told + rest).splitlines()]
    assert acknowledged
    for session_id, name in acknowledged:
        assert name in stored[session_id], errors
    return errors


async def _stored(database: Path) -> dict[str, set[str]]:
    async with DatabaseSessionService(database) as service:
        assert (await service.verify()).clean
        found = {}
        for listed in await service.list_sessions(app_name="app"):
            session: Any = await service.get_session("app", "user", listed.id)
            assert session.state.get("last") == (session.events[-1].id if session.events else None)
            found[session.id] = {event.id for event in session.events}
        return found


def until_it_writes(process: subprocess.Popen[str], lines: int = 100) -> str:
    assert process.stdout is not None
    return "".join(process.stdout.readline() for _ in range(lines))


# Signals.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_handler_that_raises_anywhere_in_the_loops_thread(tmp_path: Path) -> None:
    """At every 15th point, by turns with three exceptions; the program does all of them."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.contention.struck", str(tmp_path), "--step", "15"],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@needs_signals
def test_ctrl_c_in_a_plain_script(database: Path) -> None:
    process = begin(
        """
        async def main():
            await asyncio.gather(*(writing(f"s{n}") for n in range(4)))
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(7)
        """,
        database,
    )
    told = until_it_writes(process)
    process.send_signal(signal.SIGINT)
    assert finish(process, database, told=told) == ""
    assert process.returncode == 7


@needs_signals
def test_exit_from_a_handler_ends_the_program_whatever_it_was_at(database: Path) -> None:
    """Also where the handler strikes inside a commit on the loop's own thread."""
    process = begin(
        """
        parts = tuple(f"{os.getcwd()}/{part}" for part in ("eventstore", "adk_adapter"))
        def leave(_, frame):
            # Inside its own code asyncio would lose the wake-up that it is at, whoever waits.
            if frame.f_code.co_filename.startswith(("<string>", *parts)):
                sys.exit(7)
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGALRM, leave)
        with asyncio.Runner() as runner:
            runner.run(asyncio.wait([runner.get_loop().create_task(writing(f"s{n}"))
                                     for n in range(8)]))
        """,
        database,
    )
    told = until_it_writes(process)
    process.send_signal(signal.SIGTERM)
    finish(process, database, told=told)
    assert process.returncode == 7


@needs_signals
def test_sigterm_to_a_server(database: Path) -> None:
    """As `adk api_server` ends: uvicorn answers what is under way, then the loop ends."""
    process = begin(
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import fastapi, httpx, uvicorn
        app = fastapi.FastAPI()
        sessions = {}
        @app.post("/{name}/{number}")
        async def append(name: str, number: int) -> None:
            if name not in sessions:
                sessions[name] = await service.create_session("app", "user", name)
            await tell(sessions[name], f"{name}/{number}")
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        async def client(name):
            port = server.servers[0].sockets[0].getsockname()[1]
            number = 0
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                while True:
                    number += 1
                    try:
                        assert (await http.post(f"/{name}/{number}")).status_code == 200
                    except httpx.HTTPError:
                        return
        async def clients():
            while not server.started:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(client(f"s{n}") for n in range(4)))
        threading.Thread(target=asyncio.run, args=(clients(),), daemon=True).start()
        try:
            server.run()
        except BaseException:
            pass  # uvicorn raises the signal again once it has ended
        """,
        database,
    )
    told = until_it_writes(process)
    process.send_signal(signal.SIGTERM)
    finish(process, database, told=told)
    assert process.returncode in (0, -signal.SIGTERM)


@needs_signals
def test_a_process_that_is_stopped_inside_the_gate(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are told who holds them up, go on reading, and write again when it goes on."""
    patient = engines.BUSY_TIMEOUT_S
    monkeypatch.setattr(engines, "_WATCH_S", 0.1)
    process = begin(
        """
        async def main():
            await asyncio.gather(*(writing(f"s{n}") for n in range(4)))
        asyncio.run(main())
        """,
        database,
    )
    until_it_writes(process)

    async def main() -> None:
        async with DatabaseSessionService(database) as service:
            session = await service.create_session("app", "other")
            monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", 0.5)
            for _ in range(1000):
                process.send_signal(signal.SIGSTOP)
                try:
                    await service.append_event(session, Event(author="a"))
                except StoreBusy as error:
                    # Not yet by its id, where it was stopped just before it could sign.
                    assert error.holder in (f"process {process.pid}", "another process")
                    break
                finally:
                    assert await service.get_session("app", "other", session.id) == session
                    process.send_signal(signal.SIGCONT)
                await asyncio.sleep(0.001)
            else:
                pytest.fail("it was never stopped inside")
            monkeypatch.setattr(engines, "BUSY_TIMEOUT_S", patient)
            await service.append_event(session, Event(author="a"))
            assert await service.get_session("app", "other", session.id) == session

    # Its pipe must not fill up.
    reading = threading.Thread(target=process.stdout.read)  # type: ignore[union-attr]
    reading.start()
    try:
        asyncio.run(main())
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        reading.join()
        process.communicate()


# Loops and tasks.


def event(name: str) -> Event:
    return Event(id=name, author="a", actions=EventActions(state_delta={"last": name}))


@pytest.fixture
def shared(database: Path) -> Iterator[DatabaseSessionService]:
    service = DatabaseSessionService(database, projections=[UsageProjection()])
    yield service
    asyncio.run(service.close())


def test_loops_in_threads_end_with_appends_under_way(shared: DatabaseSessionService) -> None:
    """They end in any way a loop can; what the others appended is stored, and all is told once."""
    sessions = [asyncio.run(shared.create_session("app", "user", str(n))) for n in range(4)]
    acknowledged: list[set[str]] = [set() for _ in sessions]

    def use(thread: int) -> None:
        for turn in range(30):
            loop = asyncio.new_event_loop()
            events = [event(f"{thread}.{turn}.{n}") for n in range(6)]
            tasks = [
                loop.create_task(shared.append_event(sessions[thread], each)) for each in events
            ]
            for task, each in zip(tasks, events, strict=True):
                task.add_done_callback(
                    lambda done, name=each.id: done.cancelled() or acknowledged[thread].add(name)
                )
            match turn % 3:
                case 0:
                    loop.run_until_complete(asyncio.wait(tasks))
                case 1:  # stopped before its step, and closed
                    loop.call_soon(loop.stop)
                    loop.run_forever()
                case 2:  # cancelled, as asyncio.run does
                    loop.call_soon(lambda tasks=tasks: [task.cancel() for task in tasks])
                    loop.run_until_complete(asyncio.wait(tasks))
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

    threads = [threading.Thread(target=use, args=(n,)) for n in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()

    async def look() -> None:
        await shared.flush()
        for session, told in zip(sessions, acknowledged, strict=True):
            await shared.append_event(session, event("last"))  # the live session is not stale
            loaded = await shared.get_session("app", "user", session.id)
            assert loaded == session
            assert told <= {each.id for each in session.events}
            assert len(told) >= 60

    asyncio.run(look())


async def test_cancelled_appends_are_stored_or_not_and_a_retry_is_safe(
    service: DatabaseSessionService,
) -> None:
    session = await service.create_session("app", "user")
    await service.append_event(session, event("first"))
    events = []
    for turn in range(60):
        together = [event(f"{turn}.{n}") for n in range(3)]
        tasks = [asyncio.create_task(service.append_event(session, each)) for each in together]
        for _ in range(turn % 6):
            await asyncio.sleep(0)
        tasks[turn % 3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if turn % 2:
            for each in together:
                await service.append_event(session, each)
        events += together
    for each in events:
        await service.append_event(session, each)
    loaded = await service.get_session("app", "user", session.id)
    assert loaded == session
    assert sorted(each.id for each in session.events) == sorted(
        ["first", *(each.id for each in events)]
    )


def test_closing_while_loops_append(database: Path) -> None:
    """Whoever appends is told StoreClosed or that it is stored; nobody waits for ever."""
    for turn in range(8):
        service = DatabaseSessionService(database, projections=[UsageProjection()])
        stored: list[str] = []
        refused = threading.Semaphore(0)
        writing = threading.Barrier(4)

        async def write(name: str, service=service, stored=stored, writing=writing) -> None:  # type: ignore[no-untyped-def]
            session = await service.create_session("app", "user", name)
            writing.wait()
            for number in range(10**6):
                await service.append_event(session, event(f"{name}/{number}"))
                stored.append(f"{name}/{number}")
                await service.get_session("app", "user", name)

        def use(name: str, write=write, refused=refused) -> None:  # type: ignore[no-untyped-def]
            try:
                asyncio.run(write(name))
            except StoreClosed:
                refused.release()

        threads = [threading.Thread(target=use, args=(f"{turn}.{n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        writing.wait()
        time.sleep(0.02)
        asyncio.run(service.close())
        asyncio.run(service.close())
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "an append or a load waits for ever"
            assert refused.acquire(blocking=False)
        found = set().union(*asyncio.run(_stored(database)).values())
        assert set(stored) <= found


# Forks and exits.


@needs_fork
def test_forks_from_a_thread_while_loops_step_and_a_follower_follows(database: Path) -> None:
    process = begin(
        """
        done = threading.Event()
        async def some(name):
            session = await service.create_session("app", "user", name)
            number = 0
            while number < 30 or not done.is_set():
                number += 1
                await tell(session, f"{name}/{number}")
                loaded = await service.get_session("app", "user", name)
                assert len(loaded.events) == number
                if name.startswith("c") and number == 30:
                    return
        def use(name):
            asyncio.run(some(name))
        threads = [threading.Thread(target=use, args=(f"t{n}",)) for n in range(2)]
        for thread in threads: thread.start()
        children = []
        for n in range(6):
            if (pid := os.fork()) == 0:
                use(f"c{n}")
                assert asyncio.run(service.usage()) is not None
                asyncio.run(service.close())
                os._exit(0)
            children.append(pid)
            time.sleep(0.02)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
        done.set()
        for thread in threads: thread.join()
        asyncio.run(service.close())
        """,
        database,
    )
    assert finish(process, database) == ""
    assert process.returncode == 0


@pytest.mark.parametrize("how", ["at once", "in a thread", "without a step"])
def test_leaving_with_appends_under_way(database: Path, how: str) -> None:
    """What was acknowledged is there, nothing hangs, and nothing is said on stderr."""
    program = {
        "at once": """
            async def main():
                tasks = [asyncio.create_task(writing(f"s{n}")) for n in range(4)]
                while not told.is_set():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                for task in tasks: task.cancel()
            asyncio.run(main())
            """,
        "in a thread": """
            async def main():
                await asyncio.gather(*(writing(f"s{n}") for n in range(4)))
            def use():
                try:
                    asyncio.run(main())
                except StoreClosed:
                    time.sleep(60)  # where an interpreter that ends leaves it
            threading.Thread(target=use, daemon=True).start()
            told.wait()
            time.sleep(0.2)
            """,
        "without a step": """
            loop = asyncio.new_event_loop()
            session = loop.run_until_complete(service.create_session("app", "user", "s"))
            loop.run_until_complete(tell(session, "s/1"))
            loop.call_soon(loop.stop)
            task = loop.create_task(tell(session, "s/2"))
            loop.run_forever()
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            loop.close()
            """,
    }[how]
    process = begin(program, database)
    assert finish(process, database) == ""
    assert process.returncode == 0

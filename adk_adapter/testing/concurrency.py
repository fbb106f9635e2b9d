"""Many tasks, sessions and event loops at once."""

from __future__ import annotations

import asyncio

from google.adk.events import Event
from google.adk.sessions import Session

from adk_adapter._adk import AlreadyExistsError, SessionNotFoundError
from adk_adapter.testing.support import (
    PAST,
    Contract,
    Sessions,
    event_ids,
    make_event,
)

__all__ = ["ConcurrencyContract"]


class ConcurrencyContract(Contract):
    """Calls at once. A service that keeps the contract passes every time, others by luck."""

    async def test_appends_through_one_session(self, sessions: Sessions) -> None:
        """1.7.15 Tasks may append through one session at once, with timestamps out of order."""
        live = await sessions.create("s")
        appends = (
            sessions.append(live, {f"n{n}": n, "last": n}, timestamp=PAST + n * 7 % 20)
            for n in range(20)
        )
        await asyncio.gather(*appends)
        assert len(live.events) == 20
        assert len(live.state) == 21
        assert live.state["last"] == live.events[-1].actions.state_delta["last"]
        assert await sessions.get("s") == live

    async def test_one_of_two_sessions_wins(self, sessions: Sessions) -> None:
        """1.7.4 Of two sessions loaded separately exactly one may append."""
        await sessions.create("s")
        for n in range(8):
            loaded = [await sessions.load() for _ in range(2)]
            appends = (sessions.append(live, {f"{n}.{i}": 1}) for i, live in enumerate(loaded))
            outcomes = await asyncio.gather(*appends, return_exceptions=True)
            assert sorted(type(o).__name__ for o in outcomes) == ["Event", "StaleSessionError"]
            winner = loaded[[isinstance(o, Event) for o in outcomes].index(True)]
            assert await sessions.get("s") == winner
            assert len(winner.state) == len(winner.events) == n + 1

    async def test_shared_keys_of_appends(self, sessions: Sessions) -> None:
        """5 `app:` and `user:` keys that many sessions append at once are all kept."""
        lives = [await sessions.create(None) for _ in range(12)]
        deltas = [{f"app:{n}": n, f"user:{n}": n} for n in range(12)]
        await asyncio.gather(*map(sessions.append, lives, deltas))
        expected = {key: value for delta in deltas for key, value in delta.items()}
        assert (await sessions.create("t")).state == expected

    async def test_shared_keys_of_creates(self, sessions: Sessions) -> None:
        """5 `app:` and `user:` keys given to many create_session calls at once are all kept."""
        states = [{f"app:{n}": n, f"user:{n}": n} for n in range(50)]
        await asyncio.gather(*(sessions.create(None, state) for state in states))
        expected = {key: value for state in states for key, value in state.items()}
        assert (await sessions.create("t")).state == expected

    async def test_one_of_many_creates_wins(self, sessions: Sessions) -> None:
        """1.2 Of many create_session calls with one id exactly one wins."""
        creates = (sessions.create("s", {f"app:{n}": n, "k": n}) for n in range(10))
        outcomes = await asyncio.gather(*creates, return_exceptions=True)
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Session)]
        assert sum(isinstance(outcome, AlreadyExistsError) for outcome in outcomes) == 9
        assert await sessions.get("s") == winner
        assert set(winner.state) == {"k", f"app:{winner.state['k']}"}

    async def test_one_event_many_times(self, sessions: Sessions) -> None:
        """1.7.5 An event that is appended many times at once is there once."""
        live = await sessions.create("s")
        event = make_event({"k": 1}, id="1")
        await asyncio.gather(*(sessions.append_event(live, event) for _ in range(5)))
        assert event_ids(live) == ["1"]
        assert await sessions.get("s") == live

    async def test_loads_are_snapshots(self, sessions: Sessions) -> None:
        """1.3 A session loaded during appends has the state that its events make."""
        live = await sessions.create("s", {"n": 0, "app:n": 0, "user:n": 0})

        async def read() -> None:
            seen = 0
            while seen < 30:
                session = await sessions.load()
                seen = len(session.events)
                assert {*session.state.values()} == {seen}

        async def write() -> None:
            for n in range(1, 31):
                await sessions.append(live, {"n": n, "app:n": n, "user:n": n})

        await asyncio.gather(write(), read(), read())

    async def test_a_cancelled_append(self, sessions: Sessions) -> None:
        """1.7.7 A cancelled append is stored whole or not at all, and blocks nothing."""
        live = await sessions.create("s")
        for n in range(10):
            task = asyncio.create_task(sessions.append(live, {f"{n}": n, f"app:{n}": n}))
            for _ in range(n % 4):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await sessions.append(live, {"end": 1})
        deltas = (event.actions.state_delta for event in live.events)
        assert live.state == {key: value for delta in deltas for key, value in delta.items()}
        assert await sessions.get("s") == live

    async def test_a_delete_during_appends(self, sessions: Sessions) -> None:
        """1.5 Appends that come after a deletion fail, and none resurrects the session."""
        live = await sessions.create("s")
        before, after = ([sessions.append(live) for _ in range(5)] for _ in range(2))
        calls = (*before, sessions.delete("s"), *after)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        expected = (Event, type(None), SessionNotFoundError)
        assert [outcome for outcome in outcomes if not isinstance(outcome, expected)] == []
        assert await sessions.get("s") is None

    async def test_many_event_loops_at_once(self, sessions: Sessions) -> None:
        """1.8 A service works in several event loops at once."""

        async def converse(name: str) -> None:
            live = await sessions.create(name)
            for n in range(5):
                await sessions.append(live, {f"app:{name}{n}": n})

        threads = (asyncio.to_thread(asyncio.run, converse(name)) for name in "abcd")
        await asyncio.gather(*threads)
        assert len((await sessions.create("s")).state) == 20

"""What fails while services write: a short run of `python -m tests.postgres.faults`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from adk_adapter import DatabaseSessionService
from eventstore import OutcomeUnknown, ServerUnavailable
from tests.conftest import Place
from tests.contention.workers import APP, USER, event
from tests.postgres.faults import FAULTS, REPLICA, both, failover, fault, main
from tests.postgres.network import relay
from tests.postgres.server import Server, execute, servers
from tests.postgres.workload import Oracle, check


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that may be killed, and so syncs what it commits."""
    with servers() as room:
        yield room.add(durable=True)


def test_whatever_fails_nothing_acknowledged_is_lost(server: Server) -> None:
    figures = fault(server, "faults", list(FAULTS), seed=1)
    assert figures.faults == len(FAULTS)
    assert figures.acknowledged >= 6 * len(FAULTS)
    assert figures.lost == 0


def test_the_command_says_what_it_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "faults --rounds 2 --seed 1 --only cut --processes 1"
    monkeypatch.setattr("sys.argv", words.split())
    main()
    said = json.loads(capsys.readouterr().out)
    assert (said["faults"], said["lost"]) == (2, 0)


def test_a_failover_to_a_replica_that_commits_wait_for_loses_nothing() -> None:
    figures = failover(synchronous=True, lag_s=0.2, seed=3)
    assert figures.acknowledged >= 2 * 6
    assert figures.lost == 0


def test_what_a_replica_that_nobody_waits_for_loses_is_noticed() -> None:
    figures = failover(synchronous=False, lag_s=0.2, seed=4)
    assert figures.lost > 0


async def test_an_event_that_only_the_primary_has_is_not_acknowledged() -> None:
    """Also not by looking for it: a commit that waited for the replica may be cut off, and is then
    there for readers, and gone behind a failover."""
    with servers() as room:
        primary = room.add("primary", durable=True)
        with relay(primary.url()) as between:
            replica = room.replicate(primary, REPLICA, between.url(primary.url()))
            primary.set("synchronous_standby_names", REPLICA)
            async with DatabaseSessionService(both(primary, replica)) as service:
                session = await service.create_session(APP, USER, "s")
                await service.append_event(session, event("s/1"))
                between.silence()
                appending = asyncio.create_task(service.append_event(session, event("s/2")))
                (pid,) = await _waiting_for_the_replica(primary)
                execute(primary.url(), f"SELECT pg_terminate_backend({pid})")
                told = asyncio.create_task(_waiting_for_the_replica(primary, but=pid))
                await asyncio.wait([appending, told], return_when=asyncio.FIRST_COMPLETED)
                acknowledged = appending.done() and appending.exception() is None
                told.cancel()
                primary.kill()
                replica.promote()
                if not acknowledged:
                    await _until_stored(service, session, appending)
                found = await service.get_session(APP, USER, "s")
                assert found is not None
                assert [each.id for each in found.events] == ["s/1", "s/2"]


async def _waiting_for_the_replica(primary: Server, but: int = 0) -> list[int]:
    """Process ids of the connections whose commits wait for the replica, once there are any."""
    while True:
        rows = await asyncio.to_thread(
            execute,
            primary.url(),
            f"SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> {but}",
        )
        if rows:
            return [pid for (pid,) in rows]
        await asyncio.sleep(0.01)


async def _until_stored(service: DatabaseSessionService, session: Any, first: Any) -> None:
    try:
        await first
    except OutcomeUnknown:
        await service.append_event(session, event("s/2"))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that gives a server up after a moment, not after a failover's time."""
    monkeypatch.setattr("eventstore.postgres.appending._RECONNECT_S", 0.2)
    monkeypatch.setattr("eventstore.postgres.engine._READ_AGAIN_S", 0.2)


@pytest.mark.usefixtures("_impatient")
async def test_an_unknown_outcome_is_reported_and_the_same_event_is_stored_once(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It must wait for its lock until the network has fallen silent.
    monkeypatch.setattr("eventstore.postgres.appending._PATIENCE_S", 30.0)
    with relay(postgres.url) as way:
        async with DatabaseSessionService(way.url(postgres.target)) as service:
            session = await service.create_session(APP, USER, "s")
            await service.append_event(session, event("s/1"))
            way.cut(down=True)
            with pytest.raises(ServerUnavailable):
                await service.append_event(session, event("s/2", n=2))
            assert [each.id for each in session.events] == ["s/1"]
            assert _stored(postgres) == 1
            way.restore()
            await service.append_event(session, event("s/2", n=2))

            third = event("s/3", n=3)
            with psycopg.connect(postgres.url) as holder:
                holder.execute(f"LOCK TABLE {postgres.schema}.events IN SHARE MODE".encode())
                appending = asyncio.create_task(service.append_event(session, third))
                await _until(lambda: _waits_for_a_lock(postgres))
                way.silence(answers_only=True)
            await _until(lambda: _stored(postgres) == 3)
            way.cut(down=True)
            with pytest.raises(OutcomeUnknown):
                await appending
            assert [each.id for each in session.events] == ["s/1", "s/2"]
            way.restore()
            await service.append_event(session, third)
            assert [each.id for each in session.events] == ["s/1", "s/2", "s/3"]
    async with DatabaseSessionService(postgres.target) as service:
        found = await service.get_session(APP, USER, "s")
        assert found is not None
        assert [each.id for each in found.events] == ["s/1", "s/2", "s/3"]
        assert (await service.verify()).clean


@pytest.mark.usefixtures("_impatient")
async def test_a_server_that_falls_silent_is_given_up_by_readers_and_writers(
    postgres: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing else tells of it: here the relay takes what is sent."""
    monkeypatch.setattr("eventstore.postgres.engine._WATCH_S", 0.05)
    monkeypatch.setattr("eventstore.postgres.engine._GRACE_S", 1.0)
    options = "&statement_timeout=2&lock_timeout=2&connect_timeout=10"
    with relay(postgres.url) as way:
        async with DatabaseSessionService(way.url(postgres.target) + options) as service:
            session = await service.create_session(APP, USER, "s")
            assert await service.get_session(APP, USER, "s")
            made = event("s/1")
            way.silence()
            calls = [service.append_event(session, made), service.get_session(APP, USER, "s")]
            told = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
            assert [type(error) for error in told] == [ServerUnavailable, ServerUnavailable]
            way.restore()
            await service.append_event(session, made)
            found = await service.get_session(APP, USER, "s")
            assert found is not None
            assert [each.id for each in found.events] == ["s/1"]


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """A server and a replica of it, which takes no writes."""
    with servers() as room:
        primary = room.add("primary", durable=True)
        yield primary, room.replicate(primary, REPLICA)


@pytest.mark.usefixtures("_impatient")
async def test_a_way_that_leads_to_a_standby_for_a_while(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    with relay(primary.url()) as way:
        async with DatabaseSessionService(f"{way.url(primary.url())}?schema=turning") as service:
            session = await service.create_session(APP, USER, "s")
            way.lead_to(replica.url())
            way.cut()
            with pytest.raises(ServerUnavailable, match="read-only"):
                await service.append_event(session, event("s/1"))
            with pytest.raises(ServerUnavailable, match="read-only"):
                await service.set_title(APP, USER, "s", "One")
            way.lead_to(primary.url())  # and nothing cuts what still leads to the standby
            await service.append_event(session, event("s/1"))
            await service.set_title(APP, USER, "s", "Two")
            assert [each.id for each in session.events] == ["s/1"]


async def test_nor_do_reads_stay_with_it(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    place = Place(primary.url(), "staying")
    with relay(primary.url()) as way:
        async with DatabaseSessionService(way.url(place.target)) as service:
            session = await service.create_session(APP, USER, "s")
            await service.append_event(session, event("s/1"))

            async def look() -> set[str]:
                """What several see who look at once, each through a connection of its own."""
                calls = (service.get_session(APP, USER, "s") for _ in range(9))
                found = [each for each in await asyncio.gather(*calls) if each is not None]
                pages = await service.list_sessions_page(APP)
                assert len(found) == len(pages.sessions) * 9
                seen = {each.events[-1].id for each in found}
                return seen | {str(info.events) for info in pages.sessions}

            caught_up = "SELECT 1 FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
            await _until(lambda: bool(execute(primary.url(), caught_up)))
            execute(replica.url(), "SELECT pg_wal_replay_pause()")
            try:
                way.lead_to(replica.url())
                way.cut()
                assert await look() == {"s/1", "2"}
                way.lead_to(primary.url())  # and nothing cuts what still leads to the standby
                await service.append_event(session, event("s/2"))
                assert await look() == {"s/2", "3"}
            finally:
                execute(replica.url(), "SELECT pg_wal_replay_resume()")


async def test_a_lost_commit_is_looked_for_past_a_standby(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.postgres.appending._PATIENCE_S", 30.0)
    primary, replica = pair
    place = Place(primary.url(), "asked")
    with relay(primary.url()) as way:
        async with DatabaseSessionService(way.url(place.target)) as service:
            session = await service.create_session(APP, USER, "s")
            with psycopg.connect(place.url) as holder:
                holder.execute(f"LOCK TABLE {place.schema}.events IN SHARE MODE".encode())
                appending = asyncio.create_task(service.append_event(session, event("s/1")))
                await _until(lambda: _waits_for_a_lock(place))
                way.silence(answers_only=True)
            await _until(lambda: _stored(place) == 1)
            way.lead_to(replica.url())
            seen = way.seen
            way.restore()
            # The second connection is made once the standby has refused on the first.
            await _until(lambda: way.seen > seen + 1 or appending.done())
            way.lead_to(primary.url())
            await appending
            assert _stored(place) == 1


def _stored(postgres: Place) -> int:
    """How many events of conversations there are."""
    query = f"SELECT count(*) FROM {postgres.schema}.events WHERE type = 'adk_event'"
    return int(execute(postgres.url, query)[0][0])


def _waits_for_a_lock(postgres: Place) -> bool:
    query = (
        "SELECT 1 FROM pg_locks WHERE NOT granted "
        f"AND relation = '{postgres.schema}.events'::regclass"
    )
    return bool(execute(postgres.url, query))


async def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# The oracle finds what it is there to find.


async def test_an_oracle_that_was_told_more(postgres: Place) -> None:
    oracle = Oracle()
    async with DatabaseSessionService(postgres.target) as service:
        session = await service.create_session(APP, USER, "s")
        for number in 1, 2:
            keys = {"n": number, "app:s": number, "user:s": number}
            await service.append_event(session, event(f"s/{number}", **keys))
            oracle.hear("try", "s", number)
            oracle.hear("ack", "s", number)
    assert await check(postgres.target, oracle) == []
    oracle.hear("try", "s", 3)
    assert await check(postgres.target, oracle) == []
    oracle.hear("ack", "s", 3)
    assert "s: 3 were acknowledged, 2 are there" in await check(postgres.target, oracle)
    oracle.hear("lost", "s", 2)
    assert oracle.lost == 1
    oracle.tried["s"] = 1
    assert "s: 2 are there, 1 were tried" in await check(postgres.target, oracle)


async def test_an_oracle_sees_half_an_event(postgres: Place) -> None:
    oracle = Oracle(tried={"s": 1}, told={"s": 1})
    async with DatabaseSessionService(postgres.target) as service:
        session = await service.create_session(APP, USER, "s")
        await service.append_event(session, event("s/1", n=1, **{"app:s": 1, "user:s": 1}))
    execute(
        postgres.url, f"UPDATE {postgres.schema}.state SET state_value = '7' WHERE state_key = 'n'"
    )
    found = await check(postgres.target, oracle)
    assert "s: n is 7 behind event 1" in found
    assert any("does not verify" in line for line in found)


def test_waiting_for_somebody_who_does_not_get_on() -> None:
    oracle = Oracle()
    oracle.hear("ack", "s", 1)
    with pytest.raises(AssertionError, match="nothing more of"):
        oracle.wait_for_all(1, time.monotonic(), patience_s=0.05)

"""Connections as users have them: with a password, encrypted, slow, asked for their health."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from click.testing import CliRunner

from adk_adapter import DatabaseSessionService
from adk_adapter.cli import main
from eventstore import ServerUnavailable, TimedOut
from tests.conftest import Place
from tests.contention.workers import APP, USER, event
from tests.postgres.network import certificate, relay
from tests.postgres.server import BY_PASSWORD, Server, execute, servers

PASSWORD = "s3cret@of/the:app?"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One whose log we may read, and whose roles we may make."""
    with servers() as room:
        server = room.add(settings={"log_statement": "all", "log_connections": "on"})
        execute(
            server.url(),
            "SET log_statement = 'none'",
            f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}' IN ROLE {BY_PASSWORD}",
        )
        yield server


def url_of(server: Server, password: str = PASSWORD) -> str:
    return server.url(user="app", password=password)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads give a server up after a moment, not after a restart's time."""
    monkeypatch.setattr("eventstore.postgres.engine._READ_AGAIN_S", 0.2)


# Secrets.


def all_of(error: BaseException) -> str:
    """An error as a log has it: with its traceback, and all that led to it."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))


def test_a_password_that_is_wrong_is_not_told(server: Server) -> None:
    wrong = "wr0ng@of/the:app?"
    for way in url_of(server, wrong), f"{server.url(user='app')}?password={quote(wrong, safe='')}":
        with pytest.raises(ServerUnavailable, match="password authentication failed") as raised:
            DatabaseSessionService(way)
        assert_unknown(wrong, all_of(raised.value))


async def test_a_password_is_in_no_error_log_or_statistic(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    execute(server.url(), "CREATE SCHEMA IF NOT EXISTS secret AUTHORIZATION app")
    told = []
    with relay(server.url()) as way:
        url = way.url(url_of(server))
        async with DatabaseSessionService(url, schema="secret") as service:
            session = await service.create_session(APP, USER)
            told += [repr(service), str(service.get_stats())]
            way.cut(down=True)
            with pytest.raises(ServerUnavailable) as raised:
                await service.get_session(APP, USER, session.id)
            told.append(all_of(raised.value))
            way.restore()
            await service.append_event(session, event("1"))
    for target in (
        f"{url_of(server)}?nonsense=1",
        url_of(server).replace(f":{server.port}/", ":notaport/"),
        f"{url_of(server)}?sslmode=verify-full&sslrootcert=/nowhere",
        f"{url_of(server)}?schema=Not%20Good",
        f"{url_of(server)}?lock_timeout=soon",
    ):
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is
            DatabaseSessionService(target)
        told.append(all_of(raised.value))
    assert "sessions are kept in postgresql://app@" in caplog.text
    assert_unknown(PASSWORD, caplog.text, server.logged(), *told)


def assert_unknown(password: str, *texts: str) -> None:
    """Neither the password nor its beginning is there, as it is or as a URL has it."""
    for text in texts:
        for form in (password, quote(password, safe=""), password[:6]):
            assert form not in text


async def test_a_password_from_the_environment_or_a_function(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(server.url(), "CREATE SCHEMA IF NOT EXISTS given AUTHORIZATION app")
    calls = []

    async def connect() -> str:
        calls.append(None)
        return url_of(server)

    async with DatabaseSessionService(connect=connect, schema="given") as service:
        await service.create_session(APP, USER, "s")
        assert calls
        assert PASSWORD not in str(service.get_stats())
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    async with DatabaseSessionService(server.url(user="app"), schema="given") as service:
        assert await service.get_session(APP, USER, "s")


@pytest.mark.parametrize("raised", [OSError, asyncio.CancelledError])
async def test_a_function_that_fails_is_asked_again(
    postgres: Place, monkeypatch: pytest.MonkeyPatch, raised: type[BaseException]
) -> None:
    failures = 0

    def connect() -> str:
        nonlocal failures
        if failures:
            failures -= 1
            raise raised("the service that gives passwords out is down")
        return way.url(postgres.url)

    with relay(postgres.url) as way:
        async with DatabaseSessionService(connect=connect, schema=postgres.schema) as service:
            session = await service.create_session(APP, USER, "s")
            failures = 3
            way.cut()
            await service.append_event(session, event("1"))
            assert failures == 0
            monkeypatch.setattr("eventstore.postgres.appending._RECONNECT_S", 0.2)
            failures = 10**9
            way.cut()
            calls = [service.append_event(session, event("2")), service.get_session(APP, USER, "s")]
            told = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in told] == [ServerUnavailable, ServerUnavailable]
            assert f"connect() raised {raised.__name__}" in str(told[0])
            with pytest.raises(ServerUnavailable):
                DatabaseSessionService(connect=lambda: connect(), schema=postgres.schema)


# Encryption.


async def test_a_server_is_known_by_its_certificate(server: Server, tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    with relay(server.url(), tls=context) as way:
        url = way.url(server.url())
        strict = f"{url}?schema=tls&sslmode=verify-full&sslrootcert={own}"
        async with DatabaseSessionService(strict) as service:
            await service.create_session(APP, USER, "s")
        with pytest.raises(ServerUnavailable, match="certificate verify failed"):
            DatabaseSessionService(f"{url}?sslmode=verify-full&sslrootcert={other}")
        with pytest.raises(ServerUnavailable):
            DatabaseSessionService(f"{url}?sslmode=disable")
    # And one that has none is not spoken to in the clear.
    with pytest.raises(ServerUnavailable, match="does not support SSL"):
        DatabaseSessionService(f"{server.url()}?sslmode=require")


# Time limits and health.


async def test_a_load_that_takes_too_long(postgres: Place) -> None:
    target = f"{postgres.target}&statement_timeout=2"
    async with DatabaseSessionService(target) as service:
        await service.create_session(APP, USER, "s")
        with psycopg.connect(postgres.url) as holder:
            holder.execute(f"LOCK TABLE {postgres.schema}.events".encode())
            with pytest.raises(TimedOut) as raised:
                await service.get_session(APP, USER, "s")
            assert raised.value.timeout_s == pytest.approx(2)
        assert await service.get_session(APP, USER, "s")


async def test_a_health_check(server: Server) -> None:
    with relay(server.url()) as way:
        async with DatabaseSessionService(f"{way.url(server.url())}?schema=health") as service:
            await service.ping()
            way.cut(down=True)
            with pytest.raises(ServerUnavailable):
                await service.ping()
            way.restore()
            await service.ping()


def test_a_command_that_reads_through_the_service_has_the_password(
    server: Server, tmp_path: Path
) -> None:
    execute(server.url(), "CREATE SCHEMA IF NOT EXISTS exported AUTHORIZATION app")

    async def fill() -> None:
        async with DatabaseSessionService(url_of(server), schema="exported") as service:
            await service.create_session(APP, USER, "s")

    asyncio.run(fill())
    whose = ["--app", APP, "--user", USER, "--session", "s"]
    words = ["--as", "session", *whose, "--db", f"{url_of(server)}?schema=exported"]
    done = CliRunner().invoke(main, ["export", str(tmp_path / "s.json"), *words])
    assert (done.exit_code, done.stderr) == (0, "")
    assert_unknown(PASSWORD, done.output)
    assert json.loads((tmp_path / "s.json").read_text())["id"] == "s"

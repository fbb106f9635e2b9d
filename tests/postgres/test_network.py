"""The relay cuts, hangs and encrypts as it says, seen by a client that is not ours."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import asyncpg
import pytest

from tests.postgres.network import certificate, relay
from tests.postgres.server import execute

LOST = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError)


async def test_a_connection_is_cut_and_the_next_one_passes(postgres_url: str) -> None:
    with relay(postgres_url) as way:
        connection = await asyncpg.connect(way.url(postgres_url))
        assert await connection.fetchval("SELECT 7") == 7
        way.cut()
        with pytest.raises(LOST):
            await connection.fetchval("SELECT 7")
        way.cut(down=True)
        with pytest.raises(LOST):
            await asyncpg.connect(way.url(postgres_url))
        way.restore()
        connection = await asyncpg.connect(way.url(postgres_url))
        assert await connection.fetchval("SELECT 7") == 7
        await connection.close()


async def test_a_silent_network_hides_what_the_server_did(postgres_url: str) -> None:
    execute(postgres_url, "DROP TABLE IF EXISTS silent", "CREATE TABLE silent (n int)")
    with relay(postgres_url) as way:
        connection = await asyncpg.connect(way.url(postgres_url))
        way.silence(answers_only=True)
        with pytest.raises(TimeoutError):
            await connection.execute("INSERT INTO silent VALUES (1)", timeout=2)
        assert len(execute(postgres_url, "SELECT * FROM silent")) == 1
        way.restore()
        connection.terminate()
        connection = await asyncpg.connect(way.url(postgres_url))
        way.silence()
        with pytest.raises(TimeoutError):
            await connection.execute("INSERT INTO silent VALUES (2)", timeout=0.2)
        connection.terminate()
        await asyncio.sleep(0)
    assert len(execute(postgres_url, "SELECT * FROM silent")) == 1
    execute(postgres_url, "DROP TABLE silent")


async def test_a_relay_with_a_certificate(postgres_url: str, tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    with relay(postgres_url, tls=context) as way:
        trusting = ssl.create_default_context(cafile=own)
        connection = await asyncpg.connect(way.url(postgres_url), ssl=trusting)
        assert await connection.fetchval("SELECT 7") == 7
        await connection.close()
        with pytest.raises(LOST):
            await asyncpg.connect(way.url(postgres_url), ssl=False)

"""Databases to damage, and what may be said about them afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from google.adk.events import Event, EventActions
from google.genai import types

from adk_adapter import DatabaseSessionService
from eventstore import open_store
from projections import BUILT_IN, Anchor, verify

PAGE: Final = 4096
SECRET: Final = "s3cr3t-m4rk3r"
"""In every value and payload, and in no id: nothing that is told about a database may show it."""
LIVE: Final = (("app0", "u1", "s4"), ("app0", "u0", "s6"), ("app1", "u1", "s7"))
DELETED: Final = ("app0", "u2", "s2")


def said(text: str, author: str = "user", **delta: Any) -> Event:
    content = types.Content(role="user", parts=[types.Part(text=text)])
    return Event(author=author, content=content, actions=EventActions(state_delta=delta))


async def fill(path: Path) -> None:
    """Sessions of two apps, some with long events; two vacuumed, and one only deleted."""
    async with DatabaseSessionService(path) as service:
        for n in range(8):
            state = {"k": f"{SECRET} {n}", "user:a": [SECRET, n], "app:b": {SECRET: n}}
            session = await service.create_session(f"app{n % 2}", f"u{n % 3}", f"s{n}", state)
            for m in range(24):
                text = f"{SECRET} {n} {m} " * (400 if m % 9 == 4 else 20)
                await service.append_event(session, said(text, k=f"{SECRET} {m}"))
        await service.delete_session("app0", "u0", "s0")
        await service.delete_session("app1", "u1", "s1")
        service.vacuum()
        await service.delete_session(*DELETED)


def make(path: Path) -> Path:
    asyncio.run(fill(path))
    return path


def log(path: Path) -> dict[int, tuple[Any, ...]]:
    """Every event by position, without version and chain, which recovery may change."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT position, stream_id, event_id, type, schema_version, recorded_at, timestamp, "
            "author, invocation_id, fingerprint, encoding, CAST(delta AS BLOB), "
            "CAST(data AS BLOB) FROM events JOIN codecs ON codecs.id = events.codec"
        ).fetchall()
    return {row[0]: row[1:] for row in rows}


def anchor(path: Path) -> Anchor:
    with closing(open_store(path, BUILT_IN)) as store:
        found = verify(store, BUILT_IN).anchor
    assert found is not None
    return found


def pages(path: Path) -> dict[str, list[int]]:
    """The pages of a file by what they are: a table's or an index's, a leaf or not."""
    with closing(sqlite3.connect(path)) as connection:
        roots = connection.execute(
            "SELECT rootpage, name FROM sqlite_schema WHERE rootpage > 0"
        ).fetchall()
    content = path.read_bytes()
    found: dict[str, list[int]] = {"schema": [1]}
    for root, name in roots:
        found[name] = list(_tree(content, root))
    return found


def tamper(path: Path, statement: str, table: str = "events") -> None:
    """Changes a table as a damaged page does: neither types, indexes nor triggers refuse it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        schema = connection.execute(
            "SELECT rowid, * FROM sqlite_schema WHERE tbl_name = ?", (table,)
        ).fetchall()
        connection.execute(
            "DELETE FROM sqlite_schema WHERE tbl_name = ? AND name <> ?", (table, table)
        )
        columns = ", ".join(
            f"{name} INTEGER PRIMARY KEY" if key and kind == "INTEGER" else name
            for _, name, kind, _, _, key in connection.execute(f"PRAGMA table_info({table})")
        )
        connection.execute(
            "UPDATE sqlite_schema SET sql = ? WHERE name = ?",
            (f"CREATE TABLE {table} ({columns})", table),
        )
        connection.commit()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement).rowcount > 0
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_schema WHERE tbl_name = ?", (table,))
        marks = ", ".join("?" * len(schema[0]))
        connection.executemany(
            "INSERT INTO sqlite_schema (rowid, type, name, tbl_name, rootpage, sql) "
            f"VALUES ({marks})",
            schema,
        )
        connection.commit()


def _tree(content: bytes, number: int) -> Iterator[int]:
    yield number
    start = (number - 1) * PAGE
    if content[start] in (0x02, 0x05):
        count = int.from_bytes(content[start + 3 : start + 5], "big")
        for n in range(count):
            at = int.from_bytes(content[start + 12 + 2 * n : start + 14 + 2 * n], "big")
            yield from _tree(content, int.from_bytes(content[start + at : start + at + 4], "big"))
        yield from _tree(content, int.from_bytes(content[start + 8 : start + 12], "big"))

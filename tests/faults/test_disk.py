"""A disk that is really full: a small file system of its own, and SQLite's own limit everywhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest

from eventstore import (
    Cursor,
    Durability,
    EventStore,
    EventType,
    StorageFailed,
    StoreUnusable,
    Window,
    open_store,
)
from projections import BUILT_IN, UsageProjection, rebuild, run, scavenge, verify
from projections.backup import backup
from projections.transfer import export_log
from tests.eventstore.events import SESSION, created, new_event, session

_BYTES: Final = 6_000_000
_PAGES: Final = 300
_PAYLOAD: Final = "x" * 9_000
_ENOUGH: Final = 2_000
"""Appends after which any of these disks is full."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 6 MB, None where no such thing can be made."""
    folder = tmp_path / "small"
    folder.mkdir()
    if not _mounted(folder):
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mounted(folder: Path) -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    options = ["-t", "tmpfs", "-o", f"size={_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(["mount", *options], capture_output=True).returncode == 0


@contextmanager
def limited() -> Iterator[Callable[[], None]]:
    """Connections that may not let a file grow; what it yields takes the limit away."""
    connect = sqlite3.connect
    connections: list[sqlite3.Connection] = []
    limit = _PAGES

    def limiting(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        if ":memory:" not in str(arguments[0]):
            connection.execute(f"PRAGMA max_page_count = {limit}")
            connections.append(connection)
        return connection

    def lift() -> None:
        nonlocal limit
        limit = 1_000_000_000
        for connection in connections:
            try:
                connection.execute(f"PRAGMA max_page_count = {limit}")
            except sqlite3.ProgrammingError:  # closed meanwhile
                continue

    with patch.object(sqlite3, "connect", limiting):
        yield lift


async def fill(
    store: EventStore, *, at_once: int, payload: str = _PAYLOAD
) -> tuple[list[str], list[BaseException]]:
    """Appends until nothing fits any more: the ids that were acknowledged, and the errors."""
    stream = await store.load(SESSION, Window(last=0), lambda loaded: loaded.stream)
    if stream is None:
        stream = (await store.create(SESSION, created())).stream
    cursor = Cursor(stream.id, stream.conversation_version)
    stored: list[str] = []
    errors: list[BaseException] = []
    for number in range(_ENOUGH):
        events = [
            new_event(delta={"session": {"n": number}, "app": {"n": number}}, data=payload)
            for _ in range(at_once)
        ]
        outcomes = await asyncio.gather(
            *(store.append(SESSION, event, cursor) for event in events), return_exceptions=True
        )
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                errors.append(outcome)
            else:
                stored.append(event.event_id)
        if len(errors) > 5 * at_once:
            return stored, errors
    raise AssertionError("the disk does not get full")


def check(path: Path, acknowledged: list[str]) -> None:
    """What was acknowledged is there, in order, and nothing else of that session."""
    with closing(open_store(path, BUILT_IN)) as store:
        assert read(store) == acknowledged
        assert verify(store, BUILT_IN).clean


def read(store: EventStore) -> list[str]:
    async def work() -> list[str]:
        events = await store.load(
            SESSION, Window(), lambda loaded: [event.event_id for event in loaded.events]
        )
        assert events is not None
        return events

    return asyncio.run(work())


def goes_on(store: EventStore, acknowledged: list[str]) -> None:
    """The same store, now that there is room again."""

    async def work() -> None:
        stream = await store.load(SESSION, Window(last=0), lambda loaded: loaded.stream)
        assert stream is not None
        cursor = Cursor(stream.id, stream.conversation_version)
        for _ in range(5):
            event = new_event(data=_PAYLOAD)
            await store.append(SESSION, event, cursor)
            acknowledged.append(event.event_id)
        await store.create(session("new"), created(user={"k": 1}))

    assert read(store) == acknowledged
    asyncio.run(work())
    assert read(store) == acknowledged
    assert verify(store, BUILT_IN).clean


@pytest.mark.parametrize("durability", ["normal", "full"])
@pytest.mark.parametrize("at_once", [1, 5])
def test_a_full_file_system(
    tmp_path: Path, small_disk: Path | None, durability: Durability, at_once: int
) -> None:
    if small_disk is None:  # the same, as far as SQLite itself can say that it is full
        with limited() as lift:
            fill_and_go_on(tmp_path / "a.sqlite3", durability, at_once, lift)
        return
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(_BYTES // 3))
    fill_and_go_on(small_disk / "a.sqlite3", durability, at_once, ballast.unlink)


@pytest.mark.parametrize("durability", ["normal", "full"])
@pytest.mark.parametrize("at_once", [1, 5])
def test_a_file_that_may_not_grow(database: Path, durability: Durability, at_once: int) -> None:
    with limited() as lift:
        fill_and_go_on(database, durability, at_once, lift)


def fill_and_go_on(
    path: Path, durability: Durability, at_once: int, make_room: Callable[[], object]
) -> None:
    with closing(open_store(path, BUILT_IN, durability=durability)) as store:
        acknowledged, errors = asyncio.run(fill(store, at_once=at_once))
        assert len(acknowledged) > 50
        assert {type(error) for error in errors} == {StorageFailed}
        assert "the disk is full" in str(errors[0])
        make_room()
        goes_on(store, acknowledged)
    check(path, acknowledged)


def test_maintenance_on_a_full_disk(database: Path) -> None:
    """It fails with the same error, and what is stored is as it was; then it can be done."""
    steps: dict[str, Callable[[EventStore], object]] = {
        "rebuild": lambda store: rebuild(store, BUILT_IN),
        "follow": lambda store: run(store, (UsageProjection(),)),
        "vacuum": lambda store: scavenge(store, BUILT_IN, ()),
    }
    failed = set()
    for name, step in steps.items():
        with limited() as lift:
            store = open_store(database.with_name(f"{name}.sqlite3"), BUILT_IN)
            asyncio.run(_delete_some(store))
            acknowledged, _ = asyncio.run(fill(store, at_once=1))
            acknowledged += asyncio.run(fill(store, at_once=1, payload="small"))[0]
            try:
                step(store)
            except StorageFailed:
                failed.add(name)
            assert verify(store, BUILT_IN).clean
            assert read(store) == acknowledged
            lift()
            step(store)
            assert read(store) == acknowledged
            assert verify(store, BUILT_IN).clean
            store.close()
    assert failed >= {"rebuild", "follow"}  # a vacuum may do with the space that it frees


async def _delete_some(store: EventStore) -> None:
    for number in range(3):
        key = session(f"gone-{number}")
        await store.create(key, created(user={f"k{n}": "y" * 3_000 for n in range(5)}))
        await store.delete(key, new_event(EventType.SESSION_DELETED))


def test_a_backup_that_does_not_fit(tmp_path: Path, small_disk: Path | None) -> None:
    database = tmp_path / "a.sqlite3"
    with closing(open_store(database, BUILT_IN)) as store:

        async def work() -> None:
            cursor = Cursor((await store.create(SESSION, created())).stream.id, 1)
            for _ in range(900):
                await store.append(SESSION, new_event(data=_PAYLOAD), cursor)

        asyncio.run(work())
        if small_disk is None:
            with limited(), pytest.raises((StorageFailed, StoreUnusable)):
                backup(store, tmp_path / "copies" / "b.sqlite3")
            return
        target = small_disk / "b.sqlite3"
        with pytest.raises((StorageFailed, StoreUnusable)) as raised:
            backup(store, target)
        assert "full" in str(raised.value) or "space" in str(raised.value)
        assert str(database) not in str(raised.value)
        with pytest.raises(StorageFailed, match="No space left") as raised:
            export_log(store, small_disk / "b.jsonl")
        assert str(small_disk / "b.jsonl") in str(raised.value)
        assert list(small_disk.iterdir()) == []
        assert len(read(store)) == 900

"""A log that is taken out and in is the same log; what was changed on the way is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventstore import (
    Change,
    CorruptEvent,
    Cursor,
    EventStore,
    EventStoreError,
    EventType,
    InvalidInput,
    PathUnusable,
    Projection,
    Put,
    RecordedEvent,
    StreamNotFound,
    Table,
    Window,
    open_store,
)
from eventstore.chain import digest, first_link, next_link
from eventstore.events import StreamKey, StreamKind
from eventstore.postgres import transaction
from projections import BUILT_IN, erase_user, scavenge, verify
from projections.transfer import (
    Exists,
    ExportDamaged,
    NotEmpty,
    Part,
    TargetDamaged,
    copy_log,
    export_log,
    import_log,
    is_export,
    is_there,
    portable,
)
from tests.conftest import Place
from tests.eventstore.events import created, new_event, session
from tests.places import query
from tests.projections import logs
from tests.projections.logs import INLINE, rows

NAN = float("nan")

OPERATIONS = [
    ("create", ("a", "u", "1"), {"session": {"k": 1}, "user": {"name": "ü☕"}, "app": {"n": 1}}),
    ("create", ("a", "u", "2"), {"user": {"name": "second"}}),
    ("create", ("a", "v", "1"), {"session": {"do": ["put", "x", 3]}, "app": {"n": NAN}}),
    ("append", ("a", "u", "1"), {"session": {"k": [None, {"": "\ud800"}]}}),
    ("append", ("a", "u", "2"), {"user": {"name": "last"}, "app": {"do": ["add", "y", 4]}}),
    ("delete", ("a", "u", "2"), {}),
    ("create", ("a", "u", "2"), {"session": {"again": True}}),
    ("create", ("b", "u", "1"), {"user": {"of": "b", "größe": NAN}, "app": {"gone": 1}}),
    ("delete", ("b", "u", "1"), {}),
    ("set", ("a", "v", "1"), {"session": {"k": "set"}}),
    ("create", ("b", "w", "1"), {"app": {"left": 2}}),
    ("append", ("a", "u", "1"), {"user": {"name": "now"}}),
]


def perform_all(store: EventStore, operations: list[tuple[str, tuple[str, str, str], Any]]) -> None:
    logs.perform_all(store, [(kind, name[::-1], delta) for kind, name, delta in operations])


@pytest.fixture
def full(tmp_path: Path) -> Iterator[EventStore]:
    """Sessions of two apps; one was vacuumed, one is only deleted, and its id used again."""
    opened = open_store(tmp_path / "full.db", INLINE)
    perform_all(opened, OPERATIONS[:9])
    scavenge(opened, INLINE)
    perform_all(opened, [*OPERATIONS[9:], ("delete", ("a", "v", "1"), {})])
    yield opened
    opened.close()


def opened(path: Path) -> EventStore:
    return open_store(path, INLINE, create=False)


def log(store: EventStore) -> list[Any]:
    return store.snapshot(lambda s: list(s.read_log(0, s.head(), 10**6)))


def streams(store: EventStore) -> list[Any]:
    return store.snapshot(lambda s: list(s.stream_facts(0, 10**6)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def seal(path: Path, content: list[dict[str, Any]]) -> Path:
    """Writes lines as an attacker would who knows the format."""
    seen, written = b"", b""
    for line in content:
        body = json.dumps({k: v for k, v in line.items() if k != "sum"}, separators=(",", ":"))
        seen = hashlib.sha256(seen + body.encode()).digest()
        written += f'{body[:-1]},"sum":"{seen.hex()[:32]}"}}\n'.encode()
    path.write_bytes(written)
    return path


# The whole log.


def test_an_export_is_the_same_bytes_each_time_and_behind_an_import(
    full: EventStore, tmp_path: Path
) -> None:
    done = export_log(full, tmp_path / "one.jsonl")
    export_log(full, tmp_path / "two.jsonl")
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert (tmp_path / "one.jsonl").stat().st_mode & 0o777 == 0o600
    assert is_export(tmp_path / "one.jsonl")
    taken = import_log(tmp_path / "one.jsonl", tmp_path / "new.db", INLINE)
    assert (taken.events, taken.streams, taken.root) == (done.events, done.streams, done.root)
    new = opened(tmp_path / "new.db")
    try:
        assert log(new) == log(full)
        assert streams(new) == streams(full)
        assert rows(new, INLINE) == rows(full, INLINE)
        export_log(new, tmp_path / "three.jsonl")
        assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()
        # Nothing that was given out is given out again, and life goes on.
        perform_all(
            new, [("create", ("a", "z", "1"), {}), ("append", ("a", "u", "1"), {"app": {}})]
        )
        assert streams(new)[-1].stream.id > streams(full)[-1].stream.id
        assert verify(new, INLINE).clean
    finally:
        new.close()


def test_a_copy_is_the_same_log_and_has_the_same_root(
    full: EventStore, target: str, tmp_path: Path
) -> None:
    tried = copy_log(full, target, INLINE, dry_run=True)
    assert not is_there(target)
    done = copy_log(full, target, INLINE)
    assert (tried.streams, tried.events) == (done.streams, done.events)
    assert is_there(target)
    assert done.root == verify(full, INLINE).anchor.root  # type: ignore[union-attr]
    new = open_store(target, INLINE, create=False)
    try:
        assert (log(new), streams(new)) == (log(full), streams(full))
        assert rows(new, INLINE) == rows(full, INLINE)
        assert verify(new, INLINE).anchor.root == done.root  # type: ignore[union-attr]
        # From a server into a file again, too, and both say the same of themselves.
        assert copy_log(new, tmp_path / "back.db", INLINE).root == done.root
        for name, store in (("full", full), ("new", new)):
            export_log(store, tmp_path / name)
        assert (tmp_path / "new").read_bytes() == (tmp_path / "full").read_bytes()
    finally:
        new.close()


def test_an_export_goes_into_any_database(full: EventStore, target: str, tmp_path: Path) -> None:
    export_log(full, tmp_path / "whole")
    import_log(tmp_path / "whole", target, INLINE)
    new = open_store(target, INLINE, create=False)
    try:
        assert (log(new), streams(new)) == (log(full), streams(full))
        assert rows(new, INLINE) == rows(full, INLINE)
        assert verify(new, INLINE).clean
        # It goes on behind what has come.
        perform_all(new, [("create", ("c", "u", "1"), {"app": {"n": 1}})])
        assert verify(new, INLINE).clean
    finally:
        new.close()


def test_a_copy_is_of_one_moment_while_others_write(full: EventStore, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            perform_all(full, [("create", ("w", "u", str(n)), {"user": {"n": n}})])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copies = [copy_log(full, tmp_path / f"{n}.db", INLINE) for n in range(5)]
    finally:
        stop.set()
        writer.join()
    assert len({copy.events for copy in copies}) > 1
    for n in range(5):
        new = opened(tmp_path / f"{n}.db")
        try:
            assert log(new) == log(full)[: copies[n].events]
        finally:
            new.close()


def test_an_empty_log(tmp_path: Path) -> None:
    store = open_store(tmp_path / "empty.db", INLINE)
    try:
        export_log(store, tmp_path / "empty.jsonl")
        import_log(tmp_path / "empty.jsonl", tmp_path / "new.db", INLINE)
        # Into one that is there and has no events.
        assert import_log(tmp_path / "empty.jsonl", tmp_path / "empty.db", INLINE).events == 0
    finally:
        store.close()


def test_a_whole_log_goes_into_a_store_without_events_and_into_no_other(
    full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "all.jsonl")
    open_store(tmp_path / "there.db", INLINE).close()
    taken = import_log(tmp_path / "all.jsonl", tmp_path / "there.db", INLINE)
    again = import_log(tmp_path / "all.jsonl", tmp_path / "there.db", INLINE)
    assert (again.events, again.streams, again.there) == (0, 0, taken.streams)
    there = opened(tmp_path / "there.db")
    try:
        assert log(there) == log(full)
        perform_all(there, [("create", ("new", "u", "1"), {})])
        assert import_log(tmp_path / "all.jsonl", tmp_path / "there.db", INLINE).events == 0
    finally:
        there.close()
    perform_all(full, [("create", ("more", "u", "1"), {})])
    export_log(full, tmp_path / "more.jsonl")
    with pytest.raises(NotEmpty):
        import_log(tmp_path / "more.jsonl", tmp_path / "there.db", INLINE)
    for dry_run in (False, True):
        with pytest.raises(NotEmpty):
            copy_log(full, tmp_path / "there.db", INLINE, dry_run=dry_run)
        with pytest.raises(NotEmpty):
            copy_log(full, full.path, INLINE, dry_run=dry_run)


def test_an_event_whose_content_is_gone_is_damage(full: EventStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(full.path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO maintenance VALUES (1, 'test')")
        connection.execute("UPDATE events SET data = NULL WHERE type = 'adk_event'")
        connection.execute("DELETE FROM maintenance")
    with pytest.raises(CorruptEvent, match="digest"):
        export_log(full, tmp_path / "one.jsonl")
    assert not (tmp_path / "one.jsonl").exists()


class Unsteady(Projection):
    """What it says of an event is another thing each time, as none should."""

    name = "unsteady"
    version = 1
    table = Table("unsteady", key={"stream_id": "integer"}, columns={"n": "integer"})
    numbers = count()

    def apply(self, event: RecordedEvent) -> Iterator[Change]:
        yield Put((event.stream.id,), (next(self.numbers),))


def test_what_was_taken_into_tables_that_do_not_verify_is_there(
    full: EventStore, tmp_path: Path
) -> None:
    """It is said that they differ, and not that nothing was taken."""
    export_log(full, tmp_path / "a.jsonl", Part("a"))
    inline = (*INLINE, Unsteady())
    store = open_store(tmp_path / "other.db", inline)
    try:
        with pytest.raises(TargetDamaged, match=r"has taken all of it.* in unsteady"):
            import_log(tmp_path / "a.jsonl", tmp_path / "other.db", inline)
        assert len(log(store)) > 5
    finally:
        store.close()


def test_while_a_user_is_being_erased_the_log_can_be_copied(
    full: EventStore, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("projections.retention._erase_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            erase_user(full, INLINE, (), user_id="u")
    ended = {(facts.stream.key.kind, facts.live) for facts in streams(full)}
    assert (StreamKind.USER, False) in ended
    export_log(full, tmp_path / "one.jsonl")
    copy_log(full, target, INLINE)
    new = open_store(target, INLINE, create=False)
    try:
        assert (log(new), streams(new)) == (log(full), streams(full))
        erase_user(new, INLINE, (), user_id="u", rewrite=False)
        assert verify(new, INLINE).clean
    finally:
        new.close()


def test_a_text_of_pythons_json_that_is_not_all_ascii_is_copied(
    full: EventStore, tmp_path: Path
) -> None:
    """As earlier versions wrote it when they carried a key over."""
    delta = '{"session":{"größe":NaN}}'.encode()

    async def write() -> None:
        event = new_event(EventType.STATE_SET)
        event = msgspec.structs.replace(event, delta=delta, encoding=2)
        await full.set_state(session("1", "u", "a"), event)

    asyncio.run(write())
    export_log(full, tmp_path / "one.jsonl")
    import_log(tmp_path / "one.jsonl", tmp_path / "new.db", INLINE)
    new = opened(tmp_path / "new.db")
    try:
        assert log(new) == log(full)
        assert verify(new, INLINE).clean
    finally:
        new.close()


# A part of it.

PARTS = [Part("a"), Part("b"), Part("a", "u"), Part("a", "u", "1"), Part("a", "u", "2")]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_part_is_the_same_bytes_wherever_it_is(
    part: Part, full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "one.jsonl", part)
    store = open_store(tmp_path / "other.db", INLINE)
    try:
        perform_all(
            store, [("create", ("other", "u", str(n)), {"app": {"n": n}}) for n in range(3)]
        )
        done = import_log(tmp_path / "one.jsonl", tmp_path / "other.db", INLINE)
        assert done.there == 0
        export_log(store, tmp_path / "two.jsonl", part)
        assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
        again = import_log(tmp_path / "one.jsonl", tmp_path / "other.db", INLINE)
        assert (again.events, again.streams, again.there) == (0, 0, done.streams)
        assert verify(store, INLINE).clean
    finally:
        store.close()


def test_an_app_comes_with_its_rows(full: EventStore, tmp_path: Path) -> None:
    export_log(full, tmp_path / "a.jsonl", Part("a"))
    import_log(tmp_path / "a.jsonl", tmp_path / "new.db", INLINE)
    new = opened(tmp_path / "new.db")

    def state(store: EventStore) -> dict[Any, Any]:
        keys = {facts.stream.id: (facts.stream.key, facts.live) for facts in streams(store)}
        return {
            (keys[owner], key): value
            for owner, key, value, _ in rows(store)["state"]
            if keys[owner][0].app_name == "a"
        }

    try:
        assert state(new) == state(full)
    finally:
        new.close()


def test_a_session_that_comes_in_leaves_shared_keys_as_they_are(
    full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "s.jsonl", Part("a", "u", "1"))
    store = open_store(tmp_path / "other.db", INLINE)
    try:
        perform_all(store, [("create", ("a", "u", "mine"), {"user": {"name": "mine"}})])
        done = import_log(tmp_path / "s.jsonl", tmp_path / "other.db", INLINE)
        assert done.keys_kept == 1

        async def load() -> Any:
            return await store.load(session("1", "u", "a"), Window(), lambda loaded: loaded)

        loaded = asyncio.run(load())
        values = {key: value for _, key, value, _ in loaded.rows["state"]}
        assert values["name"] == '"mine"'
        assert values["n"] == "1"  # of the app, and not there before
        assert verify(store, INLINE).clean
    finally:
        store.close()


def shared(store: EventStore) -> dict[str, str]:
    """The keys of users and apps."""
    ids = {facts.stream.id for facts in streams(store) if not facts.stream.key.session_id}
    return {key: value for owner, key, value, _ in rows(store)["state"] if owner in ids}


@pytest.mark.parametrize("part", [Part("a"), Part("a", "u")], ids=str)
def test_an_app_or_user_that_comes_in_leaves_keys_as_other_sessions_have_set_them(
    part: Part, target: str, tmp_path: Path
) -> None:
    origin = open_store(tmp_path / "origin.db", INLINE)
    store = open_store(target, INLINE)
    old, mine, new = (
        {"user": {"k": value}, "app": {"n": value}} for value in ("old", "mine", "new")
    )
    try:
        perform_all(origin, [("create", ("a", "u", "1"), old)])
        perform_all(store, [("create", ("a", "u", "x"), mine)])
        for number, operations in enumerate([[], [("append", ("a", "u", "1"), new)]]):
            # Also when it has grown, and what it brought was put back by an event of the user's.
            perform_all(origin, operations)
            export_log(origin, tmp_path / f"{number}.jsonl", part)
            done = import_log(tmp_path / f"{number}.jsonl", target, INLINE)
            assert (done.events, done.keys_kept) == (1, 2)
            assert shared(store) == {"k": '"mine"', "n": '"mine"'}
        assert verify(store, INLINE).clean
    finally:
        store.close()
        origin.close()


def test_what_has_come_since_sets_the_keys_that_nobody_else_has_set_here(
    target: str, tmp_path: Path
) -> None:
    origin = open_store(tmp_path / "origin.db", INLINE)
    store = open_store(target, INLINE)
    old, new = ({"user": {"k": value}, "app": {"n": value}} for value in ("old", "new"))
    try:
        perform_all(origin, [("create", ("a", "u", "1"), old)])
        export_log(origin, tmp_path / "one.jsonl", Part("a"))
        import_log(tmp_path / "one.jsonl", target, INLINE)
        perform_all(store, [("create", ("a", "u", "x"), {"user": {"k": "mine"}})])
        perform_all(origin, [("append", ("a", "u", "1"), new)])
        export_log(origin, tmp_path / "two.jsonl", Part("a"))
        assert import_log(tmp_path / "two.jsonl", target, INLINE).keys_kept == 1
        assert shared(store) == {"k": '"mine"', "n": '"new"'}
        assert verify(store, INLINE).clean
    finally:
        store.close()
        origin.close()


def test_what_has_come_since_is_taken_and_what_went_apart_is_refused(
    full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "one.jsonl", Part("a"))
    perform_all(
        full,
        [("append", ("a", "u", "1"), {"session": {"more": 1}}), ("delete", ("a", "u", "2"), {})],
    )
    export_log(full, tmp_path / "two.jsonl", Part("a"))
    store = open_store(tmp_path / "other.db", INLINE)
    try:
        import_log(tmp_path / "one.jsonl", tmp_path / "other.db", INLINE)
        done = import_log(tmp_path / "two.jsonl", tmp_path / "other.db", INLINE)
        assert (done.events, done.streams) == (2, 0)
        export_log(store, tmp_path / "three.jsonl", Part("a"))
        assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()
        # What is ahead here is there already.
        assert import_log(tmp_path / "one.jsonl", tmp_path / "other.db", INLINE).events == 0
        perform_all(store, [("append", ("a", "u", "1"), {"session": {"apart": 1}})])
        perform_all(full, [("append", ("a", "u", "1"), {"session": {"apart": 2}})])
        export_log(full, tmp_path / "four.jsonl", Part("a"))
        before = log(store)
        with pytest.raises(Exists, match="another history"):
            import_log(tmp_path / "four.jsonl", tmp_path / "other.db", INLINE)
        assert log(store) == before
        assert verify(store, INLINE).clean
    finally:
        store.close()


def test_a_name_that_is_taken_is_refused_and_nothing_kept(full: EventStore, tmp_path: Path) -> None:
    export_log(full, tmp_path / "a.jsonl", Part("a"))
    store = open_store(tmp_path / "other.db", INLINE)
    try:
        perform_all(store, [("create", ("a", "u", "1"), {"session": {"mine": 1}})])
        before = log(store), streams(store), rows(store, INLINE)
        with pytest.raises(Exists, match="session '1'"):
            import_log(tmp_path / "a.jsonl", tmp_path / "other.db", INLINE)
        assert (log(store), streams(store), rows(store, INLINE)) == before
    finally:
        store.close()


@pytest.mark.parametrize("part", [Part(), Part("a"), Part("a", "u", "1")], ids=str)
def test_what_was_deleted_here_is_not_called_taken(
    part: Part, full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "part.jsonl", part)
    assert import_log(tmp_path / "part.jsonl", full.path, INLINE).notes == ()
    perform_all(full, [("delete", ("a", "u", "1"), {})])
    done = import_log(tmp_path / "part.jsonl", full.path, INLINE)
    assert (done.events, done.streams, "deleted here" in "".join(done.notes)) == (0, 0, True)
    if not part.whole:  # the way out that it names
        scavenge(full, INLINE)
        assert import_log(tmp_path / "part.jsonl", full.path, INLINE).events > 0
        assert full.snapshot(lambda s: s.find_stream(StreamKey(StreamKind.SESSION, "a", "u", "1")))


def test_parts_that_there_are_none_of(full: EventStore, tmp_path: Path) -> None:
    for part in (Part("none"), Part("a", "none"), Part("a", "u", "none"), Part("b", "u", "1")):
        with pytest.raises(StreamNotFound):
            export_log(full, tmp_path / "x.jsonl", part)
    for part in (Part(None, "u"), Part("a", None, "s"), Part("a\0")):
        with pytest.raises(InvalidInput):
            export_log(full, tmp_path / "x.jsonl", part)
    assert not (tmp_path / "x.jsonl").exists()


# What is refused.


def refused(path: Path, target: Path) -> ExportDamaged:
    with pytest.raises(ExportDamaged) as caught:
        import_log(path, target, INLINE)
    assert not target.exists()
    assert list(target.parent.glob(".eventstore-*")) == []
    return caught.value


@pytest.mark.parametrize("part", [Part(), Part("a")], ids=str)
def test_every_line_that_is_changed_lost_or_moved_is_named(
    part: Part, full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "one.jsonl", part)
    content = (tmp_path / "one.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "two.jsonl"
    for n in range(len(content)):
        middle = len(content[n]) // 2
        flipped = bytes([content[n][middle] ^ 1])
        changed = content[n][:middle] + flipped + content[n][middle + 1 :]
        for damaged in (
            [*content[:n], changed, *content[n + 1 :]],
            [*content[:n], *content[n + 1 :]],
            [*content[: n + 1], *content[n:]],
            content[:n],
            [*content[:n], content[n][:middle]],
        ):
            path.write_bytes(b"".join(damaged))
            error = refused(path, tmp_path / "new.db")
            assert n + 1 <= error.line <= n + 2
    path.write_bytes(b"".join(content) + b"\n")
    assert "behind the end" in refused(path, tmp_path / "new.db").reason


def test_a_damaged_export_keeps_nothing_in_a_store_that_is_there(
    full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "a.jsonl", Part("a"))
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "cut.jsonl").write_bytes(content[: len(content) - 40])
    store = open_store(tmp_path / "other.db", INLINE)
    try:
        perform_all(store, [("create", ("other", "u", "1"), {})])
        before = log(store), streams(store), rows(store, INLINE)
        with pytest.raises(ExportDamaged):
            import_log(tmp_path / "cut.jsonl", tmp_path / "other.db", INLINE)
        assert (log(store), streams(store), rows(store, INLINE)) == before
    finally:
        store.close()


def again_linked(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Digests and links as they must be, for one who changes content and knows how."""
    heads: dict[int, bytes] = {}
    for line in content:
        if stream := line.get("stream"):
            key = StreamKey(
                StreamKind(stream["kind"]),
                *(stream[name] for name in ("app_name", "user_id", "session_id")),
            )
            heads[stream["id"]] = first_link(key, bytes.fromhex(stream["nonce"]))
        if event := line.get("event"):
            for name in ("delta", "data"):
                if event[name] is not None:
                    event[f"{name}_digest"] = (digest(event[name].encode()) or b"").hex()
            codec = next(
                (
                    each["codec"]["fingerprint"]
                    for each in content
                    if "codec" in each and each["codec"]["id"] == event["codec"]
                ),
                "",
            )
            heads[event["stream"]] = next_link(
                heads[event["stream"]],
                version=event["version"],
                event_id=event["event_id"],
                event_type=event["type"],
                schema_version=event["schema_version"],
                encoding=event["encoding"],
                recorded_at=event["recorded_at"],
                timestamp=event["timestamp"],
                author=event["author"],
                invocation_id=event["invocation_id"],
                codec=codec,
                delta_digest=bytes.fromhex(event["delta_digest"] or "") or None,
                data_digest=bytes.fromhex(event["data_digest"] or "") or None,
            )
            event["chain"] = heads[event["stream"]].hex()
    for line in content:
        if (stream := line.get("stream")) and stream["nonce"]:
            stream["chain"] = heads[stream["id"]].hex()
    return content


def first(content: list[dict[str, Any]], kind: str, /, **wanted: Any) -> dict[str, Any]:
    return next(
        line[kind]
        for line in content
        if kind in line and all(line[kind][name] == value for name, value in wanted.items())
    )


def change(part: str, wanted: dict[str, Any], **changes: Any) -> Callable[[list[Any]], None]:
    return lambda content: first(content, part, **wanted).update(changes)


def give_away(content: list[Any]) -> None:
    """Lets a session belong to another user's stream."""
    other = first(content, "stream", kind="user", user_id="v")
    first(content, "stream", kind="session", user_id="u")["user_stream_id"] = other["id"]


def take_id(content: list[Any]) -> None:
    """Lets an event have the id of the one before."""
    second = first(content, "event", version=2)
    second["event_id"] = first(content, "event", version=1, stream=second["stream"])["event_id"]


def drop_tombstone(content: list[Any]) -> None:
    deleted = first(content, "stream", live=False)
    deleted["live"] = True


EVENT = {"type": "adk_event"}
HOSTILE: dict[str, Callable[[list[Any]], None]] = {
    "an id with NUL": change("event", EVENT, event_id="a\0"),
    "an author with NUL": change("event", EVENT, author="a\0"),
    "an id that is taken": take_id,
    "a stream with NUL": change("stream", {"kind": "session"}, session_id="a\0"),
    "another user's stream": give_away,
    "a live session with a tombstone": drop_tombstone,
    "a type of nobody": change("event", EVENT, type="made_up"),
    "a version of tomorrow": change("event", EVENT, schema_version=9),
    "no such scope": change("event", EVENT, delta='{"system":{"k":1}}'),
    "a key with NUL": change("event", EVENT, delta='{"session":{"a\\u0000":1}}'),
    "a delta of numbers": change("event", EVENT, delta='{"session":1}'),
    "content that is no JSON": change("event", EVENT, data="{"),
    "content that is too deep": change("event", EVENT, data="[" * 300 + "]" * 300),
    "an encoding that is none": change("event", EVENT, encoding=7),
    "the wrong encoding": change("event", EVENT, encoding=1, data='{"a":NaN}'),
    "a creation in the middle": change("event", EVENT, type="session_created"),
    "a hole": change("event", EVENT, version=3),
    "a huge number": change("event", EVENT, recorded_at=2**80),
    "a negative one": change("event", EVENT, version=-1),
    "no number": change("event", EVENT, version="2"),
    "the same stream twice": lambda c: c.insert(2, c[1]),
    "an unknown field": change("event", EVENT, more=1),
    "an event of no stream": change("event", EVENT, stream=99),
    "positions that go back": change("event", EVENT, position=1),
    "another stream's beginning": change(
        "event", {"type": "session_created"}, data='{"stream":{"kind":"app"}}'
    ),
    "an end of others": lambda c: c[-1]["end"].update(events=1),
    "a future format": lambda c: c[0]["adk-eventstore"].update(export=2),
}  # fmt: skip


@pytest.mark.parametrize("attack", HOSTILE)
def test_lines_of_somebody_who_knows_the_format_are_refused(
    attack: str, full: EventStore, tmp_path: Path
) -> None:
    export_log(full, tmp_path / "one.jsonl")
    content = lines(tmp_path / "one.jsonl")
    HOSTILE[attack](content)
    with suppress(Exception):  # what cannot even be linked is refused as it is
        again_linked(content)
    target = tmp_path / "new.db"
    with pytest.raises(EventStoreError) as caught:
        import_log(seal(tmp_path / "two.jsonl", content), target, INLINE)
    assert type(caught.value) is ExportDamaged, caught.value
    assert not target.exists()


@pytest.mark.parametrize("waiting", [1, 4, 500])
def test_an_id_that_is_taken_is_refused_by_a_server_too(
    postgres: Place, full: EventStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Whether the other one is in the log by then, or waits; and behind the last one too."""
    monkeypatch.setattr(transaction, "_WAITING_MAX", waiting)
    export_log(full, tmp_path / "one.jsonl")
    content = lines(tmp_path / "one.jsonl")
    last = [line["event"] for line in content if "event" in line][-1]
    last["event_id"] = next(
        line["event"]["event_id"]
        for line in content
        if "event" in line and line["event"]["stream"] == last["stream"]
    )
    two = seal(tmp_path / "two.jsonl", again_linked(content))
    with pytest.raises(ExportDamaged, match="another one of its stream"):
        import_log(two, postgres.target, INLINE)
    assert query(postgres.target, "SELECT count(*) FROM events") == [(0,)]


def test_the_attacker_of_these_tests_can_write_an_export(full: EventStore, tmp_path: Path) -> None:
    export_log(full, tmp_path / "one.jsonl")
    content = again_linked(lines(tmp_path / "one.jsonl"))
    import_log(seal(tmp_path / "two.jsonl", content), tmp_path / "new.db", INLINE)


def test_a_gigantic_line_is_refused_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "_LINE_BYTES", 1_000_000)
    path = tmp_path / "long.jsonl"
    path.write_bytes(portable.BEGINNING + b"x" * 3_000_000)
    assert "too long" in refused(path, tmp_path / "new.db").reason


def test_a_damaged_log_is_not_exported(full: EventStore, tmp_path: Path) -> None:
    with closing(sqlite3.connect(full.path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO maintenance VALUES (1, 'damage')")
        connection.execute("UPDATE events SET author = 'somebody' WHERE position = 3")
        connection.execute("DELETE FROM maintenance")
    for work in (export_log, copy_log):
        arguments = (INLINE,) if work is copy_log else ()
        with pytest.raises(CorruptEvent):
            work(full, tmp_path / "x", *arguments)  # type: ignore[operator]
    assert not (tmp_path / "x").exists()


def test_nothing_is_overwritten_without_being_told(full: EventStore, tmp_path: Path) -> None:
    target = tmp_path / "there"
    target.write_text("precious")
    with pytest.raises(PathUnusable):
        export_log(full, target)
    assert target.read_text() == "precious"
    export_log(full, target, overwrite=True)
    assert is_export(target)
    with pytest.raises(PathUnusable):
        import_log(tmp_path / "missing", tmp_path / "new.db", INLINE)


# Killed in the middle.


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """An export of some thousand events."""
    store = open_store(tmp_path / "large.db", BUILT_IN)

    async def fill() -> None:
        for n in range(20):
            loaded = await store.create(session(str(n)), created(session={"n": n}))
            cursor = Cursor(loaded.stream.id, 1)
            events = [new_event(delta={"user": {"k": i}}) for i in range(300)]
            await asyncio.gather(*(store.append(session(str(n)), e, cursor) for e in events))

    try:
        asyncio.run(fill())
        export_log(store, tmp_path / "large.jsonl")
        export_log(store, tmp_path / "app.jsonl", Part("app"))
    finally:
        store.close()
    return tmp_path / "large.jsonl"


_PROGRAM = """
import sys, time
from projections import BUILT_IN
from projections.transfer import import_log
calls = []
def progress(*_):
    print("some", flush=True)
    calls.append(1)
    time.sleep(5 if len(calls) >= int(sys.argv[3]) else 0)  # to be killed before it is done
import_log(sys.argv[1], sys.argv[2], BUILT_IN, progress=progress)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", ["large.jsonl", "app.jsonl"])
def test_killed_in_the_middle_nothing_was_taken(
    name: str, number: signal.Signals, large: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / name, tmp_path / "new.db"
    if name == "app.jsonl":
        open_store(target, BUILT_IN).close()
    # What goes into a store that is there was proved once before it is written.
    steps = 2 if name == "large.jsonl" else 5
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(source), str(target), str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line == "some\n"
        if seen == steps:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    if name == "large.jsonl":
        assert not target.exists()
    else:
        store = open_store(target, BUILT_IN)
        assert log(store) == []
        store.close()
    for left in tmp_path.glob(".eventstore-*"):
        shutil.rmtree(left)
    import_log(source, target, BUILT_IN)
    store = open_store(target, BUILT_IN)
    assert len(log(store)) == 20 * 301
    store.close()

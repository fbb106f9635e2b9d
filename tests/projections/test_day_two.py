"""The commands of the second day: look at sessions and the log, measure, examine, keep small."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from eventstore import Cursor, EventStore, EventType, InvalidInput, NewEvent, open_store
from projections import BUILT_IN, delete_session, examine_database, list_sessions, measure
from projections import run as follow
from projections.usage import UsageProjection
from tests.eventstore.events import created, new_event, session
from tests.projections.test_cli import document, invoke, query, run, start, wait_for


async def converse(store: EventStore, key: Any, *said: tuple[str, dict[str, Any]]) -> None:
    loaded = await store.create(key, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))
    cursor = Cursor(loaded.stream.id, 1)
    for n, (author, data) in enumerate(said):
        event = new_event(delta={"session": {"n": n}}, data=data, timestamp=1e9 + n)
        await store.append(key, _by(event, author), cursor)


async def set_state(store: EventStore, key: Any, event: NewEvent) -> None:
    await store.set_state(key, event)


def _by(event: Any, author: str) -> Any:
    return msgspec.structs.replace(event, author=author)


TALK: list[tuple[str, dict[str, Any]]] = [
    ("user", {"content": {"role": "user", "parts": [{"text": "Hello,\nworld\x1b[2J"}]}}),
    (
        "agent",
        {
            "content": {
                "parts": [
                    {"text": "let me see", "thought": True},
                    {"functionCall": {"name": "search", "args": {"q": "Rom"}}},
                    {"inlineData": {"mimeType": "image/png", "data": "QUJD"}},
                    {"fileData": {"fileUri": "gs://b/f"}},
                    {"executableCode": {"code": "print(1)\nprint(2)"}},
                ]
            },
            "actions": {"transferToAgent": "other"},
        },
    ),
    (
        "agent",
        {
            "content": {"parts": [{"functionResponse": {"name": "search", "response": {"n": 1}}}]},
            "errorCode": "SAFETY",
        },
    ),
    ("odd", {"content": {"parts": ["text", None, {"text": 7}]}}),
]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "sessions.sqlite3"
    with closing(open_store(path, BUILT_IN)) as store:

        async def fill() -> None:
            await converse(store, session("talk", "ada", "shop"), *TALK)
            await converse(store, session("same", "ada", "shop"))
            await converse(store, session("same", "eve", "shop"))
            await converse(store, session("x\x1b[2J", "eve", "other"))

        asyncio.run(fill())
    return path


# Sessions.


def test_list_shows_pages_and_filters(db: Path) -> None:
    shown = invoke("sessions", "list", "--db", db).stdout
    assert [line.split()[2] for line in shown.splitlines()[1:]] == [
        "talk",
        "x\\x1b[2J",
        "same",
        "same",
    ]
    first = document("sessions", "list", "--db", db, "--limit", 3)
    assert first["sessions"][0]["session_id"] == "talk"
    rest = document("sessions", "list", "--db", db, "--limit", 3, "--cursor", first["cursor"])
    assert [each["session_id"] for each in rest["sessions"]] == ["same"]
    assert (rest["cursor"], rest["sessions"][0]["labels"]) == (None, {})
    mine = document("sessions", "list", "--db", db, "--user", "eve", "--app", "shop", "--state")
    assert [each["state"] for each in mine["sessions"]] == [
        {"session": {"s": 1}, "user": {"u": 2}, "app": {"a": 3}}
    ]
    with closing(open_store(db, BUILT_IN)) as store:
        odd = new_event(EventType.STATE_SET, delta={"session": {"n": [float("nan")]}})
        asyncio.run(set_state(store, session("same", "eve", "shop"), odd))
    mine = document("sessions", "list", "--db", db, "--user", "eve", "--app", "shop", "--state")
    assert mine["sessions"][0]["state"]["session"] == {"n": ["nan"], "s": 1}
    assert invoke("sessions", "list", "--db", db, "--app", "none").stdout == "No session.\n"
    assert document("sessions", "list", "--db", db, "--newer-than", "1d")["sessions"] == []
    old = document("sessions", "list", "--db", db, "--older-than", "1d", "--limit", 3)
    rest = document("sessions", "list", "--older-than", "1d", "--cursor", old["cursor"], "--db", db)
    assert (len(old["sessions"]), len(rest["sessions"])) == (3, 1)


@pytest.mark.parametrize(
    "changed", [{1: "0x1p99999"}, {2: 2**70}, {2: -1}, {2: float("inf")}, {1: "x"}, {0: "other"}]
)
def test_a_cursor_that_somebody_made_is_refused(changed: dict[int, Any], db: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:
        cursor = list_sessions(store, limit=1).cursor
        assert cursor is not None
        parts = json.loads(base64.urlsafe_b64decode(cursor))
        for place, value in changed.items():
            parts[place] = value
        made = base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()
        with pytest.raises(InvalidInput, match="cursor"):
            list_sessions(store, limit=1, cursor=made)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--older-than", "90"], "90d"),
        (["--older-than", "-1d"], "no age"),
        (["--limit", "0"], "1<=x<=1000"),
        (["--cursor", "x"], "The cursor is none"),
        (["--label", "x"], "NAME=VALUE"),
        (["--order", "x"], "updated"),
        (["--app", "\udcff"], "surrogate"),
    ],
)
def test_what_list_does_not_take(arguments: list[str], said: str, db: Path) -> None:
    done = invoke("sessions", "list", "--db", db, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_show_prints_the_conversation_and_who_set_what(db: Path) -> None:
    invoke("sessions", "title", "talk", "A title\x07", "--db", db)
    shown = invoke("sessions", "show", "talk", "--db", db).stdout
    assert "\x1b" not in shown
    for line in (
        "talk  (app shop, user ada)",
        "Title: A title\\x07",
        "    Hello,",
        "    world\\x1b[2J",
        "    (thinking) let me see",
        '    -> search {"q": "Rom"}',
        '    <- search {"n": 1}',
        "    [image/png, about 3 bytes]",
        "    [file gs://b/f]",
        "    | print(2)",
        '    transferToAgent: "other"',
        "    error: SAFETY",
        "    n = 2",
    ):
        assert line in shown.splitlines()
    keys = [line.split() for line in shown.partition("State:\n")[2].splitlines()]
    assert [line[:5] for line in keys] == [
        ["session", "n", "3", "by", "odd"],
        ["session", "s", "1", "by", "author"],
        ["user", "u", "2", "by", "author"],
        ["app", "a", "3", "by", "author"],
    ]
    assert keys[0][5:] == ["2001-09-09", "01:46:43", "event", "5"]
    found = document("sessions", "show", "talk", "--last", 2, "--db", db)
    assert [event["version"] for event in found["events"]] == [5, 6]
    assert found["title"] == "A title\x07"
    assert {(k["scope"], k["key"]): k["position"] for k in found["state"]} == {
        ("session", "n"): 5,
        ("session", "s"): 1,
        ("user", "u"): 6,
        ("app", "a"): 7,
    }
    assert len(document("sessions", "show", "talk", "--all", "--db", db)["events"]) == 6
    assert document("sessions", "show", "talk", "--last", 0, "--db", db)["events"] == []


def test_a_session_is_found_by_its_id_if_it_is_the_only_one(db: Path) -> None:
    several = invoke("sessions", "show", "same", "--db", db)
    assert several.exit_code == 2
    assert "--app shop --user ada; --app shop --user eve" in several.stderr
    assert document("sessions", "show", "same", "--user", "eve", "--db", db)["user_id"] == "eve"
    assert document("sessions", "show", " talk\n", "--db", db)["session_id"] == "talk"
    for arguments in (["none"], ["same", "--app", "other"]):
        none = invoke("sessions", "show", *arguments, "--db", db)
        assert none.exit_code == 2
        assert "sessions list" in none.stderr


def test_title_and_labels(db: Path) -> None:
    assert invoke("sessions", "title", "talk", "Nach Rom", "--db", db).exit_code == 0
    has = document("sessions", "label", "talk", "a=1=2", "b=", "--remove", "c", "--db", db)
    assert has["labels"] == {"a": "1=2", "b": ""}
    has = document("sessions", "label", "talk", "--remove", "b", "--db", db)
    assert has["labels"] == {"a": "1=2"}
    (found,) = document("sessions", "list", "--title", "ROM", "--db", db)["sessions"]
    assert (found["title"], found["labels"]) == ("Nach Rom", {"a": "1=2"})
    assert invoke("sessions", "title", "talk", "--clear", "--db", db).exit_code == 0
    assert document("sessions", "list", "--title", "rom", "--db", db)["sessions"] == []
    for wrong in (["talk"], ["talk", "x", "--clear"], ["talk", "x" * 1001]):
        assert invoke("sessions", "title", *wrong, "--db", db).exit_code == 2


def test_delete_asks_and_notes(db: Path) -> None:
    before = query(db, "SELECT * FROM events")
    assert invoke("sessions", "delete", "talk", "--dry-run", "--db", db).exit_code == 0
    assert invoke("sessions", "delete", "talk", "--db", db).exit_code == 2
    assert query(db, "SELECT * FROM events") == before
    assert invoke("sessions", "delete", "talk", "--yes", "--db", db).exit_code == 0
    ((note,),) = query(db, "SELECT data FROM adk_events WHERE type = 'deleted'")
    assert json.loads(note)["streams"] == [3]
    assert invoke("sessions", "delete", "talk", "--yes", "--db", db).exit_code == 2
    assert invoke("verify", "--db", db).exit_code == 0


# Events.


def test_events_show(db: Path) -> None:
    shown = invoke("events", "show", 3, "--db", db).stdout
    assert "author:       agent" in shown
    assert '"q": "Rom"' in shown
    found = document("events", "show", 3, "--db", db)["event"]
    assert (found["position"], found["version"], found["state_delta"]) == (3, 3, {"n": 1})
    missing = invoke("events", "show", 99, "--db", db)
    assert missing.exit_code == 2
    assert "the last one is at 8" in missing.stderr


@pytest.mark.parametrize("few", [0, 1, 1000])
def test_tail_shows_the_last_or_what_is_behind(
    few: int, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.sqlite.transaction._FEW_STREAMS", few)

    def positions(*arguments: object) -> list[int]:
        done = invoke("events", "tail", "--db", db, "--format", "json", *arguments)
        assert done.exit_code == 0
        return [json.loads(line)["position"] for line in done.stdout.splitlines()]

    assert positions() == list(range(1, 9))
    assert positions("--last", 3) == [6, 7, 8]
    assert positions("--last", 0) == positions("--after", 8) == positions("--after", 99) == []
    assert positions("--after", 6) == [7, 8]
    assert positions("--app", "shop", "--user", "eve") == [7]
    assert positions("--user", "ada", "--last", 2) == [5, 6]
    assert positions("--session", "talk", "--after", 2) == [3, 4, 5]
    assert positions("--user", "nobody") == []
    shown = invoke("events", "tail", "--last", 1, "--db", db).stdout
    assert shown.startswith("[8] other / eve / x\\x1b[2J")


@contextmanager
def following(db: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    with start("adk-eventstore", "events", "tail", "--follow", "--db", db, *arguments) as process:
        try:
            yield process
        finally:
            process.kill()


def test_tail_follows_what_other_processes_append_until_ctrl_c(db: Path) -> None:
    with following(db, "--format", "json", "--last", 1, "--user", "ada") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["position"] == 6
        with closing(open_store(db, BUILT_IN)) as store:
            for n in range(3):
                key = session(f"new-{n}", "ada", "shop")
                asyncio.run(converse(store, key))
                asyncio.run(converse(store, session(f"new-{n}", "eve", "shop")))
                assert json.loads(process.stdout.readline())["session_id"] == f"new-{n}"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (130, "")
        assert err == ""


# Stats.


def test_stats_are_what_sql_says(db: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:
        delete_session(store, session("same", "eve", "shop"))
        stats = measure(store)
    content = dict(
        query(
            db,
            "SELECT app_name, sum(length(CAST(coalesce(delta, '') AS BLOB)) "
            "+ length(CAST(coalesce(data, '') AS BLOB))) FROM events JOIN streams "
            "ON streams.id = stream_id GROUP BY 1",
        )
    )
    assert [tuple(app) for app in stats.apps] == [
        ("other", 1, 1, 0, 1, content["other"]),
        ("shop", 2, 2, 1, 8, content["shop"]),
    ]
    assert (stats.sessions, stats.events, stats.head, stats.whole) == (3, 10, 10, True)
    today = stats.days[-1]
    assert (today.day, today.events) == (datetime.now(UTC).date().isoformat(), 10)
    assert today.bytes == sum(content.values())
    assert [day.events for day in stats.days[:-1]] == [0] * 13
    assert [each[2:4] for each in stats.largest] == [
        ("talk", 5),
        ("x\x1b[2J", 1),
        ("same", 1),
    ]
    tables = stats.storage.tables
    assert tables is not None
    assert {"events", "state", "sessions", "streams"} < tables.keys()
    assert sum(tables.values()) <= stats.storage.total
    found = document("stats", "--db", db)
    assert found["tables"] == dict(tables)
    quick = document("stats", "--quick", "--db", db)
    assert (quick["tables"], quick["apps"][0]["bytes"]) == (None, None)
    assert quick["largest"][0]["session_id"] == "talk"
    shown = invoke("stats", "--quick", "--db", db).stdout
    assert "Sizes were not measured: --full does" in shown


def test_days_are_found_by_halving_the_log(db: Path) -> None:
    """Whatever is missing in it."""
    day = 86_400 * 1_000_000
    with closing(open_store(db, BUILT_IN)) as store:

        async def fill() -> None:
            for n in range(30):
                await store.create(session(f"d{n:02}"), created())

        asyncio.run(fill())
        with closing(sqlite3.connect(db, isolation_level=None)) as connection:
            connection.execute("INSERT INTO maintenance VALUES (1, 'test')")
            connection.execute("UPDATE events SET recorded_at = position / 5 * ?", (day,))
            connection.execute("DELETE FROM events WHERE position IN (1, 5, 6, 20, 21, 22, 23, 24)")
            connection.execute("DELETE FROM maintenance")
        positions = [row[0] for row in query(db, "SELECT position FROM events")]
        for n in range(9):
            want = max((p for p in positions if p // 5 < n), default=0)
            assert store.snapshot(lambda s, n=n: s.position_before(n * day)) == want


# Doctor.


def states(*arguments: Any, **options: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in examine_database(*arguments, **options):
        found.setdefault(finding.state, set()).add(finding.check)
        assert finding.remedy or finding.state in ("ok", "note")
    return found


def test_doctor_finds_nothing_and_changes_nothing(db: Path) -> None:
    before = {path.name: path.read_bytes() for path in db.parent.iterdir()}
    found = states(db)
    assert found.keys() == {"ok"}
    assert found["ok"] >= {"schema", "integrity", "permissions", "projections", "file system"}
    assert db.read_bytes() == before[db.name]
    done = invoke("doctor", "--db", db)
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "Nothing has to be done.")
    assert document("doctor", "--db", db)["healthy"] is True


def test_doctor_works_where_the_database_does_not(tmp_path: Path) -> None:
    for path, content, said in (
        ("missing.db", None, "does not exist"),
        ("text.db", b"no database, but long enough to be one" * 100, "not a SQLite database"),
        ("none/at/all.db", None, "no folder"),
    ):
        place = tmp_path / path
        if content is not None:
            place.write_bytes(content)
            place.chmod(0o600)
        done = invoke("doctor", "--db", place)
        assert done.exit_code == 1
        assert said in done.stdout
        assert "PROBLEM" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.db"]
    foreign = tmp_path / "foreign.db"
    query(foreign, "CREATE TABLE theirs (x)")
    assert "belongs to another program" in invoke("doctor", "--db", foreign).stdout


@pytest.mark.parametrize(
    ("statement", "state", "check"),
    [
        ("CREATE TABLE theirs (x)", "note", "foreign objects"),
        ("CREATE INDEX theirs ON events (author)", "note", "foreign objects"),
        (
            "CREATE TRIGGER theirs AFTER INSERT ON state BEGIN SELECT 1; END",
            "problem",
            "schema",
        ),
        ("DROP TRIGGER events_no_update", "problem", "schema"),
        ("INSERT INTO maintenance VALUES (1, 'x')", "problem", "schema"),
        ("DROP INDEX sessions_by_app_and_update", "warning", "tables"),
        ("CREATE TABLE shadow_state (x)", "note", "tables"),
        ("UPDATE projections SET version = 1 WHERE name = 'state'", "ok", "schema"),
        ("PRAGMA user_version = 99", "problem", "schema"),
        ("PRAGMA user_version = 2", "warning", "migration"),
    ],
)
def test_doctor_names_what_is_wrong_inside(
    statement: str, state: str, check: str, db: Path
) -> None:
    query(db, statement)
    before = db.read_bytes()
    assert check in states(db)[state]
    assert db.read_bytes() == before


def test_doctor_names_what_is_wrong_around(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db.chmod(0o644)
    assert states(db)["warning"] == {"permissions"}
    assert "chmod 600" in invoke("doctor", "--db", db).stdout
    db.chmod(0o600)
    os.link(db, other := db.with_name("other.db"))
    assert states(db)["problem"] == {"permissions"}
    other.unlink()
    with monkeypatch.context() as patched:
        patched.setattr("eventstore._platform.network_file_system", lambda _: "nfs4")
        assert states(db)["problem"] == {"file system"}
    with monkeypatch.context() as patched:
        patched.setattr("eventstore.sqlite.examination._LARGE_WAL_BYTES", -1)
        assert states(db)["warning"] == {"checkpoints"}
    with closing(open_store(db, BUILT_IN)) as store:
        delete_session(store, session("talk", "ada", "shop"))
    assert states(db)["note"] == {"deleted sessions"}


def test_doctor_names_damage_and_stopped_projections(db: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:
        follow(store, [UsageProjection()])
    assert states(db).keys() == {"ok"}
    query(db, "UPDATE projections SET failed_at = 3, failure = 'x' WHERE name = 'usage'")
    assert states(db)["warning"] == {"projections"}
    query(db, "UPDATE projections SET failed_at = NULL, failure = NULL")
    (page,) = query(db, "SELECT rootpage FROM sqlite_schema WHERE name = 'streams_live'")[0]
    with db.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\x0a" + b"\xff" * 200)
    assert "integrity" in states(db)["problem"]
    assert "integrity" in states(db, whole=False)["note"]
    (page,) = query(db, "SELECT rootpage FROM sqlite_schema WHERE name = 'streams'")[0]
    with db.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\x0a" + b"\xff" * 200)
    assert "projections" in states(db, whole=False)["problem"]


# Keep small.


def test_purge_counts_asks_and_removes(db: Path) -> None:
    before = query(db, "SELECT * FROM events")
    arguments = ("purge", "--older-than", "1d", "--db", db)
    dry = document(*arguments, "--dry-run")
    assert (dry["sessions"], dry["events"], dry["dry_run"]) == (4, 12, True)
    refused = invoke(*arguments)
    assert (refused.exit_code, query(db, "SELECT * FROM events")) == (2, before)
    assert "--yes" in refused.stderr
    assert document(*arguments, "--app", "other", "--dry-run")["sessions"] == 1
    done = document(*arguments, "--yes")
    assert (done["sessions"], done["events"]) == (4, 12)
    assert invoke(*arguments).stdout == "There is nothing to remove.\n"
    assert invoke("verify", "--db", db).exit_code == 0
    assert invoke("purge", "--db", db, "--yes").exit_code == 2


def test_erase_user_says_whether_it_is_gone(db: Path) -> None:
    assert document("erase-user", "eve", "--dry-run", "--db", db)["sessions"] == 2
    assert invoke("erase-user", "eve", "--db", db).exit_code == 2
    kept = invoke("erase-user", "eve", "--no-rewrite", "--yes", "--db", db)
    assert kept.exit_code == 1
    assert "adk-eventstore vacuum --rewrite" in kept.stdout
    assert "2 keys of apps" in kept.stdout or "1 key of apps" in kept.stdout
    again = document("erase-user", "eve", "--yes", "--db", db)
    assert (again["sessions"], again["rewritten"], again["gone"]) == (0, True, True)
    nobody = invoke("erase-user", "eve", "--yes", "--db", db)
    assert (nobody.exit_code, nobody.stdout) == (0, "There is nothing of such a user here.\n")
    assert b"eve" not in b"".join(p.read_bytes() for p in db.parent.glob(f"{db.name}*")).replace(
        b"event", b""
    )
    assert invoke("verify", "--db", db).exit_code == 0


def test_vacuum(db: Path) -> None:
    invoke("sessions", "delete", "talk", "--yes", "--db", db)
    assert document("vacuum", "--dry-run", "--db", db)["events"] == 6
    assert invoke("vacuum", "--db", db).exit_code == 2
    assert document("vacuum", "--yes", "--db", db)["sessions"] == 1
    assert invoke("vacuum", "--db", db).exit_code == 0  # there is nothing to ask about
    done = document("vacuum", "--rewrite", "--yes", "--db", db)
    assert (done["rewritten"], done["gone"]) == (True, True)


def test_ctrl_c_ends_a_purge_between_two_steps(db: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:

        async def fill() -> None:
            for start_ in range(0, 1500, 100):
                await asyncio.gather(
                    *(converse(store, session(f"p{start_ + n}", "pat")) for n in range(100))
                )

        asyncio.run(fill())
    arguments = ("purge", "--older-than", "1d", "--yes", "--db", db)
    with start("adk-eventstore", *arguments) as process:
        wait_for(lambda: query(db, "SELECT 1 FROM events WHERE type = 'purged'"))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    if process.returncode != 0:  # it may have been done already
        assert (process.returncode, out) == (130, "")
        assert "run it again for the others" in err
    with closing(open_store(db, BUILT_IN)) as store:
        left = len(list_sessions(store, limit=1000).sessions)
    assert invoke("verify", "--db", db).exit_code == 0
    assert document(*arguments)["sessions"] >= min(left, 1)
    assert run("adk-eventstore", "verify", "--db", db).returncode == 0


def test_a_file_of_an_older_schema_is_not_touched_by_a_dry_run(db: Path) -> None:
    query(db, "PRAGMA user_version = 2")
    for arguments in (("purge", "--older-than", "1d"), ("erase-user", "eve"), ("vacuum",)):
        refused = invoke(*arguments, "--dry-run", "--db", db)
        assert refused.exit_code == 2
        assert "adk-eventstore migrate" in refused.stderr
    assert query(db, "PRAGMA user_version") == [(2,)]
    assert invoke("sessions", "list", "--db", db).exit_code == 0
    assert query(db, "PRAGMA user_version") == [(3,)]

"""The commands as people and programs run them: real files, and real processes where it matters."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pty
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from adk_adapter.cli import COMMANDS, main
from eventstore import Cursor, EventStore, EventType, StreamKey, StreamNotFound, open_store
from eventstore.chain import digest
from eventstore.records import link_of
from eventstore.sqlite.queries import migrations
from projections import BUILT_IN, scavenge, set_title
from projections.cli import rebuild_projections
from projections.cli.progress import _Pace
from projections.transfer import Part, export_log
from tests.eventstore.events import SESSION, created, new_event, session

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "commands.md").read_text()
SCRIPTS = Path(sys.executable).parent

PLUGIN = """
import os, pathlib, time
from eventstore import Projection, Put, Table

class Seen(Projection):
    name = "seen"
    version = int(os.environ.get("SEEN_VERSION", "1"))
    table = Table("seen", {"stream_id": "integer"}, {"last": "integer"})
    views = {"sqlite": {"adk_seen": "SELECT last FROM seen"}}

    def apply(self, event):
        if os.environ.get("SEEN_FAILS_AT") == str(event.position):
            raise ValueError("what a secret says")
        if "SEEN_WAITS" in os.environ:
            gate = pathlib.Path(os.environ["SEEN_WAITS"])
            gate.with_name("reached").touch()
            while not gate.exists():
                time.sleep(0.005)
        yield Put((event.stream.id,), (event.position,))
"""


async def fill(store: EventStore) -> None:
    """A session of six events, and one of another user."""
    loaded = await store.create(SESSION, created(session={"s": 1}, user={"u": 2}, app={"a": 3}))
    cursor = Cursor(loaded.stream.id, 1)
    for n in range(5):
        await store.append(SESSION, new_event(delta={"session": {"n": n}}, timestamp=n), cursor)
    await store.create(session("other", "grace"), created(session={"s": 1}))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "sessions.sqlite3"
    with closing(open_store(path, BUILT_IN)) as store:
        asyncio.run(fill(store))
    return path


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many keys that a rebuild takes a while to write them."""
    path = tmp_path_factory.mktemp("large") / "sessions.sqlite3"

    async def fill_more(store: EventStore) -> None:
        keys = {f"key {n}": n for n in range(500)}
        await asyncio.gather(
            *(store.create(session(f"s{n}"), created(session=keys)) for n in range(80))
        )

    with closing(open_store(path, BUILT_IN)) as store:
        asyncio.run(fill_more(store))
    return path


@pytest.fixture
def db(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(filled, tmp_path / "sessions.sqlite3"))


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that has a package with a projection installed."""
    site = tmp_path / "site"
    info = site / "seen-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "seen.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: seen\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adk_eventstore.asynchronous]\nseen = seen:Seen\n")
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{site}{os.pathsep}{before}" if before else str(site)}


def environment(**more: str) -> dict[str, str]:
    left_out = ("ADK_SESSION_DB", "FORCE_COLOR", "NO_COLOR", "COLUMNS")
    return {**{k: v for k, v in os.environ.items() if k not in left_out}, **more}


def start(*arguments: object, env: Mapping[str, str] = {}, **options: Any) -> subprocess.Popen[str]:
    words = [str(argument) for argument in arguments]
    command = [str(SCRIPTS / words[0]), *words[1:]] if words[0] != sys.executable else words
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, env=environment(**env), text=True, **options)


def run(*arguments: object, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, env=env, stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def invoke(*arguments: object) -> Result:
    """In this process: for what does not need one of its own."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def document(*arguments: object) -> dict[str, Any]:
    found = json.loads(invoke(*arguments, "--format", "json").stdout)
    assert isinstance(found, dict)
    return found


def query(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        return [row for sql in statements for row in connection.execute(sql).fetchall()]


def tables(path: Path) -> list[tuple[Any, ...]]:
    """Everything that is in a database, but for the log."""
    return query(
        path,
        "SELECT * FROM state ORDER BY 1, 2",
        "SELECT * FROM sessions ORDER BY 1",
        "SELECT * FROM projections ORDER BY 1",
        "SELECT name, replace(sql, char(34), '') FROM sqlite_schema ORDER BY 1",
    )


@contextmanager
def past_the_triggers(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes the log, as somebody determined would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO maintenance VALUES (1, 'test')")
        yield connection
        connection.execute("DELETE FROM maintenance")
        connection.execute("COMMIT")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.002)


DRIFT = "UPDATE state SET state_value = '7' WHERE state_key = 'n'"


def leaves(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from leaves(each, *path, name)
    else:
        yield path


EVERY = list(leaves(main))


# All commands.


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_help_has_an_example_and_the_exit_codes(words: tuple[str, ...]) -> None:
    text = " ".join(invoke(*words, "--help").stdout.split())
    assert "Example" in text
    assert " ".join(words) in text.partition("Example")[2]
    assert " 0 " in text.partition("Exit codes")[2]
    assert " 2 " in text.partition("Exit codes")[2]
    assert "--db PATH_OR_URL" in text
    assert "--format [table|json]" in text


def test_the_commands_start_without_adk(db: Path) -> None:
    code = (
        "import sys; from adk_adapter.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "assert 'google' not in sys.modules"
    )
    done = run(sys.executable, "-c", code, "projections", "status", "--db", db)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_said_to_a_group_holds_for_its_commands(db: Path) -> None:
    said = invoke("--db", db, "--format", "json", "projections", "status")
    assert json.loads(said.stdout)["database"] == str(db)
    said = invoke("--db", "elsewhere", "projections", "--db", "nowhere", "status", "--db", db)
    assert said.exit_code == 0


def test_what_is_said_to_the_group_holds_for_any_click_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: dict[str, str] = {}
    options: list[click.Parameter] = [click.Option(["--db"]), click.Option(["--format", "form"])]
    foreign = click.Command("foreign", params=options, callback=lambda **said: told.update(said))
    monkeypatch.setitem(main.commands, "foreign", foreign)
    assert invoke("--db", "a.db", "--format", "json", "foreign").exit_code == 0
    assert told == {"db": "a.db", "form": "json"}


def test_without_a_path_it_looks_where_the_service_would(
    db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADK_SESSION_DB", str(db))
    assert document("verify")["database"] == str(db)


@pytest.mark.parametrize("words", [words for words in EVERY if words != ("ddl",)], ids=" ".join)
def test_no_command_makes_a_file(words: tuple[str, ...], tmp_path: Path) -> None:
    none = [tmp_path / "none"]
    places = {"drop": ["usage"], "backup": none, "restore": none}
    places["recover"] = places["copy"] = [*none, tmp_path / "new"]
    places["import"] = places["export"] = none
    places |= {f"sessions {name}": ["s"] for name in ("show", "delete", "label")}
    places |= {"sessions title": ["s", "t"], "events show": [1], "erase-user": ["u"]}
    places["purge"] = ["--older-than", "1d"]
    needed = places.get(" ".join(words), places.get(words[-1], []))
    done = invoke(*words, *needed, "--db", tmp_path / "new.db")
    if words == ("doctor",):  # which says so, and what to do
        assert (done.exit_code, "does not exist" in done.stdout) == (1, True)
    else:
        assert done.exit_code == 2
        assert "does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["verify", "stats", "sessions list", "rebuild-projections"])
def test_no_command_takes_an_empty_file_for_a_database(words: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    done = invoke(*words.split(), "--db", path)
    assert (done.exit_code, "holds no database" in done.stderr) == (2, True)
    assert (list(tmp_path.iterdir()), path.stat().st_size) == ([path], 0)


def test_an_error_is_a_document_too(tmp_path: Path) -> None:
    done = invoke("verify", "--db", tmp_path / "new.db", "--format", "json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["type"] == "PathUnusable"
    assert done.stderr.startswith("adk-eventstore verify: ")


def test_a_defect_is_not_taken_for_drift(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["projections.verify"]._Verification, "run", lambda *_: 1 / 0)
    done = invoke("verify", "--db", db, "--format", "json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["type"] == "ZeroDivisionError"


def test_the_page_shows_what_works_and_all_there_is(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data_science" / "db"
    place.mkdir(parents=True)
    db.rename(place / "adk.sqlite3")
    with closing(open_store(place / "adk.sqlite3", BUILT_IN)) as store:
        asyncio.run(_create(store, "test_app", "test_user"))
    shutil.copy(ROOT / "tests/adk_adapter/old_files/sqlite-1.39.1.db", tmp_path / "old.db")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    for line in lines:
        program, *arguments = shlex.split(line)
        command = main if program == "adk-eventstore" else rebuild_projections
        assert CliRunner().invoke(command, arguments).exit_code == 0, line
    for words in leaves(main):
        if words[0] not in ("usage",):  # it has a page of its own
            assert any(" ".join(words) in line for line in lines), words


async def _create(store: EventStore, app: str, user: str) -> None:
    await store.create(session("one", user, app), created(session={"s": 1}))


# rebuild-projections


@pytest.mark.parametrize(
    "words", [["rebuild-projections"], ["adk-eventstore", "rebuild-projections"]]
)
def test_a_rebuild_puts_right_what_drifted(words: list[str], db: Path) -> None:
    before = tables(db)
    query(db, DRIFT, "DELETE FROM sessions")
    done = run(*words, "--db", f"sqlite:///{db}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "sessions: 2 rows from 7 events" in done.stdout
    assert "state: 5 rows from 7 events" in done.stdout
    assert tables(db) == before


def test_a_dry_run_says_how_many_rows_differ_and_changes_nothing(db: Path) -> None:
    query(db, DRIFT, "DELETE FROM state WHERE state_key = 'u'")
    before = tables(db)
    found = document("rebuild-projections", "--db", db, "--dry-run")
    counts = {each["projection"]: each["changed"] for each in found["projections"]}
    assert counts == {"sessions": 0, "state": 2}
    assert tables(db) == before
    text = invoke("rebuild-projections", "--db", db, "--dry-run").stdout
    assert "state: 5 rows from 7 events, 2 differ" in text
    query(db, "DROP TABLE state")
    found = document("rebuild-projections", "--db", db, "--dry-run")
    assert "would be made anew" in found["notes"]["state"]
    assert not query(db, "SELECT 1 FROM sqlite_schema WHERE name = 'state'")


def test_only_the_projections_that_are_named(db: Path) -> None:
    query(db, DRIFT, "DELETE FROM sessions")
    found = document("rebuild-projections", "--db", db, "--projection", "sessions")
    assert [each["projection"] for each in found["projections"]] == ["sessions"]
    assert query(db, "SELECT count(*) FROM sessions") == [(2,)]
    assert query(db, "SELECT state_value FROM state WHERE state_key = 'n'") == [("7",)]
    named = ["--projection", "state", "--projection", "sessions"]
    both = document("rebuild-projections", "--db", db, *named)
    assert len(both["projections"]) == 2
    unknown = invoke("rebuild-projections", "--db", db, "--projection", "nope")
    assert unknown.exit_code == 2
    assert "Known are: sessions, state, usage" in unknown.stderr


def test_the_rows_of_one_scope(db: Path) -> None:
    before = tables(db)
    query(db, "UPDATE state SET state_value = '9'")  # 5 rows: 1 of the app, 1 of the user
    dry = document("rebuild-projections", "--db", db, "--app", "app", "--dry-run")
    assert dry["projections"][1]["changed"] == 5
    one = ["--app", "app", "--user", "user", "--session", "session"]
    found = document("rebuild-projections", "--db", db, *one)
    assert [each["changed"] for each in found["projections"]] == [0, 2]
    assert found["scope"] == {"app_name": "app", "user_id": "user", "session_id": "session"}
    text = invoke("rebuild-projections", "--db", db, *one[:4]).stdout
    assert "state: 3 rows from 6 events, 1 put right" in text
    assert invoke("rebuild-projections", "--db", db, *one[:2]).exit_code == 0
    assert tables(db) == before
    missing = invoke("rebuild-projections", "--db", db, "--app", "App")
    assert (missing.exit_code, "app 'App'" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    "words", [["--user", "u"], ["--session", "s"], ["--app", "a", "--session", "s"]]
)
def test_a_scope_must_be_whole(words: list[str], db: Path) -> None:
    done = invoke("rebuild-projections", "--db", db, *words)
    assert done.exit_code == 2
    assert "needs --app" in done.stderr


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("DROP TABLE state", "its table is missing"),
        ("UPDATE projections SET version = 7 WHERE name = 'state'", "the database has version 7"),
    ],
)
def test_rows_are_not_put_right_in_a_table_of_another_kind(
    damage: str, reason: str, db: Path
) -> None:
    query(db, damage)
    done = invoke("rebuild-projections", "--db", db, "--app", "app")
    assert done.exit_code == 2
    assert reason in done.stderr
    assert "rebuild-projections --projection state" in done.stderr


def test_an_interrupted_rebuild_leaves_the_tables_as_they_were(large: Path, tmp_path: Path) -> None:
    db = Path(shutil.copy(large, tmp_path / "large.sqlite3"))
    query(db, "UPDATE state SET state_value = '\"drifted\"' WHERE state_key = 'key 7'")
    before = query(db, "SELECT * FROM state ORDER BY 1, 2")
    words = ["rebuild-projections", "--db", db, "--format", "json"]
    process = start(sys.executable, "-c", SLOWLY, *words)
    with closing(sqlite3.connect(db)) as connection:
        wait_for(lambda: _has_rows(connection, "shadow_state"))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(out)["error"]["type"] == "Interrupted"
    assert len(err.splitlines()) == 1
    assert "interrupted" in err
    assert query(db, "SELECT * FROM state ORDER BY 1, 2") == before
    assert run("rebuild-projections", "--db", db).returncode == 0
    assert not query(db, "SELECT 1 FROM state WHERE state_value = '\"drifted\"'")


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    try:
        return connection.execute(f"SELECT 1 FROM {table}").fetchone() is not None
    except sqlite3.OperationalError:
        return False


def test_of_two_rebuilds_at_once_the_second_says_so(
    db: Path, tmp_path: Path, plugin: dict[str, str]
) -> None:
    gate = tmp_path / "gate"
    first = start("rebuild-projections", "--db", db, env={**plugin, "SEEN_WAITS": str(gate)})
    wait_for((tmp_path / "reached").exists)
    second = run("rebuild-projections", "--db", db)
    assert second.returncode == 2
    assert f"cannot rebuild while process {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    gate.touch()
    out, _ = first.communicate(timeout=20)
    assert (first.returncode, "seen: 2 rows from 7 events" in out) == (0, True)


# Progress.

SLOWLY = (
    "import sys, importlib, projections.cli.progress as p; p.INTERVAL_S = 1e9\n"
    "importlib.import_module('projections.rebuild')._ROWS_PER_TRANSACTION = 20\n"
    "from projections.cli import main; main(sys.argv[1:])"
)
"""In many transactions, so that it can be interrupted before it is done."""
OFTEN = (
    "import sys, projections.cli.progress as p; p.INTERVAL_S = {}\n"
    "from projections.cli import main; main(sys.argv[1:])"
)


def test_without_a_terminal_progress_is_plain_lines(db: Path) -> None:
    words = ["verify", "--db", db, "--format", "json"]
    done = run(sys.executable, "-c", OFTEN.format(0), *words)
    assert json.loads(done.stdout)["clean"] is True
    line = r"verifying: 7 events, 100%, [\d,]+ events/s, 0:00:00 left"
    assert re.fullmatch(rf"({line}\n)+", done.stderr)
    short = run(sys.executable, "-c", OFTEN.format(3), *words)
    assert short.stderr == ""


def test_on_a_terminal_progress_is_a_bar(db: Path) -> None:
    ours, theirs = pty.openpty()
    process = start("adk-eventstore", "verify", "--db", db, "--format", "json", stderr=theirs,
                    env={"TERM": "xterm", "COLUMNS": "100"})  # fmt: skip
    os.close(theirs)
    shown = _read_all(ours)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads(out)["clean"] is True
    assert "verifying" in shown
    assert "━" in shown
    assert "7 events" in shown
    assert "\x1b[" in shown


def _read_all(terminal: int) -> str:
    read = b""
    try:
        while more := os.read(terminal, 4096):
            read += more
    except OSError:  # how a pty says that nobody has its other end any more
        pass
    os.close(terminal)
    return read.decode()


def test_pace() -> None:
    now = 0.0
    pace = _Pace(100, lambda: now)
    assert pace.left == "-:--:--"
    now = 2.0
    pace.update(50, 150, 1_000)
    assert (pace.rate, pace.left) == (25.0, "0:00:34")
    assert pace.share == pytest.approx(50 / 900)
    now = 10.0
    pace.update(10, 110, 1_000)  # a second pass begins anew
    assert pace.rate == 0.0
    now = 11.0
    pace.update(20, 120, 1_000)
    assert pace.rate == 20.0


# verify


def test_a_clean_database(db: Path) -> None:
    done = invoke("verify", "--db", db)
    assert done.exit_code == 0
    assert "7 events up to position 7" in done.stdout
    assert "2 rows of sessions, 5 rows of state" in done.stdout
    assert "Clean." in done.stdout
    assert list(document("verify", "--db", db)) == [
        "database", "clean", "head", "since", "events", "streams", "rows", "drifted",
        "differences", "unchecked", "log_is_whole", "fixed", "anchor", "against",
    ]  # fmt: skip


def test_drift_is_found_described_and_fixed(db: Path) -> None:
    before = tables(db)
    query(db, DRIFT, "DELETE FROM state WHERE state_key = 'u'")
    query(db, "INSERT INTO state SELECT owner_id, 'x\x1b[2J', '1', 1 FROM state LIMIT 1")
    drifted = tables(db)
    done = invoke("verify", "--db", db)
    assert done.exit_code == 1
    assert "state: 3 differences" in done.stdout
    assert "session 'session' (app 'app', user 'user'), state_key 'n': differs" in done.stdout
    assert "state_value: the table has 7\n" in done.stdout
    assert "the log gives 4\n" in done.stdout
    assert (
        "event at position 6, version 6, adk_event, author author, invocation invocation"
        in done.stdout
    )
    assert "state_key 'u': is missing" in done.stdout
    assert "is in no event of the log" in done.stdout
    assert "state_key = x\\x1b[2J," in done.stdout  # which would clear a terminal
    found = document("verify", "--db", db)
    assert found["drifted"] == {"state": 3}
    (wrong,) = [each for each in found["differences"] if each["problem"] == "differs"]
    assert (wrong["stored"]["state_value"], wrong["expected"]["state_value"]) == ("7", "4")
    assert wrong["event"]["position"] == 6
    assert tables(db) == drifted

    done = run("adk-eventstore", "verify", "--db", db, "--fix")  # nobody to ask
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert tables(db) == drifted
    done = run("adk-eventstore", "verify", "--db", db, "--fix", "--yes", "--format", "json")
    assert (done.returncode, json.loads(done.stdout)["fixed"]) == (0, ["state"])
    assert tables(db) == before
    assert invoke("verify", "--db", db).exit_code == 0


ON_A_TERMINAL = (
    "import os, sys; os.setsid()\n"
    "os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the one that Ctrl-C comes from\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize(("answer", "code"), [("n\n", 2), ("y\n", 0), ("\x03", 130)])
def test_fixing_asks_on_a_terminal(answer: str, code: int, db: Path) -> None:
    query(db, DRIFT)
    ours, theirs = pty.openpty()
    words = [SCRIPTS / "adk-eventstore", "verify", "--db", db, "--fix"]
    process = start(sys.executable, "-c", ON_A_TERMINAL, *words, stdin=theirs, stderr=theirs)
    os.close(theirs)
    asked = b""
    while b"[y/N]" not in asked:
        asked += os.read(ours, 4096)
    # A signal that comes just before Python begins to read is seen only with the next one.
    for _ in range(6 if answer == "\x03" else 1):
        with suppress(OSError):  # it has closed the terminal, and is about to end
            os.write(ours, answer.encode())
        with suppress(subprocess.TimeoutExpired):
            process.wait(60 if answer != "\x03" else 5)
            break
    process.communicate(timeout=20)
    told = _read_all(ours)
    assert process.returncode == code
    assert "Traceback" not in told
    fixed = query(db, "SELECT state_value FROM state WHERE state_key = 'n'") == [("4",)]
    assert fixed == (code == 0)


def test_a_damaged_log_is_not_fixed(db: Path) -> None:
    query(db, DRIFT)
    with past_the_triggers(db) as connection:
        connection.execute("UPDATE events SET delta = replace(delta, '3', '5') WHERE position = 5")
    before = tables(db)
    done = invoke("verify", "--db", db, "--fix", "--yes")
    assert done.exit_code == 1
    assert "The log itself is damaged (events)" in done.stdout
    assert "Nothing was fixed." in done.stdout
    assert "has a delta that does not match its digest" in done.stdout
    assert tables(db) == before
    dry = invoke("rebuild-projections", "--db", db, "--dry-run")
    assert (dry.exit_code, "damaged" in dry.stderr) == (2, True)


def test_what_cannot_be_made_anew_is_not_called_fixed(db: Path) -> None:
    query(db, "UPDATE streams SET nonce = zeroblob(16) WHERE session_id = 'other'")
    done = invoke("verify", "--db", db, "--fix", "--yes")
    assert done.exit_code == 1
    assert "Nothing was fixed" in done.stdout
    assert "verify --fix" not in done.stdout


def test_only_what_is_behind_a_position_is_checked(db: Path) -> None:
    query(db, "DELETE FROM state WHERE state_key = 'u'")
    done = invoke("verify", "--db", db, "--since", 5)
    assert done.exit_code == 0
    assert "Checked 2 events behind position 5" in done.stdout
    query(db, DRIFT)
    assert invoke("verify", "--db", db, "--since", 5).exit_code == 1


def test_only_some_projections_are_verified(db: Path) -> None:
    query(db, DRIFT)
    assert invoke("verify", "--db", db, "--projection", "sessions").exit_code == 0
    assert document("verify", "--db", db, "--projection", "sessions")["unchecked"] == {}
    assert invoke("verify", "--db", db, "--projection", "state").exit_code == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--since", "3", "--anchor", "a"],
        ["--since", "0", "--against", "a"],
        ["--fix", "--anchor", "a"],
    ],
)
def test_options_that_exclude_each_other(words: list[str], db: Path) -> None:
    done = invoke("verify", "--db", db, *words)
    assert (done.exit_code, "cannot go with" in done.stderr) == (2, True)


# Copies, exports, the version.


def test_a_dry_run_of_a_copy_says_what_it_would_do(db: Path, tmp_path: Path) -> None:
    done = invoke("copy", db, tmp_path / "new.sqlite3", "--dry-run")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"A dry run: it would copy {db} to {tmp_path / 'new.sqlite3'}: ")
    assert not (tmp_path / "new.sqlite3").exists()


def test_an_export_is_not_restored(db: Path, tmp_path: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:
        export_log(store, tmp_path / "all.jsonl")
        with pytest.raises(StreamNotFound, match="sessions list"):
            export_log(store, tmp_path / "none.jsonl", Part("none"))
    done = invoke("restore", tmp_path / "all.jsonl", "--db", tmp_path / "new.sqlite3")
    assert done.exit_code == 2
    assert (
        f"is an export, not a backup. Take it in: adk-eventstore import {tmp_path}" in done.stderr
    )


def test_which_version_it_is() -> None:
    said = run("adk-eventstore", "--version").stdout
    assert re.fullmatch(r"adk-eventstore, version \d+\.\d+.*\n", said)


# Anchors.


@pytest.fixture
def anchor(db: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sessions.anchor"
    done = invoke("verify", "--db", db, "--anchor", path)
    assert done.exit_code == 0
    root = json.loads(path.read_text().splitlines()[0])["root"]
    assert f"head 7, root {root}" in done.stdout
    return path


def append(db: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:
        event = new_event(EventType.STATE_SET, delta={"session": {"later": 1}})
        asyncio.run(_set_state(store, event))


async def _set_state(store: EventStore, event: Any) -> None:
    await store.set_state(SESSION, event)


def test_a_log_that_went_on_still_has_what_the_anchor_knows(db: Path, anchor: Path) -> None:
    append(db)
    done = invoke("verify", "--db", db, "--against", anchor)
    assert done.exit_code == 0
    assert "unchanged, the history of 2 streams up to position 7" in done.stdout
    assert document("verify", "--db", db, "--against", anchor)["against"]["proved"] is True


def test_a_truncated_log_is_found(db: Path, anchor: Path) -> None:
    with past_the_triggers(db) as connection:
        connection.execute("DELETE FROM events WHERE position = 6")
        connection.execute(
            "UPDATE streams SET version = 5, conversation_version = 5, chain = "
            "(SELECT chain FROM events WHERE position = 5) "
            "WHERE id = (SELECT stream_id FROM events WHERE position = 5)"
        )
    assert invoke("rebuild-projections", "--db", db).exit_code == 0
    assert invoke("verify", "--db", db).exit_code == 0  # it hangs together
    done = invoke("verify", "--db", db, "--against", anchor)
    assert done.exit_code == 1
    assert "had version 6, which is not in the log any more" in done.stdout
    assert "1 stream of 2 lost or changed history" in done.stdout
    fix = invoke("verify", "--db", db, "--against", anchor, "--fix", "--yes")
    assert (fix.exit_code, "Nothing was fixed" in fix.stdout) == (1, True)


def test_rewritten_history_is_found(db: Path, anchor: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:
        before, logged = store.snapshot(lambda s: s.read_log(4, 6, 2))
    event, delta = logged.event, b'{"session":{"n":1000}}'
    link = link_of(logged._replace(delta_digest=digest(delta)), before.chain)
    with past_the_triggers(db) as connection:
        connection.execute(
            "UPDATE events SET delta = ?, delta_digest = ?, chain = ? WHERE position = 6",
            (delta.decode(), digest(delta), link),
        )
        connection.execute("UPDATE streams SET chain = ? WHERE id = ?", (link, event.stream.id))
    assert invoke("rebuild-projections", "--db", db).exit_code == 0
    assert query(db, "SELECT state_value FROM state WHERE state_key = 'n'") == [("1000",)]
    assert invoke("verify", "--db", db).exit_code == 0  # it hangs together
    done = invoke("verify", "--db", db, "--against", anchor)
    assert done.exit_code == 1
    assert "anchor: 1 difference" in done.stdout


def test_what_was_vacuumed_is_proved_no_more(db: Path, anchor: Path) -> None:
    with closing(open_store(db, BUILT_IN)) as store:

        async def delete() -> None:
            await store.delete(session("other", "grace"), new_event(EventType.SESSION_DELETED))

        asyncio.run(delete())
        scavenge(store, BUILT_IN)
    done = invoke("verify", "--db", db, "--against", anchor)
    assert done.exit_code == 0
    assert "the history of 1 stream up to position 7" in done.stdout
    assert "1 stream of deleted sessions had their events removed" in done.stdout
    assert document("verify", "--db", db, "--against", anchor)["against"]["scavenged"] == 1


def test_no_anchor_vouches_for_drift(db: Path, tmp_path: Path) -> None:
    query(db, DRIFT)
    path = tmp_path / "sessions.anchor"
    done = invoke("verify", "--db", db, "--anchor", path)
    assert (done.exit_code, "No anchor was written" in done.stdout) == (1, True)
    assert not path.exists()


def test_anchor_files_that_cannot_be_used(db: Path, anchor: Path, tmp_path: Path) -> None:
    text = anchor.read_text()
    anchor.write_text(text.replace(",6,", ",5,"))
    assert text != anchor.read_text()
    for words in (
        ["--against", anchor],
        ["--against", tmp_path / "missing"],
        ["--anchor", tmp_path / "no folder" / "anchor"],
    ):
        done = invoke("verify", "--db", db, *words)
        assert done.exit_code == 2, words
        assert str(words[1]) in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_an_anchor_is_a_file_and_no_pipe(db: Path, tmp_path: Path) -> None:
    """Of a pipe that nobody writes to there is no end."""
    os.mkfifo(tmp_path / "pipe")
    process = start("adk-eventstore", "verify", "--db", db, "--against", tmp_path / "pipe")
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, "is no regular file" in err) == (2, True)


# projections


def test_an_asynchronous_projection_from_a_package(db: Path, plugin: dict[str, str]) -> None:
    def facts(*words: str, code: int = 0, **env: str) -> dict[str, Any]:
        done = run("adk-eventstore", "projections", *words, "--db", db, "--format", "json",
                   env=plugin | env)  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "secret" not in done.stdout + done.stderr
        (found,) = [p for p in json.loads(done.stdout)["projections"] if p["name"] == "seen"]
        return dict(found)

    assert facts("status")["state"] == "not built"
    broken = facts("run", code=1, SEEN_FAILS_AT="3")
    assert (broken["state"], broken["stopped_at"]) == ("stopped", 3)
    assert "ValueError" in broken["reason"]
    assert facts("status", code=1)["state"] == "stopped"
    done = facts("run", "seen")
    assert (done["state"], done["kind"], done["checkpoint"]) == ("up to date", "asynchronous", 7)
    append(db)
    behind = facts("status")
    assert (behind["state"], behind["lag"]) == ("behind", 1)
    assert facts("status", SEEN_VERSION="2")["state"] == "older version"
    assert facts("run", SEEN_VERSION="2")["version"] == 2
    assert facts("status")["state"] == "newer version"
    text = invoke("projections", "status", "--db", db).stdout  # where it is not installed
    assert re.search(r"seen +asynchronous +2 +- +8 +0 +not installed here", text)

    refused = invoke("projections", "run", "seen", "--db", db)
    assert (refused.exit_code, "Known are:" in refused.stderr) == (2, True)
    rebuilt = run("rebuild-projections", "--db", db, "--projection", "seen", env=plugin)
    assert (rebuilt.returncode, "seen: 2 rows" in rebuilt.stdout) == (0, True)
    dropped = run("adk-eventstore", "projections", "drop", "seen", "--yes", "--db", db, env=plugin)
    assert dropped.returncode == 0, dropped.stderr
    assert not query(db, "SELECT 1 FROM sqlite_schema WHERE name LIKE '%seen'")


def test_what_is_inline_is_not_run(db: Path) -> None:
    done = invoke("projections", "run", "state", "--db", db)
    assert (done.exit_code, "is inline" in done.stderr) == (2, True)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_following_goes_on_until_it_is_ended(end: signal.Signals, db: Path) -> None:
    process = start("adk-eventstore", "projections", "run", "usage", "--follow", "--db", db)

    def checkpoint() -> int:
        rows = query(db, "SELECT checkpoint FROM projections WHERE name = 'usage'")
        return rows[0][0] if rows else 0

    wait_for(lambda: checkpoint() == 7)
    append(db)
    wait_for(lambda: checkpoint() == 8)
    process.send_signal(end)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert re.search(r"usage +asynchronous +1 +1 +8 +0 +up to date", out)
    assert err == "Following usage. Ctrl-C ends it.\n"


def test_dropping(db: Path) -> None:
    assert invoke("projections", "run", "usage", "--db", db).exit_code == 0
    before = tables(db)
    refused = run("adk-eventstore", "projections", "drop", "usage", "--db", db)
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    dry = document("projections", "drop", "usage", "--db", db, "--dry-run")
    assert (dry["table"], dry["dry_run"]) == ("usage", True)
    assert tables(db) == before
    assert invoke("projections", "drop", "usage", "--db", db, "--yes").exit_code == 0
    assert not query(db, "SELECT 1 FROM sqlite_schema WHERE name LIKE '%usage'")
    assert invoke("projections", "run", "usage", "--db", db).exit_code == 0  # built again
    assert tables(db) == before


def test_what_cannot_be_dropped(db: Path) -> None:
    before = tables(db)
    for name, reason in (("state", "is built in"), ("nope", "keeps no rows")):
        done = invoke("projections", "drop", name, "--yes", "--db", db)
        assert (done.exit_code, reason in done.stderr) == (2, True)
    assert tables(db) == before


# migrate


@pytest.fixture
def old(db: Path) -> Path:
    """A database as schema version 1 had it."""
    columns = ("failure", "failed_at", "checkpoint", "table_name")
    query(
        db,
        *(f"ALTER TABLE projections DROP COLUMN {column}" for column in columns),
        "PRAGMA user_version = 1",
    )
    return db


def test_a_dry_run_shows_the_sql_and_changes_nothing(old: Path, tmp_path: Path) -> None:
    for beside in tmp_path.glob("*-*"):
        beside.unlink()
    content, names = old.read_bytes(), sorted(tmp_path.iterdir())
    done = invoke("migrate", "--dry-run", "--db", old)
    assert done.exit_code == 0
    assert f"from schema version 1 to {len(migrations())}" in done.stdout
    for script in migrations()[1:]:
        assert script.strip() in done.stdout
    assert (old.read_bytes(), sorted(tmp_path.iterdir())) == (content, names)
    refused = invoke("rebuild-projections", "--dry-run", "--db", old)
    assert (refused.exit_code, "adk-eventstore migrate" in refused.stderr) == (2, True)
    assert (old.read_bytes(), sorted(tmp_path.iterdir())) == (content, names)
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.executescript(f"BEGIN; {done.stdout}; COMMIT")  # it is what it says it is
    assert document("migrate", "--dry-run", "--db", old)["migrations"] == []


def test_migrating_says_from_which_version_to_which(old: Path) -> None:
    newest = len(migrations())
    done = invoke("migrate", "--db", old)
    assert f"migrated from schema version 1 to {newest}" in done.stdout
    again = document("migrate", "--db", old)
    assert (again["from"], again["to"], again["migrations"]) == (newest, newest, [])
    assert invoke("verify", "--db", old).exit_code == 0


def test_what_is_in_the_wal_only_counts_and_stays_there(old: Path, tmp_path: Path) -> None:
    left = tmp_path / "left by a process that was killed"
    left.mkdir()
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA user_version = 99")
        for each in tmp_path.glob(f"{old.name}*"):
            shutil.copy(each, left)
    before = {each: each.read_bytes() for each in left.iterdir()}
    assert len(before[left / f"{old.name}-wal"]) > 0
    done = invoke("migrate", "--dry-run", "--db", left / old.name)
    assert (done.exit_code, "has schema version 99" in done.stderr) == (2, True)
    after = {each: each.read_bytes() for each in left.iterdir()}
    shm = left / f"{old.name}-shm"  # SQLite's notes on the -wal
    assert before.pop(shm, None) is not None
    after.pop(shm)
    assert after == before


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["PRAGMA user_version = 99"], "Upgrade adk-eventstore"),
        (["PRAGMA application_id = 5"], "belongs to another program"),
    ],
)
def test_files_that_are_not_ours_to_migrate(statements: list[str], reason: str, old: Path) -> None:
    query(old, *statements)
    content = old.read_bytes()
    for words in (["--dry-run"], []):
        done = invoke("migrate", *words, "--db", old)
        assert (done.exit_code, reason in done.stderr) == (2, True)
    assert old.read_bytes() == content


def test_a_text_file_is_not_migrated(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("no database" * 1000)
    done = invoke("migrate", "--dry-run", "--db", path)
    assert (done.exit_code, "is not a SQLite database" in done.stderr) == (2, True)


def test_new_commands_are_added_in_one_place() -> None:
    assert {command.name for command in COMMANDS} == set(main.commands)


@pytest.mark.parametrize(
    "words", [("events", "tail", "--last"), ("events", "tail", "--after"), ("events", "show")]
)
def test_numbers_that_no_database_has(words: tuple[str, ...], tmp_path: Path) -> None:
    open_store(tmp_path / "a.db", BUILT_IN).close()
    done = invoke(*words, 10**20, "--db", tmp_path / "a.db")
    assert (done.exit_code, "is not in the range" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        "stats --db {}",
        "doctor --db {}",
        "migrate --db {}",
        "backup {}",
        "restore {} --overwrite --yes",
        "recover {} new",
        "copy {} new",
        "copy sessions.sqlite3 {}",
        "import {}",
        "export {}",
        "verify --anchor {}",
        "verify --against {}",
    ],
)
@pytest.mark.parametrize("name", ["n" * 300, "\ud800"])
def test_names_that_no_file_can_have(
    words: str, name: str, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(db.parent)
    before = db.read_bytes()
    done = invoke("--db", db, *(word.replace("{}", name) for word in words.split()))
    assert (done.exit_code, "defect" in done.stderr) == (2, False), done.stderr
    assert done.stderr.count("\n") == 1 or done.stderr.startswith("Usage:")
    assert ({each.name for each in Path().iterdir()} & {"new", name}, db.read_bytes()) == (
        set(),
        before,
    )


def test_a_name_with_a_line_break_is_told_on_one_line(tmp_path: Path) -> None:
    done = invoke("stats", "--db", tmp_path / "a\nb\x1b[31m")
    assert (done.exit_code, done.stderr.count("\n"), "\x1b" in done.stderr) == (2, 1, False)
    assert r"a\nb\x1b[31m does not exist" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "sessions show {}",
        "sessions show session --app {}",
        "sessions delete session --user {} --yes",
        "sessions label {} a=b",
        "sessions title session {}",
        "events tail --app {}",
        "rebuild-projections --app {}",
        "erase-user {} --dry-run",
        "erase-user user --app {} --dry-run",
        "purge --older-than 1d --app {} --dry-run",
        "ddl --schema {}",
        "stats --db postgresql://localhost/{}",
        "stats --db postgresql://[{}",
        "backup postgresql://[{}",
        "import postgresql://localhost/{}",
    ],
)
def test_names_and_ids_that_are_no_utf8(words: str, db: Path) -> None:
    """A byte that is none comes as a lone surrogate from the command line."""
    done = invoke("--db", db, *(word.replace("{}", "caf\udce9") for word in words.split()))
    assert (done.exit_code, "defect" in done.stderr) == (2, False), done.stderr
    assert done.stderr.count("\n") == 1


def test_output_that_cannot_be_printed(tmp_path: Path) -> None:
    db = tmp_path / "a.db"
    with closing(open_store(db, BUILT_IN)) as store:
        asyncio.run(_describe(store, "\u8336"))
    listed = [sys.executable, "-m", "projections.cli", "sessions", "list", "--db", str(db)]
    narrow = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    done = subprocess.run(listed, env=narrow, capture_output=True, text=True)
    assert (done.returncode, "\\u8336" in done.stdout) == (0, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device here")
@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize(
    "words",
    ["sessions list", "events tail", "--help", "--version", "sessions --help", "ddl --help"],
)
def test_output_on_a_device_that_is_full(words: str, form: str, db: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = printing(*words.split(), "--db", db, "--format", form, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be printed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device here")
@pytest.mark.parametrize("words", ["verify", "verify --nope", "", "stats --db ''"])
def test_messages_on_a_device_that_is_full(words: str, db: Path) -> None:
    """The exit code alone says that it could not run: neither 1 nor the 120 of Python's end."""
    command = [sys.executable, "-c", OFTEN.format(0), "--db", str(db), *shlex.split(words)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device here")
def test_progress_that_cannot_be_told_is_no_defect(db: Path) -> None:
    command = [sys.executable, "-c", OFTEN.format(0), "verify", "--format", "json", "--db", str(db)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=full)
    assert "Progress cannot be printed" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    "words",
    ["verify", "verify --format json", "sessions list", "events tail", "stats --help", "--help"],
)
def test_output_that_nobody_reads(words: str, db: Path) -> None:
    """Not 1, which says that something was found."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = printing(*words.split(), "--db", db, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(sys.platform == "win32", reason="its shell closes no streams")
@pytest.mark.parametrize(
    ("words", "closed", "code"), [("verify", "2>&-", 0), ("sessions delete other", "<&-", 2)]
)
def test_streams_that_are_closed(words: str, closed: str, code: int, db: Path) -> None:
    shell = ["sh", "-c", f'exec "$0" "$@" {closed}']
    done = printing(*words.split(), "--db", db, before=shell, stdout=subprocess.PIPE)
    assert done.returncode == code
    assert "Pass --yes." in done.stderr if code else "Clean." in done.stdout


def printing(
    *words: object, stdout: Any, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A command whose output is kept back until there is enough, as a pipe's is."""
    command = [*before, sys.executable, "-m", "projections.cli", *map(str, words)]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(command, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def beyond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sessions whose times no calendar and no JSON has: earlier versions stored infinite ones."""
    path = tmp_path / "beyond.sqlite3"
    with closing(open_store(path, BUILT_IN)) as store, monkeypatch.context() as earlier:
        earlier.setattr("eventstore.events.math.isfinite", lambda _: True)
        for number, time in enumerate((math.inf, -math.inf, 1e300, -1e300, -5.0)):
            asyncio.run(_at(store, session(f"s{number}"), time))
    return path


async def _at(store: EventStore, key: StreamKey, time: float) -> None:
    first = msgspec.structs.replace(created(session={"a": 1}), timestamp=time)
    event = new_event(delta={"session": {"b": 2}}, timestamp=time)
    loaded = await store.create(key, first)
    await store.append(key, event, Cursor(loaded.stream.id, 1))


@pytest.mark.parametrize(
    "words",
    [
        "sessions list --state",
        "sessions list --newer-than 7d",
        "sessions list --order created --reverse --limit 2",
        "sessions show s0",
        "sessions show s1",
        "events tail --last 100",
        "events show 3",
        "stats --full",
        "verify",
        "doctor --full",
        "rebuild-projections --dry-run",
        "purge --older-than 7d --dry-run",
    ],
)
def test_times_that_no_calendar_has_are_shown(words: str, beyond: Path) -> None:
    done = invoke(*words.split(), "--db", beyond)
    assert (done.exit_code, done.stderr) == (0, "")
    done = invoke(*words.split(), "--db", beyond, "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    for text in done.stdout.splitlines() if "tail" in words else [done.stdout]:
        json.loads(text)


def test_an_infinite_time_is_a_text_in_json(beyond: Path) -> None:
    listed = document("sessions", "list", "--db", beyond)["sessions"]
    times = {each["session_id"]: each["last_update_time"] for each in listed}
    assert times == {"s0": "inf", "s1": "-inf", "s2": 1e300, "s3": -1e300, "s4": -5.0}
    events = invoke("events", "tail", "--last", "100", "--format", "json", "--db", beyond)
    shown = {json.loads(text)["timestamp"] for text in events.stdout.splitlines()}
    assert {"inf", "-inf", 1e300} <= shown


async def _describe(store: EventStore, title: str) -> None:
    await store.create(session("s"), created())
    await asyncio.to_thread(set_title, store, session("s"), title)


@pytest.mark.skipif(sys.platform == "win32", reason="there such a folder cannot be removed")
def test_a_working_directory_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = (
        "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); sys.argv[1:] = ['doctor']; "
        "from projections.cli import main; main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "gone")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "working directory that is gone" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr

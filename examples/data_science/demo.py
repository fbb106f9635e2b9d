"""Kills an agent in the middle of its work, and shows that nothing is lost.

Run it from the root of the repository: python -m examples.data_science.demo
"""

import argparse
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

from . import display
from .display import heading, passed, verbatim

ROOT = Path(__file__).parents[2]
TIME_LIMIT_SECONDS = 60
EXIT_CODE_IF_KILLED = -signal.SIGKILL if os.name == "posix" else int(signal.SIGTERM)

# With nothing of its own yet, a session sees what its user and its app know.
NEW_SESSION_SCOPES = {"ada": {"user", "app"}, "grace": {"app"}}

Facts = dict[str, Any]


class DemoError(Exception):
    """Something that the demo claims is not so."""


class Demo:
    """The story, told on one file."""

    def __init__(self, db: Path) -> None:
        """Prepares to tell the story on a file that need not be there yet."""
        self.db = db
        self.session = ""
        # What the processes were told is stored, in the order in which they were told.
        self.events: list[Facts] = []
        self.state: Facts = {}
        self.temporary: set[str] = set()
        self.times: defaultdict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Tells the whole story; raises DemoError at the first thing that is not so."""
        verbatim(f"Everything below is kept in {self.db}")
        heading("1. A process works for Ada, and is killed in the middle of it")
        self.begin()
        heading("2. Another process opens the same file")
        self.take_over()
        heading("3. State and sessions are thrown away, and made again from the events")
        self.rebuild()
        heading("How long it took")
        display.show_times(self.times)
        heading("Look for yourself")
        query = "SELECT scope, state_key, state_value FROM adk_state;"
        verbatim(f"sqlite3 {shlex.quote(str(self.db))} '{query}'")

    def begin(self) -> None:
        """Lets a process work until it is killed."""
        with self.worker(exit_code=EXIT_CODE_IF_KILLED) as reports:
            for facts in reports:
                self.session = facts.get("session", self.session)
        last = self.events[-1].get("content", {}).get("parts", [{}])[-1]
        check(
            last.get("function_response", {}).get("name") == "train_model",
            "by then its tool had trained a model, its agent had yet to say so",
        )

    def take_over(self) -> None:
        """Lets another process look at what is there, and go on."""
        before = self.state
        with self.worker("--session", self.session) as reports:
            found = first(reports, "found")
            display.show_states(("before the kill", before), ("after it", found["state"]))
            self.check_session(found)
            self.check_scopes(found["state"])
            model = found["state"]["model"]
            check(model == before["model"], "the trained model's record is the same, to the digit")
            start = {u: scopes(state) for u, state in first(reports, "start")["start"].items()}
            check(
                start == NEW_SESSION_SCOPES,
                "a new session of Ada's has her user state and the app's, one of Grace's the app's",
            )
            heading("   It goes on with the conversation")
            final = first(reports, "found")
            stats = first(reports, "stats")["stats"]
        heading("   That changes")
        changed = {k: v for k, v in final["state"].items() if found["state"].get(k) != v}
        was = {k: v for k, v in found["state"].items() if k in changed}
        display.show_states(("after the kill", was), ("at the end", changed))
        self.check_session(final)
        check(
            final["state"]["model"] == model and final["state"]["last_prediction"],
            "the model from the killed process was evaluated and used, not trained again",
        )
        rows = {name: len(rows) for name, rows in self.tables().items()}
        check(
            (stats["sessions"], stats["state_keys"]) == (rows["adk_sessions"], rows["adk_state"]),
            f"get_stats() counts them: {stats['sessions']} sessions, {stats['events']} events,"
            f" {stats['state_keys']} state keys, {stats['db_size_mb']} MB",
        )

    def rebuild(self) -> None:
        """Runs the console command that makes the tables again, and compares."""
        before = self.tables()
        command = Path(sys.executable).with_name("rebuild-projections")
        found = command.exists() or command.with_suffix(".exe").exists()
        start = (
            [str(command)]
            if found
            else [sys.executable, "-m", "projections.cli", "rebuild-projections"]
        )
        arguments = ["--db", str(self.db)]
        verbatim(shlex.join(["rebuild-projections", *arguments]))
        done = subprocess.run(
            [*start, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
            check=False,
        )
        verbatim(f"{done.stdout.strip()}\n")
        check(done.returncode == 0, "the command succeeded")
        after = self.tables()
        for name, rows in before.items():
            check(rows == after[name], f"{name} is as it was: {len(rows)} rows")

    def check_session(self, found: Facts) -> None:
        """Compares a session as read from the file with what was reported as stored."""
        count = len(self.events)
        check(found["found"] == self.events, f"all {count} events are there, whole and in order")
        check(
            found["state"] == self.state,
            f"all {len(self.state)} state keys have the value they were given",
        )

    def check_scopes(self, state: Facts) -> None:
        """Looks for every scope that lasts, and for the one that must not."""
        there = scopes(state)
        check(there == set(display.SCOPES), "session, user and app state are there")
        check(
            bool(self.temporary) and not self.temporary & state.keys(),
            f"what was for one turn only is not ({', '.join(sorted(self.temporary))})",
        )

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """Everything in the tables to be read with SQL."""
        names = ("adk_sessions", "adk_events", "adk_state")
        with closing(sqlite3.connect(self.db)) as connection:
            return {
                name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr)
                for name in names
            }

    @contextmanager
    def worker(self, *arguments: str, exit_code: int = 0) -> Iterator[Iterator[Facts]]:
        """Runs a process of the story, and gives its reports as they come in."""
        command = [sys.executable, "-m", "examples.data_science.worker", "--db", str(self.db)]
        # In a session of its own, Ctrl-C reaches it as the kill() below: it has nothing to tidy up.
        with subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            timer = Timer(TIME_LIMIT_SECONDS, process.kill)
            timer.start()
            try:
                reports = self.listen(process)
                yield reports
                for _ in reports:
                    pass
                code = process.wait()
            finally:
                # Whatever happened here, an interrupt included, no process stays behind.
                timer.cancel()
                process.kill()
        end = "finished" if exit_code == 0 else "was killed, on the spot"
        wrong = "" if code == exit_code else f" (its exit code is {code})"
        check(code == exit_code, f"process {process.pid} {end}{wrong}")

    def listen(self, process: subprocess.Popen[str]) -> Iterator[Facts]:
        """Reads a process's reports, keeps what is compared later, shows the conversation."""
        assert process.stdout
        for line in process.stdout:
            facts = json.loads(line)
            if operation := facts.get("operation"):
                self.times[operation].append(facts["milliseconds"])
            if event := facts.get("event"):
                self.events.append(event)
                self.state = facts["state"]
                self.temporary.update(facts["temporary"])
                display.show_event(event)
            yield facts


def check(holds: object, claim: str) -> None:
    """Prints a claim that holds; ends the demo at one that does not."""
    if not holds:
        raise DemoError(claim)
    passed(claim)


def first(reports: Iterator[Facts], key: str) -> Facts:
    """Reads on to the first report that has the key."""
    for facts in reports:
        if key in facts:
            return facts
    raise DemoError(f"the process reported '{key}'")


def scopes(state: Facts) -> set[str]:
    """The scopes that a state has keys in."""
    return {display.by_scope(key)[0] for key in state}


def main() -> int:
    """Tells the story on the file asked for, or on a new one that stays there to be looked at."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--db", type=Path, help="the file to use (default: a new temporary one)")
    db = parser.parse_args().db or Path(tempfile.mkdtemp(prefix="adk-eventstore-")) / "adk.sqlite3"
    try:
        Demo(db.resolve()).run()
    except DemoError as error:
        print(f"Not so: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures the PostgreSQL backend beside ADK's DatabaseSessionService (asyncpg) on the same server.

The server is one of its own that syncs every commit: an installed PostgreSQL, or that of the test
dependencies' wheel. Rounds of the two services and of `pgbench` take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from google.adk.sessions import BaseSessionService
from google.adk.sessions.database_session_service import DatabaseSessionService
from rich.console import Console
from rich.table import Table

import adk_adapter
from adk_adapter.codec import encode_event
from benchmarks.concurrency import Round, append_on
from benchmarks.crew import Crew
from benchmarks.events import event_stream
from benchmarks.goals import Goal
from benchmarks.growth import CALLS, LIMIT, Point, measure
from benchmarks.prefill import APP, NAMED_USER, Shape, prefill_server
from benchmarks.report import WIDTH
from benchmarks.run import facts, percentile, pooled
from benchmarks.services import close
from eventstore.chain import digest
from eventstore.postgres.locks import Locks
from eventstore.postgres.queries import queries
from eventstore.postgres.tables import ProjectionTable
from projections import BUILT_IN
from tests.postgres.server import Server, execute, servers

OURS, PEER, PGBENCH = "adk_eventstore", "database", "pgbench"
TITLES = {
    OURS: "adk_eventstore",
    PEER: "ADK DatabaseSessionService",
    PGBENCH: "pgbench, the same statements",
}
ROWS = {
    "alone": "append_event, one session",
    "at_16": "append_event, 16 sessions at once",
    "get_1000": "get_session, 1,000 events",
    "get_1000_read": "get_session, 1,000 events, and reading each",
}
HEADINGS = ("what", "goal", "measured", "met", *TITLES.values())
SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}
"""As for a server that is used: enough memory, and no checkpoint in the middle of a round."""
_TASKS = 16
_CALLS = 12
"""Loads of a session in one round."""

GOALS = [
    Goal(
        "at_16",
        "8x the rate of ADK's",
        lambda f: f["at_16"][OURS]["per_s"] / f["at_16"][PEER]["per_s"],
        lambda value: value >= 8,
        "{:.1f}x",
    ),
    Goal(
        "at_16",
        "p50 5x lower than ADK's",
        lambda f: f["at_16"][PEER]["p50_ms"] / f["at_16"][OURS]["p50_ms"],
        lambda value: value >= 5,
        "{:.1f}x",
    ),
    Goal(
        "at_16",
        "at least 1/1.5 of pgbench's rate",
        lambda f: f["at_16"][PGBENCH]["per_s"] / f["at_16"][OURS]["per_s"],
        lambda value: value <= 1.5,
        "1/{:.2f}",
    ),
    Goal("at_16", "no error", lambda f: f["at_16"][OURS]["errors"], lambda n: n == 0, "{:.0f}"),
    Goal(
        "alone",
        "p50 at most 1.5x pgbench's",
        lambda f: f["alone"][OURS]["p50_ms"] / f["alone"][PGBENCH]["p50_ms"],
        lambda value: value <= 1.5,
        "{:.2f}x",
    ),
    Goal(
        "get_1000",
        "5x faster than ADK's",
        lambda f: f["get_1000"][PEER]["p50_ms"] / f["get_1000"][OURS]["p50_ms"],
        lambda value: value >= 5,
        "{:.1f}x",
    ),
]


class Place(NamedTuple):
    """Where a service keeps its sessions on the server."""

    service: str
    url: str

    def open(self) -> BaseSessionService:
        if self.service == OURS:
            return adk_adapter.DatabaseSessionService(self.url)
        return DatabaseSessionService(self.url.replace("postgresql:", "postgresql+asyncpg:"))


def new_place(server: Server, service: str, name: str) -> Place:
    """A schema of ours, or a database of ADK's."""
    if service == OURS:
        return Place(OURS, f"{server.url()}?schema={name}")
    execute(server.url(), f"CREATE DATABASE {name}")
    return Place(PEER, server.url(name))


def run(crew: Crew, server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is kept, but for the facts."""
    rounds: dict[tuple[str, str], list[list[Round]]] = defaultdict(list)
    loads: dict[tuple[str, str], list[float]] = defaultdict(list)
    places = {name: new_place(server, name, f"long_{name}") for name in (OURS, PEER)}
    for place in places.values():
        crew.run_alone(fill, place, options.long, options.seed)
    for turn in range(options.rounds):
        for row, tasks in (("alone", 1), ("at_16", _TASKS)):
            for name in (OURS, PEER):
                place = new_place(server, name, f"{row}_{name}_{turn}")
                arguments = (place.open, tasks, options.seconds, options.seed)
                rounds[row, name].append([crew.run_alone(append_on, *arguments)])
            schema = f"{row}_pgbench_{turn}"
            rounds[row, PGBENCH].append([pgbench(server, schema, tasks, options.seconds)])
        for name, place in places.items():
            alone, read = crew.run_alone(load, place, options.long, _CALLS)
            loads["get_1000", name] += alone
            loads["get_1000_read", name] += read
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for (row, name), each in rounds.items():
        found[row][name] = pooled(each)
    for (row, name), taken in loads.items():
        found[row][name] = {
            "p50_ms": median(taken) * 1e3,
            "p99_ms": percentile(taken, 99) * 1e3,
        }
    return {"figures": found, **grow(server, options)}


# A long session.


def fill(_: int, barrier: Any, place: Place, events: int, seed: int) -> None:
    """Makes a long session."""

    async def work() -> None:
        service = place.open()
        session = await service.create_session(app_name=APP, user_id=NAMED_USER, session_id="long")
        for event in itertools.islice(event_stream(seed), events):
            await service.append_event(session, event)
        await close(service)

    asyncio.run(work())


def load(
    _: int, barrier: Any, place: Place, events: int, calls: int
) -> tuple[list[float], list[float]]:
    """Loads it again and again: how long each call took, and each with reading all events."""

    async def work() -> tuple[list[float], list[float]]:
        service = place.open()
        alone, read = [], []
        for _ in range(calls + 2):
            start = time.perf_counter()
            session = await service.get_session(app_name=APP, user_id=NAMED_USER, session_id="long")
            alone.append(time.perf_counter() - start)
            assert session is not None
            seen = [event.content for event in session.events]
            read.append(time.perf_counter() - start)
            assert len(seen) == events
            del session, seen
        await close(service)
        return alone[2:], read[2:]  # the first ones connect and prepare

    return asyncio.run(work())


# The same statements, sent by PostgreSQL's own program.


def pgbench(server: Server, schema: str, clients: int, seconds: float) -> Round:
    """Lets pgbench append events to one session for each client."""
    target = f"{server.url()}?schema={schema}"

    async def work() -> None:
        async with adk_adapter.DatabaseSessionService(target) as service:
            for number in range(clients):
                session = await service.create_session(APP, NAMED_USER, f"s{number}")
                # The kind of event that follows, so that its codec is known.
                await service.append_event(session, next(event_stream()))

    asyncio.run(work())
    script, prefix = server.folder / f"{schema}.sql", server.folder / f"{schema}_log"
    script.write_text(statements(schema))
    prefix.unlink(missing_ok=True)
    said = server.run(
        *("pgbench", "--no-vacuum", "--protocol", "prepared", "--file", script),
        *(
            "--client",
            str(clients),
            "--jobs",
            str(min(clients, 2)),
            "--time",
            str(max(1, int(seconds))),
        ),
        *("--define", "n=1", "--define", "stream=0", "--log", "--log-prefix", prefix),
        *("--host", "127.0.0.1", "--port", str(server.port), "--username", "postgres", "postgres"),
    )
    found = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    assert found, said
    latencies = [
        int(line.split()[2]) / 1e6
        for log in server.folder.glob(f"{prefix.name}*")
        for line in log.read_text().splitlines()
    ]
    # It has done what the service does, or its figures mean nothing.
    ((events, heads),) = execute(
        server.url(),
        f"SELECT (SELECT count(*) FROM {schema}.events), "
        f"(SELECT sum(version) FROM {schema}.streams)",
    )
    assert events == heads == 2 * clients + len(latencies), (events, heads, len(latencies))
    return Round(seconds=len(latencies) / float(found[1]), latencies=latencies)


def statements(schema: str) -> str:
    """A script that appends one event as the service does: two round trips, the same SQL.

    What differs: values that a program computes between the two are constants, or computed by the
    server. A client's session is `s` and its number.
    """
    q = queries(schema)
    event = encode_event(next(event_stream()))
    assert event.data is not None
    assert event.delta is not None
    # A colon in front of a word would be one of pgbench's variables.
    data, delta = (text.decode().replace(":", ": ") for text in (event.data, event.delta))
    locks = Locks(schema)
    session = "'s' || (:client_id)::text"
    event_id = "'e' || (:client_id)::text || '-' || (:n)::text"
    link = f"'\\x{digest(b'link').hex()}'::bytea"
    codec = f"(SELECT max(id) FROM {schema}.codecs)"
    stream, version = "(:stream)::bigint", "(:n)::bigint + 1"
    now = 1_700_000_000
    drawn = f"currval('{schema}.positions')"

    def filled(name: str, *values: str) -> str:
        return _put_in(q[name], values)

    values = (
        *(drawn, stream, version, event_id, "'adk_event'", "1"),
        *(str(now * 1_000_000), str(now), "'assistant'", "'e-1'", codec, "1"),
        *(link, link, link, f"$json${delta}$json$", f"$json${data}$json$"),
    )
    first = [
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        filled("set_timeouts", "'30000ms'", "'60000ms'"),
        filled(
            "begin_write",
            *("'60000ms'", "false", str(locks.appending)),
            *(f"{2**62} | (:client_id)::bigint", str(locks.bounds)),
        ),
        q["schema_state"],
        filled("lock_streams", *_arrays(f"'{APP}'", "'session'", f"'{NAMED_USER}'", session)),
        filled("find_events", *_arrays(f"'{APP}'", f"'{NAMED_USER}'", session, event_id)),
        filled("draw_positions", "1"),
    ]
    sessions, state = (ProjectionTable(projection, schema) for projection in BUILT_IN)
    move = sessions.update(("last_update_time",), {(0,): (0.0,)}).sql
    put = state.put({(0, ""): ("", 0)}).sql
    keys = [
        f"ARRAY[{stream}, {stream}]",
        "ARRAY['turn', 'last_author']",
        "ARRAY[(:n)::text, '\"assistant\"']",
        f"ARRAY[{drawn}, {drawn}]",
    ]
    second = [
        filled("insert_events", *_arrays(*values)),
        filled("move_heads", *_arrays(stream, version, version, link, "true")),
        _put_in(move, _arrays(stream, str(now))),
        _put_in(put, keys),
        "COMMIT",
    ]
    find = f"SELECT id AS stream FROM {schema}.streams WHERE session_id = {session} \\gset"
    return "\n".join(
        [
            *("\\set n :n + 1", "\\if :stream = 0", find, "\\endif"),
            *("\\startpipeline", *(f"{_one_line(sql)};" for sql in first), "\\endpipeline"),
            *("\\startpipeline", *(f"{_one_line(sql)};" for sql in second), "\\endpipeline", ""),
        ]
    )


def _arrays(*values: str) -> list[str]:
    return [f"ARRAY[{value}]" for value in values]


def _put_in(sql: str, values: Sequence[str]) -> str:
    """A statement with expressions in the place of its parameters."""
    return re.sub(r"\$(\d+)", lambda found: f"({values[int(found[1]) - 1]})", sql)


def _one_line(sql: str) -> str:
    return " ".join(sql.split())


# Growth.


def grow(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """What an append and a short read take in an empty database and in a large one."""
    named = {"ordinary": Shape(100)}
    points, took = [], {}
    for sessions, events in ((0, 0), (options.sessions, options.events)):
        place = Place(OURS, f"{server.url()}?schema=grown_{events}")
        start = time.perf_counter()
        prefill_server(place.url, sessions=sessions, events=events, seed=options.seed, named=named)
        took[f"{events:,}"] = round(time.perf_counter() - start, 1)
        points.append(Point(OURS, "events", events, place.open(), "ordinary"))

    async def work() -> None:
        await measure(points, options.seed)
        for point in points:
            await close(point.service)

    asyncio.run(work())
    return {"seconds_to_fill": took, "growth": [point.figures() for point in points]}


def growth_rows(points: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A table: how much longer the calls take in the larger database."""
    empty, full = points
    for call, title in CALLS.items():
        before, after = empty[f"{call}_p50_ms"], full[f"{call}_p50_ms"]
        ratio = after / before
        yield [
            title,
            f"at most {LIMIT}x of empty at {full['size']:,} events",
            f"{ratio:.2f}x",
            "yes" if ratio <= LIMIT else "no",
            f"{before:.3f} ms empty, {after:.3f} ms full",
        ]


GROWTH_HEADINGS = ("call", "goal", "measured", "met", "medians")


def rows(figures: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """The table row by row; lines in a cell are apart by a newline."""
    for row, title in ROWS.items():
        if row not in figures:
            continue
        goals = [(goal, goal.judge(figures)) for goal in GOALS if goal.row == row]
        yield [
            title,
            "\n".join(goal.wanted for goal, _ in goals),
            "\n".join(judged[0] if judged else "-" for _, judged in goals),
            "\n".join(("yes" if judged[1] else "no") if judged else "-" for _, judged in goals),
            *(_cell(figures[row].get(name)) for name in TITLES),
        ]


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    lines = [f"{found['per_s']:,.0f}/s"] if "per_s" in found else []
    lines += [f"{found['p50_ms']:.3g} ms", f"p99 {found['p99_ms']:.3g} ms"]
    if found.get("errors"):
        lines.append(f"errors: {found['errors']}")
    return "\n".join(lines)


def print_report(kept: Mapping[str, Any]) -> None:
    """Print both tables."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for headings, lines in (
        (HEADINGS, rows(kept["figures"])),
        (GROWTH_HEADINGS, growth_rows(kept["growth"])),
    ):
        table = Table(*headings, show_lines=True)
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for error, count in kept["figures"]["at_16"][OURS]["error_texts"].items():
        console.print(f"{count} times {error}")
    console.print(", ".join(f"{name}: {value}" for name, value in kept["facts"].items()))


def main() -> int:
    """Start, measure, keep, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.postgres", description=__doc__)
    number = {"type": int, "help": "default: %(default)s"}
    parser.add_argument("--rounds", default=3, **number)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a round lasts")
    parser.add_argument(
        "--long", default=1_000, help="events of the session that is loaded", type=int
    )
    parser.add_argument("--events", default=1_000_000, **number)
    parser.add_argument("--sessions", default=20_000, **number)
    parser.add_argument("--seed", default=0, **number)
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args()
    # First of all, while there is nothing in this process that its forks would inherit.
    with Crew(1) as crew, servers() as room:
        server = room.add(durable=True, settings=SETTINGS)
        ((said,),) = execute(server.url(), "SELECT current_setting('server_version')")
        found = {**facts(server.folder, options.seed), "postgresql": said.split()[0]}
        kept = {
            "command": f"python -m benchmarks.postgres --rounds {options.rounds} "
            f"--seconds {options.seconds:g} --events {options.events} "
            f"--sessions {options.sessions} --seed {options.seed}",
            "facts": found,
            **run(crew, server, options),
        }
    print_report(kept)
    path = options.json or Path(".benchmarks") / time.strftime("postgres-%Y%m%d-%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(f"Kept in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

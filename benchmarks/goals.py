"""What is to be reached, and whether a run reached it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.services import BARE, MEMORY, OURS, OURS_FULL, SQLITE

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Row of the table, service, name of the figure."""


class Goal(NamedTuple):
    """One thing to be reached: a figure to compute from others, and its limit."""

    row: str
    wanted: str
    figure: Callable[[Figures], float]
    met: Callable[[float], bool]
    form: str

    def judge(self, figures: Figures) -> tuple[str, bool] | None:
        """What was measured and whether that is good; None when it was not measured."""
        try:
            value = self.figure(figures)
        except (KeyError, ZeroDivisionError):
            return None
        return self.form.format(value), self.met(value)


ROWS = {
    "create_session": "create_session",
    "append_event": "append_event\ndefault durability",
    "append_full": "append_event\nfull durability",
    "update_keys": "update_keys",
    "get_1000": "get_session\n1,000 events",
    "get_1000_read": "get_session\n1,000 events,\nand reading each",
    "get_50": "get_session\n50 events",
    "tail_of_5000": "get_session\nthe last 20 of 5,000",
    "tail_of_100": "get_session\nthe last 20 of 100",
    "tail_of_100000": "get_session\nthe last 20 of 100,000",
    "get_empty": "get_session\nno events",
    "at_once": "64 sessions at once\nappending",
    "processes": "4 processes x 16 sessions\nappending",
    "turns": "32 agents at once\nget 200 events, append 6",
    "turns_read": "32 agents at once\nget 200, read each,\nappend 6",
    "list_sessions": "list_sessions\n50 of 100,000",
    "load_memory": "memory to load\n5,000 events",
    "idle": "memory of an idle\nservice",
    "import": "time to import",
}
"""The rows of the table, and their titles."""


def faster(row: str, times: float, than: str = SQLITE, ours: str = OURS, source: str = "") -> Goal:
    """The median call takes so many times less than a peer's."""
    peer = {SQLITE: "Sqlite", MEMORY: "InMemory"}[than]
    source = source or row
    return Goal(
        row,
        f"{times:g}x faster than {peer}" if times > 1 else f"faster than {peer}",
        lambda f: f[source][than]["p50_ms"] / f[source][ours]["p50_ms"],
        lambda value: value >= times,
        "{:.1f}x",
    )


def under(row: str, figure: str, limit: float, unit: str, ours: str = OURS) -> Goal:
    """One of our own figures stays under a limit."""
    name = figure.rsplit("_", 1)[0].replace("_", " ")
    return Goal(
        row,
        f"{name} under {limit:g} {unit}",
        lambda f: f[row][ours][figure],
        lambda value: value < limit,
        f"{{:.3g}} {unit}",
    )


def rate(row: str, times: float, least: float | None = None) -> list[Goal]:
    """So many times as much a second as Sqlite, and no error."""
    goals = [
        Goal(
            row,
            f"{times:g}x the rate of Sqlite",
            lambda f: f[row][OURS]["per_s"] / f[row][SQLITE]["per_s"],
            lambda value: value >= times,
            "{:.1f}x",
        ),
        Goal(row, "no error", lambda f: f[row][OURS]["errors"], lambda n: n == 0, "{:.0f}"),
    ]
    if least is not None:
        over = lambda f: f[row][OURS]["per_s"]  # noqa: E731
        goals.append(Goal(row, f"over {least:,.0f}/s", over, lambda n: n > least, "{:,.0f}/s"))
    return goals


GOALS = [
    faster("create_session", 15),
    under("create_session", "p50_ms", 0.4, "ms"),
    faster("append_event", 15),
    under("append_event", "p50_ms", 0.3, "ms"),
    under("append_event", "p99_ms", 3, "ms"),
    Goal(
        "append_event",
        "at most 4x its statements alone",
        lambda f: f["append_event"][OURS]["p50_ms"] / f["append_event"][BARE]["p50_ms"],
        lambda value: value <= 4,
        "{:.1f}x",
    ),
    faster("append_full", 5, ours=OURS_FULL, source="append_event"),
    Goal(
        "append_full",
        "64 at once as fast as the default",
        lambda f: f["at_once"][OURS_FULL]["per_s"] / f["at_once"][OURS]["per_s"],
        lambda value: value >= 0.9,
        "{:.2f}x",
    ),
    faster("update_keys", 15),
    under("update_keys", "p50_ms", 0.3, "ms"),
    under("update_keys", "p99_ms", 3, "ms"),
    faster("get_1000", 5),
    faster("get_1000", 1, than=MEMORY),
    faster("get_1000_read", 1, than=MEMORY),
    under("tail_of_5000", "p50_ms", 1, "ms"),
    under("tail_of_100", "p50_ms", 1, "ms"),
    under("tail_of_100000", "p50_ms", 1, "ms"),
    Goal(
        "tail_of_100000",
        "the same as of 100 (1.3x)",
        lambda f: f["tail_of_100000"][OURS]["p50_ms"] / f["tail_of_100"][OURS]["p50_ms"],
        lambda value: value <= 1.3,
        "{:.2f}x",
    ),
    under("get_empty", "p50_ms", 0.15, "ms"),
    *rate("at_once", 30, least=5_000),
    under("at_once", "p99_ms", 40, "ms"),
    *rate("processes", 30),
    under("processes", "p99_ms", 50, "ms"),
    under("processes", "unfair_%", 20, "%"),
    *rate("turns", 15),
    under("turns", "loop_blocked_ms", 20, "ms"),
    under("list_sessions", "p50_ms", 3, "ms"),
    under("load_memory", "peak_x", 1.5, "x"),
    under("idle", "memory_mb", 10, "MB"),
    under("import", "time_ms", 60, "ms"),
]

"""Progress of long work, on stderr: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from projections.cli.output import tell
from projections.rebuild import Progress

__all__ = ["progress_of"]

INTERVAL_S: Final = 3.0
"""How often a line is printed where there is no terminal. What is done sooner prints none."""


@contextmanager
def progress_of(what: str, start: int = 0) -> Iterator[Progress]:
    """Tells of work that reads the log from position `start` on."""
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(what, start) as progress:
            yield progress
    else:
        yield _Lines(what, start)


class _Pace:
    """How fast work goes, from what it says of itself."""

    def __init__(self, start: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = clock()
        self._start = self._first = start
        self.events = 0
        self.share = 0.0
        self.rate = 0.0
        self.left_s: float | None = None

    def update(self, events: int, position: int, head: int) -> None:
        """Takes what work says. Fewer events than before are those of another pass."""
        now = self._clock()
        if events < self.events:
            self._began_at, self._first = now, self._start
        elapsed = now - self._began_at
        self.events = events
        self.share = (position - self._start) / max(head - self._start, 1)
        self.rate = events / elapsed if elapsed > 0 else 0.0
        done = position - self._first
        self.left_s = (head - position) * elapsed / done if done > 0 else None

    @property
    def left(self) -> str:
        """The time that is left, as 0:01:20."""
        if self.left_s is None:
            return "-:--:--"
        minutes, seconds = divmod(round(self.left_s), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class _Lines:
    """A line every few seconds."""

    def __init__(self, what: str, start: int) -> None:
        self._what = what
        self._pace = _Pace(start)
        self._told_at = time.monotonic()

    def __call__(self, events: int, position: int, head: int) -> None:
        self._pace.update(events, position, head)
        now = time.monotonic()
        if now - self._told_at < INTERVAL_S:
            return
        self._told_at = now
        pace = self._pace
        tell(
            f"{self._what}: {pace.events:,} events, {pace.share:.0%}, {pace.rate:,.0f} events/s, "
            f"{pace.left} left",
            err=True,
        )


@contextmanager
def _bar(what: str, start: int) -> Iterator[Progress]:
    # Only here: it takes a while to import, and most runs do not need it.
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bars

    pace = _Pace(start)
    shown = ("{task.fields[events]:,} events", "{task.fields[rate]:,.0f}/s", "{task.fields[left]}")
    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *(TextColumn(text) for text in shown),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        task = bars.add_task(what, total=1.0, events=0, rate=0.0, left=pace.left)

        def progress(events: int, position: int, head: int) -> None:
            pace.update(events, position, head)
            bars.update(task, completed=pace.share, events=events, rate=pace.rate, left=pace.left)

        yield progress

"""Folding a long log with two processes: this one, and a helper.

Only what folds pages by themselves can be shared: the net changes of a page say everything about
it. Pages are folded by whoever is free and applied here, in the order of the log.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

from eventstore import BulkProjection, Change, EventStore, Projection, StorageFailed, open_store
from projections.folding import PAGE_EVENTS, read_page

__all__ = ["FoldedPage", "folded_pages"]

_WORTH_A_HELPER: Final = 200_000
"""Positions: it takes a quarter of a second to start one."""
_AHEAD: Final = 4
"""How many pages may wait here, folded, for an earlier one."""
_HANDED_OVER: Final = 2


class FoldedPage(NamedTuple):
    """How many events a page has, the position it reaches, and its changes, by projection."""

    events: int
    last: int
    changes: Sequence[Sequence[Change]]


def folded_pages(
    store: EventStore, projections: Sequence[Projection], after: int, upto: int, *, helper: bool
) -> Iterator[FoldedPage]:
    """The pages of the log behind `after`, up to `upto`, folded, in order.

    With `helper` a second process folds some of them, when there are enough and it can. A program
    that asks for it must bear being imported again, by its `if __name__ == "__main__"`.

    Raises:
        StorageFailed: the helper was killed.
    """
    bulk = all(isinstance(projection, BulkProjection) for projection in projections)
    alone = not helper or not bulk or (os.cpu_count() or 1) < 2
    if alone or upto - after < _WORTH_A_HELPER:
        while after < upto:
            page = store.snapshot(partial(_fold, projections, after, upto))
            yield page
            after = page.last
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=_begin, initargs=(store.path, projections)
    ) as executor:
        try:
            yield from _shared(store, projections, executor, after, upto)
        except BrokenProcessPool as error:
            raise StorageFailed(store.path, "the process that helped to fold was killed") from error
        finally:
            executor.shutdown(cancel_futures=True)


def _shared(
    store: EventStore,
    projections: Sequence[Projection],
    executor: ProcessPoolExecutor,
    after: int,
    upto: int,
) -> Iterator[FoldedPage]:
    # Each range has at most a page of events, so it is read in one go.
    bounds = [*range(after, upto, PAGE_EVENTS), upto]
    ranges = iter(enumerate(pairwise(bounds)))
    there: dict[int, Future[FoldedPage]] = {}
    here: dict[int, FoldedPage] = {}
    begun = executor.submit(_is_ready)
    for wanted in range(len(bounds) - 1):
        while wanted not in here:
            while begun.done() and len(there) < _HANDED_OVER and (page := next(ranges, None)):
                number, (low, high) = page
                there[number] = executor.submit(_fold_there, low, high)
            awaited = there.get(wanted)
            patient = awaited is not None and (awaited.done() or len(here) >= _AHEAD)
            if not patient and (page := next(ranges, None)):
                number, (low, high) = page
                here[number] = store.snapshot(partial(_fold, projections, low, high))
            else:
                here[wanted] = there.pop(wanted).result()
        yield here.pop(wanted)


def _fold(projections: Sequence[Projection], after: int, upto: int, snapshot: Any) -> FoldedPage:
    page = read_page(projections, after, upto, snapshot)
    changes = [list(page.changes(projection)) for projection in projections]
    return FoldedPage(page.count, page.last, changes)


_opened: list[tuple[EventStore, Sequence[Projection]]] = []
"""In a helper: the store, and what it folds."""


def _begin(path: str, projections: Sequence[Projection]) -> None:
    # A Ctrl-C reaches every process of a terminal; the one that asked tells this one to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()  # folding makes no cycles, and this process does nothing else
    store = open_store(path, projections, for_rebuild=True, create=False)
    _opened.append((store, projections))


def _is_ready() -> bool:
    return True


def _fold_there(after: int, upto: int) -> FoldedPage:
    store, projections = _opened[0]
    page = store.snapshot(partial(_fold, projections, after, upto))
    return page._replace(last=upto)

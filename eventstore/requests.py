"""What callers hand to a store's threads, and how they learn what became of it."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from eventstore.errors import EventStoreError

__all__ = ["Due", "Request", "deliver", "raise_error", "settle"]

T = TypeVar("T")
Due = list[tuple[asyncio.AbstractEventLoop | None, list["Request[Any]"]]]
"""Requests whose outcomes are to be delivered, and the loop that waits. Used by one thread."""


class Request(Generic[T]):
    """One piece of work for an engine thread, and its outcome.

    The outcome reaches an awaiting task through its loop, or a blocked thread through an event.
    `on_done` is called before either, on the loop's thread when there is one: also when the task
    that waited was cancelled, but not when its loop has ended. `on_outcome` is called before that
    on the thread that commits, in commit order and in any case: with the result, None on failure.
    It must be quick, and must not raise. Where a signal's handler raises in the middle, both may be
    called once more.
    """

    __slots__ = (
        "_done",
        "_error",
        "_future",
        "_result",
        "loop",
        "on_done",
        "on_outcome",
        "settled",
        "submitted_at",
    )

    def __init__(
        self,
        on_outcome: Callable[[T | None], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        self.on_outcome = on_outcome
        self.on_done = on_done
        self.submitted_at = time.monotonic()
        self.settled = False
        """Whether its outcome is on its way to whoever waits."""
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop that waits, None when a thread does."""
        self._future: asyncio.Future[T] | None = None
        self._done: threading.Event | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    def from_loop(self) -> asyncio.Future[T]:
        """Binds the outcome to the running loop; call before handing the request over."""
        self.loop = asyncio.get_running_loop()
        self._future = self.loop.create_future()
        return self._future

    def from_thread(self) -> None:
        """Binds the outcome to a thread that will call `wait`."""
        self._done = threading.Event()

    def wait(self) -> T:
        """Blocks until the outcome is there; returns or raises it."""
        assert self._done is not None
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def succeed(self, result: T) -> None:
        """Sets the outcome; `settle` delivers it."""
        self._result, self._error = result, None

    def fail(self, error: BaseException) -> None:
        """Sets the outcome; `settle` delivers it. The error becomes this request's own."""
        if isinstance(error, StopIteration):  # which no future takes
            error = RuntimeError("a function raised StopIteration")
        # Raised to several callers, one object would gather all their tracebacks.
        self._error = copy.copy(error) if isinstance(error, EventStoreError) else error
        self._error.__cause__ = error.__cause__

    @property
    def failed(self) -> bool:
        """Whether the outcome is an error."""
        return self._error is not None

    def failed_by(self, kind: type[BaseException]) -> bool:
        """Whether the outcome is an error of a kind."""
        return isinstance(self._error, kind)

    def report(self) -> None:
        """Tells the outcome on the thread that commits."""
        if self.on_outcome is not None:
            self.on_outcome(None if self._error is not None else self._result)

    def deliver(self) -> None:
        """Hands the outcome to whoever waits, on the thread that may do so."""
        try:
            if self.on_done is not None:
                self.on_done()
        except Exception as error:
            self.fail(error)
        if self._done is not None:
            self._done.set()
        elif self._future is not None and not self._future.done():
            if self._error is not None:
                self._future.set_exception(self._error)
            else:
                self._future.set_result(self._result)  # type: ignore[arg-type]


def settle(requests: Iterable[Request[Any]], due: Due | None = None) -> None:
    """Reports outcomes in the order given, and delivers them.

    With `due` they are noted there instead, for the caller to `deliver` once it holds nothing that
    others wait for: whoever is woken takes the interpreter from this thread.
    """
    by_loop: dict[asyncio.AbstractEventLoop | None, list[Request[Any]]] = {}
    everything = list(requests)
    for request in everything:
        if request.on_outcome is not None:
            request.report()
        by_loop.setdefault(request.loop, []).append(request)
    if due is None:
        deliver(list(by_loop.items()))
    else:
        due += by_loop.items()
    for request in everything:
        request.settled = True


def deliver(due: Due, here: asyncio.AbstractEventLoop | None = None) -> None:
    """Hands outcomes to whoever waits, with one wake-up per loop; at once to the loop `here`.

    May be called again when a signal's handler has interrupted it.
    """
    while due:
        loop, waiting = due[0]
        if loop is None:
            for request in waiting:
                request.deliver()
        elif loop is here:
            _deliver_all(loop, waiting)
        else:
            # A loop that is closed has nobody left who awaits.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_deliver_all, loop, waiting)
        del due[0]


def _deliver_all(loop: asyncio.AbstractEventLoop, requests: list[Request[Any]]) -> None:
    try:
        while requests:
            requests[0].deliver()
            del requests[0]
    except BaseException:
        # A signal's handler raised, which is no reason to keep the others waiting.
        loop.call_soon(_deliver_all, loop, requests)
        raise


def raise_error(error: BaseException) -> None:
    """Raises an error where a loop calls this, and out of the loop what it does not catch there."""
    raise error

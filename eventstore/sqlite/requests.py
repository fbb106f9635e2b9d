"""What callers hand to the engine's threads, and how they learn what became of it."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from eventstore.errors import EventStoreError
from eventstore.sqlite.transaction import ReadTransaction, WriteTransaction

__all__ = ["Checkpoint", "Read", "Request", "Write", "settle"]

T = TypeVar("T")


class Request(Generic[T]):
    """One piece of work for an engine thread, and its outcome.

    The outcome reaches an awaiting task through its loop, or a blocked thread through an event.
    `on_done` is called before either, on the loop's thread when there is one: also when the task
    that waited was cancelled, but not when its loop has ended. `on_outcome` is called before that
    on the thread that commits, in commit order and in any case: with the result, None on failure.
    It must be quick, and must not raise.
    """

    __slots__ = (
        "_done",
        "_error",
        "_future",
        "_loop",
        "_result",
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
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[T] | None = None
        self._done: threading.Event | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    def from_loop(self) -> asyncio.Future[T]:
        """Binds the outcome to the running loop; call before handing the request over."""
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
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

    def report(self) -> None:
        """Tells the outcome on the thread that commits."""
        if self.on_outcome is not None:
            self.on_outcome(None if self._error is not None else self._result)

    def deliver(self) -> None:
        """Hands the outcome to whoever waits, on the thread that may do so."""
        try:
            if self.on_done is not None:
                self.on_done()
        except BaseException as error:
            self.fail(error)
        if self._done is not None:
            self._done.set()
        elif self._future is not None and not self._future.done():
            if self._error is not None:
                self._future.set_exception(self._error)
            else:
                self._future.set_result(self._result)  # type: ignore[arg-type]

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop that waits, None when a thread does."""
        return self._loop


class Read(Request[T]):
    """A function of one snapshot, which may be executed twice.

    With `brief` it may be executed on the thread of an event loop, where it gives up with TooLong.
    """

    __slots__ = ("brief", "function")

    def __init__(self, function: Callable[[ReadTransaction], T], *, brief: bool = False) -> None:
        super().__init__()
        self.function = function
        self.brief = brief


class Write(Request[T]):
    """A function that writes, executed with others in one transaction.

    It must leave the transaction as it found it when it raises an EventStoreError before its first
    write; whatever it raises later makes the engine run it again alone. `find` tells whether what
    it wrote is stored, when a commit's outcome is unknown; it is False when it wrote nothing.
    With `alone` it has a transaction of its own in any case, for work that is long. With `brief` it
    may be executed on the thread of an event loop.
    """

    __slots__ = ("alone", "brief", "find", "full", "function")

    def __init__(
        self,
        function: Callable[[WriteTransaction], T],
        *,
        find: Callable[[WriteTransaction], bool] | None = None,
        full: bool = False,
        alone: bool = False,
        brief: bool = False,
        on_outcome: Callable[[T | None], None] | None = None,
        on_done: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(on_outcome, on_done)
        self.function = function
        self.find = find
        self.full = full
        self.alone = alone
        self.brief = brief and not full


class Checkpoint(Request[None]):
    """Folds the WAL into the database file and empties it, as far as readers allow."""

    __slots__ = ()


def settle(requests: Iterable[Request[Any]]) -> None:
    """Delivers outcomes with one wake-up per event loop, in the order given."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    by_loop: dict[asyncio.AbstractEventLoop, list[Request[Any]]] = {}
    for request in requests:
        request.settled = True
        request.report()
        if request.loop is None:
            request.deliver()
        else:
            by_loop.setdefault(request.loop, []).append(request)
    for loop, waiting in by_loop.items():
        if loop is here:
            loop.call_soon(_deliver_all, waiting)
            continue
        # A loop that is closed has nobody left who awaits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_deliver_all, waiting)


def _deliver_all(requests: list[Request[Any]]) -> None:
    for request in requests:
        request.deliver()

"""What callers hand to the engine's threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from eventstore.requests import Due, Request, deliver, raise_error, settle
from eventstore.sqlite.transaction import ReadTransaction, WriteTransaction

__all__ = [
    "Checkpoint",
    "Due",
    "Read",
    "Request",
    "Rewrite",
    "Write",
    "deliver",
    "raise_error",
    "settle",
]

T = TypeVar("T")


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
        self.brief = brief


class Checkpoint(Request[bool]):
    """Folds the WAL into the database file and empties it, as far as readers allow.

    The outcome says whether it is empty.
    """

    __slots__ = ()


class Rewrite(Request[bool]):
    """Writes the whole database anew, while other writers wait.

    It is ended after `at_most_s` seconds, if that is given, or once it is `given_up`. The outcome
    says whether it was done.
    """

    __slots__ = ("at_most_s", "given_up")

    def __init__(self, at_most_s: float | None) -> None:
        super().__init__()
        self.at_most_s = at_most_s
        self.given_up = False

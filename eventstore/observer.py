"""What a backend tells of its commits, for whoever measures them."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Observer"]


class Observer(Protocol):
    """Hears of commits on the threads that make them. Must be quick, and must not raise."""

    def committed(self, requests: int, seconds: float) -> None:
        """So many requests were committed in one transaction, which took so long."""

    def retried(self, requests: int) -> None:
        """So many requests are executed again, because what they were executed in was undone."""

    def waited(self, seconds: float) -> None:
        """A commit had to wait for other writers of the database."""

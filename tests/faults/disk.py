"""A disk that loses what was not synced when the power goes."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Final, Literal, NamedTuple

__all__ = ["LOSSES", "Disk", "Loss", "Operation"]

_SECTOR: Final = 512

Files = dict[str, bytes]

Loss = Literal["none", "prefix", "one file", "torn"]
"""What survives of the operations behind the last sync of their file: none of them; the first so
many; those on one file; some sectors of some writes, in no order."""
LOSSES: Final[tuple[Loss, ...]] = ("none", "prefix", "one file", "torn")


class Operation(NamedTuple):
    """What was done to a file; `at` is an offset, a size, or whether a folder was synced too."""

    kind: Literal["create", "write", "truncate", "sync", "delete"]
    file: str
    at: int = 0
    data: bytes = b""


class Disk:
    """What is on the disk for certain, and what was handed to it since.

    A sync makes lasting what was done to that file. Which files there are becomes lasting when the
    folder is synced: until then a new file may be missing, and one that was deleted come back.
    """

    def __init__(self) -> None:
        self._lasting: dict[str, bytearray] = {}
        self._pending: list[Operation] = []

    def do(self, operation: Operation) -> None:
        """Takes one more operation."""
        if operation.kind != "sync":
            self._pending.append(operation)
        elif operation.file in self._lasting or operation.file not in self._made():
            self._sync(operation.file)
        if operation.kind in ("sync", "delete") and operation.at:
            self._sync_names()
            if operation.kind == "sync":
                self._sync(operation.file)

    def _made(self) -> set[str]:
        return {done.file for done in self._pending if done.kind == "create"}

    def _sync(self, file: str) -> None:
        for done in self._pending:
            if done.file == file:
                _apply(self._lasting, done)
        self._pending = [done for done in self._pending if done.file != file]

    def _sync_names(self) -> None:
        deleted = {d.file: n for n, d in enumerate(self._pending) if d.kind == "delete"}
        for file in deleted:
            self._lasting.pop(file, None)
        left = [d for n, d in enumerate(self._pending) if n > deleted.get(d.file, -1)]
        for done in left:
            if done.kind == "create":
                _apply(self._lasting, done)
        self._pending = [done for done in left if done.kind != "create"]

    def after(self, loss: Loss, chance: Random) -> Files:
        """The files as they may be when the power is back."""
        files = {name: bytearray(content) for name, content in self._lasting.items()}
        match loss:
            case "prefix":
                for done in self._pending[: chance.randint(0, len(self._pending))]:
                    _apply(files, done)
            case "one file":
                names = sorted({done.file for done in self._pending})
                chosen = chance.choice(names) if names else ""
                for done in self._pending:
                    if done.file == chosen:
                        _apply(files, done)
            case "torn":
                self._tear(files, chance)
        return {name: bytes(content) for name, content in files.items()}

    def _tear(self, files: dict[str, bytearray], chance: Random) -> None:
        unreachable = set()
        share = chance.random()
        for done in self._pending:
            if done.file in unreachable:
                continue
            if done.kind == "write":
                for piece in _sectors(done):
                    if chance.random() < share:
                        _apply(files, piece)
            elif chance.random() < share:
                _apply(files, done)
            elif done.kind in ("create", "delete"):
                # What comes later is in a file that nobody can find.
                unreachable.add(done.file)


def _sectors(write: Operation) -> list[Operation]:
    end = write.at + len(write.data)
    first = write.at - write.at % _SECTOR
    bounds = [write.at, *range(first + _SECTOR, end, _SECTOR), end]
    return [
        write._replace(at=low, data=write.data[low - write.at : high - write.at])
        for low, high in pairwise(bounds)
    ]


def _apply(files: dict[str, bytearray], done: Operation) -> None:
    content = files.setdefault(done.file, bytearray())
    match done.kind:
        case "write":
            end = done.at + len(done.data)
            content.extend(bytes(max(0, end - len(content))))
            content[done.at : end] = done.data
        case "truncate":
            del content[done.at :]
            content.extend(bytes(max(0, done.at - len(content))))
        case "delete":
            del files[done.file]

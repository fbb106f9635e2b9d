"""Backup and restore: copies of a running store, each verified before it has its name.

A plain copy of the file of a running service is no backup: what was written last is in the `-wal`
file beside it, and the two are never copied at the same instant. Here the copy is one snapshot of
the database, taken while others write.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from eventstore import EventStore, PathUnusable, Projection, open_store
from eventstore.location import resolve
from projections.verify import Verified, verify

__all__ = ["BackedUp", "CopyDamaged", "backup", "restore"]


class BackedUp(NamedTuple):
    """What was copied, and to where."""

    path: str
    size_bytes: int
    verified: Verified


class CopyDamaged(PathUnusable):
    """A copy does not verify; nothing was put in its place."""

    def __init__(self, path: str, verified: Verified) -> None:
        drifted = ", ".join(f"{count} in {table}" for table, count in verified.drifted.items())
        super().__init__(
            path,
            f"does not verify: {drifted} differ from the log",
            "Run `adk-eventstore verify` on the original, and see what it says.",
        )
        self.verified = verified


def backup(
    store: EventStore,
    target: str | Path,
    asynchronous: Sequence[Projection] = (),
    *,
    overwrite: bool = False,
) -> BackedUp:
    """Copies a store to a new file while others write, and verifies the copy. Blocks.

    The target has its name only once it is whole. Raises PathUnusable when it exists, unless
    `overwrite` says that it may be replaced; CopyDamaged when the copy does not verify.

    Raises:
        PathUnusable: see above, or the folder cannot be written.
        StorageFailed: the disk is full or failing.
    """
    path = Path(resolve(target))
    _refuse_existing(path, overwrite=overwrite)
    with _beside(path) as copy:
        store.copy_to(str(copy))
        verified = _verified(copy, path, store.projections, asynchronous)
        size = copy.stat().st_size
        copy.replace(path)
    return BackedUp(str(path), size, verified)


def restore(
    source: str | Path,
    target: str | Path | None,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] = (),
    *,
    overwrite: bool = False,
) -> BackedUp:
    """Puts a copy of a backup where a service looks for its database. Blocks.

    The backup is copied and verified before anything at the target is touched. Stop the services
    that have the target open: one that goes on is told that its file was replaced. The backup
    itself stays as it is.

    Raises:
        PathUnusable: the target exists and `overwrite` was not given, or cannot be written.
        CopyDamaged, NotADatabase, ForeignDatabase: the source is no backup that can be trusted.
    """
    path = Path(resolve(target))
    _refuse_existing(path, overwrite=overwrite)
    store = open_store(source, inline, create=False)
    try:
        with _beside(path) as copy:
            store.copy_to(str(copy))
            verified = _verified(copy, path, inline, asynchronous)
            size = copy.stat().st_size
            # The old log of changes must not be there when the new file gets its name: SQLite would
            # write what it holds into it.
            for companion in ("-wal", "-shm"):
                Path(f"{path}{companion}").unlink(missing_ok=True)
            copy.replace(path)
    finally:
        store.close()
    return BackedUp(str(path), size, verified)


def _refuse_existing(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise PathUnusable(str(path), "is a directory", "Name a file.")
    if path.exists() and not overwrite:
        raise PathUnusable(str(path), "exists", "Choose another name, or say that it may go.")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in a private folder beside a file, from where it can be moved in one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise PathUnusable(
            str(path), f"cannot be written: {error.strerror}", "Choose another folder."
        ) from error
    try:
        yield Path(folder) / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _verified(
    copy: Path, path: Path, inline: Sequence[Projection], asynchronous: Sequence[Projection]
) -> Verified:
    store = open_store(copy, inline, for_rebuild=True, create=False)
    try:
        verified = verify(store, inline, asynchronous)
    finally:
        store.close()
    if not verified.clean:
        raise CopyDamaged(str(path), verified)
    return verified

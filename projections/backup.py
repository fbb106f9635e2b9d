"""Backup and restore: copies of a running store, each verified before it has its name.

A plain copy of the file of a running service is no backup: what was written last is in the `-wal`
file beside it, and the two are never copied at the same instant. Here the copy is one snapshot of
the database, taken while others write.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eventstore import (
    EventStore,
    EventStoreError,
    PathUnusable,
    Projection,
    copy_file,
    open_store,
    put_in_place,
)
from eventstore.location import resolve
from projections import installed
from projections.files import new_file_beside, usable_target
from projections.rebuild import Progress
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
        if verified.log_is_whole:
            remedy = "Put the tables of the original right first: adk-eventstore verify --fix"
        else:
            remedy = "Its log is damaged. Save what can be saved of it: adk-eventstore recover"
        super().__init__(path, f"does not verify: {drifted} differ from the log", remedy)
        self.verified = verified


def backup(
    store: EventStore,
    target: str | os.PathLike[str],
    asynchronous: Sequence[Projection] = (),
    *,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> BackedUp:
    """Copies a store to a new file while others write, and verifies the copy. Blocks.

    The target has its name only once it is whole. Raises PathUnusable when it exists, unless
    `overwrite` says that it may be replaced; CopyDamaged when the copy does not verify.

    Raises:
        PathUnusable: see above, or the folder cannot be written.
        DatabaseInUse: the target is the file of a store that is open.
        StorageFailed: the disk is full or failing.
    """
    path = usable_target(target, overwrite=overwrite)
    with new_file_beside(path) as copy:
        store.copy_to(str(copy))
        verified = _verified(copy, path, store.projections, asynchronous, progress)
        size = copy.stat().st_size
        put_in_place(str(copy), str(path))
    return BackedUp(str(path), size, verified)


def restore(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] | None = (),
    *,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> BackedUp:
    """Puts a copy of a backup where a service looks for its database. Blocks.

    The backup is copied and verified before anything at the target is touched, and itself stays as
    it is: it may be in a folder that nothing can be written to, and of an older schema version,
    from which the copy is migrated. Stop the services that have the target open. `asynchronous` are
    the projections to compare too; None for those that are installed and that it has.

    Raises:
        PathUnusable: the target exists and `overwrite` was not given, or cannot be written.
        DatabaseInUse: somebody has the target open.
        CopyDamaged, NotADatabase, ForeignDatabase: the source is no backup that can be trusted.
    """
    path = usable_target(target, overwrite=overwrite)
    with new_file_beside(path) as copy:
        copy_file(source, str(copy))
        verified = _verified(copy, path, inline, asynchronous, progress, source=resolve(source))
        size = copy.stat().st_size
        put_in_place(str(copy), str(path))
    return BackedUp(str(path), size, verified)


def _verified(
    copy: Path,
    path: Path,
    inline: Sequence[Projection],
    asynchronous: Sequence[Projection] | None,
    progress: Progress,
    source: str | None = None,
) -> Verified:
    """What verifying a copy finds; errors name the file it was made of, or that it is to become."""
    name = source or str(path)
    try:
        store = open_store(copy, inline, for_rebuild=True, create=False)
        try:
            following = installed.following(store) if asynchronous is None else asynchronous
            verified = verify(store, inline, following, progress=progress)
        finally:
            store.close()
    except EventStoreError as error:
        raise _renamed(error, str(copy), name) from error.__cause__
    if not verified.clean:
        raise CopyDamaged(name, verified)
    verified.path = str(path)
    return verified


def _renamed(error: EventStoreError, old: str, new: str) -> EventStoreError:
    """The same error about the file that people know."""
    error.args = tuple(a.replace(old, new) if isinstance(a, str) else a for a in error.args)
    if getattr(error, "path", None) == old:
        error.path = new  # type: ignore[attr-defined]
    return error

"""Files that are written: where they may be, and whole before they have their name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from eventstore import PathUnusable, StorageFailed, is_database, require_own_files
from eventstore.location import MEMORY, require_file

__all__ = [
    "give_name",
    "new_file_beside",
    "private_file",
    "usable_file",
    "usable_target",
    "whole_file",
]


def usable_target(target: str | os.PathLike[str] | None, *, overwrite: bool) -> Path:
    """The real path of a file that may be written, as a service would find it.

    Raises:
        PathUnusable: it is there and may not be overwritten, it is no file, or what is kept beside
            a database.
    """
    resolved = require_file(target, "copy to")
    # What is behind these names, /dev/stdout say, is somebody else's.
    device = resolved.startswith(("/dev/", "/proc/")) and not resolved.startswith("/dev/shm/")  # noqa: S108
    if resolved == MEMORY or device:
        raise PathUnusable(resolved, "is no file", "Name a file.")
    path = Path(os.path.realpath(resolved))
    require_own_files(str(path))
    if path.is_dir():
        raise PathUnusable(str(path), "is a directory", "Name a file.")
    if path.exists() and not path.is_file():
        raise PathUnusable(str(path), "is not a regular file", "Name a file.")
    if path.exists() and not overwrite:
        remedy = "Choose another name, or say that it may be replaced (--overwrite)."
        raise PathUnusable(str(path), "exists", remedy)
    return path


def usable_file(target: str | os.PathLike[str] | None, *, overwrite: bool) -> Path:
    """As `usable_target`, for what is no database: that never replaces one.

    Raises: as `usable_target`.
    """
    path = usable_target(target, overwrite=overwrite)
    if is_database(str(path)):
        raise PathUnusable(str(path), "is a database", "Name another file.")
    return path


@contextmanager
def new_file_beside(path: Path) -> Iterator[Path]:
    """A name in a private folder beside a file, from where it can be moved in one step."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=".eventstore-", dir=path.parent)
    except OSError as error:
        raise PathUnusable(
            str(path), f"cannot be written: {error.strerror}", "Choose another folder."
        ) from error
    try:
        yield Path(folder) / "copy.sqlite3"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def private_file(path: Path, name: Path) -> Iterator[BinaryIO]:
    """A new file that its owner alone may read, and that is on the disk at last.

    Raises:
        StorageFailed: it cannot be written; said of the `name` that it is to have.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except InterruptedError:  # by whoever writes
        raise
    except OSError as error:
        raise StorageFailed(str(name), f"cannot be written ({error.strerror})") from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A private file that has its name once it is whole, in place of what had it.

    Raises:
        PathUnusable, StorageFailed: it cannot be written.
    """
    with new_file_beside(path) as copy:
        with private_file(copy, path) as file:
            yield file
        give_name(copy, path)


def give_name(copy: Path, path: Path) -> None:
    """Gives a file that is whole its name, in place of what had it.

    Raises:
        PathUnusable: it cannot have that name.
    """
    try:
        copy.replace(path)
    except OSError as error:
        raise PathUnusable(
            str(path), f"cannot be written: {error.strerror}", "Choose another path."
        ) from error

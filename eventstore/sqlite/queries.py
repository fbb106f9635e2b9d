"""Loads queries.sql: statement name to SQL."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

__all__ = ["QUERIES", "migrations"]


def _load() -> dict[str, str]:
    text = files(__package__).joinpath("queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    # Comments between statements would otherwise be prepared and sent each time.
    bodies = [re.sub(r"^--.*\n?", "", body, flags=re.MULTILINE).strip() for body in parts[2::2]]
    return dict(zip(parts[1::2], bodies, strict=True))


def migrations() -> list[str]:
    """The numbered migration scripts in order: the first makes schema version 1, and so on."""
    folder = files(__package__).joinpath("migrations")
    scripts = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return [script.read_text() for script in scripts]


QUERIES: Final = _load()

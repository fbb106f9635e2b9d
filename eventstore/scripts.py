"""Loads the SQL that lies beside a backend's code."""

from __future__ import annotations

import re
from importlib.resources import files

__all__ = ["load_migrations", "load_queries"]


def load_queries(package: str) -> dict[str, str]:
    """The statements of a package's queries.sql, by name.

    Each follows a line `-- name: ...`. Comments, which would be prepared and sent each time, and
    the semicolon at the end are left out.
    """
    text = files(package).joinpath("queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    bodies = [re.sub(r"^--.*\n?", "", body, flags=re.MULTILINE) for body in parts[2::2]]
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], bodies, strict=True)}


def load_migrations(package: str) -> list[str]:
    """A package's numbered scripts in order: the first makes schema version 1, and so on."""
    folder = files(package).joinpath("migrations")
    scripts = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".sql")),
        key=lambda entry: entry.name,
    )
    return [script.read_text() for script in scripts]

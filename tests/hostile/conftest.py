"""One filled database for all tests of this folder; nobody changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.databases import make


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make(tmp_path_factory.mktemp("hostile") / "sessions.sqlite3")
    path.chmod(0o600)
    return path

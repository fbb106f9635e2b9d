"""What people may pass as the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore import PathUnusable
from eventstore.location import MEMORY, resolve


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADK_SESSION_DB", raising=False)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, "data_science/db/adk.sqlite3"),
        ("a.db", "a.db"),
        (Path("b/a.db"), "b/a.db"),
        ("sqlite:///a.db", "a.db"),
        ("sqlite:///./a.db", "a.db"),
        ("sqlite+aiosqlite:///b/a%20c.db", "b/a c.db"),
        ("eventstore+sqlite:///a.db", "a.db"),
        ("sqlite:////tmp/a.db", "/tmp/a.db"),
        ("sqlite:///a#b;c.db", "a#b;c.db"),
        ("~x.db", "~x.db"),
        ("sqlite:b/a.db", "b/a.db"),
        ("odd:name.db", "odd:name.db"),
        (":memory:", MEMORY),
        ("sqlite://", MEMORY),
        ("sqlite:///:memory:", MEMORY),
    ],
)
def test_targets(target: str | Path | None, expected: str, tmp_path: Path) -> None:
    wanted = expected if expected == MEMORY else str(tmp_path / expected)
    assert resolve(target) == wanted


def test_the_environment_names_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADK_SESSION_DB", "sqlite:///from_env.db")
    assert resolve(None) == str(tmp_path / "from_env.db")
    assert resolve("given.db") == str(tmp_path / "given.db")


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/a.db") == str(tmp_path / "a.db")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://host/db",
        "mysql://host/db",
        "sqlite://host/a.db",
        "postgres://u:pw@h/d",
        "sqlite://u:pw@h/d",
        "file:a.db",
    ],
)
def test_urls_of_other_databases_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(PathUnusable) as raised:
        resolve(url)
    assert "pw" not in str(raised.value)


def test_a_query_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve("sqlite:///a.db?timeout=3") == str(tmp_path / "a.db")
    assert "query" in caplog.text


def test_paths_no_file_can_have() -> None:
    with pytest.raises(PathUnusable, match="NUL"):
        resolve("a\0b")
    with pytest.raises(PathUnusable, match="empty"):
        resolve("")


def test_no_path_at_all() -> None:
    with pytest.raises(TypeError):
        resolve(3)  # type: ignore[arg-type]

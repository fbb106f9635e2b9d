"""What people may pass as the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventstore import NotOnThisDatabase, PathUnusable
from eventstore.location import MEMORY, is_server, require_file, resolve, shown


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
        "postgresql:db",
        "mysql://u:pw@host/db",
        "sqlite://host/a.db",
        "sqlite://u:pw@h/d",
        "file:a.db",
    ],
)
def test_urls_of_other_databases_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(PathUnusable) as raised:
        resolve(url)
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "without_password"),
    [
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgres://u:pw@h:5433/d", "postgresql://u@h:5433/d"),
        ("postgresql+asyncpg://u:p%40pw@h,i:2/d?ssl=require", "postgresql://u@h,i:2/d?ssl=require"),
        ("postgresql+psycopg:///d?host=/run&password=pw", "postgresql:///d?host=/run"),
        ("postgresql://u@h/d?sslpassword=pw&schema=s", "postgresql://u@h/d?schema=s"),
        ("postgresql://u@h/d?user=a@b", "postgresql://u@h/d?user=a%40b"),
        # Nobody can tell where the password of these ends.
        *((f"postgresql://u:pw{each}pw@h/d", "a postgresql: URL") for each in "@/?#"),
    ],
)
def test_urls_of_servers_are_shown_without_their_secrets(url: str, without_password: str) -> None:
    resolved = resolve(url)
    assert is_server(resolved)
    assert shown(resolved) == without_password
    with pytest.raises(NotOnThisDatabase, match="pg_dump") as raised:
        require_file(url, "copy")
    assert "pw" not in str(raised.value)
    assert shown("/a/path") == "/a/path"


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

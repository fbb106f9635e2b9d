"""Everything the README tells people to type works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from adk_adapter.cli import main as commands
from eventstore import open_store
from projections import BUILT_IN
from tests.adk_programs import workplace
from tests.fresh import run_python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("ADK_SESSION_DB", "SESSIONS")}
    scripts = str(Path(sys.executable).parent)
    return {**kept, "PATH": f"{scripts}{os.pathsep}{kept['PATH']}", "PWD": str(folder)}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=120
    )


def run_code(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_python(code, folder, environment=environment(folder))


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run_as_they_stand(code: str, tmp_path: Path) -> None:
    done = run_code(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    # Every block uses the service, but for the one that is a module of its own.
    made = tmp_path / "data_science" / "db" / "adk.sqlite3"
    assert made.exists() == ("service = " in code or " as service" in code)


def test_the_fallback_falls_back(tmp_path: Path) -> None:
    (tmp_path / "data_science").write_text("a file where the folder should be")
    code = next(block for block in blocks("python") if "will not be kept" in block)
    done = run_code(code + "\nprint(type(session_service).__name__)", tmp_path)
    assert done.returncode == 0
    assert "data_science" in done.stdout
    assert done.stdout.endswith("InMemorySessionService\n")


def test_the_switch_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(block for block in blocks("python") if "SESSIONS" in block)
    code = f"import os; os.environ['SESSIONS'] = 'memory'\n{code}\nprint(session_service)"
    done = run_code(code, tmp_path)
    assert "InMemorySessionService" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_import_through_a_package_of_ones_own(tmp_path: Path) -> None:
    package = tmp_path / "data_science" / "db"
    package.mkdir(parents=True)
    (line,) = [block for block in blocks("python") if "as DatabaseSessionService" in block]
    (package / "__init__.py").write_text(line)
    code = "from data_science.db import DatabaseSessionService; DatabaseSessionService()"
    assert run_code(code, tmp_path).returncode == 0
    assert (package / "adk.sqlite3").exists()


@pytest.mark.parametrize("name", ["services.yaml", "services.py"])
def test_adk_run_finds_the_service(name: str, tmp_path: Path) -> None:
    place = workplace(tmp_path)
    (place.agent / "services.yaml").unlink()
    candidates = blocks("yaml" if name.endswith("yaml") else "python")
    (lines,) = [block for block in candidates if "scheme:" in block or "register()" in block]
    assert len([line for line in lines.splitlines() if line]) == 2
    (place.agent / name).write_text(lines)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    (arguments,) = [words[1:] for words in commands if words[:2] == ["adk", "run"]]
    done = place.adk(*arguments, typed="exit\n")
    assert done.returncode == 0, done.stderr
    assert place.database.exists()


def test_sql_and_rebuild(tmp_path: Path) -> None:
    code = blocks("python")[0]
    assert run_code(code, tmp_path).returncode == 0
    with closing(sqlite3.connect(tmp_path / "data_science/db/adk.sqlite3")) as connection:
        for (sql,) in [(s,) for block in blocks("sql") for s in block.splitlines()]:
            connection.execute(sql)
    (command,) = [block for block in blocks("sh") if "rebuild-projections" in block]
    said = ""
    for line in command.splitlines():
        done = run(line.split(), tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        said += done.stdout
    assert "state: 0 rows" in said


@pytest.mark.parametrize("page", ["retention.md"])
def test_sql_of_the_docs(page: str, tmp_path: Path) -> None:
    made = tmp_path / "a.sqlite3"
    open_store(made, BUILT_IN).close()
    text = (ROOT / "docs" / page).read_text()
    statements = re.findall(r"^```sql\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert statements
    with closing(sqlite3.connect(made)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is what this is about")
def test_make_runs_the_commands_that_stand_beside_it(tmp_path: Path) -> None:
    (plain,) = [block for block in blocks("sh") if "pip install" in block]
    (verbs,) = [block for block in blocks("sh") if "make demo" in block]
    said = "\n".join(
        run(["make", "-n", "-B", *line.split()[1:]], ROOT).stdout for line in verbs.splitlines()
    )
    for command in plain.splitlines():
        assert command in said
    bench = next(block for block in blocks("sh") if "bench" in block)
    assert "-m benchmarks" in run([*bench.split(), "-n"], ROOT).stdout


@pytest.mark.parametrize("page", PAGES[2:], ids=lambda page: page.name)
def test_python_blocks_of_the_docs_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        done = run_code(code, tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), code


def test_the_commands_of_the_guide_to_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_files = ROOT / "tests" / "adk_adapter" / "old_files"
    shutil.copy(old_files / "sqlite-1.39.1.db", tmp_path / "old.db")
    agent = tmp_path / "agents" / "shop" / ".adk"
    agent.mkdir(parents=True)
    shutil.copy(old_files / "sqlite-1.22.1.db", agent / "session.db")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "migration.md").read_text()
    said = ""
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "adk-eventstore"
            done = CliRunner().invoke(commands, arguments)
            assert done.exit_code == 0, done.output
            said += done.output
    assert "4 sessions taken, 15 events" in said


def test_the_contract_as_the_docs_show_it(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "test_mine.py").write_text(code)
    options = ["-q", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-k", "test_create"]
    done = run([sys.executable, "-m", "pytest", *options, "test_mine.py"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target

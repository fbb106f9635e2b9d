"""The documentation is whole, and what it tells people to type works.

Programs in it are run by tests/test_readme.py, commands of docs/commands.md by test_cli.py.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from google.adk.events import Event, EventActions
from google.genai import types

import eventstore
from adk_adapter import DatabaseSessionService
from projections import UsageProjection
from projections.cli import main
from tests.fresh import run_python
from tests.test_readme import environment

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
PACKAGES = ("adk_adapter", "adk_adapter.testing", "projections", "eventstore")
TYPED = ("quickstart.md", "operations.md", "cookbook.md", "damage.md")
NOT_RUN = ("pip install ",)
"""`make test-system` does that, in an empty environment."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database where the service looks, which has one of everything."""
    folder = tmp_path_factory.mktemp("docs")
    asyncio.run(_fill(folder / "data_science" / "db" / "adk.sqlite3"))
    return folder


async def _fill(path: Path) -> None:
    call = types.Part.from_function_call(name="look", args={"at": "it"})
    text = types.Part(text="a penguin")
    usage = types.GenerateContentResponseUsageMetadata(total_token_count=7)
    async with DatabaseSessionService(path, projections=[UsageProjection()]) as service:
        state = {"step": 1, "user:address": {"city": "Bern"}, "app:release": 1}
        session = await service.create_session("shop", "ada", "chat", state)
        for step, part in enumerate((text, call), 2):
            event = Event(
                author="agent",
                invocation_id="i",
                content=types.Content(role="model", parts=[part]),
                actions=EventActions(state_delta={"step": step}),
                usage_metadata=usage,
                error_code="OTHER",
            )
            await service.append_event(session, event)
        await service.create_session("shop", "ada", "gone")
        await service.delete_session("shop", "ada", "gone")
        old = await service.create_session("shop", "bob", "old")
        await service.append_event(old, Event(author="user", timestamp=1_600_000_000))
        await service.usage()


def commands() -> Iterator[tuple[str, str]]:
    for page in TYPED:
        for block in blocks(page, "sh"):
            for line in block.splitlines():
                if not line.startswith(NOT_RUN):
                    yield page, line


def test_commands_work_in_the_order_they_are_told(place: Path) -> None:
    (program,) = [code for code in blocks("quickstart.md", "python") if "Counting" in code]
    said = [run_python(program, place).stdout for _ in range(2)]
    assert said == ["You have spoken 1 times.\n", "You have spoken 2 times.\n"]
    removes = [(page, line) for page, line in commands() if line.startswith("rm ")]
    last = ""
    for page, line in [*(each for each in commands() if each not in removes), *removes]:
        if page != last:  # each page is followed from its beginning
            for copy in (place / "sessions.backup", place / "monday.backup"):
                copy.unlink(missing_ok=True)
        last = page
        if line.startswith("sqlite3 "):  # the shell may not be there
            _, path, sql = shlex.split(line)
            uri = path if path.startswith("file:") else f"file:{path}"
            uri = uri.replace("file:", f"file:{place}/")
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                assert connection.execute(sql).fetchall(), (page, line)
            continue
        done = subprocess.run(
            line, shell=True, cwd=place, env=environment(place), capture_output=True, text=True
        )
        assert done.returncode == 0, (page, line, done.stdout, done.stderr)
    assert list((place / "data_science" / "db").iterdir()) == []
    asyncio.run(_fill(place / "data_science" / "db" / "adk.sqlite3"))


@pytest.mark.parametrize("sql", blocks("cookbook.md", "sql"), ids=lambda sql: sql.split("\n")[0])
def test_each_query_finds_something(place: Path, sql: str) -> None:
    with closing(sqlite3.connect(place / "data_science" / "db" / "adk.sqlite3")) as connection:
        if sql.startswith("UPDATE"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only: UPDATE refused"):
                connection.execute(sql)
            return
        rows = connection.execute(sql).fetchall()
    assert rows
    assert all(any(value is not None for value in row) for row in rows)


def test_views_and_tables_of_the_cookbook_are_those_there_are(place: Path) -> None:
    with closing(sqlite3.connect(place / "data_science" / "db" / "adk.sqlite3")) as connection:
        names = {
            kind: {
                name
                for (name,) in connection.execute(
                    "SELECT name FROM sqlite_schema WHERE type = ? AND name NOT LIKE 'sqlite_%'",
                    (kind,),
                )
            }
            for kind in ("view", "table")
        }
        for view in names["view"] - {"adk_usage"}:
            (row,) = re.findall(rf"^\| `{view}` \|.*$", PAGES["cookbook.md"], re.MULTILINE)
            columns = [each[0] for each in connection.execute(f"SELECT * FROM {view}").description]
            assert set(columns) <= set(re.findall(r"`(\w+)`", row)), view
    for name in names["view"] | names["table"] - {"usage"}:
        assert f"`{name}`" in PAGES["cookbook.md"], name


def test_the_reference_is_current() -> None:
    sys.path.insert(0, str(DOCS))
    try:
        pages = importlib.import_module("make_reference").pages()
    finally:
        sys.path.remove(str(DOCS))
    assert set(pages) == set((DOCS / "reference").glob("*.md"))
    for path, text in pages.items():
        assert path.read_text() == text, "run: make docs"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_entry(package: str) -> None:
    page = (DOCS / "reference" / f"{package}.md").read_text()
    for name in importlib.import_module(package).__all__:
        assert f"\n## {name}\n" in page, name


def test_every_error_has_a_remedy() -> None:
    remedies = PAGES["operations.md"].partition("## Every error")[2]
    for name in eventstore.errors.__all__:
        assert f"`{name}`" in remedies, name
    for name in ("StaleSessionError", "SessionNotFoundError", "AlreadyExistsError"):
        assert f"`{name}`" in remedies, name


def _all_commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from _all_commands(each, (*words, name))
    else:
        yield words


def test_every_command_is_described() -> None:
    text = " ".join(PAGES.values())
    found = list(_all_commands(main, ()))
    assert len(found) > 5
    for words in found:
        assert " ".join(words) in text, words


def test_every_verb_of_make_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    others = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")}
    for page, text in {**PAGES, **others}.items():
        shell = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
        typed = re.findall(r"^make ([a-z-]+)", shell, re.MULTILINE)
        for verb in [*typed, *re.findall(r"`make ([a-z-]+)", text)]:
            assert f"\n{verb}:" in makefile, (page, verb)


def test_the_readme_lists_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in PAGES:
        assert f"(docs/{name})" in readme, name
    for package in PACKAGES:
        assert f"(docs/reference/{package}.md)" in readme, package


def test_the_commands_of_the_guarantees_are_there() -> None:
    """They take minutes; what they do in short is tested where they are."""
    page = (ROOT / "docs" / "guarantees.md").read_text()
    lines = re.findall(r"^python -m (tests\.\S+)(.*)$", page, re.MULTILINE)
    assert len(lines) == 5
    for module, options in lines:
        said = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
        assert all(option in said for option in re.findall(r"--\S+", options)), module


def test_commands_for_contributors_are_there() -> None:
    """`make check` runs this test, so it is not run here; the others are, or what they name is."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()
    for line in lines:
        program, *arguments = line.replace(".venv/bin/python", sys.executable).split()
        if program == "make":
            arguments.append("-n")
        elif "pytest" in arguments:
            arguments.append("--collect-only")
        subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, check=True, timeout=60)
    assert len(lines) > 4


def test_statements_for_a_server_are_printed() -> None:
    lines = [line for block in blocks("postgresql.md", "sh") for line in block.splitlines()]
    printing = [shlex.split(line)[1:] for line in lines if line.startswith("adk-eventstore ddl")]
    assert len(printing) == 2
    for arguments in printing:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0
        assert "CREATE TABLE" in done.output

"""The arrow of imports: adk_adapter -> projections -> eventstore, and nothing the other way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "eventstore": {"eventstore"},
    "projections": {"eventstore", "projections"},
    "adk_adapter": {"eventstore", "projections", "adk_adapter", "google", "pydantic_core"},
}
FIRST_PARTY = set(MAY_IMPORT)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_the_direction_of_imports(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            top = name.partition(".")[0]
            if top in FIRST_PARTY or top == "google":
                assert top in MAY_IMPORT[package], f"{path} imports {name}"


def test_only_the_sqlite_backend_imports_its_driver() -> None:
    for path in (ROOT / "eventstore").rglob("*.py"):
        if path.parent.name != "sqlite":
            assert "sqlite3" not in set(imported(path)), path


def test_the_store_and_its_command_start_without_adk() -> None:
    program = "import sys, projections.cli; assert 'google.adk' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_every_public_name_is_there_and_documented(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        thing = getattr(module, name)
        assert thing.__doc__ or not isinstance(thing, type | FunctionType), name


@pytest.mark.parametrize(
    "module", [p for package in MAY_IMPORT for p in (ROOT / package).rglob("*.py")], ids=str
)
def test_modules_list_what_they_offer(module: Path) -> None:
    tree = ast.parse(module.read_text())
    offered = {
        element.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
        and isinstance(node.value, ast.List)
        for element in node.value.elts
        if isinstance(element, ast.Constant)
    }
    defined = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    assert defined <= offered, defined - offered


def test_importing_the_service_loads_no_backend() -> None:
    """One that is not used would only take time, and that of a server need not be installed."""
    code = (
        "import sys; from adk_adapter import DatabaseSessionService; "
        "print([name for name in sys.modules if 'eventstore.sqlite' in name or 'psycopg' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr

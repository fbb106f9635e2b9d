"""Every example does what it says, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Place
from tests.fresh import run_python

ROOT = Path(__file__).parents[1]
SAID = {
    "basic": "counting: You have spoken 1 times.\n",
    "state_scopes": """\
in the run:        {'topic': 'whales', 'user:language': 'fr', 'app:release': 2, 'temp:draft': '...'}
loaded again:      {'topic': 'whales', 'user:language': 'fr', 'app:release': 2}
her next session:  {'user:language': 'fr', 'app:release': 2}
another user:      {'app:release': 2}
set from outside:  {'k': 1, 'app:release': 2}
""",
    "restart": """\
step 1 is stored
step 2 is stored
step 3 is stored
step 4 is stored
step 5 is stored
the process ended with -9
found 5 events, and the state {'step': 5}
and it goes on: the database is clean: True
""",
    "several_users": """\
20 sessions, 220 events
the second tab is behind: it loads the session again
the first tab now has: ['first tab', 'second tab', 'first tab']
""",
    "history": """\
the last two events: ['user', 'agent']
the state: {'price': 75}
who set the price:
  price = 100  session_created  \n\
  price = 90   adk_event        agent
  price = 70   adk_event        user
  price = 80   adk_event        agent
  price = 75   state_set        \n\
""",
    "maintenance": """\
20 sessions, 220 events
clean: True
backed up: 220 events
removed 15 sessions, 180 events
done: rebuild-projections --db maintenance.sqlite3
done: adk-eventstore verify --db maintenance.sqlite3
""",
}


def run(name: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    program = f"import runpy; runpy.run_module('examples.{name}', run_name='__main__')"
    return run_python(program, folder, *arguments, environment=environment)


@pytest.mark.skipif(sys.platform == "win32", reason="one of them shows SIGKILL")
@pytest.mark.parametrize("name", SAID)
def test_what_it_says_is_so(name: str, tmp_path: Path) -> None:
    done = run(name, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == SAID[name]


def test_the_basic_one_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    run("basic", tmp_path)
    assert run("basic", tmp_path).stdout == "counting: You have spoken 2 times.\n"


def test_the_one_for_postgresql(tmp_path: Path, postgres: Place) -> None:
    assert "postgresql://" in run("postgresql", tmp_path).stderr
    done = run("postgresql", tmp_path, postgres.target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sees 3 events and {'step': 3}\nclean: True" in done.stdout


def test_each_is_listed_and_says_how_it_is_started() -> None:
    programs = {path.stem for path in (ROOT / "examples").glob("[a-z]*.py")}
    assert programs == {*SAID, "postgresql"}
    page = (ROOT / "docs" / "examples.md").read_text()
    for name in programs:
        assert f"python -m examples.{name}" in (ROOT / "examples" / f"{name}.py").read_text()
        assert re.search(rf"\(\.\./examples/{name}\.py\)", page)

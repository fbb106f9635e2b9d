"""Programs as people run them, in processes that begin at once.

Importing ADK takes more than a second, and every program in the documentation begins with it. So
each is executed in a fork of a process that has imported ADK, and done nothing else: it has an
interpreter, a working directory, an environment and an end of its own.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["run_python"]

_ROOT = Path(__file__).parents[1]
_SECONDS_MAX = 120


def run_python(
    code: str,
    folder: Path,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    name: str = "<string>",
) -> subprocess.CompletedProcess[str]:
    """Executes a program in a folder, as `python -c` would; a ResourceWarning is an error."""
    environment = dict(os.environ if environment is None else environment)
    words = [name, *map(str, arguments)]
    if not hasattr(os, "fork"):
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", code, *words[1:]]
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SECONDS_MAX,
        )
    with tempfile.TemporaryDirectory() as told:
        order = {
            "code": code,
            "folder": str(folder),
            "arguments": words,
            "environment": environment,
            "told": told,
        }
        server = _server()
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        exit_code = int(server.stdout.readline())
        said = [Path(told, name).read_text("utf-8") for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(words, exit_code, *said)


@functools.cache
def _server() -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve() -> None:
    import google.adk.agents
    import google.adk.apps
    import google.adk.runners
    import google.adk.sessions  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if not (child := os.fork()):
            _execute(**order)
            return  # and ends as every program does
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _execute(
    code: str, folder: str, arguments: list[str], environment: dict[str, str], told: str
) -> None:
    signal.alarm(_SECONDS_MAX)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, name in enumerate(("stdout", "stderr"), 1):
        with Path(told, name).open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv[:] = arguments
    # What the tests' own package brings is not there, and what PYTHONPATH names is.
    sys.path[0:1] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    warnings.filterwarnings("error", category=ResourceWarning)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(code, arguments[0], "exec"), main.__dict__)


if __name__ == "__main__":
    _serve()

"""A process that outlives the tests by a moment: it ends the servers in a folder and removes it.

Run with the folder as its argument, by `server.py` only. It waits for a byte on its input, or for
the end of it: so also a test run that is killed leaves neither a server nor a file behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

STOP_SECONDS = 10


def servers(folder: Path) -> list[int]:
    """Process ids of the servers that run on data in the folder."""
    found = []
    for noted in folder.glob("*/postmaster.pid"):
        try:
            pid = int(noted.read_text().splitlines()[0])
            # One that was killed leaves its note behind, and its id may be somebody else's by now.
            if Path("/proc/self").exists():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if os.fsencode(noted.parent) not in command:
                    continue
            found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        except (IndexError, ValueError):
            found.append(0)  # it is just writing it
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    for ignored in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read(1)
    deadline = time.monotonic() + STOP_SECONDS
    # At once, with all connections cut: nobody reads this data again.
    how = signal.SIGQUIT
    while running := servers(folder):
        for pid in running:
            try:
                if pid:
                    os.kill(pid, how)
            except ProcessLookupError:
                continue
        time.sleep(0.02)
        if time.monotonic() > deadline:
            how = signal.SIGKILL
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

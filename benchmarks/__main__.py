"""Measures this service and ADK's own, and prints what was wanted and what came of it."""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import print_report
from benchmarks.run import measure


def main() -> int:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run, not to be believed")
    parser.add_argument("--seed", type=int, default=0, help="of events and ids (default: 0)")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    options = parser.parse_args()
    kept = options.json or Path(".benchmarks") / time.strftime("%Y%m%d-%H%M%S.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Next to the JSON, because a temporary directory is often in memory,
    # where a commit that waits for the disk would cost nothing.
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="databases-") as folder:
        run = measure(Path(folder), quick=options.quick, seed=options.seed)
    run = {"command": f"python -m benchmarks --seed {options.seed}", **run}
    kept.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    print_report(run)
    print(f"Kept in {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

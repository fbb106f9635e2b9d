"""Runs the benchmarks, keeps their JSON and prints the comparison."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchmarks.report import print_report

HERE = Path(__file__).parent


def main() -> int:
    """Measure, keep, compare; the exit status is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few rounds")
    parser.add_argument("--json", type=Path, help="where to keep the numbers")
    options = parser.parse_args()
    kept = options.json or Path(".benchmarks") / time.strftime("%Y%m%d-%H%M%S.json")
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Next to the JSON, because a temporary directory is often in memory,
    # where a commit that waits for the disk would cost nothing.
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix="databases-") as databases:
        arguments = [
            "--benchmark-only",
            "--benchmark-quiet",
            f"--benchmark-json={kept}",
            f"--databases={databases}",
            f"--config-file={HERE / 'pytest.ini'}",
            str(HERE / "bench_service.py"),
        ]
        status = pytest.main([*arguments, "--quick"] if options.quick else arguments)
    if status == pytest.ExitCode.OK:
        print_report(kept)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

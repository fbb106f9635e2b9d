"""Power cuts at random moments: a short run of `python -m tests.faults.power`."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.faults.crash import Violation
from tests.faults.disk import Disk, Operation
from tests.faults.power import power

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no forkserver")


def test_synced_writes_survive_a_power_cut_and_the_others_end_at_a_commit(tmp_path: Path) -> None:
    figures = power(tmp_path, runs=4, cuts=3, seed=20, commits=60)
    assert figures.runs == 4
    assert figures.cuts == 4 * 3 * 4
    assert figures.acknowledged > 4 * 60


# The oracle finds what it is there to find.


def test_a_disk_that_only_says_it_synced_is_found_out(tmp_path: Path) -> None:
    def do(disk: Disk, operation: Operation) -> None:
        if operation.kind != "sync":
            honest(disk, operation)

    honest = Disk.do
    with (
        patch.object(Disk, "do", do),
        pytest.raises(Violation, match=r"lost: |not a SQLite database"),
    ):
        power(tmp_path, runs=1, cuts=5, seed=20, commits=40)

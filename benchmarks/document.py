"""Writes the kept results into docs/benchmarks.md, between its markers.

python -m benchmarks.document
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import growth, postgres, report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PLOT = ROOT / "docs" / "growth.svg"


def document(page: str) -> str:
    """The page with the tables of the kept results."""
    parts = {"table": _table(), "growth": _growth(), "postgres": _postgres()}
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"the page has no {begin.strip()}"
        page = before + begin + "\n" + "\n".join(lines) + "\n\n" + end + after
    return page


def _table() -> list[str]:
    run = _kept("table.json")
    rows = (["<br>".join(lines) for lines in columns] for columns in report.rows(run["figures"]))
    notes = [f"- {line}" for line in report.notes(run)]
    return [*_markdown(report.HEADINGS, rows), "", f"`{run['command']}`:", "", *notes]


def _growth() -> list[str]:
    run = _kept("growth.json")
    points = run["points"]
    facts = ", ".join(f"{name}: {value}" for name, value in run["facts"].items())
    return [
        *_markdown(growth.RATIO_HEADINGS, growth.ratios(points)),
        "",
        "Medians of `append_event` / of `get_session` with the last 20 events:",
        "",
        *_markdown(growth.TIME_HEADINGS, growth.times(points)),
        "",
        f"`{run['command']}`: {facts}",
    ]


def _postgres() -> list[str]:
    run = _kept("postgres.json")
    facts = ", ".join(f"{name}: {value}" for name, value in run["facts"].items())
    cells = ([cell.replace("\n", "<br>") for cell in row] for row in postgres.rows(run["figures"]))
    return [
        *_markdown(postgres.HEADINGS, cells),
        "",
        *_markdown(postgres.GROWTH_HEADINGS, postgres.growth_rows(run["growth"])),
        "",
        f"`{run['command']}`: {facts}",
    ]


def _kept(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _markdown(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(headings), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(cells)} |" for cells in lines]


if __name__ == "__main__":
    PAGE.write_text(document(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    growth.plot(_kept("growth.json")["points"], PLOT)

"""Counts what was tried, and writes docs/robustness.md: WRITE_ROBUSTNESS=1 python -m pytest -m "" tests/robustness.

One file at a time does as well: the rows of the others stay.
"""

from __future__ import annotations

import ast
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ..conftest import ROOT

DOCUMENT = ROOT / "docs" / "robustness.md"
BEGIN, END = "<!-- written by tests/robustness -->", "<!-- end -->"
COLUMNS = ("tried", "clear", "documented", "bad")
_found: dict[str, Counter] = defaultdict(Counter)
_tries: dict[str, int] = {}


@pytest.fixture
def tried(request):
    """``tried(n)`` says how many tries a test stands for that makes more than one."""

    def call(number: int) -> None:
        _tries[request.node.nodeid] = number

    return call


def section(path: str) -> str:
    """The first sentence of a test file."""
    return ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))).split("\n")[0].rstrip(".")


def pytest_runtest_logreport(report) -> None:
    if "tests/robustness/" not in report.nodeid or (report.when != "call" and report.outcome == "passed"):
        return
    path, tries = report.nodeid.split("::")[0], _tries.get(report.nodeid, 1)
    _found[path]["tried"] += tries
    _found[path][{"passed": "clear", "skipped": "documented", "failed": "bad"}[report.outcome]] += tries


def pytest_sessionfinish(session) -> None:
    if not os.environ.get("WRITE_ROBUSTNESS"):
        return
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    rows = {row.split("](../")[1].split(")")[0]: row for row in table.splitlines() if "](../" in row}
    for path, found in _found.items():
        numbers = " | ".join(f"{found[key]:,}" for key in COLUMNS)
        rows[path] = f"| [{section(path)}](../{path}) | {numbers} |"
    cells = [row.replace(",", "").split(" | ")[1:] for row in rows.values()]
    whole = (f"{sum(int(row[place].strip(' |')) for row in cells):,}" for place in range(len(COLUMNS)))
    head = [f"| what | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines = [*head, *(rows[path] for path in sorted(rows)), f"| all | {' | '.join(whole)} |"]
    text = "\n".join([before + BEGIN, "", *lines, "", END + after])
    Path(DOCUMENT).write_text(text, encoding="utf-8")

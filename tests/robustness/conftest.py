"""Counts what was tried, and writes docs/robustness.md: WRITE_ROBUSTNESS=1 python -m pytest tests/robustness."""

from __future__ import annotations

import ast
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from ..conftest import ROOT

DOCUMENT = ROOT / "docs" / "robustness.md"
BEGIN, END = "<!-- written by tests/robustness -->", "<!-- end -->"
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
    _found[path]["bad" if report.outcome == "failed" else "left out" if report.outcome == "skipped" else "clear"] += (
        tries
    )


def pytest_sessionfinish(session) -> None:
    if not os.environ.get("WRITE_ROBUSTNESS"):
        return
    rows = ["| what | tried | clear | bad |", "|---|---|---|---|"]
    for path in sorted(_found):
        found = _found[path]
        rows.append(f"| [{section(path)}](../{path}) | {found['tried']:,} | {found['clear']:,} | {found['bad']:,} |")
    whole = sum(_found.values(), Counter())
    rows.append(f"| all | {whole['tried']:,} | {whole['clear']:,} | {whole['bad']:,} |")
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join([before + BEGIN, "", *rows, "", END + rest.split(END)[1]])
    Path(DOCUMENT).write_text(text, encoding="utf-8")

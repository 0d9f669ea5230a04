"""Each numbered equation that a model is built from is named in the docstring of the code that computes it."""

from __future__ import annotations

import ast
import re

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "recbole_diffusion"
SHARED = ["model/approximator.py", "model/base.py"]
WHERE = {
    "diffurec": (["model/diffurec.py", *SHARED], {15, 19, 24, 25, 26}),
    "diffurecsys": (["model/diffurecsys.py", *SHARED], {14, 15, 16, 17, 26}),
    "seqdiffrec": (["model/seqdiffrec.py"], {6, 7, 14, 15, 16, 18}),
    "dreamrec": (["model/dreamrec.py"], {10, 14, 15, 16}),
    "cddrec": (["model/cddrec.py", "analysis/plateau.py"], {2, 3, 4, 5, 6, 7, 8, 9}),
}


def equations(path) -> set[int]:
    """Numbers of the equations in the docstrings of functions; those of modules and classes compute nothing."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for numbers in re.findall(r"Eq\. (\d+(?:(?:, | and |, and )\d+)*)", ast.get_docstring(node) or ""):
                found |= {int(number) for number in re.findall(r"\d+", numbers)}
    return found


@pytest.mark.parametrize("name", WHERE)
def test_every_equation_is_found_by_its_number(name):
    files, wanted = WHERE[name]
    assert wanted <= set().union(*(equations(PACKAGE / file) for file in files))

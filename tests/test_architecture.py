"""The house against its pictures and its rules: docs/architecture.md, the size of files and functions, the imports."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "recbole_diffusion"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


ROOMS = {room_of(path) for path in FILES} - {"__init__"}


def imports_of(path):
    """Full names of what a file imports, inside functions, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = list(path.relative_to(ROOT).with_suffix("").parts[: -node.level]) if node.level else []
            module = ".".join([*dots, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_rooms(path) -> set[str]:
    """Other rooms of this package that a file imports."""
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("recbole_diffusion.")}
    return (rooms & ROOMS) - {room_of(path)}


def reachable(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Every pair that a chain of edges connects."""
    found = set(edges)
    while more := {(a, d) for a, b in found for c, d in found if b == c} - found:
        found |= more
    return found


def drawn_rooms() -> tuple[set[str], set[tuple[str, str]]]:
    """Rooms and arrows of the second picture."""
    picture = DOCUMENT.split("```mermaid\n")[2].split("```")[0]
    edges = set(re.findall(r"^ *(\w+)(?:\[.*?\])? --> (\w+)", picture, re.MULTILINE))
    return set(re.findall(r"^ *(\w+)[\[ ]", picture, re.MULTILINE)) - {"flowchart"}, edges


def test_the_picture_of_the_rooms_is_the_tree():
    rooms, edges = drawn_rooms()
    assert rooms == ROOMS
    imports = {(room_of(path), other) for path in FILES if room_of(path) in ROOMS for other in imported_rooms(path)}
    assert reachable(edges) == reachable(imports)
    assert edges <= imports and all((room, room) not in reachable(imports) for room in ROOMS)


def test_every_file_that_the_documents_name_is_there():
    text = DOCUMENT + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"[\w*/]+/[\w*]*\.\w+|\b\w+\.py\b|\b\w+/", text)
    named = {path for path in paths if not path.startswith("name/") and path != "dataset/name/name.inter"}
    assert len(named) > 15
    for path in named:
        assert any(list(root.glob(path.rstrip("/"))) for root in (ROOT, PACKAGE)), f"{path} is not there"


def test_diffusion_utils_import_torch_alone():
    for path in (PACKAGE / "diffusion_utils").glob("*.py"):
        ours = {name for name in imports_of(path) if name.split(".")[0] not in sys.stdlib_module_names}
        assert all(name.split(".")[0] == "torch" or name.startswith("recbole_diffusion.diffusion") for name in ours)


def test_a_model_imports_no_other_model():
    for path in (PACKAGE / "model").glob("*.py"):
        assert not [name for name in imports_of(path) if name.startswith("recbole_diffusion.model")], path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 50, f"{node.name} is long"

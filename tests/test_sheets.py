"""The models' sheets (docs/models): every key, value, function, test and file that they name exists."""

from __future__ import annotations

import ast
import re

import pytest
import yaml

from recbole_diffusion import MODELS
from recbole_diffusion.config.keys import KEYS
from recbole_diffusion.registry import props_files, read_yaml

from .conftest import ROOT

FOLDER = ROOT / "docs" / "models"
SHEETS = sorted(FOLDER.glob("*.md"))
MODEL_OF = {name.lower(): name for name in MODELS}


@pytest.fixture(params=SHEETS, ids=lambda path: path.stem)
def sheet(request):
    return request.param


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def defaults(model: str) -> dict:
    """The props that a model reads, one file above the other."""
    merged = {}
    for path in props_files(model, "none"):
        merged.update(read_yaml(path))
    return merged


def tables(text: str) -> list[dict[str, str]]:
    """The rows of every table, by the words of its head."""
    rows, head = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head = cells
        elif not set(line) <= set("|-: "):
            rows.append(dict(zip(head, cells, strict=True)))
    return rows


def is_defined(reference: str) -> bool:
    """Whether ``path.py::Class.method`` names something that the file defines."""
    path, name = reference.split("::")
    file = ROOT / path if path.startswith("tests/") else ROOT / "recbole_diffusion" / path
    if not file.is_file():
        return False
    body = ast.parse(file.read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def test_every_model_has_a_sheet_and_the_site_has_them_all():
    assert {path.stem for path in SHEETS} == set(MODEL_OF)
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {f"{name}: models/{sheet}.md" for sheet, name in MODEL_OF.items()} <= {
        line.strip(" -") for line in site.splitlines()
    }


def test_every_function_and_test_named_exists(sheet):
    references = [word for word in quoted(sheet.read_text(encoding="utf-8")) if "::" in word]
    assert len(references) > 10
    assert [reference for reference in references if not is_defined(reference)] == []


def test_every_file_named_exists(sheet):
    text = sheet.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links and not [link for link in links if not (sheet.parent / link.split("#")[0]).exists()]
    paths = [word for word in quoted(text) if "/" in word and "::" not in word and " " not in word]
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_key_is_one_of_the_model_and_its_value_is_allowed(sheet):
    text, own = sheet.read_text(encoding="utf-8"), defaults(MODEL_OF[sheet.stem])
    named = 0
    for word in quoted(text):
        if key := re.fullmatch(r"([A-Za-z_]+): (.+)", word):
            name, value = key[1], yaml.safe_load(key[2])
            assert name in KEYS, word
            KEYS[name].check(value)
        elif re.fullmatch(r"[a-z]+(_[a-z]+)+", word):
            name = word
        else:
            continue
        assert name in own or name == "mask_history", f"{word} is no key of this model"
        named += 1
    assert named > 10


def test_the_first_value_of_a_key_in_the_table_is_its_default(sheet):
    own = defaults(MODEL_OF[sheet.stem])
    rows = [row for row in tables(sheet.read_text(encoding="utf-8")) if "key" in row]
    assert len(rows) >= 9
    for row in rows:
        for word in quoted(row["key"]):
            name, value = word.split(": ")
            assert own[name] == yaml.safe_load(value), word


def test_every_row_says_where_it_stands_and_what_proves_it(sheet):
    for row in tables(sheet.read_text(encoding="utf-8")):
        if "test" in row:
            assert "::" in row["ours"], row
            assert "::test_" in row["test"] or row["test"] == "the same", row


def test_a_name_that_does_not_exist_is_noticed():
    assert is_defined("model/cddrec.py::CDDRec.contrast") and is_defined("tests/test_sheets.py::is_defined")
    for reference in ("model/cddrec.py::CDDRec.contrasts", "model/none.py::CDDRec", "tests/test_sheets.py::test_none"):
        assert not is_defined(reference)

"""The site builds strictly, its commands run, and so does the notebook."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recbole_diffusion.commands import COMMANDS

from .conftest import ROOT

PAGES = [ROOT / "docs" / f"{name}.md" for name in ("index", "own-data", "tuning", "at-scale", "serving")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def commands_of(page: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("recbole-diffusion ")]


def run(command: str, folder: Path, **environment: str) -> str:
    program = [sys.executable, "-c", "from recbole_diffusion.commands import main; main()"]
    done = subprocess.run([*program, *shlex.split(command)[1:]], cwd=folder, env={**ENVIRONMENT, **environment},
                          capture_output=True, text=True, timeout=550)  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    return done.stdout


def write_files(page: Path, folder: Path) -> None:
    """The blocks of a page that begin with the name of a file, as that file."""
    for name, text in re.findall(r"```\w+\n# (\S+\.\w+)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")


def shop(folder: Path) -> None:
    """What the pages speak of: events.csv, and histories in Parquet."""
    items = ["green tea, 100 g", "teapot", *(f"tea {number}" for number in range(30))]
    names = ["ann", "bob", *(f"user{number}" for number in range(40))]
    rows = [(f"{name}@example.org", items[(place + 5 * step) % len(items)], f"2024-01-{step + 1:02d} 10:00:{place:02d}")
            for place, name in enumerate(names) for step in range(8)]  # fmt: skip
    pd.DataFrame(rows, columns=["email", "product", "when"]).to_csv(folder / "events.csv", index=False)
    (folder / "histories").mkdir()
    pd.DataFrame({"history": [items[n : n + 3] for n in range(20)]}).to_parquet(folder / "histories" / "0.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(tmp_path, page):
    shop(tmp_path)
    write_files(page, tmp_path)
    if page.stem in ("index", "at-scale", "serving"):  # the pages that begin with a trained model
        code = "from recbole_diffusion import Recommender; Recommender.fit('events.csv', epochs=1).save('shop.pth')"
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True)
    commands = commands_of(page)
    assert commands
    for command in commands:
        if "--address=auto" in command:  # a cluster: tests/recommend/test_recommend_parquet.py has Ray on this machine
            continue
        if command.startswith("recbole-diffusion export"):
            pytest.importorskip("onnxscript")
            pytest.importorskip("faiss")
        if "....pth" in command:
            [file] = [path for path in (tmp_path / "saved").glob("*.pth") if "-last" not in path.stem]
            command = command.replace("saved/SASRecPlus-....pth", str(file))
        run(command, tmp_path)


def test_the_pages_name_commands_that_are_there():
    named = [command.split()[1] for page in PAGES for command in commands_of(page)]
    assert len(named) >= 6 and set(named) <= {*COMMANDS}


@pytest.mark.slow
def test_the_page_on_adding_a_model_adds_one(tmp_path):
    page, tree = ROOT / "docs" / "adding-a-model.md", tmp_path / "tree"
    for name in ("recbole_diffusion", "props", "tests", "dataset/markov-toy"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_files(page, tree)
    registry, first = tree / "recbole_diffusion" / "registry.py", "from recbole_diffusion.model.adrec import"
    [line] = re.findall(r"^from .* import MyModel\n", page.read_text(encoding="utf-8"), re.MULTILINE)
    text = registry.read_text(encoding="utf-8").replace(first, line + first)
    text = text.replace("    for model in (\n", "    for model in (\n        MyModel,\n")
    registry.write_text(text, encoding="utf-8")
    [command] = commands_of(page)
    assert "Test metrics of MyModel" in run(command, tree, PYTHONPATH=str(tree))
    tests = "-m pytest tests/model/test_models.py -k MyModel"
    assert f"python {tests}\n" in page.read_text(encoding="utf-8")
    command = [sys.executable, *tests.split()]
    done = subprocess.run(
        command, cwd=tree, env={**ENVIRONMENT, "PYTHONPATH": str(tree)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(ROOT / "examples" / "own_data.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        client = nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
    assert (tmp_path / "shop.pth").is_file() and (tmp_path / "ahead.html").is_file()


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Recommender.similar_items" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")

"""Commands of README, sheets and protocols run, shortened by flags, in a copy of the tree; the end lists them.

The pages that begin with a table of one's own are in tests/test_docs.py; what docs/robustness.md runs are tests.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "models").glob("*.md")), ROOT / "docs" / "first-run.md"]
PAGES.append(ROOT / "docs" / "protocols.md")
# What installs, or is the whole test suite: .ci/run does both. What makes pictures runs commands that are here.
NOT_HERE = ("make ", "pip ", "uv ", "python docs/")
PROGRAM = [sys.executable, "-c", "from recbole_diffusion.commands import main; main()"]
TINY = ["hidden_size=16", "inner_size=16", "n_layers=1", "n_heads=2", "MAX_ITEM_LIST_LENGTH=5", "eval_batch_size=1024"]
ONE_STEP = ["epochs=1", "limit_train_batches=1"]
# program -> flags that make it short, where the command does not give them itself
SHORT = {
    "run": [*ONE_STEP, *TINY],
    "tune": [*ONE_STEP, "eval_batch_size=1024", "MAX_ITEM_LIST_LENGTH=5"],
    "compare": [*ONE_STEP, *TINY],
    "analysis": ["max_users=20"],
    "recommend": [],
    "reproduce": ["results=trial", "set=eval_step=1", *(f"set={item}" for item in ONE_STEP)],
    "throughput": ["entries=SASRec;DiffuRec", "set=num_steps=3"],
    "scaling": [
        "axes=batch",
        "rounds=1",
        *(f"set={item}" for item in ("hidden_size=16", "inner_size=16", "n_layers=1")),
    ],
}
FEWER = {"max_evals": 1, "num_samples": 1, "seeds": 1, "rounds": 1, "epochs": 1, "stopping_step": 1}
# Data sets of these names have the interactions of markov-toy.
STAND_INS = ("dataset/ml-1m", "dataset/amazon-beauty", "data/my-shop")


def commands_of(page: Path) -> list[str]:
    """Commands of a page's blocks and between backquotes in its text, each once."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    inline = re.findall(r"`((?:python|recbole-diffusion) [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [part.strip() for line in blocks.splitlines() for part in line.split(" && ")]
    return list(dict.fromkeys(line for line in [*lines, *inline] if line and not line.startswith("#")))


def program_of(words: list[str]) -> str:
    """Which of SHORT a command is."""
    names = {"run_recbole_diffusion": "run", "run_hyper": "tune", "analyse": "analysis"}
    name = words[2].split(".")[-1] if words[1] == "-m" else Path(words[1]).stem
    return names.get(name, name)


def shortened(command: str, checkpoint: str) -> list[str]:
    """The words of a command with the least that shows that it works."""
    words = [checkpoint.join(word.split(place)) if (place := placeholder(word)) else word
             for word in shlex.split(command, comments=True)]  # fmt: skip
    program = program_of(words)
    if program == "throughput":  # its flags and their values are words of their own
        words = [f"{flag}={value}" for flag, value in zip(words[2::2], words[3::2], strict=True)]
        words = ["python", "benchmarks/throughput.py", *words]
    for place, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if equals and flag[2:] in FEWER:
            words[place] = f"{flag}={FEWER[flag[2:]]}"
    given = {word.partition("=")[0] for word in words if not word.startswith("--set=")}
    words += [f"--{flag}" for flag in SHORT[program] if f"--{flag.partition('=')[0]}" not in given]
    if program == "tune" and "--params_file=" not in command:
        words.append("--params_file=short.hyper")
    return words


def placeholder(word: str) -> str | None:
    found = re.search(r"saved/\w+-\.\.\.\.pth", word)
    return found and found[0]


def execute(words: list[str], tree: Path) -> str:
    program = PROGRAM if words[0] == "recbole-diffusion" else [sys.executable, "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [*program, *words[1:]], cwd=tree, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def ran(request):
    """What ran; it is printed in the end."""
    commands: list[str] = []
    yield commands
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    if reporter:
        reporter.write_line(f"\n{len(commands)} commands of README and docs ran:")
        for command in commands:
            reporter.write_line(f"  {command}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of what git has of the tree, or would take, with the data that the pages speak of."""
    copy = tmp_path_factory.mktemp("tree") / "recbole-diffusion"
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for name in STAND_INS:
        (copy / name).mkdir(parents=True)
        shutil.copy(ROOT / "dataset/markov-toy/markov-toy.inter", copy / name / f"{Path(name).name}.inter")
    (copy / "histories.jsonl").write_text(json.dumps({"user": "ann", "history": ["1193", "661"]}) + "\n")
    (copy / "short.hyper").write_text("hidden_size choice [8, 16]\n")
    return copy


@pytest.fixture(scope="module")
def checkpoint(tree) -> str:
    """A DiffuRec of ml-100k, which the pages go on with."""
    words = ["python", "run_recbole_diffusion.py", "--model=DiffuRec", "--dataset=ml-100k"]
    out = execute([*words, *(f"--{flag}" for flag in SHORT["run"])], tree)
    return next(line.split(": ")[1] for line in out.splitlines() if line.startswith("Checkpoint: "))


ALL = [(page.relative_to(ROOT), command) for page in PAGES for command in commands_of(page)]


@pytest.mark.slow
@pytest.mark.parametrize("page, command", [one for one in ALL if not one[1].startswith(NOT_HERE)])
def test_a_command_of_the_documents_runs(tree, checkpoint, ran, page, command):
    words = shortened(command, checkpoint)
    before = sorted((tree / "results" / "runs").iterdir())
    out = execute(words, tree)
    assert out.strip() or "--output" in command
    assert sorted((tree / "results" / "runs").iterdir()) == before  # what the repository ships is as it was
    ran.append(f"{page}: {shlex.join(words)}")


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tree, checkpoint, ran):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "import " in block]
    assert len(blocks) >= 3
    quick = dict(item.split("=") for item in SHORT["run"])
    for number, block in enumerate(blocks):
        code = re.sub(r"saved/\w+-\.\.\.\.pth", checkpoint, block)
        code = code.replace('{"epochs": 3}', repr({**{key: int(value) for key, value in quick.items()}, "epochs": 1}))
        script = tree / f"block{number}.py"
        script.write_text(f"import torch\npredict_start_fn, x_T = (lambda x_t, t: x_t), torch.ones(2, 3)\n{code}")
        execute(["python", script.name], tree)
        ran.append(f"README.md: python, {block.strip().splitlines()[0]} ...")


def test_every_command_is_known():
    """A command of a new kind, or a page without any, is noticed before it is too late."""
    assert len(ALL) >= 20 and {program_of(shlex.split(command, comments=True)) for page, command in ALL
                               if not command.startswith(NOT_HERE)} == set(SHORT)  # fmt: skip

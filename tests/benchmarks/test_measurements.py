"""The scripts that measure time and memory run, each at its smallest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from recbole_diffusion.quick_start import run

from ..conftest import ROOT, TINY

pytestmark = pytest.mark.slow


def measure(script: str, *flags: str) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_every_kind_of_rows_has_its_cost(tmp_path):
    measure("data_cost.py", "--interactions=2e4", f"--output={tmp_path / 'cost'}")
    prefixes, windows, recbole = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert all(isinstance(row["seconds"], float) for row in (prefixes, windows, recbole))
    assert prefixes["rows of an epoch"] == recbole["rows of an epoch"] > 10 * windows["rows of an epoch"]


def test_every_entry_has_its_throughput(tmp_path):
    sizes = {"hidden_size": 16, "inner_size": 16, "num_steps": 4, "sampling_steps": 2, "MAX_ITEM_LIST_LENGTH": 5}
    flags = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    where = ["--dataset", "markov-toy", "--data_path", str(ROOT / "dataset"), "--output", str(tmp_path / "table")]
    measure("throughput.py", *where, "--rounds", "1", *flags)
    table = (tmp_path / "table.md").read_text()
    assert "| PreferDiff of width 512 |" in table and "| ADRec |" in table


def test_what_is_heard_of_the_noise_follows_lambda(tmp_path):
    """With a large lambda another draw changes the lists; without one nothing does."""
    quiet = {"state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset"), "eval_step": 0}
    short = {**TINY, **quiet, "num_steps": 4, "epochs": 1, "limit_train_batches": 2}
    files = [
        run("ADRec", "markov-toy", config_dict={**short, "lambda_uncertainty": lam})["model_file"] for lam in (5, 0)
    ]
    where = ["--data_path", str(ROOT / "dataset"), "--users", "512", "--output", str(tmp_path / "heard")]
    measure("heard.py", f"--model_files={','.join(files)}", *where)
    loud, silent = json.loads((tmp_path / "heard.json").read_text())["rows"]
    columns = ("another x_T", "lambda 0", "one step")
    assert all(float(loud[name].rstrip("%")) < 95 and silent[name] == "100.00%" for name in columns)

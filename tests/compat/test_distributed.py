"""Two processes on a CPU train and measure as one does; one of them writes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_diffusion.compat.distributed import Share, loss_weight
from recbole_diffusion.quick_start import build_trainer, load_data_and_model, run

from ..conftest import ROOT, TINY

# No draws in training: then nothing but the processes differs.
STILL = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "emb_dropout_prob": 0.0}
METRICS = ["Hit", "NDCG", "MRR", "GAUC", "ShannonEntropy"]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return str(found.getsockname()[1])


def train(nproc: int, model: str, folder: str, **overrides) -> dict:
    values = {
        **TINY, **STILL, "state": "INFO", "show_progress": False, "epochs": 2, "data_path": str(ROOT / "dataset"),
        "checkpoint_dir": folder, "metrics": METRICS, "metric_decimal_place": 10, **overrides,
    }  # fmt: skip
    if model not in ("DiffuRec", "CDDRec", "SASRecPlus"):
        values.pop("emb_dropout_prob")
    return run(model, "markov-toy", config_dict=values, nproc=nproc, port=free_port())


def losses(result: dict) -> list[float]:
    file = Path(result["model_file"])
    state = torch.load(file.with_name(f"{file.stem}-last.pth"), weights_only=True)
    return [state["train_loss_dict"][epoch] for epoch in sorted(state["train_loss_dict"])]


@pytest.mark.slow
def test_two_processes_that_are_resumed_go_on_with_their_own_draws():
    """Each has its dropout: the state of the first alone would make the second repeat itself."""
    keys = {"emb_dropout_prob": 0.3, "hidden_dropout_prob": 0.2, "limit_train_batches": 3}
    whole = train(2, "SASRecPlus", "whole", **keys, epochs=3)
    train(2, "SASRecPlus", "cut", **keys, epochs=1)
    again = train(2, "SASRecPlus", "cut", **keys, epochs=3, resume="auto")
    assert losses(again) == losses(whole) and again["test_results"] == whole["test_results"]


# Batches of 77 cannot be shared evenly by two processes.
@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRec", "SASRecPlus"])
def test_two_processes_are_one(model):
    one, two = (train(nproc, model, f"saved-{nproc}", train_batch_size=77) for nproc in (1, 2))
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)
    for protocol, metrics in one["test_results"].items():
        assert two["test_results"][protocol] == pytest.approx(metrics, abs=1e-6), protocol
    assert two["best_valid_result"] == pytest.approx(one["best_valid_result"], abs=1e-6)
    files = sorted(path.name for path in Path("saved-2").iterdir())
    assert len(files) == 2 and files[0].endswith("-last.pth")  # one process wrote
    assert len(list(Path("log").rglob("*.log"))) == 2 and len(list(Path("log_tensorboard").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["DiffuRec", "CDDRec"])
def test_a_model_that_draws_is_measured_by_two_processes_as_by_one(model):
    """The draws of two processes are others than those of one, so their metrics are taken for the same weights."""
    own = {"num_steps": 4, "limit_train_batches": 2}
    two = train(2, model, "saved", **own)
    assert losses(two)[0] == pytest.approx(losses(train(1, model, "alone", **own))[0], rel=0.2)
    config, network, _, _, _, test_data = load_data_and_model(two["model_file"], {"data_path": str(ROOT / "dataset")})
    trainer = build_trainer(config, network)
    trainer.evaluate(test_data, load_best_model=False)
    for protocol, metrics in trainer.protocol_results.items():
        assert two["test_results"][protocol] == pytest.approx(metrics, abs=1e-6), protocol


@pytest.mark.slow
def test_the_script_takes_nproc_and_names_what_is_wrong_in_one_line(tmp_path):
    shutil.copytree(ROOT / "dataset" / "markov-toy", tmp_path / "data" / "markov-toy")
    script = str(ROOT / "run_recbole_diffusion.py")
    command = [sys.executable, "-W", "ignore", script, "--model=SASRecPlus", "--nproc=2",
               "--data_path=data", "--epochs=1", "--hidden_size=16", f"--port={free_port()}"]  # fmt: skip

    def call(*args):
        return subprocess.run([*command, *args], cwd=tmp_path, capture_output=True, text=True, timeout=300)

    done = call("--dataset=markov-toy")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Test metrics of SASRecPlus") == 1
    file = next(line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("Checkpoint: "))
    assert (tmp_path / file).is_file()
    wrong = call("--dataset=nothing-here")
    assert wrong.returncode != 0 and "nothing-here.inter" in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr


def test_rows_are_evaluated_once(monkeypatch):
    from recbole_diffusion.compat import distributed

    monkeypatch.setattr(distributed, "rank_and_world", lambda: (1, 3))
    assert list(Share(list(range(8)))) == [1, 4, 7] and len(Share(list(range(8)))) == 3
    with pytest.raises(ValueError, match=r"nproc \[3\] must be at most 2"):
        Share([0, 1])
    assert loss_weight(None, None, None, 0) == (1.0, 1.0)  # a process alone


def test_a_process_that_has_no_row_of_a_batch_weighs_nothing(monkeypatch):
    from types import SimpleNamespace

    from recbole_diffusion.compat import distributed

    loader = SimpleNamespace(step=10, sample_size=31)
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "rank_and_world", lambda: (1, 2))
    monkeypatch.setattr(distributed, "sum_over_processes", lambda own: own + 6)
    assert loss_weight(None, [0] * 4, loader, 0) == (4 * 2 / 10, 4 / 10)
    model = SimpleNamespace(loss_terms=lambda rows: 2 * len(rows))
    assert loss_weight(model, [0] * 2, loader, 0) == (4 * 2 / 10, 4 / 10)
    assert loss_weight(None, [0], loader, 3) == (0.0, 0.0)  # the last batch has one row, the first process's
    assert distributed._own_rows(list, 1, 2, [7]) == [7] and distributed._own_rows(list, 1, 2, [7, 8, 9]) == [8]

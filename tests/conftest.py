"""Small pieces that the tests share: a config, a dataset and a model on markov-toy, in a folder of their own."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

# Tiny models gain nothing from a second thread; the scripts that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from recbole.utils import get_model, init_seed

from recbole_diffusion import MODELS
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.quick_start import build_config, prepare_data

sys.argv = sys.argv[:1]  # RecBole would read pytest's flags, also where a fixture lives longer than a test

ROOT = Path(__file__).parent.parent
TINY = {
    "hidden_size": 32,
    "inner_size": 64,
    "n_layers": 2,
    "n_heads": 2,
    "MAX_ITEM_LIST_LENGTH": 20,
    "train_batch_size": 256,
    "eval_batch_size": 256,
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """RecBole writes logs and checkpoints where it runs, and reads parameters from the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])


@pytest.fixture(autouse=True)
def own_log():
    """RecBole's hyper-parameter tuning silences the whole process, and its log stays open."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


# Of a new process, before it begins: a shell's background jobs, and what they start, are deaf to Ctrl-C.
hear_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


def toy_config(model: str, **overrides):
    """A config for a tiny model on markov-toy."""
    quiet = {"data_path": str(ROOT / "dataset"), "state": "ERROR", "show_progress": False}
    tiny = TINY if model in MODELS else {}
    return build_config(model, "markov-toy", None, {**quiet, **tiny, **overrides})


def toy(model: str, **overrides) -> SimpleNamespace:
    """Config, split data and a freshly initialised tiny model on markov-toy."""
    config = toy_config(model, **overrides)
    init_seed(config["seed"], True)
    dataset, train, valid, test = prepare_data(config)
    init_seed(config["seed"], True)
    network = get_model(model)(config, train._dataset)
    return SimpleNamespace(config=config, dataset=dataset, train=train, valid=valid, test=test, model=network)


def few_steps(name: str, **diffusion_keys) -> dict:
    """Eight steps for a diffusion and other keys that it alone has; nothing for a model that is none."""
    if not issubclass(MODELS[name], DiffusionRecommender):
        return {}
    strided = {"sampling_steps": None} if toy_config(name)["sampling_steps"] else {}
    return {"num_steps": 8, **strided, **diffusion_keys}


def batch_of(loader, size: int | None = None):
    """The first rows of a training or evaluation loader, as an Interaction."""
    batch = next(iter(loader))
    batch = batch[0] if isinstance(batch, tuple) else batch
    return batch[:size] if size else batch


def loss_with_seed(model, interaction, seed: int = 0) -> torch.Tensor:
    """The training loss under a seed, every random draw included."""
    torch.manual_seed(seed)
    return model.calculate_loss(interaction)

"""Checkpoints as somebody else might send them, and watches over what reading them does."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_diffusion.quick_start import run

from ..conftest import ROOT, TINY

DATA = str(ROOT / "dataset")
SETTINGS = {"state": "ERROR", "show_progress": False, "data_path": DATA, "epochs": 1, "limit_train_batches": 1}


SYSTEM = os.system  # what `watched` replaces


class Touch:
    """Pickles as a command that leaves a trace."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return SYSTEM, (f"touch {self.path}",)


def train(folder: Path, model: str = "DiffuRec", **overrides) -> Path:
    """The best checkpoint of a tiny model, in a folder of its own; its last state lies beside it."""
    own = TINY | {"num_steps": 4} if model in ("DiffuRec", "CDDRec") else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        result = run(model, "markov-toy", config_dict={**own, **SETTINGS, **overrides})
    return folder / result["model_file"]


def changed(source: Path, target: Path, settings: dict[str, Any] | None = None, **parts: Any) -> Path:
    """A copy of a checkpoint with other settings in its config, and other parts (None: left out)."""
    state = torch.load(source, weights_only=True)
    state["config"].update(settings or {})
    state = {name: value for name, value in {**state, **parts}.items() if value is not None}
    torch.save(copy.copy(state), target)
    return target


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Fail on any connection, program or file outside of this test's folder; returns a trace that no file may leave."""
    tried = []

    def refuse(what):
        def call(*args, **kwargs):
            tried.append((what, args))
            raise AssertionError(f"{what} was called: {args}")

        return call

    monkeypatch.setattr(socket.socket, "connect", refuse("connect"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse("getaddrinfo"))
    monkeypatch.setattr(subprocess, "Popen", refuse("Popen"))
    monkeypatch.setattr(os, "system", refuse("system"))
    trace = tmp_path / "trace"
    before = {path.name for path in tmp_path.parent.iterdir()}
    yield trace
    assert not tried and not trace.exists()
    assert {path.name for path in tmp_path.parent.iterdir()} == before


def dump_touch(path: Path, trace: Path) -> None:
    """A pickle that leaves a trace when it is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Touch(trace)))

"""How a run is trained, resumed and recorded: what programs that train many models share."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_diffusion.compat.files import write_whole
from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.protocols import BothProtocols
from recbole_diffusion.quick_start import prepare_training
from recbole_diffusion.trainer import DiffusionTrainer
from recbole_diffusion.trainer.resume import find_last_state

QUIET = {"show_progress": False, "state": "WARNING"}  # of many runs in a row, unless their parameters say more


class Paused(Exception):
    """The time is up; the run's state is saved."""


def run_or_resume(
    config: Config,
    folder: str | Path,
    after_epoch: Callable[[dict[str, Any]], None] | None = None,
    deadline: float = math.inf,
    ranks_file: Path | None = None,
) -> dict[str, Any]:
    """Train and test what a Config says, or go on where it was cut; ``folder`` is the run's own, and holds its state.

    ``after_epoch`` gets a point of the curve after each validation: ``epoch`` (from 1), ``valid_score``,
    ``train_loss``, ``seconds`` and ``cpu_seconds``. What it adds to the point is kept with the state. Past
    ``deadline`` (by ``time.monotonic``) the run stops after an epoch. ``ranks_file`` (.npz) takes what
    ``BothProtocols.ranks`` says of the test.

    Returns plain values: ``model``, ``dataset``, ``seed``, ``test_result`` and ``test_results`` (as ``run``'s),
    ``best_valid_result``, ``best_valid_score`` (None where no validation took place), ``epochs``, ``seconds`` (of
    training with its validations, all parts of a run that was cut), ``test_seconds``, ``cpu_seconds`` (of all, with
    data and what the key ``pretrain`` trains first), ``data`` (as ``checksums``', None without ``ranks_file``),
    ``config`` and ``curve``.

    Raises
    ------
    Paused
        The deadline passed; the same call goes on from there.
    ValueError, FileNotFoundError
        As ``quick_start.run``; or the split leaves no test data.
    """
    cpu_start = time.process_time()
    _prepare_folder(config, Path(folder).absolute())
    trainer, train_data, valid_data, test_data = prepare_training(config)
    curve, note = _curve_of(trainer, after_epoch, deadline, cpu_start)
    cpu_before = curve[-1].get("cpu_seconds", 0.0) if curve else 0.0
    show = config["show_progress"]
    score, valid_result = trainer.fit(train_data, valid_data, show_progress=show, callback_fn=note)
    tested = _test(trainer, test_data, config, ranks_file)
    return {
        **{key: config[key] for key in ("model", "dataset", "seed")},
        "best_valid_result": _floats(valid_result or {}),
        "best_valid_score": float(score) if math.isfinite(score) else None,
        "epochs": len(trainer.train_loss_dict),
        "seconds": curve[-1]["seconds"] if curve else None,
        **tested,
        "cpu_seconds": round(cpu_before + time.process_time() - cpu_start, 3),
        # Every row is read for them: not for the trials of a search, which keep neither.
        "data": checksums(config, train_data, valid_data, test_data) if ranks_file else None,
        "config": result_settings(config),
        "curve": curve,
    }


def _test(trainer, test_data, config: Config, ranks_file: Path | None) -> dict[str, Any]:
    """What ``run_or_resume`` says of the test; keeps the ranks where it is told a file."""
    start = time.perf_counter()
    trainer.keep_ranks = ranks_file is not None  # read by BothProtocols alone
    test_result = trainer.evaluate(test_data, show_progress=config["show_progress"])
    if not test_result:
        raise ValueError(f"dataset [{config['dataset']}] leaves no test data: a user needs three interactions.")
    both = trainer.protocol_results if isinstance(trainer, BothProtocols) else None
    if ranks_file is not None and isinstance(trainer, BothProtocols):
        ranks_file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(ranks_file, **trainer.ranks)
    return {
        "test_result": _floats(test_result),
        "test_results": {name: _floats(metrics) for name, metrics in both.items()} if both else None,
        "test_seconds": round(time.perf_counter() - start, 3),
    }


def checksums(config: Config, *parts) -> dict[str, str]:
    """SHA-256 of the file of interactions, and of the (user, item) to be predicted in each part of the split."""
    found, file = {}, Path(config["data_path"]) / f"{config['dataset']}.inter"
    if file.is_file():  # not where the user's own files are the split
        found["interactions"] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name, loader in zip(("train", "valid", "test"), parts, strict=True):
        dataset = loader._dataset
        pairs = [dataset.id2token(f, dataset.inter_feat[f].numpy()) for f in (dataset.uid_field, dataset.iid_field)]
        text = "\n".join(sorted(map("\t".join, zip(*pairs, strict=True))))
        found[name] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _curve_of(
    trainer, after_epoch, deadline: float, cpu_start: float
) -> tuple[list[dict[str, Any]], Callable[[int, float], None]]:
    """The points of a run so far, and what RecBole's ``fit`` calls to add one."""
    resumable = isinstance(trainer, DiffusionTrainer)
    curve: list[dict[str, Any]] = trainer.curve if resumable else []
    before, start = (curve[-1]["seconds"] if curve else 0.0), time.perf_counter()
    cpu_before = curve[-1].get("cpu_seconds", 0.0) if curve else 0.0

    def note(epoch: int, valid_score: float) -> None:
        point = {"epoch": epoch + 1, "valid_score": float(valid_score)}
        point["train_loss"] = float(trainer.train_loss_dict[epoch])
        point["seconds"] = round(before + time.perf_counter() - start, 3)
        point["cpu_seconds"] = round(cpu_before + time.process_time() - cpu_start, 3)
        curve.append(point)
        if after_epoch:
            after_epoch(point)
        if resumable and time.monotonic() > deadline:
            trainer.save_last_checkpoint(epoch)
            raise Paused

    return curve, note


def _prepare_folder(config: Config, folder: Path) -> None:
    """Let a Config go on from the state of this very run in the folder; without one, clear the folder."""
    for key in QUIET.keys() - config.external_config_dict.keys():
        config[key] = QUIET[key]
    config["checkpoint_dir"] = str(folder)
    config["resume"] = find_last_state(folder, config, result_settings)
    if not config["resume"]:
        for path in folder.glob("*.pth"):
            path.unlink()


def record(file: Path, run: Mapping[str, Any]) -> None:
    """Write what is to be kept of a run as JSON."""
    write_whole(file, json.dumps(run, indent=1) + "\n")


@contextlib.contextmanager
def own_process_state() -> Iterator[None]:
    """Hide the command line from RecBole's Config, and keep the environment as it is.

    Config takes every ``--key=value`` it finds in ``sys.argv`` above all else: there stand our flags, in a Ray worker
    Ray's. It also sets CUDA_VISIBLE_DEVICES, which must not reach the processes that Ray starts.
    """
    argv, environment = sys.argv, dict(os.environ)
    sys.argv = argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def error_line(error: Exception) -> str:
    """What went wrong, in a line: a ValueError speaks for itself, others by their type."""
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"

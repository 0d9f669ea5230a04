"""The trials of a hyper-parameter search: what they share, how one is run, and which is the best."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_diffusion.experiments.runs import own_process_state, run_or_resume
from recbole_diffusion.experiments.space import Parameter
from recbole_diffusion.quick_start import build_config

Trial = dict[str, Any]  # params, and what run_trial or failed_trial adds to them


@dataclass(frozen=True)
class Search:
    """A search as asked for.

    Attributes
    ----------
    config : the Config of a trial but for what is searched
    shared : its parameters as plain values, for trials that run in another process and folder
    """

    tool: str
    options: dict[str, Any]
    space: list[Parameter]
    config: Config
    shared: dict[str, Any]
    output: Path

    @property
    def title(self) -> str:
        """Model and dataset."""
        return f"{self.config['model']} on {self.config['dataset']}"

    def file(self, suffix: str) -> Path:
        """A file or folder beside the output, such as ``<output>.trials.jsonl``."""
        return self.output.with_name(self.output.name + suffix)


def run_trial(
    shared: dict[str, Any], params: dict[str, Any], folder: Path, after_epoch: Callable | None = None
) -> Trial:
    """Train and test with the parameters that all trials share and those of this one.

    Its state lives in ``folder`` as long as the trial; one that was killed goes on from its last epoch.

    Raises
    ------
    ValueError, FileNotFoundError
        As ``run_or_resume``; or no validation took place.
    """
    try:
        with own_process_state():
            config = build_config(None, None, None, {**shared, **params})
            run = run_or_resume(config, folder, after_epoch)
        if run["best_valid_score"] is None:
            raise ValueError(f"no validation took place: epochs is {run['epochs']}, or eval_step 0")
    except (KeyboardInterrupt, OSError):
        raise  # the next call goes on from here: a full disk is no property of the parameters
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    kept = ("best_valid_score", "best_valid_result", "test_result", "test_results", "epochs")
    seconds = {"seconds": round(run["seconds"] + run["test_seconds"], 1), "cpu_seconds": round(run["cpu_seconds"], 1)}
    return {"params": params, **{key: run[key] for key in kept}, **seconds}


def failed_trial(params: dict[str, Any], error: str) -> Trial:
    """What is kept of a trial that failed."""
    return {"params": params, "best_valid_score": None, "best_valid_result": None, "test_result": None, "error": error}


def best_trial(trials: list[Trial], bigger: bool) -> Trial:
    """The trial with the best validation score, the first of equals; ValueError where every trial failed."""
    done = [trial for trial in trials if trial["best_valid_score"] is not None]
    if not done:
        error = trials[-1]["error"] if trials else "none was started"
        raise ValueError(f"every one of {len(trials)} trials failed, the last with: {error}")
    return (max if bigger else min)(done, key=lambda trial: trial["best_valid_score"])

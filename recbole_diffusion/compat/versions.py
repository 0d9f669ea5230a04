"""What RecBole 1.2.1 needs on NumPy 2, PyTorch >= 2.6 and Ray > 2.6. Nothing outside this file knows of versions.

Each bridge says what RecBole does, why that fails today and which public issue it answers, and is put up only where
the installed version needs it. ``torch.load`` is never touched: files are read by PyTorch's safe loader alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import scipy.sparse
import torch


def bridge_numpy() -> None:
    """Give back the aliases that NumPy 2 removed and RecBole still reads.

    ``Config.compatibility_settings`` sets ``np.float = np.float_`` and the like, and ``Interaction`` reads
    ``np.float`` (RecBole issues 2155, 2174). Only names that are missing are added.
    """
    for alias, target in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "float": float}.items():
        if alias not in vars(np):
            setattr(np, alias, target)


def bridge_scipy() -> None:
    """Give back ``dok_matrix._update``, which SciPy removed: RecBole's LightGCN and other graph models call it."""
    if not hasattr(scipy.sparse.dok_matrix, "_update"):
        scipy.sparse.dok_matrix._update = lambda self, entries: self._dict.update(entries)


def bridge_pandas() -> None:
    """Warn on pandas 3, on which RecBole 1.2.1 has not been tried."""
    if int(metadata.version("pandas").split(".")[0]) >= 3:
        warnings.warn("RecBole 1.2.1 has not been tried on pandas >= 3: install pandas<3.", stacklevel=2)


def bridge_ray() -> None:
    """Let RecBole's ``objective_function`` report to the installed Ray Tune, and run outside of it.

    It ends with ``tune.report(**metrics)``; from Ray 2.7 on ``report`` takes one mapping, and outside a trial, as in
    HyperOpt's search, there is nobody to report to (RecBole issues 1990, 1741).
    """
    try:
        import recbole.quick_start.quick_start as quick_start
    except ImportError:  # Ray is absent: RecBole's quick start cannot be imported at all, the models can
        return

    class Tune:
        @staticmethod
        def report(**metrics: float) -> None:
            report_to_tune(metrics)

    quick_start.tune = Tune


def bridge_hyperopt() -> None:
    """Let RecBole's exhaustive search draw for HyperOpt >= 0.2.6.

    It draws with ``np.random.RandomState``, and HyperOpt now asks its generator for ``integers``, as
    ``np.random.Generator`` calls ``randint`` (RecBole issue 1868).
    """
    from recbole.trainer import hyper_tuning

    class RandomState(np.random.RandomState):
        integers = np.random.RandomState.randint

    search = hyper_tuning.exhaustive_search

    @functools.wraps(search)
    def exhaustive_search(*args: Any, **kwargs: Any):
        with _replaced(np.random, "RandomState", RandomState):
            return search(*args, **kwargs)

    hyper_tuning.exhaustive_search = exhaustive_search


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value for a while, also one that is not there."""
    missing = object()
    before = getattr(owner, name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def report_to_tune(metrics: Mapping[str, float]) -> None:
    """Report metrics to the Ray Tune trial this process runs in, on Ray 2.6 and current ones; outside of one, nothing.

    Raises
    ------
    ImportError
        Ray is not installed.
    """
    if tune_trial_id() is None:
        return
    from ray import tune

    if hasattr(tune, "get_context"):
        tune.report(dict(metrics))
    else:
        from ray.air import session

        session.report(dict(metrics))


def tune_trial_id() -> str | None:
    """Name of the Ray Tune trial this process runs in, None outside of one."""
    from ray import tune

    if hasattr(tune, "get_context"):
        return tune.get_context().get_trial_id()
    from ray.air import session  # Ray 2.6

    return session.get_trial_id()


def tune_run_config(**options: Any) -> Any:
    """Ray Tune's ``RunConfig``, which Ray 2.6 keeps in ``ray.air`` and current ones in ``ray.tune``."""
    from ray import air, tune

    return (tune if hasattr(tune, "get_context") else air).RunConfig(**options)


def bridge_anomaly_detection() -> None:
    """Turn off the anomaly detection that importing RecBole's sequential models turns on for the whole process.

    ``recbole.model.sequential_recommender.sine`` calls ``torch.autograd.set_detect_anomaly(True)`` on import, and the
    package imports it with every sequential model: each backward pass then looks for NaN in every gradient.
    """
    sine = "recbole.model.sequential_recommender.sine"
    wanted_by_user = torch.is_anomaly_enabled() and sine not in sys.modules
    importlib.import_module(sine)
    torch.autograd.set_detect_anomaly(wanted_by_user)


def bridge_collector() -> None:
    """Let metrics of whole lists (GiniIndex, ItemCoverage, AveragePopularity, TailPercentage) be measured.

    ``Collector.get_data_struct`` brings everything that was collected to the CPU, also the number of items and the
    counts that these read, which are no tensors.
    """
    from recbole.evaluator.collector import Collector

    get_data_struct = Collector.get_data_struct

    def without_plain_values(self: Collector):
        held = self.data_struct._data_dict
        plain = {key: held.pop(key) for key in list(held) if not isinstance(held[key], torch.Tensor)}
        found = get_data_struct(self)
        held.update(plain)
        found._data_dict.update(plain)
        return found

    Collector.get_data_struct = without_plain_values


def bridge_download() -> None:
    """Let a single process download a dataset.

    ``Dataset._download`` ends in ``torch.distributed.barrier()``, which raises where no process group exists (RecBole
    issue 2050).
    """
    from recbole.data.dataset import Dataset

    download = Dataset._download

    def _download(self: Dataset) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return download(self)
        with _replaced(torch.distributed, "barrier", lambda: None):
            return download(self)

    Dataset._download = _download


def bridge_folders() -> None:
    """Let several processes make the same folder at once.

    ``ensure_dir`` makes a folder if it was not there, which raises where another process made it in between.
    """
    from recbole.utils import ensure_dir

    # A module that is imported later takes it from here.
    for name, module in list(sys.modules.items()):
        if name.startswith("recbole.") and vars(module).get("ensure_dir") is ensure_dir:
            module.ensure_dir = functools.partial(os.makedirs, exist_ok=True)

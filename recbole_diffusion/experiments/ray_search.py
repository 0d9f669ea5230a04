"""A search with Ray Tune: trials beside each other, of which ASHA stops those that fall behind at the same epoch."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from recbole_diffusion.compat import versions
from recbole_diffusion.experiments.space import Parameter
from recbole_diffusion.experiments.trials import Search, Trial, failed_trial, run_trial
from recbole_diffusion.protocols import PROTOCOLS


def search_with_ray(search: Search) -> list[Trial]:
    """Run the trials that Ray Tune draws, or go on with those of a search that was cut.

    Raises
    ------
    ValueError
        A trial asks for more than this machine has, or there is no cluster at the address.
    KeyboardInterrupt
        The search was stopped by Ctrl-C.
    """
    resources = _resources(search.options)
    search = replace(search, output=search.output.absolute())  # a worker runs in a folder of its own
    with _connected(search.options["address"]):
        results = _tuner(search, resources).fit()
    _raise_if_cut(results, search.options["num_samples"])
    # Of a trial that ASHA stops, Ray ends the process before it has cleaned up.
    shutil.rmtree(search.file(".running"), ignore_errors=True)
    # A trial's folder has its number; a search that was continued has them in another order.
    return [_read_result(result, search.space) for result in sorted(results, key=lambda result: str(result.path))]


def _raise_if_cut(results, wanted: int) -> None:
    """Raise KeyboardInterrupt where trials are missing: Ray takes Ctrl-C, saves its state, and returns what it has."""
    done = sum(bool(result.error or (result.metrics or {}).get("done")) for result in results)
    if done < wanted:
        raise KeyboardInterrupt(
            f"Interrupted: {done} of {wanted} trials are done; the same command goes on from there."
        )


def _resources(options: dict[str, Any]) -> dict[str, float]:
    """What a trial asks for; ValueError where this machine has less."""
    resources = {"cpu": options["cpus_per_trial"], "gpu": options["gpus_per_trial"]}
    if resources["gpu"] is None:
        resources["gpu"] = int(torch.cuda.is_available())
    here = {"cpu": os.cpu_count(), "gpu": torch.cuda.device_count()}
    for kind, count in resources.items():
        if not options["address"] and count > here[kind]:
            raise ValueError(f"{kind}s_per_trial [{count}] is more than this machine has: {here[kind]}.")
    return resources


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at an address, or start one on this machine alone, unless the process has one."""
    import ray

    if ray.is_initialized():
        yield
        return
    # Nothing of size goes through the object store.
    alone = {} if address else {"include_dashboard": False, "object_store_memory": 128 * 2**20}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **alone)
    except (ConnectionError, ValueError) as error:
        raise ValueError(f"address [{address}] leads to no Ray cluster: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _tuner(search: Search, resources: dict[str, float]):
    """Ray's Tuner of this search, or of the same one that was cut."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    folder = search.file(".ray")
    metric, bigger = search.config["valid_metric"].lower(), search.config["valid_metric_bigger"]
    trial = functools.partial(
        _trial, shared=search.shared, space=search.space, metric=metric, bigger=bigger, folder=search.file(".running")
    )
    trial = tune.with_resources(trial, resources)
    if tune.Tuner.can_restore(str(folder / "trials")):
        return tune.Tuner.restore(str(folder / "trials"), trial, resume_errored=True)
    # No max_t: how long a trial may train is RecBole's `epochs`.
    asha = ASHAScheduler("epoch", max_t=10**6, grace_period=search.options["grace_period"], reduction_factor=2)
    return tune.Tuner(
        trial,
        param_space={parameter.name: parameter.ray() for parameter in search.space},
        tune_config=tune.TuneConfig(
            metric=metric,
            mode="max" if bigger else "min",
            num_samples=search.options["num_samples"],
            scheduler=asha,
            search_alg=BasicVariantGenerator(random_state=search.config["seed"]),
        ),
        run_config=versions.tune_run_config(name="trials", storage_path=str(folder), verbose=1),
    )


def _trial(drawn: dict[str, Any], shared, space, metric: str, bigger: bool, folder: Path) -> None:
    """One trial in Ray's worker: each validation is reported, the test metrics at the end alone."""
    import ray

    scores: list[float] = []

    def report(point: dict[str, Any]) -> None:
        scores.append(point["valid_score"])
        best = max(scores) if bigger else min(scores)
        versions.report_to_tune({metric: scores[-1], "best_valid_score": best, "epoch": point["epoch"]})

    params = {parameter.name: parameter.plain(drawn[parameter.name]) for parameter in space}
    # RecBole sets CUDA_VISIBLE_DEVICES to its own key.
    shared = {**shared, "gpu_id": ",".join(map(str, ray.get_gpu_ids()))}
    trial = run_trial(shared, params, folder / versions.tune_trial_id(), report)
    score = trial["best_valid_score"]
    # Said here: a trial that Ray itself finds ended may lack `done` in the state that a search is continued from.
    metrics = {metric: score, "best_valid_score": score, "epoch": trial["epochs"], "done": True}
    for kind, results in (("valid", trial["best_valid_result"]), ("test", trial["test_result"])):
        metrics.update({f"{kind}_{name}": value for name, value in results.items()})
    for protocol, results in (trial["test_results"] or {}).items():
        metrics.update({f"{protocol}_{name}": value for name, value in results.items()})
    metrics.update({key: trial[key] for key in ("seconds", "cpu_seconds")})
    versions.report_to_tune(metrics)


def _read_result(result, space: Sequence[Parameter]) -> Trial:
    """A trial as ``run_trial`` returns it; where ASHA stopped it, without test metrics."""
    metrics, drawn = result.metrics or {}, result.config or {}
    params = {parameter.name: parameter.plain(drawn[parameter.name]) for parameter in space if parameter.name in drawn}
    if result.error or "best_valid_score" not in metrics:
        said = str(result.error or "it reported nothing").strip().splitlines()[-1]  # of the worker's traceback
        return failed_trial(params, said)

    def metrics_of(kind: str) -> dict[str, float] | None:
        return {key[len(kind) :]: value for key, value in metrics.items() if key.startswith(kind)} or None

    return {
        "params": params,
        "best_valid_score": metrics["best_valid_score"],
        "best_valid_result": metrics_of("valid_"),
        "test_result": metrics_of("test_"),
        "test_results": {name: found for name in PROTOCOLS if (found := metrics_of(f"{name}_"))} or None,
        "epochs": metrics["epoch"],
        **{key: metrics.get(key) for key in ("seconds", "cpu_seconds")},
    }

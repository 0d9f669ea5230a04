"""Hyper-parameter search with RecBole's HyperTuning (HyperOpt) or with Ray Tune; cut short, it continues."""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from recbole.config import Config
from recbole.trainer import HyperTuning
from recbole.utils import dict2str

from recbole_diffusion.compat import versions
from recbole_diffusion.config.checks import check_choice, check_number
from recbole_diffusion.config.keys import MACHINE_KEYS
from recbole_diffusion.experiments.runs import own_process_state, told
from recbole_diffusion.protocols import PROTOCOLS
from recbole_diffusion.quick_start import build_config, objective_function, prepare_data
from recbole_diffusion.registry import PROPS, known_keys

# What each tool can be told, with its defaults; None: see `search`.
OPTIONS: dict[str, dict[str, Any]] = {
    "Hyperopt": {"algo": None, "max_evals": 10, "early_stop": 10},
    "Ray": {"num_samples": 10, "cpus_per_trial": 1, "gpus_per_trial": None, "address": None, "grace_period": 5},
}
ALGORITHMS = ("exhaustive", "random", "bayes")
# The search itself says where a trial keeps its state, and whether it resumes.
OWN_KEYS = ("checkpoint_dir", "resume")


@dataclass(frozen=True)
class Parameter:
    """One line of a params file: a config key and where its values are drawn from."""

    name: str
    kind: str
    values: tuple

    def hyperopt(self) -> Any:
        """The node of HyperOpt's search space; of a choice it draws the place, as HyperOpt turns lists into tuples."""
        from hyperopt import hp

        values = (list(range(len(self.values))),) if self.kind == "choice" else self.values
        return getattr(hp, self.kind)(self.name, *values)

    def ray(self) -> Any:
        """The domain of Ray Tune's search space; RecBole's files, as HyperOpt, give loguniform by exponents of e."""
        from ray import tune

        values = self.values
        if self.kind == "choice":
            values = (list(self.values),)
        elif self.kind == "loguniform":
            values = tuple(map(math.exp, self.values))
        return getattr(tune, self.kind)(*values)

    def plain(self, drawn: Any) -> Any:
        """What was drawn, as a plain value; quniform between whole numbers is whole, as sizes and counts must be."""
        if self.kind == "choice":
            return drawn
        whole = self.kind == "quniform" and all(float(value).is_integer() for value in self.values)
        return int(round(drawn)) if whole else float(drawn)


def read_space(path: str | Path) -> list[Parameter]:
    """Read a params file as RecBole's: lines ``name choice [a,b]``, ``name uniform low,high`` and the like.

    ``loguniform`` takes the exponents of e, ``quniform`` low,high,q. Values are literals and never run; ``#`` starts
    a comment.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A line cannot be read, a key is given twice, or the file holds no parameter.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"params_file [{path}] does not exist.")
    space: dict[str, Parameter] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            name, kind, text = [*line.split(maxsplit=2), "", ""][:3]
            if kind not in ("choice", "uniform", "loguniform", "quniform"):
                raise ValueError(f"after the name comes [{kind}], none of choice, uniform, loguniform, quniform")
            values = json.loads(json.dumps(ast.literal_eval(text.strip())))  # plain values alone, tuples as lists
            if kind == "choice":
                if not isinstance(values, list) or not values:
                    raise ValueError("choice takes a list of values")
            elif not _is_range(values, 3 if kind == "quniform" else 2):
                raise ValueError(f"{kind} takes low,high{',q' * (kind == 'quniform')}: numbers, low below high")
            if name in space:
                raise ValueError(f"[{name}] is there twice")
        except (ValueError, TypeError, SyntaxError) as error:
            raise ValueError(f"params_file [{path}], line {number} [{line.strip()}]: {error}") from None
        space[name] = Parameter(name, kind, tuple(values))
    if not space:
        raise ValueError(f"params_file [{path}] holds no parameter.")
    return list(space.values())


def _is_range(values: Any, length: int) -> bool:
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    return numbers and len(values) == length and values[0] < values[1] and values[2:] != [0]


def search(
    model: str | None = None,
    dataset: str | None = None,
    params_file: str | Path | None = None,
    tool: str = "Hyperopt",
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    output_file: str | Path | None = None,
    display_file: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Search the space of ``params_file`` (default: ``props/hyper/<Model>.hyper``) for the best validation score.

    Writes beside each other ``output_file`` (every trial, as RecBole's), ``<output_file>.csv`` (a table of them, with
    the test under both protocols and the seconds), ``<output_file>.yaml`` (the best parameters, for ``config_files``)
    and what it needs to continue; called again with the same arguments, it does. A trial that
    ends in a ValueError, such as a loss that is not finite, counts as failed. ``display_file`` takes a plot (HTML).
    The command line is not read.

    Parameters
    ----------
    tool
        ``Hyperopt``, with the options ``algo`` (``exhaustive``, ``random`` or ``bayes``; default: exhaustive, that is
        without repetition, where every parameter is a choice, else bayes), ``max_evals`` (trials) and ``early_stop``
        (trials without a better one before the search ends). ``Ray``, with ``num_samples`` (trials, drawn at random),
        ``cpus_per_trial``, ``gpus_per_trial`` (default: 1 where there is a GPU), ``address`` (of a running cluster;
        default: this machine alone) and ``grace_period`` (epochs before ASHA may stop a trial).

    Returns ``model``, ``dataset``, ``best_params``, ``best_valid_score``, ``best_valid_result``, ``test_result`` (None
    where ASHA stopped the best trial), ``best_file`` and ``trials``, one dictionary each.

    Raises
    ------
    ValueError, FileNotFoundError
        An option, a line of the params file or a parameter is out of range; the output belongs to another search;
        every trial failed; or a file is missing.
    """
    options = _check_options(tool, options)
    with own_process_state():
        config = _build_config(model, dataset, config_file_list, config_dict)
    model, dataset = config["model"], config["dataset"]
    params_file = Path(params_file or PROPS / "hyper" / f"{model}.hyper")
    space = read_space(params_file)
    _check_space(space, config, config_dict or {}, params_file, tool)
    if tool == "Hyperopt":
        options["algo"] = _check_algo(options["algo"], space)
    output = Path(output_file or Path("hyper_results") / f"{model}-{dataset}.result")

    # A trial may run in another process and folder: it gets every parameter as a value, and no relative path.
    fixed = {key: value for key, value in config.external_config_dict.items() if key != "paper_protocol"}
    settings = {
        "tool": tool,
        "model": model,
        "dataset": dataset,
        "params_file": [[parameter.name, parameter.kind, list(parameter.values)] for parameter in space],
        "algo": options.get("algo"),
        "num_samples": options.get("num_samples"),
        "grace_period": options.get("grace_period"),
        "parameters": {key: value for key, value in fixed.items() if key not in MACHINE_KEYS},
    }
    _check_same_search(output, settings)
    data_path = Path(config["data_path"]).absolute()
    paths = {key: os.path.abspath(value) for key, value in fixed.items() if key.endswith("_path") and value}
    fixed = {"show_progress": False, "state": "WARNING", **fixed, **paths}
    fixed.update(model=model, dataset=dataset, data_path=str(data_path.parent))
    if not (data_path / f"{dataset}.inter").is_file():
        with own_process_state():
            prepare_data(config)  # downloads it, once, or says what is missing

    run = _search_with_ray if tool == "Ray" else _search_with_hyperopt
    trials = run(space, fixed, config, output.absolute(), options)
    best = best_trial(trials, config["valid_metric_bigger"])
    best_file = _write_results(output, trials, best, settings, config)
    if display_file:
        _write_plot(Path(display_file), trials, settings, config)
    return {
        "model": model,
        "dataset": dataset,
        "best_params": best["params"],
        **{key: best[key] for key in ("best_valid_score", "best_valid_result", "test_result")},
        "best_file": str(best_file),
        "trials": trials,
    }


# ------------------------------------------------------------------ checks


def _check_options(tool: str, options: dict[str, Any]) -> dict[str, Any]:
    """The tool's options with their defaults, those that are None left out."""
    check_choice({"tool": tool}, "tool", OPTIONS)
    options = {key: value for key, value in options.items() if value is not None}
    for key, value in options.items():
        if key not in OPTIONS[tool]:
            raise ValueError(
                f"{key} [{value}] is no option of the tool {tool}, which takes {', '.join(OPTIONS[tool])}."
            )
    for key in ("max_evals", "early_stop", "num_samples", "grace_period"):
        if key in options:
            check_number(options, key, Integral, 1)
    for key in ("cpus_per_trial", "gpus_per_trial"):
        if key in options:
            check_number(options, key, Real, 0)
    if "algo" in options:
        check_choice(options, "algo", ALGORITHMS)
    return {**OPTIONS[tool], **options}


def _check_algo(algo: str | None, space: list[Parameter]) -> str:
    """The algorithm to use; ValueError where the exhaustive one meets a range."""
    ranges = [parameter.name for parameter in space if parameter.kind != "choice"]
    if algo == "exhaustive" and ranges:
        raise ValueError(f"algo [exhaustive] needs a choice for every parameter: {', '.join(ranges)} has a range.")
    return algo or ("bayes" if ranges else "exhaustive")


def _build_config(model, dataset, config_file_list, config_dict) -> Config:
    try:
        return build_config(model, dataset, config_file_list, dict(config_dict or {}))
    except KeyError as error:  # RecBole: neither argument, nor config file, nor parameter names them
        raise ValueError(error.args[0]) from error


def _check_space(space, config: Config, given: Mapping[str, Any], params_file: Path, tool: str) -> None:
    """Raise ValueError for a searched key that nothing reads, or that is fixed as well; and for the search's own."""
    known = known_keys(config)
    for name in (parameter.name for parameter in space):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean [{near[0]}]?" if near else "."
            raise ValueError(f"params_file [{params_file}]: [{name}] is no parameter of {config['model']}{hint}")
        if name in given or name in ("model", "dataset", *OWN_KEYS):
            raise ValueError(f"[{name}] cannot be searched and fixed at once: params_file [{params_file}] has it too.")
    for name in (*OWN_KEYS, *(["gpu_id"] if tool == "Ray" else [])):
        if name in config.external_config_dict:
            whose = "Ray" if name == "gpu_id" else "the search"
            raise ValueError(f"{name} [{config[name]}] cannot be given to a search: {whose} sets it for each trial.")


def _check_same_search(output: Path, settings: dict[str, Any]) -> None:
    """Note the search beside its output; raise ValueError where another search has trials there."""
    file, begun = _beside(output, ".search.json"), [_beside(output, ".trials.jsonl"), _beside(output, ".ray")]
    settings = json.loads(json.dumps(settings, default=str))
    if not file.is_file() or not any(path.exists() for path in begun):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if found.get(key) != value:
            raise ValueError(
                f"output_file [{output}] belongs to another search, with {key} [{found.get(key)}], not [{value}]: "
                f"name another output_file, or remove {' and '.join(str(path) for path in begun if path.exists())}."
            )


# ------------------------------------------------------------------ one trial


def _run_trial(fixed: dict[str, Any], params: dict[str, Any], folder: Path, callback_fn: Callable | None = None):
    """Train and test with one set of parameters: its result as plain values.

    Checkpoints live in ``folder`` as long as the trial; one that was killed goes on from its last epoch.
    """
    start = time.perf_counter()
    try:
        with own_process_state():
            config_dict = {**fixed, **params, "checkpoint_dir": str(folder), "resume": "auto"}
            result = objective_function(config_dict, callback_fn=callback_fn)
        score = float(result["best_valid_score"])
        if not math.isfinite(score):
            raise ValueError(f"no validation took place: epochs is {result['epochs']}, eval_step is larger or 0")
    except KeyboardInterrupt:
        raise  # the next call goes on from here
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    numbers = {key: _floats(result[key]) for key in ("best_valid_result", "test_result")}
    protocols = {name: _floats(metrics) for name, metrics in (result["test_results"] or {}).items()}
    seconds = round(time.perf_counter() - start, 1)
    effort = {"epochs": result["epochs"], "seconds": seconds}
    return {"params": params, "best_valid_score": score, **numbers, "test_results": protocols, **effort}


def _failed(params: dict[str, Any], error: str) -> dict[str, Any]:
    return {"params": params, "best_valid_score": None, "best_valid_result": None, "test_result": None, "error": error}


def _floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items()}


def best_trial(trials: list[dict[str, Any]], bigger: bool) -> dict[str, Any]:
    """The trial with the best validation score, the first of equals; ValueError where every trial failed."""
    done = [trial for trial in trials if trial["best_valid_score"] is not None]
    if not done:
        error = trials[-1]["error"] if trials else "none was started"
        raise ValueError(f"every one of {len(trials)} trials failed, the last with: {error}")
    return (max if bigger else min)(done, key=lambda trial: trial["best_valid_score"])


# ------------------------------------------------------------------ HyperOpt


class _Journal:
    """Results of trials on disk, one a line, found again by their parameters."""

    def __init__(self, path: Path):
        self.path, self.trials = path, {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):  # cut in the middle of a line
            lines.pop()
            path.write_text("".join(lines), encoding="utf-8")
        for line in lines:
            self._keep(json.loads(line))

    def _keep(self, trial: dict[str, Any]) -> None:
        self.trials[json.dumps(trial["params"], sort_keys=True)] = trial

    def find(self, params: dict[str, Any]) -> dict[str, Any] | None:
        return self.trials.get(json.dumps(params, sort_keys=True))

    def add(self, trial: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(trial)


class _Tuning(HyperTuning):
    """RecBole's HyperTuning with the draws of a seed: run again, it proposes what it proposed before.

    So a search that was cut takes its finished trials from the journal, and goes on as if it had not been.
    """

    def __init__(self, space: list[Parameter], objective: Callable, config: Config, **options: Any):
        nodes = {parameter.name: parameter.hyperopt() for parameter in space}
        super().__init__(objective, space=nodes, **options)
        self.parameters = {parameter.name: parameter for parameter in space}
        self.seed, self.bigger = config["seed"], config["valid_metric_bigger"]
        # RecBole lets the exhaustive search run through the whole space, whatever it is told.
        self.max_evals = min(int(self.max_evals), options["max_evals"])

    def trial(self, params: dict[str, Any]) -> dict[str, Any]:
        """Run one proposal; HyperOpt minimises ``loss``."""
        drawn = {}
        for name, value in params.items():
            parameter = self.parameters[name]
            drawn[name] = parameter.values[value] if parameter.kind == "choice" else parameter.plain(value)
        result = self.objective_function(drawn, None)
        score = result["best_valid_score"]
        if score is None:  # HyperOpt wants a number, and learns to stay away
            return {"status": "ok", "loss": sys.float_info.max}
        return {"status": "ok", "loss": -score if self.bigger else score}

    def run(self) -> None:
        from hyperopt import fmin

        fmin(
            self.trial,
            self.space,
            algo=self.algo,
            max_evals=self.max_evals,
            early_stop_fn=self.early_stop_fn,
            rstate=np.random.default_rng(self.seed),
        )


def _search_with_hyperopt(space, fixed, config: Config, output: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run HyperTuning's trials one after another in this process."""
    journal, folder, trials = _Journal(_beside(output, ".trials.jsonl")), _beside(output, ".running"), []
    if journal.trials:
        print(f"{len(journal.trials)} trials are done already: {journal.path}")

    def objective(params: dict[str, Any], _) -> dict[str, Any]:
        trial = journal.find(params)
        if trial is None:
            try:
                trial = _run_trial(fixed, params, folder)
            except Exception as error:  # RecBole's models raise what they like: the other trials go on
                trial = _failed(params, told(error))
            journal.add(trial)
            print(f"{HyperTuning.params2str(params)}: {trial['best_valid_score']} {trial.get('error', '')}")
        trials.append(trial)
        return trial

    _Tuning(space, objective, config, **options).run()
    return trials


# ------------------------------------------------------------------ Ray Tune


def _search_with_ray(space, fixed, config: Config, output: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Run trials beside each other under Ray Tune; ASHA stops those that fall behind at the same epoch."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    address, resources = options["address"], {"cpu": options["cpus_per_trial"], "gpu": options["gpus_per_trial"]}
    if resources["gpu"] is None:
        resources["gpu"] = int(torch.cuda.is_available())
    here = {"cpu": os.cpu_count(), "gpu": torch.cuda.device_count()}
    for kind, count in resources.items():
        if not address and count > here[kind]:
            raise ValueError(f"{kind}s_per_trial [{count}] is more than this machine has: {here[kind]}.")
    metric, bigger = config["valid_metric"].lower(), config["valid_metric_bigger"]
    folder = _beside(output, ".ray")
    trial = functools.partial(
        _ray_trial, space=space, fixed=fixed, metric=metric, bigger=bigger, folder=_beside(output, ".running")
    )
    trial = tune.with_resources(trial, resources)

    started = not ray.is_initialized()
    if started:
        # Nothing of size goes through the object store.
        alone = {"include_dashboard": False, "object_store_memory": 128 * 2**20}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **({} if address else alone))
        except (ConnectionError, ValueError) as error:
            raise ValueError(f"address [{address}] leads to no Ray cluster: {error}") from error
    try:
        path = str(folder / "trials")
        if tune.Tuner.can_restore(path):
            tuner = tune.Tuner.restore(path, trial, resume_errored=True)
        else:
            # No max_t: how long a trial may train is RecBole's `epochs`.
            asha = ASHAScheduler("epoch", max_t=10**6, grace_period=options["grace_period"], reduction_factor=2)
            tuner = tune.Tuner(
                trial,
                param_space={parameter.name: parameter.ray() for parameter in space},
                tune_config=tune.TuneConfig(
                    metric=metric,
                    mode="max" if bigger else "min",
                    num_samples=options["num_samples"],
                    scheduler=asha,
                    search_alg=BasicVariantGenerator(random_state=config["seed"]),
                ),
                run_config=versions.tune_run_config(name="trials", storage_path=str(folder), verbose=1),
            )
        results = tuner.fit()
    finally:
        if started:
            ray.shutdown()
    with contextlib.suppress(OSError):  # full where trials were interrupted
        _beside(output, ".running").rmdir()
    # A trial's folder has its number; a search that was continued has them in another order.
    return [_from_ray(result, space) for result in sorted(results, key=lambda result: str(result.path))]


def _ray_trial(drawn: dict[str, Any], space, fixed, metric: str, bigger: bool, folder: Path) -> None:
    """One trial in Ray's worker: each validation is reported, the test metrics at the end alone."""
    import ray

    best = None

    def report(epoch: int, score: float) -> None:
        nonlocal best
        best = score if best is None else (max if bigger else min)(best, score)
        versions.report_to_tune({metric: score, "best_valid_score": best, "epoch": epoch + 1})

    # RecBole sets CUDA_VISIBLE_DEVICES to its own key.
    fixed = {**fixed, "gpu_id": ",".join(map(str, ray.get_gpu_ids()))}
    params = {parameter.name: parameter.plain(drawn[parameter.name]) for parameter in space}
    trial = _run_trial(fixed, params, folder / versions.tune_trial_id(), report)
    score = trial["best_valid_score"]
    metrics = {metric: score, "best_valid_score": score, "epoch": trial["epochs"]}
    for kind in ("valid", "test"):
        results = trial["best_valid_result" if kind == "valid" else "test_result"]
        metrics.update({f"{kind}_{name}": value for name, value in results.items()})
    for protocol, results in trial["test_results"].items():
        metrics.update({f"{protocol}_{name}": value for name, value in results.items()})
    metrics["seconds"] = trial["seconds"]
    versions.report_to_tune(metrics)


def _from_ray(result, space) -> dict[str, Any]:
    """A trial as ``_run_trial`` returns it; where ASHA stopped it, without test metrics."""
    metrics, drawn = result.metrics or {}, result.config or {}
    params = {parameter.name: parameter.plain(drawn[parameter.name]) for parameter in space if parameter.name in drawn}
    if result.error or "best_valid_score" not in metrics:
        return _failed(params, str(result.error or "it reported nothing"))

    def those(kind: str) -> dict[str, float] | None:
        return {key[len(kind) :]: value for key, value in metrics.items() if key.startswith(kind)} or None

    numbers = {"best_valid_result": those("valid_"), "test_result": those("test_")}
    protocols = {name: found for name in PROTOCOLS if (found := those(f"{name}_"))}
    effort = {"epochs": metrics["epoch"], "seconds": metrics.get("seconds")}
    score = metrics["best_valid_score"]
    return {"params": params, "best_valid_score": score, **numbers, "test_results": protocols, **effort}


# ------------------------------------------------------------------ what a search leaves behind


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _write_results(output: Path, trials, best, settings: dict[str, Any], config: Config) -> Path:
    """Write every trial as text, in RecBole's form, and the best parameters as YAML, whose path is returned."""
    lines = []
    for trial in trials:
        lines.append(HyperTuning.params2str(trial["params"]))
        if "error" in trial:
            lines.append(f"Failed: {trial['error']}\n")
            continue
        valid = trial["best_valid_result"] or {config["valid_metric"].lower(): trial["best_valid_score"]}
        test = dict2str(trial["test_result"]) if trial["test_result"] else "stopped before its end"
        lines.append(f"Valid result:\n{dict2str(valid)}\nTest result:\n{test}\n")
    output.write_text("\n".join(lines), encoding="utf-8")

    _trial_table(trials).to_csv(_beside(output, ".csv"), index=False)
    head = (
        f"# {settings['model']} on {settings['dataset']}: the best of {len(trials)} trials with {settings['tool']}, "
        f"{config['valid_metric']} on validation {best['best_valid_score']:.6f}\n"
    )
    params, per_model = dict(best["params"]), config.file_config_dict.get("per_model") or {}
    if params.keys() & per_model.get(settings["model"], {}).keys():  # which would stand above them
        params["per_model"] = {**per_model, settings["model"]: {**per_model[settings["model"]], **params}}
    file = _beside(output, ".yaml")
    file.write_text(head + yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return file


def _trial_table(trials: list[dict[str, Any]]) -> pd.DataFrame:
    """A row a trial: its parameters, validation, test under both protocols, epochs, seconds (of the last part, where it
    was cut), and the error of one that failed."""
    rows = []
    for number, trial in enumerate(trials, start=1):
        row = {"trial": number, **trial["params"], "best_valid_score": trial["best_valid_score"]}
        row |= {f"valid {name}": value for name, value in (trial["best_valid_result"] or {}).items()}
        for protocol, results in (trial.get("test_results") or {"": trial["test_result"] or {}}).items():
            row |= {f"test {name} {protocol}".strip(): value for name, value in results.items()}
        rows.append({**row, **{key: trial[key] for key in ("epochs", "seconds", "error") if key in trial}})
    return pd.DataFrame(rows)


def _write_plot(file: Path, trials, settings: dict[str, Any], config: Config) -> None:
    """Plot the validation score of each trial and the best so far as an HTML page that needs no network."""
    import plotly.graph_objects as go

    done = [(n, trial) for n, trial in enumerate(trials, start=1) if trial["best_valid_score"] is not None]
    number, scores = [n for n, _ in done], [trial["best_valid_score"] for _, trial in done]
    best = (np.maximum if config["valid_metric_bigger"] else np.minimum).accumulate(scores)
    text = [HyperTuning.params2str(trial["params"]).replace(", ", "<br>") for _, trial in done]
    figure = go.Figure(
        [
            go.Scatter(x=number, y=scores, text=text, mode="markers", name="trial"),
            go.Scatter(x=number, y=best, mode="lines", line_shape="hv", name="best so far"),
        ]
    )
    figure.update_layout(
        title=f"{settings['model']} on {settings['dataset']}, {settings['tool']}",
        xaxis={"title": "trial", "dtick": max(1, len(trials) // 20)},
        yaxis={"title": f"{config['valid_metric']} on validation"},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(file)

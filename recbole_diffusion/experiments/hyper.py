"""Hyper-parameter search with RecBole's HyperTuning (HyperOpt) or with Ray Tune; cut short, it continues."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_diffusion.compat.files import lock_file
from recbole_diffusion.config.checks import check_choice, check_number
from recbole_diffusion.config.keys import MACHINE_KEYS, RUN_KEYS
from recbole_diffusion.experiments.hyperopt_search import search_with_hyperopt
from recbole_diffusion.experiments.ray_search import search_with_ray
from recbole_diffusion.experiments.runs import own_process_state
from recbole_diffusion.experiments.search_results import write_plot, write_results
from recbole_diffusion.experiments.space import Parameter, read_space
from recbole_diffusion.experiments.trials import Search, best_trial
from recbole_diffusion.quick_start import build_config, prepare_data
from recbole_diffusion.registry import PROPS, known_keys
from recbole_diffusion.trainer.resume import data_checksum

# What each tool can be told, with its defaults; None: see `search`.
OPTIONS: dict[str, dict[str, Any]] = {
    "Hyperopt": {"algo": None, "max_evals": 10, "early_stop": 10},
    "Ray": {"num_samples": 10, "cpus_per_trial": 1, "gpus_per_trial": None, "address": None, "grace_period": 5},
}
TOOLS = {"Hyperopt": search_with_hyperopt, "Ray": search_with_ray}
ALGORITHMS = ("exhaustive", "random", "bayes")
# The search itself says where a trial keeps its state, and whether it resumes.
OWN_KEYS = ("checkpoint_dir", "resume")
SEARCHED = {"MAX_ITEM_LIST_LENGTH", "eval_batch_size", "eval_step"}  # of the groups of evaluation and data


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
    and what it needs to continue; called again with the same arguments, it does. A trial that ends in a ValueError,
    such as a loss that is not finite, counts as failed. ``display_file`` takes a plot (HTML). The command line is not
    read.

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
        An option, a line of the params file or a parameter is out of range; the output belongs to another search, or
        another process is at it; every trial failed; or a file is missing.
    """
    with own_process_state():
        plan = _plan(model, dataset, params_file, tool, config_file_list, config_dict or {}, output_file, options)
        _require_data(plan.config)
    with lock_file(plan.file(".lock"), f"output_file [{plan.output}]"):  # others would propose the same trials
        _claim_output(plan)
        trials = TOOLS[plan.tool](plan)
    best = best_trial(trials, plan.config["valid_metric_bigger"])
    best_file = write_results(plan, trials, best)
    if display_file:
        write_plot(Path(display_file), plan, trials)
    found = {key: best[key] for key in ("best_valid_score", "best_valid_result", "test_result")}
    names = {key: plan.config[key] for key in ("model", "dataset")}
    return {**names, "best_params": best["params"], **found, "best_file": str(best_file), "trials": trials}


def _plan(model, dataset, params_file, tool, config_file_list, config_dict, output_file, options) -> Search:
    """Read and check what a search was asked for."""
    tool = next((name for name in OPTIONS if name.lower() == str(tool).lower()), tool)
    options = _check_options(tool, options)
    config = _build_config(model, dataset, config_file_list, config_dict)
    model, dataset = config["model"], config["dataset"]
    params_file = Path(params_file or _default_space(model))
    space = read_space(params_file)
    _check_space(space, config, config_dict, params_file, tool)
    if tool == "Hyperopt":
        options["algo"] = _check_algo(options["algo"], space)
    output = Path(output_file or Path("hyper_results") / f"{model}-{dataset}-{tool.lower()}.result")
    return Search(tool, options, space, config, _shared_parameters(config), output)


def _default_space(model: str) -> Path:
    """The space that comes with a model."""
    file, known = PROPS / "hyper" / f"{model}.hyper", sorted(path.stem for path in (PROPS / "hyper").glob("*.hyper"))
    if not file.is_file():
        raise ValueError(
            f"model [{model}] comes without a space to search: name one by params_file, a line for each parameter, "
            f"such as `learning_rate choice [0.001,0.0003]`. Spaces are there for {', '.join(known)}."
        )
    return file


def _shared_parameters(config: Config) -> dict[str, Any]:
    """What a trial in another process and folder needs: every parameter as a value, and no relative path."""
    # The papers' protocol is what every trial has unless it is told otherwise.
    default = ("paper_protocol", True)
    shared = {key: value for key, value in config.external_config_dict.items() if (key, value) != default}
    files = {key: value for key, value in shared.items() if key.endswith(("_path", "_file")) and value}
    paths = {key: os.path.abspath(value) for key, value in files.items()}
    data_path = str(Path(config["data_path"]).absolute().parent)  # RecBole adds the dataset's name
    return {**shared, **paths, "model": config["model"], "dataset": config["dataset"], "data_path": data_path}


def _require_data(config: Config) -> None:
    """Download the dataset once, before the trials, or say what is missing."""
    if not (Path(config["data_path"]) / f"{config['dataset']}.inter").is_file():
        prepare_data(config)


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
    """Raise ValueError for a searched key that nothing reads, that is fixed as well, or that says what scores are."""
    known = known_keys(config)
    fixed = {key.name for group in ("Evaluation", "Data") for key in RUN_KEYS[group]} - SEARCHED | MACHINE_KEYS
    if config.external_config_dict.get("nproc", 1) > 1:
        raise ValueError(f"nproc [{config['nproc']}] must be 1 in a search, whose trials take a process each.")
    for name in (parameter.name for parameter in space):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f": did you mean [{near[0]}]?" if near else "."
            raise ValueError(f"params_file [{params_file}]: [{name}] is no parameter of {config['model']}{hint}")
        if name in given or name in ("model", "dataset", *OWN_KEYS):
            raise ValueError(f"[{name}] cannot be searched and fixed at once: params_file [{params_file}] has it too.")
        if name in fixed:
            why = "it says what is measured and on what data, or concerns the machine alone"
            raise ValueError(f"params_file [{params_file}]: [{name}] cannot be searched, as {why}.")
    for name in (*OWN_KEYS, *(["gpu_id"] if tool == "Ray" else [])):
        if name in config.external_config_dict:
            whose = "Ray" if name == "gpu_id" else "the search"
            raise ValueError(f"{name} [{config[name]}] cannot be given to a search: {whose} sets it for each trial.")


def _claim_output(search: Search) -> None:
    """Note the search beside its output; raise ValueError where another search has trials there."""
    file, begun = search.file(".search.json"), [search.file(".trials.jsonl"), search.file(".ray")]
    settings = json.loads(json.dumps(_settings(search), default=str))
    if not file.is_file() or not any(path.exists() for path in begun):
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if found.get(key) != value:
            raise ValueError(
                f"output_file [{search.output}] belongs to another search, with {key} [{found.get(key)}], not "
                f"[{value}]: name another output_file, or remove "
                f"{' and '.join(str(path) for path in begun if path.exists())}."
            )


def _settings(search: Search) -> dict[str, Any]:
    """What makes a search this one and no other."""
    return {
        "tool": search.tool,
        **{key: search.config[key] for key in ("model", "dataset")},
        "params_file": [[parameter.name, parameter.kind, list(parameter.values)] for parameter in search.space],
        **{key: search.options.get(key) for key in ("algo", "num_samples", "grace_period")},
        "data": data_checksum(search.config),
        "parameters": {key: value for key, value in search.shared.items() if key not in MACHINE_KEYS},
    }

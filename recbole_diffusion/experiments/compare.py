"""Comparison of models over training seeds; each run leaves one JSON file, and one that was cut goes on."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_diffusion.compat.files import write_whole
from recbole_diffusion.config.keys import MACHINE_KEYS
from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.experiments.compare_tables import Runs, comparison_tables
from recbole_diffusion.experiments.runs import (
    error_line,
    own_process_state,
    record,
    run_or_resume,
)
from recbole_diffusion.quick_start import build_config
from recbole_diffusion.registry import MODELS
from recbole_diffusion.trainer.resume import data_checksum, same_data

# The comparison itself sets these for each run, which takes one process.
OWN_KEYS = ("seed", "model", "dataset", "checkpoint_dir", "resume", "config_files", "nproc", "world_size", "local_rank")


def compare(
    models: Sequence[str],
    dataset: str,
    seeds: int | Sequence[int] = 5,
    baseline: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Train and test each model, ours or RecBole's, under each training seed, and write the tables.

    Parameters
    ----------
    seeds
        Values of RecBole's key ``seed``; a count n stands for 1 .. n.
    baseline
        The model that the others are tested against (default: the last of RecBole's among ``models``, else the first).
    config_file_list, config_dict
        Parameters of every run. The command line is not read.
    output
        Folder for ``compare.md``, ``compare.tex`` and ``runs/<model>-<dataset>-<seed>.json`` (default:
        ``compare/<dataset>``). Runs found there are not run again, and a run that was cut goes on. One
        comparison at a time works in a folder.

    Returns ``runs`` (model -> seed -> what the file of the run holds), ``failed`` (name of the run -> error: it
    does not stop the others), ``markdown`` and ``latex`` (paths of the tables; None where no model has a run).

    Raises
    ------
    ValueError, FileNotFoundError
        An option or a parameter is out of range; the output holds a run with other parameters; or a file is missing.
    """
    models, seeds, baseline = list(models), _check_seeds(seeds), _check_models(list(models), baseline)
    output = _check_output(Path(output or Path("compare") / dataset))
    files, parameters = list(config_file_list or []), dict(config_dict or {})
    with own_process_state():
        runs, waiting = _plan_runs(models, dataset, seeds, files, parameters, output)
        failed = _train_waiting(runs, waiting)
    result = {"runs": runs, "failed": failed, "markdown": None, "latex": None}
    if any(runs.values()):
        command = _command(models, dataset, seeds, baseline, files, parameters)
        tables = comparison_tables({model: found for model, found in runs.items() if found}, dataset, baseline)
        title = f"{', '.join(models)} on {dataset}"
        result["markdown"], result["latex"] = _write_tables(output, title, command, tables, failed)
    return result


def _write_tables(output: Path, title: str, command: str, tables, failed: Mapping[str, str]) -> tuple[Path, Path]:
    """Write ``compare.md`` and ``compare.tex``; their paths are returned."""
    markdown, latex = output / "compare.md", output / "compare.tex"
    head = f"# {title}\n\n```bash\n{command}\n```\n"
    note = "".join(f"\nFailed: {name}: {error}\n" for name, error in failed.items())
    write_whole(markdown, "\n".join([head + note, *(table.markdown() for table in tables)]))
    write_whole(latex, "\n\n".join([f"% {command}", *(table.latex() for table in tables)]) + "\n")
    return markdown, latex


# ------------------------------------------------------------------ checks


def _check_seeds(seeds: int | Sequence[int]) -> list[int]:
    values = list(seeds) if isinstance(seeds, (list, tuple)) else [seeds]
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in values)
    if not whole or not values or len(set(values)) < len(values) or seeds == 0:
        raise ValueError(f"seeds [{seeds}] must be a count >= 1, or different whole numbers >= 0.")
    return values if isinstance(seeds, (list, tuple)) else list(range(1, seeds + 1))


def _check_models(models: list[str], baseline: str | None) -> str:
    """The baseline; unknown names of models are left to ``build_config``."""
    if not models or len(set(models)) < len(models):
        raise ValueError(f"models [{','.join(models)}] must be one or more names, each once.")
    if baseline is None:
        return next((model for model in reversed(models) if model not in MODELS), models[0])
    if baseline not in models:
        raise ValueError(f"baseline [{baseline}] must be one of the models: {', '.join(models)}.")
    return baseline


def _check_output(output: Path) -> Path:
    """Raise ValueError where the output folder, or one above it, is a file."""
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"output [{output}] must be a folder, new or old, and [{path}] is a file.")
    return output


def _check_own_keys(parameters: Mapping[str, Any]) -> None:
    for key in OWN_KEYS:
        if key in parameters:
            raise ValueError(f"{key} [{parameters[key]}] cannot be a parameter of a comparison, which sets it itself.")


# ------------------------------------------------------------------ the runs


def _plan_runs(models, dataset, seeds, files, parameters, output: Path) -> tuple[Runs, list[tuple]]:
    """The runs that are done, and of those that wait Config, JSON file and the data's checksum.

    A wrong parameter is found before the first.

    Raises
    ------
    ValueError, FileNotFoundError
        As ``compare``.
    """
    _check_own_keys(parameters)
    runs: Runs = {model: {} for model in models}
    waiting = []
    for seed in seeds:
        for model in models:
            config = build_config(model, dataset, files, {**parameters, "seed": seed})
            _check_own_keys(config.file_config_dict)
            file = output / "runs" / f"{model}-{dataset}-{seed}.json"
            if file.is_file():
                runs[model][seed] = _load_run(file, config)
            else:
                waiting.append((config, file, data_checksum(config)))
    return runs, waiting


def _train_waiting(runs: Runs, waiting: list[tuple[Config, Path, int | None]]) -> dict[str, str]:
    """Train what waits, and add it to the runs; returns the errors of those that failed."""
    done, failed = sum(map(len, runs.values())), {}
    for number, (config, file, data) in enumerate(waiting, start=done + 1):
        model, dataset, seed = config["model"], config["dataset"], config["seed"]
        print(f"[{number}/{done + len(waiting)}] {model} on {dataset}, seed {seed}", flush=True)
        try:
            runs[model][seed] = _train(config, file, data)
        except KeyboardInterrupt:
            whole, ended = done + len(waiting), sum(map(len, runs.values()))
            kept = f"{ended} of {whole} runs are done and kept"
            raise KeyboardInterrupt(f"Interrupted: {kept}; the same command goes on.") from None
        except Exception as error:  # RecBole's models raise what they like: the other runs go on
            failed[file.stem] = error_line(error)
            print(f"  failed: {failed[file.stem]}", flush=True)
    return failed


def _train(config: Config, file: Path, data: int | None) -> dict[str, Any]:
    """Run what ``config`` says, or go on with it, and write its JSON file; checkpoints live as long as the run."""
    folder = file.parent.parent / "saved" / file.stem
    _check_same(config, data)
    run = run_or_resume(config, folder)
    data = _check_same(config, data)
    kept = ("model", "dataset", "seed", "test_result", "test_results", "best_valid_score", "epochs")
    found = {key: run[key] for key in kept}
    found["versions"] = {name: metadata.version(name) for name in ("recbole-diffusion", "recbole", "torch")}
    found |= {"config": run["config"], "data_checksum": data}
    record(file, found)
    shutil.rmtree(folder, ignore_errors=True)
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in found["test_result"].items())
    print(f"  {metrics} ({found['epochs']} epochs)", flush=True)
    return found


def _check_same(config: Config, data: int | None) -> int | None:
    """The checksum of the dataset's files; raises ValueError where they are no longer those of the other runs."""
    now = data_checksum(config)
    if data not in (None, now):
        raise ValueError(f"the files of dataset [{config['dataset']}] have changed since the comparison began.")
    return now


def _load_run(file: Path, config: Config) -> dict[str, Any]:
    """Read a run that was done before; ValueError where its parameters or data are not those asked for now."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        was, now = found["config"], result_settings(config)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"output: [{file}] is not a run of a comparison: {error!r}. Remove it.") from error
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise ValueError(
                f"output: [{file}] was run with {key} [{was.get(key)}], not [{now.get(key)}]: "
                "name another output, or remove it."
            )
    if not same_data(found, config):
        raise ValueError(
            f"output: [{file}] was run on other files of dataset [{config['dataset']}]: name another output, or remove "
            "it."
        )
    return found


def _command(models, dataset, seeds: list[int], baseline, files, parameters: Mapping[str, Any]) -> str:
    """What makes the tables anew; of the machine only where the data lie."""
    words = ["python", "-m", "recbole_diffusion.compare", f"--models={','.join(models)}", f"--dataset={dataset}"]
    words += [f"--seeds={','.join(map(str, seeds))}{',' * (len(seeds) == 1)}", f"--baseline={baseline}"]
    words += [f"--config_files={' '.join(files)}"] if files else []
    words += [f"--{key}={value}" for key, value in parameters.items() if key not in MACHINE_KEYS - {"data_path"}]
    return shlex.join(words)

"""Compare models over training seeds: mean, standard deviation, paired t-test and effect size against a baseline.

    python -m recbole_diffusion.compare --models=DiffuRec,DiffuRecSys,SASRec --dataset=ml-100k --seeds=5

Each run leaves one JSON file in the output folder; killed and started again, a comparison goes on where it stood."""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.evaluator.register import smaller_metrics
from scipy.stats import ttest_rel
from tabulate import tabulate

from recbole_diffusion.config.keys import MACHINE_KEYS
from recbole_diffusion.experiments.runs import own_process_state, plain_config, told, write_whole
from recbole_diffusion.quick_start import build_config, run
from recbole_diffusion.registry import MODELS

PAPERS = Path(__file__).parent.parent.parent / "results" / "papers.csv"
# The comparison itself sets these for each run, which takes one process.
OWN_KEYS = ("seed", "model", "dataset", "checkpoint_dir", "resume", "config_files", "nproc", "world_size", "local_rank")
NOT_AVAILABLE = "n/a"

Runs = dict[str, dict[int, dict[str, Any]]]  # model -> seed -> what its JSON file holds


@dataclass(frozen=True)
class Table:
    """A table in Markdown's terms: ``**`` for bold in its cells."""

    title: str
    text: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Heading, text and table."""
        return f"## {self.title}\n\n{self.text}\n\n" + tabulate(self.rows, self.head, "pipe", disable_numparse=True)

    def latex(self) -> str:
        """A table environment that needs no package."""
        rows = [[_latex(cell) for cell in row] for row in self.rows]
        body = tabulate(rows, list(map(_latex, self.head)), "latex_raw", disable_numparse=True)
        caption = _latex(f"{self.title}. {self.text}")
        return f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{body}\n\\end{{table}}"


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
        ``results/compare-<dataset>``). Runs found there are not run again, and a run that was cut goes on. One
        comparison at a time works in a folder.

    Returns ``runs`` (model -> seed -> what the file of the run holds), ``failed`` (name of the run -> error: it
    does not stop the others), ``markdown``
    and ``latex`` (paths of the tables; None where the baseline or every other model has no run).

    Raises
    ------
    ValueError, FileNotFoundError
        An option or a parameter is out of range; the output holds a run with other parameters; or a file is missing.
    """
    models, seeds, baseline = list(models), _check_seeds(seeds), _check_models(list(models), baseline)
    output = Path(output or Path("results") / f"compare-{dataset}")
    files, parameters = list(config_file_list or []), dict(config_dict or {})
    runs: Runs = {model: {} for model in models}
    waiting = []
    _check_own_keys(parameters)
    with own_process_state():
        # Whatever parameter is wrong is found before the first run.
        for seed in seeds:
            for model in models:
                config = build_config(model, dataset, files, {**parameters, "seed": seed})
                _check_own_keys(config.file_config_dict)
                file = output / "runs" / f"{model}-{dataset}-{seed}.json"
                if file.is_file():
                    runs[model][seed] = _load_run(file, config)
                else:
                    waiting.append((model, seed, file, config))
        total, failed = len(models) * len(seeds), {}
        for number, (model, seed, file, config) in enumerate(waiting, start=total - len(waiting) + 1):
            print(f"[{number}/{total}] {model} on {dataset}, seed {seed}", flush=True)
            try:
                runs[model][seed] = _train(config, files, parameters, file, (output / "saved" / file.stem).resolve())
            except Exception as error:  # RecBole's models raise what they like: the other runs go on
                failed[file.stem] = told(error)
                print(f"  failed: {failed[file.stem]}", flush=True)
    result = {"runs": runs, "failed": failed, "markdown": None, "latex": None}
    if not any(runs.values()):
        return result
    tables = _tables({model: found for model, found in runs.items() if found}, dataset, baseline)
    command = _command(models, dataset, seeds, baseline, files, parameters)
    head = f"# {', '.join(models)} on {dataset}\n\n```bash\n{command}\n```\n"
    note = "".join(f"\nFailed: {name}: {error}\n" for name, error in failed.items())
    result["markdown"], result["latex"] = output / "compare.md", output / "compare.tex"
    write_whole(result["markdown"], "\n".join([head + note, *(table.markdown() + "\n" for table in tables)]))
    write_whole(result["latex"], "\n\n".join([f"% {command}", *(table.latex() for table in tables)]) + "\n")
    return result


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


def _check_own_keys(parameters: Mapping[str, Any]) -> None:
    for key in OWN_KEYS:
        if key in parameters:
            raise ValueError(f"{key} [{parameters[key]}] cannot be a parameter of a comparison, which sets it itself.")


def _load_run(file: Path, config: Config) -> dict[str, Any]:
    """Read a run that was done before; ValueError where its parameters are not those asked for now."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        was, now = found["config"], plain_config(config)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"output: [{file}] is not a run of a comparison: {error!r}. Remove it.") from error
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise ValueError(
                f"output: [{file}] was run with {key} [{was.get(key)}], not [{now.get(key)}]: "
                "name another output, or remove it."
            )
    return found


# ------------------------------------------------------------------ one run


def _train(config: Config, files: list[str], parameters: dict[str, Any], file: Path, folder: Path) -> dict[str, Any]:
    """Run what ``config`` says, or go on with it, and write its JSON file; checkpoints live as long as the run."""
    quiet = {"show_progress": False, "state": "WARNING"}
    quiet = {key: value for key, value in quiet.items() if key not in config.external_config_dict}
    own = {"seed": config["seed"], "checkpoint_dir": str(folder), "resume": "auto"}
    result = run(config["model"], config["dataset"], files, {**quiet, **parameters, **own})
    score = float(result["best_valid_score"])
    found = {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "test_result": {name: float(value) for name, value in result["test_result"].items()},
        "best_valid_score": score if math.isfinite(score) else None,  # no validation took place
        "epochs": result["epochs"],
        "versions": {name: metadata.version(name) for name in ("recbole-diffusion", "recbole", "torch")},
        "config": plain_config(config),
    }
    write_whole(file, json.dumps(found, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in found["test_result"].items())
    print(f"  {metrics} ({found['epochs']} epochs)", flush=True)
    return found


# ------------------------------------------------------------------ statistics and tables


ROUNDING = 2e-6  # differences of metrics with six decimals that are equal but for it


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of the paired differences, p of the two-sided t-test and Cohen's d (mean over standard deviation, n - 1).

    p and d are None for one pair, and where all differences are the same: there is no spread to test against.
    """
    differences = np.subtract(values, baseline)
    mean = float(differences.mean())
    if len(differences) < 2 or np.ptp(differences) <= ROUNDING:
        return mean, None, None
    return mean, float(ttest_rel(values, baseline).pvalue), float(mean / differences.std(ddof=1))


def _tables(runs: Runs, dataset: str, baseline: str) -> list[Table]:
    """The tables of the models that have runs."""
    metrics = list(next(iter(next(iter(runs.values())).values()))["test_result"])
    tables = [_metric_table(runs, dataset, metrics)]
    if baseline in runs and len(runs) > 1:
        tables.append(_test_table(runs, metrics, baseline))
    papers = _paper_table(list(runs), dataset, metrics)
    return [*tables, papers] if papers else tables


def _values(runs: Runs, model: str, metric: str, seeds: Sequence[int] | None = None) -> list[float]:
    return [runs[model][seed]["test_result"][metric] for seed in seeds or sorted(runs[model])]


def _metric_table(runs: Runs, dataset: str, metrics: list[str]) -> Table:
    """Mean and standard deviation of each test metric; all that print as the best are bold."""
    columns = []
    for metric in metrics:
        values = {model: _values(runs, model, metric) for model in runs}
        means = {model: f"{np.mean(found):.4f}" for model, found in values.items()}
        best = (min if metric.split("@")[0] in smaller_metrics else max)(means.values(), key=float)
        column = []
        for model, found in values.items():
            mean = f"**{means[model]}**" if means[model] == best else means[model]
            column.append(f"{mean} ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else mean)
        columns.append(column)
    rows = []
    for model, cells in zip(runs, zip(*columns, strict=True), strict=True):
        epochs = np.mean([found["epochs"] for found in runs[model].values()])
        rows.append([model, *cells, str(len(runs[model])), f"{epochs:.1f}"])
    text = "Test metrics: mean ± standard deviation (n - 1) over training seeds, the best in bold."
    return Table(f"Metrics on {dataset}", text, ["model", *metrics, "seeds", "epochs"], rows)


def _test_table(runs: Runs, metrics: list[str], baseline: str) -> Table:
    """Difference to the baseline, p and effect size over the seeds that a model shares with it."""
    rows = []
    for model in runs:
        seeds = sorted(runs[model].keys() & runs[baseline].keys())
        if model == baseline or not seeds:
            continue
        for metric in metrics:
            mean, p, d = paired_test(_values(runs, model, metric, seeds), _values(runs, baseline, metric, seeds))
            tested = [NOT_AVAILABLE] * 2 if p is None else [f"{p:.2g}", f"{d:+.2f}"]
            rows.append([model, metric, f"{mean:+.4f}", *tested, str(len(seeds))])
    text = (
        "Model minus baseline, seed by seed: mean difference, p of the two-sided paired t-test (not corrected for the "
        f"number of tests), effect size (Cohen's d of the paired differences). {NOT_AVAILABLE}: one seed, or no spread."
    )
    return Table(f"Against {baseline}", text, ["model", "metric", "difference", "p", "d", "seeds"], rows)


def _paper_table(models: list[str], dataset: str, metrics: list[str]) -> Table | None:
    """What the papers report of these models on this dataset; None where there is nothing."""
    if not PAPERS.is_file():
        print("The papers' numbers are left out: results/papers.csv comes with a checkout alone.")
        return None
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    with PAPERS.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            # A paper may have versions of a model, "DiffuRecSys (V1)", and another spelling, "Bert4Rec".
            name = line["model"].partition(" (")[0].lower()
            if line["dataset"] == dataset and name in map(str.lower, models):
                value = f"{float(line['value']):.4f}" + (f" ± {float(line['std']):.4f}" if line["std"] else "")
                key = (line["model"], line["paper"], line["table"])
                found.setdefault(key, {})[_hit(line["metric"])] = value
    if not found:
        print(f"results/papers.csv has no numbers of these models on {dataset}.")
        return None
    order = list(map(str.lower, models))
    keys = sorted(found, key=lambda key: order.index(key[0].partition(" (")[0].lower()))
    rows = [[*key, *(found[key].get(_hit(metric), "") for metric in metrics)] for key in keys]
    text = "From results/papers.csv, under the papers' own settings."
    return Table(f"The papers' numbers on {dataset}", text, ["model", "paper", "table", *metrics], rows)


def _hit(metric: str) -> str:
    """One item of a user is right, so HR, hit and recall are one."""
    return re.sub(r"^(hr|recall)@", "hit@", metric.lower())


LATEX = str.maketrans(
    {
        **{char: rf"\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)


def _latex(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text.translate(LATEX))


# ------------------------------------------------------------------ the command line


def _command(models, dataset, seeds: list[int], baseline, files, parameters: Mapping[str, Any]) -> str:
    """What makes the tables anew; nothing of the machine."""
    words = ["python", "-m", "recbole_diffusion.compare", f"--models={','.join(models)}", f"--dataset={dataset}"]
    words += [f"--seeds={','.join(map(str, seeds))}{',' * (len(seeds) == 1)}", f"--baseline={baseline}"]
    words += [f"--config_files={' '.join(files)}"] if files else []
    words += [f"--{key}={value}" for key, value in parameters.items() if key not in MACHINE_KEYS]
    return shlex.join(words)


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Read the flags; every other ``--key=value`` is a parameter of all runs."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_diffusion.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any parameter of a model, of training or of evaluation can be given as --key=value, for all runs.",
    )
    parser.add_argument("--models", required=True, help="names, ours or RecBole's, separated by commas")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset (default: %(default)s)")
    parser.add_argument("--seeds", type=_read_seeds, default=5, help="a count n for 1 to n, or a list: 7,8,9 "
        "(one alone: 7,) (default: %(default)s)")  # fmt: skip
    parser.add_argument("--baseline", help="one of the models (default: the last of RecBole's, else the first)")
    parser.add_argument("--config_files", default="", help="YAML files with parameters, separated by spaces")
    parser.add_argument("--output", help="folder for tables and runs (default: results/compare-<dataset>)")
    args, rest = parser.parse_known_args(argv)
    for arg in rest:
        if not re.match(r"--\w+=", arg):
            parser.error(f"cannot read [{arg}]: write parameters as --key=value")
    return args, dict(arg[2:].split("=", 1) for arg in rest)


def _read_seeds(text: str) -> int | list[int]:
    try:
        return [int(seed) for seed in text.split(",") if seed.strip()] if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"[{text}] must be a count, or whole numbers separated by commas") from None


def main() -> None:
    args, parameters = parse_args()
    models = [model.strip() for model in args.models.split(",") if model.strip()]
    try:
        result = compare(
            models, args.dataset, args.seeds, args.baseline, args.config_files.split(), parameters, args.output
        )
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    if result["markdown"]:
        print(f"\n{result['markdown'].read_text(encoding='utf-8')}\nTables: {result['markdown']}, {result['latex']}")
    if result["failed"]:
        raise SystemExit(f"Failed: {', '.join(result['failed'])}; started again, they are tried again.")

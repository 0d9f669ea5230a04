"""The tables of a comparison: metrics, tests against the baseline, and the papers' numbers beside them."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from recbole.evaluator.register import smaller_metrics
from scipy.stats import sem, t, ttest_rel

from recbole_diffusion.experiments.tables import Table, metric_cell, paper_cell
from recbole_diffusion.protocols import PROTOCOLS
from recbole_diffusion.registry import PROPS

PAPERS = PROPS.parent / "benchmarks" / "papers.csv"  # in a checkout as in a wheel
NOT_AVAILABLE = "n/a"
ROUNDING = 2e-6  # differences of metrics with six decimals that are equal but for it

Runs = dict[str, dict[int, dict[str, Any]]]  # model -> seed -> what its JSON file holds
Metrics = Mapping[str, float]
Values = Mapping[str, Mapping[int, Metrics]]  # model -> seed -> test metrics under one protocol
PROTOCOL_WORDS = {"candidates": "as candidates", "masked": "masked"}


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of the paired differences, p of the two-sided t-test and Cohen's d (mean over standard deviation, n - 1).

    p and d are None for one pair, and where all differences are the same: there is no spread to test against.
    """
    differences = np.subtract(values, baseline)
    mean = float(differences.mean())
    if len(differences) < 2 or np.ptp(differences) <= ROUNDING:
        return mean, None, None
    return mean, float(ttest_rel(values, baseline).pvalue), float(mean / differences.std(ddof=1))


def paired_interval(values: Sequence[float], baseline: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval of the mean of the paired differences."""
    differences = np.subtract(values, baseline)
    mean, half = differences.mean(), t.ppf((1 + share) / 2, len(differences) - 1) * sem(differences)
    return float(mean - half), float(mean + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm, 1979: A simple sequentially rejective multiple test procedure)."""
    order, n = np.argsort(p_values), len(p_values)
    stepped = np.maximum.accumulate([(n - place) * p_values[index] for place, index in enumerate(order)])
    corrected = np.empty(n)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def comparison_tables(runs: Runs, dataset: str, baseline: str) -> list[Table]:
    """The tables of the models that have runs: of each protocol, with the models that were ranked under it."""
    every = [run for found in runs.values() for run in found.values()]
    metrics, tables = list(every[0]["test_result"]), []
    epochs = {model: fmean(run["epochs"] for run in found.values()) for model, found in runs.items()}
    for protocol in PROTOCOLS if any(run.get("test_results") for run in every) else (None,):
        ranked = {
            model: {seed: _metrics(run, protocol) for seed, run in found.items()} for model, found in runs.items()
        }
        values = {model: found for model, found in ranked.items() if all(found.values())}
        if not values:
            continue
        words = f", history {PROTOCOL_WORDS[protocol]}" if protocol else ""
        alone = [model for model in values if not all(run.get("test_results") for run in runs[model].values())]
        note = (
            f" {', '.join(alone)}: ranked under this protocol alone, and under leave-one-out for users of two "
            "interactions as well, on whose only row sequential models are trained."
        )
        tables.append(metric_table(values, epochs, f"{dataset}{words}", metrics, note if protocol and alone else ""))
        if baseline in values and len(values) > 1:
            tables.append(significance_table(values, metrics, baseline, words))
    papers = paper_table(list(runs), dataset, metrics)
    return [*tables, papers] if papers else tables


def _metrics(run: Mapping[str, Any], protocol: str | None) -> Metrics | None:
    """Test metrics under a protocol, None where the model was not ranked under it."""
    if protocol is None:
        return run["test_result"]
    # For a model that is not sequential RecBole masks the history, unless items are said to be repeatable.
    own = "candidates" if run["config"].get("repeatable") else "masked"
    return (run.get("test_results") or {own: run["test_result"]}).get(protocol)


def _values(runs: Values, model: str, metric: str, seeds: Sequence[int] | None = None) -> list[float]:
    return [runs[model][seed][metric] for seed in seeds or sorted(runs[model])]


def metric_table(runs: Values, epochs: Mapping[str, float], title: str, metrics: list[str], note: str = "") -> Table:
    """Mean and standard deviation of each test metric; all that print as the best are bold."""
    columns = []
    for metric in metrics:
        values = {model: _values(runs, model, metric) for model in runs}
        means = {model: f"{fmean(found):.4f}" for model, found in values.items()}
        best = (min if metric.split("@")[0] in smaller_metrics else max)(means.values(), key=float)
        columns.append([metric_cell(found, bold=means[model] == best) for model, found in values.items()])
    rows = []
    for model, cells in zip(runs, zip(*columns, strict=True), strict=True):
        rows.append([model, *cells, str(len(runs[model])), f"{epochs[model]:.1f}"])
    text = "Test metrics: mean ± standard deviation (n - 1) over training seeds, the best in bold."
    return Table(f"Metrics on {title}", text + note, ["model", *metrics, "seeds", "epochs"], rows)


def significance_table(runs: Values, metrics: list[str], baseline: str, words: str = "") -> Table:
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
    return Table(f"Against {baseline}{words}", text, ["model", "metric", "difference", "p", "d", "seeds"], rows)


def paper_table(models: list[str], dataset: str, metrics: list[str]) -> Table | None:
    """What the papers report of these models on this dataset; None where there is nothing."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    with PAPERS.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            # A paper may have versions of a model, "DiffuRecSys (V1)", and another spelling, "Bert4Rec".
            name = line["model"].partition(" (")[0].lower()
            if line["dataset"] == dataset and name in map(str.lower, models):
                value = paper_cell(float(line["value"]), float(line["std"]) if line["std"] else None)
                key = (line["model"], line["paper"], line["table"])
                found.setdefault(key, {})[_as_hit(line["metric"])] = value
    if not found:
        print(f"benchmarks/papers.csv has no numbers of these models on {dataset}.")
        return None
    order = list(map(str.lower, models))
    keys = sorted(found, key=lambda key: order.index(key[0].partition(" (")[0].lower()))
    rows = [[*key, *(found[key].get(_as_hit(metric), "") for metric in metrics)] for key in keys]
    text = "From benchmarks/papers.csv, under the papers' own settings."
    return Table(f"The papers' numbers on {dataset}", text, ["model", "paper", "table", *metrics], rows)


def _as_hit(metric: str) -> str:
    """One item of a user is right, so HR, hit and recall are one."""
    return re.sub(r"^(hr|recall)@", "hit@", metric.lower())

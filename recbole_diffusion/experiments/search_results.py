"""What a hyper-parameter search leaves behind: every trial as text, the best parameters, and a plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from recbole.trainer import HyperTuning
from recbole.utils import dict2str

from recbole_diffusion.experiments.trials import Search, Trial


def write_results(search: Search, trials: list[Trial], best: Trial) -> Path:
    """Write every trial as text, in RecBole's form, and the best parameters as YAML, whose path is returned."""
    config, lines = search.config, []
    for trial in trials:
        lines.append(HyperTuning.params2str(trial["params"]))
        if "error" in trial:
            lines.append(f"Failed: {trial['error']}\n")
            continue
        valid = trial["best_valid_result"] or {config["valid_metric"].lower(): trial["best_valid_score"]}
        test = dict2str(trial["test_result"]) if trial["test_result"] else "stopped before its end"
        lines.append(f"Valid result:\n{dict2str(valid)}\nTest result:\n{test}\n")
    search.output.write_text("\n".join(lines), encoding="utf-8")

    trial_table(trials).to_csv(search.file(".csv"), index=False)
    head = (
        f"# {search.title}: the best of {len(trials)} trials with {search.tool}, "
        f"{config['valid_metric']} on validation {best['best_valid_score']:.6f}\n"
    )
    model, per_model = config["model"], config.file_config_dict.get("per_model") or {}
    params = dict(best["params"])
    if params.keys() & per_model.get(model, {}).keys():  # which would stand above them
        params["per_model"] = {**per_model, model: {**per_model[model], **params}}
    file = search.file(".yaml")
    file.write_text(head + yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    return file


def trial_table(trials: list[Trial]) -> pd.DataFrame:
    """A row a trial: parameters, validation, test under both protocols, epochs, seconds, and its error if it failed."""
    rows = []
    for number, trial in enumerate(trials, start=1):
        row = {"trial": number, **trial["params"], "best_valid_score": trial["best_valid_score"]}
        row |= {f"valid {name}": value for name, value in (trial["best_valid_result"] or {}).items()}
        for protocol, results in (trial.get("test_results") or {"": trial["test_result"] or {}}).items():
            row |= {f"test {name} {protocol}".strip(): value for name, value in results.items()}
        kept = ("epochs", "seconds", "cpu_seconds", "error")
        rows.append({**row, **{key: trial[key] for key in kept if key in trial}})
    return pd.DataFrame(rows)


def write_plot(file: Path, search: Search, trials: list[Trial]) -> None:
    """Plot the validation score of each trial and the best so far as an HTML page that needs no network."""
    import plotly.graph_objects as go

    done = [(n, trial) for n, trial in enumerate(trials, start=1) if trial["best_valid_score"] is not None]
    number, scores = [n for n, _ in done], [trial["best_valid_score"] for _, trial in done]
    best = (np.maximum if search.config["valid_metric_bigger"] else np.minimum).accumulate(scores)
    text = [HyperTuning.params2str(trial["params"]).replace(", ", "<br>") for _, trial in done]
    figure = go.Figure(
        [
            go.Scatter(x=number, y=scores, text=text, mode="markers", name="trial"),
            go.Scatter(x=number, y=best, mode="lines", line_shape="hv", name="best so far"),
        ]
    )
    figure.update_layout(
        title=f"{search.title}, {search.tool}",
        xaxis={"title": "trial", "dtick": max(1, len(trials) // 20)},
        yaxis={"title": f"{search.config['valid_metric']} on validation"},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(file)

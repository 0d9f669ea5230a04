"""results/README.md from the runs' JSON files: every number is measured or a paper's, any other cell `not run`."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifest import RESULTS, Job, Manifest, Row, job_config, paper_values

from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.experiments.compare_tables import paired_test
from recbole_diffusion.experiments.tables import markdown_table, metric_cell, paper_cell

METRICS = [f"{name}@{k}" for name in ("HR", "NDCG") for k in (5, 10, 20)]
NOT_RUN = "not run"
HEAD = """# Results

The papers' tables on the papers' data, run again. Written by `benchmarks/reproduce.py` from `results/runs/`, one file a
training, with its parameters, versions, device and validation curve; do not edit this page, but the texts in
`results/notes/`.

Protocol: leave-one-out (a user's last item is for testing, the one before for validation); Amazon data 5-core, ml-1m
whole. A row's first line ranks every item, those of the history too; `history masked` ranks without them. A paper's
values stand beside the protocol that it follows. Training ends early on validation NDCG@10, and the epoch that
was best there is tested. HR@k is RecBole's `hit@k`, and equals recall, as one item a user is right.

Ours: the mean over training seeds, ± the standard deviation over them (n - 1), and the number of seeds. Papers' values
are those of `results/papers.csv`; the difference is ours minus the paper's. Epochs and seconds (training with its
validations) are means over seeds; seconds compare within one device alone.
"""


def render(manifest: Manifest, results: Path, papers: Mapping) -> str:
    """The page, for the runs under ``results``."""
    found = load_runs(results)
    known = {(row.name, dataset) for row in manifest.runs for dataset in manifest.datasets}
    unlisted = sorted({f"{run['name']} on {run['dataset']}" for key in found.keys() - known for run in found[key]})
    wanted = len(known) * len(manifest.seeds)
    done = sum(len(found.get(key, ())) for key in known)
    page = [HEAD, f"{done} of {wanted} runs are done.\n"]
    if any(run["set"] for runs in found.values() for run in runs):
        page.append("**These are trials, not results: they were made with `--set`, and do not count.**\n")
    if unlisted:
        page.append(f"Not in the manifest, and left out: {', '.join(unlisted)}.\n")
    for dataset in manifest.datasets:
        page += [f"## {dataset}\n", *dataset_tables(manifest, dataset, found, papers)]
    page += ["## Rows\n", row_table(manifest)]
    page += notes(manifest, results)
    return "\n".join(page)


def dataset_tables(manifest: Manifest, dataset: str, found: Mapping, papers: Mapping) -> list[str]:
    """The tables of a dataset's rows that have runs; the others stand in one line with their command."""
    runs = {row.name: found[row.name, dataset] for row in manifest.runs if (row.name, dataset) in found}
    rows = [row for row in manifest.runs if row.name in runs]
    parts = []
    if rows:
        parts += [metric_table(manifest, rows, dataset, runs, papers)]
        parts += [f"### Against {manifest.baseline}, seed by seed\n", significance_table(manifest, rows, runs)]
        parts += ["### Cost to quality\n", cost_table(rows, runs), "### Commands\n", commands(dataset, runs)]
    rest = [row.name for row in manifest.runs if row.name not in runs]
    if rest:
        everything = "" if rows else "everything, "
        parts.append(f"{NOT_RUN.capitalize()}: {everything}`{command(dataset, rest if rows else [])}`\n")
    return parts


def load_runs(results: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs of each (row, dataset), by seed. In results/ itself, one made with ``--set`` never counts."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((results / "runs").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if not (run["set"] and results.resolve() == RESULTS):
            found.setdefault((run["name"], run["dataset"]), []).append(run)
    return {key: sorted(runs, key=lambda run: run["seed"]) for key, runs in found.items()}


def metric_of(run: Mapping[str, Any], metric: str, protocol: str = "candidates") -> float:
    """A test metric by the papers' name for it, under a protocol; the first runs have that of candidates alone."""
    found = run["test_results"][protocol] if run.get("test_results") else run["test_result"]
    return found[metric.lower().replace("hr@", "hit@")]


def metric_table(manifest: Manifest, rows: list[Row], dataset: str, runs: Mapping[str, list], papers: Mapping) -> str:
    """Ours, the paper's and the difference, with epochs, seconds and device."""
    lines, changes = [], []
    for row in rows:
        own, paper = runs[row.name], paper_values(row, dataset, papers)
        cells = [measured_cell(own, metric) for metric in METRICS]
        changed = changed_keys(row, dataset, own)
        if changed:
            changes.append(f"- {row.name}: {', '.join(changed)}\n")
        lines.append([f"**{row.name}**{' †' if changed else ''}", *cells, *effort(own)])
        masked = [run for run in own if run.get("test_results")]
        if masked:
            lines.append(
                ["history masked", *(measured_cell(masked, metric, "masked") for metric in METRICS), "", "", ""]
            )
        if not paper:
            continue
        source = f"{manifest.papers.get(row.paper['paper'], row.paper['paper'])}, {row.paper['table']}"
        lines.append(
            [source, *(paper_cell(*paper[metric]) if metric in paper else "" for metric in METRICS), "", "", ""]
        )
        protocol = row.paper.get("protocol", "candidates")
        compared = masked if protocol == "masked" else own
        differences = [difference_cell(compared, metric, paper.get(metric), protocol) for metric in METRICS]
        lines.append(["difference" + ", masked" * (protocol == "masked"), *differences, "", "", ""])
    head = ["", *METRICS, "epochs (best)", "seconds", "device"]
    mark = "\n† Run with other parameters than are the defaults now; delete its files in `runs/` to run it again:\n\n"
    return markdown_table(head, lines) + (mark + "".join(changes) if changes else "")


def measured_cell(runs: list[dict[str, Any]], metric: str, protocol: str = "candidates") -> str:
    """Mean, spread and number of seeds."""
    return f"{metric_cell([metric_of(run, metric, protocol) for run in runs])} ({len(runs)})"


def effort(runs: list[dict[str, Any]]) -> list[str]:
    """Epochs with the best among them, seconds, device."""
    epochs, best, seconds = (statistics.fmean(run[key] for run in runs) for key in ("epochs", "best_epoch", "seconds"))
    devices = {device_label(part) for run in runs for part in run["made_by"]}
    return [f"{epochs:.0f} ({best:.0f})", f"{seconds:,.0f}", "; ".join(sorted(devices))]


def device_label(part: Mapping[str, Any]) -> str:
    """The device, a CPU with the number of its threads."""
    count = part["threads"]
    return part["device"] + (f", {count} thread{'s' * (count > 1)}" if part["device_type"] == "cpu" else "")


def difference_cell(
    runs: list[dict[str, Any]], metric: str, value: tuple[float, float | None] | None, protocol: str
) -> str:
    """Ours minus the paper's, also as a share of the paper's."""
    if value is None:
        return ""
    if not runs:
        return NOT_RUN
    difference = statistics.fmean(metric_of(run, metric, protocol) for run in runs) - value[0]
    return f"{difference:+.4f} ({difference / value[0]:+.1%})"


def changed_keys(row: Row, dataset: str, runs: list[dict[str, Any]]) -> list[str]:
    """Parameters in which runs differ from what the row says today, as ``key 1 -> 2``."""
    changed = set()
    for run in runs:
        try:
            now = result_settings(job_config(Job(row, dataset, run["seed"]), run["set"]))
        except ValueError as error:
            changed.add(str(error))
            continue
        was = run["config"]
        changed |= {f"`{key}` {was[key]} → {now[key]}" for key in was.keys() & now.keys() if was[key] != now[key]}
    return sorted(changed)


def significance_table(manifest: Manifest, rows: list[Row], runs: Mapping[str, list]) -> str:
    """Paired t-test over the seeds that a row shares with the baseline."""
    base = {run["seed"]: run for run in runs.get(manifest.baseline, ())}
    lines = []
    for row in rows:
        own = {run["seed"]: run for run in runs[row.name]}
        seeds = sorted(own.keys() & base.keys())
        if row.name == manifest.baseline or len(seeds) < 2:
            continue
        cells = []
        for metric in ("HR@10", "NDCG@10"):
            pairs = [(metric_of(own[seed], metric), metric_of(base[seed], metric)) for seed in seeds]
            mean, p, _ = paired_test(*zip(*pairs, strict=True))
            cells += [f"{mean:+.4f}", "no spread" if p is None else f"{p:.2g}"]
        lines.append([row.name, str(len(seeds)), *cells])
    if not lines:
        return f"{NOT_RUN.capitalize()}: needs two seeds of {manifest.baseline} and of another row.\n"
    head = ["", "seeds", "HR@10", "p", "NDCG@10", "p"]
    return "Mean difference and p of a two-sided paired t-test over the shared seeds.\n\n" + markdown_table(head, lines)


def cost_table(rows: list[Row], runs: Mapping[str, list]) -> str:
    """Epochs and seconds until validation was near its best, and until it passed the paper's test value."""
    lines = []
    for row in rows:
        cells = [cost_cell(runs[row.name], key) for key in ("within_2_percent", "past_paper")]
        lines.append([row.name, *(text for pair in cells for text in pair)])
    head = ["", "epochs to 2 % of best", "seconds", "epochs to the paper's NDCG@10", "seconds"]
    words = (
        "Until validation NDCG@10 first came within 2 % of its best, and until it passed the NDCG@10 that the paper "
        "reports on its test data.\nMeans over the seeds that came there.\n\n"
    )
    return words + markdown_table(head, lines)


def cost_cell(runs: list[dict[str, Any]], key: str) -> list[str]:
    """Means of epochs and seconds, and how many of the seeds came there."""
    goals = [run["cost_to_quality"][key] for run in runs]
    if all(goal is None for goal in goals):
        return ["no value", "no value"]
    came = [goal for goal in goals if goal and goal["epochs"] is not None]
    if not came:
        return [f"never (0 of {len(runs)})"] * 2
    share = "" if len(came) == len(runs) else f" ({len(came)} of {len(runs)})"
    epochs, seconds = (statistics.fmean(goal[of] for goal in came) for of in ("epochs", "seconds"))
    return [f"{epochs:.0f}{share}", f"{seconds:,.0f}{share}"]


def commands(dataset: str, runs: Mapping[str, list]) -> str:
    """What makes each row again, and says which seeds are there."""
    seeds = {name: ", ".join(str(run["seed"]) for run in own) for name, own in runs.items()}
    lines = [f"{command(dataset, [name])}  # seeds run: {which}" for name, which in seeds.items()]
    return "\n".join(["```bash", *lines, "```\n"])


def command(dataset: str, rows: list[str]) -> str:
    """What runs these rows on a dataset; all of them where none is named."""
    words = ["python", "benchmarks/reproduce.py", "--data_path=dataset/", f"--datasets={dataset}"]
    return shlex.join([*words, *([f"--runs={','.join(rows)}"] if rows else [])])


def row_table(manifest: Manifest) -> str:
    """What each row is: its model and what differs from the model's defaults."""
    lines = []
    for row in manifest.runs:
        changes = [f"`{key}: {value}`" for key, value in row.config.items()]
        for dataset, values in row.per_dataset.items():
            changes += [f"`{key}: {value}` on {dataset}" for key, value in values.items()]
        lines.append([row.name, row.model, "<br>".join(changes), row.note])
    return markdown_table(["", "model", "differs from the model's defaults", ""], lines)


def notes(manifest: Manifest, results: Path) -> list[str]:
    """The texts of results/notes/, in the order of the rows."""
    texts = []
    for row in manifest.runs:
        path = results / "notes" / f"{row.slug}.md"
        if path.is_file():
            texts.append(f"### {row.name}\n\n{path.read_text(encoding='utf-8').strip()}\n")
    return ["## What to make of them\n", *texts] if texts else []


if __name__ == "__main__":
    raise SystemExit("This is a part of benchmarks/reproduce.py, which writes the page: see its --help.")

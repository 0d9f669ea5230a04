"""results/README.md from the runs' JSON files: every number is measured or a paper's."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from manifest import RESULTS, Job, Manifest, Tier, job_config, paper_values

from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.experiments.compare_tables import holm, paired_interval, paired_test
from recbole_diffusion.experiments.tables import markdown_table, metric_cell, paper_cell
from recbole_diffusion.protocols import PROTOCOLS

METRICS = [f"{name}@{k}" for name in ("HR", "NDCG") for k in (5, 10, 20)]
MAIN = "NDCG@10"
CLOSE = 0.05  # a row is level with its paper within this share of the paper's value
NOT_RUN = "not run"
HEAD = """# Results

Written by `benchmarks/reproduce.py` from `results/runs/`, one file a training, with its parameters, versions, device,
checksums and validation curve, and from `results/ranks/`, where each test row's target came; do not edit this page, but
the texts in `results/notes/`. [benchmarks/manifest.yaml](../benchmarks/manifest.yaml) says what each row is.

Leave-one-out, but where a dataset's name says otherwise: a user's last item is for testing, the one before for
validation. Amazon data 5-core, ml-1m and ml-100k whole. Two protocols: the items of the history are candidates, or they
are masked. The epoch that was best on validation is tested. HR@k is RecBole's `hit@k`, and equals recall, as one item a
row is right. Mean ± standard deviation (n - 1) over training seeds.
"""


@dataclass
class Part:
    """A dataset of a tier with the runs of its rows, by row."""

    manifest: Manifest
    tier: Tier
    dataset: str
    runs: dict[str, list[dict[str, Any]]]
    results: Path
    papers: Mapping

    @property
    def rows(self):
        """The rows that have a run."""
        return [row for row in self.tier.rows if row.name in self.runs]

    @property
    def jobs(self) -> list[Job]:
        """What is planned."""
        return self.tier.jobs([self.dataset], [row.name for row in self.tier.rows])

    @property
    def missing(self) -> list[Job]:
        """What is planned and has no run."""
        done = {(name, run["seed"]) for name, runs in self.runs.items() for run in runs}
        return [job for job in self.jobs if (job.row.name, job.seed) not in done]

    @property
    def is_whole(self) -> bool:
        """Whether every row has a run."""
        return {job.row.name for job in self.jobs} == self.runs.keys()


def render(manifest: Manifest, results: Path, papers: Mapping) -> str:
    """The page, for the runs under ``results``."""
    found = load_runs(results)
    parts = [
        Part(manifest, tier, dataset, rows_of(tier, dataset, found), results, papers)
        for tier in manifest.tiers
        for dataset in tier.datasets
    ]
    known = {(row.name, part.dataset) for part in parts for row in part.tier.rows if row.is_on(part.dataset)}
    unlisted = sorted({f"{run['name']} on {run['dataset']}" for key in found.keys() - known for run in found[key]})
    page = [HEAD]
    if any(run["set"] for runs in found.values() for run in runs):
        page.append("**These are trials, not results: they were made with `--set`, and do not count.**\n")
    if unlisted:
        page.append(f"Not in the manifest, and left out: {', '.join(unlisted)}.\n")
    page.append(overview(parts))
    for part in parts:
        page += [f"## {part.tier.name}: {part.dataset}\n", *part_tables(part)]
    return "\n".join(page + row_tables(manifest) + notes(manifest, results))


def rows_of(tier: Tier, dataset: str, found: Mapping) -> dict[str, list[dict[str, Any]]]:
    """The runs of a tier's rows on a dataset."""
    rows = [row for row in tier.rows if row.is_on(dataset)]
    return {row.name: found[row.name, dataset] for row in rows if (row.name, dataset) in found}


def overview(parts: list[Part]) -> str:
    """How far each tier is."""
    lines = []
    for part in parts:
        seconds = [run["cpu_seconds"] for runs in part.runs.values() for run in runs if run.get("cpu_seconds")]
        hours = f"{sum(seconds) / 3600:.1f}" if seconds else ""
        done = len(part.jobs) - len(part.missing)
        lines.append([part.tier.name, part.dataset, f"{done} of {len(part.jobs)}", hours])
    words = "Core-hours are those of the runs that were counted: the first ones were not.\n\n"
    return words + markdown_table(["tier", "dataset", "runs", "core-hours"], lines)


def part_tables(part: Part) -> list[str]:
    """The tables of a dataset of a tier once it is whole; else a line with the command of what is missing."""
    tables = [part.tier.about + "\n"]
    missing = list(dict.fromkeys(job.row.name for job in part.missing))
    rest = f"{NOT_RUN.capitalize()}: `{command(part, missing)}`\n"
    if not part.is_whole:
        done = len(part.jobs) - len(part.missing)
        return [f"{done} of {len(part.jobs)} runs are done, and shown once every row has one. {rest}"]
    tables += [metric_table(part), paper_verdicts(part)]
    tables += [f"### User by user: {part.dataset}\n", user_tests(part)]
    tables += [f"### What it took: {part.dataset}\n", cost_table(part), commands(part)]
    return [*tables, *([rest] if missing else [])]


def load_runs(results: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The runs of each (row, dataset), by seed. In results/ itself, one made with ``--set`` never counts."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((results / "runs").glob("*.json")):
        run = {**json.loads(path.read_text(encoding="utf-8")), "file": path.stem}
        if not (run["set"] and results.resolve() == RESULTS):
            found.setdefault((run["name"], run["dataset"]), []).append(run)
    return {key: sorted(runs, key=lambda run: run["seed"]) for key, runs in found.items()}


def ranked_under(run: Mapping[str, Any], protocol: str) -> bool:
    """Whether a run has metrics of a protocol: one alone, where it is old, or no sequential model."""
    masks = run["config"].get("repeatable") is False
    return bool(run.get("test_results")) or protocol == PROTOCOLS[masks]


def metric_of(run: Mapping[str, Any], metric: str, protocol: str = "candidates") -> float:
    """A test metric by the papers' name for it, under a protocol."""
    found = run["test_results"][protocol] if run.get("test_results") else run["test_result"]
    return found[metric.lower().replace("hr@", "hit@")]


def metric_table(part: Part) -> str:
    """NDCG@10 under both protocols, as narrow as a telephone; all six metrics folded below."""
    jobs = {job.row.name: job for job in part.jobs}  # one a row: a config is built for each of its runs
    changed = {name: keys for name, runs in part.runs.items() if (keys := changed_keys(jobs[name], runs))}

    def line(row, metrics: Sequence[str], protocols: Sequence[str]) -> list[str]:
        runs = part.runs[row.name]
        seeds = f" ({len(runs)} seeds)" if len(runs) > 1 else ""
        cells = [measured_cell(runs, metric, protocol) for protocol in protocols for metric in metrics]
        return [f"**{row.name}**{' †' if row.name in changed else ''}{seeds}", *cells]

    head = ["", MAIN, f"{MAIN} masked"]
    text = markdown_table(head, [line(row, [MAIN], PROTOCOLS) for row in part.rows])
    if changed:
        text += "\n† Run with other parameters than are the row's now, not counting keys that are newer than the run; "
        text += "delete its files in `runs/` to run it again:\n\n"
        text += "".join(f"- {name}: {', '.join(keys)}\n" for name, keys in changed.items())
    for protocol in PROTOCOLS:
        whole = markdown_table(["", *METRICS], [line(row, METRICS, [protocol]) for row in part.rows])
        text += f"\n<details><summary>All metrics, history {protocol}</summary>\n\n{whole}\n</details>\n"
    return text


def measured_cell(runs: list[dict[str, Any]], metric: str, protocol: str) -> str:
    """Mean and spread over the runs that have the metric under the protocol."""
    own = [run for run in runs if ranked_under(run, protocol)]
    return metric_cell([metric_of(run, metric, protocol) for run in own]) if own else "none"


def paper_verdicts(part: Part) -> str:
    """For each row with a paper: NDCG@10 beside the paper's, level, above or below, and the cause where it is known."""
    lines = []
    for row in part.rows:
        paper = paper_values(row, part.dataset, part.papers)
        if not paper:
            continue
        protocol = row.paper.get("protocol", "candidates")
        own = [run for run in part.runs[row.name] if ranked_under(run, protocol)]
        source = f"{part.manifest.papers.get(row.paper['paper'], row.paper['paper'])}, {row.paper['table']}"
        values = ", ".join(f"{metric} {paper_cell(*paper[metric])}" for metric in METRICS if metric in paper)
        lines.append(f"- **{row.name}**: {verdict(own, paper, protocol, row.cause)} {source}: {values}.")
    if not lines:
        return ""
    words = f"Level with the paper: within {CLOSE:.0%} of its NDCG@10, under the paper's protocol.\n"
    return "\n".join([f"### Beside the papers: {part.dataset}\n", words, *lines, ""])


def verdict(runs: list[dict[str, Any]], paper: Mapping, protocol: str, cause: str) -> str:
    """``below, -6.5% (NDCG@10 0.0444, 1 seed). Cause.``"""
    if not runs:
        return f"not run with the history {protocol}, as its paper is."
    own, value = statistics.fmean(metric_of(run, "NDCG@10", protocol) for run in runs), paper["NDCG@10"][0]
    share = own / value - 1
    word = "level" if abs(share) <= CLOSE else "above" if share > 0 else "below"
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    why = f" {cause.strip() or 'Cause not known.'}" if word == "below" else ""
    return f"{word}, {share:+.1%} (NDCG@10 {own:.4f}{', masked' * (protocol == 'masked')}, {seeds}).{why}"


# ---------------------------------------------------------------------- user by user


def user_tests(part: Part) -> str:
    """NDCG@10 of the tier's tests, user by user, means over the seeds that both have; p after Holm's correction."""
    base = part.tier.baseline
    tests = [pair for pair in part.tier.tests if part.runs.keys() >= set(pair)]
    cells = {(name, other): [name if other == base else f"{name} less {other}"] for name, other in tests}
    for protocol in PROTOCOLS:
        pairs = {test: user_pairs(part.results, *(part.runs[name] for name in test), protocol) for test in tests}
        found = {test: paired_test(*pair[:2]) for test, pair in pairs.items() if pair}
        p_values = {test: p for test, (_, p, _) in found.items() if p is not None}
        corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
        for test, line in cells.items():
            if test not in found:
                line.append("none")
                continue
            *pair, seeds = pairs[test]
            low, high = paired_interval(*pair)
            p = "no spread"
            if test in corrected:
                p = f"p {corrected[test]:.2g}" if corrected[test] else "p < 1e-300"  # less than a float can say
            both = set.intersection(*({run["seed"] for run in part.runs[name]} for name in test))
            only = f"; seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} alone" if set(seeds) != both else ""
            line.append(f"{found[test][0]:+.4f} ({low:+.4f} to {high:+.4f}), {p}{only}")
    tested = [line for line in cells.values() if set(line[1:]) != {"none"}]
    without = [line[0] for line in cells.values() if set(line[1:]) == {"none"}]
    others = " or of the row that is named" if any(other != base for _, other in tests) else ""
    words = (
        f"NDCG@10 less that of {base}{others}, user by user (of several test rows of a user their mean, where the "
        "tables above are means over test rows), each the mean over the seeds of which both have ranks: difference, "
        "its 95 % interval, and p of a two-sided paired t-test that Holm's method corrects for the rows. Both are "
        "over users, for the networks as they were trained: what other training seeds change, the spreads above tell, "
        "where a row has several.\n\n"
    )
    head = ["", "difference", "history masked"]
    text = words + markdown_table(head, tested) if tested else words
    untested = f"\nNot tested, as ranks of one of the two were not kept: {', '.join(without)}.\n"
    return text + (untested if without else "")


def user_pairs(results: Path, own: list[dict], base: list[dict], protocol: str) -> tuple | None:
    """NDCG@10 of each user, ours and the baseline's, means over seeds, and these; None without ranks of both."""
    others, pairs = {run["seed"]: run for run in base}, {}
    for run in own:
        pair = [user_ndcg(results, found, protocol) for found in (run, others.get(run["seed"])) if found]
        if len(pair) == 2 and all(values is not None for values in pair):
            if run["data"]["test"] == others[run["seed"]]["data"]["test"]:
                pairs[run["seed"]] = pair
    return (*np.mean(list(pairs.values()), axis=0), sorted(pairs)) if pairs else None


def user_ndcg(results: Path, run: Mapping[str, Any], protocol: str, k: int = 10) -> np.ndarray | None:
    """NDCG@k of each user, the mean of its test rows."""
    path = results / "ranks" / f"{run['file']}.npz"
    if not path.is_file():
        return None
    with np.load(path) as ranks:
        if protocol not in ranks:
            return None
        rank, (_, user) = ranks[protocol], np.unique(ranks["user"], return_inverse=True)
    gain = np.where((rank > 0) & (rank <= k), 1 / np.log2(np.maximum(rank, 1) + 1.0), 0.0)
    return np.bincount(user, gain) / np.bincount(user)


# ---------------------------------------------------------------------- what it took


def changed_keys(job: Job, runs: list[dict[str, Any]]) -> list[str]:
    """Parameters in which runs differ from what the row says today, as ``key 1 -> 2``."""
    changed = set()
    for run in runs:
        try:
            now = result_settings(job_config(replace(job, seed=run["seed"]), run["set"]))
        except ValueError as error:
            changed.add(str(error))
            continue
        was = run["config"]
        changed |= {f"`{key}` {was[key]} → {now[key]}" for key in was.keys() & now.keys() if was[key] != now[key]}
    return sorted(changed)


def cost_table(part: Part) -> str:
    """Epochs, when validation was near its best and passed the paper's test value, CPU seconds and devices."""
    lines = [[row.name, epochs_cell(part.runs[row.name]), cpu_cell(part.runs[row.name])] for row in part.rows]
    words = (
        "Means over seeds: epochs, the one that was best on validation, the first within 2 % of its NDCG@10 and the "
        "first past what the paper reports on its test data. CPU seconds: of the whole training with its validations "
        "and test, and of what is trained first; none where they were not counted.\n\n"
    )
    used: dict[str, list[str]] = {}
    for row in part.rows:
        for label in sorted({device_label(maker) for run in part.runs[row.name] for maker in run["made_by"]}):
            used.setdefault(label, []).append(row.name)
    devices = [f"- {label}: {', '.join(names) if len(used) > 1 else 'all'}" for label, names in used.items()]
    return words + markdown_table(["", "epochs", "CPU seconds"], lines) + "\n" + "\n".join([*devices, ""])


def epochs_cell(runs: list[dict[str, Any]]) -> str:
    """``19: best 13, near it 9, past the paper 7``."""
    epochs, best = (statistics.fmean(run[key] for run in runs) for key in ("epochs", "best_epoch"))
    goals = {"near it": "within_2_percent", "past the paper": "past_paper"}
    told = [f"{words} {found}" for words, key in goals.items() if (found := goal_cell(runs, key))]
    return f"{epochs:.0f}: {', '.join([f'best {best:.0f}', *told])}"


def cpu_cell(runs: list[dict[str, Any]]) -> str:
    counted = [run["cpu_seconds"] for run in runs if run.get("cpu_seconds")]
    return f"{statistics.fmean(counted):,.0f}" if counted else "none"


def device_label(part: Mapping[str, Any]) -> str:
    """The device, a CPU with the number of its threads."""
    count = part["threads"]
    return part["device"] + (f", {count} thread{'s' * (count > 1)}" if part["device_type"] == "cpu" else "")


def goal_cell(runs: list[dict[str, Any]], key: str) -> str:
    """Mean epochs, and how many of the seeds came there."""
    goals = [run["cost_to_quality"][key] for run in runs]
    if all(goal is None for goal in goals):
        return ""
    came = [goal["epochs"] for goal in goals if goal and goal["epochs"] is not None]
    if not came:
        return f"never (0 of {len(runs)})"
    return f"{statistics.fmean(came):.0f}" + ("" if len(came) == len(runs) else f" ({len(came)} of {len(runs)})")


def commands(part: Part) -> str:
    """What makes each row again and which seeds are there, and of what data, split and code they are."""
    lines = [f"{command(part, [row.name])}  # {row_seeds(part.runs[row.name])}" for row in part.rows]
    text = "\n".join(["```bash", *lines, "```\n"])
    sums = {name: set() for name in ("interactions", "train", "valid", "test")}
    for run in (run for runs in part.runs.values() for run in runs if run.get("data")):
        for name in sums.keys() & run["data"].keys():
            sums[name].add(run["data"][name][:12])
    told = [f"{name} {' or '.join(sorted(found))}" for name, found in sums.items() if found]
    commits = sorted({maker["commit"][:7] for runs in part.runs.values() for run in runs for maker in run["made_by"]
                      if maker.get("commit")})  # fmt: skip
    if told:
        text += f"\nSHA-256 of the file and of the split's (user, item) pairs: {', '.join(told)}.\n"
    return text + (f"\nCommits: {', '.join(commits)}.\n" if commits else "")


def row_seeds(runs: list[dict[str, Any]]) -> str:
    return f"seeds run: {', '.join(str(run['seed']) for run in runs)}"


def command(part: Part, rows: list[str]) -> str:
    """What runs these rows on a dataset."""
    words = ["python", "benchmarks/reproduce.py", "--data_path=dataset/"]
    if len(rows) == 1:
        return shlex.join([*words, f"--row={rows[0]}, {part.dataset}"])
    names = [f"--runs={','.join(rows)}"] if len(rows) < len({job.row.name for job in part.jobs}) else []
    return shlex.join([*words, f"--tiers={part.tier.name}", f"--datasets={part.dataset}", *names])


def row_tables(manifest: Manifest) -> list[str]:
    """What each row is: its model and what differs from the model's defaults."""
    page = ["## Rows\n", "What differs from the model's defaults, and from the tier's file where it has one.\n"]
    for tier in manifest.tiers:
        page.append(f"### {tier.name}\n\n{tier.about}\n")
        for row in tier.rows:
            changes = [f"`{key}: {value}`" for key, value in row.config.items()]
            for dataset, values in row.per_dataset.items():
                changes += [f"`{key}: {value}` on {dataset}" for key, value in values.items()]
            text = ": ".join(filter(None, [f"- **{row.name}** ({row.model})", ", ".join(changes)]))
            page.append(f"{text}. {row.note}".rstrip())
        page.append("")
    return page


def notes(manifest: Manifest, results: Path) -> list[str]:
    """The texts of results/notes/, in the order of the rows."""
    texts = {}
    for row in (row for tier in manifest.tiers for row in tier.rows):
        path = results / "notes" / f"{row.slug}.md"
        if path.is_file():
            texts[path] = f"### {row.name}\n\n{path.read_text(encoding='utf-8').strip()}\n"
    return ["## What to make of them\n", *texts.values()] if texts else []


if __name__ == "__main__":
    raise SystemExit("This is a part of benchmarks/reproduce.py, which writes the page: see its --help.")

"""The rows that `reproduce.py` trains, as benchmarks/manifest.yaml lists them, and the papers' values beside them."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config

from recbole_diffusion.config.keys import MACHINE_KEYS

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "benchmarks" / "manifest.yaml"
RESULTS = ROOT / "results"
PAPERS = RESULTS / "papers.csv"


@dataclass(frozen=True)
class Row:
    """One row of the tables: a model with what its configuration changes, on every dataset of the manifest."""

    name: str
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    per_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    paper: Mapping[str, str] | None = None
    priority: int = 1
    note: str = ""

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"\W+", "-", self.name)

    def overrides(self, dataset: str) -> dict[str, Any]:
        """What differs from the model's props on this dataset."""
        return {**self.config, **self.per_dataset.get(dataset, {})}


@dataclass(frozen=True)
class Job:
    """One training: a row on a dataset under a seed."""

    row: Row
    dataset: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.row.slug}.{self.dataset}.{self.seed}"

    def __str__(self) -> str:
        return f"{self.row.name}, {self.dataset}, seed {self.seed}"


@dataclass(frozen=True)
class Manifest:
    """All rows, datasets and seeds, and the row against which the others are tested."""

    runs: list[Row]
    datasets: Mapping[str, Mapping[str, Any]]
    seeds: list[int]
    baseline: str
    papers: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)

    def jobs(self, datasets: Iterable[str], names: Iterable[str], seeds: Iterable[int]) -> list[Job]:
        """The chosen trainings in order of work: the first seed everywhere, then dataset, priority, seed and row."""
        datasets, names = list(datasets), set(names)
        first, order = self.seeds[0], list(self.datasets)
        jobs = [
            (seed != first, order.index(dataset), row.priority, seed, number, Job(row, dataset, seed))
            for dataset, (number, row), seed in itertools.product(datasets, enumerate(self.runs), seeds)
            if row.name in names
        ]
        return [job for *_, job in sorted(jobs, key=lambda item: item[:-1])]


def load_manifest(path: Path = MANIFEST) -> Manifest:
    """Read a manifest.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; a key is missing or unknown, or a name stands twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"manifest [{path}] does not exist.")
    # RecBole's loader, so that 1e-3 is a number here as in props.
    content = yaml.load(path.read_text(encoding="utf-8"), Loader=Config._build_yaml_loader(None)) or {}
    rows = [_build(Row, f"run {number}", run) for number, run in enumerate(content.get("runs") or [], start=1)]
    common = content.get("config") or {}
    rows = [replace(row, config={**common, **row.config}) for row in rows]
    manifest = _build(Manifest, "manifest", {"papers": {}, **content, "runs": rows})
    slugs = [row.slug for row in rows]
    for row in rows:
        if slugs.count(row.slug) > 1:
            raise ValueError(f"manifest: name [{row.name}] stands twice, or differs from another by punctuation alone.")
        _check_choices(f"per_dataset of [{row.name}]", row.per_dataset, manifest.datasets)
        if row.paper is not None and row.paper.keys() - {"protocol"} != {"paper", "table", "model"}:
            raise ValueError(
                f"manifest: paper of [{row.name}] must have the keys paper, table, model, and maybe protocol."
            )
    _check_choices("baseline", [manifest.baseline], [row.name for row in rows])
    if not manifest.seeds:
        raise ValueError("manifest: seeds [] must hold one at least.")
    return manifest


def _build(kind: type, where: str, values: Mapping[str, Any]) -> Any:
    known = {item.name for item in fields(kind)}
    unknown = values.keys() - known
    if unknown:
        raise ValueError(f"{where}: key [{', '.join(sorted(unknown))}] is unknown: {', '.join(sorted(known))}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where} {dict(values)}: {error}") from error


def _check_choices(option: str, values: Iterable[Any], allowed: Iterable[Any]) -> None:
    allowed = list(allowed)
    for value in values:
        if value not in allowed:
            raise ValueError(f"{option} [{value}] is unknown: choose from {', '.join(map(str, allowed))}.")


def choose(option: str, text: str | None, allowed: Iterable[str]) -> list[str]:
    """Read ``a,b`` from the command line; all that is allowed where nothing is said."""
    allowed = list(allowed)
    if text is None:
        return allowed
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not values:
        raise ValueError(f"{option} [{text}] names nothing: choose from {', '.join(allowed)}.")
    _check_choices(option, values, allowed)
    return values


def job_config(job: Job, settings: Mapping[str, Any] | None = None, machine: Mapping[str, Any] | None = None) -> Config:
    """RecBole's Config of a job, with ``settings`` over the manifest's, and ``machine`` for paths, device and logging.

    Raises
    ------
    ValueError
        Unknown model, a value out of range, or a key that nothing would read.
    """
    from recbole_diffusion.quick_start import build_config
    from recbole_diffusion.registry import known_keys

    changes = {**job.row.overrides(job.dataset), **(settings or {})}
    machine = {"state": "ERROR", "show_progress": False, **(machine or {})}
    known = known_keys(build_config(job.row.model, job.dataset, None, machine)) - MACHINE_KEYS
    for key in changes.keys() - known:
        raise ValueError(f"{job}: key [{key}] is unknown to {job.row.model}, or not for a manifest to set.")
    config = build_config(job.row.model, job.dataset, None, {**machine, **changes, "seed": job.seed})
    if not 1 <= config["eval_step"] <= config["epochs"]:
        raise ValueError(f"{job}: eval_step [{config['eval_step']}] must be from 1 to epochs [{config['epochs']}].")
    return config


def load_papers(path: Path = PAPERS) -> dict[tuple[str, str, str, str], dict[str, tuple[float, float | None]]]:
    """The papers' values: (paper, table, model, dataset) -> metric (HR@k, NDCG@k) -> (value, std or None)."""
    values: dict[tuple[str, str, str, str], dict[str, tuple[float, float | None]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            key = (line["paper"], line["table"], line["model"], line["dataset"])
            # One item a user is relevant: recall is the hit rate.
            metric = line["metric"].replace("Recall@", "HR@")
            values.setdefault(key, {})[metric] = (float(line["value"]), float(line["std"]) if line["std"] else None)
    return values


def paper_values(row: Row, dataset: str, papers: Mapping) -> dict[str, tuple[float, float | None]]:
    """The paper's values of a row on a dataset, empty where the paper has none.

    Raises
    ------
    ValueError
        The row names a line that no dataset has.
    """
    if row.paper is None:
        return {}
    key = (row.paper["paper"], row.paper["table"], row.paper["model"])
    if not any(found[:3] == key for found in papers):
        raise ValueError(f"manifest: paper of [{row.name}] [{', '.join(key)}] is not in the table of the papers.")
    return papers.get((*key, dataset), {})


if __name__ == "__main__":
    raise SystemExit("This is a part of benchmarks/reproduce.py, which trains its rows: see its --help.")

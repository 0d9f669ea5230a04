"""The rows that `reproduce.py` trains, as benchmarks/manifest.yaml lists them, and the papers' values beside them."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from recbole.config import Config

from recbole_diffusion.config.keys import MACHINE_KEYS

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "benchmarks" / "manifest.yaml"
RESULTS = ROOT / "results"
PAPERS = ROOT / "benchmarks" / "papers.csv"


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^\w-]+", "-", name)


@dataclass(frozen=True)
class Row:
    """One row of a tier's tables: a model with what its configuration changes, on every dataset of the tier.

    ``searched`` is the file of parameters that a search found, beside the manifest, and ``missing`` that of one that is
    not there; ``datasets`` and ``seeds`` are the row's own. ``against`` names the rows that it is tested against, if
    not the tier's baseline alone. ``cause`` says why the row is below its paper, where that is known.
    """

    name: str
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    per_dataset: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    searched: str | None = None
    missing: Path | None = None
    datasets: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    against: Sequence[str] | None = None
    paper: Mapping[str, str] | None = None
    cause: str = ""
    note: str = ""

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return slug(self.name)

    def is_on(self, dataset: str) -> bool:
        """Whether the row is planned on a dataset of its tier."""
        return self.datasets is None or dataset in self.datasets


@dataclass(frozen=True)
class Data:
    """A dataset of a tier under its name there: which it is, if not that, and what its split changes."""

    name: str
    dataset: str
    config: Mapping[str, Any] = field(default_factory=dict)
    gpu_only: bool = False


@dataclass(frozen=True)
class Tier:
    """Rows that make a table together: complete in itself, on its datasets and under its seeds.

    ``baseline`` is the row that the others are tested against, unless they name others, and ``config_file`` what all
    rows have in common.
    """

    name: str
    about: str
    datasets: Mapping[str, Data]
    seeds: Sequence[int]
    baseline: str
    rows: Sequence[Row]
    config_file: Path | None = None

    @property
    def tests(self) -> list[tuple[str, str]]:
        """Which rows are tested, and each against which."""
        against = {row.name: row.against or [self.baseline] for row in self.rows}
        return [(name, other) for name, others in against.items() for other in others if name != other]

    def jobs(self, datasets: Iterable[str], names: Iterable[str]) -> list[Job]:
        """The chosen trainings in order of work: the first seed of everything, then dataset, seed and row."""
        datasets, names = set(datasets), set(names)
        jobs = []
        for (place, data), (number, row) in itertools.product(enumerate(self.datasets.values()), enumerate(self.rows)):
            if data.name not in datasets or row.name not in names or not row.is_on(data.name):
                continue
            own = row.seeds or self.seeds
            jobs += [(seed != own[0], place, seed, number, Job(self, row, data, seed)) for seed in own]
        return [job for *_, job in sorted(jobs, key=lambda item: item[:-1])]


@dataclass(frozen=True)
class Job:
    """One training: a row of a tier on a dataset under a seed."""

    tier: Tier
    row: Row
    data: Data
    seed: int

    @property
    def dataset(self) -> str:
        """The dataset's name in the tier, which tells one split from another."""
        return self.data.name

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.row.slug}.{slug(self.dataset)}.{self.seed}"

    @property
    def overrides(self) -> dict[str, Any]:
        """What differs from the model's props and the tier's file."""
        return {**self.row.config, **self.data.config, **self.row.per_dataset.get(self.dataset, {})}

    def __str__(self) -> str:
        return f"{self.row.name}, {self.dataset}, seed {self.seed}"


@dataclass(frozen=True)
class Manifest:
    """All tiers, cheapest first, and the papers by their short names."""

    tiers: Sequence[Tier]
    papers: Mapping[str, str] = field(default_factory=dict)

    @property
    def datasets(self) -> dict[str, Data]:
        """Those of all tiers."""
        return {name: data for tier in self.tiers for name, data in tier.datasets.items()}

    @property
    def row_names(self) -> list[str]:
        """Those of all tiers, each once."""
        return list(dict.fromkeys(row.name for tier in self.tiers for row in tier.rows))


def load_manifest(path: Path = MANIFEST) -> Manifest:
    """Read a manifest.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; a key is missing or unknown, or a row stands twice on a dataset.
    """
    if not path.is_file():
        raise FileNotFoundError(f"manifest [{path}] does not exist.")
    content = _read_yaml(path)
    common, tiers = content.pop("config", None) or {}, content.pop("tiers", None) or {}
    manifest = _build(
        Manifest,
        "manifest",
        {**content, "tiers": [_tier(name, about, common, path.parent) for name, about in tiers.items()]},
    )
    slugs: dict[tuple[str, str], str] = {}
    for tier in manifest.tiers:
        for row, dataset in itertools.product(tier.rows, tier.datasets):
            if slugs.setdefault((row.slug, dataset), f"{tier.name}/{id(row)}") != f"{tier.name}/{id(row)}":
                raise ValueError(
                    f"manifest: name [{row.name}] stands twice on {dataset}, or differs from another by punctuation "
                    "alone."
                )
    return manifest


def _read_yaml(path: Path) -> dict[str, Any]:
    """RecBole's loader, so that 1e-3 is a number here as in props."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=Config._build_yaml_loader(None)) or {}


def _with_common(row: Row, below: Mapping[str, Any], folder: Path) -> Row:
    """A row with what its tier and its search say below what it says itself."""
    found = folder / row.searched if row.searched else None
    missing = found if found and not found.is_file() else None
    searched = _read_yaml(found) if found and not missing else {}
    own = searched.pop("per_model", {}).get(row.model, {})
    return replace(row, config={**below, **searched, **own, **row.config}, missing=missing)


def _tier(name: str, about: Mapping[str, Any], common: Mapping[str, Any], folder: Path) -> Tier:
    """A tier; what the whole manifest says is below its rows, unless it has a file of its own."""
    rows = [_build(Row, f"row {number} of [{name}]", row) for number, row in enumerate(about.get("rows") or [], 1)]
    datasets = {
        key: _build(Data, f"dataset [{key}] of [{name}]", {"name": key, "dataset": key, **(values or {})})
        for key, values in (about.get("datasets") or {}).items()
    }
    file = folder / about["config_file"] if about.get("config_file") else None
    below = {} if file else common
    rows = [_with_common(row, below, folder) for row in rows]
    values = {"about": "", **about, "name": name, "datasets": datasets, "rows": rows, "config_file": file}
    tier = _build(Tier, f"tier [{name}]", values)
    for row in rows:
        _check_choices(f"per_dataset of [{row.name}]", row.per_dataset, datasets)
        _check_choices(f"datasets of [{row.name}]", row.datasets or [], datasets)
        _check_choices(f"against of [{row.name}]", row.against or [], [other.name for other in rows if other != row])
        if row.paper is not None and row.paper.keys() - {"protocol"} != {"paper", "table", "model"}:
            raise ValueError(
                f"manifest: paper of [{row.name}] must have the keys paper, table, model, and maybe protocol."
            )
    _check_choices("baseline", [tier.baseline], [row.name for row in rows])
    if not tier.seeds:
        raise ValueError(f"tier [{name}]: seeds [] must hold one at least.")
    return tier


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
        Unknown model, a value out of range, a key that nothing would read, or a search that is not done.
    """
    from recbole_diffusion.quick_start import build_config
    from recbole_diffusion.registry import known_keys

    if job.row.missing:
        raise ValueError(f"{job}: its parameters are to be searched first, for [{job.row.missing.name}].")
    changes = {**job.overrides, **(settings or {})}
    machine = {"state": "ERROR", "show_progress": False, **(machine or {})}
    model, dataset = job.row.model, job.data.dataset
    known = known_keys(build_config(model, dataset, None, machine)) - MACHINE_KEYS
    for key in changes.keys() - known:
        raise ValueError(f"{job}: key [{key}] is unknown to {model}, or not for a manifest to set.")
    files = [str(job.tier.config_file)] if job.tier.config_file else None
    config = build_config(model, dataset, files, {**machine, **changes, "seed": job.seed})
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

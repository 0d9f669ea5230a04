"""Recommendations for histories in Parquet files, part by part: in one process, or on a Ray cluster to the same result.

A part is a row group of a file. Its results are one file of the output folder, which is there whole or not at all; a
run that was cut goes on with the parts that are missing.
"""

from __future__ import annotations

import glob
import json
import os
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recbole_diffusion.compat.files import checksum, write_whole
from recbole_diffusion.recommend.lines import recommend_records
from recbole_diffusion.recommend.recommender import Recommender

RESULT = [("items", pa.list_(pa.string())), ("scores", pa.list_(pa.float32())), ("spread", pa.list_(pa.float32())),
          ("unknown", pa.list_(pa.string())), ("error", pa.string())]  # fmt: skip
ABOUT = "_recommend.json"
SOURCE = b"recbole_diffusion.input"  # of the results' metadata: which file they are for


@dataclass(frozen=True)
class Part:
    """A row group of a file, and where its results go."""

    file: str
    group: int
    output: str
    source: str  # the file's checksum, kept with the results


@dataclass(frozen=True)
class Options:
    """What the results depend on, and how the work is done."""

    model_file: str
    k: int = 10
    exclude_seen: bool = False
    inference_seeds: Any = None
    keep_going: bool = False
    # On these no result depends.
    batch_size: int | None = None
    config_dict: dict[str, Any] | None = None  # as `Recommender`'s: where the dataset is


def load(options: Options) -> Recommender:
    """The model that recommends."""
    return Recommender(options.model_file, options.inference_seeds, options.config_dict)


def find_parts(pattern: str, folder: str | Path) -> list[Part]:
    """All parts of the files that a path, a folder or a pattern names.

    Raises FileNotFoundError where there is none; ValueError where one is no Parquet, has no column history or one of
    the results, or has the name of another.
    """
    files = sorted(glob.glob(os.path.join(pattern, "*.parquet") if os.path.isdir(pattern) else pattern))
    if not files:
        raise FileNotFoundError(f"input [{pattern}] names no file.")
    names = [Path(file).stem for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"input [{pattern}] has two files of one name, whose results would be one file.")
    parts = []
    for file, name in zip(files, names, strict=True):
        try:
            about = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"input [{file}] is no Parquet file: {' '.join(str(error).split())[:200]}") from None
        if "history" not in about.schema_arrow.names:
            raise ValueError(f"input [{file}] has no column history, but {', '.join(about.schema_arrow.names)}.")
        twice = sorted({*about.schema_arrow.names} & {*dict(RESULT)})
        if twice:
            raise ValueError(f"input [{file}] has a column {twice[0]}, which the results have as well: rename it.")
        source = str(checksum(file))
        for group in range(about.metadata.num_row_groups):
            parts.append(Part(file, group, str(Path(folder) / f"{name}-{group:05d}.parquet"), source))
    return parts


def recommend_part(recommender: Recommender, part: Part, options: Options) -> int:
    """Write the results of one part, batch by batch, and return how many rows it has."""
    source = pq.ParquetFile(part.file)
    kept = [field for field in source.schema_arrow if field.name not in {"history", *dict(RESULT)}]
    schema = pa.schema(
        [*kept, *(pa.field(name, kind) for name, kind in RESULT if name != "error" or options.keep_going)],
        metadata={SOURCE: part.source},
    )
    size, rows = options.batch_size or recommender.batch_size, 0
    temporary = Path(part.output).with_name(f".{Path(part.output).name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for batch in source.iter_batches(
                size, row_groups=[part.group], columns=["history", *(f.name for f in kept)]
            ):
                numbered = enumerate(batch.to_pylist(), start=rows + 1)
                found = recommend_records(
                    recommender, numbered, dict, f"{part.file}, group {part.group}, row",
                    options.k, options.exclude_seen, size, options.keep_going,
                )  # fmt: skip
                writer.write_table(pa.Table.from_pylist(list(found), schema))
                rows += batch.num_rows
        os.replace(temporary, part.output)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return rows


def _is_done(part: Part) -> bool:
    """Whether the results of a part are there; ValueError where they are for another file of that name."""
    if not Path(part.output).exists():
        return False
    if (pq.read_schema(part.output).metadata or {}).get(SOURCE) != part.source.encode():
        raise ValueError(
            f"output [{part.output}] holds results for what [{part.file}] was before: name another folder."
        )
    return True


def recommend_parquet(
    pattern: str,
    folder: str | Path,
    options: Options,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    num_gpus: float = 0,
) -> Iterator[tuple[int, int, int, float]]:
    """Work off the parts that are missing; yields (parts done, parts in all, rows, peak memory in MiB) after each.

    ``engine`` is local (this process) or ray: ``workers`` actors (default: one for each CPU of the cluster at
    ``address``, or of this machine) load the model once each, and take parts as they are free.

    Raises
    ------
    FileNotFoundError, ValueError
        As `find_parts` and `Recommender`; the folder holds what was recommended otherwise, or for other rows; a row
        cannot be used.
    ConnectionError, ImportError
        There is no such cluster, or Ray is missing.
    """
    parts, folder = find_parts(pattern, folder), Path(folder)
    options = Options(**{**asdict(options), "model_file": str(Path(options.model_file).resolve())})
    missing = [part for part in parts if not _is_done(part)]
    if engine == "local":
        recommender = load(options)
        _claim(folder, options)
        results = ((recommend_part(recommender, part, options), _peak()) for part in missing)
    else:
        cluster = _connect(address)
        _claim(folder, options)
        results = _on_ray(cluster, missing, options, workers, num_gpus)
    if not missing:
        yield len(parts), len(parts), 0, _peak()
    for number, (rows, peak) in enumerate(results, start=len(parts) - len(missing) + 1):
        yield number, len(parts), rows, peak


def _claim(folder: Path, options: Options) -> None:
    """Make the folder, or make sure that what is there was made in the same way."""
    model = Path(options.model_file)
    if not model.is_file():
        raise FileNotFoundError(f"model_file [{model}] does not exist.")
    about = {**asdict(options), "model_file": checksum(model)}
    del about["batch_size"], about["config_dict"]
    file = folder / ABOUT
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"output [{folder}] cannot be gone on with: {ABOUT} is damaged ({error}).") from None
        if found != json.loads(json.dumps(about)):
            raise ValueError(f"output [{folder}] holds recommendations by another model or other options.")
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"output [{folder}] is not empty: name another folder.")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(about))


def _peak() -> float:
    """Most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class PartWorker:
    """An actor: loads the model once, then writes the results of one part after another."""

    def __init__(self, options: dict[str, Any]):
        import torch

        torch.set_num_threads(1)  # the cores are for as many actors
        self.options = Options(**options)
        self.recommender = load(self.options)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = (batch["file"], map(int, batch["group"]), batch["output"], batch["source"])
        parts = [Part(*row) for row in zip(*columns, strict=True)]
        return {"rows": [recommend_part(self.recommender, part, self.options) for part in parts], "peak": [_peak()]}


def _connect(address: str | None):
    """Ray, connected to a cluster or started on this machine."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(f"engine [ray] needs Ray Data ({error}): pip install 'ray[data]'") from None
    if not ray.is_initialized():
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        try:
            if port.isdigit():  # Ray would try for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise ConnectionError(f"address [{address}] has no Ray cluster: {said}") from None
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def _on_ray(ray, parts: list[Part], options: Options, workers: int | None, num_gpus: float):
    """Rows and peak memory of each part as it is done."""
    if not parts:
        return
    workers = min(len(parts), workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
    found = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts)).map_batches(
        PartWorker,
        fn_constructor_args=(asdict(options),),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=num_gpus or None,
    )
    try:
        for row in found.iter_rows():
            yield int(row["rows"]), float(row["peak"])
    except Exception as error:  # Ray's own, with the actor's in its text
        said = [line for line in str(error).splitlines() if line.startswith("ValueError: ")]
        if not said:
            raise
        raise ValueError(said[0].removeprefix("ValueError: ")) from None

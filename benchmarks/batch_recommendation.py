"""Recommendations for millions of histories in Parquet: one process beside Ray, which is killed midway and goes on.

    python benchmarks/batch_recommendation.py --histories=1e7 --workers=2 --output=results/batch-recommendation

Histories of 1 to 50 items are drawn, and recommended for by a SASRecPlus of ml-100k that reads the last 20 of them (or
--model_file). One process works off the first of ten files; Ray all of them: it is killed (SIGKILL) at half of the
parts, and started again.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags

ROOT = Path(__file__).resolve().parent.parent
FILES = 10
LENGTH = 20  # of a history that the model reads; the files' are longer
RECOMMEND = [sys.executable, "-W", "ignore", "-c", "from recbole_diffusion.commands import main; main()", "recommend"]
LAST_LINE = re.compile(r"now ([\d,]+) histories in ([\d.]+) s, .* at most ([\d,]+) MiB a process")


def train_small(folder: Path) -> str:
    from recbole_diffusion.quick_start import run

    quiet = {"state": "ERROR", "show_progress": False, "checkpoint_dir": str(folder)}
    return run("SASRecPlus", "ml-100k", config_dict={**quiet, "epochs": 1, "MAX_ITEM_LIST_LENGTH": LENGTH})[
        "model_file"
    ]


def write_histories(folder: Path, tokens: list[str], n: int, group: int) -> None:
    """Ten files of n / 10 histories, in row groups."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw, tokens = np.random.default_rng(0), pa.array(tokens)
    folder.mkdir(parents=True)
    for number in range(FILES):
        users = np.arange(number * n // FILES, (number + 1) * n // FILES)
        offsets = np.concatenate([[0], draw.integers(1, 51, len(users)).cumsum()]).astype(np.int32)
        items = tokens.take(pa.array(draw.integers(0, len(tokens), offsets[-1])))
        table = pa.table({"user": users, "history": pa.ListArray.from_arrays(pa.array(offsets), items)})
        pq.write_table(table, folder / f"histories-{number}.parquet", row_group_size=group)


def recommend(model_file: str, source: str, output: Path, *args: str, until: int | None = None) -> dict:
    """Call the command; with ``until``, kill it when so many parts are there. Rows, seconds and peak of a process."""
    command = [*RECOMMEND, f"--model_file={model_file}", f"--input={source}", f"--output={output}", *args]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as job:
        while until and job.poll() is None and len(list(output.glob("*.parquet"))) < until:
            time.sleep(0.2)
        if until and job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            return {"seconds": time.perf_counter() - start}
        said = job.communicate()[0]
    seconds = time.perf_counter() - start
    if job.returncode:
        raise ValueError(f"recommend ended with {job.returncode}")
    rows, working, peak = (float(part.replace(",", "")) for part in LAST_LINE.search(said).groups())
    return {"seconds": seconds, "rows": int(rows), "working": working, "peak": int(peak)}


def compare(one: Path, ray: Path) -> tuple[int, float, float]:
    """Histories of both folders, share of equal lists, and the greatest difference of a score."""
    import numpy as np
    import pyarrow.parquet as pq

    rows, same, apart = 0, 0, 0.0
    for file in sorted(one.glob("*.parquet")):
        a, b = pq.read_table(file), pq.read_table(ray / file.name)
        assert a["user"] == b["user"]
        rows += len(a)
        same += sum(x == y for x, y in zip(a["items"].to_pylist(), b["items"].to_pylist(), strict=True))
        first, second = (part["scores"].combine_chunks().flatten().to_numpy() for part in (a, b))
        apart = max(apart, float(np.abs(first - second).max()))
    return rows, same / rows, apart


def measure(args: argparse.Namespace, work: Path) -> tuple[list[dict], str]:
    """Rows of the table, and what stands above it."""
    from recbole_diffusion.recommend import Recommender

    n, model_file = int(args.histories), args.model_file or train_small(work / "saved")
    write_histories(work / "in", Recommender(model_file).tokens[1:], n, args.group)
    parts = sum(-(-((k + 1) * n // FILES - k * n // FILES) // args.group) for k in range(FILES))
    one = recommend(model_file, str(work / "in" / "histories-0.parquet"), work / "one")
    everything, on_ray = str(work / "in" / "*.parquet"), ["--engine=ray", f"--workers={args.workers}"]
    cut = recommend(model_file, everything, work / "ray", *on_ray, until=parts // 2)
    kept = {path: path.stat().st_mtime_ns for path in (work / "ray").glob("*.parquet")}
    rest = recommend(model_file, everything, work / "ray", *on_ray)
    made_again = sum(path.stat().st_mtime_ns != time_ns for path, time_ns in kept.items())
    left = [path.name for path in (work / "ray").glob(".*")]
    rows, same, apart = compare(work / "one", work / "ray")

    def row(what: str, done: int, found: dict) -> dict:
        rate = done / found.get("working", found["seconds"])
        return {"what": what, "histories": done, "seconds": round(found["seconds"], 1), "users/s": round(rate),
                "peak MiB a process": found.get("peak", "")}  # fmt: skip

    text = (
        f"{n:,} histories in {FILES} files, {parts} parts. Ray was killed with {len(kept)} parts done and went on "
        f"with the others: {made_again} were made again, {len(left)} unfinished files are left. Of {rows:,} histories "
        f"that both have, {same:.4%} of the lists are equal, scores differ by {apart:.1e} at most. Users/s are of the "
        "command's own clock, where it was not killed; seconds include its start."
    )
    workers = f"Ray, {args.workers} actors"
    rows = [row("one process", one["rows"], one), row(f"{workers}, until killed", n - rest["rows"], cut)]
    return [*rows, row(f"{workers}, the rest", rest["rows"], rest)], text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--histories", type=float, default=1e7, help="(default: %(default)g)")
    add("--group", type=int, default=50_000, help="histories of a row group, which is a part (default: %(default)s)")
    add("--workers", type=int, default=2, help="actors (default: %(default)s)")
    add("--model_file", help="a checkpoint (default: SASRecPlus, trained for one epoch of ml-100k)")
    add("--work", type=Path, help="folder for input and output, kept (default: one that is removed)")
    add("--output", type=Path, default=Path("results/batch-recommendation"), help="(default: %(default)s)")
    args = parse_flags(parser)
    with errors_in_one_line():
        begin("Histories, one process, Ray until it is killed, Ray again")
        from figure import write_figure

        sys.argv = sys.argv[:1]  # RecBole's Config would read it
        with tempfile.TemporaryDirectory() as folder:
            write_figure(args.output, *measure(args, args.work or Path(folder)))


if __name__ == "__main__":
    main()

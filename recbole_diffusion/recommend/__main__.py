"""Top-k items with scores and uncertainty for any history, also of a user never seen in training.

python -m recbole_diffusion.recommend --model_file saved/DiffuRec-....pth --history 1193,661,914 --inference_seeds 10
python -m recbole_diffusion.recommend --model_file saved/DiffuRec-....pth --input histories.jsonl --output out.jsonl

A line of the input is a list of item tokens, oldest first, ``["1193", "661"]``, or an object with a ``history``, whose
other keys are passed on, ``{"user": "u7", "history": ["1193", "661"]}``. A line of the output has ``items``, best
first, ``scores``, ``spread`` (the standard deviation of each score over the seeds; null with less than two) and
``unknown`` (tokens that the model does not know and left out).

The file of ``--output`` appears when it is whole. A job that is cut leaves what is done beside it, in
``<output>.partial`` with a manifest, and goes on there when it is started again in the same words.

Parquet files have a column ``history``, a list; each row group's results are a file of the output folder, and what is
there is not made again: recbole-diffusion recommend --model_file=... --input='*.parquet' --output=folder --engine=ray
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from numbers import Integral
from pathlib import Path
from typing import Any

from recbole_diffusion.cli import errors_in_one_line
from recbole_diffusion.compat.files import checksum
from recbole_diffusion.config.checks import check_number
from recbole_diffusion.recommend.lines import dumps, recommend_lines
from recbole_diffusion.recommend.output import PART, PartialOutput
from recbole_diffusion.recommend.recommender import Recommender, batches


def _seeds(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # which is then said to be wrong


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recbole_diffusion.recommend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_file", required=True, help="a checkpoint")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--history", help="item tokens, oldest first, separated by commas, or a list in JSON")
    given.add_argument("--input", help="a file with one history a line (JSON), or Parquet files (*.parquet, a folder)")
    add("--output", help="the file to write, a line for each history (default: standard output); a folder for Parquet")
    add("--topk", type=int, default=10, help="how many items (default: %(default)s)")
    add("--exclude_seen", action="store_true", help="recommend no item of the history")
    add(
        "--inference_seeds", type=_seeds, help="seeds, or their number, instead of the model's own, such as 10 or [1,2]"
    )
    add("--batch_size", type=int, help="histories at once (default: the model's eval_batch_size)")
    add("--keep_going", action="store_true", help='write {"error": ...} for a line that cannot be used, and go on')
    add("--data_path", help="folder that holds the dataset's folder, for models that read it (default: dataset/)")
    add("--trust_pickles", action="store_true", help="read datasets that RecBole pickled: they can run code")
    cluster = parser.add_argument_group("Parquet, in one process or on Ray")
    cluster.add_argument("--engine", default="local", choices=["local", "ray"], help="(default: %(default)s)")
    cluster.add_argument("--address", help="of a Ray cluster, such as auto (default: start Ray on this machine)")
    cluster.add_argument("--workers", type=int, help="actors, each with the model (default: one for each CPU)")
    cluster.add_argument("--num_gpus", type=float, default=0, help="of each actor (default: %(default)s)")
    return parser.parse_args(argv)


def _is_parquet(pattern: str) -> bool:
    return pattern.endswith((".parquet", ".pq")) or Path(pattern).is_dir()


def _recommend_parquet(args: argparse.Namespace) -> None:
    """Part by part to files of a folder."""
    if not args.output:
        raise ValueError("output [None] must be a folder for Parquet: say --output.")
    from recbole_diffusion.recommend.parquet import Options, recommend_parquet

    options = Options(
        args.model_file, args.topk, args.exclude_seen, args.inference_seeds, args.keep_going, args.batch_size
    )
    start, rows, peak, parts = time.perf_counter(), 0, 0.0, (0, 0)
    cluster = (args.engine, args.address, args.workers, args.num_gpus)
    for done, total, new, most in recommend_parquet(args.input, args.output, options, *cluster):
        rows, peak, parts = rows + new, max(peak, most), (done, total)
        print(f"{done} of {total} parts", end="\r", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(
        f"{parts[0]} of {parts[1]} parts; now {rows:,} histories in {seconds:.1f} s, {rows / seconds:,.0f} a second, "
        f"at most {peak:,.0f} MiB a process: {args.output}"
    )


def _data(args: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint is not asked: where the dataset is, and whether its pickles may be read."""
    return {"trust_pickles": args.trust_pickles, **({"data_path": args.data_path} if args.data_path else {})}


def _history(text: str) -> str:
    """A history of the command line as a line of JSON."""
    if text.lstrip().startswith("["):
        return text
    return json.dumps([token.strip() for token in text.split(",") if token])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with errors_in_one_line():
        _check(args)
        if args.input and _is_parquet(args.input):
            return _recommend_parquet(args)
        start, recommender = time.perf_counter(), Recommender(args.model_file, args.inference_seeds, _data(args))
        if args.history is not None:
            lines: Iterable[bytes] = [_history(args.history).encode()]
            done = _write(recommender, lines, args)
        else:
            with open(args.input, "rb") as lines:
                done = _write(recommender, lines, args)
        if args.output:
            seconds = time.perf_counter() - start
            print(f"{done:,} histories in {seconds:.1f} s, {done / seconds:,.0f} a second: {args.output}")


def _check(args: argparse.Namespace) -> None:
    for name in ("topk", "batch_size", "workers"):
        if getattr(args, name) is not None:
            check_number(vars(args), name, Integral, 1)
    if args.input and _is_parquet(args.input):
        return
    if args.engine != "local":
        raise ValueError(f"engine [{args.engine}] works off Parquet files: --input='*.parquet'.")
    if args.input and not Path(args.input).exists():
        raise FileNotFoundError(f"input [{args.input}] does not exist.")
    if args.input and args.output and Path(args.output).exists() and os.path.samefile(args.input, args.output):
        raise ValueError(f"output [{args.output}] is the input, and would be lost: name another file.")


def _write(recommender: Recommender, lines: Iterable[bytes], args: argparse.Namespace) -> int:
    """Write a line for each history, to a file part by part; return how many this process wrote."""
    settings = {"k": args.topk, "exclude_seen": args.exclude_seen, "keep_going": args.keep_going}
    size = args.batch_size or recommender.batch_size
    output = Path(args.output) if args.output else None
    if output is None or (output.exists() and not output.is_file() and not output.is_dir()):  # a pipe, or /dev/null
        with open(output, "w") if output else nullcontext(sys.stdout) as out:
            records = recommend_lines(recommender, lines, batch_size=size, **settings)
            return sum(bool(out.write(dumps(record) + "\n")) for record in records)
    job = {**settings, "batch_size": size, "seeds": args.inference_seeds, "model": checksum(args.model_file)}
    with PartialOutput(output, job) as out:
        before = out.records
        if before:
            print(f"{before:,} histories were done before.")
        for part in batches(out.rest(lines), size * math.ceil(PART / size)):
            for record in recommend_lines(recommender, part, batch_size=size, first=out.lines + 1, **settings):
                out.write(dumps(record) + "\n")
            out.part_done()
        out.finish()
        return out.records - before


if __name__ == "__main__":
    main()

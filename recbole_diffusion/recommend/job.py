"""What the command does when its flags are read: recommend for one history, for a file of them, or for known users."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from numbers import Integral
from pathlib import Path
from typing import Any

from recbole_diffusion.compat.files import checksum
from recbole_diffusion.config.checks import check_number
from recbole_diffusion.recommend.lines import CSV_COLUMNS, as_csv, as_json, recommend_lines
from recbole_diffusion.recommend.output import PART, PartialOutput
from recbole_diffusion.recommend.recommender import Recommender, batches
from recbole_diffusion.recommend.users import known_users


def recommend_for(args: argparse.Namespace) -> None:
    """Write what the model recommends, a line for each history.

    Raises
    ------
    ValueError, FileNotFoundError
        A flag is out of range, a line cannot be used, or a file is missing.
    """
    _check(args)
    data = {"trust_pickles": args.trust_pickles}
    if args.data_path:
        data["data_path"] = os.path.abspath(args.data_path)  # a worker may be in another folder
    if args.input and _is_parquet(args.input):
        return _recommend_parquet(args, data)
    start, recommender = time.perf_counter(), Recommender(args.model_file, args.inference_seeds, data)
    with _histories(recommender, args) as lines:
        done = _write(recommender, lines, args)
    if args.output:
        seconds = time.perf_counter() - start
        print(f"{done:,} histories in {seconds:.1f} s, {done / seconds:,.0f} a second: {args.output}")


@contextmanager
def _histories(recommender: Recommender, args: argparse.Namespace) -> Iterator[Iterable[bytes]]:
    """The histories asked for, as lines of JSON."""
    if args.history is not None:
        yield [_history(args.history).encode()]
    elif args.input == "-":
        yield sys.stdin.buffer
    elif args.input:
        with open(args.input, "rb") as lines:
            yield lines
    else:
        known = known_users(recommender)
        users = known.names() if args.all_users else [args.user]
        yield (json.dumps({"user": user, "history": known.history(user)}).encode() + b"\n" for user in users)


def _history(text: str) -> str:
    """A history of the command line as a line of JSON."""
    if text.lstrip().startswith("["):
        return text
    return json.dumps([token.strip() for token in text.split(",") if token.strip()])


def _is_parquet(pattern: str) -> bool:
    return pattern.endswith((".parquet", ".pq")) or Path(pattern).is_dir()


def _recommend_parquet(args: argparse.Namespace, data: dict[str, Any]) -> None:
    """Part by part to files of a folder."""
    if not args.output:
        raise ValueError("output [None] must be a folder for Parquet: say --output.")
    from recbole_diffusion.recommend.parquet import Options, recommend_parquet

    options = Options(
        args.model_file, args.topk, args.exclude_seen, args.inference_seeds, args.keep_going, args.batch_size, data
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


def _check(args: argparse.Namespace) -> None:
    for name in ("topk", "batch_size", "workers"):
        if getattr(args, name) is not None:
            check_number(vars(args), name, Integral, 1)
    if args.engine == "local":
        for name in ("address", "workers", "num_gpus"):
            if getattr(args, name):
                raise ValueError(f"{name} [{getattr(args, name)}] is for Ray: say --engine=ray.")
    if args.input and _is_parquet(args.input):
        if args.format:
            raise ValueError(f"format [{args.format}] cannot be had from Parquet files, which give Parquet files.")
        return
    if args.engine != "local":
        raise ValueError(f"engine [{args.engine}] works off Parquet files: --input='*.parquet'.")
    if args.input and args.input != "-" and not Path(args.input).exists():
        raise FileNotFoundError(f"input [{args.input}] does not exist.")
    if (
        args.input not in (None, "-")
        and args.output
        and Path(args.output).exists()
        and os.path.samefile(args.input, args.output)
    ):
        raise ValueError(f"output [{args.output}] is the input, and would be lost: name another file.")


def _write(recommender: Recommender, lines: Iterable[bytes], args: argparse.Namespace) -> int:
    """Write a record for each history, to a file part by part; return how many this process wrote."""
    settings = {"k": args.topk, "exclude_seen": args.exclude_seen, "keep_going": args.keep_going}
    size = args.batch_size or recommender.batch_size
    output = Path(args.output) if args.output else None
    kind = args.format or ("csv" if output and output.suffix == ".csv" else "jsonl")
    as_text, head = (as_csv, ",".join(CSV_COLUMNS) + "\n") if kind == "csv" else (as_json, "")
    if output is None or (output.exists() and not output.is_file() and not output.is_dir()):  # a pipe, or /dev/null
        with open(output, "w", encoding="utf-8") if output else nullcontext(sys.stdout) as out:
            out.write(head)
            records = recommend_lines(recommender, lines, batch_size=size, **settings)
            return sum(bool(out.write(as_text(record, number))) for number, record in enumerate(records, start=1))
    job = {**settings, "batch_size": size, "seeds": args.inference_seeds, "model": checksum(args.model_file)}
    with PartialOutput(output, {**job, "format": kind}) as out:
        before = out.records
        if before:
            print(f"{before:,} histories were done before.")
        out.begin(head)
        for part in batches(out.rest(lines), size * math.ceil(PART / size)):
            for record in recommend_lines(recommender, part, batch_size=size, first=out.lines + 1, **settings):
                out.write(as_text(record, out.records + 1))
            out.part_done()
        out.finish()
        return out.records - before

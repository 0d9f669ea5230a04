"""Cut runs at any moment and start them again: do they end with the bits of a run that was left alone?

    python benchmarks/interrupted.py --runs=42 --threads=2

The models take turns. Each run is a process that is killed (SIGKILL), told to end (SIGTERM) or interrupted (Ctrl-C) at
random moments, up to three times, and then left to its end; every start is with ``resume=auto``. Compared are the
weights of the best checkpoint and the test result. Ends with 1 where one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

from recbole_diffusion.cli import errors_in_one_line, parse_flags

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SETTINGS = {"epochs": 5, "limit_train_batches": 6, "resume": "auto", "state": "ERROR", "show_progress": False}
SMALL = {"hidden_size": 64, "inner_size": 64, "n_layers": 2, "n_heads": 2, "num_steps": 4, "train_batch_size": 512}


def train(folder: Path, model: str, threads: int, data_path: str) -> None:
    """Train in a folder, or go on there, and leave a mark of the end in the file `end`."""
    import torch

    from recbole_diffusion.compat.checkpoint import load_checkpoint
    from recbole_diffusion.quick_start import build_config, run

    os.chdir(folder)
    sys.argv = sys.argv[:1]
    torch.set_num_threads(threads)
    where = {"data_path": data_path}
    read = build_config(model, "markov-toy", None, {**SETTINGS, **where}).final_config_dict
    small = {key: value for key, value in SMALL.items() if key in read}
    try:
        result = run(model, "markov-toy", config_dict={**small, **SETTINGS, **where})
    except KeyboardInterrupt:
        sys.exit(130)
    mark = hashlib.sha256(json.dumps(result["test_results"], sort_keys=True).encode())
    for value in load_checkpoint(result["model_file"])["state_dict"].values():
        mark.update(value.contiguous().numpy().tobytes())
    Path("end").write_text(mark.hexdigest())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--runs", type=int, default=42, help="(%(default)s)")
    add("--threads", type=int, default=2, help="of PyTorch, in each run (%(default)s)")
    add("--cuts", type=int, default=3, help="most of each run (%(default)s)")
    add("--models", default="DiffuRec DiffuRecSys SeqDiffRec DreamRec CDDRec SASRecPlus", help="(%(default)s)")
    add("--data_path", default="dataset/", help="folder that holds markov-toy/ (%(default)s)")
    add("--seed", type=int, default=0, help="of the moments (%(default)s)")
    args = parse_flags(parser)
    with errors_in_one_line(), tempfile.TemporaryDirectory() as folder:
        kills, different = cut_runs(args, Path(folder))
    print(f"{args.runs} runs, cut {kills} times, {args.threads} threads: {different} ended otherwise")
    sys.exit(different > 0)


def cut_runs(args: argparse.Namespace, folder: Path) -> tuple[int, int]:
    """How often runs were cut, and how many ended with other bits."""
    processes = multiprocessing.get_context("forkserver")  # each is there at once, with what it imports
    processes.set_forkserver_preload(["recbole_diffusion.quick_start"])
    (first := processes.Process()).start()  # which waits for that
    first.join()
    draw, numbers, models = random.Random(args.seed), count(), args.models.split()
    whole, kills, different = {}, 0, 0

    def start(model: str, where: Path) -> multiprocessing.Process:
        where.mkdir(exist_ok=True)
        arguments = (where, model, args.threads, os.path.abspath(args.data_path))
        process = processes.Process(target=train, args=arguments)
        process.start()
        return process

    def finish(process: multiprocessing.Process, where: Path) -> str:
        process.join()
        if process.exitcode:
            raise ValueError(f"a run that nobody cut ended with {process.exitcode}.")
        return (where / "end").read_text()

    for number in range(args.runs):
        model, cuts = models[number % len(models)], 0
        if model not in whole:
            begun, where = time.perf_counter(), folder / model
            whole[model] = finish(start(model, where), where), time.perf_counter() - begun
        end, seconds = whole[model]
        where = folder / str(number)
        for _ in range(args.cuts):
            process = start(model, where)
            process.join(draw.uniform(0, 0.8) * seconds)
            if process.exitcode is None:
                os.kill(process.pid, SIGNALS[next(numbers) % len(SIGNALS)])
                cuts += 1
            process.join()
        same = finish(start(model, where), where) == end
        kills, different = kills + cuts, different + (not same)
        print(f"{number + 1:>3} {model:<12} cut {cuts} times: {'the same bits' if same else 'OTHER BITS'}", flush=True)
    return kills, different


if __name__ == "__main__":
    main()

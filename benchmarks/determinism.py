"""What deterministic algorithms cost, and what they give: seconds an epoch, and in how many ways the same run ends.

    python benchmarks/determinism.py --threads=2 --rounds=5 --models="DiffuRec DiffuRecSys CDDRec SASRecPlus"

Each round trains every model with ``reproducibility`` on and off, in turns, from one seed; two epochs of a run
warm up, the third is timed. On a quiet machine only.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags


def train(model: str, reproducibility: bool, args: argparse.Namespace) -> tuple[float, str]:
    """Seconds of an epoch after two, and a mark of all weights at its end."""
    import torch

    from recbole_diffusion.quick_start import build_config, prepare_training

    settings = {"reproducibility": reproducibility, "data_path": args.data_path, "epochs": 2, "eval_step": 0}
    settings |= {"limit_train_batches": args.batches, "state": "ERROR", "show_progress": False}
    trainer, train_data, *_ = prepare_training(build_config(model, args.dataset, None, settings))
    trainer.fit(train_data, saved=False)
    wait = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    trainer._train_epoch(train_data, 2)
    wait()
    seconds = time.perf_counter() - start
    mark = hashlib.sha256()
    for value in trainer.model.state_dict().values():
        mark.update(value.detach().cpu().contiguous().numpy().tobytes())
    return seconds, mark.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", default="DiffuRec DiffuRecSys CDDRec SASRecPlus", help="names, separated by spaces (%(default)s)")
    add("--dataset", default="ml-100k", help="(%(default)s)")
    add("--data_path", default="dataset/", help="folder that holds the dataset's folder (%(default)s)")
    add("--threads", type=int, default=2, help="of PyTorch (%(default)s)")
    add("--rounds", type=int, default=5, help="runs of each kind (%(default)s)")
    add("--batches", type=int, default=20, help="of an epoch (%(default)s)")
    args = parse_flags(parser)
    sys.argv = sys.argv[:1]  # RecBole's Config would read it
    with errors_in_one_line():
        begin()
        import torch

        torch.set_num_threads(args.threads)
        print(f"PyTorch {torch.__version__}, {args.threads} threads, {args.dataset}, {args.batches} batches an epoch")
        print(f"{'model':<12} {'on, s':>8} {'off, s':>8} {'ratio':>6}  ends when on, off")
        for model in args.models.split():
            found = {True: [], False: []}
            for _ in range(args.rounds):
                for on in found:
                    found[on].append(train(model, on, args))
            on, off = (statistics.median(seconds for seconds, _ in found[kind]) for kind in (True, False))
            ends = [len({mark for _, mark in found[kind]}) for kind in (True, False)]
            print(f"{model:<12} {on:>8.2f} {off:>8.2f} {on / off:>6.2f}  {ends[0]}, {ends[1]}", flush=True)


if __name__ == "__main__":
    main()

"""Time and memory from an atomic file to the first training batch: rows gathered batch by batch, and RecBole's own.

    python benchmarks/data_cost.py --interactions 1e6,1e7,5e7 --output results/data-cost

Each measurement is a process of its own. RecBole's is ended after --timeout seconds, or where it would take more than
--memory GiB. The interactions are synthetic: users with 5 to 95 of them, items by a power law.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from recbole_diffusion.cli import parse_flags

KINDS = {
    "prefixes": "rows of prefixes (DiffuRec and the like)",
    "windows": "windows of users (SASRecPlus, CDDRec and the like)",
    "recbole": "RecBole's SequentialDataset, as it reads and writes rows by itself",
}
CHUNK = 10**6


def write_interactions(path: Path, n: int, n_items: int, seed: int = 0) -> None:
    """An atomic file of n interactions in the order of time, each user's spread over it."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n // 40), rng.integers(5, 96, n // 40))[:n]
    users = np.concatenate([users, rng.integers(0, max(1, n // 40), n - len(users))])
    rng.shuffle(users)
    items = np.minimum(rng.zipf(1.3, n) - 1, rng.integers(0, n_items, n))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for first in range(0, n, CHUNK):
            part = slice(first, first + CHUNK)
            times = 1_500_000_000 + np.arange(first, first + len(users[part]))
            frame = pd.DataFrame({"u": users[part], "i": items[part], "t": times})
            frame.to_csv(file, sep="\t", header=False, index=False)


def first_batch(kind: str, folder: str, dataset: str) -> dict[str, float]:
    """Seconds and peak memory of this process from its configuration to its first training batch."""
    import numpy as np

    if kind == "recbole":
        # Nothing of this package may help: only what NumPy took from RecBole is given back.
        for alias, target in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
            setattr(np, alias, target) if not hasattr(np, alias) else None
        np.float = float
    else:
        import recbole_diffusion

        recbole_diffusion.register()
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model

    protocol = {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}}
    quiet = {"state": "ERROR", "show_progress": False, "data_path": folder, "train_neg_sample_args": None}
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "train_batch_size": 512}
    model = "SASRecPlus" if kind == "windows" else "SASRec"
    get_model(model)  # the modules are imported before the clock starts
    start = time.perf_counter()
    own = {} if kind == "windows" else {"loss_type": "CE"}
    config = Config(model, dataset, config_dict={**protocol, **quiet, **columns, **own, "MAX_ITEM_LIST_LENGTH": 50})
    train, _, _ = data_preparation(config, create_dataset(config))
    prepared = time.perf_counter()
    batch = next(iter(train))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "first_batch_seconds": round(time.perf_counter() - prepared, 1),
        "peak_gib": round(peak, 2),
        "rows": train.sample_size,
        "batch": list(batch["item_id_list"].shape),
    }


def measure(kind: str, folder: Path, dataset: str, timeout: float, memory: float) -> dict:
    """``first_batch`` in a process of its own, ended by its limits."""
    limit = int(memory * 2**30)
    command = [sys.executable, "-W", "ignore", __file__, "--kind", kind, "--folder", str(folder), "--dataset", dataset]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        )
    except subprocess.TimeoutExpired:
        return {"ended": f"not done after {timeout:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["killed"])[-1]
        return {"ended": f"needs more than {memory:g} GiB" if "emory" in last or done.returncode < 0 else last}
    return json.loads(done.stdout.splitlines()[-1])


def row(n: int, kind: str, found: dict) -> dict:
    """A line of the table; what was ended has its reason for seconds."""
    seconds = found.get("ended") or found["seconds"]
    peak, rows = found.get("peak_gib", ""), found.get("rows", "")
    return {"interactions": n, "rows": KINDS[kind], "seconds": seconds, "peak GiB": peak, "rows of an epoch": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", default="1e6,1e7,5e7", help="numbers, separated by commas (%(default)s)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas (%(default)s)")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalogue (%(default)s)")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds of one measurement (%(default)s)")
    parser.add_argument("--memory", type=float, default=12, help="GiB of one measurement (%(default)s)")
    parser.add_argument("--output", type=Path, help="writes <output>.json and <output>.md")
    for hidden in ("--kind", "--folder", "--dataset"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parse_flags(parser)
    if args.kind:
        sys.argv = sys.argv[:1]  # RecBole's Config reads the command line
        os.chdir(args.folder)
        print(json.dumps(first_batch(args.kind, args.folder, args.dataset)))
        return
    unknown = [kind for kind in args.kinds.split(",") if kind not in KINDS]
    if unknown:
        parser.error(f"kinds {unknown} are unknown: choose from {', '.join(KINDS)}")
    try:
        sizes = [int(float(text)) for text in args.interactions.split(",")]
    except ValueError:
        parser.error(f"interactions [{args.interactions}] must be numbers, separated by commas")
    if min(sizes) < 1000:
        parser.error(f"interactions [{args.interactions}] must be at least 1,000 each")
    from figure import write_figure

    rows = []
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_interactions(Path(folder) / "synthetic" / "synthetic.inter", n, args.items)
            for kind in args.kinds.split(","):
                rows.append(row(n, kind, measure(kind, Path(folder), "synthetic", args.timeout, args.memory)))
                print(rows[-1], flush=True)
    if args.output:
        write_figure(args.output, rows, "From the start of preparing the data to the first training batch.")


if __name__ == "__main__":
    main()

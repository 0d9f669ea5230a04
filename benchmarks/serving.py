"""Served models beside themselves: ONNX Runtime against full_sort_predict, and a FAISS index against exact search.

    python benchmarks/serving.py --items=1e6 --output=results/serving

Writes <output>-onnx and <output>-faiss. Each model is trained for a few steps of ml-100k and exported; 1,000 drawn
histories are ranked by both, with 4 steps of a chain. The items of the index are drawn, too: around 1,000 centres, as
embeddings of kinds of items lie, and each by itself, the worst case for cells.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags

MODELS = "SASRecPlus,DiffuRec,DiffuRecSys,SeqDiffRec,DreamRec,CDDRec,ADRec"


def onnx_row(name: str, folder: Path) -> dict:
    """Train a little, export, rank 1,000 histories by ONNX Runtime and by the model."""
    import numpy as np
    import onnxruntime
    import torch

    from recbole_diffusion.quick_start import run
    from recbole_diffusion.recommend import Recommender
    from recbole_diffusion.serving.onnx_export import CHECKED_USERS, export_onnx, random_histories

    quiet = {"state": "ERROR", "show_progress": False, "checkpoint_dir": str(folder)}
    quick = {"epochs": 1, "limit_train_batches": 20, "eval_step": 0}
    if name not in ("SASRecPlus", "CDDRec"):  # 32 or 500 steps of each of 1,000 users say nothing more
        quick["sampling_steps"] = 4
    seeds = {"inference_seeds": [2023]} if name == "SeqDiffRec" else {}  # its own ten are exported as their mean
    file = run(name, "ml-100k", config_dict={**quiet, **quick, **seeds})["model_file"]
    same = export_onnx(file, folder / name)["same_top"]
    model, items = Recommender(file).model, np.load(folder / name / "items.npy")
    item_seq, item_seq_len = random_histories(len(items), model.max_seq_length, CHECKED_USERS)
    session = onnxruntime.InferenceSession(str(folder / name / "encoder.onnx"), providers=["CPUExecutionProvider"])
    feed = {"item_seq": item_seq.numpy(), "item_seq_len": item_seq_len.numpy()}
    batch = {model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: item_seq_len}
    with torch.no_grad():
        theirs = users_per_second(lambda: session.run(None, feed)[0] @ items.T)
        ours = users_per_second(lambda: model.full_sort_predict(batch))
    return {
        "model": name,
        "top-20 lists equal": f"{same['lists']:.1%}",
        "items in both": f"{same['items']:.2%}",
        "ONNX users/s": round(theirs),
        "PyTorch users/s": round(ours),
    }


def users_per_second(rank) -> float:
    """The best of three, for 1,000 users at once."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        rank()
        seconds.append(time.perf_counter() - start)
    return 1000 / min(seconds)


def index_row(kind: str, n: int, size: int, users: int, folder: Path) -> dict:
    """An index of n drawn vectors, asked with vectors near some of them."""
    import numpy as np

    from recbole_diffusion.serving.item_index import build_index

    draw = np.random.default_rng(0)
    items = draw.standard_normal((n + 1, size), dtype=np.float32)
    if kind == "around 1,000 centres":
        items = draw.standard_normal((1000, size), dtype=np.float32)[draw.integers(0, 1000, n + 1)] + 0.5 * items
    queries = items[draw.integers(1, n + 1, users)] + 0.5 * draw.standard_normal((users, size), dtype=np.float32)
    start = time.perf_counter()
    made = build_index(items, queries, folder / f"{kind[:4]}.faiss")
    return {
        "items": kind,
        "index": made["kind"],
        "recall of the top 20": made["recall"],
        "users/s": round(made["users_per_second"]),
        "exact users/s": round(made["exact_users_per_second"]),
        "seconds to build": round(time.perf_counter() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", default=MODELS, help="separated by commas (default: %(default)s)")
    add("--items", type=float, default=1e6, help="of the index (default: %(default)g)")
    add("--size", type=int, default=64, help="of an item's vector (default: %(default)s)")
    add("--users", type=int, default=1000, help="asked of the index (default: %(default)s)")
    add("--output", type=Path, default=Path("results/serving"), help="(default: %(default)s)")
    args = parse_flags(parser)
    with errors_in_one_line():
        begin("ONNX and FAISS")
        import torch
        from figure import write_figure

        sys.argv = sys.argv[:1]  # RecBole's Config would read it

        n, threads = int(args.items), torch.get_num_threads()
        with tempfile.TemporaryDirectory() as name:
            rows = [onnx_row(model, Path(name)) for model in args.models.split(",")]
            about = f"1,000 drawn histories of ml-100k, {threads} threads."
            write_figure(args.output.with_name(f"{args.output.name}-onnx"), rows, about)
            kinds = ("around 1,000 centres", "each by itself")
            rows = [index_row(kind, n, args.size, args.users, Path(name)) for kind in kinds]
            about = f"{n:,} items of {args.size} numbers, {args.users:,} users at once, {threads} threads."
            write_figure(args.output.with_name(f"{args.output.name}-faiss"), rows, about)


if __name__ == "__main__":
    main()

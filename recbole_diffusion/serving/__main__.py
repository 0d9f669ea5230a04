"""Write a trained model for serving: encoder.onnx, items.npy, model.json, and an index of the items.

recbole-diffusion export --model_file=saved/SASRecPlus-....pth --output=served --index=faiss

encoder.onnx takes item_seq [B, L] (int64: numbers of items, which model.json counts from 0, the padding; padded on the
right to max_length) and item_seq_len [B], and gives a vector a user; its inner products with items.npy are the scores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags, seeds_flag


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="recbole-diffusion export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_file", required=True, help="a checkpoint")
    add("--output", required=True, help="the folder to write; it must not be there")
    add("--format", default="onnx", choices=["onnx"], help="(default: %(default)s)")
    add("--index", choices=["faiss"], help="also write items.faiss, an index for inner products")
    add("--inference_seeds", type=seeds_flag, help="seeds, or their number, instead of the model's own")
    add("--data_path", help="folder that holds the dataset's folder, where the dataset is needed (default: dataset/)")
    return parse_flags(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, too
    with errors_in_one_line():
        begin(f"Exporting {args.model_file}")
        export(args)


def export(args: argparse.Namespace) -> None:
    """Write the folder, compare it with the model, and say how far they agree."""
    import numpy as np

    from recbole_diffusion.serving.item_index import build_index, require_faiss
    from recbole_diffusion.serving.onnx_export import CHECKED_TOP, CHECKED_USERS, export_onnx, random_histories

    if args.index:
        require_faiss()  # before anything is written
    data = {"data_path": args.data_path} if args.data_path else None
    made = export_onnx(args.model_file, args.output, args.inference_seeds, data)
    same, seeds = made["same_top"], made["inference_seeds"]
    print(f"{made['model']}: {made['folder']}/encoder.onnx, items.npy, model.json")
    print(
        f"  ONNX Runtime on {CHECKED_USERS:,} random histories: {same['lists']:.1%} of the top {CHECKED_TOP} lists "
        f"are the model's, {same['items']:.2%} of their items"
    )
    if len(seeds) > 1:
        print(
            f"  The vector is the mean over {len(seeds)} seeds; the model averages probabilities instead, which "
            "gives mostly the same items in another order."
        )
    if args.index:
        folder = Path(args.output)
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        items = np.load(folder / "items.npy")
        vectors = _vectors(folder, random_histories(len(items), about["max_length"], CHECKED_USERS))
        made = build_index(items, vectors, folder / "items.faiss")
        print(
            f"  items.faiss ({made['kind']}): recall {made['recall']:.3f} of the exact top {CHECKED_TOP}, "
            f"{made['users_per_second']:,.0f} users/s (exact: {made['exact_users_per_second']:,.0f})"
        )


def _vectors(folder: Path, histories):
    """What the encoder gives for histories, [M, D]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
    item_seq, item_seq_len = histories
    return session.run(None, {"item_seq": item_seq.numpy(), "item_seq_len": item_seq_len.numpy()})[0]


if __name__ == "__main__":
    main()

"""Two processes (gloo) beside one: losses and metrics of the same training, and metrics of the same weights.

    python benchmarks/processes.py --dataset=ml-100k --epochs=2 --output=results/processes

Without dropout SASRec and SASRecPlus draw nothing in training: two processes are to give one's losses and metrics.
DiffuRec and CDDRec draw their noise, each process for itself, so that their trainings part by the draws; for them, as
for all, the metrics that two processes report are compared with those that one process finds for the same weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags

STILL = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
MODELS = {
    "SASRec": {**STILL, "loss_type": "CE"},
    "SASRecPlus": {**STILL, "emb_dropout_prob": 0.0},
    "DiffuRec": {**STILL, "emb_dropout_prob": 0.0},
    "CDDRec": {**STILL, "emb_dropout_prob": 0.0},
}


def train(model: str, nproc: int, args: argparse.Namespace, folder: Path) -> dict:
    """Metrics and losses of a training in so many processes."""
    import torch

    from recbole_diffusion.quick_start import run

    values = {"state": "ERROR", "show_progress": False, "epochs": args.epochs, "data_path": args.data_path,
              "checkpoint_dir": str(folder / f"{model}-{nproc}"), "metric_decimal_place": 10, "gpu_id": "",
              "limit_train_batches": args.batches, **MODELS[model]}  # fmt: skip
    result = run(model, args.dataset, config_dict=values, nproc=nproc, port=args.port)
    [last] = (folder / f"{model}-{nproc}").glob("*-last.pth")
    losses = torch.load(last, weights_only=True)["train_loss_dict"]
    return {**result, "losses": [losses[epoch] for epoch in sorted(losses)]}


def by_one_process(model_file: str, data_path: str) -> dict:
    """The metrics under both protocols that this process finds for a checkpoint."""
    from recbole_diffusion.quick_start import build_trainer, load_data_and_model

    config, network, _, _, _, test_data = load_data_and_model(model_file, {"data_path": data_path})
    trainer = build_trainer(config, network)
    trainer.evaluate(test_data, load_best_model=False)
    return trainer.protocol_results


def difference(a: dict, b: dict) -> float:
    """The greatest of any metric under both protocols."""
    return max(abs(a[protocol][name] - b[protocol][name]) for protocol in a for name in a[protocol])


def compare(model: str, args: argparse.Namespace, folder: Path) -> dict:
    one, two = (train(model, nproc, args, folder) for nproc in (1, 2))
    ratio = max(abs(a - b) / abs(a) for a, b in zip(one["losses"], two["losses"], strict=True))
    scores = [result["test_results"]["candidates"]["ndcg@10"] for result in (one, two)]
    return {
        "model": model,
        "loss, one": one["losses"][-1],
        "loss, two": two["losses"][-1],
        "losses differ by (share)": ratio,
        "NDCG@10, one": scores[0],
        "NDCG@10, two": scores[1],
        "metrics differ by": difference(one["test_results"], two["test_results"]),
        "same weights": difference(by_one_process(two["model_file"], args.data_path), two["test_results"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", default=",".join(MODELS), help="separated by commas (default: %(default)s)")
    add("--dataset", default="ml-100k", help="(default: %(default)s)")
    add("--data_path", default="dataset/", help="folder that holds the dataset's folder (default: %(default)s)")
    add("--epochs", type=int, default=2, help="(default: %(default)s)")
    add("--batches", type=int, help="of an epoch (default: all)")
    add("--port", default="5679", help="for the processes to meet (default: %(default)s)")
    add("--output", type=Path, default=Path("results/processes"), help="(default: %(default)s)")
    args = parse_flags(parser)
    unknown = [name for name in args.models.split(",") if name not in MODELS]
    if unknown:
        parser.error(f"models {unknown} are unknown: choose from {', '.join(MODELS)}")
    with errors_in_one_line():
        begin("One process, then two")
        from figure import write_figure

        sys.argv = sys.argv[:1]  # RecBole's Config would read it
        with tempfile.TemporaryDirectory() as folder:
            rows = [compare(model, args, Path(folder)) for model in args.models.split(",")]
        about = (
            f"{args.dataset}, {args.epochs} epochs{f' of {args.batches} batches' if args.batches else ''}, no dropout."
        )
        write_figure(args.output, rows, about)


if __name__ == "__main__":
    main()

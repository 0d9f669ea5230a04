"""What of the noise ADRec's ranking hears: its top 20 from another x_T, without lambda, and after one step.

    python benchmarks/heard.py --model_files=one.pth,other.pth --data_path=dataset/ --output=results/adrec-heard

For the test users of each checkpoint, the share of their 20 best items that stays.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags

K = 20


def row(file: str, args: argparse.Namespace) -> dict:
    """The shares of one checkpoint."""
    import torch

    from recbole_diffusion.analysis.seeds import overlap
    from recbole_diffusion.quick_start import load_data_and_model

    _, model, _, _, _, test_data = load_data_and_model(file, {"data_path": args.data_path, "eval_batch_size": 512})
    model.eval()
    batches = [batch[0] for batch, _ in zip(test_data, range(-(-args.users // 512)), strict=False)]

    def best(**changes) -> torch.Tensor:
        kept = {key: getattr(model, key) for key in changes}
        for key, value in changes.items():
            setattr(model, key, value)
        try:
            return torch.cat([model.topk(batch, K)[1] for batch in batches])
        finally:
            for key, value in kept.items():
                setattr(model, key, value)

    own = best()
    variants = {
        "another x_T": {"inference_seeds": [model.inference_seeds[0] + 1]},
        "lambda 0": {"lam": 0.0},
        "one step": {"inference": "one_step"},
    }
    shares = {name: f"{overlap(own, best(**changes)):.2%}" for name, changes in variants.items()}
    return {"lambda": model.lam, "users": len(own), **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model_files", required=True, help="checkpoints of ADRec, separated by commas")
    add("--data_path", default="dataset/", help="folder that holds the dataset's folder (default: %(default)s)")
    add("--users", type=int, default=4096, help="test users to rank for (default: %(default)s)")
    add("--output", type=Path, default=Path("results/adrec-heard"), help="(default: %(default)s)")
    args = parse_flags(parser)
    with errors_in_one_line():
        begin("ADRec's top 20 without its noise")
        import sys

        from figure import write_figure

        sys.argv = sys.argv[:1]  # RecBole's Config would read it
        rows = [row(file, args) for file in args.model_files.split(",")]
        write_figure(args.output, rows, f"The share of a user's {K} best items that stays.")


if __name__ == "__main__":
    main()

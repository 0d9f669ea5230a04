"""Compare models over training seeds: mean, standard deviation, paired t-test and effect size against a baseline.

    python -m recbole_diffusion.compare --models=DiffuRec,DiffuRecSys,SASRec --dataset=ml-100k --seeds=5

Each run leaves one JSON file in the output folder; killed and started again, a comparison goes on where it stood."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recbole_diffusion.cli import begin, errors_in_one_line, parse_with_parameters


def parse_args(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, str]]:
    """Read the flags; every other ``--key=value`` is a parameter of all runs."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_diffusion.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any parameter of a model, of training or of evaluation can be given as --key=value, for all runs.",
    )
    parser.add_argument("--models", required=True, help="names, ours or RecBole's, separated by commas")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset (default: %(default)s)")
    parser.add_argument("--seeds", type=_read_seeds, default=5, help="a count n for 1 to n, or a list: 7,8,9 "
        "(one alone: 7,) (default: %(default)s)")  # fmt: skip
    parser.add_argument("--baseline", help="one of the models (default: the last of RecBole's, else the first)")
    parser.add_argument("--config_files", default="", help="YAML files with parameters, separated by spaces")
    parser.add_argument("--output", help="folder for tables and runs (default: compare/<dataset>)")
    return parse_with_parameters(parser, argv)


def _read_seeds(text: str) -> int | list[int]:
    try:
        return [int(seed) for seed in text.split(",") if seed.strip()] if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"[{text}] must be a count, or whole numbers separated by commas") from None


def main() -> None:
    args, parameters = parse_args()
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, too
    models = [model.strip() for model in args.models.split(",") if model.strip()]
    with errors_in_one_line():
        begin(f"{', '.join(models)} on {args.dataset}")
        from recbole_diffusion.experiments.compare import compare

        result = compare(
            models, args.dataset, args.seeds, args.baseline, args.config_files.split(), parameters, args.output
        )
        if result["markdown"]:
            text = result["markdown"].read_text(encoding="utf-8")
            print(f"\n{text}\nTables: {result['markdown']}, {result['latex']}")
        if result["failed"]:
            raise SystemExit(f"Failed: {', '.join(result['failed'])}; started again, they are tried again.")


if __name__ == "__main__":
    main()

"""Train what benchmarks/manifest.yaml lists and has no result yet, and write results/README.md.

    python benchmarks/reproduce.py --data_path=dataset/ --tiers=small
    python benchmarks/reproduce.py --data_path=dataset/ --row="DiffuRec, amazon-beauty" --seeds=1

Each training leaves one JSON file in results/runs/. One that was cut goes on where it stood, and several calls beside
each other share the work: none takes up what another is at.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags

ROOT = Path(__file__).resolve().parent.parent


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default="dataset/", help="folder that holds the datasets' folders")
    parser.add_argument("--tiers", help="names, separated by commas (default: all of the manifest)")
    parser.add_argument("--datasets", help="names, separated by commas (default: all of the tiers)")
    parser.add_argument("--runs", help="names of rows, separated by commas (default: all)")
    parser.add_argument(
        "--row", metavar="NAME, DATASET", help="one row on one dataset, in place of --runs and --datasets"
    )
    parser.add_argument("--seeds", help="separated by commas (default: all of a row)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--minutes", type=float, help="after these, stop at the end of an epoch; resumable")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for trials: needs --results")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="folder to write to (default: results/)")
    parser.add_argument("--manifest", type=Path, default=ROOT / "benchmarks" / "manifest.yaml")
    parser.add_argument("--render-only", action="store_true", help="train nothing, write README.md anew")
    args = parse_flags(parser, argv)
    if argv is None:
        sys.argv = sys.argv[:1]  # RecBole's Config reads the command line too
    if args.row is not None:
        if args.runs or args.datasets:
            parser.error("--row stands in place of --runs and --datasets")
        args.runs, comma, args.datasets = args.row.rpartition(",")
        if not (args.runs.strip() and comma and args.datasets.strip()):
            parser.error(f"cannot read --row [{args.row}]: write the row's name, a comma and the dataset's")
    args.settings = {}
    for item in args.set:
        key, equals, value = item.partition("=")
        if not (key and equals):
            parser.error(f"cannot read --set [{item}]: write key=value")
        try:
            args.settings[key] = read_value(value)
        except ValueError:
            parser.error(f"cannot read --set [{item}]: its value is no YAML")
    minutes = float("inf") if args.minutes is None else args.minutes
    args.deadline = time.monotonic() + 60 * minutes
    return args


def read_value(text: str) -> Any:
    """A value as RecBole's config files have it; ValueError where it is no YAML."""
    import yaml
    from recbole.config import Config

    try:
        return yaml.load(text, Loader=Config._build_yaml_loader(None))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def main() -> None:
    start, args = time.monotonic(), parse_args()
    with errors_in_one_line():
        chosen = [args.tiers or "all tiers", args.runs or "all rows", args.datasets or "all datasets"]
        begin(f"Runs of {args.manifest.name}: {', '.join(map(str.strip, chosen))}")
        from jobs import reproduce, show

        done = reproduce(args)
        show(f"{args.results / 'README.md'} written, {timedelta(seconds=round(time.monotonic() - start))}")
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()

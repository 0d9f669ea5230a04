"""Look at a trained model: one page with plots that opens without a network, and the same numbers as CSV."""

import argparse
import sys

from recbole_diffusion.analysis import SECTIONS
from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags


def parse_args() -> argparse.Namespace:
    sections = "\n".join(f"  {name:<12} {title}" for name, title in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m recbole_diffusion.analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=f"sections:\n{sections}",
    )
    parser.add_argument("--model_file", required=True, help="checkpoint of a sequential model, ours or RecBole's")
    parser.add_argument("--output", default="report", help="folder for index.html and the CSV files (%(default)s)")
    parser.add_argument("--sections", help="names separated by commas (all)")
    parser.add_argument("--max_users", type=int, default=2000, help="most test users looked at (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws users and lays out the map (%(default)s)")
    parser.add_argument("--log_dir", default="log_tensorboard", help="TensorBoard's events (%(default)s)")
    parser.add_argument("--data_path", help="folder that holds the dataset's folder (default: dataset/)")
    parser.add_argument("--trust_pickles", action="store_true", help="read what RecBole pickled: it can run code")
    return parse_flags(parser)


def main() -> None:
    args = parse_args()
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, too
    sections = None if args.sections is None else [name.strip() for name in args.sections.split(",")]
    with errors_in_one_line():
        begin(f"Report on {args.model_file}")
        from recbole_diffusion.analysis.report import analyse

        data = {"trust_pickles": args.trust_pickles, **({"data_path": args.data_path} if args.data_path else {})}
        page = analyse(args.model_file, args.output, sections, args.max_users, args.seed, args.log_dir, data)
        print(f"Report: {page}")


if __name__ == "__main__":
    main()

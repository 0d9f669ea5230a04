"""Look at a trained model: one page with plots that opens without a network, and the same numbers as CSV."""

import argparse

from recbole_diffusion.analysis.report import SECTIONS, analyse
from recbole_diffusion.cli import errors_in_one_line


def main() -> None:
    sections = "\n".join(f"  {name:<12} {make.__doc__.splitlines()[0]}" for name, (_, make) in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m recbole_diffusion.analysis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"sections:\n{sections}",
    )
    parser.add_argument("--model_file", required=True, help="checkpoint of a sequential model, ours or RecBole's")
    parser.add_argument("--output", default="report", help="folder for index.html and the CSV files (%(default)s)")
    parser.add_argument("--sections", help="names separated by commas (all)")
    parser.add_argument("--max_users", type=int, default=2000, help="most test users looked at (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws users and lays out the map (%(default)s)")
    parser.add_argument("--log_dir", default="log_tensorboard", help="TensorBoard's events (%(default)s)")
    parser.add_argument("--data_path", help="folder that holds the dataset's folder (dataset/)")
    parser.add_argument("--trust_pickles", action="store_true", help="read what RecBole pickled: it can run code")
    args = parser.parse_args()
    sections = None if args.sections is None else [name.strip() for name in args.sections.split(",")]
    with errors_in_one_line():
        data = {"data_path": args.data_path} if args.data_path else {}
        data |= {"trust_pickles": args.trust_pickles}
        page = analyse(args.model_file, args.output, sections, args.max_users, args.seed, args.log_dir, data)
    print(f"Report: {page}")


if __name__ == "__main__":
    main()

"""Top-k items with scores and uncertainty for any history, also of a user never seen in training.

python -m recbole_diffusion.recommend --model_file saved/DiffuRec-....pth --history 1193,661,914 --inference_seeds 10
python -m recbole_diffusion.recommend --model_file saved/DiffuRec-....pth --input histories.jsonl --output out.jsonl

python -m recbole_diffusion.recommend --model_file saved/DiffuRec-....pth --all_users --output out.csv

A line of the input is a list of item tokens, oldest first, ``["1193", "661"]``, or an object with a ``history``, whose
other keys are passed on, ``{"user": "u7", "history": ["1193", "661"]}``. A line of the output has ``items``, best
first, ``scores``, ``spread`` (the standard deviation of each score over the seeds; null with less than two) and
``unknown`` (tokens that the model does not know and left out).

``--user`` and ``--all_users`` take the histories from what the model was fitted on, or from its dataset. CSV has a row
for each item: user (or the number of the history), rank, item, score, spread, error.

The file of ``--output`` appears when it is whole. A job that is cut leaves what is done beside it, in
``<output>.partial`` with a manifest, and goes on there when it is started again in the same words.

Parquet files have a column ``history``, a list; each row group's results are a file of the output folder, and what is
there is not made again: recbole-diffusion recommend --model_file=... --input='*.parquet' --output=folder --engine=ray
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags, seeds_flag


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recbole_diffusion.recommend",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_file", required=True, help="a checkpoint")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--history", help="item tokens, oldest first, separated by commas, or a list in JSON")
    given.add_argument("--input", help="a file with one history a line (JSON; - is standard input), or Parquet files "
        "(*.parquet, a folder)")  # fmt: skip
    given.add_argument("--user", help="one user of the dataset, by the whole history")
    given.add_argument("--all_users", action="store_true", help="every user of the dataset")
    add("--output", help="the file to write, a line for each history (default: standard output); a folder for Parquet")
    add("--format", choices=["jsonl", "csv"], help="of the output (default: csv where --output ends so, else jsonl)")
    add("--data_path", help="folder that holds the dataset's folder, where the dataset is needed (default: dataset/)")
    add("--topk", "--k", type=int, default=10, help="how many items (default: %(default)s)")
    add("--exclude_seen", "--mask_history", action="store_true", help="recommend no item of the history")
    add(
        "--inference_seeds",
        type=seeds_flag,
        help="seeds, or their number, instead of the model's own, such as 10 or [1,2]",
    )
    add("--batch_size", type=int, help="histories at once (default: the model's eval_batch_size)")
    add("--keep_going", action="store_true", help='write {"error": ...} for a line that cannot be used, and go on')
    add("--trust_pickles", action="store_true", help="read datasets that RecBole pickled: they can run code")
    cluster = parser.add_argument_group("Parquet, in one process or on Ray")
    cluster.add_argument("--engine", default="local", choices=["local", "ray"], help="(default: %(default)s)")
    cluster.add_argument("--address", help="of a Ray cluster, such as auto (default: start Ray on this machine)")
    cluster.add_argument("--workers", type=int, help="actors, each with the model (default: one for each CPU)")
    cluster.add_argument("--num_gpus", type=float, default=0, help="of each actor (default: %(default)s)")
    return parse_flags(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, too
    with errors_in_one_line():
        begin(f"Recommending with {args.model_file}")
        from recbole_diffusion.recommend.job import recommend_for

        recommend_for(args)


if __name__ == "__main__":
    main()

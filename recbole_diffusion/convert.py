"""Make RecBole's atomic file of a table of interactions: CSV, Parquet, JSONL, or, from Python, a data frame.

recbole-diffusion convert events.csv --user=email --item=product --time=when --output=data/shop

Columns with usual names, separator, encoding and the form of the times are found out and told.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="recbole-diffusion convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("table", help="a file (.csv, .tsv, .jsonl, .parquet, text also packed), or a folder of Parquet files")
    add("--output", required=True, help="the dataset's folder, such as data/shop: data/shop/shop.inter is written")
    add("--user", help="column of the users (default: the one with a usual name)")
    add("--item", help="column of the items")
    add("--time", help="column of the times: ISO text, dates, or numbers")
    add("--separator", help="of a CSV file (default: found out)")
    add("--encoding", help="of a CSV file (default: UTF-8, UTF-16 with a mark, else Windows-1252)")
    add("--time_unit", help="of times that are numbers: s, ms, us or ns (default: by their size)")
    add("--time_format", help="of times that are text, as of strftime: %%d.%%m.%%Y (default: ISO 8601)")
    add("--duplicates", default="keep", help="drop rows that are equal (exact), or all but the first or last of each "
        "user and item (default: keep)")  # fmt: skip
    add("--k_core", type=int, default=0, help="keep users and items with at least so many interactions (default: all)")
    add("--overwrite", action="store_true", help="replace the file where it exists")
    return parse_flags(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(parse_args(argv))
    with errors_in_one_line():
        begin(f"Converting {options['table']}")
        from recbole_diffusion.data.atomic import write_atomic

        print(write_atomic(options.pop("table"), options.pop("output"), **options))


if __name__ == "__main__":
    main()

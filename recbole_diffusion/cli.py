"""What the commands share: parameters among the flags, and errors of the user in one line."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence


def parse_with_parameters(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Read the parser's flags; every other ``--key=value`` is a parameter of a model, of training or of evaluation."""
    args, rest = parser.parse_known_args(argv)
    parameters: dict[str, str] = {}
    for arg in rest:
        if not re.match(r"--\w+=", arg):
            parser.error(f"cannot read [{arg}]: write parameters as --key=value")
        key, value = arg[2:].split("=", 1)
        if parameters.setdefault(key, value) != value:
            parser.error(f"cannot read [{arg}]: {key} is [{parameters[key]}] already")
    return args, parameters


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with one line, and no traceback, for what a user can mend."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error

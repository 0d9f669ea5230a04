"""What the commands share: flags, parameters among them, what is said at once, and ends in one line.

It imports the standard library and the table of keys alone: a command reads its flags before PyTorch and RecBole are
imported, which takes seconds.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import recbole_diffusion
from recbole_diffusion.config.keys import KEYS, RECBOLE_KEYS


def parse_with_parameters(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Read the parser's flags; every other ``--key=value`` is a parameter of a model, of training or of evaluation.

    A key that is true or false may stand alone, as ``--verbose``. A flag given twice, and what may be a misspelt flag,
    ends the program.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _check_repeated(parser, argv)
    args, rest = parser.parse_known_args(argv)
    parameters: dict[str, str] = {}
    for arg in rest:
        name, equals, value = arg[2:].partition("=")
        if not equals and name in KEYS and KEYS[name].kind == "flag":
            value = "True"
        elif not re.match(r"--\w+=", arg):
            parser.error(f"cannot read [{arg}]: write parameters as --key=value")
        _check_near(parser, name, value)
        parameters[name] = value
    return args, parameters


def parse_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the parser's flags where nothing else is allowed; a flag given twice ends the program."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _check_repeated(parser, argv)
    return parser.parse_args(argv)


def seeds_flag(text: str) -> Any:
    """The type of a flag that takes seeds or their number, such as [1,2] or 10."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # which is then said to be wrong


def _check_repeated(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """A flag given twice would count once, and nobody would know which."""
    actions = [action for action in parser._actions if isinstance(action, argparse._AppendAction)]
    lists = {name for action in actions for name in action.option_strings}
    names = [word.partition("=")[0] for word in argv if word.startswith("--")]
    for name in names:
        if names.count(name) > 1 and name not in lists:
            parser.error(f"{name} is given {names.count(name)} times")


def _check_near(parser: argparse.ArgumentParser, name: str, value: str) -> None:
    """End the program where a parameter's name is nearly that of a flag: ``--max_eval=3`` would be passed over."""
    flags = [option[2:] for action in parser._actions for option in action.option_strings if option[:2] == "--"]
    near = difflib.get_close_matches(name, flags, n=1, cutoff=0.85)
    if near and name not in {*KEYS, *RECBOLE_KEYS}:
        parser.error(f"{name} [{value}] is unknown: did you mean --{near[0]}?")


def begin(text: str | None = None) -> None:
    """Say at once what runs, before the imports that take seconds; then register the models with RecBole.

    Raises ImportError where RecBole is missing.
    """
    if text:
        print(text, file=sys.stderr, flush=True)
    # PyTorch takes large tensors from the system and gives them back at once: in pages of 4 KiB a CPU fetches the
    # scores of a batch over all items more slowly than it computes them. Read when the first tensor is made.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    recbole_diffusion.register()


def model_summaries() -> dict[str, str]:
    """The first line of each model's docstring, read from its file without importing it."""
    found = {}
    for path in sorted((Path(__file__).parent / "model").glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.lower() == path.stem:
                found[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with one line, and no traceback, for what a user can mend, on Ctrl-C and where a pipe closes."""
    warnings.formatwarning = _warning_line
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; Python would flush once more on its way out, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Interrupted.'}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        text = (str(error).splitlines() or [""])[0]
        if not isinstance(error, MemoryError) and "memory" not in text:
            raise
        raise SystemExit(f"MemoryError: sizes or batches of these settings do not fit here. {text}") from error


def _warning_line(message, category, filename, lineno, line=None) -> str:
    return f"{category.__name__}: {message}\n"

"""Values from the command line, and from dictionaries of texts, are read and never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

KINDS = (bool, int, float, str, list, tuple, dict, type(None))


def bridge_values() -> None:
    """Read texts as Python's literals, where RecBole evaluates them as code.

    ``Config._convert_config_dict`` calls ``eval`` on every text of the command line and of ``config_dict``:
    ``--weight_decay=__import__('os').system(..)`` runs, and ``--epochs=exit(0)`` ends the program as if all were well.
    ``HyperTuning`` does the same with the values of a search's file.
    """
    from recbole.config import Config
    from recbole.trainer import hyper_tuning

    Config._convert_config_dict = lambda self, values: {key: read_value(value) for key, value in values.items()}
    hyper_tuning.eval = _read_list


def read_value(text: Any) -> Any:
    """The value that a text spells out, such as 0.001, [1,2], True or None; else the text itself, as RecBole has it."""
    if not isinstance(text, str):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, KINDS) else text


def _read_list(text: str) -> Iterable[Any]:
    """What a line of a search's file lists."""
    value = read_value(text)
    if isinstance(value, str):
        raise ValueError(f"[{text}] is no list of values.")
    return value

"""Values from the command line, from dictionaries of texts and from files are read, and never run."""

from __future__ import annotations

import ast
import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

KINDS = (bool, int, float, str, list, tuple, dict, type(None))
MOST_VALUES, DEEPEST = 10_000, 20  # of a file of parameters


def bridge_values() -> None:
    """Read texts as Python's literals, where RecBole evaluates them as code.

    ``Config._convert_config_dict`` calls ``eval`` on every text of the command line and of ``config_dict``:
    ``--weight_decay=__import__('os').system(..)`` runs, and ``--epochs=exit(0)`` ends the program as if all were well.
    ``HyperTuning`` does the same with the values of a search's file. ``Config._load_config_files`` ends in a traceback
    that names no file where one holds something else than keys and values.
    """
    from recbole.config import Config
    from recbole.trainer import hyper_tuning

    Config._convert_config_dict = lambda self, values: {key: read_value(value) for key, value in values.items()}
    Config._load_config_files = _load_config_files
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


def _load_config_files(self, files: Iterable[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for path in files or ():
        values.update(read_yaml(path))
    return values


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a file of parameters with RecBole's loader, which takes 1e-3 for a number.

    Raises
    ------
    ValueError
        It is no YAML, holds something else than keys and plain values, or values by the million.
    FileNotFoundError
        There is no such file.
    """
    from recbole.config import Config

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"config_files [{path}] {'is a folder' if path.is_dir() else 'does not exist'}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=Config._build_yaml_loader(None))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"config_files [{path}] is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"config_files [{path}] must hold keys and values, such as learning_rate: 0.001.")
    _check_values(path, values)
    return values


def _check_values(path: Path, values: dict[str, Any]) -> None:
    """Raise ValueError for values that are not plain, or that a few lines multiply by naming each other."""
    left, kinds = MOST_VALUES, (*KINDS, datetime.date)

    def walk(key: str, value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ValueError(f"config_files [{path}]: {key} holds more values than {MOST_VALUES:,}, or too deep ones.")
        if not isinstance(value, kinds):
            raise ValueError(f"config_files [{path}]: {key} must be a plain value, and is a {type(value).__name__}.")
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            walk(key, item, depth + 1)

    for key, value in values.items():
        walk(key, value, 0)


def _read_list(text: str) -> Iterable[Any]:
    """What a line of a search's file lists."""
    value = read_value(text)
    if isinstance(value, str):
        raise ValueError(f"[{text}] is no list of values.")
    return value

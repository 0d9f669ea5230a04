"""Checks of configuration values: each raises a ValueError that names key, value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any


def check_choice(config: Mapping[str, Any], key: str, allowed) -> None:
    """Raise ValueError unless the key's value is one of ``allowed``."""
    if config[key] not in list(allowed):
        raise ValueError(f"{key} [{config[key]}] is unknown: choose one of {', '.join(map(str, allowed))}.")


def check_flags(config: Mapping[str, Any], *keys: str) -> None:
    """Raise ValueError unless the value of each key is True or False."""
    for key in keys:
        if not isinstance(config[key], bool):
            raise ValueError(f"{key} [{config[key]}] must be True or False.")


def check_number(config: Mapping[str, Any], key: str, kind, low: float, below: float | None = None) -> None:
    """Raise ValueError unless the key's value is of a kind (Integral or Real) and low <= value < below."""
    value = config[key]
    if not isinstance(value, kind) or isinstance(value, bool) or value < low or (below is not None and value >= below):
        limit = f">= {low}" + (f" and < {below}" if below is not None else "")
        raise ValueError(f"{key} [{value}] must be {'an integer' if kind is Integral else 'a number'} {limit}.")

"""What a Config says of a result, as plain values that can be written, and compared from run to run."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from recbole_diffusion.config.keys import MACHINE_KEYS


def settings(config, without: Set[str] = MACHINE_KEYS) -> dict[str, Any]:
    """A Config's values as JSON has them (tuples as lists), leaving out what no result depends on."""
    return {key: _plain(value) for key, value in config.final_config_dict.items() if key not in without}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "name", str(value))  # RecBole's enums

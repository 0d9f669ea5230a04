"""What a Config says of a result, as plain values that can be written, and compared from run to run."""

from __future__ import annotations

from collections.abc import Mapping, Set
from numbers import Integral, Real
from typing import Any

from recbole_diffusion.config.keys import CONTINUATION_KEYS, MACHINE_KEYS


def result_settings(config) -> dict[str, Any]:
    """What the result of a run depends on: no paths, no device."""
    return settings(config, without=MACHINE_KEYS)


def resume_settings(config) -> dict[str, Any]:
    """What a run and its continuation share; the continuation may be longer."""
    return settings(config, without=CONTINUATION_KEYS)


def settings(config, without: Set[str] = frozenset()) -> dict[str, Any]:
    """The values of a Config, or of a checkpoint's ``config``, as JSON has them, tuples as lists."""
    values = config if isinstance(config, Mapping) else config.final_config_dict
    return {key: _plain(value) for key, value in values.items() if key not in without}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return getattr(value, "name", str(value))  # RecBole's enums

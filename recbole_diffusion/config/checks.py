"""Checks of configuration values: each raises a ValueError that names key, value and what is allowed."""

from __future__ import annotations

import difflib
import importlib.util
import math
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

from recbole_diffusion.config.keys import ALIASES, KEYS, RUN
from recbole_diffusion.config.kinds import Key

# Keys that are read under one value of another key alone.
READ_UNDER = {
    **dict.fromkeys(
        ("sampler", "sampling_steps", "valid_sampling_steps", "reverse_variance"), ("inference", "reverse")
    ),
    "ddim_eta": ("sampler", "ddim"),
    "positions_from": ("use_position_embedding", True),
    "n_decoder_layers": ("decoder", "attention"),
    "n_sampled_items": ("item_loss", "sampled"),
    "seen_buckets": ("seen_items", "learned"),
    "cross_attention_query": ("cross_attention", True),
    "step_scale": ("step_embedding", True),
    **{f"{name}_ratio": ("augmentation", name) for name in ("crop", "mask", "reorder")},
    "amp_dtype": ("enable_amp", True),
    "initializer_range": ("initializer", "normal"),
    **dict.fromkeys(("beta_start", "beta_end"), ("noise_schedule", "linear")),
    **dict.fromkeys(("beta_min", "beta_max"), ("noise_schedule", "exponential")),
}
# And those that are not, under one value of another.
UNREAD_UNDER = {
    **dict.fromkeys(
        ("num_steps", "noise_schedule", "independent_steps", "noise_x_start", "step_sampler", "inference_seeds"),
        ("lambda_uncertainty", 0),
    ),
    **dict.fromkeys(("negatives", "ranking", "ranking_scale"), ("generation_weight", 1)),
    "freeze_mode": ("freeze_embedding_epochs", 0),
    "pretrain_config": ("pretrain", None),
}


def idle_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Keys that the value of another leaves unread, and where that is so, in words."""
    words = {
        key: f"where {other} is [{value}]"
        for key, (other, value) in UNREAD_UNDER.items()
        if other in config and config[other] == value
    }
    words |= {
        key: f"where {other} is [{config[other]}], only where it is [{value}]"
        for key, (other, value) in READ_UNDER.items()
        if other in config and config[other] != value
    }
    return {key: text for key, text in words.items() if key in config}


def warn_of_idle_keys(config: Mapping[str, Any], said: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Warn of keys that were ``said``, and otherwise than by default, where the value of another leaves them unread."""
    idle = [
        f"{key} [{said[key]}] has no effect {where}."
        for key, where in idle_keys(config).items()
        if key in said and said[key] != defaults.get(key)
    ]
    if idle:
        warnings.warn(" ".join(idle), stacklevel=2)


def check_keys(config: Mapping[str, Any], run_only: bool = False) -> None:
    """Raise ValueError for a key whose value the table does not allow.

    With ``run_only`` the keys of models are passed over: a model of RecBole's may mean something else by their names.
    No number is NaN or infinite, whatever reads it.
    """
    for name, key in KEYS.items():
        if name in config and (name in RUN or not run_only):
            key.check(config[name])
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} [{value}] must be finite.")


def check_choice(config: Mapping[str, Any], key: str, allowed: Iterable[str]) -> None:
    """Raise ValueError unless the key's value is one of ``allowed``."""
    Key(key, "", "choice", choices=tuple(allowed)).check(config[key])


def check_number(config: Mapping[str, Any], key: str, kind: type, low: float, below: float | None = None) -> None:
    """Raise ValueError unless the key's value is of a kind (Integral or Real), finite, and low <= value < below."""
    Key(key, "", "integer" if kind is Integral else "number", low=low, below=below).check(config[key])


def near_keys(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known keys that may be meant by a name: the one of another program, another case, near spellings."""
    lower = {key.lower(): key for key in sorted(known)}
    meant = [key.lower() for key, aliases in ALIASES.items() if name.lower() in aliases]
    names = [*meant, name.lower(), *difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.75)]
    return list(dict.fromkeys(lower[key] for key in names if key in lower))[:3]


def check_machine(config) -> None:
    """Look for what a Config asks of this machine; warn where the GPU that was asked for is none.

    Raises
    ------
    ValueError
        ``device`` is given, which RecBole sets; or ``log_wandb`` without the package.
    """
    given = config.external_config_dict
    if "device" in given:
        raise ValueError(
            f"device [{given['device']}] cannot be given: gpu_id [{config['gpu_id']}] names the GPUs to use, and an "
            "empty gpu_id stands for the CPU."
        )
    if given.get("gpu_id") not in (None, "") and config["device"].type == "cpu":
        warnings.warn(f"gpu_id [{given['gpu_id']}] is no GPU that PyTorch sees: this runs on the CPU.", stacklevel=3)
    if config["log_wandb"] and importlib.util.find_spec("wandb") is None:
        raise ValueError("log_wandb [True] needs the package wandb, which is not installed: pip install wandb")

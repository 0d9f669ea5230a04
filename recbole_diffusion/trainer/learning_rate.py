"""Learning-rate schedules: the factor on the learning rate as a function of the epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from recbole_diffusion.config.keys import KEYS


def _multiplier(name: str, epochs: int, **options: Any):
    """Learning-rate factor of an epoch (counted from 0) under a schedule, before warm-up."""
    if name == "constant":
        return lambda epoch: 1.0
    if name == "step":
        start, size, gamma = options["start_epoch"], options["step_size"], options["gamma"]
        return lambda epoch: 1.0 if epoch < start else gamma ** (1 + (epoch - start) // size)
    floor = options["min_factor"]
    return lambda epoch: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(epoch / max(epochs, 1), 1.0)))


# name -> options with their defaults; `warmup_epochs` belongs to all.
LR_SCHEDULES: dict[str, dict[str, float]] = {
    "constant": {},
    "step": {"start_epoch": 100, "step_size": 100, "gamma": 0.1},
    "cosine": {"min_factor": 0.0},
}


def build_lr_lambda(spec: Mapping[str, Any] | None, epochs: int):
    """Return the factor on the learning rate as a function of the epoch.

    ``spec`` is the config key ``lr_scheduler``: ``{name: step, start_epoch: 30, step_size: 1000, gamma: 0.1}``,
    ``{name: cosine, min_factor: 0}`` or ``{name: constant}``; each takes ``warmup_epochs`` (linear, from 1/(n+1)).

    Raises
    ------
    ValueError
        Unknown name or option, or a value out of range.
    """
    if spec is None:
        spec = {"name": "constant"}
    KEYS["lr_scheduler"].check(spec)
    if "name" not in spec:
        raise ValueError(f"lr_scheduler [{spec}] must have a name: one of {', '.join(LR_SCHEDULES)}.")
    options = {**LR_SCHEDULES[spec["name"]], "warmup_epochs": 0}
    for key, value in spec.items():
        if key != "name" and key not in options:
            raise ValueError(
                f"lr_scheduler.{key} [{value}] is unknown to {spec['name']}: choose one of {', '.join(options)}."
            )
    options.update({key: value for key, value in spec.items() if key != "name"})
    warmup = options.pop("warmup_epochs")
    factor = _multiplier(spec["name"], epochs, **options)
    return lambda epoch: factor(epoch) * min(1.0, (epoch + 1) / (warmup + 1))

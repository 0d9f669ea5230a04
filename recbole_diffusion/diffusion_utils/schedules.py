"""Noise schedules: a name and a number of steps give the betas, the share of variance that noise replaces at a step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor

MAX_BETA = 0.999  # where a formula reaches 1, the signal would be lost altogether


def linear(num_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """Betas evenly from `beta_start` to `beta_end`, both inside (0, 1) (Ho et al. 2020, section 4)."""
    for key, value in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not (_is_real(value) and 0 < value < 1):
            raise ValueError(f"{key} [{value!r}] must be a number > 0 and < 1.")
    if beta_start > beta_end:
        raise ValueError(f"beta_start [{beta_start}] must be at most beta_end [{beta_end}].")
    return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64, device="cpu")


def cosine(num_steps: int) -> Tensor:
    """abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), up to a factor (Nichol and Dhariwal 2021, Eq. 17)."""
    return _betas_from_alphas_cumprod(_cos2(_unit_steps(num_steps), 0.008))


def sqrt(num_steps: int) -> Tensor:
    """abar(u) = 1 - sqrt(u + 1e-4), up to a factor (Li et al. 2022, Diffusion-LM, appendix A)."""
    return _betas_from_alphas_cumprod(1 - (_unit_steps(num_steps) + 1e-4).sqrt())


def trunc_linear(num_steps: int) -> Tensor:
    """Linear betas from a higher start, stretched by 1000 / T to keep the noise at the end (Li, Sun and Li 2023)."""
    scale = 1000 / num_steps
    end = 0.02 * scale + 0.01
    if end > 1:
        end = 0.001 * scale + 0.01
    return torch.linspace(1e-4 * scale + 0.01, end, num_steps, dtype=torch.float64, device="cpu")


def trunc_cosine(num_steps: int) -> Tensor:
    """abar(u) = cos^2((u + 0.1) / 1.1 * pi / 2) for u = 0, 1/T, .., (T-1)/T (Li, Sun and Li 2023)."""
    alphas_cumprod = _cos2(_unit_steps(num_steps)[:-1], 0.1)
    return _betas_from_alphas_cumprod(torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod]))


def exponential(num_steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> Tensor:
    """beta_i = 1 - exp(-bmin / T - (bmax - bmin) x_i / (2 T^2)), x evenly from 1 to 2T + 1 (DreamRec's public code)."""
    for key, value in (("beta_min", beta_min), ("beta_max", beta_max)):
        if not (_is_real(value) and 0 < value < math.inf):
            raise ValueError(f"{key} [{value!r}] must be a number > 0.")
    if beta_min > beta_max:
        raise ValueError(f"beta_min [{beta_min}] must be at most beta_max [{beta_max}].")
    x = torch.linspace(1, 2 * num_steps + 1, num_steps, dtype=torch.float64, device="cpu")
    exponent = beta_min / num_steps + (beta_max - beta_min) * x / (2 * num_steps**2)
    return (1 - (-exponent).exp()).clamp(max=MAX_BETA)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    schedule.__name__: schedule for schedule in (linear, cosine, sqrt, trunc_linear, trunc_cosine, exponential)
}


def get_betas(name: str, num_steps: int, **kwargs: float) -> Tensor:
    """Return the betas of the schedule `name`.

    Shapes: float64 [num_steps], every value inside (0, 1), so that the product of 1 - beta strictly falls. Where a
    formula leaves that interval (the end of `cosine` and `sqrt`, a steep `exponential`), 0.999 takes its place.

    `linear` takes the keywords `beta_start` and `beta_end`, `exponential` takes `beta_min` and `beta_max`, others none.
    With one step, `linear` is `beta_start` alone.

    Raises ValueError on an unknown name, fewer than one step, a keyword that the schedule does not take, or a value
    out of range.
    """
    if name not in list(SCHEDULES):
        raise ValueError(f"noise_schedule [{name}] is unknown: choose one of {', '.join(SCHEDULES)}.")
    num_steps = check_int("num_steps", num_steps, 1)
    taken = list(inspect.signature(SCHEDULES[name]).parameters)[1:]
    for key, value in kwargs.items():
        if key not in taken:
            allowed = f"choose one of {', '.join(taken)}" if taken else "it takes no keyword"
            raise ValueError(f"{key} [{value}] is unknown to the noise_schedule {name}: {allowed}.")
    return SCHEDULES[name](num_steps, **kwargs)


def check_int(key: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as an int inside [low, high], or raise a ValueError that names `key`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < low or (high is not None and value > high):
        allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{key} [{value!r}] must be {allowed}.")
    return int(value)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _unit_steps(num_steps: int) -> Tensor:
    return torch.arange(num_steps + 1, dtype=torch.float64, device="cpu") / num_steps


def _cos2(u: Tensor, shift: float) -> Tensor:
    return ((u + shift) / (1 + shift) * math.pi / 2).cos().square()


def _betas_from_alphas_cumprod(alphas_cumprod: Tensor) -> Tensor:
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)

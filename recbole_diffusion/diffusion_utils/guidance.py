"""Classifier-free guidance (Ho and Salimans 2022): train with the condition dropped at times, sample beyond it."""

from __future__ import annotations

import torch
from torch import Tensor


def guided_start(cond: Tensor, uncond: Tensor, w: float | Tensor) -> Tensor:
    """Return (1 + w) `cond` - w `uncond`, all of one shape (Ho and Salimans 2022, Eq. 6; DreamRec, Eq. 15).

    w = 0 is the conditional prediction; a larger w follows the condition more closely.
    """
    return (1 + w) * cond - w * uncond


def drop_condition(cond: Tensor, null: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Replace each row of `cond` [B, ...] by `null` with probability `p` (Ho and Salimans 2022, Algorithm 1).

    `null` broadcasts to `cond` ([D] to [B, L, D]); a row is kept or replaced as a whole, and gradients reach both.
    Raises ValueError unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p [{p!r}] must be a number from 0 to 1.")
    device = cond.device if generator is None else generator.device
    dropped = torch.rand(cond.shape[0], generator=generator, device=device).to(cond.device) < p
    return torch.where(dropped.view(-1, *[1] * (cond.ndim - 1)), null, cond)

"""Augmented views of histories: CL4SRec's three (Xie et al. 2020, arXiv 2010.14395, section 3.2.3).

Each function takes ``item_seq`` [B, L], ``item_seq_len`` n [B] and a share in [0, 1), and returns a view [B, L], its
length [B], and the position of the history [B] that the view's first position stands for.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop(item_seq: Tensor, n: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a share of the history, at least one item, in one piece."""
    kept = (n * share).long().clamp(min=1)
    start = random_start(n, kept)
    index = start[:, None] + torch.arange(item_seq.shape[1], device=n.device)
    return item_seq.gather(1, index.clamp(max=item_seq.shape[1] - 1)), kept, start


def mask(item_seq: Tensor, n: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Put 0, which the model embeds as its mask, in the place of a share of the items."""
    real = torch.arange(item_seq.shape[1], device=n.device) < n[:, None]
    rank = torch.rand(item_seq.shape, device=n.device).masked_fill(~real, 2.0).argsort(1).argsort(1)
    return item_seq.masked_fill(rank < (n * share).long()[:, None], 0), n, torch.zeros_like(n)


def reorder(item_seq: Tensor, n: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Shuffle a share of the history that lies in one piece."""
    count = (n * share).long()[:, None]
    start = random_start(n, count[:, 0])[:, None]
    position = torch.arange(item_seq.shape[1], device=n.device).expand_as(item_seq)
    inside = (position >= start) & (position < start + count)
    key = torch.where(inside, start + count * torch.rand(item_seq.shape, device=n.device), position)
    return item_seq.gather(1, key.argsort(dim=1, stable=True)), n, torch.zeros_like(n)


def random_start(n: Tensor, count: Tensor) -> Tensor:
    """Where a piece of ``count`` items may start in a history of n, uniformly; [B]."""
    return (torch.rand(n.shape, device=n.device) * (n - count + 1)).long()


AUGMENTATIONS = {"crop": crop, "mask": mask, "reorder": reorder}

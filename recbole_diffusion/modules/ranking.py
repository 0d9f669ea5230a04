"""The best items of each user, from scores that are never held all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Best(NamedTuple):
    """The best items of each user so far, best first; each [B, k]."""

    scores: Tensor
    items: Tensor
    std: Tensor  # of each item's probability over the seeds; 0 with one


def topk(
    score_part: Callable[[slice], Tensor], n_items: int, part_size: int, k: int, exclude: Tensor | None = None
) -> Best:
    """The k best items under ``score_part(items)``, which scores a slice of the items for S seeds: [S, B, part].

    With several seeds a score is the logarithm of the item's probability (softmax over all items), averaged over the
    seeds. ``exclude`` [B, M] holds items that are no candidates (0: none); the padding item is none either.
    """
    parts = [slice(first, min(first + part_size, n_items)) for first in range(0, n_items, part_size)]
    best = None
    for part, seed_scores in zip(parts, _scores_or_log_probabilities(score_part, parts), strict=True):
        scores = seed_scores[0] if len(seed_scores) == 1 else seed_scores.logsumexp(0) - math.log(len(seed_scores))
        _leave_out(scores, part, exclude)
        best = _merge(best, _best_of_part(seed_scores, scores, part, k), k)
    return best


def _scores_or_log_probabilities(score_part: Callable[[slice], Tensor], parts: list[slice]) -> Iterator[Tensor]:
    """The scores of each part, with several seeds as log probabilities, which need the sum over all items first."""
    n_seeds, log_sum = None, None
    for part in parts:
        seed_scores = score_part(part)
        if n_seeds is None and len(seed_scores) > 1:
            log_sum = torch.stack([score_part(part).logsumexp(-1) for part in parts]).logsumexp(0)
        n_seeds = len(seed_scores)
        yield seed_scores if log_sum is None else seed_scores - log_sum[..., None]


def _leave_out(scores: Tensor, part: slice, exclude: Tensor | None) -> None:
    """Give minus infinity to the padding item and to the excluded ones among a part's scores [B, part]."""
    if not part.start:
        scores[:, 0] = -torch.inf
    if exclude is not None:
        inside = (exclude >= part.start) & (exclude < part.stop)
        row, _ = inside.nonzero(as_tuple=True)
        scores[row, exclude[inside] - part.start] = -torch.inf


def _best_of_part(seed_scores: Tensor, scores: Tensor, part: slice, k: int) -> Best:
    """The best items of one part: seed_scores [S, B, part], scores [B, part]."""
    found, place = scores.topk(min(k, scores.shape[1]))
    if len(seed_scores) == 1:
        std = torch.zeros_like(found)
    else:
        std = seed_scores.gather(2, place.expand(len(seed_scores), -1, -1)).exp().std(0, correction=0)
    return Best(found, place + part.start, std)


def _merge(best: Best | None, other: Best, k: int) -> Best:
    """The best of two."""
    if best is None:
        return other
    scores, items, std = (torch.cat(pair, 1) for pair in zip(best, other, strict=True))
    scores, order = scores.topk(min(k, scores.shape[1]))
    return Best(scores, items.gather(1, order), std.gather(1, order))

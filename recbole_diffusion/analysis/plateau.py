"""Ranking plateau: how alike the scores of the best items are (CDDRec, Wang et al. 2024, section 4.1)."""

from __future__ import annotations

from torch import Tensor


def avg_change(scores: Tensor, k: int = 40) -> Tensor:
    """Mean change between neighbours among the k best scores, in percent of the higher one (CDDRec, Eq. 9).

    scores [..., n_items], of candidates alone and in any order, to [...]; with fewer than k items, all of them.

    Raises
    ------
    ValueError
        k or the number of items is below 2.
    """
    k_here = min(k, scores.shape[-1])
    if k_here < 2:
        raise ValueError(f"k [{k}] of {scores.shape[-1]} scores must be at least 2 of at least 2.")
    top = scores.topk(k_here).values
    return 100 * (top.diff().abs() / top[..., :-1].abs()).mean(-1)

"""Metrics of the places at which targets stand in rankings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor

K = 10  # of Hit@K and NDCG@K


def place_of(top: Tensor, target: Tensor) -> Tensor:
    """Place from 0 of target [U] among the best items [..., U, k], infinite where it is not there: [..., U]."""
    hit = top == target.unsqueeze(-1)
    return torch.where(hit.any(-1), hit.float().argmax(-1), torch.inf)


def ndcg(places: Tensor, k: int = K) -> Tensor:
    """NDCG@k of one target at each place (from 0), in the shape of ``places``."""
    return torch.where(places < k, 1 / (places.double() + 2).log2(), 0.0)


def hit(places: Tensor, k: int = K) -> Tensor:
    """Hit@k of one target at each place (from 0), in the shape of ``places``."""
    return (places < k).double()


def group_metrics(places: Tensor, groups: dict[str, np.ndarray]) -> pd.DataFrame:
    """Hit@10 and NDCG@10 of named groups of rows (bool [U]), each with half the width of its 95% interval."""
    table = []
    for name, inside in groups.items():
        row = {"group": name, "users": int(inside.sum())}
        for metric, values in (("hit@10", hit(places)), ("ndcg@10", ndcg(places))):
            values = values.numpy()[inside]
            row[metric] = values.mean() if len(values) else math.nan
            row[f"{metric}_ci95"] = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        table.append(row)
    return pd.DataFrame(table)

"""What a generated embedding can rank at best on markov-toy, by the data's true probabilities; no model is trained."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from ..conftest import ROOT

# NDCG@10, as docs/models/dreamrec.md prints it: (what is generated, D) -> value.
BOUNDS = {
    ("1 draw", 64): 0.14,
    ("20 draws", 64): 0.36,
    ("100 draws", 64): 0.42,
    ("mean", 64): 0.39,
    ("mean", 128): 0.42,
    ("mean", 256): 0.43,
}


@pytest.fixture(scope="module")
def truth():
    """Probabilities of the next item [users, items], and the item that came."""
    spec = importlib.util.spec_from_file_location("make_markov_toy", ROOT / "dataset" / "make_markov_toy.py")
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    rng = np.random.default_rng(toy.SEED)
    table, popularity = toy.transition_table(rng)
    histories = np.array([history[-3:] for history in toy.sequences(rng, table, popularity)])
    return table[histories[:, 0], histories[:, 1]], histories[:, 2]


def ndcg(scores: np.ndarray, target: np.ndarray) -> float:
    rank = (scores >= np.take_along_axis(scores, target[:, None], 1)).sum(1)
    return float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())


def generated(p: np.ndarray, what: str, size: int, seed: int) -> np.ndarray:
    """Scores by inner product with N(0, 1) embeddings of what is generated; over draws, mean probabilities."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(p.shape[1], size))
    if what == "mean":
        return p @ items @ items.T
    total = 0
    for _ in range(int(what.split()[0])):
        drawn = (p.cumsum(1) > rng.random((len(p), 1)) * p.sum(1, keepdims=True)).argmax(1)
        scores = items[drawn] @ items.T
        e = np.exp(scores - scores.max(1, keepdims=True))
        total = total + e / e.sum(1, keepdims=True)
    return total


def test_what_one_oracle_item_can_rank(truth):
    p, target = truth
    assert ndcg(p, target) == pytest.approx(0.435, abs=1e-3)
    for (what, size), bound in BOUNDS.items():
        found = np.mean([ndcg(generated(p, what, size, seed), target) for seed in range(5)])
        print(f"{what:>9}, D = {size:3}: NDCG@10 {found:.3f}")
        assert found == pytest.approx(bound, abs=0.015)

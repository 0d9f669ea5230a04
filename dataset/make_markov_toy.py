"""Write markov-toy: a small synthetic dataset whose best possible NDCG@10 is known.

    python dataset/make_markov_toy.py [--output dataset/markov-toy]

An item has four attributes (a, b, c, d) with 3 values each. With probability 0.9 the next item has a = f(c of the last
item), b = g(d of the one before) and any c, d, f and g fixed permutations; else it is drawn by popularity. Both of the
last two items are needed, in their order: c and d are new at every step, so that no other item tells them, and the d of
an item matters only once another has followed it. No item follows itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

VALUES, USERS, SHORTEST, LONGEST, RULE_PROBABILITY, SEED = 3, 800, 8, 16, 0.9, 7


def transition_table(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the next item given the one before and the last, [N, N, N], and the popularity [N]."""
    n_items = VALUES**4
    attributes = np.stack(np.unravel_index(np.arange(n_items), (VALUES,) * 4))
    f, g = rng.permutation(VALUES), rng.permutation(VALUES)
    popularity = rng.permutation(np.arange(1, n_items + 1) ** -0.3)
    popularity /= popularity.sum()
    before, last = np.divmod(np.arange(n_items**2), n_items)
    follows = (attributes[0] == f[attributes[2, last]][:, None]) & (attributes[1] == g[attributes[3, before]][:, None])
    table = (1 - RULE_PROBABILITY) * popularity + RULE_PROBABILITY * follows / follows.sum(1, keepdims=True)
    table[np.arange(n_items**2), last] = 0
    return (table / table.sum(1, keepdims=True)).reshape(n_items, n_items, n_items), popularity


def sequences(rng: np.random.Generator, table: np.ndarray, popularity: np.ndarray) -> list[list[int]]:
    """One history a user, of a length between SHORTEST and LONGEST."""
    histories = []
    for _ in range(USERS):
        history = list(rng.choice(len(popularity), 2, replace=False, p=popularity))
        for _ in range(rng.integers(SHORTEST, LONGEST + 1) - 2):
            history.append(rng.choice(len(popularity), p=table[history[-2], history[-1]]))
        histories.append([int(item) for item in history])
    return histories


def reference_scores(table: np.ndarray, popularity: np.ndarray) -> dict[str, np.ndarray]:
    """What the best predictor of each kind knows, as scores [before, last, next] under the stationary distribution."""
    pairs = np.outer(popularity, popularity)
    for _ in range(50):
        pairs = np.einsum("xy,xyz->yz", pairs, table)
    joint = pairs[:, :, None] * table

    def everywhere(scores: np.ndarray) -> np.ndarray:
        return np.broadcast_to(scores, table.shape)

    return {
        "best possible (last two items in order)": table,
        "last two items, order unknown": joint + joint.transpose(1, 0, 2),
        "last item alone": everywhere(joint.sum(0)[None]),
        "item before the last alone": everywhere(joint.sum(1)[:, None]),
        "popularity": everywhere(joint.sum((0, 1))[None, None]),
        "repeat the last item": everywhere(np.eye(len(popularity))[None]),
    }


def mean_ndcg(scores: np.ndarray, histories: list[list[int]], k: int = 10) -> float:
    """NDCG@k on each user's last item; items that tie with the target count as ranked before it."""
    total = 0.0
    for *_, before, last, target in histories:
        row = scores[before, last]
        rank = int((row >= row[target]).sum())
        total += 1 / np.log2(rank + 1) if rank <= k else 0.0
    return total / len(histories)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "markov-toy")
    args = parser.parse_args()
    rng = np.random.default_rng(SEED)
    table, popularity = transition_table(rng)
    histories = sequences(rng, table, popularity)
    token = rng.permutation(len(popularity)) + 1  # item numbers tell nothing of the attributes
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, history in enumerate(histories, start=1):
        lines += [f"{user}\t{token[item]}\t{place}" for place, item in enumerate(history)]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{args.output.name}.inter").write_text("\n".join(lines) + "\n")
    print(f"{len(histories)} users, {len(popularity)} items, {len(lines) - 1} interactions; NDCG@10 on the last items:")
    for name, scores in reference_scores(table, popularity).items():
        print(f"  {name:<40} {mean_ndcg(scores, histories):.3f}")


if __name__ == "__main__":
    main()

"""The training rows of SeqDiffRec: every target, or the last of each user."""

from __future__ import annotations

import torch

from .test_sequences import folder, rows_of, split  # noqa: F401  (a fixture)


def test_the_default_reads_every_prefix_as_recbole_does(folder):  # noqa: F811
    (dataset, train, *_), (_, plain, *_) = (split(folder, model) for model in ("SeqDiffRec", "DiffuRec"))
    assert rows_of(train._dataset[:], dataset) == rows_of(plain._dataset[:], dataset)
    assert len(train._dataset) == len(plain._dataset) > 6


def test_with_users_the_last_target_of_each_user_is_the_only_one(folder):  # noqa: F811
    dataset, train, valid, test = split(folder, "SeqDiffRec", training_rows="users", train_batch_size=2)
    rows = sorted(row for batch in train for row in rows_of(batch, dataset))
    expected = [("a", [1], 2), ("b", [3], 1), ("c", [4], 5), ("d", [2, 7, 3], 5), ("e", [4, 5, 6, 7], 8)]
    assert rows == expected and len(train._dataset) == 5
    # What is evaluated, and what popularity is counted from, stay as they are.
    every = split(folder, "SeqDiffRec")
    assert torch.equal(train._dataset.inter_feat["item_id"], every[1]._dataset.inter_feat["item_id"])
    for part, other in ((valid, every[2]), (test, every[3])):
        assert rows_of(part._dataset[:], dataset) == rows_of(other._dataset[:], dataset)

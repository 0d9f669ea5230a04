"""Times of one second's resolution order the data: our models', RecBole's own, by any split."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import recbole
import torch

from .data import NOW, prepare, write

MODELS = ["DiffuRec", "CDDRec", "SASRec", "GRU4Rec"]


def held_out(model: str, name: str = "own", **overrides) -> dict[str, str]:
    """The item of each user's test row."""
    _, (dataset, _, _, test) = prepare(model, name, **overrides)
    rows = test.dataset[:]
    users = dataset.id2token(dataset.uid_field, rows[dataset.uid_field])
    return dict(zip(users, dataset.id2token(dataset.iid_field, rows[dataset.iid_field]), strict=True))


@pytest.mark.parametrize("step", [1, 60])
@pytest.mark.parametrize("model", MODELS)
def test_a_reversed_file_gives_every_users_latest_item(model, step):
    rows = [(f"u{user}", f"i{n}", NOW + 7 * user + step * n) for user in range(20) for n in range(6)]
    write(rows[::-1])
    assert held_out(model) == {f"u{user}": "i5" for user in range(20)}


@pytest.mark.parametrize("model", MODELS)
def test_histories_are_in_time_and_ties_in_the_order_of_the_file(model):
    # Two at each second, out of order: a stable sort gives 5 4, 3 2, 1 0.
    rows = [("u", f"i{n}", NOW - n // 2) for n in (3, 2, 1, 0, 5, 4)] + [("v", "i0", NOW), ("v", "i1", NOW + 1)]
    write([(user, item, time) for user, item, time in rows])
    _, (dataset, _, _, test) = prepare(model)
    rows = test.dataset[:]
    history = rows[dataset.iid_field + "_list"][rows[dataset.uid_field] == dataset.token2id("user_id", "u")][0, :5]
    assert dataset.id2token("item_id", history).tolist() == ["i5", "i4", "i3", "i2", "i1"]


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec", "BPR"])
def test_a_split_over_all_users_is_by_the_second(model):
    # Users take turns within one step of float32: each part must end before the next begins.
    write([(f"u{n % 4}", f"i{n}", NOW + n) for n in range(40)][::-1])
    order = {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "none", "order": "TO", "mode": "full"}
    _, (dataset, train, valid, test) = prepare(model, eval_args=order)

    def numbers(loader):
        items = loader._dataset.inter_feat[dataset.iid_field]
        return [int(token[1:]) for token in dataset.id2token(dataset.iid_field, items)]

    assert max(numbers(train)) < min(numbers(valid)) <= max(numbers(valid)) < min(numbers(test))


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec"])
def test_a_time_based_split_is_by_the_second(model):
    write([(f"u{n % 4}", f"i{n}", NOW + n) for n in range(40)][::-1])
    order = {"split": {"TS": [0.6, 0.2, 0.2]}, "group_by": "user", "order": "TO", "mode": "full"}
    _, (dataset, train, valid, test) = prepare(model, eval_args=order)
    items = test.dataset[:][dataset.iid_field]
    found = sorted(int(token[1:]) for token in dataset.id2token(dataset.iid_field, items))
    assert found == list(range(40 - len(found), 40)) and 6 <= len(found) <= 9


@pytest.mark.parametrize("keep, item", [("first", "b"), ("last", "a")])
def test_of_duplicates_the_first_or_last_in_time_stays(keep, item):
    rows = [("u", "a", NOW + 3), ("u", "b", NOW + 2), ("u", "a", NOW + 1), ("u", "c", NOW)]
    write(rows + [("v", item, NOW + n) for n, item in enumerate("abc")])
    assert held_out("SASRec", rm_dup_inter=keep, topk=[1], valid_metric="NDCG@1")["u"] == item


@pytest.mark.slow
def test_ml_100k_under_another_name_tests_every_users_latest_item():
    source = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    table = pd.read_csv(source, sep="\t", dtype=str)
    write(table[["user_id:token", "item_id:token", "timestamp:float"]].values.tolist(), "films")
    table.columns = ["user", "item", "rating", "time"]
    table["time"] = table["time"].astype(float)
    latest = table.groupby("user", sort=False)["time"].transform("max") == table["time"]
    at_the_end = table[latest].groupby("user")["item"].agg(list)
    for model in ("DiffuRec", "SASRec"):
        found = held_out(model, "films")
        assert len(found) == 943
        # Of several at the last second, the last in the file.
        assert [user for user, item in found.items() if at_the_end[user][-1] != item] == []


def test_models_read_times_in_single_precision_as_ever():
    write([(f"u{user}", f"i{n}", NOW + n) for user in range(4) for n in range(6)])
    for model in ("DiffuRec", "SASRec"):
        _, (dataset, train, _, test) = prepare(model)
        for loader in (train, test):
            batch = next(iter(loader))
            batch = batch[0] if isinstance(batch, tuple) else batch
            assert {batch[field].dtype for field in batch.columns} <= {torch.float32, torch.int64}, model

"""Rows gathered batch by batch, next to RecBole's own of the same interactions; items that a user never saw."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import recbole.data.dataset
import torch
from recbole.data.dataset import CDDRecDataset
from recbole.data.dataset.sequential_dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_diffusion.data.negatives import UnseenItems
from recbole_diffusion.data.sequences import PrefixDataset, UserSequenceDataset
from recbole_diffusion.data.windows import stitched, windows
from recbole_diffusion.quick_start import build_config, prepare_data

from ..conftest import ROOT

# User u has seen items in this order; a has too few for a full split, e more than the longest history holds.
HISTORIES = {
    "a": [1, 2],
    "b": [3, 1, 2],
    "c": [4, 5, 6, 7],
    "d": [2, 7, 3, 5, 6, 1],
    "e": [1, 2, 3, 4, 5, 6, 7, 8, 9, 3],
}
LEAVE_ONE_OUT = {"LS": "valid_and_test"}


@pytest.fixture
def folder(tmp_path):
    """The histories as an atomic file, the users' rows mixed as they happened in time, two of them at one time."""
    rows = [(user, item, place) for user, items in HISTORIES.items() for place, item in enumerate(items)]
    rows = sorted(rows, key=lambda row: (row[2] // 2, row[0]))
    (tmp_path / "tiny").mkdir()
    lines = [f"{user}\ti{item}\t{place}" for user, item, place in rows]
    (tmp_path / "tiny" / "tiny.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]))
    return tmp_path


def split(folder, model="CDDRec", **overrides):
    config = build_config(
        model,
        "tiny",
        None,
        {
            "data_path": str(folder),
            "state": "ERROR",
            "MAX_ITEM_LIST_LENGTH": 4,
            "train_neg_sample_args": None,
            "loss_type": "CE",
            **overrides,
        },
    )
    return prepare_data(config)


def rows_of(data, dataset) -> list[tuple[str, list[int], int]]:
    """(user, history, target) of every row that a loader or a dataset reads."""
    user, item = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    found = []
    for u, history, n, target in zip(
        *(data[key] for key in ("user_id", "item_id_list", "item_length", "item_id")), strict=True
    ):
        assert not history[n:].any()
        found.append((user[u], [int(item[i][1:]) for i in history[:n]], int(item[target][1:])))
    return found


def test_recbole_finds_the_dataset_by_the_models_name_and_its_own_models_get_ours():
    assert CDDRecDataset is UserSequenceDataset
    assert recbole.data.dataset.SequentialDataset is PrefixDataset


def test_a_training_row_is_a_window_of_a_user(folder):
    dataset, train, _, _ = split(folder)
    rows = sorted(rows_of(train._dataset[:], dataset))
    assert rows == [
        ("a", [1], 2),
        ("b", [3], 1),
        ("c", [4], 5),
        ("d", [2, 7, 3], 5),
        ("e", [1, 2, 3], 4),
        ("e", [4, 5, 6, 7], 8),
    ]
    assert len(train._dataset) == 6


def test_an_epoch_reads_every_window_once(folder):
    dataset, train, _, _ = split(folder, train_batch_size=2)
    rows = [row for batch in train for row in rows_of(batch, dataset)]
    assert len(train) == 3 and sorted(row[0] for row in rows) == list("abcdee")
    assert sorted(rows) == sorted(rows_of(train._dataset[:], dataset))


SPLITS = [
    {"split": LEAVE_ONE_OUT, "group_by": "user"},
    {"split": {"LS": "valid_only"}, "group_by": "user"},
    {"split": {"LS": "test_only"}, "group_by": "user"},
    {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user"},
    {"split": {"RS": [0.5, 0.3, 0.2]}, "group_by": "none"},
    {"split": {"TS": [0.6, 0.2, 0.2]}, "group_by": "user"},
]


def recboles(config) -> list[SequentialDataset]:
    """RecBole's own rows, written out before the first batch."""
    return SequentialDataset(config).build()


@pytest.mark.parametrize("eval_args", SPLITS)
@pytest.mark.parametrize("length", [1, 4, 20])
def test_prefix_rows_are_recboles_in_its_order(folder, eval_args, length):
    eval_args = {"order": "TO", "mode": "full", **eval_args}
    dataset, *loaders = split(folder, "SASRec", eval_args=eval_args, MAX_ITEM_LIST_LENGTH=length)
    for ours, theirs in zip((loader._dataset for loader in loaders), recboles(dataset.config), strict=True):
        assert type(ours) is PrefixDataset and len(ours) == len(theirs)
        assert list(ours.inter_feat) == list(theirs.inter_feat) == ours[:].columns
        for name in theirs.inter_feat.columns:
            assert torch.equal(ours[:][name], theirs[:][name]) and torch.equal(ours.inter_feat[name], theirs[:][name])
        if len(ours) > 1:
            index = np.array([len(ours) - 1, 0])
            assert torch.equal(ours[index]["item_id_list"], theirs[index]["item_id_list"])
        assert ours.item_counter == theirs.item_counter
        if len(ours):  # RecBole's mean of nothing is nan
            assert ours.avg_actions_of_users == pytest.approx(theirs.avg_actions_of_users)
        assert (ours.inter_matrix("csr") != theirs.inter_matrix("csr")).nnz == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ml-100k", "markov-toy"])
def test_prefix_rows_are_recboles_on_real_data(name):
    config = build_config("SASRec", name, None, {"state": "ERROR", "train_neg_sample_args": None, "loss_type": "CE", **(
        {"data_path": str(ROOT / "dataset")} if name == "markov-toy" else {})})  # fmt: skip
    for ours, theirs in zip(PrefixDataset(config).build(), recboles(config), strict=True):
        assert all(torch.equal(ours[:][key], theirs[:][key]) for key in theirs.inter_feat.columns)


@pytest.mark.parametrize("eval_args", SPLITS)
@pytest.mark.parametrize("length", [1, 2, 3, 20])
def test_windows_hold_every_training_target_once(folder, eval_args, length):
    eval_args = {"order": "TO", "mode": "full", **eval_args}
    dataset, train, *_ = split(folder, eval_args=eval_args, MAX_ITEM_LIST_LENGTH=length)
    found = []
    for user, history, target in rows_of(train._dataset[:], dataset):
        following = [*history, target]
        place = next(i for i in range(99) if HISTORIES[user][i : i + len(following)] == following)
        found += [(user, place + i) for i in range(1, len(following))]
    whole = recboles(build_config("SASRec", "tiny", None, {**dict(dataset.config.external_config_dict),
        "model": "SASRec", "MAX_ITEM_LIST_LENGTH": 99, "loss_type": "CE"}))  # fmt: skip
    expected = [(user, len(history)) for user, history, _ in rows_of(whole[0].inter_feat, dataset)]
    assert sorted(found) == sorted(expected)


def test_a_column_can_be_dropped_and_rows_sorted(folder):
    rows = split(folder, "SASRec")[1]._dataset.inter_feat
    del rows["timestamp"]
    assert "timestamp" not in rows and "timestamp_list" not in rows and "item_id_list" in rows.gather()
    rows.sort(by=["user_id", "item_length"], ascending=[True, False])
    pairs = list(zip(rows["user_id"].tolist(), (-rows["item_length"]).tolist(), strict=True))
    assert pairs == sorted(pairs)
    with pytest.raises(KeyError):
        rows["timestamp"]


def test_rows_for_evaluation_bring_all_that_the_user_had(folder):
    dataset, _, valid, test = split(folder, "SASRec", MAX_ITEM_LIST_LENGTH=2)
    user, item = dataset.field2id_token["user_id"], dataset.field2id_token["item_id"]
    for loader, held_out in ((valid, 2), (test, 1)):
        batch = next(iter(loader))[0]
        rows, items = batch.seen
        for row, name in enumerate(user[batch["user_id"]]):
            assert [int(item[i][1:]) for i in items[rows == row]] == HISTORIES[name][:-held_out]


def benchmark(folder, train, model="CDDRec", **overrides):
    """The split of files whose rows are "user history target"; those for validation and test are two each."""
    (folder / "tiny").mkdir(exist_ok=True)
    files = {
        "train": train,
        "valid": ["a\ti1 i2 i3 i4\ti5", "a\ti1\ti3"],
        "test": ["b\ti2 i5\ti1", "b\ti2\ti1"],
    }
    for name, lines in files.items():
        header = "user_id:token\titem_id_list:token_seq\titem_id:token"
        (folder / "tiny" / f"tiny.{name}.inter").write_text("\n".join([header, *lines]))
    return split(
        folder,
        model,
        benchmark_filename=list(files),
        load_col={"inter": ["user_id", "item_id_list", "item_id"]},
        alias_of_item_id=["item_id_list"],
        **overrides,
    )


def test_benchmark_files_have_every_target_in_one_window(tmp_path):
    nested = ["a\ti1\ti2", "a\ti1 i2 i3\ti4", "a\ti1 i2\ti3", "b\ti2\ti5"]
    dataset, train, valid, test = benchmark(tmp_path, nested)
    assert sorted(rows_of(train._dataset[:], dataset)) == [("a", [1, 2, 3], 4), ("b", [2], 5)]
    assert len(valid._dataset) == len(test._dataset) == 2
    unseen = UnseenItems(train._dataset)
    user, item = dataset.field2token_id["user_id"], dataset.field2token_id["item_id"]
    drawn = unseen.sample(torch.full((50,), user["a"]))[0]
    assert set(drawn.tolist()) == {item["i5"]}


@pytest.mark.parametrize(
    "rows, expected",
    [
        # Cut to the last two, a longer history than MAX_ITEM_LIST_LENGTH, and rows of another user in between.
        (
            ["a\ti1\ti2", "a\ti1 i2\ti3", "b\ti2\ti5", "a\ti2 i3\ti4", "a\ti3 i4\ti5"],
            [("a", [1, 2], 3), ("a", [3, 4], 5), ("b", [2], 5)],
        ),
        (["a\ti1 i2 i3 i4\ti5"], [("a", [1, 2], 3), ("a", [3, 4], 5)]),
        # Some prefixes are missing.
        (["a\ti1\ti2", "a\ti1 i2 i3 i4\ti5"], [("a", [1, 2], 3), ("a", [3, 4], 5)]),
        # Two sequences that have nothing to do with each other.
        (["a\ti1\ti2", "a\ti4\ti5"], [("a", [1], 2), ("a", [4], 5)]),
        # Two, one in turn with the other.
        (
            ["a\ti1\ti2", "a\ti4\ti5", "a\ti1 i2\ti3", "a\ti4 i5\ti6"],
            [("a", [1, 2], 3), ("a", [4, 5], 6)],
        ),
        # Cut, the newest first; and cut, in no order, round to where it began.
        (["a\ti3 i4\ti5", "a\ti2 i3\ti4", "a\ti1 i2\ti3"], [("a", [1, 2], 3), ("a", [3, 4], 5)]),
        (["a\ti1 i2\ti3", "a\ti3 i1\ti2", "a\ti2 i3\ti1"], [("a", [1, 2], 3), ("a", [3, 1], 2)]),
    ],
)
def test_benchmark_rows_are_stitched(tmp_path, rows, expected):
    dataset, train, *_ = benchmark(tmp_path, rows, MAX_ITEM_LIST_LENGTH=2)
    assert sorted(rows_of(train._dataset[:], dataset)) == expected
    assert len(train._dataset.inter_feat) == len(rows)
    dataset, train, *_ = benchmark(tmp_path, rows, "SeqDiffRec", MAX_ITEM_LIST_LENGTH=2, training_rows="users")
    assert [row for row in rows_of(train._dataset[:], dataset) if row[0] == "a"][-1] == expected[-1 - (len(rows) == 5)]


@pytest.mark.parametrize("order", ["sorted", "shuffled", "newest first"])
@pytest.mark.parametrize("cut", [2, 3, 10])
def test_rows_in_any_order_are_stitched_to_the_sequences_that_they_come_from(order, cut):
    draw, rows = random.Random(cut), []
    for user in range(1, 40):
        for _ in range(draw.choice([1, 1, 2])):
            n = draw.randint(2, 9)  # of some users items come again, so that rows go round
            items = draw.choices(range(1, 5), k=n) if user % 2 else draw.sample(range(1, 1000), n)
            rows += [(user, items[:place][-cut:], item) for place, item in enumerate(items) if place]
    draw.shuffle(rows) if order == "shuffled" else rows.reverse() if order == "newest first" else None
    lists = [torch.tensor(listed + (cut - len(listed)) * [0]) for _, listed, _ in rows]
    users, items = (torch.tensor([row[place] for row in rows]) for place in (0, 2))
    sizes = torch.tensor([len(listed) for _, listed, _ in rows])
    columns = {"user": users, "item": items, "list": torch.stack(lists), "length": sizes}
    found = windows(stitched(Interaction(columns), "user", {"item": "list"}, "length", 10))
    targets = [
        place for begin, end in zip(found.start, found.target, strict=True) for place in range(begin + 1, end + 1)
    ]
    table = [(int(found.table["user"][place]), int(found.table["item"][place])) for place in targets]
    assert sorted(table) == sorted((user, item) for user, _, item in rows)


def test_a_copy_and_a_pickle_read_what_they_hold(folder):
    train = split(folder)[1]._dataset
    assert len(pickle.loads(pickle.dumps(train))) == 6
    part = train.copy(train.inter_feat[:2])
    assert len(part) == 2 and len(train) == 6 and torch.equal(part[:]["user_id"], train.inter_feat["user_id"][:2])


# ---------------------------------------------------------------------- unseen items


def training_items(dataset, train) -> dict[int, set[int]]:
    """What each user has seen in training, from RecBole's rows before any history is cut."""
    item, user = dataset.field2token_id["item_id"], dataset.field2token_id["user_id"]
    held_out = {"a": 0, "b": 1}
    return {
        user[name]: {item[f"i{i}"] for i in items[: len(items) - held_out.get(name, 2)]}
        for name, items in HISTORIES.items()
    }


def test_unseen_items_are_all_that_a_user_never_saw_equally_often(folder):
    dataset, train, _, _ = split(folder)
    unseen, seen = UnseenItems(train._dataset), training_items(dataset, train)
    torch.manual_seed(0)
    for user, items in seen.items():
        drawn, exists = unseen.sample(torch.full((6000,), user))
        left = set(range(1, dataset.item_num)) - items
        counts = drawn.bincount(minlength=dataset.item_num)
        assert exists.all() and set(counts.nonzero().flatten().tolist()) == left
        assert (counts[list(left)] - 6000 / len(left)).abs().max() < 6 * (6000 / len(left)) ** 0.5


def test_users_of_one_call_do_not_mix(folder):
    dataset, train, _, _ = split(folder)
    unseen, seen = UnseenItems(train._dataset), training_items(dataset, train)
    users = torch.tensor(list(seen)).repeat(200)
    assert not [1 for u, i in zip(users.tolist(), unseen.sample(users)[0].tolist(), strict=True) if i in seen[u]]


def test_items_before_the_longest_history_stay_excluded(folder):
    """Of user e's training items, one row holds 4 and a target; the other three are seen as well."""
    dataset, train, _, _ = split(folder)
    e = dataset.field2token_id["user_id"]["e"]
    drawn = UnseenItems(train._dataset).sample(torch.full((100,), e))[0]
    assert set(drawn.tolist()) == {dataset.field2token_id["item_id"]["i9"]}


def test_who_has_seen_everything_has_no_unseen_item(tmp_path):
    (tmp_path / "tiny").mkdir()
    lines = [f"{user}\ti{i}\t{i}" for user, n in (("a", 5), ("b", 3)) for i in range(n)]
    lines += ["a\ti1\t9", "a\ti2\t10"]
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (tmp_path / "tiny" / "tiny.inter").write_text("\n".join([header, *lines]))
    dataset, train, _, _ = split(tmp_path)
    a, b = (dataset.field2token_id["user_id"][name] for name in "ab")
    items, exists = UnseenItems(train._dataset).sample(torch.tensor([a, b, 0]))
    assert exists.tolist() == [False, True, True] and ((items > 0) & (items < dataset.item_num)).all()


def test_recboles_own_dataset_serves_as_well(folder):
    dataset, train, _, _ = split(folder, "SASRec")
    assert type(dataset) is PrefixDataset
    e = dataset.field2token_id["user_id"]["e"]
    drawn = UnseenItems(train._dataset).sample(torch.full((100,), e))[0]
    assert set(drawn.tolist()) == {dataset.field2token_id["item_id"]["i9"]}

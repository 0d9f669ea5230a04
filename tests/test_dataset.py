"""One training row a user, next to RecBole's own split of the same interactions; items that a user never saw."""

from __future__ import annotations

import pickle

import pytest
import torch
from recbole.data.dataset import CDDRecDataset, SequentialDataset

from recbole_diffusion.data.negatives import UnseenItems
from recbole_diffusion.data.sequences import UserSequenceDataset
from recbole_diffusion.quick_start import build_config, prepare_data

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


def test_recbole_finds_the_dataset_by_the_models_name():
    assert CDDRecDataset is UserSequenceDataset


def test_a_training_row_is_a_users_longest_history_and_the_last_of_them(folder):
    dataset, train, _, _ = split(folder)
    rows = sorted(rows_of(train._dataset[:], dataset))
    assert rows == [
        ("a", [1], 2),
        ("b", [3], 1),
        ("c", [4], 5),
        ("d", [2, 7, 3], 5),
        ("e", [4, 5, 6, 7], 8),
    ]
    assert len(train._dataset) == 5


def test_an_epoch_reads_every_user_once(folder):
    dataset, train, _, _ = split(folder, train_batch_size=2)
    rows = [row for batch in train for row in rows_of(batch, dataset)]
    assert len(train) == 3 and sorted(row[0] for row in rows) == list("abcde")
    assert sorted(rows) == sorted(rows_of(train._dataset[:], dataset))


@pytest.mark.parametrize(
    "eval_args",
    [
        {"split": LEAVE_ONE_OUT, "group_by": "user"},
        {"split": {"LS": "valid_only"}, "group_by": "user"},
        {"split": {"LS": "test_only"}, "group_by": "user"},
        {"split": {"RS": [0.6, 0.2, 0.2]}, "group_by": "user"},
        {"split": {"RS": [0.5, 0.3, 0.2]}, "group_by": "none"},
        {"split": {"TS": [0.6, 0.2, 0.2]}, "group_by": "user"},
    ],
)
def test_evaluation_is_recboles_and_training_covers_every_user_of_recboles(folder, eval_args):
    eval_args = {"order": "TO", "mode": "full", **eval_args}
    ours, theirs = (
        [loader._dataset for loader in split(folder, model, eval_args=eval_args)[1:]] for model in ("CDDRec", "SASRec")
    )
    for a, b in zip(ours[1:], theirs[1:], strict=True):
        assert len(a) == len(b) and all(torch.equal(a[:][key], b[:][key]) for key in b.inter_feat.columns)
    # All of RecBole's training rows are there for whoever counts them, and one a user is read.
    train, every = ours[0], theirs[0].inter_feat
    assert all(torch.equal(train.inter_feat[key], every[key]) for key in every.columns)
    assert train.item_counter == theirs[0].item_counter
    assert (train.inter_matrix("csr") != theirs[0].inter_matrix("csr")).nnz == 0
    last = {}
    for row in rows_of(every, train):
        last[row[0]] = row  # RecBole's rows of a user are in time
    assert sorted(rows_of(train[:], train)) == sorted(last.values())


def test_every_other_training_row_of_recbole_is_a_prefix_unless_the_history_was_cut(folder):
    dataset, train, _, _ = split(folder, MAX_ITEM_LIST_LENGTH=20)
    chosen = {user: [*history, target] for user, history, target in rows_of(train._dataset[:], dataset)}
    rows = rows_of(train._dataset.inter_feat, dataset)
    assert all(chosen[user][: len(history) + 1] == [*history, target] for user, history, target in rows)
    assert len(rows) == sum(len(items) - 1 for items in chosen.values())


def test_benchmark_files_keep_one_training_row_a_user(tmp_path):
    (tmp_path / "tiny").mkdir()
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    files = {
        "train": ["a\ti1\ti2", "a\ti1 i2 i3\ti4", "a\ti1 i2\ti3", "b\ti2\ti5"],
        "valid": ["a\ti1 i2 i3 i4\ti5", "a\ti1\ti3"],
        "test": ["b\ti2 i5\ti1", "b\ti2\ti1"],
    }
    for name, lines in files.items():
        (tmp_path / "tiny" / f"tiny.{name}.inter").write_text("\n".join([header, *lines]))
    dataset, train, valid, test = split(
        tmp_path,
        benchmark_filename=list(files),
        load_col={"inter": ["user_id", "item_id_list", "item_id"]},
        alias_of_item_id=["item_id_list"],
    )
    assert sorted(rows_of(train._dataset[:], dataset)) == [("a", [1, 2, 3], 4), ("b", [2], 5)]
    assert len(valid._dataset) == len(test._dataset) == 2
    unseen = UnseenItems(train._dataset)
    user, item = dataset.field2token_id["user_id"], dataset.field2token_id["item_id"]
    drawn = unseen.sample(torch.full((50,), user["a"]))[0]
    assert set(drawn.tolist()) == {item["i5"]}


def test_a_copy_and_a_pickle_read_what_they_hold(folder):
    train = split(folder)[1]._dataset
    assert len(pickle.loads(pickle.dumps(train))) == 5
    part = train.copy(train.inter_feat[:2])
    assert len(part) == 2 and len(train) == 5 and torch.equal(part[:]["user_id"], train.inter_feat["user_id"][:2])


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
    assert type(dataset) is SequentialDataset
    e = dataset.field2token_id["user_id"]["e"]
    drawn = UnseenItems(train._dataset).sample(torch.full((100,), e))[0]
    assert set(drawn.tolist()) == {dataset.field2token_id["item_id"]["i9"]}

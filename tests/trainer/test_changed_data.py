"""A run goes on, and is loaded, with the data it was trained on: what was another's is refused, or passed over."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.quick_start import load_data_and_model, run
from recbole_diffusion.recommend import Recommender
from recbole_diffusion.trainer import DiffusionTrainer
from recbole_diffusion.trainer.resume import compare_settings, data_checksum

from ..conftest import ROOT, TINY, toy, toy_config


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train a tiny SASRecPlus, or ADRec with its pretraining, on a copy of markov-toy whose lines can be changed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "dataset" / "markov-toy", "data/markov-toy")
    quiet = {"data_path": "data", "state": "ERROR", "show_progress": False}

    def train(model="SASRecPlus", dataset="markov-toy", **overrides):
        return run(model, dataset, config_dict={**quiet, **TINY, "epochs": 1, "limit_train_batches": 2, **overrides})

    return train


def change_lines(how, dataset="markov-toy"):
    """Rewrite the lines of an interaction file below its header."""
    file = Path("data") / dataset / f"{dataset}.inter"
    head, *lines = file.read_text().splitlines()
    file.write_text("\n".join([head, *how(lines)]) + "\n")


def shuffled(lines):
    return random.Random(0).sample(lines, len(lines))


def states(folder="saved"):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder).glob("*.pth")}


def test_items_in_another_order_are_refused_and_auto_begins_anew(train):
    result = train()
    last = result["model_file"].replace(".pth", "-last.pth")
    change_lines(shuffled)
    before = states()
    with pytest.warns(UserWarning, match=r"the files of dataset \[markov-toy\] are others"):
        with pytest.raises(ValueError, match=r"other items than dataset \[markov-toy\], or of these in another order"):
            train(epochs=2, resume=last)
    with pytest.raises(ValueError, match=rf"model_file \[{result['model_file']}\] is of other items .* number 1 is \["):
        load_data_and_model(result["model_file"], {"data_path": "data"})
    assert states() == before
    again = train(epochs=2, resume="auto")
    assert again["epochs"] == 2 and again["model_file"] != result["model_file"]
    assert states().items() >= before.items()


def test_a_checkpoint_of_items_in_another_order_is_not_evaluated(train):
    file = train()["model_file"]
    it = toy("SASRecPlus")
    assert DiffusionTrainer(it.config, it.model).evaluate(it.test, model_file=file)
    change_lines(shuffled)
    other = toy("SASRecPlus", data_path="data")
    with pytest.raises(ValueError, match="in another order"):
        DiffusionTrainer(other.config, other.model).evaluate(other.test, model_file=file)


def test_a_run_with_other_features_of_items_is_another():
    shutil.copytree(ROOT / "dataset" / "markov-toy", "data/markov-toy")
    features = Path("data/markov-toy/markov-toy.item")
    found = []
    for text in ("i1\t1\n", "i1\t2\n"):
        features.write_text(f"item_id:token\tprice:float\n{text}")
        loaded = ({}, {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]}})
        found.append([data_checksum(toy_config("SASRecPlus", data_path="data", **keys)) for keys in loaded])
    (unread, first), (unread_too, second) = found
    assert unread == unread_too and len({unread, first, second}) == 3


def test_a_pretraining_on_other_interactions_is_not_taken(train):
    train("ADRec", pretrain="SASRecPlus", loss_scale=0)
    first = states("saved/pretrain")
    train("ADRec", pretrain="SASRecPlus", loss_scale=0, learning_rate=0.01)
    assert len(states("saved/pretrain")) == 2 * len(first)  # the rate is that of both
    train("ADRec", pretrain="SASRecPlus", loss_scale=0, num_steps=3)
    assert len(states("saved/pretrain")) == 2 * len(first)
    change_lines(lambda lines: lines[:-40])
    train("ADRec", pretrain="SASRecPlus", loss_scale=0)
    assert len(states("saved/pretrain")) == 3 * len(first)


def test_a_run_on_another_dataset_is_not_resumed_and_keeps_its_files(train):
    last = train()["model_file"].replace(".pth", "-last.pth")
    shutil.copytree("data/markov-toy", "data/other")
    Path("data/other/markov-toy.inter").rename("data/other/other.inter")
    before = states()
    with pytest.raises(ValueError, match=r"cannot be resumed: it is of dataset \[markov-toy\], not \[other\]"):
        train(dataset="other", epochs=2, resume=last)
    assert states() == before


@pytest.mark.parametrize("change", [{"valid_metric": "NDCG@10"}, {"mask_history": False}])
def test_the_best_score_of_another_kind_does_not_stand(train, change):
    """A hit rate is above any NDCG, and one with the history masked above one without."""
    keys = {"valid_metric": "Hit@20", "mask_history": True}
    last = train(**keys)["model_file"].replace(".pth", "-last.pth")
    with pytest.warns(UserWarning, match="with other settings"):
        again = train(**{**keys, **change}, epochs=2, learning_rate=1e-9, resume=last)
    assert load_checkpoint(again["model_file"])["epoch"] == 1
    assert again["best_valid_score"] == again["best_valid_result"][{**keys, **change}["valid_metric"].lower()]


def test_a_run_that_has_ended_is_measured_as_it_is_asked_for_now(train):
    last = train(valid_metric="Hit@20")["model_file"].replace(".pth", "-last.pth")
    with pytest.warns(UserWarning, match="with other settings"):
        again = train(valid_metric="NDCG@10", resume=last)
    assert again["epochs"] == 1 and again["best_valid_score"] == again["best_valid_result"]["ndcg@10"]


@pytest.mark.parametrize("key, value", [("inference_seeds", [1]), ("sampling_steps", 2), ("learning_rate", 0.5)])
def test_which_settings_validation_scores_depend_on(train, key, value):
    file = train("DiffuRec", num_steps=3)["model_file"]
    changed = toy("DiffuRec", num_steps=3, epochs=1, limit_train_batches=2, **{key: value}).config
    with pytest.warns(UserWarning, match=key):
        comparable = compare_settings(load_checkpoint(file), changed, file)
    assert comparable == (key == "learning_rate")


def test_a_table_that_has_grown_is_the_same_dataset(train):
    lines = [line.replace("\t", ",") for line in Path("data/markov-toy/markov-toy.inter").read_text().splitlines()]
    Path("ev.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines[1:]]) + "\n")
    last = train(dataset="ev.csv")["model_file"].replace(".pth", "-last.pth")
    Path("ev.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines[1:], lines[-1]]) + "\n")
    with pytest.warns(UserWarning, match="with other settings"):
        assert train(dataset="ev.csv", epochs=2, resume=last)["epochs"] == 2


def test_a_checkpoint_of_large_numbers_in_its_pretraining_is_loaded(train):
    keys = {"pretrain_config": {"seed": 20240101, "train_batch_size": 10**6}, "freeze_embedding_epochs": 10**5}
    file = train("ADRec", pretrain="SASRecPlus", loss_scale=0, **keys)["model_file"]
    assert Recommender(file).name == "ADRec"


def test_a_run_without_validation_stays_one_when_it_has_ended(train):
    first = train(eval_step=0)
    again = train(eval_step=0, resume=first["model_file"].replace(".pth", "-last.pth"))
    for key in ("best_valid_score", "best_valid_result", "test_result"):
        assert again[key] == first[key]


def test_the_folder_that_cannot_be_used_is_the_one_that_is_named(train):
    Path("taken").write_text("a file")
    with pytest.raises(OSError, match=r"checkpoint_dir \[taken\] cannot be used"):
        train(checkpoint_dir="taken")
    Path("log_tensorboard").write_text("a file")
    with pytest.raises(OSError, match="log_tensorboard") as error:
        train()
    assert "checkpoint_dir" not in str(error.value)

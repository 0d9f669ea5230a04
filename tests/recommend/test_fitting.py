"""From a data frame to recommendations in four lines, and on with what came later."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_diffusion import Recommender
from recbole_diffusion.quick_start import run

from ..conftest import ROOT, TINY

FAST = {**TINY, "state": "ERROR", "show_progress": False, "epochs": 1}


def table() -> pd.DataFrame:
    """markov-toy as a shop would have it: numbers for users, names for items."""
    toy = pd.read_csv(ROOT / "dataset/markov-toy/markov-toy.inter", sep="\t", names=["user", "item", "time"], header=0)
    toy["user"] = toy["user"].astype(str).str.extract(r"(\d+)", expand=False).astype(int)
    return toy.assign(item="tea, " + toy["item"].astype(str) + "\tä")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["pytest"])
        return Recommender.fit(table(), **FAST)


@pytest.fixture
def saved(fitted, tmp_path):
    """A copy to update, through its file."""
    fitted.save(tmp_path / "shop.pth")
    return Recommender.load(tmp_path / "shop.pth")


def last_items(frame: pd.DataFrame, user: int) -> list[str]:
    return frame[frame["user"] == user].sort_values("time", kind="stable")["item"].tolist()


def test_known_users_are_recommended_what_their_histories_are(fitted):
    users = table()["user"].unique()[:5].tolist()
    known = fitted.recommend(users, k=4, exclude_seen=True)
    assert known.columns.tolist() == ["user", "item", "rank", "score"] and known["user"].dtype == "int64"
    assert known["rank"].tolist() == [1, 2, 3, 4] * 5 and known["user"].tolist() == np.repeat(users, 4).tolist()
    histories = {user: last_items(table(), user) for user in users}
    pd.testing.assert_frame_equal(fitted.recommend(histories, k=4, exclude_seen=True), known)
    assert all(not set(rows["item"]) & set(histories[user]) for user, rows in known.groupby("user"))
    assert set(known["item"]) <= set(table()["item"])
    numbered = fitted.recommend(list(histories.values()), k=4, exclude_seen=True)
    assert numbered["user"].tolist() == np.repeat(range(5), 4).tolist() and numbered["item"].equals(known["item"])
    assert fitted.recommend(k=1)["user"].nunique() == table()["user"].nunique()


def test_fitting_is_the_pipeline_of_run(fitted, tmp_path):
    from recbole_diffusion.data.atomic import write_atomic

    write_atomic(table(), tmp_path / "data" / "table")
    result = run("SASRecPlus", "table", config_dict={**FAST, "data_path": str(tmp_path / "data")})
    assert fitted.result["test_results"] == result["test_results"]
    assert fitted.result["best_valid_result"] == result["best_valid_result"]
    assert fitted.summary.users == table()["user"].nunique()


def test_similar_items_are_those_of_the_nearest_direction(fitted):
    items = table()["item"].unique()[:2].tolist()
    found = fitted.similar_items(items, k=3)
    vectors = torch.nn.functional.normalize(fitted.model.item_embedding.weight.detach(), dim=-1)
    for item, rows in found.groupby("item"):
        cosine = vectors @ vectors[fitted.ids[item]]
        order = [i for i in cosine.argsort(descending=True).tolist() if i not in (0, fitted.ids[item])][:3]
        assert rows["similar"].tolist() == [fitted.tokens[i] for i in order]
        np.testing.assert_allclose(rows["score"], cosine[order], rtol=1e-5)
    assert found["rank"].tolist() == [1, 2, 3] * 2
    assert len(fitted.similar_items(items[:1], k=10**6)) == len(fitted.tokens) - 2


@pytest.mark.slow
def test_a_saved_recommender_says_the_same_and_every_command_reads_it(fitted, saved, tmp_path):
    pd.testing.assert_frame_equal(saved.recommend(k=3), fitted.recommend(k=3))
    assert saved.known.whole == ["user"]
    item = table()["item"][0]
    command = [sys.executable, "-W", "ignore", "-m", "recbole_diffusion.recommend", "--model_file=shop.pth", "--topk=1"]
    (tmp_path / "in.jsonl").write_text(f"[{json.dumps(item)}]\n")
    done = subprocess.run([*command, "--input=in.jsonl"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert fitted.recommend([[item]], k=1)["item"][0] in json.loads(done.stdout)["items"]


def later(frame: pd.DataFrame) -> pd.DataFrame:
    """A new user and a known one, with two new items between known ones."""
    one, other = frame["item"].unique()[:2]
    time = frame["time"].max() + np.arange(1, 8)
    user = [int(frame["user"][0])] * 3 + [999_999] * 4
    return pd.DataFrame({"user": user, "item": [one, "new a", other, "new a", other, "new b", one], "time": time})


def test_an_update_without_training_knows_users_and_items_at_once(saved):
    frame = table()
    before = {token: saved.model.item_embedding.weight[place].clone() for token, place in saved.ids.items()}
    found = saved.update(later(frame), epochs=0)
    assert found is saved and found.result is None
    assert saved.known.history(999_999) == later(frame)["item"].tolist()[3:]
    first = int(frame["user"][0])
    assert saved.known.history(first) == last_items(frame, first) + later(frame)["item"].tolist()[:3]
    assert saved.recommend([999_999], k=5)["user"].tolist() == [999_999] * 5
    one, other = frame["item"].unique()[:2]
    table_now = saved.model.item_embedding.weight
    for token, vector in before.items():
        torch.testing.assert_close(table_now[saved.ids[token]], vector)
    # "new a": one before and other after it at the known user, other after it at the new one
    torch.testing.assert_close(table_now[saved.ids["new a"]], (before[one] + 2 * before[other]) / 3)
    torch.testing.assert_close(table_now[saved.ids["new b"]], (before[one] + before[other]) / 2)
    assert not saved.model.item_embedding.weight[0].any()


@pytest.mark.slow
def test_an_update_that_trains_starts_from_the_weights_and_hides_what_it_is_tested_by(saved, monkeypatch):
    from recbole_diffusion.recommend import fitting

    frame, seen = table(), {}
    before = {token: saved.model.item_embedding.weight[place].clone() for token, place in saved.ids.items()}
    fit_and_test = fitting.fit_and_test

    def spy(config, trainer, train_data, *rest):
        tokens = train_data._dataset.field2id_token["item_id"].tolist()
        seen.update(zip(map(fitting.restore_token, tokens), trainer.model.item_embedding.weight.clone(), strict=True))
        return fit_and_test(config, trainer, train_data, *rest)

    monkeypatch.setattr(fitting, "fit_and_test", spy)
    saved.update(later(frame), epochs=1)
    assert saved.result["epochs"] == 1 and "hit@10" in saved.result["test_result"]
    for token, vector in before.items():
        torch.testing.assert_close(seen[token], vector)
    other, first = frame["item"].unique()[1], int(frame["user"][0])
    # Without the last two of each history "new a" stands before `other`, at the new user, alone.
    torch.testing.assert_close(seen["new a"], before[other])
    everything = torch.stack([before[token] for token in before if token != "[PAD]"]).mean(0)
    torch.testing.assert_close(seen["new b"], everything)
    assert last_items(frame, first) == saved.known.history(first)[:-3]
    # More epochs without new data.
    saved.update(epochs=1)
    assert saved.ids["new a"] and saved.result["epochs"] == 1


STILL = {"epochs": 1, "learning_rate": 1e-9, "limit_train_batches": 1}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["a file", "pretraining"])
def test_an_update_keeps_what_was_learnt_where_items_started_from_another_model(fitted, tmp_path, start, monkeypatch):
    from recbole_diffusion.model.adrec import ADRec

    first = run("SASRecPlus", "markov-toy", config_dict={**FAST, "data_path": str(ROOT / "dataset")})["model_file"]
    frame = pd.read_csv(
        ROOT / "dataset/markov-toy/markov-toy.inter", sep="\t", names=["user", "item", "time"], header=0
    )
    keys = {"item_embedding_file": first} if start == "a file" else {"pretrain": "SASRecPlus"}
    own = {"num_steps": 4, "freeze_embedding_epochs": 1} if start == "pretraining" else {"learning_rate": 0.05}
    found = Recommender.fit(frame, "ADRec" if start == "pretraining" else "SASRecPlus", **{**FAST, **keys, **own})
    found.save(tmp_path / "it.pth")
    found = Recommender.load(tmp_path / "it.pth")
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    monkeypatch.setattr(ADRec, "advise_from_scratch", lambda self: pytest.fail("it is not from scratch"))
    for _ in range(2):
        found.update(**STILL, state="ERROR", show_progress=False)
    for name, value in found.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6)
    found.update(state="ERROR", show_progress=False, epochs=1, learning_rate=0.01)  # nor do the items rest again
    assert (found.model.item_embedding.weight - before["item_embedding.weight"]).abs().max() > 1e-3


def test_an_update_reads_a_table_as_the_fit_did(fitted, tmp_path):
    """Columns and duplicates, also from a file; what is said in the update stands above."""
    frame = table()
    shop = frame.rename(columns={"user": "who", "item": "title", "time": "at"}).assign(item_id=range(len(frame)))
    fitted_here = Recommender.fit(
        shop, user="who", item="title", time="at", duplicates="first", **FAST, limit_train_batches=1
    )
    fitted_here.save(tmp_path / "shop.pth")
    found, count = Recommender.load(tmp_path / "shop.pth"), len(fitted_here.tokens)
    first = int(frame["user"][0])
    before, again = found.known.history(first), later(frame).assign(item=frame["item"][0])
    again = pd.concat([again, later(frame)]).rename(columns={"user": "who", "item": "title", "time": "at"})
    found.update(again.assign(item_id=7), epochs=0)
    assert set(found.tokens) - set(fitted_here.tokens) == {"new a", "new b"} and len(found.tokens) == count + 2
    now = found.known.history(first)
    assert now[: len(before)] == before and len(set(now)) == len(now) and set(now) - set(before) >= {"new a"}
    found.update(later(frame).assign(user=123_456), user="user", item="item", time="time", epochs=0)
    assert found.known.history(123_456)
    assert found.known.options["item"] == "title"


@pytest.mark.parametrize(
    "model, why", [("Pop", "reads no histories"), ("HGN", r"reads more than histories \(user_id\)")]
)
def test_a_model_that_cannot_recommend_for_a_history_is_refused_before_it_trains(monkeypatch, model, why):
    from recbole_diffusion.recommend import fitting

    monkeypatch.setattr(fitting, "prepare_training", lambda config: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=rf"model \[{model}\] {why}"):
        Recommender.fit(table(), model, state="ERROR", show_progress=False, epochs=1)


def test_a_model_that_asks_for_the_length_of_a_history_is_told_it():
    found = Recommender.fit(table(), "CORE", **FAST, limit_train_batches=1)
    assert found.model.net.position_embedding.num_embeddings == found.checkpoint["config"]["MAX_ITEM_LIST_LENGTH"]
    before = found.recommend([[table()["item"][0]]], k=3)["score"]
    found.update(later(table()), epochs=0)
    assert "new a" in found.ids and found.recommend([["new a"]], k=3)["score"].notna().all()
    assert found.recommend([[table()["item"][0]]], k=3)["score"].iloc[0] >= before.iloc[0]


@pytest.mark.slow
def test_a_model_that_draws_has_a_spread_and_numbers_stay_numbers():
    frame = table()
    frame["item"] = frame["item"].str.extract(r"(\d+)", expand=False).astype(int)
    found = Recommender.fit(frame.rename(columns={"item": "thing"}), "DiffuRec", item="thing", num_steps=4,
                            inference_seeds=2, limit_train_batches=1, **FAST)  # fmt: skip
    rows = found.recommend([[int(frame["item"][0])], [str(frame["item"][1])]], k=2)
    assert rows["item"].dtype == "int64" and (rows["spread"] >= 0).all()
    assert found.similar_items([frame["item"][0]], 2)["similar"].dtype == "int64"
    assert "user" in found.known.whole and found.recommend(k=1)["user"].dtype == "int64"


def test_what_is_wrong_is_named_in_one_line(fitted, tmp_path):
    with pytest.raises(ValueError, match=r"user \[nobody\] is not known"):
        fitted.recommend(["nobody"])
    with pytest.raises(ValueError, match=r"history 1 .*known: x"):
        fitted.recommend([[table()["item"][0]], ["x"]])
    with pytest.raises(ValueError, match=r"users \[ann\] must be a list, such as \['ann'\]"):
        fitted.recommend("ann")
    with pytest.raises(ValueError, match=r"items \[tea\] must be a list"):
        fitted.similar_items("tea")
    with pytest.raises(ValueError, match=r"item \[x\] is not known"):
        fitted.similar_items(["x"])
    with pytest.raises(ValueError, match=r"k \[0\]"):
        fitted.similar_items([table()["item"][0]], k=0)
    with pytest.raises(ValueError, match="SASRecPlu"):
        Recommender.fit(table(), "SASRecPlu", **FAST)
    with pytest.raises(ValueError, match="user column is missing"):
        Recommender.fit(table().drop(columns="user"), **FAST)
    plain = run("SASRecPlus", "markov-toy", config_dict={**FAST, "data_path": str(ROOT / "dataset")})
    bare = Recommender.load(plain["model_file"])
    with pytest.raises(ValueError, match="give histories"):
        bare.recommend(["1"])
    for nobody in (bare.recommend([]), bare.recommend({}), fitted.recommend([]), fitted.similar_items([])):
        assert len(nobody) == 0 and {"item", "rank", "score"} <= set(nobody)
    for size in (0, -1, 0.5):
        with pytest.raises(ValueError, match=rf"batch_size \[{size}\] must be an integer >= 1"):
            bare.recommend([["1"]], batch_size=size)
    with pytest.raises(ValueError, match=r"k \[0\]"):
        list(bare.stream([], k=0))
    with pytest.raises(ValueError, match="update needs the interactions"):
        bare.update(later(table()))


@pytest.mark.parametrize("model", ["BERT4Rec"])
def test_an_update_keeps_what_a_model_has_behind_its_items(model):
    """The row of the mask, whose number is that of the items."""
    fitted = Recommender.fit(table(), model, **{**FAST, "limit_train_batches": 1})
    before, n = fitted.model.item_embedding.weight.clone(), len(fitted.tokens)
    fitted.update(pd.DataFrame({"user": [1, 1], "item": ["new one", "new two"], "time": [10**9, 10**9 + 1]}), epochs=0)
    after = fitted.model.item_embedding.weight
    assert len(after) == len(before) + 2 == n + 3
    assert torch.equal(after[:n], before[:n]) and torch.equal(after[-1], before[-1])


def test_an_update_trains_also_where_the_fit_was_resumed(tmp_path):
    keys = {**FAST, "limit_train_batches": 1, "checkpoint_dir": str(tmp_path), "resume": "auto"}
    fitted = Recommender.fit(table(), **keys)
    before = fitted.model.item_embedding.weight.clone()
    fitted.update()
    assert not torch.equal(fitted.model.item_embedding.weight, before)


def test_an_update_keeps_what_the_recommender_was_opened_with(tmp_path):
    Recommender.fit(table(), "DiffuRec", **{**FAST, "limit_train_batches": 1, "num_steps": 2}).save(tmp_path / "it.pth")
    opened = Recommender(tmp_path / "it.pth", inference_seeds=[4, 5], config_dict={"eval_batch_size": 7})
    opened.update(epochs=1)
    assert opened.model.inference_seeds == [4, 5] and opened.batch_size == 7
    opened.update(epochs=1, inference_seeds=[6])
    assert opened.model.inference_seeds == [6]


def test_ids_beyond_int64_stay_what_they_are():
    large = table()
    large["item"] = np.uint64(2**63) + large["item"].factorize()[0].astype("uint64")
    fitted = Recommender.fit(large, **{**FAST, "limit_train_batches": 1})
    found = fitted.recommend([large["user"].iloc[0]], k=3)
    assert found["item"].dtype == "uint64" and set(found["item"]) <= set(large["item"])


def test_users_of_filtered_items_alone_are_left_out_of_all_users():
    rare = pd.DataFrame({"user": [9999] * 3, "item": ["a", "b", "c"], "time": [1, 2, 3]})
    keys = {**FAST, "limit_train_batches": 1, "item_inter_num_interval": "[3,inf)"}
    fitted = Recommender.fit(pd.concat([table(), rare]), **keys)
    assert set(fitted.recommend(k=1)["user"]) == set(table()["user"])


@pytest.mark.slow
def test_the_names_of_the_package_are_there_and_lazy():
    code = (
        "import sys, recbole_diffusion\n"
        "assert 'recbole_diffusion.recommend' not in sys.modules\n"
        "from recbole_diffusion import Recommender, recommend\n"
        "from recbole_diffusion.recommend import Recommender as other, recommend as function\n"
        "assert Recommender is other and callable(recommend) and recommend.Recommender is other\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=ROOT)

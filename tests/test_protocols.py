"""Both protocols of evaluation against the plain form, for our models and RecBole's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from recbole.trainer import S3RecTrainer

from recbole_diffusion.analysis.evaluation import Evaluation
from recbole_diffusion.analysis.places import hit
from recbole_diffusion.protocols import _by_user
from recbole_diffusion.quick_start import build_trainer, prepare_data, run

from .conftest import ROOT, toy, toy_config

SHORT = {"epochs": 1, "limit_train_batches": 2, "state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset")}  # fmt: skip  # noqa: E501


def plain_metrics(it, part, masked: bool) -> dict[str, float]:
    """Hit@k and NDCG@k of each row, one by one, from the users' whole sequences."""
    rows = part._dataset.inter_feat
    hits = {f"{name}@{k}": [] for name in ("hit", "ndcg") for k in (5, 10, 20)}
    for i in range(len(rows)):
        with torch.no_grad():
            scores = it.model.eval().full_sort_predict(part._dataset[[i]])[0]
        target, history = int(rows["item_id"][i]), rows.table["item_id"][rows.first[i] : rows.target[i]]
        if masked:
            kept = scores[target].clone()
            scores[history] = -torch.inf
            scores[target] = kept
        place = int((scores[1:] > scores[target]).sum())
        for k in (5, 10, 20):
            hits[f"hit@{k}"].append(float(place < k))
            hits[f"ndcg@{k}"].append(1 / math.log2(place + 2) if place < k else 0.0)
    return {name: sum(values) / len(values) for name, values in hits.items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRecPlus", "SASRec"])
@pytest.mark.parametrize("mask_history", [False, True])
def test_both_protocols_are_those_of_the_plain_form(model, mask_history):
    it = toy(model, mask_history=mask_history, MAX_ITEM_LIST_LENGTH=3, eval_batch_size=100)
    trainer = build_trainer(it.config, it.model)
    trainer.eval_collector.data_collect(it.train)
    for part in (it.valid, it.test):
        result = trainer.evaluate(part, load_best_model=False)
        both = trainer.protocol_results
        assert dict(result) == both["masked" if mask_history else "candidates"]
        assert both["masked"] != both["candidates"]
        for protocol, found in both.items():
            assert found == pytest.approx(plain_metrics(it, part, protocol == "masked"), abs=1e-6)


@pytest.mark.parametrize("mask_history", [False, True])
def test_gauc_counts_no_masked_item_as_beaten(mask_history):
    """The mean over users of the share of the other candidates that stand below the target."""
    it = toy("SASRecPlus", mask_history=mask_history, metrics=["GAUC", "NDCG"], eval_batch_size=100)
    trainer = build_trainer(it.config, it.model)
    trainer.eval_collector.data_collect(it.train)
    trainer.evaluate(it.test, load_best_model=False)
    rows, shares = it.test._dataset.inter_feat, {"candidates": [], "masked": []}
    for i in range(len(rows)):
        with torch.no_grad():
            scores = it.model.eval().full_sort_predict(it.test._dataset[[i]])[0]
        target, history = int(rows["item_id"][i]), rows.table["item_id"][rows.first[i] : rows.target[i]]
        for protocol, share in shares.items():
            others = torch.ones(len(scores), dtype=torch.bool)
            others[[0, target]] = False
            if protocol == "masked":
                others[history] = False
            share.append(float((scores[others] < scores[target]).float().mean()))
    for protocol, share in shares.items():
        assert trainer.protocol_results[protocol]["gauc"] == pytest.approx(np.mean(share), abs=1e-4)


def test_a_target_in_the_history_stays_a_candidate(tmp_path):
    (tmp_path / "back").mkdir()
    lines = [f"{u}\ti{i}\t{t}" for u in range(12) for t, i in enumerate([1, 2, 3 + u % 3, 1])]
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (tmp_path / "back" / "back.inter").write_text(header + "\n".join(lines))
    result = run(
        "SASRecPlus", "back", None, {**SHORT, "data_path": str(tmp_path), "topk": [4], "valid_metric": "NDCG@4"}
    )
    assert result["test_results"]["masked"]["hit@4"] == 1.0


@pytest.mark.parametrize("model", ["SASRecPlus", "DiffuRec"])
def test_an_excluded_target_is_a_miss_however_small_the_catalogue(tmp_path, model):
    """Two items are left to rank, and k is 5: the rest of the list has no score."""
    (tmp_path / "back").mkdir()
    lines = [f"{u}\ti{i}\t{t}" for u in range(12) for t, i in enumerate([1, 2, 3 + u % 3, 1 + u % 2])]
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    (tmp_path / "back" / "back.inter").write_text(header + "\n".join(lines))
    keys = {"data_path": str(tmp_path), "topk": [5], "valid_metric": "NDCG@5", "seen_items": "excluded"}
    if model == "DiffuRec":
        keys |= {"num_steps": 4, "inference_seeds": [1, 2]}
    result = run(model, "back", None, {**SHORT, **keys, "checkpoint_dir": str(tmp_path / "saved")})
    assert {name: found["hit@5"] for name, found in result["test_results"].items()} == {"candidates": 0, "masked": 0}
    it = Evaluation(result["model_file"], 100, 0, tmp_path, {"data_path": str(tmp_path)})
    assert not hit(it.places).any() and (it.masked_places >= 4).all()
    if model == "DiffuRec":
        assert all(not hit(places).any() for places in it.seed_ranking.group_places.values())
        assert not hit(it.seed_ranking.places).any()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["SASRecPlus", "GRU4Rec", "CDDRec"])
def test_every_test_result_reports_both(model):
    result = run(model, "markov-toy", None, {**SHORT, "mask_history": True})
    assert set(result["test_results"]) == {"candidates", "masked"}
    assert dict(result["test_result"]) == result["test_results"]["masked"]


def test_a_trainer_of_recboles_own_reports_both():
    it = toy("SASRec")
    it.config.final_config_dict["model"] = "S3Rec"  # whose trainer is another
    trainer = build_trainer(it.config, it.model)
    assert isinstance(trainer, S3RecTrainer)
    trainer.eval_collector.data_collect(it.train)
    trainer.evaluate(it.test, load_best_model=False)
    assert set(trainer.protocol_results) == {"candidates", "masked"}


def test_general_models_mask_by_themselves():
    for masks in (False, True):
        result = run("BPR", "markov-toy", None, {**SHORT, "mask_history": masks, "repeatable": False})
        assert result["test_results"] is None


def test_ranks_of_a_general_model_are_those_of_the_protocol_it_has():
    """RecBole gives the history of a user no rank where ``repeatable`` is off: that is the masked one."""
    found = {}
    for repeatable, protocol in ((True, "candidates"), (False, "masked")):
        it = toy("BPR", repeatable=repeatable)
        trainer = build_trainer(it.config, it.model)
        trainer.eval_collector.data_collect(it.train)
        trainer.keep_ranks = True
        result = trainer.evaluate(it.test, load_best_model=False)
        rank = trainer.ranks.pop(protocol)
        assert trainer.ranks.keys() == {"user"}
        found[protocol] = ((rank > 0) & (rank <= 10)).mean()
        assert found[protocol] == pytest.approx(result["hit@10"], abs=1e-4)
    assert found["candidates"] != found["masked"]


@pytest.mark.slow
def test_what_brings_no_history_is_told():
    config = toy_config("SASRec", eval_args={"mode": "uni20"})
    _, train, valid, _ = prepare_data(config)
    it = toy("SASRec")
    trainer = build_trainer(config, it.model)
    config["mask_history"] = True  # a run is refused before any data is loaded, a program of a user's own here
    trainer.eval_collector.data_collect(train)
    with pytest.raises(ValueError, match=r"mask_history \[True\] cannot be followed for \[SASRec\]"):
        trainer.evaluate(valid, load_best_model=False)


def test_ranks_are_kept_by_user_and_item_whatever_the_order_of_the_rows():
    rows = {"user": [2, 1, 2, 1], "item": [5, 9, 3, 4], "candidates": [10, 20, 30, 40]}
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        parts = [{key: torch.tensor(values)[order][half] for key, values in rows.items()} for half in ([0, 1], [2, 3])]
        found = _by_user(parts)
        assert found.keys() == {"user", "candidates"}
        assert found["user"].tolist() == [1, 1, 2, 2] and found["candidates"].tolist() == [40, 20, 30, 10]
        assert found["candidates"].dtype == np.uint16

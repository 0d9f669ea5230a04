"""NaN and infinity never pass for a result: in training, evaluation, recommending and analysis."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recbole.utils import get_model, init_seed

from recbole_diffusion import MODELS
from recbole_diffusion.analysis.report import analyse
from recbole_diffusion.compat.checkpoint import load_checkpoint, save_checkpoint
from recbole_diffusion.quick_start import build_trainer, run
from recbole_diffusion.recommend import Recommender, recommend

from ..conftest import ROOT, TINY, toy

pytestmark = pytest.mark.slow

QUIET = {"state": "ERROR", "show_progress": False, "epochs": 1, "limit_train_batches": 1, "data_path": str(ROOT / "dataset")}  # fmt: skip  # noqa: E501
DATA = {"data_path": str(ROOT / "dataset")}
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture
def checkpoint() -> str:
    return run("DiffuRec", "markov-toy", config_dict={**TINY, **QUIET})["model_file"]


def spoil(model: torch.nn.Module, value: float) -> None:
    """Four numbers of the first table of embeddings, of four different items."""
    table = next(module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding) and module.num_embeddings > 60)  # fmt: skip  # noqa: E501
    with torch.no_grad():
        table[2:6, 1] = value


@pytest.mark.parametrize("value", BAD, ids=str)
@pytest.mark.parametrize("model", [*MODELS, "SASRec", "GRU4Rec", "BPR", "LightGCN"])
def test_an_evaluation_of_scores_that_are_no_numbers_is_an_error(model, value):
    parts = toy(model, epochs=1)
    trainer = build_trainer(parts.config, parts.model)
    assert trainer.evaluate(parts.test, load_best_model=False)
    spoil(parts.model, value)
    with pytest.raises(
        ValueError, match=rf"scores of model \[{model}\] are .*(nan|inf)|\[{model}\]: 1 of \d+ parameters"
    ):
        trainer.evaluate(parts.test, load_best_model=False)


@pytest.mark.parametrize("mode", ["uni20", "pop20"])
def test_sampled_candidates_are_checked_as_well(mode):
    args = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": {"valid": mode, "test": mode}}
    parts = toy("SASRec", eval_args=args)
    trainer = build_trainer(parts.config, parts.model)
    spoil(parts.model, float("nan"))
    with pytest.raises(ValueError, match=r"scores of model \[SASRec\] are nan"):
        trainer.evaluate(parts.test, load_best_model=False)


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec"])
def test_parameters_that_overflow_in_the_last_step_end_the_epoch(model):
    parts = toy(model, epochs=1, limit_train_batches=1)
    trainer = build_trainer(parts.config, parts.model)
    trainer.optimizer = torch.optim.SGD(parts.model.parameters(), lr=float("inf"))
    with pytest.raises(ValueError, match=r"after epoch 0: \d+ of \d+ parameters hold NaN or infinity"):
        trainer.fit(parts.train, parts.valid, saved=True, show_progress=False)
    assert not list(Path("saved").glob("*.pth"))


@pytest.mark.parametrize("value", BAD, ids=str)
def test_weights_that_are_no_numbers_are_refused_wherever_they_are_read(checkpoint, value):
    state = load_checkpoint(checkpoint)
    state["state_dict"]["item_embedding.weight"][2:6, 0] = value
    save_checkpoint(state, "bad.pth")
    known = state["other_parameter"]["item_tokens"][1:4]
    for use in (
        lambda: recommend("bad.pth", [known]),
        lambda: analyse("bad.pth", "report", ["popularity"], config_dict=DATA),
        lambda: build_trainer((parts := toy("DiffuRec")).config, parts.model).evaluate(
            parts.test, model_file="bad.pth"
        ),
    ):
        with pytest.raises(ValueError, match=r"model_file \[bad.pth\]: 1 of \d+ parameters.*\[item_embedding.weight\]"):
            use()


def test_recommending_from_scores_that_are_no_numbers_is_an_error(checkpoint):
    recommender = Recommender(checkpoint)
    with torch.no_grad():
        recommender.model.item_embedding.weight[2:6, 0] = torch.nan
    with pytest.raises(ValueError, match=r"scores of model \[DiffuRec\]"):
        list(recommender.stream([recommender.tokens[7:9]]))


def test_generated_embeddings_that_are_no_numbers_end_the_analysis(checkpoint, monkeypatch):
    model = MODELS["DiffuRec"]
    sample_start = model.sample_start
    monkeypatch.setattr(model, "sample_start", lambda self, *args: sample_start(self, *args) / 0.0)
    for section in ("popularity", "seeds", "diversity", "plateau"):
        with pytest.raises(ValueError, match=r"scores of model \[DiffuRec\]"):
            analyse(checkpoint, "report", [section], config_dict=DATA)


def test_a_model_of_no_parameters_is_well():
    assert run("Pop", "markov-toy", config_dict=QUIET)["test_result"]
    init_seed(1, True)
    assert get_model("Pop")

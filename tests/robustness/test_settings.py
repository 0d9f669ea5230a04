"""Every setting of every model with unusual values, alone and together: refused in a line, or it trains."""

from __future__ import annotations

import math
import random
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_diffusion import MODELS
from recbole_diffusion.config.keys import KEYS, MACHINE_KEYS
from recbole_diffusion.quick_start import run

from ..conftest import TINY, toy_config
from .hostile import SETTINGS

CODE = "__import__('os').system('touch trace')"
VALUES = [
    None, True, False, "", "x", CODE, "../../x", -1, 0, 1, 2, 3, 1.5, 10**30, 1e-30, 1e308, -0.5, math.nan, math.inf,
    -math.inf, [], [0], [1, 1], ["x"], {}, {"a": 1}, {"name": "x"}, (1, 2), b"x",
]  # fmt: skip
SHORT = {**TINY, **SETTINGS, "num_steps": 3}
# What starts other programs, or waits for other processes, whatever the value.
LEFT_ALONE = MACHINE_KEYS | {"world_size", "epochs", "pretrain", "pretrain_config", "item_embedding_file"}


def attempt(model: str, values: dict) -> str | None:
    """What is wrong with the end of a tiny training with these values, if anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            toy_config(model, **values)
            if not values.keys() & LEFT_ALONE:
                result = run(model, "markov-toy", config_dict={**SHORT, **values}, saved=False)["test_result"]
                if result is None or not all(map(math.isfinite, result.values())):
                    return f"ends with {result}"
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        return f"says in several lines: {text[:200]}" if "\n" in text else None
    except Exception as error:
        return f"ends in {error!r}"[:300]
    return None


@pytest.mark.probe
@pytest.mark.parametrize("model", MODELS)
def test_no_value_of_a_key_ends_in_a_traceback(model, tried, tmp_path):
    config = toy_config(model)
    keys = sorted((config.final_config_dict.keys() & KEYS.keys()) - {"model", "dataset"})
    draw, bad, number = random.Random(model), [], 0
    for key in keys:
        for value in draw.sample(VALUES, 5):
            number += 1
            wrong = attempt(model, {key: value})
            if wrong:
                bad.append(f"{key} [{value!r}] {wrong}")
    tried(number)
    assert not bad, "\n".join(bad)
    assert not (tmp_path / "trace").exists()


NUMBERS = {
    "hidden_size": st.integers(1, 40),
    "n_heads": st.integers(1, 4),
    "n_layers": st.integers(1, 2),
    "num_steps": st.integers(1, 5),
    "MAX_ITEM_LIST_LENGTH": st.integers(1, 12),
    "train_batch_size": st.integers(1, 600),
    "eval_batch_size": st.integers(1, 600),
    "learning_rate": st.floats(1e-6, 1),
    "weight_decay": st.floats(0, 0.1),
    "hidden_dropout_prob": st.floats(0, 0.99),
    "inference_seeds": st.integers(1, 3),
    "lambda_uncertainty": st.floats(0, 1e3),
    "guidance_scale": st.floats(0, 1e3),
    "mask_history": st.booleans(),
    "ragged": st.booleans(),
    "seen_items": st.sampled_from(["candidates", "learned", "excluded"]),
    "noise_schedule": st.sampled_from(["linear", "cosine", "sqrt", "trunc_linear", "trunc_cosine", "exponential"]),
    "learner": st.sampled_from(["adam", "adamw", "sgd", "adagrad", "rmsprop"]),
    "valid_metric": st.sampled_from(["NDCG@10", "hit@5", "Hit@20"]),
}


@pytest.mark.probe
@pytest.mark.parametrize("model", MODELS)
def test_whole_configurations_train_or_are_refused(model, tried, tmp_path_factory):
    own = {key: values for key, values in NUMBERS.items() if key in toy_config(model).final_config_dict}
    tried(25)

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries({}, optional=own))
    def check(values):
        assert attempt(model, values) is None

    check()

"""The table of keys: it agrees with the code that reads the keys, and refuses what that code cannot use."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import recbole
import yaml

from recbole_diffusion import MODELS
from recbole_diffusion.compat import checkpoint
from recbole_diffusion.config.checks import check_keys, near_keys
from recbole_diffusion.config.keys import CONTINUATION_KEYS, GROUPS, KEYS, MACHINE_KEYS, RECBOLE_KEYS, describe_keys
from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.diffusion_utils import SCHEDULES
from recbole_diffusion.diffusion_utils.ensemble import MAX_SEED
from recbole_diffusion.diffusion_utils.step_samplers import STEP_SAMPLERS
from recbole_diffusion.model.preferdiff import DISTANCES
from recbole_diffusion.modules.augmentations import AUGMENTATIONS
from recbole_diffusion.modules.layers import ACTIVATIONS
from recbole_diffusion.modules.recommender import AMP_DTYPES
from recbole_diffusion.modules.seen import SEEN_ITEMS
from recbole_diffusion.quick_start import build_config
from recbole_diffusion.trainer import LR_SCHEDULES

from ..conftest import toy_config

RECBOLE = Path(recbole.__file__).parent
NUMBERS = [key.name for key in KEYS.values() if key.kind in ("integer", "number")]


def test_every_key_stands_once_with_a_meaning():
    assert len(KEYS) == sum(map(len, GROUPS.values()))
    assert all(key.meaning and key.allowed for key in KEYS.values())
    text = describe_keys()
    assert all(f"\n  {name}: " in f"\n{text}" for name in KEYS)


def test_choices_are_those_of_the_code():
    fields = {field.name: field for field in KEYS["lr_scheduler"].fields}
    for key, known in (
        (KEYS["hidden_act"], ACTIVATIONS),
        (KEYS["noise_schedule"], SCHEDULES),
        (KEYS["step_sampler"], STEP_SAMPLERS),
        (KEYS["amp_dtype"], AMP_DTYPES),
        (KEYS["augmentation"], AUGMENTATIONS),
        (KEYS["seen_items"], SEEN_ITEMS),
        (KEYS["distance"], DISTANCES),
        (fields["name"], LR_SCHEDULES),
    ):
        assert list(key.choices) == list(known), key.name
    options = {"warmup_epochs", *(option for options in LR_SCHEDULES.values() for option in options)}
    assert fields.keys() == {"name", *options}
    assert KEYS["inference_seeds"].high == MAX_SEED


@pytest.mark.parametrize("model", [*MODELS, "SASRec", "Pop", "BPR", "GRU4Rec", "FM"])
def test_every_default_is_allowed(model):
    config = build_config(model, "ml-100k", None, {"state": "ERROR"}).final_config_dict
    check_keys(config, run_only=model not in MODELS)
    assert {"epochs", "learner", "eval_args", "topk"} <= config.keys()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "3", [1], {}, 1j, object], ids=str)
def test_no_number_is_of_another_kind_or_infinite(name, value):
    with pytest.raises(ValueError, match=rf"^{name} \[.*\] must be (an integer|a number)"):
        check_keys({name: value})


@pytest.mark.parametrize("name", [key.name for key in KEYS.values() if key.kind == "flag" and not key.null])
@pytest.mark.parametrize("value", [1, 0, "yes", None, []], ids=str)
def test_a_flag_is_true_or_false(name, value):
    check_keys({name: True})
    with pytest.raises(ValueError, match=rf"^{name} \[.*\] must be True or False\.$"):
        check_keys({name: value})


@pytest.mark.parametrize("name", [key.name for key in KEYS.values() if key.kind == "choice"])
@pytest.mark.parametrize("value", ["nonsense", 3, True, ["linear"]], ids=str)
def test_a_choice_is_one_of_its_words(name, value):
    for choice in KEYS[name].choices:
        check_keys({name: choice})
    with pytest.raises(ValueError, match=rf"^{name} \[.*\] is unknown: choose one of {KEYS[name].choices[0]}, "):
        check_keys({name: value})


@pytest.mark.parametrize(
    "key, good, bad",
    [
        ("learning_rate", [1e-6, 10, np.float32(0.1)], [0, -1, 1e30]),
        ("epochs", [1, np.int64(5)], [0, -1, 2.0]),
        ("stopping_step", [1], [0, 1.5, None]),
        ("ddim_eta", [0, 1], [-0.1, 1.1]),
        ("beta_start", [0.5], [0, 1]),
        ("hidden_dropout_prob", [0, 0.99], [1.0, -0.1]),
        ("metric_decimal_place", [0, 6], [-1, 6.0, 400]),
        ("LIST_SUFFIX", ["_list"], ["", " ", None, 5]),
        ("worker", [0, 8], [-1, 100_000]),
        ("sampling_steps", [None, 3], [0, "all"]),
        ("noised_items", [1, "all"], [0, "last", None]),
        ("inference_seeds", [3, [0, 7], (2**32 - 1,)], [0, True, [], [1, 1], [2**32], [0.5], "three", None]),
        ("topk", [5, [1, 10]], [0, [], [5, 5], [0], "ten", 2.5, (5, 10)]),
        ("metrics", ["MRR", ["Hit", "NDCG"]], [[], 3, [3]]),
        ("learner", ["Adam", "rmsprop"], ["adamm", None]),
        ("state", ["INFO", "error", None], ["loud"]),
        ("data_path", ["x", Path("x")], [3, None]),
        ("weight_decay", [0, 0.3], [1e308, 2.0**63, math.inf, -1]),
        ("clip_grad_norm", [None, {"max_norm": 1.0}], [1.0, {"max_norm": math.inf}, {"max_norn": 1.0}]),
        ("eval_args", [{"group_by": None, "order": "TO"}], ["TO", {"group_by": "usr"}, {"order": "to"}, {"by": 1}]),
        ("eval_args", [{"split": {"RS": [8, 1, 1]}}], [{"split": {"RS": v}} for v in ([-1, 1], [0], [math.nan], 1)]),
        (
            "eval_args",
            [{"split": {"LS": "valid_only"}}, {"split": None}],
            [{"split": {"LS": "x"}}, {"split": {"X": 1}}],
        ),
        ("lr_scheduler", [None, {"name": "step", "gamma": 0.5}], ["step", {"gamma": math.nan}, {"step_size": 0}]),
        ("normalize_all", [None, True, False], [1, "yes"]),
        ("alias_of_item_id", [None, [], ["a"]], ["a", [1], {}]),
        (
            "user_inter_num_interval",
            [None, "[5,inf)", [5, 10], "(1, 2];[4,4]"],
            [5, "5", "[5]", "[6,5]", "", {}, "[x,1]"],
        ),
        ("eval_batch_size", [1, 2**63 - 1], [2**63, 10**400, "x" * 10**5]),
        ("weight_decay", [0, 1], [10**400, -(10**5000)]),
        ("train_neg_sample_args", [None, "None", {"distribution": "uniform"}], ["uniform", 1]),
    ],
)
def test_what_a_key_may_hold(key, good, bad):
    for value in good:
        check_keys({key: value})
    for value in bad:
        with pytest.raises(
            ValueError, match=rf"^{key}[.\w]* \[.*\] (must be|is unknown: choose one of) .*\.$"
        ) as error:
            check_keys({key: value})
        assert len(str(error.value)) < 400


def test_the_wording():
    for config, message in (
        ({"hidden_size": "64"}, "hidden_size ['64'] must be an integer >= 1."),
        ({"learning_rate": 1e30}, "learning_rate [1e+30] must be a number > 0 and <= 10."),
        ({"sampling_steps": 0}, "sampling_steps [0] must be an integer >= 1 or null."),
        ({"amp_dtype": "int8"}, "amp_dtype [int8] is unknown: choose one of bf16, fp16, null."),
        ({"topk": 0}, "topk [0] must be a list of different integers >= 1, or one."),
        ({"eval_args": {"order": "by time"}}, "eval_args.order [by time] is unknown: choose one of RO, TO."),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            check_keys(config)


def test_keys_of_a_model_are_not_those_of_recboles_models():
    check_keys({"sampling_steps": 0, "hidden_size": [64]}, run_only=True)
    with pytest.raises(ValueError, match="epochs"):
        check_keys({"epochs": 0}, run_only=True)


@pytest.mark.parametrize(
    "name, near",
    [
        ("batch_size", ["train_batch_size", "eval_batch_size"]),
        ("LR", ["learning_rate"]),
        ("max_item_list_length", ["MAX_ITEM_LIST_LENGTH"]),
        ("hidden_sise", ["hidden_size"]),
        ("foo", []),
    ],
)
def test_near_keys_come_in_the_order_of_what_is_meant(name, near):
    assert near_keys(name, KEYS)[: len(near) or 1] == near


def test_the_keys_that_recboles_source_reads_are_known():
    """RecBole reads some keys that none of its files of defaults names: they must pass."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in RECBOLE.rglob("*.py"))
    read = set(re.findall(r"""\bconfig\[["'](\w+)["']\]""", source))
    read |= set(re.findall(r"""["'](\w+)["'] (?:not )?in (?:self\.)?(?:final_config_dict|config)\b(?!\[)""", source))
    read |= set(re.findall(r"""final_config_dict(?:\.get\(|\[)["'](\w+)["']""", source))
    files = [path for path in (RECBOLE / "properties").rglob("*.yaml") if "url" not in path.name]
    named = {key for path in files for key in yaml.safe_load(path.read_text()) or {}}
    assert len(read) > 300
    unknown = read - named - RECBOLE_KEYS - KEYS.keys()
    assert unknown == set()
    assert not RECBOLE_KEYS - read - {"config_file", "offset"}, "no longer read"


def test_every_key_of_every_recbole_model_passes_for_it(recwarn):
    for path in sorted((RECBOLE / "properties" / "model").glob("*.yaml")):
        values = yaml.safe_load(path.read_text()) or {}
        values = {key: value for key, value in values.items() if key != "train_neg_sample_args"}
        try:
            build_config(path.stem, "markov-toy", None, {**values, "state": "ERROR"})
        except (ImportError, RuntimeError):  # xgboost, lightgbm; metrics of another kind
            continue
    assert not [str(one.message) for one in recwarn if "no effect" in str(one.message)]


def test_what_no_result_depends_on():
    assert {"data_path", "checkpoint_dir", "resume", "device", "local_rank", "dataset_save_path"} <= MACHINE_KEYS
    assert CONTINUATION_KEYS - MACHINE_KEYS == {"epochs"}
    assert not {"seed", "learning_rate", "num_steps", "world_size", "logits_chunk"} & CONTINUATION_KEYS


def test_settings_are_the_same_whoever_holds_them(tmp_path):
    config = toy_config("DiffuRec", inference_seeds=(1, 2), checkpoint_dir=tmp_path)
    checkpoint.save_checkpoint({"config": config, "state_dict": {}}, tmp_path / "some.pth")
    loaded = checkpoint.load_checkpoint(tmp_path / "some.pth")["config"]
    assert result_settings(loaded) == result_settings(config)
    assert result_settings(config)["inference_seeds"] == [1, 2] and "checkpoint_dir" not in result_settings(config)

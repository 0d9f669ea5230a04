"""RecBole's own functions know every model by name, with the right parameters; adding a model is cheap."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest
import recbole.trainer
import yaml
from recbole.config import Config
from recbole.utils import get_model, get_trainer

import recbole_diffusion
from recbole_diffusion import MODELS, registry
from recbole_diffusion.config.keys import KEYS
from recbole_diffusion.quick_start import build_config
from recbole_diffusion.trainer import DiffusionTrainer

from .conftest import ROOT, toy, toy_config

PACKAGE = ROOT / "recbole_diffusion"
QUIET = {"state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset")}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_recbole_finds_model_and_trainer(name):
    assert get_model(name) is MODELS[name]
    assert get_trainer(MODELS[name].type, name) is DiffusionTrainer
    assert isinstance(Config(name, "ml-100k")["hidden_size"], int)


@pytest.mark.slow
def test_recbole_quick_start_and_case_study_know_the_models():
    from recbole.quick_start import load_data_and_model, run_recbole
    from recbole.utils.case_study import full_sort_topk

    shutil.copytree(ROOT / "dataset", "dataset")  # where RecBole looks: a checkpoint chooses no folder
    result = run_recbole(
        model="DiffuRec",
        dataset="markov-toy",
        config_dict={**QUIET, "data_path": "dataset", "epochs": 1, "limit_train_batches": 2, "num_steps": 4},
    )
    assert set(result["test_result"]) == {f"{m}@{k}" for m in ("hit", "ndcg") for k in (5, 10, 20)}
    [file] = [path for path in Path("saved").glob("DiffuRec-*.pth") if "-last" not in path.name]
    config, model, dataset, _, _, test = load_data_and_model(str(file), {"data_path": QUIET["data_path"]})
    values, items = full_sort_topk([1, 2, 3], model, test, k=5)
    assert items.shape == (3, 5) and (items > 0).all() and values.isfinite().all()


@pytest.mark.slow
def test_recbole_hyper_tuning_runs_our_models():
    from recbole.quick_start import objective_function
    from recbole.trainer import HyperTuning

    fixed = {
        **QUIET, "model": "DiffuRec", "dataset": "markov-toy", "epochs": 1, "limit_train_batches": 1, "num_steps": 4
    }  # fmt: skip
    tuning = HyperTuning(
        lambda config, files: objective_function({**fixed, **config}, files),
        params_dict={"choice": {"learning_rate": [0.001, 0.002]}},
    )
    tuning.run()
    assert len(tuning.score_list) == 2


def test_other_recbole_runs_are_left_alone():
    config = Config("BPR", "ml-100k")
    assert config["metrics"] == ["Recall", "MRR", "NDCG", "Hit", "Precision"] and config["topk"] == [10]
    assert not any(key in config for key in ("num_steps", "ragged"))


def test_the_user_stands_above_dataset_above_model_above_what_models_share_above_protocol(tmp_path, monkeypatch):
    props = tmp_path / "props"
    (props / "dataset").mkdir(parents=True)
    keys = ("topk", "epochs", "stopping_step", "eval_step", "train_batch_size", "eval_batch_size", "seed")

    def write(file, number):
        """All keys but those of the files before it."""
        path, ours = props / f"{file}.yaml", ROOT / "props" / f"{file}.yaml"
        base = yaml.safe_load(ours.read_text()) if ours.is_file() else {}
        base = {key: value for key, value in base.items() if key not in keys}
        own = {key: [number] if key == "topk" else number for key in keys[number - 1 :]}
        path.write_text(yaml.safe_dump({**base, "metrics": ["MRR"], "valid_metric": "MRR@1", **own}))

    for number, file in enumerate(("protocol", "common", "diffusion", "DiffuRec", "dataset/ml-100k"), start=1):
        write(file, number)
    (tmp_path / "user.yaml").write_text("{eval_batch_size: 6, seed: 6}")
    monkeypatch.setattr(registry, "PROPS", props)
    config = Config("DiffuRec", "ml-100k", [str(tmp_path / "user.yaml")], {"seed": 7})
    assert [config[key] for key in keys] == [[1], 2, 3, 4, 5, 6, 7]
    sources = registry.value_sources(config, [str(tmp_path / "user.yaml")])
    files = [f"props/{name}.yaml" for name in ("protocol", "common", "diffusion", "DiffuRec", "dataset/ml-100k")]
    assert [sources[key] for key in keys] == [*files, str(tmp_path / "user.yaml"), "argument"]


@pytest.mark.parametrize("dataset", ["ml-1m", "amazon-beauty", "amazon-toys-games", "any-other"])
@pytest.mark.parametrize("model", ["DiffuRec", "SASRec", "Pop"])
def test_every_model_sees_the_papers_protocol(model, dataset):
    from recbole_diffusion.quick_start import build_config

    config = build_config(model, dataset)
    assert config["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert config["eval_args"]["split"] == {"LS": "valid_and_test"} and config["eval_args"]["order"] == "TO"
    assert config["eval_args"]["mode"] == {"valid": "full", "test": "full"}
    assert config["topk"] == [5, 10, 20] and config["valid_metric"] == "NDCG@10" and config["repeatable"]
    core = "[5,inf)" if dataset.startswith("amazon") else "[0,inf)"
    assert config["user_inter_num_interval"] == config["item_inter_num_interval"] == core
    assert config["MAX_ITEM_LIST_LENGTH"] == 50


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec"])
def test_what_is_said_of_the_protocol_leaves_the_rest_of_it(model):
    said = {"mode": "uni20", "order": "TO"}
    found = build_config(model, "ml-100k", None, {"state": "ERROR", "eval_args": said})["eval_args"]
    assert found["split"] == {"LS": "valid_and_test"} and found["group_by"] == "user" and found["order"] == "TO"
    assert found["mode"] == {"valid": "uni20", "test": "uni20"}
    found = build_config(model, "ml-100k", None, {"state": "ERROR", "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}})
    assert found["eval_args"]["split"] == {"RS": [0.8, 0.1, 0.1]} and found["eval_args"]["order"] == "TO"


def test_load_col_follows_the_users_field_names():
    config = toy_config("DiffuRec", TIME_FIELD="when", USER_ID_FIELD="who")
    assert config["load_col"] == {"inter": ["who", "item_id", "when"]}
    assert toy_config("DiffuRec", load_col={"inter": ["user_id"]})["load_col"] == {"inter": ["user_id"]}


def test_recbole_models_keep_the_columns_they_need():
    config = build_config("SASRecF", "ml-100k", None, {"state": "ERROR"})
    assert config["load_col"]["item"] == ["item_id", "release_year", "class"]
    assert {"user_id", "item_id", "timestamp"} <= set(config["load_col"]["inter"])
    assert {"kg", "link"} <= set(build_config("KGAT", "ml-100k", None, {"state": "ERROR"})["load_col"])
    assert build_config("FM", "ml-100k", None, {"state": "ERROR"})["eval_args"]["mode"] == {
        "valid": "labeled",
        "test": "labeled",
    }


def test_a_config_file_says_what_differs_for_one_model(tmp_path):
    file = tmp_path / "some.yaml"
    own = "{epochs: 7, hidden_size: 16, n_layers: 3, train_neg_sample_args: ~}"
    file.write_text(f"epochs: 4\nhidden_size: 32\nper_model: {{SASRec: {own}}}\n")
    common = {"config_file_list": [str(file)], "dataset": "markov-toy"}
    sasrec = Config("SASRec", config_dict={"hidden_size": 8, "n_heads": 2}, **common)
    assert [sasrec[key] for key in ("epochs", "hidden_size", "n_layers")] == [7, 8, 3]
    assert [Config("DiffuRec", **common)[key] for key in ("epochs", "hidden_size", "n_layers")] == [4, 32, 4]


@pytest.mark.parametrize("text", ["per_model: 3", "per_model: {SASRec: 3}", "per_model: {SASRek: {epochs: 3}}"])
def test_a_wrong_per_model_is_named(tmp_path, text):
    file = tmp_path / "some.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"per_model \[.*\] must map|model \[SASRek\] is unknown"):
        Config("DiffuRec", "markov-toy", config_file_list=[str(file)])


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec", "Pop", "FM"])
@pytest.mark.parametrize(
    "key, near",
    [
        ("batch_size", r"did you mean train_batch_size or eval_batch_size\?"),
        ("lr", r"did you mean learning_rate\?"),
        ("learning_rat", r"did you mean learning_rate\?"),
        ("max_item_list_length", "did you mean MAX_ITEM_LIST_LENGTH or"),
        ("foo", r"\. Keys that nothing reads"),
    ],
)
def test_a_key_that_nothing_reads_ends_a_run_and_is_warned_of_in_recboles_own_scripts(model, key, near):
    said = {key: 3, "train_neg_sample_args": None}
    with pytest.raises(ValueError, match=rf"^{key} \[3\] is unknown.*{near}"):
        build_config(model, "markov-toy", None, said)
    with pytest.warns(UserWarning, match=rf"{key} \[3\] is unknown.*{near}"):
        assert Config(model, "markov-toy", config_dict=said)[key] == 3
    assert build_config(model, "markov-toy", None, {**said, "allow_unknown_keys": True})[key] == 3


def test_a_key_that_other_models_read_is_warned_of():
    with pytest.warns(UserWarning, match=r"num_steps \[3\] has no effect on SASRec"):
        toy_config("SASRec", num_steps=3)
    with pytest.warns(
        UserWarning, match=r"dropout \[0.3\] has no effect on DiffuRec: did you mean hidden_dropout_prob"
    ):
        toy_config("DiffuRec", dropout=0.3)


IDLE = [
    ("SeqDiffRec", {"sampling_steps": 2}, {"inference": "reverse"}),
    ("SeqDiffRec", {"valid_sampling_steps": 2}, {"inference": "reverse"}),
    ("DreamRec", {"ddim_eta": 0.5}, {"sampler": "ddim"}),
    ("DiffuRec", {"positions_from": "end"}, {"use_position_embedding": True}),
    ("ADRec", {"n_decoder_layers": 6}, {"decoder": "attention"}),
    ("SASRecPlus", {"n_sampled_items": 5}, {"item_loss": "sampled"}),
    ("SASRecPlus", {"seen_buckets": 2}, {"seen_items": "learned"}),
    ("SASRecPlus", {"amp_dtype": "fp16"}, {"enable_amp": True}),
    ("PreferDiff", {"initializer_range": 0.5}, {"initializer": "normal"}),
    ("DiffuRec", {"beta_end": 0.5}, {"noise_schedule": "linear"}),
    ("DreamRec", {"beta_min": 0.5}, {"noise_schedule": "exponential"}),
]
UNREAD = [
    ("ADRec", {"independent_steps": False}, {"lambda_uncertainty": 0}),
    ("PreferDiff", {"negatives": "sampled"}, {"generation_weight": 1}),
    ("SASRecPlus", {"freeze_mode": "decay"}, {"freeze_embedding_epochs": 0}),
    ("SASRecPlus", {"pretrain_config": {"epochs": 3}}, {"pretrain": None}),
]


@pytest.mark.parametrize("model, said, read", IDLE, ids=str)
def test_a_key_that_another_leaves_unread_is_warned_of_and_its_default_is_not(model, said, read, recwarn):
    [(key, value), (other, needed)] = [*said.items(), *read.items()]
    otherwise = {"ADRec": {"decoder": "mlp"}}.get(model, {})
    config = toy_config(model, **otherwise, **said)
    found = [str(one.message) for one in recwarn if "no effect where" in str(one.message)]
    assert found == [f"{key} [{value}] has no effect where {other} is [{config[other]}], only where it is [{needed}]."]
    recwarn.clear()
    toy_config(model, **said, **read)
    toy_config(model, **otherwise, **{key: toy_config(model)[key]})
    assert not [one for one in recwarn if "no effect where" in str(one.message)]


@pytest.mark.parametrize("model, said, under", UNREAD, ids=str)
def test_a_key_that_one_value_of_another_leaves_unread_is_warned_of(model, said, under, recwarn):
    [(key, value), (other, at)] = [*said.items(), *under.items()]
    toy_config(model, **said, **under)
    found = [str(one.message) for one in recwarn if "no effect where" in str(one.message)]
    assert found == [f"{key} [{value}] has no effect where {other} is [{at}]."]
    recwarn.clear()
    toy_config(model, **said, **{other: {"pretrain": "SASRecPlus", "freeze_embedding_epochs": 2}.get(other, 0.5)})
    assert not [one for one in recwarn if "no effect where" in str(one.message)]


@pytest.mark.filterwarnings("ignore:.* has no effect on")
def test_a_key_without_effect_has_none():
    """Layers that models share would read it."""
    for model, key, value in (("PreferDiff", "use_position_embedding", False), ("SeqDiffRec", "act_dropout_prob", 0.5)):
        assert key not in toy(model, **{key: value}).config


def test_what_a_model_reads_is_not_warned_of(recwarn):
    toy_config("DiffuRec", num_steps=3, alias_of_item_id=["item_id"], encoding="utf-8", limit_train_batches=1)
    toy_config("SASRec", hidden_size=8, hidden_dropout_prob=0.1, lr_scheduler={"name": "constant"}, dataset="x")
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize("name, near", [("diffurec", "DiffuRec"), ("DifuRecSys", "DiffuRecSys"), ("sasrec", "SASRec")])
def test_an_unknown_model_gets_near_names(name, near):
    with pytest.raises(ValueError, match=rf"model \[{name}\] is unknown\. Did you mean .*\b{near}\b"):
        registry.check_model_name(name)


@pytest.mark.slow
def test_adding_a_model_is_one_file_one_yaml_one_line(tmp_path, monkeypatch):
    """A new model file and its YAML, and an entry in MODELS: RecBole's functions train it."""
    (tmp_path / "newmodel.py").write_text(
        textwrap.dedent('''
        """A model like DiffuRec under another name."""
        from recbole_diffusion.modules.approximator import ApproximatorRecommender
        from recbole_diffusion.modules.layers import TransformerEncoder


        class NewModel(ApproximatorRecommender):
            def build_approximator(self, config):
                return TransformerEncoder(config, norm_first=True, causal=False)

            def restore(self, h, injected, layout):
                return self.approximator(h + injected, layout, last_only=True)
        ''')
    )
    props = tmp_path / "props"
    props.mkdir()
    for name in ("protocol", "common", "diffusion", "DiffuRec"):
        text = (ROOT / "props" / f"{name}.yaml").read_text()
        (props / f"{name.replace('DiffuRec', 'NewModel')}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "PROPS", props)
    monkeypatch.setitem(MODELS, "NewModel", importlib.import_module("newmodel").NewModel)
    monkeypatch.setitem(sys.modules, "recbole.model.sequential_recommender.newmodel", None)
    monkeypatch.setattr(recbole.trainer, "NewModelTrainer", None, raising=False)
    registry.register()
    from recbole.quick_start import run_recbole

    result = run_recbole("NewModel", "markov-toy", config_dict={**QUIET, "epochs": 1, "limit_train_batches": 1})
    assert result["test_result"]


def test_registering_twice_wraps_once():
    before = Config._load_internal_config_dict
    registry.register()
    assert Config._load_internal_config_dict is before


# ---------------------------------------------------------------- the rules of the house


def test_every_model_file_is_registered_and_has_its_props():
    files = {path.stem for path in (PACKAGE / "model").glob("*.py")} - {"__init__"}
    assert files == {name.lower() for name in MODELS}
    for name in MODELS:
        assert (registry.PROPS / f"{name}.yaml").is_file()


NOT_OF_A_MODEL = ("protocol", "quick_start", "tuned")
PROPS_FILES = sorted(path for path in (ROOT / "props").glob("*.yaml") if path.stem not in NOT_OF_A_MODEL)


def test_shared_props_hold_no_key_that_a_model_does_not_read_and_no_model_repeats_them():
    shared = {name: registry.read_yaml(ROOT / "props" / f"{name}.yaml") for name in ("common", "diffusion")}
    assert not shared["common"].keys() & shared["diffusion"].keys()
    assert "num_steps" not in shared["common"] and "sampler" not in shared["common"]
    assert "sampler" not in build_config("CDDRec", "markov-toy")


@pytest.mark.parametrize("path", PROPS_FILES, ids=lambda path: path.stem)
def test_every_key_of_a_props_file_is_commented_and_read(path):
    source = "\n".join(file.read_text() for file in PACKAGE.rglob("*.py"))
    recbole_keys = {key for keys in Config("SASRec", "ml-100k", config_dict={"train_neg_sample_args": None}).parameters.values() for key in keys}  # fmt: skip  # noqa: E501
    recbole_keys |= {"MAX_ITEM_LIST_LENGTH", "enable_amp", "enable_scaler"}
    for line in path.read_text().splitlines():
        if match := re.match(r"(\w+):", line):
            assert "#" in line, f"{path.name}: {match[1]} has no comment"
            assert match[1] in KEYS, f"{path.name}: {match[1]} is not in the table of keys"
            assert match[1] in recbole_keys or f'"{match[1]}"' in source, f"{path.name}: nothing reads {match[1]}"


def test_version_is_one():
    assert recbole_diffusion.__version__ == "0.1.0"

"""The script as a user runs it, and what bad input answers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config

from recbole_diffusion.quick_start import build_config, prepare_data, run

from .conftest import ROOT, TINY, toy_config

SCRIPT = [sys.executable, "-W", "ignore", str(ROOT / "run_recbole_diffusion.py")]


def script(*args, cwd):
    return subprocess.run([*SCRIPT, *args], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_script_trains_on_ml_100k_and_prints_its_metrics(tmp_path):
    quick = f"--config_files={ROOT / 'props' / 'quick_start.yaml'}"
    short = ("--epochs=1", "--limit_train_batches=3", "--sampling_steps=2")
    done = script("-m", "DiffuRecSys", "-d", "ml-100k", quick, *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "Test metrics of DiffuRecSys on ml-100k (1 epoch)" in lines
    assert [line.split()[0] for line in lines if "@" in line][-6:] == [
        f"{metric}@{k}" for metric in ("hit", "ndcg") for k in (5, 10, 20)
    ]
    file = next(line.split(": ")[1] for line in lines if line.startswith("Checkpoint: "))
    assert (tmp_path / file).is_file()


@pytest.mark.slow
def test_help_lists_the_models(tmp_path):
    from recbole_diffusion import MODELS

    done = script("--help", cwd=tmp_path)
    assert done.returncode == 0 and all(f"\n  {name} " in done.stdout for name in MODELS)
    assert "--help_keys" in done.stdout
    done = script("--help_keys", cwd=tmp_path)
    assert done.returncode == 0 and "  learning_rate: a number > 0 and <= 10\n" in done.stdout


@pytest.mark.slow
def test_print_config_names_the_source_of_each_value(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "epochs: 7\nseed: 3\nlearning_rate: 0.1\nper_model: {CDDRec: {n_heads: 2}, SASRec: {n_heads: 1}}\n"
    )
    args = ["--model=CDDRec", "--dataset=amazon-beauty", "--config_files=mine.yaml", "--learning_rate=0.2"]
    done = script(*args, "--print_config", cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    found = {line.split(": ")[0]: line.split("  # ")[1] for line in done.stdout.splitlines()}
    values = yaml.safe_load(done.stdout)
    for key, value, source in (
        ("eval_step", 1, "RecBole"),
        ("topk", [5, 10, 20], "props/protocol.yaml"),
        ("ragged", True, "props/common.yaml"),
        ("num_steps", 20, "props/CDDRec.yaml"),
        ("item_inter_num_interval", "[5,inf)", "props/dataset/amazon-beauty.yaml"),
        ("epochs", 7, "mine.yaml"),
        ("n_heads", 2, "mine.yaml, per_model"),
        ("learning_rate", 0.2, "command line"),
        ("load_col", {"inter": ["user_id", "item_id", "timestamp"]}, "recbole_diffusion"),
    ):
        assert (values[key], found[key]) == (value, source), key
    args = {"epochs": 7, "seed": 3, "n_heads": 2, "learning_rate": 0.2}
    config = build_config("CDDRec", "amazon-beauty", None, args)
    assert values.keys() - {"config_files"} == set(config.final_config_dict)
    assert not list(tmp_path.glob("saved*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["--model=DifuRec"], "Did you mean DiffuRec"),
        (["--epochs", "3"], "write parameters as --key=value"),
        (["--num_steps=0"], "num_steps"),
        (["--batch_size=64"], "batch_size [64] is unknown: did you mean train_batch_size or"),
        (["--model=SASRec", "--lr=1"], "lr [1] is unknown: did you mean learning_rate?"),
        (["--config_files=nothing.yaml"], "nothing.yaml"),
        (["--dataset=not-a-dataset"], "not-a-dataset.inter"),
        (["--resume=nothing.pth", "--limit_train_batches=1"], "nothing.pth"),
        (["--epochs=3", "--epochs=4"], "--epochs is given 2 times"),
        ([f"--config_files={ROOT / 'README.md'}"], "README.md] is no YAML"),
        (["--device=cuda"], "device [cuda] cannot be given: gpu_id [0] names the GPUs"),
        (["--log_wandb"], "log_wandb [True] needs the package wandb"),
    ],
)
def test_the_script_names_what_is_wrong_without_a_traceback(tmp_path, args, message):
    done = script(*args, cwd=tmp_path)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
    assert "usage: " in done.stderr or len(done.stderr.splitlines()) <= 8  # what runs, and one error


@pytest.mark.parametrize("text", ["", "just words\n", "- a\n- list\n", "a: [1\n"])
def test_a_file_of_no_parameters_is_named(tmp_path, text):
    (tmp_path / "some.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config_files \[some.yaml\] (must hold keys and values|is no YAML)"):
        build_config("DiffuRec", "markov-toy", ["some.yaml"])


def test_a_config_file_may_decline_the_papers_protocol(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("paper_protocol: False\ntrain_neg_sample_args: ~\n")
    assert build_config("SASRec", "markov-toy", [file])["valid_metric"] == "MRR@10"
    assert build_config("SASRec", "markov-toy", [file], {"paper_protocol": True})["valid_metric"] == "NDCG@10"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_warned_of(recwarn):
    with pytest.warns(UserWarning, match=r"gpu_id \[7\] is no GPU that PyTorch sees: this runs on the CPU"):
        toy_config("DiffuRec", gpu_id=7)
    recwarn.clear()
    toy_config("DiffuRec", gpu_id="")
    toy_config("DiffuRec")
    assert not recwarn.list


@pytest.mark.parametrize(
    "model, message",
    [
        ("FM", r"has no column label, which \[FM\] learns: .* LABEL_FIELD, .* threshold"),
        ("SASRecF", r"selected_features \[class\] of \[SASRecF\] are no columns of dataset \[markov-toy\]"),
    ],
)
def test_a_column_that_a_model_needs_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        prepare_data(toy_config(model))


BAD = [
    ("transform", "mask_itemseq", "null"),
    ("noise_schedule", "linaer", "trunc_linear"),
    ("sampler", "euler", "ddpm"),
    ("inference", "two_step", "one_step"),
    ("step_sampler", "random", "loss_aware"),
    ("learner", "adamm", "adamw"),
    ("num_steps", 0, "num_steps"),
    ("num_steps", 2.5, "num_steps"),
    ("sampling_steps", 33, "32"),
    ("sampling_steps", 0, "sampling_steps"),
    ("hidden_size", 30, "n_heads"),
    ("hidden_dropout_prob", -0.1, "hidden_dropout_prob"),
    ("attn_dropout_prob", 1.0, "attn_dropout_prob"),
    ("emb_dropout_prob", "much", "emb_dropout_prob"),
    ("inference_seeds", [], "inference_seeds"),
    ("inference_seeds", 0, "inference_seeds"),
    ("inference_seeds", "three", "inference_seeds"),
    ("train_neg_sample_args", {"distribution": "uniform", "sample_num": 1}, "train_neg_sample_args"),
    ("hidden_act", "sine", "gelu"),
    ("initializer", "zeros", "xavier"),
    ("ddim_eta", 2, "ddim_eta"),
    ("ragged", "maybe", "ragged"),
    ("lambda_uncertainty", -1, "lambda_uncertainty"),
    ("beta_end", 2.0, "beta_end"),
    ("beta_start", "x", "beta_start"),
    ("learner", "sparse_adam", "adamw"),
    ("noise_schedule", ["linear"], "trunc_linear"),
    ("step_sampler", ["uniform"], "loss_aware"),
    ("hidden_act", ["gelu"], "gelu"),
    ("amp_dtype", ["bf16"], "bf16"),
    ("valid_metric", "NDCG@7", "topk"),
    ("valid_metric", "NDCG", "such as NDCG@5"),
    ("metrics", ["Recall"], "valid_metric"),
    ("initializer_range", float("nan"), ">= 0"),
    ("seed", -1, "from 0"),
]
# RecBole's own models run into these as well, and RecBole lets them pass or ends in a traceback.
BAD_IN_ANY_RUN = [
    ("epochs", 0, ">= 1"),
    ("epochs", "ten", ">= 1"),
    ("stopping_step", 0, ">= 1"),
    ("stopping_step", 2.5, ">= 1"),
    ("learning_rate", 1e30, "<= 10"),
    ("learning_rate", "fast", "<= 10"),
    ("learning_rate", float("nan"), "> 0"),
    ("weight_decay", float("inf"), ">= 0"),
    ("weight_decay", -0.1, ">= 0"),
    ("train_batch_size", 0, ">= 1"),
    ("eval_batch_size", 1.5, ">= 1"),
    ("enable_amp", 1, "True or False"),
    ("metric_decimal_place", -1, "from 0 to 15"),
    ("metrics", ["Hits", "NDCG"], "ndcg"),
    ("metrics", "[Hit,NDCG]", 'a list has quotes: ["Hit","NDCG"]'),
    ("metrics", ["NDCG", "AUC"], "ndcg"),
    ("topk", [0, 10], ">= 1"),
    ("topk", "ten", ">= 1"),
    ("clip_grad_norm", {"max_norm": float("nan")}, "> 0"),
    ("lr_scheduler", {"name": "step", "gamma": float("inf")}, ">= 0"),
    ("eval_args", {"order": "TO", "split": {"LS": "valid_and_test"}, "group_by": "usr"}, "user"),
    ("show_progress", "sometimes", "True or False"),
]


@pytest.mark.parametrize("key, value, allowed", BAD, ids=[f"{key}={value}" for key, value, _ in BAD])
@pytest.mark.parametrize("model", ["DiffuRec", "DiffuRecSys"])
def test_a_bad_parameter_is_named_before_any_data_is_loaded(model, key, value, allowed):
    with pytest.raises(ValueError, match=key) as error:
        build_config(model, "no-such-dataset", None, {"n_heads": 4, key: value})
    assert allowed in str(error.value)


@pytest.mark.parametrize("key, value, allowed", BAD_IN_ANY_RUN, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("model", ["CDDRec", "SASRec", "BPR"])
def test_a_bad_parameter_of_a_run_is_named_whatever_the_model(model, key, value, allowed):
    with pytest.raises(ValueError, match=rf"^{key}[.\w]* \[.*\] (must|is unknown: choose one of)") as error:
        build_config(model, "no-such-dataset", None, {key: value})
    assert allowed in str(error.value)


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec"])
def test_a_masked_history_needs_all_items_ranked(model):
    keys = {"mask_history": True, "eval_args": {"mode": {"valid": "uni20", "test": "full"}}}
    with pytest.raises(ValueError, match=r"mask_history \[True\] needs eval_args with the mode full"):
        build_config(model, "no-such-dataset", None, keys)


@pytest.mark.parametrize("key, value", [("beta_start", 0.0), ("beta_end", 1.0), ("beta_start", 0.5)])
def test_betas_outside_the_unit_interval_are_named(key, value):
    with pytest.raises(ValueError, match="beta_"):
        toy_config("DiffuRec", noise_schedule="linear", **{key: value})


def test_numpy_integers_are_integers_too():
    assert toy_config("DiffuRec", hidden_size=np.int64(16), hidden_dropout_prob=np.float32(0.1))["hidden_size"] == 16


def write_dataset(folder, header: str, rows) -> Config:
    """A dataset of the name shop, as RecBole reads it, and a tiny model's config for it."""
    (folder / "shop").mkdir()
    lines = [header.replace(" ", "\t"), *("\t".join(map(str, row)) for row in rows)]
    (folder / "shop" / "shop.inter").write_text("\n".join(lines) + "\n")
    return build_config("DiffuRec", "shop", None, {**TINY, "data_path": str(folder), "state": "ERROR"})


def test_columns_that_cannot_be_used_as_they_are_loaded_are_named(tmp_path):
    (tmp_path / "shop").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\trating:float"
    lines = [header, "a\tx\t1\t5", "a\ty\t2\t3", "a\tz\t3\t4"]
    (tmp_path / "shop" / "shop.inter").write_text("\n".join(lines) + "\n")
    common = {**TINY, "data_path": str(tmp_path), "state": "ERROR"}
    bad = {**common, "load_col": {"inter": ["user_id", "item_id"]}}
    with pytest.raises(ValueError, match=r"load_col .* must hold timestamp as well"):
        prepare_data(build_config("DiffuRec", "shop", None, bad))
    bad = {**common, "numerical_features": ["timestamp"]}
    with pytest.raises(ValueError, match=r"numerical_features .* must not hold timestamp"):
        prepare_data(build_config("DiffuRec", "shop", None, bad))
    bad = {**common, "eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"}
    with pytest.raises(ValueError, match=r"mode \[labeled\] needs the column label .*LABEL_FIELD"):
        prepare_data(build_config("SASRec", "shop", None, {**bad, "loss_type": "CE", "paper_protocol": True}))


def test_metrics_of_whole_lists_are_measured():
    names = ["NDCG", "GiniIndex", "ItemCoverage", "AveragePopularity", "TailPercentage", "ShannonEntropy"]
    keys = {**TINY, "metrics": names, "epochs": 1, "limit_train_batches": 2, "eval_batch_size": 500, "state": "ERROR"}
    found = run("SASRecPlus", "markov-toy", None, {**keys, "data_path": str(ROOT / "dataset")}, saved=False)
    for result in found["test_results"].values():
        assert 0 < result["itemcoverage@10"] <= 1 and 0 < result["giniindex@10"] < 1
        assert result["averagepopularity@10"] > 0 and len(result) == 3 * len(names)


@pytest.mark.parametrize(
    "header, missing",
    [
        ("uid:token sku:token ts:float", "user_id nor item_id nor timestamp"),
        ("user_id:token sku:token timestamp:float", "item_id"),
        ("user_id:token item_id:token", "timestamp"),
    ],
)
def test_a_missing_column_is_named_with_those_there(tmp_path, header, missing):
    config = write_dataset(tmp_path, header, [(1, 2, 3)])
    with pytest.raises(ValueError, match=rf"no column {missing}: .*{header.split()[1].split(':')[0]}.*TIME_FIELD"):
        prepare_data(config)


def test_one_interaction_a_user_is_too_few(tmp_path):
    config = write_dataset(tmp_path, "user_id:token item_id:token timestamp:float", [(u, u % 5, 0) for u in range(20)])
    with pytest.raises(ValueError, match="no user has two interactions"):
        prepare_data(config)


@pytest.mark.slow
def test_two_interactions_a_user_train_and_leave_no_test(tmp_path):
    rows = [(user, (user + k) % 7, k) for user in range(30) for k in range(2)]
    write_dataset(tmp_path, "user_id:token item_id:token timestamp:float", rows)
    few = ("--epochs=1", "--topk=[5]", "--valid_metric=NDCG@5")  # there are 7 items
    done = script("--model=DiffuRec", "--dataset=shop", f"--data_path={tmp_path}", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "leaves no test data" in done.stdout


def test_a_missing_dataset_says_where_to_put_it(tmp_path):
    config = build_config("DiffuRec", "my-shop", None, {"data_path": str(tmp_path), "state": "ERROR"})
    with pytest.raises(FileNotFoundError, match=r"my-shop.inter.*user_id:token, item_id:token, timestamp:float"):
        prepare_data(config)
    # A folder left behind by a download that broke off is no dataset either.
    (tmp_path / "my-shop").mkdir()
    with pytest.raises(FileNotFoundError, match="my-shop.inter"):
        prepare_data(config)


def test_a_known_dataset_without_network_says_so_too(tmp_path, monkeypatch):
    import urllib.request

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    config = build_config("DiffuRec", "ml-1m", None, {"data_path": str(tmp_path), "state": "ERROR"})
    with pytest.raises(FileNotFoundError, match="no network.*ml-1m.inter"):
        prepare_data(config)


def test_more_processes_than_gpus_or_cores_are_refused():
    with pytest.raises(ValueError, match=r"nproc \[9999\]"):
        run("DiffuRec", "markov-toy", None, {"data_path": str(ROOT / "dataset"), "state": "ERROR"}, nproc=9999)

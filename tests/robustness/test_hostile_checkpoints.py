"""A checkpoint from somebody else chooses no file, folder, host or code, and is refused in one line."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.compat.plain import from_plain
from recbole_diffusion.quick_start import build_config, load_data_and_model, prepare_training
from recbole_diffusion.recommend import Recommender

from ..conftest import TINY
from .hostile import DATA, SETTINGS, Touch, changed, dump_touch, train, watched  # noqa: F401

pytestmark = pytest.mark.slow

KNOWN = ["1", "2"]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def good_last(good) -> Path:
    return good.with_name(f"{good.stem}-last.pth")


@pytest.fixture(scope="module")
def good_sasrec(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("sasrec"), "SASRec")


@pytest.fixture(scope="module")
def good_ease(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("ease"), "EASE")


def refused(use, file: Path, message: str) -> None:
    """``use()`` ends within seconds in one line with the file's name."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as error:
        use()
    assert str(file.name) in str(error.value) and "\n" not in str(error.value)
    assert time.perf_counter() - start < 60


def resume(file: Path):
    """Go on from a checkpoint in a folder of its own."""
    settings = {**TINY, "num_steps": 4, **SETTINGS, "resume": str(file), "epochs": 2}
    trainer, train_data, valid_data, _ = prepare_training(build_config("DiffuRec", "markov-toy", None, settings))
    trainer.fit(train_data, valid_data, saved=True, show_progress=False)
    return trainer


CODE = "__import__('os').system('touch trace')"
NAMES = [
    ("model", ["../x", "os", "recbole", "", None, 5, ["DiffuRec"], {"a": 1}, "DiffuRec/../x", CODE]),
    ("dataset", ["../../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "..", "", None, 5, ["x"], "x\0y", "x\n"]),
    ("benchmark_filename", [["../../x"], "/etc/passwd", ["a", "b/c"], [5], {"a": "b"}]),
    ("additional_feat_suffix", [["../x"], "/x", [None]]),
    ("teacher", [CODE, "os", 5, ["FM"]]),
]


@pytest.mark.parametrize("key, value", [(key, value) for key, values in NAMES for value in values], ids=str)
def test_a_name_that_is_none_is_refused(good, tmp_path, watched, key, value):  # noqa: F811
    file = changed(good, tmp_path / "bad.pth", {key: value})
    for use in (lambda: Recommender(file), lambda: load_data_and_model(file, {"data_path": DATA})):
        refused(use, file, "bad.pth. cannot be used as configured: .*(model|dataset|no plain name|teacher)")
    assert not Path("log").exists() or not list(Path("log").rglob("*.log"))


SIZES = [
    ("n_layers", [10**7, 10**18]),
    ("hidden_size", [10**9, 64, 33]),
    ("inner_size", [10**9, 10**6]),
    ("n_heads", [10**9, 3]),
    ("num_steps", [10**9]),
    ("MAX_ITEM_LIST_LENGTH", [10**10, 10**6]),
    ("inference_seeds", [10**9, list(range(5)) + [10**12], [[1]], "all"]),
    ("noise_schedule", ["x", 5, None, [1]]),
    ("beta_start", [float("nan"), float("inf"), 2.0, -1, "x"]),
    ("seed", [-1, 2**70, "x", None, [1]]),
    ("eval_args", [5, "x", {"order": CODE}, {"split": CODE}, {"mode": {"valid": {"a": 1}}}]),
    ("metrics", [5, [5], ["__class__"], {"a": 1}]),
    ("topk", [0, "x", [10**20], []]),
    ("eval_batch_size", [0, -5, "x", None]),
    ("ITEM_ID_FIELD", [5, None, ["a"]]),
]


@pytest.mark.parametrize("key, value", [(key, value) for key, values in SIZES for value in values], ids=str)
def test_a_setting_that_does_not_fit_is_refused(good, tmp_path, watched, key, value):  # noqa: F811
    file = changed(good, tmp_path / "bad.pth", {key: value})
    refused(lambda: Recommender(file), file, r"model_file \[.*bad.pth\]")


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": 10_000, "inner_size": 10_000},
        {"n_layers": 100, "hidden_size": 2000, "inner_size": 2000},
        {"inner_size": 10**4, "hidden_size": 10**4, "n_heads": 10**4},
    ],
    ids=str,
)
def test_no_model_is_made_that_is_larger_than_its_file(good_sasrec, tmp_path, watched, settings):  # noqa: F811
    """Each number alone is as usual models have it."""
    file = changed(good_sasrec, tmp_path / "bad.pth", settings)
    for use in (lambda: Recommender(file), lambda: load_data_and_model(file, {"data_path": DATA})):
        refused(use, file, "larger than the file")
    assert not list(Path("log").rglob("*.log"))


def test_more_layers_than_tensors_may_have_no_weights(tmp_path):
    file = train(tmp_path, "LightGCN", n_layers=4)
    assert load_data_and_model(file, {"data_path": DATA})[1].n_layers == 4


def test_steps_beyond_the_weights_load_where_they_have_none(tmp_path):
    file = train(tmp_path, "DreamRec", num_steps=20_000, sampling_steps=4)
    assert load_data_and_model(file, {"data_path": DATA})[1].diffusion.num_steps == 20_000


DATA_KEYS = [
    ("val_interval", [99, {"LS": CODE}, "x"]),
    ("user_inter_num_interval", [5, "[0,0]", [[CODE]]]),
    ("alias_of_item_id", ["x/../y", [5], {"a": 1}]),
    ("load_col", [CODE, {"inter": CODE}, {"LS": []}]),
    ("normalize_field", [99, ["nothing"]]),
    ("numerical_features", [None, [[CODE]], ["nothing"]]),
    ("preload_weight", ["/etc/passwd", {"item_id": "/etc/passwd"}]),
    ("transform", ["../x", [CODE]]),
    ("unused_col", [[CODE], {"inter": 5}]),
    ("rm_dup_inter", [CODE, True]),
    ("threshold", [1e300, "x"]),
    ("discretization", [[3], "x", {"timestamp": CODE}]),
    ("field_separator", [float("nan"), "", CODE]),
    ("encoding", ["zip", 5, CODE]),
]


@pytest.mark.parametrize("key, value", [(key, value) for key, values in DATA_KEYS for value in values], ids=str)
def test_a_setting_that_does_not_fit_the_data_is_refused(good, tmp_path, watched, key, value):  # noqa: F811
    file = changed(good, tmp_path / "bad.pth", {key: value})
    refused(lambda: load_data_and_model(file, {"data_path": DATA}), file, "bad.pth")


def test_what_concerns_the_machine_is_not_taken_from_a_file(good, tmp_path, watched):  # noqa: F811
    evil = tmp_path / "evil"
    for name in ("markov-toy-PrefixDataset.pth", "markov-toy-for-DiffuRec-dataloader.pth"):
        dump_touch(evil / name, watched)
    paths = dict.fromkeys(["data_path", "checkpoint_dir", "dataset_save_path", "dataloaders_save_path"], str(evil))
    paths |= {"dataset_save_path": str(evil / "markov-toy-PrefixDataset.pth"), "item_embedding_file": str(evil / "x")}
    host = {"ip": "192.0.2.1", "port": 80, "local_rank": 0, "world_size": 2, "nproc": 2, "offset": 0, "log_wandb": True}
    other = {"gpu_id": "7", "trust_pickles": True, "allow_unknown_keys": True, "unheard_of": 1, "save_dataset": True}
    file = changed(good, tmp_path / "bad.pth", {**paths, **host, **other})
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert Recommender(file).model
    with pytest.raises(FileNotFoundError, match=r"dataset \[markov-toy\].*data_path"):
        load_data_and_model(file)
    config, *_ = load_data_and_model(file, {"data_path": DATA})
    assert config["checkpoint_dir"] == "saved" and config["single_spec"] and not config["log_wandb"]
    assert config["dataset_save_path"] is None and not config["trust_pickles"] and config["unheard_of"] is None
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == gpus


def test_an_update_takes_no_path_from_a_file_and_no_larger_model(tmp_path, watched):  # noqa: F811
    evil, table = tmp_path / "evil", tmp_path / "table.csv"
    dump_touch(evil / "data.pth", watched)
    table.write_text("user,item,time\n" + "".join(f"u{n % 9},i{(n * 7) % 31},{n}\n" for n in range(90)))
    settings = {**TINY, "epochs": 1, "state": "ERROR", "show_progress": False, "checkpoint_dir": str(tmp_path / "mine")}
    Recommender.fit(table, **settings).save(tmp_path / "good.pth")
    state = torch.load(tmp_path / "good.pth", weights_only=True)
    assert "checkpoint_dir" not in state["known_users"]["params"] and str(tmp_path) not in str(state)
    params = state["known_users"]["params"]
    params |= {"trust_pickles": True, "dataset_save_path": str(evil / "data.pth"), "checkpoint_dir": str(evil)}
    params |= {"pretrain": "SASRecPlus", "per_model": {"SASRecPlus": {"trust_pickles": True}}, "hidden_size": 10**6}
    params |= {
        "item_embedding_file": str(evil / "x"),
        "dataset": "../x",
        "model": "DiffuRec",
        "benchmark_filename": ["../x"],
    }
    torch.save(state, tmp_path / "bad.pth")
    found = Recommender.load(tmp_path / "bad.pth").update(table, state="ERROR", show_progress=False)
    assert found.model.hidden_size == TINY["hidden_size"] and found.result["epochs"] == 1
    assert [path.name for path in evil.iterdir()] == ["data.pth"]


@pytest.mark.parametrize("name", ["markov-toy-PrefixDataset.pth", "markov-toy-for-DiffuRec-dataloader.pth"])
def test_recboles_pickles_are_read_for_those_alone_who_trust_them(good, tmp_path, monkeypatch, name):
    trace = tmp_path / "trace"
    dump_touch(tmp_path / "saved" / name, trace)
    with pytest.raises(ValueError, match=f"{name}. is a pickle, which can run code.*trust_pickles"):
        load_data_and_model(good, {"data_path": DATA})
    assert not trace.exists()
    with pytest.raises(ValueError, match="cannot be prepared"):  # the number that `touch` ended with is no dataset
        load_data_and_model(good, {"data_path": DATA, "trust_pickles": True})
    assert trace.exists()


def test_a_dataset_saved_by_oneself_is_read_again_when_trusted(tmp_path):
    file = train(tmp_path, save_dataset=True, save_dataloaders=True)
    data = {"data_path": DATA, "checkpoint_dir": str(file.parent)}
    with pytest.raises(ValueError, match="is a pickle"):
        load_data_and_model(file, data)
    assert load_data_and_model(file, {**data, "trust_pickles": True})[2].item_num == 82


@pytest.mark.parametrize("name", ["amazon-beauty", "ml-1m", "yelp2018"])
def test_no_server_is_asked_for_the_data_of_a_checkpoint(good, tmp_path, watched, name):  # noqa: F811
    file = changed(good, tmp_path / "bad.pth", {"dataset": name})
    with pytest.raises(FileNotFoundError, match=f"{name}.*data_path"):
        load_data_and_model(file)


def explosion(depth: int = 12):
    """A list of ten of lists of ten of ..., each named ten times, and so small in the file."""
    value: list = ["x"] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


def endless() -> list:
    value: list = []
    value.append(value)
    return value


def deep(levels: int = 150) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def known(codes: list[int], names=("a", "b"), time=(1.0, 2.0), whole=(), params=None, options=None) -> dict:
    """The part of known users in a checkpoint of `Recommender.save`."""
    column = {"codes": torch.tensor(codes, dtype=torch.int32), "names": list(names)}
    times = torch.tensor(time, dtype=torch.float64)
    params, options = {} if params is None else params, {} if options is None else options
    return {"user": column, "item": column, "time": times, "whole": list(whole), "params": params, "options": options}


PARTS = {
    "config pairs": ({"config": [("model", "DiffuRec")]}, "its part config is a list"),
    "config text": ({"config": "DiffuRec"}, "its part config is a str"),
    "config empty": ({"config": {}}, "is no name"),
    "config set": ({"config": {"model", "DiffuRec"}}, "refused"),
    "no state_dict": ({"state_dict": None}, "lacks `config` or `state_dict`"),
    "format": ({"format": "recbole-diffusion 99"}, "not written by this version"),
    "weights no tensors": ({"state_dict": {"item_embedding.weight": 5}}, "its weights are no tensors"),
    "weights of nothing": ({"state_dict": {}}, "do not fit its item embeddings None"),
    "explosion": ({"other_parameter": {"x": explosion()}}, "too deep, or are more"),
    "endless": ({"other_parameter": {"x": endless()}}, "too deep"),
    "deep": ({"other_parameter": {"x": deep()}}, "too deep"),
    "expanded tensor": ({"other_parameter": {"x": torch.zeros(1).expand(10**12)}}, "larger than its numbers"),
    "sparse tensor": ({"other_parameter": {"x": torch.zeros(3, 3).to_sparse()}}, "sparse|refused"),
    "tensor on meta": ({"other_parameter": {"x": torch.zeros(3, device="meta")}}, "without numbers|refused"),
    "tokens no list": ({"other_parameter": {"item_tokens": 5}}, "item tokens are no list"),
    "tokens no texts": ({"other_parameter": {"item_tokens": [5] * 82}}, "item tokens are no list of texts"),
    "too few tokens": ({"other_parameter": {"item_tokens": ["a", "b"]}}, "do not fit its item embeddings"),
    "a device": ({"other_parameter": {"x": torch.device("cpu")}}, "type .device"),
    "a type": ({"other_parameter": {"x": torch.float32}}, "type .dtype"),
    "other_parameter a list": ({"other_parameter": [1]}, "its part other_parameter is a list"),
    "known users a number": ({"known_users": 5}, "its part known_users is a int"),
    "known users of nothing": ({"known_users": {}}, "its known users are none"),
    "known users of codes below 0": ({"known_users": known([-1, 0])}, "its known users are none"),
    "known users of codes without names": ({"known_users": known([0, 2])}, "its known users are none"),
    "known users of names no texts": ({"known_users": known([0, 1], names=["a", 5])}, "its known users are none"),
    "known users of fewer times": ({"known_users": known([0, 1], time=[1.0])}, "its known users are none"),
    "known users without a time": ({"known_users": known([0, 1], time=[1.0, float("nan")])}, "known users are none"),
    "known users of numbers that are none": ({"known_users": known([0, 1], whole=["item"])}, "known users are none"),
    "known users of options no texts": ({"known_users": known([0, 1], options={"user": ["a"]})}, "users are none"),
    "known users of params no keys": ({"known_users": known([0, 1], params=5)}, "its known users are none"),
    "epoch a flag": ({"epoch": True}, "its part epoch is a bool"),
}


@pytest.mark.parametrize("parts, message", PARTS.values(), ids=PARTS)
def test_a_part_that_is_no_part_is_refused(good, tmp_path, watched, parts, message):  # noqa: F811
    file = changed(good, tmp_path / "bad.pth", **parts)
    refused(lambda: Recommender(file), file, message)


def test_weights_of_another_shape_are_named(good, tmp_path):
    state = torch.load(good, weights_only=True)["state_dict"]
    name = next(name for name in state if name.endswith("weight") and name != "item_embedding.weight")
    file = changed(good, tmp_path / "bad.pth", state_dict={**state, name: torch.zeros(2, 2)})
    refused(lambda: Recommender(file), file, f"does not fit this configuration.*{name}")


def csr(kind, *arrays, shape):
    return {"__sparse__": kind, "arrays": [torch.tensor(part) for part in arrays], "shape": shape}


SPARSE = {
    "a billion rows": csr("csr", [1.0], [0], [0, 1], shape=[10**9, 3]),
    "places outside": csr("csr", [1.0], [9], [0, 1, 1], shape=[2, 2]),
    "another kind": csr("dia", [1.0], [0], [0, 1, 1], shape=[2, 2]),
    "code for a kind": csr(CODE, [1.0], [0], [0, 1, 1], shape=[2, 2]),
    "no arrays": {"__sparse__": "csr", "shape": [2, 2]},
    "array of nothing": {"__array__": 5},
    "array and more": {"__array__": torch.ones(1), "x": 1},
}


@pytest.mark.parametrize("value", SPARSE.values(), ids=SPARSE)
def test_a_matrix_that_does_not_hold_together_is_refused(good_ease, tmp_path, watched, value):  # noqa: F811
    with pytest.raises(ValueError, match="does not hold together|holds no numbers"):
        from_plain(value)
    file = changed(
        good_ease, tmp_path / "bad.pth", other_parameter={"interaction_matrix": value, "item_similarity": value}
    )
    with pytest.raises(ValueError, match="bad.pth|does not hold together|holds no numbers"):
        load_data_and_model(file, {"data_path": DATA})


# ---------------------------------------------------------------- resuming


def test_resuming_writes_beside_the_file_and_nowhere_else(good_last, good, tmp_path, watched):  # noqa: F811
    (tmp_path / "run").mkdir()
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (tmp_path / "run" / good.name).write_bytes(good.read_bytes())
    file = changed(good_last, tmp_path / "run" / good_last.name, best_model_file=str(victim))
    trainer = resume(file)
    assert trainer.saved_model_file == str(tmp_path / "run" / good.name) and victim.read_text() == "mine"
    assert {path.name for path in (tmp_path / "run").iterdir()} == {good.name, good_last.name}


def optimizer_with(**group):
    def change(state):
        state["optimizer"]["param_groups"][0].update(group)

    return change


def with_state(part, **values):
    return lambda state: state[part].update(values)


RESUME = {
    "no optimizer": (lambda state: state.pop("optimizer"), "lacks optimizer"),
    "no epoch": (lambda state: state.pop("epoch"), "lacks epoch"),
    "an epoch beyond count": (lambda state: state.update(epoch=2**70), "epoch"),
    "a score that is none": (lambda state: state.update(best_valid_score=float("nan")), "best_valid_score"),
    "a rate of text": (optimizer_with(lr="x"), "its optimizer is not of this run"),
    "a key too many": (optimizer_with(evil=1), "its optimizer is not of this run"),
    "other parameters": (optimizer_with(params=[0, 1]), "its optimizer is not of this run"),
    "moments of another shape": (
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(2, 2)),
        "its optimizer is not of this run",
    ),
    "no groups": (lambda state: state["optimizer"].pop("param_groups"), "its optimizer is not of this run"),
    "a schedule that is none": (with_state("lr_scheduler", step=5), "its lr_scheduler is not of this run"),
    "half a schedule": (
        lambda state: state["lr_scheduler"].pop("last_epoch"),
        "its lr_scheduler is not of this run",
    ),
    "a schedule of text": (with_state("lr_scheduler", last_epoch="x"), "its lr_scheduler is not of this run"),
    "a scaler that is none": (with_state("scaler", evil=5), "its scaler is not of this run"),
    "random state of text": (with_state("random_state", python="x"), "its random_state is not of this run"),
    "random state too short": (with_state("random_state", torch=torch.zeros(3)), "its random_state is not of this run"),
    "random state of NumPy": (
        with_state("random_state", numpy=[torch.zeros(3), 0, 0, 0.0]),
        "its random_state is not of this run",
    ),
}


@pytest.mark.parametrize("change, message", RESUME.values(), ids=RESUME)
def test_a_state_that_is_not_of_this_run_is_named(good_last, tmp_path, watched, change, message):  # noqa: F811
    state = torch.load(good_last, weights_only=True)
    change(state)
    file = tmp_path / good_last.name
    torch.save(state, file)
    refused(lambda: resume(file), file, message)


# ---------------------------------------------------------------- the file itself


class BuildsConfig:
    """As files of the first version had it."""

    def __reduce__(self):
        from recbole_diffusion.compat import checkpoint

        checkpoint.restore_config = lambda values: values
        checkpoint.restore_config.__module__ = "recbole_diffusion.compat.checkpoint"
        checkpoint.restore_config.__qualname__ = checkpoint.restore_config.__name__ = "restore_config"
        return checkpoint.restore_config, ({"model": "DiffuRec"},)


def test_a_file_of_an_older_version_is_named(tmp_path, monkeypatch):
    from recbole_diffusion.compat import checkpoint

    monkeypatch.setattr(checkpoint, "restore_config", None, raising=False)
    torch.save({"config": BuildsConfig(), "state_dict": {}}, tmp_path / "old.pth")
    refused(
        lambda: load_checkpoint(tmp_path / "old.pth"),
        tmp_path / "old.pth",
        "older version of this package: train it again",
    )


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", ["config", "state_dict", "other_parameter", "epoch", "whole"])
def test_a_pickle_bomb_is_refused(good, tmp_path, watched, where, protocol):  # noqa: F811
    state = torch.load(good, weights_only=True)
    bomb = Touch(watched)
    file = tmp_path / "bomb.pth"
    torch.save(bomb if where == "whole" else {**state, where: bomb}, file, pickle_protocol=protocol)
    for use in (lambda: Recommender(file), lambda: resume(file)):
        refused(use, file, "bomb.pth")
    file.write_bytes(pickle.dumps(bomb, protocol))  # and without a zip around it
    refused(lambda: Recommender(file), file, "bomb.pth")


def test_every_flipped_bit_of_the_numbers_is_found(good, tmp_path, tried):
    data, file = bytearray(good.read_bytes()), tmp_path / "flipped.pth"
    whole = load_checkpoint(good)["state_dict"]
    rng = np.random.default_rng(0)
    silent = 0
    tried(300)
    for place in rng.integers(0, len(data), 300):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        try:
            found = load_checkpoint(file)["state_dict"]
        except ValueError as error:
            assert "flipped.pth" in str(error) and "\n" not in str(error)
            continue
        # What is not covered by a checksum, such as padding, changes no number.
        silent += 1
        assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)
    assert silent < 150


def test_every_truncation_is_refused(good, tmp_path, tried):
    data, file = good.read_bytes(), tmp_path / "cut.pth"
    tried(100)
    for size in np.linspace(0, len(data) - 1, 100).astype(int):
        file.write_bytes(data[:size])
        refused(lambda: load_checkpoint(file), file, "truncated|damaged|not a checkpoint|refused")


def test_packed_parts_are_refused(good, tmp_path):
    """A zip whose parts are packed may hold a thousand times its size."""
    file = tmp_path / "packed.pth"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    refused(lambda: load_checkpoint(file), file, "packed, or overlap")


def test_an_older_pytorch_is_warned_of(good, monkeypatch):
    from recbole_diffusion.compat import checkpoint

    checkpoint._warn_of_torch.cache_clear()
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.warns(UserWarning, match="CVE-2026-24747.*2.10"):
        load_checkpoint(good)
    checkpoint._warn_of_torch.cache_clear()


# ---------------------------------------------------------------- every key, and every kind of value

VALUES = [
    CODE, "../../x", "/etc/passwd", "", "x" * 100_000, None, True, -1, 0, 10**9, 10**30, 1e308, float("nan"),
    float("inf"), [], ["../x"], [[1]], {}, {"a": {"b": CODE}}, [10**9], b"\0", deep(20),
]  # fmt: skip


@pytest.mark.probe
@pytest.mark.parametrize("part", range(8))
def test_no_value_of_any_key_does_more_than_being_refused(good, tmp_path, watched, tried, part):  # noqa: F811
    keys = sorted(torch.load(good, weights_only=True)["config"])[part::8]
    bad, file = [], tmp_path / "bad.pth"
    tried(len(keys) * len(VALUES))
    for key in keys:
        for value in VALUES:
            changed(good, file, {key: value})
            start = time.process_time()
            try:
                next(Recommender(file).stream([KNOWN], k=3), None)
            except ValueError as error:
                if "\n" in str(error) or "bad.pth" not in str(error) and "history" not in str(error):
                    bad.append((key, str(value)[:30], str(error)[:200]))
            except Exception as error:
                bad.append((key, str(value)[:30], repr(error)[:200]))
            seconds = time.process_time() - start
            if seconds > 20:
                bad.append((key, str(value)[:30], f"{seconds:.0f} s"))
    assert not bad, "\n".join(map(str, bad))

"""The bridges to RecBole 1.2.1, and checkpoints that run no code."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from importlib import metadata

import numpy as np
import pytest
import scipy.sparse
import torch
from recbole.config import Config

from recbole_diffusion import version
from recbole_diffusion.compat import checkpoint, versions
from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.quick_start import build_config, load_data_and_model, prepare_data, prepare_training, run
from recbole_diffusion.stored import config_of

from ..conftest import ROOT, toy, toy_config

QUIET = {"state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset")}


@pytest.mark.parametrize("installed", [None, "1.1.1", "1.2.0"])
def test_a_missing_or_wrong_recbole_gives_the_command_that_mends_it(monkeypatch, installed):
    def found(name):
        if installed is None:
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(version.metadata, "version", found)
    with pytest.raises(ImportError, match=r"pip install --no-deps recbole==1\.2\.1"):
        version.require_recbole()


def test_numpy_aliases_are_added_only_where_missing(monkeypatch):
    monkeypatch.setattr(np, "float_", "kept", raising=False)
    versions.bridge_numpy()
    assert np.float_ == "kept" and np.complex_ is np.complex128 and np.unicode_ is np.str_


def test_pandas_3_is_warned_of(monkeypatch):
    monkeypatch.setattr(versions.metadata, "version", lambda name: "3.1.0")
    with pytest.warns(UserWarning, match="pandas<3"):
        versions.bridge_pandas()


def test_recbole_leaves_no_anomaly_detection_behind():
    assert not torch.is_anomaly_enabled()


def test_reporting_outside_of_a_trial_is_nothing():
    versions.report_to_tune({"ndcg@10": 0.1})
    from recbole.quick_start import quick_start

    quick_start.tune.report(**{"ndcg@10": 0.1})


def test_a_dataset_is_downloaded_by_a_single_process(tmp_path, monkeypatch):
    archive = tmp_path / "toy.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(ROOT / "dataset" / "markov-toy" / "markov-toy.inter", "toy.inter")
    from recbole.data.dataset import Dataset

    monkeypatch.setattr(Dataset, "_get_download_url", lambda self, *a, **k: archive.as_uri())
    config = build_config("DiffuRec", "markov-far", None, {**QUIET, "data_path": str(tmp_path / "data")})
    dataset, *_ = prepare_data(config)
    assert dataset.item_num > 1 and (tmp_path / "data" / "markov-far" / "markov-far.inter").is_file()


def test_a_folder_that_another_process_made_meanwhile_is_no_error(tmp_path, monkeypatch):
    prepare_training(toy_config("DiffuRec", checkpoint_dir=str(tmp_path)))  # imports what makes folders
    makers = {name: module.ensure_dir for name, module in sys.modules.items()
              if name.startswith("recbole.") and hasattr(module, "ensure_dir")}  # fmt: skip
    assert {"recbole.trainer.trainer", "recbole.utils.logger", "recbole.data.dataset.dataset"} <= set(makers)
    monkeypatch.setattr(os.path, "exists", lambda path: False)  # as it was when each of the processes looked
    for make in makers.values():
        make(str(tmp_path / "new"))
    assert (tmp_path / "new").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["DiffuRec", "SASRec", "GRU4Rec", "Pop", "EASE", "ItemKNN", "LightGCN", "TransRec"])
def test_every_checkpoint_loads_safely_and_in_recbole(model):
    from recbole.quick_start import load_data_and_model as recbole_load

    result = run(model, "markov-toy", config_dict={**QUIET, "epochs": 1, "limit_train_batches": 2})
    checkpoint = torch.load(result["model_file"], weights_only=True)
    assert checkpoint["config"]["model"] == model and "data_path" not in checkpoint["config"]
    assert recbole_load is load_data_and_model
    config, network, _, _, _, test = recbole_load(result["model_file"], {"data_path": QUIET["data_path"]})
    from recbole.utils import get_trainer

    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    again = trainer.evaluate(test, load_best_model=True, model_file=result["model_file"])
    assert dict(again) == dict(result["test_result"])
    trainer.resume_checkpoint(result["model_file"])
    assert trainer.start_epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("model, metric", [("SASRecF", "ndcg@10"), ("FM", "auc")])
def test_recbole_models_of_item_features_get_their_columns_and_load_again(model, metric):
    tiny = {"hidden_size": 8, "inner_size": 8, "embedding_size": 8, "MAX_ITEM_LIST_LENGTH": 5, "train_batch_size": 4096}
    result = run(model, "ml-100k", config_dict={**QUIET, **tiny, "epochs": 1})
    assert result["test_result"][metric] > 0
    load_data_and_model(result["model_file"])


def test_config_survives_a_checkpoint(tmp_path):
    config = toy_config("DiffuRec", learning_rate=np.float64(0.5), inference_seeds=[1, 2], checkpoint_dir=tmp_path)
    weights = {"item_embedding.weight": torch.zeros(5, config["hidden_size"])}
    weights |= {f"layer_{number}": torch.zeros(config["inner_size"]) for number in range(10)}
    state = {"config": config, "state_dict": weights, "best": np.float32(0.5)}
    checkpoint.save_checkpoint(state, tmp_path / "a.pth")
    found = checkpoint.load_checkpoint(tmp_path / "a.pth")
    assert found["config"]["learning_rate"] == 0.5 and found["best"] == 0.5 and type(found["best"]) is float
    again = config_of(found, tmp_path / "a.pth", {"data_path": QUIET["data_path"]})
    assert result_settings(again) == result_settings(config) and again["checkpoint_dir"] == "saved"
    assert again.model_class is config.model_class and again["MODEL_TYPE"] is config["MODEL_TYPE"]


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
def test_arrays_and_sparse_matrices_survive_a_checkpoint(tmp_path, kind):
    matrix = scipy.sparse.random(5, 7, density=0.3, format=kind, random_state=0)
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": [np.array([True, False])], "m": matrix, "p": tmp_path}
    state = {"config": toy_config("DiffuRec"), "state_dict": {}, "other_parameter": arrays}
    checkpoint.save_checkpoint(state, tmp_path / "a.pth")

    class Model(torch.nn.Module):
        other_parameter_name = ["a", "b", "m", "p"]
        load_other_parameter = checkpoint.load_other_parameter

    model = Model()
    model.load_other_parameter(checkpoint.load_checkpoint(tmp_path / "a.pth")["other_parameter"])
    assert np.array_equal(model.a, arrays["a"]) and np.array_equal(model.b[0], arrays["b"][0])
    assert model.m.format == (kind if kind in ("csr", "csc", "coo", "lil") else "csr")
    assert (model.m.tocsr() != matrix.tocsr()).nnz == 0 and model.m.shape == (5, 7) and model.p == str(tmp_path)


def test_a_checkpoint_sets_no_attribute_that_its_model_does_not_save():
    it = toy("DiffuRec")
    it.model.load_other_parameter({"forward": 1, "item_tokens": ["a"], "training": "x"})
    assert callable(it.model.forward) and it.model.training is True


def test_what_no_checkpoint_can_hold_is_named_when_saving(tmp_path):
    state = {"config": toy_config("DiffuRec"), "state_dict": {}, "other_parameter": {"trie": object()}}
    with pytest.raises(ValueError, match=r"checkpoint\[other_parameter\]\[trie\].*\[object\]"):
        checkpoint.save_checkpoint(state, tmp_path / "a.pth")
    assert not list(tmp_path.glob("*a.pth*"))


def test_pretrained_checkpoints_are_read_too(tmp_path):
    from recbole.trainer.trainer import PretrainTrainer

    it = toy("SASRec")
    trainer = PretrainTrainer(it.config, it.model)
    trainer.save_pretrained_model(3, str(tmp_path / "pre.pth"))
    assert checkpoint.load_checkpoint(tmp_path / "pre.pth")["epoch"] == 3


class RunsCode:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class BuildsConfig:
    """RecBole's Config evaluates the strings it is given: allowing the class would let a file run code."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return Config, ("SASRec", "ml-100k", None, {"key": self.code})


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", ["system", "config"])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, kind, protocol):
    trace = tmp_path / "trace"
    evil = {
        "system": RunsCode(f"touch {trace}"),
        "config": BuildsConfig(f"__import__('pathlib').Path({str(trace)!r}).touch()"),
    }[kind]
    path = tmp_path / "evil.pth"
    torch.save({"config": evil, "state_dict": {}}, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match="refused"):
        checkpoint.load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not trace.exists()


def test_unreadable_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        checkpoint.load_checkpoint(tmp_path / "nothing.pth")
    checkpoint.save_checkpoint({"config": toy_config("DiffuRec"), "state_dict": {}}, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 20):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut.pth"):
            checkpoint.load_checkpoint(tmp_path / "cut.pth")
    for junk in (b"junk", b"\x80\x02X\x02\0\0\0\xff\xfe."):
        (tmp_path / "cut.pth").write_bytes(junk)
        with pytest.raises(ValueError, match="cut.pth"):
            checkpoint.load_checkpoint(tmp_path / "cut.pth")
    for foreign in ({"weight": torch.zeros(2)}, {"config": {"lr": 1}, "state_dict": {}}, [1, 2]):
        torch.save(foreign, tmp_path / "foreign.pth")
        with pytest.raises(ValueError, match="not a RecBole checkpoint|not written by this version"):
            checkpoint.load_checkpoint(tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"\[DiffuRec\], not \[SASRec\]"):
        checkpoint.load_checkpoint(tmp_path / "good.pth", model="SASRec")


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    state = {"config": toy_config("DiffuRec"), "state_dict": {"w": torch.ones(3)}}
    checkpoint.save_checkpoint(state, tmp_path / "a.pth")

    def crash(obj, file, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_checkpoint({**state, "state_dict": {}}, tmp_path / "a.pth")
    assert torch.equal(checkpoint.load_checkpoint(tmp_path / "a.pth")["state_dict"]["w"], torch.ones(3))
    assert [path.name for path in tmp_path.glob("*a.pth*")] == ["a.pth"]

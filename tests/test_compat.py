"""The bridges to RecBole 1.2.1, and checkpoints that run no code."""

from __future__ import annotations

import os
import pickle
import zipfile
from importlib import metadata

import numpy as np
import pytest
import torch
from recbole.config import Config

from recbole_diffusion import compat
from recbole_diffusion.quick_start import build_config, load_data_and_model, prepare_data, run

from .conftest import ROOT, toy_config

QUIET = {"state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset")}


@pytest.mark.parametrize("version", [None, "1.1.1", "1.2.0"])
def test_a_missing_or_wrong_recbole_gives_the_command_that_mends_it(monkeypatch, version):
    def found(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(compat.metadata, "version", found)
    with pytest.raises(ImportError, match=r"pip install --no-deps recbole==1\.2\.1"):
        compat.require_recbole()


def test_numpy_aliases_are_added_only_where_missing(monkeypatch):
    monkeypatch.setattr(np, "float_", "kept", raising=False)
    compat.bridge_numpy()
    assert np.float_ == "kept" and np.complex_ is np.complex128 and np.unicode_ is np.str_


def test_pandas_3_is_warned_of(monkeypatch):
    monkeypatch.setattr(compat.metadata, "version", lambda name: "3.1.0")
    with pytest.warns(UserWarning, match="pandas<3"):
        compat.bridge_pandas()


def test_recbole_leaves_no_anomaly_detection_behind():
    assert not torch.is_anomaly_enabled()


def test_reporting_outside_of_a_trial_is_nothing():
    compat.report_to_tune({"ndcg@10": 0.1})
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


@pytest.mark.parametrize("model", ["DiffuRec", "SASRec", "GRU4Rec", "Pop"])
def test_every_checkpoint_loads_safely_and_in_recbole(model):
    from recbole.quick_start import load_data_and_model as recbole_load

    result = run(model, "markov-toy", config_dict={**QUIET, "epochs": 1, "limit_train_batches": 2})
    checkpoint = torch.load(result["model_file"], weights_only=True)
    assert isinstance(checkpoint["config"], Config) and checkpoint["config"]["model"] == model
    for load in (recbole_load, load_data_and_model):
        config, network, _, _, _, test = load(result["model_file"])
        from recbole.utils import get_trainer

        trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        again = trainer.evaluate(test, load_best_model=True, model_file=result["model_file"])
        assert dict(again) == dict(result["test_result"])
    trainer.resume_checkpoint(result["model_file"])
    assert trainer.start_epoch == 1


def test_config_survives_a_checkpoint(tmp_path):
    config = toy_config("DiffuRec", learning_rate=np.float64(0.5), inference_seeds=[1, 2])
    compat.save_checkpoint({"config": config, "state_dict": {}, "best": np.float32(0.5)}, tmp_path / "a.pth")
    found = compat.load_checkpoint(tmp_path / "a.pth")
    assert found["config"].final_config_dict == config.final_config_dict
    assert str(found["config"]) == str(config) and found["best"] == 0.5 and type(found["best"]) is float


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
        compat.load_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert not trace.exists()


def test_unreadable_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        compat.load_checkpoint(tmp_path / "nothing.pth")
    compat.save_checkpoint({"config": toy_config("DiffuRec"), "state_dict": {}}, tmp_path / "good.pth")
    whole = (tmp_path / "good.pth").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 20):
        (tmp_path / "cut.pth").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="cut.pth"):
            compat.load_checkpoint(tmp_path / "cut.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="not a RecBole checkpoint"):
        compat.load_checkpoint(tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=r"\[DiffuRec\], not \[SASRec\]"):
        compat.load_checkpoint(tmp_path / "good.pth", model="SASRec")


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    state = {"config": toy_config("DiffuRec"), "state_dict": {"w": torch.ones(3)}}
    compat.save_checkpoint(state, tmp_path / "a.pth")

    def crash(obj, file, **kwargs):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(compat.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        compat.save_checkpoint({**state, "state_dict": {}}, tmp_path / "a.pth")
    assert torch.equal(compat.load_checkpoint(tmp_path / "a.pth")["state_dict"]["w"], torch.ones(3))
    assert [path.name for path in tmp_path.glob("*a.pth*")] == ["a.pth"]

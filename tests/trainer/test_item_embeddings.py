"""Item embeddings from a checkpoint, resting for some epochs, and a model trained first."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
import yaml
from recbole.quick_start import run_recbole

from recbole_diffusion import MODELS, quick_start
from recbole_diffusion.compat.checkpoint import load_checkpoint, save_checkpoint
from recbole_diffusion.compat.files import lock_file
from recbole_diffusion.quick_start import build_config, prepare_training, run, train_and_test
from recbole_diffusion.registry import pretraining_config
from recbole_diffusion.trainer import DiffusionTrainer
from recbole_diffusion.trainer.embeddings import load_item_embeddings
from recbole_diffusion.trainer.resume import Interrupted, best_file_of, lock_of

from ..conftest import ROOT, TINY, few_steps, toy, toy_config

SHORT = {"epochs": 1, "limit_train_batches": 2, "eval_step": 0}
ALL = sorted(MODELS)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A checkpoint of SASRecPlus after a few steps."""
    it = toy("SASRecPlus", **SHORT, checkpoint_dir=str(tmp_path_factory.mktemp("saved")))
    trainer = DiffusionTrainer(it.config, it.model)
    trainer.fit(it.train)
    return trainer.saved_model_file


def embeddings(path):
    return load_checkpoint(path)["state_dict"]["item_embedding.weight"]


# ---------------------------------------------------------------------- from a checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_every_model_starts_from_the_file_and_rests(name, file):
    keys = {"item_embedding_file": file, "freeze_embedding_epochs": 1, "weight_decay": 0.1}
    it = toy(name, **SHORT, **keys, **few_steps(name))
    others = {key: p.detach().clone() for key, p in it.model.named_parameters() if key != "item_embedding.weight"}
    DiffusionTrainer(it.config, it.model).fit(it.train)
    assert torch.equal(it.model.item_embedding.weight, embeddings(file))
    moved = [key for key, p in it.model.named_parameters() if key in others and not torch.equal(p, others[key])]
    assert len(moved) > 0.8 * len(others)


def test_items_are_matched_by_token_and_counted(file, tmp_path, caplog):
    checkpoint = load_checkpoint(file)
    tokens = checkpoint["other_parameter"]["item_tokens"]
    embedding = torch.nn.Embedding(6, 32, padding_idx=0)
    before = embedding.weight.detach().clone()
    mine = ["[PAD]", tokens[7], "no such item", tokens[2], "another", tokens[1]]
    with caplog.at_level(logging.INFO):
        assert load_item_embeddings(embedding, mine, file) == 3
    assert "3 of 5 items start from item_embedding_file" in caplog.text
    expected = torch.stack([before[0], *(checkpoint["state_dict"]["item_embedding.weight"][i] for i in (7,))])
    assert torch.equal(embedding.weight[:2], expected)
    assert torch.equal(embedding.weight[[2, 4]], before[[2, 4]])
    assert torch.equal(embedding.weight[[3, 5]], embeddings(file)[[2, 1]])
    with pytest.raises(ValueError, match=r"item_embedding_file \[.*\] must be of the same items: it has none"):
        load_item_embeddings(embedding, ["[PAD]", "a", "b"], file)


def test_what_cannot_be_read_is_told_before_data_is_loaded(file, tmp_path):
    with pytest.raises(ValueError, match=r"^hidden_size \[64\] must be 32, the size of the embeddings in item_emb"):
        toy_config("DiffuRec", hidden_size=64, item_embedding_file=file)
    with pytest.raises(FileNotFoundError, match=r"^item_embedding_file \[gone.pth\] does not exist"):
        toy_config("DiffuRec", item_embedding_file="gone.pth")
    with pytest.raises(ValueError, match=r"^item_embedding_file \[.*\] must be null where pretrain \[SASRecPlus\]"):
        toy_config("DiffuRec", item_embedding_file=file, pretrain="SASRecPlus")
    checkpoint = load_checkpoint(file)
    del checkpoint["state_dict"]["item_embedding.weight"]
    save_checkpoint(checkpoint, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"must hold item embeddings .*: it is of the model \[SASRecPlus\]\.$"):
        toy_config("DiffuRec", item_embedding_file=str(tmp_path / "other.pth"))


# ---------------------------------------------------------------------- frozen


def trained(epochs, frozen, mode="none", **keys):
    it = toy("SASRecPlus", epochs=epochs, limit_train_batches=2, eval_step=0, freeze_embedding_epochs=frozen, **keys)
    it.config["freeze_mode"] = mode
    trainer = DiffusionTrainer(it.config, it.model)
    start = it.model.item_embedding.weight.detach().clone()
    trainer.fit(it.train)
    return trainer, start, it.model.item_embedding.weight.detach()


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd"])
def test_frozen_means_no_update_and_no_moments(learner):
    trainer, start, end = trained(2, 2, learner=learner, weight_decay=0.1)
    assert torch.equal(start, end)
    assert trainer.model.item_embedding.weight not in trainer.optimizer.state
    _, start, end = trained(2, 1, learner=learner, weight_decay=0.1)
    assert not torch.equal(start[1:], end[1:])


@pytest.mark.slow
def test_the_mode_decay_shrinks_as_the_public_code_does():
    _, start, end = trained(2, 2, mode="decay", weight_decay=1e-5, learner="adam")
    assert end.norm() < 0.95 * start.norm()
    _, start, end = trained(2, 2, mode="decay")
    assert torch.equal(start, end)  # nothing decays


def test_clipping_counts_what_moves_alone():
    found = []
    for scale in (1.0, 50.0):  # of the embeddings' gradient, which is dropped
        it = toy("SASRecPlus", epochs=1, limit_train_batches=1, eval_step=0, freeze_embedding_epochs=1, learner="sgd",
                 clip_grad_norm={"max_norm": 1e-3}, emb_dropout_prob=0.0)  # fmt: skip
        it.model.item_embedding.weight.register_hook(lambda grad, scale=scale: scale * grad)
        DiffusionTrainer(it.config, it.model).fit(it.train)
        found.append(it.model.encoder.norm.weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resume_is_exact_before_at_and_after_the_end_of_the_frozen_epochs(stop, file, tmp_path):
    keys = {"limit_train_batches": 2, "freeze_embedding_epochs": 2, "item_embedding_file": file}
    keys["lr_scheduler"] = {"name": "constant"}  # the cosine knows how long the whole run is
    results = []
    for epochs in ([4], [stop, 4]):
        last = None
        for n in epochs:
            it = toy("ADRec", num_steps=4, epochs=n, **keys)
            trainer = DiffusionTrainer(it.config, it.model)
            if last:
                trainer.resume_checkpoint(last)
            trainer.fit(it.train, it.valid)
            last = trainer.last_model_file
        results.append(load_checkpoint(last)["state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in results), strict=True))


# ---------------------------------------------------------------------- a model trained first


def test_the_first_model_is_as_the_second_but_for_what_is_its_own():
    config = toy_config("ADRec", pretrain="SASRecPlus", freeze_embedding_epochs=3, learning_rate=0.004, seed=7)
    first = pretraining_config(config)
    shared = ("hidden_size", "n_layers", "use_position_embedding", "learning_rate", "seed", "lr_scheduler", "data_path")
    assert first["model"] == "SASRecPlus" and all(first[key] == config[key] for key in shared)
    assert (first["initializer"], first["initializer_range"]) == ("normal", 0.1)
    assert (first["freeze_embedding_epochs"], first["pretrain"], first["resume"]) == (0, None, None)


def test_a_first_model_of_recboles_takes_the_sizes_and_one_without_fitting_items_is_refused(monkeypatch):
    sizes = {"hidden_size": 16, "n_layers": 1, "inner_size": 24}
    first = pretraining_config(toy_config("DiffuRec", pretrain="SASRec", **sizes))
    assert {key: first[key] for key in sizes} == sizes
    monkeypatch.setattr(quick_start, "fit_and_test", lambda *args: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=r"pretrain \[GRU4Rec\] has item embeddings of size 64, .* hidden_size \[16\]"):
        quick_start.prepare_training(toy_config("DiffuRec", pretrain="GRU4Rec", **sizes))


@pytest.mark.parametrize("name, said", [("Pop", "no item embeddings"), ("BPR", "item embeddings of size 64")])
def test_a_first_model_that_reads_more_than_histories_is_refused_before_it_trains_too(monkeypatch, name, said):
    monkeypatch.setattr(quick_start, "fit_and_test", lambda *args: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=rf"pretrain \[{name}\] has {said}, and must have some of hidden_size \[32\]"):
        quick_start.prepare_training(toy_config("DiffuRec", pretrain=name))


def test_the_first_model_is_warned_of_no_key_that_the_second_alone_was_told(recwarn):
    first = pretraining_config(toy_config("ADRec", pretrain="SASRecPlus", num_steps=3))
    assert not [one for one in recwarn if "no effect" in str(one.message)] and not first["use_position_embedding"]
    with pytest.raises(ValueError, match="pretrain_config must not hold dataset"):
        pretraining_config(toy_config("ADRec", pretrain="SASRecPlus", pretrain_config={"dataset": "ml-100k"}))


def test_a_pretraining_that_another_process_is_writing_is_waited_for(tmp_path, caplog):
    """The same one, by another run beside it: it is neither trained twice nor an error."""
    keys = {"pretrain": "SASRecPlus", "loss_scale": 0, "epochs": 1, "checkpoint_dir": str(tmp_path)}
    train_and_test(toy_config("ADRec", **keys))
    [last] = tmp_path.glob("pretrain/*-last.pth")
    with ThreadPoolExecutor(1) as pool, caplog.at_level("WARNING"):
        with lock_file(lock_of(best_file_of(last)), "it"):
            second = pool.submit(quick_start._pretrain, toy_config("ADRec", num_steps=3, **keys))
            while "Waits for the pretraining" not in caplog.text:  # however long it takes to come here
                assert not wait([second], timeout=0.05).done
        assert second.result(timeout=300) == best_file_of(last)
    assert [last] == [*tmp_path.glob("pretrain/*-last.pth")]


def test_each_of_the_two_trainings_has_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's, beside which RecBole opens none
    train_and_test(toy_config("ADRec", pretrain="SASRecPlus", loss_scale=0, epochs=1, state="INFO"))
    logs = {path.parent.name: path.read_text() for path in tmp_path.glob("log/*/*.log")}
    assert logs.keys() == {"ADRec", "SASRecPlus"}
    assert all(f"{name}(" in text and "test result" in text for name, text in logs.items())
    assert "ADRec(" not in logs["SASRecPlus"] and "SASRecPlus(" not in logs["ADRec"]


def test_what_the_first_model_is_told_stands_above_what_the_props_tell_it():
    first = pretraining_config(toy_config("ADRec", pretrain="SASRecPlus", pretrain_config={"initializer_range": 0.2}))
    assert (first["initializer"], first["initializer_range"]) == ("normal", 0.2)


def test_a_config_file_tells_each_of_the_two_models_what_is_its_own(tmp_path):
    file, own = tmp_path / "both.yaml", {"SASRecPlus": {"hidden_dropout_prob": 0.4, "initializer_range": 0.3}}
    own["ADRec"] = {"learning_rate": 0.0007, "attn_dropout_prob": 0.2}
    file.write_text(yaml.safe_dump({"learning_rate": 0.004, "weight_decay": 0.01, "per_model": own}))
    keys = {"pretrain": "SASRecPlus", "weight_decay": 0.02}
    second = build_config("ADRec", "markov-toy", [file], keys)
    first = pretraining_config(second)
    names = ("learning_rate", "hidden_dropout_prob", "attn_dropout_prob", "weight_decay")
    assert [second[key] for key in names] == [0.0007, 0.1, 0.2, 0.02]
    assert [first[key] for key in names] == [0.004, 0.4, 0.1, 0.02] and first["initializer_range"] == 0.3
    told = build_config("ADRec", "markov-toy", [file], {**keys, "pretrain_config": {"initializer_range": 0.2}})
    assert pretraining_config(told)["initializer_range"] == 0.2


@pytest.mark.slow
def test_a_first_training_of_another_length_is_another(tmp_path):
    keys = {"num_steps": 4, "limit_train_batches": 2, "checkpoint_dir": str(tmp_path), "pretrain": "SASRecPlus"}
    for epochs in (1, 2, 1):
        train_and_test(toy_config("ADRec", epochs=epochs, **keys))
    files = [path for path in (tmp_path / "pretrain").glob("SASRecPlus*-last.pth")]
    assert sorted(load_checkpoint(path)["epoch"] for path in files) == [0, 1]


@pytest.mark.slow
def test_one_command_pretrains_and_goes_on(tmp_path, monkeypatch):
    """The command line is for the second model: what stands there of the start is not for the first."""
    monkeypatch.setattr("sys.argv", ["run", "--pretrain=SASRecPlus", "--freeze_embedding_epochs=1"])
    keys = {**TINY, "data_path": str(ROOT / "dataset"), "num_steps": 4, "epochs": 1, "limit_train_batches": 2}
    keys |= {"state": "ERROR", "show_progress": False, "checkpoint_dir": str(tmp_path / "saved")}
    result = run("ADRec", "markov-toy", config_dict=keys)
    [first] = [path for path in (tmp_path / "saved" / "pretrain").glob("SASRecPlus*.pth") if "-last" not in path.name]
    assert torch.equal(embeddings(result["model_file"]), embeddings(first))
    assert load_checkpoint(first)["epoch"] == 0
    stamp = first.stat().st_mtime_ns
    again = run("ADRec", "markov-toy", config_dict={**keys, "pretrain": "SASRecPlus", "epochs": 1, "seed": 2020})
    assert first.stat().st_mtime_ns == stamp and again["test_result"] == result["test_result"]


@pytest.mark.slow
def test_a_cut_in_the_first_training_names_no_file_for_the_second(tmp_path, monkeypatch):
    keys = {"num_steps": 4, "limit_train_batches": 2, "checkpoint_dir": str(tmp_path), "pretrain": "SASRecPlus"}
    config, steps, update = toy_config("ADRec", epochs=2, **keys), [], DiffusionTrainer._update

    def cut(self, *args):
        steps.append(self.config["model"])
        if len(steps) == 3:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(DiffusionTrainer, "_update", cut)
    with pytest.raises(Interrupted, match=r"SASRecPlus-.*-last.pth holds the state after epoch 1\.") as stop:
        train_and_test(config)
    assert stop.value.resume is None
    # Several processes leave their parent to find the same.
    found = quick_start._interrupted(config)
    assert str(found) == str(stop.value) and found.resume is None
    longer = toy_config("ADRec", epochs=2, pretrain_config={"epochs": 3}, **keys)  # another pretraining
    assert "nothing is saved" in str(quick_start._interrupted(longer))
    train_and_test(toy_config("ADRec", epochs=2, **keys))
    assert steps == 5 * ["SASRecPlus"] + 4 * ["ADRec"]


@pytest.mark.slow
def test_a_resumed_run_trains_nothing_first(tmp_path):
    keys = {"num_steps": 4, "limit_train_batches": 2, "checkpoint_dir": str(tmp_path), "pretrain": "SASRecPlus"}
    train_and_test(toy_config("ADRec", epochs=1, **keys))
    for path in (tmp_path / "pretrain").iterdir():
        path.unlink()
    trainer, *_ = prepare_training(toy_config("ADRec", epochs=2, resume="auto", **keys))
    assert trainer.start_epoch == 1 and not list((tmp_path / "pretrain").iterdir())


@pytest.mark.parametrize("keys, warns", [({}, True), ({"loss_scale": 0}, False), ({"item_embedding_file": ...}, False)])
def test_adrec_from_scratch_is_warned_of_where_training_starts(keys, warns, file, caplog):
    keys = {key: file if value is ... else value for key, value in keys.items()}
    it = toy("ADRec", **SHORT, num_steps=4, **keys)
    assert "from scratch" not in caplog.text  # serving builds the model, too
    with caplog.at_level(logging.WARNING):
        DiffusionTrainer(it.config, it.model).fit(it.train)
    assert ("ADRec from scratch with loss_scale [1.0]" in caplog.text) == warns
    assert ("from scratch" in caplog.text) == warns


def test_where_nobody_pretrains_that_is_told():
    keys = {**TINY, "data_path": str(ROOT / "dataset"), "state": "ERROR", "pretrain": "SASRecPlus"}
    with pytest.raises(ValueError, match=r"pretrain \[SASRecPlus\] is read by run_recbole_diffusion.py and quick_star"):
        run_recbole(model="ADRec", dataset="markov-toy", config_dict={**keys, "train_neg_sample_args": None})
    with pytest.raises(ValueError, match=r"model \[SASRecPlu\] is unknown\. Did you mean SASRecPlus"):
        prepare_training(toy_config("ADRec", pretrain="SASRecPlu"))
    with pytest.warns(UserWarning, match="pretrain .* has no effect on SASRec"):
        assert "pretrain" not in build_config("SASRec", "markov-toy", None, {**keys})

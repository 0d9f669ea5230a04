"""Optimizers, learning-rate schedules, mixed precision, clipping, stopping on NaN, and exact resume."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from recbole.utils import init_seed

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.config.settings import resume_settings
from recbole_diffusion.quick_start import build_trainer, objective_function, run, train_and_test
from recbole_diffusion.trainer import DiffusionTrainer, build_lr_lambda, check_training_config
from recbole_diffusion.trainer.resume import load_schedule

from ..conftest import ROOT, TINY, batch_of, toy, toy_config

QUIET = {"state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset"), "num_steps": 4, **TINY}


def test_learning_rate_schedules():
    step = build_lr_lambda({"name": "step", "start_epoch": 3, "step_size": 2, "gamma": 0.1}, 10)
    assert [round(step(e), 6) for e in range(8)] == [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    cosine = build_lr_lambda({"name": "cosine", "min_factor": 0.2}, 10)
    assert cosine(0) == 1 and math.isclose(cosine(5), 0.6) and math.isclose(cosine(10), 0.2)
    warm = build_lr_lambda({"name": "constant", "warmup_epochs": 3}, 10)
    assert [warm(e) for e in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert build_lr_lambda(None, 10)(7) == 1


def test_the_schedule_drives_the_optimizer():
    it = toy("DiffuRec", lr_scheduler={"name": "step", "start_epoch": 1, "step_size": 9, "gamma": 0.1})
    trainer = DiffusionTrainer(it.config, it.model)
    rates = []
    for epoch in range(2):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.limit_train_batches = 1
        trainer._train_epoch(it.train, epoch)
    assert rates == pytest.approx([0.001, 0.0001])


@pytest.mark.parametrize(
    "key, value",
    [
        ("learner", "adamm"),
        ("amp_dtype", "int8"),
        ("limit_train_batches", 0),
        ("limit_train_batches", True),
        ("clip_grad_norm", 1.0),
        ("lr_scheduler", {"name": "stairs"}),
        ("lr_scheduler", "step"),
        ("lr_scheduler", {"name": "step", "gama": 0.1}),
        ("lr_scheduler", {"name": "step", "gamma": -1}),
        ("lr_scheduler", {"name": "step", "step_size": 0}),
        ("lr_scheduler", {"name": ["step"]}),
    ],
)
def test_bad_training_keys_are_named_before_any_data_is_loaded(key, value):
    with pytest.raises(ValueError, match=key):
        toy_config("DiffuRec", **{key: value})


def test_every_learner_is_built():
    kinds = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "adagrad": "Adagrad", "rmsprop": "RMSprop"}
    for learner, kind in kinds.items():
        it = toy("DiffuRec", learner=learner, weight_decay=0.01)
        optimizer = DiffusionTrainer(it.config, it.model).optimizer
        assert type(optimizer).__name__ == kind and optimizer.param_groups[0]["weight_decay"] == 0.01


def test_the_number_of_batches_is_cut():
    it = toy("DiffuRec", limit_train_batches=2)
    seen = []
    trainer = DiffusionTrainer(it.config, it.model)
    trainer._train_epoch(it.train, 0, loss_func=lambda batch: seen.append(1) or it.model.calculate_loss(batch))
    assert len(seen) == 2


@pytest.mark.parametrize("dtype", ["bf16"])
def test_autocast_runs_in_the_wanted_type(dtype):
    it = toy("DiffuRec", enable_amp=True, amp_dtype=dtype, limit_train_batches=1)
    trainer = DiffusionTrainer(it.config, it.model)
    types = []
    it.model.approximator.register_forward_hook(lambda module, args, out: types.append(out.dtype))
    it.model.approximator.blocks[0].dense_1.register_forward_hook(lambda m, args, out: types.append(out.dtype))
    before = it.model.item_embedding.weight.clone()
    trainer._train_epoch(it.train, 0)
    assert torch.bfloat16 in types and not torch.equal(before, it.model.item_embedding.weight)


def test_validation_alone_takes_fewer_steps():
    it = toy("DiffuRec", valid_sampling_steps=2, num_steps=6)
    trainer, steps = DiffusionTrainer(it.config, it.model), []
    predict_start = it.model.approximator.register_forward_hook(lambda *args: steps.append(1))
    trainer._valid_epoch(it.valid)
    few = len(steps)
    trainer.evaluate(it.valid, load_best_model=False)
    predict_start.remove()
    assert len(steps) - few == 3 * few and few == 2 * len(it.valid)
    with pytest.raises(ValueError, match=r"valid_sampling_steps \[7\] must be at most num_steps \[6\]"):
        toy("DiffuRec", valid_sampling_steps=7, num_steps=6)


def test_gradients_are_clipped():
    it = toy("DiffuRec", clip_grad_norm={"max_norm": 1e-3}, limit_train_batches=1)
    trainer = DiffusionTrainer(it.config, it.model)
    trainer._train_epoch(it.train, 0)
    norm = torch.stack([p.grad.norm() for p in it.model.parameters()]).norm()
    assert norm <= 1.001e-3


def test_a_nan_loss_stops_at_its_step_and_keeps_the_last_good_checkpoint():
    it = toy("DiffuRec", epochs=3)
    trainer = build_trainer(it.config, it.model)
    steps_per_epoch = len(it.train)
    calls = []
    calculate_loss = it.model.calculate_loss

    def poisoned(interaction):
        calls.append(1)
        loss = calculate_loss(interaction)
        return loss * float("nan") if len(calls) == steps_per_epoch + 3 else loss

    it.model.calculate_loss = poisoned
    with pytest.raises(ValueError, match="nan.*at epoch 1, step 2"):
        trainer.fit(it.train, it.valid, verbose=False)
    state = load_checkpoint(trainer.saved_model_file)
    assert state["epoch"] == 0 and all(value.isfinite().all() for value in state["state_dict"].values())


def test_a_nan_loss_is_found_among_those_that_wait_on_the_device():
    it = toy("DiffuRec")
    trainer = DiffusionTrainer(it.config, it.model)
    waiting = [torch.tensor([float("nan") if i == 2 else 1.0]) for i in range(5)]
    with pytest.raises(ValueError, match="at epoch 4, step 17"):
        trainer._add_finite([1.0], waiting, 4, step=19)


def straight(folder, **overrides):
    config = {**QUIET, "epochs": 4, "checkpoint_dir": str(folder), "step_sampler": "loss_aware", **overrides}
    return run("DiffuRec", "markov-toy", config_dict=config)


@pytest.mark.slow
def test_a_resumed_run_equals_the_one_that_was_not_cut(tmp_path):
    whole = straight(tmp_path / "a")
    cut = straight(tmp_path / "b", epochs=2)
    assert cut["test_result"] != whole["test_result"]
    last = cut["model_file"].replace(".pth", "-last.pth")
    random.seed(99)
    for resume in (last, "auto"):
        again = straight(tmp_path / "b", resume=resume)
        assert again["test_result"] == whole["test_result"] and again["best_valid_result"] == whole["best_valid_result"]
    # Resumed after its end, nothing is trained and the best checkpoint stays as it is.
    before = Path(again["model_file"]).read_bytes()
    assert straight(tmp_path / "b", resume="auto")["test_result"] == whole["test_result"]
    assert Path(again["model_file"]).read_bytes() == before


@pytest.mark.slow
def test_recbole_models_resume_too(tmp_path):
    def sasrec(folder, **overrides):
        config = {**QUIET, "epochs": 3, "checkpoint_dir": str(tmp_path / folder), "hidden_size": 32, **overrides}
        return run("SASRec", "markov-toy", config_dict=config)

    whole = sasrec("a")
    sasrec("b", epochs=1)
    assert sasrec("b", resume="auto")["test_result"] == whole["test_result"]


def test_auto_takes_no_other_run(tmp_path):
    straight(tmp_path / "b", epochs=1)
    from recbole_diffusion.quick_start import build_config, find_resume_file

    base = {**QUIET, "checkpoint_dir": str(tmp_path / "b"), "step_sampler": "loss_aware", "resume": "auto"}
    assert find_resume_file(build_config("DiffuRec", "markov-toy", None, {**base, "epochs": 9}))
    assert find_resume_file(build_config("DiffuRec", "markov-toy", None, {**base, "learning_rate": 0.5})) is None
    assert find_resume_file(build_config("DiffuRec", "markov-toy", None, {**base, "resume": None})) is None


@pytest.mark.slow
def test_auto_goes_on_after_the_data_has_moved(tmp_path):
    """The folder of the datasets and that of the run are moved; the loaded checkpoint still names the old ones."""
    shutil.copytree(ROOT / "dataset", tmp_path / "old")
    straight(tmp_path / "run", epochs=2, data_path=str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "run").rename(tmp_path / "moved")
    went_on(tmp_path, "moved", data_path=str(tmp_path / "new"))


@pytest.mark.slow
def test_auto_goes_on_with_a_saved_dataset(tmp_path):
    """The loaded checkpoint has the key nulled, as RecBole unpickles what it names."""
    saved = tmp_path / "run" / "markov-toy-SequentialDataset.pth"
    straight(tmp_path / "run", epochs=1, save_dataset=True)
    [file] = saved.parent.glob("*-last.pth")
    file.unlink()
    straight(tmp_path / "run", epochs=2, dataset_save_path=str(saved))
    went_on(tmp_path, "run", dataset_save_path=str(saved))


def went_on(tmp_path, folder, **overrides):
    """Resume up to the fourth epoch and compare with the run that was not cut: the same best and last state."""
    whole = straight(tmp_path / "whole")
    again = straight(tmp_path / folder, resume="auto", **overrides)
    assert again["test_result"] == whole["test_result"] and again["epochs"] == 4
    last = [load_checkpoint(next((tmp_path / name).glob("*-last.pth"))) for name in ("whole", folder)]
    assert last[0]["train_loss_dict"] == last[1]["train_loss_dict"]
    assert len(list((tmp_path / folder).glob("*-last.pth"))) == 1


def test_the_process_of_a_run_does_not_tell_it_from_another():
    """Every process of a distributed run finds the file that the first one wrote."""
    first, second = toy_config("DiffuRec"), toy_config("DiffuRec")
    second["local_rank"], second["show_progress"] = 1, False
    assert resume_settings(first) == resume_settings(second)
    second["world_size"] = 2
    assert resume_settings(first) != resume_settings(second)


@pytest.mark.slow
def test_auto_passes_over_a_broken_file(tmp_path):
    straight(tmp_path / "b", epochs=1)
    (tmp_path / "b" / "DiffuRec-later-last.pth").write_bytes(b"junk")
    config = {"checkpoint_dir": str(tmp_path / "b"), "step_sampler": "loss_aware", "resume": "auto", "epochs": 9}
    from recbole_diffusion.quick_start import build_config, find_resume_file

    found = find_resume_file(build_config("DiffuRec", "markov-toy", None, {**QUIET, **config}))
    assert found and "later" not in found


@pytest.mark.slow
def test_a_longer_run_goes_on_at_the_rate_of_its_own_schedule(tmp_path):
    """A cosine over two epochs ends at 0, and the run that goes on is halfway down its own."""
    straight(tmp_path, epochs=2, lr_scheduler={"name": "cosine"})
    it = toy("DiffuRec", step_sampler="loss_aware", lr_scheduler={"name": "cosine"}, num_steps=4, epochs=4)
    trainer = DiffusionTrainer(it.config, it.model)
    [last] = tmp_path.rglob("*-last.pth")
    trainer.resume_checkpoint(last)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(it.config["learning_rate"] / 2)


def test_the_schedule_of_another_pytorch_is_taken_up():
    def schedule():
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)

    # PyTorch 2.4's, after two epochs.
    state = {
        "base_lrs": [0.5],
        "last_epoch": 2,
        "verbose": False,
        "_step_count": 3,
        "_get_lr_called_within_step": False,
    }
    state |= {"_last_lr": [0.125], "lr_lambdas": [None]}
    found = schedule()
    load_schedule(found, state)
    assert found.last_epoch == 2 and found.optimizer.param_groups[0]["lr"] == 0.125
    found.optimizer.step()
    found.step()
    assert found.get_last_lr() == [0.0625] and not hasattr(found, "verbose")
    for key, value in (("last_epoch", "2"), ("base_lrs", 0.5)):
        with pytest.raises(ValueError, match="other kinds"):
            load_schedule(schedule(), {**state, key: value})


@pytest.mark.slow
def test_the_schedule_goes_on_from_a_best_checkpoint(tmp_path):
    schedule = {"name": "step", "start_epoch": 1, "step_size": 100, "gamma": 0.1}
    best = straight(tmp_path, epochs=2, lr_scheduler=schedule)["model_file"]
    it = toy("DiffuRec", step_sampler="loss_aware", lr_scheduler=schedule, num_steps=4)
    trainer = DiffusionTrainer(it.config, it.model)
    trainer.resume_checkpoint(best)
    rates = []
    for _ in range(3):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert trainer.start_epoch == 2 and rates == pytest.approx([rates[0]] * 3)
    [base] = trainer.lr_scheduler.base_lrs
    assert rates[0] == pytest.approx(0.1 * base)


@pytest.mark.slow
def test_recboles_models_take_no_notice_of_fewer_steps_in_validation():
    config = {**QUIET, "epochs": 1, "limit_train_batches": 2, "valid_sampling_steps": 2}
    assert run("SASRec", "markov-toy", config_dict=config)["test_result"]["ndcg@10"] > 0


@pytest.mark.slow
def test_a_run_that_saves_its_data_loaders_is_the_same_run(tmp_path):
    plain, saving = (straight(tmp_path, epochs=2, save_dataloaders=saves) for saves in (False, True))
    weights = [load_checkpoint(result["model_file"])["state_dict"] for result in (plain, saving)]
    assert plain["test_result"] == saving["test_result"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_other_settings_in_a_continuation_are_warned_of(tmp_path):
    cut = straight(tmp_path, epochs=1)
    with pytest.warns(UserWarning, match=r"learning_rate \[0.5\] was \[0.001\].*optimizer goes on"):
        straight(tmp_path, epochs=2, learning_rate=0.5, resume=cut["model_file"])


def test_two_runs_of_the_same_second_have_files_of_their_own():
    it = toy("DiffuRec")
    assert len({DiffusionTrainer(it.config, it.model).saved_model_file for _ in range(4)}) == 4


@pytest.mark.slow
def test_resuming_another_model_is_refused(tmp_path):
    cut = straight(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=r"\[DiffuRec\], not \[DiffuRecSys\]"):
        run("DiffuRecSys", "markov-toy", config_dict={**QUIET, "epochs": 1, "resume": cut["model_file"]})
    with pytest.raises(ValueError, match="does not fit"):
        straight(tmp_path, hidden_size=16, resume=cut["model_file"])


@pytest.mark.slow
def test_tensorboard_has_what_a_diffusion_run_needs():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    straight(".", epochs=2)
    [folder] = Path("log_tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    names = set(events.Tags()["scalars"])
    assert {"Loss/Train", "Train/gradient_norm", "Train/learning_rate", "Vaild_score"} <= names
    ranges = sorted(name for name in names if name.startswith("Loss/Step_range"))
    assert len(ranges) == 4
    mean = [sum(events.Scalars(name)[0].value for name in ranges) / 4]
    total = events.Scalars("Loss/Train")[0].value / len(toy("DiffuRec").train)
    assert mean[0] == pytest.approx(total, rel=0.1) and events.Scalars("Train/gradient_norm")[0].value > 0
    draws = [name for name in names if name.startswith("Step_sampler/")]
    assert sum(events.Scalars(name)[0].value for name in draws) == pytest.approx(1, abs=1e-4)


def test_losses_and_draws_are_logged_by_the_same_ranges_of_steps():
    it = toy("DiffuRec", num_steps=20)
    trainer, logged = DiffusionTrainer(it.config, it.model), {}
    trainer.tensorboard = SimpleNamespace(add_scalar=lambda name, value, epoch: logged.update({name: value}))
    it.model.record_step_losses(torch.arange(20), torch.arange(20.0))
    trainer._log_steps(0)
    ranges = [torch.arange(20)[torch.arange(20) * 8 // 20 == bucket].float() for bucket in range(8)]
    assert [logged[f"Loss/Step_range_{b}"] for b in range(8)] == pytest.approx([r.mean().item() for r in ranges])
    assert [logged[f"Step_sampler/Step_range_{b}"] for b in range(8)] == pytest.approx([len(r) / 20 for r in ranges])


@pytest.mark.slow
def test_the_objective_reports_each_validation():
    seen = []
    config = {**QUIET, "model": "DiffuRec", "dataset": "markov-toy", "epochs": 2, "limit_train_batches": 1}
    result = objective_function(config, callback_fn=lambda epoch, score: seen.append((epoch, float(score))))
    assert [epoch for epoch, _ in seen] == [0, 1] and max(score for _, score in seen) == result["best_valid_score"]


@pytest.mark.slow
def test_training_is_reproducible():
    config = toy_config("DiffuRec", epochs=1, limit_train_batches=2, num_steps=4)
    first = train_and_test(config, saved=False)
    init_seed(1, True)
    assert train_and_test(config, saved=False)["test_result"] == first["test_result"]
    assert first["model_file"] is None


def test_check_training_config_takes_recboles_defaults():
    check_training_config({"learner": "adam"})
    assert batch_of(toy("DiffuRec").train, 3).length == 3

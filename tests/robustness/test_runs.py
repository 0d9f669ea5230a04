"""Runs that are cut, started twice, or that cannot write; and the same run twice, bit by bit."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.compat.files import lock_file, locked, remove_parts, whole_file
from recbole_diffusion.quick_start import build_config, prepare_training, run

from ..conftest import ROOT, TINY, hear_ctrl_c

pytestmark = pytest.mark.slow
QUIET = {**TINY, "num_steps": 4, "state": "ERROR", "show_progress": False, "data_path": str(ROOT / "dataset")}
TRAIN = f"""
import sys; sys.argv = sys.argv[:1]
from recbole_diffusion.quick_start import run

settings = {{**{QUIET!r}, "resume": "auto", "epochs": 8, "limit_train_batches": 3}}
found = run("DiffuRec", "markov-toy", config_dict=settings)
print(found["model_file"])
"""
# It stops for ten minutes after so many epochs, which leaves time to cut it there.
PAUSE = """
import time
from recbole_diffusion.trainer import DiffusionTrainer as Trainer

save = Trainer.save_last_checkpoint
Trainer.save_last_checkpoint = lambda self, epoch: (save(self, epoch), time.sleep(600 * (epoch + 1 == {epochs})))
"""


def start(code: str = TRAIN, cwd: Path | None = None) -> subprocess.Popen:
    command, environment = [sys.executable, "-W", "ignore", "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "text": True, "preexec_fn": hear_ctrl_c}
    return subprocess.Popen(command, env=environment, cwd=cwd, **options)


def prepare(**settings):
    return prepare_training(build_config("DiffuRec", "markov-toy", None, {**QUIET, **settings}))


def weights(file) -> dict[str, torch.Tensor]:
    return load_checkpoint(file)["state_dict"]


# ---------------------------------------------------------------- two at once


def test_a_second_process_is_told_that_the_run_goes_on(tmp_path):
    file = run("DiffuRec", "markov-toy", config_dict={**QUIET, "epochs": 1, "limit_train_batches": 1})["model_file"]
    trainer, train_data, valid_data, _ = prepare(epochs=2, resume="auto", limit_train_batches=1)
    assert trainer.saved_model_file == file
    told = []

    def second(epoch: int, score: float) -> None:
        other, rows, valid, _ = prepare(epochs=2, resume=file.replace(".pth", "-last.pth"), limit_train_batches=1)
        with pytest.raises(ValueError, match=rf"the run of \[{file}\] is being written by another process") as error:
            other.fit(rows, valid, show_progress=False)
        told.append(error)

    trainer.fit(train_data, valid_data, show_progress=False, callback_fn=second)
    assert told and not list(Path("saved").glob(".*"))  # the lock is gone
    trainer.fit(train_data, valid_data, show_progress=False)


def test_a_lock_of_a_process_that_is_gone_holds_nobody_up(tmp_path):
    (tmp_path / "lock").write_text("")
    with lock_file(tmp_path / "lock", "it"):
        assert (tmp_path / "lock").exists()
    assert not (tmp_path / "lock").exists()


def test_a_lock_on_a_file_that_has_been_replaced_is_none(tmp_path):
    with open(tmp_path / "a", "a") as file:
        os.replace(tmp_path / "a", tmp_path / "b")
        with pytest.raises(ValueError, match="it is being written by another process"), locked(file, "it"):
            pass


# ---------------------------------------------------------------- where nothing can be written


def test_a_folder_that_cannot_be_written_is_told_before_the_first_epoch(monkeypatch):
    trainer, train_data, valid_data, _ = prepare(epochs=1)
    Path("saved").rmdir()
    Path("saved").write_text("a file where the folder should be")
    monkeypatch.setattr(type(trainer), "_train_epoch", lambda *args, **kwargs: pytest.fail("it trained"))
    with pytest.raises(OSError, match="saved"):
        trainer.fit(train_data, valid_data, show_progress=False)


def test_a_full_disk_ends_the_run_in_one_line_and_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands in for the disk."""
    file = run("DiffuRec", "markov-toy", config_dict={**QUIET, "epochs": 1, "limit_train_batches": 1})["model_file"]
    before = Path(file).read_bytes()
    trainer, *_ = prepare(epochs=1)
    trainer.saved_model_file = file
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError) as error:
            trainer._save_checkpoint(1, verbose=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert Path(file).read_bytes() == before and not list(Path("saved").glob(".*"))


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_permissions_of_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "a") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a") as file:
        file.write("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


# ---------------------------------------------------------------- cut


def test_what_a_killed_process_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    own = [".run[1].pth.0123abcd", ".run[1].pth.ffffffff"]
    others = [
        "run[1].pth",
        ".run[1].pth.lock",
        ".run[1]-last.pth.0123abcd",
        ".run1.pth.0123abcd",
        ".run[1].pth.0123abcdef",
    ]
    for name in own + others:
        (tmp_path / name).touch()
    remove_parts(tmp_path / "run[1].pth")
    assert {path.name for path in tmp_path.iterdir()} == {*others}


def test_a_run_removes_what_was_left_of_its_own_files():
    trainer, *data = prepare(epochs=1)
    for name in (trainer.saved_model_file, trainer.last_model_file):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.with_name(f".{path.name}.0123abcd").touch()
    trainer.fit(*data[:2])
    assert not list(Path("saved").glob(".*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, torch.Tensor]:
    """What the run that nobody cuts ends with."""
    folder = tmp_path_factory.mktemp("whole")
    return weights(folder / start(cwd=folder).communicate()[0].split()[-1])


@pytest.mark.parametrize("sign, epochs", [("SIGKILL", 1), ("SIGKILL", 3), ("SIGTERM", 2), ("SIGINT", 1)])
def test_a_run_that_is_killed_ends_as_if_it_never_was(whole, sign, epochs):
    process = start(PAUSE.format(epochs=epochs) + TRAIN)
    while True:  # until that many epochs are on the disk
        time.sleep(0.02)
        assert process.poll() is None, "it ended before it was cut"
        last = [path for path in Path("saved").glob("*-last.pth")] if Path("saved").is_dir() else []
        try:
            if last and load_checkpoint(last[0])["epoch"] + 1 >= epochs:
                break
        except (FileNotFoundError, ValueError):
            continue
    process.send_signal(getattr(signal, sign))
    process.communicate()
    again = start()
    file = again.communicate()[0].split()[-1]
    assert again.returncode == 0
    found = weights(file)
    assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)
    assert len(list(Path("saved").glob("*.pth"))) == 2 and not list(Path("saved").glob(".*.pth.????????"))


@pytest.mark.probe
def test_runs_cut_at_any_moment_end_with_the_same_bits(tried):
    script = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "benchmarks" / "interrupted.py"),
        f"--data_path={ROOT / 'dataset'}",
    ]
    flags = ["--runs=12", "--threads=1", "--models=DiffuRec CDDRec SASRecPlus"]
    done = subprocess.run(script + flags, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cuts = int(re.search(r"cut (\d+) times, 1 threads: 0 ended otherwise", done.stdout)[1])
    tried(cuts)
    assert cuts >= 20


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("wanted", [True, False])
def test_reproducibility_asks_all_of_pytorch_for_it(wanted):
    prepare(epochs=1, reproducibility=wanted)
    assert torch.are_deterministic_algorithms_enabled() is wanted


# Without `reproducibility` ADRec's differ; the others' seldom do.
@pytest.mark.parametrize("model", ["ADRec", "DiffuRec", "CDDRec", "SASRec"])
def test_the_same_run_with_two_threads_gives_the_same_bits(model):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        settings = {**QUIET, "hidden_size": 64, "train_batch_size": 128, "epochs": 2, "eval_step": 0}
        settings["limit_train_batches"] = 4
        files = [run(model, "markov-toy", config_dict=settings)["model_file"] for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    first, *others = map(weights, files)
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)

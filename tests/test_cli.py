"""The commands before their work begins, and how they end: help at once, wrong flags, a closed pipe, Ctrl-C."""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from recbole_diffusion import MODELS, registry
from recbole_diffusion.analysis import SECTIONS
from recbole_diffusion.analysis.report import MAKERS
from recbole_diffusion.cli import model_summaries, parse_flags, parse_with_parameters
from recbole_diffusion.config.keys import KEYS, RECBOLE_KEYS

from .conftest import ROOT, hear_ctrl_c

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SCRIPTS = [
    *("run_recbole_diffusion.py", "run_hyper.py", "benchmarks/throughput.py", "benchmarks/scaling.py"),
    *("benchmarks/reproduce.py", "benchmarks/data_cost.py", "benchmarks/same_results.py"),
    *("benchmarks/batch_recommendation.py", "benchmarks/serving.py", "benchmarks/processes.py"),
]
MODULES = ["compare", "analysis", "recommend"]
COMMANDS = [[str(ROOT / name)] for name in SCRIPTS] + [["-m", f"recbole_diffusion.{name}"] for name in MODULES]
TOY = ["--dataset=markov-toy", f"--data_path={ROOT / 'dataset'}", "--hidden_size=16", "--inner_size=16", "--n_layers=1"]
TOY += ["--n_heads=2", "--MAX_ITEM_LIST_LENGTH=10", "--num_steps=2"]


def start(words, cwd, **options) -> subprocess.Popen:
    command = [sys.executable, *words]
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, text=True, preexec_fn=hear_ctrl_c, **options)


def output(words, cwd) -> tuple[int, str, str]:
    process = start(words, cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: Path(words[-1]).name)
def test_help_comes_before_torch_and_recbole(tmp_path, command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, err = output(["-X", "importtime", *command, "--help"], tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and out.startswith("usage: ")
    imported = {name.split(".")[0] for name in re.findall(r"\| +(\S+)$", err, re.MULTILINE)}
    assert "argparse" in imported and not imported & {"torch", "recbole", "numpy", "pandas", "ray", "plotly", "yaml"}
    # Of the processor's time: the clock tells of the machine's load as well.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["results_table", "manifest", "jobs"])
def test_a_part_of_a_command_names_the_command(tmp_path, part):
    code, _, err = output([str(ROOT / "benchmarks" / f"{part}.py"), "--help"], tmp_path)
    assert code != 0 and "benchmarks/reproduce.py" in err and "Traceback" not in err


def test_the_models_of_the_help_are_those_registered():
    assert model_summaries() == {name: MODELS[name].__doc__.splitlines()[0] for name in sorted(MODELS, key=str.lower)}
    assert list(MAKERS) == list(SECTIONS)


@pytest.mark.slow
def test_what_torch_alone_can_run_needs_torch_alone(tmp_path):
    """A folder with PyTorch and what it requires, and nothing else that is installed."""
    for name in required("torch"):
        for file in metadata.files(name):
            top = Path(metadata.distribution(name).locate_file(file.parts[0]))
            link = tmp_path / top.name
            if file.parts[0] != ".." and not link.exists():
                link.symlink_to(top)
    code = (
        "import torch, recbole_diffusion\n"
        "from recbole_diffusion.diffusion_utils import GaussianDiffusion, get_betas, sample\n"
        "diffusion = GaussianDiffusion(get_betas('cosine', 5))\n"
        "assert sample(diffusion, lambda x_t, t: x_t / 2, torch.ones(2, 3), method='ddim').shape == (2, 3)\n"
        "try: recbole_diffusion.MODELS\n"
        "except ImportError as error: print(error)\n"
    )
    paths = f"{tmp_path}{os.pathsep}{ROOT}"
    command = [sys.executable, "-S", "-W", "ignore", "-c", code]  # -S: no site-packages
    done = subprocess.run(command, env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert "needs RecBole 1.2.1, which is not installed. Run: pip install --no-deps recbole==1.2.1" in done.stdout, done
    command[-2:] = [str(ROOT / "run_recbole_diffusion.py"), "--model=DiffuRec"]
    done = subprocess.run(command, env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert "ImportError: recbole-diffusion needs RecBole" in done.stderr and "Traceback" not in done.stderr
    command[-1] = "--help"
    assert "DiffuRec " in subprocess.run(command, env={"PYTHONPATH": paths}, capture_output=True, text=True).stdout


def required(name: str) -> set[str]:
    """Distributions that one needs, itself among them, as they are installed here."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        plain = {re.match(r"[\w.-]+", line)[0] for line in needs if "extra ==" not in line}
        waiting += [other for other in plain if other not in found]
    return found


@pytest.mark.slow
def test_importing_the_package_registers_unless_a_command_reads_its_flags(tmp_path):
    """A script of a user's own, also one called as ours is, finds the models right after the import."""
    code = "import recbole_diffusion\nfrom recbole.utils import get_model\nprint(get_model('DiffuRec').__name__)\n"
    for place in (tmp_path / "run_hyper.py", tmp_path / "mine" / "__main__.py"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(code)
    for words in (["-c", code], ["run_hyper.py"], ["-m", "mine"]):
        assert output(["-W", "ignore", *words], tmp_path)[:2] == (0, "DiffuRec\n"), words


# ---------------------------------------------------------------- flags


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="command", allow_abbrev=False)
    made.add_argument("--max_evals", type=int)
    made.add_argument("--set", action="append")
    return made


@pytest.mark.parametrize(
    "words, message",
    [
        (["--max_eval=3"], r"max_eval \[3\] is unknown: did you mean --max_evals\?"),
        (["--max_evals=3", "--max_evals=4"], "--max_evals is given 2 times"),
        (["--epochs=3", "--epochs=3"], "--epochs is given 2 times"),
        (["--epochs", "3"], r"cannot read \[--epochs\]: write parameters as --key=value"),
        (["--learning_rate"], r"cannot read \[--learning_rate\]"),
    ],
)
def test_a_wrong_flag_is_named(capsys, words, message):
    with pytest.raises(SystemExit):
        parse_with_parameters(parser(), words)
    assert re.search(message, capsys.readouterr().err)


def test_parameters_are_read_among_the_flags():
    args, parameters = parse_with_parameters(
        parser(), ["--max_evals=3", "--data_path=a=b", "--verbose", "--set=a=1", "--set=b=2", "--log_wandb=False"]
    )
    assert (args.max_evals, args.set) == (3, ["a=1", "b=2"])
    assert parameters == {"data_path": "a=b", "verbose": "True", "log_wandb": "False"}
    assert parse_flags(parser(), ["--set=a=1", "--set=b=2"]).set == ["a=1", "b=2"]


@pytest.mark.slow
def test_no_key_is_taken_for_a_misspelt_flag(monkeypatch):
    """What RecBole's models read may be near to a flag, and passes."""
    from recbole_diffusion import compare
    from recbole_diffusion.commands import run, tune

    keys = registry._keys_of_all_models() | set(KEYS) | RECBOLE_KEYS
    for module, first in ((run, []), (tune, []), (compare, ["--models=Pop"])):
        flags = {"model", "dataset", "models", "config_files", "nproc", "ip", "port", "world_size", "group_offset"}
        for key in sorted(keys - flags - {"output"}):
            monkeypatch.setattr(sys, "argv", ["command", *first, f"--{key}=1"])
            module.parse_args()


# ---------------------------------------------------------------- ends


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(tmp_path):
    script = str(ROOT / "run_recbole_diffusion.py")
    reader, writer = os.pipe()
    os.close(reader)  # before the program writes, however fast it is
    process = start([script, "--help_keys"], tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert process.stderr.read() == "" and process.wait() == 1


@pytest.mark.slow
def test_ctrl_c_in_training_says_what_is_saved_and_what_goes_on(tmp_path):
    script = str(ROOT / "run_recbole_diffusion.py")
    words = ["-W", "ignore", script, "--model=DiffuRec", *TOY, "--epochs=500", "--stopping_step=500"]
    process = start(words, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(tmp_path.glob("saved/*-last.pth")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err and not out
    said, command = err.strip().splitlines()[-2:]
    said = re.fullmatch(r"Interrupted: (saved/DiffuRec-.*-last\.pth) holds the state after epoch (\d+)\.", said)
    file, epoch = said.groups()
    assert (tmp_path / file).is_file()
    program, *words = command.removeprefix("Go on with: ").split()
    assert program == "python" and words[-1] == f"--resume={file}"
    words = [f"--epochs={int(epoch) + 1}" if word.startswith("--epochs=") else word for word in words]
    code, out, err = output(["-W", "ignore", *words], tmp_path)
    assert code == 0 and f"({int(epoch) + 1} epochs)" in out and f"epoch {int(epoch) + 1}: NDCG@10" in err
    assert "epoch 1: " not in err


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["all", "parent"])
def test_ctrl_c_in_two_processes_says_what_is_saved(tmp_path, whom):
    script = str(ROOT / "run_recbole_diffusion.py")
    words = ["-W", "ignore", script, "--model=SASRecPlus", *TOY, "--epochs=500", "--stopping_step=500", "--nproc=2"]
    with socket.socket() as found:
        found.bind(("localhost", 0))
        words.append(f"--port={found.getsockname()[1]}")
    process = start(words, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.glob("saved/*-last.pth")):
        assert process.poll() is None
        time.sleep(0.05)
    # A terminal tells every process of the group.
    (os.killpg if whom == "all" else os.kill)(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err
    said, command = err.strip().splitlines()[-2:]
    file = re.fullmatch(r"Interrupted: (saved/SASRecPlus-.*-last\.pth) holds the state after epoch \d+\.", said)[1]
    assert command.startswith("Go on with: python ") and command.endswith(f"--nproc=2 {words[-1]} --resume={file}")
    with pytest.raises(ProcessLookupError):  # nobody trains on; Python's tracker of resources takes a moment to end
        for _ in range(1200):
            os.killpg(process.pid, 0)
            time.sleep(0.05)

"""The wheel carries the props and the commands, wherever it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from recbole_diffusion.commands import COMMANDS

from .conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_wheel_in_another_folder_finds_its_props_and_runs_every_command(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("benchmarks", "props", "recbole_diffusion"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    [wheel] = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    shutil.rmtree(source)

    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); sys.argv = ['x']\n"
        "import recbole_diffusion as r\nfrom recbole.config import Config\n"
        "from recbole_diffusion.registry import PROPS\n"
        f"assert r.__file__.startswith({str(target)!r}) and str(PROPS).startswith({str(target)!r}), PROPS\n"
        "for name in r.MODELS: assert Config(name, 'ml-1m')['hidden_size'] > 1\n"
        "assert Config('DiffuRecSys', 'amazon-beauty')['user_inter_num_interval'] == '[5,inf)'\n"
        "assert all((PROPS / 'hyper' / f'{name}.hyper').is_file() for name in r.MODELS)\n"
        "assert all((PROPS / f'{name}.yaml').is_file() for name in ('common', 'diffusion', 'quick_start'))\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)

    environment = {**os.environ, "PYTHONPATH": str(target), "PYTHONWARNINGS": "ignore"}

    def command(*args) -> str:
        program = [sys.executable, target / "bin" / "recbole-diffusion", *args]
        done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    helps = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "from recbole_diffusion.commands import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    sys.argv = ['recbole-diffusion', name, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, name\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", helps], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("usage: ") == len(COMMANDS), done.stderr[-2000:]
    assert all(f"\n  {name} " in command("--help") for name in COMMANDS)
    rows = [f"u{user},tea {(user + 3 * step) % 25},{10 * user + step}" for user in range(30) for step in range(6)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    assert "interactions     180" in command("convert", "events.csv", "--output=data/shop")
    quick = ("--epochs=1", "--hidden_size=16", "--inner_size=16")
    assert "README.md written" in command("reproduce", "--render-only", "--tiers=small")  # of no run as yet
    assert (tmp_path / "results" / "README.md").is_file()
    out = command("run", "--model=SASRecPlus", "--dataset=shop", "--data_path=data", *quick)
    file = next(line.split(": ")[1] for line in out.splitlines() if line.startswith("Checkpoint: "))
    assert '"items": ["tea' in command("recommend", f"--model_file={file}", "--history=tea 1,tea 4")


def test_an_unknown_command_is_named():
    code = "from recbole_diffusion.commands import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "rum"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0 and "command [rum] is unknown: choose one of run, tune" in done.stderr

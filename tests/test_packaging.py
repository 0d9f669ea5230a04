"""The wheel carries the props, and models find them wherever it is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_wheel_in_another_folder_finds_its_props(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("props", "recbole_diffusion"):
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

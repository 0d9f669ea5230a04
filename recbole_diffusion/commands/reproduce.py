"""Train what benchmarks/manifest.yaml lists: runs benchmarks/reproduce.py, in a checkout or as a wheel carries it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def main() -> None:
    carried = PACKAGE / "benchmarks"
    folder = carried if carried.is_dir() else PACKAGE.parent / "benchmarks"
    if folder == carried and not any(arg.partition("=")[0] == "--results" for arg in sys.argv):
        sys.argv.append("--results=results")  # not into the installed package
    sys.path.insert(0, str(folder))  # its files import each other, as those of any script
    runpy.run_path(str(folder / "reproduce.py"), run_name="__main__")

"""The commands of an installed package: ``recbole-diffusion run | tune | recommend | ...``."""

from __future__ import annotations

import sys
from importlib import import_module

# name -> module with the ``main`` that reads sys.argv, and what it does
COMMANDS = {
    "run": ("recbole_diffusion.commands.run", "train and evaluate one model on one dataset"),
    "tune": ("recbole_diffusion.commands.tune", "search the hyper-parameters of one model"),
    "recommend": ("recbole_diffusion.recommend.__main__", "top-k items for histories, in one process or on a cluster"),
    "analyse": ("recbole_diffusion.analysis.__main__", "look at a trained model: one page with plots"),
    "compare": ("recbole_diffusion.compare", "train several models over several seeds, with a table"),
    "convert": ("recbole_diffusion.convert", "make RecBole's atomic file of a CSV, Parquet or JSONL file"),
    "export": ("recbole_diffusion.serving.__main__", "write a trained model for serving: ONNX, item table, index"),
    "reproduce": ("recbole_diffusion.commands.reproduce", "train what the tables of results list"),
}


def usage() -> str:
    """What the program says of itself."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items())
    return f"usage: recbole-diffusion COMMAND [options]\n\n{lines}\n\nrecbole-diffusion COMMAND --help says more."


def main() -> None:
    """Hand the rest of the command line to the command that it begins with."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h"):
        print(usage())
        return
    if name == "--version":
        print(import_module("recbole_diffusion").__version__)
        return
    if name not in COMMANDS:
        raise SystemExit(f"command [{name}] is unknown: choose one of {', '.join(COMMANDS)}.")
    # RecBole's Config reads sys.argv itself: it finds the options alone, as after a script.
    sys.argv = [f"recbole-diffusion {name}", *sys.argv[2:]]
    import_module(COMMANDS[name][0]).main()

"""Diffusion models for sequential recommendation, as a RecBole plugin.

After ``import recbole_diffusion`` RecBole's own functions know every model in ``MODELS`` by name. Without RecBole,
what does not need it can still be imported: ``diffusion_utils`` and ``config``.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

from recbole_diffusion.version import __version__, require_recbole

__all__ = ["MODELS", "Recommender", "__version__", "recommend", "register"]


def _is_command() -> bool:
    """Whether this process was started as one of this project's commands.

    They read their flags first, so that ``--help`` and a wrong flag need not wait seconds for RecBole, and register
    with `cli.begin`.
    """
    if sys.argv[:1] == ["-m"]:  # so it is while `python -m` looks for its module
        return sys.orig_argv[-len(sys.argv)].removeprefix("-m").split(".")[0] == __name__
    main, root = getattr(sys.modules.get("__main__"), "__file__", None), Path(__file__).resolve().parent.parent
    if main is None:
        return False
    scripts = (root / "run_recbole_diffusion.py", root / "run_hyper.py")
    path = Path(main).resolve()
    return path in scripts or path.parent == root / "benchmarks" or path.stem == "recbole-diffusion"


def register() -> None:
    """Make RecBole know the models; importing this package does, unless a command is to read its flags first.

    Raises ImportError where RecBole is missing or of another version.
    """
    global _registered
    if _registered:
        return
    require_recbole()
    from recbole_diffusion import compat
    from recbole_diffusion.config.settings import result_settings

    compat.apply(result_settings)  # before anything of ours takes what it replaces
    from recbole_diffusion import registry
    from recbole_diffusion.quick_start import load_data_and_model

    registry.register(load_data_and_model)
    _registered = True


def __getattr__(name: str):
    """What needs RecBole, on first use."""
    rooms = {"MODELS": "registry", "Recommender": "recommend"}
    if name not in rooms:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(importlib.import_module(f"{__name__}.{rooms[name]}"), name)


_registered = False
if importlib.util.find_spec("recbole") and not _is_command():
    register()

"""Progress bars that leave no line behind, and none where the screen is a file."""

from __future__ import annotations

import functools
import importlib

from tqdm import tqdm

# For whoever shows progress; `disable=None` is tqdm's word for: on a terminal alone.
bar = functools.partial(tqdm, leave=False, disable=None, dynamic_ncols=True)


def bridge_progress() -> None:
    """Let RecBole's trainers draw such bars: theirs leave a line for every epoch and evaluation, in log files, too."""
    # `recbole.trainer.trainer` is also reached by attribute, where a name of the package could hide it.
    module = importlib.import_module("recbole.trainer.trainer")
    module.tqdm = lambda *args, ncols=None, **options: bar(*args, **options)

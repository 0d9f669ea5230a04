"""The same run twice gives the same bits: what RecBole's key ``reproducibility`` asks PyTorch for."""

from __future__ import annotations

import functools
import os
import sys

import torch


def bridge_reproducibility() -> None:
    """Let ``init_seed`` ask for deterministic algorithms in all of PyTorch.

    RecBole's asks cuDNN alone. On the CPU, the backward pass of ``x[index]`` adds the gradients of equal indices in the
    order in which threads come, so that two runs with two threads differ by 1e-7. Where an operation has no
    deterministic form, PyTorch warns.
    """
    import recbole.utils

    init_seed = recbole.utils.init_seed

    @functools.wraps(init_seed)
    def wrapper(seed: int, reproducibility: bool) -> None:
        init_seed(seed, reproducibility)
        torch.use_deterministic_algorithms(bool(reproducibility), warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time, and is for looking for errors
        if reproducibility:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic

    for name in ("recbole.utils.utils", "recbole.utils", "recbole.quick_start.quick_start"):
        if name in sys.modules:
            sys.modules[name].init_seed = wrapper

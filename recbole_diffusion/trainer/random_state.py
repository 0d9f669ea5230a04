"""The random generators that training draws from, kept with its state so that a resumed run draws the same."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from recbole_diffusion.compat.distributed import rank_and_world


def random_state(train_data) -> dict[str, Any]:
    """State of every random generator that training draws from, as tensors and plain values."""
    version, keys, gauss = random.getstate()
    _, state, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(keys), gauss],
        "numpy": [torch.from_numpy(state.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        # RecBole's save_dataloaders leaves the loader without one; it then shuffles by PyTorch's own.
        "loader": None if train_data.generator is None else train_data.generator.get_state(),
    }


def restore_random_state(state: Mapping[str, Any], train_data, device: torch.device) -> None:
    """Set all random generators, the data loader's among them, to where the last epoch left them."""
    if train_data.generator is not None and state["loader"] is not None:
        train_data.generator.set_state(state["loader"])
    if rank_and_world()[0] != 0:  # the state is the first process's; others would repeat its draws
        return
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
    np.random.set_state(("MT19937", state["numpy"][0].numpy().astype(np.uint32), *state["numpy"][1:]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)

"""RecBole's pickles of datasets and data loaders: read for those alone who say that they trust them."""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
from types import ModuleType
from typing import Any

import numpy as np

_trusted = False  # as the Config of the dataset that is being made says


def bridge_pickles() -> None:
    """Refuse RecBole's pickles unless the key ``trust_pickles`` is set.

    ``create_dataset`` and ``load_split_dataloaders`` unpickle what lies in ``checkpoint_dir`` under a name that follows
    from dataset and model, so that a folder of checkpoints from somebody else runs code; LDiffRec unpickles
    ``item_emb.npy`` of the dataset's folder. ``save_split_dataloaders`` takes the loaders' generators away from the run
    that saves them, which then shuffles otherwise.
    """
    import recbole.data.utils as utils

    utils.pickle = _Guarded(pickle, "load", _refuse_or(pickle.load))
    utils.save_split_dataloaders = _with_their_generators(utils.save_split_dataloaders)
    utils.load_split_dataloaders = _with_trust_of_config(utils.load_split_dataloaders)
    create_dataset = _with_trust_of_config(utils.create_dataset)
    for name in ("recbole.data.utils", "recbole.data", "recbole.quick_start.quick_start"):
        if name in sys.modules:
            sys.modules[name].create_dataset = create_dataset


class _Guarded:
    """A module with one function replaced."""

    def __init__(self, module: ModuleType, name: str, function: Any):
        self._module = module
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _refuse_or(load):
    @functools.wraps(load)
    def wrapper(file, *args: Any, **kwargs: Any):
        if not _trusted:
            raise ValueError(
                f"[{getattr(file, 'name', file)}] is a pickle, which can run code when it is read: delete it, or set "
                "trust_pickles to True if you wrote it yourself."
            )
        return load(file, *args, **kwargs)

    return wrapper


def _with_trust_of_config(function):
    @functools.wraps(function)
    def wrapper(config, *args: Any):
        global _trusted
        _trusted = config["trust_pickles"] is True
        if config["model"] == "LDiffRec":
            module = importlib.import_module("recbole.model.general_recommender.ldiffrec")
            module.np = _Guarded(np, "load", _load_array)
        return function(config, *args)

    return wrapper


def _with_their_generators(function):
    @functools.wraps(function)
    def wrapper(config, dataloaders):
        owners = [owner for loader in dataloaders for owner in (loader, loader.sampler)]
        kept = [(owner, owner.generator) for owner in owners if hasattr(owner, "generator")]
        function(config, dataloaders)
        for owner, generator in kept:
            owner.generator = generator

    return wrapper


def _load_array(path, allow_pickle: bool = False):
    return np.load(path, allow_pickle=allow_pickle and _trusted)

"""Checkpoints that run no code: plain values and tensors, checked against the file's own checksums, written whole."""

from __future__ import annotations

import functools
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from recbole_diffusion.compat.files import whole_file
from recbole_diffusion.compat.plain import check_plain, from_plain, to_plain

FORMAT = "recbole-diffusion 1"
SAFE_TORCH = (2, 10)
# The parts of a checkpoint that are read, and their types; the rest of a file is left alone.
_settings_of: Callable[[Any], dict[str, Any]]  # set once, by `bridge_checkpoints`
PARTS = {
    "config": dict,
    "state_dict": dict,
    "other_parameter": (dict, type(None)),
    "epoch": int,
    "cur_step": int,
    "best_valid_score": (int, float),
    "best_valid_result": dict,
    "optimizer": dict,
    "lr_scheduler": dict,
    "scaler": dict,
    "train_loss_dict": dict,
    "curve": list,
    "random_state": dict,
    "other_random_states": list,
    "known_users": (dict, type(None)),
}


def bridge_checkpoints(settings_of: Callable[[Any], dict[str, Any]]) -> None:
    """Make every RecBole trainer write checkpoints that the safe loader reads, whole or not at all.

    RecBole saves its ``Config`` object with pickle protocol 4, and PyTorch >= 2.6, which loads with
    ``weights_only=True`` unless told otherwise, refuses both the protocol and the class (RecBole issue 2215). Here
    ``settings_of(config)``, plain values, stand in its place, and no class needs to be allowed.
    """
    global _settings_of
    _settings_of = settings_of
    from recbole.model.abstract_recommender import AbstractRecommender
    from recbole.trainer import Trainer
    from recbole.trainer.trainer import PretrainTrainer

    def save_pretrained_model(self: PretrainTrainer, epoch: int, saved_model_file: str) -> None:
        save_checkpoint({"config": self.config, "epoch": epoch, **_weights(self)}, saved_model_file)
        self.saved_model_file = saved_model_file

    def _save_checkpoint(self: Trainer, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if not self.config["single_spec"] and self.config["local_rank"] != 0:
            return
        path = kwargs.pop("saved_model_file", self.saved_model_file)
        state = {
            "config": self.config,
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            **_weights(self),
        }
        save_checkpoint(state, path)
        if verbose:
            self.logger.info(f"Saving current: {path}")

    Trainer._save_checkpoint = _save_checkpoint
    PretrainTrainer.save_pretrained_model = save_pretrained_model
    AbstractRecommender.load_other_parameter = load_other_parameter


def _weights(trainer) -> dict[str, Any]:
    return {
        "state_dict": trainer.model.state_dict(),
        "other_parameter": trainer.model.other_parameter(),
        "optimizer": trainer.optimizer.state_dict(),
    }


def load_other_parameter(self, para: Mapping[str, Any] | None) -> None:
    """Put what a checkpoint holds beside the weights into a model.

    RecBole's sets whatever attributes the file names; this one those that the model saves (``other_parameter_name``).
    """
    for name in getattr(self, "other_parameter_name", ()):
        if para and name in para:
            setattr(self, name, from_plain(para[name]))


def save_checkpoint(state: Mapping[str, Any], path: str | PathLike) -> None:
    """Write a checkpoint that ``torch.load(path, weights_only=True)`` reads; a crash leaves the old file whole.

    ``config``, a Config or its plain values, is written without what concerns the machine: no paths, no device.
    Tensors are written from the CPU, so that a file written on a GPU opens on a machine without one.

    Raises
    ------
    ValueError
        A value that could not be read back.
    OSError
        It cannot be written, such as on a full disk.
    """
    state = dict(state)
    if "config" in state and not isinstance(state["config"], dict):
        state["config"] = _settings_of(state["config"])
    plain = {"format": FORMAT, **to_plain(state, "checkpoint")}
    with whole_file(path, "wb") as file:
        try:
            torch.save(plain, file)
        except RuntimeError as error:  # PyTorch's word for a disk that is full
            raise OSError(f"checkpoint [{path}] cannot be written: {_first_line(error)}") from error


def load_checkpoint(path: str | PathLike, model: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, with PyTorch's safe loader and after its checksums: plain values and tensors.

    Nothing in the file has been believed yet: `quick_start.config_of` makes a Config of its ``config``.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated or damaged, is no checkpoint of this package, wants to run code, or holds another model
        than ``model``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"model_file [{path}] {'is a folder' if path.is_dir() else 'does not exist'}.")
    _warn_of_torch()
    _check_zip(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "recbole_diffusion.compat" in str(error):
            raise ValueError(f"model_file [{path}] is of an older version of this package: train it again.") from error
        raise ValueError(
            f"model_file [{path}] was refused: it is no checkpoint of this package, or holds objects that could run "
            f"code on loading. Only tensors and plain values are read. ({_first_line(error)})"
        ) from error
    except Exception as error:  # what a broken file makes PyTorch and its unpickler raise has no end
        raise ValueError(f"model_file [{path}] is damaged or not a checkpoint: {_first_line(error)}") from error
    _check_parts(checkpoint, path)
    found = checkpoint["config"].get("model")
    if model is not None and found != model:
        raise ValueError(f"model_file [{path}] holds the model [{found}], not [{model}].")
    return checkpoint


def _check_zip(path: Path) -> None:
    """Compare the checksums of a file's parts: PyTorch does not, and one flipped bit changes what a model says."""
    packed, damaged = False, None
    try:
        with zipfile.ZipFile(path) as file:
            parts = file.infolist()
            packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
            packed |= sum(part.file_size for part in parts) > path.stat().st_size
            damaged = None if packed else file.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f"model_file [{path}] is truncated or not a checkpoint: {_first_line(error)}") from error
    except Exception as error:  # zipfile believes the names and numbers that it reads
        raise ValueError(f"model_file [{path}] is damaged or not a checkpoint: {_first_line(error)}") from error
    if packed:
        raise ValueError(f"model_file [{path}] was refused: its parts are packed, or overlap.")
    if damaged is not None:
        raise ValueError(f"model_file [{path}] is damaged: the checksum of its part [{damaged}] does not fit.")


def _check_parts(checkpoint: Any, path: Path) -> None:
    if not isinstance(checkpoint, dict) or not {"config", "state_dict"} <= {*checkpoint}:
        raise ValueError(f"model_file [{path}] is not a RecBole checkpoint: it lacks `config` or `state_dict`.")
    if checkpoint.get("format") != FORMAT:
        raise ValueError(f"model_file [{path}] was not written by this version of this package: train it again.")
    try:
        check_plain(checkpoint, budget=path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"model_file [{path}] was refused: {error}.") from None
    for name, kind in PARTS.items():
        found = checkpoint.get(name)
        if name in checkpoint and (not isinstance(found, kind) or isinstance(found, bool)):
            raise ValueError(f"model_file [{path}] is no checkpoint: its part {name} is a {type(found).__name__}.")
    if not all(isinstance(value, torch.Tensor) for value in checkpoint["state_dict"].values()):
        raise ValueError(f"model_file [{path}] is no checkpoint: its weights are no tensors.")


@functools.cache
def _warn_of_torch() -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_TORCH:
        warnings.warn(
            f"PyTorch {torch.__version__} reads checkpoints with a loader that a file can misuse (CVE-2025-32434, "
            "CVE-2026-24747): read those of other people with PyTorch 2.10 or later.",
            stacklevel=3,
        )


def _first_line(error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error).strip())  # PyTorch's colours
    return (text or type(error).__name__).splitlines()[0]

"""Checkpoints that run no code: what RecBole saves, as plain values and tensors that PyTorch's safe loader reads."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch


def bridge_checkpoints() -> None:
    """Make every RecBole trainer write checkpoints that the safe loader reads, whole or not at all.

    RecBole saves its ``Config`` object with pickle protocol 4, and PyTorch >= 2.6, which loads with
    ``weights_only=True`` unless told otherwise, refuses both the protocol and the class (RecBole issue 2215).
    """
    from recbole.trainer import Trainer
    from recbole.trainer.trainer import PretrainTrainer

    def save_pretrained_model(self: PretrainTrainer, epoch: int, saved_model_file: str) -> None:
        state = {
            "config": self.config,
            "epoch": epoch,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "other_parameter": self.model.other_parameter(),
        }
        save_checkpoint(state, saved_model_file)
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
            "state_dict": self.model.state_dict(),
            "other_parameter": self.model.other_parameter(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_checkpoint(state, path)
        if verbose:
            self.logger.info(f"Saving current: {path}")

    Trainer._save_checkpoint = _save_checkpoint
    PretrainTrainer.save_pretrained_model = save_pretrained_model
    # All that a checkpoint may name. `Config` itself must not be allowed: its constructor evaluates strings.
    torch.serialization.add_safe_globals([restore_config, restore_array, restore_sparse])


class _Restored:
    """Pickles as a call of one of the functions that a checkpoint may name."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def restore_array(values: torch.Tensor) -> np.ndarray:
    """NumPy array of a checkpoint, such as EASE keeps."""
    return values.numpy()


def restore_sparse(layout: str, values: np.ndarray, places: np.ndarray, shape: tuple[int, int]) -> Any:
    """SciPy matrix of a checkpoint, such as ItemKNN keeps: values [n] at places [2, n] (checked against the shape)."""
    return scipy.sparse.coo_matrix((values, (places[0], places[1])), shape=shape).asformat(layout)


def restore_config(values: dict[str, Any]) -> Any:
    """Build RecBole's ``Config`` from the plain values of a checkpoint, without running its constructor.

    Raises
    ------
    ValueError
        A value would be run as code.
    """
    import recbole.utils.enum_type as enums
    from recbole.config import Config

    kinds = {kind.__name__: kind for kind in (enums.ModelType, enums.EvaluatorType, enums.InputType)}

    def revive(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"__enum__", "name"}:
            return kinds[value["__enum__"]][value["name"]]
        return {key: revive(item) for key, item in value.items()} if isinstance(value, dict) else value

    config = Config.__new__(Config)
    config.__dict__.update(revive(values))
    config.yaml_loader = config._build_yaml_loader()
    config.compatibility_settings()
    # RecBole evaluates `teacher` (KD_DAGFM), and unpickles what the two paths name.
    if not str(config.final_config_dict.get("teacher", "none")).isidentifier():
        raise ValueError(f"teacher [{config.final_config_dict['teacher']}] must be the name of a model.")
    for key in ("dataset_save_path", "dataloaders_save_path"):
        if key in config.final_config_dict:
            config.final_config_dict[key] = None
    if not torch.cuda.is_available():
        config.final_config_dict["device"] = torch.device("cpu")
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        config.final_config_dict.update(single_spec=True, local_rank=0)  # several processes may have written it
    return config


def _plain(value: Any, name: str) -> Any:
    """Copy nested containers such that the safe loader reads them, with tensors on the CPU; ``name`` is for the error.

    Raises
    ------
    ValueError
        It could not be read back.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return _Restored(restore_array, torch.from_numpy(np.ascontiguousarray(value)))
    if scipy.sparse.issparse(value):
        coo = value.tocoo()
        values, places = _plain(coo.data, name), _plain(np.stack([coo.row, coo.col]), name)
        return _Restored(restore_sparse, value.format, values, places, tuple(map(int, coo.shape)))
    if isinstance(value, Enum):
        return {"__enum__": type(value).__name__, "name": value.name}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        return kind((key, _plain(item, f"{name}[{key}]")) for key, item in value.items() if not _is_module(item))
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(_plain(item, name) for item in value)
    if value is None or isinstance(value, (bool, int, float, str, bytes, set, torch.device, torch.dtype)):
        return value
    raise ValueError(
        f"{name} is of the type [{type(value).__name__}], which no checkpoint can hold: allowed are plain "
        "values, tensors, arrays and sparse matrices."
    )


def _is_module(value: Any) -> bool:
    """Whether it is a part of a model, whose weights the state dict has already (SASRecF lists one as a parameter)."""
    return isinstance(value, torch.nn.Module)


def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint that ``torch.load(path, weights_only=True)`` reads; a crash leaves the old file whole.

    Tensors are written from the CPU, so that a file written on a GPU opens on a machine without one.

    Raises
    ------
    ValueError
        A value that the safe loader would refuse.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _plain({key: value for key, value in state.items() if key != "config"}, "checkpoint")
    if "config" in state:
        parts = ("model", "dataset", "parameters", "final_config_dict")
        values = {part: getattr(state["config"], part) for part in parts}
        plain["config"] = _Restored(restore_config, _plain(values, "config"))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_checkpoint(path: str | os.PathLike, model: str | None = None) -> dict[str, Any]:
    """Read a checkpoint with the safe loader, onto the CPU.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, is no RecBole checkpoint, wants to run code, or holds another model than ``model``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"model_file [{path}] does not exist.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"model_file [{path}] was refused: it is no checkpoint of this package, or holds objects that could run "
            f"code on loading. Only tensors and plain values are read. ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # what a broken file makes PyTorch and its unpickler raise has no end
        raise ValueError(f"model_file [{path}] is truncated or not a checkpoint: {error}") from error
    from recbole.config import Config

    whole = isinstance(checkpoint, dict) and "state_dict" in checkpoint
    if not whole or not isinstance(checkpoint.get("config"), Config):
        raise ValueError(f"model_file [{path}] is not a RecBole checkpoint: it lacks `config` or `state_dict`.")
    found = checkpoint["config"]["model"]
    if model is not None and found != model:
        raise ValueError(f"model_file [{path}] holds the model [{found}], not [{model}].")
    return checkpoint

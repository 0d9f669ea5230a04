"""A checkpoint's configuration and model, made anew: a file says what was trained, never where, or by what code."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import get_model
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_diffusion.config.checks import check_keys
from recbole_diffusion.config.keys import KEYS, MACHINE_KEYS, RUN, START_KEYS
from recbole_diffusion.registry import MODELS, check_model_name, known_keys, recbole_models
from recbole_diffusion.trainer import load_weights

# What RecBole's Config works out by itself.
DERIVED = {"MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_metric_bigger"}
DERIVED |= {"valid_neg_sample_args", "test_neg_sample_args"}
# Files that RecBole's models read: the caller names them, as all paths.
FILES = {"pre_model_path", "pretrain_path", "mf_pretrain_path", "mlp_pretrain_path", "warm_up", "xgb_model"}
NEVER_FROM_A_FILE = MACHINE_KEYS | DERIVED | FILES | {"config_file"} | {key for key in KEYS if KEYS[key].kind == "path"}
# Parts of file names: none leads to another folder.
NAME = re.compile(r"\w[\w .()+,@=-]*")
NAME_KEYS = ("dataset", "benchmark_filename", "additional_feat_suffix")
OF_NO_WEIGHT = START_KEYS | {"logits_chunk", "n_sampled_items", "num_steps"}
ALWAYS_ALLOWED = 10_000  # of what has a size in no weight, such as the longest history
MOST_SEEDS, MOST_LAYERS = 1000, 100  # where the weights say nothing of their number
ROOM = 2**27  # numbers that a model may have beside those of its file, such as the masks of RecBole's FEARec


def config_of(checkpoint: Mapping[str, Any], model_file, config_dict: Mapping[str, Any] | None = None) -> Config:
    """RecBole's Config for what a checkpoint holds, built and checked as for a training of the same settings.

    Paths, hosts, devices and whatever else concerns the machine have their defaults, or what ``config_dict`` says; it
    stands above the file. The command line is not read.

    Raises
    ------
    ValueError
        The settings are not allowed, unknown, or of another size than the weights; in one line with ``model_file``.
    """
    said, own = checkpoint["config"], dict(config_dict or {})
    try:
        _check_names(said)
        with _no_traces(keep_gpu="gpu_id" in own):
            needed = {"paper_protocol": said.get("paper_protocol") is True, "train_neg_sample_args": None}
            known = known_keys(Config(said["model"], said["dataset"], config_dict=dict(needed))) - NEVER_FROM_A_FILE
            values = {key: value for key, value in said.items() if key in known}
            unfill(values)
            check_keys(values, run_only=said["model"] not in MODELS)
            _check_sizes(values, checkpoint)
            if said["model"] in MODELS:
                _check_items(values["hidden_size"], checkpoint)
            return Config(said["model"], said["dataset"], config_dict={**values, **own})
    except Exception as error:  # what odd values make RecBole raise has no end
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model_file [{model_file}] cannot be used as configured: {text}") from error


def unfill(values: dict[str, Any]) -> None:
    """Put ``train_neg_sample_args`` back to what a Config can be made of, before RecBole's filled it in."""
    if dict(values.get("train_neg_sample_args") or {}).get("distribution") == "none":
        values["train_neg_sample_args"] = None


def model_of(checkpoint: Mapping[str, Any], config: Config, dataset, model_file):
    """The model of a checkpoint with its weights, on the device of its Config.

    Raises
    ------
    NeedsData
        ``dataset`` is a `Catalogue`, and the model reads more.
    ValueError
        The weights are of another shape, or not finite.
    """
    try:
        with _Room(os.path.getsize(model_file) // 2 + ROOM):  # twice its numbers, of four bytes each
            model = get_model(config["model"])(config, dataset)
        model = model.to(config["device"])
    except (NeedsData, FileNotFoundError):
        raise
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model_file [{model_file}] cannot be used as configured: {text}") from error
    load_weights(model, checkpoint, model_file, None if isinstance(dataset, Catalogue) else dataset)
    return model


class NeedsData(AttributeError):
    """A model asked for more of its dataset than a checkpoint knows."""


class Catalogue:
    """Stands in for the dataset where a model only counts its items, and the places of a history."""

    def __init__(self, config: Config, tokens: list[str] | None):
        self.field, self.tokens = config["ITEM_ID_FIELD"], tokens
        self.field2seqlen = {f"{self.field}{config['LIST_SUFFIX']}": config["MAX_ITEM_LIST_LENGTH"]}

    def num(self, field: str) -> int:
        """Number of items, the padding among them."""
        if field != self.field or self.tokens is None:
            raise NeedsData(field)
        return len(self.tokens)

    def __getattr__(self, name: str):
        raise NeedsData(name)


def _check_names(said: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that is no model of ours or RecBole's, or that leads to another folder."""
    if not isinstance(said.get("model"), str):
        raise ValueError(f"model [{said.get('model')}] is no name.")
    check_model_name(said["model"])
    if said.get("teacher") is not None and said["teacher"] not in recbole_models():  # RecBole evaluates it
        raise ValueError(f"teacher [{said['teacher']}] is no model of RecBole.")
    for key in NAME_KEYS:
        names = said.get(key)
        if key == "dataset" or not isinstance(names, (list, tuple, type(None))):
            names = [names]
        bad = [name for name in names or () if not isinstance(name, str) or not NAME.fullmatch(name)]
        if bad:
            raise ValueError(f"{key} [{bad[0]}] is no plain name.")


def _check_sizes(values: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError where a number would make a model larger than the weights that are there for it."""
    shapes = [tuple(value.shape) for value in checkpoint["state_dict"].values()]
    widest = max((size for shape in shapes for size in shape), default=0)
    most_layers = max(len(shapes), MOST_LAYERS)
    for key, value in values.items():
        if key in RUN and key != "MAX_ITEM_LIST_LENGTH" or key in OF_NO_WEIGHT:
            continue  # of no weight
        layers = key.startswith(("n_layer", "num_layer")) or "block" in key or key.endswith("_layers")
        numbers, most = list(_integers(value)), most_layers if layers else max(widest, ALWAYS_ALLOWED)
        if key == "inference_seeds":
            numbers, most = numbers if isinstance(value, int) else [len(numbers)], MOST_SEEDS
        elif len(numbers) > most_layers:
            raise ValueError(f"{key} holds {len(numbers):,} numbers, and the file {len(shapes)} tensors.")
        if max(numbers, default=0) > most:
            raise ValueError(
                f"{key} [{max(numbers)}] is more than its {len(shapes)} tensors of up to {widest} can hold."
            )


class _Room(TorchDispatchMode):
    """Refuse to make more than so many numbers in all: weights, copies of layers, and masks."""

    MAKE = {torch.ops.aten.empty, torch.ops.aten.zeros, torch.ops.aten.ones, torch.ops.aten.full}
    MAKE |= {torch.ops.aten.randn, torch.ops.aten.rand, torch.ops.aten.clone}

    def __init__(self, numbers: int):
        super().__init__()
        self.left = numbers

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in self.MAKE:
            shape = args[0].shape if isinstance(args[0], torch.Tensor) else args[0]
            self.left -= math.prod(shape)
            if self.left < 0:
                raise ValueError("its settings make a model larger than the file.")
        return func(*args, **(kwargs or {}))


def _check_items(size: int, checkpoint: Mapping[str, Any]) -> None:
    """Raise ValueError unless a model of this package has one embedding for each of its items."""
    table = checkpoint["state_dict"].get("item_embedding.weight")
    tokens = (checkpoint.get("other_parameter") or {}).get("item_tokens")
    if tokens is not None and not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
        raise ValueError("its item tokens are no list of texts.")
    if table is None or table.ndim != 2 or table.shape[1] != size or (tokens is not None and len(tokens) != len(table)):
        shape = None if table is None else tuple(table.shape)
        raise ValueError(f"hidden_size [{size}] and its items do not fit its item embeddings {shape}.")


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, Mapping):
        yield from _integers(list(value.values()))
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value


@contextmanager
def _no_traces(keep_gpu: bool) -> Iterator[None]:
    """Hide the command line from RecBole's Config, and keep the GPUs of this process as they are.

    Config reads every ``--key=value`` of ``sys.argv``, where the flags of another program may stand, and sets
    CUDA_VISIBLE_DEVICES.
    """
    argv, gpus = sys.argv, os.environ.get("CUDA_VISIBLE_DEVICES")
    sys.argv = argv[:1]
    try:
        yield
    finally:
        sys.argv = argv
        if not keep_gpu:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus

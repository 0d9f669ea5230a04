"""How a run goes on: which checkpoint it finds, and what is taken up from it, each part checked first."""

from __future__ import annotations

import math
import random
import re
import warnings
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.compat.distributed import rank_and_world
from recbole_diffusion.compat.files import checksum
from recbole_diffusion.compat.finite import check_parameters
from recbole_diffusion.config.keys import MODEL_KEYS
from recbole_diffusion.config.settings import resume_settings

NEEDED = ("epoch", "cur_step", "best_valid_score", "optimizer")
NEEDED_LAST = ("best_valid_result", "lr_scheduler", "scaler", "train_loss_dict")
TABLE_MARK = re.compile(r"-[0-9a-f]{8}$")
SCHEDULE = {"base_lrs", "last_epoch", "_step_count", "_last_lr"}  # of a learning rate's, what training goes on from
# Scores under other values of these cannot be compared.
OF_VALIDATION = {"valid_metric", "mask_history", "eval_args", "data", *(key.name for key in MODEL_KEYS["Inference"])}
OF_OTHER_VERSIONS = {"verbose", "_is_initial", "_get_lr_called_within_step", "lr_lambdas"}


def best_file_of(path: str | Path) -> str:
    """The best checkpoint of a run that is resumed from ``path``: ``x.pth`` beside ``x-last.pth``, else itself."""
    path = Path(path)
    return str(path.with_stem(path.stem.removesuffix("-last")))


def lock_of(path: str | Path) -> Path:
    """The file that a run holds while it trains; ``path`` is its best checkpoint."""
    return Path(path).with_name(f".{Path(path).name}.lock")


def data_checksum(config) -> int | None:
    """A number that tells the dataset's files of one run from those of another; None where it reads none."""
    if config["dataset_save_path"]:
        return None
    parts = [f".{part}" for part in config["benchmark_filename"] or ()]
    files = [Path(config["data_path"]) / f"{config['dataset']}{part}.inter" for part in parts or [""]]
    if not all(file.is_file() for file in files):
        return None
    others = {*(config["load_col"] or ("user", "item")), *(config["additional_feat_suffix"] or ())} - {"inter"}
    features = [Path(config["data_path"]) / f"{config['dataset']}.{suffix}" for suffix in sorted(others)]
    files += [file for file in features if file.is_file()]
    return sum(place * checksum(file) for place, file in enumerate(files, 1))


def find_last_state(folder: str | Path, config, settings_of: Callable[[Any], dict]) -> str | None:
    """The newest last state in a folder of a run on the same data with the settings of a Config, and its best file."""
    files = Path(folder).glob(f"{config['model']}-*-last.pth")
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            checkpoint = load_checkpoint(path)
        except ValueError as error:
            getLogger().warning(f"Passed over: {error}")
            continue
        found, wanted = settings_of(checkpoint["config"]), settings_of(config)
        differ = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
        if not differ and not same_data(checkpoint, config):
            differ = [f"the files of dataset [{config['dataset']}]"]
        if not differ and Path(best_file_of(path)).is_file():
            return str(path)
        why = f"another run: {', '.join(differ)} differ" if differ else "whose best checkpoint is gone"
        getLogger().info(f"resume [auto] passes over {path}, {why}.")
    return None


def same_data(state: Mapping[str, Any], config) -> bool:
    """Whether a last state, or a record of a run, is of the files that a Config names, as far as both are known."""
    old = state.get("data_checksum")
    new = None if old is None else data_checksum(config)
    return new is None or old == new


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in training; ``resume`` is the file to go on from, None where nothing is saved or it need not be named."""

    def __init__(self, last: str | None):
        self.resume = last if last and Path(last).is_file() else None
        # What the file itself says: Ctrl-C may fall between its writing and any note of it.
        epochs = load_checkpoint(last)["epoch"] + 1 if self.resume else 0
        saved = f"{self.resume} holds the state after epoch {epochs}" if epochs else "nothing is saved to go on from"
        super().__init__(f"Interrupted: {saved}.")


def check_resumable(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise ValueError unless a checkpoint has all that training goes on from."""
    needed = NEEDED + (NEEDED_LAST if "random_state" in checkpoint else ())
    missing = [name for name in needed if name not in checkpoint]
    if missing or math.isnan(checkpoint["best_valid_score"]) or not -1 <= checkpoint["epoch"] < 2**31:
        what = f"it lacks {', '.join(missing)}" if missing else "its epoch or best_valid_score is no number of a run"
        raise ValueError(f"model_file [{path}] cannot be resumed: {what}.")


def take_up(part: str, path: str | Path, load: Callable[[Any], Any], state: Any) -> None:
    """Call ``load(state)``, whose errors become one ValueError that names the part and the file."""
    try:
        load(state)
    except Exception as error:  # PyTorch and NumPy trust these states, and fail in many ways
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"model_file [{path}] cannot be resumed: its {part} is not of this run ({text}).") from error


def compare_settings(checkpoint: Mapping[str, Any], config, path: str | Path) -> bool:
    """Warn where a run goes on otherwise than it began; tell whether its best score can stand beside later ones.

    Raises
    ------
    ValueError
        The checkpoint is of another dataset.
    """
    old, new = resume_settings(checkpoint["config"]), resume_settings(config)
    changed = {key: f"{key} [{new[key]}] was [{old[key]}]" for key in old if key in new and old[key] != new[key]}
    # Of a table the name has a mark of its content.
    if "dataset" in changed and TABLE_MARK.sub("", old["dataset"]) != TABLE_MARK.sub("", new["dataset"]):
        raise ValueError(
            f"model_file [{path}] cannot be resumed: it is of dataset [{old['dataset']}], not [{new['dataset']}]."
        )
    if not same_data(checkpoint, config):
        changed["data"] = f"the files of dataset [{new['dataset']}] are others"
    if changed:
        warnings.warn(
            f"resuming {path} with other settings: {', '.join(sorted(changed.values()))}. The optimizer goes on as it "
            "was, with its own learning rate and weight decay.",
            stacklevel=3,
        )
    return not OF_VALIDATION & changed.keys()


def load_weights(model, checkpoint: Mapping[str, Any], path: str | Path, dataset=None) -> None:
    """Put a checkpoint's weights and other parameters into a model.

    Raises
    ------
    ValueError
        They are of other shapes or names, not finite, or of other items than a ``dataset``'s; ``path`` is for the
        message.
    """
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(f"model_file [{path}] does not fit this configuration or dataset: {text}") from error
    other = checkpoint.get("other_parameter") or {}
    if "item_tokens" in other:
        _hold_items(model, other["item_tokens"])
    model.load_other_parameter(other)
    check_parameters(model, f"model_file [{path}]")
    if dataset is not None:
        take_items(model, dataset, f"model_file [{path}]")


def take_items(model, dataset, what: str = "the model") -> None:
    """Let a model, and with it its checkpoints, keep what a dataset calls its items: ``recommend`` then needs no data.

    Raises
    ------
    ValueError
        Its weights are of other items, or of these in another order; the message begins with ``what``.
    """
    tokens = dataset.field2id_token[dataset.iid_field].tolist()
    held = getattr(model, "item_tokens", tokens)
    if held != tokens:
        pairs = zip(held, tokens, strict=False) if isinstance(held, list) else ()
        where = [f": number {n} is [{a}] there and [{b}] here" for n, (a, b) in enumerate(pairs) if a != b][:1]
        raise ValueError(
            f"{what} is of other items than dataset [{dataset.dataset_name}], or of these in another order"
            f"{''.join(where)}. Items are numbered as the lines of the file name them: if it has changed, train anew."
        )
    _hold_items(model, tokens)


def _hold_items(model, tokens: list[str]) -> None:
    model.item_tokens = tokens
    model.other_parameter_name = list({*getattr(model, "other_parameter_name", ()), "item_tokens"})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state, whose tensors must be numbers or of the shapes of the parameters they belong to."""
    groups = optimizer.state_dict()["param_groups"]
    own = {*groups[0], "initial_lr"}  # which a schedule adds; other versions of PyTorch know fewer keys
    if not all({"params", "lr"} <= {*group} <= own for group in state["param_groups"]):
        raise ValueError("another optimizer")
    texts = (str, dict, torch.Tensor)
    for new, old in zip(state["param_groups"], groups, strict=True):
        if any(isinstance(new[name], texts) != isinstance(old[name], texts) for name in {*old} & {*new} - {"params"}):
            raise ValueError("settings of another kind")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameters[number].shape:
                raise ValueError(f"{name} of another shape than its parameter")
    optimizer.load_state_dict(state)


def load_same_keys(target: Any, state: Mapping[str, Any]) -> None:
    """``target.load_state_dict`` for what would set any attribute: the keys and kinds must be those it has."""
    own = target.state_dict()
    if {*own} != {*state} or any(type(own[key]) is not type(state[key]) for key in own if own[key] is not None):
        raise ValueError("other keys")
    target.load_state_dict(state)


def load_schedule(schedule: torch.optim.lr_scheduler.LambdaLR, state: Mapping[str, Any]) -> None:
    """Load a schedule's state; a rate is that of its epoch now, which in a longer run may be another than was saved.

    What versions of PyTorch hold besides is left as it is; any other key is refused.
    """
    own = schedule.state_dict()
    if not SCHEDULE <= {*state} <= {*own} | OF_OTHER_VERSIONS:
        raise ValueError("other keys")
    if any(type(own[key]) is not type(state[key]) for key in SCHEDULE):
        raise ValueError("other kinds")
    schedule.load_state_dict({**own, **{key: state[key] for key in SCHEDULE}})
    parts = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, rate, factor in parts:
        group["lr"] = rate * factor(schedule.last_epoch)


def random_state(train_data) -> dict[str, Any]:
    """State of every random generator that training draws from, as tensors and plain values."""
    version, keys, gauss = random.getstate()
    _, state, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(keys), gauss],
        "numpy": [torch.from_numpy(state.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        # A loader of a user's own may have none; it then shuffles by PyTorch's.
        "loader": None if train_data.generator is None else train_data.generator.get_state(),
    }


def set_random_state(train_data, device: torch.device, states: list[Mapping[str, Any]]) -> None:
    """Set all random generators, the loader's among them, to where ``random_state`` found those of this process."""
    rank = rank_and_world()[0]
    if train_data.generator is not None and states[0]["loader"] is not None:
        train_data.generator.set_state(states[0]["loader"])
    if rank >= len(states):  # it was not among the processes, whose draws it would repeat
        return
    state = states[rank]
    random.setstate((state["python"][0], tuple(state["python"][1]), state["python"][2]))
    np.random.set_state(("MT19937", state["numpy"][0].numpy().astype(np.uint32), *state["numpy"][1:]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)

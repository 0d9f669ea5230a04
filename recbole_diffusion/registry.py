"""The only place that knows how RecBole finds a model, its props, its trainer and its dataset: by name."""

from __future__ import annotations

import difflib
import functools
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import recbole
import recbole.data.dataset
import recbole.trainer
from recbole.config import Config
from recbole.utils import ModelType

from recbole_diffusion.compat.values import read_yaml
from recbole_diffusion.config.checks import check_keys, idle_keys, near_keys, warn_of_idle_keys
from recbole_diffusion.config.keys import KEYS, RECBOLE_KEYS, RUN, START_KEYS
from recbole_diffusion.data.sequences import PrefixDataset
from recbole_diffusion.model.adrec import ADRec
from recbole_diffusion.model.cddrec import CDDRec
from recbole_diffusion.model.diffurec import DiffuRec
from recbole_diffusion.model.diffurecsys import DiffuRecSys
from recbole_diffusion.model.dreamrec import DreamRec
from recbole_diffusion.model.preferdiff import PreferDiff
from recbole_diffusion.model.sasrecplus import SASRecPlus
from recbole_diffusion.model.seqdiffrec import SeqDiffRec
from recbole_diffusion.modules.recommender import SequenceRecommender
from recbole_diffusion.trainer import DiffusionTrainer, check_item_embeddings, check_training_config

MODELS: dict[str, type[SequenceRecommender]] = {
    model.__name__: model
    for model in (
        DiffuRec,
        DiffuRecSys,
        DreamRec,
        CDDRec,
        SeqDiffRec,
        ADRec,
        PreferDiff,
        SASRecPlus,
    )
}

_PACKAGE = Path(__file__).parent
# An installed wheel carries the props inside the package; a checkout has them at the top level.
PROPS = _PACKAGE / "props" if (_PACKAGE / "props").is_dir() else _PACKAGE.parent / "props"
RECBOLE_PROPERTIES = Path(recbole.__file__).parent / "properties"


def register(load_data_and_model: Callable | None = None) -> None:
    """Make every model of ``MODELS`` known to RecBole's own functions.

    ``load_data_and_model`` takes the place of RecBole's, which would use what a file says as it stands.
    """
    for name, model in MODELS.items():
        # `get_model` asks importlib for recbole.model.sequential_recommender.<lowercase name>.
        sys.modules[f"recbole.model.sequential_recommender.{name.lower()}"] = sys.modules[model.__module__]
        # `get_trainer` looks for recbole.trainer.<Model>Trainer.
        setattr(recbole.trainer, f"{name}Trainer", DiffusionTrainer)
        # `create_dataset` looks for recbole.data.dataset.<Model>Dataset.
        if model.dataset_class is not None:
            setattr(recbole.data.dataset, f"{name}Dataset", model.dataset_class)
    # RecBole's own sequential models get the rows that are gathered batch by batch, as well: `create_dataset` looks up
    # this name for every model without a dataset of its own. RecBole writes every history out first.
    recbole.data.dataset.SequentialDataset = PrefixDataset
    quick_start = sys.modules.get("recbole.quick_start")  # not there without Ray
    if load_data_and_model is not None and quick_start is not None:
        for module in (quick_start, sys.modules["recbole.quick_start.quick_start"]):
            module.load_data_and_model = load_data_and_model
    if not hasattr(Config._load_internal_config_dict, "__wrapped__"):
        Config._load_internal_config_dict = _with_our_props(Config._load_internal_config_dict)


def _with_our_props(load_internal_config_dict):
    """RecBole reads props from its own folder alone: add ours, below whatever the user says, and check the result."""

    @functools.wraps(load_internal_config_dict)
    def wrapper(self: Config, model: str, model_class: type, dataset: str) -> None:
        load_internal_config_dict(self, model, model_class, dataset)
        _apply_per_model(self, model)
        user, ours = self.external_config_dict, MODELS.get(model)
        # The protocol ranks all items, which RecBole's models of labelled data cannot: they keep RecBole's own.
        labelled = self.internal_config_dict["MODEL_TYPE"] in (ModelType.CONTEXT, ModelType.DECISIONTREE)
        if ours is not None or (user.get("paper_protocol") and not labelled):
            _apply_props(self, model, dataset)
        _check_unknown_keys(self, model)
        if ours is not None or user.get("paper_protocol"):
            merged = {**self.internal_config_dict, **user}
            check_keys(merged, run_only=ours is None)
            check_training_config(merged)
        if ours is not None:
            ours.check_config(merged)
            warn_of_idle_keys(merged, user, self.internal_config_dict)
            check_item_embeddings(merged)

    return wrapper


def _apply_props(config: Config, model: str, dataset: str) -> None:
    """Put our props over RecBole's defaults, and what both sequential models and the protocol need.

    ``config.default_sources`` notes where each value comes from that is not RecBole's.
    """
    config.default_sources = {}
    for path in props_files(model, dataset):
        values = read_yaml(path)
        config.internal_config_dict.update(values)
        config.default_sources.update(dict.fromkeys(values, f"props/{path.relative_to(PROPS)}"))
    user = config.external_config_dict
    if isinstance(user.get("eval_args"), dict):  # RecBole would fill up what is not said of it by a split of its own
        user["eval_args"] = {**config.internal_config_dict["eval_args"], **user["eval_args"]}
    merged = {**config.internal_config_dict, **user}
    # RecBole loads user and item ids alone unless told more; no sequential model can order those.
    if "load_col" not in user and "load_col" not in config.default_sources:
        fields = [merged[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
        fields = [field for field in fields if isinstance(field, str)]  # others are refused when all keys are checked
        own = {} if model in MODELS else merged.get("load_col") or {}  # such as the item features of RecBole's SASRecF
        inter = [*(own.get("inter") or []), *fields]
        config.internal_config_dict["load_col"] = {**own, "inter": list(dict.fromkeys(inter))}
        config.default_sources["load_col"] = "recbole_diffusion"
    # RecBole samples negatives unless told not to, and then refuses its own cross-entropy models.
    if merged.get("loss_type") == "CE" and "train_neg_sample_args" not in user:
        config.internal_config_dict["train_neg_sample_args"] = None
        config.default_sources["train_neg_sample_args"] = "recbole_diffusion"


def _apply_per_model(config: Config, model: str) -> None:
    """Read the key ``per_model``, {model: {key: value}}: what a config file says for one model alone.

    It stands above the rest of the file and below the command line and ``config_dict``.

    Raises
    ------
    ValueError
        It is no such mapping, or names no model.
    """
    per_model = config.external_config_dict.pop("per_model", None) or {}
    if not isinstance(per_model, dict) or not all(isinstance(own, dict) for own in per_model.values()):
        raise ValueError(f"per_model [{per_model}] must map the names of models to their keys and values.")
    for name in per_model:
        check_model_name(name)
    config.per_model = per_model
    config.external_config_dict.update(_said_for(config, model))


def _said_for(config: Config, model: str) -> dict[str, Any]:
    """What ``per_model`` says for a model, but for what the command line or ``config_dict`` say."""
    said = {**config.variable_config_dict, **config.cmd_config_dict}
    return {key: value for key, value in config.per_model.get(model, {}).items() if key not in said}


def props_files(model: str, dataset: str) -> list[Path]:
    """Files of default parameters of a model on a dataset, each above those before it.

    Raises
    ------
    FileNotFoundError
        A file that the model needs is missing.
    """
    shared = [*MODELS[model].shared_props, model] if model in MODELS else []
    needed = [PROPS / f"{name}.yaml" for name in ("protocol", *shared)]
    for path in needed:
        if not path.is_file():
            raise FileNotFoundError(f"default parameters [{path}] are missing from this installation.")
    return [path for path in (*needed, PROPS / "dataset" / f"{dataset}.yaml") if path.is_file()]


def value_sources(config: Config, config_file_list: Sequence[str] = ()) -> dict[str, str]:
    """Where each value of a Config comes from: a file, ``RecBole``, an ``argument`` or the ``command line``."""
    sources = {**dict.fromkeys(config.final_config_dict, "RecBole"), **getattr(config, "default_sources", {})}
    for file in config_file_list:
        values = read_yaml(file)
        sources.update(dict.fromkeys(values, str(file)))
        own = (values.get("per_model") or {}).get(config["model"], {})
        sources.update(dict.fromkeys(own, f"{file}, per_model"))
    sources.update(dict.fromkeys((*config.variable_config_dict, "model", "dataset"), "argument"))
    sources.update(dict.fromkeys(config.cmd_config_dict, "command line"))
    return sources


def pretraining_config(config: Config) -> Config:
    """The Config of the model that the key ``pretrain`` names, which trains first on the same data.

    What this model reads, too, is as in ``config``, but for what ``per_model`` says for either, unless
    ``pretrain_config`` says otherwise, the user's above that of the model's props. Its checkpoints lie in a folder of
    their own.

    Raises
    ------
    ValueError
        The model is unknown, or there are several processes.
    """
    name = config["pretrain"]
    check_model_name(name)
    if not config["single_spec"]:
        raise ValueError(f"pretrain [{name}] must be null with nproc > 1: train it first, and name its checkpoint.")
    # As the user said for all models.
    user = {**config.file_config_dict, **config.variable_config_dict, **config.cmd_config_dict}
    user = {key: value for key, value in user.items() if key in config.external_config_dict}
    reads = {key for path in props_files(name, config["dataset"]) for key in read_yaml(path)} - START_KEYS
    if name not in MODELS:
        own_props = RECBOLE_PROPERTIES / "model" / f"{name}.yaml"
        reads |= read_yaml(own_props).keys() if own_props.stat().st_size else set()
    reads |= {key for key in user if key in RUN or key not in KEYS} - {"save_dataloaders", "dataloaders_save_path"}
    values = {**config.internal_config_dict, **user}
    values = {key: value for key, value in values.items() if key in reads}
    own = {"checkpoint_dir": str(Path(config["checkpoint_dir"]) / "pretrain")}
    own |= {key: config[key] for key in ("state", "show_progress")}  # which a program may have set since
    argv, sys.argv = sys.argv, sys.argv[:1]  # Config would put the command line, which is for this model, above all
    try:
        differs = {**config.internal_config_dict["pretrain_config"], **_said_for(config, name)}
        differs |= config.external_config_dict.get("pretrain_config") or {}
        wrong = differs.keys() & {"model", "dataset"}
        if wrong:
            raise ValueError(f"pretrain_config must not hold {' and '.join(sorted(wrong))}: pretrain names the model.")
        for key in idle_keys({**values, **differs}).keys() - differs.keys():
            values.pop(key)  # nothing of the first model's, of which it would be warned
        return Config(name, config["dataset"], None, {**values, **differs, **own})
    finally:
        sys.argv = argv


def recbole_models() -> list[str]:
    """Names of RecBole's own models, as its props folder spells them."""
    return sorted(path.stem for path in RECBOLE_PROPERTIES.glob("model/*.yaml"))


def check_model_name(name: str) -> None:
    """Raise ValueError, suggesting near names, unless ``name`` is one of our models or of RecBole's."""
    known = [*MODELS, *recbole_models()]
    if name in known:
        return
    lower = {model.lower(): model for model in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"model [{name}] is unknown.{hint} Diffusion models: {', '.join(MODELS)}; or any model of RecBole."
    )


def known_keys(config: Config) -> set[str]:
    """Keys that RecBole, this package or the config's model read."""
    listed = {key for keys in config.parameters.values() for key in keys}
    return {*config.internal_config_dict, *listed, *RUN, *RECBOLE_KEYS}


@functools.cache
def _keys_of_all_models() -> set[str]:
    """Keys that at least one model reads, of this package or of RecBole."""
    files = [*RECBOLE_PROPERTIES.glob("model/*.yaml"), *RECBOLE_PROPERTIES.glob("quick_start_config/*.yaml")]
    found = {key for file in files for key in re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE)}
    return found | set(KEYS)


def _check_unknown_keys(config: Config, model: str) -> None:
    """Raise ValueError for keys that nothing reads, where our ``run`` is at work; in RecBole's own scripts warn.

    RecBole ignores them silently. Keys that other models read, but not this one, are warned of: a file of parameters
    may serve several models. What the layers that our models share, or training, would read all the same is dropped.
    """
    user, known = config.external_config_dict, known_keys(config)
    useless, unknown = [], []
    for key in sorted(user.keys() - known):
        near = near_keys(key, known)
        hint = f": did you mean {' or '.join(near)}?" if near else "."
        if key in _keys_of_all_models():
            useless.append(f"{key} [{user[key]}] has no effect on {model}{hint}")
            if model in MODELS or key in START_KEYS:
                del user[key]
        else:
            unknown.append(f"{key} [{user[key]}] is unknown{hint}")
    if useless:
        warnings.warn(" ".join(useless), stacklevel=2)
    if not unknown or user.get("allow_unknown_keys"):
        return
    message = f"{' '.join(unknown)} Keys that nothing reads pass with allow_unknown_keys=True."
    if user.get("paper_protocol"):
        raise ValueError(message)
    warnings.warn(message, stacklevel=2)

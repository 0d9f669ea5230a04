"""The only place that knows how RecBole finds a model, its props, its trainer and its dataset: by name."""

from __future__ import annotations

import difflib
import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import recbole
import recbole.data.dataset
import recbole.trainer
import yaml
from recbole.config import Config
from recbole.utils import ModelType

from recbole_diffusion.data.sequences import PrefixDataset
from recbole_diffusion.model.cddrec import CDDRec
from recbole_diffusion.model.diffurec import DiffuRec
from recbole_diffusion.model.diffurecsys import DiffuRecSys
from recbole_diffusion.model.dreamrec import DreamRec
from recbole_diffusion.model.sasrecplus import SASRecPlus
from recbole_diffusion.model.seqdiffrec import SeqDiffRec
from recbole_diffusion.modules.recommender import SequenceRecommender
from recbole_diffusion.trainer import DiffusionTrainer, check_training_config

MODELS: dict[str, type[SequenceRecommender]] = {
    model.__name__: model
    for model in (
        DiffuRec,
        DiffuRecSys,
        DreamRec,
        CDDRec,
        SeqDiffRec,
        SASRecPlus,
    )
}

_PACKAGE = Path(__file__).parent
# An installed wheel carries the props inside the package; a checkout has them at the top level.
PROPS = _PACKAGE / "props" if (_PACKAGE / "props").is_dir() else _PACKAGE.parent / "props"

# Keys that belong to this plugin and not to one model: they are read by the trainer and by `quick_start.run`.
PLUGIN_KEYS = {"paper_protocol", "limit_train_batches", "lr_scheduler", "amp_dtype", "resume", "config_files"}


def register() -> None:
    """Make every model of ``MODELS`` known to RecBole's own functions."""
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
    if not hasattr(Config._load_internal_config_dict, "__wrapped__"):
        Config._load_internal_config_dict = _with_our_props(Config._load_internal_config_dict)


def _with_our_props(load_internal_config_dict):
    """RecBole reads props from its own folder alone: add ours, below whatever the user says, and check the result."""

    @functools.wraps(load_internal_config_dict)
    def wrapper(self: Config, model: str, model_class: type, dataset: str) -> None:
        load_internal_config_dict(self, model, model_class, dataset)
        _apply_per_model(self, model)
        ours = MODELS.get(model)
        # The protocol ranks all items, which RecBole's models of labelled data cannot: they keep RecBole's own.
        labelled = self.internal_config_dict["MODEL_TYPE"] in (ModelType.CONTEXT, ModelType.DECISIONTREE)
        if ours is None and (labelled or not self.external_config_dict.get("paper_protocol")):
            return
        self.internal_config_dict.update(load_props(model, dataset))
        user = self.external_config_dict
        merged = {**self.internal_config_dict, **user}
        # RecBole loads user and item ids alone unless told more; no sequential model can order those.
        if "load_col" not in user:
            fields = [merged[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
            own = {} if ours else merged.get("load_col") or {}  # such as the item features of RecBole's SASRecF
            inter = [*(own.get("inter") or []), *fields]
            self.internal_config_dict["load_col"] = {**own, "inter": list(dict.fromkeys(inter))}
        # RecBole samples negatives unless told not to, and then refuses its own cross-entropy models.
        if merged.get("loss_type") == "CE" and "train_neg_sample_args" not in user:
            self.internal_config_dict["train_neg_sample_args"] = None
        _warn_of_unknown_keys(user, self)
        if ours is not None:
            ours.check_config(merged)
            check_training_config(merged)

    return wrapper


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
    said = {**config.variable_config_dict, **config.cmd_config_dict}
    own = per_model.get(model, {})
    config.external_config_dict.update({key: value for key, value in own.items() if key not in said})


def load_props(model: str, dataset: str) -> dict[str, Any]:
    """Default parameters of a model on a dataset: the common protocol, the model's, then the dataset's.

    Raises
    ------
    FileNotFoundError
        The model is one of ours and its props file is missing.
    """
    props: dict[str, Any] = {}
    for path, required in (
        (PROPS / "protocol.yaml", True),
        (PROPS / f"{model}.yaml", model in MODELS),
        (PROPS / "dataset" / f"{dataset}.yaml", False),
    ):
        if path.is_file():
            props.update(yaml.load(path.read_text(encoding="utf-8"), Loader=Config._build_yaml_loader(None)) or {})
        elif required:
            raise FileNotFoundError(f"default parameters [{path}] are missing from this installation.")
    return props


def recbole_models() -> list[str]:
    """Names of RecBole's own models, as its props folder spells them."""
    return sorted(path.stem for path in (Path(recbole.__file__).parent / "properties" / "model").glob("*.yaml"))


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
    return {*config.internal_config_dict, *PLUGIN_KEYS, *(key for keys in config.parameters.values() for key in keys)}


def _warn_of_unknown_keys(user: dict[str, Any], config: Config) -> None:
    """Warn of a key that nothing reads and that looks like a misspelt one; RecBole ignores it silently."""
    known = known_keys(config)
    for key in user.keys() - known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near:
            warnings.warn(f"config key [{key}] is not known and has no effect: did you mean [{near[0]}]?", stacklevel=2)

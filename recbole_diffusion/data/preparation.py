"""From a configuration to the split data, with errors that say what the dataset lacks."""

from __future__ import annotations

from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.utils import ModelType

from recbole_diffusion.compat.atomic_files import read_header


def load_dataset(config: Config) -> Dataset:
    """Load, filter and number a dataset, not split yet.

    Raises
    ------
    FileNotFoundError
        Its file is not there and cannot be downloaded.
    ValueError
        It lacks a column.
    """
    file = Path(config["data_path"]) / f"{config['dataset']}.inter"
    missing = not file.is_file() and config["benchmark_filename"] is None and not config["dataset_save_path"]
    if file.is_file():
        _check_columns(config, file)
    try:
        dataset = create_dataset(config)
    except (OSError, ValueError) as error:
        if not missing:
            raise
        raise FileNotFoundError(
            f"dataset [{config['dataset']}] was not found and could not be downloaded ({error}). Put it at {file}: "
            f"tab-separated, with the header {config['USER_ID_FIELD']}:token, {config['ITEM_ID_FIELD']}:token, "
            f"{config['TIME_FIELD']}:float; or set data_path to the folder that holds {config['dataset']}/."
        ) from error
    _check_features(config, dataset)
    dataset.rows_kept = len(dataset.inter_feat)  # of `rows_in_file`; a split turns them into histories
    return dataset


def prepare_data(config: Config):
    """Load and split a dataset: ``(dataset, train_data, valid_data, test_data)``.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_dataset`; or no user has two interactions, or a key does not fit the data.
    """
    try:
        dataset = load_dataset(config)
        return dataset, *data_preparation(config, dataset)
    except (AttributeError, LookupError, NotImplementedError, TypeError) as error:  # as RecBole says it
        text = " ".join(str(error).split())
        raise ValueError(f"dataset [{config['dataset']}] cannot be prepared with these settings: {text}") from error
    except ValueError as error:
        if "feat is empty" in str(error):
            raise ValueError(
                f"dataset [{config['dataset']}] has no interaction left: user_inter_num_interval "
                f"[{config['user_inter_num_interval']}], item_inter_num_interval [{config['item_inter_num_interval']}] "
                f"and val_interval [{config['val_interval']}] drop all."
            ) from error
        if "num_samples" not in str(error):  # PyTorch's word for an empty training part
            raise
        raise ValueError(
            f"dataset [{config['dataset']}] leaves nothing to train on: no user has two interactions or more."
        ) from error


def _check_columns(config: Config, file: Path) -> None:
    """Raise ValueError where an interaction file lacks a column that the split or the model needs."""
    found = read_header(file, config["field_separator"], config["encoding"] or "utf-8")
    keys = ["USER_ID_FIELD", "ITEM_ID_FIELD"] + ["TIME_FIELD"] * (config["eval_args"]["order"] == "TO")
    missing = [config[key] for key in keys if config[key] not in found]
    loaded = (config["load_col"] or {}).get("inter") or "*"
    unloaded = [config[key] for key in keys if "*" not in loaded and config[key] not in loaded]
    if unloaded and not missing:
        raise ValueError(f"load_col [{config['load_col']}] must hold {' and '.join(unloaded)} as well, of inter.")
    if missing:
        raise ValueError(
            f"dataset [{config['dataset']}] has no column {' nor '.join(missing)}: {file} has {', '.join(found)}. "
            "Name its columns by USER_ID_FIELD, ITEM_ID_FIELD and TIME_FIELD."
        )
    if "TIME_FIELD" in keys and config["TIME_FIELD"] in (config["numerical_features"] or []):
        raise ValueError(
            f"numerical_features {config['numerical_features']} must not hold {config['TIME_FIELD']}, by which "
            "interactions are sorted: embed a copy of the column."
        )
    label, labelled = config["LABEL_FIELD"], config["MODEL_TYPE"] in (ModelType.CONTEXT, ModelType.DECISIONTREE)
    if labelled and label not in found and not config["threshold"]:
        raise ValueError(
            f"dataset [{config['dataset']}] has no column {label}, which [{config['model']}] learns: {file} has "
            f"{', '.join(found)}. Name the column by LABEL_FIELD, or make it of another by threshold, such as "
            "{rating: 4}."
        )
    readable = found if "*" in loaded else loaded
    if "labeled" in config["eval_args"]["mode"].values() and label not in readable and not config["threshold"]:
        raise ValueError(
            f"eval_args with the mode [labeled] needs the column {label} of dataset [{config['dataset']}], which is "
            "not loaded: name it by LABEL_FIELD and in load_col, or make it by threshold, such as {rating: 4}."
        )


def _check_features(config: Config, dataset: Dataset) -> None:
    """Raise ValueError where a model reads features that the dataset does not have."""
    missing = [name for name in config["selected_features"] or [] if name not in dataset.field2type]
    if missing:
        raise ValueError(
            f"selected_features [{', '.join(missing)}] of [{config['model']}] are no columns of dataset "
            f"[{config['dataset']}]: put them into {config['dataset']}.item, and name them in load_col."
        )

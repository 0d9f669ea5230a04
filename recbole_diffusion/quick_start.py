"""Train and evaluate one model on one dataset, load it again, and the objective of a hyper-parameter search."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, dict2str, get_model, get_trainer, init_logger, init_seed

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.compat.distributed import rank_and_world, spawn
from recbole_diffusion.compat.files import Busy, wait_for
from recbole_diffusion.compat.values import read_yaml
from recbole_diffusion.config.checks import check_machine
from recbole_diffusion.config.settings import result_settings, resume_settings, settings
from recbole_diffusion.console import calm_screen, epoch_lines, log_of_its_own, show_pretraining, show_run
from recbole_diffusion.data.cache import cache_name, cache_table, table_options
from recbole_diffusion.data.preparation import prepare_data
from recbole_diffusion.data.tables import kind_of
from recbole_diffusion.protocols import BothProtocols
from recbole_diffusion.registry import check_model_name, pretraining_config, value_sources
from recbole_diffusion.stored import config_of, model_of
from recbole_diffusion.trainer import DiffusionTrainer
from recbole_diffusion.trainer.embeddings import check_embeds
from recbole_diffusion.trainer.resume import Interrupted, best_file_of, find_last_state, lock_of

QUIET = {"show_progress": False, "state": "WARNING"}  # of what is loaded again


def run(
    model: str,
    dataset: str,
    config_file_list: Sequence[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    nproc: int = 1,
    world_size: int = -1,
    ip: str = "localhost",
    port: str = "5678",
    group_offset: int = 0,
) -> dict[str, Any]:
    """Train and test a model, ours or RecBole's, on one dataset under the papers' protocol.

    Takes what ``recbole.quick_start.run`` takes and returns its result, with ``model_file`` (the best checkpoint, None
    unless ``saved``), ``epochs`` (how many were trained) and ``test_results`` added: the test metrics under both
    protocols, {``candidates``: .., ``masked``: ..}, of which ``test_result`` is the one that ``mask_history`` chooses.
    It is None for what is no sequential model ranking all items.

    Raises
    ------
    ValueError
        Unknown model, or a parameter out of range.
    FileNotFoundError
        The dataset is neither here nor to be downloaded.
    """
    config_dict = dict(config_dict or {})
    if nproc < 1:
        raise ValueError(f"nproc [{nproc}] must be a number of processes >= 1.")
    if nproc == 1 and world_size <= 0:
        return train_and_test(build_config(model, dataset, config_file_list, config_dict), saved)
    config = build_config(model, dataset, config_file_list, config_dict)  # raises what is wrong; converts a table once
    if config["device"].type == "cuda" and torch.cuda.device_count() < nproc:
        raise ValueError(
            f"nproc [{nproc}] needs as many GPUs; this machine has {torch.cuda.device_count()}. Without them: --gpu_id="
        )
    if config["device"].type == "cpu" and nproc > os.cpu_count():
        raise ValueError(f"nproc [{nproc}] must be at most {os.cpu_count()}, the cores of this machine.")
    config_dict.update(
        world_size=world_size if world_size > 0 else nproc, ip=ip, port=port, nproc=nproc, offset=group_offset
    )
    try:
        return spawn(_run_rank, nproc, model, dataset, config_file_list, config_dict, saved)
    except KeyboardInterrupt:
        config["world_size"] = config_dict["world_size"]
        raise _interrupted(config) from None


def _run_rank(rank: int, model, dataset, config_file_list, config_dict, saved) -> dict[str, Any]:
    """One process of a distributed run; a spawned process imports this module, and with it registers the models."""
    return train_and_test(build_config(model, dataset, config_file_list, {**config_dict, "local_rank": rank}), saved)


def train_and_test(config: Config, saved: bool = True, callback_fn=None) -> dict[str, Any]:
    """Train and test what a Config says; the result is that of ``run``."""
    return fit_and_test(config, *prepare_training(config), saved, callback_fn)


def fit_and_test(
    config: Config, trainer: Trainer, train_data, valid_data, test_data, saved: bool = True, callback_fn=None
) -> dict[str, Any]:
    """Train and test with what ``prepare_training`` returned; the result is that of ``run``."""
    show = config["show_progress"]
    try:
        best_valid_score, best_valid_result = trainer.fit(
            train_data, valid_data, saved=saved, show_progress=show, callback_fn=epoch_lines(trainer, callback_fn)
        )
        test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=show)
    except KeyboardInterrupt:
        raise Interrupted(getattr(trainer, "last_model_file", None)) from None  # RecBole's own keep no last state
    for name, found in (("best valid", best_valid_result), ("test result", test_result)):
        getLogger().info(f"{name}: {dict2str(found) if found else None}")
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "best_valid_score": best_valid_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        "test_results": trainer.protocol_results if isinstance(trainer, BothProtocols) else None,
        "model_file": trainer.saved_model_file if saved else None,
        "epochs": len(trainer.train_loss_dict),
    }


def _interrupted(config: Config) -> Interrupted:
    """What several processes that were interrupted leave, of the model or of its pretraining."""
    stop = Interrupted(find_last_state(config["checkpoint_dir"], config, resume_settings))
    if config["pretrain"] and not stop.resume:
        stop = Interrupted(_pretraining(config)["resume"])
        stop.resume = None  # it is found again without being named
    return stop


def _pretraining(config: Config) -> Config:
    """The Config of the model that the key ``pretrain`` names; ``resume`` is the state of it to go on from, if any."""
    first = pretraining_config(config)
    # Of another length it is another run: unlike that of a run that goes on, its end is what counts.
    first["resume"] = find_last_state(first["checkpoint_dir"], first, result_settings)
    return first


def _pretrain(config: Config) -> str:
    """Train first the model that the key ``pretrain`` names, or find it trained; the file of its best checkpoint."""
    first = _pretraining(config)
    if first["resume"]:
        wait_for(lock_of(best_file_of(first["resume"])), f"the pretraining [{first['resume']}]")
    try:
        with log_of_its_own():
            trainer, *data = prepare_training(first)
            check_embeds(trainer.model, first["model"], config["hidden_size"])
            show_pretraining(first, config)
            return fit_and_test(first, trainer, *data)["model_file"]
    except Busy:  # of several that waited, another was faster
        return _pretrain(config)
    except Interrupted as stop:
        stop.resume = None  # its state is found again without being named, and is none of this model
        raise


def prepare_training(config: Config):
    """Everything that training needs: ``(trainer, train_data, valid_data, test_data)``.

    Trains the model that the key ``pretrain`` names first. Seeds all random generators, and resumes the trainer where
    the key ``resume`` says so.
    """
    pretrained = _pretrain(config) if config["pretrain"] and not find_resume_file(config) else None
    init_seed(config["seed"], config["reproducibility"])
    logger = getLogger()
    if rank_and_world()[0] == 0:
        init_logger(config)
        calm_screen(config)
    else:  # one process writes the log
        logging.disable(logging.WARNING)
    logger.info(config)

    data, train_data, valid_data, test_data = prepare_data(config)
    logger.info(data)
    if config["eval_type"] == EvaluatorType.RANKING and max(config["topk"]) >= data.item_num:
        raise ValueError(
            f"topk [{max(config['topk'])}] is more than the {data.item_num - 1:,} items of dataset "
            f"[{config['dataset']}]: RecBole cannot rank so many."
        )
    init_seed(config["seed"] + rank_and_world()[0], config["reproducibility"])
    network = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    logger.info(network)
    show_run(config, data, network)
    trainer = build_trainer(config, network)
    resume_file = find_resume_file(config)
    if resume_file:
        trainer.resume_checkpoint(resume_file)
    if pretrained:
        trainer.item_embedding_file = pretrained
    return trainer, train_data, valid_data, test_data


def build_config(model: str | None, dataset: str | None, config_file_list=None, config_dict=None) -> Config:
    """RecBole's Config for a model of ours or of RecBole's, with the papers' protocol for both.

    Where ``model`` or ``dataset`` is None, RecBole looks for them among the parameters. A ``dataset`` that is a table
    (``events.csv``) is converted into a folder under ``data_path`` and read from there; USER_ID_FIELD, ITEM_ID_FIELD
    and TIME_FIELD name its columns, ``encoding`` and ``field_separator`` say how it is read.

    Raises
    ------
    ValueError, FileNotFoundError
        Unknown model, a parameter out of range, what this machine lacks, or a config file that is none.
    """
    if model is not None:
        check_model_name(model)
    config_dict, said = dict(config_dict or {}), {}
    for path in config_file_list or []:
        said |= read_yaml(path)
    if "paper_protocol" not in said:
        config_dict.setdefault("paper_protocol", True)
    table = dataset or {**said, **config_dict}.get("dataset")
    is_table = table is not None and kind_of(table)
    if is_table:
        options, converted = table_options({**said, **config_dict})
        dataset = cache_name(table, **options)
        config_dict |= converted
    config = Config(model, dataset, list(config_file_list or []), config_dict)
    check_machine(config)
    if is_table:
        cache_table(table, config, **options)
    return config


def describe_config(config: Config, config_file_list: Sequence[str] = (), command_line: Sequence[str] = ()) -> str:
    """The whole merged configuration in YAML, a line a key, with the file or other source of each value.

    ``command_line`` names the keys that a command has read there itself.
    """
    sources, lines = value_sources(config, config_file_list) | dict.fromkeys(command_line, "command line"), []
    for key, value in sorted(settings(config).items(), key=lambda item: item[0].lower()):
        line = yaml.safe_dump({key: value}, default_flow_style=True, width=math.inf, sort_keys=False).strip()[1:-1]
        lines.append(f"{line:<40}  # {sources[key]}")
    return "\n".join(lines)


def build_trainer(config: Config, model) -> Trainer:
    """The model's trainer; RecBole's own models on its plain Trainer get ours, which does the same and can resume.

    What has a trainer of its own keeps it, and is evaluated under both protocols, too.
    """
    trainer_class = get_trainer(config["MODEL_TYPE"], config["model"])
    if trainer_class is Trainer:
        trainer_class = DiffusionTrainer
    elif issubclass(trainer_class, Trainer) and not issubclass(trainer_class, BothProtocols):
        trainer_class = type(trainer_class.__name__, (BothProtocols, trainer_class), {})
    return trainer_class(config, model)


def find_resume_file(config: Config) -> str | None:
    """The checkpoint that the key ``resume`` names; with ``auto`` the newest last state of the same run, if any."""
    if config["resume"] != "auto":
        return str(config["resume"]) if config["resume"] else None
    return find_last_state(config["checkpoint_dir"], config, resume_settings)


def load_data_and_model(model_file: str | Path, config_dict: dict[str, Any] | None = None):
    """Load a checkpoint with its dataset and split, as ``recbole.quick_start.load_data_and_model`` does.

    ``config_dict`` says where the dataset lies (``data_path``) and whatever else a file is not asked (``gpu_id``,
    ``checkpoint_dir``, ``trust_pickles``). Nothing is downloaded.

    Returns ``(config, model, dataset, train_data, valid_data, test_data)``.

    Raises
    ------
    FileNotFoundError, ValueError
        As ``compat.load_checkpoint`` and ``stored.config_of``, or the dataset is not found.
    """
    checkpoint = load_checkpoint(model_file)
    config = config_of(checkpoint, model_file, {**QUIET, **(config_dict or {})})
    init_seed(config["seed"], config["reproducibility"])
    if not Path(config["data_path"]).is_dir():
        raise FileNotFoundError(
            f"dataset [{config['dataset']}] of model_file [{model_file}] was not found: [{config['data_path']}] does "
            f"not exist. Set data_path to the folder that holds {config['dataset']}/."
        )
    try:
        dataset, train_data, valid_data, test_data = prepare_data(config)
    except ValueError as error:
        raise ValueError(f"model_file [{model_file}]: {error}") from error
    init_seed(config["seed"], config["reproducibility"])
    model = model_of(checkpoint, config, train_data._dataset, model_file)
    init_logger(config)  # which writes a file: not for a checkpoint that is refused
    calm_screen(config)
    return config, model, dataset, train_data, valid_data, test_data


def objective_function(config_dict=None, config_file_list=None, saved: bool = True, callback_fn=None) -> dict[str, Any]:
    """Objective of a hyper-parameter search: train with one set of parameters, model and dataset among them.

    Takes what RecBole's ``HyperTuning`` passes, and ``callback_fn(epoch, valid_score)`` after each validation; returns
    what ``run`` returns.
    """
    return train_and_test(build_config(None, None, config_file_list, config_dict), saved, callback_fn)

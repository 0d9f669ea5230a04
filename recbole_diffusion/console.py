"""What a run shows on the screen: what it is, how it goes on, what came out. RecBole's whole log is in its file."""

from __future__ import annotations

import contextlib
import logging
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import colorlog

from recbole_diffusion.config.keys import MACHINE_KEYS

logger = logging.getLogger("recbole_diffusion")
# What says which run it is, not how it differs.
_NAMES = {"model", "dataset", "paper_protocol", "per_model"}


class _Plain(logging.Formatter):
    """Our lines as they are, warnings and errors with their level."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.split(".")[0] == logger.name


def calm_screen(config) -> None:
    """Show on the screen what this package says, and warnings; with the key ``verbose`` RecBole's whole log, too.

    RecBole logs to the screen what it logs to the file: a hundred lines of configuration, the tree of the model.
    """
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and isinstance(handler.formatter, colorlog.ColoredFormatter | _Plain):
            handler.removeFilter(_is_ours)
            if not config["verbose"]:
                handler.addFilter(_is_ours)
                handler.setFormatter(_Plain())


@contextlib.contextmanager
def log_of_its_own() -> Iterator[None]:
    """Close afterwards the log that RecBole opens inside; while one is open, it opens no other."""
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        yield
    finally:
        for handler in root.handlers[:]:
            if handler not in before:
                root.removeHandler(handler)
                handler.close()


def log_file() -> str | None:
    """The file that RecBole logs to, relative to where the program runs."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            path = Path(handler.baseFilename)
            return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return None


def changed_settings(config) -> dict[str, Any]:
    """What a Config says other than its defaults, RecBole's and those of props/; no keys of the machine."""
    own, defaults = config.external_config_dict, config.internal_config_dict
    return {
        key: value
        for key, value in own.items()
        if key not in MACHINE_KEYS | _NAMES and (key not in defaults or defaults[key] != value)
    }


def show_run(config, dataset, model) -> None:
    """Say what is trained on what: true numbers, and what is not the default."""
    in_file = getattr(dataset, "rows_in_file", dataset.rows_kept)  # not known of a dataset that was saved
    kept = "" if in_file == dataset.rows_kept else f" of the {in_file:,} in the file"
    # RecBole counts its padding as a user, and as an item.
    users, items = dataset.user_num - 1, dataset.item_num - 1
    logger.info(f"  {users:,} users, {items:,} items, {dataset.rows_kept:,} interactions{kept}")
    size = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(f"  {size:,} parameters, on {config['device']}")
    said = ", ".join(f"{key} {value}" for key, value in changed_settings(config).items())
    text = f"not the default: {said}" if said else "all parameters at their defaults"
    logger.info(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False))
    if log_file():
        logger.info(f"  log: {log_file()}")


def show_pretraining(first, config) -> None:
    """Say what the epochs are of that come first."""
    going_on = " goes on" if first["resume"] else " is trained"
    logger.info(f"  first {first['model']}{going_on}, with whose items {config['model']} starts:")


def epoch_lines(trainer, then: Callable[[int, float], None] | None = None) -> Callable[[int, float], None]:
    """For ``Trainer.fit``: a line after each validation, and what else is to be called with epoch and score."""
    metric, start = trainer.config["valid_metric"], time.perf_counter()
    best = trainer.best_valid_score  # of a run that goes on

    def line(epoch: int, score: float) -> None:
        nonlocal best
        better = score > best if trainer.valid_metric_bigger else score < best
        best = score if better else best
        loss, seconds = trainer.train_loss_dict.get(epoch, math.nan), time.perf_counter() - start
        mark = ", the best so far" if better else ""
        logger.info(f"  epoch {epoch + 1}: {metric} {score:.4f}, loss {loss:.2f}, {seconds:.0f} s{mark}")
        if then:
            then(epoch, score)

    return line


def metric_lines(result: Mapping[str, Any]) -> str:
    """A run's test metrics as text, under both protocols where the run has both."""
    metrics, both = result["test_result"] or {}, result["test_results"]
    epochs = f"{result['epochs']} epoch{'s' * (result['epochs'] != 1)}"
    lines = [f"Test metrics of {result['model']} on {result['dataset']} ({epochs})"]
    if not metrics:
        return f"{lines[0]}\n  none: the split leaves no test data (a user needs three interactions)"
    width = max(map(len, ["history", *metrics]))
    if both:
        lines.append(f"  {'history':<{width}}  " + "  ".join(f"{protocol:>10}" for protocol in both))
    for name in metrics:
        values = [found[name] for found in (both or {"": metrics}).values()]
        lines.append(f"  {name:<{width}}  " + "  ".join(f"{value:>10.4f}" for value in values))
    return "\n".join(lines)

"""Checks of the keys of training, before any data is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType, ModelType

from recbole_diffusion.config.checks import check_keys
from recbole_diffusion.trainer.learning_rate import build_lr_lambda


def check_training_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a training key out of range, or for keys that do not fit each other."""
    check_keys(config, run_only=True)
    build_lr_lambda(config.get("lr_scheduler"), config.get("epochs") or 1)
    clip = config.get("clip_grad_norm")
    if clip is not None and "max_norm" not in clip:
        raise ValueError(f"clip_grad_norm [{clip}] must have a max_norm, such as {{max_norm: 1.0}}.")
    metrics, topk = (
        value if isinstance(value, (list, tuple)) else [value] for value in map(config.get, ("metrics", "topk"))
    )
    for metric in metrics:
        if metric is not None and metric.lower() not in metric_types:
            quotes = ' (a list has quotes: ["Hit","NDCG"])' if metric.startswith("[") else ""
            raise ValueError(f"metrics [{metric}] is unknown: choose one of {', '.join(metric_types)}{quotes}.")
    name, _, k = str(config.get("valid_metric")).partition("@")
    whole = name.lower() == "gauc" or metric_types.get(name.lower()) == EvaluatorType.VALUE  # of no k
    at_k = not k if whole or config.get("valid_metric") is None else k in map(str, topk)
    if name.lower() not in [str(metric).lower() for metric in metrics] or not at_k:
        at = "" if whole else f" at topk {topk}, such as {name}@{topk[0]}"
        raise ValueError(f"valid_metric [{config.get('valid_metric')}] must be among metrics {metrics}{at}.")
    mode = (config.get("eval_args") or {}).get("mode")
    modes = mode.values() if isinstance(mode, Mapping) else [mode]
    kinds = {str(metric): metric_types[metric.lower()] for metric in metrics if metric is not None}
    of_values = [metric for metric, kind in kinds.items() if kind == EvaluatorType.VALUE]
    if of_values and (len(of_values) < len(kinds) or set(modes) - {"labeled", None}):
        ranked = ", ".join(name for name, kind in metric_types.items() if kind != EvaluatorType.VALUE)
        raise ValueError(
            f"metrics [{', '.join(of_values)}] must be of ranked items, unless all are of labelled rows and eval_args "
            f"has the mode labeled: {ranked}."
        )
    if config.get("mask_history") and config.get("MODEL_TYPE") == ModelType.SEQUENTIAL and set(modes) - {"full", None}:
        raise ValueError(f"mask_history [True] needs eval_args with the mode full, not {mode}.")

"""Training behind `Recommender.fit` and `Recommender.update`: from a table, through RecBole, to a `Recommender`."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recbole.utils import ModelType, get_model
from torch import Tensor

from recbole_diffusion.config.keys import START_KEYS
from recbole_diffusion.data.atomic import Summary, TableOptions, read_atomic, write_atomic
from recbole_diffusion.data.tokens import escape_token, restore_token
from recbole_diffusion.quick_start import build_config, fit_and_test, prepare_training
from recbole_diffusion.recommend.known import KEPT_OPTIONS, KnownUsers
from recbole_diffusion.recommend.recommender import Catalogue, NeedsData, Recommender

_TABLE_OPTIONS = {field.name for field in fields(TableOptions)}
_KNOWN = {"user": "user", "item": "item", "time": "time", "time_unit": "s"}  # how to read `KnownUsers.frame`


def fit(data: Any, model: str = "SASRecPlus", **params: Any) -> Recommender:
    """Train a model, ours or RecBole's, on a table of interactions, and return it ready to recommend.

    ``data`` is a data frame or a file; ``user``, ``item``, ``time`` and the other options of `data.atomic.TableOptions`
    say how to read it. All other ``params`` are keys of the model, of training and of evaluation, with the defaults and
    the protocol of `quick_start.run`: a user's last two interactions validate and test (``result`` of what is returned
    has the metrics, ``summary`` what the table holds). Checkpoints are kept where ``checkpoint_dir`` is given.

    Raises
    ------
    ValueError, FileNotFoundError
        As `write_atomic` and `quick_start.run`; or the model reads more than histories.
    """
    options = {key: params.pop(key) for key in _TABLE_OPTIONS & params.keys()}
    return _train(data, options, model, params, None)


def update(recommender: Recommender, data: Any = None, **params: Any) -> Recommender:
    """Train a fitted recommender further on all interactions, old and new, and return it.

    Training starts from the weights it has, with a new optimizer, for ``epochs`` (as `fit` was told, unless given here;
    0 takes up users and items without training); `fit`'s ``pretrain``, ``item_embedding_file`` and frozen epochs are
    not repeated. ``data`` is read as `fit` read its own (columns, times, ``duplicates``), but for ``k_core``, and for
    what is said here. New items start at the mean embedding of the items before and
    after them in the histories, where there is none at the mean of all.

    Raises
    ------
    ValueError
        The recommender was not fitted, or as `fit`.
    """
    known = recommender.known
    if known is None:
        raise ValueError("update needs the interactions of the training: fit a recommender, or load one that was.")
    options = {**known.options, **{key: params.pop(key) for key in _TABLE_OPTIONS & params.keys()}}
    frame, whole = (known.frame, known.whole) if data is None else _joined(known, data, options)
    if params.get("epochs") == 0:
        return _take_up(recommender, KnownUsers(frame, whole, known.params, known.options))
    found = _train(frame, _KNOWN, recommender.name, {**known.params, **params}, recommender)
    found.known.whole, found.known.options = whole, known.options
    found.known.params = {**found.known.params, "epochs": known.params.get("epochs")}  # those of one update are its own
    if found.known.params["epochs"] is None:
        del found.known.params["epochs"]
    if hasattr(found.model, "inference_seeds") and "inference_seeds" not in params:  # as it was opened with
        found.model.inference_seeds = recommender.model.inference_seeds
    if "eval_batch_size" not in params:
        found.batch_size = recommender.batch_size
    recommender.__dict__.update(found.__dict__)
    return recommender


def _joined(known: KnownUsers, data: Any, options: dict[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """Old and new interactions in time order, and which of user and item are whole numbers in both."""
    with tempfile.TemporaryDirectory() as folder:
        summary = write_atomic(data, Path(folder) / "new", **options, trainable=False)
        frame = pd.concat([known.frame, read_atomic(summary.file)], ignore_index=True)
        frame = frame.sort_values("time", kind="stable", ignore_index=True)
        if (duplicates := options.get("duplicates", "keep")) != "keep":
            once = write_atomic(frame, Path(folder) / "once", **_KNOWN, duplicates=duplicates, trainable=False)
            frame = read_atomic(once.file)
    return frame, [role for role in known.whole if role in summary.whole]


def _train(data: Any, options: dict, model: str, params: dict[str, Any], old: Recommender | None) -> Recommender:
    """Convert, train and load; with ``old``, from its weights."""
    with tempfile.TemporaryDirectory() as folder:
        summary: Summary = write_atomic(data, Path(folder) / "table", **options)
        places = {"data_path": folder, "checkpoint_dir": params.get("checkpoint_dir") or str(Path(folder) / "saved")}
        names = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
        config = build_config(model, summary.file.parent.name, None, {**params, **names, **places})
        kept = {key: value for key, value in options.items() if key in KEPT_OPTIONS}
        known = KnownUsers(read_atomic(summary.file), summary.whole, _said(params, model), kept)
        _check_recommends(config, known)
        parts = prepare_training(config)
        if old is not None:
            parts[0].from_scratch = False
            dataset = parts[1]._dataset
            tokens = [restore_token(token) for token in dataset.field2id_token[dataset.iid_field]]
            # Neighbours among what validates and tests would give away what is asked for.
            take_over(parts[0].model, old, known, config, tokens, held_out=2)
        result = fit_and_test(config, *parts)
        found = Recommender(result["model_file"])
    found.known, found.summary, found.result = known, summary, result
    return found


def _said(params: dict[str, Any], model: str) -> dict[str, Any]:
    """What an update trains with as well: for this model, and without what items or the run started from."""
    own = (params.get("per_model") or {}).get(model, {})
    return {key: value for key, value in {**own, **params}.items() if key not in START_KEYS | {"per_model", "resume"}}


def _check_recommends(config, known: KnownUsers) -> None:
    """Raise ValueError, before any training, for a model that cannot recommend for a history alone."""
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise ValueError(f"model [{config['model']}] reads no histories: it cannot be fitted to recommend for them.")
    try:
        get_model(config["model"])(config, Catalogue(config, ["[PAD]", *known.frame["item"].unique()]))
    except NeedsData as error:
        raise ValueError(
            f"model [{config['model']}] reads more than histories ({error}): train it with `recbole-diffusion run`."
        ) from None


def _take_up(recommender: Recommender, known: KnownUsers) -> Recommender:
    """Let a recommender know users, histories and new items, without training."""
    config, old = recommender.checkpoint["config"], recommender.model
    tokens = [*recommender.tokens, *(item for item in known.frame["item"].unique() if item not in recommender.ids)]
    model = get_model(recommender.name)(config, Catalogue(config, tokens)).to(recommender.device)
    take_over(model, recommender, known, config, tokens, held_out=0)
    if hasattr(old, "inference_seeds"):
        model.inference_seeds = old.inference_seeds
    other = {**(recommender.checkpoint.get("other_parameter") or {}), "item_tokens": [*map(escape_token, tokens)]}
    other["item_tokens"][0] = "[PAD]"
    model.load_other_parameter(other)
    recommender.checkpoint["other_parameter"] = other
    recommender.model, recommender.known, recommender.result = model.eval(), known, None
    recommender.tokens, recommender.ids = tokens, {token: number for number, token in enumerate(tokens)}
    return recommender


@torch.no_grad()
def take_over(model, old: Recommender, known: KnownUsers, config, tokens: list[str], held_out: int) -> None:
    """Put an older model's weights into a model of a catalogue that has grown to ``tokens``, item by item.

    The neighbours of new items are those in the histories without their last ``held_out``.

    Raises
    ------
    ValueError
        Their other weights do not fit.
    """
    weights, found = old.model.state_dict(), model.state_dict()
    per_item = _per_item(config, len(tokens), found)
    rows = torch.tensor([0] + [old.ids.get(token, -1) for token in tokens[1:]])
    near = _neighbours(known, tokens, rows, held_out)
    for name, value in found.items():
        if name not in weights or (name not in per_item and weights[name].shape != value.shape):
            raise ValueError(f"update cannot go on from another configuration: [{name}] does not fit.")
        before = weights[name].to(value.device)
        if name in per_item:  # some models have rows behind those of the items, such as that of a mask
            items, others = before.split([len(old.tokens), len(before) - len(old.tokens)])
            others = others.reshape(len(others), items[0].numel())
            before = torch.cat([_grown(items, rows, near), others]).view_as(value)
        value.copy_(before)
    model.load_state_dict(found)


def _grown(before: Tensor, rows: Tensor, near: Tensor) -> Tensor:
    """Rows of the items [N, D]: those they had (``rows`` [N]), of new ones (-1) the mean of their neighbours."""
    flat = before.reshape(len(before), -1)
    after = flat[rows.clamp(min=0)]
    count = near.sum(dim=1).to_dense().unsqueeze(1).to(flat.dtype)
    mean = torch.sparse.mm(near.to(flat.dtype), after) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, flat[1:].mean(dim=0))
    return torch.where(rows.unsqueeze(1) < 0, mean, after)


def _per_item(config, n_items: int, found: dict[str, Tensor]) -> set[str]:
    """Names of the weights with a row for each item: those that grow with the catalogue."""
    try:
        larger = get_model(config["model"])(config, Catalogue(config, ["[PAD]"] * (n_items + 1)))
    except NeedsData:
        raise ValueError(f"update does not work for [{config['model']}], whose layers read the data.") from None
    return {name for name, value in larger.state_dict().items() if value.shape != found[name].shape}


def _neighbours(known: KnownUsers, tokens: list[str], rows: Tensor, held_out: int) -> Tensor:
    """How often a new item stands beside an old one in a history without its last ``held_out``: sparse [N, N]."""
    number = {token: place for place, token in enumerate(tokens)}
    pairs = [
        (number[a], number[b])
        for user in known.names()
        for one, other in pairwise(known.history(user)[: -held_out or None])
        for a, b in ((one, other), (other, one))
        if a in number and b in number and rows[number[a]] < 0 < rows[number[b]]
    ]
    places = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    ones, size = torch.ones(places.shape[1]), (len(tokens), len(tokens))
    return torch.sparse_coo_tensor(places, ones, size, check_invariants=False).coalesce()

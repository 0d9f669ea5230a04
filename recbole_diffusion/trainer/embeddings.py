"""Item embeddings that start from a checkpoint, and that rest for some epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.modules.recommender import SequenceRecommender


def check_item_embeddings(config: Mapping[str, Any]) -> None:
    """Raise ValueError or FileNotFoundError where the item embeddings cannot start as the keys say."""
    file, pretrain = config["item_embedding_file"], config["pretrain"]
    if file and pretrain:
        raise ValueError(f"item_embedding_file [{file}] must be null where pretrain [{pretrain}] makes such a file.")
    if file and not config.get("resume"):  # a resumed run has its embeddings
        read_item_embeddings(file, config["hidden_size"])


def check_embeds(model, name: str, hidden_size: int) -> None:
    """Raise ValueError, before any training, where a model to train first has no item embeddings of this size."""
    embedding = getattr(model, "item_embedding", None)
    if embedding is None or embedding.weight.shape[1] != hidden_size:
        size = "no item embeddings" if embedding is None else f"item embeddings of size {embedding.weight.shape[1]}"
        raise ValueError(f"pretrain [{name}] has {size}, and must have some of hidden_size [{hidden_size}].")


def read_item_embeddings(path: str | Path, hidden_size: int) -> tuple[dict[str, int], Tensor]:
    """The row of each item token in a checkpoint of any model that embeds items, and its embeddings [n_items, D].

    Raises
    ------
    FileNotFoundError, ValueError
        As ``load_checkpoint``; or the file holds no item embeddings, or none of this size.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"item_embedding_file [{path}] does not exist.")
    checkpoint = load_checkpoint(path)
    weight = checkpoint["state_dict"].get("item_embedding.weight")
    tokens = (checkpoint.get("other_parameter") or {}).get("item_tokens")
    if weight is None or tokens is None:
        raise ValueError(
            f"item_embedding_file [{path}] must hold item embeddings and the items' tokens, as every model of this "
            f"package saves them: it is of the model [{checkpoint['config']['model']}]."
        )
    if weight.shape[1] != hidden_size:
        raise ValueError(
            f"hidden_size [{hidden_size}] must be {weight.shape[1]}, the size of the embeddings in "
            f"item_embedding_file [{path}]."
        )
    return {token: row for row, token in enumerate(tokens) if row}, weight


@torch.no_grad()
def load_item_embeddings(embedding: nn.Embedding, tokens: Sequence[str], path: str | Path) -> int:
    """Start the embeddings of items, named by their tokens, from a checkpoint; return how many it has.

    Row 0 is the padding. Items that the checkpoint lacks keep what they start from.

    Raises
    ------
    FileNotFoundError, ValueError
        As ``read_item_embeddings``; or no item is in the file.
    """
    row, weight = read_item_embeddings(path, embedding.embedding_dim)
    found = [place for place, token in enumerate(tokens) if place and token in row]
    if not found:
        raise ValueError(f"item_embedding_file [{path}] must be of the same items: it has none of these.")
    embedding.weight[found] = weight[[row[tokens[place]] for place in found]].to(embedding.weight)
    getLogger().info(f"{len(found):,} of {len(tokens) - 1:,} items start from item_embedding_file [{path}].")
    return len(found)


def start_item_embeddings(model, config, path: str | Path | None, from_scratch: bool = True) -> None:
    """For a model of this package that starts training: load what the keys say, from ``path``.

    Where nothing is loaded and it starts ``from_scratch``, it may advise against that.

    Raises
    ------
    ValueError, FileNotFoundError
        As ``load_item_embeddings``; or nobody has trained the model that ``pretrain`` names.
    """
    if not isinstance(model, SequenceRecommender):
        return
    if path:
        load_item_embeddings(model.item_embedding, model.item_tokens, path)
    elif config["pretrain"]:
        raise ValueError(
            f"pretrain [{config['pretrain']}] is read by run_recbole_diffusion.py and quick_start.run: here train it "
            "first, and name its checkpoint by item_embedding_file."
        )
    elif from_scratch:
        model.advise_from_scratch()


def is_frozen(model, config, epoch: int) -> bool:
    """Whether the item embeddings of a model of this package stay as they are in an epoch, counted from 0."""
    return isinstance(model, SequenceRecommender) and epoch < config["freeze_embedding_epochs"]


def hold_still(weight: nn.Parameter, freeze_mode: str) -> None:
    """Drop a gradient, so that the next step of the optimizer leaves the weight and its moments as they are.

    With the mode ``decay`` the gradient is zero instead, as in the public code of ADRec: momentum and weight decay go
    on. Adam, whose weight decay is part of the gradient, then shrinks the weight at full step size.
    """
    if freeze_mode == "decay":
        weight.grad.zero_()
    else:
        weight.grad = None

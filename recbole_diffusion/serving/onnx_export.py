"""A trained model as ONNX: from a history to the vector whose inner products with the items' are its scores."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from recbole_diffusion.diffusion_utils import SeedNoise
from recbole_diffusion.modules.recommender import SequenceRecommender
from recbole_diffusion.recommend import Recommender

CHECKED_USERS, CHECKED_TOP = 1000, 20


class HistoryEncoder(nn.Module):
    """A model as a plain function: ``item_seq`` [B, L] and ``item_seq_len`` [B] to a vector a user.

    With several ``inference_seeds`` it is the mean of the generated embeddings. Where items have a bias, the vector
    ends in 1, and those of the items in their bias.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """[B, L], padded on the right, and [B], from 1 to L, to [B, D] or [B, D + 1]."""
        if not isinstance(self.model, SequenceRecommender):
            return self.model(item_seq, item_seq_len)
        interaction = {self.model.ITEM_SEQ: item_seq, self.model.ITEM_SEQ_LEN: item_seq_len}
        vector = self.model.query(self.model.generate(interaction))
        biased = self.model.output_layer()[1] is not None
        return torch.cat([vector, torch.ones_like(vector[:, :1])], dim=-1) if biased else vector

    def items(self) -> Tensor:
        """The items' vectors, [n_items, D] or [n_items, D + 1]; the padding item's is first."""
        if not isinstance(self.model, SequenceRecommender):
            return self.model.item_embedding.weight.detach()
        weight, bias = self.model.output_layer()
        return (weight if bias is None else torch.cat([weight, bias.unsqueeze(-1)], dim=-1)).detach().float()


def export_onnx(
    model_file: str | Path, output: str | Path, inference_seeds: Any = None, config_dict: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write ``encoder.onnx``, ``items.npy`` and ``model.json`` (item tokens, history length, seeds) to a folder.

    ``inference_seeds`` and ``config_dict`` are those of `Recommender`. The draws of the seeds become constants of the
    graph. It is run by ONNX Runtime on 1,000 random histories before the folder is there; the result says how often its
    first 20 items are those of the model (``same_top``, shares).

    Raises
    ------
    ValueError
        The model's scores are no inner products of a vector of the history, or its graph computes something else.
    ImportError
        onnx, onnxscript or onnxruntime is missing.
    FileNotFoundError, FileExistsError
        No such checkpoint; the folder is there already.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {', '.join(missing)}: pip install 'recbole-diffusion[onnx]'")
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"output [{output}] exists: name another folder.")
    recommender = Recommender(model_file, inference_seeds, config_dict)
    encoder = HistoryEncoder(recommender.model.cpu())
    _check_exportable(recommender, encoder)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        length = recommender.model.max_seq_length
        np.save(folder / "items.npy", encoder.items().numpy())
        seeds = list(getattr(encoder.model, "inference_seeds", [])) if encoder_draws(encoder) else []
        with _errors_in_one_line(recommender.name):
            _write_graph(encoder, length, folder / "encoder.onnx")
            same, of_graph = compare_top(encoder, folder, length, averaged=len(seeds) > 1)
        if of_graph["lists"] < 0.99:
            raise ValueError(f"model [{recommender.name}] cannot be exported: its graph ranks otherwise ({of_graph}).")
        about = {"model": recommender.name, "tokens": recommender.tokens, "max_length": length}
        about |= {"inference_seeds": seeds}
        (folder / "model.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
        folder.rename(output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {"model": recommender.name, "folder": output, "inference_seeds": seeds, "same_top": same}


def encoder_draws(encoder: HistoryEncoder) -> bool:
    """Whether the model's generation draws, so that its seeds matter."""
    return bool(getattr(encoder.model, "random_inference", False))


def random_histories(n_items: int, length: int, users: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Histories of every length: ``item_seq`` [users, length], ``item_seq_len`` [users]."""
    draw = torch.Generator().manual_seed(seed)
    item_seq_len = torch.randint(1, length + 1, (users,), generator=draw)
    item_seq = torch.randint(1, n_items, (users, length), generator=draw)
    return item_seq * (torch.arange(length) < item_seq_len[:, None]), item_seq_len


@torch.no_grad()
def _check_exportable(recommender: Recommender, encoder: HistoryEncoder) -> None:
    """Raise ValueError unless inner products of the encoder's vector and the items' are the model's scores."""
    model, name = encoder.model, recommender.name
    if not isinstance(getattr(model, "item_embedding", None), nn.Embedding):
        raise ValueError(f"model [{name}] has no item embeddings to export or index.")
    if isinstance(model, SequenceRecommender):
        kept = model.seen_items.seen_items
        if kept != "candidates":
            raise ValueError(f"seen_items [{kept}] cannot be exported: the scores are no inner products alone.")
        model.ragged = False  # the same result, by a graph that no length changes
        model.enable_amp = False  # ONNX Runtime has no bf16 on CPUs
        return
    item_seq, item_seq_len = random_histories(len(recommender.tokens), model.max_seq_length, 8)
    try:
        vector = encoder(item_seq, item_seq_len)
        scores = model.full_sort_predict({model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: item_seq_len})
        same = torch.allclose(vector @ encoder.items().T, scores, rtol=1e-4, atol=1e-5)
    except (LookupError, TypeError, RuntimeError):
        same = False
    if not same:
        raise ValueError(
            f"model [{name}] cannot be exported: its scores are no inner products with a history's vector."
        )


@contextlib.contextmanager
def _draws_as_constants(encoder: HistoryEncoder, example: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Replay the draws of one run: a graph knows no generators, and under one seed all users share its draws."""
    draws: list[Tensor] = []
    draw = SeedNoise.draw

    def record(self: SeedNoise, *shape: int, device=None, dtype=None) -> Tensor:
        draws.append(draw(self, *shape, device=device, dtype=dtype))
        return draws[-1]

    with mock.patch.object(SeedNoise, "draw", record):
        encoder(*example)

    def start(self: SeedNoise, seeds: list[int]) -> None:
        self.generators, self.replayed = list(seeds), iter(draws)

    with mock.patch.multiple(SeedNoise, __init__=start, draw=lambda self, *shape, **kind: next(self.replayed)):
        yield


@torch.no_grad()
def _write_graph(encoder: HistoryEncoder, length: int, file: Path) -> None:
    """Trace the encoder for batches of any size."""
    # More rows than D + 1, where guided models begin to walk their chain once for all users.
    example = random_histories(encoder.items().shape[0], length, 2 * encoder.items().shape[1] + 4)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with _draws_as_constants(encoder, example):
        torch.onnx.export(
            encoder,
            example,
            str(file),
            input_names=["item_seq", "item_seq_len"],
            output_names=["vector"],
            dynamic_shapes={"item_seq": {0: batch}, "item_seq_len": {0: batch}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _errors_in_one_line(name: str) -> Iterator[None]:
    """Exporter and ONNX Runtime raise what they like."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:300]
        raise ValueError(f"model [{name}] cannot be exported: {type(error).__name__}: {said}") from error


@torch.no_grad()
def compare_top(
    encoder: HistoryEncoder, folder: Path, length: int, averaged: bool
) -> tuple[dict[str, float], dict[str, float]]:
    """ONNX Runtime on random histories against the model, and against the encoder that its graph is of.

    Each time the shares of equal top-20 lists, and of items in both. They are the same unless seeds are ``averaged``.
    """
    import onnxruntime

    items, model = np.load(folder / "items.npy"), encoder.model
    item_seq, item_seq_len = random_histories(len(items), length, CHECKED_USERS)
    session = onnxruntime.InferenceSession(str(folder / "encoder.onnx"), providers=["CPUExecutionProvider"])
    [vector] = session.run(None, {"item_seq": item_seq.numpy(), "item_seq_len": item_seq_len.numpy()})
    found = torch.from_numpy(vector @ items.T)
    same = _shares(found, model.full_sort_predict({model.ITEM_SEQ: item_seq, model.ITEM_SEQ_LEN: item_seq_len}))
    return same, _shares(found, encoder(item_seq, item_seq_len) @ encoder.items().T) if averaged else same


def _shares(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Of two tables of scores, whose padding item does not count."""
    k = min(CHECKED_TOP, found.shape[1] - 1)
    found, expected = found[:, 1:].topk(k).indices, expected[:, 1:].topk(k).indices
    both = (found.unsqueeze(2) == expected.unsqueeze(1)).any(2)
    return {"lists": (found == expected).all(1).double().mean().item(), "items": both.double().mean().item()}

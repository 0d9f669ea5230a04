"""Top-k items with scores and uncertainty for any history, also of a user never seen in training."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.compat.finite import check_scores
from recbole_diffusion.config.checks import check_number
from recbole_diffusion.data.tokens import restore_token
from recbole_diffusion.diffusion_utils import resolve_seeds
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.modules.recommender import SequenceRecommender
from recbole_diffusion.quick_start import load_data_and_model
from recbole_diffusion.recommend.frames import FrameRecommender
from recbole_diffusion.recommend.known import KnownUsers
from recbole_diffusion.stored import Catalogue, NeedsData, config_of, model_of

TRIM_EVERY = 4  # batches between two times that free memory is handed back


@dataclass
class Recommendation:
    """The best items of one history, best first.

    ``spread``, the uncertainty, is the standard deviation of each score over the seeds, None with less than two;
    ``unknown`` holds the tokens of the history that the model does not know.
    """

    items: list[str]
    scores: list[float]
    spread: list[float] | None
    unknown: list[str]


def recommend(
    model_file: str | Path,
    histories: Iterable[Sequence[str]],
    k: int = 10,
    exclude_seen: bool = False,
    batch_size: int | None = None,
    inference_seeds: int | list[int] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> list[Recommendation]:
    """Recommend k items for each history of external item tokens, oldest first.

    Of a history longer than the model reads, the last items count. With ``exclude_seen``, no item of the history (all
    of it) is recommended; fewer than k are left where the catalogue is that small. ``inference_seeds`` replaces the
    model's own, seeds or their number: with several, scores are probabilities averaged over them and have a spread. For
    millions of histories, or one at a time, keep a `Recommender`; ``config_dict`` is explained there.

    Raises
    ------
    FileNotFoundError, ValueError
        As `Recommender`, and ValueError naming the first history that is empty or has only unknown tokens.
    """
    return list(Recommender(model_file, inference_seeds, config_dict).stream(histories, k, exclude_seen, batch_size))


class Recommender(FrameRecommender):
    """A trained sequential model, ours or RecBole's, loaded once to recommend.

    A checkpoint that our trainer wrote needs no dataset. For others, and for models whose layers read the data, the
    dataset is loaded again as in training, from where ``config_dict`` says (``data_path``). `stream` is for millions of
    histories; `recommend` and `similar_items` return data frames; `fit` trains one from a table.

    Raises
    ------
    FileNotFoundError
        There is no such checkpoint, or it needs its dataset, which is not found.
    ValueError
        It is no checkpoint, or holds a model that reads no histories; or bad ``inference_seeds``.
    """

    def __init__(
        self,
        model_file: str | Path,
        inference_seeds: int | list[int] | None = None,
        config_dict: dict[str, Any] | None = None,
    ):
        checkpoint = load_checkpoint(model_file)
        config, state = config_of(checkpoint, model_file, config_dict), checkpoint.get("other_parameter") or {}
        if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
            raise ValueError(f"model_file [{model_file}] holds [{config['model']}], which reads no histories.")
        self.name, self.model_file, tokens = config["model"], model_file, state.get("item_tokens")
        try:
            model = model_of(checkpoint, config, Catalogue(config, tokens), model_file)
        except NeedsData:
            config, model, dataset, *_ = load_data_and_model(model_file, config_dict)
            tokens = dataset.field2id_token[dataset.iid_field].tolist()
        if inference_seeds is not None:
            if not isinstance(model, DiffusionRecommender):
                raise ValueError(f"inference_seeds [{inference_seeds}] cannot be given: [{self.name}] draws nothing.")
            model.inference_seeds = resolve_seeds(inference_seeds)
        self.model, self.device = model.eval(), config["device"]
        self.tokens = [restore_token(token) for token in tokens]
        try:
            self.known = KnownUsers.restore(checkpoint.get("known_users"), config)
        except ValueError as error:
            raise ValueError(f"model_file [{model_file}] cannot be used: {error}") from None
        large = ("state_dict", "optimizer", "known_users")
        self.checkpoint = {key: value for key, value in checkpoint.items() if key not in large} | {"config": config}
        self.excludes = isinstance(model, SequenceRecommender) and config["seen_items"] == "excluded"
        self.batch_size = config["eval_batch_size"]
        self.ids = {token: number for number, token in enumerate(self.tokens)}

    def encode(self, history: Sequence[str]) -> tuple[list[int], list[str]]:
        """The item numbers of a history and the tokens that are unknown; whole numbers are read as tokens.

        Raises ValueError where it is no sequence of tokens, holds no known one, or leaves none to recommend.
        """
        if isinstance(history, (str, bytes, dict)) or not isinstance(history, Iterable):
            raise ValueError(f"[{history}] is no list of item tokens.")
        known, unknown = [], []
        for token in history:
            if isinstance(token, bool) or not isinstance(token, (str, Integral)):
                raise ValueError(f"[{token}] is no item token.")
            number = self.ids.get(str(token))
            known.append(number) if number else unknown.append(str(token))  # 0 is the padding
        if not known:
            raise ValueError(f"none of its items is known: {', '.join(unknown[:5])}." if unknown else "it is empty.")
        if self.excludes and len(set(known[-self.model.max_seq_length :])) == len(self.tokens) - 1:
            raise ValueError("it holds every item, and seen_items [excluded] leaves none to recommend.")
        return known, unknown

    def stream(
        self, histories: Iterable[Sequence[str]], k: int = 10, exclude_seen: bool = False, batch_size: int | None = None
    ) -> Iterator[Recommendation]:
        """Recommend as `recommend` does, one batch at a time in constant memory."""
        check_number({"k": k}, "k", Integral, 1)
        for batch in batches(enumerate(histories), self.batch_size if batch_size is None else batch_size):
            encoded = []
            for index, history in batch:
                try:
                    encoded.append(self.encode(history))
                except ValueError as error:
                    raise ValueError(f"history {index} cannot be used: {error}") from None
            yield from self.rank(encoded, k, exclude_seen)

    @torch.no_grad()
    def rank(self, encoded: list[tuple[list[int], list[str]]], k: int, exclude_seen: bool) -> list[Recommendation]:
        """Recommend for one batch of what `encode` returned."""
        check_number({"k": k}, "k", Integral, 1)
        length = self.model.max_seq_length
        item_seq = _padded([known[-length:] for known, _ in encoded], length)
        seq_len = torch.tensor([min(len(known), length) for known, _ in encoded])
        interaction = Interaction({self.model.ITEM_SEQ: item_seq, self.model.ITEM_SEQ_LEN: seq_len}).to(self.device)
        seen = None
        if exclude_seen:
            seen = _padded([known for known, _ in encoded], max(len(known) for known, _ in encoded)).to(self.device)
        found = []
        best = self._topk(interaction, k, seen)
        check_scores(best[0], self.name, may_be_empty=True, model_file=self.model_file)
        scores, items, spread = (part if part is None else part.tolist() for part in best)
        for row, (_, unknown) in enumerate(encoded):
            left = sum(score > -torch.inf for score in scores[row])  # excluded items come last
            tokens = [self.tokens[item] for item in items[row][:left]]
            found.append(Recommendation(tokens, scores[row][:left], spread and spread[row][:left], unknown))
        return found

    def _topk(self, interaction: Interaction, k: int, seen: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Scores, items and spread of the best k of each row, [B, k]; ``seen`` [B, M] are no candidates (0: none)."""
        if isinstance(self.model, DiffusionRecommender):
            scores, items, std = self.model.topk(interaction, k, seen, return_std=True)
            if len(self.model.inference_seeds) == 1:
                return scores, items, None
            return scores.exp().where(scores > -torch.inf, scores), items, std  # probabilities, of their logarithms
        try:
            scores = self.model.full_sort_predict(interaction).view(len(interaction), -1)
        except (KeyError, NotImplementedError) as error:
            what = f"reads {error}, too" if isinstance(error, KeyError) else "cannot rank all items at once"
            raise ValueError(f"model [{self.name}] cannot recommend for a history alone: it {what}.") from error
        scores[:, 0] = -torch.inf
        if seen is not None:
            scores.scatter_(1, seen, -torch.inf)
        return *scores.topk(min(k, scores.shape[1])), None


def _padded(rows: list[list[int]], length: int) -> Tensor:
    """[B, length], zeros on the right."""
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def batches(values: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` values, and of what is left; raises ValueError for a size that is none."""
    check_number({"batch_size": size}, "batch_size", Integral, 1)
    values = iter(values)
    for number in count(1):
        batch = list(islice(values, size))
        if not batch:
            return
        yield batch
        if not number % TRIM_EVERY:
            _malloc_trim(0)


def _find_malloc_trim():
    """glibc's ``malloc_trim``, elsewhere nothing.

    Batches of ever different lengths leave holes in glibc's heap, which grows without end; this hands them back.
    """
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, TypeError, OSError):
        return lambda pad: None


_malloc_trim = _find_malloc_trim()

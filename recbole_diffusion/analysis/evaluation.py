"""A trained model on its test rows: what it ranks and generates, computed once and shared by the sections."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure
from recbole.utils import ModelType
from torch import Tensor

from recbole_diffusion.analysis.places import K, place_of
from recbole_diffusion.compat.finite import check_scores
from recbole_diffusion.compat.progress import bar
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.protocols import put_last
from recbole_diffusion.quick_start import load_data_and_model

PLATEAU_K = 40  # scores that Avg.Change looks at
SEED_COUNTS = (1, 2, 5, 10, 20)
MAX_SCORES = 2**25  # most item scores held at once, over batch and seeds


class NotApplicable(Exception):
    """A section has nothing to show for this model or run; the message says why."""


@dataclass
class Section:
    """One analysis: a sentence or two, the numbers, and the plot of these numbers."""

    text: str
    table: pd.DataFrame
    figure: Figure


@dataclass
class SeedRanking:
    """How U test rows are ranked by each of S seeds alone, and by groups of seeds together."""

    top: Tensor  # [S, U, K] best items of each seed
    places: Tensor  # [S, U] place of the target under each seed, as Evaluation.places
    group_places: dict[int, Tensor]  # number of seeds n -> [S // n, U], under the average of each group of n
    average_top: Tensor  # [U, K] best items of the average over all seeds
    spread: Tensor  # [U] standard deviation over the seeds as a share of the mean probability, over average_top


class Evaluation:
    """Test rows of a checkpoint, at most ``max_users`` of them drawn by ``seed``, and what its model makes of them.

    A test row is a history with the item that came next; under the papers' protocol each user has one. Every item is a
    candidate.

    Raises
    ------
    FileNotFoundError, ValueError
        As ``load_data_and_model``; the model is not sequential.
    """

    def __init__(
        self,
        model_file: str | Path,
        max_users: int,
        seed: int,
        log_dir: str | Path,
        config_dict: dict[str, Any] | None = None,
    ):
        self.model_file, self.seed, self.log_dir = Path(model_file), seed, Path(log_dir)
        self.config, self.model, _, train_data, valid_data, test_data = load_data_and_model(model_file, config_dict)
        if self.config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
            raise ValueError(
                f"model_file [{model_file}] holds [{self.config['model']}], and must hold a sequential model."
            )
        self.model.eval()
        self.is_diffusion = isinstance(self.model, DiffusionRecommender)
        self.train, test = train_data._dataset, test_data._dataset
        self.n_items, self.n_rows = test.item_num, len(test)
        if not self.n_rows:
            raise ValueError(f"model_file [{model_file}] has no test rows: its split leaves none.")
        rows = torch.arange(self.n_rows)
        if self.n_rows > max_users:
            rows = rows[torch.randperm(self.n_rows, generator=torch.Generator().manual_seed(seed))[:max_users]]
        self.rows = rows.sort().values
        # As RecBole's loader does: some of its models read a history changed by the loader.
        batch = test[self.rows]
        self.history: tuple[Tensor, Tensor] | None = getattr(batch, "seen", None)  # (row, item) of all that users had
        self.interaction = test_data.transform(test, batch)
        self.target = self.interaction[test.iid_field]
        self.popularity = np.bincount(self.train.inter_matrix(form="coo").col, minlength=self.n_items)
        self.history_length = _history_length(train_data._dataset, valid_data._dataset, test)[self.rows.numpy()]

    def batches(self, copies: int, what: str = "scores") -> Iterator[slice]:
        """Slices of the rows, such that that many copies of each exceed neither eval_batch_size nor MAX_SCORES.

        A bar shows how far they are, under the name ``what``.
        """
        size = max(1, min(self.config["eval_batch_size"], MAX_SCORES // self.n_items) // copies)
        return (slice(first, first + size) for first in bar(range(0, len(self.rows), size), desc=f"      {what}"))

    def batch(self, rows: slice):
        """Those rows on the model's device."""
        return self.interaction[rows].to(self.config["device"])

    # ------------------------------------------------------------------ ranking

    @cached_property
    @torch.no_grad()
    def _ranking(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and items of ``ranking``, [U, 40] each, and ``masked_places`` [U].

        Raises
        ------
        ValueError
            The model scores given items alone, as some of RecBole's do.
        """
        found = []
        for rows in self.batches(1):
            try:
                scores = self.model.full_sort_predict(self.batch(rows)).view(-1, self.n_items)
            except NotImplementedError:
                raise ValueError(
                    f"model_file [{self.model_file}] holds [{self.config['model']}], which scores given items alone; "
                    "allowed: a model that scores all items."
                ) from None
            scores[:, 0] = -torch.inf
            check_scores(scores, self.config["model"])
            put_last(scores, torch.arange(len(scores)), self.target[rows])
            best = scores.topk(min(PLATEAU_K, self.n_items - 1))
            found.append([part.cpu() for part in (*best, self._place_without_history(scores, rows))])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _place_without_history(self, scores: Tensor, rows: slice) -> Tensor:
        """Place of the target of some rows, from 0, where no other item of the history is a candidate."""
        target = self.target[rows].to(scores.device)
        own = scores.gather(1, target[:, None])
        better = (scores > own).sum(1)
        if self.history is None:
            return better
        inside = (self.history[0] >= rows.start) & (self.history[0] < rows.stop)
        pair = (self.history[0][inside] - rows.start) * self.n_items + self.history[1][inside]
        pair = pair.unique().to(scores.device)
        row = pair // self.n_items
        # A target that is no candidate itself (`seen_items: excluded`) stays behind all else.
        ahead = (scores[row, pair % self.n_items] > own[row, 0]) & own[row, 0].isfinite()
        return better - row[ahead].bincount(minlength=len(better))

    @property
    def ranking(self) -> tuple[Tensor, Tensor]:
        """The best items of each row and their scores, [U, 40] each (fewer in a smaller catalogue)."""
        return self._ranking[1], self._ranking[0]

    @property
    def masked_places(self) -> Tensor:
        """Place of each row's target, from 0, with the user's whole history masked: [U]."""
        return self._ranking[2]

    @cached_property
    def places(self) -> Tensor:
        """Place of each row's target in its ranking, from 0, infinite beyond the best 40: [U]."""
        return place_of(self.ranking[0], self.target)

    # ------------------------------------------------------------------ seeds

    @cached_property
    def seed_difference(self) -> float:
        """How far what two seeds generate lies apart, as a share of its length: the mean over the rows."""
        spread = self.x_start.std(0).norm(dim=-1) / self.x_start.mean(0).norm(dim=-1).clamp(min=1e-12)
        return float(spread.mean())

    @property
    def why_alike(self) -> str:
        """Why draws may change little, in a sentence."""
        said = f"What the seeds generate differs by {percent(self.seed_difference)} of its length"
        delta = self.config["lambda_uncertainty"]
        if delta is None:
            return f"{said}: the history decides nearly alone."
        return (
            f"{said}: the draws reach the model scaled by lambda, about lambda_uncertainty [{delta}], and the history "
            "beside them decides nearly alone."
        )

    @property
    def own_seeds(self) -> list[int]:
        """The seeds that the model averages over."""
        if not self.is_diffusion:
            raise NotApplicable(f"{self.config['model']} draws nothing at inference.")
        return self.model.inference_seeds

    @property
    def seeds(self) -> list[int]:
        """The model's own seeds, then 0, 1, ... until there are at least 20."""
        own = self.own_seeds
        others = (seed for seed in range(max(SEED_COUNTS) + len(own)) if seed not in own)
        return own + [seed for seed, _ in zip(others, range(max(SEED_COUNTS) - len(own)), strict=False)]

    @cached_property
    @torch.no_grad()
    def x_start(self) -> Tensor:
        """Generated embedding of every row's next item under each of ``seeds``, [S, U, D]."""
        seeds = self.seeds
        parts = [self.model.sample_start(self.batch(rows), seeds).cpu() for rows in self.batches(len(seeds), "draws")]
        x_start = torch.cat(parts, dim=1)
        check_scores(x_start.abs(), self.config["model"])
        return x_start

    @cached_property
    @torch.no_grad()
    def generated(self) -> Tensor:
        """Mean of the generated embeddings over the model's own seeds, [U, D]."""
        return self.x_start[: len(self.own_seeds)].mean(0)

    def add_seen(self, interaction, *scores: Tensor) -> None:
        """Add to scores [..., B, n_items] of some rows, in place, what ``seen_items`` adds before the model ranks."""
        seen = self.model.seen_when_ranking(interaction)
        if seen is not None:
            for part in scores:
                seen.add_to(part)

    @cached_property
    @torch.no_grad()
    def seed_ranking(self) -> SeedRanking:
        """How the seeds rank, one by one and together."""
        if torch.equal(self.x_start, self.x_start[:1].expand_as(self.x_start)):
            raise NotApplicable(f"all seeds give {self.config['model']} the same scores with these settings.")
        seeds, k = self.seeds, min(K, self.n_items - 1)
        counts = sorted({*SEED_COUNTS, len(self.own_seeds)})
        found: list[dict[Any, Tensor]] = []
        for rows in self.batches(len(seeds)):
            target = self.target[rows]
            scores = self.model.item_scores(self.x_start[:, rows].to(self.config["device"]))
            self.add_seen(self.batch(rows), scores)
            for part in scores:
                put_last(part, torch.arange(len(target)), target)
            log_p = scores.log_softmax(-1)  # probabilities themselves would be 0 for most items of a wide model
            top = log_p.topk(k).indices.cpu()
            mean = log_p.logsumexp(0) - math.log(len(seeds))
            average_top = mean.topk(k).indices
            share = (log_p - mean).gather(2, average_top.expand(len(seeds), -1, -1))
            spread = share.nan_to_num(0.0).exp().std(0, correction=0).mean(1)  # no candidate has no spread
            part = {"top": top, "places": place_of(top, target), "average_top": average_top.cpu()[None]}
            part["spread"] = spread.cpu()[None]
            for n in counts:
                groups = log_p[: len(seeds) // n * n].unflatten(0, (-1, n)).logsumexp(1)
                part[n] = place_of(groups.topk(k).indices.cpu(), target)
            found.append(part)
        whole = {key: torch.cat([part[key] for part in found], dim=1) for key in found[0]}
        groups = {n: whole[n] for n in counts}
        return SeedRanking(whole["top"], whole["places"], groups, whole["average_top"][0], whole["spread"][0])


def percent(share: float) -> str:
    """A share as a percentage with two significant digits."""
    return f"{100 * share:.2g} %"


def quintiles(values: np.ndarray) -> list[np.ndarray]:
    """Rows in five groups of about equal size by ascending value, bool [U] each; equal values stay together."""
    if len(np.unique(values)) < 2:
        raise NotApplicable(f"the value is {values[0]:g} for every user, so there are no groups to compare.")
    codes = pd.qcut(values, 5, labels=False, duplicates="drop")
    return [codes == code for code in np.unique(codes)]


def _history_length(train, valid, test) -> np.ndarray:
    """Length of each test row's history before MAX_ITEM_LIST_LENGTH cut it: the user's rows before it, and one."""
    uid, n = test.uid_field, test.inter_feat[test.item_list_length_field].numpy()
    users = test.inter_feat[uid].numpy()
    earlier = np.bincount(train.inter_feat[uid].numpy(), minlength=test.user_num)
    earlier = earlier + np.bincount(valid.inter_feat[uid].numpy(), minlength=test.user_num)
    counted = earlier[users] + pd.Series(users).groupby(users).cumcount().to_numpy() + 1
    return np.where(n < test.max_item_list_len, n, np.maximum(n, counted))

"""The face of a `Recommender` for notebooks: fitted on a data frame, and answering with data frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from recbole_diffusion.compat.checkpoint import save_checkpoint
from recbole_diffusion.config.checks import check_number

if TYPE_CHECKING:
    from recbole_diffusion.recommend.recommender import Recommender


class FrameRecommender:
    """What `Recommender` offers beside `stream`: training, files, and tables of recommendations.

    ``result`` holds what `quick_start.run` returned and ``summary`` what the table held, after `fit` and `update`.
    """

    result: dict[str, Any] | None = None
    summary: Any = None

    @classmethod
    def fit(cls, data: Any, model: str = "SASRecPlus", **params: Any) -> Recommender:
        """Train a model, ours or RecBole's, on a table of interactions: see `fitting.fit`."""
        from recbole_diffusion.recommend.fitting import fit

        return fit(data, model, **params)

    def update(self, data: Any = None, **params: Any) -> Recommender:
        """Go on training, with new interactions, for more epochs, or both: see `fitting.update`."""
        from recbole_diffusion.recommend.fitting import update

        return update(self, data, **params)

    @classmethod
    def load(cls, path: str | Path) -> Recommender:
        """Read what `save`, or any training, wrote; raises what `Recommender` does."""
        return cls(path)

    def save(self, path: str | Path) -> None:
        """Write model and known users as one checkpoint, which `recommend` and `export` take as ``--model_file``."""
        known = self.known and self.known.plain()
        save_checkpoint({**self.checkpoint, "state_dict": self.model.state_dict(), "known_users": known}, path)

    def recommend(
        self,
        users: Iterable[Any] | Mapping[Any, Sequence] | None = None,
        k: int = 10,
        exclude_seen: bool = False,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Recommend k items to each known user, or for each history: columns user, item, rank, score and spread.

        ``users`` holds users that `fit` or `update` saw, or histories of items, oldest first, or maps users of any
        name to histories; None stands for all known users. A history without a user gets its number. ``spread`` is
        there with several seeds only.

        Raises
        ------
        ValueError
            A user is not known, a history holds no known item, or ``users`` is a single text.
        """
        _check_many("users", users)
        names, histories = self._histories(users)
        rows = list(self.stream(histories, k, exclude_seen, batch_size))
        lengths = [len(row.items) for row in rows]
        frame = pd.DataFrame(
            {
                "user": np.repeat(np.array(names, dtype=object), lengths),
                "item": [item for row in rows for item in row.items],
                "rank": [place for length in lengths for place in range(1, length + 1)],
                "score": [score for row in rows for score in row.scores],
            }
        )
        if any(row.spread for row in rows):
            frame["spread"] = [value for row in rows for value in row.spread]
        return self._typed(frame.infer_objects(), "item")

    def _histories(self, users) -> tuple[list, Iterable[Sequence]]:
        """Names and histories of what `recommend` is asked for."""
        if isinstance(users, Mapping):
            return list(users), users.values()
        users = None if users is None else list(users)
        if users is not None and not any(isinstance(user, (str, Integral)) for user in users):
            return list(range(len(users))), users
        if self.known is None:
            raise ValueError("users are not known to a checkpoint of training alone: give histories of items.")
        history = self.known.history
        if users is None:  # without those who have only what the filters of the training dropped
            users = [name for name in self.known.names() if any(item in self.ids for item in history(name))]
        return users, [history(name) for name in users]

    def similar_items(self, items: Iterable[Any], k: int = 10) -> pd.DataFrame:
        """The k items whose embeddings point most nearly where each item's does: item, similar, rank, score (cosine).

        Raises
        ------
        ValueError
            An item is not known, ``items`` is a single text, or the model has no ``item_embedding``.
        """
        _check_many("items", items)
        check_number({"k": k}, "k", Integral, 1)
        embedding = getattr(self.model, "item_embedding", None)
        if not isinstance(embedding, torch.nn.Embedding):
            raise ValueError(f"model [{self.name}] has no item embeddings to compare.")
        items = [str(item) for item in items]
        unknown = [item for item in items if not self.ids.get(item)]
        if unknown:
            raise ValueError(f"item [{unknown[0]}] is not known.")
        with torch.no_grad():
            table = torch.nn.functional.normalize(embedding.weight[: len(self.tokens)], dim=-1)
            rows = torch.tensor([self.ids[item] for item in items], dtype=torch.long, device=table.device)
            cosine = table[rows] @ table.T
            cosine[:, 0] = -torch.inf
            cosine.scatter_(1, rows.unsqueeze(1), -torch.inf)
            scores, similar = cosine.topk(min(k, len(self.tokens) - 2))
        width = scores.shape[1]
        frame = pd.DataFrame(
            {
                "item": np.repeat(np.array(items, dtype=object), width),
                "similar": [self.tokens[item] for item in similar.flatten().tolist()],
                "rank": np.tile(np.arange(1, width + 1), len(items)),
                "score": scores.flatten().tolist(),
            }
        )
        return self._typed(self._typed(frame, "item"), "similar")

    def _typed(self, frame: pd.DataFrame, column: str) -> pd.DataFrame:
        """Items as whole numbers where the table they came from had them so."""
        whole = self.known is not None and "item" in self.known.whole
        for kind in ("int64", "uint64") if whole else ():
            with suppress(OverflowError):  # larger ones stay text
                return frame.astype({column: kind})
        return frame


def _check_many(name: str, values: Any) -> None:
    """Raise ValueError for a text, which would be read letter by letter."""
    if isinstance(values, str):
        raise ValueError(f"{name} [{values}] must be a list, such as [{values!r}].")

"""Evaluation under both protocols in use: items of the history are candidates, or they are masked.

Published results follow either, and cannot be compared across: RecBole, DiffuRec and ADRec rank the history, too;
BSARec, RecTools and CDDRec's public code mask it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from recbole.utils import ModelType

PROTOCOLS = ("candidates", "masked")
LEAST = torch.finfo(torch.float32).min  # of what is no candidate, beside a target that is none itself


class BothProtocols:
    """For a RecBole trainer: ``evaluate`` ranks a sequential model's items once, and measures under both protocols.

    ``mask_history`` chooses which one is returned, and so is followed by early stopping; ``protocol_results`` holds
    both of the last evaluation, {protocol: {metric: value}}. Masked is the user's whole history before the target, also
    what MAX_ITEM_LIST_LENGTH cuts off, and for the test the validation item; the target always is a candidate. Models
    that are not sequential mask by themselves in RecBole (unless ``repeatable``), and are left alone.

    With ``keep_ranks`` the next evaluation leaves ``ranks``: of each row, by user and item, ``user`` (RecBole's number)
    and for each protocol the target's rank, from 1, or 0 where it is none of the first max(topk).
    """

    protocol_results: dict[str, dict[str, float]] | None = None
    keep_ranks = False
    ranks: dict[str, np.ndarray] | None = None
    _other_collector = None

    def evaluate(self, eval_data, *args: Any, **kwargs: Any):
        """As RecBole's ``evaluate``, keeping the metrics of the other protocol as well.

        Raises ValueError where ``mask_history`` is set and the rows do not bring their histories.
        """
        self._other_collector = self.protocol_results = self.ranks = None
        self._rows = []
        result = super().evaluate(eval_data, *args, **kwargs)
        own, other = PROTOCOLS[:: -1 if self.config["mask_history"] else 1]
        if self._rows:
            self.ranks = _by_user(self._rows)
        if self._other_collector is not None and result is not None:
            struct = self._other_collector.get_data_struct()
            self.protocol_results = {own: dict(result), other: dict(self.evaluator.evaluate(struct))}
        elif self.config["mask_history"] and result is not None and self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            raise ValueError(
                f"mask_history [True] cannot be followed for [{self.config['model']}]: it needs rows that bring the "
                "users' histories, and eval_args with the mode full."
            )
        return result

    def _full_sort_batch_eval(self, batched_data):
        """Score a batch, collect it under the protocol that is not asked for, and return it under the other."""
        interaction, scores, positive_u, positive_i = super()._full_sort_batch_eval(batched_data)
        put_last(scores, positive_u, positive_i)
        own, other = PROTOCOLS[:: -1 if self.config["mask_history"] else 1]
        if self.keep_ranks:
            users = interaction[self.config["USER_ID_FIELD"]][positive_u.cpu()]
            self._rows.append({"user": users, "item": positive_i})
        history = getattr(batched_data[0], "seen", None)
        if history is None:
            self._note_ranks(PROTOCOLS[not self.config["repeatable"]], scores, positive_u, positive_i)
            return interaction, scores, positive_u, positive_i
        row, item = (part.to(scores.device) for part in history)
        keep = item != positive_i.to(scores.device)[row]
        row, item = row[keep], item[keep]
        kept = scores[row, item]
        if self._other_collector is None:
            self._other_collector = copy.copy(self.eval_collector)
            self._other_collector.data_struct = copy.deepcopy(self.eval_collector.data_struct)
        # Above a target that is no candidate itself; elsewhere as RecBole's GAUC tells who is none.
        lost = scores[positive_u, positive_i].isneginf()
        least = torch.where(lost[row], LEAST, -torch.inf).to(kept)
        if not self.config["mask_history"]:
            scores[row, item] = least
        self._other_collector.eval_batch_collect(scores, interaction, positive_u, positive_i)
        self._note_ranks(other, scores, positive_u, positive_i)
        scores[row, item] = least if self.config["mask_history"] else kept
        self._note_ranks(own, scores, positive_u, positive_i)
        return interaction, scores, positive_u, positive_i

    def _note_ranks(self, protocol: str, scores, positive_u, positive_i) -> None:
        """Keep the places of a batch's targets, in the very order that RecBole's metrics see."""
        if self.keep_ranks:
            best = scores.topk(max(self.config["topk"]), dim=-1).indices
            found = best[positive_u] == positive_i.to(scores.device)[:, None]
            self._rows[-1][protocol] = (found.int().argmax(1) + 1) * found.any(1)


def put_last(scores: torch.Tensor, positive_u: torch.Tensor, positive_i: torch.Tensor) -> None:
    """Put targets with minus infinity (``seen_items: excluded``) behind all else, in place.

    Where a catalogue has few other candidates, the best k would be filled up with items of minus infinity, which a
    metric counts as any other.
    """
    positive_u, positive_i = positive_u.to(scores.device), positive_i.to(scores.device)
    lost = scores[positive_u, positive_i].isneginf()
    if lost.any():
        rows = positive_u[lost].unique()
        scores[rows] = scores[rows].clamp(min=LEAST)
        scores[positive_u[lost], positive_i[lost]] = -torch.inf


def _by_user(rows: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """The batches' rows in one, by user and item, so that two models' stand beside each other."""
    whole = {key: torch.cat([part[key].cpu() for part in rows]).numpy() for key in rows[0]}
    order = np.lexsort((whole.pop("item"), whole["user"]))
    return {key: column[order].astype(np.int32 if key == "user" else np.uint16) for key, column in whole.items()}

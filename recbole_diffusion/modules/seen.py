"""What the softmax over the items does with those that the user has already had."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from recbole_diffusion.modules.ragged import real_positions

SEEN_ITEMS = ("candidates", "learned", "excluded")


class Seen(NamedTuple):
    """What is added to the logits [R, n_items] of items that stand in the histories; elsewhere nothing is."""

    rows: Tensor  # [M] ascending
    items: Tensor  # [M], different ones in a row
    values: Tensor  # [M]

    def part(self, begin: int, end: int) -> Seen:
        """The pairs of some rows, which count from 0 again."""
        bounds = torch.searchsorted(self.rows, torch.tensor([begin, end], device=self.rows.device)).tolist()
        rows, items, values = (column[slice(*bounds)] for column in self)
        return Seen(rows - begin, items, values)

    def add_to(self, scores: Tensor, items: slice = slice(None)) -> None:
        """Add the values, in place, to scores [..., R, part] of a slice of the items."""
        inside = slice(None)
        if items.start or items.stop is not None:
            inside = (self.items >= (items.start or 0)) & (self.items < (items.stop or torch.inf))
        rows, places = self.rows[inside], self.items[inside] - (items.start or 0)
        scores[..., rows, places] += self.values[inside].to(scores.dtype)


class SeenItems(nn.Module):
    """The key ``seen_items``: items of the history are ranked as all others, by a learned value, or not at all.

    ``candidates``: nothing is added to their logits. ``learned``: a value that is learnt with the model, by how long
    ago the item was last seen, in ``n_buckets`` ranges that double in width (0; 1, 2; 3 to 6; ..; the last has no end);
    with one range it is the same for the whole history. It falls where nobody comes back and rises where people do.
    ``excluded``: minus infinity, so that they are no candidates. The history is what the data loader gives of it.

    Raises ValueError for another name.
    """

    # Adam moves every parameter by about the learning rate in a step: the values move this many times as far.
    RATE = 30.0

    def __init__(self, seen_items: str, n_buckets: int):
        super().__init__()
        if seen_items not in SEEN_ITEMS:
            raise ValueError(f"seen_items [{seen_items}] is unknown: choose one of {', '.join(SEEN_ITEMS)}.")
        self.seen_items = seen_items
        self.bucket_value = nn.Parameter(torch.zeros(n_buckets)) if seen_items == "learned" else None

    def values(self, age: Tensor) -> Tensor:
        """What is added for items last seen ``age`` interactions before the last one, in the shape of age."""
        if self.bucket_value is None:
            return torch.full(age.shape, -torch.inf, device=age.device)
        bucket = (age + 1).double().log2().long().clamp(max=len(self.bucket_value) - 1)
        return self.RATE * self.bucket_value[bucket]

    def at_last(self, item_seq: Tensor, item_seq_len: Tensor) -> Seen | None:
        """For the item after each history [B, L] of lengths [B]; None where nothing is to be added."""
        if self.seen_items == "candidates":
            return None
        place, until = torch.arange(item_seq.shape[1], device=item_seq.device), next_occurrence(item_seq)
        rows, j = ((place < item_seq_len[:, None]) & (until >= item_seq_len[:, None])).nonzero(as_tuple=True)
        return Seen(rows, item_seq[rows, j], self.values(item_seq_len[rows] - 1 - j))

    def at_every_position(self, item_seq: Tensor, item_seq_len: Tensor) -> Seen | None:
        """For the item after every real position, in the order of ``real_positions``; else as ``at_last``."""
        if self.seen_items == "candidates":
            return None
        length = int(item_seq_len.max())
        item_seq = item_seq[:, :length]
        until = next_occurrence(item_seq)
        rows, i = real_positions(item_seq_len)
        # Position i has had the item of position j <= i last there, unless it comes again up to i.
        j = torch.arange(length, device=item_seq.device)
        row, j = ((j <= i[:, None]) & (until[rows] > i[:, None])).nonzero(as_tuple=True)
        return Seen(row, item_seq[rows[row], j], self.values(i[row] - j))


def without_targets(seen: Seen | None, target: Tensor) -> Seen | None:
    """For training: a target [R] that stands in its own history is a candidate all the same, where others are not."""
    if seen is None or not seen.values.isneginf().any():
        return seen
    keep = seen.items != target[seen.rows]
    return Seen(*(column[keep] for column in seen))


def next_occurrence(item_seq: Tensor) -> Tensor:
    """Place in its row [B, L] at which each item comes again, L or more where it does not."""
    length = item_seq.shape[1]
    place = torch.arange(length, device=item_seq.device)
    # Equal items stand side by side, in order, once sorted.
    order = item_seq.argsort(dim=1, stable=True)
    items, places = item_seq.gather(1, order), place.expand_as(item_seq).gather(1, order)
    following = torch.full_like(places, length)
    following[:, :-1] = torch.where(items[:, 1:] == items[:, :-1], places[:, 1:], length)
    return torch.empty_like(following).scatter_(1, order, following)

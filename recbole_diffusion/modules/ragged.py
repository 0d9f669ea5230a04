"""The layout of tokens: sequences of a batch without their padding, in one flat order."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Group(NamedTuple):
    """Neighbouring sequences of a layout that attention treats as one padded batch."""

    size: int  # number of sequences
    length: int  # tokens of each, padding included
    mask: Tensor | None  # [size, 1, 1, length] True at real keys; None where every key is real


class TokenLayout:
    """Where the tokens of a right-padded batch [B, L] lie in one flat order [N, ...].

    Sequential data is short and padded, and every layer but attention treats tokens one by one. With ``ragged`` the
    sequences are sorted by length and cut into groups, each trimmed to its own longest, so that little padding is left;
    without, the flat order is the padded batch itself. Both compute the same.

    Attributes
    ----------
    index : [N] position of each token in the flattened batch [B * L]
    rows, positions : [N] the batch row and the place in its sequence of each token
    last : [B] flat place of each sequence's last real token, in the order of the batch
    groups : the groups, in flat order
    """

    # A sequence shorter than this share of its group's longest starts a new group, unless the group is still small.
    SHARE, MIN_TOKENS = 0.8, 256

    def __init__(self, item_seq_len: Tensor, length: int, ragged: bool = True):
        batch, device = len(item_seq_len), item_seq_len.device
        if ragged:
            ordered, order = item_seq_len.sort(descending=True, stable=True)
            lengths = ordered.tolist()  # the one wait for the device
            bounds = [0]
            for row, n in enumerate(lengths):
                longest = lengths[bounds[-1]]
                if n < self.SHARE * longest and (row - bounds[-1]) * longest >= self.MIN_TOKENS:
                    bounds.append(row)
            parts = [(a, b, lengths[a], lengths[b - 1]) for a, b in zip(bounds, [*bounds[1:], batch], strict=True)]
        else:
            order = torch.arange(batch, device=device)
            parts = [(0, batch, length, 0)]

        self.groups: list[Group] = []
        index, start = [], 0
        place = torch.empty(batch, dtype=torch.long, device=device)  # flat place of each sequence's first token
        for first, stop, longest, shortest in parts:
            rows, span = order[first:stop, None], torch.arange(longest, device=device)
            index.append((rows * length + span).flatten())
            place[rows[:, 0]] = start + torch.arange(stop - first, device=device) * longest
            mask = None if shortest == longest else (span < item_seq_len[rows])[:, None, None, :]
            self.groups.append(Group(stop - first, longest, mask))
            start += (stop - first) * longest
        self.index = torch.cat(index)
        self.rows = self.index // length
        self.positions = self.index % length
        self.last = place + item_seq_len - 1
        # Attention for last positions alone works group by group.
        self._order, self._restore = order, order.argsort()

    def pack(self, x: Tensor) -> Tensor:
        """Bring x [B, L, ...] into the flat order [N, ...]."""
        return x.flatten(0, 1)[self.index]

    def unpack(self, x: Tensor, batch: int, length: int) -> Tensor:
        """Bring x [N, D] back to [B, L, D], zero where no token is kept."""
        out = x.new_zeros(batch * length, x.shape[-1])
        return out.index_copy(0, self.index, x).view(batch, length, -1)

    def by_group(self, x: Tensor, dim: int = 0) -> list[Tensor]:
        """The tokens of each group, whose dimension N becomes [size, length]: x [N, ...] to [size, length, ...]."""
        # Not slices: the gradient of each would be a tensor of all tokens, nearly all of it zero.
        parts = x.split([group.size * group.length for group in self.groups], dim)
        shapes = ((group.size, group.length) for group in self.groups)
        return [part.unflatten(dim, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _heads(self, x: Tensor, n_heads: int) -> list[Tensor]:
        """The tokens of x [N, D] of each group as [size, heads, length, D / heads]."""
        return [part.unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in self.by_group(x)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, n_heads: int, dropout: float, causal: bool) -> Tensor:
        """Multi-head attention within each sequence, padded keys hidden; every tensor is [N, D]."""
        out = []
        parts = (self._heads(x, n_heads) for x in (query, key, value))
        for group, q, k, v in zip(self.groups, *parts, strict=True):
            # Padding is on the right, so that the causal mask hides it from every real query by itself.
            mask = None if causal else group.mask
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
            out.append(y.transpose(1, 2).flatten(0, 1).flatten(1))
        return torch.cat(out)

    def attend_last(self, query: Tensor, key: Tensor, value: Tensor, n_heads: int, dropout: float) -> Tensor:
        """Attention of each sequence's last position alone: query [B, D], key and value [N, D], result [B, D]."""
        out = []
        query = query[self._order].split([group.size for group in self.groups])
        parts = (self._heads(x, n_heads) for x in (key, value))
        for group, q, k, v in zip(self.groups, query, *parts, strict=True):
            q = q.view(group.size, 1, n_heads, -1).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, dropout_p=dropout)
            out.append(y.transpose(1, 2).flatten(1))
        return torch.cat(out)[self._restore]

"""Sequences of a batch without their padding: the flat order of their tokens, their real positions, the next items."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def real_positions(item_seq_len: Tensor) -> tuple[Tensor, Tensor]:
    """Batch row and place in its sequence of every real position [P], row by row, of sequences of lengths [B].

    A model's output x [N, D] at these positions is ``x[layout.first[rows] + positions]``.
    """
    rows = torch.arange(len(item_seq_len), device=item_seq_len.device).repeat_interleave(item_seq_len)
    starts = item_seq_len.cumsum(0) - item_seq_len
    return rows, torch.arange(len(rows), device=rows.device) - starts[rows]


def next_items(item_seq: Tensor, item_seq_len: Tensor, target: Tensor) -> Tensor:
    """The item that follows at every real position [P], in the order of ``real_positions``.

    item_seq [B, L], padded on the right; item_seq_len [B], from 1 to L; target [B] follows each history.
    """
    following = F.pad(item_seq[:, 1:], (0, 1)).scatter(1, item_seq_len[:, None] - 1, target[:, None])
    return following[real_positions(item_seq_len)]


def last_items(item_seq: Tensor, item_seq_len: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The last ``length`` items of sequences [B, L], padded on the right, of lengths [B]; fewer where L is less."""
    if item_seq.shape[1] <= length:
        return item_seq, item_seq_len
    dropped = (item_seq_len - length).clamp(min=0)
    kept = torch.arange(length, device=item_seq.device)
    return item_seq.gather(1, dropped.unsqueeze(1) + kept), item_seq_len - dropped


class Group(NamedTuple):
    """Neighbouring sequences of a layout that attention treats as one padded batch."""

    size: int  # number of sequences
    length: int  # tokens of each, padding included
    mask: Tensor | None  # [size, 1, 1, length] True at real keys; None where every key is real


class Known(NamedTuple):
    """What the last tokens of some neighbouring sequences may read of the tokens before them."""

    key: Tensor  # [size, heads, D / heads, places], scaled by the root of D / heads
    value: Tensor  # [size, heads, places, D / heads]
    mask: Tensor  # [size, 1, 1, places] what is added to the logits: 0 before the last token, -inf elsewhere


class TokenLayout:
    """Where the tokens of a right-padded batch [B, L] lie in one flat order [N, ...].

    Sequential data is short and padded, and every layer but attention treats tokens one by one. With ``ragged`` the
    sequences are sorted by length and cut into groups, each trimmed to its own longest, so that little padding is left;
    without, the flat order is the padded batch itself. Both compute the same.

    Attributes
    ----------
    index : [N] position of each token in the flattened batch [B * L]
    rows, positions : [N] the batch row and the place in its sequence of each token
    from_end : [N] how many places each token stands before its sequence's last; 0 also for the padding behind it
    first, last : [B] flat place of each sequence's first and last real token, in the order of the batch
    groups : the groups, in flat order
    """

    # A sequence shorter than this share of its group's longest starts a new group, unless the group is still small.
    SHARE, MIN_TOKENS = 0.8, 256
    # Of keys that are read step by step: below 400 multiplications a product, PyTorch's slow loop takes over on a CPU.
    KNOWN_SHARE, MIN_PLACES = 0.4, 16

    def __init__(self, item_seq_len: Tensor, length: int, ragged: bool = True):
        if ragged:
            ordered, order = item_seq_len.sort(descending=True, stable=True)
            parts = self.cut(ordered.tolist())  # the one wait for the device
        else:
            batch = item_seq_len.shape[0]  # not len(): an exported graph takes batches of any size
            order = torch.arange(batch, device=item_seq_len.device)
            parts = [(0, batch, length, 0)]

        self.groups: list[Group] = []
        index, first = [], []
        start = 0  # flat place where the group starts
        for begin, end, longest, shortest in parts:
            size, rows = end - begin, order[begin:end, None]
            span = torch.arange(longest, device=order.device)
            mask = None if shortest == longest else (span < item_seq_len[rows])[:, None, None, :]
            self.groups.append(Group(size, longest, mask))
            index.append((rows * length + span).flatten())
            first.append(start + torch.arange(size, device=order.device) * longest)
            start += size * longest
        # Attention for last positions alone works group by group.
        self._order, self._restore = order, order.argsort()
        self.index = torch.cat(index)
        self.rows = self.index // length
        self.positions = self.index % length
        self.first = torch.cat(first)[self._restore]
        self.last = self.first + item_seq_len - 1

    @property
    def from_end(self) -> Tensor:
        return (self.positions[self.last][self.rows] - self.positions).clamp(min=0)

    @classmethod
    def cut(cls, lengths: list[int]) -> list[tuple[int, int, int, int]]:
        """Cut lengths, sorted from long to short, into groups: (begin, end, longest, shortest) of each."""
        bounds = [0]
        for row, n in enumerate(lengths):
            longest = lengths[bounds[-1]]
            if n < cls.SHARE * longest and (row - bounds[-1]) * longest >= cls.MIN_TOKENS:
                bounds.append(row)
        return [(a, b, lengths[a], lengths[b - 1]) for a, b in zip(bounds, [*bounds[1:], len(lengths)], strict=True)]

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

    def known(self, key: Tensor, value: Tensor, n_heads: int) -> list[Known]:
        """Keys and values [N, D] of all tokens before each sequence's last.

        Groups are joined as long as none is shorter than a share of the first: where a step reads one token of each
        sequence, many small operations cost more than some padding.
        """
        parts = zip(self.groups, self.by_group(key), self.by_group(value), strict=True)
        joined: list[tuple[int, list]] = []
        for part in parts:
            length = max(part[0].length, self.MIN_PLACES + 1)
            if not joined or length < self.KNOWN_SHARE * joined[-1][0]:
                joined.append((length, []))
            joined[-1][1].append(part)
        return [self._join(part, length, n_heads) for length, part in joined]

    @staticmethod
    def _join(parts: list[tuple[Group, Tensor, Tensor]], longest: int, n_heads: int) -> Known:
        """Pad the tokens [size, length, D] of groups to a length, and leave out the last place."""
        real = []
        for group, key, _ in parts:
            mask = key.new_ones(group.size, group.length).bool() if group.mask is None else group.mask[:, 0, 0]
            # Right-padded: place j lies before the last token where j + 1 is real.
            real.append(F.pad(mask[:, 1:], (0, longest - group.length)))
        keys, values = (
            torch.cat([F.pad(x[:, :-1], (0, 0, 0, longest - x.shape[1])) for x in column]).unflatten(-1, (n_heads, -1))
            for column in ([key for _, key, _ in parts], [value for _, _, value in parts])
        )
        bias = keys.new_zeros(keys.shape[0], longest - 1).masked_fill(~torch.cat(real), -torch.inf)[:, None, None]
        # In one piece as the products read them: else every step would copy them.
        keys = keys.permute(0, 2, 3, 1).contiguous() * keys.shape[-1] ** -0.5
        return Known(keys, values.transpose(1, 2).contiguous(), bias)

    def sort_last(self, x: Tensor) -> Tensor:
        """Bring last tokens [S * B, D], seed by seed in the order of the batch, into that of the groups."""
        return x.unflatten(0, (-1, self._order.shape[0]))[:, self._order].flatten(0, 1)

    def restore_last(self, x: Tensor) -> Tensor:
        """Undo ``sort_last``."""
        return x.unflatten(0, (-1, self._order.shape[0]))[:, self._restore].flatten(0, 1)

    def attend_known(self, query: Tensor, key: Tensor, value: Tensor, known: list[Known], n_heads: int) -> Tensor:
        """Attention of S last tokens of each sequence, that do not see each other: to itself and to the known.

        query, key and value are [S * B, D], seed by seed and sorted by ``sort_last``, and so is the result.
        """

        def heads(x: Tensor) -> Tensor:  # [B, heads, S, D / heads]
            return x.unflatten(0, (-1, self._order.shape[0])).unflatten(-1, (n_heads, -1)).permute(1, 2, 0, 3)

        q, k, v = heads(query), heads(key), heads(value)
        sizes, itself = [past.key.shape[0] for past in known], (q * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5
        out = []
        for past, *own in zip(known, q.split(sizes), itself.split(sizes), v.split(sizes), strict=True):
            weight = torch.cat([own[0] @ past.key + past.mask, own[1]], dim=-1).softmax(-1)
            out.append(weight[..., :-1] @ past.value + weight[..., -1:] * own[2])
        return torch.cat(out).permute(2, 0, 1, 3).flatten(2).flatten(0, 1)

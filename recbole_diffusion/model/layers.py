"""Building blocks that several models share: the layout of tokens, attention, transformer blocks, step embedding."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu, "tanh": torch.tanh}


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


class MultiHeadAttention(nn.Module):
    """Multi-head scaled dot-product attention over a TokenLayout (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, hidden_size: int, n_heads: int, dropout: float):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, query: Tensor, context: Tensor, layout: TokenLayout, causal: bool = False, last_only: bool = False
    ) -> Tensor:
        """Attend from query [N, D] to context [N, D]; with ``last_only`` from query [B, D], one a sequence."""
        dropout = self.dropout if self.training else 0.0
        q, (k, v) = self.query(query), self.key_value(context).chunk(2, dim=-1)
        if last_only:
            return self.out(layout.attend_last(q, k, v, self.n_heads, dropout))
        return self.out(layout.attend(q, k, v, self.n_heads, dropout, causal))


class TransformerBlock(nn.Module):
    """Self-attention and feed-forward with residuals, normalised before (``norm_first``) or after each."""

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        inner_size: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        hidden_act: str,
        layer_norm_eps: float,
        norm_first: bool,
        causal: bool,
    ):
        super().__init__()
        self.norm_first, self.causal = norm_first, causal
        self.attention = MultiHeadAttention(hidden_size, n_heads, attn_dropout_prob)
        self.dense_1 = nn.Linear(hidden_size, inner_size)
        self.dense_2 = nn.Linear(inner_size, hidden_size)
        self.act = ACTIVATIONS[hidden_act]
        self.norm_1 = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.norm_2 = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = nn.Dropout(hidden_dropout_prob)

    def forward(self, x: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """[N, D] to [N, D], or with ``last_only`` to the last positions alone, [B, D]."""
        context = self.norm_1(x) if self.norm_first else x
        query, x = (context[layout.last], x[layout.last]) if last_only else (context, x)
        x = x + self.dropout(self.attention(query, context, layout, self.causal, last_only))
        if self.norm_first:
            return x + self.dropout(self.feed_forward(self.norm_2(x)))
        x = self.norm_1(x)
        return self.norm_2(x + self.dropout(self.feed_forward(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The position-wise network of Vaswani et al. 2017, Eq. 2."""
        return self.dense_2(self.act(self.dense_1(x)))


class TransformerEncoder(nn.Module):
    """Transformer blocks in sequence; where only the last position is wanted, the last block computes that alone."""

    def __init__(self, config, norm_first: bool, causal: bool):
        super().__init__()
        self.blocks = nn.ModuleList(transformer_block(config, norm_first, causal) for _ in range(config["n_layers"]))

    def forward(self, x: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """[N, D] to [N, D], or with ``last_only`` to [B, D]."""
        for block in self.blocks[:-1]:
            x = block(x, layout)
        return self.blocks[-1](x, layout, last_only)


def transformer_block(config, norm_first: bool, causal: bool) -> TransformerBlock:
    """One block with RecBole's configuration keys."""
    keys = ("hidden_size", "n_heads", "inner_size", "hidden_dropout_prob", "attn_dropout_prob", "hidden_act")
    return TransformerBlock(
        **{key: config[key] for key in keys},
        layer_norm_eps=config["layer_norm_eps"],
        norm_first=norm_first,
        causal=causal,
    )


class CausalEncoder(nn.Module):
    """Item and learned position embeddings through post-norm causal blocks, as in SASRec (Kang and McAuley 2018)."""

    def __init__(self, config):
        super().__init__()
        self.position_embedding = nn.Embedding(config["MAX_ITEM_LIST_LENGTH"], config["hidden_size"])
        self.norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["emb_dropout_prob"])
        self.encoder = TransformerEncoder(config, norm_first=False, causal=True)

    def forward(self, items: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """Item embeddings [N, D] in a layout to hidden states [N, D], or with ``last_only`` to [B, D]."""
        x = self.dropout(self.norm(items + self.position_embedding(layout.positions)))
        return self.encoder(x, layout, last_only)


def sinusoidal_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sines and cosines of t [...] at geometric frequencies, [..., dim] (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float().unsqueeze(-1) * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of the diffusion step through a two-layer network: t [B] to [B, D]."""

    def __init__(self, hidden_size: int, inner_size: int, act: str):
        super().__init__()
        self.hidden_size, self.act = hidden_size, ACTIVATIONS[act]
        self.dense_1 = nn.Linear(hidden_size, inner_size)
        self.dense_2 = nn.Linear(inner_size, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """Embed steps on whatever scale the paper counts them."""
        return self.dense_2(self.act(self.dense_1(sinusoidal_embedding(t, self.hidden_size))))

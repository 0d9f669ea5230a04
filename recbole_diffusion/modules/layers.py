"""Layers that several models share: attention, transformer blocks, step embedding."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffusion.modules.ragged import Known, TokenLayout

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu, "tanh": torch.tanh}


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

    def known(self, context: Tensor, layout: TokenLayout) -> list[Known]:
        """What a sequence's last token reads of those before it in context [N, D]."""
        return layout.known(*self.key_value(context).chunk(2, dim=-1), self.n_heads)

    def to_known(self, x: Tensor, known: list[Known], layout: TokenLayout) -> Tensor:
        """Attend from last tokens [S * B, D], sorted, each to itself and to the tokens before it; without dropout."""
        return self.out(layout.attend_known(self.query(x), *self.key_value(x).chunk(2, dim=-1), known, self.n_heads))


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
        act_dropout_prob: float = 0.0,
        block_dropout_prob: float = 0.0,
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
        self.act_dropout, self.block_dropout = nn.Dropout(act_dropout_prob), nn.Dropout(block_dropout_prob)

    def forward(self, x: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """[N, D] to [N, D], or with ``last_only`` to the last positions alone, [B, D]."""
        context = self.norm_1(x) if self.norm_first else x
        query, x = (context[layout.last], x[layout.last]) if last_only else (context, x)
        return self.after_attention(x, self.attention(query, context, layout, self.causal, last_only))

    def known(self, x: Tensor, layout: TokenLayout) -> list[Known]:
        """What ``last`` reads of the tokens x [N, D] before each sequence's last."""
        return self.attention.known(self.norm_1(x) if self.norm_first else x, layout)

    def last(self, x: Tensor, known: list[Known], layout: TokenLayout) -> Tensor:
        """The last tokens alone, [S * B, D] sorted, where those before them are known; causal blocks only."""
        context = self.norm_1(x) if self.norm_first else x
        return self.after_attention(x, self.attention.to_known(context, known, layout))

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """The residual of the attention, and all that follows, token by token."""
        x = x + self.dropout(attended)
        if self.norm_first:
            return self.block_dropout(x + self.dropout(self.feed_forward(self.norm_2(x))))
        x = self.norm_1(x)
        return self.block_dropout(self.norm_2(x + self.dropout(self.feed_forward(x))))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The position-wise network of Vaswani et al. 2017, Eq. 2."""
        return self.dense_2(self.act_dropout(self.act(self.dense_1(x))))


class TransformerEncoder(nn.Module):
    """Transformer blocks in sequence; where only the last position is wanted, the last block computes that alone."""

    def __init__(self, config, norm_first: bool, causal: bool, n_layers: int | None = None):
        super().__init__()
        n_layers = n_layers or config["n_layers"]
        self.blocks = nn.ModuleList(transformer_block(config, norm_first, causal) for _ in range(n_layers))

    def forward(self, x: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """[N, D] to [N, D], or with ``last_only`` to [B, D]."""
        for block in self.blocks[:-1]:
            x = block(x, layout)
        return self.blocks[-1](x, layout, last_only)

    def read_last(self, x: Tensor, layout: TokenLayout) -> Callable[[Tensor], Tensor]:
        """Read the tokens before each sequence's last once: x [N, D], whose last tokens are passed over.

        The result maps last tokens, [S * B, D] seed by seed, to what ``forward`` with ``last_only`` makes of them.
        """
        known = []
        for block in self.blocks:
            known.append(block.known(x, layout))
            if len(known) < len(self.blocks):
                x = block(x, layout)

        def read(last: Tensor) -> Tensor:
            last = layout.sort_last(last)
            for block, part in zip(self.blocks, known, strict=True):
                last = block.last(last, part, layout)
            return layout.restore_last(last)

        return read


def transformer_block(config, norm_first: bool, causal: bool) -> TransformerBlock:
    """One block with RecBole's configuration keys."""
    keys = ("hidden_size", "n_heads", "inner_size", "hidden_dropout_prob", "attn_dropout_prob", "hidden_act")
    return TransformerBlock(
        **{key: config[key] for key in keys},
        layer_norm_eps=config["layer_norm_eps"],
        norm_first=norm_first,
        causal=causal,
        # Keys of some models; the others have no such dropout.
        act_dropout_prob=config["act_dropout_prob"] or 0.0,
        block_dropout_prob=config["block_dropout_prob"] or 0.0,
    )


class PositionEmbedding(nn.Embedding):
    """A learned embedding of each token's place in its sequence, counted from its start, or from its end.

    RecBole counts from the start (``positions_from: start``). The public codes that pad on the left count from the end:
    the last item then has one place, whatever the length, and where a history is longer than all that were trained on,
    the new place is its oldest item's.
    """

    def __init__(self, config):
        super().__init__(config["MAX_ITEM_LIST_LENGTH"], config["hidden_size"])
        self.from_start = config["positions_from"] == "start"

    def forward(self, layout: TokenLayout) -> Tensor:
        """The embeddings of all tokens of a layout, [N, D]."""
        return super().forward(layout.positions if self.from_start else layout.from_end)


class CausalEncoder(nn.Module):
    """Item and learned position embeddings through causal blocks, as in SASRec (Kang and McAuley 2018).

    Blocks normalise after each residual, with the key ``norm_first`` before, and then once more at the end; without
    ``use_position_embedding`` the order is told by the causal mask alone.
    """

    def __init__(self, config):
        super().__init__()
        hidden_size, eps = config["hidden_size"], config["layer_norm_eps"]
        positions = config["use_position_embedding"] is not False  # a key of some models; the others have positions
        self.position_embedding = PositionEmbedding(config) if positions else None
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(config["emb_dropout_prob"])
        self.encoder = TransformerEncoder(config, norm_first=bool(config["norm_first"]), causal=True)
        self.last_norm = nn.LayerNorm(hidden_size, eps=eps) if config["norm_first"] else nn.Identity()

    def forward(self, items: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """Item embeddings [N, D] in a layout to hidden states [N, D], or with ``last_only`` to [B, D]."""
        if self.position_embedding is not None:
            items = items + self.position_embedding(layout)
        return self.last_norm(self.encoder(self.dropout(self.norm(items)), layout, last_only))


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

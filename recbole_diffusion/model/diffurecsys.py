"""DiffuRecSys: DiffuRec with cross-attention and offset noise (Zolghadr, Winther and Jeha, 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_diffusion.modules.approximator import ApproximatorRecommender
from recbole_diffusion.modules.layers import MultiHeadAttention, TransformerEncoder, transformer_block
from recbole_diffusion.modules.ragged import TokenLayout


class DiffuRecSys(ApproximatorRecommender):
    """DiffuRec whose history attends with the noised target, trained on noise with an offset.

    Sharare Zolghadr, Ole Winther, Paul Jeha: "Generative Diffusion Models for Sequential Recommendations",
    ROEGEN@RecSys 2024. Diffusion, loss and reverse phase stand in ``modules/approximator.py``.

    ``cross_attention`` alone is the paper's Modified V1, with ``offset_noise`` it is V2, the default; with both off the
    model is DiffuRec. Eq. 16 prints the item first and the target second, and does not say which of them is the query.
    The text, by which the history is weighed by its importance to the target, makes it the target; the other reading is
    ``cross_attention_query: history``. The public code feeds every block the same input and takes the softmax over
    features; here blocks follow each other and the softmax runs over keys.
    """

    def __init__(self, config, dataset):
        self.cross_attention = config["cross_attention"]
        self.offset_noise = config["offset_noise"]
        super().__init__(config, dataset)

    def build_approximator(self, config) -> nn.Module:
        """The transformer of Eq. 14, with cross-attention in every block (Eq. 16) or without."""
        if not self.cross_attention:
            return TransformerEncoder(config, norm_first=True, causal=False)
        return nn.ModuleList(CrossAttentionBlock(config) for _ in range(config["n_layers"]))

    def restore(self, h: Tensor, injected: Tensor, layout: TokenLayout) -> Tensor:
        """Eq. 14 over Eq. 16, or over Eq. 15 where ``cross_attention`` is off."""
        if not self.cross_attention:
            return self.approximator(h + injected, layout, last_only=True)
        for block in self.approximator[:-1]:
            h = block(h, injected, layout)
        return self.approximator[-1](h, injected, layout, last_only=True)

    def forward_noise(self, x_start: Tensor) -> Tensor:
        """eps ~ N(0.1 delta_c, I) in training (Eq. 17); the reverse process draws from N(0, I)."""
        return torch.randn_like(x_start) + 0.1 * self.offset_noise


class CrossAttentionBlock(nn.Module):
    """Cross-attention of the injected target over the history, then a transformer block (Figure 2)."""

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.cross_attention = MultiHeadAttention(config["hidden_size"], config["n_heads"], config["attn_dropout_prob"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.block = transformer_block(config, norm_first=True, causal=False)
        self.query = config["cross_attention_query"]

    def forward(self, h: Tensor, injected: Tensor, layout: TokenLayout, last_only: bool = False) -> Tensor:
        """h <- h + CrossAttention(lambda * (x_t + d_t), LayerNorm(h)) (Eq. 16), then self-attention; [N, D].

        With ``cross_attention_query: history`` the two arguments change places.
        """
        asked = (injected, self.norm(h)) if self.query == "target" else (self.norm(h), injected)
        # The paper does not draw the residual; without it every position would hold the same average of the history.
        h = h + self.dropout(self.cross_attention(*asked, layout))
        return self.block(h, layout, last_only)

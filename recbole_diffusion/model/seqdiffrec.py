"""SeqDiffRec: the target is noised inside the sequence (Du, Yuan, Huang, Zhao and Zhou, 2023; DiffRec in the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffusion.data.rows import ChosenRowsDataset
from recbole_diffusion.diffusion_utils import SeedNoise
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.modules.layers import (
    PositionEmbedding,
    StepEmbedding,
    TransformerEncoder,
    sinusoidal_embedding,
)
from recbole_diffusion.modules.ragged import TokenLayout, last_items


class SeqDiffRec(DiffusionRecommender):
    """A transformer reads the sequence whose last item, the target, is noised, and restores that item.

    Hanwen Du, Huanhuan Yuan, Zhen Huang, Pengpeng Zhao, Xiaofang Zhou: "Sequential Recommendation with Diffusion
    Models", 2023 (arXiv 2304.04541), sections 4 and 5.3. The paper calls it DiffRec, a name that RecBole gives to
    another model. Steps count from 1 to N there, from 0 to N - 1 here.

    Left open by the paper, and decided here: with ``noised_items`` K > 1 (section 5.3.4) the last K positions of the
    sequence, target included, are noised by one step's Eq. 7 in training and at inference alike, while loss and
    prediction remain those of the target. A footnote counts 20,000 training sequences, about as many as Beauty has
    users: ``training_rows: users`` is that reading, one target a user; the default takes every item as a target once.

    By validation, not by the paper: Eq. 14's sum is normalised (``embedding_norm``), as noise and sinusoids of 1 drown
    items that start from 0.02, and the items' embeddings are the W of Eq. 8 (``tie_weights``).

    The reverse chain draws with the variance of Eq. 3; Eq. 4 has the slightly larger beta_n: ``reverse_variance: beta``
    (Ho et al. 2020, section 3.2, find both alike).
    """

    dataset_class = ChosenRowsDataset
    position_origins = ("start", "target")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.noised_items = self.max_seq_length if config["noised_items"] == "all" else config["noised_items"]
        self.use_step_embedding = config["step_embedding"]
        self.mse_reduction = config["mse_reduction"]
        self.position_embedding = PositionEmbedding(config) if config["position_embedding"] else None
        self.step_embedding = (
            StepEmbedding(self.hidden_size, 4 * self.hidden_size, "silu") if config["step_projection"] else None
        )
        self.norm = (
            nn.LayerNorm(self.hidden_size, eps=config["layer_norm_eps"]) if config["embedding_norm"] else nn.Identity()
        )
        self.dropout = nn.Dropout(config["emb_dropout_prob"])
        self.encoder = TransformerEncoder(config, norm_first=False, causal=False)
        self.output = nn.Linear(self.hidden_size, self.n_items)
        self.apply(self._init_weights)
        scaled = self.use_step_embedding and config["step_scale"] is not None
        self.step_scale = nn.Parameter(torch.tensor(float(config["step_scale"]))) if scaled else None
        if config["tie_weights"]:
            self.output.weight = self.item_embedding.weight

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        super().check_config(config)
        if config["MAX_ITEM_LIST_LENGTH"] < 2:
            raise ValueError(
                f"MAX_ITEM_LIST_LENGTH [{config['MAX_ITEM_LIST_LENGTH']}] must be an integer >= 2 for {cls.__name__}: "
                "the target is one of them."
            )
        if not config["step_embedding"] and config["step_projection"]:
            raise ValueError("step_embedding [False] must be True where step_projection is set, which shapes it.")

    # ------------------------------------------------------------------ forward process

    def append(self, item_seq: Tensor, item_seq_len: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Put an item [B] behind each history [B, L]; a full history drops its oldest (section 4.5.2).

        Returns the sequences [B, min(L + 1, MAX_ITEM_LIST_LENGTH)], padded on the right, and their lengths [B].
        """
        item_seq = F.pad(item_seq, (0, 1)).scatter(1, item_seq_len.unsqueeze(1), item.unsqueeze(1))
        return last_items(item_seq, item_seq_len + 1, self.max_seq_length)

    def diffuse(self, h: Tensor, t: Tensor, noise: Tensor, layout: TokenLayout) -> Tensor:
        """h^n ~ q(h^n | h^0) at the last ``noised_items`` positions, h^0 before (Eq. 7, by Eq. 2): [N, D], t [B]."""
        h_n = self.diffusion.q_sample(h, t[layout.rows], noise)
        return torch.where((layout.from_end < self.noised_items).unsqueeze(1), h_n, h)

    # ------------------------------------------------------------------ denoise sequential recommender

    def positions(self, layout: TokenLayout) -> Tensor | float:
        """y_t of Eq. 14, [N, D], or 0 without ``position_embedding``.

        In the paper the target stands at position T of every sequence, and nothing but y_T marks it to an encoder that
        reads both ways. Row 0 of Y is that y_T, row k is y_{T-k}; with ``positions_from: start`` row k is y_{k+1}.
        """
        if self.position_embedding is None:
            return 0.0
        return self.position_embedding(layout)

    def steps(self, t: Tensor) -> Tensor | float:
        """z_n of Eq. 15, [B] to [B, D], or 0 without ``step_embedding``.

        Its sines lie behind its cosines rather than between them: the same up to the order of dimensions. The paper
        names no scale of what Eq. 14 adds up: ``step_scale`` is a learned factor before the sum, which begins where
        the items' embeddings do; ``step_projection`` puts a network behind the sinusoids.
        """
        if not self.use_step_embedding:
            return 0.0
        z = sinusoidal_embedding(t + 1, self.hidden_size) if self.step_embedding is None else self.step_embedding(t + 1)
        return z if self.step_scale is None else self.step_scale * z

    def denoise(self, h: Tensor, y: Tensor | float, t: Tensor, layout: TokenLayout) -> Tensor:
        """f(h_T^n, n): the sum of Eq. 14, encoded, at the target (Eq. 16): h, y [N, D], t [B] to [B, D]."""
        z = self.steps(t)
        h = h + y + (z if isinstance(z, float) else z[layout.rows])
        return self.encoder(self.dropout(self.norm(h)), layout, last_only=True)

    def output_layer(self, items: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """W [n_items, D] and b [n_items] of p(v | h^0) = softmax(W h^0 + b) (Eq. 8)."""
        return self.output.weight[items], self.output.bias[items]

    # ------------------------------------------------------------------ training

    def calculate_loss(self, interaction) -> Tensor:
        """L_n / p_n + L_rec (Algorithm 1, Eq. 18), with h^0 = E[v] (Eq. 6) and the weight 1 where p is uniform."""
        target = interaction[self.POS_ITEM_ID]
        item_seq, item_seq_len = self.append(*self.history(interaction), target)
        layout = self.layout(item_seq_len, item_seq.shape[1])
        t, weight = self.step_sampler.sample(len(target), target.device)
        h = self.item_embedding(layout.pack(item_seq))
        h_n = self.diffuse(h, t, torch.randn_like(h), layout)
        x_start = self.denoise(h_n, self.positions(layout), t, layout)
        mse = self.mse_loss(h[layout.last], x_start)
        self.record_step_losses(t, mse)
        rec = self.item_cross_entropy(x_start, target, self.seen(interaction))  # L_rec (Eq. 8, Eq. 13)
        return (weight * mse + rec).mean()

    def mse_loss(self, h: Tensor, x_start: Tensor) -> Tensor:
        """L_n = ||h_T^0 - f||^2, [B, D] to [B] (Eq. 17).

        The paper writes the norm and calls it the mean squared error: ``mse_reduction`` is sum or mean over D.
        """
        square = (h - x_start).square()
        return square.sum(dim=-1) if self.mse_reduction == "sum" else square.mean(dim=-1)

    # ------------------------------------------------------------------ inference

    def denoiser(self, interaction, noise: SeedNoise):
        """f(h_T^n, n) for histories that end in a placeholder, as the reverse chain asks for it."""
        item_seq, item_seq_len = self.history(interaction)
        item_seq, item_seq_len = self.append(item_seq, item_seq_len, torch.zeros_like(item_seq_len))
        n_seeds, batch = len(noise.generators), item_seq.shape[0]
        layout = self.layout(item_seq_len.repeat(n_seeds), item_seq.shape[1])
        h = self.item_embedding(layout.pack(item_seq.repeat(n_seeds, 1)))
        y, seed = self.positions(layout), layout.rows // batch

        def predict_start(x_t: Tensor, t: Tensor) -> Tensor:
            h_n = h
            if self.noised_items > 1:
                draw = noise.draw(self.max_seq_length, self.hidden_size, device=h.device, dtype=h.dtype)
                h_n = self.diffuse(h, t, draw[seed, layout.positions], layout)
            return self.denoise(h_n.index_copy(0, layout.last, x_t), y, t, layout)

        return predict_start

"""ADRec: auto-regressive diffusion, with noise of its own for every position (Chen, Xu and Jiang, 2025)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from logging import getLogger
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffusion.data.sequences import UserSequenceDataset
from recbole_diffusion.diffusion_utils import SeedNoise, guided_start
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.modules.guided import check_embedding_std, check_guidance
from recbole_diffusion.modules.layers import PositionEmbedding, StepEmbedding, TransformerEncoder
from recbole_diffusion.modules.ragged import TokenLayout, next_items, real_positions


class ADRec(DiffusionRecommender):
    """A causal transformer reads the history, and a second one restores the noised next item at every position.

    Jialei Chen, Yuanbo Xu, Yiheng Jiang: "Unlocking the Power of Diffusion Models in Sequential Recommendation: A
    Simple and Effective Approach", KDD 2025 (arXiv 2505.19544); code: github.com/Nemo-1024/ADRec. Steps count from 0 to
    T - 1.

    The paper trains in three stages: the item embeddings come from a SASRec trained first (``pretrain``), stay as they
    are for some epochs (``freeze_embedding_epochs``), and are then trained with the rest.

    Unlike in the public code, padded keys are hidden, the padding is neither a class nor a candidate, frozen embeddings
    do not shrink (``freeze_mode``), and histories beyond the longest are trained in windows.
    """

    dataset_class = UserSequenceDataset

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.lam, self.loss_scale = config["lambda_uncertainty"], config["loss_scale"]
        self.independent_steps, self.noised_items = config["independent_steps"], config["noised_items"]
        self.condition_dropout_prob, self.guidance_scale = config["condition_dropout_prob"], config["guidance_scale"]
        self.position_embedding = PositionEmbedding(config) if config["use_position_embedding"] else None
        self.embedding_dropout = nn.Dropout(config["emb_dropout_prob"])
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=config["layer_norm_eps"])
        self.encoder = TransformerEncoder(config, norm_first=False, causal=True)
        self.decoder = (
            TransformerEncoder(config, norm_first=False, causal=True, n_layers=config["n_decoder_layers"])
            if config["decoder"] == "attention"
            else PositionwiseDecoder(self.hidden_size, config["layer_norm_eps"])
        )
        self.apply(self._init_weights)
        nn.init.normal_(self.item_embedding.weight[1:], std=config["embedding_std"])
        self.step_embedding = StepEmbedding(self.hidden_size, 4 * self.hidden_size, "silu")  # starts as PyTorch's

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        super().check_config(config)
        check_embedding_std(config)
        check_guidance(config)

    def advise_from_scratch(self) -> None:
        if self.loss_scale:
            getLogger().warning(
                f"ADRec from scratch with loss_scale [{self.loss_scale}]: the squared error keeps it from learning "
                "items that no checkpoint gave. Its paper's stages are pretrain=SASRecPlus with "
                "freeze_embedding_epochs=5; without them take loss_scale=0."
            )

    # ------------------------------------------------------------------ the two modules

    def encode(self, item_seq: Tensor, layout: TokenLayout) -> Tensor:
        """c, the causal attention module over LayerNorm(Dropout(E[item_seq])), never noised: [B, L] to [N, D]."""
        h = self.item_embedding(layout.pack(item_seq))
        if self.position_embedding is not None:
            h = h + self.position_embedding(layout)
        return self.encoder(self.embedding_norm(self.embedding_dropout(h)), layout)

    def steps(self) -> Tensor:
        """d_t of every step, [T, D]; the steps are embedded as if there were 1000 of them."""
        t = torch.arange(self.diffusion.num_steps, device=self.item_embedding.weight.device)
        return self.step_embedding(t * (1000 / self.diffusion.num_steps))

    # ------------------------------------------------------------------ training

    def calculate_loss(self, interaction) -> Tensor:
        """Cross-entropy of x0_hat . E^T plus ``loss_scale`` times the mean squared error to x_0 = E[next item].

        The first is a mean over the positions of the batch, the second over D, a window's positions, and windows.
        """
        item_seq, n = self.history(interaction)
        layout, (rows, positions) = self.layout(n, item_seq.shape[1]), real_positions(n)
        place, target = layout.first[rows] + positions, next_items(item_seq, n, interaction[self.POS_ITEM_ID])
        t, weight = self.draw_steps(rows, len(n))
        noised = positions >= n[rows] - (self.max_seq_length if self.noised_items == "all" else self.noised_items)

        z, x_start = self.drop_condition(self.encode(item_seq, layout), layout, len(n)), self.item_embedding(target)
        if self.lam:
            # Where nothing is noised the next item is known, as at inference.
            x_t = self.diffusion.q_sample(x_start, t).where(noised[:, None], x_start)
            z = z.index_add(0, place, (self.lam * (x_t + self.steps()[t.where(noised, 0)])).to(z.dtype))
        x_hat = self.decoder(z, layout)[place]
        loss = self.item_cross_entropy(x_hat, target, self.seen_items.at_every_position(item_seq, n))
        self.record_step_losses(t[noised], loss[noised])
        share = noised / noised.sum()
        if not self.loss_scale:
            return (share * weight * loss).sum()
        error = (x_hat.float() - x_start).square().mean(dim=-1)
        of_user = torch.zeros(len(n), device=n.device).index_add(0, rows, noised.float())[rows]
        share_of_user = noised / (len(n) * of_user)
        return (weight * (share * loss + self.loss_scale * share_of_user * error)).sum()

    def loss_terms(self, interaction) -> int:
        """How many positions the cross-entropy is a mean over; several processes weight the squared error alike."""
        n = self.history(interaction)[1]
        return int((n if self.noised_items == "all" else n.clamp(max=self.noised_items)).sum())

    def draw_steps(self, rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Steps and weights [P] of all positions, one each, or one a sequence without ``independent_steps``."""
        if self.independent_steps:
            return self.step_sampler.sample(len(rows), rows.device)
        t, weight = self.step_sampler.sample(batch, rows.device)
        return t[rows], weight[rows]

    def drop_condition(self, c: Tensor, layout: TokenLayout, batch: int) -> Tensor:
        """For guidance: c of a share of the sequences becomes zero, [N, D]."""
        if not self.condition_dropout_prob:
            return c
        kept = torch.rand(batch, device=c.device) >= self.condition_dropout_prob
        return c * kept[layout.rows, None]

    # ------------------------------------------------------------------ inference

    def denoiser(self, interaction, noise: SeedNoise):
        """x0_hat at the last position, where it is noise at first; the known ones hold their next items at step 0.

        Known positions see nothing of the last one: they are computed once, for all steps and seeds.
        """
        item_seq, n = self.history(interaction)
        layout, steps = self.layout(n, item_seq.shape[1]), self.lam * self.steps()
        known = self.lam * self.item_embedding(layout.pack(F.pad(item_seq[:, 1:], (0, 1)))) + steps[0]
        c = self.encode(item_seq, layout)
        n_seeds, w = len(noise.generators), self.guidance_scale
        cond = self.last_decoder(c, known, layout, n_seeds)
        uncond = self.last_decoder(torch.zeros_like(c), known, layout, n_seeds) if w else None

        def predict_start(x_t: Tensor, t: Tensor) -> Tensor:
            given = self.lam * x_t + steps[t]
            return guided_start(cond(given), uncond(given), w) if w else cond(given)

        return predict_start

    def last_decoder(self, c: Tensor, known: Tensor, layout: TokenLayout, n_seeds: int) -> Callable[[Tensor], Tensor]:
        """Map what the last positions are given, [S * B, D], to x0_hat there; c and what is known are [N, D]."""
        read, last = self.decoder.read_last(c + known, layout), c[layout.last].repeat(n_seeds, 1)
        return lambda given: read(last + given)


class PositionwiseDecoder(nn.Module):
    """The decoder without attention: each position by itself."""

    def __init__(self, hidden_size: int, layer_norm_eps: float):
        super().__init__()
        self.dense_1 = nn.Linear(hidden_size, 4 * hidden_size)
        self.dense_2 = nn.Linear(4 * hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, z: Tensor, layout: TokenLayout | None = None) -> Tensor:
        """[..., D] to [..., D]."""
        return self.norm(self.dense_2(F.silu(self.dense_1(z))))

    def read_last(self, z: Tensor, layout: TokenLayout) -> Callable[[Tensor], Tensor]:
        """Nothing is read of the positions before: last ones [S * B, D] go through by themselves."""
        return self.forward

"""What DiffuRec and DiffuRecSys share: a history that carries the noised target, read by a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_diffusion.diffusion_utils import SeedNoise
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.modules.layers import PositionEmbedding, StepEmbedding
from recbole_diffusion.modules.ragged import TokenLayout


class ApproximatorRecommender(DiffusionRecommender):
    """Training (Algorithm 1) and inference (Algorithms 2, 3) around an approximator that a subclass defines.

    Equations are numbered as in section 5 of the DiffuRecSys paper (Zolghadr, Winther and Jeha 2024), which restates
    DiffuRec (Li, Sun and Li 2023).
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.delta = config["lambda_uncertainty"]
        self.noise_x_start = config["noise_x_start"]
        self.embedding_norm = nn.LayerNorm(self.hidden_size, eps=config["layer_norm_eps"])
        self.embedding_dropout = nn.Dropout(config["emb_dropout_prob"])
        self.position_embedding = PositionEmbedding(config) if config["use_position_embedding"] else None
        self.step_embedding = StepEmbedding(self.hidden_size, 4 * self.hidden_size, "silu")
        self.approximator = self.build_approximator(config)
        self.output_norm = nn.LayerNorm(self.hidden_size, eps=config["layer_norm_eps"])
        self.output_dropout = nn.Dropout(config["hidden_dropout_prob"])
        self.apply(self._init_weights)
        if config["embedding_std"] is not None:
            nn.init.normal_(self.item_embedding.weight[1:], std=config["embedding_std"])

    def build_approximator(self, config) -> nn.Module:
        """Make the network that ``restore`` reads with."""
        raise NotImplementedError

    def restore(self, h: Tensor, injected: Tensor, layout: TokenLayout) -> Tensor:
        """Read history and injected target, both [N, D], with the approximator; its last position, [B, D]."""
        raise NotImplementedError

    def embed_history(self, item_seq: Tensor, layout: TokenLayout) -> Tensor:
        """H = LayerNorm(Dropout(E[item_seq])), flat: [B, L] to [N, D]."""
        h = self.item_embedding(layout.pack(item_seq))
        if self.position_embedding is not None:
            h = h + self.position_embedding(layout)
        return self.embedding_norm(self.embedding_dropout(h))

    def forward_noise(self, x_start: Tensor) -> Tensor:
        """The noise of the forward process, standard normal."""
        return torch.randn_like(x_start)

    def diffuse(self, target: Tensor, t: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) for targets [B] (Eq. 18, 20); x_0 is E[target], or one noising step from it (Eq. 19)."""
        x_start = self.item_embedding(target)
        if self.noise_x_start:
            x_start = self.diffusion.q_sample(x_start, 0, self.forward_noise(x_start))
        return self.diffusion.q_sample(x_start, t, self.forward_noise(x_start))

    def approximate(self, h: Tensor, x_t: Tensor, t: Tensor, lam: Tensor, layout: TokenLayout) -> Tensor:
        """x0_hat = f([z_1 .. z_n]) at the last position (Eq. 14): h and lam [N, D], x_t [B, D], t [B], to [B, D]."""
        # The public code's scale: steps are embedded as if there were 1000 of them.
        step = self.step_embedding(t * (1000 / self.diffusion.num_steps))
        injected = lam * (x_t + step)[layout.rows]
        return self.output_norm(self.output_dropout(self.restore(h, injected, layout)))

    def calculate_loss(self, interaction) -> Tensor:
        """Cross-entropy of x0_hat . E^T against the target (Algorithm 1; Eq. 24, Eq. 25)."""
        (item_seq, item_seq_len), target = self.history(interaction), interaction[self.POS_ITEM_ID]
        layout = self.layout(item_seq_len, item_seq.shape[1])
        h = self.embed_history(item_seq, layout)
        t, weight = self.step_sampler.sample(len(target), h.device)
        lam = self.delta + self.delta * torch.randn_like(h)
        x_start = self.approximate(h, self.diffuse(target, t), t, lam, layout)
        loss = self.item_cross_entropy(x_start, target, self.seen(interaction))
        self.record_step_losses(t, loss)
        return (weight * loss).mean()

    def denoiser(self, interaction, noise: SeedNoise):
        """One step of the reverse phase (Algorithm 2): lambda is drawn anew, then x0_hat = f(x_t, t)."""
        item_seq, item_seq_len = self.history(interaction)
        n_seeds, (batch, length) = len(noise.generators), item_seq.shape
        layout = self.layout(item_seq_len.repeat(n_seeds), length)
        h = self.embed_history(item_seq.repeat(n_seeds, 1), layout)
        seed = layout.rows // batch

        def predict_start(x_t: Tensor, t: Tensor) -> Tensor:
            draw = noise.draw(self.max_seq_length, self.hidden_size, device=h.device, dtype=h.dtype)
            lam = self.delta + self.delta * draw[seed, layout.positions]
            return self.approximate(h, x_t, t, lam, layout)

        return predict_start

"""Generation of an embedding under guidance by the history: condition encoder, null vector, MLP denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffusion.diffusion_utils import SeedNoise, guided_start
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.modules.layers import CausalEncoder, StepEmbedding


class GuidedRecommender(DiffusionRecommender):
    """A diffusion of the target's embedding whose denoiser is guided by the encoded history, without a classifier.

    A model defines ``calculate_loss``; how it generates (DreamRec, Yang et al. 2023, section 4.2) stands here.
    Equations are numbered as in the DreamRec paper.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.condition_dropout_prob, self.guidance_scale = config["condition_dropout_prob"], config["guidance_scale"]
        self.fused_denoiser = config["fused_denoiser"]
        self.encoder = CausalEncoder(config)
        self.f = MLPDenoiser(self.hidden_size, config["denoiser"])
        self.apply(self._init_weights)
        # Without dropping, the null vector is never trained; distributed training wants a gradient for what is.
        self.null = nn.Parameter(torch.empty(self.hidden_size), requires_grad=self.condition_dropout_prob > 0)
        for embedding in (self.item_embedding.weight[1:], self.encoder.position_embedding.weight, self.null):
            nn.init.normal_(embedding, std=config["embedding_std"])

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        super().check_config(config)
        check_embedding_std(config)
        check_guidance(config)

    def encode(self, interaction) -> Tensor:
        """c = T-enc(e_1 .. e_{n-1}) at the last position (Eq. 10), [B, D]."""
        item_seq, item_seq_len = self.history(interaction)
        layout = self.layout(item_seq_len, item_seq.shape[1])
        return self.encoder(self.item_embedding(layout.pack(item_seq)), layout, last_only=True)

    def denoiser(self, interaction, noise: SeedNoise):
        """(1 + w) f(x_t, c, t) - w f(x_t, null, t) (Eq. 15), c computed once for all steps and seeds."""
        return self.guided(self.condition(interaction), len(noise.generators))

    def condition(self, interaction) -> Tensor:
        """c as inference has it, [B, D]: in mixed precision where that is asked for, and then float32."""
        with self.autocast():
            return self.encode(interaction).float()

    def chain_autocast(self) -> AbstractContextManager:
        """None: guidance multiplies what rounding does to two predictions."""
        return nullcontext()

    def guided(self, c: Tensor, n_seeds: int):
        """``predict_start(x_t, t)`` of S seeds under the conditions c [B, D]: x_t [S * B, D], seed by seed."""
        if self.fused_denoiser:
            every = None if self.sampling_steps else self.diffusion.num_steps
            return self.f.guided(c, self.null, self.guidance_scale, every, n_seeds)
        c, null = c.repeat(n_seeds, 1), self.null.expand(n_seeds * c.shape[0], -1)

        def predict_start(x_t: Tensor, t: Tensor) -> Tensor:
            return guided_start(self.f(x_t, c, t), self.f(x_t, null, t), self.guidance_scale)

        return predict_start

    def sample_start(self, interaction, seeds: list[int]) -> Tensor:
        """Generate the target's embedding from noise for each seed, [S, B, D]; all users share a seed's draws.

        With ``mlp1`` and shared draws every step is affine in x_t and c, and so is the whole chain in c alone. It is
        walked for the zero condition and the D unit ones, where the users are more; in float32, as scores are not to
        depend on the size of the batch.
        """
        c, noise, size = self.condition(interaction), SeedNoise(seeds), self.hidden_size
        is_affine = self.fused_denoiser and self.f.dense_2 is None
        # An exported graph takes batches of any size, so that their size is not asked for there, and holds the chain's
        # outcome rather than its steps.
        if not is_affine or (not torch.compiler.is_exporting() and len(c) <= size + 1):
            return self.run_chain(self.guided(c, len(seeds)), noise, c.shape[0])
        corners = torch.eye(size + 1, size, device=c.device).roll(1, 0)
        x_start = self.run_chain(self.guided(corners, len(seeds)), noise, size + 1)
        zero = x_start[:, :1]
        return torch.baddbmm(zero, c.expand(len(seeds), -1, -1), x_start[:, 1:] - zero)


def check_embedding_std(config: Mapping[str, Any]) -> None:
    """Raise ValueError where the scale of the embeddings at the start is left to the initializer."""
    if config["embedding_std"] is None:
        raise ValueError("embedding_std [None] must be a number >= 0 for a model whose condition starts from it.")


def check_guidance(config: Mapping[str, Any]) -> None:
    """Raise ValueError where guidance is asked for and its unconditional prediction is not trained."""
    if config["guidance_scale"] > 0 and config["condition_dropout_prob"] == 0:
        raise ValueError(
            f"guidance_scale [{config['guidance_scale']}] must be 0 where condition_dropout_prob is 0: guidance "
            "needs the unconditional prediction, which dropping the condition trains."
        )


class MLPDenoiser(nn.Module):
    """f(x_t, c, t): one linear layer (``mlp1``), or two around a GELU (``mlp2``), over [x_t, c, step embedding]."""

    def __init__(self, hidden_size: int, kind: str):
        super().__init__()
        inner_size = hidden_size if kind == "mlp1" else 2 * hidden_size
        self.step_embedding = StepEmbedding(hidden_size, 2 * hidden_size, "gelu")
        self.dense_1 = nn.Linear(3 * hidden_size, inner_size)
        self.dense_2 = nn.Linear(inner_size, hidden_size) if kind == "mlp2" else None

    def forward(self, x_t: Tensor, c: Tensor, t: Tensor) -> Tensor:
        """Predict x_0 from x_t [B, D] under the condition c [B, D] at the steps t [B]: [B, D] (section 4.2.1)."""
        h = self.dense_1(torch.cat([x_t, c, self.step_embedding(t)], dim=-1))
        return h if self.dense_2 is None else self.dense_2(F.gelu(h))

    def guided(self, c: Tensor, null: Tensor, w: float, every: int | None, n_seeds: int):
        """Return f~(x_t, t) of Eq. 15 for c [B, D] and null [D]: what ``forward`` twice gives, at its least cost.

        The first layer is a sum over x_t, condition and step: only the first part is left to each step. As every layer
        behind the last activation is linear, guidance comes before it, and the product with x_t serves both passes.
        Within a call all rows are at one step; x_t is [S * B, D], seed by seed. The part of the step is computed for
        all of the ``every`` steps at once, or (None) when a step comes.
        """
        w_x, w_c, w_s = self.dense_1.weight.T.split(c.shape[-1])
        cond, uncond = torch.addmm(self.dense_1.bias, c, w_c).repeat(n_seeds, 1), self.dense_1.bias + null @ w_c
        steps = None if every is None else self.step_embedding(torch.arange(every, device=c.device)) @ w_s

        def of_step(t: Tensor) -> Tensor:
            return self.step_embedding(t[:1]) @ w_s if steps is None else steps[t[:1]]

        if self.dense_2 is None:
            cond = guided_start(cond, uncond, w)
            return lambda x_t, t: torch.addmm(cond, x_t, w_x).add_(of_step(t))

        def predict_start(x_t: Tensor, t: Tensor) -> Tensor:
            h = torch.addmm(of_step(t), x_t, w_x)
            return self.dense_2(guided_start(F.gelu(h + cond), F.gelu(h + uncond), w))

        return predict_start

"""CDDRec: conditional denoising diffusion for sequential recommendation (Wang, Liu, Yang and Yu, 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_diffusion.data.negatives import UnseenItems
from recbole_diffusion.data.sequences import UserSequenceDataset
from recbole_diffusion.diffusion_utils import SeedNoise
from recbole_diffusion.modules.augmentations import AUGMENTATIONS
from recbole_diffusion.modules.diffusion import DiffusionRecommender
from recbole_diffusion.modules.layers import CausalEncoder
from recbole_diffusion.modules.losses import info_nce, log_sum_exp_products
from recbole_diffusion.modules.ragged import TokenLayout, next_items, real_positions


class CDDRec(DiffusionRecommender):
    """A decoder asks the encoded history, step by step, for the mean of the corrupted next item, at every position.

    Yu Wang, Zhiwei Liu, Liangwei Yang, Philip S. Yu: "Conditional Denoising Diffusion for Sequential Recommendation",
    PAKDD 2024; code: github.com/YuWang-1024/CDDRec. Steps are counted as in the paper: x_0 is the target's embedding
    and x_t has passed t betas. t runs from 0 to T - 1, as the variance of Eq. 4 exists no further.

    The public code's decoder attends across the users of a batch; here it is Eq. 3. Of the two measures of Eq. 5, the
    public code has ``dot``. ``kl`` is as printed, and its scale is that of the noise: with the paper's schedule all
    embeddings shrink to it, and what tells items apart is lost.

    The public code ranks with the scores of the history at zero, contrasts and ranks by cosines
    (``similarity: mixed``), keeps the encoded history by a residual (``decoder_residual``) and adds Eq. 5 of the
    augmented view (``lambda_augmented: 1``). By validation, not by the paper: cosines in Eq. 5 as well, and their
    temperature. The paper's values are of the protocol that masks the history: compare under ``mask_history: True``.
    """

    dataset_class = UserSequenceDataset
    shared_props = ("common",)  # its chain is no sampler's: it has the keys of the diffusion itself
    random_inference = False

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.divergence, self.temperature = config["divergence"], config["temperature"]
        self.lambda_contrastive = config["lambda_contrastive"]
        self.sample_target, self.sample_preference = config["sample_target"], config["sample_preference"]
        self.similarity, self.lambda_augmented = config["similarity"], config["lambda_augmented"]
        name = config["augmentation"]
        self.augment, self.augmentation_ratio = AUGMENTATIONS[name], config[f"{name}_ratio"]
        self.mask_embedding = nn.Embedding(1, self.hidden_size) if name == "mask" else None
        self.encoder = CausalEncoder(config)
        self.decoder = StepQueryAttention(self.hidden_size, config["num_steps"], config["attn_dropout_prob"])
        self.decoder_residual = config["decoder_residual"]
        self.unseen_items = UnseenItems(dataset) if hasattr(dataset, "inter_feat") else None  # training alone needs it
        # At t = 0 the variance is zero; as Ho et al. 2020 do in their code, the divergence takes the next one there.
        variance = self.diffusion.posterior_variance
        first = variance[1:2] if len(variance) > 1 else self.diffusion.betas
        self.register_buffer("kl_variance", torch.cat([first, variance[1:]]), persistent=False)
        self.register_buffer("steps", torch.arange(len(variance)), persistent=False)
        self.apply(self._init_weights)

    # ------------------------------------------------------------------ diffuser, encoder, decoder (3.1 to 3.3)

    def corrupt(self, x_0: Tensor) -> Tensor:
        """x_0 .. x_T of targets [P, D], each drawn by itself (Eq. 1, 2): [T + 1, P, D]."""
        x_0 = x_0.expand(len(self.steps), -1, -1)
        # The tables count from 0: their step t - 1 leads to the paper's x_t.
        return torch.cat([x_0[:1], self.diffusion.q_sample(x_0, self.steps) if self.sample_target else x_0])

    def decode(self, item_seq: Tensor, layout: TokenLayout, steps: Tensor) -> Tensor:
        """mu(e_s, t) of some steps [S] (Eq. 3), e_s the causal encoding of the histories [B, L]: [S, N, D]."""
        items = layout.pack(item_seq)
        x = self.item_embedding(items)
        if self.mask_embedding is not None:
            x = x + (items == 0).unsqueeze(-1) * self.mask_embedding.weight
        e_s = self.encoder(x, layout)
        mu = self.decoder(e_s, layout, steps)
        return e_s + mu if self.decoder_residual else mu

    def preference(self, mu: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_hat_t = mu_t + sigma_{t+1} eps (Eq. 4), sigma^2 the posterior's variance, of all steps: [T, ..., D]."""
        if not self.sample_preference:
            return mu
        # The paper prints the variance in front of eps; a draw from its p(x_hat_t | e_s, t) has the root there.
        sigma = self.diffusion.posterior_variance.sqrt().view(-1, *[1] * (mu.ndim - 1))
        return mu + sigma * (torch.randn_like(mu) if noise is None else noise)

    # ------------------------------------------------------------------ training (3.4)

    def calculate_loss(self, interaction) -> Tensor:
        """sum_t (L_cd + lambda (L_in + L_cross)) / (t + 1), over every step and every position's next item (Eq. 8)."""
        item_seq, n = self.history(interaction)
        view, view_n, shift = self.augment(item_seq, n, self.augmentation_ratio)
        # History and augmented view go through the network together; then real positions alone are kept, row by row.
        both = torch.cat([n, view_n])
        layout, (rows, positions) = self.layout(both, item_seq.shape[1]), real_positions(both)
        mu = self.decode(torch.cat([item_seq, view]), layout, self.steps)[:, layout.first[rows] + positions]

        target = next_items(item_seq, n, interaction[self.POS_ITEM_ID])
        n_real = len(target)
        negative, unseen = self.unseen_items.sample(interaction[self.USER_ID][rows[:n_real]])
        origin = (n.cumsum(0) - n + shift)[rows[n_real:] - len(n)] + positions[n_real:]

        x, x_hat = self.corrupt(self.item_embedding(target)), self.preference(mu)
        x_negative = self.item_embedding(negative)
        loss = self.cross_divergence(mu[:, :n_real], x_hat[:, :n_real], x, x_negative, unseen)
        loss = loss + self.lambda_contrastive * self.contrast(x_hat[:, :n_real], x[:-1], x_hat[:, n_real:], origin)
        if self.lambda_augmented > 0:
            of_view = x[:, origin], x_negative[origin], unseen[origin]
            loss = loss + self.lambda_augmented * self.cross_divergence(mu[:, n_real:], x_hat[:, n_real:], *of_view)
        self.record_step_losses(self.steps, loss)
        seen = self.seen_items.at_every_position(item_seq, n)
        return (loss / (self.steps + 1)).sum() + self.seen_loss(self.query(mu[0, :n_real]), target, seen)

    def loss_terms(self, interaction) -> int:
        """How many positions the loss is a mean over."""
        return int(self.history(interaction)[1].sum())

    def cross_divergence(self, mu: Tensor, x_hat: Tensor, x: Tensor, x_negative: Tensor, unseen: Tensor) -> Tensor:
        """L_cd of each step (Eq. 5) [T]: the prediction is close to the target, and far from an item never seen.

        mu, x_hat [T, P, D]; x [T + 1, P, D]; x_negative [P, D]; unseen [P], False where there is no such item.
        """
        if self.divergence == "kl":
            near, far = self.kl(x[0], x[1:], mu), self.kl(x_negative, x[1:], mu)
        else:
            if self.similarity == "cosine":
                x_hat, x, x_negative = map(self.compared, (x_hat, x, x_negative))
            near, far = -(x_hat * x[:-1]).sum(-1), -torch.einsum("tpd,pd->tp", x_hat, x_negative)
        # log(1 - sigmoid(-far)) is log sigmoid(far).
        return -(F.logsigmoid(-near) + F.logsigmoid(far) * unseen).mean(1)

    def kl(self, x_0: Tensor, x_next: Tensor, mu: Tensor) -> Tensor:
        """KL[q(x_t | x_{t+1}, x_0) || N(mu_t, the same variance)]: x_0 [P, D], the others [T, P, D], to [T, P]."""
        mean, _ = self.diffusion.q_posterior(x_0, x_next, self.steps)
        return (mean - mu).square().sum(-1) / (2 * self.kl_variance[:, None])

    def contrast(self, x_hat: Tensor, x: Tensor, x_view: Tensor, origin: Tensor) -> Tensor:
        """L_in (Eq. 6) + L_cross (Eq. 7) of each step [T], against all real positions of the batch.

        x_hat, x [T, P, D]; x_view [T, V, D], the augmented view, whose v-th position stands for position origin[v].
        """
        x_hat, x, x_view = map(self.compared, (x_hat, x, x_view))
        query = x_hat / self.temperature
        others = log_sum_exp_products(query, x_hat, skip_diagonal=True)  # the same in both
        return info_nce(query, x, others) + info_nce(query[:, origin], x_view, others[:, origin])

    def compared(self, x: Tensor) -> Tensor:
        """x as contrast and ranking compare it: itself (``similarity: dot``), or at length 1 (cosine, mixed)."""
        return x if self.similarity == "dot" else F.normalize(x, dim=-1)

    # ------------------------------------------------------------------ inference

    def query(self, x_start: Tensor) -> Tensor:
        """x_start [..., D], or where cosines are compared x_start at length 1 / temperature.

        Cosines span 2 alone: as they are, a softmax over many items could not hear them beside a learned seen value.
        """
        return x_start if self.similarity == "dot" else self.compared(x_start) / self.temperature

    def output_layer(self, items: slice = slice(None)) -> tuple[Tensor, None]:
        """The item embeddings, as they are compared."""
        return self.compared(self.item_embedding.weight[items]), None

    def decode_last(self, interaction, steps: Tensor) -> Tensor:
        """mu(e_s, t) of some steps [S] at the last position (Eq. 3): [S, B, D]."""
        item_seq, n = self.history(interaction)
        layout = self.layout(n, item_seq.shape[1])
        with self.autocast():
            return self.decode(item_seq, layout, steps)[:, layout.last].float()

    def stages(self, interaction, seeds: list[int]) -> Tensor:
        """x_hat_t of every step at the last position (Eq. 4), [T, S, B, D]; the paper's denoising stage is T - t."""
        mu = self.decode_last(interaction, self.steps)
        noise = SeedNoise(seeds).draw(len(mu), mu.shape[-1], device=mu.device, dtype=mu.dtype)
        return self.preference(mu.unsqueeze(1).expand(-1, len(seeds), -1, -1), noise.transpose(0, 1).unsqueeze(2))

    def sample_start(self, interaction, seeds: list[int]) -> Tensor:
        """x_hat_0 for each seed, [S, B, D]: the mean at t = 0 (one_step), or the end of the chain (reverse).

        p(x_hat_t | e_s, t) is given by the history and not by the step before, and at t = 0 has no variance. So the
        chain ends where one_step begins, whatever the seed; on its way it draws every stage.
        """
        if self.inference == "reverse":
            return self.stages(interaction, seeds)[0]
        return self.decode_last(interaction, self.steps[:1]).expand(len(seeds), -1, -1)


class StepQueryAttention(nn.Module):
    """Causal cross-attention whose query is a step's embedding, the same at every position (Eq. 3)."""

    def __init__(self, hidden_size: int, num_steps: int, dropout: float):
        super().__init__()
        self.step_embedding = nn.Embedding(num_steps, hidden_size)
        self.query, self.key, self.value = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, e_s: Tensor, layout: TokenLayout, steps: Tensor) -> Tensor:
        """softmax((e_t W^Q) (e_s^1..n W^K)^T / sqrt(d)) (e_s^1..n W^V) (Eq. 3): e_s [N, D] to [S, N, D]."""
        scores = self.query(self.step_embedding(steps)) @ self.key(e_s).T / math.sqrt(e_s.shape[-1])
        groups = zip(layout.by_group(scores, dim=1), layout.by_group(self.value(e_s)), strict=True)
        return torch.cat([self.running_mean(*group).flatten(1, 2) for group in groups], 1)

    def running_mean(self, scores: Tensor, value: Tensor) -> Tensor:
        """Mean of value [B, L, D] up to each position, weighted by the softmax of scores [S, B, L]: [S, B, L, D].

        As all positions share the query, one cumulative sum over positions, of exp(score) * value, gives every mean, in
        time linear in L. It is divided by the sum of exp(score) as it runs, so that no factor exceeds 1, whatever the
        scores. Dropout hides a key from every position at once.
        """
        log_total = scores.float().logcumsumexp(-1)
        new = (scores - log_total).exp()  # the share of position n in the softmax over 1..n
        kept = F.pad((log_total[..., :-1] - log_total[..., 1:]).exp(), (1, 0))  # the share of those before it
        new, kept = self.dropout(new).unsqueeze(-1).unbind(-2), kept.unsqueeze(-1).unbind(-2)
        mean, means = torch.zeros_like(value[:, 0]), []
        for new_n, kept_n, value_n in zip(new, kept, value.unbind(-2), strict=True):
            mean = torch.addcmul(new_n * value_n, mean, kept_n)
            means.append(mean)
        return torch.stack(means, -2)

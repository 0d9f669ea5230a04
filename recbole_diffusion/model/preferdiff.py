"""PreferDiff: DreamRec with a preference over negatives (Liu, Zhang, Hu, Qian and Chua, 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_diffusion.diffusion_utils import drop_condition
from recbole_diffusion.modules.guided import GuidedRecommender

# name -> distance of predictions and items [B, D], one a row, [B]
DISTANCES = {
    "cosine": lambda a, b: 1 - F.cosine_similarity(a, b, dim=-1),
    "cosine_squared": lambda a, b: (1 - F.cosine_similarity(a, b, dim=-1)).square(),
    "l2": lambda a, b: (a - b).square().mean(dim=-1),
    "l1": lambda a, b: (a - b).abs().mean(dim=-1),
    "huber": lambda a, b: F.huber_loss(a, b, reduction="none").mean(dim=-1),
}


class PreferDiff(GuidedRecommender):
    """A guided diffusion generates the next item, and is to restore it better than what others took.

    Shuo Liu, An Zhang, Guoqing Hu, Hong Qian, Tat-Seng Chua: "Preference Diffusion for Recommendation", ICLR 2025
    (arXiv 2410.13117); code: github.com/lswhim/PreferDiff. Encoder, guidance and generation are DreamRec's
    (``modules/guided.py``); DDIM takes few steps. The paper derives its loss as a bound on a Bayesian ranking; for a
    concave log sigmoid Jensen's inequality points the other way, and the centroid stands for all negatives only where
    the denoiser is convex: take it as a heuristic.

    The public code averages the distances over the batch before the sigmoid, so that no sample counts more than another
    (``ranking: batch``), and keeps rows of the same target among the negatives of a row; here they are left out.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.distance, self.negatives = DISTANCES[config["distance"]], config["negatives"]
        self.ranking, self.ranking_scale = config["ranking"], config["ranking_scale"]
        self.generation_weight, self.cross_entropy_weight = config["generation_weight"], config["cross_entropy_weight"]
        self.target_gradient = config["target_gradient"]

    def calculate_loss(self, interaction) -> Tensor:
        """lambda L+ - (1 - lambda) log sigmoid(-gamma (L+ - L-)): distances of positive and negative to f of each.

        Both are noised to the same step, by draws of their own, and restored under the same condition.
        """
        target, seen = interaction[self.POS_ITEM_ID], self.seen(interaction)
        c = drop_condition(self.encode(interaction), self.null, self.condition_dropout_prob)
        positive = self.item_embedding(target)
        positive = positive if self.target_gradient else positive.detach()
        negative, has_negative = self.draw_negatives(target, positive)
        t, weight = self.step_sampler.sample(len(c), c.device)
        x_start = torch.cat([positive, negative])
        x_t = self.diffusion.q_sample(x_start, t.repeat(2))
        prediction = self.f(x_t, c.repeat(2, 1), t.repeat(2)).float()
        error, error_negative = self.distance(prediction, x_start).chunk(2)
        self.record_step_losses(t, error)

        lam = self.generation_weight
        loss = lam * (weight * error).mean() + (1 - lam) * self.ranking_loss(
            error, error_negative, weight, has_negative
        )
        restored = prediction[: len(target)]
        if not self.cross_entropy_weight:
            return loss + self.seen_loss(restored, target, seen)
        return loss + self.cross_entropy_weight * (weight * self.item_cross_entropy(restored, target, seen)).mean()

    def draw_negatives(self, target: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """A negative for each target [B], [B, D], and whether there is one.

        ``centroid``: the mean of the embeddings [B, D] of the batch's other targets (of a process's own part).
        ``sampled``: an item drawn from the catalogue. Neither holds the row's own target.
        """
        if self.negatives == "sampled":
            r = 1 + (torch.rand(len(target), device=target.device) * (self.n_items - 2)).long()
            negative = self.item_embedding(r + (r >= target))
            return negative if self.target_gradient else negative.detach(), torch.ones_like(target, dtype=torch.bool)
        _, number, counts = target.unique(return_inverse=True, return_counts=True)
        own = counts[number]
        others = (len(target) - own).unsqueeze(1)
        return (positive.sum(0) - own.unsqueeze(1) * positive) / others.clamp(min=1), others.squeeze(1) > 0

    def ranking_loss(self, error: Tensor, error_negative: Tensor, weight: Tensor, has_negative: Tensor) -> Tensor:
        """-log sigmoid(-gamma (L+ - L-)): mean over the samples, or of their means; 0 where nothing is ranked."""
        weight = weight * has_negative
        margin = error_negative - error
        if self.ranking == "batch":
            return -F.logsigmoid(self.ranking_scale * (weight * margin).mean()) * has_negative.any()
        return -(weight * F.logsigmoid(self.ranking_scale * margin)).mean()

"""DreamRec: the next item's embedding is generated from noise (Yang, Wu, Wang, Yuan, Wang and He, 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_diffusion.diffusion_utils import drop_condition
from recbole_diffusion.modules.guided import GuidedRecommender


class DreamRec(GuidedRecommender):
    """A diffusion guided by the history generates the oracle item, without negatives or a softmax over the items.

    Zhengyi Yang, Jiancan Wu, Zhicai Wang, Xiang Wang, Yancheng Yuan, Xiangnan He: "Generate What You Prefer: Reshaping
    Sequential Recommendation via Guided Diffusion", NeurIPS 2023 (arXiv 2310.20453), section 4; code:
    github.com/YangZhengyi98/DreamRec. Steps count from 1 to T there, from 0 to T - 1 here. The denoiser predicts x_0,
    which the paper's appendix shows to be equivalent to predicting the noise. Encoder, guidance and generation
    stand in ``modules/guided.py``.

    Left open by the paper, and decided here: the encoder is SASRec's, and the target is data to the diffusion, so that
    gradients reach the item embeddings by the histories alone. With ``target_gradient`` they also pass through the
    target, as in the public code; the loss is least where all embeddings meet in one point, and they move there.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.target_gradient = config["target_gradient"]

    def calculate_loss(self, interaction) -> Tensor:
        """Mean over the batch of ||x_0 - f(x_t, c, t)||^2 (Algorithm 1; Eq. 14 without its weight).

        The norm sums over the D dimensions; the public code's mean over them is the same to AdamW.
        """
        c = drop_condition(self.encode(interaction), self.null, self.condition_dropout_prob)
        x_start = self.item_embedding(interaction[self.POS_ITEM_ID])
        if not self.target_gradient:
            x_start = x_start.detach()
        t, weight = self.step_sampler.sample(len(c), c.device)
        x_t = self.diffuse(x_start, t)
        prediction, target = self.f(x_t, c, t), interaction[self.POS_ITEM_ID]
        loss = (x_start - prediction).square().sum(dim=-1)
        self.record_step_losses(t, loss)
        return (weight * loss).mean() + self.seen_loss(prediction, target, self.seen(interaction))

    def diffuse(self, x_start: Tensor, t: Tensor) -> Tensor:
        """x_t ~ q(x_t | x_0) (Eq. 1; Algorithm 1, lines 6 and 7): [B, D] at the steps t [B]."""
        return self.diffusion.q_sample(x_start, t, torch.randn_like(x_start))

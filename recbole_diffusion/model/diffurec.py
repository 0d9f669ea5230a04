"""DiffuRec: a diffusion model for sequential recommendation (Li, Sun and Li, 2023)."""

from __future__ import annotations

from torch import Tensor

from recbole_diffusion.modules.approximator import ApproximatorRecommender
from recbole_diffusion.modules.layers import TransformerEncoder
from recbole_diffusion.modules.ragged import TokenLayout


class DiffuRec(ApproximatorRecommender):
    """Every item of the history is blended with the noised target, and a transformer restores the target from that.

    Zihao Li, Aixin Sun, Chenliang Li: "DiffuRec: A Diffusion Model for Sequential Recommendation", ACM TOIS 2023
    (arXiv 2304.00686); code: github.com/WHUIR/DiffuRec. Equations are numbered as in section 5 of the DiffuRecSys
    paper, which restates the model. Diffusion, loss and reverse phase stand in ``modules/approximator.py``.

    The public code hides padded queries from the attention; here padded keys are hidden, as the paper's text asks.
    """

    def build_approximator(self, config) -> TransformerEncoder:
        """The transformer of Eq. 14: pre-norm and bidirectional."""
        return TransformerEncoder(config, norm_first=True, causal=False)

    def restore(self, h: Tensor, injected: Tensor, layout: TokenLayout) -> Tensor:
        """z_i = e_i + lambda_i * (x_t + d_t) (Eq. 15), through the transformer (Eq. 14)."""
        return self.approximator(h + injected, layout, last_only=True)

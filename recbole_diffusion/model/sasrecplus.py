"""SASRecPlus: a causal transformer trained at every position on all items. No diffusion, but what it must beat."""

from __future__ import annotations

from torch import Tensor

from recbole_diffusion.data.sequences import UserSequenceDataset
from recbole_diffusion.modules.layers import CausalEncoder
from recbole_diffusion.modules.ragged import next_items, real_positions
from recbole_diffusion.modules.recommender import SequenceRecommender


class SASRecPlus(SequenceRecommender):
    """SASRec with a cross-entropy over all items in place of one sampled negative, a target at every position.

    Wang-Cheng Kang, Julian McAuley: "Self-Attentive Sequential Recommendation", ICDM 2018. Anton Klenitskiy,
    Alexey Vasilev: "Turning Dross Into Gold Loss: is BERT4Rec really better than SASRec?", RecSys 2023: section 3 shows
    what the loss is worth. Unlike the former's, the blocks normalise after each residual, as RecBole's do
    (``norm_first``: before); positions count from the end of the history, as in its public code (``positions_from``).
    """

    dataset_class = UserSequenceDataset

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.encoder = CausalEncoder(config)
        self.apply(self._init_weights)

    def calculate_loss(self, interaction) -> Tensor:
        """Mean over all real positions of the batch of the cross-entropy against the next item."""
        item_seq, n = self.history(interaction)
        layout, (rows, positions) = self.layout(n, item_seq.shape[1]), real_positions(n)
        x = self.encoder(self.item_embedding(layout.pack(item_seq)), layout)[layout.first[rows] + positions]
        target = next_items(item_seq, n, interaction[self.POS_ITEM_ID])
        return self.item_cross_entropy(x, target, self.seen_items.at_every_position(item_seq, n)).mean()

    def loss_terms(self, interaction) -> int:
        """How many positions the loss is a mean over."""
        return int(self.history(interaction)[1].sum())

    def sample_start(self, interaction, seeds: list[int]) -> Tensor:
        """The encoder's last position, which no seed changes: [S, B, D]."""
        item_seq, n = self.history(interaction)
        layout = self.layout(n, item_seq.shape[1])
        with self.autocast():
            x = self.encoder(self.item_embedding(layout.pack(item_seq)), layout, last_only=True)
        return x.float().expand(len(seeds), -1, -1)

"""Items that a user has never seen, drawn without rejection."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from torch import Tensor, nn


class UnseenItems(nn.Module):
    """Draw items, uniformly, that a user has not interacted with in the training data; exact on any catalogue.

    The r-th item that a user has not seen is r plus the number of seen items before it, which one search in a sorted
    table finds: no candidate is ever rejected, and nothing waits for the device.
    """

    def __init__(self, dataset: SequentialDataset):
        super().__init__()
        matrix, rows = dataset.inter_matrix(form="coo"), dataset[:]
        history = rows[dataset.iid_field + dataset.config["LIST_SUFFIX"]].numpy()
        users = np.append(matrix.row, rows[dataset.uid_field].numpy().repeat(history.shape[1])).astype(np.int64)
        items = np.append(matrix.col, history.ravel()).astype(np.int64)
        self.n_items = dataset.item_num
        seen = np.unique((users * self.n_items + items)[items > 0])
        users, items = np.divmod(seen, self.n_items)
        count = np.bincount(users, minlength=dataset.user_num)
        first = count.cumsum() - count
        unseen_before = items - 1 - (np.arange(len(seen)) - first[users])
        self.register_buffer("table", torch.from_numpy(users * self.n_items + unseen_before), persistent=False)
        self.register_buffer("first", torch.from_numpy(first), persistent=False)
        self.register_buffer("n_unseen", torch.from_numpy(self.n_items - 1 - count), persistent=False)

    def sample(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return an item for each of users [P], and whether it is unseen: False only where a user has seen them all."""
        n_unseen = self.n_unseen[users]
        r = (torch.rand(len(users), dtype=torch.float64, device=users.device) * n_unseen).long()
        before = torch.searchsorted(self.table, users * self.n_items + r, right=True) - self.first[users]
        return (r + 1 + before).clamp(max=self.n_items - 1), n_unseen > 0

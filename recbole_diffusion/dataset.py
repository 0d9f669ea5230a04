"""Training data for a model with a target at every position: one row a user, and the items that a user never saw."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor, nn


class UserSequenceDataset(SequentialDataset):
    """RecBole's sequential dataset, whose training part is read one row a user instead of one row a prefix.

    The row is the user's longest history with its target; of several that MAX_ITEM_LIST_LENGTH cut to one length, the
    last. Its shorter prefixes are RecBole's other rows, so a model that predicts at every position loses no target but
    those before the cut. Validation and test rows are RecBole's, and ``inter_feat`` keeps every row, so that samplers,
    popularity and interaction matrices are RecBole's as well: only ``len()`` and ``[]`` see the chosen rows.
    """

    rows: Tensor | None = None  # in the training part: where the chosen rows lie in inter_feat

    def build(self) -> list[UserSequenceDataset]:
        """Split as RecBole does, then choose the training rows."""
        train, *others = super().build()
        users, lengths = (train.inter_feat[field].numpy() for field in (self.uid_field, self.item_list_length_field))
        order = np.lexsort((lengths, users))  # stable: within a user and a length, rows stay in time
        last = np.append(users[order][1:] != users[order][:-1], True)[: len(order)]
        train.rows = torch.from_numpy(order[last])
        return [train, *others]

    def copy(self, new_inter_feat) -> UserSequenceDataset:
        """As RecBole's; the copy reads all of its rows."""
        other = super().copy(new_inter_feat)
        other.rows = None
        return other

    def __len__(self) -> int:
        return super().__len__() if self.rows is None else len(self.rows)

    def __getitem__(self, index, join: bool = True) -> Interaction:
        return super().__getitem__(index if self.rows is None else self.rows[index], join)


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
        self.register_buffer("left", torch.from_numpy(self.n_items - 1 - count), persistent=False)

    def sample(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return an item for each of users [P], and whether it is unseen: False only where a user has seen them all."""
        left = self.left[users]
        r = (torch.rand(len(users), dtype=torch.float64, device=users.device) * left).long()
        before = torch.searchsorted(self.table, users * self.n_items + r, right=True) - self.first[users]
        return (r + 1 + before).clamp(max=self.n_items - 1), left > 0

"""Training data for a model with a target at every position: one row a user, and the items that a user never saw."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor


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

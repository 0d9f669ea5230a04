"""Datasets of sequential models, whose rows for training and evaluation are gathered when a batch is made."""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_diffusion.data.sequence_rows import SequenceRows, first_of_run
from recbole_diffusion.data.windows import stitched, windows


class PrefixDataset(SequentialDataset):
    """RecBole's sequential dataset, row by row and in the same order, whose rows are gathered batch by batch.

    A row is a history and the item after it. Rows for evaluation bring the user's whole history as the attribute
    ``seen`` of their batch: (row, item) of every earlier interaction.
    """

    brings_history = False  # True in the parts for validation and test

    def data_augmentation(self) -> None:
        """Sort the interactions by user and time, and put a row in the place of each but a user's first."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        feat = self.inter_feat
        _check_columns(self, feat)
        order = torch.from_numpy(np.lexsort((feat[self.time_field].numpy(), feat[self.uid_field].numpy())))
        table = {name: feat[name][order] for name in feat}
        first = first_of_run(table[self.uid_field])
        target = (torch.arange(len(order)) > first).nonzero().squeeze(1)
        start = torch.maximum(first[target], target - self.max_item_list_len)
        lists = {name: getattr(self, f"{name}_list_field") for name in table if name != self.uid_field}
        length = self.max_item_list_len
        self.inter_feat = SequenceRows(table, start, target, first[target], lists, self.item_list_length_field, length)

    def leave_one_out(self, group_by: str, leave_one_mode: str) -> list[PrefixDataset]:
        """Split as RecBole does, without its Python lists of all rows."""
        if not isinstance(self.inter_feat, SequenceRows) or leave_one_mode not in LEAVE_OUT:
            return super().leave_one_out(group_by, leave_one_mode)
        users = self.inter_feat[group_by].numpy()
        # RecBole takes the users in the order in which they first appear.
        _, first, inverse = np.unique(users, return_index=True, return_inverse=True)
        order = np.argsort(first[inverse], kind="stable")
        counts = np.bincount(inverse)[inverse][order]
        begin = np.flatnonzero(np.append(True, inverse[order][1:] != inverse[order][:-1]))
        place = np.arange(len(order)) - np.repeat(begin, np.diff(np.append(begin, len(order))))
        from_end, parts = counts - place, LEAVE_OUT[leave_one_mode]
        held_out = (from_end <= sum(parts)) & (place > 0)
        # The last row goes to the last part that takes one, the row before it to the part before.
        taking = [part for part, takes in enumerate(parts) if takes]
        index = [order[~held_out], np.empty(0, int), np.empty(0, int)]
        for back, part in enumerate(reversed(taking), start=1):
            index[part + 1] = order[held_out & (from_end == back)]
        self._drop_unused_col()
        return [self.copy(self.inter_feat[rows]) for rows in index]

    def build(self) -> list[PrefixDataset]:
        """Split as RecBole does; the parts for evaluation bring the users' whole histories."""
        train, *others = super().build()
        for part in others:
            part.brings_history = True
        for part in (self, train, *others):
            if isinstance(part.inter_feat, SequenceRows):  # models read float32; sorting is done
                part.inter_feat.table = {name: _short(column) for name, column in part.inter_feat.table.items()}
        return [train, *others]

    def __getitem__(self, index, join: bool = True) -> Interaction:
        rows = self.inter_feat[index]
        batch = rows.gather() if isinstance(rows, SequenceRows) else rows
        if self.brings_history:
            batch.seen = rows.histories(self.iid_field) if batch is not rows else self._listed(batch)
        return self.join(batch) if join else batch

    def _listed(self, batch: Interaction) -> tuple[Tensor, Tensor]:
        """The histories of rows that a user's own files spell out (``benchmark_filename``), as far as they go."""
        item_seq = batch[self.iid_field + self.config["LIST_SUFFIX"]]
        row, place = item_seq.nonzero(as_tuple=True)
        return row, item_seq[row, place]

    @property
    def avg_actions_of_users(self) -> float:
        """Mean number of rows of a user, as RecBole's."""
        return self._mean_count(self.uid_field)

    @property
    def avg_actions_of_items(self) -> float:
        """Mean number of rows of an item, as RecBole's."""
        return self._mean_count(self.iid_field)

    def _mean_count(self, field: str) -> float:
        return len(self.inter_feat) / max(1, len(np.unique(np.asarray(self.inter_feat[field]))))


def _short(column: Tensor) -> Tensor:
    return column.float() if column.dtype == torch.float64 else column


# Which parts take a row of each user, of (validation, test).
LEAVE_OUT = {"valid_and_test": (True, True), "valid_only": (True, False), "test_only": (False, True)}


class UserSequenceDataset(PrefixDataset):
    """Sequences for a model with a target at every position: the training part is read in windows of its users.

    A window is a history whose every next item is a target. A sequence with more targets than MAX_ITEM_LIST_LENGTH is
    cut into several windows, from its end, so that every target stands in exactly one of them. Validation and test rows
    are those of ``PrefixDataset``, and ``inter_feat`` keeps every row, so that samplers, popularity and interaction
    matrices are RecBole's: only ``len()`` and ``[]`` see the windows.
    """

    windows: SequenceRows | None = None  # in the training part

    def build(self) -> list[UserSequenceDataset]:
        """Split as RecBole does, then cut the training part into windows."""
        train, *others = super().build()
        train.windows = windows(train.inter_feat if isinstance(train.inter_feat, SequenceRows) else train._stitched())
        return [train, *others]

    def _stitched(self) -> SequenceRows:
        """The sequences of rows that a user's own files spell out (``benchmark_filename``)."""
        suffix, length = self.config["LIST_SUFFIX"], self.item_list_length_field
        lists = {field: field + suffix for field in self.inter_feat if field + suffix in self.inter_feat}
        lists = {self.iid_field: lists[self.iid_field], **lists}
        return stitched(self.inter_feat, self.uid_field, lists, length, self.max_item_list_len)

    def copy(self, new_inter_feat) -> UserSequenceDataset:
        """As RecBole's; the copy reads all of its rows."""
        other = super().copy(new_inter_feat)
        other.windows = None
        return other

    def __len__(self) -> int:
        return super().__len__() if self.windows is None else len(self.windows)

    def __getitem__(self, index, join: bool = True) -> Interaction:
        if self.windows is None:
            return super().__getitem__(index, join)
        batch = self.windows[index].gather()
        return self.join(batch) if join else batch


def _check_columns(dataset: SequentialDataset, feat) -> None:
    """Raise ValueError where a column that rows are made of is not loaded, or would be written over by them."""
    needed = [field for field in (dataset.uid_field, dataset.iid_field, dataset.time_field) if field not in feat]
    if needed:
        raise ValueError(f"load_col [{dataset.config['load_col']}] must hold {' and '.join(needed)}, of inter.")
    made = [
        dataset.item_list_length_field,
        *(getattr(dataset, f"{name}_list_field") for name in feat if name != dataset.uid_field),
    ]
    twice = [name for place, name in enumerate(made) if name in feat or name in made[:place]]
    if twice:
        length, suffix = dataset.item_list_length_field, dataset.config["LIST_SUFFIX"]
        raise ValueError(
            f"ITEM_LIST_LENGTH_FIELD [{length}] and LIST_SUFFIX [{suffix}] must make names that no other column has: "
            f"{twice[0]} is one of {', '.join(feat)}, or made twice."
        )

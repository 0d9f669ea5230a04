"""Training and evaluation rows of sequential models, gathered when a batch is made, from one table of interactions.

RecBole's ``SequentialDataset`` writes every history out before the first batch, in a table of MAX_ITEM_LIST_LENGTH
columns, row by row in Python. Here a row is two numbers, where its history begins and where its target stands in the
interactions sorted by user and time; memory and time are linear in the interactions.
"""

from __future__ import annotations

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from torch import Tensor


class SequenceRows(Interaction):
    """Rows (history, target) over a table of interactions, with the interface of RecBole's ``Interaction``.

    Row r has the columns of interaction ``target[r]``, and as lists those of the interactions ``start[r]`` up to it.
    What asks for a column gets it for all rows; ``gather`` makes a batch.

    Parameters
    ----------
    table : columns of all interactions [N], sorted by user and time
    start, target : [R] places in the table
    first : [R] place of the first interaction of the row's user
    lists : column of the table -> name of its list
    length_field, max_length : name of the lists' length, and the columns of the lists
    """

    def __init__(self, table: dict[str, Tensor], start, target, first, lists: dict[str, str], length_field, max_length):
        self.table, self.start, self.target, self.first = table, start, target, first
        self.lists, self.length_field, self.max_length = lists, length_field, max_length

    @property
    def length(self) -> int:
        """Number of rows."""
        return len(self.target)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, the lists among them."""
        return [*self.table, self.length_field, *self.lists.values()]

    @property
    def interaction(self) -> dict[str, Tensor]:
        """Every column of all rows: what RecBole's methods read that are not made anew here."""
        return {name: self[name] for name in self.columns}

    def __iter__(self):
        return iter(self.columns)

    def __contains__(self, name) -> bool:
        return name in self.columns

    def __getattr__(self, name):
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __getitem__(self, index):
        """A column by its name; else the rows of an index (list, range, slice, array, tensor; numbers or booleans)."""
        if not isinstance(index, str):
            index = index if isinstance(index, slice) else torch.as_tensor(np.asarray(index)).reshape(-1)
            index = index.long() if isinstance(index, Tensor) and index.dtype != torch.bool else index
            return self._with(self.start[index], self.target[index], self.first[index])
        if index == self.length_field:
            return self.target - self.start
        if index in self.table:
            return self.table[index][self.target]
        source = next((source for source, name in self.lists.items() if name == index), None)
        if source is None:
            raise KeyError(index)
        return self._list(source)

    def __setitem__(self, name, value):
        raise KeyError(f"column [{name}] cannot be set: the rows are gathered from the interactions.")

    def __delitem__(self, name: str) -> None:
        """Drop a column of the table with its list, or the list alone."""
        if name not in self:
            raise KeyError(name)
        table = {key: value for key, value in self.table.items() if key != name}
        self.lists = {key: value for key, value in self.lists.items() if key in table and value != name}
        self.table = table

    def _with(self, start: Tensor, target: Tensor, first: Tensor) -> SequenceRows:
        return SequenceRows(self.table, start, target, first, self.lists, self.length_field, self.max_length)

    def _reindex(self, index) -> None:
        index = torch.as_tensor(np.asarray(index))
        self.start, self.target, self.first = self.start[index], self.target[index], self.first[index]

    def sort(self, by, ascending=True) -> None:
        """Sort the rows in place by one column or several, the first counting most; equal rows keep their order."""
        by = [by] if isinstance(by, str) else list(by)
        ascending = [ascending] * len(by) if isinstance(ascending, bool) else ascending
        for name, up in reversed(list(zip(by, ascending, strict=True))):
            self._reindex(self[name].argsort(stable=True, descending=not up))

    def _list(self, source: str) -> Tensor:
        """The list of a column for all rows, [R, max_length, ...], zero behind the history."""
        values, span = self.table[source], torch.arange(self.max_length)
        inside = span < (self.target - self.start)[:, None]
        out = values[(self.start[:, None] + span).where(inside, 0)]
        return out.masked_fill_(~inside.view(*inside.shape, *[1] * (out.ndim - 2)), 0)

    def gather(self) -> Interaction:
        """The rows as RecBole's ``Interaction``, every column written out."""
        return Interaction(self.interaction)

    def histories(self, field: str) -> tuple[Tensor, Tensor]:
        """All that the rows' users had before the targets: (row, value of ``field``), one of each interaction.

        Unlike the lists these are not cut at MAX_ITEM_LIST_LENGTH.
        """
        n = self.target - self.first
        row = torch.arange(len(n)).repeat_interleave(n)
        place = torch.arange(len(row)) - (n.cumsum(0) - n)[row]
        return row, self.table[field][self.first[row] + place]


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

    windows: Interaction | None = None  # in the training part

    def build(self) -> list[UserSequenceDataset]:
        """Split as RecBole does, then cut the training part into windows."""
        train, *others = super().build()
        train.windows = _windows(train.inter_feat) if isinstance(train.inter_feat, SequenceRows) else train._longest()
        return [train, *others]

    def _longest(self) -> Interaction:
        """Of rows that a user's own files spell out (``benchmark_filename``), the longest of each user."""
        users, lengths = (self.inter_feat[field].numpy() for field in (self.uid_field, self.item_list_length_field))
        order = np.lexsort((lengths, users))
        return self.inter_feat[order[np.append(users[order][1:] != users[order][:-1], True)[: len(order)]]]

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
        rows = self.windows[index]
        batch = rows.gather() if isinstance(rows, SequenceRows) else rows
        return self.join(batch) if join else batch


def _windows(rows: SequenceRows) -> SequenceRows:
    """Windows that hold every target of ``rows`` once, by user and time; each as long as fits, but a user's first."""
    order = rows.target.argsort()
    target, first = rows.target[order], rows.first[order]
    # A run: targets of one user, one behind the other.
    breaks = (target.diff(prepend=target[:1] - 2) != 1) | (first.diff(prepend=first[:1]) != 0)
    run = first_of_run(breaks.cumsum(0))
    last = len(run) - 1 - first_of_run(run.flip(0)).flip(0)
    places = torch.arange(len(run))
    ends = (last - places) % rows.max_length == 0
    begins = torch.maximum(run, places - rows.max_length + 1)[ends]
    return rows._with(target[begins] - 1, target[ends], first[ends])


def first_of_run(values: Tensor) -> Tensor:
    """Place of the first of the equal neighbours that each of values [N] stands among, [N]."""
    if not len(values):
        return values.long()
    starts = torch.cat([values.new_ones(1, dtype=torch.bool), values[1:] != values[:-1]])
    return torch.where(starts, torch.arange(len(values)), 0).cummax(0).values

"""Rows of a history and a target, gathered from one table of interactions when a batch is made.

RecBole's ``SequentialDataset`` writes every history out before the first batch, in a table of MAX_ITEM_LIST_LENGTH
columns, row by row in Python. Here a row is two numbers, where its history begins and where its target stands in the
interactions sorted by user and time; memory and time are linear in the interactions.
"""

from __future__ import annotations

import numpy as np
import torch
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


def first_of_run(values: Tensor) -> Tensor:
    """Place of the first of the equal neighbours that each of values [N] stands among, [N]."""
    if not len(values):
        return values.long()
    starts = torch.cat([values.new_ones(1, dtype=torch.bool), values[1:] != values[:-1]])
    return torch.where(starts, torch.arange(len(values)), 0).cummax(0).values

"""RecBole 1.2.1's calls of pandas that today's pandas warns of in every run, and pandas 3 understands otherwise."""

from __future__ import annotations

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType


def bridge_pandas_calls() -> None:
    """Fill missing values and number tokens as RecBole does, without what pandas warns of.

    ``Dataset._fill_nan`` calls ``feat[field].fillna(..., inplace=True)``, an assignment to what may be a copy: pandas 2
    warns at length, pandas 3 leaves the values missing. ``Dataset._remap`` calls ``agg(len)`` for the length of each
    list, which is deprecated.
    """
    Dataset._fill_nan = fill_missing
    Dataset._remap = number_tokens


def fill_missing(self: Dataset) -> None:
    """Fill missing ids with the padding's number 0, missing numbers with the column's mean, lists with empty ones."""
    for name in self.feat_name_list:
        table = getattr(self, name)
        for field in table:
            kind = self.field2type[field]
            if kind == FeatureType.TOKEN:
                table[field] = table[field].fillna(0)
            elif kind == FeatureType.FLOAT:
                table[field] = table[field].fillna(table[field].mean())
            else:
                empty = np.array([], dtype=np.int64 if kind == FeatureType.TOKEN_SEQ else np.float64)
                table[field] = [empty if isinstance(value, float) else value for value in table[field]]


def number_tokens(self: Dataset, remap_list: list) -> None:
    """Number the tokens of columns that share their numbers from 1 on, in the order of their first appearance."""
    if not remap_list:
        return
    tokens, split_points = self._concat_remaped_tokens(remap_list)
    numbers, found = pd.factorize(tokens)
    found = np.array(["[PAD]", *found])
    number_of = {token: number for number, token in enumerate(found)}
    for (table, field, kind), own in zip(remap_list, np.split(numbers + 1, split_points), strict=True):
        if field not in self.field2id_token:
            self.field2id_token[field], self.field2token_id[field] = found, number_of
        if kind == FeatureType.TOKEN:
            table[field] = own
        elif kind == FeatureType.TOKEN_SEQ:
            table[field] = np.split(own, np.cumsum([len(tokens) for tokens in table[field]])[:-1])


class FilledTable(pd.DataFrame):
    """A table without missing texts, while RecBole loads it: its columns are copies, which may be filled in place.

    ``Dataset._load_feat`` fills the columns of lists by a chained assignment as well, in the midst of its work.
    """

    def __getitem__(self, key):
        found = super().__getitem__(key)
        return found.copy() if isinstance(found, pd.Series) else found

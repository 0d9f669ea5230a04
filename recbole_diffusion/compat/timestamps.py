"""Times sorted as the file gives them; RecBole 1.2.1 sorts in float32, whose steps at today's Unix time are 128 s."""

from __future__ import annotations

import functools

import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType


def bridge_timestamps() -> None:
    """Keep the time field in float64 until RecBole has sorted and split by it, and drop duplicates in a stable order.

    ``Dataset._dataframe_to_interaction`` makes every float column float32 before anything is sorted, so that a Unix
    time in seconds is rounded to a multiple of 128, and interactions of one user within that come in the order of the
    file (RecBole issue 2204). What models read is float32 as before.
    """
    Dataset._dataframe_to_interaction = _with_exact_time(Dataset._dataframe_to_interaction)
    Dataset.build = _with_short_time(Dataset.build)
    Dataset._remove_duplication = _with_stable_order(Dataset._remove_duplication)


def _with_exact_time(dataframe_to_interaction):
    @functools.wraps(dataframe_to_interaction)
    def wrapper(self: Dataset, data) -> Interaction:
        interaction, field = dataframe_to_interaction(self, data), self.time_field
        plain = field in data and self.field2type[field] == FeatureType.FLOAT
        if plain and field not in self.config["numerical_features"]:  # those are pairs of a value and a bucket
            interaction[field] = torch.from_numpy(data[field].to_numpy("float64", copy=True))
        return interaction

    return wrapper


def _with_short_time(build):
    @functools.wraps(build)
    def wrapper(self: Dataset) -> list[Dataset]:
        datasets = build(self)
        for dataset in (self, *datasets):
            rows = vars(dataset.inter_feat)
            columns = rows["table"] if "table" in rows else rows["interaction"]  # rows gathered later have a table
            for field in (self.time_field, f"{self.time_field}{self.config['LIST_SUFFIX']}"):
                if field in columns and columns[field].dtype == torch.float64:
                    columns[field] = columns[field].float()
        return datasets

    return wrapper


def _with_stable_order(remove_duplication):
    """RecBole sorts by time with quicksort first, in which the order of ties is anybody's guess."""

    @functools.wraps(remove_duplication)
    def wrapper(self: Dataset) -> None:
        keep = self.config["rm_dup_inter"]
        if keep is None or self.time_field not in self.inter_feat:
            return remove_duplication(self)
        self._check_field("uid_field", "iid_field")
        self.inter_feat.sort_values(by=self.time_field, kind="stable", inplace=True)
        self.inter_feat.drop_duplicates(subset=[self.uid_field, self.iid_field], keep=keep, inplace=True)

    return wrapper

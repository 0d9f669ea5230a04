"""Histories of the users that a model knows, by their names."""

from __future__ import annotations

import pandas as pd

from recbole_diffusion.data.preparation import load_dataset
from recbole_diffusion.data.tokens import restore_token
from recbole_diffusion.recommend.known import KnownUsers
from recbole_diffusion.recommend.recommender import Recommender


def known_users(recommender: Recommender) -> KnownUsers:
    """The users that a recommender was fitted on; of other checkpoints those of the dataset, which is loaded.

    A history is all that the dataset has of a user, what validates and tests included; of rows that spell their
    histories out (``benchmark_filename``) the last of the user's longest, with its target.

    Raises
    ------
    FileNotFoundError, ValueError
        The dataset is not found, or is not what it was.
    """
    if recommender.known is not None:
        return recommender.known
    config = recommender.checkpoint["config"]
    dataset = load_dataset(config)
    table, columns, listed = dataset.inter_feat, {}, f"{dataset.iid_field}{config['LIST_SUFFIX']}"
    if listed in table:
        order = table[listed].map(len).sort_values(kind="stable").index
        table = table.loc[order].groupby(dataset.uid_field, sort=False).tail(1)
        whole = [[*row, target] for row, target in zip(table[listed], table[dataset.iid_field], strict=True)]
        table = table.assign(**{dataset.iid_field: whole}).explode(dataset.iid_field)
    elif dataset.time_field in table:
        table = table.sort_values(dataset.time_field, kind="stable")
    for role, field in (("user", dataset.uid_field), ("item", dataset.iid_field)):
        names = [restore_token(token) for token in dataset.field2id_token[field]]
        columns[role] = [names[number] for number in table[field]]
    return KnownUsers(pd.DataFrame(columns), [], {})

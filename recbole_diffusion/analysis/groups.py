"""Accuracy by group of users: targets that are popular or not, histories from short to long."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from recbole_diffusion.analysis.evaluation import Evaluation, Section, quintiles
from recbole_diffusion.analysis.places import group_metrics
from recbole_diffusion.analysis.stages import length_label

HEAD_SHARE = 0.2
INTERVALS = "Thin bars: 95% intervals of the mean over users."


def popularity(evaluation: Evaluation) -> Section:
    """Accuracy for head items, the fifth with the most training interactions, and for the long tail."""
    counts = evaluation.popularity[1:]
    n_head = max(1, round(HEAD_SHARE * len(counts)))
    head = np.zeros(evaluation.n_items, bool)
    head[1 + np.argsort(-counts, kind="stable")[:n_head]] = True
    share = counts[head[1:]].sum() / counts.sum()
    inside = head[evaluation.target.numpy()]
    table = group_metrics(evaluation.places, {"head": inside, "long tail": ~inside})
    table.insert(1, "items", [n_head, len(counts) - n_head])
    return Section(
        f"Head: the {n_head:,} items ({HEAD_SHARE:.0%}) with the most training interactions ({share:.0%} of all). "
        f"A user counts by the item to be found. {INTERVALS}",
        table,
        bars(table, "popularity of the next item"),
    )


def length(evaluation: Evaluation) -> Section:
    """Accuracy in five groups of about equal size by length of the history."""
    lengths = evaluation.history_length
    groups = {length_label(lengths, inside): inside for inside in quintiles(lengths)}
    table = group_metrics(evaluation.places, groups)
    longest = evaluation.config["MAX_ITEM_LIST_LENGTH"]
    return Section(
        "Users in five groups of about equal size by the number of items before the one to be found (fewer groups "
        f"where many users share a length). The model reads the last {longest} of them (MAX_ITEM_LIST_LENGTH). "
        f"{INTERVALS}",
        table,
        bars(table, "length of the history (items)"),
    )


def bars(table: pd.DataFrame, x_title: str) -> go.Figure:
    """Hit@10 and NDCG@10 of each group, side by side, with 95% intervals and the number of users."""
    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    labels = [f"{group}<br>({users:,} users)" for group, users in zip(table["group"], table["users"], strict=True)]
    for column, metric in enumerate(("hit@10", "ndcg@10"), start=1):
        error = {"type": "data", "array": table[f"{metric}_ci95"], "thickness": 1.5}
        figure.add_trace(go.Bar(x=labels, y=table[metric], error_y=error, showlegend=False), 1, column)
        figure.update_yaxes(title=metric.replace("hit", "Hit").replace("ndcg", "NDCG"), rangemode="tozero", col=column)
    figure.update_traces(marker_color="#0072B2")
    figure.update_xaxes(title=x_title, type="category")
    return figure

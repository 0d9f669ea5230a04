"""Items of the history among the recommendations: where they stand, and what they cost where nobody comes back."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import torch

from recbole_diffusion.analysis.evaluation import Evaluation, Section
from recbole_diffusion.analysis.places import K, hit, ndcg


def seen(evaluation: Evaluation) -> Section:
    """Share of items of the history at each place of the ranking, and accuracy with the history masked."""
    top, target = evaluation.ranking[0], evaluation.target
    history = evaluation.interaction[evaluation.model.ITEM_SEQ]
    in_history = torch.stack([(items[:, None] == row).any(-1) for items, row in zip(top, history, strict=True)])
    repeated = (history == target[:, None]).any(-1)
    masked = evaluation.masked_places

    best = in_history[:, :K]
    places = torch.arange(best.shape[1])
    table = pd.DataFrame(
        {
            "place": places + 1,
            "in_history": best.double().mean(0),
            "target": (evaluation.places[:, None] == places).double().mean(0),
            "target_history_masked": (masked[:, None] == places).double().mean(0),
        }
    )
    figure = go.Figure(go.Bar(x=table["place"], y=table["in_history"]))
    figure.update_xaxes(title="place in the ranking", dtick=1)
    figure.update_yaxes(title="share of items of the history", rangemode="tozero", tickformat=".0%")
    accuracy = [f"Hit@10 {hit(p).mean():.4f}, NDCG@10 {ndcg(p).mean():.4f}" for p in (evaluation.places, masked)]
    return Section(
        f"{best.double().mean():.1%} of the best {best.shape[1]} items stand in the history that the model read, so "
        f"do {repeated.double().mean():.1%} of the items to be found. With every item a candidate: {accuracy[0]}; "
        f"with the user's whole history masked: {accuracy[1]}.",
        table,
        figure,
    )

"""What the draws at inference do: more seeds, how sure they are together, how different each is from the rest."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from recbole_diffusion.analysis.evaluation import Evaluation, NotApplicable, Section, percent, quintiles
from recbole_diffusion.analysis.groups import INTERVALS, bars
from recbole_diffusion.analysis.places import group_metrics, hit, ndcg, place_of

NOISE = 1e-4  # a spread below this share says nothing of a user


def seeds(evaluation: Evaluation) -> Section:
    """NDCG@10 with scores averaged over 1, 2, 5, 10 and 20 seeds."""
    own = len(evaluation.own_seeds)
    rows = []
    for n, places in evaluation.seed_ranking.group_places.items():
        gains = ndcg(places).mean(1)
        row = {"seeds": n, "groups": len(gains), "ndcg@10": gains.mean(), "min": gains.min(), "max": gains.max()}
        rows.append({key: float(value) if key not in ("seeds", "groups") else value for key, value in row.items()})
    table = pd.DataFrame(rows)
    spread = {"array": table["max"] - table["ndcg@10"], "arrayminus": table["ndcg@10"] - table["min"], "type": "data"}
    figure = go.Figure(go.Scatter(x=table["seeds"], y=table["ndcg@10"], error_y=spread, mode="lines+markers"))
    figure.update_xaxes(title="number of seeds averaged over", type="log", tickvals=table["seeds"])
    best = table["max"].max()
    # Zoomed in only where there is something to see: differences below a percent would look like a trend.
    flat = best - table["min"].min() < 0.01 * best
    figure.update_yaxes(title="NDCG@10", range=[0, 1.2 * best] if flat else None)
    alike = "More seeds change nothing here, as seeds hardly differ for this model. "
    alike = f"{alike}{evaluation.why_alike} " if flat else ""
    return Section(
        f"{alike}Scores of {len(evaluation.seeds)} seeds, averaged in groups of n: the mean over the groups, with "
        "thin bars from the worst to the best group. "
        f"The model's setting is inference_seeds = {own} seed{'s' * (own > 1)}.",
        table,
        figure,
    )


def uncertainty(evaluation: Evaluation) -> Section:
    """Accuracy in five groups of users by how much the seeds disagree about their best items."""
    found = evaluation.seed_ranking
    spread = found.spread.numpy()
    if spread.max() < NOISE:
        raise NotApplicable(
            f"seeds hardly differ for this model: over {len(evaluation.seeds)} seeds the probability of an item varies "
            f"by at most {percent(spread.max())} of its mean; groups by that would sort noise. {evaluation.why_alike}"
        )
    inside = quintiles(spread)
    names = ["1 (surest)", *map(str, range(2, len(inside))), f"{len(inside)} (least sure)"]
    table = group_metrics(place_of(found.average_top, evaluation.target), dict(zip(names, inside, strict=True)))
    table.insert(1, "mean_uncertainty_%", [100 * spread[rows].mean() for rows in inside])
    return Section(
        f"A user's uncertainty is the standard deviation of an item's probability over {len(evaluation.seeds)} seeds, "
        "in percent of its mean, averaged over the user's ten best items. Five groups of users by it: where it says "
        f"something about the accuracy, the bars fall from left to right. {INTERVALS}",
        table,
        bars(table, "uncertainty"),
    )


def diversity(evaluation: Evaluation) -> Section:
    """Accuracy, agreement and coverage of each seed's lists of ten."""
    found, names = evaluation.seed_ranking, [str(seed) for seed in evaluation.seeds]
    lists, places = [*found.top, found.average_top], [*found.places, place_of(found.average_top, evaluation.target)]
    table = pd.DataFrame(
        {
            "seed": name,
            "hit@10": hit(place).mean().item(),
            "ndcg@10": ndcg(place).mean().item(),
            "shared_with_average_%": 100 * overlap(top, found.average_top),
            "coverage_%": 100 * len(top.unique()) / (evaluation.n_items - 1),
        }
        for name, top, place in zip([*names, "average"], lists, places, strict=True)
    )
    union = [len(set(items.flatten().tolist())) for items in found.top.unbind(1)]
    panels = {
        "ndcg@10": "NDCG@10",
        "shared_with_average_%": "shared with the average (%)",
        "coverage_%": "coverage (%)",
    }
    figure = make_subplots(cols=3, horizontal_spacing=0.1)
    colors = ["#0072B2"] * len(names) + ["#D55E00"]
    for column, (key, title) in enumerate(panels.items(), start=1):
        figure.add_trace(go.Bar(x=table["seed"], y=table[key], marker_color=colors, showlegend=False), 1, column)
        figure.update_yaxes(title=title, rangemode="tozero", col=column)
    figure.update_xaxes(title="seed", type="category", tickangle=-90)
    return Section(
        f"Each seed's own ten best items against those of the average over all {len(names)} seeds (last bar): "
        f"accuracy, the share of a user's ten that the two lists have in common, and the share of the catalogue "
        f"that is recommended to anyone. All seeds together show a user {sum(union) / len(union):.1f} different items "
        f"in their lists of {found.top.shape[-1]}.",
        table,
        figure,
    )


def overlap(a: Tensor, b: Tensor) -> float:
    """Mean share of the items of lists a [U, k] that are in lists b [U, k]."""
    return (a.unsqueeze(-1) == b.unsqueeze(-2)).any(-1).double().mean().item()

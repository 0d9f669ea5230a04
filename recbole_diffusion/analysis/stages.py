"""Ranking plateau of a model, by length of the history and by denoising stage (CDDRec, Wang et al. 2024, Figure 2)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from recbole_diffusion.analysis.evaluation import PLATEAU_K, Evaluation, NotApplicable, Section, quintiles
from recbole_diffusion.analysis.places import K, ndcg, place_of
from recbole_diffusion.analysis.plateau import avg_change
from recbole_diffusion.compat.finite import check_scores
from recbole_diffusion.diffusion_utils import SeedNoise, strided_steps
from recbole_diffusion.modules.recommender import SequenceRecommender
from recbole_diffusion.protocols import put_last

MOST_STAGES = 32
FLAT = 0.01  # stages that differ by less than this share of their NDCG are alike


def plateau(evaluation: Evaluation) -> Section:
    """Avg.Change@40 of all users and by length of the history, as in CDDRec's Figure 2."""
    change = avg_change(torch.cat(list(_inner_products(evaluation)))).numpy()
    lengths = evaluation.history_length
    groups = {"all": np.ones(len(change), bool)}
    try:
        groups |= {length_label(lengths, inside): inside for inside in quintiles(lengths)}
    except NotApplicable:  # one length only: all users are the group
        pass
    table = pd.DataFrame(
        {
            "group": name,
            "users": int(inside.sum()),
            "avg_change@40": change[inside].mean(),
            "median_change@40": np.median(change[inside]),
        }
        for name, inside in groups.items()
    )
    figure = go.Figure(
        [
            go.Bar(name="mean", x=table["group"], y=table["avg_change@40"]),
            go.Bar(name="median", x=table["group"], y=table["median_change@40"]),
        ]
    )
    figure.update_layout(xaxis_title="users, by length of the history", yaxis_title="Avg.Change@40 (%)")
    return Section(
        "How much each of the 40 best scores (inner products) lies below the one before it, in percent: a low value is "
        "a plateau, on which the best item is hard to tell from the rest (CDDRec, Eq. 9). The change is relative, so a "
        "score near zero gives a very large one: where mean and median differ much, trust the median.",
        table,
        figure,
    )


def _inner_products(evaluation: Evaluation):
    """The best 40 inner products of each row, batch by batch: Eq. 9 is not about probabilities averaged over seeds."""
    if not isinstance(evaluation.model, SequenceRecommender):
        yield evaluation.ranking[1]
        return
    with torch.no_grad():
        for rows in evaluation.batches(1):
            x_start = evaluation.model.generate(evaluation.batch(rows))
            yield best_scores(evaluation, evaluation.model.item_scores(x_start)).cpu()


def best_scores(evaluation: Evaluation, scores: Tensor) -> Tensor:
    """The best 40 scores of items, [..., n_items] to [..., 40], the padding item left out; ValueError for NaN."""
    check_scores(scores, evaluation.config["model"])
    return scores[..., 1:].topk(min(PLATEAU_K, scores.shape[-1] - 1)).values


def length_label(lengths: np.ndarray, inside: np.ndarray) -> str:
    """The range of lengths in a group, such as ``5 to 8``."""
    low, high = lengths[inside].min(), lengths[inside].max()
    return f"{low} to {high}" if low < high else str(low)


def stages(evaluation: Evaluation) -> Section:
    """Avg.Change@40 and NDCG@10 of the prediction of x_0 at each stage of the reverse process."""
    if not evaluation.is_diffusion:
        raise NotApplicable(f"{evaluation.config['model']} has no denoising stages.")
    model = evaluation.model
    if model.diffusion.num_steps < 2:
        raise NotApplicable("with num_steps [1] the reverse process is a single stage.")
    seed, change, gain = evaluation.own_seeds[0], [], []
    with torch.no_grad():
        for rows in evaluation.batches(1, "stages"):
            interaction = evaluation.batch(rows)
            found = start_predictions(model, interaction, seed)
            scores = [model.item_scores(x_start) for x_start in found.values()]
            change.append(torch.stack([avg_change(best_scores(evaluation, part)).cpu() for part in scores]))
            evaluation.add_seen(interaction, *scores)
            for part in scores:
                put_last(part, torch.arange(len(part)), evaluation.target[rows])
            top = [part.topk(min(K, evaluation.n_items - 1)).indices.cpu() for part in scores]
            gain.append(ndcg(place_of(torch.stack(top), evaluation.target[rows])))
    change, steps = torch.cat(change, 1).numpy(), list(found)
    table = pd.DataFrame(
        {
            "stage": [model.diffusion.num_steps - step for step in steps],
            "step": steps,
            "avg_change@40": change.mean(1),
            "median_change@40": np.median(change, axis=1),
            "ndcg@10": torch.cat(gain, 1).mean(1).numpy(),
        }
    )
    low, high = table["ndcg@10"].min(), table["ndcg@10"].max()
    alike = ""
    if high - low < FLAT * high:
        alike = f"All stages rank alike (NDCG@10 from {low:.4f} to {high:.4f}). {evaluation.why_alike} "
    walked = "" if model.inference == "reverse" else " The model itself infers in one step; here it walks the chain."
    return Section(
        f"{alike}Items ranked by the x_0 that the model predicts on its way from noise (left) to the end of the "
        f"reverse process (right), with seed {seed}; T = {model.diffusion.num_steps}.{walked}",
        table,
        _stage_plot(table),
    )


def _stage_plot(table: pd.DataFrame) -> go.Figure:
    figure = make_subplots(cols=2, horizontal_spacing=0.12)
    for column, name in (("avg_change@40", "mean"), ("median_change@40", "median")):
        trace = go.Scatter(name=f"{name} Avg.Change@40", x=table["stage"], y=table[column], mode="lines+markers")
        figure.add_trace(trace, 1, 1)
    trace = go.Scatter(name="NDCG@10", x=table["stage"], y=table["ndcg@10"], mode="lines+markers")
    figure.add_trace(trace, 1, 2)
    figure.update_xaxes(title="denoising stage T - t")
    figure.update_yaxes(title="Avg.Change@40 (%)", rangemode="tozero", col=1)
    figure.update_yaxes(title="NDCG@10", rangemode="tozero", col=2)
    figure.update_layout(legend={"orientation": "h", "y": 1.15})
    return figure


def start_predictions(model, interaction, seed: int) -> dict[int, Tensor]:
    """Predictions of x_0 along the reverse chain under a seed: step t, from the last to 0, to [B, D]; at most 32.

    The chain is the model's own, or of 32 steps where the model infers in one.
    """
    num_steps = model.diffusion.num_steps
    if hasattr(model, "stages"):
        found = model.stages(interaction, [seed])[:, 0]
        return {step: found[step] for step in reversed(strided_steps(num_steps, min(num_steps, MOST_STAGES)))}
    own = model.sampling_steps if model.inference == "reverse" else min(num_steps, MOST_STAGES)
    chain = strided_steps(num_steps, own)
    shown = {chain[i] for i in strided_steps(len(chain), min(len(chain), MOST_STAGES))}
    noise, found = SeedNoise([seed]), {}

    def keep(step: int, x_t: Tensor, x_start: Tensor) -> None:
        if step in shown:
            found[step] = x_start

    with model.chain_autocast():
        model.run_chain(model.denoiser(interaction, noise), noise, len(interaction), len(chain), keep)
    return {step: x_start.float() for step, x_start in found.items()}

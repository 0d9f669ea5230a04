"""Item embeddings and generated targets on one map."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import nn

from recbole_diffusion.analysis.evaluation import Evaluation, NotApplicable, Section
from recbole_diffusion.data.tokens import restore_token

MOST_ITEMS, MOST_TARGETS = 1000, 300
PCA_DIMENSIONS = 50


def embedding_map(evaluation: Evaluation) -> Section:
    """t-SNE of item embeddings, and of the embeddings generated for users where the model generates any."""
    embedding = getattr(evaluation.model, "item_embedding", None)
    if not isinstance(embedding, nn.Embedding):
        raise NotApplicable(f"{evaluation.config['model']} has no `item_embedding`.")
    random = np.random.default_rng(evaluation.seed)
    items = _draw(random, np.arange(1, evaluation.n_items), MOST_ITEMS)
    vectors = embedding.weight[torch.from_numpy(items)].detach().cpu()
    tokens = evaluation.train.id2token(evaluation.train.iid_field, items)
    rows = [
        {"kind": "item", "token": token, "training_interactions": evaluation.popularity[item]}
        for item, token in zip(items, tokens, strict=True)
    ]
    if evaluation.is_diffusion:
        users = _draw(random, np.arange(len(evaluation.rows)), MOST_TARGETS)
        vectors = torch.cat([vectors, evaluation.generated[torch.from_numpy(users)]])
        names = evaluation.train.id2token(
            evaluation.train.uid_field, evaluation.interaction[evaluation.train.uid_field][users].numpy()
        )
        rows += [{"kind": "generated", "token": name} for name in names]
    if len(vectors) < 4:
        raise NotApplicable(f"{len(vectors)} embeddings are too few for a map.")
    # Ranking is by inner product, so direction says more than length, and lengths differ between the two kinds.
    points = F.normalize(vectors.float(), dim=-1).numpy()
    points = PCA(min(PCA_DIMENSIONS, *points.shape), random_state=evaluation.seed).fit_transform(points)
    perplexity = min(30.0, (len(points) - 1) / 3)
    table = pd.DataFrame(rows)
    table["token"] = table["token"].map(restore_token)
    table[["x", "y"]] = TSNE(perplexity=perplexity, random_state=evaluation.seed).fit_transform(points)
    return Section(
        f"Directions of {len(items):,} item embeddings"
        + (f" and of the embeddings generated for {len(rows) - len(items):,} users" if evaluation.is_diffusion else "")
        + f", laid out together by t-SNE (perplexity {perplexity:g}) after PCA. Near points are alike; the axes have "
        "no unit, and distances between far points mean nothing.",
        table,
        _plot(table),
    )


def _draw(random: np.random.Generator, values: np.ndarray, most: int) -> np.ndarray:
    return np.sort(random.choice(values, most, replace=False)) if len(values) > most else values


def _plot(table: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    items, generated = table[table["kind"] == "item"], table[table["kind"] == "generated"]
    counts = items["training_interactions"].astype(int)
    ticks = [0] + [10**i for i in range(9) if 10**i <= counts.max()]
    marker = {
        "color": np.log10(counts + 1),
        "colorscale": "Viridis",
        "size": 5,
        "colorbar": {
            "title": {"text": "training interactions<br>of the item"},
            "tickvals": np.log10(np.array(ticks) + 1),
            "ticktext": ticks,
        },
    }
    figure.add_trace(
        go.Scatter(
            name="item", x=items["x"], y=items["y"], mode="markers", marker=marker, text="item " + items["token"]
        )
    )
    if len(generated):
        figure.add_trace(
            go.Scatter(
                name="generated for a user",
                x=generated["x"],
                y=generated["y"],
                mode="markers",
                marker={"color": "#D55E00", "size": 8, "symbol": "x-thin", "line": {"color": "#D55E00", "width": 1.5}},
                text="for user " + generated["token"],
            )
        )
    figure.update_xaxes(title="t-SNE 1", showticklabels=False)
    figure.update_yaxes(title="t-SNE 2", showticklabels=False)
    figure.update_layout(height=600, legend={"orientation": "h", "y": 1.06})
    return figure

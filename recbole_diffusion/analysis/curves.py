"""Training curves: the losses in the last checkpoint, and what TensorBoard has of the same run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_diffusion.analysis.evaluation import Evaluation, NotApplicable, Section
from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.modules.diffusion import STEP_BUCKETS

LOSS = "Loss/Train"
# tag (RecBole's spelling) -> title and unit
PANELS = {
    LOSS: "training loss (sum over batches)",
    "Vaild_score": "validation score",
    "Train/gradient_norm": "gradient norm",
    "Train/learning_rate": "learning rate",
}
STEP_LOSS = "Loss/Step_range_"


def curves(evaluation: Evaluation) -> Section:
    """Loss, validation score, gradient norm, learning rate and loss by range of diffusion steps, by epoch."""
    file = evaluation.model_file
    last = file if file.stem.endswith("-last") else file.with_name(f"{file.stem}-last.pth")
    if not last.is_file():
        raise NotApplicable(f"there is no {last.name} beside the checkpoint, which holds the losses of the epochs.")
    # A model with several losses has a tuple of them an epoch.
    losses = {epoch: float(np.sum(loss)) for epoch, loss in load_checkpoint(last)["train_loss_dict"].items()}
    scalars = {LOSS: losses, **tensorboard_scalars(evaluation.log_dir, losses)}
    table = pd.DataFrame(scalars).sort_index().rename_axis("epoch").reset_index()
    if len(table) == 0:
        raise NotApplicable("no epoch was trained.")

    metric = evaluation.config["valid_metric"]
    titles = {tag: title for tag, title in PANELS.items() if tag in table}
    by_step = sorted(tag for tag in table if tag.startswith(STEP_LOSS))
    panels = [*titles, *(["steps"] if by_step else [])]
    n_rows = -(-len(panels) // 2)
    figure = make_subplots(n_rows, min(2, len(panels)), vertical_spacing=0.3 / n_rows, horizontal_spacing=0.12)
    for i, panel in enumerate(panels):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        if panel == "steps":
            title, num_steps = "mean loss at the steps t", evaluation.model.diffusion.num_steps
            ranges = min(STEP_BUCKETS, num_steps)  # of which one may never have been drawn
            for tag in by_step:
                b = int(tag.removeprefix(STEP_LOSS))
                first, end = (-(-num_steps * edge // ranges) for edge in (b, b + 1))
                color = f"hsl(210, {30 + 60 * b // ranges}%, {80 - 60 * b // ranges}%)"
                trace = go.Scatter(x=table["epoch"], y=table[tag], name=f"t = {first} to {end - 1}", line_color=color)
                figure.add_trace(trace, **place)
        else:
            title = f"{titles[panel]}, {metric}" if panel == "Vaild_score" else titles[panel]
            trace = go.Scatter(x=table["epoch"], y=table[panel], showlegend=False, line_color="#0072B2")
            figure.add_trace(trace, **place)
        # A constant rate would be drawn on an axis from -1 to 1.
        top = 1.1 * table[panel].max() if panel == "Train/learning_rate" else 0
        figure.update_yaxes(title=title, range=[0, top] if top else None, **place)
        figure.update_xaxes(title="epoch", dtick=max(1, len(table) // 10), **place)
    figure.update_traces(mode="lines+markers")
    figure.update_layout(height=60 + 300 * n_rows)
    if len(panels) % 2:  # the last cell is free
        figure.update_layout(legend={"x": 0.56, "y": 0.7 / n_rows, "yanchor": "top"})
    missing = "" if len(scalars) > 1 else f" No TensorBoard events of this run were found in {evaluation.log_dir}."
    return Section(f"Training of {len(table)} epochs, counted from 0, from {last.name}.{missing}", table, figure)


def tensorboard_scalars(log_dir: Path, losses: dict[int, float]) -> dict[str, dict[int, float]]:
    """Scalars by tag and epoch from the event files under the log folder whose losses are those of the checkpoint.

    No name says which checkpoint a run wrote, several runs of one process share a folder, and a resumed run has several
    files: the losses tell.
    """
    found: dict[str, dict[int, float]] = {}
    for file in sorted(log_dir.rglob("events.out.tfevents.*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        # Several losses lie under Loss/Train0, Loss/Train1, ...
        logged: dict[int, float] = {}
        for tag in (tag for tag in tags if tag.startswith(LOSS)):
            for event in events.Scalars(tag):
                logged[event.step] = logged.get(event.step, 0.0) + event.value
        same = [np.isclose(value, losses.get(epoch, np.nan), rtol=1e-5) for epoch, value in logged.items()]
        if not same or not all(same):
            continue
        for tag in tags:
            if tag in PANELS or tag.startswith(STEP_LOSS):
                found.setdefault(tag, {}).update((event.step, event.value) for event in events.Scalars(tag))
    found.pop(LOSS, None)  # the checkpoint has it in full precision
    return found

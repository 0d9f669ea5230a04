"""One self-contained page with every analysis, and its numbers as CSV."""

from __future__ import annotations

import html
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from recbole_diffusion.analysis import SECTIONS
from recbole_diffusion.analysis.curves import curves
from recbole_diffusion.analysis.embeddings import embedding_map
from recbole_diffusion.analysis.evaluation import Evaluation, NotApplicable, Section
from recbole_diffusion.analysis.groups import length, popularity
from recbole_diffusion.analysis.places import hit, ndcg
from recbole_diffusion.analysis.seeds import diversity, seeds, uncertainty
from recbole_diffusion.analysis.seen import seen
from recbole_diffusion.analysis.stages import plateau, stages

MAKERS: dict[str, Callable[[Evaluation], Section]] = {
    "popularity": popularity,
    "length": length,
    "seen": seen,
    "plateau": plateau,
    "stages": stages,
    "seeds": seeds,
    "uncertainty": uncertainty,
    "diversity": diversity,
    "map": embedding_map,
    "curves": curves,
}
OPEN_ROWS, MOST_ROWS = 8, 100  # longer tables open with a click, the longest are in the CSV alone

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1040px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { font-size: 1.3rem; margin: 2.5rem 0 .3rem; } p { margin: .4rem 0; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
.wide { overflow-x: auto; }
th:first-child, td:first-child { text-align: left; }
@media (max-width: 700px) { body { margin: 1rem auto; padding: 0 .6rem; } th, td { padding: .15rem .4rem; } }
"""
# On a narrow screen panels that stand side by side are put one below the other, with their legend above.
NARROW = """
if (window.innerWidth < 700) for (const plot of document.querySelectorAll(".plotly-graph-div")) {
  const panels = Object.keys(plot.layout).filter(name => /^xaxis\\d*$/.test(name)), height = 320 * panels.length;
  const change = {height: height, "font.size": 12, margin: {l: 55, r: 8, t: 60, b: 60},
                  legend: {orientation: "h", x: 0, y: 1 + 12 / height, yanchor: "bottom"}};
  panels.forEach((x, i) => {
    const step = 1 / panels.length, gap = panels.length > 1 ? 90 / height : 0;
    change[x + ".domain"] = [0, 1];
    change[x.replace("x", "y") + ".domain"] = [1 - (i + 1) * step + gap, 1 - i * step];
  });
  plot.parentElement.style.height = height + "px";  // of which the plot takes all
  Plotly.relayout(plot, change);
}
"""
# Colours that readers with any kind of colour vision can tell apart (Okabe and Ito).
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]


def analyse(
    model_file: str | Path,
    output: str | Path,
    sections: Sequence[str] | None = None,
    max_users: int = 2000,
    seed: int = 0,
    log_dir: str | Path = "log_tensorboard",
    config_dict: dict[str, Any] | None = None,
) -> Path:
    """Write ``index.html`` and one CSV a section into the folder ``output``; return the path of the page.

    ``sections`` are names in SECTIONS (None: all), ``max_users`` bounds the test users, drawn by ``seed``, and
    ``log_dir`` is where TensorBoard's events lie; ``config_dict`` says where the dataset does (``data_path``). A
    section that has nothing to show says why, and writes no CSV.

    Raises
    ------
    FileNotFoundError, ValueError
        The checkpoint or its dataset is missing or foreign, or an option is out of range.
    """
    sections = list(SECTIONS) if sections is None else list(sections)
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown or not sections:
        raise ValueError(f"sections [{','.join(unknown)}] is unknown: choose from {', '.join(SECTIONS)}.")
    if max_users < 1:
        raise ValueError(f"max_users [{max_users}] must be an integer >= 1.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed [{seed}] must be an integer from 0 to {2**32 - 1}.")
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"output [{output}] must be a folder, new or old, and this is a file.")

    evaluation = Evaluation(model_file, max_users, seed, log_dir, config_dict)
    output.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, name in enumerate(sections, start=1):
        title, file = SECTIONS[name], output / f"{name}.csv"
        print(f"  [{number}/{len(sections)}] {title}", file=sys.stderr, flush=True)
        try:
            section = MAKERS[name](evaluation)
        except NotApplicable as reason:
            file.unlink(missing_ok=True)  # of an earlier report here
            parts.append(f"<h2>{title}</h2>\n<p>Left out: {html.escape(str(reason))}</p>")
            continue
        _without_formulas(section.table).to_csv(file, index=False)
        parts.append(_render(name, title, section))
    page = output / "index.html"
    page.write_text(_page(evaluation, parts), encoding="utf-8")
    return page


def _without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """A table for a CSV file: what a spreadsheet would run as a formula, such as an item named =1+1, becomes text."""

    def text(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value

    return table.rename(columns=text).map(text) if hasattr(table, "map") else table.rename(columns=text).applymap(text)


def _render(name: str, title: str, section: Section) -> str:
    figure = section.figure.update_layout(
        template="plotly_white",
        colorway=COLORS,
        font_size=14,
        autosize=True,
        margin={"l": 80, "r": 20, "t": 50, "b": 70},
    )
    figure.update_layout(height=figure.layout.height or 420)
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    table = section.table.to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="")
    table = f'<div class="wide">{table}</div>'
    if len(section.table) > MOST_ROWS:
        table = ""
    elif len(section.table) > OPEN_ROWS:
        table = f"<details><summary>Table</summary>\n{table}\n</details>"
    text = html.escape(section.text)
    return f'<h2>{title}</h2>\n<p>{text}</p>\n{plot}\n{table}\n<p>Numbers: <a href="{name}.csv">{name}.csv</a></p>'


def _page(evaluation: Evaluation, parts: list[str]) -> str:
    config, rows = evaluation.config, len(evaluation.rows)
    users = len(evaluation.interaction[evaluation.train.uid_field].unique())
    whose = "test users" if users == rows else f"test rows of {users:,} users, each a user of the tables below"
    title = html.escape(f"{config['model']} on {config['dataset']}")
    drawn = "all" if rows == evaluation.n_rows else f"{rows:,} (drawn at random) of"
    places = {"the history as candidates": evaluation.places, "the history masked": evaluation.masked_places}
    metrics = "; ".join(
        f"Hit@10 {hit(found).mean():.4f}, NDCG@10 {ndcg(found).mean():.4f} with {words}"
        for words, found in places.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n"
        f"<style>{STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{metrics}: on {drawn} {evaluation.n_rows:,} {whose}, among {evaluation.n_items - 1:,} items. "
        f"Checkpoint: {html.escape(evaluation.model_file.name)}.</p>\n"
        + "\n".join(parts)
        + f"\n<script>{NARROW}</script>\n</body>\n</html>\n"
    )

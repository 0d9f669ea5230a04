"""How a table is printed, in Markdown and in LaTeX, and what stands in its cells."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tabulate import tabulate

LATEX = str.maketrans(
    {
        **{char: rf"\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)


@dataclass(frozen=True)
class Table:
    """A table in Markdown's terms: ``**`` for bold in its cells."""

    title: str
    text: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Heading, text and table."""
        return f"## {self.title}\n\n{self.text}\n\n{markdown_table(self.head, self.rows)}"

    def latex(self) -> str:
        """A table environment that needs no package."""
        rows = [[_latex(cell) for cell in row] for row in self.rows]
        body = tabulate(rows, list(map(_latex, self.head)), "latex_raw", disable_numparse=True)
        caption = _latex(f"{self.title}. {self.text}")
        return f"\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n{body}\n\\end{{table}}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns are aligned, so that it reads in a terminal as well."""
    return tabulate(list(rows), list(head), "pipe", disable_numparse=True) + "\n"


def metric_cell(values: Sequence[float], bold: bool = False) -> str:
    """``mean ± std`` (n - 1), without a spread for one value; ``bold`` marks the mean."""
    mean = f"{statistics.fmean(values):.4f}"
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return (f"**{mean}**" if bold else mean) + spread


def paper_cell(value: float, std: float | None) -> str:
    """A paper's value with its spread, where it gives one."""
    return f"{value:.4f}" + (f" ± {std:.4f}" if std is not None else "")


def _latex(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text.translate(LATEX))

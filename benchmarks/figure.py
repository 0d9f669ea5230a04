"""What a measurement leaves: a table as JSON and as Markdown, both with the command that made it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from recbole_diffusion.experiments.tables import markdown_table

# RecBole's Config would read the command line, which the scripts therefore empty.
COMMAND = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_figure(output: Path, rows: list[dict[str, Any]], text: str) -> None:
    """Write ``<output>.json`` and ``<output>.md``; the rows have the columns of the first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    found = {"command": COMMAND, "about": text, "rows": rows}
    output.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = markdown_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])
    output.with_suffix(".md").write_text(f"```bash\n{COMMAND}\n```\n\n{text}\n\n{table}", encoding="utf-8")
    print(f"\n{table}\n{output.with_suffix('.md')}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 1e-3 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)

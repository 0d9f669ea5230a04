"""Small interaction files for the tests."""

from __future__ import annotations

from pathlib import Path

from recbole_diffusion.quick_start import build_config, prepare_data

HEADER = "user_id:token\titem_id:token\ttimestamp:float"
NOW = 1_753_000_000  # a Unix time in seconds of today's size


def write(rows, name: str = "own", header: str = HEADER, end: str = "\n") -> Path:
    """Write rows of text as ``data/<name>/<name>.inter`` below the current folder."""
    file = Path("data") / name / f"{name}.inter"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *("\t".join(map(str, row)) for row in rows)]
    file.write_text("\n".join(lines) + end, encoding="utf-8")
    return file


def good_rows(users: int = 6, items: int = 12, length: int = 8) -> list[tuple]:
    """Users who walk through the items, one a minute."""
    return [
        (f"u{user}", f"i{(user + n) % items}", NOW + 1000 * user + 60 * n)
        for user in range(users)
        for n in range(length)
    ]


def prepare(model: str = "DiffuRec", name: str = "own", **overrides):
    """Config and ``(dataset, train, valid, test)`` of the files in ``data``."""
    quiet = {"data_path": "data", "state": "ERROR", "show_progress": False, "topk": [3, 5], "valid_metric": "NDCG@5"}
    config = build_config(model, name, None, {**quiet, **overrides})
    return config, prepare_data(config)

"""An index of the items' vectors for inner products (FAISS), with what it misses and how fast it is."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

EXACT_BELOW = 50_000  # items; so many are searched one by one fast enough
WANTED_RECALL, TOP = 0.95, 20


def build_index(items: np.ndarray, queries: np.ndarray, file: str | Path) -> dict[str, Any]:
    """Write an index of items [N, D], the first of which is the padding and never found.

    Up to 50,000 items it is exact. Beyond, items are put into cells (inverted file), and as many cells are looked into
    as queries [M, D] need to find 95 % of their true first 20. Positions in the index are item numbers.

    Returns ``kind``, ``recall`` against exact search, ``users_per_second`` and ``exact_users_per_second``.

    Raises ImportError where faiss is missing.
    """
    require_faiss()
    import faiss

    items, queries = (np.ascontiguousarray(part, dtype=np.float32) for part in (items, queries))
    numbers, k = np.arange(1, len(items)), min(TOP, len(items) - 1)
    exact = faiss.IndexIDMap(faiss.IndexFlatIP(items.shape[1]))
    exact.add_with_ids(items[1:], numbers)
    truth, exact_speed = _search(exact, queries, k)
    index, found, speed, kind = exact, truth, exact_speed, "exact"
    if len(numbers) > EXACT_BELOW:
        cells = int(4 * np.sqrt(len(items)))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(items.shape[1]), items.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        draw = np.random.default_rng(0)
        index.train(items[1:] if len(items) < 64 * cells else items[draw.choice(numbers, 64 * cells, replace=False)])
        index.add_with_ids(items[1:], numbers)
        index.nprobe = 1
        found, speed = _search(index, queries, k)
        while index.nprobe < cells and _recall(found, truth) < WANTED_RECALL:
            index.nprobe = min(2 * index.nprobe, cells)
            found, speed = _search(index, queries, k)
        kind = f"{cells} cells, {index.nprobe} looked into"
    temporary = Path(file).with_name(f".{Path(file).name}")
    faiss.write_index(index, str(temporary))
    os.replace(temporary, file)
    recall = _recall(found, truth)
    return {"kind": kind, "recall": recall, "users_per_second": speed, "exact_users_per_second": exact_speed}


def require_faiss() -> None:
    """Raise ImportError where faiss is missing."""
    if find_spec("faiss") is None:
        raise ImportError("an index needs faiss: pip install 'recbole-diffusion[faiss]'")


def _search(index, queries: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Item numbers [M, k] and queries a second."""
    start = time.perf_counter()
    found = index.search(queries, k)[1]
    return found, len(queries) / (time.perf_counter() - start)


def _recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true first items that were found."""
    return float((found[:, :, None] == truth[:, None, :]).any(1).mean())

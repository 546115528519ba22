"""HNSW graphs over encodings, by usearch (Malkov and Yashunin 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["build", "nearest", "view"]


def _usearch() -> Any:
    try:
        from usearch import index
    except ImportError:
        raise ImportError("stage='hnsw' needs usearch: pip install 'mercer-kernels[retrieval]'") from None
    return index


def build(dim: int, connectivity: int, expansion: int) -> Any:
    """An empty graph of inner products over float16 vectors."""
    return _usearch().Index(
        ndim=dim, metric="ip", dtype="f16", connectivity=connectivity, expansion_add=expansion
    )


def view(path: Path) -> Any:
    """A graph in a file, mapped into memory."""
    graph = _usearch().Index.restore(str(path), view=True)
    if graph is None:
        raise ValueError(f"{path} is not a graph of usearch's")
    return graph


def nearest(graph: Any, query: np.ndarray, count: int, expansion: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, products) of the `count` largest products, largest first."""
    graph.expansion_search = max(expansion, count)
    found = graph.search(query.astype(np.float32), count)
    return found.keys.astype(np.int64), 1.0 - found.distances

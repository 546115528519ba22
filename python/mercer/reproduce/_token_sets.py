"""Sets of token vectors for the retrieval papers: generated clouds, and real text through MiniLM."""

from __future__ import annotations

import gzip
import importlib
import inspect
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Sets", "api_docstrings", "clouds", "scifact"]

#: BEIR's SciFact, `corpus.jsonl.gz` and `queries.jsonl.gz`, in the folder that the variable names.
SCIFACT = Path(os.environ.get("MERCER_DATA", "")) / "scifact"
MODULES = (
    "numpy", "numpy.linalg", "numpy.fft", "scipy.stats", "scipy.signal", "scipy.optimize", "scipy.linalg",
    "scipy.interpolate", "scipy.ndimage", "scipy.spatial", "scipy.special", "scipy.sparse", "scipy.integrate",
    "scipy.fft", "scipy.cluster.hierarchy",
)  # fmt: skip


class Sets(NamedTuple):
    """Packed documents and queries, and the document that each query was made from, where it was."""

    documents: np.ndarray
    offsets: np.ndarray
    queries: np.ndarray
    query_offsets: np.ndarray
    source: np.ndarray | None
    name: str


def clouds(
    n: int,
    n_queries: int,
    *,
    seed: int,
    d: int = 64,
    lengths: tuple[int, int] = (20, 120),
    query_tokens: int = 16,
) -> Sets:
    """Unit tokens around topics and words; queries are noisy copies of tokens of one document."""
    rng = np.random.default_rng(seed)
    topics, words = rng.standard_normal((50, d)), rng.standard_normal((2000, d))
    sizes = rng.integers(lengths[0], lengths[1] + 1, n)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    topic = np.repeat(rng.integers(0, 50, n), sizes)
    docs = 0.7 * topics[topic] + words[rng.integers(0, 2000, len(topic))]
    docs = _unit(docs + 0.4 * rng.standard_normal(docs.shape))
    source = rng.choice(n, n_queries, replace=False)
    rows = np.concatenate([rng.choice(np.arange(offsets[i], offsets[i + 1]), query_tokens) for i in source])
    queries = _unit(docs[rows] + 1.1 / np.sqrt(d) * rng.standard_normal((len(rows), d)))
    return Sets(docs, offsets, queries, np.arange(n_queries + 1) * query_tokens, source, "generated clouds")


def api_docstrings(n: int, n_queries: int, *, words: int = 14, tokens: int = 72) -> Sets:
    """Docstrings of NumPy and SciPy; a query is the opening words of one, whose own document leaves them out."""
    chosen = docstrings(3 * words)[:n]
    docs, offsets = _embed([" ".join(t.split()[words:]) for t in chosen], tokens)
    queries, q_offsets = _embed([" ".join(t.split()[:words]) for t in chosen[:n_queries]], tokens)
    name = f"MiniLM tokens of {len(chosen)} docstrings"
    return Sets(docs, offsets, queries, q_offsets, np.arange(n_queries), name)


def docstrings(more_than: int) -> list[str]:
    """Those of NumPy and SciPy with more than so many words, shuffled, the same everywhere."""
    texts: dict[str, str] = {}
    for path in MODULES:
        module = importlib.import_module(path)
        for name in sorted(getattr(module, "__all__", dir(module))):
            thing = getattr(module, name, None)
            if name.startswith("_") or not callable(thing):
                continue
            text = re.sub(r"\s+", " ", re.sub(r"[`*|]|:\w+:", "", inspect.getdoc(thing) or "")).strip()
            if len(text.split()) > more_than:
                texts.setdefault(text, f"{path}.{name}")
    return sorted(texts, key=lambda text: hash_of(texts[text]))


def scifact(n: int, n_queries: int, *, tokens: int = 128) -> Sets | None:
    """Abstracts and claims of SciFact, or None where it is not."""
    files = [SCIFACT / f"{name}.jsonl.gz" for name in ("corpus", "queries")]
    if not all(file.exists() for file in files):
        return None
    texts: list[list[str]] = []
    for file, limit in zip(files, (n, n_queries), strict=True):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        rows.sort(key=lambda row: hash_of(str(row["_id"])))
        texts.append([f"{row.get('title', '')} {row['text']}".strip() for row in rows[:limit]])
    docs, offsets = _embed(texts[0], tokens)
    queries, q_offsets = _embed(texts[1], tokens)
    return Sets(
        docs, offsets, queries, q_offsets, None, f"MiniLM tokens of {len(texts[0])} SciFact abstracts"
    )


def hash_of(text: str) -> bytes:
    """A fixed order that owes nothing to the alphabet."""
    import hashlib

    return hashlib.sha256(text.encode()).digest()


_model: list[object] = []


def _embed(texts: list[str], tokens: int, progress: Callable[[int, int], None] | None = None) -> tuple:
    from mercer.text import MiniLM

    if not _model:
        _model.append(MiniLM.from_package())
    found = _model[0].encode(texts, max_tokens=tokens, progress=progress)  # type: ignore[attr-defined]
    return _unit(found.tokens), found.offsets


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

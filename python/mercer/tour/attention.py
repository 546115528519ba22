"""Chapter: the attention of a sentence encoder replaced, and what it costs.

The baseline is the encoder's own exact attention. Every method has the same memory: `BUDGET` numbers a token and head
in place of a row of the attention matrix.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import numpy as np

from mercer.tour import corpus as corpora
from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Section, Table, Text, Tour

__all__ = ["CHAPTER"]

BUDGET = 64
LENGTHS = (64, 128, 256, 512)
HALF = BUDGET // 2
#: Name, arguments of `mercer.nn.attention.replace`, class of its line.
METHODS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("neighborhood: the nearest tokens, exactly", dict(method="neighborhood", window=BUDGET), "base2"),
    ("low rank: features alone (Performer)", dict(method="low_rank", n_features=BUDGET), "base"),
    ("low rank, centred", dict(method="low_rank", n_features=BUDGET, centre=True), "base"),
    (
        "sparse: hashed clusters alone (SMYRF)",
        dict(method="sparse", support="smyrf", cluster_size=HALF),
        "base",
    ),
    ("Scatterbrain, as the paper has it", dict(n_features=HALF, window=HALF), "base"),
    (
        "Scatterbrain, centred, rows shrunk",
        dict(n_features=HALF, window=HALF, centre=True, shrinkage=True),
        "ours",
    ),
)


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    from mercer.text import MiniLM

    with tour.stage("gathering long texts"):
        texts = _long_texts(12 if tour.quick else 48)
        model = MiniLM.from_package()
    lengths = LENGTHS[:3] if tour.quick else LENGTHS
    with tour.stage("exact attention"):
        exact = {n: _encode(model, texts, n) for n in lengths}
    rows: list[list[str | Cell]] = []
    series, speeds = [], []
    longest = lengths[-1]
    for i, (name, options, kind) in enumerate(METHODS):
        with tour.stage(name.partition(":")[0].partition(",")[0] + f" ({i + 1})") as report:
            report(i, len(METHODS))
            found, memory = _replaced(model, texts, lengths, options)
        errors = np.array([1 - _cosines(found[n][0], exact[n][0]).mean() for n in lengths])
        series.append((name, kind, np.array(lengths, float), errors))
        speeds.append((name, found[longest][1]))
        kept = _neighbours_kept(exact[longest][0], found[longest][0])
        rows.append([
            name, f"{1 - errors[-1]:.4f}", f"{100 * kept:.0f} %", f"{found[longest][1] * 1e3:.0f} ms",
            f"{memory / exact_bytes(model, longest) * 100:.0f} %",
        ])  # fmt: skip
    best = max(range(len(rows)), key=lambda i: float(str(rows[i][1])))
    rows[best][1] = Cell(str(rows[best][1]), "good")
    rows.insert(0, ["exact", "1.0000", "100 %", f"{exact[longest][1] * 1e3:.0f} ms", "100 %"])
    table = Table(
        [
            f"attention, {longest} tokens",
            "cosine to exact",
            "5 neighbours kept",
            "time a text",
            "memory of rows",
        ],
        rows,
        caption="Mean cosine of a text's vector to the one of exact attention; how many of its five nearest other "
        "texts stay; seconds of the whole encoder; numbers that stand for rows of the attention matrices.",
    )
    svg = figures.curves(
        series,
        x_title="tokens",
        y_title="1 - cosine",
        widths=[3 if k == "ours" else 1.8 for _, _, k in METHODS],
    )
    growth = _growth((512, 1024, 2048) if tour.quick else (512, 1024, 2048, 4096, 8192))
    return [
        Section("An encoder with other attention", [_introduction(len(texts)), table]),
        Section(
            "Error against length", [Figure(svg, "Exact up to the budget; beyond it, what each form loses.")]
        ),
        Section("Time against length", [growth]),
    ]


def _introduction(n: int) -> Text:
    return Text(
        f"{n} long texts made of the docstrings of this environment, through a sentence encoder whose attention "
        f"layers are replaced by `mercer.nn.attention.replace`: no weight is changed or trained. Each method keeps "
        f"{BUDGET} numbers a token and head in place of a row of the attention matrix. The nearest tokens alone are "
        "another attention, not an estimate of the full one; it is here because it is the cheapest."
    )


def _long_texts(count: int) -> list[str]:
    """Docstrings joined in order until there is enough for the longest input."""
    texts, current = [], ""
    for document in corpora.collect().documents:
        current += document.text + " "
        if len(current) > 3500:
            texts.append(current)
            current = ""
    step = max(1, len(texts) // count)
    return texts[::step][:count]


def _encode(model: Any, texts: list[str], tokens: int) -> tuple[np.ndarray, float]:
    """Vectors of the texts, and seconds of one."""
    model.encode(texts[:1], max_tokens=tokens, tokens=False)
    start = time.perf_counter()
    vectors = model.encode(texts, max_tokens=tokens, batch_tokens=tokens * 4, tokens=False).sentences
    return vectors, (time.perf_counter() - start) / len(texts)


def exact_bytes(model: Any, tokens: int) -> int:
    """Bytes of the attention matrices of one text."""
    return len(model.layers) * model.layers[0].attention.heads * tokens * tokens * 4


def _replaced(
    model: Any, texts: list[str], lengths: tuple[int, ...], options: dict[str, Any]
) -> tuple[dict[int, tuple[np.ndarray, float]], int]:
    from mercer.nn.attention import replace

    done = replace(model, **options)
    try:
        found = {n: _encode(model, texts, n) for n in lengths}
    finally:
        done.undo()
    return found, done.memory(lengths[-1], heads=model.layers[0].attention.heads)[1]


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def _neighbours_kept(exact: np.ndarray, other: np.ndarray, count: int = 5) -> float:
    """How many of the nearest other texts stay the same."""

    def nearest(x: np.ndarray) -> np.ndarray:
        products = x @ x.T
        np.fill_diagonal(products, -np.inf)
        return np.argsort(-products, axis=1)[:, :count]

    pairs = zip(nearest(exact), nearest(other), strict=True)
    return float(np.mean([len(set(a) & set(b)) / count for a, b in pairs]))


def _growth(sizes: tuple[int, ...]) -> Figure:
    """Seconds of the attention alone, 4 heads of 32 columns, by the number of tokens."""
    import torch
    import torch.nn.functional as F

    from mercer.nn.attention.neighborhood import na1d
    from mercer.nn.attention.scatterbrain import ScatterbrainAttention

    layer: Any = ScatterbrainAttention(32, HALF, window=HALF)
    times: dict[str, list[float]] = {"exact": [], "Scatterbrain": [], "neighborhood": []}
    for n in sizes:
        q, k, v = torch.randn(3, 1, 4, n, 32, generator=torch.Generator().manual_seed(n))
        last = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
        calls = {
            "exact": functools.partial(F.scaled_dot_product_attention, q, k, v),
            "Scatterbrain": functools.partial(layer, q, k, v),
            "neighborhood": functools.partial(na1d, last[0], last[1], last[2], BUDGET),
        }
        for name, call in calls.items():
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                call()
                seconds.append(time.perf_counter() - start)
            times[name].append(1e3 * min(seconds[1:]))
    x = np.array(sizes, float)
    kinds = {"exact": "base2", "Scatterbrain": "ours", "neighborhood": "base"}
    svg = figures.curves(
        [(name, kinds[name], x, np.array(y)) for name, y in times.items()], x_title="tokens", y_title="ms"
    )
    return Figure(
        svg,
        "Attention alone, forward: exact grows with the square of the tokens.",
    )


CHAPTER = Chapter(
    name="attention",
    title="Attention that costs less",
    promise="What does a sentence encoder lose when its attention keeps 64 numbers a token? Exact neighborhoods, "
    "random features, hashed clusters and their combination, put into the same trained model, side by side.",
    run=run,
    requires=corpora.REQUIRES,
)

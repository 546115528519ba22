"""Chapter: the attention of a sentence encoder replaced, and what it costs.

The baseline is the encoder's own exact attention. The methods that spare rows of the attention matrix have the same
memory: `BUDGET` numbers a token and head in place of a row. MatryoshkaKV spares keys and values instead.
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
#: Share of the coordinates of keys and values that is kept, whether each head has a rank of its own, class of its line.
COMPRESSED: tuple[tuple[str, float, bool, str], ...] = (
    ("MatryoshkaKV, principal axes, 3/4 of keys and values", 0.75, False, "base"),
    ("MatryoshkaKV, principal axes, half", 0.5, False, "base"),
    ("MatryoshkaKV, half, a rank for each head", 0.5, True, "ours"),
    ("MatryoshkaKV, principal axes, a quarter", 0.25, False, "base"),
)
#: Coordinates that a step of the search for ranks takes off, and ranks that a sweep lowers.
INTERVAL, PER_SWEEP = 8, 48


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
    series: list[Any] = []
    longest = lengths[-1]

    def add(
        name: str, kind: str, found: dict[int, tuple[np.ndarray, float]], left: str, to: list[Any]
    ) -> None:
        errors = np.array([1 - _cosines(found[n][0], exact[n][0]).mean() for n in lengths])
        to.append((name, kind, np.array(lengths, float), errors))
        kept = _neighbours_kept(exact[longest][0], found[longest][0])
        seconds = f"{found[longest][1] * 1e3:.0f} ms"
        rows.append([name, f"{1 - errors[-1]:.4f}", f"{100 * kept:.0f} %", seconds, left])

    for i, (name, options, kind) in enumerate(METHODS):
        with tour.stage(name.partition(":")[0].partition(",")[0] + f" ({i + 1})") as report:
            report(i, len(METHODS))
            found, memory = _replaced(model, texts, lengths, options)
        add(name, kind, found, f"rows, {memory / exact_bytes(model, longest) * 100:.0f} %", series)
    best = max(range(len(rows)), key=lambda i: float(str(rows[i][1])))
    rows[best][1] = Cell(str(rows[best][1]), "good")
    with tour.stage("principal axes of keys and values"):
        kv, batches = _calibrated(model, 6 if tour.quick else 24)
    compressed: list[Any] = []
    for name, budget, searched, kind in COMPRESSED:
        with tour.stage(name) as report:
            if searched:
                kv.set_ranks(*_searched(model, kv, batches[:2], budget, report))
            else:
                kv.set_budget(budget)
            with kv.attached(model):
                found = {n: _encode(model, texts, n) for n in lengths}
        add(name, kind, found, f"keys and values, {100 * kv.budget:.0f} %", compressed)
    rows.insert(0, ["exact", "1.0000", "100 %", f"{exact[longest][1] * 1e3:.0f} ms", "100 %"])
    table = Table(
        [
            f"attention, {longest} tokens",
            "cosine to exact",
            "5 neighbours kept",
            "time a text",
            "memory",
        ],
        rows,
        caption="Mean cosine of a text's vector to the one of exact attention; how many of its five nearest other "
        "texts stay; seconds of the whole encoder; what is left of the numbers that stand for rows of the attention "
        "matrices, or of those of keys and values.",
    )
    curves = [
        figures.curves(
            lines,
            x_title="tokens",
            y_title="1 - cosine",
            widths=[3 if kind == "ours" else 1.8 for _, kind, _, _ in lines],
        )
        for lines in (series, compressed)
    ]
    growth = _growth((512, 1024, 2048) if tour.quick else (512, 1024, 2048, 4096, 8192))
    return [
        Section("An encoder with other attention", [_introduction(len(texts)), table]),
        Section(
            "Error against length",
            [
                Figure(curves[0], "Exact up to the budget; beyond it, what each form loses."),
                Figure(
                    curves[1], "Fewer coordinates of keys and values: the loss hardly depends on the length."
                ),
            ],
        ),
        Section("Time against length", [growth]),
    ]


def _introduction(n: int) -> Text:
    return Text(
        f"{n} long texts made of the docstrings of this environment, through a sentence encoder whose attention "
        f"layers are replaced by `mercer.nn.attention.replace`: no weight is changed or trained. Each method keeps "
        f"{BUDGET} numbers a token and head in place of a row of the attention matrix. The nearest tokens alone are "
        "another attention, not an estimate of the full one; it is here because it is the cheapest. MatryoshkaKV keeps "
        "the whole matrix and stores fewer coordinates of keys and values, in principal axes found on other texts; "
        "training the axes, as its paper does, would lose less."
    )


def _long_texts(count: int, start: int = 0) -> list[str]:
    """Docstrings joined in order until there is enough for the longest input; another `start` gives other texts."""
    texts, current = [], ""
    for document in corpora.collect().documents:
        current += document.text + " "
        if len(current) > 3500:
            texts.append(current)
            current = ""
    step = max(1, len(texts) // count)
    return texts[start::step][:count]


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


def _calibrated(model: Any, count: int) -> tuple[Any, list[Any]]:
    """Principal axes of keys and values on other texts than those that are compared, and the token ids of these."""
    import torch

    from mercer.nn.attention.matryoshka import MatryoshkaKV

    ids = model.tokenize(_long_texts(count, start=1), 128)
    batches = [torch.tensor(row)[None] for row in ids]
    return MatryoshkaKV.calibrate(model, batches), batches


def _searched(model: Any, kv: Any, batches: list[Any], budget: float, report: Any) -> Any:
    """Ranks of keys and values of each layer and head, (2, layers, heads), by what token states lose on some texts."""
    import torch

    from mercer.nn.attention.matryoshka import search_ranks

    with torch.no_grad():
        whole = [model(ids) for ids in batches]

        def error(ranks: torch.Tensor) -> float:
            kv.set_ranks(*ranks)
            with kv.attached(model):
                ours = [model(ids) for ids in batches]
            return sum(
                float((a - b).square().sum() / b.square().sum()) for a, b in zip(ours, whole, strict=True)
            )

        shape = (2, len(kv.attentions), kv.num_heads)
        steps = -(
            -int((1 - budget) * kv.head_dim / INTERVAL * 2 * len(kv.attentions) * kv.num_heads) // PER_SWEEP
        )
        return search_ranks(
            error,
            shape,
            kv.head_dim,
            INTERVAL,
            budget,
            PER_SWEEP,
            progress=lambda sweep, _: report(sweep, steps),
        )


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
    "random features, hashed clusters and their combination, put into the same trained model, side by side; and what "
    "when keys and values keep fewer coordinates.",
    run=run,
    requires=corpora.REQUIRES,
)

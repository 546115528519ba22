"""Chapter: how dense real embeddings are, at which bandwidth, and what carries the estimate.

The baseline is scikit-learn's `KernelDensity` with its own rules, which do not know of the regime where one neighbour
is the whole estimate.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from mercer import density
from mercer.tour import corpus as corpora
from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Section, Table, Text, Tour

__all__ = ["CHAPTER"]

RULES = (
    ("silverman", "Silverman, as scikit-learn's"),
    ("scott", "Scott, as scikit-learn's"),
    ("loo", "leave-one-out likelihood"),
    ("kl", "nearest neighbour / √d"),
)


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    with tour.stage("reading docstrings"):
        corpus = corpora.collect(400 if tour.quick else corpora.MAX_DOCUMENTS)
    with tour.stage("embedding the docstrings", setup=True) as report:
        X = corpora.embed(corpus, lambda _, done, total: report(done, total)).sentences
    held = np.random.default_rng(0).permutation(len(X)) < len(X) // 4
    train, test = np.ascontiguousarray(X[~held]), np.ascontiguousarray(X[held])
    with tour.stage("bandwidths by rule, judged on held-out documents"):
        table, best = _rules(train, test)
    with tour.stage("beside scikit-learn"):
        speed = _speed(train, test, best)
    with tour.stage("the regimes"):
        curves = density.regime_curves(X)
    with tour.stage("typical and lonely documents"):
        lonely = _extremes(corpus, X, best)
    return [
        Section("Which bandwidth?", [_introduction(X, curves), table, speed]),
        Section("The three regimes", [_score_figure(curves), _participation_figure(curves)]),
        Section("The densest and the loneliest documents", [lonely]),
    ]


def _introduction(X: np.ndarray, curves: dict[str, Any]) -> Text:
    n, d = X.shape
    return Text(
        f"{n:,} docstrings as vectors in d = {d} dimensions: log(n)/d = {math.log(n) / d:.4f}. Below h_G a kernel "
        "density estimate is carried by a few neighbours; a normal law with the covariance of these vectors has "
        f"h_G = {curves['h_g']:.3f}, averages are Gaussian from h_CLT = {curves['h_clt']:.3f} on, and the "
        "divergence is least below h_G. Each row fits on three quarters of the documents and is judged on the rest. "
        "scikit-learn's "
        'rules do not know the scale of the data (`bandwidth="scott"` there is a number for unit variance).'
    )


def _rules(train: np.ndarray, test: np.ndarray) -> tuple[Table, float]:
    n, d = train.shape
    theirs = {
        "silverman": (n * (d + 2) / 4) ** (-1 / (d + 4)),
        "scott": n ** (-1 / (d + 4)),
    }
    rows: list[list[str | Cell]] = []
    chosen: dict[str, tuple[float, float]] = {}
    for name, what in RULES:
        h = theirs.get(name) or density.optimal_bandwidth(train, name)
        found = density.log_kde(test, train, h, return_diagnostics=True)
        assert isinstance(found, density.KernelDiagnostics)
        chosen[name] = h, float(found.log_density.mean()) / d
        rows.append([what, f"{h:.4f}", f"{chosen[name][1]:.4f}", f"{found.participation.mean():.3f}"])
    best = max(chosen, key=lambda name: chosen[name][1])
    for row, (name, _) in zip(rows, RULES, strict=True):
        row[2] = Cell(str(row[2]), "good" if name == best else "")
    with_own_scale = [density.optimal_bandwidth(train, name) for name in ("silverman", "scott")]
    scores = np.asarray(density.log_kde(test, train, with_own_scale)).mean(0) / d
    for name, h, score in zip(("Silverman", "Scott"), with_own_scale, scores, strict=True):
        rows.insert(2, [f"{name} times the standard deviation", f"{h:.4f}", f"{score:.4f}", ""])
    columns = ["rule", "h", "held-out log density / d", "participation"]
    caption = "Participation: the sum of the squared shares of the neighbours; 1 where one neighbour is all there is."
    return Table(columns, rows, caption=caption), chosen[best][0]


def _speed(train: np.ndarray, test: np.ndarray, h: float) -> Table:
    from sklearn.neighbors import KernelDensity

    few = test[:100]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", density.CondensationWarning)
        ours = density.KernelDensity(h).fit(train)
    peer = KernelDensity(bandwidth=h).fit(train)
    grid = np.geomspace(h / 2, h * 2, 16)
    mine, our_seconds = _best_of_3(lambda: ours.score_samples(few))
    theirs, their_seconds = _best_of_3(lambda: peer.score_samples(few))
    _, sixteen = _best_of_3(lambda: ours.score_samples(few, bandwidth=grid))
    logs = np.array([-((x.astype(np.float64) - train) ** 2).sum(1) for x in few]) / (2 * h * h)
    top = logs.max(1)
    true = np.log(np.exp(logs - top[:, None]).sum(1)) + top - math.log(len(train))
    true -= train.shape[1] / 2 * math.log(2 * math.pi * h * h)
    errors = [float(np.abs(found - true).max()) for found in (theirs, mine)]
    return Table(
        [f"{len(few)} documents against {len(train):,}", "scikit-learn", "mercer", ""],
        [
            [
                "one bandwidth",
                f"{their_seconds * 1e3:.1f} ms",
                Cell(f"{our_seconds * 1e3:.2f} ms", "good"),
                f"{their_seconds / our_seconds:.0f} times the speed",
            ],
            [
                "largest error of a log density",
                Cell(f"{errors[0]:.2g}", "bad" if errors[0] > 1 else ""),
                Cell(f"{errors[1]:.1g}", "good"),
                "against the definition in float64; a tree that keeps bounds by adding and subtracting loses the "
                "small ones",
            ],
            [
                "sixteen bandwidths",
                "sixteen times that",
                f"{sixteen * 1e3:.2f} ms",
                "one pass over the distances",
            ],
        ],
        baseline="scikit-learn",
        ours="mercer",
    )


def _best_of_3(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - clock)
    return found, min(seconds)


def _line(x: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x, x]), np.array([float(np.min(y)), float(np.max(y))])


def _score_figure(curves: dict[str, Any]) -> Figure:
    h, score = curves["h"], curves["score"]
    floor = float(np.quantile(score, 0.35))
    shown = np.where(score >= floor, score, np.nan)
    seen = shown[np.isfinite(shown)]
    svg = figures.curves(
        [
            ("leave-one-out log density / d", "ours", h, shown),
            ("nearest-neighbour rule", "base", *_line(curves["nn"], seen)),
            (
                f"h_G = {curves['h_g']:.3g}, h_CLT = {curves['h_clt']:.3g}",
                "base2",
                *_line(curves["h_g"], seen),
            ),
            ("", "base2", *_line(curves["h_clt"], seen)),
        ],
        x_title="bandwidth h",
        y_title="log density / d",
        widths=(3, 2, 1.4, 1.4),
    )
    return Figure(
        svg, "What a bandwidth is worth, and where it stands: the best is on the condensed side of h_G."
    )


def _participation_figure(curves: dict[str, Any]) -> Figure:
    h = curves["h"]
    svg = figures.curves(
        [
            ("participation, measured", "ours", h, curves["participation"]),
            ("a normal law, in the limit", "base", h, curves["theory"]),
            (
                "Silverman and Scott, times the standard deviation",
                "base2",
                *_line(curves["scott"], np.array([0, 1])),
            ),
        ],
        x_title="bandwidth h",
        y_title="sum of squared shares",
        widths=(3, 2, 1.4),
    )
    return Figure(
        svg, "One neighbour carries the estimate on the left (1), all documents do on the right (near 0)."
    )


def _extremes(corpus: corpora.Corpus, X: np.ndarray, h: float) -> Table:
    scores = np.asarray(density.log_kde(X, X, h, leave_one_out=True))
    order = np.argsort(scores)
    rows: list[list[str | Cell]] = []
    for title, which in (("densest", order[::-1][:6]), ("loneliest", order[:6])):
        for i in which:
            document = corpus.documents[int(i)]
            rows.append([title, document.name, f"{scores[i]:.0f}", document.text[:90] + "…"])
    caption = "Log density of each document given all others: copies and families above, one of a kind below."
    return Table(["", "document", "log density", "it begins"], rows, caption=caption)


CHAPTER = Chapter(
    name="density",
    title="A density in 384 dimensions",
    promise="Which bandwidth does a density of embeddings want, and what carries the estimate? The theory of large "
    "dimensions answers, and one pass over the distances measures every bandwidth at once.",
    run=run,
    requires=corpora.REQUIRES,
)

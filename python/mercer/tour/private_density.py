"""Chapter: the density of real embeddings, released once under differential privacy, and what that costs in accuracy.

The documents play the private rows. Two releases: a map of where they lie between two public subjects (two columns),
and their density in all 384 dimensions. The baseline is the exact density, which a curator could not give away.
"""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

import numpy as np

from mercer.private import PrivateKernelSum, Release, kernel_sums
from mercer.tour import corpus as corpora
from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Section, Table, Text, Tour

__all__ = ["CHAPTER", "heat_maps"]

SUBJECTS = ("drawing from and fitting a probability distribution", "factorising and solving with a matrix")
EPSILONS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
DELTA = 1e-6
NARROW, WIDE = 0.15, 1.0  # bandwidths: of the map of cosines; of unit vectors in 384 dimensions
GRID = (56, 40)


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    with tour.stage("reading docstrings"):
        corpus = corpora.collect(400 if tour.quick else corpora.MAX_DOCUMENTS)
    with tour.stage("embedding the docstrings", setup=True) as report:
        X = corpora.embed(corpus, lambda _, done, total: report(done, total)).sentences
    with tour.stage("embedding two subjects"):
        axes = _subjects()
    with tour.stage("a private map of the documents"):
        drawn = _map_section(X, axes)
    with tour.stage("error against epsilon in 384 dimensions") as report:
        curve = _error_section(X, 2 if tour.quick else 5, report)
    return [drawn, curve]


def _subjects() -> np.ndarray:
    from mercer.text import MiniLM

    vectors = MiniLM.from_package().encode(SUBJECTS, tokens=False).sentences
    return np.asarray(vectors, np.float64)


def _map_section(X: np.ndarray, axes: np.ndarray) -> Section:
    places = X.astype(np.float64) @ axes.T  # cosines: in [-1, 1], whatever the documents are
    low, high = -0.2, 0.7
    sides = [np.linspace(low, high, n) for n in GRID]
    grid = np.stack(np.meshgrid(*sides, indexing="xy"), axis=-1).reshape(-1, 2)
    exact = kernel_sums("gaussian", NARROW, places, grid) / len(X)
    panels, facts = [("exact, which nobody outside may have", exact)], []
    for epsilon in (0.3, 3.0):
        private = PrivateKernelSum(
            "gaussian",
            NARROW,
            epsilon,
            mechanism="gaussian",
            delta=DELTA,
            bounds=(-1, 1),
            outside="clip",
            random_state=0,
        )
        start = time.perf_counter()
        release = private.fit(places).release_
        seconds = time.perf_counter() - start
        density = release.mean(grid)
        panels.append((f"private, ε = {epsilon:g}", density))
        facts.append(_facts(f"ε = {epsilon:g}, δ = {DELTA:g}", release, seconds, density, exact))
    return Section(
        "A map that gives nobody away",
        [
            Text(
                f"Suppose each of these {len(X):,} documents were a person's. Every document has a cosine to each of "
                f"two public sentences: “{SUBJECTS[0]}” (to the right) and “{SUBJECTS[1]}” (upwards). What may be "
                "published about where they lie? A sum of random features with exact discrete Gaussian noise: one file "
                "that gives the density at any point, and whose bits change in distribution by at most a factor e^ε "
                "(but for δ) when one document is taken out."
            ),
            Figure(
                heat_maps(panels, GRID),
                "Density of the documents over the two cosines, from the documents and from two releases. All three "
                "have one scale.",
            ),
            Table(
                ["release", "features", "file", "fit", "1,000 queries", "noise, as the file states it",
                 "error, as measured here"],
                facts,
                ours="error, as measured here",
            ),
        ],
    )  # fmt: skip


def _facts(
    name: str, release: Release, seconds: float, density: np.ndarray, exact: np.ndarray
) -> list[str | Cell]:
    where = np.zeros((1000, release.n_features))
    start = time.perf_counter()
    release.query(where)
    asked = time.perf_counter() - start
    stated = float(release.std_error(where[:1])[0]) / release.count
    return [
        name,
        f"{release.statement['mechanism'].split()[2]}",
        f"{len(release.to_bytes()) / 1024:.0f} KB",
        f"{1e3 * seconds:.0f} ms",
        f"{1e3 * asked:.0f} ms",
        f"{stated:.4f}",
        f"{np.sqrt(np.mean((density - exact) ** 2)):.4f} of {exact.max():.3f}",
    ]


def _error_section(X: np.ndarray, repeats: int, report: object) -> Section:
    Y = X[:: max(1, len(X) // 300)].astype(np.float64)
    exact = kernel_sums("gaussian", WIDE, X, Y) / len(X)
    kinds = {
        "pure ε (Laplace noise)": {},
        f"ε at δ = {DELTA:g} (Gaussian noise)": {"mechanism": "gaussian", "delta": DELTA},
    }
    error = {kind: np.zeros(len(EPSILONS)) for kind in kinds}
    order = {kind: np.zeros(len(EPSILONS)) for kind in kinds}
    for i, epsilon in enumerate(EPSILONS):
        if callable(report):
            report(i, len(EPSILONS))
        for kind, parameters in kinds.items():
            found = [
                PrivateKernelSum("gaussian", WIDE, epsilon, random_state=seed, **parameters).fit(X).density(Y)  # type: ignore[arg-type]
                for seed in range(repeats)
            ]
            error[kind][i] = np.sqrt(np.mean((np.array(found) - exact) ** 2)) / exact.mean()
            order[kind][i] = np.mean([np.corrcoef(_ranks(f), _ranks(exact))[0, 1] for f in found])
    pure, gaussian = error
    rows: list[Sequence[str | Cell]] = [
        [f"{epsilon:g}"]
        + [f"{100 * error[k][i]:.1f} %" for k in kinds]
        + [f"{order[k][i]:.2f}" for k in kinds]
        for i, epsilon in enumerate(EPSILONS)
    ]
    x = np.array(EPSILONS)
    return Section(
        "What privacy costs in 384 dimensions",
        [
            Text(
                "The same in all 384 dimensions, where no histogram could be released at all. The error does not know "
                "of the dimension: a document changes the released sums by as much as it does in two."
            ),
            Figure(
                figures.curves(
                    [(pure, "base", x, np.log10(error[pure])), (gaussian, "ours", x, np.log10(error[gaussian]))],
                    x_title="ε",
                    y_title="log₁₀ of the relative error of a density",
                ),
                f"Root mean square error of the private density at {len(Y)} documents over the mean density, "
                f"{repeats} releases each.",
            ),
            Table(
                ["ε", "error, pure ε", "error, Gaussian noise", "rank correlation, pure ε", "the same, Gaussian"],
                rows,
                ours="error, Gaussian noise",
                caption="Rank correlation: whether dense and sparse documents are told apart.",
            ),
        ],
    )  # fmt: skip


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def heat_maps(panels: Sequence[tuple[str, np.ndarray]], grid: tuple[int, int]) -> str:
    """Panels side by side of values on a grid (columns, rows), row by row from below, in one scale from 0."""
    columns, rows = grid
    gap, top = 16, 26
    width = (figures.WIDTH - gap * (len(panels) - 1)) / len(panels)
    cell_w, cell_h = width / columns, width / columns
    height = top + rows * cell_h + 4
    most = max(float(values.max()) for _, values in panels)
    parts = [f'<svg viewBox="0 0 {figures.WIDTH} {height:.0f}" role="img" aria-label="densities" '
             'xmlns="http://www.w3.org/2000/svg">']  # fmt: skip
    for p, (name, values) in enumerate(panels):
        left = p * (width + gap)
        parts.append(
            f'<text x="{left + width / 2:.1f}" y="16" text-anchor="middle">{html.escape(name)}</text>'
        )
        share = np.clip(values.reshape(rows, columns) / most, 0, 1)
        for r in range(rows):
            y = top + (rows - 1 - r) * cell_h
            for c in range(columns):
                if share[r, c] > 0.01:
                    parts.append(
                        f'<rect x="{left + c * cell_w:.1f}" y="{y:.1f}" width="{cell_w + 0.3:.2f}" '
                        f'height="{cell_h + 0.3:.2f}" fill="{figures.color(0)}" fill-opacity="{share[r, c]:.2f}"/>'
                    )
        parts.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{rows * cell_h:.1f}" fill="none" '
            'stroke="currentColor" stroke-opacity=".3"/>'
        )
    return "".join(parts) + "</svg>"


CHAPTER = Chapter(
    name="private",
    title="A density that gives nobody away",
    promise="Where do the documents lie, if each of them were a person's? One release under differential privacy "
    "answers for ever; its error against ε, in 2 and in 384 dimensions.",
    run=run,
    requires=corpora.REQUIRES,
)

"""A picture of where a bandwidth stands between h_opt, h_G and h_CLT."""

from __future__ import annotations

from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer.density._bandwidth import SAMPLE, gaussian_thresholds, optimal_bandwidth
from mercer.density._condensation import condensed_moments
from mercer.density._log_kde import Problem, points

__all__ = ["plot_regimes", "regime_curves"]


def regime_curves(
    Y: Any,
    *,
    weights: Any = None,
    points_on_grid: int = 40,
    random_state: Any = 0,
    threads: int | None = None,
) -> dict[str, Any]:
    """What :func:`plot_regimes` draws: a grid of bandwidths from h_G/4 to 4 h_G and, leave-one-out over at most 2048
    rows, the mean log density per dimension and participation at each, in one pass.

    Returns:
        "h", "score", "participation" (arrays), "theory" (Poisson-Dirichlet participation of the Gaussian law), and the
        bandwidths "h_opt", "h_g", "h_clt", "nn", "silverman", "scott".
    """
    Y = points("Y", Y)
    threads = _checks.threads("threads", threads)
    if len(Y) < 3:
        raise ValueError(f"Y must have at least 3 rows, got {len(Y)}")
    _core.largest_entry(Y, "Y", threads)
    w = None if weights is None else _checks.weights("weights", weights, len(Y))
    thresholds = gaussian_thresholds(Y, w)
    count = _checks.integer("points_on_grid", points_on_grid, 2)
    rules = {
        name: optimal_bandwidth(Y, name, weights=w, random_state=random_state, threads=threads)
        for name in ("nn", "silverman", "scott")
    }
    span = [thresholds.h_g / 4, thresholds.h_g * 4, *rules.values()]
    h = np.geomspace(min(span) * 0.9, max(span) * 1.1, count)
    rng = np.random.default_rng(_checks.random_seed(random_state))
    rows = np.sort(rng.choice(len(Y), min(SAMPLE, len(Y)), replace=False))
    problem = Problem(Y[rows], Y, h, "gaussian", w, rows.astype(np.int64), None, threads)
    sums, participation, _ = problem.sums(True)
    return {
        "h": h,
        "score": (sums - problem.log_scale).mean(0) / Y.shape[1],
        "participation": participation.mean(0),
        "theory": np.asarray(condensed_moments((h / thresholds.h_g) ** 2)),
        "h_opt": thresholds.h_opt,
        "h_g": thresholds.h_g,
        "h_clt": thresholds.h_clt,
        **rules,
    }


def plot_regimes(
    Y: Any,
    bandwidth: float | None = None,
    *,
    weights: Any = None,
    figure: Any = None,
    random_state: Any = 0,
    threads: int | None = None,
) -> Any:
    """Draw the three regimes of the density of Y, and where bandwidths stand in them.

    Above: the leave-one-out log density per dimension against the bandwidth. Below: the participation, with that of the
    theory. Shaded from left to right: condensed, stable, CLT; lines: h_opt of Gaussian data, the nearest-neighbour
    rule, Silverman's and Scott's, and `bandwidth`.

    Args:
        Y: Data (n, d), n >= 3.
        bandwidth: One to mark.
        weights: One a row.
        figure: A matplotlib figure to draw into; None makes one.
        random_state: Of the rows that are queried.
        threads: None means MERCER_NUM_THREADS or every core.

    Returns:
        The figure. Needs the extra `plot`.

    Example:
        >>> import numpy as np
        >>> from mercer.density import plot_regimes
        >>> figure = plot_regimes(np.random.default_rng(0).standard_normal((500, 30)), 0.5)  # doctest: +SKIP
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ImportError("plot_regimes needs matplotlib: pip install 'mercer-kernels[plot]'") from error
    if bandwidth is not None:
        bandwidth = _checks.real("bandwidth", bandwidth, 0.0, strict=True)
    curves = regime_curves(Y, weights=weights, random_state=random_state, threads=threads)
    figure = Figure(figsize=(8, 6), layout="constrained") if figure is None else figure
    draw_regimes(curves, bandwidth, figure)
    return figure


def draw_regimes(curves: dict[str, Any], bandwidth: float | None, figure: Any) -> None:
    """The curves of :func:`regime_curves` into a figure."""
    above, below = figure.subplots(2, 1, sharex=True)
    h = np.asarray(curves["h"])
    edges = (h[0], curves["h_g"], curves["h_clt"], h[-1])
    for axes in (above, below):
        for i, colour in enumerate(("#f6d5c8", "#f3edcf", "#d6ead9")):
            axes.axvspan(edges[i], edges[i + 1], color=colour, lw=0)
        axes.set_xscale("log")
        axes.set_xlim(h[0], h[-1])
        axes.axvline(curves["h_opt"], color="black", lw=1.2, label="h_opt, Gaussian data")
        axes.axvline(curves["nn"], color="tab:blue", lw=1.2, ls="--", label="nearest-neighbour rule")
        axes.axvline(curves["silverman"], color="tab:red", lw=1, ls=":", label="Silverman")
        axes.axvline(curves["scott"], color="tab:purple", lw=1, ls=":", label="Scott")
        if bandwidth is not None:
            axes.axvline(bandwidth, color="tab:green", lw=1.8, label=f"h = {bandwidth:.3g}")
    score = np.asarray(curves["score"])
    above.plot(h, score, color="black")
    low = np.quantile(score, 0.3)
    above.set_ylim(low - 0.1 * abs(score.max() - low), score.max() + 0.1 * abs(score.max() - low))
    above.set_ylabel("leave-one-out log density / d")
    for i, name in enumerate(("condensed", "stable", "CLT")):
        if edges[i + 1] > edges[i]:
            above.text(
                (edges[i] * edges[i + 1]) ** 0.5,
                1.01,
                name,
                ha="center",
                transform=above.get_xaxis_transform(),
            )
    below.plot(h, curves["participation"], color="black", label="participation, measured")
    below.plot(h, curves["theory"], color="grey", ls="-.", label="participation, theory")
    below.set_ylabel("sum of squared shares")
    below.set_xlabel("bandwidth h")
    below.legend(fontsize=8, loc="upper right")

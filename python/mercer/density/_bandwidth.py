"""Choosing the bandwidth, and seeing what a bandwidth does to a given data set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer.density._condensation import KdeThresholds, _thresholds, kde_thresholds
from mercer.density._kernels import KERNELS, log_norm
from mercer.density._log_kde import Problem, bandwidths, points

__all__ = ["CondensationDiagnostics", "condensation_diagnostics", "optimal_bandwidth"]

METHODS = ("nn", "kl", "loo", "gaussian", "silverman", "scott")
#: Rows that a rule looks at: more would move it by less than the rule itself is worth.
SAMPLE = 2048


def optimal_bandwidth(
    Y: Any,
    method: str = "nn",
    *,
    kernel: str = "gaussian",
    weights: Any = None,
    random_state: Any = 0,
    threads: int | None = None,
) -> float:
    """A bandwidth for the density of Y.

    Args:
        Y: Data (n, d), n >= 2.
        method: "nn" (or "kl"): h_opt of arXiv 2408.05807, the typical (median) distance of a nearest neighbour over
            sqrt(d), which minimises the KL divergence when d is large, whatever the law of the data;
            "loo": the largest leave-one-out likelihood, by two grids of 24 bandwidths in one pass each;
            "gaussian": h_opt of Gaussian data with the covariance of Y;
            "silverman", "scott": (n (d+2)/4)^(-1/(d+4)) and n^(-1/(d+4)) standard deviations (their mean over the
            dimensions). From d = 20 on both are far below h_G.
        kernel: The rules are those of the Gaussian kernel; another kernel gets the bandwidth that gives it the same
            variance. "cauchy" has none: "loo" only.
        weights: One a row, as in :func:`log_kde`.
        random_state: Of the at most 2048 rows that "nn" and "loo" query against all.
        threads: None means MERCER_NUM_THREADS or every core.

    Raises:
        ValueError: fewer than two different rows. Copies of a row count as one row with their weights' sum.

    Cost: O(2048 n d); "gaussian" O(n d²) at most 4096 rows.

    Example:
        >>> import numpy as np
        >>> from mercer.density import optimal_bandwidth
        >>> Y = np.random.default_rng(0).standard_normal((2000, 50))
        >>> [round(optimal_bandwidth(Y, m), 1) for m in ("nn", "gaussian", "loo", "silverman")]
        [1.0, 1.0, 1.0, 0.8]
    """
    method = _checks.choice("method", method, METHODS)
    kernel = _checks.choice("kernel", kernel, tuple(KERNELS))
    Y = points("Y", Y)
    threads = _checks.threads("threads", threads)
    if len(Y) < 2:
        raise ValueError(f"Y must have at least 2 rows, got {len(Y)} (n_samples={len(Y)})")
    _core.largest_entry(Y, "Y", threads)
    w = None if weights is None else _checks.weights("weights", weights, len(Y))
    if kernel == "cauchy" and method != "loo":
        raise ValueError(f'method must be "loo" for the Cauchy kernel, which has no variance, got {method!r}')
    if w is not None:
        # What weighs nothing is not there.
        Y, w = np.ascontiguousarray(Y[w > 0]), w[w > 0]
        if len(Y) < 2:
            raise ValueError(f"weights must be > 0 for at least 2 rows, got {len(Y)}")
    if method in ("nn", "kl", "loo"):
        Y, w = _without_copies(Y, w, threads)
    n, d = Y.shape
    spread = kernel_spread(kernel, d)
    if method == "gaussian":
        h = float(gaussian_thresholds(Y, w).h_opt)
    elif method in ("silverman", "scott"):
        size = n if w is None else w.sum() ** 2 / (w**2).sum()
        h = float((size * (d + 2) / 4 if method == "silverman" else size) ** (-1 / (d + 4)))
        h *= math.sqrt(float(np.trace(np.atleast_2d(covariance(Y, w)))) / d)
    else:
        rng = np.random.default_rng(_checks.random_seed(random_state))
        rows = np.arange(n) if n <= SAMPLE else np.sort(rng.choice(n, SAMPLE, replace=False))
        distances = nearest_distance(Y, rows, threads)
        if method == "loo":
            h = _leave_one_out(Y, rows, distances, kernel, spread, w, threads)
            spread = 1.0
        else:
            h = float(np.median(distances)) / math.sqrt(d)
    if not (h > 0 and math.isfinite(h)):
        raise ValueError(
            f"Y must give a bandwidth > 0 by method {method!r}, got {h}: the rows are copies of each other"
        )
    return h / spread


def _without_copies(
    Y: np.ndarray, w: np.ndarray | None, threads: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Equal rows as one: a copy is no neighbour."""
    if len({hash((row + 0.0).tobytes()) for row in Y}) == len(Y):  # + 0: -0 is 0
        return Y, w
    rows, which = np.unique(Y, axis=0, return_inverse=True)
    if len(rows) < 2:
        raise ValueError(f"Y must have at least 2 different rows, got {len(Y)} copies of one")
    return rows, np.bincount(which.ravel(), weights=w, minlength=len(rows)).astype(np.float64)


def nearest_distance(Y: np.ndarray, rows: np.ndarray, threads: int | None) -> np.ndarray:
    """Distance of these rows of Y to the nearest other row: -h log sum exp(-r/h) as h goes to 0."""
    scale = float(_core.largest_entry(Y, "Y", threads)) or 1.0
    # At this h what is not nearest does not count, nor log n ties.
    h = min(max(scale * 1e-30, 1e-139), 1e139)
    problem = Problem(Y[rows], Y, h, "exponential", None, rows.astype(np.int64), None, threads)
    return np.maximum(-h * problem.sums(False)[0][:, 0], 0.0)


def _leave_one_out(
    Y: np.ndarray,
    rows: np.ndarray,
    distances: np.ndarray,
    kernel: str,
    spread: float,
    w: np.ndarray | None,
    threads: int | None,
) -> float:
    """The h of the largest mean leave-one-out log density of these rows."""
    d = Y.shape[1]
    typical = distances[distances > 0]
    if not len(typical):
        return 0.0
    middle = float(np.median(typical)) / math.sqrt(d) / (spread if math.isfinite(spread) else 1.0)
    low, high = middle / 8, middle * 32  # in low dimensions the best is far above the nearest neighbour
    own = None if w is None else w[rows]
    X = np.ascontiguousarray(Y[rows])
    for _ in range(3):
        grid = np.geomspace(low, high, 24)
        problem = Problem(X, Y, grid, kernel, w, rows.astype(np.int64), None, threads)
        values = problem.sums(False)[0] - problem.log_scale
        scores = np.average(values, axis=0, weights=own)
        best = int(np.nanargmax(np.where(np.isnan(scores), -np.inf, scores)))
        if not np.isfinite(scores[best]):  # a kernel of bounded support that is too narrow everywhere
            low, high = high / 2, high * 32
            continue
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 23)]
    return float(grid[best])


def covariance(Y: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    """Covariance of at most 4096 rows, evenly apart."""
    step = -(-len(Y) // 4096)
    Z = Y[::step].astype(np.float64)
    return np.cov(Z, rowvar=False, bias=True, aweights=None if w is None else w[::step])


def gaussian_thresholds(Y: np.ndarray, w: np.ndarray | None) -> KdeThresholds:
    """The thresholds of Gaussian data with the covariance of Y."""
    n, d = Y.shape
    size = n if w is None else float(w.sum() ** 2 / (w**2).sum())
    spectrum = np.linalg.eigvalsh(np.atleast_2d(covariance(Y, w)))
    if not spectrum[-1] > 0:
        raise ValueError("Y must have at least 2 different rows, got copies of one")
    return kde_thresholds(math.log(max(size, 1.5)) / d, spectrum=np.maximum(spectrum, 0.0))


def kernel_spread(kernel: str, d: int) -> float:
    """The standard deviation of the kernel in each dimension at h = 1; infinite for Cauchy."""
    if kernel == "cauchy":
        return math.inf
    square = {
        "gaussian": d,
        "laplace": 2 * d,
        "exponential": d * (d + 1),
        "tophat": d / (d + 2),
        "epanechnikov": d / (d + 4),
        "linear": d * (d + 1) / ((d + 2) * (d + 3)),
    }.get(kernel)
    if (
        square is None
    ):  # cosine: E r² is a ratio of its moments, that is of integrals in d + 2 and d dimensions
        ball = [k / 2 * math.log(math.pi) - math.lgamma(k / 2 + 1) + math.log(k) for k in (d, d + 2)]
        moments = [log_norm("cosine", k) - b for k, b in zip((d, d + 2), ball, strict=True)]
        square = math.exp(moments[1] - moments[0])
    return math.sqrt(square / d)


@dataclasses.dataclass(frozen=True, slots=True)
class CondensationDiagnostics:
    """What carries a density estimate, query by query: arrays (m,) but for `top_shares`.

    Attributes:
        log_density: log rho_h.
        participation: sum of the squared shares; 1 - (h/h_G)² where the estimate is condensed, 0 in the limit
            elsewhere.
        entropy: -sum p log p.
        top_shares: (m, k) shares of the k nearest data points together with all nearer ones.
        hill_index: Hill's estimate from the k largest shares of the index of their tail, (h/h_G)² in theory; above
            2 the fluctuations are Gaussian.
        h_g: the query's own h_G under a Gaussian law with the mean and covariance of the data.
    """

    log_density: np.ndarray
    participation: np.ndarray
    entropy: np.ndarray
    top_shares: np.ndarray
    hill_index: np.ndarray
    h_g: np.ndarray


def condensation_diagnostics(
    X: Any,
    Y: Any,
    bandwidth: float,
    k: int = 10,
    *,
    leave_one_out: bool = False,
    threads: int | None = None,
) -> CondensationDiagnostics:
    """How condensed the Gaussian kernel density estimate is at each query.

    Args:
        X: Queries (m, d). Queries that are data points: `leave_one_out` (X is Y), else each is its own neighbour.
        Y: Data (n, d), n > k.
        bandwidth: h > 0, one number.
        k: Largest shares to look at, >= 1.
        leave_one_out: As in :func:`log_kde`.
        threads: None means MERCER_NUM_THREADS or every core.

    Raises:
        ValueError: As in :func:`log_kde`; k >= n.

    Cost: O(n m d + d³ + m d) time, 64 MiB.

    Example:
        >>> import numpy as np
        >>> from mercer.density import condensation_diagnostics
        >>> rng = np.random.default_rng(0)
        >>> Y, X = rng.standard_normal((5000, 80)), rng.standard_normal((50, 80))
        >>> found = condensation_diagnostics(X, Y, 0.5)
        >>> bool(found.participation.mean() > 0.5 and (found.h_g > 0.5).all())
        True
    """
    k = _checks.integer("k", k, 1)
    if bandwidths(bandwidth, len(points("X", X)))[0].size != 1:
        raise ValueError(f"bandwidth must be one number, got shape {np.shape(bandwidth)}")
    problem = Problem(X, Y, bandwidth, "gaussian", None, leave_one_out, None, threads)
    n = len(problem.Y) - (problem.leave_out is not None)
    if k >= n:
        raise ValueError(f"k must be less than the number of data points {n}, got {k}")
    sums, participation, entropy = (a[:, 0] for a in problem.sums(True))
    h = float(problem.bandwidths[0, 0])
    square = nearest_squares(problem, k + 1)
    logs = -square / (2 * h * h)
    shares = np.exp(logs[:, :k] - sums[:, None]).cumsum(1)
    with np.errstate(divide="ignore"):
        hill = 1 / (logs[:, :k] - logs[:, k:]).mean(1)
    return CondensationDiagnostics(
        sums - problem.log_scale[:, 0],
        participation,
        entropy,
        np.minimum(shares, 1.0),
        hill,
        local_h_g(problem.X.astype(np.float64), problem.Y),
    )


def nearest_squares(problem: Problem, k: int) -> np.ndarray:
    """The k least squared distances of each query, in order (m, k): candidates by products, then exactly."""
    center = problem.Y.mean(0, dtype=np.float64)
    X, Y = problem.X - center, problem.Y - center.astype(problem.Y.dtype)
    lengths = np.einsum("ij,ij->i", Y, Y, dtype=np.float64)
    found = np.empty((len(X), k))
    step = max(1, (1 << 22) // len(Y))
    more = min(len(Y), 2 * k + 8)
    for start in range(0, len(X), step):
        stop = min(len(X), start + step)
        rough = lengths - 2 * (X[start:stop].astype(Y.dtype) @ Y.T)
        if problem.leave_out is not None:
            rough[np.arange(stop - start), problem.leave_out[start:stop]] = np.inf
        near = np.argpartition(rough, more - 1, axis=1)[:, :more]
        apart = Y[near].astype(np.float64) - X[start:stop, None].astype(np.float64)
        exact = np.einsum("ijk,ijk->ij", apart, apart)
        exact[np.isinf(np.take_along_axis(rough, near, 1))] = np.inf
        found[start:stop] = np.sort(exact, axis=1)[:, :k]
    return found


def local_h_g(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """h_G at each row of X under the normal law with the mean and covariance of Y."""
    n, d = Y.shape
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance(Y, None)))
    live = values > 1e-12 * values[-1]
    if not live.any() or values[-1] <= 0:
        return np.zeros(len(X))
    r = ((X - Y.mean(0)) @ vectors[:, live]) ** 2 / values[live]
    spectrum = values[live]
    alpha = np.full(len(X), math.log(n) / d * (d / len(spectrum)))
    step = max(1, (1 << 20) // d)
    return np.concatenate([
        np.atleast_1d(_thresholds(alpha[i : i + step], spectrum, r[i : i + step]).h_g)
        for i in range(0, len(X), step)
    ] or [np.zeros(0)])  # fmt: skip

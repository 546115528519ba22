"""Sums of kernels over data too many to visit, each with an estimate of its error.

- "features": random Fourier features (Rahimi and Recht 2007) in cos/sin pairs. k(x, y) is the mean of cos(f·(x - y))
  over frequencies f of the kernel's spectral law, so the sum over the data is needed once: O(D d) a query, an error of
  the order of n/sqrt(D) at every query.
- "hashing": importance sampling by locality-sensitive hashes (Charikar and Siminelakis 2017). In each of L random
  partitions a query draws one point of its bucket; its kernel over the probability of sharing that bucket is unbiased,
  with an error relative to the sum where near points carry it.
- "coreset": the nearest groups of data exactly, and a stratified sample of the rest.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from mercer import _checks
from mercer.density._log_kde import Problem
from mercer.density._reference import log_kernel

__all__ = ["METHODS", "ApproximateSum", "approximate_kernel_sum"]

METHODS = ("features", "hashing", "coreset")
#: n m d up to which "auto" is exact: some minutes.
EXACT_WORK = 1e13


@dataclasses.dataclass(frozen=True, slots=True)
class ApproximateSum:
    """Sums of kernels and what is known of their error.

    Attributes:
        values: (m,) estimates of the sum of w_i K((x - y_i)/h); by features they may be below 0.
        std_error: (m,) estimated standard deviations of the estimates.
        method: The one that was used; "exact" where "auto" found that cheaper.
        bandwidth: h.
    """

    values: np.ndarray
    std_error: np.ndarray
    method: str
    bandwidth: float


def approximate_kernel_sum(
    X: Any,
    Y: Any,
    bandwidth: float,
    kernel: str = "gaussian",
    *,
    method: str = "auto",
    size: int = 1024,
    weights: Any = None,
    random_state: Any = None,
    threads: int | None = None,
) -> ApproximateSum:
    """Estimate the sum over the data of w_i K((x - y_i)/h).

    Args:
        X: Queries (m, d).
        Y: Data (n, d).
        bandwidth: h > 0, one number.
        kernel: As in :func:`kernel_sum`; "features" takes the Gaussian, Laplace, exponential and Cauchy kernels.
        method: "features", "hashing", "coreset"; "auto" is exact while n m d is at most 1e13, else tries those that
            cost less than the exact sum on 32 queries, and takes the one with the smallest median error relative to the
            exact sum there.
        size: What the error shrinks with the root of: pairs of features, tables, or rows sampled a query. >= 2.
        weights: One a row of Y.
        random_state: The same gives the same bits.
        threads: Of exact sums; None means MERCER_NUM_THREADS or every core.

    Raises:
        ValueError: As in :func:`kernel_sum`; a grid of bandwidths; a kernel that "features" cannot take.

    Cost: features O((n + m) D d); hashing O((n + m) L d) and a table at a time in memory; coreset O((n + m) sqrt(n) d).

    Example:
        >>> import numpy as np
        >>> from mercer.density import approximate_kernel_sum, kernel_sum
        >>> rng = np.random.default_rng(0)
        >>> Y, X = rng.standard_normal((20_000, 5)), rng.standard_normal((10, 5))
        >>> found = approximate_kernel_sum(X, Y, 1.0, method="features", size=4096, random_state=0)
        >>> bool((abs(found.values - kernel_sum(X, Y, 1.0)) < 5 * found.std_error).all())
        True
    """
    method = _checks.choice("method", method, ("auto", *METHODS))
    size = _checks.integer("size", size, 2)
    seed = _checks.random_seed(random_state)
    problem = Problem(X, Y, bandwidth, kernel, weights, False, None, threads)
    if problem.bandwidths.size != 1:
        raise ValueError(f"bandwidth must be one number to approximate, got shape {np.shape(bandwidth)}")
    h = float(problem.bandwidths[0, 0])
    if method == "features" and kernel not in SPECTRAL:
        raise ValueError(f'method="features" must have a kernel among {", ".join(SPECTRAL)}, got {kernel!r}')
    m, (n, d) = len(problem.X), problem.Y.shape
    if method == "auto":
        method = "exact" if m * n * d <= EXACT_WORK else _best(problem, size, seed)
        if method == "exact":
            return ApproximateSum(np.exp(problem.sums(False)[0][:, 0]), np.zeros(m), "exact", h)
    values, errors = _run(method, problem.X, problem, size, seed)
    return ApproximateSum(values, errors, method, h)


def _run(method: str, X: np.ndarray, problem: Problem, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.Philox(key=[seed, METHODS.index(method)]))
    h = float(problem.bandwidths[0, 0])
    w = np.ones(len(problem.Y)) if problem.weights is None else problem.weights
    run = {"features": _features, "hashing": _hashing, "coreset": _coreset}[method]
    return run(X, problem.Y, w, h, problem.kernel, size, rng)


def _best(problem: Problem, size: int, seed: int) -> str:
    """The method with the smallest error on some queries, of those that cost less than the exact sum; else "exact"."""
    m, (n, d) = len(problem.X), problem.Y.shape
    cost = {
        "features": 2 * size * (n + m) * d,
        "hashing": size * (n + m) * (4 * d + 64),  # hashes, and a sort
        "coreset": n**1.5 * d + 8 * m * (8 * n**0.5 + size) * d,
    }
    usable = [
        name for name in METHODS
        if cost[name] < m * n * d and (name != "features" or problem.kernel in SPECTRAL)
    ]  # fmt: skip
    few = np.ascontiguousarray(problem.X[:: -(-m // 32)])
    h, threads = problem.bandwidths[0, 0], problem.threads
    trial = Problem(few, problem.Y, h, problem.kernel, problem.weights, False, None, threads)
    exact = np.exp(trial.sums(False)[0][:, 0])
    errors: dict[str, float] = {}
    for method in usable:
        tried = size if method == "coreset" else min(size, 64)  # the others cost n for each of their size
        values, std_error = _run(method, few, problem, tried, seed)
        off = np.maximum(np.abs(values - exact), std_error) * math.sqrt(tried / size)
        errors[method] = float(np.median(off / np.maximum(exact, 1e-300)))
    return min(errors, key=lambda name: errors[name], default="exact")


# Random Fourier features


def _spectral_gaussian(D: int, d: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((D, d))


def _spectral_laplace(D: int, d: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_cauchy((D, d))


def _spectral_exponential(D: int, d: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((D, d)) / np.abs(rng.standard_normal((D, 1)))


def _spectral_cauchy(D: int, d: int, rng: np.random.Generator) -> np.ndarray:
    return rng.laplace(size=(D, d))


#: Kernels by their spectral law.
SPECTRAL = {
    "gaussian": _spectral_gaussian,
    "laplace": _spectral_laplace,
    "exponential": _spectral_exponential,
    "cauchy": _spectral_cauchy,
}


def _features(
    X: np.ndarray, Y: np.ndarray, w: np.ndarray, h: float, kernel: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The mean over D frequencies of sum w cos(f·(x - y)/h), and the standard error of that mean."""
    center = Y.mean(0)
    total, square = np.zeros(len(X)), np.zeros(len(X))
    done = 0
    while done < size:
        D = min(64, size - done)
        F = SPECTRAL[kernel](D, Y.shape[1], rng) / h
        sums = np.zeros((2, D))
        for start in range(0, len(Y), 1 << 14):
            angle = (Y[start : start + (1 << 14)] - center) @ F.T
            part = w[start : start + (1 << 14)]
            sums += part @ np.cos(angle), part @ np.sin(angle)
        angle = (X - center) @ F.T
        terms = np.cos(angle) * sums[0] + np.sin(angle) * sums[1]  # (m, D), the cosine of a difference
        total += terms.sum(1)
        square += (terms * terms).sum(1)
        done += D
    mean = total / size
    variance = np.maximum(square / size - mean * mean, 0.0) / (size - 1)
    return mean, np.sqrt(variance)


# Importance sampling by hashing


def _hashing(
    X: np.ndarray, Y: np.ndarray, w: np.ndarray, h: float, kernel: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The mean over tables of W_bucket K(x, y)/p(x, y), y drawn from x's bucket by weight.

    Euclidean hashes floor((a·y + b)/c), some at a time, with c and their number so that a bucket of the typical
    distance is still met; p(x, y) is their collision probability (Datar et al. 2004).
    """
    m, d = X.shape
    total, square = np.zeros(m), np.zeros(m)
    few = Y[rng.choice(len(Y), min(len(Y), 64), replace=False)]
    typical = (
        float(np.median(np.linalg.norm(few[:, None] - few[None], axis=-1)[np.triu_indices(len(few), 1)])) or h
    )
    hashes = max(1, min(4, round(math.log2(len(Y)) / 4)))
    cell = max(2.0 * typical, 1e-300) * hashes**0.5
    for _ in range(size):
        A = rng.standard_normal((hashes, d)) / cell
        b = rng.random(hashes)
        codes = [np.floor(Z @ A.T + b).astype(np.int64) for Z in (Y, X)]
        code_y, code_x = _mixed(*codes)
        order = np.argsort(code_y, kind="stable")
        cumulative = np.concatenate([[0.0], np.cumsum(w[order])])
        sorted_codes = code_y[order]
        first = np.searchsorted(sorted_codes, code_x, "left")
        last = np.searchsorted(sorted_codes, code_x, "right")
        weight = cumulative[last] - cumulative[first]
        met = np.flatnonzero((last > first) & (weight > 0))
        uniform = np.asarray(rng.random(m))
        drawn = cumulative[first[met]] + uniform[met] * weight[met]
        at = np.searchsorted(cumulative, drawn, "right") - 1
        y = Y[order[np.clip(at, first[met], last[met] - 1)]]
        apart = X[met].astype(np.float64) - y
        p = _collision(np.linalg.norm(apart, axis=1) / cell) ** hashes
        value = weight[met] * np.exp(log_kernel(kernel, apart / h)) / p
        total[met] += value
        square[met] += value * value
    mean = total / size
    return mean, np.sqrt(np.maximum(square / size - mean * mean, 0.0) / (size - 1))


def _mixed(*codes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Rows of whole numbers as one number a row, the same for the same row in all arrays."""
    low = np.min([c.min(0, initial=0) for c in codes], axis=0)
    span = np.max([c.max(0, initial=0) for c in codes], axis=0) - low + 1
    factors = np.concatenate([[1], np.cumprod(span[:-1])])
    return tuple((c - low) @ factors for c in codes)


def _collision(c: np.ndarray) -> np.ndarray:
    """Probability that floor(a·x + b) is that of y, for |x - y| = c cells: E max(0, 1 - |c g|)."""
    erf = np.vectorize(math.erf, otypes=[float])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = 1 / c
        p = erf(t / math.sqrt(2)) - np.sqrt(2 / math.pi) * c * -np.expm1(-t * t / 2)
    return np.where(c > 0, p, 1.0)


# Near ones exactly, the rest sampled


def _coreset(
    X: np.ndarray, Y: np.ndarray, w: np.ndarray, h: float, kernel: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Data in groups about sqrt(n) of them around pivots; the groups nearest to a query are summed exactly, of the
    others a sample of `size` is drawn by weight."""
    n, m = len(Y), len(X)
    groups = max(1, min(n, round(math.sqrt(n))))
    pivots = Y[rng.choice(n, groups, replace=False)]
    own = _nearest_pivots(Y, pivots, 1)[:, 0]
    order = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[order], np.arange(groups + 1))
    sorted_y, sorted_w = Y[order], w[order]
    cumulative = np.concatenate([[0.0], np.cumsum(sorted_w)])
    near = np.sort(_nearest_pivots(X, pivots, min(groups, 8)), axis=1)
    values, std_error = np.zeros(m), np.zeros(m)
    for i, (x, mine) in enumerate(zip(X.astype(np.float64), near, strict=True)):
        rows = np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in mine])
        values[i] = sorted_w[rows] @ np.exp(log_kernel(kernel, (x - sorted_y[rows]) / h))
        # What is left: draw on the line of weights with the near groups cut out.
        cuts = cumulative[bounds[mine]], cumulative[bounds[mine + 1]]
        rest = cumulative[-1] - (cuts[1] - cuts[0]).sum()
        if not rest > 1e-12 * cumulative[-1]:
            continue
        u = (np.arange(size) + rng.random(size)) / size * rest  # one draw in each of `size` equal strata
        for low, high in zip(*cuts, strict=True):
            u = np.where(u >= low, u + (high - low), u)
        at = np.clip(np.searchsorted(cumulative, u, "right") - 1, 0, n - 1)
        terms = rest * np.exp(log_kernel(kernel, (x - sorted_y[at]) / h))
        values[i] += terms.mean()
        std_error[i] = terms.std(ddof=1) / math.sqrt(size)
    return values, std_error


def _nearest_pivots(Z: np.ndarray, pivots: np.ndarray, k: int) -> np.ndarray:
    lengths = (pivots * pivots).sum(1) / 2
    found = np.empty((len(Z), k), np.int64)
    step = max(1, (1 << 21) // len(pivots))
    for start in range(0, len(Z), step):
        closeness = Z[start : start + step] @ pivots.T - lengths
        found[start : start + step] = np.argpartition(-closeness, k - 1, axis=1)[:, :k]
    return found

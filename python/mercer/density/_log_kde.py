"""Kernel density estimates in any dimension: rho_h(x) = sum_i w_i K((x - y_i)/h) / (h^d ∫K sum_i w_i), in logarithms.

The sum over the data is a streaming log-sum-exp over tiles of distances, which stay in the cache: nothing of size
n x m is made, and a whole grid of bandwidths costs one pass over the distances. The distances are sums of squared
differences, so neither the place of the data nor a query that equals a data point costs a digit. The results do not
depend on the number of threads.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer._backend import is_reference
from mercer.density._kernels import KERNELS, log_norm

__all__ = ["CondensationWarning", "KernelDiagnostics", "kernel_sum", "log_kde"]

# h and 1/h², and with them h^d in logarithms, stay in the range of float64.
SMALLEST, LARGEST = 1e-140, 1e140


class CondensationWarning(UserWarning):
    """The bandwidth is below h_G: a few data points carry the whole estimate."""


@dataclasses.dataclass(frozen=True, slots=True)
class KernelDiagnostics:
    """How a density estimate is made up of its data; arrays of the shape of the estimate.

    Attributes:
        log_density: log rho_h.
        participation: sum of p_i², for the shares p_i = w_i K_i / sum w K: 1 where one point carries all, near 0
            where many do. 1/participation is not the effective sample size of a mean: below h_CLT the shares have
            a heavy tail.
        entropy: -sum p log p, in nats, at most log n.
    """

    log_density: np.ndarray
    participation: np.ndarray
    entropy: np.ndarray


def log_kde(
    X: Any,
    Y: Any,
    bandwidth: Any,
    kernel: str = "gaussian",
    *,
    weights: Any = None,
    leave_one_out: bool = False,
    whitening: Any = None,
    return_diagnostics: bool = False,
    threads: int | None = None,
) -> np.ndarray | KernelDiagnostics:
    """Log density at X of the kernel density estimate made of Y: exact, in any dimension, at any bandwidth.

    Args:
        X: Queries (m, d).
        Y: Data (n, d). Two float32 arrays are summed in float32 (distances to a few 1e-6 of themselves), anything
            else in float64.
        bandwidth: h > 0, in the units of the data (of the whitened data with `whitening`): a number; a grid (H,),
            all in one pass; or one for each query as a column (m, 1), or a grid for each (m, H).
        kernel: "gaussian", "tophat", "epanechnikov", "exponential", "linear" and "cosine" as in scikit-learn,
            "laplace" (exp(-|u|₁)) or "cauchy" (product of 1/(1 + u_i²)); all with their constant in d dimensions.
        weights: One a row of Y, finite and >= 0; None weighs all alike.
        leave_one_out: X is Y (the same number of rows); row i is left out of its own estimate, and its weight out
            of the sum of weights.
        whitening: "covariance" to measure distances in units of the covariance of Y, or a matrix W (d, d) to
            measure them in W x. The density is that of the data as given: log |det W| is added.
        return_diagnostics: Also give the participation and the entropy of the shares.
        threads: None means MERCER_NUM_THREADS or every core.

    Returns:
        float64 (m,), or (m, H) for a grid; -inf where a kernel of bounded support reaches no data. With
        `return_diagnostics` a :class:`KernelDiagnostics` of such arrays.

    Raises:
        ValueError: h outside [1e-140, 1e140], another number of columns, no data, NaN or infinity, bad weights.

    Cost: O(n m d) time: at d = 64 about 2 ns a pair in float64 on one AVX-512 core, 0.4 ns more for each further
    bandwidth. Memory: 16 MiB and 32 bytes a query and bandwidth (at most 2^18 of those at a time); with `whitening`
    also copies of X and Y.

    Source: Biroli and Mézard 2024, arXiv 2408.05807, for what the bandwidth does when d is large.

    Example:
        >>> import numpy as np
        >>> from mercer.density import log_kde
        >>> Y = np.random.default_rng(0).standard_normal((1000, 512))
        >>> log_kde(Y[:2], Y, [0.01, 1.0]).shape  # the density itself is 1e1877, or 1e-480
        (2, 2)
        >>> bool(np.isfinite(log_kde(Y[:2] + 100, Y, 0.001)).all())
        True
    """
    problem = Problem(X, Y, bandwidth, kernel, weights, leave_one_out, whitening, threads)
    log_sums, participation, entropy = problem.sums(return_diagnostics)
    log_density = log_sums - problem.log_scale
    if not return_diagnostics:
        return problem.shaped(log_density)
    return KernelDiagnostics(*map(problem.shaped, (log_density, participation, entropy)))


def kernel_sum(
    X: Any,
    Y: Any,
    bandwidth: Any,
    kernel: str = "gaussian",
    *,
    weights: Any = None,
    leave_one_out: bool = False,
    whitening: Any = None,
    threads: int | None = None,
    log: bool = False,
) -> np.ndarray:
    """Sum over the data of w_i K((x - y_i)/h), without the constant of the kernel: K(0) = 1.

    Args:
        X, Y, bandwidth, kernel, weights, leave_one_out, whitening, threads: As in :func:`log_kde`; without
            `weights` each row counts 1.
        log: Give the logarithm, which does not underflow.

    Returns:
        float64 (m,), or (m, H) for a grid.

    Raises:
        ValueError: As in :func:`log_kde`.

    Cost: As :func:`log_kde`.

    Example:
        >>> from mercer.density import kernel_sum
        >>> kernel_sum([[0.0, 0.0]], [[0.0, 0.0], [3.0, 4.0]], 5.0, "exponential")  # 1 + 1/e
        array([1.36787944])
    """
    problem = Problem(X, Y, bandwidth, kernel, weights, leave_one_out, whitening, threads)
    sums = problem.sums(False)[0]
    return problem.shaped(sums if _checks.flag("log", log) else np.exp(sums))


class Problem:
    """The arguments of a sum of kernels, checked."""

    def __init__(
        self,
        X: Any,
        Y: Any,
        bandwidth: Any,
        kernel: str,
        weights: Any,
        leave_one_out: bool | np.ndarray,
        whitening: Any = None,
        threads: int | None = None,
    ) -> None:
        self.kernel = _checks.choice("kernel", kernel, tuple(KERNELS))
        self.threads = _checks.threads("threads", threads)
        self.X, self.Y = points("X", X), points("Y", Y)
        (m, d), n = self.X.shape, len(self.Y)
        if n == 0:
            raise ValueError("Y must have at least one row, got none")
        if self.Y.shape[1] != d:
            raise ValueError(f"X must have the {self.Y.shape[1]} columns of Y, got {d}")
        self.bandwidths, self.grid = bandwidths(bandwidth, m)
        self.weights = None if weights is None else _checks.weights("weights", weights, n)
        self.leave_out: np.ndarray | None = None
        if isinstance(leave_one_out, np.ndarray):  # ours alone: the row each query leaves out
            self.leave_out = np.ascontiguousarray(leave_one_out, np.int64)
        elif _checks.flag("leave_one_out", leave_one_out):
            self.leave_out = np.arange(m)
        if self.leave_out is not None and (
            len(self.leave_out) != m or n < 2 or (leave_one_out is True and m != n)
        ):
            raise ValueError(
                f"leave_one_out must have X = Y of at least 2 rows, got X with {m} and Y with {n} rows"
            )
        if self.X.dtype != self.Y.dtype or whitening is not None:
            self.X, self.Y = (a.astype(np.float64, copy=False) for a in (self.X, self.Y))
        size_x = _core.largest_entry(self.X, "X", self.threads)
        self.largest = max(size_x, _core.largest_entry(self.Y, "Y", self.threads))
        if self.largest > LARGEST:
            raise ValueError(f"X and Y must have entries of magnitude <= {LARGEST:g}, got {self.largest:g}")
        log_det = 0.0
        if whitening is not None:
            center = self.Y[:BLOCK].mean(0)  # any point among the data keeps the digits of their differences
            W, log_det = whitening_matrix(whitening, self.Y, center, self.weights)
            self.X, self.Y = (in_blocks(rows, center, W) for rows in (self.X, self.Y))
            self.largest = max(_core.largest_entry(a, "X and Y", self.threads) for a in (self.X, self.Y))
        total: Any = float(n) if self.weights is None else float(self.weights.sum())
        if self.leave_out is not None:
            total = total - (np.ones(m) if self.weights is None else self.weights[self.leave_out])[:, None]
        with np.errstate(divide="ignore"):
            #: log of what a sum is divided by to be a density, (m or 1, H).
            self.log_scale = np.log(total) + d * np.log(self.bandwidths) + (log_norm(kernel, d) - log_det)

    def sums(self, diagnose: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log of the sums (m, H); participation and entropy where asked for, else empty."""
        if is_reference():
            from mercer.density._reference import log_kernel_sums

            return log_kernel_sums(self)
        shape = len(self.X), self.bandwidths.shape[1]
        out, participation, entropy = (
            np.empty(shape if ask else (0, 0)) for ask in (True, diagnose, diagnose)
        )
        _core.log_kernel_sums(
            self.X,
            self.Y,
            self.kernel,
            self.bandwidths,
            self.largest,
            out,
            weights=self.weights,
            leave_out=self.leave_out,
            participation=participation if diagnose else None,
            entropy=entropy if diagnose else None,
            threads=self.threads,
        )
        return out, participation, entropy

    def shaped(self, values: np.ndarray) -> np.ndarray:
        """(m, H), or (m,) where the bandwidth was no grid."""
        return values if self.grid else values[:, 0]


def points(name: str, value: Any) -> np.ndarray:
    """`value` as a C-contiguous (n, d) array of float32 or float64, d >= 1."""
    array = _checks.real_array(name, value)
    if array.ndim == 2 and array.shape[1] == 0:
        raise ValueError(
            f"{name} must have columns, got 0 feature(s) (shape={array.shape}) while a minimum of 1 is required."
        )
    return _checks.matrix(name, array)


def bandwidths(value: Any, m: int) -> tuple[np.ndarray, bool]:
    """Bandwidths as (1, H) or (m, H), and whether the answer has an axis for them."""
    if isinstance(value, bool) or isinstance(value, str):
        raise TypeError(f"bandwidth must be a number or an array of numbers, got {value!r}")
    array = _checks.real_array("bandwidth", value).astype(np.float64)
    if array.ndim > 2 or array.size == 0 or (array.ndim == 2 and len(array) not in (1, m)):
        raise ValueError(
            f"bandwidth must be a number, a grid (H,), or one row a query ({m}, H), got shape {array.shape}"
        )
    bad = ~((array >= SMALLEST) & (array <= LARGEST))
    if bad.any():
        raise ValueError(
            f"bandwidth must be > 0 (and in [{SMALLEST:g}, {LARGEST:g}]), got {array[bad].flat[0]}"
        )
    grid = array.ndim == 1 or (array.ndim == 2 and (array.shape[1] > 1 or len(array) != m))
    return np.ascontiguousarray(np.atleast_2d(array)), grid


BLOCK = 2048  # rows that stay in the cache


def in_blocks(rows: np.ndarray, center: np.ndarray, W: np.ndarray) -> np.ndarray:
    """(rows - center) W^T."""
    out = np.empty_like(rows)
    for start in range(0, len(rows), BLOCK):
        np.matmul(rows[start : start + BLOCK] - center, W.T, out=out[start : start + BLOCK])
    return out


def covariance_about(center: np.ndarray, Y: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """The unbiased covariance (with weights as numpy.cov's `aweights`), through sums about a point among the data."""
    d = Y.shape[1]
    p = None if weights is None else weights / weights.sum()
    share = 1 / len(Y)
    mean, square = np.zeros(d), np.zeros((d, d))
    for start in range(0, len(Y), BLOCK):
        apart = Y[start : start + BLOCK] - center
        weighed = apart * share if p is None else apart * p[start : start + BLOCK, None]
        mean += weighed.sum(0)
        square += apart.T @ weighed
    return (square - np.outer(mean, mean)) / (1 - (share if p is None else p @ p))


def whitening_matrix(
    whitening: Any, Y: np.ndarray, center: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, float]:
    """(W, log |det W|)."""
    d = Y.shape[1]
    if isinstance(whitening, str):
        _checks.choice("whitening", whitening, ("covariance",))
        if len(Y) < 2:
            raise ValueError(f'whitening="covariance" must have at least 2 rows of Y, got {len(Y)}')
        values, vectors = np.linalg.eigh(covariance_about(center, Y, weights))
        if not values[0] > 1e-13 * values[-1]:
            raise ValueError(
                f"whitening must have a covariance of full rank, got eigenvalues from {values[0]:.3g} to "
                f"{values[-1]:.3g}; project the data first"
            )
        W = vectors.T / np.sqrt(values)[:, None]
    else:
        W = _checks.real_array("whitening", whitening).astype(np.float64)
        if W.shape != (d, d):
            raise ValueError(f"whitening must be a matrix ({d}, {d}), got shape {W.shape}")
    sign, log_det = np.linalg.slogdet(W)
    if not (sign and np.isfinite(log_det)):
        raise ValueError("whitening must be an invertible matrix of finite numbers, got a singular one")
    return W, float(log_det)


def warn_condensed(h: float, h_g: float) -> None:
    """Say that h is below h_G."""
    warnings.warn(
        f"bandwidth {h:.4g} is below h_G = {h_g:.4g}, where a few data points carry the whole estimate; the bandwidth "
        'that minimises the KL divergence lies there too (see optimal_bandwidth), averages do not: "effective '
        'sample sizes" mean nothing here',
        CondensationWarning,
        stacklevel=3,
    )

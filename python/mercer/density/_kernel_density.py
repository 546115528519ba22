"""A kernel density estimate as an estimator: rho_h(x) = sum_i w_i K((x - y_i)/h) / (h^d ∫K sum_i w_i)."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from mercer import _checks, _core
from mercer._estimator import Estimator, column_names, raise_not_fitted
from mercer.density import _approximate
from mercer.density._bandwidth import METHODS, gaussian_thresholds, optimal_bandwidth
from mercer.density._kernels import KERNELS, draw_kernel, weighted_draw
from mercer.density._log_kde import Problem, bandwidths, log_kde, points, warn_condensed

__all__ = ["KernelDensity"]


class KernelDensity(Estimator):
    """Kernel density estimation in any dimension, with the bandwidth that its dimension asks for.

    Args:
        bandwidth: h > 0; an array of them (a grid, all scored in one pass); or a rule of :func:`optimal_bandwidth`:
            "kl" (or "nn"), "loo", "gaussian", "silverman", "scott".
        kernel: As in :func:`log_kde`.
        method: "exact"; "features", "hashing" or "coreset", which cost less for large n and have an error (see
            :func:`approximate_kernel_sum`); or "auto", which is exact while n m d is at most 1e13 and then the
            approximation with the smallest estimated error. The error goes to `score_error_`.
        random_state: Of the rules, the approximations, and of `sample` where that is given none.
        n_jobs: Threads; None means MERCER_NUM_THREADS or every core. Results do not depend on it.

    Attributes:
        bandwidth_: h, a float, or an array for a grid.
        thresholds_: h_G, h_CLT and h_opt of Gaussian data with the covariance of these
            (:class:`KdeThresholds`); None for fewer than three rows or copies of one.
        score_error_: After an approximate `score_samples`, the estimated standard error of each log density; infinite
            where the estimate is not positive and the log density -inf.
        n_features_in_: d.
        feature_names_in_: Column names, where the data had them.

    A Gaussian kernel with h < h_G draws a :class:`CondensationWarning` when it is fitted, except where a rule that
    minimises the divergence ("kl", "nn", "gaussian", "loo") chose h: the minimum is on that side.

    Cost: `fit` keeps the data, without a copy where they are a C-contiguous array of float32 or float64; O(n d²) for
    the thresholds of at most 4096 rows. `score_samples` as :func:`log_kde`.

    Example:
        >>> import numpy as np
        >>> from mercer.density import KernelDensity
        >>> X = np.random.default_rng(0).standard_normal((3000, 40))
        >>> held_out = np.random.default_rng(1).standard_normal((500, 40))
        >>> kde = KernelDensity(bandwidth="kl").fit(X)
        >>> scott = KernelDensity(bandwidth="scott").fit(X)
        >>> kde.score(held_out) > scott.score(held_out)
        True
    """

    _estimator_type = "density_estimator"

    def __init__(
        self,
        bandwidth: Any = "kl",
        kernel: str = "gaussian",
        *,
        method: str = "exact",
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.method = method
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Keep the data and settle the bandwidth.

        Args:
            X: Data (n, d), finite. float32 stays float32.
            y: Ignored.
            sample_weight: (n,) finite weights >= 0.

        Raises:
            ValueError: bad arguments, NaN or infinity, a rule that finds no bandwidth (fewer than two different
                rows). The estimator is left as it was.
        """
        threads = self._check_arguments()
        data = points("X", X)
        if not len(data):
            raise ValueError(
                f"X has 0 sample(s) (shape={data.shape}) while a minimum of 1 is required by KernelDensity."
            )
        w = None if sample_weight is None else _checks.weights("sample_weight", sample_weight, len(data))
        _core.largest_entry(data, "X", threads)
        rule = isinstance(self.bandwidth, str)
        seed = 0 if self.random_state is None else _checks.random_seed(self.random_state)
        if rule and len(data) < 2:
            raise ValueError(
                f"X has {len(data)} sample(s) (n_samples = {len(data)}) while a minimum of 2 is required by "
                f"the rule bandwidth={self.bandwidth!r}"
            )
        if rule:
            h: Any = optimal_bandwidth(
                data, self.bandwidth, kernel=self.kernel, weights=w, random_state=seed, threads=threads
            )
        else:
            grid, is_grid = bandwidths(self.bandwidth, 1)
            if np.ndim(self.bandwidth) > 1:
                raise ValueError(
                    f"bandwidth must be a number or a grid (H,), got shape {np.shape(self.bandwidth)}"
                )
            h = grid[0] if is_grid else float(grid[0, 0])
        thresholds = None
        if len(data) > 2 and (data[1:] != data[0]).any():
            thresholds = gaussian_thresholds(data, w)
            chosen_for_it = rule and self.bandwidth not in ("silverman", "scott")
            if self.kernel == "gaussian" and not chosen_for_it and np.min(h) < thresholds.h_g:
                warn_condensed(float(np.min(h)), float(thresholds.h_g))
        self._set_columns(column_names(X), data.shape[1])
        self.bandwidth_, self.thresholds_, self._data, self._weights, self._seed = (
            h,
            thresholds,
            data,
            w,
            seed,
        )
        self.__dict__.pop("score_error_", None)
        return self

    def _check_arguments(self) -> int | None:
        _checks.choice("kernel", self.kernel, tuple(KERNELS))
        _checks.choice("method", self.method, ("exact", "auto", *_approximate.METHODS))
        if isinstance(self.bandwidth, str):
            _checks.choice("bandwidth", self.bandwidth, METHODS)
        return _checks.threads("n_jobs", self.n_jobs)

    def score_samples(self, X: Any, *, bandwidth: Any = None) -> np.ndarray:
        """Log density of each row.

        Args:
            X: Queries (m, d).
            bandwidth: Others than the fitted one for this call: a number, a grid, or one a query as a column
                (m, 1).

        Returns:
            float64 (m,), or (m, H) for a grid.
        """
        queries = self._queries(X)
        h = self.bandwidth_ if bandwidth is None else bandwidth
        arguments: dict[str, Any] = {"weights": self._weights, "threads": self._check_arguments()}
        work = len(queries) * self._data.size
        if self.method == "exact" or (self.method == "auto" and work <= _approximate.EXACT_WORK):
            values = log_kde(queries, self._data, h, self.kernel, **arguments)
            assert isinstance(values, np.ndarray)
            return values
        found = _approximate.approximate_kernel_sum(
            queries, self._data, h, self.kernel, method=self.method, random_state=self._seed, **arguments
        )
        scale = Problem(queries[:1], self._data[:1], found.bandwidth, self.kernel, None, False).log_scale[
            0, 0
        ]
        total = len(self._data) if self._weights is None else self._weights.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            # By features some may fall below 0: nothing is known of their logarithm.
            sums = np.maximum(found.values, 0.0)
            self.score_error_ = np.where(sums > 0, found.std_error / sums, np.inf)
            return np.log(sums) - np.log(total) - scale

    def score(self, X: Any, y: Any = None) -> float:
        """Total log density of the rows, as scikit-learn's; (H,) for a grid."""
        total = self.score_samples(X).sum(0)
        return total if np.ndim(total) else float(total)

    def loo_scores(self, *, bandwidth: Any = None) -> np.ndarray:
        """Log density at each data point without itself, float64 (n,) or (n, H): what to choose a bandwidth by."""
        self._fitted()
        values = log_kde(
            self._data,
            self._data,
            self.bandwidth_ if bandwidth is None else bandwidth,
            self.kernel,
            weights=self._weights,
            leave_one_out=True,
            threads=self._check_arguments(),
        )
        assert isinstance(values, np.ndarray)
        return values

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draw rows of the estimate: a data point by its weight, and a step of the kernel.

        Args:
            n_samples: Rows.
            random_state: None (the estimator's, or the operating system's), an int, a Generator or RandomState.

        Returns:
            float64 (n_samples, d).

        Raises:
            ValueError: the bandwidth is a grid.
        """
        self._fitted()
        n = _checks.integer("n_samples", n_samples, 0)
        if np.ndim(self.bandwidth_):
            raise ValueError(f"bandwidth must be one number to sample, got a grid of {len(self.bandwidth_)}")
        seed = _checks.random_seed(self.random_state if random_state is None else random_state)
        rng = np.random.default_rng(seed)
        rows = weighted_draw(n, self._weights, len(self._data), rng)
        steps = draw_kernel(self.kernel, n, self._data.shape[1], rng)
        return self._data[rows].astype(np.float64) + self.bandwidth_ * steps

    def _fitted(self) -> None:
        if not hasattr(self, "bandwidth_"):
            raise_not_fitted(self, "call fit first")

    def _queries(self, X: Any) -> np.ndarray:
        self._fitted()
        queries = points("X", X)
        self._check_columns(X, queries.shape[1])
        return queries

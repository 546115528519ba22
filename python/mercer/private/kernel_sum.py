"""Sums of kernels to private rows, released once under differential privacy.

Backurs, Lin, Mahabadi, Silwal and Tarnawski, "Efficiently Computing Similarities to Private Datasets" (ICLR 2024),
sections 4 and 5; Wagner, Naaman and Shavit 2023 for the sums of random features. k(x, y) = E cos(w·(x - y)): a release
is the noisy sum of (cos w·x, sin w·x) over the rows, for m public frequencies w. A smooth kernel 1/(1 + h) is the mean
of exp(-t h) over t ~ Exp(1), so its frequencies are drawn from that mixture and cost what one kernel costs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mercer import _checks
from mercer.private import _features
from mercer.private._estimators import PrivateSum
from mercer.private._features import KERNELS, MIXED, RADIAL, FeatureSums, exponential_sum
from mercer.private._structure import Structure
from mercer.private.ledger import PrivacyLedger

__all__ = ["PrivateKernelSum"]


def pays(kernel: str, columns: int, m: int) -> bool:
    """Whether the fast Hadamard transform beats a matrix product: measured, docs/benchmarks.md."""
    return kernel in RADIAL and columns >= 64 and 4 * m >= columns


class PrivateKernelSum(PrivateSum):
    """S(y) = sum over private rows x of k((x - y) / bandwidth), for any y, from one differentially private release.

    Args:
        kernel: "gaussian" exp(-|u|²), "exponential" exp(-|u|), "laplace" exp(-|u|₁), "cauchy" prod 1/(1 + u_i²),
            "smooth_l2" 1/(1 + |u|), "smooth_l2sq" 1/(1 + |u|²), "smooth_l1" 1/(1 + |u|₁).
        bandwidth: > 0. (The usual Gaussian exp(-|x - y|²/2h²) has bandwidth sqrt(2) h.)
        epsilon: > 0.
        n_features: m frequencies. None: epsilon n / sqrt(8), which minimises a bound of the error, of the noisy n where
            n is not public; at most 8192.
        auto_factor: Multiplies that m: below 1 for spread-out data, whose feature error is smaller than the bound.
        reduce_dim: First map the rows to so many dimensions by a public random matrix (Johnson and Lindenstrauss);
            for the kernels of an l2 distance. The error does not depend on n or d.
        form: "pairs" (cos, sin) or "phases", single cosines with random phases: the paper's, twice the feature error.
        smooth: For the smooth kernels "mixture", or "exponential_sum": the paper's, a structure for each of the terms
            of an exponential sum of 1/z (`tol`), which split the budget. It needs bounds.
        tol: Of the exponential sum.
        structured: Frequencies by signs and fast Hadamard transforms, O(m log d) a row instead of O(m d), for kernels
            of an l2 distance. None: where it is faster, from 192 columns on, unless there are few features.
        mechanism, delta, neighbor, public_n, max_rows_per_user, ledger, insecure_seed, n_jobs: As in
            :class:`PrivateDistanceSum`.
        bounds: Not needed: the features of any row are bounded. Where given, rows outside are refused or clipped.
        outside: "raise" or "clip".
        random_state: Of the frequencies, which are public: their seed is in the release.

    Attributes:
        release_: The :class:`Release`: noisy state and the privacy statement.
        n_features_in_: d.

    Cost: `fit` and `query` O(m d) a row (O(m log d) structured); the release is 2 m numbers.

    Example:
        >>> import numpy as np
        >>> from mercer.private import PrivateKernelSum, kernel_sums
        >>> X = np.random.default_rng(0).normal(size=(20_000, 3))
        >>> private = PrivateKernelSum("gaussian", bandwidth=2.0, epsilon=1.0, random_state=0).fit(X)
        >>> Y = X[:5]
        >>> true = kernel_sums("gaussian", 2.0, X, Y) / len(X)
        >>> bool(np.all(abs(private.density(Y) - true) < 0.05))
        True
    """

    def __init__(
        self,
        kernel: str = "gaussian",
        bandwidth: float = 1.0,
        epsilon: float = 1.0,
        *,
        n_features: int | None = None,
        auto_factor: float = 1.0,
        reduce_dim: int | None = None,
        form: str = "pairs",
        smooth: str = "mixture",
        tol: float = 0.01,
        structured: bool | None = None,
        mechanism: str = "laplace",
        delta: float | None = None,
        neighbor: str = "add_remove",
        public_n: bool | None = None,
        bounds: Any = None,
        outside: str = "raise",
        max_rows_per_user: int | None = None,
        ledger: PrivacyLedger | None = None,
        random_state: Any = None,
        insecure_seed: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.epsilon = epsilon
        self.n_features = n_features
        self.auto_factor = auto_factor
        self.reduce_dim = reduce_dim
        self.form = form
        self.smooth = smooth
        self.tol = tol
        self.structured = structured
        self.mechanism = mechanism
        self.delta = delta
        self.neighbor = neighbor
        self.public_n = public_n
        self.bounds = bounds
        self.outside = outside
        self.max_rows_per_user = max_rows_per_user
        self.ledger = ledger
        self.random_state = random_state
        self.insecure_seed = insecure_seed
        self.n_jobs = n_jobs

    def density(self, Y: Any) -> np.ndarray:
        """The estimated mean similarity S(y) / n, float64 (m,): a kernel density up to the kernel's integral.

        n is the noisy count, or the exact one where it is public. Noise may take a value below 0.
        """
        return self._fitted().mean(Y)

    def _structure(self, columns: int) -> Structure:
        kernel = _checks.choice("kernel", self.kernel, tuple(KERNELS))
        bandwidth = _checks.real("bandwidth", self.bandwidth, 0.0, strict=True)
        form = _checks.choice("form", self.form, ("pairs", "phases"))
        smooth = _checks.choice("smooth", self.smooth, ("mixture", "exponential_sum"))
        factor = _checks.real("auto_factor", self.auto_factor, 0.0, strict=True)
        auto = self.n_features is None
        m = (
            _features.MOST_FEATURES
            if auto
            else _checks.integer("n_features", self.n_features, 1, high=1 << 20)
        )
        radial = kernel in RADIAL
        split = smooth == "exponential_sum" and kernel in MIXED
        terms = self._terms(columns, bounded=split)
        reduce = None
        if self.reduce_dim is not None:
            k = _checks.integer("reduce_dim", self.reduce_dim, 1)
            if not radial:
                raise ValueError(
                    f"reduce_dim must be None for kernel {kernel!r}, which is not one of an l2 distance"
                )
            reduce = {"dimensions": k, "seed": self._public_seed()}
        dimensions = reduce["dimensions"] if reduce else columns
        structured = self.structured
        if structured is None:
            structured = pays(kernel, dimensions, m)
        elif _checks.flag("structured", structured) and not radial:
            raise ValueError(
                f"structured must be False for kernel {kernel!r}, which is not one of an l2 distance"
            )
        mixture: list[list[Any]] = [[1.0, kernel, bandwidth]]
        if split:
            tol = _checks.real("tol", self.tol, 0.0, strict=True)
            family, power = MIXED[kernel]
            w, t = exponential_sum(tol, _widest(kernel, np.array(terms.low), np.array(terms.high), bandwidth))
            mixture = [
                [float(a * np.exp(-b)), family, float(bandwidth / b**power)]
                for a, b in zip(w, t, strict=True)
            ]
            # A term whose weight is far below the tolerance adds nothing but its share of the noise.
            mixture = [term for term in mixture if term[0] > tol / (10 * len(mixture))]
        options = {
            "kernel": kernel, "bandwidth": bandwidth, "form": form, "terms": mixture, "n_features": m,
            "auto_factor": factor if auto else None, "seed": self._public_seed(), "reduce": reduce,
            "structured": bool(structured),
        }  # fmt: skip
        return FeatureSums(terms, options)


def _widest(kernel: str, low: np.ndarray, high: np.ndarray, bandwidth: float) -> float:
    """The largest h(x, y) of 1/(1 + h) between two points of the box."""
    u = (high - low) / bandwidth
    if kernel == "smooth_l1":
        return float(np.sum(u))
    return float(np.sum(u * u)) if kernel == "smooth_l2sq" else float(np.sqrt(np.sum(u * u)))

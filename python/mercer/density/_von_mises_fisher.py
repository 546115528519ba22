"""The von Mises–Fisher distribution on the unit sphere of R^d.

f(x) = C_d(kappa) exp(kappa mu·x) for |x| = 1, with log C_d = (d/2-1) log kappa - (d/2) log 2 pi - log
I_{d/2-1}(kappa) (Mardia and Jupp 2000, section 9.3.2). The normal distribution of directions: embeddings,
orientations, wind. When the data are not on a sphere, or lie on axes (x and -x the same), use something else.
"""

from __future__ import annotations

import numbers
from typing import Any, Self

import numpy as np

from mercer import _checks, _core, special
from mercer._estimator import Estimator, raise_not_fitted
from mercer.density import _concentration as conc
from mercer.density._moments import SphereMoments
from mercer.density._rows import BLOCK_BYTES, Rows

__all__ = ["VonMisesFisher"]


class VonMisesFisher(Estimator):
    """A von Mises–Fisher distribution: given, or fitted by exact maximum likelihood.

    Args:
        dim: d >= 2. Taken from `mean_direction` or from the data where it is None.
        mean_direction: Unit vector mu (d,). It may be left out where only the concentration matters.
        concentration: kappa, finite and >= 0; 0 is the uniform distribution.
        bias_correction: Fit with R² replaced by (n R² - 1) / (n - 1), clamped at 0: what to ask for when n
            is small or d is large, where the plain estimate is too large. (With weights, n is (sum w)² / sum
            w².)
        normalize: Scale rows to unit length. Without it, rows that are not of length 1 to 1e-5 are refused;
            those that are count as the points of the sphere they stand for.
        random_state: Source of `sample` where that is given none: None, an int, a numpy Generator or
            RandomState.
        n_jobs: Threads; None means MERCER_NUM_THREADS or every core. Results do not depend on it.

    Attributes:
        mean_direction_: Fitted mu, float64 (d,).
        concentration_: Fitted kappa.
        mean_resultant_length_: R, the length of the mean of the rows (after the correction where it is asked
            for).
        moments_: The sufficient statistics, a :class:`SphereMoments`.
        n_features_in_: d.
        feature_names_in_: Column names, where the data had them.

    A fitted attribute goes before the constructor's argument. With both `mean_direction` and `concentration`
    given, the arguments are checked at once; else when they are used.

    Cost: one pass over the data, O(n d) time, 64 MiB beside it whatever n.

    Example:
        >>> import numpy as np
        >>> from mercer.density import VonMisesFisher
        >>> north = VonMisesFisher(mean_direction=[0, 0, 1], concentration=20.0)
        >>> X = north.sample(10_000, random_state=0)
        >>> fitted = VonMisesFisher().fit(X)
        >>> bool(abs(fitted.concentration_ - 20) < 1), bool(fitted.mean_direction_[2] > 0.999)
        (True, True)
        >>> bool(fitted.kl_divergence(north) < 1e-3)
        True
    """

    _estimator_type = "density_estimator"

    def __init__(
        self,
        dim: int | None = None,
        mean_direction: Any = None,
        concentration: float | None = None,
        *,
        bias_correction: bool = False,
        normalize: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
    ) -> None:
        self.dim = dim
        self.mean_direction = mean_direction
        self.concentration = concentration
        self.bias_correction = bias_correction
        self.normalize = normalize
        self.random_state = random_state
        self.n_jobs = n_jobs
        # scikit-learn wants constructors to take anything; what looks like a distribution is checked at once.
        if isinstance(concentration, numbers.Real) and np.ndim(mean_direction) == 1:
            self._given()

    # Fitting

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Maximum likelihood: mu = S / |S|, A_d(kappa) = |S| / W with S the (weighted) sum of the rows.

        Args:
            X: Rows (n, d) on the sphere: an array (memory-mapped ones are read in place), a list, iterator or
                callable giving 2-D chunks. float32 and float64 are read as they are, sums are float64.
            y: Ignored.
            sample_weight: (n,) finite weights >= 0, for arrays only.

        Raises:
            ValueError: rows that are not finite, zero or not of unit length, d < 2, or rows that all point
                one way (R = 1), for which the concentration would be infinite. The estimator is left as it
                was.
        """
        moments = SphereMoments()
        rows = self._read(X, sample_weight, moments)
        if moments.mean_resultant()[2] < ONE_WAY:
            raise ValueError(
                "X must have a mean resultant length in [0, 1), got 1: all rows point one way "
                f"(n_samples = {moments.count}), the concentration would be infinite"
            )
        return self._take(moments, rows.names)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Add rows to those seen since the last `fit` (or from the start) and estimate anew.

        While all rows seen point one way the concentration is infinite and the estimator counts as not
        fitted. Arguments and errors as in :meth:`fit`.
        """
        known = getattr(self, "moments_", None)
        moments = known.copy() if known is not None else SphereMoments()
        rows = self._read(X, sample_weight, moments)
        return self._take(moments, rows.names)

    def merge(self, other: VonMisesFisher) -> Self:
        """Take in the rows that `other` was fitted on, as if this one had been fitted on both. O(d)."""
        if not isinstance(other, VonMisesFisher) or not hasattr(other, "moments_"):
            raise TypeError(f"other must be a fitted VonMisesFisher, got {other!r}")
        moments = self.moments_.copy() if hasattr(self, "moments_") else SphereMoments()
        return self._take(moments.merge(other.moments_), getattr(self, "feature_names_in_", None))

    def _read(self, X: Any, sample_weight: Any, moments: SphereMoments) -> Rows:
        normalize, threads = self._options()
        _checks.flag("bias_correction", self.bias_correction)
        rows = Rows(X, repeated=False)
        if moments.dim:
            self._check_columns(X, rows.columns)
        rows.at_least(1)
        if self.dim not in (None, rows.columns):
            raise ValueError(f"X must have dim = {self.dim} columns, got {rows.columns}")
        weights = None
        if sample_weight is not None:
            if rows.count is None:
                raise TypeError("sample_weight must be None for a stream of chunks")
            weights = _checks.weights("sample_weight", sample_weight, rows.count)
        for first, block in rows.blocks():
            w = None if weights is None else weights[first : first + len(block)]
            moments.add(block, w, normalize=normalize, first_row=first, threads=threads)
        if moments.count == 0:
            raise ValueError("X must hold at least one row, got none")
        return rows

    def _take(self, moments: SphereMoments, names: np.ndarray | None) -> Self:
        """Estimate from `moments`; leave the estimates unset while all rows point one way."""
        direction, r, deficit = moments.mean_resultant()
        self.moments_ = moments
        self._set_columns(names, moments.dim)
        if deficit < ONE_WAY:
            for attribute in ("mean_direction_", "concentration_", "mean_resultant_length_"):
                self.__dict__.pop(attribute, None)
            return self
        if self.bias_correction:
            n = moments.weight**2 / moments.weight_squared
            r, deficit = float(conc.corrected_length(r, n)), 0.0
        complement = np.asarray(deficit) if 0 < deficit < 0.5 else None
        kappa = special.iv_ratio_inverse(moments.dim / 2 - 1, min(r, ALMOST_1), complement=complement)
        self.concentration_ = float(kappa)
        self.mean_direction_, self.mean_resultant_length_ = direction, r
        return self

    # The distribution

    def log_prob(self, X: Any) -> np.ndarray:
        """Log density of each row, float64 (n,). O(n d).

        Written as log C + kappa - kappa |x - mu|²/2, which keeps its digits at any concentration.
        """
        d, kappa, mu = self._placed()
        normalize, threads = self._options()
        rows = Rows(X, repeated=False)
        self._check_data(X, rows.columns, d)
        parts = [
            _core.vmf_cosine_deficit(block, mu, normalize, first, threads) for first, block in rows.blocks()
        ]
        return conc.log_norm_const_scaled(d, kappa) + kappa * np.concatenate([np.zeros(0), *parts])

    def score_samples(self, X: Any) -> np.ndarray:
        """:meth:`log_prob`, by scikit-learn's name."""
        return self.log_prob(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        return float(np.mean(self.log_prob(X)))

    def sample(
        self, n: int = 1, random_state: Any = None, *, dtype: Any = np.float64, out: Any = None
    ) -> np.ndarray:
        """Draw rows, exactly (Ulrich 1984, Wood 1994: rejection, then a reflection onto mu).

        Args:
            n: Number of rows.
            random_state: None (the estimator's, or the operating system's), an int, a Generator or
                RandomState. Row i of a seed is the same bits whatever n, the dtype's rounding and the number
                of threads.
            dtype: float32 or float64.
            out: C-contiguous array (n, d) to fill instead, for instance a memory map.

        Returns:
            (n, d) of unit rows.

        Cost: about 5 ns an entry on one core.
        """
        _, kappa, mu = self._placed()
        n = _checks.integer("n", n, 0)
        seed = _checks.random_seed(self.random_state if random_state is None else random_state)
        threads = _checks.threads("n_jobs", self.n_jobs)
        return draw(n, mu, kappa, (seed, 0, 0), threads, dtype, out)

    def log_norm_const(self) -> float:
        """log C_d(kappa), with the density C_d exp(kappa mu·x)."""
        d, kappa, _ = self._law()
        return float(conc.log_norm_const_scaled(d, kappa)) - kappa

    def mean_resultant_length(self) -> float:
        """A_d(kappa), the length of the expectation of x."""
        d, kappa, _ = self._law()
        return float(conc.mean_resultant_length(d, kappa))

    def entropy(self) -> float:
        """Differential entropy -log C - kappa A_d(kappa), in nats with respect to the area of the sphere."""
        d, kappa, _ = self._law()
        deficit = float(conc.mean_resultant_deficit(d, kappa)) if kappa > 0 else 1.0
        return kappa * deficit - float(conc.log_norm_const_scaled(d, kappa))

    def kl_divergence(self, other: VonMisesFisher) -> float:
        """KL(self || other) in nats; 0 exactly for equal distributions.

        Raises:
            TypeError: `other` is not a VonMisesFisher.
            ValueError: its dimension differs.
        """
        if not isinstance(other, VonMisesFisher):
            raise TypeError(f"other must be a VonMisesFisher, got {type(other).__name__}")
        d, kappa, mu = self._law()
        d_other, kappa_other, mu_other = other._law()
        if d != d_other:
            raise ValueError(f"other must have dimension {d}, got {d_other}")
        if kappa * kappa_other > 0 and (mu is None or mu_other is None):
            unknown = self if mu is None else other
            raise_not_fitted(unknown, "mean_direction is not known; give one or call fit")
        a = float(conc.mean_resultant_length(d, kappa))
        deficit = float(conc.mean_resultant_deficit(d, kappa)) if kappa > 0 else 1.0
        apart = 0.0  # 1 - cos of the angle between the means
        if mu is not None and mu_other is not None:
            apart = 0.5 * float(np.sum((mu - mu_other) ** 2))
        scales = conc.log_norm_const_scaled(d, kappa) - conc.log_norm_const_scaled(d, kappa_other)
        return max(float(scales + (kappa_other - kappa) * deficit + kappa_other * a * apart), 0.0)

    # Parameters

    def _options(self) -> tuple[bool, int | None]:
        return _checks.flag("normalize", self.normalize), _checks.threads("n_jobs", self.n_jobs)

    def _law(self) -> tuple[int, float, np.ndarray | None]:
        """(d, kappa, mu) of the fit, else of the arguments."""
        if hasattr(self, "concentration_"):
            return len(self.mean_direction_), self.concentration_, self.mean_direction_
        if self.concentration is None:
            raise_not_fitted(self, "call fit, or give dim or mean_direction, and concentration")
        return self._given()

    def _placed(self) -> tuple[int, float, np.ndarray]:
        """The same for what needs mu."""
        d, kappa, mu = self._law()
        if mu is None:
            raise_not_fitted(self, "mean_direction is not known; give one or call fit")
        return d, kappa, mu

    def _given(self) -> tuple[int, float, np.ndarray | None]:
        kappa = _checks.real("concentration", self.concentration, 0.0)
        d = None if self.dim is None else _checks.integer("dim", self.dim, 2)
        mu = None
        if self.mean_direction is not None:
            mu = _checks.real_array("mean_direction", self.mean_direction).astype(np.float64)
            if mu.ndim != 1 or len(mu) < 2:
                raise ValueError(f"mean_direction must be a vector of d >= 2 entries, got shape {mu.shape}")
            if d not in (None, len(mu)):
                raise ValueError(f"mean_direction must have dim = {d} entries, got {len(mu)}")
            if not np.isfinite(mu).all():
                raise ValueError("mean_direction must be finite, got NaN or infinity")
            length = float(np.linalg.norm(mu))
            if not abs(length - 1) <= 1e-5:
                raise ValueError(f"mean_direction must have length 1 (to 1e-5), got {length}")
            mu = mu / length
            d = len(mu)
        if d is None:
            raise_not_fitted(self, "call fit, or give dim or mean_direction, and concentration")
        if mu is None and kappa == 0:
            mu = np.eye(1, d)[0]  # the uniform law has none; any serves
        return d, kappa, mu

    def _check_data(self, X: Any, columns: int, d: int) -> None:
        if hasattr(self, "n_features_in_"):
            self._check_columns(X, columns)
        elif columns != d:
            raise ValueError(f"X must have {d} columns (dim), got {columns}")


# 1 - R below this rounds R to 1.
ONE_WAY = 1e-16
ALMOST_1 = float(np.nextafter(1.0, 0.0))


def draw(
    n: int,
    mu: np.ndarray,
    kappa: float,
    key: tuple[int, int, int],
    threads: int | None,
    dtype: Any = np.float64,
    out: Any = None,
) -> np.ndarray:
    """n rows of the law (mu, kappa), from row key[2] of (seed key[0], stream key[1]) on."""
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    if out is None:
        out = np.empty((n, len(mu)), dtype)
    elif not isinstance(out, np.ndarray) or out.dtype not in (np.float32, np.float64):
        raise TypeError(f"out must be a float32 or float64 array, got {type(out).__name__}")
    elif out.shape != (n, len(mu)) or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(
            f"out must be a writeable C-contiguous array of shape {(n, len(mu))}, got {out.shape}"
        )
    step = max(1, BLOCK_BYTES // (out.itemsize * len(mu)))
    seed, stream, first = key
    for at in range(0, n, step):
        _core.vmf_sample(out[at : at + step], mu, kappa, seed, stream, first + at, threads)
    return out

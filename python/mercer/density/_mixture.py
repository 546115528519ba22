"""Mixtures of von Mises–Fisher distributions by expectation maximisation.

p(x) = sum_k w_k C_d(kappa_k) exp(kappa_k mu_k·x), |x| = 1 (Banerjee, Dhillon, Ghosh, Sra 2005, section 3).
The expectation step reads each row once; the maximisation step is exact. For clusters on a sphere of up to
32768 dimensions; when only hard clusters matter and they are equally tight, spherical k-means is cheaper.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from mercer import _checks, _core, special
from mercer._estimator import Estimator, raise_not_fitted, warn_convergence
from mercer.density import _concentration as conc
from mercer.density._rows import Rows
from mercer.density._seeding import seed_directions, take_sample
from mercer.density._von_mises_fisher import ALMOST_1, draw

__all__ = ["VonMisesFisherMixture"]


@dataclass
class Parameters:
    weights: np.ndarray  # (K,)
    directions: np.ndarray  # (K, d)
    concentrations: np.ndarray  # (K,)

    def log_scales(self) -> np.ndarray:
        """log w + log C_d(kappa) + kappa."""
        with np.errstate(divide="ignore"):
            log_weights = np.log(self.weights)
        return log_weights + conc.log_norm_const_scaled(self.directions.shape[1], self.concentrations)


@dataclass
class Sums:
    log_likelihood: float
    size: np.ndarray  # (K,) sum of responsibilities
    size_squared: np.ndarray  # (K,) sum of their squares
    resultants: np.ndarray  # (K, d)


@dataclass
class Run:
    """One start and where it has got to."""

    parameters: Parameters
    lower_bounds: list[float] = field(default_factory=list)
    converged: bool = False

    def bound(self) -> float:
        """Mean log-likelihood where it is known."""
        return self.lower_bounds[-1] if self.lower_bounds else -np.inf


class VonMisesFisherMixture(Estimator):
    """A mixture of von Mises–Fisher distributions with scikit-learn's mixture interface.

    Args:
        n_components: K, from 1 to the number of rows.
        tol: Stop when the mean log-likelihood of a row rises by less.
        max_iter: Most iterations of one start.
        n_init: Starts; the one of highest likelihood is kept.
        init: "k-means++" (spherical k-means from k-means++ seeds, on a sample of at most 2^23 entries),
            "random" (random rows), or an array (K, d) of unit directions.
        tied: One concentration for all components.
        bias_correction: Correct each component's mean resultant length for its effective size, R² -> (n R² -
            1) / (n - 1): for small clusters or large d. The likelihood may then fall slightly between
            iterations.
        max_concentration: Upper limit on a concentration, which keeps a component that holds one point (or
            copies of it) from an infinite likelihood.
        normalize: Scale rows to unit length; without it rows not of length 1 to 1e-5 are refused.
        warm_start: Start the next `fit` from the last one's result.
        random_state: None, an int, a numpy Generator or RandomState. The same int gives the same bits for
            any n_jobs.
        n_jobs: Threads; None means MERCER_NUM_THREADS or every core.
        verbose: 1 reports to stderr at most every two seconds, 2 every iteration.
        callback: Called as callback(start, iteration, mean log-likelihood) after every iteration; returning
            True ends the fit with the best so far.

    Attributes:
        weights_: (K,).
        mean_directions_, means_: (K, d) unit vectors, one array under two names.
        concentrations_: (K,).
        converged_: Whether the kept start met `tol`.
        n_iter_: Its iterations.
        lower_bound_: Mean log-likelihood of a row under the fit.
        lower_bounds_: The same after every iteration of the kept start.
        n_features_in_, feature_names_in_: As for every estimator.

    float32 rows are multiplied in float32 (in float64 while a concentration exceeds 1e4) and summed in
    float64. A component that holds less than a tenth of a row is moved to the row of the sample that is
    explained worst, at most K times a start. Ctrl-C ends `fit` within a second: the best parameters so far
    are kept, `converged_` is False and a warning says so.

    Cost: an iteration is one pass, O(n d K) time; 64 MiB, the sample, and 16 K d numbers beside the data.

    Example:
        >>> import numpy as np
        >>> from mercer.density import VonMisesFisher, VonMisesFisherMixture
        >>> east = VonMisesFisher(mean_direction=[1, 0, 0], concentration=50.0).sample(500, random_state=0)
        >>> north = VonMisesFisher(mean_direction=[0, 0, 1], concentration=50.0).sample(500, random_state=1)
        >>> mixture = VonMisesFisherMixture(2, random_state=0).fit(np.concatenate([east, north]))
        >>> labels = mixture.predict(np.concatenate([east, north]))
        >>> len(set(labels[:500])), len(set(labels[500:])), bool(labels[0] != labels[-1])
        (1, 1, True)
    """

    _estimator_type = "density_estimator"

    def __init__(
        self,
        n_components: int = 1,
        *,
        tol: float = 1e-3,
        max_iter: int = 100,
        n_init: int = 1,
        init: Any = "k-means++",
        tied: bool = False,
        bias_correction: bool = False,
        max_concentration: float = 1e10,
        normalize: bool = False,
        warm_start: bool = False,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        callback: Any = None,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init = init
        self.tied = tied
        self.bias_correction = bias_correction
        self.max_concentration = max_concentration
        self.normalize = normalize
        self.warm_start = warm_start
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose
        self.callback = callback

    def fit(self, X: Any, y: Any = None) -> Self:
        """Expectation maximisation from `n_init` starts.

        Args:
            X: Rows (n, d) on the sphere: an array (memory-mapped ones are read in place, by blocks), a list
                of 2-D chunks, or a callable that returns a fresh iterator of 2-D chunks (called once a
                pass).
            y: Ignored.

        Raises:
            ValueError, TypeError: bad arguments, n_components > n, rows that are not on the sphere. The
                estimator is left as it was.
        """
        self._fit(X)
        return self

    def _fit(self, X: Any) -> Rows:
        self._check_arguments()
        rows = Rows(X, repeated=True).at_least(1)
        k = self.n_components
        seed = _checks.random_seed(self.random_state)
        sample = self._sample(rows, seed)
        if rows.length < k:
            raise ValueError(
                f"n_components must be at most the number of rows n_samples = {rows.length}, got {k}"
            )
        warm = self.warm_start and hasattr(self, "weights_")
        if warm and self.means_.shape != (k, rows.columns):
            raise ValueError(
                f"X and n_components must give means of shape {self.means_.shape} for a warm start, "
                f"got {(k, rows.columns)}"
            )
        given = None if isinstance(self.init, str) else self._given_directions(rows.columns)
        starts = 1 if warm or given is not None else self.n_init
        runs: list[Run] = []
        stopped = False
        progress = _Progress(self.verbose, self.callback, starts)
        try:
            for start in range(starts):
                rng = np.random.Generator(np.random.Philox(key=[seed, start + 1]))
                first = self._warm() if warm else self._cold(rows, sample, given, rng)
                runs.append(Run(first))
                stopped = self._climb(runs[-1], rows, sample, lambda i, bound, s=start: progress(s, i, bound))
                runs = [max(runs, key=Run.bound)]
                if stopped:
                    break
        except KeyboardInterrupt:
            if not runs:
                raise
            stopped = True
        best = max(runs, key=Run.bound)
        best.converged &= not stopped
        self._keep(best, rows)
        if not best.converged:
            why = "was interrupted" if stopped else f"did not converge in {self.max_iter} iterations"
            warn_convergence(f"the fit {why}; the best parameters so far are kept (tol={self.tol})")
        return rows

    # One start

    def _cold(
        self, rows: Rows, sample: np.ndarray, given: np.ndarray | None, rng: np.random.Generator
    ) -> Parameters:
        k, threads = self.n_components, self._threads()
        directions = given if given is not None else seed_directions(sample, k, self.init, rng, threads)
        # One concentration for the first step, however many rows each seed drew: a cluster of one row has an
        # infinite one.
        level = Parameters(np.full(k, 1 / k), directions, np.ones(k))
        return self._maximize(self._expect(rows, level, hard=True), level, tied=True)

    def _warm(self) -> Parameters:
        return Parameters(self.weights_.copy(), self.means_.copy(), self.concentrations_.copy())

    def _climb(self, run: Run, rows: Rows, sample: np.ndarray, report: Any) -> bool:
        """Iterate; `run` always holds parameters that were evaluated. True where the callback ended it."""
        sums = self._expect(rows, run.parameters)
        run.lower_bounds.append(sums.log_likelihood / rows.length)
        moves = self.n_components
        for iteration in range(1, self.max_iter + 1):
            parameters = self._maximize(sums, run.parameters, self.tied)
            empty = np.flatnonzero(sums.size < 0.1)[:moves]
            if len(empty):
                moves -= len(empty)
                self._move(parameters, empty, sample)
            sums = self._expect(rows, parameters)
            run.parameters = parameters
            run.lower_bounds.append(sums.log_likelihood / rows.length)
            rise = run.lower_bounds[-1] - run.lower_bounds[-2]
            if report(iteration, run.lower_bounds[-1]):
                return True
            if abs(rise) < self.tol and not len(empty):
                run.converged = True
                break
        return False

    def _expect(self, rows: Rows, parameters: Parameters, hard: bool = False) -> Sums:
        k, d = parameters.directions.shape
        total = Sums(0.0, np.zeros(k), np.zeros(k), np.zeros((k, d)))
        log_scales = parameters.log_scales()
        for first, block in rows.blocks():
            log_likelihood, size, squared, resultants = _core.vmf_expectation(
                block, parameters.directions, parameters.concentrations, log_scales, self.normalize,
                hard=hard, sums=True, first_row=first, threads=self._threads(),
            )  # fmt: skip
            total.log_likelihood += log_likelihood
            total.size += size
            total.size_squared += squared
            total.resultants += resultants
        return total

    def _maximize(self, sums: Sums, before: Parameters, tied: bool) -> Parameters:
        k, d = before.directions.shape
        lengths = np.linalg.norm(sums.resultants, axis=1)
        directions = before.directions.copy()
        known = lengths > 0
        directions[known] = sums.resultants[known] / lengths[known, None]
        safe = np.maximum(sums.size, 1e-300)
        r = np.clip(lengths / safe, 0, 1)
        if self.bias_correction:
            r = conc.corrected_length(r, safe**2 / np.maximum(sums.size_squared, 1e-300))
        if tied:
            r = np.full(k, np.sum(r * sums.size) / np.sum(sums.size))
        kappa = special.iv_ratio_inverse(np.full(k, d / 2 - 1), np.minimum(r, ALMOST_1))
        weights = sums.size / np.sum(sums.size)
        return Parameters(weights, directions, np.minimum(kappa, self.max_concentration))

    def _move(self, parameters: Parameters, empty: np.ndarray, sample: np.ndarray) -> None:
        """Put the empty components where the mixture explains the sample worst."""
        log_prob = np.empty(len(sample))
        _core.vmf_expectation(
            sample, parameters.directions, parameters.concentrations, parameters.log_scales(), False,
            log_prob=log_prob, threads=self._threads(),
        )  # fmt: skip
        worst = sample[np.argsort(log_prob, kind="stable")[: len(empty)]].astype(np.float64)
        alive = np.delete(parameters.concentrations, empty)
        parameters.directions[empty] = worst / np.linalg.norm(worst, axis=1, keepdims=True)
        parameters.concentrations[empty] = np.median(alive) if len(alive) else 1.0
        parameters.weights[empty] = 1 / len(sample)
        parameters.weights /= parameters.weights.sum()

    # The fitted mixture

    def score_samples(self, X: Any) -> np.ndarray:
        """Log density of each row, float64 (n,)."""
        return self._rows_of(X, "log_prob")

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the rows."""
        return float(np.mean(self.score_samples(X)))

    def predict(self, X: Any) -> np.ndarray:
        """Most probable component of each row, int64 (n,)."""
        return self._rows_of(X, "labels")

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each component for each row, float64 (n, K)."""
        return self._rows_of(X, "responsibilities")

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """`fit(X)`, then `predict(X)`."""
        self._fit(X)
        return self.predict(X)

    def sample(self, n_samples: int = 1, random_state: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Draw rows: (X float64 (n, d), component of each row int64 (n,)), component by component.

        `random_state` goes before the estimator's own.
        """
        parameters = self._parameters()
        n = _checks.integer("n_samples", n_samples, 1)
        seed = _checks.random_seed(self.random_state if random_state is None else random_state)
        counts = np.random.Generator(np.random.Philox(key=[seed, 0])).multinomial(n, parameters.weights)
        X = np.empty((n, parameters.directions.shape[1]))
        at = 0
        for mu, kappa, count in zip(parameters.directions, parameters.concentrations, counts, strict=True):
            draw(int(count), mu, float(kappa), (seed, 1, at), self._threads(), out=X[at : at + count])
            at += int(count)
        return X, np.repeat(np.arange(len(counts)), counts)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion on `X`: lower is better."""
        log_prob = self.score_samples(X)
        return float(-2 * log_prob.sum() + self._free_parameters() * np.log(len(log_prob)))

    def aic(self, X: Any) -> float:
        """Akaike information criterion on `X`: lower is better."""
        return float(-2 * self.score_samples(X).sum() + 2 * self._free_parameters())

    def _free_parameters(self) -> int:
        k, d = self.means_.shape
        return k * (d - 1) + (1 if self.tied else k) + k - 1

    @property
    def mean_directions_(self) -> np.ndarray:
        """`means_` by its directional name."""
        return self.means_

    def _rows_of(self, X: Any, what: str) -> np.ndarray:
        parameters = self._parameters()
        normalize = _checks.flag("normalize", self.normalize)
        rows = Rows(X, repeated=False)
        self._check_columns(X, rows.columns)
        k, log_scales = len(parameters.weights), parameters.log_scales()
        parts = [
            np.empty((0, k) if what == "responsibilities" else 0, np.int64 if what == "labels" else float)
        ]
        for first, block in rows.blocks():
            out = np.empty((len(block), *parts[0].shape[1:]), parts[0].dtype)
            target: dict[str, Any] = {what: out, "first_row": first, "threads": self._threads()}
            _core.vmf_expectation(
                block, parameters.directions, parameters.concentrations, log_scales, normalize, **target
            )
            parts.append(out)
        return np.concatenate(parts)

    def _parameters(self) -> Parameters:
        if not hasattr(self, "weights_"):
            raise_not_fitted(self, "call fit first")
        return Parameters(self.weights_, self.means_, self.concentrations_)

    def _keep(self, run: Run, rows: Rows) -> None:
        self.weights_ = run.parameters.weights
        self.means_ = run.parameters.directions
        self.concentrations_ = run.parameters.concentrations
        self.converged_ = run.converged
        self.n_iter_ = max(len(run.lower_bounds) - 1, 0)
        self.lower_bound_ = run.bound()
        self.lower_bounds_ = run.lower_bounds[1:]
        self._set_columns(rows.names, rows.columns)

    # Arguments

    def _check_arguments(self) -> None:
        _checks.integer("n_components", self.n_components, 1)
        _checks.real("tol", self.tol, 0.0)
        _checks.integer("max_iter", self.max_iter, 1)
        _checks.integer("n_init", self.n_init, 1)
        if isinstance(self.init, str):
            _checks.choice("init", self.init, ("k-means++", "random"))
        for name in ("tied", "bias_correction", "normalize", "warm_start"):
            _checks.flag(name, getattr(self, name))
        _checks.real("max_concentration", self.max_concentration, 0.0, strict=True)
        _checks.integer("verbose", int(self.verbose), 0)
        if self.callback is not None and not callable(self.callback):
            raise TypeError(f"callback must be callable or None, got {self.callback!r}")
        self._threads()

    def _threads(self) -> int | None:
        return _checks.threads("n_jobs", self.n_jobs)

    def _sample(self, rows: Rows, seed: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
        return take_sample(rows, 4 * self.n_components, self.normalize, rng)

    def _given_directions(self, d: int) -> np.ndarray:
        directions = _checks.matrix("init", self.init).astype(np.float64)
        if directions.shape != (self.n_components, d):
            raise ValueError(f"init must have shape {(self.n_components, d)}, got {directions.shape}")
        lengths = np.linalg.norm(directions, axis=1)
        if not np.all(np.abs(lengths - 1) <= 1e-5):
            bad = int(np.argmax(~(np.abs(lengths - 1) <= 1e-5)))
            raise ValueError(
                f"init must have rows of length 1 (to 1e-5), row {bad} has length {lengths[bad]}"
            )
        return directions / lengths[:, None]


class _Progress:
    def __init__(self, verbose: int, callback: Any, starts: int) -> None:
        self._verbose, self._callback, self._starts = int(verbose), callback, starts
        self._began = self._told = time.monotonic()

    def __call__(self, start: int, iteration: int, bound: float) -> bool:
        now = time.monotonic()
        if self._verbose > 1 or (self._verbose == 1 and now - self._told > 2):
            self._told = now
            print(
                f"start {start + 1} of {self._starts}, iteration {iteration}: "
                f"log-likelihood {bound:.6g} a row, {now - self._began:.1f} s",
                file=sys.stderr,
                flush=True,
            )
        return self._callback is not None and self._callback(start, iteration, bound) is True

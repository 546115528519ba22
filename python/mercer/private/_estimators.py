"""What the private estimators share: their common arguments, one fit a budget, a release."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, Self

import numpy as np

from mercer import _checks
from mercer._estimator import Estimator, column_names, raise_not_fitted
from mercer.private._noise import Budget, Noise
from mercer.private._sources import is_dask, rows_of
from mercer.private._structure import Structure, Terms
from mercer.private.ledger import BudgetExceeded, PrivacyLedger
from mercer.private.partial import PrivatePartial, spend
from mercer.private.release import Release

__all__ = ["OneRelease", "PrivateSum"]


class OneRelease(Estimator):
    """An estimator that keeps a release alone, and makes one for each budget."""

    epsilon: float
    mechanism: str
    delta: float | None
    ledger: PrivacyLedger | None
    release_: Release

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the release: see :meth:`Release.save`."""
        self._fitted().save(path)

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments; naming `epsilon` says that a new budget is meant, and allows another fit."""
        super().set_params(**params)
        if "epsilon" in params:
            self.__dict__.pop("_spent_", None)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "release_")

    def _fitted(self) -> Release:
        if not hasattr(self, "release_"):
            raise_not_fitted(self, "call fit")
        return self.release_

    def _may_fit(self) -> None:
        if self.ledger is None and getattr(self, "_spent_", False):
            raise BudgetExceeded(
                f"epsilon = {self.epsilon} has been spent: another fit is another release of the same people's data. "
                "Make a new estimator if the data are others', set_params(epsilon=...) to spend more, or share a ledger"
            )

    def _budget(self) -> Budget:
        return Budget.of(self.mechanism, self.epsilon, self.delta)


class PrivateSum(OneRelease):
    """The base of :class:`PrivateDistanceSum` and :class:`PrivateKernelSum`."""

    neighbor: str
    public_n: bool | None
    bounds: Any
    outside: str
    max_rows_per_user: int | None
    random_state: Any
    insecure_seed: int | None
    n_jobs: int | None

    def fit(self, X: Any, y: Any = None, *, users: Any = None) -> Self:
        """Sum over the rows, draw the noise once and keep the release alone.

        Args:
            X: Private rows (n, d): an array or memory map (read in place), a list, iterator or callable of 2-D chunks,
                an Arrow table, batch or reader, a Dask array or data frame. A vector counts as one column.
            y: Ignored.
            users: One id a row, with `max_rows_per_user`: of each user the first so many rows are taken.

        Raises:
            ValueError: parameters out of range, NaN or infinity, values outside the bounds (unless clipped).
            BudgetExceeded: the estimator has spent its epsilon (a second fit is a second release: make a new estimator,
                or share a `ledger`), or the ledger refuses. Nothing is released then.
        """
        budget = self._budget()
        self._may_fit()
        source, columns, names = self._source(X)
        structure = self._structure(columns)
        partial = PrivatePartial.of(structure, source, users, _checks.threads("n_jobs", self.n_jobs))
        noise = Noise(self.insecure_seed, self.n_jobs)
        spend(self.ledger, budget, self)
        self._spent_ = True
        self.release_ = structure.release(partial._arrays, budget, noise)
        self._set_columns(names, columns)
        return self

    def partial(self, X: Any, *, users: Any = None) -> PrivatePartial:
        """The un-noised sums over some of the rows, SECRET: to be merged with others and released once.

        Arguments and errors as in :meth:`fit`, but for the budget: nothing is spent before
        :meth:`PrivatePartial.release`. Public randomness must agree among partials that are to be merged: give
        `random_state` an int where each is made by an estimator of its own.
        """
        source, columns, _ = self._source(X)
        return PrivatePartial.of(
            self._structure(columns), source, users, _checks.threads("n_jobs", self.n_jobs)
        )

    def release(self) -> Release:
        """What :meth:`fit` made: `release_`."""
        return self._fitted()

    def query(self, Y: Any) -> np.ndarray:
        """The estimated sum over the private rows x of f(x, y), for each row y of `Y` (m, d). float64 (m,)."""
        return self._fitted().query(Y, threads=_checks.threads("n_jobs", self.n_jobs))

    def mean(self, Y: Any) -> np.ndarray:
        """The estimated mean of f(x, y) over the private rows, for each row y of `Y`."""
        return self._fitted().mean(Y)

    def std_error(self, Y: Any) -> np.ndarray:
        """The exact standard deviation of the noise in each answer: a public formula. float64 (m,)."""
        return self._fitted().std_error(Y)

    def _source(self, X: Any) -> tuple[Any, int, np.ndarray | None]:
        """(what to read, columns, names); `X` may be an iterator, which is opened once."""
        if is_dask(X):
            columns = 1 if len(X.shape) == 1 else int(X.shape[1])
            return X, columns, column_names(X)
        rows = rows_of(X)
        return rows, rows.columns, rows.names

    @abstractmethod
    def _structure(self, columns: int) -> Structure:
        """The structure for so many columns."""

    def _terms(self, columns: int, *, bounded: bool) -> Terms:
        neighbor = _checks.choice("neighbor", self.neighbor, ("add_remove", "replace"))
        outside = _checks.choice("outside", self.outside, ("raise", "clip"))
        rows = 1
        if self.max_rows_per_user is not None:
            rows = _checks.integer("max_rows_per_user", self.max_rows_per_user, 1, high=1 << 20)
        users = self.max_rows_per_user is not None
        public_n = self.public_n
        if public_n is None:
            # Replacing one record leaves n as it is; replacing a user may not.
            public_n = neighbor == "replace" and not users
        public_n = _checks.flag("public_n", public_n)
        low, high = checked_bounds(self.bounds, columns, required=bounded)
        return Terms(
            columns, low, high, outside == "clip", neighbor == "replace", rows, users, public_n
        )  # fmt: skip

    def _public_seed(self) -> int:
        """Of public randomness: one for the estimator's life, so that its partials merge."""
        known = self.__dict__.get("_seed_")
        if known is None or known[0] is not self.random_state:
            known = self._seed_ = (self.random_state, _checks.random_seed(self.random_state))
        return known[1]


def checked_bounds(
    bounds: Any, columns: int, *, required: bool
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """(low, high), each of `columns` numbers."""
    if bounds is None:
        if required:
            raise ValueError(
                "bounds must be given as (low, high), from what is publicly known: bounds taken from the private data "
                "would give them away"
            )
        return None, None
    if isinstance(bounds, str) or not hasattr(bounds, "__len__") or len(bounds) != 2:
        raise ValueError(f"bounds must be a pair (low, high), numbers or one a column, got {bounds!r}")
    ends = []
    for name, value in zip(("low", "high"), bounds, strict=True):
        array = _checks.real_array(f"bounds ({name})", value).astype(np.float64)
        if array.ndim > 1 or (array.ndim == 1 and array.shape != (columns,)):
            raise ValueError(f"bounds must be numbers or have {columns} entries, got shape {array.shape}")
        ends.append(np.broadcast_to(array, columns))
    low, high = ends
    if not np.isfinite(high - low).all():
        raise ValueError(f"bounds must be finite, got {bounds!r}")
    if not (low < high).all():
        at = int(np.flatnonzero(~(low < high))[0])
        raise ValueError(f"bounds must have low < high, got {low[at]} and {high[at]} in column {at}")
    return tuple(low.tolist()), tuple(high.tolist())

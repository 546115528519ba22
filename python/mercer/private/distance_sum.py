"""Sums of distances to private rows, released once under differential privacy.

Backurs, Lin, Mahabadi, Silwal and Tarnawski, "Efficiently Computing Similarities to Private Datasets" (ICLR 2024).
In one dimension: a dyadic tree of noisy counts, of which the sum of |x - y| is a linear functional with noise of order
R / epsilon. l1 and lp: a tree a column. l2: a random map to l1. Squared l2: three noisy sums. Use
:class:`PrivateKernelSum` for similarities that fall off with distance.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mercer import _checks
from mercer.private._estimators import PrivateSum
from mercer.private._moments import MomentSums
from mercer.private._structure import Structure
from mercer.private._trees import TreeSums
from mercer.private.ledger import PrivacyLedger

__all__ = ["PrivateDistanceSum"]


class PrivateDistanceSum(PrivateSum):
    """S(y) = sum over private rows x of a distance of x and y, for any y, from one differentially private release.

    Args:
        metric: "l1" (sum_i |x_i - y_i|), "l2", "sqeuclidean" or "lp" (sum_i |x_i - y_i|^p).
        epsilon: > 0.
        bounds: (low, high) of the columns, numbers or one a column, from public knowledge. Never taken from the data.
        p: Power for "lp", > 0.
        mechanism: "laplace" is pure epsilon-DP with discrete Laplace noise; "gaussian" is (epsilon, delta)-DP with
            discrete Gaussian noise, better in many columns.
        delta: In (0, 1), for "gaussian".
        levels: Depth of the trees, 2^levels leaves a column. None: min(ceil(log2 n), 16), of the noisy n where n is not
            public; a value then moves by at most R / n or R / 65536 by falling into its leaf.
        budget: Over the levels: "geometric" (best for query="exact") or "uniform" (the paper's).
        query: "exact" is the exact linear functional of the noisy counts; "shells" is the paper's estimate, with
            multiplicative error alpha and more noise (NaN outside the bounds).
        alpha: > 0: base of the shells; and for "l2" the relative deviation of a mapped distance.
        neighbor: "add_remove" or "replace" one record (or user).
        public_n: Whether the number of rows is public. None: it is with "replace" of records (whose neighbours have the
            same n), else it is not.
        outside: "raise" or "clip" values outside the bounds. NaN and infinity are refused always.
        norm_bound: For "sqeuclidean": rows also lie within this l2 distance of the middle of the bounds (of 0 without
            bounds); lowers the noise where it is much below the box's corner.
        n_projections: Dimensions of the random map for "l2"; None: ceil((pi/2 - 1) / alpha²).
        max_rows_per_user: With `users` in `fit`: the guarantee is for a user, of whom at most so many rows are taken.
        ledger: A :class:`PrivacyLedger` to spend from; without, one fit spends epsilon.
        random_state: Of public randomness (the map for "l2").
        insecure_seed: For tests only: repeatable noise. Warns, and marks the release.
        n_jobs: Threads. Sums are whole numbers and do not depend on it.

    Attributes:
        release_: The :class:`Release`: noisy state and the privacy statement.
        n_features_in_: d.

    Cost: `fit` O(n d) and one pass; 2^(levels+1) counts a column. `query` for l1 O(1) a column after O(2^levels) once;
    "sqeuclidean" O(d); lp with p other than 1 and 2 O(2^levels) a column.

    Noise: with add_remove, l1 in d columns of width R, std about 3 d^1.5 R / epsilon; see `std_error`.

    Example:
        >>> import numpy as np
        >>> from mercer.private import PrivateDistanceSum
        >>> ages = np.random.default_rng(0).integers(18, 90, 5000).astype(float)
        >>> private = PrivateDistanceSum("l1", epsilon=1.0, bounds=(0, 120)).fit(ages)
        >>> true = np.abs(ages - 40.0).sum()
        >>> bool(abs(private.query([40.0])[0] - true) < 8 * private.std_error([40.0])[0] + 120)
        True
    """

    def __init__(
        self,
        metric: str = "l1",
        epsilon: float = 1.0,
        bounds: Any = None,
        *,
        p: float | None = None,
        mechanism: str = "laplace",
        delta: float | None = None,
        levels: int | None = None,
        budget: str = "geometric",
        query: str = "exact",
        alpha: float = 0.1,
        neighbor: str = "add_remove",
        public_n: bool | None = None,
        outside: str = "raise",
        norm_bound: float | None = None,
        n_projections: int | None = None,
        max_rows_per_user: int | None = None,
        ledger: PrivacyLedger | None = None,
        random_state: Any = None,
        insecure_seed: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.metric = metric
        self.epsilon = epsilon
        self.bounds = bounds
        self.p = p
        self.mechanism = mechanism
        self.delta = delta
        self.levels = levels
        self.budget = budget
        self._query = query  # `query` is the method
        self.alpha = alpha
        self.neighbor = neighbor
        self.public_n = public_n
        self.outside = outside
        self.norm_bound = norm_bound
        self.n_projections = n_projections
        self.max_rows_per_user = max_rows_per_user
        self.ledger = ledger
        self.random_state = random_state
        self.insecure_seed = insecure_seed
        self.n_jobs = n_jobs

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {n: self._query if n == "query" else getattr(self, n) for n in sorted(self._defaults())}

    def set_params(self, **params: Any) -> PrivateDistanceSum:
        """Change constructor arguments; naming `epsilon` says that a new budget is meant, and allows another fit."""
        query = {"query": params.pop("query")} if "query" in params else {}
        super().set_params(**params)
        self._query = query.get("query", self._query)
        return self

    def __repr__(self) -> str:
        return f"PrivateDistanceSum({self.metric!r}, epsilon={self.epsilon!r})"

    def _structure(self, columns: int) -> Structure:
        metric = _checks.choice("metric", self.metric, ("l1", "l2", "sqeuclidean", "lp"))
        if (self.p is None) == (metric == "lp"):
            raise ValueError(f"p must be given for metric 'lp' and for no other, got {self.p}")
        power = 1.0 if self.p is None else _checks.real("p", self.p, 0.0, strict=True)
        alpha = _checks.real("alpha", self.alpha, 0.0, strict=True)
        estimate = _checks.choice("query", self._query, ("exact", "shells"))
        budget = _checks.choice("budget", self.budget, ("geometric", "uniform"))
        levels = None if self.levels is None else _checks.integer("levels", self.levels, 1, high=24)
        if self.norm_bound is not None and metric != "sqeuclidean":
            raise ValueError(f"norm_bound must be None but for metric 'sqeuclidean', got {self.norm_bound}")
        if metric == "sqeuclidean":
            radius = self.norm_bound
            if radius is not None:
                radius = _checks.real("norm_bound", radius, 0.0, strict=True)
            terms = self._terms(columns, bounded=radius is None)
            return MomentSums(terms, {"norm_bound": radius, "shares": None})
        terms = self._terms(columns, bounded=True)
        options: dict[str, Any] = {
            "metric": metric, "p": power, "levels": levels, "budget": budget, "estimate": estimate, "alpha": alpha,
            "projection": None,
        }  # fmt: skip
        if metric == "l2":
            k = self.n_projections
            k = (
                math.ceil((math.pi / 2 - 1) / alpha**2)
                if k is None
                else _checks.integer("n_projections", k, 1)
            )
            assert terms.low is not None and terms.high is not None
            low, high = np.array(terms.low), np.array(terms.high)
            options["projection"] = {
                "dimensions": k, "seed": self._public_seed(),
                "centre": ((low + high) / 2).tolist(), "half": ((high - low) / 2).tolist(),
            }  # fmt: skip
        return TreeSums(terms, options)

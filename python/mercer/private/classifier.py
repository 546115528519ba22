"""Classification by average similarity to the private rows of each class: no gradients, one release.

Backurs et al. 2024, section 6. A class is a part of the data, so by parallel composition every class has the whole
budget. The paper predicts the class with the largest mean similarity S_c(y) / n_c, for as many queries as anybody
likes. That favours classes whose rows lie close together; the same release also gives the nearest mean in the feature
space of the kernel, |phi(y) - mu_c|² = const - 2 S_c(y) / n_c + |mu_c|², which does not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np

from mercer import _checks
from mercer._estimator import column_names
from mercer.private._estimators import OneRelease, checked_bounds
from mercer.private._features import KERNELS, RADIAL, FeatureSums
from mercer.private._moments import MomentSums
from mercer.private._noise import Budget, Noise
from mercer.private._structure import Structure, Terms
from mercer.private._trees import TreeSums, within
from mercer.private.ledger import PrivacyLedger
from mercer.private.partial import _bounded, _user_keys, spend
from mercer.private.release import Release

__all__ = ["PrivateSimilarityClassifier"]

MOST_FEATURES = 2048  # more than these no longer change a decision


class ClassRelease(Release):
    """One release a class, and the labels."""

    kind = "classes"

    @classmethod
    def of(
        cls,
        statement: dict[str, Any],
        parameters: dict[str, Any],
        classes: np.ndarray,
        members: list[Release],
    ) -> Self:
        """The release of members that have been checked already."""
        described = [{"kind": m.kind, "parameters": m._parameters} for m in members]
        arrays = {f"{i}.{name}": a for i, m in enumerate(members) for name, a in m._arrays.items()}
        made = cls._made(statement, {**parameters, "classes": classes.tolist(), "members": described}, arrays)
        made.classes, made.members = classes, members
        return made

    def _open(self) -> None:
        given = self._parameters
        self.classes = np.asarray(given["classes"])
        members = given["members"]
        if self.classes.ndim != 1 or len(self.classes) != len(members) or len(members) < 1:
            raise ValueError("one member a class")
        self.members = []
        for i, member in enumerate(members):
            prefix = f"{i}."
            arrays = {k.removeprefix(prefix): a for k, a in self._arrays.items() if k.startswith(prefix)}
            self.members.append(Release._kinds[member["kind"]](self.statement, member["parameters"], arrays))
        if any(member.n_features != self.n_features for member in self.members):
            raise ValueError("members of one width")

    @property
    def count(self) -> float:
        return float(sum(member.count for member in self.members))

    def query(self, Y: Any, *, threads: int | None = None) -> np.ndarray:
        """Sums for each class: (m, classes)."""
        Y = self._prepared(Y)
        return np.column_stack([member.query(Y, threads=threads) for member in self.members])

    def mean(self, Y: Any) -> np.ndarray:
        """Means for each class: (m, classes)."""
        return self.query(Y) / np.maximum([member.count for member in self.members], 1.0)

    def nearness(self, Y: Any) -> np.ndarray:
        """<phi(y), mu_c> - |mu_c|²/2 for each class, (m, classes): largest where the mean of the features is nearest.

        What noise adds to |mu_c|² on average is taken off. The rest is shrunk towards the mean of the classes by the
        share of the noise in their spread (James and Stein), so that noise alone never decides.

        Raises:
            AttributeError: members that have no features, those of `metric="l1"`.
        """
        Y = self._prepared(Y)
        members: list[Any] = self.members
        parts = [member.centroid(Y) for member in members]
        square, variance = np.array([part[1:] for part in parts]).T
        # The spread of the true ones is estimated as DerSimonian and Laird do: an empty class has little weight.
        weight = 1 / np.maximum(variance, 1e-9 * variance.max() + 1e-300)
        weight /= weight.sum()
        around = weight @ (square - weight @ square) ** 2
        noise = (1 - weight) @ (weight * variance)
        true = max(around - noise, 0.0) / (1 - weight @ weight)
        kept = true / np.maximum(true + variance, 1e-300)
        weight = 1 / np.maximum(true + variance, 1e-300)
        middle = weight @ square / weight.sum()
        square = middle + kept * (square - middle)
        return np.column_stack([part[0] for part in parts]) - square / 2

    def std_error(self, Y: Any) -> np.ndarray:
        """Deviations of the noise in the sums: (m, classes)."""
        Y = self._prepared(Y)
        return np.column_stack([member.std_error(Y) for member in self.members])

    def _prepared(self, Y: Any) -> np.ndarray:
        Y = self._queries(Y)
        return unit_rows(Y.copy()) if self._parameters["normalize"] else Y


class PrivateSimilarityClassifier(OneRelease):
    """A classifier that is one differentially private release: similarity to the rows of each class decides.

    Args:
        kernel: As in :class:`PrivateKernelSum`.
        bandwidth: > 0. The default suits rows of unit length.
        epsilon: > 0, for features and labels together.
        metric: None, or "l1" or "sqeuclidean" instead of a kernel.
        rule: "centroid": the class whose mean is nearest, in the feature space of the kernel, or among the rows with
            "sqeuclidean". "similarity": the class with the largest mean similarity (the paper's) or the least mean
            distance, which is what "l1" has under either.
        mechanism: "laplace" (pure) or "gaussian", which is much better here and needs `delta`.
        delta: In (0, 1), for "gaussian".
        classes: The labels, which are public. None takes those that occur in `y`, and says so in the statement.
        normalize: Scale rows to unit length. Without it, `metric` needs `bounds`.
        bounds, outside: As in :class:`PrivateDistanceSum`, for `normalize=False`.
        n_features: Frequencies; None chooses by the noisy count of each class, at most 2048.
        neighbor: "add_remove" or "replace" one record with its label (or one user).
        max_rows_per_user, ledger, random_state, insecure_seed, n_jobs: As in :class:`PrivateKernelSum`.

    Attributes:
        classes_: Labels.
        release_: Noisy state of all classes and the statement; `query`, `mean` and `std_error` give (m, classes).
        n_features_in_: d.

    Cost: `fit` one pass, O(m d) a row or less; milliseconds for thousands of rows. `predict` O(classes m d) a row.

    Example:
        >>> import numpy as np
        >>> from mercer.private import PrivateSimilarityClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(size=(500, 4)) + 3, rng.normal(size=(500, 4)) - 3])
        >>> y = np.repeat(["high", "low"], 500)
        >>> private = PrivateSimilarityClassifier(epsilon=1.0, mechanism="gaussian", delta=1e-6).fit(X, y)
        >>> private.predict([[2.0, 3.0, 3.0, 4.0]]).tolist(), bool(private.score(X, y) > 0.9)
        (['high'], True)
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        kernel: str = "gaussian",
        bandwidth: float = 0.4,
        epsilon: float = 1.0,
        *,
        metric: str | None = None,
        rule: str = "centroid",
        mechanism: str = "laplace",
        delta: float | None = None,
        classes: Any = None,
        normalize: bool = True,
        bounds: Any = None,
        outside: str = "raise",
        n_features: int | None = None,
        neighbor: str = "add_remove",
        max_rows_per_user: int | None = None,
        ledger: PrivacyLedger | None = None,
        random_state: Any = None,
        insecure_seed: int | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.epsilon = epsilon
        self.metric = metric
        self.rule = rule
        self.mechanism = mechanism
        self.delta = delta
        self.classes = classes
        self.normalize = normalize
        self.bounds = bounds
        self.outside = outside
        self.n_features = n_features
        self.neighbor = neighbor
        self.max_rows_per_user = max_rows_per_user
        self.ledger = ledger
        self.random_state = random_state
        self.insecure_seed = insecure_seed
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, *, users: Any = None) -> Self:
        """Sum over the rows of each class, draw the noise once and keep the release alone.

        Args:
            X: Private rows (n, d), an array.
            y: Private labels (n,).
            users: One id a row, with `max_rows_per_user`.

        Raises:
            ValueError: parameters out of range, NaN or infinity, fewer than two classes, a label not in `classes`.
            BudgetExceeded: the estimator has spent its epsilon, or the ledger refuses. Nothing is released then.
        """
        budget = self._budget()
        self._may_fit()
        threads = _checks.threads("n_jobs", self.n_jobs)
        names = column_names(X)
        rows = _checks.matrix("X", X)
        labels, classes = self._labels(y, len(rows))
        structure = self._structure(rows.shape[1], budget)
        keys = _user_keys(users, self.max_rows_per_user is not None)
        order = np.argsort(labels, kind="stable")
        if keys is not None:
            # A user's rows count together, whatever their classes.
            kept = np.zeros(len(rows), bool)
            kept[_bounded(np.arange(len(rows)), keys, {}, structure.terms.rows)] = True
            order = order[kept[order]]
        starts = np.searchsorted(labels[order], np.arange(len(classes)))
        unit = _checks.flag("normalize", self.normalize)
        sums: Any
        if isinstance(structure, MomentSums) or (
            isinstance(structure, FeatureSums) and structure.terms.low is None
        ):
            try:
                sums = structure.sum_groups(rows, order, starts, unit, threads)
            except ValueError:
                _refuse_infinite(rows)
                raise
        else:
            _refuse_infinite(rows)
            taken = rows[order].astype(np.float64, copy=False)
            if unit:
                unit_rows(taken)
            if structure.terms.low is not None:
                taken = within(taken, structure.terms, 0)
            if isinstance(structure, FeatureSums):
                sums = structure.sum_groups(taken, np.arange(len(taken)), starts, False, threads)
            else:
                sums = [structure.empty() for _ in classes]
                for arrays, part in zip(sums, np.split(taken, starts[1:]), strict=True):
                    structure.add(arrays, np.ascontiguousarray(part), 0, threads)
        noise = Noise(self.insecure_seed, self.n_jobs)
        spend(self.ledger, budget, self)
        self._spent_ = True
        # Sensitivity: one row is in one class. Adding or removing it changes one class's sums, which have noise for
        # that. Replacing it changes one class's by two rows' worth or two classes' by one each; all have noise for two.
        # Either way the l1 (and l2) distance of all classes' sums together is what each one's noise is made for.
        members: list[Release]
        if isinstance(structure, FeatureSums):
            counts = np.diff([*starts.tolist(), len(order)])
            members = [*structure.release_groups(sums, counts, budget, noise)]
        else:
            members = [structure.release(arrays, budget, noise) for arrays in sums]
        statement = dict(members[0].statement)
        statement["mechanism"] = f"for each of {len(classes)} classes: {statement['mechanism']}"
        source = (
            "as given" if self.classes is not None else "those that occur in the data, taken to be public"
        )
        statement["public"] = [*statement["public"], f"the set of labels ({source})"]
        parameters = {"columns": rows.shape[1], "normalize": unit}
        self.release_ = ClassRelease.of(statement, parameters, classes, members)
        self.classes_ = classes
        self._set_columns(names, rows.shape[1])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores of the rule, larger where a class is nearer, (n, classes); for two classes their difference, (n,)."""
        release: Any = self._fitted()
        self._check_columns(X, _checks.matrix("X", X).shape[1])
        if self.rule == "centroid" and self.metric != "l1":
            scores = release.nearness(X)
        else:
            scores = release.mean(X) if self.metric is None else -release.mean(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The class of each row, (n,)."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        return self.classes_[index]

    def score(self, X: Any, y: Any) -> float:
        """Share of rows whose class is predicted."""
        return float(np.mean(self.predict(X) == np.asarray(y)))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags

        tags = super().__sklearn_tags__()
        tags.classifier_tags = ClassifierTags()
        tags.target_tags.required = True
        tags.non_deterministic = True
        return tags

    def _labels(self, y: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
        """(index of each row's class, classes)."""
        if y is None:
            raise ValueError("y must be given: requires y to be passed, but the target y is None")
        y = np.asarray(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        if y.shape != (n,):
            raise ValueError(f"y must have shape ({n},), one label a row, got {y.shape}")
        if y.dtype.kind == "f":
            if not np.isfinite(y).all():
                raise ValueError("y must be finite, got NaN or infinity")
            if (y != np.floor(y)).any():
                raise ValueError("Unknown label type: y must hold labels, got numbers with fractions")
        classes = np.unique(y if self.classes is None else np.asarray(self.classes))
        if classes.dtype.kind not in "biufUS" and not all(isinstance(c, str) for c in classes):
            raise ValueError(f"y must hold numbers or strings, got dtype {y.dtype}")
        if len(classes) < 2:
            raise ValueError(f"y must have at least 2 classes, got {len(classes)} class")
        index = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
        if (classes[index] != y).any():
            raise ValueError(f"y must hold labels of classes, got {y[classes[index] != y].tolist()[0]!r}")
        return index, classes

    def _structure(self, columns: int, budget: Budget) -> Structure:
        neighbor = _checks.choice("neighbor", self.neighbor, ("add_remove", "replace"))
        outside = _checks.choice("outside", self.outside, ("raise", "clip"))
        users, rows = self.max_rows_per_user is not None, 1
        if users:
            rows = _checks.integer("max_rows_per_user", self.max_rows_per_user, 1, high=1 << 20)
        unit = _checks.flag("normalize", self.normalize)
        if unit and self.bounds is not None:
            raise ValueError(
                "bounds must be None with normalize=True: rows of unit length have bounds of their own"
            )
        _checks.choice("rule", self.rule, ("centroid", "similarity"))
        metric = self.metric
        if metric is not None:
            _checks.choice("metric", metric, ("l1", "sqeuclidean"))
        bounds = (-1.0, 1.0) if unit and metric == "l1" else self.bounds
        low, high = checked_bounds(
            bounds, columns, required=metric is not None and not (unit and metric != "l1")
        )
        terms = Terms(columns, low, high, outside == "clip", neighbor == "replace", rows, users, False)
        if metric == "sqeuclidean":
            # Shares: the sum of the rows decides; the squares (for unit rows the count again) hardly do.
            terms = replace(terms, clip=True) if unit else terms
            return MomentSums(terms, {"norm_bound": 1.0 if unit else None, "shares": [0.08, 0.84, 0.08]})
        if metric == "l1":
            return TreeSums(
                replace(terms, clip=True) if unit else terms,
                {"metric": "l1", "p": 1.0, "levels": 6, "budget": "geometric", "estimate": "exact", "alpha": 0.1,
                 "projection": None},
            )  # fmt: skip
        kernel = _checks.choice("kernel", self.kernel, tuple(KERNELS))
        bandwidth = _checks.real("bandwidth", self.bandwidth, 0.0, strict=True)
        auto = self.n_features is None
        m = MOST_FEATURES if auto else _checks.integer("n_features", self.n_features, 1, high=1 << 20)
        options = {
            "kernel": kernel, "bandwidth": bandwidth, "form": "pairs", "terms": [[1.0, kernel, bandwidth]],
            # With Gaussian noise more features cost time alone; with Laplace noise they cost accuracy.
            "n_features": m, "auto_factor": 0.25 if auto and not budget.gaussian else None,
            "seed": _checks.random_seed(self.random_state), "reduce": None,
            # Orthogonal frequencies: as good as half as many more that are independent.
            "structured": kernel in RADIAL and columns >= 32,
        }  # fmt: skip
        return FeatureSums(terms, options)


def _refuse_infinite(rows: np.ndarray) -> None:
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"X must be finite, row {at} contains NaN or infinity")


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Scale the rows of a float64 array to unit length, in place; a zero row stays."""
    square = np.einsum("ij,ij->i", X, X)
    if not ((square > 1e-200) & (square < 1e200)).all():  # scale first: squares would not fit
        largest = np.abs(X).max(1, keepdims=True)
        X /= np.where(largest > 0, largest, 1.0)
        square = np.einsum("ij,ij->i", X, X)
    X *= (1 / np.sqrt(np.where(square > 0, square, 1.0)))[:, None]
    return X

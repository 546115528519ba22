"""The base of the estimators: scikit-learn's conventions without importing scikit-learn.

A constructor stores its arguments and does nothing else, so that `get_params`, `set_params`, `clone`,
pipelines and grid searches work. `__sklearn_tags__` is the one method that needs scikit-learn, and only
scikit-learn calls it.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from typing import Any, NoReturn, Self

import numpy as np

__all__ = ["ConvergenceWarning", "Estimator", "NotFittedError", "raise_not_fitted", "warn_convergence"]


class NotFittedError(ValueError, AttributeError):
    """A method that needs a fitted estimator was called before `fit`."""


class ConvergenceWarning(UserWarning):
    """The iteration ended before it converged."""


def _as_scikit_learn_knows_it(cls: type) -> type:
    """scikit-learn's class of that name where scikit-learn is loaded, so that its users can catch theirs."""
    return getattr(sys.modules.get("sklearn.exceptions"), cls.__name__, cls)


def raise_not_fitted(estimator: object, hint: str) -> NoReturn:
    raise _as_scikit_learn_knows_it(NotFittedError)(f"this {type(estimator).__name__} is not fitted: {hint}")


def warn_convergence(message: str) -> None:
    warnings.warn(message, _as_scikit_learn_knows_it(ConvergenceWarning), stacklevel=4)


class Estimator:
    """`get_params`, `set_params`, `repr`, scikit-learn's tags, `n_features_in_` and `feature_names_in_`."""

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.name != "self"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name."""
        return {name: getattr(self, name) for name in sorted(self._defaults())}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments by name; all of the names are checked before any is set."""
        known = self._defaults()
        for name in params:
            if name not in known:
                allowed = ", ".join(sorted(known))
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}. "
                    f"Valid parameters are: {allowed}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        changed = []
        for name, default in self._defaults().items():
            value = getattr(self, name, default)
            if value is default or (np.isscalar(value) and np.isscalar(default) and value == default):
                continue
            text = f"array of shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
            changed.append(f"{name}={text}")
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags

        return Tags(
            estimator_type=getattr(self, "_estimator_type", None),
            target_tags=TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=None,
        )

    def _check_columns(self, X: Any, columns: int) -> None:
        """Refuse data whose columns are not those of the fit."""
        name = type(self).__name__
        if columns != self.n_features_in_:
            raise ValueError(
                f"X has {columns} features, but {name} is expecting {self.n_features_in_} features as input"
            )
        given, fitted = column_names(X), getattr(self, "feature_names_in_", None)
        if given is None and fitted is not None and hasattr(X, "shape"):
            warnings.warn(
                f"X does not have valid feature names, but {name} was fitted with feature names", stacklevel=4
            )
        elif given is not None and fitted is None:
            warnings.warn(f"X has feature names, but {name} was fitted without feature names", stacklevel=4)
        elif given is not None and fitted is not None and list(given) != list(fitted):
            raise ValueError(
                "The feature names should match those that were passed during fit: "
                f"got {list(given)}, expected {list(fitted)}"
            )

    def _set_columns(self, names: np.ndarray | None, columns: int) -> None:
        self.n_features_in_ = columns
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_


def column_names(X: Any) -> np.ndarray | None:
    """The column names of a table (pandas, polars) whose names are all strings, else None."""
    names = getattr(X, "columns", None)
    if names is None or callable(names):
        return None
    names = list(names)
    if not names or not all(isinstance(name, str) for name in names):
        return None
    return np.asarray(names, dtype=object)

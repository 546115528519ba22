"""scikit-learn's own checks, and what they do not look at."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mercer.density import VonMisesFisher, VonMisesFisherMixture

sklearn = pytest.importorskip("sklearn")
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

EXCEPTIONS = {
    "check_estimators_dtypes": "its integer data hold a zero row, which has no direction",
}


@parametrize_with_checks(
    [VonMisesFisher(normalize=True), VonMisesFisherMixture(normalize=True, max_iter=5)],
    expected_failed_checks=lambda estimator: EXCEPTIONS,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


ROWS = VonMisesFisher(mean_direction=[0.0, 0.6, 0.8], concentration=9.0).sample(60, random_state=0)


def test_clone_grid_search_and_not_fitted():
    estimator = VonMisesFisherMixture(2, random_state=1, normalize=True)
    copy = clone(estimator)
    assert copy is not estimator and copy.get_params() == estimator.get_params()
    search = GridSearchCV(VonMisesFisherMixture(random_state=0), {"n_components": [1, 2]}, cv=2).fit(ROWS)
    assert search.best_params_["n_components"] in (1, 2)
    with pytest.raises(NotFittedError):
        VonMisesFisher().score(ROWS)


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(VonMisesFisherMixture()) == "VonMisesFisherMixture()"
    assert repr(VonMisesFisherMixture(3, tied=True)) == "VonMisesFisherMixture(n_components=3, tied=True)"
    assert (
        repr(VonMisesFisher(mean_direction=np.eye(2)[0]))
        == "VonMisesFisher(mean_direction=array of shape (2,))"
    )


def test_set_params_refuses_unknown_names_before_setting_any():
    estimator = VonMisesFisher()
    with pytest.raises(ValueError, match="Invalid parameter 'kappa'"):
        estimator.set_params(dim=4, kappa=3)
    assert estimator.dim is None


class Table:
    """The least a data frame is: an array with named columns."""

    def __init__(self, values, columns):
        self.values, self.columns, self.shape = values, columns, values.shape

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_column_names_are_kept_and_compared():
    fitted = VonMisesFisher().fit(Table(ROWS, ["x", "y", "z"]))
    assert list(fitted.feature_names_in_) == ["x", "y", "z"] and fitted.n_features_in_ == 3
    fitted.log_prob(Table(ROWS, ["x", "y", "z"]))
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.log_prob(Table(ROWS, ["x", "z", "y"]))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        fitted.log_prob(ROWS)
    assert not hasattr(fitted.fit(ROWS), "feature_names_in_")


def test_fitting_imports_neither_scikit_learn_nor_torch_nor_scipy_special():
    code = (
        "import sys, numpy as np, mercer.density as d;"
        "x = d.VonMisesFisher(mean_direction=[0.0, 1.0], concentration=2.0).sample(50, 0);"
        "d.VonMisesFisherMixture(2, random_state=0).fit(x).sample(3); d.VonMisesFisher().fit(x).entropy();"
        "sys.exit(bool({'sklearn', 'torch', 'scipy.special'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

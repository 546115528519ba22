"""The private classifier: scikit-learn's conventions, accuracy, its file."""

import numpy as np
import pytest

from mercer.private import PrivacyLedger, PrivateSimilarityClassifier, load

pytest.importorskip("sklearn")
from sklearn.base import clone, is_classifier  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

# A fit spends the budget, so checks that fit one object twice do not apply.
ONCE = "fits one object twice: the second fit is refused, its budget being spent"
EXCEPTIONS = {
    "check_dtype_object": ONCE,
    "check_classifiers_train": ONCE,
    "check_supervised_y_2d": ONCE,
    "check_fit_idempotent": ONCE,
}


@parametrize_with_checks(
    [PrivateSimilarityClassifier(epsilon=1e6, random_state=0, n_features=64)],
    expected_failed_checks=lambda estimator: EXCEPTIONS,
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6)) * 3
    y = rng.integers(0, 4, 2000)
    return centres[y] + rng.normal(size=(2000, 6)), np.array(["a", "b", "c", "d"])[y]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"mechanism": "gaussian", "delta": 1e-6},
        {"metric": "sqeuclidean"},
        {"metric": "l1", "epsilon": 8.0},
        {"kernel": "smooth_l2", "mechanism": "gaussian", "delta": 1e-6},
        {"normalize": False, "bandwidth": 4.0, "mechanism": "gaussian", "delta": 1e-6},
        {"normalize": False, "metric": "sqeuclidean", "bounds": (-20, 20), "epsilon": 40.0},
    ],
)
def test_separate_classes_are_told_apart(blobs, kwargs, tmp_path):
    X, y = blobs
    private = PrivateSimilarityClassifier(**{"epsilon": 2.0, "random_state": 0} | kwargs).fit(X, y)
    assert private.score(X, y) > 0.9 and private.classes_.tolist() == list("abcd")
    private.save(tmp_path / "classes.mercer")
    again = load(tmp_path / "classes.mercer")
    np.testing.assert_array_equal(again.query(X[:5]), private.release_.query(X[:5]))
    assert again.std_error(X[:5]).shape == (5, 4)
    assert "for each of 4 classes" in again.statement["mechanism"]


@pytest.fixture(scope="module")
def uneven():
    """Three classes on overlapping caps, the second much wider, of unit rows and different counts."""
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [600, 300, 200])
    X = rng.normal(size=(3, 8))[y] + rng.normal(size=(1100, 8)) * np.array([0.4, 2.0, 0.7])[y][:, None]
    return X / np.linalg.norm(X, axis=1, keepdims=True), y


def test_the_nearest_mean_of_rows_is_the_nearest_centroid(uneven):
    from sklearn.neighbors import NearestCentroid

    X, y = uneven
    private = PrivateSimilarityClassifier(metric="sqeuclidean", epsilon=1e7).fit(X, y)
    want = NearestCentroid().fit(X, y).predict(X)
    paper = PrivateSimilarityClassifier(metric="sqeuclidean", epsilon=1e7, rule="similarity").fit(X, y)
    assert np.mean(private.predict(X) == want) > 0.99 > 0.95 > np.mean(paper.predict(X) == want)


def test_the_nearest_mean_of_features_is_that_of_the_exact_kernel(uneven):
    X, y = uneven
    kernel = np.exp(-((X[:, None] - X[None]) ** 2).sum(2) / 0.7**2)
    want = np.column_stack(
        [kernel[:, y == c].mean(1) - kernel[np.ix_(y == c, y == c)].mean() / 2 for c in range(3)]
    )
    private = PrivateSimilarityClassifier(
        bandwidth=0.7, epsilon=1e4, mechanism="gaussian", delta=1e-6, n_features=8192, random_state=0
    ).fit(X, y)
    np.testing.assert_allclose(private.decision_function(X), want, atol=0.03)
    assert np.mean(private.predict(X) == want.argmax(1)) > 0.97


def test_lengths_of_means_that_are_noise_do_not_decide():
    # Classes of one law: their means are equally long, and what is told of their lengths is noise.
    rng = np.random.default_rng(2)
    y = np.arange(400) % 4
    X = rng.normal(size=(400, 40)) + 1
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    for mechanism in ({"mechanism": "gaussian", "delta": 1e-6}, {}):
        told, used = [], []
        for _ in range(40):
            private = PrivateSimilarityClassifier(epsilon=0.5, n_features=64, **mechanism).fit(X, y)
            parts = [member.centroid(X[:1]) for member in private.release_.members]
            told.append(np.var([part[1] for part in parts]))
            used.append(np.var(2 * ([part[0][0] for part in parts] - private.decision_function(X[:1])[0])))
        assert np.mean(used) < 0.5 * np.mean(told)


def test_labels_are_public_and_can_be_given(blobs):
    X, y = blobs
    with pytest.raises(ValueError, match="y must hold labels of classes, got 'd'"):
        PrivateSimilarityClassifier(classes=["a", "b", "c"]).fit(X, y)
    private = PrivateSimilarityClassifier(classes=["z", "a", "b", "c", "d"], n_features=8).fit(X, y)
    assert (
        private.classes_.tolist() == list("abcdz") and "as given" in private.release_.statement["public"][-1]
    )


def test_classes_differ_from_neighbours_by_one_row_and_a_users_rows_count_together(blobs):
    X, y = blobs
    users = np.arange(2000) // 10
    private = PrivateSimilarityClassifier(epsilon=1e7, max_rows_per_user=2, n_features=4).fit(
        X, y, users=users
    )
    assert private.release_.count == 400


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"metric": "cosine"}, "metric must be one of"),
        ({"rule": "nearest"}, "rule must be one of"),
        ({"metric": "l1", "normalize": False}, "bounds must be given"),
        ({"bounds": (0, 1)}, "bounds must be None with normalize=True"),
        ({"epsilon": 0.0}, "epsilon must be > 0"),
        ({"mechanism": "gaussian"}, "delta must be in"),
    ],
)
def test_bad_parameters_are_refused(blobs, kwargs, message):
    with pytest.raises(ValueError, match=message):
        PrivateSimilarityClassifier(**kwargs).fit(*blobs)


def test_it_is_a_classifier_that_clones():
    assert is_classifier(PrivateSimilarityClassifier())
    assert clone(PrivateSimilarityClassifier(epsilon=3.0)).epsilon == 3.0


def test_bad_rows_spend_nothing(blobs):
    X, y = blobs
    ledger = PrivacyLedger(1.0)
    private = PrivateSimilarityClassifier(normalize=False, bounds=(-1, 1), ledger=ledger)
    with pytest.raises(ValueError, match="X must lie within bounds"):
        private.fit(X, y)
    assert ledger.epsilon_spent == 0 and not hasattr(private, "release_")

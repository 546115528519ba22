"""The estimator, its bandwidths and diagnostics; approximate sums against exact ones."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import stats

from mercer.density import (
    CondensationWarning,
    KernelDensity,
    approximate_kernel_sum,
    condensation_diagnostics,
    kde_thresholds,
    kernel_sum,
    log_kde,
    optimal_bandwidth,
)
from mercer.density._bandwidth import kernel_spread
from mercer.density._kernels import KERNELS, draw_kernel

sklearn = pytest.importorskip("sklearn")
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402


def normals(n, d, seed):
    return np.random.default_rng(seed).standard_normal((n, d))


@parametrize_with_checks([KernelDensity(), KernelDensity(1.0, kernel="epanechnikov")])
@pytest.mark.filterwarnings("ignore::mercer.density.CondensationWarning", "ignore:divide by zero")
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def test_scores_are_log_kde_and_total():
    X, Y, w = normals(20, 4, 0), normals(100, 4, 1), np.random.default_rng(2).random(100)
    kde = KernelDensity(0.9, kernel="exponential").fit(Y, sample_weight=w)
    want = log_kde(X, Y, 0.9, "exponential", weights=w)
    np.testing.assert_array_equal(kde.score_samples(X), want)
    assert kde.score(X) == pytest.approx(want.sum())
    np.testing.assert_array_equal(
        kde.loo_scores(), log_kde(Y, Y, 0.9, "exponential", weights=w, leave_one_out=True)
    )
    grid = KernelDensity([1.0, 2.0]).fit(Y)
    assert grid.score_samples(X).shape == (20, 2) and grid.score(X).shape == (2,)
    assert kde.score_samples(X, bandwidth=np.linspace(1, 2, 20)[:, None]).shape == (20,)
    with pytest.raises(ValueError, match="bandwidth must be one number to sample"):
        grid.sample(3)


def test_it_pickles_and_searches():
    Y = normals(200, 3, 0)
    kde = KernelDensity("loo").fit(Y)
    again = pickle.loads(pickle.dumps(kde))
    np.testing.assert_array_equal(again.score_samples(Y[:5]), kde.score_samples(Y[:5]))
    search = GridSearchCV(KernelDensity(), {"bandwidth": [0.01, 0.5, 50.0]}, cv=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CondensationWarning)
        assert search.fit(Y).best_params_["bandwidth"] == 0.5
    with pytest.raises(NotFittedError):
        KernelDensity().sample()


def test_draws_follow_the_estimate():
    Y, w = np.array([[0.0], [5.0]]), np.array([1.0, 3.0])
    kde = KernelDensity(0.5).fit(Y, sample_weight=w)
    draws = kde.sample(20_000, random_state=0)
    np.testing.assert_array_equal(draws, kde.sample(20_000, random_state=0))
    law = lambda x: 0.25 * stats.norm.cdf(x, 0, 0.5) + 0.75 * stats.norm.cdf(x, 5, 0.5)  # noqa: E731
    assert stats.kstest(draws[:, 0], law).pvalue > 1e-6


def test_a_bandwidth_below_h_g_warns_once_and_a_rule_that_goes_there_does_not():
    Y = normals(3000, 60, 0)
    h_g = KernelDensity("kl").fit(Y).thresholds_.h_g
    assert h_g == pytest.approx(kde_thresholds(n=3000, d=60).h_g, rel=0.1)
    for h, warns in ((0.9 * h_g, 1), (1.1 * h_g, 0), ("kl", 0), ("loo", 0), ("scott", 1), ("silverman", 1)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            KernelDensity(h).fit(Y).score_samples(Y[:5])
        assert sum(issubclass(w.category, CondensationWarning) for w in caught) == warns, h


def test_rules_find_the_bandwidth_that_they_promise():
    rng = np.random.default_rng(0)
    Y = rng.standard_normal((1500, 30)) * 3
    d2 = ((Y[:, None] - Y) ** 2).sum(-1)
    np.fill_diagonal(d2, np.inf)
    nearest = np.median(np.sqrt(d2.min(1)))
    assert optimal_bandwidth(Y, "nn") == pytest.approx(nearest / np.sqrt(30), rel=1e-12)
    assert optimal_bandwidth(Y, "kl") == optimal_bandwidth(Y, "nn")
    assert optimal_bandwidth(Y.astype(np.float32), "nn") == pytest.approx(nearest / np.sqrt(30), rel=1e-6)
    scott = 1500 ** (-1 / 34) * np.sqrt(Y.var(0).mean())
    assert optimal_bandwidth(Y, "scott") == pytest.approx(scott, rel=1e-12)
    assert optimal_bandwidth(Y, "silverman") == pytest.approx(scott * (32 / 4) ** (-1 / 34), rel=1e-12)
    best = optimal_bandwidth(Y, "loo")
    around = best * np.linspace(0.9, 1.1, 41)
    scores = log_kde(Y, Y, around, leave_one_out=True).mean(0)
    assert around[scores.argmax()] == pytest.approx(best, rel=0.01)
    assert optimal_bandwidth(Y, "gaussian") == pytest.approx(3 * kde_thresholds(n=1500, d=30).h_opt, rel=0.03)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "cauchy"])
def test_the_same_variance_for_every_kernel(kernel):
    u = draw_kernel(kernel, 40_000, 4, np.random.default_rng(0))
    assert np.sqrt((u * u).mean()) == pytest.approx(kernel_spread(kernel, 4), rel=0.02)
    Y = normals(400, 4, 0)
    h = optimal_bandwidth(Y, "loo", kernel=kernel)
    scores = log_kde(Y, Y, h * np.array([0.5, 1.0, 2.0]), kernel, leave_one_out=True).mean(0)
    assert scores.argmax() == 1


def test_rules_refuse_what_has_no_answer():
    with pytest.raises(ValueError, match="copies of one"):
        optimal_bandwidth(np.ones((5, 3)), "nn")
    with pytest.raises(ValueError, match="at least 2 rows"):
        optimal_bandwidth(np.ones((1, 3)))
    with pytest.raises(ValueError, match='method must be "loo" for the Cauchy'):
        optimal_bandwidth(normals(9, 2, 0), kernel="cauchy")
    with pytest.raises(ValueError, match="method must be one of"):
        optimal_bandwidth(normals(9, 2, 0), "plug-in")
    with pytest.raises(ValueError, match="bandwidth must be > 0"):
        KernelDensity(-1.0).fit(normals(9, 2, 0))
    with pytest.raises(ValueError, match="method must be one of"):
        KernelDensity(1.0, method="tree").fit(normals(9, 2, 0))


def test_weights_of_zero_are_rows_that_are_not_there():
    Y, w = normals(300, 5, 0), np.r_[np.ones(200), np.zeros(100)]
    for rule in ("nn", "loo", "gaussian", "scott"):
        assert optimal_bandwidth(Y, rule, weights=w) == pytest.approx(
            optimal_bandwidth(Y[:200], rule), rel=1e-12
        )


def test_diagnostics_of_condensation_are_those_of_brute_force():
    X, Y, h = normals(12, 40, 0), normals(500, 40, 1) + 30, 0.9
    X += 30
    found = condensation_diagnostics(X, Y, h, k=5)
    e = -((X[:, None] - Y) ** 2).sum(-1) / (2 * h * h)
    p = np.sort(np.exp(e - e.max(1, keepdims=True)))[:, ::-1]
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(found.top_shares, p[:, :5].cumsum(1), rtol=1e-9)
    np.testing.assert_allclose(found.participation, (p * p).sum(1), rtol=1e-9)
    np.testing.assert_allclose(found.hill_index, 1 / np.log(p[:, :5] / p[:, 5:6]).mean(1), rtol=1e-9)
    own = condensation_diagnostics(Y, Y, h, k=5, leave_one_out=True)
    np.testing.assert_allclose(own.log_density, log_kde(Y, Y, h, leave_one_out=True), rtol=1e-12)
    assert (own.top_shares < 1).all()
    # Of its own threshold: a query farther out condenses at a larger bandwidth.
    center = Y.mean(0)
    far = condensation_diagnostics(np.vstack([center, center + 2 * (X[0] - center)]), Y, h).h_g
    assert far[0] < far[1]
    with pytest.raises(ValueError, match="k must be less than the number of data points 500"):
        condensation_diagnostics(X, Y, h, k=500)


@pytest.mark.parametrize("method", ["features", "hashing", "coreset"])
@pytest.mark.parametrize("kernel", ["gaussian", "exponential", "laplace", "cauchy"])
@pytest.mark.parametrize("weighted", [False, True])
def test_approximate_sums_err_as_they_say(method, kernel, weighted):
    rng = np.random.default_rng(0)
    Y, X = rng.standard_normal((4000, 6)), rng.standard_normal((40, 6))
    w = rng.random(4000) if weighted else None
    exact = kernel_sum(X, Y, 1.5, kernel, weights=w)
    found = approximate_kernel_sum(X, Y, 1.5, kernel, method=method, size=256, weights=w, random_state=1)
    z = (found.values - exact) / found.std_error
    assert np.abs(z).max() < 7 and 0.3 < np.sqrt((z * z).mean()) < 2.5
    again = approximate_kernel_sum(X, Y, 1.5, kernel, method=method, size=256, weights=w, random_state=1)
    np.testing.assert_array_equal(again.values, found.values)
    more = approximate_kernel_sum(X, Y, 1.5, kernel, method=method, size=4096, weights=w, random_state=1)
    assert np.median(more.std_error) < 0.5 * np.median(found.std_error)
    assert np.median(np.abs(more.values / exact - 1)) < 0.2


def test_hashing_is_unbiased_over_many_tables():
    rng = np.random.default_rng(3)
    Y, X = rng.standard_normal((200, 3)), rng.standard_normal((4, 3))
    found = approximate_kernel_sum(X, Y, 1.0, "tophat", method="hashing", size=20_000, random_state=0)
    assert (np.abs(found.values - kernel_sum(X, Y, 1.0, "tophat")) < 5 * found.std_error + 1e-12).all()


def test_auto_is_exact_while_that_is_cheap_and_else_takes_the_best(monkeypatch):
    Y, X = normals(3000, 5, 0), normals(400, 5, 1)
    found = approximate_kernel_sum(X, Y, 1.0)
    assert found.method == "exact" and not found.std_error.any()
    np.testing.assert_allclose(found.values, kernel_sum(X, Y, 1.0), rtol=1e-14)
    monkeypatch.setattr("mercer.density._approximate.EXACT_WORK", 10)
    found = approximate_kernel_sum(X, Y, 1.0, size=32, random_state=0)
    assert found.method in ("features", "hashing", "coreset")
    assert approximate_kernel_sum(X[:9], Y, 1.0, size=128).method == "exact"  # the others cost more
    for method in ("auto", "hashing", "coreset", "features"):
        kde = KernelDensity(1.0, method=method, random_state=0).fit(Y)
        off = np.abs(kde.score_samples(X[:50]) - log_kde(X[:50], Y, 1.0))
        assert (off < 6 * kde.score_error_ + 1e-3)[kde.score_error_ < 0.2].all() and np.median(off) < 0.2
    with pytest.raises(ValueError, match='"features" must have a kernel among'):
        approximate_kernel_sum(X, Y, 1.0, "tophat", method="features")
    with pytest.raises(ValueError, match="bandwidth must be one number to approximate"):
        approximate_kernel_sum(X, Y, [1.0, 2.0])


def test_the_figure_shows_where_the_bandwidth_is():
    pytest.importorskip("matplotlib")
    from mercer.density import plot_regimes, regime_curves

    Y = normals(600, 30, 0)
    curves = regime_curves(Y, points_on_grid=60)
    best = curves["h"][curves["score"].argmax()]
    assert best < curves["h_clt"] and curves["silverman"] < curves["h_opt"] < curves["h_g"]
    figure = plot_regimes(Y, 0.7)
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert texts == {"condensed", "stable", "CLT"}


def test_no_scikit_learn_no_torch_no_scipy_special():
    code = (
        "import sys, numpy as np, mercer.density as d; x = np.random.default_rng(0).standard_normal((50, 3));"
        "d.KernelDensity('loo').fit(x).sample(3); d.condensation_diagnostics(x, x, 1.0, leave_one_out=True);"
        "sys.exit(bool({'sklearn', 'torch', 'scipy.special', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

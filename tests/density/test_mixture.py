"""Mixtures: the EM step by its definition, planted truth, streams, determinism, interruption, bad input."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import warnings

import numpy as np
import pytest

from mercer.density import VonMisesFisher, VonMisesFisherMixture, kappa_mle


def planted(d=10, n=3000, kappas=(60.0, 30.0, 90.0), weights=(0.5, 0.3, 0.2), seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    mus = np.linalg.qr(rng.standard_normal((d, len(kappas))))[0].T
    counts = (np.array(weights) * n).astype(int)
    parts = [
        VonMisesFisher(mean_direction=mu, concentration=k).sample(c, random_state=seed + i, dtype=dtype)
        for i, (mu, k, c) in enumerate(zip(mus, kappas, counts, strict=True))
    ]
    order = rng.permutation(counts.sum())
    return np.concatenate(parts)[order], np.repeat(np.arange(len(counts)), counts)[order], mus


def match(mixture, mus):
    return np.argmax(mus @ mixture.means_.T, axis=1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("normalize", [False, True])
def test_planted_mixture_is_recovered(dtype, normalize):
    X, labels, mus = planted(dtype=dtype)
    mixture = VonMisesFisherMixture(3, random_state=0, tol=1e-8, normalize=normalize).fit(
        3 * X if normalize else X
    )
    to = match(mixture, mus)
    assert sorted(to) == [0, 1, 2] and mixture.converged_
    assert np.all(np.sum(mus * mixture.means_[to], axis=1) > 0.999)
    np.testing.assert_allclose(mixture.weights_[to], [0.5, 0.3, 0.2], atol=0.01)
    np.testing.assert_allclose(mixture.concentrations_[to], [60, 30, 90], rtol=0.1)
    assert np.mean(to[labels] == mixture.predict(3 * X if normalize else X)) > 0.999


def em_by_definition(X, weights, mus, kappas, steps):
    bounds = []
    for _ in range(steps):
        laws = [VonMisesFisher(mean_direction=m, concentration=k) for m, k in zip(mus, kappas, strict=True)]
        joint = np.stack([np.log(w) + law.log_prob(X) for w, law in zip(weights, laws, strict=True)], axis=1)
        log_p = np.logaddexp.reduce(joint, axis=1)
        bounds.append(log_p.mean())
        r = np.exp(joint - log_p[:, None])
        size, sums = r.sum(0), r.T @ X
        length = np.linalg.norm(sums, axis=1)
        weights, mus, kappas = size / len(X), sums / length[:, None], kappa_mle(length / size, X.shape[1])
    return weights, mus, kappas, bounds


def test_steps_are_those_of_the_definition():
    X, _, _ = planted(d=4, n=600, kappas=(3.0, 4.0, 5.0))
    start = VonMisesFisherMixture(3, random_state=1, max_iter=1, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start.fit(X)
        want = em_by_definition(X, start.weights_, start.means_, start.concentrations_, 6)
        start.set_params(warm_start=True, max_iter=6).fit(X)
    np.testing.assert_allclose(start.weights_, want[0], rtol=1e-10)
    np.testing.assert_allclose(start.means_, want[1], atol=1e-12)
    np.testing.assert_allclose(start.concentrations_, want[2], rtol=1e-10)
    np.testing.assert_allclose(start.lower_bounds_[:-1], want[3][1:], rtol=1e-12)
    assert start.lower_bound_ == pytest.approx(start.score(X), rel=1e-13)


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("tied", [False, True])
def test_lower_bound_never_falls(init, tied):
    X, _, _ = planted(d=5, n=900, kappas=(2.0, 3.0, 4.0))
    mixture = VonMisesFisherMixture(4, random_state=3, init=init, tied=tied, tol=1e-7, max_iter=300).fit(X)
    assert len(mixture.lower_bounds_) == mixture.n_iter_ > 3
    assert np.all(np.diff(mixture.lower_bounds_) > -1e-12)
    if tied:
        assert np.ptp(mixture.concentrations_) == 0


def test_one_component_is_the_plain_fit():
    X, _, _ = planted()
    mixture, plain = VonMisesFisherMixture(1, random_state=0).fit(X), VonMisesFisher().fit(X)
    assert mixture.concentrations_[0] == pytest.approx(plain.concentration_, rel=1e-12)
    np.testing.assert_allclose(mixture.score_samples(X), plain.log_prob(X), rtol=1e-10, atol=1e-12)
    corrected = VonMisesFisherMixture(1, bias_correction=True).fit(X[:30])
    assert corrected.concentrations_[0] == pytest.approx(
        VonMisesFisher(bias_correction=True).fit(X[:30]).concentration_, rel=1e-12
    )


def test_densities_probabilities_and_criteria_agree_with_their_definitions():
    X, _, _ = planted(d=6, n=500, kappas=(5.0, 9.0, 20.0))
    mixture = VonMisesFisherMixture(3, random_state=0).fit(X)
    laws = [
        VonMisesFisher(mean_direction=m, concentration=k)
        for m, k in zip(mixture.means_, mixture.concentrations_, strict=True)
    ]
    joint = np.stack(
        [np.log(w) + law.log_prob(X) for w, law in zip(mixture.weights_, laws, strict=True)], axis=1
    )
    log_p = np.logaddexp.reduce(joint, axis=1)
    np.testing.assert_allclose(mixture.score_samples(X), log_p, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        mixture.predict_proba(X), np.exp(joint - log_p[:, None]), rtol=1e-11, atol=1e-300
    )
    assert np.array_equal(mixture.predict(X), joint.argmax(1))
    free = 3 * 5 + 3 + 2
    assert mixture.bic(X) == pytest.approx(-2 * log_p.sum() + free * np.log(len(X)))
    assert mixture.aic(X) == pytest.approx(-2 * log_p.sum() + 2 * free)
    assert np.array_equal(mixture.means_, mixture.mean_directions_)
    assert np.array_equal(VonMisesFisherMixture(3, random_state=0).fit_predict(X), mixture.predict(X))


def test_samples_follow_the_mixture():
    X, _, mus = planted()
    mixture = VonMisesFisherMixture(3, random_state=0).fit(X)
    Z, labels = mixture.sample(30_000, random_state=1)
    assert np.allclose(np.linalg.norm(Z, axis=1), 1) and Z.shape == (30_000, 10)
    counts = np.bincount(labels, minlength=3)
    # each count is binomial; 6.2 standard deviations are passed once in a billion
    deviation = np.sqrt(30_000 * mixture.weights_ * (1 - mixture.weights_))
    assert np.all(np.abs(counts - 30_000 * mixture.weights_) < 6.2 * deviation)
    assert np.mean(mixture.predict(Z) == labels) > 0.99
    again, _ = mixture.sample(30_000, random_state=1)
    assert np.array_equal(Z, again)


def test_streams_maps_and_threads_give_what_the_whole_gives(tmp_path):
    X, _, _ = planted(d=20, dtype=np.float32)
    np.save(tmp_path / "rows.npy", X)
    settings = {"n_components": 3, "random_state": 0, "tol": 1e-6}
    whole = VonMisesFisherMixture(**settings, n_jobs=1).fit(X)
    for same in (
        VonMisesFisherMixture(**settings, n_jobs=2).fit(X),
        VonMisesFisherMixture(**settings).fit(np.load(tmp_path / "rows.npy", mmap_mode="r")),
    ):
        assert same.means_.tobytes() == whole.means_.tobytes()
        assert same.concentrations_.tobytes() == whole.concentrations_.tobytes()
    chunks = np.array_split(X, 11)
    for streamed in (
        VonMisesFisherMixture(**settings).fit(lambda: iter(chunks)),
        VonMisesFisherMixture(**settings).fit(chunks),
    ):
        np.testing.assert_allclose(streamed.weights_, whole.weights_, atol=1e-4)
        assert streamed.lower_bound_ == pytest.approx(whole.lower_bound_, rel=1e-6)
    assert np.array_equal(whole.predict(iter(chunks)), whole.predict(X))
    with pytest.raises(TypeError, match="callable that starts the stream anew"):
        VonMisesFisherMixture(3).fit(iter(chunks))


def test_seeding_from_a_sample_of_a_long_stream(monkeypatch):
    from mercer.density import _seeding

    monkeypatch.setattr(_seeding, "SAMPLE_ENTRIES", 10 * 200)
    X, labels, mus = planted()
    for data in (X, lambda: iter(np.array_split(X, 13))):
        mixture = VonMisesFisherMixture(3, random_state=0).fit(data)
        assert sorted(match(mixture, mus)) == [0, 1, 2]


def test_reservoir_keeps_every_row_equally_often(monkeypatch):
    from mercer.density import _seeding
    from mercer.density._rows import Rows

    monkeypatch.setattr(_seeding, "SAMPLE_ENTRIES", 2 * 10)
    angle = np.arange(40.0)
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    kept = np.zeros(40)
    rng = np.random.default_rng(0)
    for _ in range(1000):
        rows = Rows(lambda: iter(np.array_split(X, 7)), repeated=True)
        sample = _seeding.take_sample(rows, 1, False, rng)
        assert rows.count == 40 and len(sample) == 10
        kept += np.isclose(X @ sample.T, 1, atol=1e-12).any(1)
    # binomial(1000, 1/4) each; 6.8 standard deviations over 40 rows are passed once in 2e9 runs
    assert np.all(np.abs(kept - 250) < 6.8 * np.sqrt(1000 * 0.25 * 0.75))


def test_n_init_keeps_the_best_start_and_warm_start_continues():
    X, _, _ = planted(d=5, n=600, kappas=(4.0, 6.0, 8.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = VonMisesFisherMixture(5, init="random", random_state=0, max_iter=8).fit(X)
        many = VonMisesFisherMixture(5, init="random", random_state=0, max_iter=8, n_init=5).fit(X)
        assert many.lower_bound_ >= one.lower_bound_
        bound = one.lower_bound_
        one.set_params(warm_start=True).fit(X)
        assert one.lower_bound_ >= bound and one.lower_bounds_[0] >= bound - 1e-12


def test_given_directions_start_the_fit():
    X, _, mus = planted()
    mixture = VonMisesFisherMixture(3, init=mus[::-1]).fit(X)
    assert np.array_equal(match(mixture, mus), [2, 1, 0])
    for bad, message in ((mus[:2], "init must have shape"), (2 * mus, "init must have rows of length 1")):
        with pytest.raises(ValueError, match=message):
            VonMisesFisherMixture(3, init=bad).fit(X)
    with pytest.raises(ValueError, match="init must be one of 'k-means\\+\\+', 'random', got 'best'"):
        VonMisesFisherMixture(3, init="best").fit(X)


def test_copies_and_more_components_than_distinct_rows_stay_finite():
    X = np.repeat(np.eye(3), 20, axis=0)
    mixture = VonMisesFisherMixture(5, random_state=0, max_concentration=1e6).fit(X)
    for fitted in (mixture.weights_, mixture.means_, mixture.concentrations_, mixture.score_samples(X)):
        assert np.all(np.isfinite(fitted))
    assert mixture.concentrations_.max() == 1e6 and mixture.weights_.sum() == pytest.approx(1)
    assert len(set(mixture.predict(np.eye(3)))) == 3


def test_an_empty_component_is_moved_to_where_the_mixture_explains_least():
    X, _, mus = planted(kappas=(300.0, 300.0, 300.0))
    stray = -mus[0]  # nothing is near it, two components share what the third should have
    mixture = VonMisesFisherMixture(3, init=np.stack([mus[0], mus[1], stray]), tol=1e-6).fit(X)
    assert sorted(match(mixture, mus)) == [0, 1, 2]


def test_high_dimensional_clusters():
    X, labels, mus = planted(d=4096, n=300, kappas=(3000.0, 3000.0, 3000.0), dtype=np.float32)
    mixture = VonMisesFisherMixture(3, random_state=0, bias_correction=True).fit(X)
    to = match(mixture, mus)
    assert np.array_equal(to[labels], mixture.predict(X))
    np.testing.assert_allclose(mixture.concentrations_, 3000, rtol=0.05)


def test_pickle_and_callback():
    X, _, _ = planted(d=5, n=600, kappas=(4.0, 6.0, 8.0))
    seen = []
    mixture = VonMisesFisherMixture(
        3, random_state=0, tol=0, callback=lambda *a: seen.append(a) or len(seen) == 4
    )
    with pytest.warns(UserWarning, match="was interrupted"):
        mixture.fit(X)
    assert [s[:2] for s in seen] == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert mixture.lower_bound_ == seen[-1][2] and not mixture.converged_ and mixture.n_iter_ == 4
    again = pickle.loads(pickle.dumps(mixture.set_params(callback=None)))
    assert np.array_equal(again.predict_proba(X), mixture.predict_proba(X))


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals need the main thread"
)
def test_ctrl_c_returns_within_a_second_with_the_best_so_far():
    X = VonMisesFisher(dim=64, concentration=0.0).sample(100_000, random_state=0, dtype=np.float32)
    mixture = VonMisesFisherMixture(32, random_state=0, tol=0, max_iter=10**6)
    sent = []

    def interrupt(start, iteration, bound):
        if iteration == 1:
            threading.Timer(
                0.2, lambda: (sent.append(time.monotonic()), os.kill(os.getpid(), signal.SIGINT))
            ).start()

    mixture.set_params(callback=interrupt)
    # A process started in the background of a shell ignores the signal unless asked otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.warns(UserWarning, match="was interrupted; the best parameters so far are kept"):
            mixture.fit(X)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - sent[0] < 1
    assert not mixture.converged_ and mixture.n_iter_ >= 1
    assert mixture.score(X[:1000]) > -100


GOOD = planted(d=3, n=30, kappas=(50.0, 60.0, 70.0))[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components must be an integer >= 1, got 0"),
        ({"n_components": 2.0}, TypeError, "n_components must be an integer"),
        ({"n_components": 31}, ValueError, "n_components must be at most the number of rows.*30, got 31"),
        ({"tol": -1.0}, ValueError, "tol must be a finite number >= 0"),
        ({"tol": np.nan}, ValueError, "tol must be a finite number >= 0, got nan"),
        ({"max_iter": 0}, ValueError, "max_iter must be an integer >= 1"),
        ({"n_init": 0}, ValueError, "n_init must be an integer >= 1"),
        ({"tied": 1}, TypeError, "tied must be True or False"),
        ({"max_concentration": 0.0}, ValueError, "max_concentration must be a finite number > 0"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be an integer >= 1"),
        ({"random_state": "x"}, TypeError, "random_state must be"),
        ({"callback": 3}, TypeError, "callback must be callable"),
        ({"init": 3.0}, ValueError, "init must be a 2-D array"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        VonMisesFisherMixture(**{"n_components": 2, **arguments}).fit(GOOD)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, [1.0, 1.0, 0.0]])
def test_bad_rows_leave_the_estimator_as_it_was(value):
    bad = GOOD.copy()
    bad[17] = value
    mixture = VonMisesFisherMixture(2, random_state=0).fit(GOOD)
    before = dict(mixture.__dict__)
    for data in (bad, lambda: iter(np.array_split(bad, 4))):
        with pytest.raises(ValueError, match="X must .*row 17"):
            mixture.fit(data)
    assert mixture.__dict__ == before
    for method in ("predict", "predict_proba", "score_samples", "bic"):
        with pytest.raises(ValueError, match="row 17"):
            getattr(mixture, method)(bad)
    with pytest.raises(ValueError, match="at least 2 columns"):
        mixture.fit(GOOD[:, :1])
    with pytest.raises(ValueError, match="X has 2 features"):
        mixture.predict(GOOD[:, :2])
    with pytest.raises(ValueError, match="not fitted"):
        VonMisesFisherMixture().predict(GOOD)

"""The distribution and its fit: peers where they work, planted truth, streams, bad input."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy import stats

from mercer.density import SphereMoments, VonMisesFisher, kappa_mle
from mercer.density._concentration import mean_resultant_length, mean_resultant_slope


def planted(d, kappa, n, seed=0, dtype=np.float64):
    mu = np.random.default_rng(seed).standard_normal(d)
    law = VonMisesFisher(mean_direction=mu / np.linalg.norm(mu), concentration=kappa)
    return law, law.sample(n, random_state=seed, dtype=dtype)


@pytest.mark.parametrize(("d", "kappa"), [(2, 0.7), (3, 20.0), (10, 5.0), (40, 100.0)])
def test_agrees_with_scipy_in_small_dimensions(d, kappa):
    law, X = planted(d, kappa, 500)
    peer = stats.vonmises_fisher(law.mean_direction, kappa)
    np.testing.assert_allclose(law.log_prob(X), peer.logpdf(X), rtol=1e-12, atol=1e-12)
    assert law.entropy() == pytest.approx(peer.entropy(), rel=1e-12)
    mu, kappa_hat = stats.vonmises_fisher.fit(X)
    fitted = VonMisesFisher().fit(X)
    np.testing.assert_allclose(fitted.mean_direction_, mu, atol=1e-13)
    assert fitted.concentration_ == pytest.approx(kappa_hat, rel=1e-7)


@pytest.mark.parametrize(("d", "n"), [(2048, 2000), (8192, 500), (32768, 200)])
def test_fit_finds_the_concentration_in_high_dimensions(d, n):
    kappa = float(d)
    _, X = planted(d, kappa, n, seed=d)
    # the mean of R² is A² + (1 - A²)/n: the plain estimate is right for that length
    a = float(mean_resultant_length(d, kappa))
    kappa_tilde = float(kappa_mle(np.sqrt(a * a + (1 - a * a) / n), d))
    tolerance = 5 / np.sqrt(n * float(mean_resultant_slope(d, kappa)))
    fitted = VonMisesFisher().fit(X)
    assert abs(fitted.concentration_ - kappa_tilde) <= tolerance
    corrected = VonMisesFisher(bias_correction=True).fit(X)
    assert abs(corrected.concentration_ - kappa) <= tolerance


def test_density_integrates_to_one():
    law, _ = planted(3, 4.0, 1)
    # Monte Carlo over the uniform law: the density's standard deviation is known from the same sample
    X = VonMisesFisher(dim=3, concentration=0.0).sample(200_000, random_state=1)
    f = 4 * np.pi * np.exp(law.log_prob(X))
    assert abs(f.mean() - 1) < 6.1 * f.std() / np.sqrt(len(f))  # once in a billion


def test_log_density_keeps_its_digits_at_huge_concentrations():
    # three dimensions: log C + kappa = log(kappa / 2 pi) to rounding, and 1 - cos t = 2 sin²(t/2)
    kappa = 1e10
    mu = np.array([0.0, 0.0, 1.0])
    angle = 1e-5 * np.arange(1, 5)
    X = np.stack([np.sin(angle), np.zeros(4), np.cos(angle)], axis=1)
    law = VonMisesFisher(mean_direction=mu, concentration=kappa)
    want = np.log(kappa / (2 * np.pi)) - kappa * 2 * np.sin(angle / 2) ** 2
    np.testing.assert_allclose(law.log_prob(X), want, rtol=1e-13, atol=1e-12)


def test_nearly_equal_rows_still_give_their_concentration():
    # In the plane 1 - R = 1/(2 kappa) + O(kappa^-2), and R = cos(1e-7): the sum's length rounds to 2.
    eps = 1e-7
    X = np.array([[1.0, eps], [1.0, -eps]])
    assert np.linalg.norm(X.sum(0)) == 2
    assert VonMisesFisher().fit(X).concentration_ == pytest.approx(eps**-2, rel=1e-6)


def test_weights_are_repetitions():
    _, X = planted(4, 3.0, 50)
    w = np.random.default_rng(1).integers(0, 4, 50)
    weighted = VonMisesFisher().fit(X, sample_weight=w)
    repeated = VonMisesFisher().fit(np.repeat(X, w, axis=0))
    assert weighted.concentration_ == pytest.approx(repeated.concentration_, rel=1e-12)
    np.testing.assert_allclose(weighted.mean_direction_, repeated.mean_direction_, atol=1e-14)


def test_weighted_correction_is_the_plain_one_for_equal_weights():
    _, X = planted(4, 3.0, 12)
    plain = VonMisesFisher(bias_correction=True).fit(X)
    weighted = VonMisesFisher(bias_correction=True).fit(X, sample_weight=np.full(12, 0.3))
    assert weighted.concentration_ == pytest.approx(plain.concentration_, rel=1e-12)
    r = np.linalg.norm(X.mean(0))
    assert plain.mean_resultant_length_ == pytest.approx(np.sqrt((12 * r * r - 1) / 11), rel=1e-12)
    assert plain.concentration_ < VonMisesFisher().fit(X).concentration_


def streams(X, parts=7):
    chunks = np.array_split(X, parts)
    partial = VonMisesFisher()
    for chunk in chunks:
        partial.partial_fit(chunk)
    merged = VonMisesFisher().fit(chunks[0])
    for chunk in chunks[1:]:
        merged.merge(VonMisesFisher().fit(chunk))
    return {
        "iterator": VonMisesFisher().fit(iter(chunks)),
        "list of chunks": VonMisesFisher().fit(chunks),
        "callable": VonMisesFisher().fit(lambda: iter(chunks)),
        "partial_fit": partial,
        "merge": merged,
    }


@pytest.mark.parametrize("kappa", [0.1, 50.0, 1e9])
def test_streams_give_what_the_whole_gives(kappa):
    _, X = planted(6, kappa, 5000)
    whole = VonMisesFisher().fit(X)
    for name, part in streams(X).items():
        assert part.concentration_ == pytest.approx(whole.concentration_, rel=1e-11), name
        np.testing.assert_allclose(part.mean_direction_, whole.mean_direction_, atol=1e-14)
        assert part.moments_.count == 5000


def test_memory_maps_and_strides_and_dtypes_give_the_same(tmp_path):
    _, X = planted(6, 5.0, 4000)
    whole = VonMisesFisher().fit(X)
    path = tmp_path / "rows.npy"
    np.save(path, X)
    mapped = np.load(path, mmap_mode="r")
    wide = np.zeros((4000, 12))
    wide[:, ::2] = X
    for same in (mapped, np.asfortranarray(X), wide[:, ::2], X.astype(">f8"), X.tolist()):
        assert VonMisesFisher().fit(same).concentration_ == whole.concentration_
    assert VonMisesFisher().fit(X.astype(np.float32)).concentration_ == pytest.approx(
        whole.concentration_, rel=1e-6
    )
    half = VonMisesFisher(normalize=True).fit(X.astype(np.float16))
    assert half.concentration_ == pytest.approx(whole.concentration_, rel=1e-2)
    assert VonMisesFisher(normalize=True).fit(5 * X).concentration_ == pytest.approx(
        whole.concentration_, rel=1e-12
    )


def test_threads_do_not_change_a_bit():
    _, X = planted(33, 5.0, 20_000)
    one, two = (VonMisesFisher(n_jobs=jobs).fit(X) for jobs in (1, 2))
    assert one.moments_ == two.moments_ and one.concentration_ == two.concentration_
    assert np.array_equal(one.log_prob(X), two.log_prob(X))


def test_extreme_rows_are_normalised():
    X = np.array([[3e200, 4e200], [3e-310, 4e-310], [6e-20, 8e-20], [0.0, 1.0]])
    fitted = VonMisesFisher(normalize=True).fit(X)
    want = np.array([[0.6, 0.8]] * 3 + [[0, 1]]).mean(0)
    np.testing.assert_allclose(fitted.mean_direction_, want / np.linalg.norm(want), atol=1e-12)


def test_pickle_and_bytes_round_trip():
    _, X = planted(5, 5.0, 100)
    fitted = VonMisesFisher(bias_correction=True).fit(X)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.log_prob(X), fitted.log_prob(X)) and again.moments_ == fitted.moments_
    data = fitted.moments_.to_bytes()
    assert SphereMoments.from_bytes(data) == fitted.moments_
    for bad in (data[:10], data[:-1], b"x" + data[1:], data[:60] + b"\xff" * (len(data) - 60)):
        with pytest.raises(ValueError, match="data must"):
            SphereMoments.from_bytes(bad)
    with pytest.raises(TypeError, match="other must be a SphereMoments"):
        fitted.moments_.merge(3)
    with pytest.raises(ValueError, match="other must have dimension 5, got 3"):
        fitted.moments_.merge(VonMisesFisher().fit(planted(3, 1.0, 9)[1]).moments_)


GOOD = planted(3, 5.0, 20)[1]


def broken(at, value):
    X = GOOD.copy()
    X[at] = value
    return X


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (broken((7, 1), np.nan), "X must be finite, row 7 contains NaN"),
        (broken((3, 0), np.inf), "X must be finite, row 3"),
        (broken(5, 0.0), "row 5 is the zero vector"),
        (broken(4, [1.0, 1.0, 0.0]), "X must have rows of length 1 .*row 4 has length 1.414.*normalize=True"),
        (GOOD[:, :1], "at least 2 columns"),
        (GOOD[0], "X must be a 2-D array"),
        (GOOD[:0], "a minimum of 1 is required"),
        (GOOD + 0j, "X must be real"),
        (GOOD.astype(str), "X must hold real numbers"),
        (np.repeat(GOOD[:1], 9, axis=0), r"mean resultant length in \[0, 1\), got 1.*infinite"),
        (iter([]), "empty stream"),
    ],
)
@pytest.mark.parametrize("fitted", [False, True])
def test_bad_rows_are_named_and_leave_the_estimator_as_it_was(X, message, fitted):
    estimator = VonMisesFisher()
    if fitted:
        if not isinstance(X, np.ndarray):
            pytest.skip("an iterator serves once")
        estimator.fit(GOOD)
    before = dict(estimator.__dict__)
    with pytest.raises(ValueError, match=message):
        estimator.fit(X)
    assert estimator.__dict__ == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 1, "concentration": 1.0}, ValueError, "dim must be an integer >= 2, got 1"),
        ({"dim": 2.5, "concentration": 1.0}, TypeError, "dim must be an integer"),
        ({"mean_direction": [1.0], "concentration": 1.0}, ValueError, "mean_direction must be a vector"),
        (
            {"mean_direction": [1.0, 1.0], "concentration": 1.0},
            ValueError,
            "mean_direction must have length 1",
        ),
        (
            {"mean_direction": [np.nan, 1.0], "concentration": 1.0},
            ValueError,
            "mean_direction must be finite",
        ),
        ({"dim": 3, "mean_direction": [1.0, 0.0], "concentration": 1.0}, ValueError, "must have dim = 3"),
        (
            {"dim": 3, "concentration": -1.0},
            ValueError,
            "concentration must be a finite number >= 0, got -1.0",
        ),
        ({"dim": 3, "concentration": np.inf}, ValueError, "concentration must be a finite number"),
        ({"dim": 3, "concentration": "much"}, TypeError, "concentration must be a finite number"),
        ({"concentration": 1.0}, ValueError, "not fitted"),
    ],
)
def test_bad_parameters_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        VonMisesFisher(**arguments).log_norm_const()


def test_a_whole_distribution_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="length 1"):
        VonMisesFisher(mean_direction=[1.0, 1.0], concentration=1.0)


def test_other_misuse():
    law, X = planted(3, 5.0, 10)
    with pytest.raises(ValueError, match="X must have 3 columns"):
        law.log_prob(np.ones((2, 4)) / 2)
    with pytest.raises(TypeError, match="other must be a VonMisesFisher"):
        law.kl_divergence(3)
    with pytest.raises(ValueError, match="other must have dimension 3, got 4"):
        law.kl_divergence(VonMisesFisher(dim=4, concentration=0.0))
    with pytest.raises(ValueError, match="not fitted"):
        VonMisesFisher().log_prob(X)
    with pytest.raises(TypeError, match="normalize must be True or False"):
        VonMisesFisher(normalize="yes").fit(X)
    with pytest.raises(ValueError, match="X must have dim = 4 columns"):
        VonMisesFisher(dim=4).fit(X)
    for weight, message in (
        (np.full(10, -1.0), "sample_weight must be finite and >= 0"),
        (np.ones(9), r"sample_weight must have shape \(10,\)"),
        (np.zeros(10), "sample_weight must have a positive sum"),
        (np.full(10, np.nan), "sample_weight must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            VonMisesFisher().fit(X, sample_weight=weight)
    with pytest.raises(TypeError, match="sample_weight must be None for a stream"):
        VonMisesFisher().fit(iter([X]), sample_weight=np.ones(10))


def test_partial_fit_waits_while_all_rows_point_one_way():
    estimator = VonMisesFisher().partial_fit(GOOD[:1])
    with pytest.raises(ValueError, match="not fitted"):
        estimator.entropy()
    estimator.partial_fit(GOOD[1:])
    assert estimator.concentration_ == pytest.approx(VonMisesFisher().fit(GOOD).concentration_, rel=1e-13)

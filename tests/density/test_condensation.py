"""The thresholds of the large-dimensional theory: limits, identities, simulation, and the definition itself."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mercer.density import (
    condensed_moments,
    gaussian_free_energy,
    kde_thresholds,
    log_kde,
    regime,
    stable_index,
)

SPECTRA = (np.ones(1), np.arange(1, 40.0) ** -1.5, np.r_[np.full(5, 100.0), np.full(45, 0.01)])


def test_seen_values():
    # Of the simulation of arXiv 2408.05807's setting: alpha, h_G, h_opt.
    for alpha, h_g, h_opt in (
        (0.099, 1.376, 1.040),
        (0.198, 1.050, 0.894),
        (0.330, 0.827, 0.756),
        (0.4, 0.745, 0.696),
    ):
        t = kde_thresholds(alpha)
        assert t.h_g == pytest.approx(h_g, abs=2e-3) and t.h_opt == pytest.approx(h_opt, abs=2e-3)


@given(st.floats(1e-5, 8), st.integers(0, 2))
def test_identities(alpha, which):
    spectrum = SPECTRA[which]
    t = kde_thresholds(alpha, spectrum=spectrum)
    assert t.h_clt == pytest.approx(np.sqrt(2) * t.h_g, rel=1e-14)
    assert t.h_opt < t.h_g and t.h_opt**2 == pytest.approx(2 * t.e_star, rel=1e-14)
    assert t.s_c == pytest.approx(t.h_g**-2, rel=1e-14)
    assert stable_index(t.h_g, alpha, spectrum=spectrum) == pytest.approx(1, rel=1e-13)
    # f is continuous with its first derivative at h_G, and largest at h_opt.
    f = lambda h: gaussian_free_energy(h, alpha, spectrum)  # noqa: E731
    eps = 1e-5
    slopes = [(f(t.h_g * (1 + s * eps)) - f(t.h_g)) / (s * eps) for s in (1, -1)]
    assert slopes[0] == pytest.approx(slopes[1], abs=1e-3 * (1 + abs(slopes[0])))
    assert f(t.h_opt) >= max(f(t.h_opt * 0.99), f(t.h_opt * 1.01)) - 1e-11


def test_the_equation_holds_in_many_digits():
    """s phi' - phi = alpha with phi from its definition, by mpmath's own derivative."""
    with mpmath.workdps(40):
        for spectrum in SPECTRA:
            for alpha in (1e-4, 0.1, 3.0):
                for r in (0.3, 1.0, 4.0):
                    t = kde_thresholds(alpha, spectrum=spectrum, query_r=r)

                    def phi(s, spectrum=spectrum, r=r):
                        terms = [
                            mpmath.log(1 + s * v) + s * v * r / (1 + s * v) for v in map(mpmath.mpf, spectrum)
                        ]
                        return -mpmath.fsum(terms) / (2 * len(spectrum))

                    s = mpmath.mpf(float(t.s_c))
                    slope = mpmath.diff(phi, s)
                    assert float(s * slope - phi(s)) == pytest.approx(alpha, rel=1e-11)
                    assert float(-slope) == pytest.approx(t.e_star, rel=1e-11)


def test_limits_of_alpha():
    assert kde_thresholds(20.0).h_g == pytest.approx(np.exp(-20), rel=1e-6)
    assert kde_thresholds(1e-8).s_c == pytest.approx(np.sqrt(4e-8 / 3), rel=1e-3)
    t = kde_thresholds(np.array([0.1, 0.2]), spectrum=np.full(7, 4.0))
    np.testing.assert_allclose(t.h_g, 2 * kde_thresholds(np.array([0.1, 0.2])).h_g, rtol=1e-14)
    assert kde_thresholds(n=1000, d=50).h_g == kde_thresholds(np.log(1000) / 50).h_g
    assert kde_thresholds(n=1000, spectrum=np.ones(50)).h_g == pytest.approx(kde_thresholds(n=1000, d=50).h_g)


def test_regimes_and_their_order():
    t = kde_thresholds(0.2)
    h = np.array([t.h_opt, (t.h_g + t.h_clt) / 2, t.h_clt * 1.01])
    assert regime(h, 0.2).tolist() == ["condensed", "stable", "clt"]
    assert regime(t.h_opt, 0.2) == "condensed"
    assert kde_thresholds(0.2, query_r=2.0).h_g > t.h_g > kde_thresholds(0.2, query_r=0.5).h_g


@pytest.mark.parametrize("mu", [0.2, 0.5, 0.8])
def test_moments_are_those_of_a_poisson_process(mu):
    rng = np.random.default_rng(int(10 * mu))
    gaps = rng.exponential(size=(4000, 3000)).cumsum(1)
    w = gaps ** (-1 / mu)  # points of intensity mu e^(-mu u) du, weights e^u
    w /= w.sum(1, keepdims=True)
    for k in (2, 3):
        sample = (w**k).sum(1)
        assert condensed_moments(mu, k) == pytest.approx(sample.mean(), abs=6 * sample.std() / 63 + 2e-3)
    if mu < 0.6:  # the tail of small shares that is cut off counts in the entropy
        entropy = -(w * np.log(w)).sum(1)
        assert condensed_moments(mu, 1) == pytest.approx(entropy.mean(), abs=6 * entropy.std() / 63 + 2e-2)
    assert condensed_moments(1.0) == 0.0 and condensed_moments(1.5, 1) == np.inf


def test_a_simulation_condenses_where_the_theory_says():
    rng = np.random.default_rng(0)
    n, d = 5000, 80
    Y, X = rng.standard_normal((n, d)), rng.standard_normal((200, d))
    X *= np.sqrt(d) / np.linalg.norm(X, axis=1, keepdims=True)
    t = kde_thresholds(n=n, d=d)
    found = log_kde(X, Y, t.h_g * np.array([0.4, 0.7, 2.0]), return_diagnostics=True).participation.mean(0)
    assert found[0] > 0.75 and 0.35 < found[1] < 0.75 and found[2] < 0.05
    f = log_kde(X, Y, 1.5 * t.h_g).mean() / d
    assert f == pytest.approx(gaussian_free_energy(1.5 * t.h_g, n=n, d=d), abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kde_thresholds(0.0), r"alpha must be finite and > 0, got 0.0"),
        (lambda: kde_thresholds(-1.0), r"alpha must be finite and > 0, got -1.0"),
        (lambda: kde_thresholds(np.nan), r"alpha must be finite"),
        (lambda: kde_thresholds(), r"alpha must be given, or n and d"),
        (lambda: kde_thresholds(0.1, n=5, d=2), r"alpha must be given, or n and d"),
        (lambda: kde_thresholds(n=1, d=5), r"n must be >= 2"),
        (lambda: kde_thresholds(0.1, spectrum=[]), r"spectrum must be a vector of eigenvalues"),
        (lambda: kde_thresholds(0.1, spectrum=[1.0, -1.0]), r"spectrum must be finite, >= 0"),
        (lambda: kde_thresholds(0.1, spectrum=[0.0]), r"spectrum must be finite, >= 0 and not all 0"),
        (lambda: kde_thresholds(0.1, query_r=-1.0), r"query_r must be finite and >= 0"),
        (lambda: regime(0.0, 0.1), r"h must be finite and > 0, got 0.0"),
        (lambda: gaussian_free_energy(-1.0, 0.1), r"h must be finite and > 0, got -1.0"),
        (lambda: condensed_moments(0.0), r"mu must be finite and > 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

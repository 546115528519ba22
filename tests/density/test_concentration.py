"""kappa from the mean resultant length: reference values, closed forms, domains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mercer.density import VonMisesFisher, kappa_banerjee, kappa_mle, kappa_sra, kappa_tanabe
from mercer.density._concentration import (
    corrected_length,
    log_norm_const_scaled,
    mean_resultant_length,
    mean_resultant_slope,
)

REFERENCE = Path(__file__).parents[1] / "reference" / "54-log-bessel" / "vmf.npz"


@pytest.fixture(scope="module")
def table():
    """210 (d, r_bar) pairs and 42 divergences in 400-bit arithmetic."""
    path = (
        REFERENCE
        if REFERENCE.exists()
        else Path(__file__).parents[2] / "../shared/golden/54-log-bessel/vmf.npz"
    )
    if not path.exists():
        pytest.skip("the reference values are not here")
    with np.load(path) as arrays:
        return dict(arrays)


def test_kappa_mle_meets_the_tolerance_of_the_reference(table):
    got = kappa_mle(table["r_bar"], table["d"])
    error = np.abs(got / table["kappa_mle"] - 1)
    assert np.all(error <= 4e-16 / (1 - table["r_bar"]) + 1e-12)


def test_approximations_match_the_reference(table):
    d, r = table["d"], table["r_bar"]
    np.testing.assert_allclose(kappa_banerjee(r, d), table["kappa_banerjee"], rtol=4e-16 / (1 - r).min())
    for steps in (1, 2):
        want = table[f"kappa_sra{steps}"]
        assert np.all(np.abs(kappa_sra(r, d, steps) / want - 1) <= 1e-12 + 4e-16 / (1 - r))


def test_normalising_constant_entropy_and_slope_match_the_reference(table):
    for d, kappa, log_c, entropy, slope in zip(
        *(table[name] for name in ("d", "kappa_mle", "log_norm_const", "entropy", "dA")), strict=True
    ):
        law = VonMisesFisher(dim=int(d), concentration=float(kappa))
        # the table's constant is that of the unrounded kappa; d log C / d kappa = -A
        worth = 2.0**-53 * kappa * law.mean_resultant_length()
        assert abs(law.log_norm_const() - log_c) <= 1e-13 * max(1, abs(log_c)) + worth
        # the entropy moves with the last bit of kappa, by kappa² A' of it
        assert abs(law.entropy() - entropy) <= 1e-13 * max(1, abs(log_c)) + 1e-15 * kappa**2 * slope
        assert mean_resultant_slope(d, kappa) == pytest.approx(slope, rel=1e-8)


def test_divergences_match_the_reference(table):
    for d, p, q, cos, want in zip(
        *(table[name] for name in ("kl_d", "kl_kappa_p", "kl_kappa_q", "kl_cos", "kl")), strict=True
    ):
        mu = np.zeros((2, d))
        mu[0, 0], mu[1, 0], mu[1, 1] = 1, cos, np.sqrt(1 - cos * cos)
        law = VonMisesFisher(mean_direction=mu[0], concentration=p)
        other = VonMisesFisher(mean_direction=mu[1], concentration=q)
        scale = max(1, abs(law.log_norm_const()), abs(other.log_norm_const()))
        assert abs(law.kl_divergence(other) - want) <= 1e-12 * scale
        assert law.kl_divergence(law) == 0


@pytest.mark.parametrize("kappa", [1e-6, 1e-3, 0.5, 7.0, 300.0, 1e5, 1e9])
def test_three_dimensions_have_closed_forms(kappa):
    law = VonMisesFisher(dim=3, concentration=kappa)
    # log C = log kappa - log(4 pi sinh kappa), sinh kappa = e^kappa (1 - e^{-2 kappa}) / 2
    log_c = np.log(kappa) - np.log(2 * np.pi) - kappa - np.log(-np.expm1(-2 * kappa))
    assert law.log_norm_const() == pytest.approx(log_c, rel=2e-15)
    if kappa >= 0.5:  # coth k - 1/k cancels below
        a = 1 / np.tanh(kappa) - 1 / kappa
        assert law.mean_resultant_length() == pytest.approx(a, rel=4e-15)
        assert kappa_mle(a, 3) == pytest.approx(kappa, rel=1e-12 + 4e-16 / (1 - a))
    else:
        assert law.mean_resultant_length() == pytest.approx(kappa / 3 - kappa**3 / 45, rel=1e-13)


def test_constant_is_continuous_where_its_form_changes_and_uniform_at_zero():
    for d in (2, 3, 10, 2048, 32768):
        below, above = log_norm_const_scaled(d, 1e-4), log_norm_const_scaled(d, np.nextafter(1e-4, 1))
        assert below == pytest.approx(above, rel=1e-13, abs=1e-13)
    # the sphere's area: 2 pi, 4 pi, 2 pi²
    for d, area in ((2, 2 * np.pi), (3, 4 * np.pi), (4, 2 * np.pi**2)):
        assert VonMisesFisher(dim=d, concentration=0.0).log_norm_const() == pytest.approx(-np.log(area))
        assert VonMisesFisher(dim=d, concentration=0.0).entropy() == pytest.approx(np.log(area))


@pytest.mark.parametrize("d", [2, 3, 64, 2048, 32768])
def test_mle_inverts_the_mean_resultant_length(d):
    r = np.concatenate([[0.0], np.logspace(-9, -0.01, 40), 1 - np.logspace(-9, -2, 20)])
    kappa = kappa_mle(r, d)
    assert kappa[0] == 0 and np.all(np.diff(kappa[np.argsort(r, kind="stable")]) >= 0)
    np.testing.assert_allclose(mean_resultant_length(d, kappa), r, rtol=1e-14)
    for approximation, tolerance in ((kappa_banerjee, 0.6), (kappa_tanabe, 0.7)):
        got = approximation(r, d)
        assert got[0] == 0 and np.all(np.isfinite(got))
        np.testing.assert_allclose(got[1:], kappa[1:], rtol=tolerance)


def test_float32_and_scalars_keep_their_type():
    assert kappa_mle(np.float32(0.5), 3).dtype == np.float32
    assert isinstance(kappa_mle(0.5, 3), np.float64)
    assert kappa_mle(np.full((2, 1), 0.5), [3, 4, 5]).shape == (2, 3)


@pytest.mark.parametrize("function", [kappa_mle, kappa_banerjee, kappa_sra, kappa_tanabe])
def test_arguments_outside_the_domain_are_refused(function):
    with pytest.raises(ValueError, match=r"r_bar must be in \[0, 1\), got 1.0.*infinite"):
        function([0.5, 1.0], 3)
    for bad in (-0.1, 1.5, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"r_bar must be in \[0, 1\)"):
            function(bad, 3)
    with pytest.raises(ValueError, match="d must be an integer >= 2, got 1"):
        function(0.5, 1)
    for bad in (2.5, "3", None):
        with pytest.raises(TypeError, match="d must be an integer >= 2"):
            function(0.5, bad)
    with pytest.raises(ValueError, match="r_bar must be real"):
        function(0.5 + 0j, 3)


def test_correction_is_unbiased_for_the_squared_length():
    # E R² = A² + (1 - A²)/n exactly, whatever the law: the correction undoes it.
    a, n = 0.3, 7
    assert corrected_length(np.sqrt(a * a + (1 - a * a) / n), n) == pytest.approx(a, rel=1e-14)
    assert corrected_length(0.1, 5) == 0

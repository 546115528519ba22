"""Laws, budgets, accounting: exact arithmetic against fractions and definitions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mercer import _core
from mercer.private import InsecureNoiseWarning, zcdp_delta, zcdp_epsilon, zcdp_rho
from mercer.private._noise import Budget, Law, Noise

EPSILONS = st.floats(1e-6, 1e3)


@given(EPSILONS, st.integers(1, 10**12))
def test_laplace_noise_spends_no_more_than_its_epsilon_and_hardly_less(epsilon, sensitivity):
    law = Law.laplace(Fraction(epsilon), sensitivity)
    spent = Fraction(law.num, 2**law.shift) * sensitivity
    assert spent <= Fraction(epsilon)
    assert spent * (law.num + 1) > Fraction(epsilon) * law.num  # the next step would be too much


@given(st.floats(1e-8, 100), st.integers(1, 10**6))
def test_gaussian_noise_spends_no_more_than_its_rho_and_hardly_less(rho, square):
    try:
        law = Law.gauss(Fraction(rho), square)
    except ValueError:
        assert square / (2 * rho) > 2.0**44
        return
    variance = Fraction(law.num, 2**law.shift)
    assert Fraction(square) / (2 * variance) <= Fraction(rho)
    assert float(variance) < square / (2 * rho) * (1 + 1e-5) + 2.0**-20 + (1 if law.shift == 0 else 0)


@given(EPSILONS, st.lists(st.floats(1e-3, 10), min_size=1, max_size=40))
def test_a_split_budget_adds_up_exactly(epsilon, shares):
    parts = Budget.of("laplace", epsilon, None).split(shares)
    assert sum(parts) == Fraction(epsilon) and min(parts) > 0
    np.testing.assert_allclose(
        [float(p) for p in parts], epsilon * np.array(shares) / sum(shares), rtol=1e-12
    )


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.7, 3.0, 40.0])
def test_variance_of_discrete_laplace_is_its_sum(rate):
    z = np.arange(1, 200_000)
    weight = np.exp(-rate * z)
    true = 2 * np.sum(z * z * weight) / (1 + 2 * np.sum(weight))
    assert Law.laplace(Fraction(rate), 1).variance == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("sigma2", [0.05, 0.3, 1.0, 20.0, 26.0, 400.0])
def test_variance_of_discrete_gaussian_is_its_sum(sigma2):
    law = Law(True, round(sigma2 * 2**20), 20)
    z = np.arange(1, 5000)
    weight = np.exp(-(z**2) / (2 * law.num / 2**20))
    true = 2 * np.sum(z * z * weight) / (1 + 2 * np.sum(weight))
    assert law.variance == pytest.approx(true, rel=1e-12)


@pytest.mark.parametrize("law", [Law.laplace(Fraction(1, 7), 2), Law.gauss(Fraction(1, 50), 3)])
def test_drawn_noise_has_the_variance_it_says(law):
    n = 200_000
    values = np.zeros(n, np.int64)
    Noise(None, None).add(values, [law])
    # The variance of a sample variance of a Laplace law is (6 - 1) sigma^4 / n: seven deviations.
    assert abs(values.var() / law.variance - 1) < 7 * math.sqrt(5 / n)
    assert abs(values.mean()) < 7 * math.sqrt(law.variance / n)


def test_noise_is_not_repeatable_unless_a_seed_says_so_and_then_it_warns():
    law, draws = Law.laplace(Fraction(1, 100), 1), []
    for seed in (None, None, 5, 5):
        values = np.zeros(1000, np.int64)
        if seed is None:
            noise = Noise(None, 2)
        else:
            with pytest.warns(InsecureNoiseWarning, match="repeatable"):
                noise = Noise(seed, 1 if draws else 2)
        noise.add(values, [law])
        draws.append(values)
        again = np.zeros(1000, np.int64)
        noise.add(again, [law])
        assert not np.array_equal(values, again)  # one seed, two structures: different noise
    assert not np.array_equal(draws[0], draws[1]) and np.array_equal(draws[2], draws[3])


def test_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="lengths"):
        _core.private_noise(np.zeros(3, np.int64), [2], False, [1], [0])
    with pytest.raises(ValueError, match="out of range"):
        _core.private_noise(np.zeros(3, np.int64), [3], False, [0], [0])


# zero-concentrated differential privacy


@pytest.mark.parametrize("rho", [1e-4, 0.02, 0.3, 2.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
def test_conversion_from_rho_is_below_the_textbooks_and_above_the_gaussian_truth(rho, delta):
    epsilon = zcdp_epsilon(rho, delta)
    assert epsilon <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-12
    # Balle and Wang 2018, theorem 8: the exact delta of the continuous Gaussian mechanism with this rho.
    mpmath = pytest.importorskip("mpmath")
    ratio = mpmath.sqrt(2 * rho)  # sensitivity / sigma
    exact = mpmath.ncdf(ratio / 2 - epsilon / ratio) - mpmath.exp(epsilon) * mpmath.ncdf(
        -ratio / 2 - epsilon / ratio
    )
    assert exact <= delta * (1 + 1e-9)
    assert zcdp_delta(rho, epsilon) <= delta


@given(st.floats(1e-3, 50), st.floats(1e-12, 0.5))
def test_rho_of_epsilon_is_the_inverse(epsilon, delta):
    rho = zcdp_rho(epsilon, delta)
    assert 0 < rho and zcdp_delta(rho, epsilon) <= delta
    assert zcdp_epsilon(rho, delta) <= epsilon * (1 + 1e-9)
    assert zcdp_delta(rho * 1.0001, epsilon) > delta


@pytest.mark.parametrize(
    ("mechanism", "epsilon", "delta", "message"),
    [
        ("laplace", 0.0, None, r"epsilon must be > 0, got 0.0"),
        ("laplace", -1.0, None, r"epsilon must be > 0, got -1.0"),
        ("laplace", math.nan, None, "epsilon must be"),
        ("laplace", math.inf, None, "epsilon must be"),
        ("laplace", 1.0, 1e-5, "delta must be None"),
        ("gaussian", 1.0, None, "delta must be in"),
        ("gaussian", 1.0, 0.0, "delta must be"),
        ("gaussian", 1.0, 1.0, "delta must be"),
        ("cauchy", 1.0, None, "mechanism must be one of"),
    ],
)
def test_budgets_out_of_range_are_refused(mechanism, epsilon, delta, message):
    with pytest.raises(ValueError, match=message):
        Budget.of(mechanism, epsilon, delta)


@pytest.mark.parametrize("deviation", [4094, 4095, 6000, 8190, 8191, 2**14 - 1, 2**22, 2**23 - 2])
def test_the_sampler_takes_every_deviation_that_a_budget_may_ask_for(deviation):
    law = Law.gauss(Fraction(1, 2), deviation**2)
    values = np.zeros(4000, np.int64)
    Noise(None, 1).add(values, [law])
    # 6 standard errors of a deviation from n normal draws
    assert abs(values.std() / deviation - 1) < 6 / math.sqrt(2 * len(values))

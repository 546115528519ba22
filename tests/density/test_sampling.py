"""The sampler's law. Kolmogorov-Smirnov and chi-squared bounds fail by chance once in a billion runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from mercer.density import VonMisesFisher

ONCE_IN_A_BILLION = 1e-9


def direction(d, seed=0):
    mu = np.random.default_rng(seed).standard_normal(d)
    return mu / np.linalg.norm(mu)


def draw(d, kappa, n, seed=1):
    mu = direction(d)
    return mu, VonMisesFisher(mean_direction=mu, concentration=kappa).sample(n, random_state=seed)


def cosine_cdf(d, kappa):
    """P(mu·x <= w) by quadrature over the angle, w = cos t: density exp(kappa cos t) sin(t)^{d-2}."""
    t = np.linspace(0, np.pi, 400_001)[1:-1]
    log_density = kappa * (np.cos(t) - 1) + (d - 2) * np.log(np.sin(t))
    density = np.exp(log_density - log_density.max())
    mass = np.concatenate([[0], integrate.cumulative_trapezoid(density, t)])
    return lambda w: 1 - np.interp(np.arccos(np.clip(w, -1, 1)), t, mass / mass[-1])


@pytest.mark.parametrize(
    ("d", "kappa"),
    [
        (2, 0.0),
        (2, 0.5),
        (2, 40.0),
        (3, 2.0),
        (4, 1e-3),
        (5, 10.0),
        (50, 0.0),
        (50, 30.0),
        (384, 300.0),
        (2048, 900.0),
    ],
)
def test_cosines_follow_their_density(d, kappa):
    mu, X = draw(d, kappa, 20_000)
    assert stats.kstest(X @ mu, cosine_cdf(d, kappa)).pvalue > ONCE_IN_A_BILLION


@pytest.mark.parametrize("kappa", [0.1, 3.0, 500.0])
def test_two_dimensions_are_the_von_mises_distribution(kappa):
    mu, X = draw(2, kappa, 50_000)
    angle = np.arctan2(mu[0] * X[:, 1] - mu[1] * X[:, 0], X @ mu)
    assert stats.kstest(angle, stats.vonmises(kappa).cdf).pvalue > ONCE_IN_A_BILLION


@pytest.mark.parametrize("d", [2, 3, 10, 512])
def test_huge_concentrations_tend_to_the_gamma_law(d):
    # kappa |x - mu|²/2 -> Gamma((d-1)/2) with error O(1/kappa)
    kappa = 1e10
    mu, X = draw(d, kappa, 20_000)
    s = kappa * 0.5 * np.sum((X - mu) ** 2, axis=1)
    assert stats.kstest(s, stats.gamma((d - 1) / 2).cdf).pvalue > ONCE_IN_A_BILLION


@pytest.mark.parametrize("d", [3, 5, 64])
def test_tangents_are_uniform_and_independent_of_the_cosine(d):
    n = 20_000
    mu, X = draw(d, 5.0, n)
    w = X @ mu
    tangent = X - w[:, None] * mu
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    basis = np.linalg.svd(mu[None])[2][1:]  # (d-1, d), orthogonal to mu
    t = tangent @ basis.T
    m = d - 1
    # sqrt(n m) mean(t) and sqrt(n m) mean(t z(w)) are standard normal vectors in the limit
    z = (w - w.mean()) / w.std()
    for average in (t.mean(0), (t * z[:, None]).mean(0)):
        assert stats.chi2(m).sf(n * m * np.sum(average**2)) > ONCE_IN_A_BILLION
    # second moments: every squared coordinate is Beta(1/2, (m-1)/2)
    for i in (0, m // 2, m - 1):
        assert stats.kstest(t[:, i] ** 2, stats.beta(0.5, (m - 1) / 2).cdf).pvalue > ONCE_IN_A_BILLION


def test_uniform_law_needs_no_direction_and_has_none():
    X = VonMisesFisher(dim=3, concentration=0.0).sample(20_000, random_state=3)
    for i in range(3):  # Archimedes: every coordinate is uniform
        assert stats.kstest(X[:, i], stats.uniform(-1, 2).cdf).pvalue > ONCE_IN_A_BILLION


@pytest.mark.parametrize("d", [2, 3, 1000, 32768])
@pytest.mark.parametrize("kappa", [0.0, 5e-324, 1e-8, 1.0, 1e6, 1e15, 1e300])
def test_rows_have_unit_length(d, kappa):
    mu, X = draw(d, kappa, 3)
    assert np.all(np.abs(np.linalg.norm(X, axis=1) - 1) < 1e-14)
    if kappa >= 1e15:
        assert np.all(X @ mu > 1 - 1e-9)


@pytest.mark.parametrize("d", [2, 3, 700])
def test_bits_depend_on_the_seed_and_the_row_alone(d):
    mu = direction(d)
    one, two = (
        VonMisesFisher(mean_direction=mu, concentration=3.0, n_jobs=jobs).sample(3000, random_state=5)
        for jobs in (1, 2)
    )
    assert one.tobytes() == two.tobytes()
    law = VonMisesFisher(mean_direction=mu, concentration=3.0)
    assert law.sample(10, random_state=5).tobytes() == one[:10].tobytes()
    assert np.array_equal(law.sample(10, 5, dtype=np.float32), one[:10].astype(np.float32))
    assert not np.array_equal(law.sample(10, random_state=6), one[:10])
    out = np.empty((10, d))
    assert law.sample(10, random_state=5, out=out) is out and np.array_equal(out, one[:10])


class PlainDraws:
    """The generator by its definition: Philox 4x32-10 in integers, Box-Muller, Marsaglia-Tsang."""

    def __init__(self, seed, stream, row):
        self.seed, self.stream, self.row, self.block, self.bits, self.normals = seed, stream, row, 0, [], []

    def words(self):
        c = [self.block, self.row & 0xFFFFFFFF, self.row >> 32, self.stream]
        self.block += 1
        k = [self.seed & 0xFFFFFFFF, self.seed >> 32]
        for _ in range(10):
            p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        return [c[0] | c[1] << 32, c[2] | c[3] << 32]

    def uniform(self):
        self.bits = self.bits or self.words()
        return ((self.bits.pop(0) >> 12) + 0.5) * 2.0**-52

    def direction(self, word):
        turn = (((word >> 12) + 0.5) * 2.0**-52 - 0.5) * math.pi / 2
        x, y = math.cos(turn) * (-1 if word & 1 else 1), math.sin(turn)
        return (y, x) if word & 2 else (x, y)

    def normal(self):
        if not self.normals:
            a, b = self.words()
            r = math.sqrt(-2 * math.log(((a >> 12) + 0.5) * 2.0**-52))
            self.normals = [r * x for x in self.direction(b)]
        return self.normals.pop(0)

    def gamma(self, shape):
        if shape == 0.5:
            return 0.5 * self.normal() ** 2
        d = shape - 1 / 3
        while True:
            x = self.normal()
            v = (1 + x / math.sqrt(9 * d)) ** 3
            if v > 0 and math.log(self.uniform()) < 0.5 * x * x + d - d * v + d * math.log(v):
                return d * v


def plain_row(mu, kappa, seed, row):
    """Inversion on the sphere, Wood's algorithm as it is printed elsewhere; one block a try on the circle."""
    m = len(mu) - 1
    draws = PlainDraws(seed, 1, row)
    if m == 2:
        uniform, angle = draws.words()
        u = ((uniform >> 12) + 0.5) * 2.0**-52
        w, tangent = 1 + math.log1p(u * math.expm1(-2 * kappa)) / kappa, draws.direction(angle)
        return reflect(mu, w, np.array(tangent))
    b = m / (2 * kappa + math.hypot(2 * kappa, m))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + m * math.log(1 - x0 * x0)
    while True:
        if m == 1:
            uniform, angle = draws.words()
            z, u = draws.direction(angle)[1] ** 2, ((uniform >> 12) + 0.5) * 2.0**-52
        else:
            g = draws.gamma(m / 2), draws.gamma(m / 2)
            z, u = g[0] / (g[0] + g[1]), draws.uniform()
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        if kappa * w + m * math.log(1 - x0 * w) - c >= math.log(u):
            break
    if m == 1:
        t = math.sqrt(1 - w * w) * (-1 if uniform & 1 else 1)
        return np.array([w * mu[0] - t * mu[1], w * mu[1] + t * mu[0]])
    draws = PlainDraws(seed, 0, row)
    t = np.array([draws.normal() for _ in range(m)])
    return reflect(mu, w, t / np.linalg.norm(t))


def reflect(mu, w, tangent):
    sign = -1.0 if mu[0] < 0 else 1.0
    y = np.concatenate([[-sign * w], np.sqrt(1 - w * w) * tangent])
    u = mu + sign * np.eye(len(mu))[0]
    return y - 2 * u * (u @ y) / (u @ u)


@pytest.mark.parametrize("d", [2, 3, 4, 40])
def test_rows_are_those_of_the_plain_definition(d):
    """So a seed means the same rows in every version and on every platform."""
    mu, kappa, seed = direction(d, seed=d), 2.0, 0xFEDC_BA98_7654_3210
    X = VonMisesFisher(mean_direction=mu, concentration=kappa).sample(200, random_state=seed)
    want = np.stack([plain_row(mu, kappa, seed, row) for row in range(200)])
    np.testing.assert_allclose(X, want, atol=1e-12)


def test_random_state_in_all_its_forms():
    law = VonMisesFisher(mean_direction=[1.0, 0.0], concentration=1.0, random_state=7)
    assert np.array_equal(law.sample(5), law.sample(5))
    assert np.array_equal(law.sample(5), law.sample(5, random_state=7))
    generator = np.random.default_rng(0)
    assert not np.array_equal(law.sample(5, generator), law.sample(5, generator))
    assert np.array_equal(law.sample(5, np.random.RandomState(3)), law.sample(5, np.random.RandomState(3)))
    fresh = VonMisesFisher(mean_direction=[1.0, 0.0], concentration=1.0)
    assert not np.array_equal(fresh.sample(5), fresh.sample(5))
    for bad, error in (
        (-1, ValueError),
        (2**64, ValueError),
        (1.5, TypeError),
        ("seed", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="random_state must be"):
            law.sample(5, bad)


def test_bad_sizes_and_outputs_are_refused():
    law = VonMisesFisher(mean_direction=[1.0, 0.0], concentration=1.0)
    assert law.sample(0).shape == (0, 2)
    with pytest.raises(ValueError, match="n must be an integer >= 0, got -1"):
        law.sample(-1)
    with pytest.raises(TypeError, match="n must be an integer"):
        law.sample(2.5)
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        law.sample(2, dtype=np.int64)
    with pytest.raises(ValueError, match="out must be a writeable C-contiguous array"):
        law.sample(2, out=np.empty((2, 3)))
    with pytest.raises(TypeError, match="out must be a float32 or float64 array"):
        law.sample(2, out=np.empty((2, 2), int))

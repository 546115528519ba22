"""The torch distribution against mercer.density, closed forms, gradcheck and quantiles by quadrature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, optimize, stats

torch = pytest.importorskip("torch")
from torch.distributions import kl_divergence  # noqa: E402

from mercer import density  # noqa: E402
from mercer.nn import distributions  # noqa: E402
from mercer.nn.distributions import VonMisesFisher  # noqa: E402


def unit(*shape, seed=0, dtype=torch.float64, grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1).to(dtype).requires_grad_(grad)


@pytest.mark.parametrize("d", [2, 3, 10, 512, 8192])
@pytest.mark.parametrize("kappa", [0.0, 1e-5, 0.5, 30.0, 4000.0])
def test_values_agree_with_the_numpy_distribution(d, kappa):
    mu, x = unit(d, seed=1), unit(5, d, seed=2)
    law, twin = (
        VonMisesFisher(mu, kappa),
        density.VonMisesFisher(mean_direction=mu.numpy(), concentration=kappa),
    )
    np.testing.assert_allclose(law.log_prob(x), twin.log_prob(x.numpy()), rtol=1e-12, atol=1e-12)
    assert float(law.entropy()) == pytest.approx(twin.entropy(), rel=1e-12, abs=1e-12)
    assert float(law.log_norm_const()) == pytest.approx(twin.log_norm_const(), rel=1e-13)
    assert float(law.mean.norm()) == pytest.approx(twin.mean_resultant_length(), rel=1e-12, abs=1e-15)
    other = density.VonMisesFisher(mean_direction=x[0].numpy(), concentration=7.0)
    got = kl_divergence(law, VonMisesFisher(x[0], 7.0))
    assert float(got) == pytest.approx(twin.kl_divergence(other), rel=1e-10, abs=1e-10)
    assert float(kl_divergence(law, law)) == pytest.approx(0, abs=1e-11 * max(1, kappa))


def test_float32_is_right_to_its_last_digits():
    mu, x = unit(4, 2048, dtype=torch.float32), unit(4, 2048, seed=3, dtype=torch.float32)
    kappa = torch.tensor([1.0, 100.0, 1e3, 1e4])
    got = VonMisesFisher(mu, kappa).log_prob(x)
    want = VonMisesFisher(torch.nn.functional.normalize(mu.double(), dim=-1), kappa.double()).log_prob(
        x.double()
    )
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, want, rtol=3e-6)


@pytest.mark.parametrize("d", [2, 3, 17])
@pytest.mark.parametrize("low", [1e-5, 0.3, 50.0])
def test_gradients_match_finite_differences_twice(d, low):
    kappa = torch.tensor([low, 3 * low], dtype=torch.float64, requires_grad=True)
    mu, x = unit(2, d, seed=1, grad=True), unit(2, d, seed=2)
    other = VonMisesFisher(unit(2, d, seed=5), 2.0)

    def all_of_them(mu, kappa):
        law = VonMisesFisher(mu, kappa, validate_args=False)
        return law.log_prob(x), law.entropy(), kl_divergence(law, other), kl_divergence(other, law)

    # a step of 1e-6 would leave the domain of the smallest kappa only below 0
    assert torch.autograd.gradcheck(all_of_them, (mu, kappa), eps=1e-6, atol=1e-6)
    if low >= 0.3:
        assert torch.autograd.gradgradcheck(all_of_them, (mu, kappa), eps=1e-5, atol=1e-4)


def test_gradient_in_the_concentration_is_that_of_the_score():
    # d/dkappa log f = mu·x - A(kappa), by autograd
    d = 1024
    kappa = torch.tensor([1e-6, 5.0, 800.0, 1e5], dtype=torch.float64, requires_grad=True)
    mu, x = unit(4, d, seed=1), unit(4, d, seed=2)
    VonMisesFisher(mu, kappa).log_prob(x).sum().backward()
    laws = [density.VonMisesFisher(dim=d, concentration=float(k)) for k in kappa.detach()]
    want = (mu * x).sum(-1).numpy() - [law.mean_resultant_length() for law in laws]
    np.testing.assert_allclose(kappa.grad, want, atol=1e-12)


def density_of_cosine(d, kappa, w):
    return np.exp(kappa * (w - 1)) * (1 - w * w) ** ((d - 3) / 2)


def quantile_slope(d, kappa, w, h):
    """dW/dkappa at a fixed probability, by quadrature and root finding."""

    def below(k, w):
        f = lambda t: np.exp(k * np.cos(t)) * np.sin(t) ** (d - 2)  # noqa: E731
        scale = integrate.quad(f, 0, np.pi, epsabs=0, epsrel=1e-13, limit=400)[0]
        return integrate.quad(f, np.arccos(w), np.pi, epsabs=0, epsrel=1e-13, limit=400)[0] / scale

    p = below(kappa, w)
    ends = [
        optimize.brentq(lambda u, k=k: below(k, u) - p, -1, 1, xtol=1e-14) for k in (kappa - h, kappa + h)
    ]
    return (ends[1] - ends[0]) / (2 * h)


@pytest.mark.parametrize("d", [2, 3, 5, 20])
@pytest.mark.parametrize("kappa", [0.5, 4.0, 20.0])
def test_slope_of_a_draw_is_that_of_its_quantile(d, kappa):
    for w in (-0.6, 0.0, 0.3, 0.8, 0.97):
        got = distributions._cosine_slope(
            torch.tensor([kappa], dtype=torch.float64), torch.tensor([1 - w], dtype=torch.float64), d
        )
        # where nearly all of the probability lies on one side the quadrature has no digits left
        if density_of_cosine(d, kappa, w) > 1e-4:
            assert float(got) == pytest.approx(quantile_slope(d, kappa, w, 1e-4), rel=2e-5, abs=1e-8)


@pytest.mark.parametrize(("d", "kappa"), [(2, 1.0), (3, 8.0), (64, 0.01), (512, 300.0), (8192, 1e4)])
def test_gradients_of_expectations_are_those_of_the_law(d, kappa):
    # E mu·x = A(kappa), so the mean of dW/dkappa is A'(kappa); 6.1 standard errors: once in a billion
    torch.manual_seed(0)
    n = 4000 if d < 4096 else 500
    k = torch.full((n,), kappa, dtype=torch.float64, requires_grad=True)
    mu = unit(d, seed=3)
    w = VonMisesFisher(mu.expand(n, d), k).rsample() @ mu
    (slope,) = torch.autograd.grad(w.sum(), k)
    from mercer.density._concentration import mean_resultant_slope

    want = float(mean_resultant_slope(d, kappa))
    assert abs(float(slope.mean()) - want) < 6.1 * float(slope.std()) / n**0.5
    assert torch.isfinite(slope).all()


def test_rsample_has_gradients_in_the_mean_direction():
    # E x = A mu: the gradient of c·E x(mu / |mu|) in mu is A (c - (c·mu) mu)
    torch.manual_seed(1)
    raw = unit(3, seed=2, grad=True)
    n, c = 20_000, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    law = VonMisesFisher(torch.nn.functional.normalize(raw, dim=0), 6.0)
    (law.rsample((n,)) @ c).mean().backward()
    a, mu = float(law.mean_resultant_length), raw.detach()
    want = a * (c - (c @ mu) * mu)
    # entries of one draw's gradient are at most 2 |c| in size: 6.1 standard errors
    assert torch.all((raw.grad - want).abs() < 6.1 * 2 * float(c.norm()) / n**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "kappa"), [(2, 3.0), (3, 0.0), (3, 1e6), (50, 40.0)])
def test_samples_follow_the_law_of_the_numpy_sampler(d, kappa, dtype):
    torch.manual_seed(2)
    mu = unit(d, seed=4, dtype=dtype)
    x = VonMisesFisher(mu, kappa).sample((5000,))
    assert x.dtype == dtype and torch.all((x.double().norm(dim=-1) - 1).abs() < 1e-5)
    twin = density.VonMisesFisher(mean_direction=mu.double().numpy(), concentration=kappa).sample(5000, 0)
    half_square = [0.5 * ((z - mu.double().numpy()) ** 2).sum(-1) for z in (x.double().numpy(), twin)]
    if dtype == torch.float64 or kappa < 1e3:
        assert stats.ks_2samp(*half_square).pvalue > 1e-9


def test_shapes_broadcast_and_expand():
    law = VonMisesFisher(unit(4, 1, 7), torch.ones(3, dtype=torch.float64))
    assert law.batch_shape == (4, 3) and law.event_shape == (7,)
    assert law.rsample((2,)).shape == (2, 4, 3, 7) and law.mean.shape == law.variance.shape == (4, 3, 7)
    assert law.log_prob(unit(7)).shape == (4, 3) == law.entropy().shape
    wide = law.expand((5, 4, 3))
    assert wide.batch_shape == (5, 4, 3) and wide.log_prob(unit(7)).shape == (5, 4, 3)
    assert torch.distributions.Independent(law, 1).log_prob(unit(7)).shape == (4,)
    assert law.loc is law.mean_direction and law.mode is law.mean_direction


def test_variance_is_that_of_the_samples():
    torch.manual_seed(3)
    law = VonMisesFisher(unit(4, seed=6), 3.0)
    x = law.sample((50_000,))
    square = (x - law.mean) ** 2
    error = (square.mean(0) - law.variance).abs()
    assert torch.all(error < 6.1 * square.std(0) / 50_000**0.5)  # once in a billion
    uniform = VonMisesFisher(unit(4), 0.0)
    np.testing.assert_allclose(uniform.variance, 0.25, rtol=1e-12)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="d >= 2"):
        VonMisesFisher(torch.ones(1), 1.0)
    with pytest.raises(TypeError, match="mean_direction must be a tensor"):
        VonMisesFisher([1.0, 0.0], 1.0)
    with pytest.raises(TypeError, match="floating point"):
        VonMisesFisher(torch.tensor([1, 0]), 1.0)
    for mu, kappa in (
        (torch.ones(3), 1.0),
        (unit(3), -1.0),
        (torch.full((3,), torch.nan), 1.0),
        (unit(3), torch.nan),
    ):
        with pytest.raises(ValueError, match="Expected parameter"):
            VonMisesFisher(
                mu, kappa, validate_args=True
            )  # torch.compile turns the default off for the process
    with pytest.raises(ValueError, match="within the support"):
        VonMisesFisher(unit(3), 1.0, validate_args=True).log_prob(torch.ones(3, dtype=torch.float64))

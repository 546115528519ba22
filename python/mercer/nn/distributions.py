"""Distributions for deep features, in the interface of :mod:`torch.distributions`.

f(x) = C_d(kappa) exp(kappa mu·x) on the unit sphere of R^d. The normalising constant goes through
:mod:`mercer.nn.special` in float64 whatever the dtype of the parameters, so gradients are right in thousands
of dimensions and at any concentration. For fitting by maximum likelihood without torch, see
:class:`mercer.density.VonMisesFisher`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributions import Distribution, constraints, register_kl
from torch.distributions.constraints import Constraint

from mercer.nn import special

__all__ = ["VonMisesFisher", "unit_vector"]

_LOG_2PI = math.log(2 * math.pi)
_SMALL = 1e-3  # below this concentration the series in kappa²
_DROP = 42.0  # e^-42 of a density is below rounding


class _UnitVector(Constraint):
    """Vectors of length 1, to the rounding of their dtype in any dimension."""

    event_dim = 1

    def check(self, value: torch.Tensor) -> torch.Tensor:
        tolerance = 1e-5 if value.dtype in (torch.float32, torch.float64) else 2e-2
        return (value.double().norm(dim=-1) - 1).abs() <= tolerance


unit_vector = _UnitVector()


class VonMisesFisher(Distribution):
    """The von Mises-Fisher distribution on the unit sphere of R^d (Mardia and Jupp 2000, section 9.3.2).

    Args:
        mean_direction: Unit vectors mu (*batch, d), d >= 2.
        concentration: kappa >= 0 (*batch); broadcast against the batch of `mean_direction`. 0 is the uniform
            law.
        validate_args: As for every torch distribution.

    Batch shape: the two broadcast. Event shape: (d,).

    `log_prob`, `entropy` and `kl_divergence` have gradients in both parameters, twice differentiable.
    `rsample` is reparameterised: the tangent directly, the cosine W by implicit differentiation, dW/dkappa =
    -(dF/dkappa) / (dF/dw) with F its distribution function (Figurnov, Mohamed, Mnih 2018), once
    differentiable. Sampling is by exact rejection (Ulrich 1984, Wood 1994) from torch's generator, on the
    parameters' device.

    Cost: O(batch * d); a backward pass through `rsample` adds 64 evaluations of the density a sample.

    Example:
        >>> import torch
        >>> from mercer.nn.distributions import VonMisesFisher
        >>> features = torch.nn.functional.normalize(torch.randn(8, 512), dim=-1)
        >>> kappa = torch.full((8,), 300.0, requires_grad=True)
        >>> law = VonMisesFisher(features, kappa)
        >>> law.log_prob(features).sum().backward()
        >>> law.batch_shape, law.event_shape, kappa.grad.shape
        (torch.Size([8]), torch.Size([512]), torch.Size([8]))
    """

    arg_constraints = {"mean_direction": unit_vector, "concentration": constraints.nonnegative}
    support = unit_vector
    has_rsample = True

    def __init__(
        self, mean_direction: torch.Tensor, concentration: Any, validate_args: bool | None = None
    ) -> None:
        if not isinstance(mean_direction, torch.Tensor) or mean_direction.dim() < 1:
            raise TypeError(f"mean_direction must be a tensor (*batch, d), got {mean_direction!r}")
        if mean_direction.shape[-1] < 2:
            raise ValueError(f"mean_direction must have d >= 2 entries, got {mean_direction.shape[-1]}")
        if not mean_direction.is_floating_point():
            raise TypeError(f"mean_direction must be real floating point, got {mean_direction.dtype}")
        concentration = torch.as_tensor(
            concentration, dtype=mean_direction.dtype, device=mean_direction.device
        )
        batch = torch.broadcast_shapes(mean_direction.shape[:-1], concentration.shape)
        self.mean_direction = mean_direction.expand(*batch, mean_direction.shape[-1])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, mean_direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisher:
        """The same distribution with a larger batch shape, without a copy."""
        new = self._get_checked_instance(VonMisesFisher, _instance)
        batch = torch.Size(batch_shape)
        new.mean_direction = self.mean_direction.expand(batch + self.event_shape)
        new.concentration = self.concentration.expand(batch)
        super(VonMisesFisher, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def loc(self) -> torch.Tensor:
        """`mean_direction` by torch's usual name."""
        return self.mean_direction

    @property
    def mode(self) -> torch.Tensor:
        """The mean direction, (*batch, d)."""
        return self.mean_direction

    @property
    def mean_resultant_length(self) -> torch.Tensor:
        """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa), (*batch)."""
        ratio = special.iv_ratio(self._order, self.concentration.double())
        return ratio.to(self.concentration.dtype)

    @property
    def mean(self) -> torch.Tensor:
        """A_d(kappa) mu, (*batch, d)."""
        return self.mean_resultant_length.unsqueeze(-1) * self.mean_direction

    @property
    def variance(self) -> torch.Tensor:
        """Of each entry, (*batch, d): A' mu_i² + (A / kappa) (1 - mu_i²), A' = 1 - A² - (d-1) A / kappa."""
        kappa, d = self.concentration.double(), self.event_shape[0]
        a = special.iv_ratio(self._order, kappa)
        across = torch.where(kappa > _SMALL, a / kappa.clamp(min=_SMALL), (1 - kappa**2 / (d * (d + 2))) / d)
        along = 1 - a * a - (d - 1) * across
        square = self.mean_direction.double() ** 2
        variance = along.unsqueeze(-1) * square + across.unsqueeze(-1) * (1 - square)
        return variance.to(self.concentration.dtype)

    @property
    def _order(self) -> float:
        return self.event_shape[0] / 2 - 1

    def _log_norm_const_scaled(self) -> torch.Tensor:
        """log C_d(kappa) + kappa in float64, (*batch)."""
        kappa, d = self.concentration.double(), self.event_shape[0]
        small = kappa <= _SMALL
        safe = torch.where(small, torch.ones_like(kappa), kappa)
        general = self._order * safe.log() - d / 2 * _LOG_2PI - special.log_ive(self._order, safe)
        # log C(kappa) = log C(0) - kappa²/(2d) + kappa⁴/(4 d² (d+2)) - ...
        square = torch.where(small, kappa, torch.zeros_like(kappa)) ** 2
        at_zero = math.lgamma(d / 2) - math.log(2) - d / 2 * math.log(math.pi)
        series = at_zero + kappa - square / (2 * d) + square * square / (4 * d * d * (d + 2))
        return torch.where(small, series, general)

    def log_norm_const(self) -> torch.Tensor:
        """log C_d(kappa), (*batch)."""
        kappa = self.concentration.double()
        return (self._log_norm_const_scaled() - kappa).to(self.concentration.dtype)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log density at unit vectors (*sample, *batch, d), in nats with respect to the sphere's area."""
        if self._validate_args:
            self._validate_sample(value)
        cosine = (self.mean_direction * value).sum(-1).double()
        result = self._log_norm_const_scaled() + self.concentration.double() * (cosine - 1)
        return result.to(torch.promote_types(self.concentration.dtype, value.dtype))

    def entropy(self) -> torch.Tensor:
        """-log C - kappa A, (*batch), in nats."""
        kappa = self.concentration.double()
        entropy = kappa * special.iv_ratio_complement(self._order, kappa) - self._log_norm_const_scaled()
        return entropy.to(self.concentration.dtype)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Reparameterised draws (*sample_shape, *batch, d)."""
        shape = self._extended_shape(torch.Size(sample_shape))
        kappa = self.concentration.double().expand(shape[:-1])
        deficit = _CosineDeficit.apply(kappa, shape[-1])  # 1 - W
        mu = self.mean_direction.expand(shape)
        normal = torch.randn((*shape[:-1], shape[-1] - 1), dtype=mu.dtype, device=mu.device)
        sine = (deficit * (2 - deficit)).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        across = sine.to(mu.dtype).unsqueeze(-1) * normal / normal.norm(dim=-1, keepdim=True)
        # The reflection I - 2uu'/u·u with u = mu + sign e1 takes e1 to -sign mu.
        sign = torch.where(mu[..., :1] < 0, -1.0, 1.0).to(mu.dtype)
        flat = torch.cat([-sign * (1 - deficit).to(mu.dtype).unsqueeze(-1), across], dim=-1)
        u = torch.cat([mu[..., :1] + sign, mu[..., 1:]], dim=-1)
        return flat - 2 * u * ((u * flat).sum(-1, keepdim=True) / (u * u).sum(-1, keepdim=True))


class _CosineDeficit(torch.autograd.Function):
    """1 - W for W = mu·x, W of density proportional to exp(kappa w) (1 - w²)^{(d-3)/2}; float64."""

    @staticmethod
    def forward(ctx: Any, kappa: torch.Tensor, d: int) -> torch.Tensor:
        deficit = _draw_cosine_deficit(kappa, d)
        ctx.save_for_backward(kappa, deficit)
        ctx.d = d
        return deficit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        kappa, deficit = ctx.saved_tensors
        slopes = [
            _cosine_slope(k, s, ctx.d)
            for k, s in zip(kappa.reshape(-1).split(1 << 16), deficit.reshape(-1).split(1 << 16), strict=True)
        ]
        return -grad * torch.cat(slopes).reshape(kappa.shape), None


def _draw_cosine_deficit(kappa: torch.Tensor, d: int) -> torch.Tensor:
    """Wood's rejection, written in 1 - W; every round redraws what the last one refused."""
    m = float(d - 1)
    flat = kappa.reshape(-1)
    h = 2 * flat / m
    # b = m / (2 kappa + sqrt(4 kappa² + m²)), s0 = 1 - x0
    b = torch.where(h <= 1, 1 / (h + (1 + h * h).sqrt()), (1 / h) / (1 + (1 + 1 / h**2).sqrt()))
    s0 = 2 * b / (1 + b)
    result = torch.empty_like(flat)
    left = torch.arange(flat.numel(), device=flat.device)
    while left.numel():
        k, bl, sl = flat[left], b[left], s0[left]
        gamma = torch._standard_gamma(
            torch.full((2, left.numel()), m / 2, dtype=flat.dtype, device=flat.device)
        )
        s = 2 * bl * gamma[0] / (gamma[1] + bl * gamma[0])
        surplus = k * (sl - s) + m * torch.log1p((s - sl) * (1 - sl) / (sl * (2 - sl)))
        taken = surplus >= torch.rand_like(s).log()
        result[left[taken]] = s[taken]
        left = left[~taken]
    return result.reshape(kappa.shape)


def _cosine_slope(kappa: torch.Tensor, deficit: torch.Tensor, d: int) -> torch.Tensor:
    """dW/dkappa at fixed F(W; kappa), from s = 1 - W, (n,) each.

    dF/dkappa = int_{-1}^{w} (t - A) f(t) dt, so dW/dkappa = int_w^1 (t - A) f(t) dt / f(w), which is also
    -int_{-1}^w. With t = tanh y the density of y is exp(g), g = kappa tanh y - (d-1) log cosh y, of width
    about 1/sqrt(d-1) at any kappa; the side that falls away from y is integrated until g has dropped by 42.
    """
    order, m = d / 2 - 1, d - 1
    s = deficit.clamp(1e-300, 2 - 4e-16)
    y = 0.5 * ((2 - s) / s).log()
    missing = special.iv_ratio_complement(order, kappa)  # 1 - A

    def drop(at: torch.Tensor, s_at: torch.Tensor, kappa: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        """g(at) - g(to), from differences."""
        return kappa * (2 * torch.sigmoid(-2 * to) - s_at) + m * (_log_cosh(to) - _log_cosh(at))

    # g' = kappa sech² y - (d-1) tanh y decides which way g falls
    side = torch.where(kappa * s * (2 - s) < m * (1 - s), 1.0, -1.0)
    low, high = torch.zeros_like(y), torch.full_like(y, 2 * _DROP + 2)
    # far from the mode g falls by at least half of (d-1) a unit of y once kappa sech² y has died away
    high = high / min(m, 2.0) + y.abs()
    for _ in range(40):
        middle = 0.5 * (low + high)
        short = drop(y, s, kappa, y + side * middle) < _DROP
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    node, weight = (tensor.to(y) for tensor in _gauss_legendre(64))
    step = high.unsqueeze(-1) * node
    at = y.unsqueeze(-1) + side.unsqueeze(-1) * step
    gap = missing.unsqueeze(-1) - 2 * torch.sigmoid(-2 * at)  # tanh(at) - A
    mass = torch.exp(-drop(y.unsqueeze(-1), s.unsqueeze(-1), kappa.unsqueeze(-1), at)) * gap
    return side * high * (mass * weight).sum(-1) * s * (2 - s)


def _log_cosh(y: torch.Tensor) -> torch.Tensor:
    """log(2 cosh y)."""
    return y.abs() + torch.log1p(torch.exp(-2 * y.abs()))


def _gauss_legendre(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights on [0, 1] (Golub and Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    node, vector = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return 0.5 * (node + 1), vector[0] ** 2


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> torch.Tensor:
    if p.event_shape != q.event_shape:
        raise ValueError(f"q must have event shape {tuple(p.event_shape)}, got {tuple(q.event_shape)}")
    kappa_p, kappa_q = p.concentration.double(), q.concentration.double()
    missing = special.iv_ratio_complement(p._order, kappa_p)  # 1 - A
    apart = 1 - (p.mean_direction * q.mean_direction).sum(-1).double()
    scales = p._log_norm_const_scaled() - q._log_norm_const_scaled()
    divergence = scales + (kappa_q - kappa_p) * missing + kappa_q * (1 - missing) * apart
    return divergence.to(torch.promote_types(p.concentration.dtype, q.concentration.dtype))

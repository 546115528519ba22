"""The baseline of `log-bessel`: the paper's expressions in the paper's table, plain numpy.

Plesner, Sørensen, Hauberg 2024 (arXiv 2409.08729): the (x, v) quadrant is cut into regions, tried in order,
and each takes the cheapest expression that is accurate enough there. Written to be read beside the paper,
not to be used: :mod:`mercer.special` is more accurate everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
from scipy.special import gammaln, logsumexp

__all__ = ["REGIONS", "log_iv", "log_kv", "region"]

REGIONS = ("mu3", "mu20", "U4", "U6", "U9", "U13", "fallback")


def region(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Index into REGIONS of the first row of the paper's table whose condition holds."""
    with np.errstate(divide="ignore"):
        log_v, log_x = np.log(v), np.log(x)
    conditions = [
        ((x > 1400) & (v < 3.05)) | ((0.6229 * log_x - 3.2318 > log_v) & (v > 3.1)),
        ((x > 30) & (v < 15.3919)) | ((0.5113 * log_x + 0.7939 > log_v) & (x > 59.6925)),
        ((x > 274.2377) & (v > 0.3)) | (v > 163.6993),
        ((x > 84.4153) & (v > 0.46)) | (v > 56.9971),
        ((x > 35.9074) & (v > 0.6)) | (v > 20.1534),
        ((x > 19.6931) & (v > 0.7)) | (v > 12.6964),
    ]
    return np.select(conditions, range(len(conditions)), len(conditions))


def log_iv(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log I_v(x) for v >= 0, x > 0."""
    return _by_region(v, x, sign=-1, fallback=_series_i)


def log_kv(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """log K_v(x) for v >= 0, x > 0."""
    return _by_region(v, x, sign=1, fallback=_integral_k)


def _by_region(
    v: np.ndarray, x: np.ndarray, sign: int, fallback: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    where = region(v, x)
    out = np.empty(v.shape)
    for i, name in enumerate(REGIONS):
        at = where == i
        if not at.any():
            continue
        if name == "fallback":
            out[at] = fallback(v[at], x[at])
        elif name.startswith("mu"):
            out[at] = _mu(v[at], x[at], int(name[2:]), sign)
        else:
            out[at] = _uniform(v[at], x[at], int(name[1:]), -sign)
    return out


def _mu(v: np.ndarray, x: np.ndarray, terms: int, sign: int) -> np.ndarray:
    """Large x: the sum of prod (sign (4v² - (2j-1)²) / (8 j x))."""
    mu = 4 * v * v
    term, total = np.ones_like(x), np.zeros_like(x)
    for j in range(1, terms + 1):
        term = term * (sign * (mu - (2 * j - 1) ** 2) / (8 * j * x))
        total = total + term
    correction = np.log(np.abs(1 + total))
    if sign < 0:
        return x - 0.5 * np.log(2 * np.pi * x) + correction
    return 0.5 * (np.log(np.pi) - np.log(2 * x)) - x + correction


def _uniform(v: np.ndarray, x: np.ndarray, terms: int, sign: int) -> np.ndarray:
    """Large v, uniform in x: v eta and the sum of (sign)^k u_k(t) / v^k."""
    r = np.hypot(v, x)
    t = v / r
    eta = r + v * np.log(x / (v + r))
    total = np.zeros_like(x)
    for k in range(terms, 0, -1):
        u = t**k * np.polynomial.polynomial.polyval(t * t, _debye(k))
        total = total + sign**k * u / v**k
    if sign > 0:
        return eta - 0.5 * np.log(2 * np.pi * r) + np.log1p(total)
    return -eta + 0.5 * np.log(np.pi / (2 * r)) + np.log1p(total)


@cache
def _debye(k: int) -> np.ndarray:
    """Coefficients of u_k(t) / t^k in powers of t²."""
    polynomial = {0: Fraction(1)}  # exponent: coefficient
    for _ in range(k):
        # u' t²(1-t²)/2 + (1/8) int_0^t (1 - 5s²) u ds
        step: dict[int, Fraction] = {}
        for n, c in polynomial.items():
            for exponent, value in (
                (n + 1, c * n / 2 + c / (8 * (n + 1))),
                (n + 3, -c * n / 2 - 5 * c / (8 * (n + 3))),
            ):
                step[exponent] = step.get(exponent, Fraction(0)) + value
        polynomial = step
    return np.array([float(polynomial[n]) for n in range(k, 3 * k + 1, 2)])


def _series_i(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The power series on the log scale; 9.2 sqrt(x) terms and at least 60."""
    k = np.arange(max(60, int(9.2 * np.sqrt(x.max())) + 1))[:, None]
    return v * np.log(x / 2) + logsumexp(2 * k * np.log(x / 2) - gammaln(k + 1) - gammaln(k + v + 1), axis=0)


def _integral_k(v: np.ndarray, x: np.ndarray, intervals: int = 600, n: int = 8) -> np.ndarray:
    """Rothwell's integral by Simpson's rule with 600 intervals, on the log scale."""
    u = np.arange(1, intervals + 1)[:, None] / intervals  # the end u = 0 contributes nothing
    beta = 2 * n / (2 * v + 1)
    log_u = np.log(u)
    with np.errstate(over="ignore"):
        power = np.exp(beta * log_u)  # u^beta
        first = np.log(beta) - power + (v - 0.5) * np.log(2 * x + power) + (n - 1) * log_u
        second = -1 / u - (2 * v + 1) * log_u + (v - 0.5) * np.log(2 * x * u + 1)
    weight = np.where(np.arange(1, intervals + 1) % 2 == 1, 4.0, 2.0)[:, None]
    weight[-1] = 1.0
    integral = logsumexp(np.logaddexp(first, second) + np.log(weight / (3 * intervals)), axis=0)
    return 0.5 * np.log(np.pi) - gammaln(v + 0.5) - v * np.log(2 * x) - x + integral

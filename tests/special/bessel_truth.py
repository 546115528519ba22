"""Truth for the Bessel functions in 60-digit arithmetic, by other routes than the library's."""

from __future__ import annotations

from functools import cache

import mpmath as mp

mp.mp.dps = 60


@cache
def _debye(terms: int) -> list[list[mp.mpf]]:
    """Coefficients of u_k by power of t, from DLMF 10.41.9 in plain form."""
    u = [[mp.mpf(1)]]
    for k in range(terms):
        new = [mp.mpf(0)] * (3 * k + 4)
        for e, c in enumerate(u[-1]):
            new[e + 1] += c * e / 2 + c / (8 * (e + 1))
            new[e + 3] -= c * e / 2 + 5 * c / (8 * (e + 3))
        u.append(new)
    return u


def _log_by_debye(v: mp.mpf, x: mp.mpf, sign: int) -> mp.mpf:
    if v == 0:
        v = mp.mpf(10) ** -40  # the value is even and smooth in v
    root = mp.sqrt(v * v + x * x)
    t, eta = v / root, root + v * mp.log(x / (v + root))
    total, smallest = mp.mpf(0), mp.inf
    for k, u in enumerate(_debye(40)):
        term = (sign**k) * mp.fdot(u, (t**e for e in range(len(u)))) / v**k
        if k and abs(term) > smallest:
            break
        total += term
        smallest = abs(term) or smallest
    front = -mp.log(2 * mp.pi * root) / 2 if sign > 0 else mp.log(mp.pi / (2 * root)) / 2
    return sign * eta + front + mp.log(total)


def log_iv(v: float, x: float) -> mp.mpf:
    v, x = mp.mpf(v), mp.mpf(x)
    if mp.hypot(v, x) > 600:
        return _log_by_debye(v, x, 1)
    with mp.workdps(80):
        q, term, total, k = x * x / 4, mp.mpf(1), mp.mpf(1), 0
        while term > total * mp.mpf(10) ** -75:
            k += 1
            term *= q / (k * (k + v))
            total += term
        return v * mp.log(x / 2) - mp.loggamma(v + 1) + mp.log(total)


def log_kv(v: float, x: float) -> mp.mpf:
    v, x = mp.mpf(v), mp.mpf(x)
    if mp.hypot(v, x) > 600:
        return _log_by_debye(v, x, -1)
    # The trapezoid rule on int_0^inf exp(-x cosh t) cosh(v t) dt with a step far below what is needed.
    peak = mp.asinh(v / x)
    height = v * peak - x * mp.cosh(peak)
    step = mp.mpf(1) / (24 + mp.ceil(mp.sqrt(v + x)) * 4)
    total, j = mp.mpf(0), 0
    while True:
        t = j * step
        size = v * t - x * mp.cosh(t) - height
        if t > peak and size < -110:
            break
        weight = mp.exp(size) * (1 + mp.exp(-2 * v * t)) / 2
        total += weight if j else weight / 2
        j += 1
    return mp.log(total * step) + height


def derivative(f, v: float, x: float, order: int, *, in_order: bool = False) -> mp.mpf:
    """By central differences of 60-digit values: with h = 1e-8 relative, good to about 1e-12 at order 4."""
    v, x = mp.mpf(v), mp.mpf(x)
    h = mp.mpf(10) ** -8 * (max(v, 1) if in_order else x)
    at = (lambda s: f(abs(v + s), x)) if in_order else (lambda s: f(v, x + s))
    return (
        sum((-1) ** k * mp.binomial(order, k) * at((mp.mpf(order) / 2 - k) * h) for k in range(order + 1))
        / h**order
    )

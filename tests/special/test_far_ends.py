"""Orders and arguments near the ends of float64 at once, where neither squares nor quotients are in range."""

import mpmath
import numpy as np

from mercer import special

V, X = (a.ravel() for a in np.meshgrid([1e100, 1e155, 1e300], [5e-324, 1e-310, 1e-100, 1.0, 1e100, 1e300]))


def leading(v, x):
    """(v eta - log(2 pi r)/2, v eta + log(2 r / pi)/2 ...): the first term of Debye's expansion is all there is."""
    v, x = mpmath.mpf(float(v)), mpmath.mpf(float(x))
    r = mpmath.sqrt(v * v + x * x)
    eta = r + v * mpmath.log(x / (v + r))
    return eta - mpmath.log(2 * mpmath.pi * r) / 2, -eta + mpmath.log(mpmath.pi / (2 * r)) / 2


def test_log_i_and_log_k():
    with mpmath.workdps(1000):
        i, k = np.array([[float(y) for y in leading(v, x)] for v, x in zip(V, X, strict=True)]).T
    np.testing.assert_allclose(special.log_iv(V, X), i, rtol=1e-15)
    np.testing.assert_allclose(special.log_kv(V, X), k, rtol=1e-15)


def test_order_derivative_and_log_ratio():
    with mpmath.workdps(1000):
        quotients = [mpmath.mpf(float(v)) / mpmath.mpf(float(x)) for v, x in zip(V, X, strict=True)]
        slope = np.array([float(-mpmath.asinh(quotient)) for quotient in quotients])
    np.testing.assert_allclose(special.dlog_iv_dv(V, X), slope, rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(special.dlog_kv_dv(V, X), -slope, rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(special.log_kv_ratio(V, X), -slope, rtol=1e-14, atol=1e-16)

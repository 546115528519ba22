"""What a bandwidth does to a kernel density estimate when n and d are large, alpha = log(n)/d.

The estimate at x is a sum of n exponentially broad terms, the partition function of a random energy model whose
temperature is h² (Biroli and Mézard 2024, arXiv 2408.05807). With s = 1/h² and phi(s) = (1/d) log E exp(-s|x-y|²/2),
it condenses onto a few data points at s_c, where s phi' - phi = alpha:

    h > h_CLT = sqrt(2) h_G   "clt"        averages, with Gaussian fluctuations
    h_G < h < h_CLT           "stable"     averages, with heavy-tailed fluctuations of index (h/h_G)²
    h < h_G = s_c^(-1/2)      "condensed"  the nearest data points carry all

and the bandwidth that minimises KL(rho || rho_h) is on the condensed side, h_opt² = 2 e_*, e_* = -phi'(s_c). The
closed forms here are those of Gaussian data with a given spectrum of covariance eigenvalues.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from mercer import _checks

__all__ = [
    "KdeThresholds",
    "condensed_moments",
    "gaussian_free_energy",
    "kde_thresholds",
    "regime",
    "stable_index",
]

REGIMES = ("condensed", "stable", "clt")


@dataclasses.dataclass(frozen=True, slots=True)
class KdeThresholds:
    """Bandwidths at which a density estimate changes its nature; floats, or arrays where several were asked for.

    Attributes:
        alpha: log(n)/d.
        h_g: below it the estimate is condensed.
        h_clt: sqrt(2) h_g, above it fluctuations are Gaussian.
        h_opt: where KL(rho || rho_h) is least.
        s_c: 1/h_g².
        e_star: the lowest populated energy, |x - y|²/(2d) of a typical nearest neighbour.
    """

    alpha: Any
    h_g: Any
    h_clt: Any
    h_opt: Any
    s_c: Any
    e_star: Any


def kde_thresholds(
    alpha: Any = None, *, n: Any = None, d: Any = None, spectrum: Any = None, query_r: Any = 1.0
) -> KdeThresholds:
    """The thresholds of Gaussian data, by the equation of condensation.

    Args:
        alpha: log(n)/d > 0, a number or an array; or give `n` and `d` (with a spectrum, d is its length).
        n: Number of data points, >= 2.
        d: Number of dimensions.
        spectrum: Eigenvalues of the covariance, >= 0 and not all 0; None is the unit variance in each dimension.
        query_r: The query's squared length over its expectation: 1 is a typical query, others have thresholds of
            their own. A number or an array that broadcasts with `alpha`.

    Raises:
        ValueError: alpha <= 0, an empty or negative spectrum, query_r < 0.

    Cost: 150 evaluations over the spectrum.

    Source: 2 alpha = <log(1 + s l) - s l/(1 + s l) + r (s l/(1 + s l))²> over the eigenvalues l, which is s phi' - phi
    for phi_x(s) = -<log(1 + s l)>/2 - <s r l/(1 + s l)>/2 (derived from the definitions of arXiv 2408.05807).

    Example:
        >>> from mercer.density import kde_thresholds
        >>> t = kde_thresholds(n=20_000, d=100)
        >>> round(t.h_g, 3), round(t.h_clt, 3), round(t.h_opt, 3)
        (1.376, 1.945, 1.04)
    """
    alpha, spectrum = _arguments(alpha, n, d, spectrum)
    r = _checks.real_array("query_r", 1.0 if query_r is None else query_r).astype(np.float64)
    if not ((r >= 0) & np.isfinite(r)).all():
        raise ValueError(f"query_r must be finite and >= 0, got {query_r}")
    alpha, r = np.broadcast_arrays(alpha, r)
    return _thresholds(alpha, spectrum, r[..., None] * np.ones(len(spectrum)))


def _thresholds(alpha: np.ndarray, spectrum: np.ndarray, r: np.ndarray) -> KdeThresholds:
    """For each alpha, with r (..., d) the squared coordinates over the eigenvalues."""
    s = solve_condensation(alpha, spectrum, r)
    e = tilted_energy(s, spectrum, r)
    h_g = s**-0.5
    values = alpha, h_g, math.sqrt(2) * h_g, np.sqrt(2 * e), s, e
    return KdeThresholds(*(float(v) if np.ndim(v) == 0 else v for v in values))


def regime(
    h: Any,
    alpha: Any = None,
    *,
    n: Any = None,
    d: Any = None,
    spectrum: Any = None,
    query_r: Any = 1.0,
) -> Any:
    """ "condensed", "stable" or "clt": what kind of sum the density estimate with bandwidth `h` is.

    Args:
        h: Bandwidths > 0, a number or an array.
        alpha, n, d, spectrum, query_r: As in :func:`kde_thresholds`.

    Returns:
        A string, or an array of them.

    Example:
        >>> from mercer.density import regime
        >>> regime([0.9, 1.5, 2.0], n=20_000, d=100).tolist()
        ['condensed', 'stable', 'clt']
    """
    mu = np.asarray(stable_index(h, alpha, n=n, d=d, spectrum=spectrum, query_r=query_r))
    found = np.array(REGIMES)[(mu >= 1).astype(int) + (mu >= 2)]
    return found if found.ndim else str(found)


def stable_index(
    h: Any,
    alpha: Any = None,
    *,
    n: Any = None,
    d: Any = None,
    spectrum: Any = None,
    query_r: Any = 1.0,
) -> Any:
    """mu = (h/h_G)²: the shares of the data points have a tail of index mu. Not alpha, which is log(n)/d.

    Args:
        h, alpha, n, d, spectrum, query_r: As in :func:`regime`.

    Example:
        >>> from mercer.density import kde_thresholds, stable_index
        >>> round(stable_index(kde_thresholds(0.2).h_clt, 0.2), 12)
        2.0
    """
    mu = (_positive("h", h) / kde_thresholds(alpha, n=n, d=d, spectrum=spectrum, query_r=query_r).h_g) ** 2
    return mu if np.ndim(mu) else float(mu)


def gaussian_free_energy(
    h: Any, alpha: Any = None, spectrum: Any = None, *, n: Any = None, d: Any = None
) -> Any:
    """f(h), the limit of (1/d) log rho_h(x) at a typical x of Gaussian data.

    KL(rho || rho_h)/d is -f(h) less the entropy of the data per dimension, <log(2 pi e l)>/2.

    Args:
        h: Bandwidths > 0.
        alpha, n, d, spectrum: As in :func:`kde_thresholds`.

    Returns:
        A float, or an array for arrays.

    Example:
        >>> import numpy as np
        >>> from mercer.density import gaussian_free_energy, kde_thresholds
        >>> h = kde_thresholds(0.2).h_opt * np.array([0.99, 1.0, 1.01])
        >>> int(gaussian_free_energy(h, 0.2).argmax())
        1
    """
    alpha, spectrum = _arguments(alpha, n, d, spectrum)
    h = _positive("h", h)
    one = np.ones(len(spectrum))
    s_c = solve_condensation(alpha, spectrum, np.broadcast_to(one, (*alpha.shape, len(spectrum))))
    e = tilted_energy(s_c, spectrum, one)
    s = h**-2.0
    x = s[..., None] * spectrum
    phi = -0.5 * (np.log1p(x) + x / (1 + x)).mean(-1)
    f = np.where(s <= s_c, phi, -s * e - alpha) + 0.5 * np.log(s / (2 * math.pi))
    return f if f.ndim else float(f)


def condensed_moments(mu: Any, k: int = 2) -> Any:
    """E sum w_i^k of the shares in the condensed phase, Gamma(k - mu)/(Gamma(k) Gamma(1 - mu)): Poisson-Dirichlet.

    Args:
        mu: (h/h_G)², in (0, 1); from 1 on the limit is 0.
        k: 2 for the participation, any k > mu; 1 gives the entropy E[-sum w log w] = psi(1) - psi(1 - mu) instead,
            infinite from mu = 1 on.

    Example:
        >>> from mercer.density import condensed_moments
        >>> condensed_moments(0.64)
        0.36
    """
    mu = _positive("mu", mu)
    k = _checks.integer("k", k, 1)
    inside = np.where(mu < 1, mu, 0.5)  # what is not below 1 is replaced in the end
    if k == 1:
        from scipy.special import digamma

        value = np.where(mu < 1, digamma(1.0) - digamma(1 - inside), np.inf)
    else:
        value = np.ones_like(inside)
        for j in range(1, k):  # Gamma(k - mu)/Gamma(1 - mu) = product of (j - mu)
            value = value * (j - inside) / j
        value = np.where(mu < 1, value, 0.0)
    return value if value.ndim else float(value)


# The equation


def solve_condensation(alpha: np.ndarray, spectrum: np.ndarray, r: np.ndarray) -> np.ndarray:
    """s_c with 2 alpha = <g(x) + r (x/(1+x))²>, x = s l and g(x) = log(1+x) - x/(1+x); r is (..., d)."""
    goal = 2 * alpha * (len(spectrum) / int(np.count_nonzero(spectrum)))
    live = spectrum > 0
    spectrum, r = spectrum[live], r[..., live]
    low = np.full(alpha.shape, -745.0) - math.log(spectrum.max())
    high = np.full(alpha.shape, 700.0) - math.log(spectrum.min())
    for _ in range(60):
        middle = (low + high) / 2
        above = ~(_rate(np.exp(middle), spectrum, r)[0] <= goal)  # NaN is what overflows
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    s = np.exp((low + high) / 2)
    for _ in range(3):  # Newton's method, in log s
        value, slope = _rate(s, spectrum, r)
        s = s * np.exp((goal - value) / (s * slope))
    return s


def _rate(s: np.ndarray, spectrum: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """<g + r (x/(1+x))²> and its derivative in s."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = s[..., None] * spectrum
        q = x / (1 + x)
        small = np.minimum(x, 0.05)
        # log(1+x) - x/(1+x) = sum over k >= 2 of (-1)^k (1 - 1/k) x^k
        series = np.zeros_like(x)
        for k in range(15, 1, -1):
            series = (1 - 1 / k) * (-1) ** k + small * series
        g = np.where(x < 0.05, series * small**2, np.log1p(x) - q)
        slope = spectrum * (q / (1 + x) + 2 * r * q / (1 + x) ** 2)
        return (g + r * q * q).mean(-1), slope.mean(-1)


def tilted_energy(s: np.ndarray, spectrum: np.ndarray, r: np.ndarray) -> np.ndarray:
    """e(s) = -phi'(s) = <l/(1+x) + r l/(1+x)²>/2."""
    x = np.asarray(s)[..., None] * spectrum
    return 0.5 * (spectrum / (1 + x) + r * spectrum / (1 + x) ** 2).mean(-1)


def _arguments(alpha: Any, n: Any, d: Any, spectrum: Any) -> tuple[np.ndarray, np.ndarray]:
    """alpha and the spectrum, checked."""
    if spectrum is None:
        spectrum = np.ones(1)
    else:
        spectrum = _checks.real_array("spectrum", spectrum).astype(np.float64)
        if spectrum.ndim != 1 or not len(spectrum):
            raise ValueError(f"spectrum must be a vector of eigenvalues, got shape {spectrum.shape}")
        if not ((spectrum >= 0) & np.isfinite(spectrum)).all() or not spectrum.any():
            raise ValueError(
                f"spectrum must be finite, >= 0 and not all 0, got {spectrum.min()} as its least"
            )
        d = len(spectrum) if d is None and n is not None else d
    if (alpha is None) == (n is None) or (n is None) != (d is None):
        raise ValueError(f"alpha must be given, or n and d, got alpha={alpha}, n={n}, d={d}")
    if alpha is None:
        n, d = _positive("n", n), _positive("d", d)
        if (n < 2).any():
            raise ValueError(f"n must be >= 2 (alpha = log(n)/d > 0), got {n.min():g}")
        alpha = np.log(n) / d
    alpha = _positive("alpha", alpha)
    if (alpha > 300).any():
        raise ValueError(f"alpha must be <= 300, got {alpha.max():g}")
    return alpha, spectrum


def _positive(name: str, value: Any) -> np.ndarray:
    if isinstance(value, bool | str):
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}")
    array = _checks.real_array(name, value).astype(np.float64)
    if not ((array > 0) & np.isfinite(array)).all():
        bad = array[~((array > 0) & np.isfinite(array))].flat[0]
        raise ValueError(f"{name} must be finite and > 0, got {bad}")
    return array

"""The concentration of a von Mises–Fisher law from the mean resultant length, and back.

In d dimensions A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa) is the length of the mean of unit vectors; the
maximum likelihood estimate solves A_d(kappa) = r_bar. Everything goes through :mod:`mercer.special`, so no
dimension and no concentration leaves float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mercer import _checks, special

__all__ = ["kappa_banerjee", "kappa_mle", "kappa_sra", "kappa_tanabe"]

LOG_2PI = math.log(2 * math.pi)


def kappa_mle(r_bar: Any, d: Any) -> Any:
    """Concentration whose mean resultant length is `r_bar`: the maximum likelihood estimate.

    Solves I_{d/2}(kappa) / I_{d/2-1}(kappa) = r_bar to rounding (Mardia and Jupp 2000, section 10.3.1).

    Args:
        r_bar: Mean resultant length in [0, 1), broadcast against `d`.
        d: Dimension of the space, an integer >= 2 or an array of them.

    Returns:
        kappa >= 0 of the broadcast shape, float64 (float32 where `r_bar` is float32).

    Raises:
        ValueError: `r_bar` outside [0, 1) (at 1 the concentration would be infinite), or d < 2.

    Cost: about a microsecond an element.

    Example:
        >>> from mercer.density import kappa_mle
        >>> float(kappa_mle(0.5, 3).round(6))
        1.796756
        >>> kappa_mle([0.1, 0.9], 2048).round(3)
        array([ 206.867, 9696.813])
    """
    r, d = _lengths(r_bar, d)
    return special.iv_ratio_inverse(_like(d / 2 - 1, r), r)


def kappa_banerjee(r_bar: Any, d: Any) -> Any:
    """Closed-form approximation r (d - r²) / (1 - r²) of :func:`kappa_mle` (Banerjee et al. 2005, eq. 4.4).

    Same arguments, result and errors as :func:`kappa_mle`; off by up to several per cent in small dimensions.

    Example:
        >>> from mercer.density import kappa_banerjee
        >>> round(float(kappa_banerjee(0.5, 3)), 6)
        1.833333
    """
    r, d = _lengths(r_bar, d)
    d = _like(d, r)
    return r * (d - r * r) / ((1 - r) * (1 + r))


def kappa_sra(r_bar: Any, d: Any, steps: int = 2) -> Any:
    """`steps` Newton steps from Banerjee's approximation (Sra 2012, eq. 5 for two).

    Same arguments, result and errors as :func:`kappa_mle`.

    Args:
        r_bar: Mean resultant length in [0, 1).
        d: Dimension, an integer >= 2 or an array of them.
        steps: Number of Newton steps on A_d(kappa) - r_bar, >= 0.

    Example:
        >>> from mercer.density import kappa_mle, kappa_sra
        >>> bool(abs(kappa_sra(0.5, 3) / kappa_mle(0.5, 3) - 1) < 1e-6)
        True
    """
    steps = _checks.integer("steps", steps, 0)
    r, d = _lengths(r_bar, d)
    kappa = np.asarray(kappa_banerjee(r, d))
    for _ in range(steps):
        # A - r, from the complements where both are near 1
        short, near = mean_resultant_length(d, kappa) - r, (1 - r) - mean_resultant_deficit(d, kappa)
        step = np.where(r > 0.5, near, short) / mean_resultant_slope(d, kappa)
        kappa = np.where(kappa > 0, np.maximum(kappa - step, 0), kappa)
    return kappa[()]


def kappa_tanabe(r_bar: Any, d: Any, steps: int = 1) -> Any:
    """Fixed-point approximation between two bounds (Tanabe et al. 2007, eq. 13).

    Phi(k) = r k / A_d(k) is taken at the bounds k_l = r (d-2) / (1-r²) and k_u = r d / (1-r²), and the line
    through the two points is met with the diagonal; further `steps` apply Phi. Same result and errors as
    :func:`kappa_mle`.

    Example:
        >>> from mercer.density import kappa_tanabe
        >>> round(float(kappa_tanabe(0.5, 3)), 4)
        1.8177
    """
    steps = _checks.integer("steps", steps, 1)
    r, d = _lengths(r_bar, d)
    spread = r / ((1 - r) * (1 + r))
    low, high = np.asarray(spread * (d - 2)), np.asarray(spread * d)

    def phi(k: np.ndarray) -> np.ndarray:
        # k / A_d(k) tends to d as k goes to 0
        safe = np.where(k > 0, k, 1.0)
        return r * np.where(k > 0, safe / mean_resultant_length(d, safe), d)

    phi_low, phi_high = phi(low), phi(high)
    below = (phi_high - phi_low) - (high - low)
    kappa = np.where(r > 0, (low * phi_high - high * phi_low) / np.where(below == 0, 1, below), 0.0)
    for _ in range(steps - 1):
        kappa = phi(kappa)
    return kappa[()]


def corrected_length(r: Any, n: Any) -> Any:
    """r² -> (n r² - 1) / (n - 1), clamped at 0: its expectation is the law's, not larger by (1 - A²) / n."""
    return np.sqrt(np.maximum((n * np.square(r) - 1) / np.maximum(n - 1, 1e-300), 0))


def mean_resultant_length(d: Any, kappa: Any) -> Any:
    """A_d(kappa)."""
    return special.iv_ratio(np.asarray(d) / 2 - 1, kappa)


def mean_resultant_deficit(d: Any, kappa: Any) -> Any:
    """1 - A_d(kappa), with its own digits where A is near 1."""
    return special.iv_ratio_complement(np.asarray(d) / 2 - 1, kappa)


def mean_resultant_slope(d: Any, kappa: Any) -> Any:
    """A_d'(kappa) = 1 - A² - (d-1) A / kappa."""
    a = (np.asarray(d, dtype=np.float64) - 1) / 2
    kappa = np.asarray(kappa, dtype=np.float64)
    length, deficit = mean_resultant_length(d, kappa), mean_resultant_deficit(d, kappa)
    safe = np.where(kappa > 0, kappa, 1.0)
    plain = deficit * (1 + length) - 2 * a * length / safe
    # For large kappa the three terms cancel to 1/kappa² of their size: the expansion of 1 - A in a / kappa.
    e2 = (a - a * a) / 2
    e4 = (3 * e2 + e2 * e2) / 2
    far = (a + (2 * e2 + (3 * e2 + 4 * e4 / safe) / safe) / safe) / safe**2
    near = 1 / (2 * a + 1)
    return np.where(kappa > 1e4 * (a + 1), far, np.where(kappa > 1e-8, plain, near))[()]


def log_norm_const_scaled(d: Any, kappa: Any) -> Any:
    """log C_d(kappa) + kappa: the log density at the mean direction, free of the large terms that cancel."""
    kappa = np.asarray(kappa, dtype=np.float64)
    half = np.asarray(d, dtype=np.float64) / 2
    safe = np.where(kappa > SMALL, kappa, 1.0)
    general = (half - 1) * np.log(safe) - half * LOG_2PI - special.log_ive(half - 1, safe)
    uniform = np.vectorize(math.lgamma, otypes=[float])(half) - math.log(2) - half * math.log(math.pi)
    # log C = log C(0) - kappa²/(2d) + O(kappa⁴)
    return np.where(kappa > SMALL, general, uniform - kappa * kappa / (4 * half) + kappa)[()]


SMALL = 1e-4


def _lengths(r_bar: Any, d: Any) -> tuple[np.ndarray, np.ndarray]:
    r = _checks.real_array("r_bar", r_bar)
    bad = ~((r >= 0) & (r < 1))
    if bad.any():
        worst = float(r[bad].flat[0])
        why = ": at 1 the concentration is infinite" if worst == 1 else ""
        raise ValueError(f"r_bar must be in [0, 1), got {worst}{why}")
    dims = np.asarray(d)
    if dims.dtype.kind not in "iuf" or (dims.dtype.kind == "f" and not np.all(dims == np.floor(dims))):
        raise TypeError(f"d must be an integer >= 2, got {d!r}")
    if not np.all(dims >= 2):
        raise ValueError(f"d must be an integer >= 2, got {dims.min()}")
    return r, dims.astype(np.float64)


def _like(d: np.ndarray, r: np.ndarray) -> np.ndarray:
    return d.astype(r.dtype)

"""The kernels of density estimates: their constants in d dimensions, and how to draw from them."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["KERNELS", "draw_kernel", "log_norm", "weighted_draw"]

#: By name, K(u) without its constant.
KERNELS = {
    "gaussian": "exp(-|u|²/2)",
    "tophat": "1 where |u| < 1",
    "epanechnikov": "1 - |u|² where |u| < 1",
    "exponential": "exp(-|u|)",
    "linear": "1 - |u| where |u| < 1",
    "cosine": "cos(pi |u|/2) where |u| < 1",
    "laplace": "exp(-|u|_1)",
    "cauchy": "product of 1/(1 + u_i²)",
}


def log_norm(kernel: str, d: int) -> float:
    """log of the integral of K(u) over R^d."""
    ball = d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)  # log volume of the unit ball
    if kernel == "gaussian":
        return d / 2 * math.log(2 * math.pi)
    if kernel == "tophat":
        return ball
    if kernel == "epanechnikov":
        return ball + math.log(2 / (d + 2))
    if kernel == "exponential":
        return ball + math.lgamma(d + 1)
    if kernel == "linear":
        return ball - math.log(d + 1)
    if kernel == "laplace":
        return d * math.log(2)
    if kernel == "cauchy":
        return d * math.log(math.pi)
    return ball + math.log(d * _cosine_moment(d))


def _cosine_moment(d: int) -> float:
    """Integral of r^(d-1) cos(pi r / 2) over [0, 1]: the series of the cosine about r = 1, all but alike in sign."""
    term = total = math.pi / 2 / (d * (d + 1))
    k = 0
    while abs(term) > 1e-18 * abs(total):
        k += 1
        term *= -((math.pi / 2) ** 2) / ((d + 2 * k) * (d + 2 * k + 1))
        total += term
    return total


def draw_kernel(kernel: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """n draws (n, d) of the density proportional to K."""
    if kernel == "gaussian":
        return rng.standard_normal((n, d))
    if kernel == "laplace":
        return rng.laplace(size=(n, d))
    if kernel == "cauchy":
        return rng.standard_cauchy((n, d))
    u = rng.standard_normal((n, d))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    return u * _radii(kernel, n, d, rng)[:, None]


def _radii(kernel: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Radii of the density proportional to r^(d-1) K(r)."""
    if kernel == "exponential":
        return rng.gamma(d, size=n)
    if kernel == "tophat":
        return rng.random(n) ** (1 / d)
    if kernel == "epanechnikov":  # r^(d-1) (1 - r²): r² is Beta(d/2, 2)
        return np.sqrt(rng.beta(d / 2, 2, size=n))
    if kernel == "linear":
        return rng.beta(d, 2, size=n)
    # cosine: cos(pi r/2) is below (pi/2)(1 - r), so a draw of the linear kernel is kept with their ratio
    r = np.empty(0)
    while len(r) < n:
        more = rng.beta(d, 2, size=n)
        ratio = np.sinc((1 - more) / 2)  # sin(pi (1 - r)/2) / (pi (1 - r)/2)
        r = np.concatenate([r, more[rng.random(n) < ratio]])
    return r[:n]


def weighted_draw(n: int, weights: np.ndarray | None, rows: int, rng: np.random.Generator) -> np.ndarray:
    """n indices of rows, drawn with these weights."""
    if weights is None:
        return rng.integers(rows, size=n)
    cumulative = np.cumsum(weights)
    return np.minimum(np.searchsorted(cumulative, rng.random(n) * cumulative[-1], side="right"), rows - 1)

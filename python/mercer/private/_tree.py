"""Distance sums in one dimension from a dyadic tree of counts (Backurs et al. 2024, section 3).

g(t) = |t - y|^p and its mean over an interval I, gbar(I). The sum of g over the points is an exact linear functional of
the node counts: S(y) = gbar(root) c_root + sum over I of (gbar(I) - gbar(parent)) c_I. Its terms shrink like 2^-l at
level l, so a budget that falls like 2^(-l/3) leaves noise of order R / epsilon. The paper's own estimate, in shells of
radius R / (1 + alpha)^j, is here as the baseline.

Levels run from the root, 0, to the leaves, L; a tree is its levels one after another, 2^(L+1) - 1 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    "adjusted_edges", "default_levels", "exact_sum", "level_shares", "node_weights", "noise_variance", "shell_sum",
]  # fmt: skip


def default_levels(n: float) -> int:
    """min(ceil(log2 n), 16): a point moves at most R / n by falling into a leaf, or R / 65536."""
    return min(max(math.ceil(math.log2(max(n, 2.0))), 1), 16)


def level_shares(levels: int, budget: str, *, gaussian: bool) -> list[float]:
    """Proportions of the budget for levels 0 to L.

    Level l contributes noise of variance proportional to 2^-l / epsilon_l² (2^-l / rho_l with Gaussian noise), whose
    sum is least for epsilon_l ∝ 2^(-l/3) (rho_l ∝ 2^(-l/2)).
    """
    if budget == "uniform":
        return [1.0] * (levels + 1)
    return [2.0 ** (-level / (2 if gaussian else 3)) for level in range(levels + 1)]


def _means(low: float, high: float, level: int, y: np.ndarray, p: float) -> np.ndarray:
    """gbar of the 2^level nodes for each y: (m, 2^level)."""
    edges = np.linspace(low, high, 2**level + 1)
    t = edges - y[:, None]
    primitive = np.sign(t) * np.abs(t) ** (p + 1) / (p + 1)
    return np.diff(primitive, axis=1) / ((high - low) / 2**level)


def node_weights(low: float, high: float, levels: int, y: np.ndarray, p: float) -> list[np.ndarray]:
    """The functional's weight of every node, level by level, (m, 2^level) each: for general p, O(m 2^L)."""
    weights, above = [], None
    for level in range(levels + 1):
        means = _means(low, high, level, y, p)
        weights.append(means if above is None else means - np.repeat(above, 2, axis=1))
        above = means
    return weights


def adjusted_edges(tree: np.ndarray, levels: int) -> np.ndarray:
    """Coefficients of the primitive of g at the 2^L + 1 leaf edges, times R: S(y) = sum_k coef_k G(t_k - y) / R.

    With a_I = c_I less the counts of its children, S = sum a_I gbar(I), and gbar(I) is a difference of G at the ends
    of I over |I|.
    """
    edges = np.zeros(2**levels + 1)
    for level in range(levels + 1):
        nodes = tree[2**level - 1 : 2 ** (level + 1) - 1]
        own = nodes.astype(np.float64)
        if level < levels:
            below = tree[2 ** (level + 1) - 1 : 2 ** (level + 2) - 1]
            own = (nodes - below.reshape(-1, 2).sum(1)).astype(np.float64)
        step = 2 ** (levels - level)
        edges[step::step] += own * 2.0**level
        edges[:-step:step] -= own * 2.0**level
    return edges


def exact_sum(low: float, high: float, edges: np.ndarray, y: np.ndarray, p: float) -> np.ndarray:
    """S(y) for any p > 0 from :func:`adjusted_edges`: O(2^L) a query (p = 1 has a faster way, p = 2 a closed form)."""
    places = np.linspace(low, high, len(edges))
    out = np.empty(len(y))
    step = max(1, (1 << 22) // len(edges))
    for start in range(0, len(y), step):
        t = places - y[start : start + step, None]
        out[start : start + step] = (np.sign(t) * np.abs(t) ** (p + 1)) @ edges
    return out / ((p + 1) * (high - low))


def noise_variance(
    low: float, high: float, variances: Sequence[float], y: np.ndarray, p: float
) -> np.ndarray:
    """Variance of S(y) where every node of level l has noise of variance `variances[l]`. O(L) a query for p = 1, 2."""
    levels, width = len(variances) - 1, high - low
    out = np.zeros(len(y))
    if p not in (1, 2):
        step = max(1, (1 << 21) >> levels)
        for start in range(0, len(y), step):
            part = y[start : start + step]
            for weights, variance in zip(node_weights(low, high, levels, part, p), variances, strict=True):
                out[start : start + step] += variance * np.sum(weights**2, axis=1)
        return out

    def mean(u: np.ndarray, w: np.ndarray) -> np.ndarray:
        primitive = [np.sign(t) * np.abs(t) ** (p + 1) / (p + 1) for t in (u - y, w - y)]
        return (primitive[1] - primitive[0]) / (w - u)

    ends = np.full(len(y), low), np.full(len(y), high)
    out += variances[0] * mean(*ends) ** 2
    for level in range(1, levels + 1):
        parents, size = 2 ** (level - 1), width / 2 ** (level - 1)
        if p == 2:
            # gbar(child) - gbar(parent) = ± (size/2) (centre - y); the squares of the centres' offsets in closed form
            offset = (low + high) / 2 - y
            squares = parents * offset**2 + size**2 * parents * (parents**2 - 1) / 12
            out += variances[level] * 2 * (size / 2) ** 2 * squares
            continue
        # On one side of y: ± size/4 for each of the two children. The parent around y is weighed by definition.
        inside = (y > low) & (y < high)
        out += variances[level] * 2 * (size / 4) ** 2 * (parents - inside)
        j = np.clip(np.floor((y - low) / size), 0, parents - 1)
        u = low + j * size
        around = mean(u, u + size)
        for a, b in ((u, u + size / 2), (u + size / 2, u + size)):
            out += np.where(inside, variances[level] * (mean(a, b) - around) ** 2, 0.0)
    return out


def shell_sum(
    low: float,
    high: float,
    trees: Sequence[np.ndarray],
    y: np.ndarray,
    p: float,
    alpha: float,
    *,
    square: bool = False,
) -> np.ndarray:
    """The paper's estimate: each shell of distances counts at its outer radius, NaN for y outside the domain.

    Shell j holds the leaves at offsets o from y's leaf with m / (1 + alpha)^(j+1) < o <= m / (1 + alpha)^j, on either
    side, and is a union of at most 2 L nodes; y's own leaf counts 0.

    Args:
        low, high: The domain.
        trees: Node values level by level: noisy counts, or (2^l values of the noise variance, for `square`).
        y: Queries (m,).
        p: Power of the distance.
        alpha: > 0.
        square: Weigh with squared values: gives the variance of the estimate.
    """
    levels = len(trees) - 1
    m = 2**levels
    shells = math.ceil(math.log(m) / math.log1p(alpha)) + 1
    radius = np.array([(1 + alpha) ** -j for j in range(shells + 1)])
    value = ((high - low) * radius[:-1]) ** p
    if square:
        value = value**2
    outer = np.floor(m * radius[:-1] + 1e-9).astype(np.int64)
    inner = np.floor(m * radius[1:] + 1e-9).astype(np.int64)
    leaf = np.clip(np.floor((y - low) / (high - low) * m), 0, m - 1).astype(np.int64)[:, None]
    out = np.zeros(len(y))
    for a, b in ((leaf + inner + 1, leaf + outer + 1), (leaf - outer, leaf - inner)):
        out += _range_sums(trees, np.clip(a, 0, m), np.clip(b, 0, m)) @ value
    return np.where((y < low) | (y > high), np.nan, out)


def _range_sums(trees: Sequence[np.ndarray], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums over leaves [a, b) by the fewest nodes, from the leaves up."""
    a, b = a.copy(), np.maximum(b, a)
    total = np.zeros(a.shape)
    for nodes in reversed(trees):
        odd = (a & 1 == 1) & (a < b)
        total += np.where(odd, nodes[np.minimum(a, len(nodes) - 1)], 0)
        a += odd
        odd = (b & 1 == 1) & (a < b)
        b -= odd
        total += np.where(odd, nodes[np.minimum(b, len(nodes) - 1)], 0)
        a >>= 1
        b >>= 1
    return total

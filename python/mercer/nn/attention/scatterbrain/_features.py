"""Random positive features of the exponential kernel: exp(t q·k) = E phi(q)·phi(k).

Choromanski et al. 2021 ("Rethinking attention with performers", FAVOR+), as Scatterbrain uses them: with rows w of W,
phi(x) = exp(-t |x|²/2) [exp(sqrt(t) W x), exp(-sqrt(t) W x)] / sqrt(m), m twice the rows ("cosh"); or its first
half alone
("positive"). Features are kept below 1 beside the logarithm of what they were divided by: one for each query,
one for all keys of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from mercer import _checks

__all__ = ["orthogonal_gaussian", "performer_features"]

KINDS = ("cosh", "positive")


def orthogonal_gaussian(
    rows: int,
    columns: int,
    *,
    scaling: int = 0,
    random_state: Any = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Rows that are orthogonal in blocks of `columns` and Gaussian each: the W of :func:`performer_features`.

    Args:
        rows, columns: Its shape.
        scaling: 0: the lengths of rows are those of independent Gaussian vectors, so that every row is one; 1: all are
            sqrt(columns).
        random_state: None, an int or a numpy generator; the same int gives the same rows.
        dtype, device: Of the result.

    Returns:
        (rows, columns).

    Raises:
        TypeError, ValueError: A size below 1, another scaling.

    Example:
        >>> from mercer.nn.attention.scatterbrain import orthogonal_gaussian
        >>> w = orthogonal_gaussian(6, 4, scaling=1)
        >>> (w[:4] @ w[:4].T).round(decimals=4).diagonal()
        tensor([4., 4., 4., 4.])
    """
    rows, columns = _checks.integer("rows", rows, 1), _checks.integer("columns", columns, 1)
    scaling = _checks.integer("scaling", scaling, 0, high=1)
    generator = torch.Generator().manual_seed(_checks.random_seed(random_state) % (1 << 63))
    blocks = []
    for _ in range(-(-rows // columns)):
        q, r = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))
        blocks.append((q * r.diagonal().sign()).T)
    if scaling:
        lengths = torch.full((rows,), math.sqrt(columns), dtype=torch.float64)
    else:
        lengths = torch.randn(rows, columns, generator=generator, dtype=torch.float64).norm(dim=1)
    return (torch.cat(blocks)[:rows] * lengths[:, None]).to(dtype=dtype, device=device)


def performer_features(
    x: torch.Tensor,
    projection: torch.Tensor,
    *,
    temperature: float,
    is_query: bool,
    kind: str = "cosh",
    log_factors: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The features of queries or keys, each at most 1, and the logarithm of their factor.

    Args:
        x: (..., n, E).
        projection: W, (m/2, E) for "cosh" and (m, E) for "positive".
        temperature: t > 0, times the products.
        is_query: Queries have a factor each; keys share one, so that it leaves sums over keys.
        kind: "cosh" or "positive".
        log_factors: (..., n): logarithms that features are multiplied by; -inf for a key that is not there.

    Returns:
        (..., n, m), and the logarithm of the factor, (..., n, 1) for queries and (..., 1, 1) for keys.

    Cost: n m E multiply-adds.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.scatterbrain import orthogonal_gaussian, performer_features
        >>> w = orthogonal_gaussian(2000, 4)
        >>> q, k = torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.4, 0.3, 0, 0]])
        >>> (f, a), (g, b) = (performer_features(x, w, temperature=1.0, is_query=x is q) for x in (q, k))
        >>> round(float((f @ g.T * (a + b).exp()) / torch.tensor(0.2).exp()), 1)
        1.0
    """
    _checks.choice("kind", kind, KINDS)
    along = (x * math.sqrt(temperature)) @ projection.to(x).mT
    if kind == "cosh":
        along = torch.cat([along, -along], -1)
    log = along - (x.square().sum(-1, keepdim=True) * (temperature / 2) + math.log(along.shape[-1]) / 2)
    if log_factors is not None:
        log = log + log_factors.unsqueeze(-1)
    factor = log.detach().amax(-1 if is_query else (-2, -1), keepdim=True)
    factor = torch.where(torch.isneginf(factor), 0.0, factor)  # no key at all
    return (log - factor).exp(), factor

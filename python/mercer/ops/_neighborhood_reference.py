"""Neighborhood attention by gathering every query's keys: readable, slow, and what the kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mercer.ops import _windows
from mercer.ops._windows import Axis

__all__ = ["aggregate", "attention", "attention_gradients", "inverse", "products"]


def products(query: np.ndarray, key: np.ndarray, grid: Sequence[Axis]) -> np.ndarray:
    """(B, H, n, D) twice -> (B, H, n, window); 0 where a window is cut."""
    at = _windows.indices(grid)
    return np.einsum("bhid,bhitd->bhit", query, key[:, :, at]) * (at >= 0)


def aggregate(weights: np.ndarray, value: np.ndarray, grid: Sequence[Axis]) -> np.ndarray:
    """(B, H, n, window), (B, H, n, D) -> (B, H, n, D)."""
    at = _windows.indices(grid)
    return np.einsum("bhit,bhitd->bhid", weights * (at >= 0), value[:, :, at])


def inverse(weights: np.ndarray, rows: np.ndarray, grid: Sequence[Axis]) -> np.ndarray:
    """The transpose of `aggregate`: (B, H, n, window), (B, H, n, D) -> (B, H, n, D)."""
    at = _windows.indices(grid)
    out = np.zeros_like(rows)
    for slot in range(at.shape[1]):
        seen = at[:, slot] >= 0
        # A slot's keys repeat at borders: add.at, not +=.
        for b, h in np.ndindex(*rows.shape[:2]):
            np.add.at(out[b, h], at[seen, slot], weights[b, h, seen, slot, None] * rows[b, h, seen])
    return out


def attention(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, grid: Sequence[Axis], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """(B, n, H, D), (B, n, Hk, D), (B, n, Hk, Dv) -> (B, n, H, Dv) and the log-sum-exp (B, n, H)."""
    q, k, v = _heads_first(query, key, value)
    p, lse = _softmax(q, k, grid, scale)
    return np.moveaxis(aggregate(p, v, grid), 1, 2), np.moveaxis(lse, 1, 2)


def attention_gradients(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    out: np.ndarray,
    grad: np.ndarray,
    grad_lse: np.ndarray | None,
    grid: Sequence[Axis],
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of query, key and value."""
    q, k, v = _heads_first(query, key, value)
    p, _ = _softmax(q, k, grid, scale)
    g, o = np.moveaxis(grad, 2, 1), np.moveaxis(out, 2, 1)
    delta = (g * o).sum(-1)
    if grad_lse is not None:
        delta = delta - np.moveaxis(grad_lse, 2, 1)
    ds = p * (products(g, v, grid) - delta[..., None])
    dq = scale * aggregate(ds, k, grid)
    dk = scale * inverse(ds, q, grid)
    dv = inverse(p, g, grid)
    share = query.shape[2] // key.shape[2]

    def gathered(d: np.ndarray) -> np.ndarray:
        return np.moveaxis(d.reshape(len(d), -1, share, *d.shape[2:]).sum(2), 1, 2)

    return np.moveaxis(dq, 1, 2), gathered(dk), gathered(dv)


def _heads_first(*arrays: np.ndarray) -> list[np.ndarray]:
    heads = arrays[0].shape[2]
    return [np.repeat(np.moveaxis(a, 2, 1), heads // a.shape[2], axis=1) for a in arrays]


def _softmax(
    q: np.ndarray, k: np.ndarray, grid: Sequence[Axis], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    s = products(q * q.dtype.type(scale), k, grid)
    s = np.where(_windows.indices(grid) >= 0, s, -np.inf)
    most = s.max(-1, keepdims=True)
    p = np.exp(s - most)
    total = p.sum(-1, keepdims=True)
    return p / total, (most + np.log(total))[..., 0]

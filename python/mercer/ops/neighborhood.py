"""Neighborhood attention on NumPy arrays: every token of a 1-, 2- or 3-D grid attends to its nearest neighbours.

Hassani, Hwu and Shi, "Faster Neighborhood Attention" (NeurIPS 2024). o_i is the softmax-weighted sum of the values at the
neighbours of i; the cost is linear in the number of tokens. Windows may be even, strided, dilated and causal, axis by
axis; at borders they are shifted, so that every query of an axis that is not causal sees exactly ``kernel_size`` keys.
Torch tensors, gradients and GPUs: :mod:`mercer.nn.attention.neighborhood`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mercer import _checks, _core
from mercer._backend import is_reference
from mercer.ops import _neighborhood_reference as reference
from mercer.ops import _windows

__all__ = [
    "neighbor_indices",
    "neighborhood_av",
    "neighborhood_inverse",
    "neighborhood_mask",
    "neighborhood_qk",
]


def neighborhood_mask(
    shape: Sequence[int], kernel_size: Any, stride: Any = 1, dilation: Any = 1, is_causal: Any = False
) -> NDArray[np.bool_]:
    """Which keys each token of a grid sees, as an n x n mask: to look at, or for a dense attention.

    Args:
        shape: Tokens along each of 1 to 3 axes.
        kernel_size: Keys that a query sees along each axis; one number for all or one each.
        stride: Neighbouring queries that share a window, at most the window.
        dilation: Step from one key of a window to the next; window x dilation fits into the axis.
        is_causal: Whether keys end at the query, for all axes or each.

    Returns:
        bool (n, n), n = product of the shape, row-major; row i is the neighborhood of token i.

    Raises:
        TypeError, ValueError: What is no positive integer, or does not fit.

    Cost: n² bytes and n times the window.

    Example:
        >>> from mercer.ops import neighborhood_mask
        >>> neighborhood_mask((6,), 3).astype(int)
        array([[1, 1, 1, 0, 0, 0],
               [1, 1, 1, 0, 0, 0],
               [0, 1, 1, 1, 0, 0],
               [0, 0, 1, 1, 1, 0],
               [0, 0, 0, 1, 1, 1],
               [0, 0, 0, 1, 1, 1]])
    """
    return _windows.mask(_windows.axes(tuple(shape), kernel_size, stride, dilation, is_causal))


def neighbor_indices(
    shape: Sequence[int], kernel_size: Any, stride: Any = 1, dilation: Any = 1, is_causal: Any = False
) -> NDArray[np.int64]:
    """The keys each token of a grid sees, in order: int64 (n, product of the windows), -1 where a causal one is cut.

    Arguments and errors as for :func:`neighborhood_mask`; both orders are row-major.

    Example:
        >>> from mercer.ops import neighbor_indices
        >>> neighbor_indices((5,), 3)[0]
        array([0, 1, 2])
        >>> neighbor_indices((5,), 3, is_causal=True)[:2]
        array([[ 0, -1, -1],
               [ 0,  1, -1]])
    """
    return _windows.indices(_windows.axes(tuple(shape), kernel_size, stride, dilation, is_causal))


def neighborhood_qk(
    query: ArrayLike,
    key: ArrayLike,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    *,
    threads: int | None = None,
) -> NDArray:
    """Products of every query with the keys of its window: the first unfused operator.

    Args:
        query, key: (B, H, X..., D), heads first, float32 or float64 alike; 1 to 3 axes X.
        kernel_size, stride, dilation, is_causal: As for :func:`neighborhood_mask`.
        threads: Threads to use; default ``MERCER_NUM_THREADS``, else every core. The result does not depend on it.

    Returns:
        (B, H, X..., window), keys row-major over the axes as in :func:`neighbor_indices`; -inf where a causal window is
        cut, so that a softmax over the last axis is right. Not scaled.

    Raises:
        TypeError, ValueError: Shapes or dtypes that do not agree, windows that do not fit, NaN and infinity.

    Cost: 2 B H n window D flops; the arrays packed once. Hassani et al. 2023, eq. 2.

    Example:
        >>> import numpy as np
        >>> from mercer.ops import neighborhood_av, neighborhood_qk
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 2, 8, 8, 4))
        >>> scores = neighborhood_qk(q, k, 3)
        >>> weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        >>> scores.shape, neighborhood_av(weights, v, 3).shape
        ((1, 2, 8, 8, 9), (1, 2, 8, 8, 4))
    """
    q, k = _array("query", query), _array("key", key)
    grid = _grid_of(q, kernel_size, stride, dilation, is_causal)
    _alike("key", k, q)
    out = products(q, k, grid, threads)
    if any(axis[4] for axis in grid):
        flat = out.reshape(*q.shape[:2], -1, out.shape[-1])
        flat[:, :, _windows.indices(grid) < 0] = -np.inf
    return out


def neighborhood_av(
    weights: ArrayLike,
    value: ArrayLike,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    *,
    threads: int | None = None,
) -> NDArray:
    """Attention with given weights: for every token, the sum of the values of its window, weighted.

    Args:
        weights: (B, H, X..., window) as :func:`neighborhood_qk` gives them; what lies where a causal window is cut is
            not read.
        value: (B, H, X..., D), of the same dtype.
        kernel_size, stride, dilation, is_causal, threads: As for :func:`neighborhood_qk`.

    Returns:
        (B, H, X..., D). With weights of its own for each pixel, shared by D channels, this is a dynamic convolution.

    Raises:
        TypeError, ValueError: As :func:`neighborhood_qk`.

    Cost: 2 B H n window D flops.

    Example:
        >>> import numpy as np
        >>> from mercer.ops import neighborhood_av
        >>> neighborhood_av(np.full((1, 1, 5, 3), 1 / 3), np.arange(5.0).reshape(1, 1, 5, 1), 3).ravel().round(2)
        array([1., 1., 2., 3., 3.])
    """
    return _weighted(aggregate, weights, "value", value, (kernel_size, stride, dilation, is_causal), threads)


def neighborhood_inverse(
    weights: ArrayLike,
    rows: ArrayLike,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    *,
    threads: int | None = None,
) -> NDArray:
    """The transpose of :func:`neighborhood_av`: for every key, the weighted sum over the queries that see it.

    Arguments and errors as there, with `rows` (B, H, X..., D) one a query. It is the gradient of the values, and with
    weights that are gradients of scores that of the keys.

    Example:
        >>> import numpy as np
        >>> from mercer.ops import neighborhood_inverse
        >>> neighborhood_inverse(np.ones((1, 1, 5, 3)), np.ones((1, 1, 5, 1)), 3).ravel()
        array([2., 3., 5., 3., 2.])
    """
    return _weighted(inverse, weights, "rows", rows, (kernel_size, stride, dilation, is_causal), threads)


# --------------------------------------------------------------------------- on checked arrays, as torch hands them over


def products(
    q: np.ndarray, k: np.ndarray, grid: list[_windows.Axis], threads: int | None = None
) -> np.ndarray:
    """(B, H, X..., D) twice -> (B, H, X..., window); 0 where a window is cut."""
    window = math.prod([axis[1] for axis in grid])
    if is_reference():
        return reference.products(_tokens(q), _tokens(k), grid).reshape(*q.shape[:-1], window)
    out = np.empty((*q.shape[:-1], window), dtype=q.dtype)
    _core.neighborhood_products(np.ascontiguousarray(q), np.ascontiguousarray(k), grid, out, threads)
    return out


def aggregate(
    w: np.ndarray, v: np.ndarray, grid: list[_windows.Axis], threads: int | None = None
) -> np.ndarray:
    """(B, H, X..., window), (B, H, X..., D) -> (B, H, X..., D)."""
    if is_reference():
        return reference.aggregate(_tokens(w), _tokens(v), grid).reshape(v.shape)
    out = np.empty(v.shape, dtype=v.dtype)
    _core.neighborhood_aggregate(np.ascontiguousarray(w), np.ascontiguousarray(v), grid, out, threads)
    return out


def inverse(
    w: np.ndarray, g: np.ndarray, grid: list[_windows.Axis], threads: int | None = None
) -> np.ndarray:
    """The transpose of `aggregate`."""
    if is_reference():
        return reference.inverse(_tokens(w), _tokens(g), grid).reshape(g.shape)
    out = np.empty(g.shape, dtype=g.dtype)
    _core.neighborhood_inverse(np.ascontiguousarray(w), np.ascontiguousarray(g), grid, out, threads)
    return out


def _weighted(
    work: Callable[..., np.ndarray],
    weights: ArrayLike,
    name: str,
    rows: ArrayLike,
    how: tuple,
    threads: int | None,
) -> np.ndarray:
    w, v = _array("weights", weights), _array(name, rows)
    grid = _grid_of(v, *how, name=name)
    wanted = (*v.shape[:-1], math.prod([axis[1] for axis in grid]))
    if w.shape != wanted:
        raise ValueError(f"weights must have shape {wanted}, one for each key of a window, got {w.shape}")
    if w.dtype != v.dtype:
        raise TypeError(f"weights must have the dtype {v.dtype} of {name}, got {w.dtype}")
    return work(w, v, grid, _checks.threads("threads", threads))


def _array(name: str, value: ArrayLike) -> np.ndarray:
    array = np.ascontiguousarray(_checks.real_array(name, value))
    if array.size:
        _core.largest_entry(array.reshape(-1, array.shape[-1]), name)  # refuses NaN and infinity
    return array


def _grid_of(
    array: np.ndarray, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any, name: str = "query"
) -> list[_windows.Axis]:
    if not 4 <= array.ndim <= 6:
        raise ValueError(f"{name} must be (B, H, X..., D) with 1 to 3 axes X, got shape {array.shape}")
    if 0 in (array.shape[1], array.shape[-1]):
        raise ValueError(f"{name} must have heads and columns, got shape {array.shape}")
    return _windows.axes(array.shape[2:-1], kernel_size, stride, dilation, is_causal)


def _alike(name: str, array: np.ndarray, other: np.ndarray) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name} must have the shape {other.shape} of query, got {array.shape}")
    if array.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype {other.dtype} of query, got {array.dtype}")


def _tokens(array: np.ndarray) -> np.ndarray:
    return array.reshape(*array.shape[:2], -1, array.shape[-1])

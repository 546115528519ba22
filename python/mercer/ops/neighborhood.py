"""Neighborhood attention on NumPy arrays: every token of a 1-, 2- or 3-D grid attends to its nearest neighbours.

Hassani, Hwu and Shi, "Faster Neighborhood Attention" (NeurIPS 2024). o_i is the softmax-weighted sum of the values at
the neighbours of i; the cost is linear in the number of tokens. Windows may be even, strided, dilated and
causal, axis by axis; at borders they are shifted, so that every query of an axis that is not causal sees
exactly ``kernel_size`` keys. Torch tensors, gradients and GPUs: :mod:`mercer.nn.attention.neighborhood`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mercer import _checks, _core
from mercer._backend import is_reference
from mercer._memory import empty
from mercer.ops import _neighborhood_reference as reference
from mercer.ops import _windows

__all__ = [
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighbor_indices",
    "neighborhood_av",
    "neighborhood_inverse",
    "neighborhood_mask",
    "neighborhood_qk",
]


def na1d(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    scale: float | None = None,
    additional_keys: ArrayLike | None = None,
    additional_values: ArrayLike | None = None,
    return_lse: bool = False,
    *,
    threads: int | None = None,
) -> Any:
    """Neighborhood attention on a sequence.

    Args:
        query: (B, X, H, D), heads last, float32 or float64.
        key: (B, X, Hk, D), value: (B, X, Hk, Dv), of the same dtype; H is a multiple of Hk, and query head h uses the
            heads h div (H/Hk) of keys and values.
        kernel_size, stride, dilation, is_causal: As for :func:`neighborhood_mask`.
        scale: Times the products; default D^(-1/2).
        additional_keys, additional_values: (B, E, Hk, D) and (B, E, Hk, Dv), seen by every query in the same softmax.
        return_lse: Also give the logarithm of the sum of the exponentials of the scores.
        threads: Threads to use; default ``MERCER_NUM_THREADS``, else every core. The result does not depend on it.

    Returns:
        (B, X, H, Dv), and with `return_lse` also (B, X, H): natural logarithms, for :func:`merge_attentions`.

    Raises:
        TypeError, ValueError: Shapes or dtypes that do not agree, windows that do not fit, NaN and infinity.

    Cost: 4 B H X window D flops; memory of the arrays packed once, whatever the window.
    Hassani, Hwu and Shi 2024, section 3.

    Example:
        >>> import numpy as np
        >>> from mercer.ops import na1d
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 100, 2, 8))
        >>> out, lse = na1d(q, k, v, kernel_size=7, dilation=3, is_causal=True, return_lse=True)
        >>> out.shape, lse.shape
        ((1, 100, 2, 8), (1, 100, 2))
    """
    how = (kernel_size, stride, dilation, is_causal)
    extra = (additional_keys, additional_values)
    return _attention(1, query, key, value, how, scale, extra, return_lse, threads)


def na2d(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    scale: float | None = None,
    additional_keys: ArrayLike | None = None,
    additional_values: ArrayLike | None = None,
    return_lse: bool = False,
    *,
    threads: int | None = None,
) -> Any:
    """Neighborhood attention on an image: :func:`na1d` with arrays (B, X, Y, H, D) and one number for both axes or two.

    Example:
        >>> import numpy as np
        >>> from mercer.ops import na2d
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 16, 20, 2, 8))
        >>> na2d(q, k, v, kernel_size=(7, 5), dilation=(2, 1)).shape
        (1, 16, 20, 2, 8)
    """
    how = (kernel_size, stride, dilation, is_causal)
    extra = (additional_keys, additional_values)
    return _attention(2, query, key, value, how, scale, extra, return_lse, threads)


def na3d(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    scale: float | None = None,
    additional_keys: ArrayLike | None = None,
    additional_values: ArrayLike | None = None,
    return_lse: bool = False,
    *,
    threads: int | None = None,
) -> Any:
    """Neighborhood attention on a volume or a video: :func:`na1d` with arrays (B, X, Y, Z, H, D).

    Example:
        >>> import numpy as np
        >>> from mercer.ops import na3d
        >>> q, k, v = np.random.default_rng(0).standard_normal((3, 1, 4, 8, 8, 2, 8))
        >>> na3d(q, k, v, kernel_size=(2, 5, 5), is_causal=(True, False, False)).shape
        (1, 4, 8, 8, 2, 8)
    """
    how = (kernel_size, stride, dilation, is_causal)
    extra = (additional_keys, additional_values)
    return _attention(3, query, key, value, how, scale, extra, return_lse, threads)


def merge_attentions(outputs: Sequence[ArrayLike], lses: Sequence[ArrayLike]) -> tuple[NDArray, NDArray]:
    """One attention over the union of disjoint sets of keys, from the attentions over each.

    Args:
        outputs: Arrays of one shape (..., D).
        lses: For each, the logarithm of its sum of exponentials, (...); -inf for a query that saw no key there.

    Returns:
        The output, lse = log of the sum of exp(lse_i) and o = sum of o_i exp(lse_i - lse), and lse. A query that saw no
        key at all gets 0 and -inf.

    Raises:
        ValueError: None at all, or shapes that do not agree.

    Example:
        >>> import numpy as np
        >>> from mercer.ops import merge_attentions
        >>> out, lse = merge_attentions([np.zeros((1, 2)), np.ones((1, 2))], [np.zeros(1), np.log([3.0])])
        >>> out, np.exp(lse).round(12)
        (array([[0.75, 0.75]]), array([4.]))
    """
    parts = [_checks.real_array("outputs", o) for o in outputs]
    logs = [_checks.real_array("lses", x) for x in lses]
    if not parts or len(parts) != len(logs):
        raise ValueError(f"outputs and lses must be as many, at least one, got {len(parts)} and {len(logs)}")
    for o, x in zip(parts, logs, strict=True):
        if o.shape != parts[0].shape or x.shape != o.shape[:-1]:
            raise ValueError(
                f"outputs must have the shape {parts[0].shape} and lses {parts[0].shape[:-1]}, "
                f"got {o.shape} and {x.shape}"
            )
    stacked = np.stack(logs)
    lse = np.logaddexp.reduce(stacked, axis=0)
    shares = np.exp(stacked - np.where(np.isneginf(lse), 0, lse))
    return np.einsum("s...d,s...->...d", np.stack(parts), shares), lse


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
    grid = _grid_of("query", q, kernel_size, stride, dilation, is_causal)
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


# ------------------------------------------------------ on checked arrays, as torch hands them over


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    grid: list[_windows.Axis],
    scale: float,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(B, X..., H, D), (B, X..., Hk, D), (B, X..., Hk, Dv) -> (B, X..., H, Dv) and lse (B, X..., H)."""
    if is_reference():
        flat = _flat(q, k, v)
        out, lse = reference.attention(flat[0], flat[1], flat[2], grid, scale)
        return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])
    out = empty((*q.shape[:-1], v.shape[-1]), dtype=q.dtype)
    lse = empty(q.shape[:-1], dtype=q.dtype)
    q, k, v = map(np.ascontiguousarray, (q, k, v))
    _core.neighborhood_attention(q, k, v, grid, scale, out, lse, threads)
    return out, lse


def attention_gradients(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    lse: np.ndarray,
    grad: np.ndarray,
    grad_lse: np.ndarray | None,
    grid: list[_windows.Axis],
    scale: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of q, k and v."""
    if is_reference():
        by_lse = None if grad_lse is None else grad_lse.reshape(len(q), -1, q.shape[-2])
        flat = _flat(q, k, v, out, grad)
        found = reference.attention_gradients(
            flat[0], flat[1], flat[2], flat[3], flat[4], by_lse, grid, scale
        )
        by_q, by_k, by_v = (d.reshape(t.shape) for d, t in zip(found, (q, k, v), strict=True))
        return by_q, by_k, by_v
    given = [None if a is None else np.ascontiguousarray(a) for a in (q, k, v, out, lse, grad_lse, grad)]
    wanted = (empty(q.shape, q.dtype), empty(k.shape, k.dtype), empty(v.shape, v.dtype))
    _core.neighborhood_attention_gradients(tuple(given), wanted, grid, scale)
    return wanted


def products(
    q: np.ndarray, k: np.ndarray, grid: list[_windows.Axis], threads: int | None = None
) -> np.ndarray:
    """(B, H, X..., D) twice -> (B, H, X..., window); 0 where a window is cut."""
    window = math.prod([axis[1] for axis in grid])
    if is_reference():
        return reference.products(_tokens(q), _tokens(k), grid).reshape(*q.shape[:-1], window)
    out = empty((*q.shape[:-1], window), dtype=q.dtype)
    _core.neighborhood_products(np.ascontiguousarray(q), np.ascontiguousarray(k), grid, out, threads)
    return out


def aggregate(
    w: np.ndarray, v: np.ndarray, grid: list[_windows.Axis], threads: int | None = None
) -> np.ndarray:
    """(B, H, X..., window), (B, H, X..., D) -> (B, H, X..., D)."""
    if is_reference():
        return reference.aggregate(_tokens(w), _tokens(v), grid).reshape(v.shape)
    out = empty(v.shape, dtype=v.dtype)
    _core.neighborhood_aggregate(np.ascontiguousarray(w), np.ascontiguousarray(v), grid, out, threads)
    return out


def inverse(
    w: np.ndarray, g: np.ndarray, grid: list[_windows.Axis], threads: int | None = None
) -> np.ndarray:
    """The transpose of `aggregate`."""
    if is_reference():
        return reference.inverse(_tokens(w), _tokens(g), grid).reshape(g.shape)
    out = empty(g.shape, dtype=g.dtype)
    _core.neighborhood_inverse(np.ascontiguousarray(w), np.ascontiguousarray(g), grid, out, threads)
    return out


def _attention(
    rank: int,
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    how: tuple,
    scale: float | None,
    extra: tuple[ArrayLike | None, ArrayLike | None],
    return_lse: bool,
    threads: int | None,
) -> Any:
    q, k, v = _array("query", query), _array("key", key), _array("value", value)
    grid, factor = _windows.of_attention(rank, q.shape, k.shape, v.shape, how, scale)
    for name, array in (("key", k), ("value", v)):
        if array.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype {q.dtype} of query, got {array.dtype}")
    _checks.flag("return_lse", return_lse)
    more = [
        None if e is None else _array(f"additional_{n}", e)
        for n, e in zip(("keys", "values"), extra, strict=True)
    ]
    _windows.check_additional(k.shape, v.shape, *(None if e is None else e.shape for e in more))
    out, lse = attention(q, k, v, grid, factor, _checks.threads("threads", threads))
    if more[0] is not None and more[1] is not None:
        other, other_lse = _additional(q, more[0], more[1], factor)
        out, lse = merge_attentions([out, other], [lse, other_lse])
    return (out, lse) if return_lse else out


def _additional(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Attention of every query to the same keys (B, E, Hk, D)."""
    b, hk = keys.shape[0], keys.shape[2]
    grouped = q.reshape(b, -1, hk, q.shape[-2] // hk, q.shape[-1])
    s = np.einsum("bnhgd,behd->bnhge", grouped * q.dtype.type(scale), keys)
    most = s.max(-1, keepdims=True)
    p = np.exp(s - most)
    total = p.sum(-1, keepdims=True)
    out = np.einsum("bnhge,behd->bnhgd", p / total, values)
    return out.reshape(*q.shape[:-1], -1), (most + np.log(total)).reshape(q.shape[:-1])


def _weighted(
    work: Callable[..., np.ndarray],
    weights: ArrayLike,
    name: str,
    rows: ArrayLike,
    how: tuple,
    threads: int | None,
) -> np.ndarray:
    w, v = _array("weights", weights), _array(name, rows)
    grid = _grid_of(name, v, *how)
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
    name: str, array: np.ndarray, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any
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


def _flat(*arrays: np.ndarray) -> list[np.ndarray]:
    return [a.reshape(len(a), -1, *a.shape[-2:]) for a in arrays]

"""The unfused operators on tensors. The gradients of each are made of the other two, so they have gradients of
any order."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from mercer.nn import _dispatch
from mercer.nn._operator import Operator
from mercer.ops import _windows

__all__ = ["neighborhood_av", "neighborhood_inverse", "neighborhood_qk"]


def neighborhood_qk(
    query: torch.Tensor,
    key: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    rpb: torch.Tensor | None = None,
) -> torch.Tensor:
    """Products of every query with the keys of its window.

    Args:
        query, key: (B, H, X..., D), heads first, of one dtype and device; 1 to 3 axes X. float16 and bfloat16 are
            computed in float32 and returned as they came.
        kernel_size, stride, dilation, is_causal: As for :func:`mercer.ops.neighborhood_mask`.
        rpb: A relative positional bias (H, 2 k - 1, ...), added to the product of a query and a key at index
            position of the key - position of the query + k - 1 of each axis, positions counted in the dilation
            group; not for causal axes.

    Returns:
        (B, H, X..., window), keys row-major over the axes; -inf where a causal window is cut. Not scaled: scale
        `query`. Differentiable in all tensors, as often as one likes.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not agree; windows that do not fit.

    Cost: 2 B H n window D flops. Hassani et al. 2023, eq. 2.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import neighborhood_av, neighborhood_qk
        >>> q, k, v = torch.randn(3, 1, 2, 8, 8, 16, generator=torch.Generator().manual_seed(0))
        >>> weights = neighborhood_qk(q / 4, k, kernel_size=3, dilation=2).softmax(-1)
        >>> weights.shape, neighborhood_av(weights, v, kernel_size=3, dilation=2).shape
        (torch.Size([1, 2, 8, 8, 9]), torch.Size([1, 2, 8, 8, 16]))
    """
    grid = _grid_of("query", query, kernel_size, stride, dilation, is_causal)
    _same("key", key, "query", query)
    if key.shape != query.shape:
        raise ValueError(f"key must have the shape {tuple(query.shape)} of query, got {tuple(key.shape)}")
    dtype, work = query.dtype, _working(query.dtype)
    with torch.autocast(query.device.type, enabled=False):
        out = _products(query.to(work), key.to(work), _windows.flat(grid))
        if rpb is not None:
            out = out + _bias(rpb, query, grid).to(work)
        if any(axis[4] for axis in grid):
            cut = _cut(tuple(grid)).to(query.device).view(*query.shape[2:-1], -1)
            out = out.masked_fill(cut, -math.inf)
    return out.to(dtype)


def neighborhood_av(
    weights: torch.Tensor,
    value: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
) -> torch.Tensor:
    """Attention with given weights: for every token, the sum of the values of its window, weighted.

    Args:
        weights: (B, H, X..., window), keys row-major over the axes as :func:`neighborhood_qk` gives them; what
            lies where a causal window is cut is not read, and gets no gradient.
        value: (B, H, X..., D), of the same dtype and device. float16 and bfloat16 are computed in float32 and
            returned as they came.
        kernel_size, stride, dilation, is_causal: As for :func:`mercer.ops.neighborhood_mask`.

    Returns:
        (B, H, X..., D), differentiable in both, as often as one likes. With weights of its own for each pixel,
        shared by D channels, this is a dynamic convolution whose border pixels use the nearest full window.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not agree; windows that do not fit.

    Cost: 2 B H n window D flops, and 4 more of them for the gradients; no unfolded copy of the values.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import neighborhood_av
        >>> value = torch.arange(25.0).view(1, 1, 5, 5, 1)
        >>> neighborhood_av(torch.full((1, 1, 5, 5, 9), 1 / 9), value, 3).view(5, 5)[0].round(decimals=2)
        tensor([6., 6., 7., 8., 8.])
    """
    return _weighted(_aggregate, weights, "value", value, (kernel_size, stride, dilation, is_causal))


def neighborhood_inverse(
    weights: torch.Tensor,
    rows: torch.Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
) -> torch.Tensor:
    """The transpose of :func:`neighborhood_av`: for every key, the weighted sum over the queries that see it.

    Arguments, gradients and errors as there, with `rows` (B, H, X..., D) one a query.

    Example:
        >>> import torch
        >>> from mercer.nn.attention.neighborhood import neighborhood_inverse
        >>> neighborhood_inverse(torch.ones(1, 1, 5, 3), torch.ones(1, 1, 5, 1), 3).view(5)
        tensor([2., 3., 5., 3., 2.])
    """
    return _weighted(_inverse, weights, "rows", rows, (kernel_size, stride, dilation, is_causal))


def _weighted(work, weights: torch.Tensor, name: str, rows: torch.Tensor, how: tuple) -> torch.Tensor:  # type: ignore[no-untyped-def]
    grid = _grid_of(name, rows, *how)
    _same("weights", weights, name, rows)
    wanted = (*rows.shape[:-1], math.prod([axis[1] for axis in grid]))
    if weights.shape != wanted:
        raise ValueError(
            f"weights must have shape {wanted}, one for each key of a window, got {tuple(weights.shape)}"
        )
    dtype = _working(rows.dtype)
    return work(weights.to(dtype), rows.to(dtype), _windows.flat(grid)).to(rows.dtype)


def _grid_of(
    name: str, t: Any, kernel_size: Any, stride: Any, dilation: Any, is_causal: Any
) -> list[_windows.Axis]:
    _real(name, t)
    if not 4 <= t.dim() <= 6:
        raise ValueError(f"{name} must be (B, H, X..., D) with 1 to 3 axes X, got shape {tuple(t.shape)}")
    if 0 in (t.shape[1], t.shape[-1]):
        raise ValueError(f"{name} must have heads and columns, got shape {tuple(t.shape)}")
    return _windows.axes(t.shape[2:-1], kernel_size, stride, dilation, is_causal)


def _real(name: str, t: Any) -> None:
    if not isinstance(t, torch.Tensor) or not t.is_floating_point():
        raise TypeError(
            f"{name} must be a tensor of real numbers, got {getattr(t, 'dtype', type(t).__name__)}"
        )


def _same(name: str, t: Any, other_name: str, other: torch.Tensor) -> None:
    _real(name, t)
    if t.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype {other.dtype} of {other_name}, got {t.dtype}")
    if t.device != other.device:
        raise ValueError(f"{name} must be on {other.device} like {other_name}, got {t.device}")


def _working(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def _bias(rpb: torch.Tensor, query: torch.Tensor, grid: list[_windows.Axis]) -> torch.Tensor:
    """(H, 2 k - 1, ...) -> (H, X..., window)."""
    wanted = (query.shape[1], *(2 * axis[1] - 1 for axis in grid))
    _real("rpb", rpb)
    if rpb.shape != wanted or rpb.device != query.device:
        raise ValueError(
            f"rpb must have shape {wanted} on {query.device}, got {tuple(rpb.shape)} on {rpb.device}"
        )
    if any(axis[4] for axis in grid):
        raise ValueError("rpb must be None where an axis is causal, got a tensor")
    index = [own.to(query.device) for own in _apart(tuple(grid))]
    return rpb[(slice(None), *index)].reshape(query.shape[1], *query.shape[2:-1], -1)


@torch.compiler.assume_constant_result
@functools.lru_cache(64)
def _cut(grid: tuple[_windows.Axis, ...]) -> torch.Tensor:
    """Where windows are cut, (n, window)."""
    return torch.from_numpy(_windows.indices(grid) < 0)


@torch.compiler.assume_constant_result
@functools.lru_cache(64)
def _apart(grid: tuple[_windows.Axis, ...]) -> list[torch.Tensor]:
    """Position of the key - position of the query + k - 1 along each axis, to broadcast to (X..., K...)."""
    rank, found = len(grid), []
    for at, axis in enumerate(grid):
        n, k, _, d, _ = axis
        own = torch.from_numpy(_windows.axis_positions(axis)) // d - (torch.arange(n) // d)[:, None] + k - 1
        view = [1] * (2 * rank)
        view[at], view[rank + at] = n, k
        found.append(own.view(view))
    return found


# ------------------------------------------------------------------------------------------------- as torch knows them


def _operator(name: str) -> Operator:
    def work(left: torch.Tensor, right: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
        return _dispatch.neighborhood(name, left, right, axes)

    return Operator(f"mercer::neighborhood_{name}", work)


_products, _aggregate, _inverse = map(_operator, ("products", "aggregate", "inverse"))


@_products.register_fake
def _(query, key, axes):  # type: ignore[no-untyped-def]
    return query.new_empty(*query.shape[:-1], math.prod(axes[1::5]))


@_aggregate.register_fake
def _(weights, value, axes):  # type: ignore[no-untyped-def]
    return value.new_empty(value.shape)


@_inverse.register_fake
def _(weights, rows, axes):  # type: ignore[no-untyped-def]
    return rows.new_empty(rows.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    left, right, ctx.axes = inputs
    ctx.save_for_backward(left, right)


def _products_backward(ctx, grad):  # type: ignore[no-untyped-def]
    query, key = ctx.saved_tensors
    by_query = _aggregate(grad, key, ctx.axes) if ctx.needs_input_grad[0] else None
    by_key = _inverse(grad, query, ctx.axes) if ctx.needs_input_grad[1] else None
    return by_query, by_key, None


def _aggregate_backward(ctx, grad):  # type: ignore[no-untyped-def]
    weights, value = ctx.saved_tensors
    by_weights = _products(grad, value, ctx.axes) if ctx.needs_input_grad[0] else None
    by_value = _inverse(weights, grad, ctx.axes) if ctx.needs_input_grad[1] else None
    return by_weights, by_value, None


def _inverse_backward(ctx, grad):  # type: ignore[no-untyped-def]
    weights, rows = ctx.saved_tensors
    by_weights = _products(rows, grad, ctx.axes) if ctx.needs_input_grad[0] else None
    by_rows = _aggregate(weights, grad, ctx.axes) if ctx.needs_input_grad[1] else None
    return by_weights, by_rows, None


_products.register_autograd(_products_backward, setup_context=_keep)
_aggregate.register_autograd(_aggregate_backward, setup_context=_keep)
_inverse.register_autograd(_inverse_backward, setup_context=_keep)

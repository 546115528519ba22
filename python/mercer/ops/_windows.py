"""Neighborhoods of a grid: which keys a query sees. The plain statement of what the kernels do.

Hassani, Hwu and Shi, "Faster Neighborhood Attention" (NeurIPS 2024), with the even windows and strides of its successor
(arXiv 2504.16922). Per axis of length n, with window k, stride s and dilation d, a query at i belongs to the dilation
group g = i mod d of m tokens, at j = i div d. Not causal: with the leader l = min(j div s · s + s div 2, m -
1), it sees the positions a … a + k - 1 of its group, a = clamp(l - k div 2, 0, m - k): shifted at borders,
never cut. Causal: with l = min(j div s · s + s - 1, m - 1), the positions max(l - k + 1, 0) … j. A neighborhood
is the product of its axes'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mercer import _checks

__all__ = [
    "Axis",
    "axes",
    "axis_positions",
    "check_additional",
    "flat",
    "indices",
    "mask",
    "of_attention",
    "positions",
]

#: length, window, stride, dilation, causal
Axis = tuple[int, int, int, int, bool]


def axes(
    lengths: Sequence[int], kernel_size: Any, stride: Any = 1, dilation: Any = 1, is_causal: Any = False
) -> list[Axis]:
    """The axes of a grid; numbers are repeated for each.

    Raises:
        TypeError, ValueError: A size that is no positive integer, as many as the axes are not; a stride above the
            window; a window whose dilated reach is longer than its axis.
    """
    rank = len(lengths)
    if not 1 <= rank <= 3:
        raise ValueError(f"shape must have 1, 2 or 3 axes, got {tuple(lengths)}")
    for axis, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"the sequence must not be empty, got {length} tokens along axis {axis}")
    windows = _each("kernel_size", kernel_size, rank)
    strides = _each("stride", stride, rank)
    dilations = _each("dilation", dilation, rank)
    flags = is_causal if isinstance(is_causal, tuple | list) else (is_causal,) * rank
    if len(flags) != rank:
        raise ValueError(f"is_causal must be one flag or {rank}, got {is_causal!r}")
    flags = [_checks.flag("is_causal", f) for f in flags]
    for axis, (n, k, s, d) in enumerate(zip(lengths, windows, strides, dilations, strict=True)):
        if s > k:
            raise ValueError(f"stride must be <= kernel_size = {k} along axis {axis}, got {s}")
        if k * d > n:
            raise ValueError(
                f"kernel_size x dilation must be <= the {n} tokens of axis {axis}, got {k} x {d} = {k * d}"
            )
    return list(zip(map(int, lengths), windows, strides, dilations, flags, strict=True))


Shape = tuple[int, ...]


def of_attention(
    rank: int, query: Shape, key: Shape, value: Shape, how: tuple, scale: float | None
) -> tuple[list[Axis], float]:
    """The axes and the scale of an attention with heads last, from the shapes of its arrays.

    Raises:
        TypeError, ValueError: Shapes that do not agree, a scale that is not finite; as :func:`axes`.
    """
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != rank + 3:
            raise ValueError(f"{name} must be (B, X..., H, D) with {rank} axes X, got shape {tuple(shape)}")
        if 0 in shape[-2:]:
            raise ValueError(f"{name} must have heads and columns, got shape {tuple(shape)}")
    if key[:-2] != query[:-2] or key[-1] != query[-1]:
        raise ValueError(
            f"key must have the batch, axes and columns of query {tuple(query)}, got shape {tuple(key)}"
        )
    if query[-2] % key[-2]:
        raise ValueError(f"query must have a multiple of the {key[-2]} heads of key, got {query[-2]}")
    if value[:-1] != key[:-1]:
        raise ValueError(
            f"value must have the batch, axes and heads of key {tuple(key)}, got shape {tuple(value)}"
        )
    return axes(query[1:-2], *how), scale_of(scale, query[-1])


def scale_of(scale: float | None, columns: int) -> float:
    """What products are multiplied by: columns^(-1/2) where it is None."""
    if scale is None:
        return columns**-0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float | np.floating | np.integer):
        raise TypeError(f"scale must be None or a finite number, got {scale!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be None or a finite number, got {scale}")
    return float(scale)


def check_additional(key: Shape, value: Shape, keys: Shape | None, values: Shape | None) -> None:
    """Refuse additional keys and values (B, E, Hk, D) that do not go with the others."""
    if (keys is None) != (values is None):
        missing, there = ("keys", "values") if keys is None else ("values", "keys")
        raise ValueError(f"additional_{missing} must come with additional_{there}, got None")
    if keys is None or values is None:
        return
    if len(keys) != 4 or keys[1] < 1 or (keys[0], *keys[2:]) != (key[0], *key[-2:]):
        raise ValueError(
            f"additional_keys must be ({key[0]}, E >= 1, {key[-2]}, {key[-1]}), got shape {tuple(keys)}"
        )
    if (*values[:-1], values[-1]) != (*keys[:-1], value[-1]):
        raise ValueError(f"additional_values must be {(*keys[:-1], value[-1])}, got shape {tuple(values)}")


def flat(grid: Sequence[Axis]) -> list[int]:
    """The axes as a list of integers, five for each: what an operator of torch can be given."""
    return [int(x) for axis in grid for x in axis]


def axis_positions(axis: Axis) -> np.ndarray:
    """The keys each query of an axis sees, (n, k); -1 where a causal window is cut."""
    n, k, s, d, causal = axis
    i = np.arange(n)[:, None]
    g, j = i % d, i // d
    m = -((g - n) // d)
    t = np.arange(k)
    if causal:
        leader = np.minimum(j // s * s + s - 1, m - 1)
        at = np.maximum(leader - k + 1, 0) + t
        return np.where(at <= j, g + d * at, -1)
    leader = np.minimum(j // s * s + s // 2, m - 1)
    return g + d * (np.clip(leader - k // 2, 0, m - k) + t)


def positions(grid: Sequence[Axis]) -> list[np.ndarray]:
    """The keys each query of each axis sees."""
    return [axis_positions(axis) for axis in grid]


def indices(grid: Sequence[Axis]) -> np.ndarray:
    """The keys each query sees, (n, product of windows), row-major over the axes; -1 where there is none."""
    found = np.zeros((1, 1), dtype=np.int64)
    for (n, *_), along in zip(grid, positions(grid), strict=True):
        joined = found[:, None, :, None] * n + along[None, :, None, :]
        absent = (found[:, None, :, None] < 0) | (along[None, :, None, :] < 0)
        joined = np.where(absent, -1, joined)
        found = joined.reshape(joined.shape[0] * joined.shape[1], -1)
    return found


def mask(grid: Sequence[Axis]) -> np.ndarray:
    """Whether query i sees key j, (n, n)."""
    n = math.prod(axis[0] for axis in grid)
    seen = np.zeros((n, n + 1), dtype=bool)
    np.put_along_axis(seen, indices(grid), True, axis=1)  # -1 is the column that is cut off
    return seen[:, :n]


def _each(name: str, value: Any, rank: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, tuple | list) else (value,) * rank
    if len(given) != rank:
        raise ValueError(f"{name} must be one integer or {rank}, got {value!r}")
    return tuple([_checks.integer(name, v, 1) for v in given])

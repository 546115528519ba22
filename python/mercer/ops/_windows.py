"""Neighborhoods of a grid: which keys a query sees. The plain statement of what the kernels do.

Hassani, Hwu and Shi, "Faster Neighborhood Attention" (NeurIPS 2024), with the even windows and strides of its successor
(arXiv 2504.16922). Per axis of length n, with window k, stride s and dilation d, a query at i belongs to the dilation
group g = i mod d of m tokens, at j = i div d. Not causal: with the leader l = min(j div s · s + s div 2, m - 1), it sees
the positions a … a + k - 1 of its group, a = clamp(l - k div 2, 0, m - k): shifted at borders, never cut. Causal: with
l = min(j div s · s + s - 1, m - 1), the positions max(l - k + 1, 0) … j. A neighborhood is the product of its axes'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mercer import _checks

__all__ = ["Axis", "axes", "axis_positions", "flat", "indices", "mask", "positions"]

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

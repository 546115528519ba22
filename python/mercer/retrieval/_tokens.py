"""Sets of token vectors at the door: packed rows and offsets, never padded."""

from __future__ import annotations

from typing import Any

import numpy as np

from mercer import _checks

__all__ = ["as_core", "packed", "tokens_array"]


def tokens_array(name: str, value: Any, dim: int | None = None) -> np.ndarray:
    """C-contiguous (n, d) rows of float16, float32 or float64; entries are not looked at."""
    array = value if isinstance(value, np.ndarray) and value.dtype == np.float16 else None
    if array is None:
        array = _checks.real_array(name, value)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be a 2-D array (n_tokens, d), got shape {array.shape}")
    if dim is not None and array.shape[1] != dim:
        raise ValueError(f"{name} must have {dim} columns, got {array.shape[1]}")
    return np.ascontiguousarray(array)


def packed(name: str, tokens: Any, offsets: Any, dim: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows, offsets int64) from rows and offsets, from one set without offsets, or from a list of sets."""
    if offsets is None and isinstance(tokens, list | tuple) and len(tokens) and np.ndim(tokens[0]) == 2:
        sets = [tokens_array(f"{name}[{i}]", each, dim) for i, each in enumerate(tokens)]
        widths = {each.shape[1] for each in sets}
        if len(widths) > 1:
            raise ValueError(f"{name} must have one number of columns, got {sorted(widths)}")
        lengths = [len(each) for each in sets]
        return np.concatenate(sets), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = tokens_array(name, tokens, dim)
    if offsets is None:
        return rows, np.array([0, len(rows)], np.int64)
    given = np.asarray(offsets)
    if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given):
        raise ValueError(
            f"offsets must be a 1-D array of n + 1 integers, got {given.dtype} of shape {given.shape}"
        )
    steps = np.diff(given.astype(np.int64))
    if given[0] != 0 or (steps < 0).any():
        at = int((steps < 0).argmax())
        what = (
            f"begin at 0, got {given[0]}"
            if given[0] != 0
            else f"not decrease, got {given[at]}, {given[at + 1]}"
        )
        raise ValueError(f"offsets must {what}")
    if given[-1] != len(rows):
        raise ValueError(f"offsets must end at the number of rows of {name}, {len(rows)}, got {given[-1]}")
    return rows, np.ascontiguousarray(given, np.int64)


def as_core(rows: np.ndarray) -> np.ndarray:
    """The same memory as the extension takes it: float16 by its bits."""
    return rows.view(np.uint16) if rows.dtype == np.float16 else rows

"""Rows from wherever they are: an array, a file mapped into memory, a stream of chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np

from mercer import _checks
from mercer._estimator import column_names

__all__ = ["Rows"]

# What one pass hands to the extension at a time: enough rows to keep every thread busy, small beside any
# memory.
BLOCK_BYTES = 1 << 26


class Rows:
    """An (n, d) array of rows, read in blocks.

    `X` is anything `numpy.asarray` takes (arrays and memory maps are read in place), a callable that gives a
    fresh iterator of 2-D chunks, a list of 2-D chunks, or an iterator of 2-D chunks, which can be read once
    only.

    Attributes:
        columns: d.
        count: n, or None where only reading to the end would tell.
        names: column names, or None.
        array: the rows as one array, where they are one.
    """

    def __init__(self, X: Any, *, repeated: bool) -> None:
        self.names = column_names(X)
        self.array: np.ndarray | None = None
        self.count: int | None = None
        self._chunks: Callable[[], Iterable[Any]]
        if callable(X):
            self._chunks = X
            first = next(iter(X()), None)
        elif isinstance(X, Iterator):
            if repeated:
                raise TypeError(
                    "X must be an array or a callable that starts the stream anew, "
                    f"got the {type(X).__name__} that can be read once only"
                )
            first = next(X, None)
            self._chunks = lambda: itertools.chain([first], X)
        elif isinstance(X, list | tuple) and X and all(getattr(chunk, "ndim", 0) == 2 for chunk in X):
            self._chunks = lambda: X
            first = X[0]
        else:
            # A memory map that needs another dtype or order is converted block by block, never as a whole.
            mapped = isinstance(X, np.memmap) and X.ndim == 2 and X.dtype.kind in "fiub" and X.shape[1] > 0
            first = self.array = X if mapped else _checks.matrix("X", X)
            self._chunks = lambda: [first]
            self.count = len(first)
        if first is None:
            raise ValueError("X must hold at least one chunk of rows, got an empty stream")
        self.columns: int = first.shape[1] if self.array is not None else _checks.matrix("X", first).shape[1]

    def at_least(self, minimum: int) -> Self:
        """Refuse data that no fit can use: d < 2, or fewer than `minimum` rows (where n is known)."""
        shape = (self.count, self.columns)
        if self.columns < 2:
            raise ValueError(
                f"X must have at least 2 columns (the sphere needs d >= 2), got {self.columns} feature(s) "
                f"(shape={shape}) while a minimum of 2 is required."
            )
        if self.count is not None and self.count < minimum:
            raise ValueError(
                f"X has {self.count} sample(s) (shape={shape}) while a minimum of {minimum} is required."
            )
        return self

    @property
    def length(self) -> int:
        """n, once it is known."""
        if self.count is None:
            raise RuntimeError("the stream has not been read to its end")
        return self.count

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first row, C-contiguous float32 or float64 block) until the rows end."""
        at = 0
        for given in self._chunks():
            chunk: np.ndarray = given  # an array's blocks are converted as they are read
            if self.array is None:
                chunk = _checks.matrix("X", given, columns=self.columns)
            step = max(1, BLOCK_BYTES // (chunk.itemsize * self.columns))
            for start in range(0, len(chunk), step):
                yield at + start, _checks.matrix("X", chunk[start : start + step])
            at += len(chunk)
        self.count = at

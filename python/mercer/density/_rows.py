"""Rows from wherever they are: an array, a file mapped into memory, a stream of chunks."""

from __future__ import annotations

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
    """

    def __init__(self, X: Any, *, repeated: bool) -> None:
        self.names = column_names(X)
        self._chunks: Callable[[], Iterable[Any]] | None = None
        self._array: np.ndarray | None = None
        if callable(X):
            self._chunks = X
        elif isinstance(X, Iterator):
            if repeated:
                raise TypeError(
                    "X must be an array or a callable that starts the stream anew, "
                    f"got the {type(X).__name__} that can be read once only"
                )
            self._first, self._rest = next(X, None), X
            self._chunks = self._once
        elif isinstance(X, list | tuple) and X and all(getattr(chunk, "ndim", 0) == 2 for chunk in X):
            self._chunks = lambda: X
        if self._chunks is None:
            self._array = _checks.matrix("X", X)
            self.count: int | None = len(self._array)
            self.columns = self._array.shape[1]
        else:
            first = self._first if isinstance(X, Iterator) else next(iter(self._chunks()), None)
            if first is None:
                raise ValueError("X must hold at least one chunk of rows, got an empty stream")
            self.count, self.columns = None, _checks.matrix("X", first).shape[1]

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

    def _once(self) -> Iterator[Any]:
        yield self._first
        yield from self._rest

    @property
    def array(self) -> np.ndarray | None:
        """The rows as one array, where they are one."""
        return self._array

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first row, C-contiguous float32 or float64 block) until the rows end."""
        at = 0
        chunks = [self._array] if self._chunks is None else self._chunks()
        for given in chunks:
            chunk = given if given is self._array else _checks.matrix("X", given, columns=self.columns)
            step = max(1, BLOCK_BYTES // (chunk.itemsize * self.columns))
            for start in range(0, len(chunk), step):
                block = chunk[start : start + step]
                yield at + start, block
            at += len(chunk)
        if self._chunks is not None:
            self.count = at

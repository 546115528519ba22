"""Sufficient statistics of unit vectors: one pass, mergeable, and exact where the rows nearly agree."""

from __future__ import annotations

import struct
from typing import Any, Self

import numpy as np

from mercer import _core

__all__ = ["SphereMoments"]

_MAGIC = b"mercer.sphere"
_VERSION = 1
_HEADER = struct.Struct("<13sBQQddd")  # magic, version, d, n, weight, weight squared, spread


class SphereMoments:
    """Weighted sums of unit vectors x about a unit vector p, the pivot: w, w², w |x - p|², w (x - p).

    With W the sum of w and D the sum of w (x - p), the resultant is W p + D and
    1 - R² = (W * spread - |D|²) / W²: nothing cancels however concentrated the rows are.

    Attributes:
        count: Rows seen.
        weight: Sum of the weights.
        weight_squared: Sum of the squared weights.

    Example:
        >>> import numpy as np
        >>> from mercer.density import SphereMoments
        >>> moments = SphereMoments()
        >>> moments.add(np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> again = SphereMoments.from_bytes(moments.to_bytes())
        >>> round(again.mean_resultant()[1], 6)
        0.707107
    """

    def __init__(self) -> None:
        self.count = 0
        self.weight = self.weight_squared = self._spread = 0.0
        self._pivot = self._shift = np.zeros(0)

    @property
    def dim(self) -> int:
        """d, or 0 before the first row."""
        return len(self._pivot)

    def add(
        self,
        block: np.ndarray,
        weights: np.ndarray | None = None,
        *,
        normalize: bool = False,
        first_row: int = 0,
        threads: int | None = None,
    ) -> None:
        """Add the rows of a C-contiguous float32 or float64 block (n, d); float64 sums, O(n d) time.

        Raises:
            ValueError: A row is not finite, is zero or (unless `normalize`) is not of unit length; rows are
                numbered from `first_row`. Nothing is added then.
        """
        if not len(block):
            return
        pivot = self._pivot if self.dim else _direction(block[0])
        sums = _core.vmf_moments(block, weights, pivot, normalize, first_row, threads)
        other = SphereMoments()
        other.count, other._pivot = len(block), pivot
        other.weight, other.weight_squared, other._spread, other._shift = sums
        self.merge(other)

    def merge(self, other: SphereMoments) -> Self:
        """Add what `other` has seen. O(d)."""
        if not isinstance(other, SphereMoments):
            raise TypeError(f"other must be a SphereMoments, got {type(other).__name__}")
        if other.dim == 0:
            return self
        if self.dim not in (0, other.dim):
            raise ValueError(f"other must have dimension {self.dim}, got {other.dim}")
        if self.dim == 0:
            self._pivot, self._shift = other._pivot.copy(), np.zeros(other.dim)
        move = other._pivot - self._pivot
        self.count += other.count
        self.weight += other.weight
        self.weight_squared += other.weight_squared
        self._spread += other._spread + 2 * float(move @ other._shift) + other.weight * float(move @ move)
        self._shift = self._shift + other._shift + other.weight * move
        return self

    def mean_resultant(self) -> tuple[np.ndarray, float, float]:
        """(mean direction (d,), R, 1 - R), R the mean resultant length."""
        mean = self._shift / self.weight
        resultant = self._pivot + mean
        squared_deficit = max(self._spread / self.weight - float(mean @ mean), 0.0)  # 1 - R²
        length = float(np.linalg.norm(resultant))
        direction = resultant / length if length > 0 else self._pivot
        if squared_deficit < 0.5:
            length = float(np.sqrt(1 - squared_deficit))
        deficit = squared_deficit / (1 + length)
        return direction, min(length, 1.0), deficit

    def to_bytes(self) -> bytes:
        """A versioned little-endian record of 62 + 16 d bytes."""
        header = _HEADER.pack(
            _MAGIC, _VERSION, self.dim, self.count, self.weight, self.weight_squared, self._spread
        )
        return header + self._pivot.astype("<f8").tobytes() + self._shift.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` wrote; anything else is a ValueError."""
        if len(data) < _HEADER.size:
            raise ValueError(f"data must be at least {_HEADER.size} bytes, got {len(data)}")
        magic, version, d, count, weight, squared, spread = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != _VERSION:
            raise ValueError(
                f"data must start with {_MAGIC!r} and version {_VERSION}, got {magic!r}, {version}"
            )
        if len(data) != _HEADER.size + 16 * d:
            raise ValueError(f"data must be {_HEADER.size + 16 * d} bytes for d = {d}, got {len(data)}")
        pivot, shift = np.frombuffer(data, "<f8", offset=_HEADER.size).astype(np.float64).reshape(2, d)
        numbers = np.concatenate([[weight, squared, spread], pivot, shift])
        off_sphere = d and not abs(float(np.linalg.norm(pivot)) - 1) < 1e-9
        if not np.isfinite(numbers).all() or min(weight, squared, spread) < 0 or off_sphere:
            raise ValueError("data must hold finite sums about a unit vector")
        moments = cls()
        moments.count, moments.weight, moments.weight_squared, moments._spread = (
            count,
            weight,
            squared,
            spread,
        )
        moments._pivot, moments._shift = pivot, shift
        return moments

    def copy(self) -> SphereMoments:
        """An independent copy."""
        return SphereMoments().merge(self)

    def __repr__(self) -> str:
        return f"SphereMoments(dim={self.dim}, count={self.count}, weight={self.weight:g})"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, SphereMoments) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]


def _direction(row: np.ndarray) -> np.ndarray:
    """`row` at unit length, or the first axis where it has none (the pass then refuses the row by number)."""
    row = row.astype(np.float64)
    largest = np.abs(row).max()
    if not (0 < largest < np.inf):
        return np.eye(1, len(row))[0]
    row = row / largest
    return row / np.linalg.norm(row)

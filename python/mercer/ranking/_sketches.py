"""Sketches of a stream of values: in fixed memory, and mergeable."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Self

from mercer import _checks, _core

__all__ = ["CountMinSketch", "HyperLogLog"]

_MAGIC = b"MRCRHLL1"


class HyperLogLog:
    """The number of different values of a stream (Flajolet, Fusy, Gandouet and Meunier 2007).

    Exact up to `warm_up` values; then 2^p registers of one byte, with linear counting while some register is
    empty (error far below 1 %) and Ertl's estimator (2017, alg. 6; relative error 1.04 / sqrt(2^p)) beyond.

    Args:
        p: log2 of the number of registers, 4 to 24.
        warm_up: Values counted exactly, 8 bytes each.

    >>> sketch = HyperLogLog(p=12, warm_up=100)
    >>> sketch.update(str(i) for i in range(10_000))
    >>> abs(len(sketch) / 10_000 - 1) < 0.05
    True
    """

    def __init__(self, p: int = 19, warm_up: int = 2**18) -> None:
        self.p = _checks.integer("p", p, 4, high=24)
        self.warm_up = _checks.integer("warm_up", warm_up, 0, high=2**32)
        self._sketch = _core.RankHyperLogLog(self.p, self.warm_up)

    def add(self, value: str | bytes) -> None:
        """Count one value."""
        self._sketch.add([_bytes(value)])

    def update(self, values: Iterable[str | bytes]) -> None:
        """Count many."""
        self._sketch.add([_bytes(value) for value in values])

    def merge(self, other: HyperLogLog) -> Self:
        """Take in what `other`, of the same p, has counted."""
        if not isinstance(other, HyperLogLog) or other.p != self.p:
            raise ValueError(f"other must be a HyperLogLog with p = {self.p}, got {other!r}")
        self._sketch.merge(other._sketch)
        return self

    def estimate(self) -> float:
        """The number of different values."""
        return self._sketch.estimate()

    def __len__(self) -> int:
        return round(self.estimate())

    def __repr__(self) -> str:
        return f"HyperLogLog(p={self.p}, warm_up={self.warm_up})"

    def to_bytes(self) -> bytes:
        """The sketch, with its version."""
        p, warm_up, few, registers = self._sketch.parts()
        head = struct.pack("<IQQ", p, warm_up, len(few))
        return _MAGIC + head + struct.pack(f"<{len(few)}Q", *few) + registers

    @classmethod
    def from_bytes(cls, data: bytes) -> HyperLogLog:
        """The sketch that `to_bytes` wrote; ValueError for anything else."""
        start = len(_MAGIC) + 20
        if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
            raise ValueError("data must be what HyperLogLog.to_bytes wrote")
        p, warm_up, count = struct.unpack("<IQQ", data[len(_MAGIC) : start])
        if not 4 <= p <= 24 or count > (len(data) - start) // 8 or warm_up > 2**32:
            raise ValueError("data must be what HyperLogLog.to_bytes wrote: its sizes do not fit")
        few = struct.unpack(f"<{count}Q", data[start : start + 8 * count])
        inner = _core.RankHyperLogLog.from_parts(p, warm_up, list(few), data[start + 8 * count :])
        if inner is None:
            raise ValueError("data must be what HyperLogLog.to_bytes wrote: its parts do not fit")
        sketch = cls(p, warm_up)
        sketch._sketch = inner
        return sketch


class CountMinSketch:
    """How often each value of a stream occurs, never too few (Cormode and Muthukrishnan 2005).

    An estimate exceeds the truth by at most e / `width` of all counts, but for a chance of exp(-`depth`).

    >>> counts = CountMinSketch(width=1000, depth=4)
    >>> counts.add("a", 3)
    >>> counts["a"], counts["b"]
    (3, 0)
    """

    def __init__(self, width: int = 2**16, depth: int = 4) -> None:
        self.width = _checks.integer("width", width, 1, high=2**32)
        self.depth = _checks.integer("depth", depth, 1, high=64)
        self._sketch = _core.RankCountMin(self.width, self.depth)

    def add(self, value: str | bytes, times: int = 1) -> None:
        """Count a value `times` more."""
        self._sketch.add(_bytes(value), _checks.integer("times", times, 0))

    def __getitem__(self, value: str | bytes) -> int:
        return self._sketch.estimate(_bytes(value))

    def merge(self, other: CountMinSketch) -> Self:
        """Take in what `other`, of the same size, has counted."""
        if not isinstance(other, CountMinSketch) or not self._sketch.merge(other._sketch):
            raise ValueError(f"other must be a CountMinSketch of {self.width} x {self.depth}, got {other!r}")
        return self

    def __repr__(self) -> str:
        return f"CountMinSketch(width={self.width}, depth={self.depth})"


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"value must be str or bytes, got {type(value).__name__}")

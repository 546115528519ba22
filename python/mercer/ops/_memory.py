"""Memory for what operations return."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["empty"]

#: Bytes of a large page.
HUGE = 1 << 21


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `numpy.empty`; from `HUGE` bytes on it begins where a large page may.

    The first write to each page of 4 KiB takes 2 µs, and there are 512 of them in 2 MiB: a fifth of the time of an
    attention over 4,096 tokens. NumPy asks Linux for large pages from 4 MiB on, hence the room, and Linux gives those
    that lie in it whole.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE:
        return np.empty(shape, dtype)
    room = np.empty(size + HUGE, np.uint8)
    start = -room.ctypes.data % HUGE
    return room[start : start + size].view(dtype).reshape(shape)

"""Memory for what operations return."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

__all__ = ["empty"]

#: Bytes of a large page.
HUGE = 1 << 21
#: Bytes that are kept for the next result of that size when nobody uses them any more.
KEPT = 1 << 27


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `numpy.empty`; from `HUGE` bytes on it begins where a large page may, and may be memory of an earlier result.

    The first write to each page of 4 KiB takes 2 µs, and there are 512 of them in 2 MiB: a quarter of the time of an
    attention over 4,096 tokens and its gradients went there. NumPy asks Linux for large pages from 4 MiB on, hence the
    room, and Linux gives those that lie in it whole.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < HUGE:
        return np.empty(shape, dtype)
    room = _shelf.take(-(-size // HUGE) * HUGE)
    return np.asarray(_Lent(room))[:size].view(dtype).reshape(shape)


class _Lent:
    """What an array is made from and keeps: its memory goes back to the shelf with it."""

    def __init__(self, room: np.ndarray) -> None:
        self.room, self.shelf = room, _shelf

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.room.__array_interface__

    def __del__(self) -> None:
        self.shelf.put(self.room)


class _Shelf:
    """Rooms nobody uses, at most `most` bytes of them: those longest there make way."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._rooms: list[np.ndarray] = []
        # Never waited for: a collection may put a room back in the midst of a taking, and a fork leaves it held.
        self._lock = threading.Lock()

    def take(self, size: int) -> np.ndarray:
        """A room of `size` bytes."""
        if self._lock.acquire(blocking=False):
            try:
                for at in reversed(range(len(self._rooms))):
                    if self._rooms[at].nbytes == size:
                        return self._rooms.pop(at)
            finally:
                self._lock.release()
        whole = np.empty(size + HUGE, np.uint8)
        start = -whole.ctypes.data % HUGE
        return whole[start : start + size]

    def put(self, room: np.ndarray) -> None:
        """Keep it, or let it go."""
        if self._lock.acquire(blocking=False):
            try:
                self._rooms.append(room)
                while sum(room.nbytes for room in self._rooms) > self.most:
                    del self._rooms[0]
            finally:
                self._lock.release()


_shelf = _Shelf(KEPT)

"""MinHash: the least element of a set in random orders."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mercer import _checks, _core
from mercer._backend import is_reference
from mercer.lsh._family import Family, mix

__all__ = ["MinHash"]

PRIME = (1 << 61) - 1
STREAM = 26


class MinHash(Family):
    """The least element of a set in each of several random orders: for the Jaccard similarity of sets.

    Two sets agree in a column with probability |A and B| / |A or B|. Order i sorts by
    ``(a_i mix(x) + b_i) mod (2^61 - 1)``, and the value kept is that number; ``mix`` is SplitMix64's finaliser, without
    which runs of integers would be ordered far from randomly.

    Parameters
    ----------
    tables : int
        Orders; the deviation of `similarity` is at most 1 / (2 sqrt(tables)).
    random_state : int, None or numpy generator
        The same int gives the same orders on any machine.
    coefficients : (tables, 2) integers, optional
        a (1 … 2^61 - 2) and b (0 … 2^61 - 2) of each order, given instead of drawn.

    Notes
    -----
    Cost: elements · tables multiplications. Source: Broder 1997, "On the resemblance and containment of documents".

    Examples
    --------
    >>> h = MinHash(256, random_state=0)
    >>> a, b = h.hash([[1, 2, 3, 4], [3, 4, 5, 6]])
    >>> bool(abs(h.similarity(a, b) - 1 / 3) < 0.1)
    True
    """

    _plain: ClassVar = ("tables", "random_state")
    _arrays: ClassVar = ("coefficients",)

    def __init__(self, tables: int, *, random_state: Any = 0, coefficients: Any = None) -> None:
        self.tables = _checks.integer("tables", tables, 1)
        self.random_state = _checks.random_seed(random_state)
        self._given = frozenset() if coefficients is None else frozenset({"coefficients"})
        if coefficients is None:
            words = _core.lsh_bits(self.random_state, STREAM, self.tables, 2)
            # 64 bits modulo a number of 61: uneven by less than 2^-3 of 2^-61.
            a = words[:, 0] % np.uint64(PRIME - 1) + np.uint64(1)
            self.coefficients = np.stack([a, words[:, 1] % np.uint64(PRIME)], 1)
            return
        given = np.asarray(coefficients)
        if given.dtype.kind not in "iu" or given.shape != (self.tables, 2):
            raise ValueError(
                f"coefficients must be integers of shape ({self.tables}, 2), got {given.dtype} of shape {given.shape}"
            )
        if (given < [1, 0]).any() or (given >= PRIME).any():
            raise ValueError("coefficients must lie in 1 ... 2^61 - 2 (a) and 0 ... 2^61 - 2 (b)")
        self.coefficients = np.ascontiguousarray(given, np.uint64)

    def hash(self, items: Any, offsets: Any = None, *, threads: int | None = None) -> np.ndarray:
        """Signatures of sets.

        Parameters
        ----------
        items : sequence of sets, or a 1-D integer array
            Sets of integers in 0 … 2^64 - 1, or of strings or bytes (taken by their 64-bit
            hash); or, with `offsets`, all elements in one array.
        offsets : (n + 1,) integers, optional
            Set i owns ``items[offsets[i]:offsets[i + 1]]``.

        Returns
        -------
        (n, tables) int64
            2^61 - 1 where a set is empty.
        """
        threads = _checks.threads("threads", threads)
        if offsets is None:
            sets = [list(s) for s in items]
            offsets = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
            flat = np.array([_element(x) for s in sets for x in s], np.uint64)
        else:
            flat = np.asarray(items)
            if flat.ndim != 1 or (flat.size and flat.dtype.kind not in "iu"):
                raise ValueError(
                    f"items must be a 1-D array of integers, got {flat.dtype} of shape {flat.shape}"
                )
            if flat.dtype.kind == "i" and (flat < 0).any():
                raise ValueError(f"items must be >= 0, got {flat.min()}")
            flat = np.ascontiguousarray(flat, np.uint64)
            offsets = np.asarray(offsets)
            if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets):
                raise ValueError("offsets must be a 1-D array of integers, one more than there are sets")
            offsets = np.ascontiguousarray(offsets, np.int64)
            if offsets[0] != 0 or offsets[-1] != len(flat) or (np.diff(offsets) < 0).any():
                raise ValueError(f"offsets must ascend from 0 to the number of items, {len(flat)}")
        if is_reference():
            return self._reference(flat, offsets)
        out = np.empty((len(offsets) - 1, self.tables), np.uint64)
        _core.lsh_minhash(flat, offsets, self.coefficients, out, threads)
        return out.view(np.int64)

    @staticmethod
    def similarity(a: Any, b: Any) -> Any:
        """The estimate of the Jaccard similarity from signatures (..., tables): the share of equal columns."""
        return (np.asarray(a) == np.asarray(b)).mean(-1)

    def _reference(self, flat: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        orders = [(int(a), int(b)) for a, b in self.coefficients]
        return np.array([
            [min(((a * x + b) % PRIME for x in mix(flat[start:stop]).tolist()), default=PRIME) for a, b in orders]
            for start, stop in zip(offsets[:-1], offsets[1:], strict=True)
        ], np.int64).reshape(-1, self.tables)  # fmt: skip


def _element(x: Any) -> int:
    if isinstance(x, str | bytes):
        return _core.rank_xxh64(x.encode() if isinstance(x, str) else x)
    return _checks.integer("items", x, 0, high=2**64 - 1)

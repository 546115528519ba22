"""Scores of pairs over the batches of a stream: their median and their spread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

__all__ = ["PairScores", "Turns"]

Item = TypeVar("Item")


@dataclass
class PairScores:
    """What each pair scored in each batch. Memory: 12 bytes a pair and batch."""

    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    ids: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, pairs: Iterable[tuple[str, str]], scores: np.ndarray) -> None:
        """The scores of a batch."""
        known = self.numbers
        self.ids.append(np.fromiter((known.setdefault(p, len(known)) for p in pairs), dtype=np.int32))
        self.scores.append(np.asarray(scores, dtype=np.float64))

    def summary(self) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray, np.ndarray]:
        """(pairs, median, interquartile range, number of batches)."""
        count = len(self.numbers)
        if not count:
            return [], np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64)
        ids, scores = np.concatenate(self.ids), np.concatenate(self.scores)
        order = np.lexsort((scores, ids))
        scores = scores[order]
        times = np.bincount(ids, minlength=count)
        starts = np.cumsum(times) - times

        def quantile(q: float) -> np.ndarray:
            at = q * (times - 1)
            low = np.floor(at).astype(np.int64)
            high = np.minimum(low + 1, times - 1)
            below, above = scores[starts + low], scores[starts + high]
            return np.where(at == low, below, below + (at - low) * (above - below))

        half = (times - 1) // 2
        median = (scores[starts + half] + scores[starts + times // 2]) / 2
        return list(self.numbers), median, quantile(0.75) - quantile(0.25), times


class Turns:
    """Takes at most so many of a list a batch, the least often taken first: a cursor that goes round."""

    def __init__(self) -> None:
        self._cursor: dict[str, int] = {}

    def take(self, what: str, items: Sequence[Item], most: int) -> list[Item]:
        """The next `most` of `items`; `what` names the list."""
        if len(items) <= most:
            return list(items)
        start = self._cursor.get(what, 0) % len(items)
        self._cursor[what] = start + most
        return [items[(start + k) % len(items)] for k in range(most)]

    def combinations(self, what: str, columns: Sequence[int], order: int, most: int) -> list[tuple[int, ...]]:
        """The same of the combinations of `order` columns, which are not listed."""
        total = math.comb(len(columns), order)
        if total <= most:
            return list(itertools.combinations(columns, order))
        start = self._cursor.get(what, 0) % total
        self._cursor[what] = start + most
        ranks = range(start, start + most)
        return [_combination(columns, order, rank % total) for rank in ranks]


def _combination(columns: Sequence[int], order: int, rank: int) -> tuple[int, ...]:
    """Number `rank` of `itertools.combinations(columns, order)`."""
    chosen, at, n = [], 0, len(columns)
    for left in range(order, 0, -1):
        while (count := math.comb(n - at - 1, left - 1)) <= rank:
            rank -= count
            at += 1
        chosen.append(columns[at])
        at += 1
    return tuple(chosen)

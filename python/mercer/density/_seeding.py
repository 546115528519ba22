"""Where a mixture starts: spherical k-means++ on a sample of the rows, then spherical k-means."""

from __future__ import annotations

import math

import numpy as np

from mercer import _checks, _core
from mercer.density._rows import Rows

__all__ = ["seed_directions", "take_sample"]

# Entries of the sample that seeding works on.
SAMPLE_ENTRIES = 1 << 23
# Entries that seeds are tried on, and products entries x K that all tries may take; one takes up to 40.
TRIAL_ENTRIES = 1 << 20
TRIAL_PRODUCTS = 1e9


def take_sample(rows: Rows, least: int, normalize: bool, rng: np.random.Generator) -> np.ndarray:
    """Rows without replacement, each subset as likely as any other, in at most max(least rows, 2^23 entries).

    One pass over a stream (which also counts its rows), none over an array that is small enough.
    """
    size = max(least, SAMPLE_ENTRIES // rows.columns)
    if rows.array is not None:
        n = len(rows.array)
        picked = rows.array
        if n > size:
            picked = picked[np.sort(rng.choice(n, size, replace=False, shuffle=False))]
        return _unit(_checks.matrix("X", picked), normalize)
    # Reservoir sampling (Li 1994's algorithm R, by blocks): row i replaces a kept one with probability size
    # / (i+1).
    kept: list[np.ndarray] = []
    sample = np.empty((0, rows.columns))
    for first, block in rows.blocks():
        _unit(block, normalize, first)
        room = max(0, size - first)
        if room:
            kept.append(block[:room].copy())
            sample = np.concatenate(kept) if first + len(block) >= size else sample
        later = np.arange(min(room, len(block)), len(block))
        at = rng.integers(0, first + later + 1)
        for i in np.flatnonzero(at < size):
            sample[at[i]] = block[later[i]]
    if rows.count is not None and rows.count <= size and kept:
        sample = np.concatenate(kept)
    return _unit(np.ascontiguousarray(sample), normalize) if len(sample) else sample


def _unit(block: np.ndarray, normalize: bool, first: int = 0) -> np.ndarray:
    """`block` with its rows checked, and scaled where that was asked for."""
    _core.vmf_cosine_deficit(block, np.eye(1, block.shape[1])[0], normalize, first, 1)
    if not normalize:
        return block
    largest = np.abs(block).max(axis=1, keepdims=True)
    block = block / largest
    return block / np.linalg.norm(block, axis=1, keepdims=True)


def seed_directions(
    sample: np.ndarray, k: int, how: str, rng: np.random.Generator, threads: int | None
) -> np.ndarray:
    """k unit directions (k, d), float64."""
    if how == "random":
        return _float64_unit(sample[rng.choice(len(sample), k, replace=False)])
    # In many dimensions all distances are much alike and one set of seeds misses clusters: take the best of
    # several, tried on a part of the sample.
    size = max(128 * k, TRIAL_ENTRIES // sample.shape[1])
    part = sample if len(sample) <= size else sample[rng.choice(len(sample), size, replace=False)]
    tries = int(np.clip(TRIAL_PRODUCTS / (part.size * k), 1, 8))
    runs = [_spherical_kmeans(part, _plus_plus(part, k, rng, threads), threads) for _ in range(tries)]
    best = max(runs, key=lambda run: run[0])[1]
    return best if part is sample else _spherical_kmeans(sample, best, threads)[1]


def _plus_plus(sample: np.ndarray, k: int, rng: np.random.Generator, threads: int | None) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007) for 1 - cos, greedy over 2 + log k candidates a step."""
    n = len(sample)
    chosen = [int(rng.integers(n))]
    gap = _gaps(sample, chosen[0], threads)  # 1 - cos to the nearest direction so far
    for _ in range(1, k):
        total = float(gap.sum())
        if total <= 0:  # fewer distinct rows than components
            chosen.append(int(rng.integers(n)))
            continue
        steps = np.cumsum(gap)
        best, best_gap = -1, gap
        for u in rng.random(2 + int(math.log(k))):
            candidate = int(min(np.searchsorted(steps, u * steps[-1], side="right"), n - 1))
            closer = np.minimum(gap, _gaps(sample, candidate, threads))
            if best < 0 or closer.sum() < best_gap.sum():
                best, best_gap = candidate, closer
        chosen.append(best)
        gap = best_gap
    return _float64_unit(sample[chosen])


def _gaps(sample: np.ndarray, row: int, threads: int | None) -> np.ndarray:
    return -_core.vmf_cosine_deficit(sample, _float64_unit(sample[row : row + 1])[0], False, 0, threads)


def _spherical_kmeans(
    sample: np.ndarray, directions: np.ndarray, threads: int | None, max_iter: int = 20
) -> tuple[float, np.ndarray]:
    """(sum of cosines, directions) after Lloyd's rounds for the cosine (Dhillon and Modha 2001).

    An empty cluster takes the row that is served worst.
    """
    k = len(directions)
    cosine, labels, before = np.empty(len(sample)), np.empty(len(sample), np.int64), None
    total = 0.0
    for _ in range(max_iter):
        total, size, _, sums = _core.vmf_expectation(
            sample, directions, np.ones(k), np.ones(k), False, hard=True, sums=True, log_prob=cosine,
            labels=labels, threads=threads,
        )  # fmt: skip
        assert sums is not None  # asked for
        if before is not None and np.array_equal(labels, before):
            break
        before = labels.copy()
        worst = iter(np.argsort(cosine, kind="stable"))
        length = np.linalg.norm(sums, axis=1)
        for j in range(k):
            if size[j] == 0 or length[j] == 0:
                directions[j] = _float64_unit(sample[next(worst)][None])[0]
            else:
                directions[j] = sums[j] / length[j]
    return total, directions


def _float64_unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)

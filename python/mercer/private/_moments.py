"""Squared distances from three sums: sum |x - y|² = n |y|² - 2 <y, sum x> + sum |x|²."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from mercer import _core
from mercer.private._noise import Budget, Law, Noise
from mercer.private._structure import Arrays, Structure, released_count
from mercer.private.release import Release

__all__ = ["MomentRelease", "MomentSums", "about_centroid", "coarsened"]

BITS = 20  # the grid: 2^-20 of the largest half-width


class MomentSums(Structure):
    """n, sum z and sum |z|² with z the row from the middle of the bounds, in units of the largest half-width.

    Sensitivity, beside the code that relies on it: `private_moments` cuts z to whole multiples of 2^-20, towards 0, and
    keeps in whole numbers |Z_i| <= H_i, sum |Z_i| <= l1 and sum Z_i² <= square, whatever floating point did before. One
    row adds Z and floor(sum Z_i² / 2^20), which is in [0, square / 2^20]. k rows change sums by at most k times the
    norm of one, replacing k rows by twice that.
    """

    kind = "moments"

    def empty(self) -> Arrays:
        d = self.terms.columns
        return {"sum": np.zeros(d, np.int64), "squares": np.zeros(1, np.int64), "n": np.zeros(1, np.int64)}

    def add(self, arrays: Arrays, block: np.ndarray, first_row: int, threads: int | None) -> None:
        sums = self._sums(block, [0], first_row, threads)
        arrays["sum"] += sums[0, :-1]
        arrays["squares"] += sums[0, -1]
        arrays["n"] += len(block)

    def sum_groups(
        self, rows: np.ndarray, order: np.ndarray, starts: np.ndarray, unit: bool, threads: int | None
    ) -> list[Arrays]:
        """The accumulators of each group of the rows in this order, each scaled to unit length if asked; no copy."""
        counts = np.diff([*starts.tolist(), len(order)])
        return [
            {"sum": sums[:-1], "squares": sums[-1:], "n": np.array([n])}
            for sums, n in zip(
                self._sums(rows, starts.tolist(), 0, threads, order, unit), counts, strict=True
            )
        ]

    def _sums(self, rows: np.ndarray, starts: list[int], *where: Any) -> np.ndarray:
        """Sums of Z and of its squares, (groups, d + 1). Raises ValueError for the first row that is refused."""
        if rows.dtype not in (np.float32, np.float64):
            rows = rows.astype(np.float64)
        terms = self.terms
        centre, half, radius = self._frame()
        l1, square, _ = self.sensitivities
        limit = np.floor(half / half.max() * 2.0**BITS)
        bounds = None if terms.low is None else np.array([terms.low, terms.high], np.float64)
        sums = np.zeros((len(starts), terms.columns + 1), np.int64)
        _core.private_moments(
            np.ascontiguousarray(rows), bounds, centre, radius, terms.clip, 2.0**BITS / half.max(), BITS, limit,
            (l1, square), sums, starts, *where,
        )  # fmt: skip
        return sums

    @cached_property
    def sensitivities(self) -> tuple[int, int, int]:
        """(l1, squared l2, scalar) of one row, in steps of the grid."""
        _, half, radius = self._frame()
        unit = half.max()
        steps = [math.floor(Fraction(h) / Fraction(unit) * 2**BITS) for h in half]
        l1, square = sum(steps), sum(step * step for step in steps)
        if radius is not None:
            d = self.terms.columns
            reach = Fraction(radius) / Fraction(unit) * 2**BITS
            square = min(square, math.floor(reach * reach))
            l1 = min(l1, math.isqrt(d * square))
        return l1, square, max(square >> BITS, 1)

    def _frame(self) -> tuple[np.ndarray, np.ndarray, float | None]:
        """(centre, half-widths, radius of the ball around the centre or None)."""
        radius = self.options["norm_bound"]
        if self.terms.low is None or self.terms.high is None:
            d = self.terms.columns
            return np.zeros(d), np.full(d, radius), radius
        low, high = np.array(self.terms.low), np.array(self.terms.high)
        return (low + high) / 2, (high - low) / 2, radius

    def release(self, arrays: Arrays, budget: Budget, noise: Noise) -> Release:
        terms = self.terms
        l1, square, scalar = self.sensitivities
        changes = terms.changes()
        # Shares that suit queries about as far from the centre as the data: noise of n weighs |y|², of the vector 2 |y|
        # and of the scalar 1, and the sum of variances is least for shares like the 2/3 power of weight × sensitivity.
        grid = 2.0**BITS
        weights = [
            (square / grid**2) ** (2 / 3),
            (2 * math.sqrt(square) / grid * l1 / grid) ** (2 / 3),
            (scalar / grid) ** (2 / 3),
        ]
        if self.options["shares"] is not None:
            weights = list(self.options["shares"])
        amounts = budget.split(weights[1:] if terms.public_n else weights)
        count_law = None if terms.public_n else budget.law(amounts.pop(0), changes, changes**2)
        vector, vector_law, coarse = coarsened(
            arrays["sum"], budget, amounts[0], changes * l1, (changes * changes) * square
        )
        noise.add(vector, [vector_law])
        squares, squares_law, coarse_squares = coarsened(
            arrays["squares"], budget, amounts[1], changes * scalar, (changes * scalar) ** 2
        )
        noise.add(squares, [squares_law])
        centre, half, _ = self._frame()
        parameters = {
            "columns": terms.columns, "centre": centre.tolist(), "unit": float(half.max()),
            "count_law": count_law and count_law.to_json(), "vector_law": vector_law.to_json(),
            "squares_law": squares_law.to_json(), "bits": [BITS - coarse, BITS - coarse_squares],
        }  # fmt: skip
        statement = terms.statement(
            "sum of the rows and of their squared lengths", budget, noise, public=[],
            note=f"rows are rounded to multiples of 2^-{BITS} of the widest half-width, {float(half.max()):g}",
        )  # fmt: skip
        statement["metric"] = "sqeuclidean"
        if self.options["norm_bound"] is not None:
            statement["norm_bound"] = self.options["norm_bound"]
        n = released_count(arrays["n"], terms, count_law, noise)
        return MomentRelease(statement, parameters, {"sum": vector, "squares": squares, "n": n})


def coarsened(
    sums: np.ndarray, budget: Budget, amount: Fraction, l1: int, square: int
) -> tuple[np.ndarray, Law, int]:
    """(a copy of the sums on a grid 2^j coarser, the noise law there, j), j as small as the sampler's range allows.

    Rounding to the coarser grid moves each of the c values by at most half a step on either of two neighbours: the l1
    distance is at most l1 / 2^j + c, the l2 distance sqrt(square) / 2^j + sqrt(c).
    """
    for j in range(63):
        more = len(sums) if j else 0
        l1_j = (l1 >> j) + 1 + more if j else l1
        root = math.isqrt(square - 1) + 1 if square else 0
        square_j = ((root >> j) + 2 + math.isqrt(more)) ** 2 if j else square
        try:
            law = budget.law(amount, l1_j, square_j)
        except ValueError:
            continue
        if not law.gaussian and law.num / 2**law.shift < 2.0**-44:
            continue
        half = (1 << j) >> 1
        return (sums + half) >> j, law, j
    raise ValueError(f"epsilon must be large enough for noise to fit in 62 bits, got {budget.epsilon}")


def about_centroid(
    inner: np.ndarray, sums: np.ndarray, variance: float, count: float, count_variance: float
) -> tuple[np.ndarray, float, float]:
    """(inner / n, |sums / n|² less what noise in the sums adds to it, the variance of that by the noise in both)."""
    n = max(count, 1.0)
    square = float(sums @ sums) - len(sums) * variance
    spread = (
        2 * len(sums) * variance**2 + 4 * variance * max(square, 0.0) + 4 * count_variance * (square / n) ** 2
    )
    return inner / n, square / n**2, spread / n**4


class MomentRelease(Release):
    """Noisy sums of the rows and of their squares: sums of squared Euclidean distances, exact but for the noise."""

    kind = "moments"

    def _open(self) -> None:
        given = self._parameters
        self._centre, self._unit = np.array(given["centre"], np.float64), float(given["unit"])
        d = self.n_features
        if self._centre.shape != (d,) or not np.isfinite(self._centre).all() or not 0 < self._unit < math.inf:
            raise ValueError("centre and unit do not fit")
        for name, size in (("sum", d), ("squares", 1), ("n", 1)):
            if self._arrays[name].shape != (size,):
                raise ValueError(f"{name} of shape {self._arrays[name].shape}")
        steps = [2.0 ** -int(bits) for bits in given["bits"]]
        self._sum = self._arrays["sum"] * steps[0] * self._unit
        self._squares = float(self._arrays["squares"][0]) * steps[1] * self._unit**2
        variance = [0.0 if given[f"{what}_law"] is None else Law.from_json(given[f"{what}_law"]).variance
                    for what in ("count", "vector", "squares")]  # fmt: skip
        self._variance = [
            variance[0],
            variance[1] * (steps[0] * self._unit) ** 2,
            variance[2] * (steps[1] * self._unit**2) ** 2,
        ]

    @property
    def count(self) -> float:
        return float(self._arrays["n"][0])

    def query(self, Y: Any, *, threads: int | None = None) -> np.ndarray:
        y = self._queries(Y) - self._centre
        return self.count * np.sum(y * y, axis=1) - 2 * y @ self._sum + self._squares

    def centroid(self, Y: Any) -> tuple[np.ndarray, float, float]:
        """(<y, mean>, |mean|² less what noise adds to it, the variance of that), from the middle of the bounds."""
        inner = (self._queries(Y) - self._centre) @ self._sum
        return about_centroid(inner, self._sum, self._variance[1], self.count, self._variance[0])

    def std_error(self, Y: Any) -> np.ndarray:
        y = self._queries(Y) - self._centre
        squares = np.sum(y * y, axis=1)
        return np.sqrt(self._variance[0] * squares**2 + 4 * self._variance[1] * squares + self._variance[2])

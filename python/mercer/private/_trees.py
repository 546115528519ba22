"""Dyadic trees on every column: releases of l1, lp and (through a random map to l1) l2 distance sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mercer import _core
from mercer.private import _tree
from mercer.private._noise import Budget, Law, Noise
from mercer.private._structure import Arrays, Structure
from mercer.private.release import Release

__all__ = ["TreeRelease", "TreeSums"]

DEEPEST = 16  # the default's cap: 65536 leaves


class TreeSums(Structure):
    """Leaf counts of every column.

    Sensitivity, beside the code that relies on it: a row lies in one leaf of each column and so in one node of each
    level. Adding or removing k rows changes the counts of a level by at most k in l1 and k² in squared l2; replacing k
    rows by k others by at most 2 k, and by 2 k² (k out of one node, k into another). Levels and columns compose: their
    budgets add up to the whole. All numbers are whole; nothing is rounded.
    """

    kind = "trees"

    def empty(self) -> Arrays:
        return {
            "leaves": np.zeros((len(self._domain()[0]), 2 ** self._depth()), np.int64),
            "n": np.zeros(1, np.int64),
        }

    def _depth(self) -> int:
        return self.options["levels"] or DEEPEST

    def _domain(self) -> tuple[np.ndarray, np.ndarray]:
        if self.options["projection"]:
            reach = np.array(projection_ranges(self.options, self.terms.columns))
            return -reach, reach
        assert self.terms.low is not None and self.terms.high is not None
        return np.array(self.terms.low), np.array(self.terms.high)

    def add(self, arrays: Arrays, block: np.ndarray, first_row: int, threads: int | None) -> None:
        low, high = self._domain()
        clip = self.terms.clip
        if self.options["projection"]:
            block = projected(within(block, self.terms, first_row), self.options, self.terms.columns)
            clip = True
        _core.private_count(block, low, high, clip, arrays["leaves"], first_row, threads)
        arrays["n"] += len(block)

    def release(self, arrays: Arrays, budget: Budget, noise: Noise) -> Release:
        leaves, options, terms = arrays["leaves"], self.options, self.terms
        columns = len(leaves)
        per_column = Budget(budget.epsilon, budget.delta, budget.gaussian, budget.amount / columns)
        rows = terms.rows
        l1, square = terms.changes(), rows**2 * (2 if terms.replace else 1)

        def laws(amounts: list) -> list[Law]:
            return [budget.law(amount, l1, square) for amount in amounts]

        def shares(levels: int) -> list[float]:
            return _tree.level_shares(levels, options["budget"], gaussian=budget.gaussian)

        root = arrays["n"].repeat(columns)
        root_law: list[Law] = []
        rest = per_column
        if not terms.public_n:
            # The root first: where the depth is to follow n it follows the noisy n, which costs nothing more.
            amount = per_column.split(shares(options["levels"] or DEEPEST))[0]
            root_law = [budget.law(amount, l1, square)]
            noise.add(root, root_law)
            rest = Budget(budget.epsilon, budget.delta, budget.gaussian, per_column.amount - amount)
        levels = options["levels"] or min(_tree.default_levels(float(np.mean(root))), DEEPEST)
        amounts = rest.split(shares(levels)[1:]) if levels else []
        if leaves.shape[1] > 2**levels:
            leaves = leaves.reshape(columns, 2**levels, -1).sum(2)
        trees = _core.private_trees(leaves)
        below = trees[:, 1:].ravel()
        level_laws = laws(amounts)
        if levels:
            lengths = [2**level for level in range(1, levels + 1)]
            noise.add(below, level_laws * columns, lengths * columns)
        trees[:, 1:] = below.reshape(columns, -1)
        trees[:, 0] = root

        low, high = self._domain()
        parameters = {
            "columns": terms.columns, "low": low.tolist(), "high": high.tolist(), "levels": levels,
            "laws": [law.to_json() for law in level_laws], "root_law": [law.to_json() for law in root_law],
            "p": options["p"], "estimate": options["estimate"], "alpha": options["alpha"],
            "projection": options["projection"],
        }  # fmt: skip
        spent = [float(a) for a in ([amount] if root_law else []) + amounts]
        leaf = float(np.max(high - low)) / 2**levels
        statement = terms.statement(
            f"dyadic tree of counts on {columns} column(s), {levels} levels",
            budget, noise, public=["depth of the trees", *(["random projection"] if options["projection"] else [])],
            note=f"a value counts as its leaf: it moves by at most {leaf:.3g} in its column",
        )  # fmt: skip
        statement["metric"] = options["metric"]
        statement["budget_by_level_and_column"] = spent
        return TreeRelease(statement, parameters, {"trees": trees})


class TreeRelease(Release):
    """Noisy dyadic trees.

    `query(Y)` is the exact linear functional of the counts (or the paper's shells, where that was asked for); y may lie
    outside the bounds.
    """

    kind = "trees"

    def _open(self) -> None:
        given, trees = self._parameters, self._arrays["trees"]
        self.levels = int(given["levels"])
        self._p, self._alpha = float(given["p"]), float(given["alpha"])
        self._low, self._high = (np.array(given[name], np.float64) for name in ("low", "high"))
        laws = [Law.from_json(law) for law in given["root_law"]]
        self._variances = [
            laws[0].variance if laws else 0.0,
            *(Law.from_json(v).variance for v in given["laws"]),
        ]
        columns = len(self._low)
        if not 0 <= self.levels <= 26 or trees.shape != (columns, 2 ** (self.levels + 1) - 1):
            raise ValueError(f"trees of shape {trees.shape} for {columns} columns of {self.levels} levels")
        if len(self._variances) != self.levels + 1 or self._high.shape != (columns,) or columns == 0:
            raise ValueError("laws and bounds do not fit the trees")
        if not (np.isfinite(self._high - self._low).all() and (self._high > self._low).all()):
            raise ValueError("bounds must be finite and increasing")
        if not (self._p > 0 and self._alpha > 0 and given["estimate"] in ("exact", "shells")):
            raise ValueError("p, alpha or estimate out of range")
        if given["projection"] is None and columns != self.n_features:
            raise ValueError("one tree a column")
        self._trees = np.ascontiguousarray(trees)
        self._sums: Any = None

    @property
    def count(self) -> float:
        return float(np.mean(self._trees[:, 0]))

    def query(self, Y: Any, *, threads: int | None = None) -> np.ndarray:
        Y = self._mapped(Y)
        if self._parameters["estimate"] == "shells":
            trees = [self._split(tree) for tree in self._trees]
            parts = zip(self._low, self._high, trees, Y.T, strict=True)
            return sum(
                (_tree.shell_sum(a, b, t, y, self._p, self._alpha) for a, b, t, y in parts), np.zeros(len(Y))
            )
        if self._p == 1:
            if self._sums is None:
                self._sums = _core.PrivateTreeSums(self._trees, self._low, self._high)
            return self._sums.query(np.ascontiguousarray(Y), threads)
        if self._p == 2:
            return self._squares(Y)
        if self._sums is None:
            self._sums = [_tree.adjusted_edges(tree, self.levels) for tree in self._trees]
        out = np.zeros(len(Y))
        for low, high, edges, y in zip(self._low, self._high, self._sums, Y.T, strict=True):
            out += _tree.exact_sum(low, high, edges, y, self._p)
        return out

    def _squares(self, Y: np.ndarray) -> np.ndarray:
        """p = 2: gbar(I) = (centre - y)² + |I|²/12, so three moments answer every query."""
        if self._sums is None:
            moments = []
            for low, high, tree in zip(self._low, self._high, self._trees, strict=True):
                own = tree.astype(np.float64)
                own[: 2**self.levels - 1] -= tree[1:].reshape(-1, 2).sum(1)
                total = np.zeros(2)
                for level in range(self.levels + 1):
                    size = (high - low) / 2**level
                    centre = (np.arange(2**level) + 0.5) * size - (high - low) / 2
                    a = own[2**level - 1 : 2 ** (level + 1) - 1]
                    total += [a @ centre, a @ centre**2 + a.sum() * size**2 / 12]
                moments.append([float(tree[0]), *total])
            self._sums = np.array(moments)
        y = Y - (self._low + self._high) / 2
        return np.sum(self._sums[:, 0] * y**2 - 2 * y * self._sums[:, 1] + self._sums[:, 2], axis=1)

    def std_error(self, Y: Any) -> np.ndarray:
        Y = self._mapped(Y)
        out = np.zeros(len(Y))
        for low, high, y in zip(self._low, self._high, Y.T, strict=True):
            if self._parameters["estimate"] == "shells":
                levels = [np.full(2**level, v) for level, v in enumerate(self._variances)]
                out += _tree.shell_sum(low, high, levels, y, self._p, self._alpha, square=True)
            else:
                out += _tree.noise_variance(low, high, self._variances, y, self._p)
        return np.sqrt(out)

    def _split(self, tree: np.ndarray) -> list[np.ndarray]:
        return [tree[2**level - 1 : 2 ** (level + 1) - 1] for level in range(self.levels + 1)]

    def _mapped(self, Y: Any) -> np.ndarray:
        Y = self._queries(Y)
        if self._parameters["projection"]:
            Y = projected(Y, self._parameters, self.n_features)
        return Y


# l2 through l1: T(x) = (sqrt(pi/2)/k) G (x - centre), E |T x|_1 = |x|_2


def projection_ranges(options: dict[str, Any], columns: int) -> list[float]:
    """Range of each mapped coordinate, from public numbers: what the box allows, at most 5 deviations of a point at its
    corner (a point beyond, one in two million, is clipped)."""
    matrix, half = _matrix(options, columns), np.array(options["projection"]["half"])
    most = np.abs(matrix) @ half
    k = len(matrix)
    return np.minimum(most, 5 * math.sqrt(math.pi / 2) / k * float(np.linalg.norm(half))).tolist()


def projected(X: np.ndarray, options: dict[str, Any], columns: int) -> np.ndarray:
    """T(x) of each row, float64 (n, k)."""
    return np.ascontiguousarray((X - np.array(options["projection"]["centre"])) @ _matrix(options, columns).T)


def _matrix(options: dict[str, Any], columns: int) -> np.ndarray:
    k, seed = int(options["projection"]["dimensions"]), int(options["projection"]["seed"])
    if not (1 <= k <= 1 << 16 and 0 <= seed < 1 << 64):
        raise ValueError("projection out of range")
    return math.sqrt(math.pi / 2) / k * _core.public_normals(seed, k, columns)


def within(block: np.ndarray, terms: Any, first_row: int) -> np.ndarray:
    """The block with its values inside the bounds, as the terms say: refused or clipped."""
    if not np.isfinite(block).all():
        row = int(np.flatnonzero(~np.isfinite(block).all(1))[0])
        raise ValueError(f"X must be finite, row {first_row + row} contains NaN or infinity")
    if terms.low is None:
        return block
    low, high = np.array(terms.low), np.array(terms.high)
    if terms.clip:
        return np.clip(block, low, high)
    bad = (block < low) | (block > high)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"X must lie within bounds, got {block[row, column]} in row {first_row + row}, column {column}; "
            "outside='clip' moves such values to the nearest bound"
        )
    return block

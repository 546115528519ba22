"""The counts behind a ranking as a value: it adds up over batches, files, machines."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from mercer import _checks, _core
from mercer.ranking import _sources

__all__ = ["RankingCounts", "count_partitions"]

MISSING = ("", "{}")
REPETITIONS = 30_000  # distinct values a column whose repetitions are counted
EXACT, PRECISION = 2**18, 19  # of the cardinality sketch
_MAGIC = b"MRCRCNT1"
_SCORES = ("mi", "mi_corrected", "ami", "symmetric_uncertainty", "max_value_coverage", "constant")
_CORRECTIONS = ("expected", "miller_madow", "permutation")


class RankingCounts:
    """How often each value of each column meets each value of the label; mergeable.

    Memory is bounded by the dictionaries: at most `max_categories` values a column are counted apart, and
    those that come later share 65,536 buckets by their hash (`sketched` says of which columns). Cardinalities
    are a `HyperLogLog`'s, exact to 2^18 values.

    Args:
        label: Name of the label.
        max_categories: The cap; 2^20 values take about 100 MB a column with a binary label.
        missing: Values that count as missing.
        threads: None for the default.

    >>> monday, tuesday = RankingCounts("y"), RankingCounts("y")
    >>> _ = monday.update({"x": ["a", "b"] * 50, "y": [0, 1] * 50})
    >>> _ = tuesday.update({"x": ["b", "c"] * 50, "y": [1, 0] * 50})
    >>> both = RankingCounts.from_bytes(monday.merge(tuesday).to_bytes())
    >>> both.rows, round(both.score("x"), 4)
    (200, 0.6931)
    """

    def __init__(
        self,
        label: str,
        *,
        max_categories: int = 2**20,
        missing: Sequence[str] = MISSING,
        threads: int | None = None,
    ) -> None:
        self.label = label
        self.max_categories = _checks.integer("max_categories", max_categories, 0, high=2**31 - 1)
        self.missing = tuple(missing)
        self.threads = _checks.threads("threads", threads)
        words = [value.encode() for value in self.missing]
        self._tables = _core.RankTables(self.max_categories, REPETITIONS, EXACT, PRECISION, words)

    def update(self, table: Any) -> Self:
        """Count the rows of a DataFrame, an Arrow table or a mapping of columns.

        Raises:
            ValueError: without the label, or without rows.
        """
        batch, names, _ = _sources.batch_of(table)
        return self.observe(batch, names)

    def observe(self, batch: Any, names: Sequence[str], *, before: bool = False) -> Self:
        """Count the rows of an encoded batch; with `before`, the label was counted with other columns of it."""
        if self.label not in names:
            raise ValueError(
                f"label must be a column of the table, got {self.label!r}; it has {list(names)[:20]}"
            )
        self._tables.observe(batch, list(names), list(names).index(self.label), before, self.threads)
        return self

    def merge(self, other: RankingCounts) -> Self:
        """Take in what `other`, made with the same arguments, has counted."""
        if not isinstance(other, RankingCounts):
            raise TypeError(f"other must be a RankingCounts, got {type(other).__name__}")
        if other.label != self.label:
            raise ValueError(f"other must have the label {self.label!r}, got {other.label!r}")
        self._tables.merge(other._tables)
        return self

    @property
    def names(self) -> list[str]:
        """The columns, the label among them."""
        return self._tables.names

    @property
    def rows(self) -> int:
        """Rows counted."""
        summary = self._tables.summary(self.label)
        return summary[0] if summary else 0

    @property
    def label_counts(self) -> dict[str, int]:
        """How often each value of the label occurs."""
        return {value.decode("utf-8", "replace"): count for value, count in self._tables.labels()}

    def score(
        self,
        column: str,
        score: str = "mi",
        *,
        correction: str = "expected",
        permutations: int = 10,
        random_state: Any = 0,
    ) -> float:
        """The score of a column with the label over all rows counted, in nats.

        Args:
            column: Its name.
            score: "mi", "mi_corrected", "ami", "symmetric_uncertainty", "max_value_coverage" or "constant".
            correction: For "mi_corrected": "expected", "miller_madow" or "permutation" (the shift needs the order
                of the rows, which counts have lost).
            permutations, random_state: For "permutation".
        """
        _checks.choice("score", score, _SCORES)
        _checks.choice("correction", correction, _CORRECTIONS)
        if score == "constant":
            return 0.0
        core = {"mi": "information", "mi_corrected": correction, "ami": "adjusted"}
        value = self._tables.score(
            column,
            core.get(score, score.replace("max_value_coverage", "coverage")),
            rounds=_checks.integer("permutations", permutations, 1, high=1 << 20),
            seed=_checks.random_seed(random_state),
        )
        if value is None:
            raise ValueError(f"column must be among those counted, got {column!r}")
        return value

    def summary(self, column: str) -> dict[str, Any]:
        """rows, missing, bytes_per_value, cardinality, coverage (per cent), exact, sketched."""
        found = self._tables.summary(column)
        if found is None:
            raise ValueError(f"column must be among those counted, got {column!r}")
        rows, missing, size, cardinality, exact, sketched = found
        return {
            "rows": rows,
            "missing": missing,
            "bytes_per_value": size / max(rows, 1),
            "cardinality": round(cardinality),
            "coverage": 100 * (1 - missing / max(rows, 1)),
            "exact": exact,
            "sketched": sketched,
        }

    def repetitions(self, column: str) -> dict[int, int]:
        """How many values occur more than 0, 1, 10, …, 100,000 times; of the first 30,000 values of the column."""
        return {n: self._tables.more_than(column, n) or 0 for n in (0, *(10**k for k in range(6)))}

    def rare_values(self, column: str, at_most: int = 1) -> list[tuple[bytes, int]]:
        """Values that occur at most so often, and how often, in the order they appeared."""
        return self._tables.rare(column, _checks.integer("at_most", at_most, 1)) or []

    def to_bytes(self) -> bytes:
        """The counts, with a version."""
        head = json.dumps(
            {"label": self.label, "max_categories": self.max_categories, "missing": self.missing}
        )
        packed = head.encode()
        return _MAGIC + struct.pack("<Q", len(packed)) + packed + self._tables.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> RankingCounts:
        """The counts that `to_bytes` wrote; ValueError for anything else."""
        start = len(_MAGIC) + 8
        if data[: len(_MAGIC)] != _MAGIC or len(data) < start:
            raise ValueError("data must be what RankingCounts.to_bytes wrote")
        (size,) = struct.unpack("<Q", data[len(_MAGIC) : start])
        try:
            head = json.loads(data[start : start + size])
            counts = cls(head["label"], max_categories=head["max_categories"], missing=head["missing"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"data must be what RankingCounts.to_bytes wrote: {error}") from None
        counts._tables = _core.RankTables.from_bytes(data[start + size :])
        return counts

    def __reduce__(self) -> tuple[Any, tuple[bytes]]:
        return RankingCounts.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"RankingCounts(label={self.label!r}, rows={self.rows}, columns={len(self.names)})"


def count_partitions(source: Any, label: str, **options: Any) -> RankingCounts:
    """The counts of a Dask DataFrame (or bag of DataFrames): one a partition, merged in pairs.

    Args:
        source: Has `to_delayed`, whose parts are DataFrames.
        label: Name of the label.
        options: As `RankingCounts` takes them.

    Partitions are counted where Dask's scheduler puts them; only counts travel.
    """
    try:
        import dask
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "a Dask source needs dask: pip install 'mercer-kernels[dask]'", name="dask"
        ) from None
    parts = np.ravel(np.array(source.to_delayed(), dtype=object)).tolist()
    if not parts:
        raise ValueError("source must have at least one partition, got none")
    level = [dask.delayed(_count_one)(part, label, options) for part in parts]
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [dask.delayed(_merge_two)(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    merged = dask.compute(level[0])[0]
    if merged is None:
        raise ValueError("source must have at least one row, got none")
    return RankingCounts.from_bytes(merged)


def _count_one(part: Any, label: str, options: dict[str, Any]) -> bytes | None:
    return RankingCounts(label, **options).update(part).to_bytes() if len(part) else None


def _merge_two(a: bytes | None, b: bytes | None) -> bytes | None:
    if a is None or b is None:
        return a if b is None else b
    return RankingCounts.from_bytes(a).merge(RankingCounts.from_bytes(b)).to_bytes()

"""Scores of integer-coded columns, in nats: what a ranking is made of, as functions.

Codes are integers >= 0; which integer stands for which value does not matter, except to `pearson` and to
the `compat` forms, which look at the codes as the public tool does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mercer import _checks, _core

__all__ = [
    "adjusted_mutual_information",
    "corrected_mutual_information",
    "encode_columns",
    "entropy",
    "expected_mutual_information",
    "max_value_coverage",
    "mutual_information",
    "pairwise_mi",
    "pearson",
    "rank_3mr",
    "relation_mi",
    "symmetric_uncertainty",
]

CORRECTIONS = ("shift", "permutation", "expected", "miller_madow")
STRATEGIES = ("median", "mean", "sum")


def mutual_information(
    a: Any, b: Any, *, base: float = math.e, weights: Any = None, threads: int | None = None
) -> Any:
    """I(A; B) = sum p_ab log(p_ab / (p_a p_b)), exactly.

    Args:
        a: Codes (n,), or (n, f): f columns of them.
        b: Codes (n,).
        base: Of the logarithm; e gives nats.
        weights: (n,) weights >= 0 of the rows; None for all alike.
        threads: None for the default.

    Returns:
        A float, or (f,) float64.

    Raises:
        TypeError: codes that are not integers.
        ValueError: negative codes, no rows, arrays of unequal length, base <= 0 or 1.

    Cost: one pass over the rows, and one over the table of pairs where that is small; O(n) at any cardinality.

    >>> round(mutual_information([0, 0, 1, 1], [0, 0, 1, 2]), 4)
    0.6931
    """
    scale = 1 / math.log(_base(base))
    if weights is not None:
        return _scale(_pairs_with(a, b, "information", weights=weights, threads=threads), scale)
    columns, single = _columns("a", a)
    label = _codes("b", b, len(columns[0]))
    scores = _core.rank_information(columns, label, _checks.threads("threads", threads)) * scale
    return float(scores[0]) if single else scores


def entropy(a: Any, *, base: float = math.e) -> Any:
    """H(A) = -sum p log p of codes (n,) or of each column of (n, f).

    >>> entropy([0, 1, 2, 3], base=2)
    2.0
    """
    columns, single = _columns("a", a)
    batch = _core.RankBatch.from_integers(columns, len(columns[0]))
    scores = batch.score([(i, i) for i in range(len(columns))], "information") / math.log(_base(base))
    return float(scores[0]) if single else scores


def corrected_mutual_information(
    a: Any,
    b: Any,
    *,
    correction: str = "shift",
    condition_on: str = "label",
    ratio: float = 1.0,
    permutations: int = 10,
    random_state: Any = 0,
    compat: bool = False,
    weights: Any = None,
    threads: int | None = None,
) -> Any:
    """I(A; B) less what columns of these cardinalities show by chance.

    Args:
        a: Codes of a feature (n,), or of f features (n, f).
        b: Codes of the label (n,).
        correction: How chance is measured (Škrlj and Mramor 2023 subtract the information of noise of the same
            cardinality; the four are estimates of it).

            - "shift", the public tool's: H(Y' | X) - H(Y | X), where the conditioning X cuts the rows into
              groups, and Y'_i = Y_{(i + size of i's group) mod n}. Depends on the order of the rows.
            - "permutation": the mean information over `permutations` random pairings of the rows.
            - "expected": its exact expectation (Vinh, Epps and Bailey 2010, eq. 24a). No randomness.
            - "miller_madow": (Ka - 1)(Kb - 1) / 2n, the first term of that for large n.
        condition_on: For "shift", which side is X: "label" (as the public tool's command line does) or
            "feature".
        ratio: In (0, 1]. Below 1, only the first floor(floor(ratio n) / K) rows of each of the K values of X
            (of the label, for other corrections) count; all rows where that is 0.
        permutations, random_state: For "permutation".
        compat: Leave out the correction where the codes of the two columns have the same sum, which is the
            public tool's test of whether they are the same; by default, where they are equal.
        weights: (n,) weights of the rows, for "shift" and "miller_madow".
        threads: None for the default.

    Returns:
        A float, or (f,) float64. May be negative.

    Raises:
        ValueError: as `mutual_information`, and a correction, side or ratio that is not allowed.

    >>> import numpy as np
    >>> y = np.arange(1000) % 2
    >>> row_id = np.arange(1000)
    >>> round(mutual_information(row_id, y), 4), corrected_mutual_information(row_id, y)
    (0.6931, 0.0)
    """
    _checks.choice("correction", correction, CORRECTIONS)
    _checks.choice("condition_on", condition_on, ("label", "feature"))
    return _pairs_with(
        a,
        b,
        correction,
        weights=weights,
        threads=threads,
        first=condition_on == "feature",
        by_sum=_checks.flag("compat", compat),
        rounds=_checks.integer("permutations", permutations, 1, high=1 << 20),
        seed=_checks.random_seed(random_state),
        ratio=sampling_ratio("ratio", ratio),
    )


def expected_mutual_information(a: Any, b: Any) -> float:
    """E[I(A; B)] over all ways of pairing the rows of A with those of B (hypergeometric model).

    Vinh, Epps and Bailey 2010, eq. 24a; each cell's law is built from its mode, so that no factorial is formed.
    Cost: O(d_a d_b s) for d different counts and s about ten standard deviations of a cell.

    >>> round(expected_mutual_information([0, 0, 1, 1], [0, 1, 0, 1]), 12) == round(2 / 6 * 0.6931471805599453, 12)
    True
    """
    (first,), _ = _columns("a", a)
    second = _codes("b", b, len(first))
    counts = [np.unique(x, return_counts=True)[1].astype(np.uint64) for x in (first, second)]
    return float(_core.rank_expected(counts[0], counts[1], len(first)))


def adjusted_mutual_information(a: Any, b: Any, *, threads: int | None = None) -> Any:
    """(I - E[I]) / ((H(A) + H(B)) / 2 - E[I]) (Vinh, Epps and Bailey 2010), as scikit-learn defines it.

    >>> adjusted_mutual_information([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    """
    return _pairs_with(a, b, "adjusted", threads=threads)


def symmetric_uncertainty(a: Any, b: Any, *, weights: Any = None, threads: int | None = None) -> Any:
    """2 I / (H(A) + H(B)), in [0, 1]; 0 where both are constant.

    >>> symmetric_uncertainty([0, 0, 1, 1], [1, 1, 0, 0])
    1.0
    """
    return _pairs_with(a, b, "symmetric_uncertainty", weights=weights, threads=threads)


def max_value_coverage(a: Any, b: Any, *, compat: bool = False, threads: int | None = None) -> Any:
    """The largest share of the rows that one pair of values has.

    With `compat`, pairs share the public tool's million buckets, (1471343 a - b) mod 10^6.

    >>> max_value_coverage([1, 1, 1, 2], [0, 0, 1, 0])
    0.5
    """
    return _pairs_with(a, b, "coverage", by_sum=_checks.flag("compat", compat), threads=threads)


def pearson(a: Any, b: Any) -> Any:
    """Correlation of the codes as numbers (n,) or (n, f) with b (n,); 0 where a side is constant.

    >>> round(pearson([0, 1, 2], [1, 2, 3]), 12)
    1.0
    """
    columns, single = _columns("a", a)
    label = _codes("b", b, len(columns[0])).astype(np.float64)
    for column in (*columns, label):
        if column.min() < 0:
            raise ValueError(f"codes must be >= 0, got {column.min():.0f} at row {column.argmin()}")
    scores = np.array([correlation(column.astype(np.float64), label) for column in columns])
    return float(scores[0]) if single else scores


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's r of two float vectors."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else 0.0


def pairwise_mi(
    codes: Any, *, pairs: Any = None, base: float = math.e, threads: int | None = None
) -> np.ndarray:
    """Mutual information of the columns of `codes` (n, f) among each other.

    Args:
        codes: Integer codes (n, f), or a sequence of f arrays (n,).
        pairs: (m, 2) column numbers; None for all.
        base: Of the logarithm.
        threads: None for the default.

    Returns:
        (f, f) float64, symmetric, entropies on the diagonal; with `pairs`, (m,).

    Cost: O(n) a pair; the columns are counted once, not once a pair.

    >>> import numpy as np
    >>> np.round(pairwise_mi(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), base=2), 12)
    array([[1., 0.],
           [0., 1.]])
    """
    scale = 1 / math.log(_base(base))
    columns = _table(codes)
    f = len(columns)
    batch = _core.RankBatch.from_integers(columns, len(columns[0]))
    threads = _checks.threads("threads", threads)
    if pairs is not None:
        wanted = np.asarray(pairs)
        if wanted.ndim != 2 or wanted.shape[1] != 2 or wanted.dtype.kind not in "iu":
            raise ValueError(
                f"pairs must be (m, 2) column numbers, got shape {wanted.shape} of {wanted.dtype}"
            )
        if wanted.size and not (0 <= wanted.min() and wanted.max() < f):
            raise ValueError(
                f"pairs must be column numbers in [0, {f - 1}], got {wanted.min()} … {wanted.max()}"
            )
        chosen = [(i, j) for i, j in wanted.tolist()]
        return batch.score(chosen, "information", threads=threads) * scale
    rows, cols = np.triu_indices(f)
    scores = batch.score(list(zip(rows.tolist(), cols.tolist(), strict=True)), "information", threads=threads)
    matrix = np.empty((f, f))
    matrix[rows, cols] = matrix[cols, rows] = scores * scale
    return matrix


def relation_mi(codes: Any, label: Any, *, threads: int | None = None) -> np.ndarray:
    """I((A_i, A_j); Y): what each pair of columns of `codes` (n, f) tells of the label (n,) together.

    Returns (f, f) float64, symmetric; the diagonal is I(A_i; Y). Cost: O(n) a pair.

    >>> relation_mi([[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]).round(4).tolist()  # exclusive or
    [[0.0, 0.6931], [0.6931, 0.0]]
    """
    columns = _table(codes)
    y = _codes("label", label, len(columns[0]))
    batch = _core.RankBatch.from_integers([*columns, y], len(y))
    threads = _checks.threads("threads", threads)
    f = len(columns)
    matrix = np.empty((f, f))
    for i in range(f):  # Row by row: the joint columns of one row at a time are in memory.
        joint = batch.interactions([[i, j] for j in range(i, f)], False, threads)
        with_label = joint.extended([batch.select([f])])
        pairs = [(j, f - i) for j in range(f - i)]
        matrix[i, i:] = matrix[i:, i] = with_label.score(pairs, "information", threads=threads)
    return matrix


def rank_3mr(
    relevance: Any,
    redundancy: Any = None,
    relation: Any = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    strategy: str = "median",
    *,
    return_scores: bool = False,
) -> Any:
    """Order features greedily by relevance - alpha · redundancy + beta · relation (3MR).

    The first is the most relevant; each next one maximises the sum, where redundancy and relation with the
    features already chosen are joined by `strategy`. Ties go to the feature that comes first.

    Args:
        relevance: (f,) scores with the label.
        redundancy: (f, f); [g, f] is what the chosen g has with the candidate f. None for zeros.
        relation: (f, f), likewise: what the pair tells of the label. None for zeros.
        alpha, beta: Weights of the two.
        strategy: "median", "mean" or "sum".
        return_scores: Also return what each scored when it was chosen.

    Returns:
        (f,) column numbers, best first; with `return_scores` also (f,) float64.

    Cost: O(f² log f) time, O(f²) memory.

    >>> rank_3mr([0.9, 0.8, 0.5], [[0, 0.8, 0], [0.8, 0, 0], [0, 0, 0]]).tolist()
    [0, 2, 1]
    """
    _checks.choice("strategy", strategy, STRATEGIES)
    rel = np.ascontiguousarray(_checks.real_array("relevance", relevance), dtype=np.float64)
    if rel.ndim != 1 or not len(rel):
        raise ValueError(f"relevance must be (f,) with f >= 1, got shape {rel.shape}")
    f = len(rel)
    square = []
    for name, value in (("redundancy", redundancy), ("relation", relation)):
        matrix = np.zeros((f, f)) if value is None else _checks.real_array(name, value)
        if matrix.shape != (f, f):
            raise ValueError(f"{name} must be ({f}, {f}), got {matrix.shape}")
        square.append(np.ascontiguousarray(matrix, dtype=np.float64))
    for name, array in (("relevance", rel), ("redundancy", square[0]), ("relation", square[1])):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    order = _core.rank_3mr(
        rel,
        square[0],
        square[1],
        _checks.real("alpha", alpha, 0.0),
        _checks.real("beta", beta, 0.0),
        strategy,
    )
    chosen = np.array([f for f, _ in order], dtype=np.int64)
    return (chosen, np.array([score for _, score in order])) if return_scores else chosen


def encode_columns(table: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Codes of any columns: numbers of the values in sorted order of their text.

    Args:
        table: A DataFrame, an Arrow table, a mapping of names to columns, or an array (n, f).

    Returns:
        (n, f) uint32, and for each column its values as text, in the order of the codes. A missing value is
        the empty text.

    >>> codes, values = encode_columns({"x": ["b", "a", "b"], "n": [10, 9, 10]})
    >>> codes.tolist(), [v.tolist() for v in values]
    ([[1, 0], [0, 1], [1, 0]], [['a', 'b'], ['10', '9']])
    """
    from mercer.ranking._sources import batch_of

    batch, _, _ = batch_of(table)
    codes, values = [], []
    for i in range(len(batch)):
        ranks = batch.ranks(i)
        codes.append(ranks[batch.codes(i)])
        text = np.array([value.decode("utf-8", "surrogateescape") for value in batch.values(i)], dtype=object)
        values.append(text[np.argsort(ranks)])
    return np.column_stack(codes), values


def sampling_ratio(name: str, value: Any) -> float:
    """`value` in (0, 1]."""
    ratio = _checks.real(name, value, 0.0, strict=True)
    if ratio > 1:
        raise ValueError(f"{name} must be in (0, 1], got {ratio}")
    return ratio


def _pairs_with(
    a: Any, b: Any, score: str, *, weights: Any = None, threads: Any = None, **options: Any
) -> Any:
    columns, single = _columns("a", a)
    label = _codes("b", b, len(columns[0]))
    n = len(label)
    if weights is not None:
        if score not in ("information", "shift", "miller_madow", "symmetric_uncertainty"):
            raise ValueError(
                f"weights must be None with {score!r}, whose chance model counts rows; "
                "'shift' and 'miller_madow' take weights"
            )
        weights = _checks.weights("weights", weights, n)
    batch = _core.RankBatch.from_integers([*columns, label], n)
    pairs = [(i, len(columns)) for i in range(len(columns))]
    threads = _checks.threads("threads", threads)
    scores = batch.score(pairs, score, weights=weights, threads=threads, **options)
    return float(scores[0]) if single else scores


def _scale(scores: Any, scale: float) -> Any:
    return scores * scale


def _base(base: Any) -> float:
    base = _checks.real("base", base, 0.0, strict=True)
    if base == 1:
        raise ValueError("base must be > 0 and not 1, got 1.0")
    return base


def _columns(name: str, value: Any) -> tuple[list[np.ndarray], bool]:
    """The columns of (n,) or (n, f) codes, and whether it is one."""
    array = np.asarray(value)
    if array.ndim == 1:
        return [_codes(name, array)], True
    return _table(array, name), False


def _table(codes: Any, name: str = "codes") -> list[np.ndarray]:
    if isinstance(codes, Sequence) and codes and all(np.ndim(c) == 1 and hasattr(c, "dtype") for c in codes):
        columns = [_codes(name, column) for column in codes]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f"{name} must have columns of one length, got {[len(c) for c in columns]}")
        return columns
    array = np.asarray(codes)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be (n, f) with f >= 1, got shape {array.shape}")
    return [_codes(name, array[:, j]) for j in range(array.shape[1])]


def _codes(name: str, value: Any, n: int | None = None) -> np.ndarray:
    """`value` as contiguous codes of a dtype that the core reads in place."""
    array = np.asarray(value)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{name} must hold integer codes, got dtype {array.dtype}; see encode_columns")
    if array.ndim != 1:
        raise ValueError(f"{name} must be 1-D, got shape {array.shape}")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} must have as many rows as the other columns, {n}, got {len(array)}")
    if not len(array):
        raise ValueError(f"{name} must have at least one row, got none")
    if array.dtype not in (np.int64, np.int32, np.uint32) or not array.dtype.isnative:
        if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must be below 2**63, got {array.max()}")
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)

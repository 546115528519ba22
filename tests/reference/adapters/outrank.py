"""OutRank: the table of scores, and the files that the public tool's command line wrote."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adapters import Arrays, Case, Check, table, worst
from mercer import ranking

EXACT, FLOAT32 = 1e-12, 2e-6
# scikit-learn's logarithms of factorials lose 2.1e-12 on the column of identifiers, where 40 digits give 0.
IDENTIFIERS = 8


@table("68-outrank", "scores")
def scores(case: Case, arrays: Arrays) -> Iterator[Check]:
    X, y = np.ascontiguousarray(arrays["X"].T), arrays["y"]
    matrix, relation = ranking.pairwise_mi(X), ranking.relation_mi(X, y)
    known = {
        "mi_exact": (lambda: ranking.mutual_information(X, y), EXACT),
        "mi_numba": (lambda: ranking.mutual_information(X, y), FLOAT32),
        "mi_cc_feature_first": (lambda: corrected(X, y, "label"), FLOAT32),
        "mi_cc_feature_first_exact": (lambda: corrected(X, y, "label"), EXACT),
        "mi_cc_label_first": (lambda: corrected(X, y, "feature"), FLOAT32),
        "mi_cc_label_first_exact": (lambda: corrected(X, y, "feature"), EXACT),
        "ami": (lambda: ranking.adjusted_mutual_information(X, y), EXACT),
        "coverage": (lambda: ranking.max_value_coverage(X, y, compat=True), EXACT),
        "pairwise_mi": (lambda: matrix, EXACT),
        "relation_mi": (lambda: relation, EXACT),
    }
    for name, true in arrays.items():
        if name in ("X", "y") or name.startswith("mi_cc_sub"):
            continue  # The latter hold what lay in uninitialised memory.
        if name == "ami" and abs(true[IDENTIFIERS]) < 3e-12:
            true = true.copy()
            true[IDENTIFIERS] = 0.0
        if name in known:
            got, bar = known[name]
            found, asked = got(), ~np.isnan(true)  # The relation of a column with itself is left open.
            yield worst(name, found[asked], true[asked].astype(np.float64), bar, f"{bar:g}")
        else:
            yield Check(name, np.nan, 0.0, "this array is not known here")
    # From plain information, not scaled; the relevance is that with the label.
    relevance = ranking.mutual_information(X, y)
    for strategy, order in case["order_3mr"].items():
        got = ranking.rank_3mr(relevance, matrix, relation, strategy=strategy)
        wrong = sum(f"f{i}" != name for i, name in zip(got, order, strict=True))
        yield Check(f"3MR {strategy}", wrong, 0, "places")


def corrected(X, y, condition_on):
    return ranking.corrected_mutual_information(X, y, condition_on=condition_on, compat=True)


@table("68-outrank", "cli")
def cli(case: Case, arrays: Arrays) -> Iterator[Check]:
    given = dict(zip(case["arguments"][::2], case["arguments"][1::2], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.csv"
        lines = [",".join(case["header"]), *(",".join(map(str, row)) for row in table_of(arrays).tolist())]
        data.write_text("\n".join(lines) + "\n")
        ranker = ranking.FeatureRanker(
            given["--heuristic"],
            batch_size=int(given["--minibatch_size"]),
            subsampling=int(given["--subsampling"]),
            pairwise=given["--target_ranking_only"] == "False",
            compat=True,
        ).fit(folder, label=given.get("--label_column", "label"), format=given["--data_source"])
        ranker.to_tsv(Path(folder) / "out")
        for name, text in case["files"].items():
            yield compare(name, (Path(folder) / "out" / name).read_text(), text)


def table_of(arrays: Arrays) -> np.ndarray:
    """The only matrix of the case: rows by columns, in the order of the header."""
    (matrix,) = (array for array in arrays.values() if array.ndim == 2)
    return matrix


def compare(name: str, got: str, true: str) -> Check:
    """The largest difference of numbers between two files whose text agrees; rows of a tsv in any order."""
    (head, rows), (true_head, true_rows) = map(read, (got, true))
    if head != true_head or rows.keys() != true_rows.keys():
        return Check(name, np.nan, FLOAT32, f"rows differ: {sorted(rows.keys() ^ true_rows.keys())[:4]}")
    error = max((abs(rows[key] - true_rows[key]) for key in rows), default=0.0)
    return Check(name, error, FLOAT32)


def read(text: str) -> tuple[str, dict[tuple[str, ...], float]]:
    lines = io.StringIO(text)
    head = lines.readline().rstrip("\n")
    cells = [line.rstrip("\n").split("\t") for line in lines]
    return head, {tuple(row[:-1]): float(row[-1]) for row in cells}

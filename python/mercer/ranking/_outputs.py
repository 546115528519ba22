"""A fitted ranking as files: the public tool's, under its names, and JSON."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mercer._atomic import replacing
from mercer.ranking._features import text

if TYPE_CHECKING:
    from mercer.ranking._ranker import FeatureRanker

__all__ = ["as_json", "heuristic", "write_official"]

_NAMES = {
    "ami": "AMI",
    "pearson": "correlation-Pearson",
    "max_value_coverage": "max-value-coverage",
    "constant": "Constant",
}


def heuristic(ranker: FeatureRanker) -> str:
    """The public tool's name of the score, or one like it."""
    if ranker.score in ("mi_corrected", "mi"):
        correction = ranker.correction if ranker.score == "mi_corrected" else None
        return {"shift": "MI-numba-randomized", None: "MI"}.get(correction, f"MI-{correction}")
    return _NAMES.get(ranker.score, ranker.score)


def write_official(ranker: FeatureRanker, folder: Any, decorate: bool = True) -> list[Path]:
    """See `FeatureRanker.to_tsv`."""
    out = Path(folder)
    name = heuristic(ranker)
    named = {n: _decorated(ranker, n) if decorate else n for n in ranker.coverage_ or ranker.counts_.names}
    pairs = _pairs(ranker, named)
    singles = _singles(named[ranker.label_], pairs, name)
    files: dict[str, str] = {
        "pairwise_ranks.tsv": _tsv(("FeatureA", "FeatureB", "Score"), pairs),
        "feature_singles.tsv": _tsv(("Feature", f"Score {name}"), singles),
        "feature_singles_transformers_only_imp.tsv": _tsv(
            ("Feature", f"Score {name}"), (row for row in singles if "_tr_" in row[0])
        ),
        "memory.tsv": _tsv(("", "0"), ranker.bytes_per_value_.items()),
        "value_repetitions.json": json.dumps(
            {
                column: ranker.counts_.repetitions(column)
                for column in ranker.bytes_per_value_ or ranker.coverage_
            }
        ),
        "combination_estimation_counts.json": json.dumps(ranker.combination_counts_),
        "timings.json": json.dumps(
            {
                key: {str(i): step[key] for i, step in enumerate(ranker.steps_)}
                for key in (ranker.steps_ or [{}])[0]
            }
        ),
        "arguments.json": json.dumps(_arguments(ranker, name)),
    }
    if ranker.interaction_order > 1:
        title = f"Combined score (order: {ranker.interaction_order}, {name})"
        files["feature_singles_aggregated.tsv"] = _tsv(("Feature", title), _aggregated(singles, decorate))
    if ranker.ranks_3mr_ is not None:
        ranks = ((f, i, s) for i, (f, s) in enumerate(ranker.ranks_3mr_.tolist(), 1))
        files["3mr_ranks.tsv"] = _tsv(("Feature", "Rank", "Score"), ranks)
    if ranker.numeric_:
        head = ("Feature", "Minimum", "Maximum", "Median", "Num avg. unique (batch)")
        rows = (
            (
                name,
                round(n["minimum"], 2),
                round(n["maximum"], 2),
                round(n["median_of_means"], 2),
                n["values"],
            )
            for name, n in ranker.numeric_.items()
        )
        files["numeric_feature_statistics.tsv"] = _tsv(head, rows)
    if ranker.rare_values:
        files.update(_rare(ranker))
    for name, content in files.items():
        with replacing(out / name) as beside:
            beside.write_text(content, encoding="utf-8")
    return [out / name for name in files]


def _decorated(ranker: FeatureRanker, name: str) -> str:
    """The name with the cardinality and the coverage in it."""
    cardinality = ranker.counts_.summary(name)["cardinality"]
    coverage = int(round(ranker.coverage_.get(name, ranker.counts_.summary(name)["coverage"]), 1))
    return f"{name}-({cardinality}; {coverage})"


def _pairs(ranker: FeatureRanker, shown: dict[str, str]) -> list[tuple[str, str, float]]:
    """Every pair both ways, by score; of the counts' scores where those are the ranking."""
    rows = [(a, b, score) for a, b, score, _, _ in ranker.pairwise_.tolist()]
    if ranker.aggregate == "global":
        rows = [(row["feature"], ranker.label_, float(row["score"])) for row in ranker.scores_]
    both = [(shown[a], shown[b], score) for a, b, score in rows]
    both += [(b, a, score) for a, b, score in both if a != b]
    return sorted(both, key=lambda row: row[2])


def _singles(label: str, pairs: list[tuple[str, str, float]], name: str) -> list[tuple[str, float]]:
    scores = {a: score for a, b, score in pairs if b == label}
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if "MI" in name and high > low:
        scores = {feature: (score - low) / (high - low) for feature, score in scores.items()}
    return sorted(scores.items(), key=lambda item: -item[1])


def _aggregated(singles: list[tuple[str, float]], decorated: bool) -> list[tuple[str, float]]:
    parts: dict[str, list[float]] = defaultdict(list)
    for feature, score in singles:
        name = feature.rpartition("-(")[0] if decorated else feature
        if " AND " in name:
            for part in name.split(" AND "):
                parts[part].append(score)
    return [(part, statistics.median(scores)) for part, scores in parts.items()]


def _rare(ranker: FeatureRanker) -> dict[str, str]:
    rare = {
        column: ranker.counts_.rare_values(column, ranker.rare_values)
        for column in ranker.counts_.names
        if column in ranker.coverage_
    }
    rows = [(column, text(value), count) for column, found in rare.items() for value, count in found]
    summary = []
    for column, found in rare.items():
        if found:
            cardinality = ranker.counts_.summary(column)["cardinality"]
            kind = "numeric" if column in ranker.numeric_ else "nominal"
            summary.append((round(100 * len(found) / max(cardinality, 1), 2), kind, column))
    summary.sort(key=lambda row: row[0])
    return {
        "rare_values.tsv": _tsv(("Namespace", "value", "Count"), rows),
        "feature_sparsity_summary.tsv": _tsv(("rare_proportion", "feature_type", "feature_name"), summary),
    }


def _arguments(ranker: FeatureRanker, name: str) -> dict[str, Any]:
    """The arguments under the public tool's names."""
    return {
        "heuristic": name,
        "label_column": ranker.label_,
        "minibatch_size": ranker.batch_size,
        "subsampling": ranker.subsampling,
        "combination_number_upper_bound": ranker.max_pairs,
        "missing_value_symbols": ",".join(ranker.missing),
        "include_noise_baseline_features": str(ranker.noise_controls),
        "interaction_order": ranker.interaction_order,
        "target_ranking_only": str(not ranker.pairwise),
        "transformers": ranker.transformers if isinstance(ranker.transformers, str) else "none",
        "explode_multivalue_features": ";".join(ranker.multivalue) or "False",
        "subfeature_mapping": ";".join(ranker.subfeatures) or "False",
        "mi_stratified_sampling_ratio": ranker.sampling_ratio,
        "rare_value_count_upper_bound": ranker.rare_values,
        "num_threads": ranker.n_jobs,
    }


def _tsv(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    return "".join("\t".join(map(_cell, row)) + "\n" for row in (head, *rows))


def _cell(value: Any) -> str:
    """As the csv module writes it: quoted where it holds the delimiter, a quote or a line end."""
    cell = str(value)
    return '"' + cell.replace('"', '""') + '"' if any(c in cell for c in '\t"\n\r') else cell


def as_json(ranker: FeatureRanker) -> str:
    """See `FeatureRanker.to_json`."""
    names = ranker.scores_.dtype.names or ()
    content: dict[str, Any] = {
        "label": ranker.label_,
        "score": ranker.score,
        "correction": ranker.correction,
        "aggregate": ranker.aggregate,
        "rows": ranker.n_rows_,
        "batches": ranker.n_batches_,
        "skipped": ranker.skipped_,
        "seconds": ranker.timings_["total"],
        "scores": [dict(zip(names, row, strict=True)) for row in ranker.scores_.tolist()],
        "bytes_per_value": ranker.bytes_per_value_,
        "numeric": ranker.numeric_,
    }
    if ranker.pairwise:
        content["pairwise"] = [list(row) for row in ranker.pairwise_.tolist()]
    if ranker.ranks_3mr_ is not None:
        content["ranks_3mr"] = ranker.ranks_3mr_["feature"].tolist()
    return json.dumps(content, indent=1, allow_nan=False) + "\n"

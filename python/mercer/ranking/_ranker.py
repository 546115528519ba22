"""FeatureRanker: rank the columns of a table that does not fit in memory."""

from __future__ import annotations

import difflib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from mercer import _checks
from mercer._estimator import Estimator, raise_not_fitted
from mercer.ranking import _features, _scores, _sources, _surrogates
from mercer.ranking._counts import MISSING, RankingCounts, count_partitions
from mercer.ranking._run import Plan, Run

__all__ = ["SCORES", "FeatureRanker"]

SCORES = (
    "mi_corrected", "mi", "ami", "symmetric_uncertainty", "pearson", "max_value_coverage", "constant",
    *_surrogates.SURROGATES,
)  # fmt: skip
# The public tool's names. Two that its documentation has and its code does not know score 0 there.
OFFICIAL = {
    "MI-numba-randomized": ("mi_corrected", "shift"),
    "MI-numba": ("mi", None),
    "MI": ("mi", None),
    "AMI": ("ami", None),
    "correlation-Pearson": ("pearson", None),
    "max-value-coverage": ("max_value_coverage", None),
    "Constant": ("constant", None),
}

Progress = Callable[..., Any]


class FeatureRanker(Estimator):
    """Rank columns by what they tell of a label, in one pass over a stream of batches.

    Each batch is scored on its own and the final score of a column is the median over the batches (Škrlj and
    Mramor 2023, "OutRank"); `aggregate="global"` scores the counts of the whole stream instead. The default
    score is mutual information less what noise of the same cardinality shows, so that identifiers do not win.

    Args:
        score: "mi_corrected", "mi", "ami", "symmetric_uncertainty", "pearson" (of the numbers of float columns, of
            the order of the values of others), "max_value_coverage", "constant", or a surrogate model:
            "surrogate-LR", "-SGD", "-SVM", "-SGD-RP", "-SGD-SVD". The public tool's names are understood.
        correction: Of "mi_corrected": "shift" (the public tool's), "permutation", "expected", "miller_madow" or None
            (plain mutual information). See `corrected_mutual_information`.
        condition_on: Which side the shift conditions on, "label" or "feature". Of a pair without the label, the
            later column conditions ("label") or the earlier.
        batch_size: Rows a batch. A last batch of at most 1024 rows is not scored, unless it is the only one.
        aggregate: "median" over the batches, or "global". The shift needs the order of rows and so "median".
        subsampling: Keep every so many-th row.
        sampling_ratio: In (0, 1]: see `corrected_mutual_information`.
        interaction_order: 2 or more adds the joint columns of so many columns.
        transformers: "minimal", "default", "fw-transformers", or a mapping of names to functions of a float array;
            applied to `numeric_columns`.
        numeric_columns: None for the float columns that the source declares (dtype, description, map).
        multivalue: Columns whose values are parts with "-" or "," between them: one 0/1 column a part.
        subfeatures: "a->b" or "a<->b".
        noise_controls: Add the public tool's controls: noise of several cardinalities, and the label itself.
        pairwise: Score all pairs of columns, not only those with the label.
        order_3mr: Also order the columns by 3MR (relevance - redundancy + relation): O(f²) pairs a batch.
        max_pairs: Pairs of columns, and interactions, scored a batch at most; the least visited come first. With
            `compat` also columns against the label, which else are all scored.
        columns: Only these (and the label).
        reference_features: Columns that a surrogate model gets beside each candidate.
        label_bins: Number of equally filled bins for a numeric label (edges from the first batch), or the edges.
        weight: Column with the weight of each row; for "mi", "symmetric_uncertainty" and "mi_corrected" by shift or
            Miller-Madow, by median.
        missing: Values that count as missing in the coverage.
        permutations: For correction="permutation".
        max_categories: Values a column counted apart for aggregate="global" and for rare values; later ones share
            buckets (see `RankingCounts`).
        rare_values: Keep the values (up to `max_categories` a column) that occur at most so often; 0 keeps none.
        max_bad_share: Share of lines that may be no rows (ragged, badly encoded, with NUL bytes) before `fit` refuses
            the file; they are left out and counted in `skipped_`.
        encoding: "utf-8" or "latin-1".
        compat: Do as outrank 0.97.5 does: lines end at line ends even between quotes, interactions collide where
            their values written together do, the correction is off where codes have equal sums, a last batch of at
            most 1024 rows is never used.
        random_state: Of permutations, controls and surrogates.
        n_jobs: Threads; None or -1 for the default. The result does not depend on it.

    Attributes:
        scores_: Structured array, best first: feature, score (nats for informations), spread (interquartile range
            over the batches), batches, cardinality, coverage (per cent of the rows not missing), kind, sketched.
        pairwise_: Structured array of all pairs scored: feature_a, feature_b, score, spread, batches.
        ranks_3mr_: With order_3mr: structured array in 3MR order, feature and the score it was chosen with.
        redundancy_: (names, matrix): symmetric uncertainty of the best columns among each other in the last batch.
        counts_: `RankingCounts`: cardinality, coverage, repetitions, rare values, bytes per value of each column.
        numeric_: For each numeric column, its least and largest number, median of the batches' means, and values.
        skipped_, n_rows_, n_lines_, n_batches_, timings_: Of the reading.

    Cost: a pass over the text at a rate of about 0.4 GB/s on two cores, and O(batch) a pair. Memory: a batch, and
    the sketches; it does not grow with the rows but for 12 bytes a pair and batch.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 4000)
    >>> signal = y ^ (rng.random(4000) < 0.2)
    >>> table = {"id": np.arange(4000), "noise": rng.integers(0, 50, 4000), "signal": signal, "y": y}
    >>> ranker = FeatureRanker().fit(table, label="y")
    >>> ranker.scores_["feature"][0]
    'signal'
    """

    scores_: np.ndarray
    pairwise_: np.ndarray
    ranks_3mr_: np.ndarray | None
    redundancy_: tuple[list[str], np.ndarray] | None
    counts_: RankingCounts
    coverage_: dict[str, float]
    bytes_per_value_: dict[str, float]
    combination_counts_: dict[str, int]
    numeric_: dict[str, dict[str, Any]]
    skipped_: dict[str, int]
    n_rows_: int
    n_lines_: int
    n_batches_: int
    timings_: dict[str, float]
    steps_: list[dict[str, float]]
    label_: str

    def __init__(
        self,
        score: str = "mi_corrected",
        correction: str | None = "shift",
        condition_on: str = "label",
        *,
        batch_size: int = 16384,
        aggregate: str = "median",
        subsampling: int = 1,
        sampling_ratio: float = 1.0,
        interaction_order: int = 1,
        transformers: Any = None,
        numeric_columns: Sequence[str] | None = None,
        multivalue: Sequence[str] = (),
        subfeatures: Sequence[str] = (),
        noise_controls: bool = False,
        pairwise: bool = False,
        order_3mr: bool = False,
        max_pairs: int = 32768,
        columns: Sequence[str] | None = None,
        reference_features: Sequence[str] = (),
        label_bins: Any = None,
        weight: str | None = None,
        missing: Sequence[str] = MISSING,
        permutations: int = 10,
        max_categories: int = 2**20,
        rare_values: int = 0,
        max_bad_share: float = 0.01,
        encoding: str = "utf-8",
        compat: bool = False,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.score = score
        self.correction = correction
        self.condition_on = condition_on
        self.batch_size = batch_size
        self.aggregate = aggregate
        self.subsampling = subsampling
        self.sampling_ratio = sampling_ratio
        self.interaction_order = interaction_order
        self.transformers = transformers
        self.numeric_columns = numeric_columns
        self.multivalue = multivalue
        self.subfeatures = subfeatures
        self.noise_controls = noise_controls
        self.pairwise = pairwise
        self.order_3mr = order_3mr
        self.max_pairs = max_pairs
        self.columns = columns
        self.reference_features = reference_features
        self.label_bins = label_bins
        self.weight = weight
        self.missing = missing
        self.permutations = permutations
        self.max_categories = max_categories
        self.rare_values = rare_values
        self.max_bad_share = max_bad_share
        self.encoding = encoding
        self.compat = compat
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(
        self,
        source: Any,
        label: str = "y",
        *,
        format: str | None = None,
        delimiter: str | None = None,
        header: bool = True,
        names: Sequence[str] | None = None,
        max_line_bytes: int = 1 << 26,
        progress: Progress | None = None,
    ) -> Self:
        """Read `source` once and rank its columns.

        Args:
            source: A path: .csv, .tsv, .vw, .parquet (the first three also .gz), or a folder as the public tool's
                (csv-raw, ob-csv, ob-vw, ob-raw-dump). A pandas, polars or Dask DataFrame, an Arrow table or
                reader, a mapping of columns, an array (n, f). An iterator of tables, each of them a batch.
            label: Name of the label.
            format: Of a path; None guesses from its name.
            delimiter: Of a delimited file; None for a comma, or a tab in .tsv.
            header: Whether the first line names the columns; else give `names`.
            names: Names of the columns, in place of the header's.
            max_line_bytes: Longer records are refused.
            progress: Called as progress(message, fraction or None).

        Raises:
            ValueError: arguments that are not allowed; a label that is not a column or has one value; no rows; too
                many bad lines; a gzip stream that ends in the middle.
            OSError: a file that cannot be read.
        """
        plan = self._plan(label)
        if hasattr(source, "to_delayed"):
            return self._fit_counts(source, plan)
        if format is not None:
            _checks.choice("format", format, _sources.FORMATS)
        wanted = None
        if self.columns is not None:
            wanted = [*dict.fromkeys([*self.columns, label, *([self.weight] if self.weight else [])])]
        reading = _sources.Reading(
            format, delimiter, plan.encoding, _checks.flag("header", header), names, wanted, plan.subsampling,
            plan.compat, _checks.integer("max_line_bytes", max_line_bytes, 1, high=1 << 30), plan.threads,
        )  # fmt: skip
        start = time.perf_counter()
        opened = _sources.open_source(source, plan.batch_size, reading)
        if opened.names:
            _require_label(label, opened.names)
        run = Run(plan, opened, progress or (lambda message, fraction=None: None))
        for batch, columns in opened.batches(plan.batch_size):
            if not run.started:
                _require_label(label, columns)
            run.take(batch, columns)
            share = None
            if opened.size and opened.reader is not None:
                share = min(opened.reader.progress[1] / opened.size, 1.0)
            run.progress(f"{run.rows:,} rows", share)
        self._check_lines(opened)
        run.finish()
        for name, value in run.results().items():
            setattr(self, name, value)
        self.skipped_ = opened.skipped
        self.n_lines_ = opened.reader.progress[0] if opened.reader is not None else run.rows
        self.timings_["total"] = time.perf_counter() - start
        self.n_features_in_ = len(run.source_names) - 1
        self.feature_names_in_ = np.array([n for n in run.source_names if n != label], dtype=object)
        self.label_ = label
        if run.one_label and not plan.compat:
            warnings.warn(
                f"{run.one_label} of {run.batches} batches have a single label value and score 0: "
                "shuffle the rows, or use aggregate='global'",
                stacklevel=2,
            )
        return self

    def _fit_counts(self, source: Any, plan: Plan) -> Self:
        """Dask: partitions are counted where they are, and the counts ranked."""
        if plan.aggregate != "global":
            raise ValueError("aggregate must be 'global' for a Dask source, got 'median'")
        start = time.perf_counter()
        counts = count_partitions(
            source, plan.label, max_categories=plan.max_categories, missing=plan.missing, threads=plan.threads
        )
        run = Run(plan, _sources.Source(counts.names), lambda message, fraction=None: None)
        run.adopt(counts)
        for name, value in run.results().items():
            setattr(self, name, value)
        self.skipped_, self.n_lines_, self.label_ = {}, run.rows, plan.label
        self.timings_["total"] = time.perf_counter() - start
        self.n_features_in_ = len(counts.names) - 1
        self.feature_names_in_ = np.array([n for n in counts.names if n != plan.label], dtype=object)
        return self

    def to_tsv(self, folder: Any, *, decorate: bool = True) -> list[Any]:
        """Write the public tool's files into `folder` under its names; returns their paths.

        With `decorate`, names of columns carry cardinality and coverage: "campaign-(312; 99)".

        feature_singles.tsv, pairwise_ranks.tsv, memory.tsv, value_repetitions.json,
        combination_estimation_counts.json, timings.json, arguments.json,
        feature_singles_transformers_only_imp.tsv, and where they apply feature_singles_aggregated.tsv, 3mr_ranks.tsv,
        numeric_feature_statistics.tsv, rare_values.tsv and feature_sparsity_summary.tsv.
        """
        from mercer.ranking._outputs import write_official

        return write_official(self._fitted(), folder, _checks.flag("decorate", decorate))

    def to_json(self) -> str:
        """The ranking, the quality of each column and how it was made, as JSON."""
        from mercer.ranking._outputs import as_json

        return as_json(self._fitted())

    def to_html(self, path: Any) -> None:
        """Write a report: one page that needs nothing beside it."""
        from mercer.ranking._report import write_report

        write_report(self._fitted(), path)

    def _fitted(self) -> Self:
        if not hasattr(self, "scores_"):
            raise_not_fitted(self, "call fit first")
        return self

    def _check_lines(self, opened: _sources.Source) -> None:
        if opened.reader is None or self.compat:
            return
        skipped = opened.skipped
        bad = skipped["ragged"] + skipped["encoding"] + skipped["nul"]
        lines = max(opened.reader.progress[0] // self.subsampling, 1)
        if bad > self.max_bad_share * lines:
            line, reason = opened.reader.first_bad
            raise ValueError(
                f"{bad} of {lines} lines are no rows ({skipped['ragged']} with another number of fields, "
                f"{skipped['encoding']} not UTF-8, {skipped['nul']} with NUL bytes), more than max_bad_share = "
                f"{self.max_bad_share}; the first, after the header, is line {line}: {reason}"
            )

    def _plan(self, label: Any) -> Plan:
        """The arguments, checked."""
        if not isinstance(label, str):
            raise TypeError(f"label must be the name of a column, got {label!r}")
        score, correction = self.score, self.correction
        if score in OFFICIAL:
            score, fixed = OFFICIAL[score]
            correction = fixed or correction
        _checks.choice("score", score, SCORES)
        if correction is not None:
            _checks.choice("correction", correction, _scores.CORRECTIONS)
        aggregate = _checks.choice("aggregate", self.aggregate, ("median", "global"))
        if score == "mi_corrected" and correction is None:
            score = "mi"
        pairwise, three = _checks.flag("pairwise", self.pairwise), _checks.flag("order_3mr", self.order_3mr)
        if aggregate == "global":
            if score == "mi_corrected" and correction == "shift":
                raise ValueError(
                    "correction must be 'permutation', 'expected', 'miller_madow' or None with aggregate='global', "
                    "which has no order of rows, got 'shift'"
                )
            if pairwise or three:
                raise ValueError("aggregate must be 'median' with pairwise or order_3mr, got 'global'")
            if score.startswith("surrogate") or score == "pearson":
                raise ValueError(f"aggregate must be 'median' with score={score!r}, got 'global'")
        if self.weight is not None:
            takes = score in ("mi", "symmetric_uncertainty") or (
                score == "mi_corrected" and correction in ("shift", "miller_madow")
            )
            if not takes or aggregate == "global":
                raise ValueError(
                    f"weight must be None with score={score!r}, correction={correction!r}, aggregate={aggregate!r}: "
                    "their chance model counts rows"
                )
        for name in ("multivalue", "subfeatures", "missing", "reference_features"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a sequence of str, got {getattr(self, name)!r}")
        share = _checks.real("max_bad_share", self.max_bad_share, 0.0)
        if share > 1:
            raise ValueError(f"max_bad_share must be in [0, 1], got {share}")
        if self.reference_features and not score.startswith("surrogate"):
            raise ValueError(f"reference_features must be empty with score={score!r}; surrogates take them")
        return Plan(
            label=label,
            score=score,
            correction=correction,
            first=_checks.choice("condition_on", self.condition_on, ("label", "feature")) == "feature",
            batch_size=_checks.integer("batch_size", self.batch_size, 2, high=2**30),
            aggregate=aggregate,
            subsampling=_checks.integer("subsampling", self.subsampling, 1),
            ratio=_scores.sampling_ratio("sampling_ratio", self.sampling_ratio),
            order=_checks.integer("interaction_order", self.interaction_order, 1, high=16),
            transformers=_features.transformers(self.transformers),
            numeric_columns=self.numeric_columns,
            multivalue=tuple(self.multivalue),
            subfeatures=tuple(self.subfeatures),
            controls=_checks.flag("noise_controls", self.noise_controls),
            pairwise=pairwise,
            order_3mr=three,
            max_pairs=_checks.integer("max_pairs", self.max_pairs, 1),
            reference=tuple(self.reference_features),
            label_bins=_label_bins(self.label_bins),
            weight=self.weight,
            missing=tuple(self.missing),
            permutations=_checks.integer("permutations", self.permutations, 1, high=1 << 20),
            max_categories=_checks.integer("max_categories", self.max_categories, 1, high=2**31 - 1),
            rare=_checks.integer("rare_values", self.rare_values, 0),
            encoding=_checks.choice("encoding", self.encoding, ("utf-8", "latin-1")),
            compat=_checks.flag("compat", self.compat),
            seed=_checks.random_seed(self.random_state),
            threads=_checks.threads("n_jobs", self.n_jobs),
        )


def _label_bins(bins: Any) -> int | tuple[float, ...] | None:
    if bins is None:
        return None
    if np.ndim(bins) == 0:
        return _checks.integer("label_bins", bins, 2)
    edges = _checks.real_array("label_bins", bins)
    if edges.ndim != 1 or not len(edges) or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise ValueError(f"label_bins must be a number of bins or increasing finite edges, got {bins!r}")
    return tuple(edges.tolist())


def _require_label(label: str, names: Sequence[str]) -> None:
    if label not in names:
        near = difflib.get_close_matches(label, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {list(names)[:10]}"
        raise ValueError(f"label must be a column of the source, got {label!r}{hint}")

"""One pass of a ranking: what happens to each batch, and what is made of all of them at the end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mercer.ranking import _features, _scores, _sources, _surrogates
from mercer.ranking._counts import RankingCounts
from mercer.ranking._features import Frame
from mercer.ranking._pairs import PairScores, Turns

__all__ = ["Plan", "Run"]

LAST = 1024  # a last batch of at most so many rows is not scored
CHUNK = 1 << 25  # codes of interactions in memory at a time
SHOWN = 24  # columns of the redundancy matrix
AND, AND_REL = " AND ", " AND_REL "

SCORE = np.dtype([
    ("feature", object), ("score", np.float64), ("spread", np.float64), ("batches", np.int64),
    ("cardinality", np.int64), ("coverage", np.float64), ("kind", object), ("sketched", np.bool_),
])  # fmt: skip
PAIR = np.dtype([
    ("feature_a", object), ("feature_b", object), ("score", np.float64), ("spread", np.float64),
    ("batches", np.int64),
])  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The arguments of a ranking, checked."""

    label: str
    score: str
    correction: str | None
    first: bool
    batch_size: int
    aggregate: str
    subsampling: int
    ratio: float
    order: int
    transformers: Mapping[str, Any]
    numeric_columns: Sequence[str] | None
    multivalue: Sequence[str]
    subfeatures: Sequence[str]
    controls: bool
    pairwise: bool
    order_3mr: bool
    max_pairs: int
    reference: Sequence[str]
    label_bins: int | tuple[float, ...] | None
    weight: str | None
    missing: Sequence[str]
    permutations: int
    max_categories: int
    rare: int
    encoding: str
    compat: bool
    seed: int
    threads: int | None

    @property
    def core_score(self) -> str:
        """What the core calls it."""
        names = {"mi": "information", "ami": "adjusted", "max_value_coverage": "coverage"}
        return self.correction or "" if self.score == "mi_corrected" else names.get(self.score, self.score)


class Run:
    """The state of a pass."""

    def __init__(self, plan: Plan, opened: _sources.Source, progress: Callable[..., Any]) -> None:
        self.plan, self.opened, self.progress = plan, opened, progress
        self.started = False
        self.rows = self.batches = self.one_label = self.most_rows = 0
        self.source_names: list[str] = []
        kept = plan.max_categories if plan.aggregate == "global" or plan.rare else 0
        self.counts = RankingCounts(
            plan.label, max_categories=kept, missing=plan.missing, threads=plan.threads
        )
        self.pairs, self.turns = PairScores(), Turns()
        self.kinds: dict[str, str] = {}
        self.coverage: dict[str, list[float]] = defaultdict(list)
        self.sizes: dict[str, list[float]] = defaultdict(list)
        self.visits: dict[tuple[str, ...], int] = defaultdict(int)
        self.bounds: dict[str, list[tuple[float, float, float, int]]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.edges: np.ndarray | None = None
        self.last: Frame | None = None

    # A batch

    def take(self, batch: Any, names: Sequence[str]) -> None:
        """Count a batch and, unless it is a short last one, score it."""
        plan = self.plan
        if not self.started:
            self.started, self.source_names = True, list(names)
        self.rows += batch.rows
        scored = batch.rows > LAST or (not plan.compat and batch.rows >= self.most_rows)
        if plan.compat and not scored:
            return
        self.most_rows = max(self.most_rows, batch.rows)
        frame = Frame(batch, list(names), ["column"] * len(names))
        label = names.index(plan.label)
        if plan.label_bins is not None:
            frame.batch = self._bin_label(batch, label)
        weights = self._weights(frame) if plan.weight is not None else None
        clock = time.perf_counter()
        self._bound(frame)
        self._make(frame, label)
        made = time.perf_counter()
        self._observe(frame)
        counted = time.perf_counter()
        if scored:
            self.one_label += len(frame.batch.counts(label)) < 2
            self._score(frame, label, weights)
            self.batches += 1
            self.last = frame
        done = time.perf_counter()
        step = {
            "encoding_columns": made - clock,
            "counting": counted - made,
            "feature_score_computation": done - counted,
        }
        self.steps.append(step)
        for name, seconds in step.items():
            self.seconds[name] += seconds

    def _bin_label(self, batch: Any, label: int) -> Any:
        """The label cut into bins, named by the numbers they lie between."""
        x = _features.numbers(batch.values(label))
        if not np.isfinite(x).all():
            bad = batch.values(label)[int(np.flatnonzero(~np.isfinite(x))[0])]
            raise ValueError(f"label must be a finite number with label_bins, got {_features.text(bad)!r}")
        if self.edges is None:
            if isinstance(self.plan.label_bins, tuple):
                self.edges = np.array(self.plan.label_bins)
            else:
                shares = np.linspace(0, 1, (self.plan.label_bins or 2) + 1)[1:-1]
                order = np.argsort(x)
                below = np.cumsum(batch.counts(label)[order]) / batch.rows
                at = np.minimum(np.searchsorted(below, shares), len(x) - 1)
                self.edges = np.unique(x[order][at])
        bins = np.searchsorted(self.edges, x, side="left")
        names = [f"<= {edge:g}".encode() for edge in self.edges] + [f"> {self.edges[-1]:g}".encode()]
        relabelled = batch.relabelled(label, [names[b] for b in bins])
        whole = batch.extended([relabelled])
        return whole.select([len(batch) if i == label else i for i in range(len(batch))])

    def _weights(self, frame: Frame) -> np.ndarray:
        assert self.plan.weight is not None
        at = frame.index(self.plan.weight, "weight")
        w = _features.numbers(frame.batch.values(at))[frame.batch.codes(at)]
        if not (np.isfinite(w).all() and (w >= 0).all() and w.any()):
            raise ValueError(
                f"weight must be finite and >= 0, not all 0, in every batch; column {self.plan.weight!r} is not"
            )
        keep = [i for i in range(len(frame.names)) if i != at]
        frame.batch, frame.names = frame.batch.select(keep), [frame.names[i] for i in keep]
        frame.kinds = [frame.kinds[i] for i in keep]
        return w

    def _numeric(self, frame: Frame) -> list[str]:
        plan = self.plan
        if plan.numeric_columns is None:
            return [n for n in frame.names if n in self.opened.numeric and n != plan.label]
        for name in plan.numeric_columns:
            frame.index(name, "numeric_columns")
        return list(plan.numeric_columns)

    def _bound(self, frame: Frame) -> None:
        for name in self._numeric(frame):
            at = frame.index(name, "numeric_columns")
            x, counts = _features.numbers(frame.batch.values(at)), frame.batch.counts(at)
            real = np.isfinite(x)
            if real.any():
                mean = float(np.average(x[real], weights=counts[real]))
                self.bounds[name].append((float(x[real].min()), float(x[real].max()), mean, len(x)))

    def _make(self, frame: Frame, label: int) -> None:
        """The new columns that stay in memory with the batch."""
        plan = self.plan
        if plan.transformers:
            _features.transform(frame, self._numeric(frame), plan.transformers, plan.compat, plan.threads)
        missing = [value.encode() for value in plan.missing]
        for column in plan.multivalue:
            _features.explode(frame, column, missing)
        for mapping in plan.subfeatures:
            _features.subfeature(frame, mapping)
        if plan.order > 1 and plan.pairwise:
            for batch, names in self._interactions(frame, label, plan.order, AND):
                frame.add(batch, names, "interaction")
        if plan.controls:
            rng = np.random.default_rng([plan.seed, self.batches])
            _features.add_controls(frame, label, rng, plan.threads)

    def _interactions(self, frame: Frame, label: int, order: int, joint: str) -> Any:
        """(batch, names) of joint columns, some at a time."""
        plan = self.plan
        columns = [i for i in range(len(frame.names)) if i != label and frame.kinds[i] != "control"]
        if order > len(columns):
            return
        tuples = self.turns.combinations(joint, columns, order, plan.max_pairs)
        step = max(1, CHUNK // max(frame.batch.rows, 1))
        for start in range(0, len(tuples), step):
            part = tuples[start : start + step]
            names = [joint.join(frame.names[i] for i in combination) for combination in part]
            for combination in part:
                self.visits[tuple(frame.names[i] for i in combination)] += 1
            yield frame.batch.interactions([list(c) for c in part], plan.compat, plan.threads), names

    def _observe(self, frame: Frame, label: int | None = None) -> None:
        """Cardinality, coverage, repetitions, bytes of the columns; those of `label` are known already."""
        self.counts.observe(frame.batch, frame.names, before=label is not None)
        if label is not None:
            keep = [i for i in range(len(frame.names)) if i != label]
            names, kinds = ([values[i] for i in keep] for values in (frame.names, frame.kinds))
            frame = Frame(frame.batch.select(keep), names, kinds)
        full = frame.batch.rows == self.plan.batch_size
        self.kinds.update(zip(frame.names, frame.kinds, strict=True))
        missing = [value.encode() for value in self.plan.missing]
        for name, share in zip(frame.names, frame.batch.missing_share(missing), strict=True):
            self.coverage[name].append(100 * (1 - share))
        if full or not self.plan.compat:
            for name, size in zip(frame.names, frame.batch.bytes_per_value(), strict=True):
                self.sizes[name].append(size)

    def _score(self, frame: Frame, label: int, weights: np.ndarray | None) -> None:
        plan = self.plan
        f = len(frame.names)
        if plan.pairwise or plan.order_3mr:
            pairs = [(j, i) if i == label else (i, j) for i in range(f) for j in range(i, f)]
        else:
            pairs = [(i, label) for i in range(f)]
        if plan.score.startswith("surrogate"):
            pairs = [(i, j) for i, j in pairs if i != j]
        if plan.pairwise or plan.order_3mr or plan.compat:  # the columns alone are never too many
            pairs = self.turns.take("pairs", pairs, plan.max_pairs)
        self._add(frame, pairs, weights)
        if plan.order > 1 and not plan.pairwise:
            self._score_joint(frame, label, plan.order, AND, weights)
        if plan.order_3mr:
            self._score_joint(frame, label, 2, AND_REL, weights)

    def _score_joint(
        self, frame: Frame, label: int, order: int, joint: str, weights: np.ndarray | None
    ) -> None:
        """Interactions with the label, in pieces that fit."""
        for batch, names in self._interactions(frame, label, order, joint):
            part = Frame(frame.batch.select([label]), [self.plan.label], ["column"])
            part.add(batch, names, "interaction" if joint == AND else "relation")
            self._observe(part, label=0)
            self._add(part, [(i, 0) for i in range(1, len(part.names))], weights)

    def _add(self, frame: Frame, pairs: list[tuple[int, int]], weights: np.ndarray | None) -> None:
        named = [(frame.names[i], frame.names[j]) for i, j in pairs]
        for pair in named:
            self.visits[pair] += 1
        self.pairs.add(named, self._scores(frame, pairs, weights))

    def _scores(self, frame: Frame, pairs: list[tuple[int, int]], weights: np.ndarray | None) -> np.ndarray:
        plan, batch = self.plan, frame.batch
        if plan.score == "constant":
            return np.zeros(len(pairs))
        if plan.score == "pearson":
            vectors: dict[int, np.ndarray] = {}
            for i in {i for pair in pairs for i in pair}:
                numeric = not plan.compat and frame.names[i] in self.opened.numeric
                value = _features.numbers(batch.values(i)) if numeric else batch.ranks(i).astype(np.float64)
                vectors[i] = np.nan_to_num(value)[batch.codes(i)]
            return np.array([_scores.correlation(vectors[i], vectors[j]) for i, j in pairs])
        if plan.score.startswith("surrogate"):
            beside = [batch.codes(frame.index(name, "reference_features")) for name in plan.reference]
            return np.array([
                _surrogates.surrogate_score(
                    np.column_stack([*beside, batch.codes(i)]), batch.codes(j), plan.score,
                    random_state=plan.seed % 2**32,
                )
                for i, j in pairs
            ])  # fmt: skip
        return batch.score(
            pairs, plan.core_score, first=plan.first, by_sum=plan.compat, rounds=plan.permutations,
            seed=plan.seed, weights=weights, ratio=plan.ratio, threads=plan.threads,
        )  # fmt: skip

    # The end

    def adopt(self, counts: RankingCounts) -> None:
        """Take counts made elsewhere for those of the pass."""
        self.counts, self.rows, self.batches = counts, counts.rows, 0
        self.source_names = counts.names
        self.kinds = dict.fromkeys(counts.names, "column")
        self.finish()

    def finish(self) -> None:
        """Refuse a stream that cannot be ranked."""
        if not self.rows:
            raise ValueError("source must have at least one row, got none")
        if self.plan.compat and not self.batches:
            raise ValueError(
                f"source must have more than {LAST} rows with compat=True, as the public tool ranks no fewer, "
                f"got {self.rows}"
            )
        if self.counts.summary(self.plan.label)["cardinality"] < 2 and not self.plan.compat:
            has_missing = self.counts.summary(self.plan.label)["missing"] not in (0, self.rows)
            if not has_missing:
                raise ValueError(f"label must have at least two values, got one in {self.rows} rows")

    def results(self) -> dict[str, Any]:
        """The attributes of the fitted ranker."""
        pairs, median, spread, times = self.pairs.summary()
        scores = self._ranking(pairs, median, spread, times)
        return {
            "scores_": scores,
            "pairwise_": _table(pairs, median, spread, times),
            "ranks_3mr_": self._order_3mr(pairs, median),
            "redundancy_": self._redundancy(scores),
            "counts_": self.counts,
            "coverage_": {name: float(np.mean(shares)) for name, shares in self.coverage.items()},
            "bytes_per_value_": {name: float(np.mean(sizes)) for name, sizes in self.sizes.items()},
            "combination_counts_": {str(pair): count for pair, count in self.visits.items()},
            "numeric_": {
                name: {
                    "minimum": min(b[0] for b in batches),
                    "maximum": max(b[1] for b in batches),
                    "median_of_means": float(np.median([b[2] for b in batches])),
                    "values": int(np.mean([b[3] for b in batches])),
                }
                for name, batches in self.bounds.items()
            },
            "n_rows_": self.rows,
            "n_batches_": self.batches,
            "timings_": dict(self.seconds),
            "steps_": self.steps,
        }

    def _ranking(self, pairs: Any, median: np.ndarray, spread: np.ndarray, times: np.ndarray) -> np.ndarray:
        label = self.plan.label
        found: dict[str, tuple[float, float, int]] = {}
        for (a, b), score, width, count in zip(
            pairs, median.tolist(), spread.tolist(), times.tolist(), strict=True
        ):
            if (a == label) != (b == label):
                found[b if a == label else a] = (score, width, count)
        if self.plan.aggregate == "global":
            score, correction = self.plan.score, self.plan.correction or "expected"
            correction = correction if score == "mi_corrected" else "expected"
            for name in self.counts.names:
                if name != label:
                    whole = self.counts.score(
                        name,
                        score,
                        correction=correction,
                        permutations=self.plan.permutations,
                        random_state=self.plan.seed,
                    )
                    found[name] = (whole, *found.get(name, (0.0, 0.0, 0))[1:])
        relations = {name for name, kind in self.kinds.items() if kind == "relation"}
        rows = []
        for name, (score, width, count) in found.items():
            if name not in relations:
                facts = self.counts.summary(name)
                kind = self.kinds.get(name, "column")
                rows.append(
                    (
                        name,
                        score,
                        width,
                        count,
                        facts["cardinality"],
                        facts["coverage"],
                        kind,
                        facts["sketched"],
                    )
                )
        table = np.array(rows, dtype=SCORE)
        return table[np.argsort(-table["score"], kind="stable")] if len(table) else table

    def _order_3mr(self, pairs: Any, median: np.ndarray) -> np.ndarray | None:
        if not self.plan.order_3mr:
            return None
        label = self.plan.label
        scored = dict(zip(pairs, median.tolist(), strict=True))
        names = [a for a, b in pairs if b == label and a != label and AND_REL not in a]
        at = {name: i for i, name in enumerate(names)}
        f = len(names)
        relevance = np.array([scored[name, label] for name in names])
        redundancy, relation = np.full((f, f), np.nan), np.full((f, f), np.nan)
        for (a, b), score in scored.items():
            if b == label and AND_REL in a:
                i, j = (at[part] for part in a.split(AND_REL))
                relation[i, j] = relation[j, i] = score
            elif a in at and b in at:
                redundancy[at[a], at[b]] = redundancy[at[b], at[a]] = score
        order, values = _scores.rank_3mr(
            _unit(relevance), _unit(redundancy), _unit(relation), return_scores=True
        )
        table = np.empty(f, dtype=[("feature", object), ("score", np.float64)])
        table["feature"], table["score"] = [names[i] for i in order], values
        return table

    def _redundancy(self, scores: np.ndarray) -> tuple[list[str], np.ndarray] | None:
        """Of the best columns among each other: 0 nothing in common, 1 the same."""
        if self.last is None:
            return None
        known = {name: i for i, name in enumerate(self.last.names)}
        names = [name for name in scores["feature"] if name in known and self.kinds[name] != "control"][
            :SHOWN
        ]
        rows, cols = np.triu_indices(len(names))
        pairs = [(known[names[i]], known[names[j]]) for i, j in zip(rows, cols, strict=True)]
        values = self.last.batch.score(pairs, "symmetric_uncertainty", threads=self.plan.threads)
        matrix = np.empty((len(names), len(names)))
        matrix[rows, cols] = matrix[cols, rows] = values
        return names, matrix


def _table(pairs: Any, median: np.ndarray, spread: np.ndarray, times: np.ndarray) -> np.ndarray:
    table = np.empty(len(pairs), dtype=PAIR)
    for i, (a, b) in enumerate(pairs):
        table[i] = (a, b, median[i], spread[i], times[i])
    return table[np.argsort(table["score"], kind="stable")]


def _unit(values: np.ndarray) -> np.ndarray:
    """Scaled to [0, 1]; what was not scored is 0."""
    known = np.isfinite(values)
    if not known.any():
        return np.zeros_like(values)
    low, high = values[known].min(), values[known].max()
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.where(known, scaled, 0.0)

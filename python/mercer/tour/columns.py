"""Chapter: which columns of a real table tell of a label, by ranking them without being misled by identifiers.

The table is made of what is on every machine: a row for each parameter of each public function of NumPy, SciPy and
scikit-learn. The question is whether the parameter has a default; the baseline is plain mutual information.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import re
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mercer.tour import figures
from mercer.tour.chapter import Cell, Chapter, Figure, Section, Table, Text, Tour
from mercer.tour.corpus import MODULES

__all__ = ["CHAPTER", "parameters"]

LABEL = "has a default"
KEPT = 5


def run(tour: Tour) -> list[Section]:
    """The chapter."""
    from mercer.ranking import FeatureRanker

    with tour.stage("reading signatures") as report:
        steps = iter(range(1, len(MODULES) + 1))
        table = parameters(MODULES[::6] if tour.quick else MODULES, lambda: report(next(steps), len(MODULES)))
    n = len(table[LABEL])
    rng = np.random.default_rng(0)
    table = {"row id": np.arange(n), "random, 1000 values": rng.integers(0, 1000, n), **table}
    with tour.stage("ranking by the corrected score"):
        start = time.perf_counter()
        ranker = FeatureRanker(correction="expected", interaction_order=2, batch_size=max(n, 2)).fit(
            table, LABEL
        )
        seconds = time.perf_counter() - start
    with tour.stage("ranking by plain mutual information"):
        plain = FeatureRanker("mi", interaction_order=2, batch_size=max(n, 2)).fit(table, LABEL)
    with tour.stage("models on the best columns"):
        losses = _losses(table, ranker, plain, 2 if tour.quick else 5)
    with tour.stage("a click log of 200,000 rows"):
        speed = _speed(20_000 if tour.quick else 200_000)
    return [
        _table_section(table),
        _ranking_section(ranker, plain, seconds),
        _model_section(losses),
        _speed_section(speed),
    ]


def parameters(modules: Any, progress: Callable[[], None] = lambda: None) -> dict[str, np.ndarray]:
    """The table: a row for each parameter of each public function and class, each found once."""
    rows: list[tuple[Any, ...]] = []
    seen: set[int] = set()
    for path in modules:
        progress()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                module = importlib.import_module(path)
            except ImportError:  # A module that this version of the library does not have.
                continue
            for name in sorted(n for n in dir(module) if not n.startswith("_")):
                thing = getattr(module, name, None)
                if id(thing) in seen or not callable(thing) or inspect.ismodule(thing):
                    continue
                seen.add(id(thing))
                try:
                    given = list(inspect.signature(thing).parameters.values())
                except (ValueError, TypeError):  # Functions in C that do not tell.
                    continue
                text = inspect.getdoc(thing) or ""
                for at, p in enumerate(given):
                    rows.append((
                        path.partition(".")[0], path, f"{path}.{name}", p.name, at, len(given),
                        p.kind.name.lower().replace("_", " "), "class" if inspect.isclass(thing) else "function",
                        len(p.name), p.name[0], len(text) // 500,
                        bool(re.search(rf"^\s*{re.escape(p.name)}\b.*\boptional\b", text, re.M)),
                        p.default is not inspect.Parameter.empty,
                    ))  # fmt: skip
    names = (
        "library", "module", "function", "parameter", "position", "parameters in all", "kind", "class or function",
        "length of the name", "first letter", "half pages of documentation", "called optional", LABEL,
    )  # fmt: skip
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _losses(table: dict[str, np.ndarray], ours: Any, plain: Any, seeds: int) -> dict[str, list[float]]:
    """Log-loss on unseen rows of a logistic regression on the best columns of each ranking, and on all."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    y = table[LABEL].astype(int)
    names = [name for name in table if name != LABEL]
    choices = {"all columns": names}
    for who, ranker in (("corrected", ours), ("plain", plain)):
        choices[who] = [name for name in ranker.scores_["feature"] if name in names][:KEPT]
    found: dict[str, list[float]] = {who: [] for who in choices}
    for seed in range(seeds):
        train = np.random.default_rng(seed).random(len(y)) < 0.7
        for who, chosen in choices.items():
            X = np.column_stack([table[name].astype(str) for name in chosen])
            model = make_pipeline(
                OneHotEncoder(handle_unknown="ignore"), LogisticRegression(C=0.3, max_iter=500)
            )
            model.fit(X[train], y[train])
            found[who].append(float(log_loss(y[~train], model.predict_proba(X[~train]))))
    return found


def _speed(n: int) -> dict[str, float]:
    """Seconds to rank a CSV, and of `mutual_info_classif` for the same columns already in memory."""
    from sklearn.feature_selection import mutual_info_classif

    from mercer.ranking import FeatureRanker

    rng = np.random.default_rng(0)
    cards = np.geomspace(2, 20_000, 59).round().astype(int)
    X = np.column_stack([rng.integers(0, k, n) for k in cards])
    y = rng.integers(0, 2, n)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        text = io.StringIO()
        csv.writer(text).writerows([["y", *(f"f{j}" for j in range(59))], *np.column_stack([y, X]).tolist()])
        path.write_text(text.getvalue())
        size = path.stat().st_size
        start = time.perf_counter()
        FeatureRanker().fit(path)
        ours = time.perf_counter() - start
    start = time.perf_counter()
    mutual_info_classif(X[:, :6], y, discrete_features=True)
    return {"rows": n, "bytes": size, "ours": ours, "theirs": (time.perf_counter() - start) * 59 / 6}


def _table_section(table: dict[str, np.ndarray]) -> Section:
    rows = [
        [name, f"{len(np.unique(column)):,}", ", ".join(map(str, np.unique(column)[:3]))]
        for name, column in table.items()
    ]
    return Section("The table", [
        Text(
            f"{len(table[LABEL]):,} parameters of the public functions and classes of NumPy, SciPy and scikit-learn as "
            f"installed here. **{table[LABEL].mean():.0%}** of them have a default. The first two columns are not "
            "of the table: a row number and noise, as any log has them."
        ),
        Table(["column", "values", "such as"], rows),
    ])  # fmt: skip


def _ranking_section(ranker: Any, plain: Any, seconds: float) -> Section:
    single = ranker.scores_[ranker.scores_["kind"] == "column"]
    information = dict(zip(plain.scores_["feature"], plain.scores_["score"], strict=True))
    singles = plain.scores_[plain.scores_["kind"] == "column"]["feature"].tolist()
    rows: list[list[str | Cell]] = []
    for place, row in enumerate(single, 1):
        name, before = row["feature"], singles.index(row["feature"]) + 1
        nothing = name.startswith(("row id", "random"))
        rows.append([
            Cell(name, "dim" if nothing else ""), f"{row['cardinality']:,}", f"{information[name]:.4f}",
            Cell(str(before), "bad" if nothing and before <= KEPT else ""), f"{row['score']:.4f}", str(place),
        ])  # fmt: skip
    pairs = ranker.scores_[ranker.scores_["kind"] == "interaction"][:5]
    scored = dict(zip(single["feature"], single["score"], strict=True))
    best = [
        [
            row["feature"],
            f"{row['score']:.4f}",
            f"{row['score'] - max(scored[p] for p in row['feature'].split(' AND ')):.4f}",
        ]
        for row in pairs
    ]
    colours = [
        "var(--bad)" if r["feature"].startswith(("row id", "random")) else "var(--accent)" for r in single
    ]
    return Section("The ranking", [
        Text(
            "Plain mutual information puts first what has most values: each row has its own number, so the number "
            "\"tells\" everything. The corrected score subtracts what random pairings of the same two columns show "
            f"(`correction=\"expected\"`, exact). All {len(ranker.scores_)} columns and pairs of columns took "
            f"{seconds * 1e3:.0f} ms."
        ),
        Table(
            ["column", "values", "plain, nats", "place", "corrected, nats", "place "], rows,
            ours="corrected, nats", baseline="plain, nats",
        ),
        Figure(
            figures.bars(
                single["feature"].tolist(), np.maximum(single["score"], 0).tolist(), colours, unit="nats",
                show="{:.3f}".format,
            ),
            "Corrected scores; in red what tells nothing by construction.",
        ),
        Table(["best pairs", "corrected, nats", "more than the better of the two"], best),
    ])  # fmt: skip


def _model_section(losses: dict[str, list[float]]) -> Section:
    names = {
        "all columns": "all columns",
        "corrected": f"the best {KEPT}, corrected",
        "plain": f"the best {KEPT}, plain",
    }
    low = min(np.mean(values) for values in losses.values())
    rows: list[list[str | Cell]] = [
        [names[who], Cell(f"{np.mean(v):.4f} ± {np.std(v):.4f}", "good" if np.mean(v) == low else "")]
        for who, v in losses.items()
    ]
    return Section("What a model makes of it", [
        Text(
            "A logistic regression on the one-hot columns, judged by its log-loss on the 30 % of the rows that it did "
            f"not see, over {len(losses['corrected'])} splits. The columns were chosen on the whole table."
        ),
        Table(["columns", "log-loss"], rows),
    ])  # fmt: skip


def _speed_section(speed: dict[str, float]) -> Section:
    rows: list[list[str | Cell]] = [
        ["mercer: read the CSV, rank 59 columns", Cell(f"{speed['ours']:.2f} s", "good")],
        [
            "scikit-learn: mutual_info_classif, columns in memory (6 measured, times 59 / 6)",
            f"{speed['theirs']:.2f} s",
        ],
    ]
    text = (
        f"{speed['rows']:,.0f} rows, 59 columns of 2 to 20,000 values, {speed['bytes'] / 1e6:.0f} MB of text."
    )
    return Section("On a click log", [Text(text), Table(["", "time"], rows)])


CHAPTER = Chapter(
    name="columns",
    title="Columns that tell something",
    promise="Which columns of a table tell whether a parameter has a default? A ranking that identifiers do not win, "
    "and that reads 200,000 rows in less than a second.",
    run=run,
    requires=(("sklearn", "scikit-learn"),),
)

"""outrank: Škrlj and Mramor, "OutRank: Speeding up AutoML-based Model Search for Large Sparse Data sets with
Cardinality-aware Feature Ranking".

RecSys 2023. Claims: a feature space up to 300 % larger can be screened; a search among the best-ranked columns
loses nothing; the ranking beats those of random forests. The baselines are plain mutual information, scikit-learn's
`mutual_info_classif` and random-forest importance, and the public tool's way of counting (a pass over the rows for each
value), written here in numpy. Models are logistic regressions on one-hot codes, judged by log-loss on rows they did
not see. Needs scikit-learn.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mercer import ranking
from mercer.reproduce import Evidence, Progress, Row

__all__ = ["plot", "run"]

SEED = 68
SIGNALS = ("signal 4", "signal 100", "half-noisy 30", "half-noisy 1000")
NOISE = ("random 2", "random 50", "random 2000", "Zipf 300", "identifier", "constant")
KEPT = 10  # columns that a model gets


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: about 20 seconds with `quick`, two minutes without, on two cores."""
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "outrank is measured against scikit-learn: pip install 'mercer-kernels[demo]'", name="sklearn"
        ) from None
    rows: list[Row] = []
    progress("planted signals", 0.0)
    planted = _recovery(3 if quick else 10, rows)
    progress("exact expectations", 0.1)
    _oracles(rows)
    progress("columns screened in the same time", 0.2)
    _screening(20_000 if quick else 200_000, rows)
    figures: dict[str, Any] = {"planted": planted, "losses": {}}
    tables = _tables()
    for i, (name, make) in enumerate(tables.items()):
        progress(f"models on the best columns: {name}", 0.3 + 0.7 * i / len(tables))
        figures["losses"][name] = _models(name, make, 2 if quick else 5, rows)
    return Evidence("outrank", rows, seed=SEED, figures=figures)


# Recovery


def planted_table(n: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The card's set: a latent quantised, half of it replaced by noise, and columns that tell nothing."""
    latent = rng.standard_normal(n)
    y = (latent + 0.5 * rng.standard_normal(n) > 0).astype(np.int64)
    half = np.where(rng.random(n) < 0.5, latent, rng.standard_normal(n))
    table = {
        "signal 4": _quantised(latent, 4),
        "signal 100": _quantised(latent, 100),
        "half-noisy 30": _quantised(half, 30),
        "half-noisy 1000": _quantised(half, 1000),
        "random 2": rng.integers(0, 2, n),
        "random 50": rng.integers(0, 50, n),
        "random 2000": rng.integers(0, 2000, n),
        "Zipf 300": np.minimum(rng.zipf(1.3, n), 300),
        "identifier": np.arange(n),
        "constant": np.zeros(n, dtype=np.int64),
    }
    return table, y


def _quantised(x: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(np.argsort(x)) * k // len(x)


def _recovery(seeds: int, rows: list[Row]) -> dict[str, Any]:
    measures: dict[str, Callable[..., Any]] = {
        "plain": ranking.mutual_information,
        "shift": ranking.corrected_mutual_information,
        "expected": lambda X, y: ranking.corrected_mutual_information(X, y, correction="expected"),
        "permutation": lambda X, y: ranking.corrected_mutual_information(X, y, correction="permutation"),
    }
    above: dict[str, list[int]] = {name: [] for name in measures}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    identifiers = []
    for seed in range(seeds):
        table, y = planted_table(6000, np.random.default_rng([SEED, seed]))
        X = np.column_stack(list(table.values()))
        for name, measure in measures.items():
            found = measure(X, y)
            scores[name].append(found)
            above[name].append(int((found[: len(SIGNALS)] > found[len(SIGNALS) :].max()).sum()))
        identifiers.append((scores["plain"][-1][8], scores["shift"][-1][8]))
    for name in ("shift", "expected", "permutation"):
        rows.append(Row(
            f"signals (of 4) above all noise, {name} correction; baseline plain information; least of {seeds} seeds",
            "", baseline=min(above["plain"]), ours=min(above[name]), better="higher",
            holds=min(above[name]) == 4 and max(above["plain"]) < 4, must_hold=True,
            spread=(min(above[name]), max(above[name])),
            note="a signal fell below noise, or plain information found all",
        ))  # fmt: skip
    rows.append(Row(
        "score of an identifier; baseline plain information", "nats",
        baseline=float(np.mean([a for a, _ in identifiers])),
        ours=float(np.max(np.abs([b for _, b in identifiers]))), better="lower",
        holds=all(b == 0 for _, b in identifiers), must_hold=True, note="not exactly 0",
    ))  # fmt: skip
    return {
        "columns": [*SIGNALS, *NOISE],
        "plain": np.mean(scores["plain"], axis=0),
        "corrected": np.mean(scores["shift"], axis=0),
    }


def _oracles(rows: list[Row]) -> None:
    a, b = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 1, 1, 1, 0, 2, 1])
    mean = math.fsum(
        ranking.mutual_information(a, np.array(p)) for p in itertools.permutations(b)
    ) / math.factorial(7)
    error = abs(ranking.expected_mutual_information(a, b) - mean)
    rows.append(Row(
        "expected information against all 5040 permutations", "nats", ours=error, better="lower", holds=error < 1e-12,
        must_hold=True, note="above 1e-12",
    ))  # fmt: skip
    rng = np.random.default_rng(SEED)
    n, k = 4000, 50
    y, noise = rng.integers(0, 2, n), rng.integers(0, k, (n, 200))
    plain = float(ranking.mutual_information(noise, y).mean())
    corrected = float(ranking.corrected_mutual_information(noise, y).mean())
    rows.append(Row(
        f"mean score of 200 independent columns of {k} values; baseline plain, (K - 1) / 2n = {(k - 1) / 2 / n:.4f}",
        "nats", baseline=plain, ours=corrected, better="lower", must_hold=True,
        holds=abs(corrected) < 0.1 * plain and abs(plain / ((k - 1) / 2 / n) - 1) < 0.1, note="not centred",
    ))  # fmt: skip


# Speed


def _by_value(x: np.ndarray, y: np.ndarray) -> float:
    """Shift-corrected information, a pass over the rows for each value: the public tool's cost, O(n K)."""
    n, score = len(x), 0.0
    for value in range(int(x.max()) + 1):
        rows = np.flatnonzero(x == value)
        if len(rows) > 1:
            for labels, sign in ((y[rows], 1), (y[(rows + len(rows)) % n], -1)):
                p = np.bincount(labels) / len(rows)
                p = p[p > 0]
                score += sign * len(rows) / n * float(p @ np.log(p))
    return score


def _screening(n: int, rows: list[Row]) -> None:
    rng = np.random.default_rng(SEED)
    y = rng.integers(0, 2, n)
    cards = np.geomspace(2, 20_000, 12).round().astype(int)
    columns = [rng.integers(0, k, n) for k in cards]
    start = time.perf_counter()
    theirs = [_by_value(x, y) for x in columns]
    slow = time.perf_counter() - start
    X = np.column_stack(columns)
    ranking.corrected_mutual_information(X[:100], y[:100])
    start = time.perf_counter()
    ours = ranking.corrected_mutual_information(X, y, condition_on="feature", threads=1)
    fast = time.perf_counter() - start
    rows.append(Row(
        "largest difference between the two ways of counting", "nats", ours=float(np.max(np.abs(ours - theirs))),
        better="lower", holds=bool(np.allclose(ours, theirs, atol=1e-12)), must_hold=True, note="above 1e-12",
    ))  # fmt: skip
    rows.append(Row(
        f"columns screened in the time of one, {n:,} rows, 2 to 20,000 values; baseline a pass for each value", "x",
        baseline=1.0, ours=slow / fast, paper=4.0, better="higher", holds=slow / fast >= 4,
        note="fewer than 300 % more columns in the same time",
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        header = ",".join([*(f"f{j}" for j in range(len(cards))), "y"])
        np.savetxt(path, np.column_stack([X, y]), fmt="%d", delimiter=",", header=header, comments="")
        start = time.perf_counter()
        ranking.FeatureRanker().fit(path)
        rows.append(Row(
            "columns of a CSV ranked a second, reading included", "1/s", better="higher", holds=True,
            ours=len(cards) / (time.perf_counter() - start), baseline=len(cards) / slow,
        ))  # fmt: skip


# Models on the best columns


def _tables() -> dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]]:
    """Codes (n, f) and a label: two synthetic sets and two real ones among columns that tell nothing."""
    from sklearn import datasets

    def click_log(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        n = 6000
        latent = rng.standard_normal((n, 4))
        y = (latent[:, :3].sum(1) + latent[:, 2] * latent[:, 3] + rng.standard_normal(n) > 0).astype(np.int64)
        told = [_quantised(latent[:, i] + 0.3 * rng.standard_normal(n), k) for i in range(4) for k in (5, 40)]
        return np.column_stack([*told, *_nothing(rng, n, 40)]), y

    def naive(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        X = rng.integers(10, 100, (6000, 100))
        return X, (X[:, 30] >= 40).astype(np.int64)

    def cancer(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        data = datasets.load_breast_cancer()
        told = [_quantised(column, 8) for column in data.data.T]
        return np.column_stack([*told, *_nothing(rng, len(data.target), 30)]), data.target

    def digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        data = datasets.load_digits()
        told = data.data.astype(np.int64)
        return np.column_stack([told, *_nothing(rng, len(told), 30)]), (data.target % 2).astype(np.int64)

    return {
        "made click log": click_log,
        "naive (column 30)": naive,
        "breast cancer": cancer,
        "digits, parity": digits,
    }


def _nothing(rng: np.random.Generator, n: int, count: int) -> list[np.ndarray]:
    """Columns that tell nothing, from 2 to n values; the last is an identifier."""
    cards = np.geomspace(2, n, count - 1).round().astype(int)
    return [*(rng.integers(0, k, n) for k in cards), rng.permutation(n)]


def _rankings(X: np.ndarray, y: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_selection import mutual_info_classif

    forest = RandomForestClassifier(200, random_state=seed, n_jobs=2).fit(X, y)
    return {
        "mercer": ranking.corrected_mutual_information(X, y),
        "plain information": ranking.mutual_information(X, y),
        "mutual_info_classif": mutual_info_classif(X, y, random_state=seed),
        "random forest": forest.feature_importances_,
    }


def _loss(X: np.ndarray, y: np.ndarray, train: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), LogisticRegression(C=0.3, max_iter=500))
    model.fit(X[train], y[train])
    return float(log_loss(y[~train], model.predict_proba(X[~train])))


def _models(name: str, make: Callable[..., Any], seeds: int, rows: list[Row]) -> dict[str, float]:
    losses: dict[str, list[float]] = {}
    for seed in range(seeds):
        rng = np.random.default_rng([SEED, seed])
        X, y = make(rng)
        train = rng.random(len(y)) < 0.7
        losses.setdefault("all columns", []).append(_loss(X, y, train))
        for who, scores in _rankings(X[train], y[train], seed).items():
            best = np.argsort(-scores, kind="stable")[:KEPT]
            losses.setdefault(who, []).append(_loss(X[:, best], y, train))
    mean = {who: float(np.mean(values)) for who, values in losses.items()}
    ours = losses["mercer"]
    for who in ("all columns", "plain information", "mutual_info_classif", "random forest"):
        margin = 2 * float(np.std(np.subtract(ours, losses[who]))) / math.sqrt(seeds) + 1e-3
        rows.append(Row(
            f"{name}: log-loss with the best {KEPT} columns; baseline " + (f"all {X.shape[1]}" if who == "all columns"
            else f"the best {KEPT} by {who}"), "nats", baseline=mean[who], ours=mean["mercer"], better="lower",
            spread=(min(ours), max(ours)), holds=mean["mercer"] <= mean[who] + margin,
            note="the baseline's columns serve the model better here, by more than two standard errors",
        ))  # fmt: skip
    return mean


def plot(evidence: Evidence, figure: Any) -> None:
    """Left: plain and corrected scores of the planted set. Right: log-loss by the way columns were chosen."""
    left, right = figure.subplots(1, 2)
    planted = evidence.figures["planted"]
    columns = list(planted["columns"])
    at = np.arange(len(columns))
    left.barh(at - 0.2, planted["plain"], 0.4, label="plain information", color="#b58a3c")
    left.barh(at + 0.2, planted["corrected"], 0.4, label="corrected (shift)", color="#0b6e5f")
    left.axhline(len(SIGNALS) - 0.5, color="grey", linewidth=0.8)
    left.set_yticks(at, columns)
    left.invert_yaxis()
    left.set_xlabel("nats")
    left.set_title("signals above the line, noise below it")
    left.legend()
    losses = evidence.figures["losses"]
    whos = list(next(iter(losses.values())))
    width = 0.8 / len(whos)
    for i, who in enumerate(whos):
        x = np.arange(len(losses)) + (i - len(whos) / 2 + 0.5) * width
        right.bar(x, [loss[who] for loss in losses.values()], width, label=who)
    right.set_xticks(np.arange(len(losses)), list(losses), fontsize=8)
    right.set_ylabel("log-loss on unseen rows")
    right.set_title(f"a model on the best {KEPT} columns")
    right.legend(fontsize=8)

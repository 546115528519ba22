"""Private releases, in parts: their sums and noise, and classifiers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness import Row, Worker, compare
from mercer import _core
from mercer.private import PrivateDistanceSum, PrivateSimilarityClassifier
from mercer.private._noise import Law
from mercer.reproduce._image_features import cifar10_features

TITLE = "Private similarity"
DELTA = 1e-5


def numpy_trees(X: np.ndarray, levels: int) -> list[list[np.ndarray]]:
    """Counts of every level of every column of numbers in [0, 1]."""
    leaves, trees = 2**levels, []
    for column in X.T:
        index = np.minimum((column * leaves).astype(np.int64), leaves - 1)
        tree = [np.bincount(index, minlength=leaves)]
        while len(tree[-1]) > 1:
            tree.append(tree[-1].reshape(-1, 2).sum(1))
        trees.append(tree)
    return trees


def our_trees(X: np.ndarray, levels: int, threads: int) -> np.ndarray:
    d = X.shape[1]
    counts = np.zeros((d, 2**levels), np.int64)
    _core.private_count(X, np.zeros(d), np.ones(d), False, counts, 0, threads)
    return _core.private_trees(counts)


def releases(quick: bool) -> Iterator[Row]:
    """Against the same work in NumPy. Noise is timed apart."""
    rounds = 3 if quick else 5
    n, d = (200_000 if quick else 10_000_000), 16
    X = np.random.default_rng(0).random((n, d))
    for levels in (16, 20):
        yield compare(
            f"dyadic trees, n = {n}, {d} columns, {levels} levels", "numpy",
            ours=lambda X=X, L=levels: our_trees(X, L, 2), theirs=lambda X=X, L=levels: numpy_trees(X, L),
            elements=X.size, threads=2, rounds=rounds, note="without noise",
        )  # fmt: skip

    # Not the same work: NumPy's noise is of doubles from a generator that is no secret. What exactness costs.
    laws = {
        "discrete Laplace, scale 64": (Law(False, 1, 6), lambda rng, k: rng.laplace(scale=64, size=k)),
        "discrete Gaussian, deviation 64": (Law(True, 4096, 0), lambda rng, k: rng.normal(scale=64, size=k)),
    }
    k, rng = (50_000 if quick else 2_000_000), np.random.default_rng(0)
    values = np.zeros(k, np.int64)
    for name, (law, theirs) in laws.items():
        yield compare(
            f"exact noise, {name}", "numpy",
            ours=lambda law=law: _core.private_noise(values, [k], law.gaussian, [law.num], [law.shift], None, 0, 2),
            theirs=lambda theirs=theirs: theirs(rng, k), elements=k, threads=2, rounds=rounds,
            note="numpy's is neither exact nor secret",
        )  # fmt: skip
    m = 20_000 if quick else 200_000
    for d in (1, 16):
        data = np.random.default_rng(0).random((10_000, d))
        release = PrivateDistanceSum("l1", 1.0, (0, 1), levels=14).fit(data).release_
        Y = np.random.default_rng(1).random((m, d))
        ordered, sums = (
            np.sort(data, axis=0),
            np.vstack([np.zeros(d), np.cumsum(np.sort(data, axis=0), axis=0)]),
        )

        def sorted_sums(Y=Y, ordered=ordered, sums=sums) -> np.ndarray:
            out = np.zeros(len(Y))
            for j, y in enumerate(Y.T):
                below = np.searchsorted(ordered[:, j], y)
                out += y * (2 * below - len(ordered)) + sums[-1, j] - 2 * sums[below, j]
            return out

        yield compare(
            f"l1 queries to a release, {d} column{'s' * (d > 1)}", "numpy",
            ours=lambda r=release, Y=Y: r.query(Y, threads=2), theirs=sorted_sums, elements=m * d, threads=2,
            rounds=rounds, note="numpy: exact sums by a sorted array, without privacy",
        )  # fmt: skip
    yield from hadamard(quick, rounds)


def hadamard(quick: bool, rounds: int) -> Iterator[Row]:
    n, m = (500 if quick else 4000), 2048
    for d in (64, 256, 1024):
        X = np.random.default_rng(0).standard_normal((n, d))
        matrix = np.random.default_rng(1).standard_normal((m, d))
        features = _core.FourierFeatures.drawn("gaussian", 1, m, d, 1.0, structured=d >= 192)
        sums = np.zeros((1, 2 * m), np.int64)

        def theirs(X=X, matrix=matrix) -> np.ndarray:
            angles = X @ matrix.T
            return np.concatenate([np.cos(angles).sum(0), np.sin(angles).sum(0)])

        yield compare(
            f"sums of {m} random features, d = {d}", "numpy",
            ours=lambda f=features, X=X, s=sums: f.add(X, 20, s, [0], 0, 2), theirs=theirs, elements=n * m, threads=2,
            rounds=rounds, note="by fast Hadamard transforms" if d >= 192 else "",
        )  # fmt: skip


#: epochs, batch, rate, clip of DP-SGD: the best of a small search on other splits
SETTINGS = {
    "digits": {2.0: (40, 1257, 8.0, 0.5), 8.0: (60, 512, 4.0, 0.5)},
    "CIFAR-10": {2.0: (60, 8000, 32.0, 0.3), 8.0: (60, 8000, 32.0, 0.3)},
}
FORMS: dict[str, dict[str, dict]] = {
    "digits": {
        "2048 features": {},
        "128 features": {"n_features": 128, "bandwidth": 0.5},
        "64 features": {"n_features": 64, "bandwidth": 0.7},
        "pure epsilon": {"mechanism": "laplace", "delta": None, "bandwidth": 0.7},
    },
    "CIFAR-10": {
        "centroids": {"metric": "sqeuclidean"},
        "8192 features": {"n_features": 8192, "bandwidth": 1.4},
        "centroids, pure epsilon": {"metric": "sqeuclidean", "mechanism": "laplace", "delta": None},
    },
}


def digits(quick: bool) -> Iterator[Row]:
    """A private classifier against DP-SGD by Opacus: softmax regression on the same features, delta = 1e-5, settings
    the best of a small search, in an environment of its own. Times are of the whole fit; accuracies over seeds stand in
    the notes.
    """
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    yield from of_data("digits", X / np.linalg.norm(X, axis=1, keepdims=True), y, 1257, 2 if quick else 8)


def cifar10(quick: bool) -> Iterator[Row]:
    """The same of CIFAR-10 by features of EfficientNet-Lite0, 8,000 rows of 1,280, where MERCER_DATA has its images."""
    found = "is left out of a quick run" if quick else cifar10_features(lambda *_: None)
    if isinstance(found, str):
        print(f"  CIFAR-10 {found}")
    else:
        yield from of_data("CIFAR-10", *found, 8000, 8)


def of_data(name: str, X: np.ndarray, y: np.ndarray, train: int, seeds: int) -> Iterator[Row]:
    orders = np.stack([np.random.default_rng(seed).permutation(len(X)) for seed in range(seeds)])
    parts = [(order[:train], order[train:]) for order in orders]
    for epsilon, (epochs, batch, rate, clip) in SETTINGS[name].items():
        with Worker(
            "opacus", "peer_opacus.py", ["opacus"], x=X, y=y, orders=orders, train=np.array(train),
            epsilon=np.array(epsilon), delta=np.array(DELTA), epochs=np.array(epochs), batch=np.array(batch),
            rate=np.array(rate), clip=np.array(clip),
        ) as peer:  # fmt: skip
            theirs = [
                float(np.mean(peer.result() == y[b])) for _, b in parts
            ]  # each call takes the next split
            for form, parameters in FORMS[name].items():
                fits = [(private(epsilon, parameters).fit(X[a], y[a]), b) for a, b in parts]
                ours = [fitted.score(X[b], y[b]) for fitted, b in fits]
                rows, labels = X[parts[0][0]], y[parts[0][0]]
                yield compare(
                    f"{name}, epsilon = {epsilon:g}, {form}", "Opacus",
                    ours=lambda p=parameters, e=epsilon, x=rows, y=labels: private(e, p).fit(x, y), theirs=peer,
                    elements=train, threads=2, rounds=3,
                    note=f"accuracy {spread(ours)}, Opacus {spread(theirs)}, {seeds} splits",
                )  # fmt: skip


def private(epsilon: float, parameters: dict) -> PrivateSimilarityClassifier:
    return PrivateSimilarityClassifier(
        **{"epsilon": epsilon, "mechanism": "gaussian", "delta": DELTA} | parameters
    )


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


PARTS = {"releases": releases, "digits": digits, "cifar10": cifar10}

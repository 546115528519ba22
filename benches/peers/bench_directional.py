"""von Mises-Fisher against `scipy.stats.vonmises_fisher` in the dimensions where that works, and two passes of
a mixture's EM against the same in plain NumPy (float32 products by its BLAS, on two threads).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from scipy import special as scipy_special
from scipy import stats

from harness import Row, compare
from mercer.density import VonMisesFisher, VonMisesFisherMixture

TITLE = "von Mises-Fisher"


def numpy_em(
    X: np.ndarray, weights: np.ndarray, mus: np.ndarray, kappas: np.ndarray
) -> tuple[np.ndarray, ...]:
    """One iteration as it is usually written: Banerjee's kappa, log C by `log(ive)`."""
    d = X.shape[1]
    log_c = (d / 2 - 1) * np.log(kappas) - np.log(scipy_special.ive(d / 2 - 1, kappas)) - kappas
    logits = X @ (kappas[:, None] * mus).T.astype(X.dtype) + (log_c + np.log(weights)).astype(X.dtype)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    sums = (shares.T @ X).astype(np.float64)
    size, length = shares.sum(0, dtype=np.float64), np.linalg.norm(sums, axis=1)
    r = length / size
    return size / len(X), sums / length[:, None], r * (d - r * r) / (1 - r * r)


def rows(quick: bool) -> Iterator[Row]:
    scale = 20 if quick else 1
    rounds = 3 if quick else 7
    for d, n in ((3, 200_000), (64, 20_000), (256, 5_000)):
        n //= scale
        kappa = 2.0 * d
        mu = np.eye(1, d)[0]
        for threads in (2, 1):
            law = VonMisesFisher(mean_direction=mu, concentration=kappa, n_jobs=threads)
            peer, rng = stats.vonmises_fisher(mu, kappa), np.random.default_rng(0)
            X = law.sample(n, random_state=0)
            fit = VonMisesFisher(n_jobs=threads)
            for work, ours, theirs in (
                ("sample", lambda law=law, n=n: law.sample(n, random_state=1),
                 lambda peer=peer, n=n, rng=rng: peer.rvs(n, random_state=rng)),
                ("log density", lambda law=law, X=X: law.log_prob(X), lambda peer=peer, X=X: peer.logpdf(X)),
                ("fit", lambda fit=fit, X=X: fit.fit(X), lambda X=X: stats.vonmises_fisher.fit(X)),
            ):  # fmt: skip
                yield compare(
                    f"{work}, d = {d}, n = {n}", "scipy", ours=ours, theirs=theirs, elements=n * d,
                    threads=threads, rounds=rounds,
                )  # fmt: skip
    d, k, n = 96, 32, 100_000 // scale
    rng = np.random.default_rng(0)
    mus = rng.standard_normal((k, d))
    mus /= np.linalg.norm(mus, axis=1, keepdims=True)
    X = np.concatenate([
        VonMisesFisher(mean_direction=mu, concentration=60.0).sample(n // k, i, dtype=np.float32)
        for i, mu in enumerate(mus)
    ])  # fmt: skip
    start = np.full(k, 1 / k), mus, np.full(k, 50.0)
    mixture = VonMisesFisherMixture(k, init=mus, max_iter=1, tol=0.0, warm_start=True, n_jobs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture.fit(X)

        def two_expectations() -> None:
            mixture.fit(X)  # evaluates where it starts, steps, evaluates again

        def twice() -> None:
            numpy_em(X, *numpy_em(X, *start))

        yield compare(
            f"two EM passes, d = {d}, K = {k}, n = {len(X)}, float32", "numpy",
            ours=two_expectations, theirs=twice, elements=2 * X.size, threads=2, rounds=rounds,
            note="ours checks every row and sums in float64",
        )  # fmt: skip

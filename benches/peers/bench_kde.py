"""Log densities at every query from 100,000 data points, Gaussian kernel, on two threads: against a well-written torch
(tiles of 512 queries: addmm, in-place norms, logsumexp), against the matrix product alone (torch's, of the same shape:
what the machine does in that time without a distance or an exponential), scikit-learn, SciPy and PyKeOps. A time is
that of a pair of a query and a data point. The error is the largest of 100 queries, one of them a data point, against
NumPy's sums of squared differences.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from harness import Row, Worker, compare
from mercer.density import log_kde

TITLE = "Kernel density"
DATA, THREADS = 100_000, 2
#: PyKeOps needs nothing of ours, and a compiler.
PYKEOPS = ["pykeops>=2.2"]


def error(X: np.ndarray, Y: np.ndarray, h: float) -> float:
    """The largest error of log_kde on X, by NumPy's sums of squared differences in float64."""
    d = X.shape[1]
    worst = 0.0
    for x, got in zip(X, np.asarray(log_kde(X, Y, h)), strict=True):
        e = np.empty(len(Y))
        for i in range(0, len(Y), 500):  # blocks that stay in the cache
            apart = Y[i : i + 500].astype(np.float64) - x
            e[i : i + 500] = -np.einsum("ij,ij->i", apart, apart) / (2 * h * h)
        want = (
            e.max() + np.log(np.exp(e - e.max()).sum()) - np.log(len(Y)) - d / 2 * np.log(2 * np.pi * h * h)
        )
        worst = max(worst, float(abs(want - got)))
    return worst


def torch_kde(X, Y, h):  # type: ignore[no-untyped-def]
    import torch

    out = torch.empty(len(X), dtype=X.dtype)
    scale = 0.5 / h**2
    x_norms, y_norms, columns = (X * X).sum(1) * -scale, (Y * Y).sum(1) * -scale, Y.T
    for i in range(0, len(X), 512):
        tile = torch.addmm(y_norms, X[i : i + 512], columns, alpha=2 * scale)
        tile.add_(x_norms[i : i + 512, None])
        out[i : i + 512] = torch.logsumexp(tile, 1)
    return out - np.log(len(Y)) - X.shape[1] / 2 * np.log(2 * np.pi * h * h)


def matrix_product(X, Y):  # type: ignore[no-untyped-def]
    import torch

    tile = torch.empty(512, len(Y), dtype=X.dtype)
    for i in range(0, len(X), 512):
        torch.mm(X[i : i + 512], Y.T, out=tile[: len(X[i : i + 512])])


def rows(quick: bool) -> Iterator[Row]:
    n = DATA // 20 if quick else DATA
    try:
        import torch
    except ImportError:
        print("  torch is not installed here")
    else:
        torch.set_num_threads(THREADS)
        for d in (64, 512):
            for dtype in (np.float32, np.float64):
                yield from of_many_queries(n, 10_000 // (20 if quick else 1), d, dtype, quick)
    yield from of_few_queries(n, quick)


def of_many_queries(n: int, m: int, d: int, dtype: type, quick: bool) -> Iterator[Row]:
    import torch

    rng = np.random.default_rng(0)
    Y, X = (rng.standard_normal((k, d)).astype(dtype) for k in (n, m))
    X[0] = Y[0]
    few = X[: m // 10]  # for torch where its exp meets subnormal results
    some = X[:2000]
    tx, ty, t_few = map(torch.from_numpy, (X, Y, few))
    grid = np.geomspace(0.5, 3, 16)
    off = error(X[: 10 if quick else 100], Y, 1.0)
    what = f"d = {d}, n = {n}, m = {{}}, {np.dtype(dtype).name}"
    common = {"threads": THREADS, "rounds": 3, "at_least": 0.0}

    def ours(h=1.0, X: np.ndarray = X) -> np.ndarray:  # type: ignore[no-untyped-def]
        return np.asarray(log_kde(X, Y, h, threads=THREADS))

    yield compare(
        f"h = 1, {what.format(m)}", "torch", ours=ours, theirs=lambda: torch_kde(tx, ty, 1.0),
        elements=n * m, note=f"error {off:.0e}", **common,
    )  # fmt: skip
    yield compare(
        f"h = 0.1, {what.format(len(few))}", "torch", ours=lambda: ours(0.1, few),
        theirs=lambda: torch_kde(t_few, ty, 0.1), elements=n * len(few), **common,
    )  # fmt: skip
    yield compare(
        f"h = 1, {what.format(len(some))}", "the product", ours=lambda: ours(1.0, some),
        theirs=lambda: matrix_product(tx[: len(some)], ty), elements=n * len(some),
        note="ratio: of the product's rate", **common,
    )  # fmt: skip
    yield compare(
        f"16 bandwidths, {what.format(len(some))}", "one bandwidth", ours=lambda: ours(grid, some),
        theirs=lambda: ours(1.0, some), elements=n * len(some), note="both ours", **common,
    )  # fmt: skip


def of_few_queries(n: int, quick: bool) -> Iterator[Row]:
    d, m = 64, 20 if quick else 200
    rng = np.random.default_rng(0)
    Y, X = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    common = {"elements": n * m, "threads": THREADS, "rounds": 3, "at_least": 0.0}
    try:
        from sklearn.neighbors import KernelDensity
    except ImportError:
        print("  scikit-learn is not installed here")
    else:
        peer = KernelDensity(bandwidth=1.0).fit(Y)
        yield compare(
            f"h = 1, d = {d}, n = {n}, m = {m}", "scikit-learn",
            ours=lambda: log_kde(X, Y, 1.0, threads=THREADS), theirs=lambda: peer.score_samples(X), **common,
        )  # fmt: skip
    from scipy.stats import gaussian_kde

    scipy_peer = gaussian_kde(Y.T)
    h = float(scipy_peer.factor)
    yield compare(
        f"whitened, Scott, d = {d}, n = {n}, m = {m}", "scipy",
        ours=lambda: log_kde(X, Y, h, whitening="covariance", threads=THREADS),
        theirs=lambda: scipy_peer.logpdf(X.T), note="ours takes the covariance too", **common,
    )  # fmt: skip
    try:
        with Worker(
            "pykeops", "peer_pykeops.py", PYKEOPS, X=X.astype(np.float32), Y=Y.astype(np.float32)
        ) as peer:
            X32, Y32 = X.astype(np.float32), Y.astype(np.float32)
            yield compare(
                f"h = 1, d = {d}, n = {n}, m = {m}, float32", "pykeops",
                ours=lambda: log_kde(X32, Y32, 1.0, threads=THREADS), theirs=peer, **common,
            )  # fmt: skip
    except Exception as reason:  # it compiles its kernels here, or cannot
        print(f"  pykeops does not run here: {reason}")

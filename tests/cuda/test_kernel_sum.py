"""cuda/kernel_sum.cu against the reference in NumPy, under the host shim and on a GPU alike."""

from pathlib import Path

import numpy as np
import pytest

import mercer
from mercer.density import kernel_sum

SOURCE = (Path(__file__).parents[2] / "cuda" / "kernel_sum.cu").read_text()


def run(machine, X, Y, h, *, dtype=np.float64, kernel="gaussian", weights=None, leave_out=False, slices=1):
    """log of the sums (m, H), slices merged."""
    root = kernel == "exponential"
    (m, d), n = X.shape, len(Y)
    h = np.asarray(h, np.float64)
    scales = np.ascontiguousarray(1 / h if root else 1 / (2 * h * h), dtype)
    grid = scales.shape[-1]
    least, sums = np.full((slices, m), 7, dtype), np.full((slices, m, grid), 7, dtype)
    w = np.ones(1, dtype) if weights is None else weights.astype(dtype)
    machine(SOURCE).launch(
        "kernel_sums_f64" if dtype == np.float64 else "kernel_sums_f32", (-(-m // 32), slices), 128,
        np.ascontiguousarray(X, dtype), np.ascontiguousarray(Y, dtype), w, scales, least, sums, m, n, d, grid,
        grid if scales.ndim == 2 else 0, int(weights is not None), int(leave_out), int(root),
    )  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(np.isinf(least), 0, least)[..., None].astype(np.float64) * scales
        return np.logaddexp.reduce(np.log(sums.astype(np.float64)) - shift, axis=0)


CASES = [(1, 1, 1), (33, 70, 5), (5, 300, 40)]


@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("m", "n", "d"), CASES)
def test_sums_are_those_of_the_reference(machine, kernel, dtype, m, n, d):
    rng = np.random.default_rng(m)
    X, Y, w = (
        rng.standard_normal((m, d)),
        rng.standard_normal((n, d)),
        rng.random(n) * (np.arange(n) % 4 > 0) + (n == 1),
    )
    X[0] = Y[0]
    grid = np.geomspace(0.2, 5, 1 if m == 1 else 7)
    for weights in (None, w):
        with mercer.backend("reference"):
            want = kernel_sum(X, Y, grid, kernel, weights=weights, log=True)
        for slices in (1, 3):
            got = run(machine, X, Y, grid, dtype=dtype, kernel=kernel, weights=weights, slices=slices)
            tolerance = 1e-12 if dtype == np.float64 else 2e-5
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=10 * tolerance)


def test_leaving_out_and_bandwidths_of_each_query(machine):
    Y = np.random.default_rng(0).standard_normal((40, 3))
    H = np.geomspace(0.3, 3, 80).reshape(40, 2)
    with mercer.backend("reference"):
        want = kernel_sum(Y, Y, H, leave_one_out=True, log=True)
    np.testing.assert_allclose(run(machine, Y, Y, H, leave_out=True), want, rtol=1e-12, atol=1e-12)


def test_deep_underflow_stays_finite(machine):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((3, 64)), rng.standard_normal((90, 64))
    with mercer.backend("reference"):
        want = kernel_sum(X, Y, [1e-3, 0.01], log=True)
    np.testing.assert_allclose(run(machine, X, Y, [1e-3, 0.01]), want, rtol=1e-13)
    assert want.max() < -1e4

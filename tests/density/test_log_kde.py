"""Kernel density estimates against brute force, mpmath, scikit-learn, SciPy and the identities they obey."""

import signal
import subprocess
import sys
import time

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

import mercer
import strategies
from mercer.density import KernelDiagnostics, kernel_sum, log_kde
from mercer.density._kernels import KERNELS, draw_kernel, log_norm

COMPACT = ("tophat", "epanechnikov", "linear", "cosine")
RADIAL = {
    "gaussian": lambda r: np.exp(-r * r / 2),
    "exponential": lambda r: np.exp(-r),
    "tophat": lambda r: np.where(r < 1, 1.0, 0.0),
    "epanechnikov": lambda r: np.maximum(1 - r * r, 0),
    "linear": lambda r: np.maximum(1 - r, 0),
    "cosine": lambda r: np.where(r < 1, np.cos(np.pi * r / 2), 0.0),
}


def normals(n, d, seed, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def brute(X, Y, h, kernel, w):
    """sum w K((x - y)/h), the long way round."""
    U = (X[:, None].astype(np.float64) - Y[None]) / h
    if kernel == "laplace":
        K = np.exp(-np.abs(U).sum(-1))
    elif kernel == "cauchy":
        K = np.prod(1 / (1 + U * U), axis=-1)
    else:
        K = RADIAL[kernel](np.sqrt((U * U).sum(-1)))
    return K @ w


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 1), (5, 300, 2), (100, 1000, 3), (17, 513, 9)])
def test_sums_are_those_of_brute_force(kernel, m, n, d):
    X, Y = normals(m, d, 1), normals(n, d, 2)
    w = np.random.default_rng(3).random(n) * (np.arange(n) % 3 > 0) + (n == 1)
    grid = np.array([0.7, 2.0, 5.0])
    for weights in (None, w):
        want = np.stack([brute(X, Y, h, kernel, np.ones(n) if weights is None else w) for h in grid], axis=1)
        got = kernel_sum(X, Y, grid, kernel, weights=weights)
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-300)
        single = kernel_sum(X.astype(np.float32), Y.astype(np.float32), grid, kernel, weights=weights)
        if kernel not in ("tophat", "linear", "cosine", "epanechnikov"):
            np.testing.assert_allclose(single, want, rtol=3e-5)
        norm = np.log(np.sum(w) if weights is not None else n) + d * np.log(grid) + log_norm(kernel, d)
        with np.errstate(divide="ignore"):
            density = log_kde(X, Y, grid, kernel, weights=weights)
            np.testing.assert_allclose(density, np.log(want) - norm, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_integrate_to_one(kernel):
    def density(x):
        return np.exp(log_kde(np.reshape(x, (1, -1)), np.zeros((1, np.size(x))), 0.8, kernel)[0])

    area = integrate.quad(density, -400, 400, limit=500, points=(-0.8, 0.0, 0.8))[0]
    assert area == pytest.approx(1.0, abs=2e-3 if kernel == "cauchy" else 1e-6)
    for d in (2, 7, 40):
        if kernel in RADIAL:
            # The area of the sphere times the radial integral, from the definition, by mpmath.
            sphere = 2 * mpmath.pi ** (mpmath.mpf(d) / 2) / mpmath.gamma(mpmath.mpf(d) / 2)
            one = {
                "gaussian": lambda r: mpmath.exp(-r * r / 2),
                "exponential": lambda r: mpmath.exp(-r),
                "tophat": lambda r: 1,
                "epanechnikov": lambda r: 1 - r * r,
                "linear": lambda r: 1 - r,
                "cosine": lambda r: mpmath.cos(mpmath.pi * r / 2),
            }[kernel]
            end = [0, 1] if kernel in COMPACT else [0, 5, 20, 50, 200, 1000]
            radial = mpmath.quad(lambda r, one=one, d=d: r ** (d - 1) * one(r), end)
            assert log_norm(kernel, d) == pytest.approx(float(mpmath.log(sphere * radial)), abs=1e-9)


@pytest.mark.parametrize("kernel", ("gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine"))
def test_densities_are_those_of_scikit_learn(kernel):
    neighbors = pytest.importorskip("sklearn.neighbors")
    for d in (1, 2, 5):
        X, Y, w = normals(30, d, 0), normals(200, d, 1), np.random.default_rng(2).random(200)
        theirs = (
            neighbors.KernelDensity(bandwidth=1.3, kernel=kernel).fit(Y, sample_weight=w).score_samples(X)
        )
        with np.errstate(divide="ignore"):
            ours = log_kde(X, Y, 1.3, kernel, weights=w)
        if kernel == "cosine" and d == 2:  # their constant is that of odd d: theirs integrates to exp(-1.01)
            theirs += np.log((2 / np.pi) / (2 / np.pi - 4 / np.pi**2))
        reached = theirs > -25  # where nothing is, theirs may be the log of what rounding left
        np.testing.assert_allclose(ours[reached], theirs[reached], rtol=1e-9, atol=1e-9)
        assert (ours[~reached] < -25).all()


def test_whitened_densities_are_those_of_scipy():
    Y = normals(400, 3, 0) @ np.array([[2.0, 0.3, 0], [0, 1, 0], [0, 0, 0.1]]) + 50
    X, peer = Y[:20] + 0.01, stats.gaussian_kde(Y.T, bw_method=0.37)
    np.testing.assert_allclose(log_kde(X, Y, 0.37, whitening="covariance"), peer.logpdf(X.T), rtol=1e-10)
    with pytest.raises(ValueError, match="full rank"):
        log_kde(np.ones((2, 2)), [[1.0, 1], [2, 2], [3, 3]], 1.0, whitening="covariance")
    with pytest.raises(ValueError, match="invertible"):
        log_kde(np.ones((2, 2)), np.ones((3, 2)), 1.0, whitening=np.ones((2, 2)))
    W = np.array([[2.0, 0.5], [0.0, 3.0]])
    X, Y = normals(4, 2, 1), normals(9, 2, 2)
    want = log_kde(X @ W.T, Y @ W.T, 0.5) + np.log(6)
    np.testing.assert_allclose(log_kde(X, Y, 0.5, whitening=W), want, rtol=1e-12)


def test_deep_underflow_is_finite_and_right():
    X, Y, h = normals(3, 512, 0), normals(40, 512, 1), 1e-3
    got = log_kde(X, Y, h)
    mpf = mpmath.mpf
    with mpmath.workdps(40):
        for x, value in zip(X, got, strict=True):
            squares = [mpmath.fsum((mpf(a) - mpf(b)) ** 2 for a, b in zip(x, y, strict=True)) for y in Y]
            total = mpmath.fsum(mpmath.exp(-square / (2 * mpf(h) ** 2)) for square in squares)
            want = mpmath.log(total) - mpmath.log(40) - 256 * mpmath.log(2 * mpmath.pi * mpmath.mpf(h) ** 2)
            assert abs(value - float(want)) < 1e-13 * abs(float(want)) and value < -1e8


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_neither_place_nor_coincidence_costs_digits(shift, dtype):
    """What |x|² + |y|² - 2 x·y would ruin: data far from the origin, a query on a data point, a small bandwidth."""
    step = 2.0 ** (-3 if abs(shift) > 1e6 and dtype == np.float64 else -6)
    Y = (np.round(normals(500, 20, 0) / step) * step + shift).astype(dtype)
    X = Y[:5].copy()
    exact = Y.astype(np.float64) - X[:, None].astype(np.float64)  # differences of these numbers are exact
    square = (exact * exact).sum(-1)
    for h in (0.05, 1.0):
        e = -square / (2 * h * h)
        want = np.log(np.exp(e - e.max(1, keepdims=True)).sum(1)) + e.max(1)
        want -= np.log(500) + 10 * np.log(2 * np.pi * h * h)
        np.testing.assert_allclose(log_kde(X, Y, h), want, atol=1e-12 if dtype == np.float64 else 1e-4)


@given(
    strategies.arrays(shape=st.tuples(st.integers(0, 8), st.integers(1, 6)), min_value=-1e3, max_value=1e3),
    st.data(),
)
def test_any_layout_and_magnitude(X, data):
    n, d = data.draw(st.integers(1, 40)), X.shape[1]
    Y = normals(n, d, data.draw(st.integers(0, 1000)), X.dtype)
    h = data.draw(st.floats(1e-3, 1e3))
    kernel = data.draw(st.sampled_from(["gaussian", "exponential", "laplace", "cauchy"]))
    got = log_kde(X, Y, h, kernel)
    with mercer.backend("reference"):
        want = log_kde(X, Y, h, kernel)
    assert got.shape == (len(X),) and np.isfinite(got).all()
    np.testing.assert_allclose(got, want, rtol=1e-12 if X.dtype == np.float64 else 1e-5, atol=1e-4)


def test_rescaling_changes_the_density_by_the_volume():
    X, Y, c = normals(10, 6, 0), normals(50, 6, 1), 7.0
    for kernel in KERNELS:
        np.testing.assert_allclose(
            log_kde(c * X, c * Y, c * 2.5, kernel), log_kde(X, Y, 2.5, kernel) - 6 * np.log(c), atol=1e-11
        )


def test_one_data_point_is_a_gaussian():
    x = normals(5, 4, 0)
    want = stats.multivariate_normal(np.ones(4), 0.09 * np.eye(4)).logpdf(x)
    np.testing.assert_allclose(log_kde(x, np.ones((1, 4)), 0.3), want, rtol=1e-13)


@pytest.mark.parametrize("kernel", ("gaussian", "laplace", "epanechnikov", "cauchy"))
def test_leaving_one_out_is_leaving_it_out(kernel):
    Y, w = normals(300, 3, 0), np.random.default_rng(1).random(300)
    for weights in (None, w):
        got = log_kde(Y, Y, [1.5, 3.0], kernel, weights=weights, leave_one_out=True)
        for i in (0, 7, 299):
            rest = np.delete(np.arange(300), i)
            want = log_kde(
                Y[i : i + 1], Y[rest], [1.5, 3.0], kernel, weights=None if weights is None else w[rest]
            )
            np.testing.assert_allclose(got[i], want[0], rtol=1e-12)


def test_bandwidths_may_be_a_number_a_grid_or_one_a_query():
    X, Y = normals(7, 3, 0), normals(90, 3, 1)
    grid = np.array([0.3, 1.0, 4.0])
    table = log_kde(X, Y, grid)
    assert table.shape == (7, 3)
    for j, h in enumerate(grid):
        np.testing.assert_allclose(log_kde(X, Y, h), table[:, j], rtol=1e-14)
    own = np.linspace(0.5, 2, 7)
    each = log_kde(X, Y, own[:, None])
    assert each.shape == (7,)
    for i, h in enumerate(own):
        assert each[i] == pytest.approx(log_kde(X[i : i + 1], Y, h)[0], rel=1e-14)
    np.testing.assert_allclose(
        log_kde(X, Y, np.tile(grid, (7, 1)), "cauchy"), log_kde(X, Y, grid, "cauchy"), rtol=1e-14
    )


def test_diagnostics_are_those_of_the_shares():
    X, Y, w = normals(6, 30, 0), normals(200, 30, 1), np.random.default_rng(2).random(200)
    for kernel in ("gaussian", "epanechnikov"):
        for weights in (None, w):
            h = 0.8 if kernel == "gaussian" else 9.0
            found = log_kde(X, Y, h, kernel, weights=weights, return_diagnostics=True)
            assert isinstance(found, KernelDiagnostics)
            np.testing.assert_allclose(
                found.log_density, log_kde(X, Y, h, kernel, weights=weights), rtol=1e-13
            )
            r2 = ((X[:, None] - Y) ** 2).sum(-1) / h**2
            K = (
                np.exp(-(r2 - r2.min(1, keepdims=True)) / 2)
                if kernel == "gaussian"
                else np.maximum(1 - r2, 0)
            )
            K = K * (1 if weights is None else w)
            p = K / K.sum(1, keepdims=True)
            np.testing.assert_allclose(found.participation, (p * p).sum(1), rtol=1e-11)
            entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
            np.testing.assert_allclose(found.entropy, entropy, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit(dtype):
    for m, n, d in ((3, 40_000, 5), (500, 3000, 40)):
        X, Y = normals(m, d, 0, dtype), normals(n, d, 1, dtype)
        one = log_kde(X, Y, [0.3, 1.0], threads=1)
        for threads in (2, 5):
            np.testing.assert_array_equal(log_kde(X, Y, [0.3, 1.0], threads=threads), one)


@pytest.mark.parametrize("level", ["avx2", "scalar"])
def test_narrower_instructions_give_the_same_to_rounding(level):
    code = (
        "import numpy as np; from mercer.density import log_kde; from mercer import _core;"
        "X, Y = (np.random.default_rng(s).standard_normal((n, 19)) for s, n in ((0, 30), (1, 700)));"
        "print(_core.simd_level());"
        "[print(*log_kde(X.astype(t), Y.astype(t), 0.9, k).tolist()) for t in 'df' for k in ('gaussian', 'laplace')]"
    )
    import os

    def run(environment):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        name, *rows = ran.stdout.splitlines()
        return name, np.array([row.split() for row in rows], float)

    name, got = run({"MERCER_SIMD": level})
    assert name in (level, "scalar")
    np.testing.assert_allclose(got, run({})[1], rtol=1e-6)
    np.testing.assert_allclose(got[:2], run({})[1][:2], rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidth": 0.0}, r"bandwidth must be > 0 .* got 0.0"),
        ({"bandwidth": -1}, r"bandwidth must be > 0 .* got -1.0"),
        ({"bandwidth": np.nan}, r"bandwidth must be > 0 .* got nan"),
        ({"bandwidth": np.inf}, r"bandwidth must be > 0 .* got inf"),
        ({"bandwidth": []}, r"bandwidth must be a number"),
        ({"bandwidth": np.ones((3, 2))}, r"one row a query \(2, H\), got shape \(3, 2\)"),
        ({"kernel": "box"}, r"kernel must be one of .* got 'box'"),
        ({"Y": np.ones((4, 2))}, r"X must have the 2 columns of Y, got 3"),
        ({"Y": np.ones((0, 3))}, r"Y must have at least one row, got none"),
        ({"X": [[0.0, np.nan, 1]]}, r"X must be finite, row 0 contains NaN"),
        ({"Y": [[0.0, 0, 1], [0, np.inf, 1]]}, r"Y must be finite, row 1 contains NaN"),
        ({"X": np.ones(3)}, r"X must be a 2-D array"),
        ({"weights": [1.0, 2.0]}, r"weights must have shape \(4,\)"),
        ({"weights": [1.0, -2.0, 0, 0]}, r"weights must be finite and >= 0, got -2.0 at index 1"),
        ({"weights": np.zeros(4)}, r"weights must have a positive sum"),
        ({"leave_one_out": True}, r"leave_one_out must have X = Y"),
        ({"threads": 0}, r"threads must be"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_by_name(arguments, message):
    given = {"X": np.ones((2, 3)), "Y": np.ones((4, 3)), "bandwidth": 1.0, **arguments}
    with pytest.raises(ValueError, match=message):
        log_kde(**given)
    with pytest.raises(ValueError, match=message):
        kernel_sum(**given)


def test_no_query_gives_no_answer():
    assert log_kde(np.ones((0, 3)), np.ones((4, 3)), 1.0).shape == (0,)
    assert log_kde(np.ones((0, 3)), np.ones((4, 3)), [1.0, 2.0]).shape == (0, 2)


def test_what_a_compact_kernel_does_not_reach_has_density_zero():
    found = log_kde([[10.0, 0], [0.5, 0]], [[0.0, 0]], 1.0, "epanechnikov")
    assert found[0] == -np.inf and np.isfinite(found[1])


def test_draws_of_a_kernel_follow_it():
    for kernel in RADIAL:
        r = np.linalg.norm(draw_kernel(kernel, 20_000, 3, np.random.default_rng(0)), axis=1)
        grid = np.linspace(0, 60 if kernel == "exponential" else 8, 20_001)
        mass = integrate.cumulative_trapezoid(grid**2 * RADIAL[kernel](grid), grid, initial=0)
        assert stats.kstest(r, lambda x, g=grid, m=mass: np.interp(x, g, m / m[-1])).pvalue > 1e-6


def test_memory_beside_the_arrays_is_small():
    code = (
        "import resource, numpy as np; from mercer.density import log_kde;"
        "Y = np.ones((60_000, 128)) + np.arange(60_000)[:, None]; X = Y[:3000].copy();"
        "log_kde(X[:2], Y[:500], 1.0);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); log_kde(X, Y, [1.0, 2.0], threads=2); print(peak() - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) < 64


def test_ctrl_c_stops_within_a_second():
    code = (
        "import numpy as np; from mercer.density import log_kde;"
        "Y = np.random.default_rng(0).standard_normal((200_000, 64));"
        "print('go', flush=True); log_kde(Y, Y, 1.0)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "go\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        asked = time.perf_counter()
        _, error = process.communicate(timeout=30)
    assert time.perf_counter() - asked < 3 and "KeyboardInterrupt" in error

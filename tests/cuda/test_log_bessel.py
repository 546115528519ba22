"""cuda/log_bessel.cu: recorded truth, mpmath and exact rationals, under the host shim and on a GPU alike."""

import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "cuda" / "log_bessel.cu").read_text()
TABLE = "54-log-bessel/bessel_table.npz"
RECORDED = {
    "log_iv": "log_iv", "log_ive": "log_ive", "log_kv": "log_kv", "log_kve": "log_kve", "iv_ratio": "iv_ratio",
    "iv_ratio_complement": "one_minus_iv_ratio", "log_kv_ratio": "log_kv_ratio", "dlog_iv_dv": "dlog_iv_dv",
    "dlog_kv_dv": "dlog_kv_dv",
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    folders = [ROOT / "tests/reference", *(parent / "shared/golden" for parent in ROOT.parents)]
    path = next((folder / TABLE for folder in folders if (folder / TABLE).exists()), None)
    if path is None:
        pytest.skip("the recorded table is not here")
    return np.load(path)


def run(machine, name, v, x, dtype=np.float64):
    shape = np.broadcast_shapes(np.shape(v), np.shape(x))
    v, x = (np.ascontiguousarray(np.atleast_1d(a), dtype) for a in (v, x))
    out = np.empty(math.prod(shape), dtype)
    kernel = f"{name}_{'f64' if dtype == np.float64 else 'f32'}"
    machine(SOURCE).launch(kernel, 3, 64, v, x, out, len(out), int(len(v) > 1), int(len(x) > 1))
    return out.reshape(shape)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_table(machine, table, name):
    v, x, truth = table["v"], table["x"], table[RECORDED[name]]
    got = run(machine, name, v, x)
    error = np.abs(got - truth)
    size = np.maximum(1, np.abs(truth))
    assert np.isfinite(got[np.isfinite(truth)]).all()
    if name.startswith("dlog"):
        assert (error <= 1e-11 * size).all()
    elif name == "iv_ratio":
        assert (error <= 4e-15 * np.abs(truth)).all()
    elif name == "iv_ratio_complement":
        assert (error <= 1e-13 * np.abs(truth)).all()
    else:
        # v eta in double-double: no allowance for what the last bit of the inputs is worth is needed.
        assert (error <= 4e-15 * size).all()
        assert np.median(error / size) <= 1.5e-16
        assert np.quantile(error / size, 0.99) <= 1e-15


@pytest.mark.parametrize("name", ["log_iv", "log_kv", "iv_ratio", "log_kv_ratio"])
def test_float32_is_the_rounded_truth(machine, table, name):
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(5)
    v = np.exp(rng.uniform(-3, 5, 200)).astype(np.float32)
    x = np.exp(rng.uniform(-6, 6, 200)).astype(np.float32)
    f = {
        "log_iv": lambda v, x: mpmath.log(mpmath.besseli(v, x)),
        "log_kv": lambda v, x: mpmath.log(mpmath.besselk(v, x)),
        "iv_ratio": lambda v, x: mpmath.besseli(v + 1, x) / mpmath.besseli(v, x),
        "log_kv_ratio": lambda v, x: mpmath.log(mpmath.besselk(v + 1, x) / mpmath.besselk(v, x)),
    }[name]
    got = run(machine, name, v, x, np.float32)
    with mpmath.workdps(30):
        truth = np.array(
            [float(f(mpmath.mpf(float(a)), mpmath.mpf(float(b)))) for a, b in zip(v, x, strict=True)]
        )
    assert (np.abs(got - truth) <= np.maximum(np.spacing(np.abs(truth.astype(np.float32))), 4e-15)).all()


def _log_derivative(mpmath, kind, v, x, order):
    """L' = v/x ± ratio, then L'' = 1 + (v/x)² - L'/x - L'² differentiated."""
    if kind == "iv":
        d1 = v / x + mpmath.besseli(v + 1, x) / mpmath.besseli(v, x)
    else:
        d1 = v / x - mpmath.besselk(v + 1, x) / mpmath.besselk(v, x)
    o = v / x
    d2 = 1 + o**2 - d1 / x - d1**2
    d3 = -2 * o**2 / x - d2 / x + d1 / x**2 - 2 * d1 * d2
    d4 = 6 * o**2 / x**2 - d3 / x + 2 * d2 / x**2 - 2 * d1 / x**3 - 2 * d2**2 - 2 * d1 * d3
    return (d1, d2, d3, d4)[order - 1]


@pytest.mark.parametrize("kind", ["iv", "kv"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_derivatives_in_x(machine, kind, order):
    mpmath = pytest.importorskip("mpmath")
    points = [
        (v, x) for v in (0.0, 0.3, 1.0, 7.5, 24.0, 191.0) for x in (1e-4, 0.4, 3.0, 11.0, 24.0, 60.0, 900.0)
    ]
    v, x = np.array(points).T
    with mpmath.workdps(80):  # Digits enough for Riccati's equation, which loses those of a double.
        truth = [float(_log_derivative(mpmath, kind, mpmath.mpf(v), mpmath.mpf(x), order)) for v, x in points]
    got = run(machine, f"log_{kind}_dx{order}", v, x)
    np.testing.assert_allclose(got, truth, rtol=1e-10, atol=1e-13)


def test_edges(machine):
    inf, nan = math.inf, math.nan
    v = np.array([0, 2.0, 0, 1, 1, nan, 1, 1.5])
    x = np.array([0, 0, inf, inf, nan, 1, -1, 5e-324])
    assert run(machine, "log_iv", v, x)[:4].tolist() == [0, -inf, inf, inf]
    assert run(machine, "log_kv", v, x)[:4].tolist() == [inf, inf, -inf, -inf]
    assert run(machine, "iv_ratio", v, x)[:4].tolist() == [0, 0, 1, 1]
    assert np.isnan(run(machine, "log_iv", v, x)[4:7]).all()
    tiny = run(machine, "log_iv", v, x)[7]
    assert tiny == pytest.approx(1.5 * (math.log(5e-324) - math.log(2)) - math.lgamma(2.5), rel=1e-15)


def test_orders_and_arguments_at_the_ends_of_float64(machine):
    mpmath = pytest.importorskip("mpmath")
    v, x = (
        a.ravel() for a in np.meshgrid([1e100, 1e155, 1e300], [5e-324, 1e-310, 1e-100, 1.0, 1e100, 1e300])
    )
    got = run(machine, "log_iv", v, x)
    with mpmath.workdps(1000):
        truth = []
        for a, b in zip(v, x, strict=True):
            a, b = mpmath.mpf(float(a)), mpmath.mpf(float(b))
            r = mpmath.sqrt(a * a + b * b)
            truth.append(float(r + a * mpmath.log(b / (a + r)) - mpmath.log(2 * mpmath.pi * r) / 2))
    np.testing.assert_allclose(got, truth, rtol=1e-15)


def test_negative_orders(machine):
    v, x = np.array([-2.0, -0.5, -3.25]), 1.7
    i, k = run(machine, "log_iv", v, x), run(machine, "log_kv", v, x)
    assert i[0] == run(machine, "log_iv", 2.0, np.array([x]))[0] and np.isnan(i[1:]).all()
    np.testing.assert_array_equal(k, run(machine, "log_kv", -v, x))


def test_no_step_is_seen_where_the_expansions_meet(machine):
    """Both sides of each edge lie on one smooth curve: the jump is no more than the slope makes it."""
    for radius in (25.0, 44.0, 111.0, 622.0, 10300.0):
        angle = np.linspace(0.01, np.pi / 2 - 0.01, 40)
        inside, outside = radius * (1 - 1e-9), radius * (1 + 1e-9)
        for name in ("log_ive", "log_kve", "iv_ratio", "log_kv_ratio"):
            y = [run(machine, name, r * np.sin(angle), r * np.cos(angle)) for r in (inside, outside)]
            slack = 4e-9 * radius * (1 + np.abs(np.log(np.tan(angle)))) if "ratio" not in name else 1e-8
            assert (np.abs(y[1] - y[0]) <= slack).all()


def test_one_value_for_all_and_more_points_than_threads(machine):
    x = np.linspace(0.1, 300, 1000)
    np.testing.assert_array_equal(
        run(machine, "log_kv", 3.5, x), run(machine, "log_kv", np.full_like(x, 3.5), x)
    )


def test_the_table_of_debye_polynomials_is_exact():
    numbers = re.search(r"double U\[189\] = \{(.*?)\};", SOURCE, re.S)[1]
    found = [float(n) for n in re.findall(r"-?\d[\d.e+-]*(?=,)", re.sub(r"//.*", "", numbers))]
    # u_{k+1} = t²(1-t²)u_k'/2 + int (1-5t²)u_k/8 (DLMF 10.41.9); u_k = sum_j c_j t^(k+2j).
    rows, c = [], [Fraction(1)]
    for k in range(18):
        new = [Fraction(0)] * (k + 2)
        for j, a in enumerate(c):
            power = k + 2 * j
            new[j] += a * Fraction(power, 2) + a / (8 * (power + 1))
            new[j + 1] -= a * Fraction(power, 2) + 5 * a / (8 * (power + 3))
        rows += (c := new)
    assert found == [float(a) for a in rows]

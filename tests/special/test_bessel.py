"""mercer.special against 60-digit arithmetic, closed forms, identities and its contract."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import mpmath as mp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mercer
from mercer import special
from tests.special import bessel_truth as truth

LOGS = {
    "log_iv": (truth.log_iv, 0),
    "log_kv": (truth.log_kv, 0),
    "log_ive": (truth.log_iv, -1),
    "log_kve": (truth.log_kv, 1),
}
ULP = 2.0**-53

# Where one method hands over to the next: radii of the uniform expansion, arguments of the series and rules.
RADII = [25.0, 44.0, 50.0, 66.0, 111.0, 291.0, 622.0, 10300.0]
ARGUMENTS = [1.0, 1.5, 4.0, 5.0, 10.0, 12.0, 25.0]


def edges() -> list[tuple[float, float]]:
    points = []
    for radius in RADII:
        for angle in (0.0, 0.1, 0.7, 0.9, 1.2, 1.5, 1.57):
            for side in (1 - 1e-9, 1 + 1e-9):
                points.append((radius * side * math.sin(angle), radius * side * math.cos(angle)))
    for x in ARGUMENTS:
        for v in (0.0, 1e-9, 0.3, 0.5, 1.0, 2.5, 7.5, 11.0, 19.49999999, 19.5, 22.2):
            points += [(v, np.nextafter(x, 0)), (v, x)]
    return points


def scattered(n: int, seed: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    wide = zip(10 ** rng.uniform(-6, 5, n), 10 ** rng.uniform(-8, 5, n), strict=True)
    box = zip(rng.uniform(0, 30, n), rng.uniform(0, 30, n), strict=True)
    size = 10 ** rng.uniform(0, 5, n)
    crossing = zip(size * rng.uniform(0.9, 1.1, n), size * rng.uniform(0.6, 0.7, n), strict=True)
    return [(float(v), float(x)) for part in (wide, box, crossing) for v, x in part]


def allowance(name: str, v: float, x: float, value: mp.mpf) -> float:
    """The bar: 4e-15 and what the last bit of the inputs is worth."""
    first = name[:6]
    dx = special.__dict__[first + "_derivatives"](v, x)[0] + LOGS[name][1]
    dv = special.__dict__["d" + first + "_dv"](v, x)
    return 4e-15 * max(1.0, abs(float(value))) + ULP * (abs(x * dx) + abs(v * dv))


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("points", [edges(), scattered(60, 1)], ids=["edges", "scattered"])
def test_logarithms_meet_the_truth(name, points):
    log, scale = LOGS[name]
    got = getattr(special, name)(*np.array(points).T)
    relative = []
    for (v, x), value in zip(points, got, strict=True):
        true = log(v, x) + scale * mp.mpf(x)
        error = abs(float(mp.mpf(float(value)) - true))
        assert error <= allowance(name, v, x, true), (name, v, x, value, float(true))
        relative.append(error / max(1.0, abs(float(true))))
    assert np.median(relative) <= 1.5e-16
    assert np.quantile(relative, 0.99) <= 1e-15


@pytest.mark.parametrize("points", [edges(), scattered(40, 2)], ids=["edges", "scattered"])
def test_ratios_meet_the_truth(points):
    v, x = np.array(points).T
    ratio, rest = special.iv_ratio(v, x), special.iv_ratio_complement(v, x)
    up, log_up = special.kv_ratio(v, x), special.log_kv_ratio(v, x)
    for i, (order, at) in enumerate(points):
        true = mp.exp(truth.log_iv(mp.mpf(order) + 1, at) - truth.log_iv(order, at))
        assert abs(ratio[i] / true - 1) <= 4e-15
        assert abs(rest[i] / (1 - true) - 1) <= 1e-13
        true = truth.log_kv(mp.mpf(order) + 1, at) - truth.log_kv(order, at)
        assert abs(log_up[i] - true) <= 4e-15 * max(1, abs(true))
        assert abs(up[i] / mp.exp(true) - 1) <= 4e-15


@pytest.mark.parametrize("points", [edges()[::3], scattered(12, 3)], ids=["edges", "scattered"])
@pytest.mark.parametrize("kind", ["i", "k"])
def test_derivatives_meet_the_truth(kind, points):
    log = truth.log_iv if kind == "i" else truth.log_kv
    v, x = np.array(points).T
    in_x = getattr(special, f"log_{kind}v_derivatives")(v, x, order=4)
    in_v = getattr(special, f"dlog_{kind}v_dv")(v, x)
    for i, (order, at) in enumerate(points):
        for k in range(4):
            true = float(truth.derivative(log, order, at, k + 1))
            assert math.isclose(in_x[k, i], true, rel_tol=1e-10, abs_tol=1e-13), (order, at, k + 1)
        if order > 1e-6:
            true = float(truth.derivative(log, order, at, 1, in_order=True))
            assert abs(in_v[i] - true) <= 1e-11 * max(1.0, abs(true)), (order, at)


@pytest.mark.parametrize("name", [*LOGS, "iv_ratio", "iv_ratio_complement", "kv_ratio", "log_kv_ratio"])
def test_float32_is_within_one_ulp(name):
    rng = np.random.default_rng(4)
    v = np.r_[10 ** rng.uniform(-3, 4, 60), rng.uniform(0, 30, 60)].astype(np.float32)
    x = np.r_[10 ** rng.uniform(-5, 4, 60), rng.uniform(0, 30, 60)].astype(np.float32)
    got = getattr(special, name)(v, x)
    assert got.dtype == np.float32
    for order, at, value in zip(v.tolist(), x.tolist(), got, strict=True):
        if name in LOGS:
            true = LOGS[name][0](order, at) + LOGS[name][1] * mp.mpf(at)
        elif "k" in name:
            true = truth.log_kv(mp.mpf(order) + 1, at) - truth.log_kv(order, at)
            true = true if name == "log_kv_ratio" else mp.exp(true)
        else:
            true = mp.exp(truth.log_iv(mp.mpf(order) + 1, at) - truth.log_iv(order, at))
            true = 1 - true if name == "iv_ratio_complement" else true
        if abs(true) > np.finfo(np.float32).max:
            continue
        error = abs(float(mp.mpf(float(value)) - true))
        assert error <= max(4e-15, float(np.spacing(np.float32(abs(true))))), (name, order, at)


EXTREMES = [
    (0.0, 5e-324),
    (0.5, 5e-324),
    (1.0, 1e-310),
    (24.9, 5e-324),
    (24.4, 1e-300),
    (26.0, 5e-324),
    (1e6, 5e-324),
    (1e-300, 1e-300),
    (1e-12, 1e-12),
    (5e-324, 30.0),
    (1e300, 1e-300),
    (1e305, 1e305),
    (1e200, 1.0),
    (3.0, 1e300),
    (0.0, 1e300),
    (1e8, 1e300),
    (1e160, 1e150),
    (1e10, 1e-290),
]


@pytest.mark.parametrize(("v", "x"), EXTREMES)
def test_finite_wherever_the_truth_is(v, x):
    with mp.workdps(700):  # sums of 1e300 and 1e-300
        for name, (log, scale) in LOGS.items():
            if mp.hypot(v, x) > 600:
                true = log(v, x) + scale * mp.mpf(x)
            elif x < 1e-20:  # the leading terms of DLMF 10.30
                order, at = mp.mpf(v), mp.mpf(x)
                if log is truth.log_iv:
                    true = order * mp.log(at / 2) - mp.loggamma(order + 1)
                else:
                    # ((2/x)^v Gamma(v) + (x/2)^v Gamma(-v)) / 2
                    order = order or mp.mpf(10) ** -320
                    true = mp.log(
                        (mp.gamma(order) * (2 / at) ** order + mp.gamma(-order) * (at / 2) ** order) / 2
                        if v != int(v) or v == 0
                        else mp.gamma(order) * (2 / at) ** order / 2
                    )
            else:
                true = log(v, x) + scale * mp.mpf(x)
            got = float(getattr(special, name)(v, x))
            assert math.isfinite(got) or abs(true) > 1.8e308, name
            if math.isfinite(got):
                assert abs(got - true) <= allowance(name, v, x, true), (name, got, float(true))


def test_limits_at_zero_and_infinity():
    inf = math.inf
    cases = {
        "log_iv": {(0, 0): 0, (2, 0): -inf, (2, inf): inf, (inf, 2): -inf},
        "log_ive": {(0, 0): 0, (2, 0): -inf, (2, inf): -inf},
        "log_kv": {(0, 0): inf, (2, 0): inf, (2, inf): -inf, (inf, 2): inf},
        "log_kve": {(0, 0): inf, (2, inf): -inf},
        "iv_ratio": {(0, 0): 0, (2, inf): 1},
        "iv_ratio_complement": {(0, 0): 1, (2, inf): 0},
        "kv_ratio": {(0, 0): inf, (2, inf): 1},
        "log_kv_ratio": {(2, inf): 0},
        "dlog_iv_dv": {(2, 0): -inf},
        "dlog_kv_dv": {(2, 0): inf, (0, 3): 0},
    }
    for name, values in cases.items():
        for (v, x), want in values.items():
            assert getattr(special, name)(float(v), float(x)) == want, (name, v, x)
    np.testing.assert_array_equal(special.log_iv_derivatives(0.0, 0.0, order=4), [0, 0.5, 0, -0.375])
    assert special.iv_ratio_inverse(3.0, 1.0) == inf
    assert special.iv_ratio_inverse(3.0, 0.0) == 0


ELEMENTWISE = [
    *LOGS,
    "iv_ratio",
    "iv_ratio_complement",
    "kv_ratio",
    "log_kv_ratio",
    "dlog_iv_dv",
    "dlog_kv_dv",
]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_stays_where_it_is(name):
    v = np.array([1.0, np.nan, 3.0, 4.0, 500.0])
    x = np.array([2.0, 2.0, np.nan, 5.0, 600.0])
    got = getattr(special, name)(v, x)
    np.testing.assert_array_equal(np.isnan(got), [False, True, True, False, False])
    np.testing.assert_array_equal(got[[0, 3, 4]], getattr(special, name)(v[[0, 3, 4]], x[[0, 3, 4]]))


def test_negative_orders_as_defined():
    x = np.array([0.3, 4.0, 60.0])
    np.testing.assert_array_equal(special.log_iv(-3, x), special.log_iv(3, x))
    np.testing.assert_array_equal(special.log_kv(-3.7, x), special.log_kv(3.7, x))
    np.testing.assert_array_equal(special.dlog_kv_dv(-3.7, x), -special.dlog_kv_dv(3.7, x))
    np.testing.assert_array_equal(
        special.log_kv_derivatives(-3.7, x, 2), special.log_kv_derivatives(3.7, x, 2)
    )


def test_bad_input_is_named():
    x = np.ones((2, 3))
    x[1, 2] = -0.5
    with pytest.raises(ValueError, match=r"x must be >= 0, got -0.5 at index 1, 2"):
        special.log_iv(1.0, x)
    with pytest.raises(ValueError, match=r"v must be >= 0 or a whole number, got -0.5"):
        special.log_iv(-0.5, 1.0)
    with pytest.raises(ValueError, match=r"v must be >= 0, got -1.0 at index 1"):
        special.iv_ratio([1.0, -1.0], 1.0)
    for bad in (1j, "a", None, [object()], np.array(["1"])):
        with pytest.raises(TypeError, match="x must be real numbers"):
            special.log_kv(1.0, bad)
    with pytest.raises(ValueError, match=r"r must be in \[0, 1\], got 1.5"):
        special.iv_ratio_inverse(1.0, 1.5)
    with pytest.raises(ValueError, match="order must be a whole number from 1 to 4, got 5"):
        special.log_iv_derivatives(1.0, 1.0, order=5)
    with pytest.raises(ValueError, match="threads must be a whole number >= 1, got 0"):
        special.log_iv(1.0, 1.0, threads=0)
    with pytest.raises(ValueError, match=r"out must have shape \(3,\), got \(2,\)"):
        special.log_iv(np.ones(3), 1.0, out=np.empty(2))
    with pytest.raises(TypeError, match="out must be float32 or float64, got int64"):
        special.log_iv(np.ones(3), 1.0, out=np.empty(3, np.int64))
    with pytest.raises(ValueError, match="broadcast"):
        special.log_iv(np.ones(3), np.ones(2))


def test_broadcasts_like_a_ufunc_and_keeps_the_dtype():
    v, x = np.arange(4.0)[:, None], np.linspace(0.1, 90, 5)
    got = special.log_iv(v, x)
    assert got.shape == (4, 5)
    np.testing.assert_array_equal(got[2], special.log_iv(2.0, x))
    assert special.log_iv(1.0, np.float32(2)).dtype == np.float32
    assert special.log_iv(np.float64(1.0), np.float32(2)).dtype == np.float64
    assert special.log_iv(np.arange(3), 2).dtype == np.float64
    assert isinstance(special.log_iv(1, 2), np.float64)
    assert special.log_iv(np.ones((0, 3)), 1.0).shape == (0, 3)
    assert special.log_iv_derivatives(v, x, order=3).shape == (3, 4, 5)


def test_any_memory_layout_and_out():
    rng = np.random.default_rng(5)
    v, x = rng.uniform(0, 60, (40, 50)), rng.uniform(0, 60, (40, 50))
    want = special.log_kv(v, x)
    np.testing.assert_array_equal(special.log_kv(v.T, x.T).T, want)
    np.testing.assert_array_equal(special.log_kv(v[::-1, ::2], x[::-1, ::2]), want[::-1, ::2])
    np.testing.assert_array_equal(special.log_kv(v.astype(">f8"), x), want)
    for out in (np.empty((40, 50)), np.empty((50, 40)).T, np.empty((40, 100))[:, ::2]):
        assert special.log_kv(v, x, out=out) is out
        np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(
        special.log_kv(v, x, out=np.empty((40, 50), np.float32)), want.astype(np.float32)
    )
    in_place = x.copy()
    special.log_kv(v, in_place, out=in_place)
    np.testing.assert_array_equal(in_place, want)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_same_bits_for_any_number_of_threads_and_any_place(name):
    rng = np.random.default_rng(6)
    v, x = 10 ** rng.uniform(-2, 4, 40_000), 10 ** rng.uniform(-2, 4, 40_000)
    f = getattr(special, name)
    one = f(v, x, threads=1)
    np.testing.assert_array_equal(f(v, x, threads=3), one)
    np.testing.assert_array_equal(f(v[17:], x[17:]), one[17:])
    np.testing.assert_array_equal([f(a, b) for a, b in zip(v[:50], x[:50], strict=True)], one[:50])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_pool_survives_a_fork():
    """As in the workers of a DataLoader: the threads of the parent do not exist in the child."""
    script = (
        "import os, numpy as np\n"
        "from mercer import special\n"
        "x = np.linspace(1, 100, 200_000)\n"
        "before = special.log_iv(3.0, x, threads=2)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(special.log_iv(3.0, x, threads=2), before) else 3)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_same_bits_at_every_vector_width():
    """What eight lanes compute, four and one do as well: in processes that keep the wider instructions out."""
    script = (
        "import sys, numpy as np, mercer\n"
        "from mercer import special\n"
        "rng = np.random.default_rng(8)\n"
        "v, x = 10 ** rng.uniform(-2, 4, 3000), 10 ** rng.uniform(-2, 4, 3000)\n"
        f"for name in {ELEMENTWISE}:\n"
        "    sys.stdout.buffer.write(getattr(special, name)(v, x).tobytes())\n"
    )
    outputs = {
        level: subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "MERCER_SIMD": level},
            capture_output=True,
            check=True,
        ).stdout
        for level in ("", "avx2", "scalar")
    }
    assert len(outputs[""]) == 3000 * 8 * len(ELEMENTWISE)
    assert outputs[""] == outputs["avx2"] == outputs["scalar"]


ORDER = st.one_of(st.just(0.0), st.floats(0, 1e7), st.floats(1e-3, 60))
ARGUMENT = st.one_of(st.floats(1e-6, 1e7), st.floats(1e-3, 60))


@given(ORDER, ARGUMENT)
def test_wronskian(v, x):
    """I_v K_{v+1} + I_{v+1} K_v = 1/x (DLMF 10.28.2), as scale-free ratios."""
    product = special.log_ive(v, x) + special.log_kve(v, x) + math.log(x)
    slack = 1e-14 * (1 + abs(special.log_ive(v, x)) + abs(math.log(x)))
    assert abs(product + math.log(special.iv_ratio(v, x) + special.kv_ratio(v, x))) <= slack


@given(ORDER, ARGUMENT, st.floats(1e-6, 1.0))
def test_monotone_in_order_and_argument(v, x, step):
    a, b = x, x * (1 + step)
    assert special.log_iv(v, b) > special.log_iv(v, a)
    assert special.log_kv(v, b) < special.log_kv(v, a)
    assert special.log_iv(v + 1, x) < special.log_iv(v, x)
    assert special.log_kv(v + 1, x) > special.log_kv(v, x)


@given(st.floats(1e-3, 1e6))
def test_half_integer_orders_in_closed_form(x):
    log_sinh = mp.log(mp.sinh(mp.mpf(x)))
    half = mp.log(2 / (mp.pi * mp.mpf(x))) / 2
    for name, true in (("log_iv", half + log_sinh), ("log_kv", half + mp.log(mp.pi / 2) - x)):
        got = getattr(special, name)(0.5, x)
        assert abs(got - true) <= 4e-15 * max(1, abs(true)) + 2 * ULP * x


@given(st.one_of(st.just(0.0), st.floats(0, 2e4)), st.floats(1e-6, 1e7))
def test_inverse_ratio_returns_to_its_argument(v, x):
    r, rest = special.iv_ratio(v, x), special.iv_ratio_complement(v, x)
    back = special.iv_ratio_inverse(v, r, complement=rest)
    assert math.isclose(back, x, rel_tol=1e-12)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
def test_ctrl_c_stops_within_a_second():
    r = np.full(30_000_000, 0.97)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            special.iv_ratio_inverse(191.0, r)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 1.5


def test_reference_backend_is_another_implementation_with_the_same_values():
    v, x = np.array([0.0, 0.3, 30.0, 700.0]), np.array([0.5, 20.0, 31.0, 900.0])
    for name in ELEMENTWISE:
        fast = getattr(special, name)(v, x)
        with mercer.backend("reference"):
            plain = getattr(special, name)(v, x)
        assert np.all(abs(plain - fast) <= 3e-12 * np.maximum(1, abs(fast))), name
    with mercer.backend("reference"):
        np.testing.assert_allclose(special.iv_ratio_inverse(v, special.iv_ratio(v, x)), x, rtol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_negative_is_found_wherever_it_is(dtype):
    x = np.ones(100_000, dtype)
    x[7] = np.nan
    for at in (99_999, 65_536, 8191, 8, 0):
        x[at] = -1e-30
        with pytest.raises(
            ValueError, match=rf"got -1e-30 at index {at}$" if dtype == np.float64 else f"index {at}$"
        ):
            special.log_kv(1.0, x)

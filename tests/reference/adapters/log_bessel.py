"""log-Bessel: the table of values and the von Mises-Fisher table."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from adapters import Arrays, Case, Check, table, worst
from mercer import special

GOOD = 4e-15
HALF_ULP = 2.0**-53
TINY = np.finfo(np.float64).tiny


@table("54-log-bessel", "bessel_table")
def bessel_table(case: Case, arrays: Arrays) -> Iterator[Check]:
    v, x = arrays["v"], arrays["x"]
    ratio, complement = arrays.get("iv_ratio"), arrays.get("one_minus_iv_ratio")
    log_k_ratio, by_v = arrays.get("log_kv_ratio"), arrays
    # x df/dx and v df/dv of each function: what the last bit of x and of v is worth.
    slopes = {
        "log_iv": lambda: (v + x * ratio, v * by_v["dlog_iv_dv"]),
        "log_ive": lambda: (v - x * complement, v * by_v["dlog_iv_dv"]),
        "log_kv": lambda: (v - x * np.exp(log_k_ratio), v * by_v["dlog_kv_dv"]),
        "log_kve": lambda: (v - x * np.expm1(log_k_ratio), v * by_v["dlog_kv_dv"]),
    }
    for name, true in arrays.items():
        scale = np.maximum(1.0, np.abs(true))
        if name in slopes:
            yield from _logarithm(name, getattr(special, name)(v, x), true, *slopes[name]())
        elif name in ("dlog_iv_dv", "dlog_kv_dv"):
            yield worst(name, getattr(special, name)(v, x), true, 1e-11 * scale, "1e-11 max(1,|t|)")
        elif name == "log_kv_ratio":
            yield worst(name, special.log_kv_ratio(v, x), true, GOOD * scale, "4e-15 max(1,|t|)")
        elif name == "iv_ratio":
            yield _relative(name, special.iv_ratio(v, x), true, 4e-15)
        elif name == "one_minus_iv_ratio":
            yield _relative(name, special.iv_ratio_complement(v, x), true, 1e-13)
        elif name not in ("v", "x", "group"):
            yield Check(name, np.nan, 0.0, "this array is not known here")


def _logarithm(name, got, true, x_slope, v_slope) -> Iterator[Check]:
    scale = np.maximum(1.0, np.abs(true))
    bar = GOOD * scale + HALF_ULP * (np.abs(x_slope) + np.abs(v_slope))
    check = worst(name, got, true, bar, "4e-15 max(1,|t|) + half an ulp of v and x")
    yield check
    if np.isnan(check.error):
        return
    error = np.abs(got - true) / scale
    within = f"{np.count_nonzero(error <= GOOD)} of {error.size} within 4e-15"
    yield Check(f"{name} median", float(np.median(error)), 1.5e-16, "of max(1,|t|)")
    yield Check(f"{name} 99 %", float(np.quantile(error, 0.99)), 1e-15, f"of max(1,|t|); {within}")


def _relative(name, got, true, bar) -> Check:
    normal = np.abs(true) >= TINY
    return worst(name, np.asarray(got)[normal], true[normal], bar * np.abs(true[normal]), f"{bar:g} |t|")


@table("54-log-bessel", "vmf")
def vmf(case: Case, arrays: Arrays) -> Iterator[Check]:
    from mercer.density import VonMisesFisher, kappa_banerjee, kappa_mle, kappa_sra

    d, r, kappa = arrays["d"], arrays["r_bar"], arrays["kappa_mle"]
    # 1/(1 - r) is what the last bit of r is worth; of kappa itself the reference asks 1e-12 to r = 0.9999.
    loose = 4e-16 / (1 - r) + 1e-12
    strict = np.where(r <= 0.9999, 1e-12, loose)
    estimators = {
        "kappa_mle": (kappa_mle, strict, "1e-12 |t|, past r = 0.9999 (4e-16/(1-r) + 1e-12) |t|"),
        "kappa_banerjee": (kappa_banerjee, strict, "1e-12 |t|, past r = 0.9999 (4e-16/(1-r) + 1e-12) |t|"),
        "kappa_sra1": (partial(kappa_sra, steps=1), loose, "(4e-16/(1-r) + 1e-12) |t|"),
        "kappa_sra2": (partial(kappa_sra, steps=2), loose, "(4e-16/(1-r) + 1e-12) |t|"),
    }
    for name, (estimate, bar, note) in estimators.items():
        true = arrays[name]
        got = [float(estimate(r_bar, int(dim))) for r_bar, dim in zip(r, d, strict=True)]
        yield worst(name, got, true, bar * true, note)

    fitted = [_on_first_axis(VonMisesFisher, dim, k) for dim, k in zip(d, kappa, strict=True)]
    true = arrays["log_norm_const"]
    scale = np.maximum(1.0, np.abs(true))
    # True at the unrounded kappa, of which the table keeps float64: d log C / d kappa = -A = -r.
    bar = 1e-13 * scale + HALF_ULP * kappa * r
    got = [p.log_norm_const() for p in fitted]
    yield worst("log_norm_const", got, true, bar, "1e-13 max(1,|t|) + half an ulp of kappa")
    # H = -log C - kappa A: what is left of two large terms.
    yield worst(
        "entropy", [p.entropy() for p in fitted], arrays["entropy"], 1e-13 * scale, "1e-13 max(1,|log C|)"
    )

    # A'(kappa) = (log I)'' + v / kappa^2, whose terms cancel where kappa is small.
    v = d / 2 - 1.0
    second = special.log_iv_derivatives(v, kappa, order=2)[1]
    bar = np.maximum(1e-10 * np.abs(arrays["dA"] - v / kappa**2), 1e-13) + 4 * HALF_ULP * v / kappa**2
    yield worst("dA", second + v / kappa**2, arrays["dA"], bar, "1e-10 |(log I)''| or 1e-13")

    got, scale = [], []
    columns = (arrays[f"kl_{name}"] for name in ("d", "kappa_p", "kappa_q", "cos"))
    for dim, kappa_p, kappa_q, cos in zip(*columns, strict=True):
        p = _on_first_axis(VonMisesFisher, dim, kappa_p)
        q = _on_first_axis(VonMisesFisher, dim, kappa_q, cos)
        got.append(p.kl_divergence(q))
        scale.append(max(1.0, abs(p.log_norm_const()), abs(q.log_norm_const())))
    yield worst("kl", got, arrays["kl"], 1e-12 * np.array(scale), "1e-12 max(1,|log C_p|,|log C_q|)")


def _on_first_axis(distribution, dim, concentration, cos=1.0):
    """A distribution whose mean makes an angle of this cosine with the first axis."""
    mean = np.zeros(int(dim))
    mean[:2] = cos, np.sqrt(1 - cos * cos)
    return distribution(dim=int(dim), mean_direction=mean, concentration=float(concentration))

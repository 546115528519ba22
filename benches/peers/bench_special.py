"""log I and log K of 400,000 points a regime, against `log(ive) + x` and `log(kve) - x` of SciPy, on two threads and
on one. Only points where SciPy is finite are timed, ours into an `out=` array; the note says how many it loses. Two
regimes also against `logbesselk` (JAX, compiled), which has K only and loses digits outside a moderate range.
"""

from __future__ import annotations

import numpy as np
import scipy.special

from harness import Row, compare
from mercer import special

TITLE = "log-Bessel functions"


def regimes(n: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)

    def box(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        return rng.uniform(low, high, n), rng.uniform(low, high, n)

    return {
        "v, x in [0, 10]": box(0, 10),
        "v, x in [0, 150]": box(0, 150),
        "v, x in [150, 1e4]": box(150, 1e4),
        "v = 0, x < 1e4": (np.zeros(n), rng.uniform(0, 1e4, n)),
        "v = 191, x < 2000": (np.full(n, 191.0), rng.uniform(0, 2000, n)),
        "v = 1023, x < 1e4": (np.full(n, 1023.0), rng.uniform(0, 1e4, n)),
        "half-integer v < 50, x < 300": (rng.integers(0, 50, n) + 0.5, rng.uniform(0, 300, n)),
        "v, x log-uniform in 1e-2 .. 1e4": (10 ** rng.uniform(-2, 4, n), 10 ** rng.uniform(-2, 4, n)),
    }


def scipy_log_iv(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.log(scipy.special.ive(v, x)) + x


def scipy_log_kv(v: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.log(scipy.special.kve(v, x)) - x


def rows(quick: bool) -> list[Row]:
    n = 20_000 if quick else 400_000
    kinds = {"log I": (special.log_iv, scipy_log_iv), "log K": (special.log_kv, scipy_log_kv)}
    for threads in (2, 1):
        for regime, (v, x) in regimes(n).items():
            for kind, (ours, theirs) in kinds.items():
                with np.errstate(all="ignore"):
                    keep = np.isfinite(theirs(v, x))
                a, b = v[keep], x[keep]
                out = np.empty_like(b)
                yield compare(
                    f"{kind}, {regime}",
                    "scipy",
                    ours=lambda f=ours, a=a, b=b, out=out, t=threads: f(a, b, out=out, threads=t),
                    theirs=lambda f=theirs, a=a, b=b: f(a, b),
                    elements=b.size,
                    threads=threads,
                    rounds=3 if quick else 7,
                    at_least=0.02 if quick else 0.15,  # turns as long as SciPy's
                    note=f"scipy finite on {keep.mean():.0%}" if not keep.all() else "",
                )
    yield from against_logbesselk(n, quick)


def against_logbesselk(n: int, quick: bool) -> list[Row]:
    try:
        import jax
        from logbesselk.jax import log_bessel_k
    except ImportError:
        print("  logbesselk is not installed here")
        return
    jax.config.update("jax_enable_x64", True)
    batched = jax.jit(jax.vmap(log_bessel_k))
    for regime in ("v, x in [0, 10]", "v, x in [0, 150]"):
        v, x = (a[: n // 20] for a in regimes(n)[regime])
        a, b = jax.numpy.asarray(v), jax.numpy.asarray(x)
        true = special.log_kv(v, x)  # to 1e-15: see tests/special
        off = np.abs(np.asarray(batched(a, b)) - true) / np.maximum(1, np.abs(true))
        yield compare(
            f"log K, {regime}",
            "logbesselk",
            ours=lambda v=v, x=x: special.log_kv(v, x, threads=2),
            theirs=lambda a=a, b=b: batched(a, b).block_until_ready(),
            elements=x.size,
            threads=2,
            rounds=3 if quick else 7,
            note=f"its error: {off.max():.0e} at worst, above 1e-9 on {(off > 1e-9).mean():.1%}",
        )

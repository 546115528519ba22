"""log I and log K of 400,000 points a regime, against `log(ive) + x` and `log(kve) - x` of SciPy, on two threads and
on one. Only points where SciPy is finite are timed, both sides into one array; the note says how many it loses. Two
regimes also against `logbesselk` (JAX, compiled), which has K only and loses digits outside a moderate range.
"""

from __future__ import annotations

import numpy as np

from harness import Row, compare
from mercer import special
from mercer.reproduce.log_bessel import regimes, scipy_log

TITLE = "log-Bessel functions"


def rows(quick: bool) -> list[Row]:
    n = 20_000 if quick else 400_000
    kinds = {"i": special.log_iv, "k": special.log_kv}
    for threads in (2, 1):
        for regime, (v, x) in regimes(n, np.random.default_rng(0)).items():
            for kind, ours in kinds.items():
                with np.errstate(all="ignore"):
                    keep = np.isfinite(scipy_log(kind, v, x, np.empty_like(x)))
                a, b = v[keep], x[keep]
                out = np.empty_like(b)
                yield compare(
                    f"log {kind.upper()}, {regime}",
                    "scipy",
                    ours=lambda f=ours, a=a, b=b, out=out, t=threads: f(a, b, out=out, threads=t),
                    theirs=lambda kind=kind, a=a, b=b, out=out: scipy_log(kind, a, b, out),
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
    for regime in ("[0, 10]²", "[0, 150]²"):
        v, x = regimes(n // 20, np.random.default_rng(0))[regime]
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

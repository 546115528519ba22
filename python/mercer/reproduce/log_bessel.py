"""log-bessel: Plesner, Sørensen, Hauberg, "Accurate Computation of the Logarithm of Modified Bessel
Functions on GPUs".

ICS 2024, arXiv 2409.08729. Claims: log I and log K without overflow or underflow and with errors of the
order of machine precision; speed against SciPy on a CPU (median 35x, best 98x) and a GPU (77x, 300x); von
Mises–Fisher fits to image features in 2048, 8192 and 32768 dimensions, where SciPy and mpmath fail. The
baselines are SciPy and the paper's own table of expansions; the truth is mpmath's arithmetic at 40 digits
(`pip install mpmath`; nothing else of mercer needs it).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mercer import density, special
from mercer.density._concentration import mean_resultant_length, mean_resultant_slope
from mercer.reproduce import Evidence, Progress, Row, _published_bessel

__all__ = ["plot", "run"]

SEED = 54
BOXES = {"[0, 150]²": (1e-3, 150.0), "[150, 10000]²": (150.0, 1e4), "log-uniform 1e-2 to 1e4": (1e-2, 1e4)}
# Bounds of the contract: 4e-15 max(1, |true|), and what the last bit of (v, x) is worth.
ACCURACY, LAST_BIT = 4e-15, 2.0**-53
SPEED = {"median": 35.0, "best": 100.0, "small boxes": 10.0, "least": 5.0}


def run(*, quick: bool, progress: Progress) -> Evidence:
    """Measure the claims: about half a minute with `quick`, some minutes without, on two cores."""
    try:
        import mpmath  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "mpmath is the truth that log-bessel is measured against: pip install mpmath", name="mpmath"
        ) from None
    rng = np.random.default_rng(SEED)
    rows: list[Row] = []
    progress("accuracy: points of the truth in 40 digits", 0.0)
    accuracy = _accuracy(60 if quick else 500, rng, rows, progress)
    progress("finite values on [0, 10000]²", 0.45)
    _finiteness(50_000 if quick else 1_000_000, rng, rows)
    progress("speed against SciPy in 16 regimes", 0.5)
    _speed(400_000, 3 if quick else 9, rng, rows)
    progress("von Mises–Fisher fits in 2048, 8192 and 32768 dimensions", 0.8)
    _fits(quick, rows)
    _not_here(rows)
    return Evidence("log-bessel", rows, seed=SEED, figures=accuracy)


# Accuracy


def _truth(v: float, x: float, kind: str) -> Any:
    """log I_v(x) (a power series of positive terms) or log K_v(x) (the trapezoid rule on its integral)."""
    import mpmath as mp

    v, x = mp.mpf(v), mp.mpf(x)
    if kind == "i":
        q, term, total, k = x * x / 4, mp.mpf(1), mp.mpf(1), 0
        scale = v * mp.log(x / 2) - mp.loggamma(v + 1)
        while True:
            k += 1
            term *= q / (k * (k + v))
            total += term
            if term < total * mp.mpf(10) ** -40 and k * (k + v) > q:
                return scale + mp.log(total)
    # K_v(x) = 1/2 int exp(v t - x cosh t) dt over the line: a bell about asinh(v / x), where a step of half
    # its width leaves an error of e^-79; the strip of analyticity, of half-width pi/2, asks for at most 0.1.
    peak = mp.asinh(v / x)
    step = min(mp.mpf("0.5") / mp.root(v * v + x * x, 4), mp.mpf("0.1"))
    top = v * peak - x * mp.cosh(peak)
    total = mp.mpf(1)
    for sign in (1, -1):
        j = 1
        while True:
            t = peak + sign * j * step
            log_term = v * t - x * mp.cosh(t) - top
            if log_term < -80:
                break
            total += mp.exp(log_term)
            j += 1
    return top + mp.log(total * step / 2)


def _accuracy(points: int, rng: np.random.Generator, rows: list[Row], progress: Progress) -> dict[str, Any]:
    """Errors of ours, of the paper's table and of SciPy, over |true| where that exceeds 1."""
    import mpmath as mp
    from scipy import special as scipy_special

    orders, arguments = [], []
    for name, (low, high) in BOXES.items():
        draw = rng.uniform(low, high, (2, points))
        if name.startswith("log"):
            draw = np.exp(rng.uniform(np.log(low), np.log(high), (2, 2 * points)))
        orders.append(draw[0])
        arguments.append(draw[1])
    # the regions of the paper's table that boxes rarely meet, among them its fallback
    orders.append(rng.uniform(0.0, 12.0, points))
    arguments.append(rng.uniform(0.05, 28.0, points))
    v, x = np.concatenate(orders), np.concatenate(arguments)
    found: dict[str, Any] = {"v": v, "x": x, "region": _published_bessel.region(v, x)}
    with mp.workdps(40), np.errstate(all="ignore"):
        for kind, name in (("i", "log I"), ("k", "log K")):
            true = np.empty(len(v))
            worth = np.empty(len(v))  # of the last bit of the arguments
            exact = []
            for j, (a, b) in enumerate(zip(v.tolist(), x.tolist(), strict=True)):
                value = _truth(a, b, kind)
                near = mp.mpf(10) ** -12
                slope = abs(_truth(a * (1 + near), b, kind) - value) + abs(
                    _truth(a, b * (1 + near), kind) - value
                )
                exact.append(value)
                true[j], worth[j] = float(value), float(slope / near)
                if j % 50 == 0:
                    progress(f"{name}: point {j} of {len(v)}", 0.45 * (j / len(v) / 2 + (kind == "k") / 2))
            scale = np.maximum(1, np.abs(true))
            ours = getattr(special, f"log_{kind}v")(v, x)
            paper = getattr(_published_bessel, f"log_{kind}v")(v, x)
            scaled = getattr(scipy_special, f"{kind}ve")(v, x)
            theirs = np.log(scaled) + (x if kind == "i" else -x)
            errors = {
                who: np.array([abs(float(mp.mpf(float(g)) - e)) if np.isfinite(g) else np.inf
                               for g, e in zip(got, exact, strict=True)]) / scale
                for who, got in (("ours", ours), ("table", paper), ("scipy", theirs))
            }  # fmt: skip
            allowed = ACCURACY + LAST_BIT * worth / scale
            for i, label in enumerate(_published_bessel.REGIONS):
                at = found["region"] == i
                if at.any():
                    rows.append(Row(
                        f"{name}: largest error in region {label} of the paper ({at.sum()} points)",
                        "of max(1, |true|)", baseline=float(errors["table"][at].max()),
                        ours=float(errors["ours"][at].max()), better="lower",
                        holds=bool(np.all(errors["ours"][at] <= allowed[at])), must_hold=True,
                        note="above 4e-15 and the worth of the last bit of (v, x)",
                    ))  # fmt: skip
            finite = np.isfinite(errors["scipy"])
            rows.append(Row(
                f"{name}: largest error where SciPy is finite, baseline SciPy", "of max(1, |true|)",
                baseline=float(errors["scipy"][finite].max()), ours=float(errors["ours"][finite].max()),
                better="lower", holds=bool(errors["ours"][finite].max() <= errors["scipy"][finite].max()),
                note="SciPy was closer on its worst point",
            ))  # fmt: skip
            rows.append(Row(
                f"{name}: median error, baseline the paper's table", "of max(1, |true|)",
                baseline=float(np.median(errors["table"])), ours=float(np.median(errors["ours"])),
                paper=2.2e-16, better="lower", must_hold=True, 
                holds=bool(np.median(errors["ours"]) <= 1.5e-16), note="the median is above 1.5e-16",
            ))  # fmt: skip
            for who, error in errors.items():
                found[f"{kind}_{who}"] = error
    return found


def _finiteness(points: int, rng: np.random.Generator, rows: list[Row]) -> None:
    from scipy import special as scipy_special

    v, x = rng.uniform(0, 1e4, (2, points))
    with np.errstate(all="ignore"):
        for kind, name in (("i", "log I"), ("k", "log K")):
            theirs = np.isfinite(np.log(getattr(scipy_special, f"{kind}ve")(v, x))).mean()
            ours = np.isfinite(getattr(special, f"log_{kind}v")(v, x)).mean()
            rows.append(Row(
                f"{name}: finite share of random points of [0, 10000]², baseline SciPy", "",
                baseline=float(theirs), ours=float(ours), paper=1.0, better="higher", holds=bool(ours == 1),
                must_hold=True, note="a value left float64",
            ))  # fmt: skip


# Speed


def regimes(n: int, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(v, x) of `n` points in each of the eight regimes that speed is measured in."""

    def box(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
        return rng.uniform(low, high, n), rng.uniform(low, high, n)

    return {
        "[0, 10]²": box(0, 10),
        "[0, 150]²": box(0, 150),
        "[150, 1e4]²": box(150, 1e4),
        "v = 0, x < 1e4": (np.zeros(n), rng.uniform(0, 1e4, n)),
        "v = 191, x < 2000": (np.full(n, 191.0), rng.uniform(0, 2000, n)),
        "v = 1023, x < 1e4": (np.full(n, 1023.0), rng.uniform(0, 1e4, n)),
        "half-integers v < 50, x < 300": (rng.integers(0, 50, n) + 0.5, rng.uniform(0, 300, n)),
        "log-uniform 1e-2 to 1e4": (10 ** rng.uniform(-2, 4, n), 10 ** rng.uniform(-2, 4, n)),
    }


def scipy_log(kind: str, v: np.ndarray, x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """log I ("i") or log K ("k") into `out`, as SciPy gives it: no array is allocated."""
    from scipy import special as scipy_special

    getattr(scipy_special, f"{kind}ve")(v, x, out=out)
    np.log(out, out=out)
    return np.add(out, x, out=out) if kind == "i" else np.subtract(out, x, out=out)


def _seconds(work: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return time.perf_counter() - start


def _speed(points: int, rounds: int, rng: np.random.Generator, rows: list[Row]) -> None:
    """Median ratio of alternating turns, on the points where SciPy is finite; both write into one array."""
    ratios: dict[str, float] = {}
    for label, (v, x) in regimes(points, rng).items():
        for kind in "ik":
            function = getattr(special, f"log_{kind}v")
            with np.errstate(all="ignore"):
                at = np.isfinite(scipy_log(kind, v, x, np.empty_like(x)))
                a, b = v[at], x[at]
                out = np.empty_like(b)

                def theirs(kind: str = kind, a: Any = a, b: Any = b, out: Any = out) -> Any:
                    return scipy_log(kind, a, b, out)

                def ours(f: Any = function, a: Any = a, b: Any = b, out: Any = out) -> Any:
                    return f(a, b, out=out)

                # Turns of equal length: as many of our calls as fill the time of one of SciPy's.
                ours()
                calls = min(100, max(1, round(_seconds(theirs) / _seconds(ours))))
                turns = []
                for _ in range(rounds):
                    turns.append(calls * _seconds(theirs) / _seconds(ours, calls))
            ratios[f"log {kind.upper()}, {label}"] = ratio = float(np.median(turns))
            rows.append(Row(
                f"speed of log {kind.upper()} over SciPy, {label}", "x", ours=ratio, better="higher",
                spread=(float(min(turns)), float(max(turns))), holds=ratio >= SPEED["least"],
                note=f"below {SPEED['least']:g}x",
            ))  # fmt: skip
    cores = int(os.environ.get("MERCER_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    few = "" if cores >= 2 else f" ({cores} thread here; the bar is for two cores)"
    small = min(r for name, r in ratios.items() if "[0, 1" in name)
    for what, ratio, paper in (
        ("median", float(np.median(list(ratios.values()))), 35),
        ("best", max(ratios.values()), 98),
        ("small boxes", small, None),
        ("least", min(ratios.values()), None),
    ):
        rows.append(Row(
            f"speed over SciPy on a CPU, {what} of the 16 ratios", "x", ours=ratio, paper=paper,
            better="higher", holds=ratio >= SPEED[what], must_hold=cores >= 2,
            note=f"below {SPEED[what]:g}x{few}",
        ))  # fmt: skip


# von Mises–Fisher


def _fits(quick: bool, rows: list[Row]) -> None:
    for d, n in ((2048, 1000), (8192, 500 if quick else 1000), (32768, 200 if quick else 1000)):
        kappa = float(d)
        mu = np.random.default_rng(d).standard_normal(d)
        law = density.VonMisesFisher(mean_direction=mu / np.linalg.norm(mu), concentration=kappa)
        estimates, corrected = [], []
        for seed in range(2 if quick else 5):
            X = law.sample(n, random_state=seed)
            estimates.append(density.VonMisesFisher().fit(X).concentration_)
            corrected.append(density.VonMisesFisher(bias_correction=True).fit(X).concentration_)
        # R of n rows has E R² = A² + (1 - A²) / n: the concentration of that length is what a fit should find
        a = float(mean_resultant_length(d, kappa))
        target = float(density.kappa_mle(np.sqrt(a * a + (1 - a * a) / n), d))
        allowed = 5 / np.sqrt(n * float(mean_resultant_slope(d, kappa)))
        worst = max(abs(np.array(estimates) - target))
        rows.append(Row(
            f"kappa fitted to {n} draws in d = {d}; {target:.6g} expected, baseline SciPy's fit", "",
            baseline=_scipy_kappa(X), ours=estimates[-1], better="equal", holds=bool(worst <= allowed),
            must_hold=True, spread=(min(estimates), max(estimates)), 
            note=f"off by {worst:.3g}, allowed {allowed:.3g}",
        ))  # fmt: skip
        off = max(abs(np.array(corrected) - kappa))
        rows.append(Row(
            f"the same with bias_correction; {kappa:g} drawn from", "", ours=corrected[-1], better="equal",
            holds=bool(off <= allowed), spread=(min(corrected), max(corrected)), note=f"off by {off:.3g}",
        ))  # fmt: skip
        _approximations(d, float(np.linalg.norm(X.mean(0))), rows)


def _scipy_kappa(X: np.ndarray) -> float | str:
    from scipy import stats

    try:
        with np.errstate(all="ignore"):
            return float(stats.vonmises_fisher.fit(X)[1])
    except Exception as error:  # whatever it raises is the finding
        return type(error).__name__


def _approximations(d: int, r: float, rows: list[Row]) -> None:
    """kappa(r) by each formula against a root found in 40 digits."""
    import mpmath as mp

    with mp.workdps(40):
        order = mp.mpf(d) / 2 - 1
        kappa = mp.mpf(float(density.kappa_mle(r, d)))
        for _ in range(3):  # Newton from our own value ends where A = r, whatever it started from
            a = mp.exp(_truth(float(order) + 1, kappa, "i") - _truth(float(order), kappa, "i"))
            residual = a - mp.mpf(r)
            kappa -= residual / (1 - a * a - (d - 1) * a / kappa)
        converged = abs(residual) < mp.mpf(10) ** -25
    error = {
        name: abs(float(mp.mpf(float(value)) / kappa - 1))
        for name, value in (
            ("Banerjee", density.kappa_banerjee(r, d)),
            ("Tanabe", density.kappa_tanabe(r, d)),
            ("Sra, one step", density.kappa_sra(r, d, 1)),
            ("Sra, two steps", density.kappa_sra(r, d, 2)),
        )
    }
    ours = abs(float(mp.mpf(float(density.kappa_mle(r, d))) / kappa - 1))
    for name, off in error.items():
        rows.append(Row(
            f"kappa of r = {r:.4f} in d = {d}, baseline {name}", "relative error", baseline=off, ours=ours,
            better="lower", holds=bool(converged and ours <= 4e-16 / (1 - r) + 1e-12),
            must_hold=name == "Banerjee", note="beyond 4e-16 / (1 - r) + 1e-12",
        ))  # fmt: skip


def _not_here(rows: list[Row]) -> None:
    rows.append(Row(
        "speed over SciPy on a GPU, median and best", "x", paper="77, 300", better="higher",
        holds="not-testable-here", note="this one runs on the CPU; `pytest -m gpu` runs the CUDA kernels",
    ))  # fmt: skip
    rows.append(Row(
        "fits to ResNet50 features of CIFAR-10 in 2048, 8192, 32768 dimensions", "", better="equal",
        holds="not-testable-here",
        note="no package has the images and weights; draws of a law of known kappa stand in",
    ))  # fmt: skip


def plot(evidence: Evidence, figure: Any) -> None:
    """Error over the (x, v) quadrant, K above, I below: the paper's table, SciPy, mercer."""
    found = {name: np.array([float(value) for value in values]) for name, values in evidence.figures.items()}
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for line, kind in zip(axes, "ki", strict=True):
        for axis, (who, title) in zip(
            line, (("table", "the paper's table"), ("scipy", "SciPy"), ("ours", "mercer")), strict=True
        ):
            error = found[f"{kind}_{who}"]
            lost = ~np.isfinite(error)
            axis.scatter(found["x"][lost], found["v"][lost], s=9, marker="x", color="black", linewidths=0.6)
            points = axis.scatter(
                found["x"][~lost], found["v"][~lost], s=7, c=np.log10(np.maximum(error[~lost], 1e-17)),
                cmap="viridis_r", vmin=-17, vmax=-9,
            )  # fmt: skip
            axis.set(xscale="log", yscale="log", title=f"log {kind.upper()}: {title}" if kind == "k" else "")
            if kind == "i":
                axis.set(xlabel="x", title=f"log I: {title}")
        line[0].set_ylabel("v")
    figure.colorbar(points, ax=axes, label="log10 of error / max(1, |true|)")
    figure.suptitle("log-Bessel: error by argument and order; a cross is not finite")

"""Kernel sums from sums of random features; the exact sums; exponential sums for 1/z."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np

from mercer import _checks, _core
from mercer.private._moments import about_centroid, coarsened
from mercer.private._noise import Budget, Law, Noise
from mercer.private._structure import Arrays, Structure, released_count
from mercer.private.release import Release

__all__ = ["KERNELS", "FeatureRelease", "FeatureSums", "auto_features", "exponential_sum", "kernel_sums"]

#: k(u) of the difference u = (x - y) / bandwidth
KERNELS = {
    "gaussian": "exp(-|u|²)",
    "exponential": "exp(-|u|)",
    "laplace": "exp(-|u|₁)",
    "cauchy": "prod 1 / (1 + u_i²)",
    "smooth_l2": "1 / (1 + |u|)",
    "smooth_l2sq": "1 / (1 + |u|²)",
    "smooth_l1": "1 / (1 + |u|₁)",
}
RADIAL = ("gaussian", "exponential", "smooth_l2", "smooth_l2sq")
#: The exponential family whose mixture over rates a smooth kernel is, and the power of the rate in its bandwidth.
MIXED = {"smooth_l2": ("exponential", 1.0), "smooth_l2sq": ("gaussian", 0.5), "smooth_l1": ("laplace", 1.0)}

BITS = 20
COUNT_SHARE = 0.05  # of the budget, where the number of rows is not public
MOST_FEATURES = 8192


class FeatureSums(Structure):
    """Sums of features in whole multiples of 2^-20.

    Sensitivity, beside the code that relies on it: whatever a row is, the pair (cos, sin) that it adds for a frequency
    has |C| + |S| <= floor(sqrt(2) 2^20) + 1 and C² + S² <= (2^20 + 1)², rounding included; `features.rs` enforces both
    on the whole numbers. Over m frequencies the l1 norm is at most m times the one, the squared l2 norm m times the
    other. (Single cosines, the paper's form: sqrt(2) cos, the same l1 bound, its square for l2.) No bounds on the data
    are needed: the features of any row are bounded.
    """

    kind = "features"

    def __init__(self, terms: Any, options: dict[str, Any]) -> None:
        super().__init__(terms, options)
        self._features = [
            draw_features(options, term, terms.columns) for term in range(len(options["terms"]))
        ]

    def empty(self) -> Arrays:
        shape = len(self._features), self._features[0].values
        return {"sums": np.zeros(shape, np.int64), "n": np.zeros(1, np.int64)}

    def sum_groups(
        self, rows: np.ndarray, order: np.ndarray, starts: np.ndarray, unit: bool, threads: int | None
    ) -> np.ndarray:
        """Sums (1, groups, values) of the rows in this order, each scaled to unit length if asked; one pass, no copy.

        Raises ValueError where a row is not finite.
        """
        if rows.dtype not in (np.float32, np.float64):
            rows = rows.astype(np.float64)
        sums = np.zeros((1, len(starts), self._features[0].values), np.int64)
        self._features[0].add(
            np.ascontiguousarray(rows), BITS, sums[0], starts.tolist(), 0, threads, order, unit
        )
        return sums

    def add(self, arrays: Arrays, block: np.ndarray, first_row: int, threads: int | None) -> None:
        from mercer.private._trees import within

        if self.terms.low is not None:
            block = np.ascontiguousarray(within(block, self.terms, first_row))
        block = reduced(block, self.options, self.terms.columns)
        for features, sums in zip(self._features, arrays["sums"], strict=True):
            features.add(block, BITS, sums[None], [0], first_row, threads)
        arrays["n"] += len(block)

    def release(self, arrays: Arrays, budget: Budget, noise: Noise) -> Release:
        return self.release_groups(arrays["sums"][:, None], arrays["n"], budget, noise)[0]

    def release_groups(
        self, sums: np.ndarray, counts: np.ndarray, budget: Budget, noise: Noise
    ) -> list[FeatureRelease]:
        """A release of each group, from sums (terms, groups, values) and counts (groups,); a row is in one group."""
        terms, options = self.terms, dict(self.options)
        paired = options["form"] == "pairs"
        # The paper's split among the terms of an exponential sum: epsilon_j like the 2/3 power of their weights.
        shares = [abs(weight) ** (2 / 3) for weight, _, _ in options["terms"]]
        known = terms.public_n
        first = [] if known else [sum(shares) * COUNT_SHARE / (1 - COUNT_SHARE)]
        amounts = budget.split(first + shares)
        changes = terms.changes()
        count_law = None if known else budget.law(amounts.pop(0), changes, changes**2)
        n = released_count(counts, terms, count_law, noise)
        m = options["n_features"]
        if options.pop("auto_factor") is not None:
            # The noisy count decides: that costs nothing more. The first m features are those of m alone.
            m = min(m, auto_features(float(n.mean()), budget, changes, self.options["auto_factor"]))
            options["n_features"] = m
            whole = sums.reshape(*sums.shape[:2], -1, self.options["n_features"])
            sums = whole[..., :m].reshape(*sums.shape[:2], -1)
        pair = math.isqrt(2 << (2 * BITS)) + 1
        l1, square = changes * m * pair, changes**2 * m * ((2**BITS + 1) ** 2 if paired else pair**2)
        noisy, laws, steps = [], [], []
        for part, amount in zip(sums, amounts, strict=True):
            values, law, coarse = coarsened(part.ravel(), budget, amount, l1, square)
            noise.add(values, [law])
            noisy.append(values.reshape(part.shape))
            laws.append(law)
            steps.append(coarse - BITS)
        parameters = {
            **options, "columns": terms.columns, "laws": [law.to_json() for law in laws], "steps": steps,
            "count_law": count_law and count_law.to_json(),
        }  # fmt: skip
        public = ["kernel and bandwidth", "frequencies (from a seed)", "number of features"]
        statement = terms.statement(
            f"sums of {m} random Fourier features" + (f" for each of {len(sums)} terms" if len(sums) > 1 else ""),
            budget, noise, public=public + (["random projection"] if options["reduce"] else []),
            note=f"features are rounded to multiples of 2^-{BITS}, which the sensitivity includes",
        )  # fmt: skip
        statement["kernel"] = {"name": options["kernel"], "of u": KERNELS[options["kernel"]]}
        statement["kernel"]["bandwidth"] = options["bandwidth"]
        return [
            FeatureRelease._made(statement, parameters, {"sums": group, "n": n[i : i + 1]})
            for i, group in enumerate(np.stack(noisy, axis=1))
        ]


def draw_features(options: dict[str, Any], term: int, columns: int) -> _core.FourierFeatures:
    """The features of a term, from public numbers alone."""
    _, kernel, bandwidth = options["terms"][term]
    d = options["reduce"]["dimensions"] if options["reduce"] else columns
    phased, seed = options["form"] == "phases", (options["seed"] + term) % 2**64
    return _core.FourierFeatures.drawn(
        kernel, seed, options["n_features"], d, bandwidth, phased=phased, structured=options["structured"]
    )


def check_features(options: dict[str, Any], columns: int) -> None:
    """ValueError or TypeError for numbers from a file that :func:`draw_features` should not be given."""
    whole = [options["seed"], options["n_features"], columns]
    if options["reduce"]:
        whole += [options["reduce"]["seed"], options["reduce"]["dimensions"]]
    if not all(type(number) is int and 0 <= number < 1 << 64 for number in whole):
        raise ValueError(f"whole numbers out of range: {whole}")
    d = options["reduce"]["dimensions"] if options["reduce"] else columns
    if not (1 <= options["n_features"] <= 1 << 24 and 1 <= d <= 1 << 20 and options["terms"]):
        raise ValueError("numbers of features, columns or terms out of range")
    if options["kernel"] not in KERNELS or options["form"] not in ("pairs", "phases"):
        raise ValueError(f"kernel {options['kernel']!r}, form {options['form']!r}")
    for weight, kernel, bandwidth in options["terms"]:
        if kernel not in KERNELS or not (0 < float(bandwidth) < math.inf and math.isfinite(float(weight))):
            raise ValueError(f"term {[weight, kernel, bandwidth]}")
        if options["structured"] and kernel not in RADIAL:
            raise ValueError(f"structured frequencies for kernel {kernel!r}")


def reduced(X: np.ndarray, options: dict[str, Any], columns: int) -> np.ndarray:
    """G x, G of k × d normals of variance 1/k (public randomness), or x."""
    if not options["reduce"]:
        return X
    k, seed = options["reduce"]["dimensions"], options["reduce"]["seed"]
    matrix = _core.public_normals(seed, k, columns) / math.sqrt(k)
    return np.ascontiguousarray(X @ matrix.T)


def auto_features(n: float, budget: Budget, changes: int, factor: float) -> int:
    """m that minimises a bound of the squared error: n²/2m from the features, 4 m (changes/epsilon)² from the noise.

    m = epsilon n / (sqrt(8) changes), times `factor`. With Gaussian noise more features cost no accuracy, and
    2 n² rho / changes² of them make the two errors equal. At least 8, at most 8192.
    """
    n, amount = max(n, 1.0), float(budget.amount)
    best = 2 * amount * (n / changes) ** 2 if budget.gaussian else amount * n / (math.sqrt(8) * changes)
    return int(min(max(round(factor * best), 8), MOST_FEATURES))


class FeatureRelease(Release):
    """Noisy sums of random features: kernel sums at any point.

    `std_error` is the deviation of the noise; `std_error(Y, total=True)` also has what the choice of frequencies adds,
    as measured by the spread of the answer over the frequencies.
    """

    kind = "features"

    def _open(self) -> None:
        given = self._parameters
        check_features(given, given["columns"])
        values = given["n_features"] * (2 if given["form"] == "pairs" else 1)
        if self._arrays["sums"].shape != (len(given["terms"]), values) or self._arrays["n"].shape != (1,):
            raise ValueError(f"sums of shape {self._arrays['sums'].shape}, n of {self._arrays['n'].shape}")
        if given["count_law"] is not None:
            Law.from_json(given["count_law"])
        _ = self._terms  # which believes nothing either

    @cached_property
    def _terms(self) -> list[tuple[float, np.ndarray, float]]:
        """(weight, sums, variance of their noise) of each term."""
        given = self._parameters
        found = []
        for (weight, _, _), row, law, step in zip(
            given["terms"], self._arrays["sums"], given["laws"], given["steps"], strict=True
        ):
            unit = 2.0 ** int(step)
            found.append((float(weight), row * unit, Law.from_json(law).variance * unit**2))
        return found

    @cached_property
    def _drawn(self) -> list[_core.FourierFeatures]:
        given = self._parameters
        return [draw_features(given, term, self.n_features) for term in range(len(given["terms"]))]

    @property
    def count(self) -> float:
        return float(self._arrays["n"][0])

    def query(self, Y: Any, *, threads: int | None = None) -> np.ndarray:
        return self._answer(Y, threads)[0]

    def centroid(self, Y: Any) -> tuple[np.ndarray, float, float]:
        """(mean similarity, squared length of the mean of the features less what noise adds, the variance of that).

        Of one kernel in pairs: m features of length 1, whose inner product over m is the estimate of the kernel.
        """
        ((_, sums, variance),) = self._terms
        law = self._parameters["count_law"]
        of_count = 0.0 if law is None else Law.from_json(law).variance
        inner, square, spread = about_centroid(self.query(Y), sums, variance, self.count, of_count)
        m = int(self._parameters["n_features"])
        return inner, square / m, spread / m**2

    def std_error(self, Y: Any, *, total: bool = False) -> np.ndarray:
        _, feature, squares = self._answer(Y, None)
        # With pairs the squares of a frequency's features sum to 1: noise of variance v gives v / m everywhere.
        return np.sqrt(feature if total else squares)

    def _answer(self, Y: Any, threads: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(estimate, its variance from the spread over frequencies, variance of the noise alone)."""
        Y = reduced(self._queries(Y), self._parameters, self.n_features)
        m = int(self._parameters["n_features"])
        out = np.zeros((3, len(Y)))
        for features, (weight, sums, variance) in zip(self._drawn, self._terms, strict=True):
            answer, square, norm = features.query(Y, sums, threads)
            out[0] += weight * answer
            out[1] += weight**2 * np.maximum(square - answer**2, 0) / max(m - 1, 1)
            out[2] += weight**2 * norm * variance / m
        return out[0], out[1], out[2]


def kernel_sums(kernel: str, bandwidth: float, X: Any, Y: Any) -> np.ndarray:
    """The exact sum over the rows x of `X` of k((x - y) / bandwidth) for each row y of `Y`: not private. O(n m d).

    Args:
        kernel: One of "gaussian" exp(-|u|²), "exponential" exp(-|u|), "laplace" exp(-|u|₁), "cauchy"
            prod 1/(1 + u_i²), "smooth_l2" 1/(1 + |u|), "smooth_l2sq" 1/(1 + |u|²), "smooth_l1" 1/(1 + |u|₁).
        bandwidth: > 0.
        X: (n, d).
        Y: (m, d).

    Example:
        >>> from mercer.private import kernel_sums
        >>> kernel_sums("smooth_l2", 2.0, [[0.0], [2.0]], [[0.0]])
        array([1.5])
    """
    kernel = _checks.choice("kernel", kernel, tuple(KERNELS))
    bandwidth = _checks.real("bandwidth", bandwidth, 0.0, strict=True)
    X = _checks.matrix("X", X).astype(np.float64, copy=False) / bandwidth
    Y = _checks.matrix("Y", Y, columns=X.shape[1]).astype(np.float64, copy=False) / bandwidth
    out = np.zeros(len(Y))
    step = max(1, (1 << 22) // max(X.size, 1))
    for start in range(0, len(Y), step):
        u = X[None] - Y[start : start + step, None]
        if kernel == "cauchy":
            values = np.prod(1 / (1 + u * u), axis=2)
        else:
            l1 = kernel in ("laplace", "smooth_l1")
            size = np.sum(np.abs(u) if l1 else u * u, axis=2)
            size = size if l1 or kernel in ("gaussian", "smooth_l2sq") else np.sqrt(size)
            values = 1 / (1 + size) if kernel in MIXED else np.exp(-size)
        out[start : start + step] = values.sum(1)
    return out


def exponential_sum(tol: float, D: float, *, step: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Positive weights w and rates t with |1/z - sum_j w_j exp(-t_j z)| <= tol for every z in [1, 1 + D].

    The trapezoid rule in s for 1/z = int exp(s - z e^s) ds over the line, with step tau: w_j = tau e^(j tau),
    t_j = e^(j tau). Its relative error is at most 2 sum_k |Gamma(1 + 2 pi i k / tau)|, and |Gamma(1 + iy)|² =
    pi y / sinh(pi y). Backurs et al. 2024, section 5, use such a sum for the smooth kernels.

    Args:
        tol: In (0, 1).
        D: Finite, >= 0.
        step: tau; None takes the widest that keeps a third of `tol`, of 1, 1/2, 1/3, ...

    Returns:
        (w, t), J terms each, J = O(log(1/tol) log(D/tol)).

    Example:
        >>> import numpy as np
        >>> from mercer.private import exponential_sum
        >>> w, t = exponential_sum(1e-3, 10.0)
        >>> bool(abs(w @ np.exp(-t * 4.0) - 1 / 4) < 1e-3), len(w)
        (True, 27)
    """
    tol = _checks.real("tol", tol, 0.0, strict=True)
    if tol >= 1:
        raise ValueError(f"tol must be in (0, 1), got {tol}")
    D = _checks.real("D", D, 0.0)
    if step is None:
        divisor = next(k for k in range(1, 100) if trapezoid_error(1 / k) <= tol / 3 or k == 99)
        step = 1 / divisor
    step = _checks.real("step", step, 0.0, strict=True)
    first = math.floor(math.log(tol / 3 / (1 + D)) / step)
    last = math.ceil(math.log(math.log(3 / tol)) / step)
    j = np.arange(first, last + 1)
    return exponential_terms(step, j)


def exponential_terms(step: float, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(w_j, t_j) of the trapezoid rule."""
    t = np.exp(step * j)
    return step * t, t


def trapezoid_error(step: float) -> float:
    """The relative error of the infinite trapezoid rule, 2 sum_k |Gamma(1 + 2 pi i k / step)|."""
    total = 0.0
    for k in range(1, 200):
        y = 2 * math.pi * k / step
        if math.pi * y > 1400:
            break
        total += 2 * math.sqrt(math.pi * y / math.sinh(math.pi * y)) if math.pi * y < 700 else 0.0
    return total

"""27-private-similarity: dyadic trees with given noise, exact kernel sums, random features, exponential sums."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapters import Arrays, Case, Check, table, worst
from mercer import _core
from mercer.private import _features, _tree, kernel_sums

BAR, CLOSED = 1e-10, 1e-12  # of the reference; of what has a closed form


@table("27-private-similarity", "mechanisms*")
def mechanisms(case: Case, arrays: Arrays) -> Iterator[Check]:
    yield from _trees(case["config"], arrays)
    yield from _kernels(case["config"], arrays)
    yield from _exponential_sums(arrays)


def _relative(name: str, got, true: np.ndarray, bar: float) -> Check:
    return worst(name, got, true, bar * np.maximum(np.abs(true), 1e-300), f"{bar:g} |t|")


def _trees(config: dict, arrays: Arrays) -> Iterator[Check]:
    low, high, levels = float(config["lo"]), float(config["hi"]), int(config["levels"])
    x, y = arrays["x"], arrays["y"]
    counts = np.zeros((1, 2**levels), np.int64)
    _core.private_count(np.ascontiguousarray(x[:, None]), np.array([low]), np.array([high]), False, counts)
    whole = _core.private_trees(counts)
    # Whole counts go the way that releases go.
    sums = _core.PrivateTreeSums(whole, np.array([low]), np.array([high]))
    yield _relative("noiseless_p1", sums.query(np.ascontiguousarray(y[:, None])), arrays["noiseless_p1"], BAR)
    for p in (1, 2):
        true = np.sum(np.abs(x - y[:, None]) ** p, axis=1)
        yield _relative(f"true_p{p}", true, arrays[f"true_p{p}"], BAR)
    for mode in sorted({name.removesuffix("_noise") for name in arrays if name.endswith("_noise")}):
        budget = arrays[f"{mode}_epsilon_per_level"]
        shares = np.array(_tree.level_shares(levels, mode, gaussian=False))
        yield _relative(
            f"{mode}_epsilon_per_level", config["epsilon"] * shares / shares.sum(), budget, CLOSED
        )
        noisy = whole[0] + arrays[f"{mode}_noise"]
        edges = _tree.adjusted_edges(noisy, levels)
        variances = 2 * (config["sensitivity_per_level"] / budget) ** 2
        for name, true in arrays.items():
            form, _, power = name.removeprefix(f"{mode}_").rpartition("_p")
            if not name.startswith(f"{mode}_") or form not in ("exact", "std", "shells"):
                continue
            p = float(power)
            if form == "exact":
                # Sums of signed terms: an error is relative to what was added, the sum over the points.
                scale = np.maximum(np.abs(true), np.abs(arrays.get(f"true_p{power}", true)))
                got = _tree.exact_sum(low, high, edges, y, p)
                yield worst(name, got, true, BAR * scale, f"{BAR:g} of the true sum")
            elif form == "std":
                yield _relative(name, np.sqrt(_tree.noise_variance(low, high, variances, y, p)), true, CLOSED)
            else:
                split = [noisy[2**level - 1 : 2 ** (level + 1) - 1] for level in range(levels + 1)]
                got = _tree.shell_sum(low, high, split, y, p, config["alpha"])
                yield _same_gaps(name, got, true)


def _same_gaps(name: str, got: np.ndarray, true: np.ndarray) -> Check:
    if not np.array_equal(np.isnan(got), np.isnan(true)):
        return Check(name, np.nan, 1.0, "NaN elsewhere than in the reference")
    return _relative(name, got[~np.isnan(got)], true[~np.isnan(true)], BAR)


def _kernels(config: dict, arrays: Arrays) -> Iterator[Check]:
    X, Y, omega = arrays["kX"], arrays["kY"], np.ascontiguousarray(arrays["omega"].T)
    for kernel in _features.KERNELS:
        if f"sum_{kernel}" in arrays:
            got = kernel_sums(kernel, config["bandwidth"], X, Y)
            yield _relative(f"sum_{kernel}", got, arrays[f"sum_{kernel}"], BAR)
    u = X[None] - Y[:, None]
    for name, true in (
        ("sum_l1", np.abs(u).sum((1, 2))),
        ("sum_l2", np.sqrt((u**2).sum(2)).sum(1)),
        ("sum_l2sq", (u**2).sum((1, 2))),
    ):
        if name in arrays:
            yield _relative(name, true, arrays[name], BAR)
    X, Y = np.ascontiguousarray(X), np.ascontiguousarray(Y)
    phased = _core.FourierFeatures.given(omega, np.ascontiguousarray(arrays["phase"]))
    # A release rounds features to a grid; its finest is 2^-30, an absolute error of 2^-31 a row.
    released = np.zeros((1, phased.values), np.int64)
    phased.add(X, 30, released, [0])
    true, grid = arrays["rff_cos_released"], len(X) * 2.0**-31
    yield worst("rff_cos_released", released[0] / 2.0**30, true, grid, "half a step of the grid a row")
    yield _relative("rff_cos_query", phased.query(Y, true)[0], arrays["rff_cos_query"], BAR)
    paired = _core.FourierFeatures.given(omega)
    released = np.zeros((1, paired.values), np.int64)
    paired.add(X, 30, released, [0])
    got = paired.query(Y, released[0] / 2.0**30)[0]
    yield worst(
        "rff_pair_query", got, arrays["rff_pair_query"], 2**0.5 * grid, "half a step of the grid a row"
    )
    turns = X @ omega.T
    exact = np.concatenate([np.cos(turns).sum(0), np.sin(turns).sum(0)])
    yield _relative(
        "rff_pair_query, exact features", paired.query(Y, exact)[0], arrays["rff_pair_query"], BAR
    )


def _exponential_sums(arrays: Arrays) -> Iterator[Check]:
    z = arrays["expsum_z"]
    for name in sorted(name for name in arrays if name.startswith("expsum_") and name.endswith("_j")):
        step = float(name.split("_")[1])
        first, last = arrays[name].tolist()
        w, t = _features.exponential_terms(step, np.arange(first, last + 1))
        prefix = name.removesuffix("_j")
        yield _relative(f"{prefix}_value", np.exp(-np.outer(z, t)) @ w, arrays[f"{prefix}_value"], BAR)
        got = np.array(_features.trapezoid_error(step))
        yield _relative(f"{prefix}_bound", got, arrays[f"{prefix}_bound"], CLOSED)

"""The sums of kernels in plain NumPy: what `mercer.backend("reference")` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mercer.density._log_kde import Problem

__all__ = ["log_kernel", "log_kernel_sums"]


def log_kernel(kernel: str, U: np.ndarray) -> np.ndarray:
    """log K(u) over the last axis of U."""
    square = (U * U).sum(-1)
    r = np.sqrt(square)
    with np.errstate(divide="ignore", invalid="ignore"):
        if kernel == "gaussian":
            return -square / 2
        if kernel == "exponential":
            return -r
        if kernel == "laplace":
            return -np.abs(U).sum(-1)
        if kernel == "cauchy":
            return -np.log1p(U * U).sum(-1)
        inside = {
            "tophat": lambda: np.zeros_like(r),
            "epanechnikov": lambda: np.log1p(-square),
            "linear": lambda: np.log1p(-r),
            "cosine": lambda: np.log(np.sin(np.pi / 2 * (1 - r))),
        }[kernel]()
        return np.where(r < 1, inside, -np.inf)


def log_kernel_sums(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log sum w K, sum p² and -sum p log p, (m, H) each; O(n d) memory."""
    X, Y = problem.X.astype(np.float64), problem.Y.astype(np.float64)
    m, grid = len(X), problem.bandwidths.shape[1]
    H = np.broadcast_to(problem.bandwidths, (m, grid))
    out, participation, entropy = np.empty((3, m, grid))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_w = np.zeros(len(Y)) if problem.weights is None else np.log(problem.weights)
        for i, x in enumerate(X):
            for j, h in enumerate(H[i]):
                logs = log_w + log_kernel(problem.kernel, (x - Y) / h)
                if problem.leave_out is not None:
                    logs[problem.leave_out[i]] = -np.inf
                top = logs.max()
                e = np.exp(logs - top) if np.isfinite(top) else np.zeros_like(logs)
                out[i, j] = top + np.log(e.sum()) if np.isfinite(top) else -np.inf
                p = e / e.sum()
                participation[i, j] = (p * p).sum()
                entropy[i, j] = -(p[p > 0] * np.log(p[p > 0])).sum()
    return out, participation, entropy

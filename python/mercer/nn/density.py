"""Kernel density estimates on tensors, differentiable in the queries, the data and the bandwidths.

The torch face of :func:`mercer.density.log_kde`, which says what the estimate is and what its bandwidth does. The sums
run in Rust on the CPU and in a CUDA kernel on a GPU, a grid of bandwidths in one pass; no array of size n x m is made,
nor kept for the gradient, which goes over the data again in tiles. Gradients may be taken once.
"""

from __future__ import annotations

import math

import torch

from mercer.density._kernels import log_norm
from mercer.nn import _dispatch

__all__ = ["log_kde"]

KERNELS = ("gaussian", "exponential")
#: Entries of a tile of the gradient.
TILE = 1 << 22


def log_kde(
    X: torch.Tensor,
    Y: torch.Tensor,
    bandwidth: torch.Tensor | float,
    kernel: str = "gaussian",
    *,
    weights: torch.Tensor | None = None,
    leave_one_out: bool = False,
) -> torch.Tensor:
    """Log density at X of the kernel density estimate made of Y.

    Args:
        X: Queries (m, d), float32 or float64 (float16 and bfloat16 are computed in float32 and returned as they came).
        Y: Data (n, d), of the same dtype and device.
        bandwidth: h > 0: a number or a tensor of no dimensions, a grid (H,), one a query (m, 1), or (m, H).
        kernel: "gaussian" or "exponential".
        weights: (n,) weights >= 0 with a positive sum; a gradient flows to them.
        leave_one_out: X is Y; row i is left out of its own estimate.

    Returns:
        (m,), or (m, H) for a grid; differentiable in X, Y, bandwidth and weights.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, an unknown kernel; on the CPU also
            bandwidths or weights out of range, NaN and infinity.

    Cost: forward as :func:`mercer.density.log_kde`; backward O(n m d) and 2^22 numbers a bandwidth of memory.

    Example:
        >>> import torch
        >>> from mercer.nn.density import log_kde
        >>> Y = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
        >>> h = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        >>> log_kde(Y, Y, h, leave_one_out=True).mean(0).sum().backward()
        >>> bool(h.grad[0] > 0 > h.grad[2])  # the best is between
        True
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(map(repr, KERNELS))}, got {kernel!r}")
    dtype = _checked(X, Y, weights)
    m, d = X.shape
    n = len(Y)
    if n == 0 or Y.shape[1] != d:
        raise ValueError(f"Y must have at least one row and the {d} columns of X, got shape {tuple(Y.shape)}")
    if leave_one_out and (m != n or n < 2):
        raise ValueError(f"leave_one_out must have X = Y of at least 2 rows, got {m} and {n} rows")
    work = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    h = torch.as_tensor(bandwidth, dtype=work, device=X.device)
    if h.dim() > 2 or h.numel() == 0 or (h.dim() == 2 and len(h) not in (1, m)):
        raise ValueError(f"bandwidth must be a number, a grid (H,) or (m, H), got shape {tuple(h.shape)}")
    table = h.reshape(1, -1) if h.dim() < 2 else h
    weights = None if weights is None else weights.to(work)
    with torch.autocast(X.device.type, enabled=False):
        sums = _LogKernelSums.apply(X.to(work), Y.to(work), table, weights, kernel, leave_one_out)
        if weights is None:
            log_total: torch.Tensor | float = math.log(n - leave_one_out)
        else:
            total = weights.sum()
            log_total = (total - weights)[:, None].log() if leave_one_out else total.log()
        log_density = (sums - log_total - d * table.log() - log_norm(kernel, d)).to(dtype)
    grid = h.dim() == 1 or (h.dim() == 2 and (h.shape[1] > 1 or len(h) != m))
    return log_density if grid else log_density[:, 0]


def _checked(X: torch.Tensor, Y: torch.Tensor, weights: torch.Tensor | None) -> torch.dtype:
    for name, t, dims in (("X", X, 2), ("Y", Y, 2), ("weights", weights, 1)):
        if t is None:
            continue
        if not isinstance(t, torch.Tensor) or not t.is_floating_point():
            raise TypeError(
                f"{name} must be a tensor of real numbers, got {getattr(t, 'dtype', type(t).__name__)}"
            )
        if t.dim() != dims or (dims == 2 and t.shape[1] == 0):
            raise ValueError(f"{name} must have {dims} dimension(s) and columns, got shape {tuple(t.shape)}")
        if t.device != X.device:
            raise ValueError(f"{name} must be on {X.device}, got {t.device}")
    if X.dtype != Y.dtype:
        raise TypeError(f"Y must have the dtype {X.dtype} of X, got {Y.dtype}")
    if weights is not None and weights.shape != (len(Y),):
        raise ValueError(f"weights must have shape ({len(Y)},), one a row of Y, got {tuple(weights.shape)}")
    return X.dtype


@torch.library.custom_op("mercer::log_kernel_sums", mutates_args=())
def _log_kernel_sums(
    X: torch.Tensor,
    Y: torch.Tensor,
    h: torch.Tensor,
    weights: torch.Tensor | None,
    kernel: str,
    leave_one_out: bool,
) -> torch.Tensor:
    return _dispatch.log_kernel_sums(X, Y, h, weights, kernel, leave_one_out)


@_log_kernel_sums.register_fake
def _(X, Y, h, weights, kernel, leave_one_out):  # type: ignore[no-untyped-def]
    return X.new_empty(X.shape[0], h.shape[1])


class _LogKernelSums(torch.autograd.Function):
    """log sum over j of w_j K((x_i - y_j)/h), (m, H)."""

    @staticmethod
    def forward(ctx, X, Y, h, weights, kernel, leave_one_out):  # type: ignore[no-untyped-def]
        out = _log_kernel_sums(X, Y, h, weights, kernel, leave_one_out)
        ctx.save_for_backward(X, Y, h, weights, out)
        ctx.kernel, ctx.leave_one_out = kernel, leave_one_out
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        """With the shares p_ij = w_j K_ij/sum: d log sum/dt_ij = -p_ij scale, t = |x - y|² or |x - y|."""
        X, Y, h, weights, out = ctx.saved_tensors
        m, n = len(X), len(Y)
        by_x, by_y, by_h = torch.zeros_like(X), torch.zeros_like(Y), torch.zeros_like(h)
        by_w = None if weights is None else torch.zeros_like(weights)
        gaussian = ctx.kernel == "gaussian"
        log_w = None if weights is None else weights.log()
        grad = torch.where(torch.isfinite(out), grad, 0.0)
        step = max(1, TILE // n)
        for start in range(0, m, step):
            rows = slice(start, min(m, start + step))
            x = X[rows]
            r = torch.cdist(x, Y, compute_mode="donot_use_mm_for_euclid_dist")
            t = r * r if gaussian else r
            pull = torch.zeros_like(t)  # sum over the bandwidths of g p scale
            for k in range(h.shape[1]):
                own = h[rows, k, None] if len(h) > 1 else h[0, k]
                scale = 0.5 / own**2 if gaussian else 1 / own
                p = -t * scale - out[rows, k, None]
                if log_w is not None:
                    p = p + log_w
                p = p.exp()
                if ctx.leave_one_out:
                    p.diagonal(start).zero_()  # entry (i, start + i)
                g = grad[rows, k, None]
                p = g * p
                if by_w is not None and ctx.needs_input_grad[3]:
                    by_w += torch.where(
                        weights > 0, p / weights, g * ((-t * scale - out[rows, k, None]).exp())
                    ).sum(0)
                p = p * scale
                pull += p
                per_query = (p * t).sum(1) * (2 if gaussian else 1)
                slot = by_h[rows, k] if len(h) > 1 else by_h[0, k]
                slot += (per_query / own[:, 0]) if len(h) > 1 else per_query.sum() / own
            # dt/dx is 2 (x - y), or (x - y)/r; the kernel has a corner at r = 0, whose mean slope is 0.
            pull = 2 * pull if gaussian else torch.where(r > 0, pull / r, 0.0)
            by_x[rows] = pull @ Y - pull.sum(1, keepdim=True) * x
            by_y += pull.T @ x - pull.sum(0)[:, None] * Y
        return by_x, by_y, by_h, by_w, None, None

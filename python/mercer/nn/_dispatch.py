"""Picks the implementation an operation runs on: Rust for tensors on the CPU, CUDA on a GPU, the plain reference where
``mercer.backend("reference")`` asks for it. The only module of ``mercer.nn`` that meets the extension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

import mercer.ops.neighborhood as _neighborhood
from mercer import _core, _memory, density, special
from mercer._backend import is_reference
from mercer.ops import _windows
from mercer.special import _reference

__all__ = [
    "cuda_source",
    "empty",
    "gelu",
    "gelu_gradient",
    "log_bessel",
    "log_kernel_sums",
    "neighborhood",
    "neighborhood_attention",
    "neighborhood_attention_gradients",
    "ratio_inverse",
    "scatterbrain_tiles",
]


def cuda_source(family: str) -> str:
    """The CUDA source of a kernel family, as it travels inside the extension."""
    return _core.cuda_source(family)


def gelu(x: torch.Tensor, out: torch.Tensor) -> None:
    """x Phi(x) into `out`; both float32 on the CPU and contiguous."""
    _core.gelu(_array(x).reshape(-1), _array(out).reshape(-1))


def gelu_gradient(x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """`gradient` times the derivative of x Phi(x), in its place."""
    _core.gelu(_array(x).reshape(-1), _array(gradient).reshape(-1), True)
    return gradient


def empty(*shape: int) -> torch.Tensor:
    """An uninitialised float32 tensor on the CPU, in memory as that of the results of :mod:`mercer.ops`."""
    return torch.from_numpy(_memory.empty(shape, np.dtype(np.float32)))


def log_bessel(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The function of that name, elementwise.

    Args:
        name: A function of :mod:`mercer.special`, or ``log_iv_dx1`` … ``log_kv_dx4`` for derivatives in x.
        v: float32 or float64.
        x: Of the same shape, dtype and device.

    Returns:
        A new contiguous tensor like x.

    Raises:
        ValueError: As in :mod:`mercer.special`.
    """
    if is_reference():
        return _on_cpu(_reference.evaluate, name, v, x)
    if x.device.type == "cpu":
        return _in_rust(name, v, x)
    if x.device.type == "cuda":
        from mercer.nn import _cuda

        return _cuda.log_bessel(name, v, x)
    return _on_cpu(_numpy_function, name, v, x)


def ratio_inverse(v: torch.Tensor, ratio: torch.Tensor, complement: torch.Tensor | None) -> torch.Tensor:
    """x with I_{v+1}(x) / I_v(x) = ratio, elementwise: a root search, run on the CPU wherever the tensors are."""
    invert = _reference.iv_ratio_inverse if is_reference() else special.iv_ratio_inverse
    c = None if complement is None else _array(complement)
    found = np.asarray(invert(_array(v), _array(ratio), complement=c))
    return torch.from_numpy(found).to(ratio).reshape(ratio.shape)


def log_kernel_sums(
    X: torch.Tensor,
    Y: torch.Tensor,
    h: torch.Tensor,
    weights: torch.Tensor | None,
    kernel: str,
    leave_one_out: bool,
) -> torch.Tensor:
    """log sum over j of w_j K((x_i - y_j)/h), (m, H); h is (1, H) or (m, H), all of one dtype and device."""
    if X.device.type == "cuda" and not is_reference():
        from mercer.nn import _cuda

        return _cuda.log_kernel_sums(X, Y, h, weights, kernel, leave_one_out)
    w = None if weights is None else _array(weights)
    sums = density.kernel_sum(
        _array(X), _array(Y), _array(h), kernel, weights=w, leave_one_out=leave_one_out, log=True
    )
    return torch.from_numpy(np.asarray(sums)).to(X).reshape(len(X), h.shape[1])


def neighborhood(name: str, left: torch.Tensor, right: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """One of the unfused operators of :mod:`mercer.ops.neighborhood`: "products", "aggregate" or "inverse".

    Both of one dtype (float32 or float64) and device, (B, H, X..., columns); `axes` as of `_windows.flat`.
    """
    if left.device.type == "cuda" and not is_reference():
        from mercer.nn import _cuda

        return _cuda.neighborhood(name, left, right, axes)
    out = getattr(_neighborhood, name)(_array(left), _array(right), grid_of(axes))
    return torch.from_numpy(out).to(right)


def neighborhood_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, axes: Sequence[int], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, X..., H, D), (B, X..., Hk, D), (B, X..., Hk, Dv) -> (B, X..., H, Dv) of their dtype, and the log-sum-exp
    (B, X..., H) in float32 or float64."""
    if query.device.type == "cuda" and not is_reference():
        from mercer.nn import _cuda

        return _cuda.neighborhood_attention(query, key, value, axes, scale)
    q, k, v = (_array(_wide(t)) for t in (query, key, value))
    out, lse = _neighborhood.attention(q, k, v, grid_of(axes), scale)
    return torch.from_numpy(out).to(query), torch.from_numpy(lse).to(query.device)


def neighborhood_attention_gradients(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad: torch.Tensor,
    grad_lse: torch.Tensor | None,
    axes: Sequence[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value."""
    if query.device.type == "cuda" and not is_reference():
        from mercer.nn import _cuda

        return _cuda.neighborhood_attention_gradients(
            query, key, value, out, lse, grad, grad_lse, axes, scale
        )
    q, k, v, o, log, g = (_array(_wide(t)) for t in (query, key, value, out, lse, grad))
    by_lse = None if grad_lse is None else _array(grad_lse)
    found = _neighborhood.attention_gradients(q, k, v, o, log, g, by_lse, grid_of(axes), scale)
    by_q, by_k, by_v = (torch.from_numpy(d).to(t) for d, t in zip(found, (query, key, value), strict=True))
    return by_q, by_k, by_v


def scatterbrain_tiles(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    features: tuple[torch.Tensor, torch.Tensor] | None,
    queries: torch.Tensor,
    keys: torch.Tensor,
    count: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """What the tiles of a support add to each of their queries, by the CUDA kernel.

    None where it does not apply: on the CPU, in float64, for gradients, for more than 256 columns.
    """
    if q.device.type != "cuda" or q.dtype != torch.float32 or v.shape[-1] > 256 or is_reference():
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v)):
        return None
    from mercer.nn import _cuda

    return _cuda.scatterbrain_tiles(q, k, v, features, queries, keys, count, temperature)


def _wide(t: torch.Tensor) -> torch.Tensor:
    return t if t.dtype in (torch.float32, torch.float64) else t.float()


def grid_of(axes: Sequence[int]) -> list[_windows.Axis]:
    """The axes that `_windows.flat` flattened."""
    fives = zip(*(axes[i::5] for i in range(5)), strict=True)
    return [(int(n), int(k), int(s), int(d), bool(c)) for n, k, s, d, c in fives]


def _in_rust(name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    _numpy_function(name, _array(v), _array(x), out=out.numpy())
    return out


def _numpy_function(name: str, v: np.ndarray, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    function, _, order = name.partition("_dx")
    if not order:
        return getattr(special, name)(v, x, out=out)
    result = getattr(special, f"{function}_derivatives")(v, x, order=int(order))[int(order) - 1]
    if out is None:
        return result
    out[...] = result
    return out


def _on_cpu(function, name: str, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return torch.from_numpy(np.asarray(function(name, _array(v), _array(x)))).to(x).reshape(x.shape)


def _array(t: torch.Tensor) -> np.ndarray:
    """The same memory for tensors on the CPU, broadcast dimensions included."""
    return t.numpy(force=True)

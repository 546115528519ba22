"""Picks the implementation an operation runs on: Rust for tensors on the CPU, CUDA on a GPU, the plain reference where
``mercer.backend("reference")`` asks for it. The only module of ``mercer.nn`` that meets the extension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mercer import _core, density, special
from mercer._backend import is_reference
from mercer.ops import _windows
from mercer.ops import depthwise as _depthwise
from mercer.ops import neighborhood as _neighborhood
from mercer.special import _reference

__all__ = [
    "context_mixing",
    "cuda_source",
    "depthwise",
    "depthwise_choice",
    "depthwise_on_cuda",
    "depthwise_weight",
    "log_bessel",
    "log_kernel_sums",
    "neighborhood",
    "num_threads",
    "ratio_inverse",
    "simd_level",
]


#: Below so many taps cuDNN is as fast.
CUDA_TAPS = 121
#: Below so many taps torch's own forward loops are faster on the CPU.
DIRECT_TAPS = 81


def cuda_source(family: str) -> str:
    """The CUDA source of a kernel family, as it travels inside the extension."""
    return _core.cuda_source(family)


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


def depthwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    turned: bool,
    dilation: int = 1,
    method: str = "auto",
) -> torch.Tensor:
    """Depthwise convolution of (B, C, H, W) with (C, 1, kh, kw), "same" padding, like `x`; turned round on request."""
    if x.device.type == "cuda":
        from mercer.nn import _cuda

        return _cuda.depthwise(x, weight, bias, turned, dilation)
    if method == "auto":
        method = depthwise_choice(x, weight, dilation)
    if method == "torch":
        w = weight.flip(2, 3) if turned else weight
        pad = [k // 2 * dilation for k in weight.shape[2:]]
        y = torch.nn.functional.conv2d(x, w, bias, padding=pad, dilation=dilation, groups=weight.shape[0])
        out = torch.empty_like(x)  # whose strides a compiler was promised
        return y if y.stride() == out.stride() else out.copy_(y)
    out = torch.empty_like(x)
    b = None if bias is None else _array(bias)
    _depthwise.depthwise_convolution(
        _array(x), _array(weight)[:, 0], b, turned=turned, dilation=dilation, method=method, out=out.numpy()
    )
    return out


def depthwise_weight(
    x: torch.Tensor, grad: torch.Tensor, kh: int, kw: int, dilation: int = 1, method: str = "auto"
) -> torch.Tensor:
    """The gradient (C, 1, kh, kw) of the kernels of :func:`depthwise`."""
    if x.device.type == "cuda":
        from mercer.nn import _cuda

        return _cuda.depthwise_weight(x, grad, kh, kw, dilation)
    found = _depthwise.depthwise_weight_gradient(
        _array(x), _array(grad), (kh, kw), dilation=dilation, method=method
    )
    return torch.from_numpy(found)[:, None]


def depthwise_on_cuda(kh: int, kw: int, dilation: int, dtype: torch.dtype) -> bool:
    """Whether mercer's CUDA kernel takes this size: large enough to matter, and within shared memory."""
    from mercer.nn import _cuda

    return kh * kw >= CUDA_TAPS and _cuda.depthwise_fits(kh, kw, dilation, dtype)


def context_mixing(
    logits: torch.Tensor, bias: torch.Tensor, value: torch.Tensor, k: int
) -> torch.Tensor | None:
    """Softmax(logits + relative bias) applied to `value` by one kernel; None where there is none, or for a gradient."""
    tensors = (logits, bias, value)
    if value.device.type != "cuda" or is_reference() or value.dtype not in (torch.float32, torch.float64):
        return None
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return None
    from mercer.nn import _cuda

    return _cuda.contmix(logits.to(value.dtype), bias.to(value.dtype), value, k)


def depthwise_choice(x: torch.Tensor, weight: torch.Tensor, dilation: int = 1) -> str:
    """What :func:`depthwise` runs on the CPU: "direct", "fourier" or, for small dense kernels, "torch"."""
    kh, kw = weight.shape[2:]
    if dilation > 1:
        return "direct"
    if kh * kw < DIRECT_TAPS:
        return "torch"
    batch, channels, height, width = x.shape
    return _depthwise.depthwise_method((batch, channels, height, width), (kh, kw))


def simd_level() -> str:
    """The vector instructions in use."""
    return _core.simd_level()


def num_threads() -> int:
    """The number of threads in use."""
    return _core.num_threads()


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
    return t.detach().cpu().resolve_neg().numpy()

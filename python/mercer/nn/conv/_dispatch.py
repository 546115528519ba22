"""Picks the implementation of the convolutions: Rust or torch on the CPU by size, a kernel of ours on CUDA, the plain
reference where ``mercer.backend("reference")`` asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

import mercer.ops.depthwise as _depthwise
from mercer._backend import is_reference
from mercer.nn._dispatch import _array

__all__ = [
    "context_mixing",
    "depthwise",
    "depthwise_choice",
    "depthwise_groups",
    "depthwise_groups_weights",
    "depthwise_on_cuda",
    "depthwise_weight",
]

#: Below so many taps cuDNN is as fast.
CUDA_TAPS = 121
#: Below so many taps torch's own forward loops are faster on the CPU.
DIRECT_TAPS = 81


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
        from mercer.nn.conv import _cuda

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
        from mercer.nn.conv import _cuda

        return _cuda.depthwise_weight(x, grad, kh, kw, dilation)
    found = _depthwise.depthwise_weight_gradient(
        _array(x), _array(grad), (kh, kw), dilation=dilation, method=method
    )
    return torch.from_numpy(found)[:, None]


def depthwise_groups(
    x: torch.Tensor,
    kernels: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor] | None,
    dilation: int,
) -> torch.Tensor:
    """A copy of `x` whose last groups of channels are convolved, each with its kernels (g, 1, kh, kw); with the kernels
    turned round where there are no biases: the gradient of the input. On the CPU."""
    out = torch.clone(x)
    maps, to = _array(x), out.numpy()
    for at, (i, kernel) in zip(_groups(x, kernels), enumerate(kernels), strict=True):
        _depthwise.depthwise_convolution(
            maps[:, at], _array(kernel)[:, 0], None if biases is None else _array(biases[i]),
            turned=biases is None, dilation=dilation, method="direct", out=to[:, at],
        )  # fmt: skip
    return out


def depthwise_groups_weights(
    x: torch.Tensor, grad: torch.Tensor, kernels: Sequence[torch.Tensor], dilation: int
) -> list[torch.Tensor]:
    """The gradients of the kernels of :func:`depthwise_groups`."""
    maps, by_maps = _array(x), _array(grad)
    return [
        torch.from_numpy(
            _depthwise.depthwise_weight_gradient(
                maps[:, at], by_maps[:, at], kernel.shape[2:], dilation=dilation, method="direct"
            )
        )[:, None]
        for at, kernel in zip(_groups(x, kernels), kernels, strict=True)
    ]


def _groups(x: torch.Tensor, kernels: Sequence[torch.Tensor]) -> Iterator[slice]:
    at = x.shape[1] - sum(kernel.shape[0] for kernel in kernels)
    for kernel in kernels:
        yield slice(at, at + kernel.shape[0])
        at += kernel.shape[0]


def depthwise_on_cuda(kh: int, kw: int, dilation: int, dtype: torch.dtype) -> bool:
    """Whether mercer's CUDA kernel takes this size: large enough to matter, and within shared memory."""
    from mercer.nn.conv import _cuda

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
    from mercer.nn.conv import _cuda

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

"""Depthwise convolution with large kernels, "same" padding: the operation, its layer, and what runs for a size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from mercer import _checks
from mercer._backend import is_reference
from mercer.nn._operator import Operator
from mercer.nn.conv import _dispatch
from mercer.ops.depthwise import machine

__all__ = ["DepthwiseConv2d", "ResidualDepthwiseConv2d", "depthwise_conv2d", "explain"]

#: Kernels with fewer taps are torch's altogether; from here on the gradient of the kernel is ours.
FEWEST_TAPS = 25


def depthwise_conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> torch.Tensor:
    """Each channel of a map convolved with a kernel of its own, stride 1, "same" zero padding.

    On the CPU, float32 and float64 kernels of 5 x 5 and more, and dilated ones, run in Rust: the gradient of the
    kernel, and from 9 x 9 on forward and the gradient of the input, in contiguous and channels-last layout alike,
    differentiable as often as one likes. On CUDA the large ones have a kernel of ours. The rest (small kernels, half
    precision, export) is torch's own convolution. :func:`explain` says which.

    Args:
        x: (B, C, H, W).
        weight: (C, 1, kh, kw), both odd, or (C, kh, kw).
        bias: (C,) or None.
        dilation: Pixels from one tap to the next.

    Returns:
        Like `x`, in its memory format.

    Raises:
        ValueError: Shapes that do not fit, or an even kernel.

    Cost: B C H W kh kw multiply-adds less those outside the map; each gradient the same.

    Example:
        >>> x = torch.randn(2, 8, 14, 14)
        >>> y = depthwise_conv2d(x, torch.randn(8, 1, 13, 13))
        >>> y.shape
        torch.Size([2, 8, 14, 14])
    """
    if weight.dim() == 3:
        weight = weight.unsqueeze(1)
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[:2] != (x.shape[1], 1):
        raise ValueError(
            f"weight must be (C, 1, kh, kw) for x (B, C, H, W), got {tuple(weight.shape)} for {tuple(x.shape)}"
        )
    kh, kw = weight.shape[2:]
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"weight must have odd sides, got {kh} x {kw}")
    if ours(x, weight, dilation):
        return _convolve(x, weight, bias, False, dilation)
    pad = (kh // 2 * dilation, kw // 2 * dilation)
    return functional.conv2d(x, weight, bias, padding=pad, dilation=dilation, groups=weight.shape[0])


def ours(x: torch.Tensor, weight: torch.Tensor, dilation: int = 1) -> bool:
    """Whether the operation goes to mercer's dispatcher rather than straight to torch."""
    return (
        (dilation > 1 or weight.shape[2] * weight.shape[3] >= FEWEST_TAPS)
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and (
            x.device.type in ("cpu", "meta")
            or (
                x.is_cuda and _dispatch.depthwise_on_cuda(weight.shape[2], weight.shape[3], dilation, x.dtype)
            )
        )
        and x.numel() > 0
        and not is_reference()
        and not torch.is_autocast_enabled(x.device.type if x.device.type != "meta" else "cpu")
        and not exporting()
    )


def exporting() -> bool:
    """Whether a graph is being made for elsewhere, where mercer's operators are unknown."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


class DepthwiseConv2d(nn.Conv2d):
    """A layer of :func:`depthwise_conv2d`: an `nn.Conv2d` in state and attributes.

    Args:
        channels: C.
        kernel_size: Odd.
        bias: Whether there is one.
        dilation: Pixels from one tap to the next.

    Example:
        >>> layer = DepthwiseConv2d(8, 13)
        >>> layer(torch.randn(1, 8, 20, 20)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([1, 8, 20, 20]), 1360)
    """

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = True, dilation: int = 1) -> None:
        size = _checks.integer("kernel_size", kernel_size, 1)
        if size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {size}")
        pad = size // 2 * dilation
        super().__init__(channels, channels, size, padding=pad, dilation=dilation, groups=channels, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return depthwise_conv2d(x, self.weight, self.bias, self.dilation[0])


class ResidualDepthwiseConv2d(DepthwiseConv2d):
    """x + depthwise convolution of x, with bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + super().forward(x)


def explain(
    shape: tuple[int, int, int, int],
    kernel_size: int | tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    measure: bool = False,
) -> str:
    """What :func:`depthwise_conv2d` runs on the CPU for maps of this shape; with `measure`, timed here and now.

    Args:
        shape: (B, C, H, W).
        kernel_size: Odd.
        dtype: Of the maps.
        channels_last: Their memory format.
        measure: Time every way on random maps (forward, and forward with both gradients): seconds of work.

    Returns:
        A few lines of text.

    Example:
        >>> print(explain((8, 80, 28, 28), 13))
        depthwise 13 x 13 on (8, 80, 28, 28), torch.float32, contiguous: direct
        85 million multiply-adds, 66 million of them inside the map; ... threads
    """
    size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    with torch.device("meta"):
        like = torch.empty(shape, dtype=dtype)
        weight = torch.empty(shape[1], 1, *size, dtype=dtype)
    choice = _dispatch.depthwise_choice(like, weight) if ours(like, weight) else "torch"
    layout = "channels last" if channels_last else "contiguous"
    maps, inside = shape[0] * shape[1], 1
    for n, k in zip(shape[2:], size, strict=True):
        inside *= sum(min(k // 2, i) + min(k // 2, n - 1 - i) + 1 for i in range(n))
    nominal = maps * shape[2] * shape[3] * size[0] * size[1]
    lines = [
        f"depthwise {size[0]} x {size[1]} on {tuple(shape)}, {dtype}, {layout}: {choice}",
        f"{nominal / 1e6:.0f} million multiply-adds, {maps * inside / 1e6:.0f} million of them inside the map; "
        + machine(),
    ]
    if measure:
        lines += _measured(shape, size, dtype, channels_last)
    return "\n".join(lines)


def _measured(shape: tuple, size: tuple, dtype: torch.dtype, channels_last: bool) -> list[str]:
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, dtype=dtype).to(memory_format=form).requires_grad_()
    weight = torch.randn(shape[1], 1, *size, dtype=dtype, requires_grad=True)
    pad = (size[0] // 2, size[1] // 2)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "torch": lambda: functional.conv2d(x, weight, padding=pad, groups=shape[1]),
        "direct": lambda: _Timed.apply(x, weight, "direct"),
        "fourier": lambda: _Timed.apply(x, weight, "fourier"),
    }
    lines = []
    for name, way in ways.items():
        times: list[list[float]] = [[], []]
        for _ in range(4):  # the first warms up
            start = time.perf_counter()
            y = way()
            times[0].append(time.perf_counter() - start)
            torch.autograd.grad(y, (x, weight), y.detach())
            times[1].append(time.perf_counter() - start)
        forward, both = (1e3 * statistics.median(t[1:]) for t in times)
        lines.append(f"{name:8} forward {forward:8.2f} ms, with gradients {both:8.2f} ms")
    return lines


class _Timed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, method):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.method = method
        return _dispatch.depthwise(x, weight, None, False, method=method)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        by_x = _dispatch.depthwise(grad, weight, None, True, method=ctx.method)
        return by_x, _dispatch.depthwise_weight(x, grad, *weight.shape[2:], method=ctx.method), None


# ------------------------------------------------------------------------------------------------- as torch knows them


def _work(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, turned: bool, dilation: int
) -> torch.Tensor:
    return _dispatch.depthwise(x, weight, bias, turned, dilation)


_convolve = Operator("mercer::depthwise_conv2d", _work)


def _work_on_weight(x: torch.Tensor, grad: torch.Tensor, kh: int, kw: int, dilation: int) -> torch.Tensor:
    return _dispatch.depthwise_weight(x, grad, kh, kw, dilation)


_weight_gradient = Operator("mercer::depthwise_weight_gradient", _work_on_weight)


@_convolve.register_fake
def _(x, weight, bias, turned, dilation):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


@_weight_gradient.register_fake
def _(x, grad, kh, kw, dilation):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[1], 1, kh, kw)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, ctx.turned, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _convolve_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, weight = ctx.saved_tensors
    by_x = by_weight = by_bias = None
    if ctx.needs_input_grad[0]:
        by_x = _convolve(grad, weight, None, not ctx.turned, ctx.dilation)
    if ctx.needs_input_grad[1]:
        by_weight = _weight_gradient(x, grad, *weight.shape[2:], ctx.dilation)
        by_weight = by_weight.flip(2, 3) if ctx.turned else by_weight
    if ctx.needs_input_grad[2]:
        by_bias = grad.sum((0, 2, 3))
    return by_x, by_weight, by_bias, None, None


def _keep_maps(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, grad, _, _, ctx.dilation = inputs
    ctx.save_for_backward(x, grad)


def _weight_gradient_backward(ctx, kernel):  # type: ignore[no-untyped-def]
    x, grad = ctx.saved_tensors
    by_x = _convolve(grad, kernel, None, True, ctx.dilation) if ctx.needs_input_grad[0] else None
    by_grad = _convolve(x, kernel, None, False, ctx.dilation) if ctx.needs_input_grad[1] else None
    return by_x, by_grad, None, None, None


_convolve.register_autograd(_convolve_backward, setup_context=_keep)
_weight_gradient.register_autograd(_weight_gradient_backward, setup_context=_keep_maps)


@register_flop_formula(torch.ops.mercer.depthwise_conv2d)
def _flops(x, weight, *rest, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * x[0] * x[1] * x[2] * x[3] * weight[2] * weight[3]


@register_flop_formula(torch.ops.mercer.depthwise_weight_gradient)
def _weight_flops(x, grad, kh, kw, *rest, out_shape=None, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * x[0] * x[1] * x[2] * x[3] * kh * kw

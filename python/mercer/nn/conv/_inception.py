"""Inception depthwise convolution: three small groups of channels are convolved, the others pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mercer import _checks
from mercer._backend import is_reference
from mercer.nn._operator import gradients_of, is_bare, is_plain
from mercer.nn.conv import _dispatch

__all__ = ["InceptionDWConv2d"]


class InceptionDWConv2d(nn.Module):
    """Inception depthwise convolution (Yu et al. 2024, InceptionNeXt, section 3.2), on the CPU in one operation.

    Channels in order: C - 3g pass untouched, g through s x s, g through 1 x b (along the width), g through b x 1, with
    g = int(C branch_ratio); depthwise with bias, "same" zero padding. g (s² + 2b + 3) parameters.

    Args:
        in_channels: C of maps (B, C, H, W).
        square_kernel_size: s, odd.
        band_kernel_size: b, odd.
        branch_ratio: g / C.

    Raises:
        ValueError: Even kernels, g = 0 or 3g > C.

    Example:
        >>> mixer = InceptionDWConv2d(32)
        >>> x = torch.randn(1, 32, 9, 9)
        >>> torch.equal(mixer(x)[:, :20], x[:, :20])
        True
    """

    def __init__(
        self,
        in_channels: int,
        square_kernel_size: int = 3,
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, size in (
            ("square_kernel_size", square_kernel_size),
            ("band_kernel_size", band_kernel_size),
        ):
            if _checks.integer(name, size, 1) % 2 == 0:
                raise ValueError(f"{name} must be odd, got {size}")
        g = int(in_channels * branch_ratio)
        if g < 1 or 3 * g > in_channels:
            raise ValueError(
                f"branch_ratio must leave 1 <= g and 3 g <= in_channels with g = int(in_channels * branch_ratio), "
                f"got {branch_ratio} of {in_channels} channels: g = {g}"
            )
        s, b, r = square_kernel_size, band_kernel_size, dilation
        made = {"groups": g, "device": device, "dtype": dtype}
        self.dwconv_hw = nn.Conv2d(g, g, s, padding=r * (s // 2), dilation=r, **made)
        self.dwconv_w = nn.Conv2d(g, g, (1, b), padding=(0, r * (b // 2)), dilation=(1, r), **made)
        self.dwconv_h = nn.Conv2d(g, g, (b, 1), padding=(r * (b // 2), 0), dilation=(r, 1), **made)
        self.split = (in_channels - 3 * g, g, g, g)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        branches = (self.dwconv_hw, self.dwconv_w, self.dwconv_h)
        weights = [t for branch in branches for t in (branch.weight, branch.bias)]
        if is_bare(*branches) and all(type(b) is nn.Conv2d for b in branches) and _is_ours(x, *weights):
            return _Mixed.apply(x, self.dwconv_hw.dilation[0], *weights)
        same, *parts = torch.split(x, self.split, dim=1)
        return torch.cat([same, *(branch(part) for branch, part in zip(branches, parts, strict=True))], dim=1)


def _is_ours(x: torch.Tensor, *weights: torch.Tensor) -> bool:
    return (
        all(t.dtype == x.dtype and t.device.type == "cpu" for t in (x, *weights))
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
        and is_plain(x, *weights)
        and not torch.is_autocast_enabled("cpu")
        and not is_reference()
    )


def _by_torch(x: torch.Tensor, dilation: int, *weights: torch.Tensor) -> torch.Tensor:
    """`weights` are a kernel (g, 1, kh, kw) and a bias (g,) for each of the last groups of channels."""
    kernels = weights[::2]
    groups = [kernel.shape[0] for kernel in kernels]
    same, *parts = torch.split(x, [x.shape[1] - sum(groups), *groups], dim=1)
    mixed = [
        functional.conv2d(
            part, kernel, bias, 1, [dilation * (k // 2) for k in kernel.shape[2:]],
            [dilation if k > 1 else 1 for k in kernel.shape[2:]], kernel.shape[0],
        )
        for part, kernel, bias in zip(parts, kernels, weights[1::2], strict=True)
    ]  # fmt: skip
    return torch.cat([same, *mixed], dim=1)


class _Mixed(torch.autograd.Function):
    """All branches at once: the map is copied, and the convolutions are written over their channels of it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dilation: int, *weights: torch.Tensor) -> torch.Tensor:
        ctx.dilation = dilation
        ctx.save_for_backward(x, *weights)
        return _dispatch.depthwise_groups(x, weights[::2], weights[1::2], dilation)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled() or not is_plain(grad):
            found = gradients_of(lambda x, *w: _by_torch(x, ctx.dilation, *w), (x, *weights), grad)
            return found[0], None, *found[1:]
        kernels = weights[::2]
        form = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        grad = grad.contiguous(memory_format=form)
        by_x = _dispatch.depthwise_groups(grad, kernels, None, ctx.dilation) if needed[0] else None
        by_weights: list[torch.Tensor | None] = [None] * len(weights)
        if any(needed[2::2]):
            by_weights[::2] = _dispatch.depthwise_groups_weights(x, grad, kernels, ctx.dilation)
        if any(needed[3::2]):
            groups = [kernel.shape[0] for kernel in kernels]
            by_weights[1::2] = grad[:, -sum(groups) :].sum((0, 2, 3)).split(groups)
        return by_x, None, *by_weights
